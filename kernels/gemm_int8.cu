// y = (x_q W_q^T) x_scale w_scale (+ bias) (+ residual)
//
// x_q [M, K], W_q [N, K] int8 with elements in -127..127; x_scale [M], w_scale [N] float (quantize.cu); bias [N], residual [M, N] or null; y [M, N].
// bias and residual have y's type. The sum over K is in int32 and exact, so all kernels here, and the CPU, give the same bits whatever the order:
// float(sum) * (x_scale * w_scale), + bias, + residual, each rounded to float, and once to y's type.
//
//   gemm_int8_forward_*         a block makes a tile of y, 128x128 or, where that would leave SMs idle, 64x64 (_t64): gemm.cuh. A warp of the
//                               large one makes 64x64: of 32 columns it would read as many bytes of shared memory as the mma take time.
//   gemm_int8_skinny_forward_*  M <= 16 or 32 (_m32). A block takes 16 rows of W, its 8 warps every 8th stretch of 64 along K. x is the A operand of
//                               an mma, padded to 16 rows, straight from L1/L2; a lane reads 16 bytes of a row of W, past which L1 need keep
//                               none, and of the rows of x, of four stretches (_m32: two) before the first is multiplied: the two blocks
//                               of a multiprocessor have 64 or 32 KiB of W under way. The warps' sums meet in shared memory.
//   gemm_int8_swiglu_*          act = silu(x G^T) * (x U^T), from two matrices and in bf16; quantize.cu then makes int8 of it.
//   gemm_int8_hopper.cu         the same by wgmma, for M > 32 where K is a multiple of 16.
// An int8 pair lies where a bf16 would, so shared memory, ldmatrix and fragments are those of gemm.cuh.
//
// swiglu: the rows of G and U alternate by eight in a tile's columns, so that a lane has both sums of an element.
//
// FLOPs: 2 M N K. Bytes: M K + N K + 2 M N. On an H100 (3.35 TB/s, 1979 TOP/s): Qwen2-VL-7B's gate projection (N = 18944, K = 3584) takes
// 141 us of arithmetic for M = 2048, gate and up with SwiGLU 281 us, and 20 us of reading W for M = 1.
// Reached: not yet run on a GPU.
// Considered for few rows: dp4a (32 rows of x cost more instructions than the bytes take); K split over blocks, whose integer sums could meet by
// atomics (a narrow W is read in the time of a launch). For SwiGLU: act in float (twice the bytes, and more than int8 can show), in int16 with a
// scale for each eight columns (exact enough, but more bytes and another tile's business).
#include "gemm.cuh"
#include "gemm_int8.cuh"

// A row-major matrix of int8, aligned to 16 bytes, as an operand: k counts pairs.
struct Bytes {
  const int8_t* data;
  int rows, depth;  // elements

  __device__ __forceinline__ const int8_t* line(int row) const { return row < rows ? data + static_cast<int64_t>(row) * depth : nullptr; }
  __device__ __forceinline__ int place(int pair) const { return 2 * pair; }
  // 16 bytes at a time want aligned rows; others go element by element.
  // mutant: condition: false sends every row there, which only takes longer.
  __device__ __forceinline__ bool aligned() const { return depth % 16 == 0; }

  __device__ __forceinline__ void load8(bf16* to, const int8_t* line, int k) const {
    if (aligned()) {
      const bool read = line != nullptr && k < depth;
      cp_async16(to, read ? line + k : data, read);
    } else {
      store_pack(reinterpret_cast<uint32_t*>(to), masked(line, k));
    }
  }
  // 16 elements from k on, zeros outside of the matrix.
  __device__ __forceinline__ Pack<uint32_t, 4> masked(const int8_t* line, int k) const {
    Pack<uint32_t, 4> pack{};
#pragma unroll
    for (int i = 0; i < 16; i++)
      if (line != nullptr && k + i < depth) pack[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(line[k + i])) << 8 * (i % 4);
    return pack;
  }
  // The same where rows are aligned: all 16 or none lie inside.
  __device__ __forceinline__ Pack<uint32_t, 4> whole(const int8_t* line, int k) const {
    return line != nullptr && k < depth ? load_pack<4>(reinterpret_cast<const uint32_t*>(line + k)) : Pack<uint32_t, 4>{};
  }
  // And of W, which is read once.
  __device__ __forceinline__ Pack<uint32_t, 4> once(const int8_t* line, int k) const {
    if (line == nullptr || k >= depth) return {};
    const uint4 word = __ldcs(reinterpret_cast<const uint4*>(line + k));
    return {word.x, word.y, word.z, word.w};
  }
};

