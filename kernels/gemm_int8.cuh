// What becomes of the exact sums of gemm_int8.cu and gemm_int8_hopper.cu.
#pragma once
#include "elementwise.cuh"

// A lane's part of a row of an output of even width: pair j, of columns first + 8 j (first is even) and the next one, is make(j, load(column)).
// A batch of loads goes ahead of what is made of them, and behind no branch: a lane beyond the last column asks for what the last one does.
template <int PAIRS, class T, class Load, class Make>
__device__ __forceinline__ void store_pairs(T* line, int first, int cols, Load load, Make make) {
  // mutant: condition: true loads all at once, which only takes registers.
  constexpr int BATCH = PAIRS < 8 ? PAIRS : 8;
#pragma unroll
  for (int start = 0; start < PAIRS; start += BATCH) {
    decltype(load(0)) loaded[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) loaded[i] = load(min(first + 8 * (start + i), cols - 2));
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const int col = first + 8 * (start + i);
      const Pack<T, 2> pair = make(start + i, loaded[i]);
      if (col < cols) store_pack(line + col, pair);
    }
  }
}

// The same of odd width, where pairs are not aligned: element e of pair j is make(j, e, column).
template <int PAIRS, class T, class Make>
__device__ __forceinline__ void store_elements(T* line, int first, int cols, Make make) {
#pragma unroll
  for (int j = 0; j < PAIRS; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int col = first + 8 * j + e;
      if (col < cols) line[col] = make(j, e, col);
    }
}

// Nothing is fused, so these are the bits of the CPU.
template <class T>
struct Dequantize {
  const float *x_scale, *w_scale;
  const T *bias, *residual;
  int cols;

  // Of two columns. bias and residual stay whole words until all are asked for: ptxas waits for a load where it is taken apart.
  using Words = Pack<uint32_t, sizeof(T) / 2>;
  struct Pair {
    Pack<float, 2> scale;
    Words bias, residual;
  };

  __device__ __forceinline__ float finished(int sum, float scale, float plus_bias, float plus_residual) const {
    float y = __fmul_rn(__int2float_rn(sum), scale);
    if (bias != nullptr) y = __fadd_rn(y, plus_bias);
    if (residual != nullptr) y = __fadd_rn(y, plus_residual);
    return y;
  }

  __device__ __forceinline__ float operator()(int row, int col, int sum) const {
    const float plus_bias = bias != nullptr ? to_f32(bias[col]) : 0.0f;
    const float plus_residual = residual != nullptr ? to_f32(residual[static_cast<int64_t>(row) * cols + col]) : 0.0f;
    return finished(sum, __fmul_rn(__ldg(x_scale + row), __ldg(w_scale + col)), plus_bias, plus_residual);
  }

  __device__ __forceinline__ static Pack<float, 2> floats(const Words& words) {
    Pack<T, 2> pair;
    memcpy(&pair, &words, sizeof pair);
    return {to_f32(pair[0]), to_f32(pair[1])};
  }

  // Row of y; sums[4 j + e] is that of element e of pair j.
  template <int PAIRS>
  __device__ __forceinline__ void store(T* y, int row, int first, const int* sums) const {
    const int64_t start = static_cast<int64_t>(row) * cols;
    // mutant: condition: true stores pairs one by one, which only takes longer.
    if (cols % 2 != 0) {
      store_elements<PAIRS>(y + start, first, cols, [&](int j, int e, int col) { return from_f32<T>((*this)(row, col, sums[4 * j + e])); });
      return;
    }
    const float row_scale = __ldg(x_scale + row);
    auto words = [](const T* of, int64_t at) {
      return of != nullptr ? load_pack<sizeof(T) / 2>(reinterpret_cast<const uint32_t*>(of + at)) : Words{};
    };
    auto load = [&](int col) { return Pair{load_pack<2>(w_scale + col), words(bias, col), words(residual, start + col)}; };
    store_pairs<PAIRS>(y + start, first, cols, load, [&](int j, const Pair& pair) {
      const Pack<float, 2> plus_bias = floats(pair.bias), plus_residual = floats(pair.residual);
      auto element = [&](int e) { return finished(sums[4 * j + e], __fmul_rn(row_scale, pair.scale[e]), plus_bias[e], plus_residual[e]); };
      return Pack<T, 2>{from_f32<T>(element(0)), from_f32<T>(element(1))};
    });
  }
};

struct Swiglu {
  const float *x_scale, *gate_scale, *up_scale;
  int cols;

  struct Pair {
    Pack<float, 2> gate_scale, up_scale;
  };

  __device__ __forceinline__ static bf16 finished(int gate, int up, float scale, float gate_scale, float up_scale) {
    const float z = __int2float_rn(gate) * (scale * gate_scale);
    return from_f32<bf16>(z * sigmoid<bf16>(z) * (__int2float_rn(up) * (scale * up_scale)));
  }

  __device__ __forceinline__ bf16 operator()(int row, int col, int gate, int up) const {
    return finished(gate, up, __ldg(x_scale + row), __ldg(gate_scale + col), __ldg(up_scale + col));
  }

  // Row of act; gates[STRIDE j + e] and ups[STRIDE j + e] are those of element e of pair j.
  template <int PAIRS, int STRIDE>
  __device__ __forceinline__ void store(bf16* act, int row, int first, const int* gates, const int* ups) const {
    bf16* line = act + static_cast<int64_t>(row) * cols;
    // mutant: condition: true stores pairs one by one, which only takes longer.
    if (cols % 2 != 0) {
      store_elements<PAIRS>(line, first, cols, [&](int j, int e, int col) { return (*this)(row, col, gates[STRIDE * j + e], ups[STRIDE * j + e]); });
      return;
    }
    const float scale = __ldg(x_scale + row);
    auto load = [&](int col) { return Pair{load_pack<2>(gate_scale + col), load_pack<2>(up_scale + col)}; };
    store_pairs<PAIRS>(line, first, cols, load, [&](int j, const Pair& of) {
      auto element = [&](int e) { return finished(gates[STRIDE * j + e], ups[STRIDE * j + e], scale, of.gate_scale[e], of.up_scale[e]); };
      return Pack<bf16, 2>{element(0), element(1)};
    });
  }
};
