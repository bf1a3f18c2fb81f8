// gemm_int8.cu's products on Hopper, for M > 32 and K a multiple of 16: warps that load and warps that multiply. Formula, shapes and bits as there.
//
// A block makes 128 rows of y, and 256 or, where that leaves fewer SMs idle, 128 (_n128) columns; three warpgroups. The first has given its
// registers away; one thread of it asks for tiles (tile_load): 128 bytes of K of 128 rows of x and of the rows of W, in a ring of four (_n128: six)
// stages. The other two multiply 64 rows each by wgmma, four a stage, both operands in shared memory; while a stage's are under way the stage
// before is handed back. Rows past the ends, and bytes past K, are zeros of the copy engine's.
// W's rows come as two boxes, halves of the columns; for SwiGLU the first is of the gate, the second of the matrix beside it, so a lane has both
// sums of an element half of its registers apart. Blocks: x: rows of y, so that blocks which run at a time share rows of W in L2; y: columns.
//
// Floors as in gemm_int8.cu: 141 us for Qwen2-VL-7B's gate projection, M = 2048. A tile of 128 x 256 wants 170 operations a byte of L2: at
// 1979 TOP/s 11.6 TB/s, so that L2 and not arithmetic may be what limits it.
// Shared memory: 192 KiB; one block a multiprocessor (registers: 40 and twice 232 a thread, of 3 x 168).
// Reached: not yet run on a GPU.
// Considered: clusters of two blocks that share W's tile (multicast: a third fewer bytes from L2; the host layer has no clusters); a persistent
// grid that overlaps one block's output with the next one's loads; columns of y exchanged among lanes for stores of 16 bytes; for M of 33 to some
// hundreds, tiles of 64 rows.
#include "gemm_int8.cuh"
#include "hopper.cuh"

#ifdef MPA_HOPPER
namespace hopper {

// Sizes for N columns.
template <int N>
struct Ring {
  // mutant: condition: four stages for all only take longer.
  static constexpr int ROWS = 128, STEP = 128, STAGES = N == 256 ? 4 : 6;
  static constexpr int X_BYTES = ROWS * STEP, HALF_BYTES = N / 2 * STEP, BYTES = X_BYTES + 2 * HALF_BYTES;  // of a stage
  unsigned char* stages;
  Mbarrier *full, *empty;

  __device__ __forceinline__ Ring() {
    stages = shared_memory<unsigned char>();
    full = reinterpret_cast<Mbarrier*>(stages + STAGES * BYTES);
    empty = full + STAGES;
    constexpr int WARPS = 2 * WARPGROUP / 32;  // each says for itself when it is done with a stage
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; i++) {
        mbarrier_init(full + i, 1);
        mbarrier_init(empty + i, WARPS);
      }
      mbarrier_fence_init();  // mutant: copy: an order between proxies, not seen on the host.
    }
    __syncthreads();
  }

  // By one thread: x's rows from m0 on, and those of W from n0 and n1 on.
  __device__ __forceinline__ void produce(const TensorMap& x, const TensorMap& first, const TensorMap& second, int m0, int n0, int n1,
                                          int steps) const {
    for (int step = 0; step < steps; step++) {
      const int stage = step % STAGES;
      mbarrier_wait(empty + stage, step / STAGES % 2 ^ 1);
      mbarrier_arrive_expect(full + stage, BYTES);
      unsigned char* to = stages + stage * BYTES;
      tile_load_2d(to, x, full + stage, step * STEP, m0);
      tile_load_2d(to + X_BYTES, first, full + stage, step * STEP, n0);
      tile_load_2d(to + X_BYTES + HALF_BYTES, second, full + stage, step * STEP, n1);
    }
  }

  // By a warpgroup: the sums of its 64 rows, number `group` of the block.
  __device__ __forceinline__ void consume(int (&sums)[N / 2], int group, int steps) const {
    for (int step = 0; step < steps; step++) {
      const int stage = step % STAGES;
      mbarrier_wait(full + stage, step / STAGES % 2);
      const unsigned char *x = stages + stage * BYTES + group * 64 * STEP, *weight = stages + stage * BYTES + X_BYTES;
      wgmma_fence(sums);
#pragma unroll
      for (int k = 0; k < STEP; k += 32) wgmma_s8<N>(sums, wgmma_matrix<STEP>(x + k), wgmma_matrix<STEP>(weight + k), step > 0 || k > 0);
      wgmma_commit();
      wgmma_wait<1>(sums);  // the products of the step before are over
      if (step > 0 && lane_id() == 0) mbarrier_arrive(empty + (step - 1) % STAGES);
    }
    wgmma_wait<0>(sums);
  }
};