// Rows of two matrices of one shape, alternating by eight: rows 0..7 of the first, 0..7 of the second, 8..15 of the first, ...
struct Alternating {
  Bytes first;
  const int8_t* second;

  __device__ __forceinline__ const int8_t* line(int row) const {
    return Bytes{row / 8 % 2 ? second : first.data, first.rows, first.depth}.line(row / 16 * 8 + row % 8);
  }
  __device__ __forceinline__ int place(int pair) const { return first.place(pair); }
  __device__ __forceinline__ void load8(bf16* to, const int8_t* line, int k) const { first.load8(to, line, k); }
};

using LargeBytes = Tile<128, 128, 2, 2, 4, int>;  // 128 threads, 64 KiB
using SmallBytes = Tile<64, 64, 2, 2, 4, int>;    // 128 threads, 32 KiB

// --- many rows ---

template <class Tile, class T>
__device__ __forceinline__ void gemm_int8_forward(T* y, const int8_t* x, const int8_t* weight, const Dequantize<T>& finish, int rows, int cols,
                                                  int depth) {
  const int m0 = blockIdx.x * Tile::ROWS, n0 = blockIdx.y * Tile::COLS;
  Tile tile;
  tile.multiply(shared_memory<bf16>(), Bytes{x, rows, depth}, Bytes{weight, cols, depth}, m0, n0, (depth + 1) / 2);
  tile.store(y, rows, cols, m0, n0, finish);
}

// act [rows, cols]
template <class Tile>
__device__ __forceinline__ void gemm_int8_swiglu(bf16* act, const int8_t* x, const int8_t* gate, const int8_t* up, const Swiglu& finish, int rows,
                                                 int cols, int depth) {
  const int m0 = blockIdx.x * Tile::ROWS, n0 = blockIdx.y * Tile::COLS / 2, quad = lane_id() % 4;
  Tile tile;
  tile.multiply(shared_memory<bf16>(), Bytes{x, rows, depth}, Alternating{{gate, cols, depth}, up}, m0, 2 * n0, (depth + 1) / 2);
#pragma unroll
  for (int i = 0; i < 2 * Tile::MT; i++) {
    const int row = m0 + Tile::warp_m() + 8 * i + lane_id() / 4;
    if (row >= rows) break;
    finish.store<Tile::NT / 2, 8>(act, row, n0 + Tile::warp_n() / 2 + 2 * quad, &tile.sums[i / 2][0][i % 2 * 2], &tile.sums[i / 2][1][i % 2 * 2]);
  }
}

// --- few rows ---

constexpr int SKINNY = 16;  // rows of W in a block, and of x in an mma
constexpr int WARPS = 8;    // of a block, which share K

// Puts the block's sums, of MT times 16 rows of x and of W's rows from n0 on, into shared memory: [WARPS][16 MT][16]. sum(i) is then the whole sum
// number i of these 16 MT x 16.
template <int MT, class Weight>
struct Skinny {
  static constexpr int SUMS = MT * SKINNY * SKINNY;
  int* shared;

