// y_i += s_i xa_i B_i^T,   xa_i = x A_i^T          (Hu et al. 2021), for up to three adapters i that share x: q, k, v; gate, up
// dxa_i = s_i dy_i B_i;   dx += sum_i dxa_i A_i;   dA_i += dxa_i^T x;   dB_i += s_i dy_i^T xa_i
//
// x, dx [M, K]; A_i [R_i, K]; B_i [N_i, R_i]; xa_i, dxa_i [M, R_i]; y_i, dy_i [M, N_i]; dA_i, dB_i float, added to. y_i holds the base product,
// which cuBLASLt has made. All are products of gemm.cuh's tiles with one thin side; five launches serve a group:
//   lora_down_forward_*     xa: the A's lie one below the other as one operand (Stack) of R = R_1 + R_2 + R_3 rows, so x is read once for each 64 of
//                           R. Tiles of 64 x 64; five stages keep 4 KiB each of x on their way.
//   lora_up_forward_*       y: tiles of 64 x 64 of each y_i in turn; the depth is R_i, one step for R up to 32.
//   lora_down_backward_*    dxa: tiles of 64 x 32 of each dxa_i in turn, depth N_i.
//   lora_backward_*         dA, dB and dx of all adapters. dA_i^T = x^T dxa_i and dB_i = s dy_i^T xa_i are tiles of 64 x 32 whose both operands lie
//                           across the depth M; M is cut into pieces, as many as make some 500 blocks, whose sums go to scratch [pieces, size of
//                           all dA and dB]. The other blocks make tiles of 64 x 64 of dx, each a sum over the adapters, so dx is read and written once.
//   lora_reduce_backward_f32  adds the pieces up in order, a thread an element, onto dA and dB.
// A row of xa, y, dxa and dx depends on no other row; all sums have one order. M <= 16 has its forward from linear's kernel for few rows.
//
// Bytes, in bf16, forward: 2 (M K + 2 M R) + 4 M N; backward: 2 (2 M N + 3 M K + 6 M R) + 8 pieces R (N + K) (N, R: of all adapters).
// FLOPs: 2 M R (N + K), thrice that backward: no more than the bytes take. SmolVLM-500M (K = 960, M = 8192, R_i = 16) on an H100 (3.35 TB/s):
//   q, k, v  (N = 960 + 320 + 320)   forward 68 MB, 20 us     backward 107 MB, 32 us
//   gate, up (N = 2 x 2560)          forward 186 MB, 55 us    backward 223 MB, 67 us
// Reached: not yet run on a GPU.
// Considered:
// - Backward of a row of tiles in one block, with dy read once and partial dA, dB of every block in scratch: scratch is written and read 8 R bytes
//   for each column of a block, the second reading of dy costs 2 bytes a row: with 64 rows a block (128 blocks for M = 8192) that is equal at
//   R = 16 and worse above. Scratch would be 57 MB (R = 16, gate and up) to 690 MB (R = 64, Qwen2-VL-2B's); here it is 2 and 5 MB.
// - y written first and the base product added onto it by cuBLASLt: the same bytes (each of the two orders has y written twice and read once).
// - The update within the base product, x [W; A]^T: needs W and A in one array, and a second product anyway.
// - y and dx read before the products that they are added to: in place of six blocks an SM five, and registers spill even so.
#include "gemm.cuh"

constexpr int MOST = 3;  // adapters of a launch

// One of each adapter. Chosen by comparisons: an array with an index that is not known would lie in local memory.
template <class V>
struct Each {
  V first, second, third;
  __device__ __forceinline__ V operator[](int i) const { return i == 0 ? first : i == 1 ? second : third; }
};

// The A's, one below the other.
template <class T>
struct Stack : Matrix<T> {
  Each<const T*> parts;
  Each<int> ranks;

  __device__ __forceinline__ const T* line(int row) const {
#pragma unroll
    for (int i = 0; i < MOST; i++) {  // mutant: flip: it finds rows for those beyond the last, whose products are not stored.
      if (row < ranks[i]) return parts[i] + static_cast<int64_t>(row) * this->depth;
      row -= ranks[i];
    }
    return nullptr;
  }
};

__device__ __forceinline__ int tiles(int n, int side) { return (n + side - 1) / side; }

// Which adapter a tile of the launch belongs to, when adapter i has count(i) of them; `tile` becomes its number there.
template <class Count>
__device__ __forceinline__ int adapter_of(int& tile, Count count) {
  int i = 0;
  for (; tile >= count(i); i++) tile -= count(i);
  return i;
}