// finish(row, sums of it): row of y, twice for each lane; element 4 j + e of the sums, e 0 or 1, is column 8 j + 2 quad + e.
template <int N, class Finish>
__device__ __forceinline__ void multiply(const TensorMap& x, const TensorMap& first, const TensorMap& second, int n0, int n1, int depth,
                                         Finish finish) {
  const Ring<N> ring;
  const int m0 = blockIdx.x * ring.ROWS, steps = (depth + ring.STEP - 1) / ring.STEP;
  if (threadIdx.x < WARPGROUP) {
    registers_down_to<40>();
    if (threadIdx.x == 0) ring.produce(x, first, second, m0, n0, n1, steps);
  } else {
    registers_up_to<232>();
    const int group = threadIdx.x / WARPGROUP - 1;
    int sums[N / 2];
    ring.consume(sums, group, steps);
    const int row = m0 + group * 64 + warp_id() % 4 * 16 + lane_id() / 4;
    finish(row, sums);
    finish(row + 8, sums + 2);
  }
}

template <int N, class T>
__device__ __forceinline__ void forward(T* y, const TensorMap& x, const TensorMap& weight, const Dequantize<T>& finish, int rows, int depth) {
  const int n0 = blockIdx.y * N;
  multiply<N>(x, weight, weight, n0, n0 + N / 2, depth, [&](int row, const int* sums) {
    if (row < rows) finish.template store<N / 8>(y, row, n0 + lane_id() % 4 * 2, sums);
  });
}

template <int N>
__device__ __forceinline__ void swiglu(bf16* act, const TensorMap& x, const TensorMap& gate, const TensorMap& up, const Swiglu& finish, int rows,
                                       int depth) {
  const int n0 = blockIdx.y * (N / 2);
  multiply<N>(x, gate, up, n0, n0, depth, [&](int row, const int* sums) {
    if (row < rows) finish.store<N / 16, 4>(act, row, n0 + lane_id() % 4 * 2, sums, sums + N / 4);
  });
}

}  // namespace hopper
#endif

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_forward_bf16(bf16* y, const __grid_constant__ TensorMap x, const float* x_scale,
                                                                                   const __grid_constant__ TensorMap weight, const float* w_scale,
                                                                                   const bf16* bias, const bf16* residual, int rows, int cols,
                                                                                   int depth) {
#ifdef MPA_HOPPER
  hopper::forward<256>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, depth);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_forward_bf16_n128(bf16* y, const __grid_constant__ TensorMap x,
                                                                                        const float* x_scale,
                                                                                        const __grid_constant__ TensorMap weight,
                                                                                        const float* w_scale, const bf16* bias, const bf16* residual,
                                                                                        int rows, int cols, int depth) {
#ifdef MPA_HOPPER
  hopper::forward<128>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, depth);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_forward_f32(float* y, const __grid_constant__ TensorMap x, const float* x_scale,
                                                                                  const __grid_constant__ TensorMap weight, const float* w_scale,
                                                                                  const float* bias, const float* residual, int rows, int cols,
                                                                                  int depth) {
#ifdef MPA_HOPPER
  hopper::forward<256>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, depth);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_forward_f32_n128(float* y, const __grid_constant__ TensorMap x,
                                                                                       const float* x_scale, const __grid_constant__ TensorMap weight,
                                                                                       const float* w_scale, const float* bias, const float* residual,
                                                                                       int rows, int cols, int depth) {
#ifdef MPA_HOPPER
  hopper::forward<128>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, depth);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_swiglu_forward_bf16(bf16* act,
                                                                                          const __grid_constant__ TensorMap x, const float* x_scale,
                                                                                          const __grid_constant__ TensorMap gate,
                                                                                          const float* gate_scale,
                                                                                          const __grid_constant__ TensorMap up, const float* up_scale,
                                                                                          int rows, int cols, int depth) {
#ifdef MPA_HOPPER
  hopper::swiglu<256>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, depth);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_int8_hopper_swiglu_forward_bf16_n128(bf16* act,
                                                                                               const __grid_constant__ TensorMap x,
                                                                                               const float* x_scale,
                                                                                               const __grid_constant__ TensorMap gate,
                                                                                               const float* gate_scale,
                                                                                               const __grid_constant__ TensorMap up,
                                                                                               const float* up_scale, int rows, int cols, int depth) {
#ifdef MPA_HOPPER
  hopper::swiglu<128>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, depth);
#else
  __trap();
#endif
}