  __device__ __forceinline__ Skinny(const Bytes& x, const Weight& weight, int n0) : shared(shared_memory<int>()) {
    const int group = lane_id() / 4, quad = lane_id() % 4;
    const int8_t *line_a[2 * MT], *line_b[2];
#pragma unroll
    for (int i = 0; i < 2 * MT; i++) line_a[i] = x.line(group + 8 * i);
    for (int i = 0; i < 2; i++) line_b[i] = weight.line(n0 + group + 8 * i);
    int c[MT][2][4] = {};
    // A choice of loops, not of loads: where two loads, one of them in parts, end in the same registers, ptxas waits for both.
    if (x.aligned()) {
      multiply<4 / MT>(c, x.depth, [&](int i, int k) { return x.whole(line_a[i], k); }, [&](int i, int k) { return x.once(line_b[i], k); });
    } else {
      multiply<1>(c, x.depth, [&](int i, int k) { return x.masked(line_a[i], k); }, [&](int i, int k) { return x.masked(line_b[i], k); });
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) shared[warp_id() * SUMS + (SKINNY * m + group + e / 2 * 8) * SKINNY + 8 * i + 2 * quad + e % 2] = c[m][i][e];
    __syncthreads();
  }

  // c += what the warp's stretches of K give; load_a(i, k) and load_b(i, k) are 16 elements of row i of this lane's. ROUNDS stretches are asked for
  // before the first is multiplied.
  template <int ROUNDS, class A, class B>
  __device__ __forceinline__ static void multiply(int (&c)[MT][2][4], int depth, A load_a, B load_b) {
    // mutant: flip: one more round is one of zeros.
    for (int k0 = 64 * warp_id(); k0 < depth; k0 += 64 * WARPS * ROUNDS) {
      Pack<uint32_t, 4> a[ROUNDS][2 * MT], b[ROUNDS][2];
#pragma unroll
      for (int r = 0; r < ROUNDS; r++) {
        const int k = k0 + 64 * WARPS * r + lane_id() % 4 * 16;
#pragma unroll
        for (int i = 0; i < 2; i++) b[r][i] = load_b(i, k);
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) a[r][i] = load_a(i, k);
      }
#pragma unroll
      for (int r = 0; r < ROUNDS; r++)
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
          for (int i = 0; i < 2; i++)
#pragma unroll
            for (int step = 0; step < 4; step += 2) {
              const Pack<uint32_t, 4>&upper = a[r][2 * m], &lower = a[r][2 * m + 1];
              const uint32_t both[4] = {upper[step], lower[step], upper[step + 1], lower[step + 1]};
              mma_s8(c[m][i], both, b[r][i][step], b[r][i][step + 1]);
            }
    }
  }

  __device__ __forceinline__ int sum(int i) const {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += shared[w * SUMS + i];
    return sum;
  }
};

template <int MT, class T>
__device__ __forceinline__ void gemm_int8_skinny_forward(T* y, const int8_t* x, const int8_t* weight, const Dequantize<T>& finish, int rows, int cols,
                                                         int depth) {
  const int n0 = blockIdx.x * SKINNY;
  const Skinny<MT, Bytes> sums({x, rows, depth}, {weight, cols, depth}, n0);
#pragma unroll
  // mutant: flip: there are no rows beyond the block's.
  for (int m = 0; m < MT; m++) {
    const int i = m * 32 * WARPS + threadIdx.x, row = i / SKINNY, col = n0 + i % SKINNY;
    if (row < rows && col < cols) y[static_cast<int64_t>(row) * cols + col] = from_f32<T>(finish(row, col, sums.sum(i)));
  }
}