using DownTile = Tile<64, 64, 4, 1, 5>;  // 128 threads, 40 KiB
using ThinTile = Tile<64, 32, 4, 1, 5>;  // 128 threads, 30 KiB

template <class Tile, class T>
__device__ __forceinline__ void lora_down_forward(Each<T*> xa, const T* x, Each<const T*> a, Each<int> ranks, int rows, int depth) {
  // Blocks of the same rows are neighbours: x comes from L2 for all but one.
  const int m0 = blockIdx.y * Tile::ROWS, n0 = blockIdx.x * Tile::COLS;
  Tile tile;
  tile.multiply(shared_memory<T>(), Matrix<T>{x, rows, depth}, Stack<T>{{x, 0, depth}, a, ranks}, m0, n0, depth);
  tile.each(m0, n0, [&](int row, int col, float sum) {
    if (row >= rows) return;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      if (col >= 0 && col < ranks[i]) xa[i][static_cast<int64_t>(row) * ranks[i] + col] = from_f32<T>(sum);
      col -= ranks[i];
    }
  });
}

template <class Tile, class T>
__device__ __forceinline__ void lora_up_forward(Each<T*> y, Each<const T*> xa, Each<const T*> b, Each<int> widths, Each<int> ranks,
                                                Each<float> scales, int rows) {
  int part = blockIdx.y;
  const int i = adapter_of(part, [&](int i) { return tiles(widths[i], Tile::COLS); });
  const int m0 = blockIdx.x * Tile::ROWS, n0 = part * Tile::COLS, width = widths[i], rank = ranks[i];
  const float scale = scales[i];
  Tile tile;
  tile.multiply(shared_memory<T>(), Matrix<T>{xa[i], rows, rank}, Matrix<T>{b[i], width, rank}, m0, n0, rank);
  tile.update(y[i], rows, width, m0, n0, [=](float was, float sum) { return was + scale * sum; });
}

template <class Tile, class T>
__device__ __forceinline__ void lora_down_backward(Each<T*> dxa, Each<const T*> dy, Each<const T*> b, Each<int> widths, Each<int> ranks,
                                                   Each<float> scales, int rows) {
  int part = blockIdx.y;
  const int i = adapter_of(part, [&](int i) { return tiles(ranks[i], Tile::COLS); });
  const int m0 = blockIdx.x * Tile::ROWS, n0 = part * Tile::COLS, width = widths[i], rank = ranks[i];
  const float scale = scales[i];
  Tile tile;
  tile.multiply(shared_memory<T>(), Matrix<T>{dy[i], rows, width}, Across<Matrix<T>>{{b[i], width, rank}}, m0, n0, width);
  tile.store(dxa[i], rows, rank, m0, n0, [=](int, int, float sum) { return scale * sum; });
}

// The weights' gradients of a group, in the order of scratch: dB of each adapter, then dA of each; none of an adapter without ranks.
struct Gradients {
  Each<int> widths, ranks;
  int depth;

  __device__ __forceinline__ int width(int job) const { return job < MOST ? widths[job] : depth; }
  __device__ __forceinline__ int rank(int job) const { return ranks[job % MOST]; }
  __device__ __forceinline__ int64_t size(int job) const { return static_cast<int64_t>(width(job)) * rank(job); }
  __device__ __forceinline__ int64_t total() const {
    int64_t sum = 0;
#pragma unroll
    for (int job = 0; job < 2 * MOST; job++) sum += size(job);
    return sum;
  }
};

