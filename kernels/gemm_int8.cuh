// What becomes of the exact sums of gemm_int8.cu and gemm_int8_hopper.cu.
#pragma once
#include "elementwise.cuh"

// Nothing is fused, so these are the bits of the CPU.
template <class T>
struct Dequantize {
  const float *x_scale, *w_scale;
  const T *bias, *residual;
  int cols;

  __device__ __forceinline__ float operator()(int row, int col, int sum) const {
    float y = __fmul_rn(__int2float_rn(sum), __fmul_rn(__ldg(x_scale + row), __ldg(w_scale + col)));
    if (bias != nullptr) y = __fadd_rn(y, to_f32(bias[col]));
    if (residual != nullptr) y = __fadd_rn(y, to_f32(residual[static_cast<int64_t>(row) * cols + col]));
    return y;
  }
};

struct Swiglu {
  const float *x_scale, *gate_scale, *up_scale;
  int cols;

  __device__ __forceinline__ bf16 operator()(int row, int col, int gate, int up) const {
    const float scale = __ldg(x_scale + row);
    const float z = __int2float_rn(gate) * (scale * __ldg(gate_scale + col));
    return from_f32<bf16>(z * sigmoid<bf16>(z) * (__int2float_rn(up) * (scale * __ldg(up_scale + col))));
  }

  // Stores those of columns col (even) and col + 1.
  __device__ __forceinline__ void store(bf16* act, int row, int col, const int* gates, const int* ups) const {
    if (col >= cols) return;
    bf16* to = act + static_cast<int64_t>(row) * cols + col;
    const bf16 left = (*this)(row, col, gates[0], ups[0]);
    if (col + 1 == cols) {
      *to = left;
      return;
    }
    const bf16 right = (*this)(row, col + 1, gates[1], ups[1]);
    // mutant: condition: false stores pairs one by one, which only takes longer.
    if (cols % 2 == 0) {  // pairs are aligned
      store_pack(to, Pack<bf16, 2>{left, right});
    } else {
      to[0] = left;
      to[1] = right;
    }
  }
};