template <int MT>
__device__ __forceinline__ void gemm_int8_swiglu_skinny(bf16* act, const int8_t* x, const int8_t* gate, const int8_t* up, const Swiglu& finish,
                                                        int rows, int cols, int depth) {
  const int n0 = blockIdx.x * SKINNY / 2;
  const Skinny<MT, Alternating> sums({x, rows, depth}, {{gate, cols, depth}, up}, 2 * n0);
  // Eight threads a row.
  const int row = threadIdx.x / 8, col = n0 + threadIdx.x % 8, at = row * SKINNY + threadIdx.x % 8;
  if (row < rows && col < cols) act[static_cast<int64_t>(row) * cols + col] = finish(row, col, sums.sum(at), sums.sum(at + 8));
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_forward_bf16(bf16* y, const int8_t* x, const float* x_scale, const int8_t* weight,
                                                                         const float* w_scale, const bf16* bias, const bf16* residual, int rows,
                                                                         int cols, int depth) {
  gemm_int8_forward<LargeBytes>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_forward_bf16_t64(bf16* y, const int8_t* x, const float* x_scale, const int8_t* weight,
                                                                             const float* w_scale, const bf16* bias, const bf16* residual, int rows,
                                                                             int cols, int depth) {
  gemm_int8_forward<SmallBytes>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_skinny_forward_bf16(bf16* y, const int8_t* x, const float* x_scale,
                                                                                   const int8_t* weight, const float* w_scale, const bf16* bias,
                                                                                   const bf16* residual, int rows, int cols, int depth) {
  gemm_int8_skinny_forward<1>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_skinny_forward_bf16_m32(bf16* y, const int8_t* x, const float* x_scale,
                                                                                       const int8_t* weight, const float* w_scale, const bf16* bias,
                                                                                       const bf16* residual, int rows, int cols, int depth) {
  gemm_int8_skinny_forward<2>(y, x, weight, Dequantize<bf16>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_forward_f32(float* y, const int8_t* x, const float* x_scale, const int8_t* weight,
                                                                        const float* w_scale, const float* bias, const float* residual, int rows,
                                                                        int cols, int depth) {
  gemm_int8_forward<LargeBytes>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_forward_f32_t64(float* y, const int8_t* x, const float* x_scale, const int8_t* weight,
                                                                            const float* w_scale, const float* bias, const float* residual, int rows,
                                                                            int cols, int depth) {
  gemm_int8_forward<SmallBytes>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_skinny_forward_f32(float* y, const int8_t* x, const float* x_scale,
                                                                                  const int8_t* weight, const float* w_scale, const float* bias,
                                                                                  const float* residual, int rows, int cols, int depth) {
  gemm_int8_skinny_forward<1>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_skinny_forward_f32_m32(float* y, const int8_t* x, const float* x_scale,
                                                                                      const int8_t* weight, const float* w_scale, const float* bias,
                                                                                      const float* residual, int rows, int cols, int depth) {
  gemm_int8_skinny_forward<2>(y, x, weight, Dequantize<float>{x_scale, w_scale, bias, residual, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_swiglu_forward_bf16(bf16* act, const int8_t* x, const float* x_scale,
                                                                                const int8_t* gate, const float* gate_scale, const int8_t* up,
                                                                                const float* up_scale, int rows, int cols, int depth) {
  gemm_int8_swiglu<LargeBytes>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) gemm_int8_swiglu_forward_bf16_t64(bf16* act, const int8_t* x, const float* x_scale,
                                                                                    const int8_t* gate, const float* gate_scale, const int8_t* up,
                                                                                    const float* up_scale, int rows, int cols, int depth) {
  gemm_int8_swiglu<SmallBytes>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_swiglu_skinny_forward_bf16(bf16* act, const int8_t* x,
                                                                                          const float* x_scale, const int8_t* gate,
                                                                                          const float* gate_scale, const int8_t* up,
                                                                                          const float* up_scale, int rows, int cols, int depth) {
  gemm_int8_swiglu_skinny<1>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_int8_swiglu_skinny_forward_bf16_m32(bf16* act, const int8_t* x,
                                                                                              const float* x_scale, const int8_t* gate,
                                                                                              const float* gate_scale, const int8_t* up,
                                                                                              const float* up_scale, int rows, int cols, int depth) {
  gemm_int8_swiglu_skinny<2>(act, x, gate, up, Swiglu{x_scale, gate_scale, up_scale, cols}, rows, cols, depth);
}