template <class Tile, class T>
__device__ __forceinline__ void lora_weight_piece(float* partials, const T* x, Each<const T*> dy, Each<const T*> xa, Each<const T*> dxa,
                                                  const Gradients& of, Each<float> scales, int rows, int pieces, int piece_rows) {
  const int piece = blockIdx.x % pieces;
  int part = blockIdx.x / pieces, job = 0;
  int64_t at = piece * of.total();
  const auto count = [&](int job) { return tiles(of.width(job), Tile::ROWS) * tiles(of.rank(job), Tile::COLS); };
  for (; part >= count(job); job++) {
    part -= count(job);
    at += of.size(job);
  }
  const bool for_b = job < MOST;
  const int i = job % MOST, width = of.width(job), rank = of.rank(job);
  const int m0 = part % tiles(width, Tile::ROWS) * Tile::ROWS, n0 = part / tiles(width, Tile::ROWS) * Tile::COLS;
  const int64_t first = static_cast<int64_t>(piece) * piece_rows;
  const int depth = min(static_cast<int64_t>(piece_rows), rows - first);
  const Matrix<T> wide{(for_b ? dy[i] : x) + first * width, depth, width}, thin{(for_b ? xa[i] : dxa[i]) + first * rank, depth, rank};
  const float scale = for_b ? scales[i] : 1.0f;  // dxa has it already
  Tile tile;
  tile.multiply(shared_memory<T>(), Across<Matrix<T>>{wide}, Across<Matrix<T>>{thin}, m0, n0, depth);
  float* to = partials + at;
  tile.each(m0, n0, [=](int row, int col, float sum) {
    if (row < width && col < rank) to[for_b ? static_cast<int64_t>(row) * rank + col : static_cast<int64_t>(col) * width + row] = scale * sum;
  });
}

template <class Tile, class T>
__device__ __forceinline__ void lora_input_tile(T* dx, Each<const T*> dxa, Each<const T*> a, Each<int> ranks, int rows, int cols, int part) {
  const int across = tiles(cols, Tile::COLS), m0 = part / across * Tile::ROWS, n0 = part % across * Tile::COLS;
  Tile tile;
  tile.clear();
  for (int i = 0; i < MOST; i++) {
    if (ranks[i] == 0) continue;  // mutant: guard: nothing is added, which only takes longer.
    __syncthreads();              // all are done with the adapter before
    tile.add(shared_memory<T>(), Matrix<T>{dxa[i], rows, ranks[i]}, Across<Matrix<T>>{{a[i], ranks[i], cols}}, m0, n0, ranks[i]);
  }
  tile.update(dx, rows, cols, m0, n0, [](float was, float sum) { return was + sum; });
}

// The first `weight_blocks` blocks make partial dA and dB, of adapters with `trained` ranks; the others dx.
template <class Thin, class Square, class T>
__device__ __forceinline__ void lora_backward(T* dx, float* partials, const T* x, Each<const T*> dy, Each<const T*> xa, Each<const T*> dxa,
                                              Each<const T*> a, Each<int> widths, Each<int> ranks, Each<int> trained, Each<float> scales, int rows,
                                              int depth, int pieces, int piece_rows, int weight_blocks) {
  if (static_cast<int>(blockIdx.x) < weight_blocks) {
    lora_weight_piece<Thin>(partials, x, dy, xa, dxa, Gradients{widths, trained, depth}, scales, rows, pieces, piece_rows);
  } else {
    lora_input_tile<Square>(dx, dxa, a, ranks, rows, depth, blockIdx.x - weight_blocks);
  }
}

extern "C" __global__ void __launch_bounds__(128)
    lora_down_forward_bf16(bf16* xa0, bf16* xa1, bf16* xa2, const bf16* x, const bf16* a0, const bf16* a1, const bf16* a2, int r0, int r1, int r2,
                           int rows, int depth) {
  lora_down_forward<DownTile, bf16>({xa0, xa1, xa2}, x, {a0, a1, a2}, {r0, r1, r2}, rows, depth);
}

extern "C" __global__ void __launch_bounds__(64)
    lora_down_forward_f32(float* xa0, float* xa1, float* xa2, const float* x, const float* a0, const float* a1, const float* a2, int r0, int r1,
                          int r2, int rows, int depth) {
  lora_down_forward<ExactTile, float>({xa0, xa1, xa2}, x, {a0, a1, a2}, {r0, r1, r2}, rows, depth);
}

extern "C" __global__ void __launch_bounds__(128)
    lora_up_forward_bf16(bf16* y0, bf16* y1, bf16* y2, const bf16* xa0, const bf16* xa1, const bf16* xa2, const bf16* b0, const bf16* b1,
                         const bf16* b2, int n0, int n1, int n2, int r0, int r1, int r2, float s0, float s1, float s2, int rows) {
  lora_up_forward<SmallTile, bf16>({y0, y1, y2}, {xa0, xa1, xa2}, {b0, b1, b2}, {n0, n1, n2}, {r0, r1, r2}, {s0, s1, s2}, rows);
}

extern "C" __global__ void __launch_bounds__(64)
    lora_up_forward_f32(float* y0, float* y1, float* y2, const float* xa0, const float* xa1, const float* xa2, const float* b0, const float* b1,
                        const float* b2, int n0, int n1, int n2, int r0, int r1, int r2, float s0, float s1, float s2, int rows) {
  lora_up_forward<ExactTile, float>({y0, y1, y2}, {xa0, xa1, xa2}, {b0, b1, b2}, {n0, n1, n2}, {r0, r1, r2}, {s0, s1, s2}, rows);
}

extern "C" __global__ void __launch_bounds__(128)
    lora_down_backward_bf16(bf16* dxa0, bf16* dxa1, bf16* dxa2, const bf16* dy0, const bf16* dy1, const bf16* dy2, const bf16* b0, const bf16* b1,
                            const bf16* b2, int n0, int n1, int n2, int r0, int r1, int r2, float s0, float s1, float s2, int rows) {
  lora_down_backward<ThinTile, bf16>({dxa0, dxa1, dxa2}, {dy0, dy1, dy2}, {b0, b1, b2}, {n0, n1, n2}, {r0, r1, r2}, {s0, s1, s2}, rows);
}

extern "C" __global__ void __launch_bounds__(64)
    lora_down_backward_f32(float* dxa0, float* dxa1, float* dxa2, const float* dy0, const float* dy1, const float* dy2, const float* b0,
                           const float* b1, const float* b2, int n0, int n1, int n2, int r0, int r1, int r2, float s0, float s1, float s2,
                           int rows) {
  lora_down_backward<ExactTile, float>({dxa0, dxa1, dxa2}, {dy0, dy1, dy2}, {b0, b1, b2}, {n0, n1, n2}, {r0, r1, r2}, {s0, s1, s2}, rows);
}

extern "C" __global__ void __launch_bounds__(128)
    lora_backward_bf16(bf16* dx, float* partials, const bf16* x, const bf16* dy0, const bf16* dy1, const bf16* dy2, const bf16* xa0,
                       const bf16* xa1, const bf16* xa2, const bf16* dxa0, const bf16* dxa1, const bf16* dxa2, const bf16* a0, const bf16* a1,
                       const bf16* a2, int n0, int n1, int n2, int r0, int r1, int r2, int t0, int t1, int t2, float s0, float s1, float s2,
                       int rows, int depth, int pieces, int piece_rows, int weight_blocks) {
  lora_backward<ThinTile, SmallTile, bf16>(dx, partials, x, {dy0, dy1, dy2}, {xa0, xa1, xa2}, {dxa0, dxa1, dxa2}, {a0, a1, a2}, {n0, n1, n2},
                                           {r0, r1, r2}, {t0, t1, t2}, {s0, s1, s2}, rows, depth, pieces, piece_rows, weight_blocks);
}

extern "C" __global__ void __launch_bounds__(64)
    lora_backward_f32(float* dx, float* partials, const float* x, const float* dy0, const float* dy1, const float* dy2, const float* xa0,
                      const float* xa1, const float* xa2, const float* dxa0, const float* dxa1, const float* dxa2, const float* a0,
                      const float* a1, const float* a2, int n0, int n1, int n2, int r0, int r1, int r2, int t0, int t1, int t2, float s0, float s1,
                      float s2, int rows, int depth, int pieces, int piece_rows, int weight_blocks) {
  lora_backward<ExactTile, ExactTile, float>(dx, partials, x, {dy0, dy1, dy2}, {xa0, xa1, xa2}, {dxa0, dxa1, dxa2}, {a0, a1, a2}, {n0, n1, n2},
                                             {r0, r1, r2}, {t0, t1, t2}, {s0, s1, s2}, rows, depth, pieces, piece_rows, weight_blocks);
}

extern "C" __global__ void __launch_bounds__(256)
    lora_reduce_backward_f32(float* db0, float* db1, float* db2, float* da0, float* da1, float* da2, const float* partials, int n0, int n1, int n2,
                             int t0, int t1, int t2, int depth, int pieces) {
  const Gradients of{{n0, n1, n2}, {t0, t1, t2}, depth};
  const int64_t total = of.total(), mine = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (mine >= total) return;
  float sum = 0.0f;
  for (int i = 0; i < pieces; i++) sum += partials[i * total + mine];
  int64_t at = mine;
  int job = 0;
  for (; at >= of.size(job); job++) at -= of.size(job);
  (job < MOST ? Each<float*>{db0, db1, db2} : Each<float*>{da0, da1, da2})[job % MOST][at] += sum;
}
