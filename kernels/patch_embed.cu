// out[r, c] = sum_k patch[r, k] weight[c, k] (+ bias[c]) (+ position[r % P, c]),   patch[r, (ch, f, y, x)] = level[ch][picture[top + y, left + x, ch]]
// Vision patching (ViT, Dosovitskiy 2020): a convolution whose stride is its kernel, from the bytes of the pictures.
//
// Pictures u8 [N, H, W, 3]; levels float [3, 256], what a byte becomes when normalised; weight [C, 3, T, S, S]; bias [C] or null; position
// [P, C] or null; out [N P, C]. All T frames of a patch are the picture (Qwen2-VL: T = 2; else 1). Patches come in squares of merge x merge.
//
// A matrix product with M = N P, K = 3 T S S (gemm.cuh: the tiles, how warps share them) whose A operand is made while it is loaded: a thread
// takes 8 elements of K, finds their bytes, three apart, looks each up in the levels of its channel in shared memory and stores 16 bytes.
// Neither patches nor normalised pictures exist in memory. A block makes a tile of 128 or 64 columns, so each patch is cut C / 128 times over,
// from L2.
//
// Bytes: 3 N H W + 2 C (M + K + P). FLOPs: 2 M K C. SmolVLM-500M (S = 16, C = 768), a picture of 17 tiles of 512 x 512: 13 MB in, 27 MB out,
// 21 GFLOP: on an H100 (3.35 TB/s, 989 TFLOP/s) 12 us of memory, 21 us of arithmetic.
// Reached: not yet run on a GPU.
//
// For training: `cut` leaves the patches [N P, K] themselves, one warp a row (as many bytes written as out has where K = C; 8 us for the shape above).
// backward: dposition[p, c] += sum_n dy[n, p, c], a thread a pack of [P, C]; of these sums the columns' sums are added to dbias by a second launch
// (column_sums.cuh); dweight += dy^T patches is linear's product. Bytes: M C sizeof + 12 P C. 17 tiles, C = 768 in bf16: 11 us.
// Reached: not yet run on a GPU.
// Considered: all of a patch's K in shared memory with the weight streamed past it (cuts once, but 96 KiB for S = 16 and more than there is for
// Qwen2-VL's K = 1176); bytes by cp.async and the lookup at the fragment (as many lookups for each of the warps that share rows).
#include "column_sums.cuh"
#include "elementwise.cuh"
#include "gemm.cuh"
#include "rows.cuh"

constexpr int LEVELS = 256;

// The patches as an operand: rows of bytes in a picture, values of T from the levels.
template <class T>
struct Patches {
  const uint8_t* pictures;
  const T* levels;  // [3, 256], in shared memory
  int rows, height, width, frames, side, merge;

  struct Place {
    int channel, frame, y, x;
  };

  __device__ __forceinline__ int per_picture() const { return (height / side) * (width / side); }

  // The first byte of a patch.
  __device__ __forceinline__ const uint8_t* line(int row) const {
    if (row >= rows) return nullptr;
    const int picture = row / per_picture(), patch = row % per_picture();
    const int square = patch / (merge * merge), within = patch % (merge * merge), across = width / side / merge;
    const int top = (square / across * merge + within / merge) * side, left = (square % across * merge + within % merge) * side;
    return pictures + ((static_cast<int64_t>(picture) * height + top) * width + left) * 3;
  }

  __device__ __forceinline__ Place place(int k) const {
    const int y = k / side, frame = y / side;
    return {frame / frames, frame % frames, y % side, k % side};
  }

  // The place of the next k.
  __device__ __forceinline__ void advance(Place& p) const {
    if (++p.x < side) return;
    p.x = 0;
    if (++p.y < side) return;
    p.y = 0;
    if (++p.frame < frames) return;
    p.frame = 0;
    p.channel++;
  }

  __device__ __forceinline__ T at(const uint8_t* line, Place p) const {
    if (line == nullptr || p.channel >= 3) return from_f32<T>(0.0f);
    return levels[p.channel * LEVELS + line[(p.y * width + p.x) * 3 + p.channel]];
  }

  __device__ __forceinline__ void load8(T* to, const uint8_t* line, Place p) const {
    Pack<T, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      pack[i] = at(line, p);
      advance(p);
    }
    store_pack(to, pack);
  }
};

template <class T>
__device__ __forceinline__ void patch_embed_cut(T* out, const uint8_t* pictures, const float* levels, int rows, int height, int width, int frames,
                                                int side, int merge) {
  T* rounded = shared_memory<T>();
  for (int i = threadIdx.x; i < 3 * LEVELS; i += 32 * ROWS) rounded[i] = from_f32<T>(levels[i]);
  __syncthreads();
  const Patches<T> patches{pictures, rounded, rows, height, width, frames, side, merge};
  const int row = blockIdx.x * ROWS + warp_id(), depth = 3 * frames * side * side;
  if (row >= rows) return;
  const uint8_t* line = patches.line(row);
  out += static_cast<int64_t>(row) * depth;
  each_pack<T>(depth, [&](auto pack_width, int k) {
    constexpr int N = decltype(pack_width)::N_ELEMENTS;
    Pack<T, N> pack;
    auto place = patches.place(k);
    for (int i = 0; i < N; i++) {
      pack[i] = patches.at(line, place);
      patches.advance(place);
    }
    store_pack(out + k, pack);
  });
}

// n = P C; sums [P, C] holds what is added to dposition.
template <class T>
__device__ __forceinline__ void patch_embed_backward(float* dposition, float* sums, const T* dy, int pictures, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>(), end = n;
  float sum[N] = {};
  for (int picture = 0; picture < pictures; picture++) {
    const T* from = dy + picture * end;
    // Packs need aligned pictures: others go element by element.
    // mutant: condition: false sends all there, which only takes longer.
    if (end % N == 0) {
      const Pack<T, N> d = load_within<N>(from, at, end);
      for (int i = 0; i < N; i++) sum[i] += to_f32(d[i]);
    } else {
      for (int i = 0; i < N; i++) {
        if (at + i < end) sum[i] += to_f32(from[at + i]);
      }
    }
  }
  for (int i = 0; i < N; i++) {
    if (at + i >= end) return;
    dposition[at + i] += sum[i];
    sums[at + i] = sum[i];
  }
}

template <class Tile, class T>
__device__ __forceinline__ void patch_embed_forward(T* out, const uint8_t* pictures, const float* levels, const T* weight, const T* bias,
                                                    const T* position, int rows, int cols, int height, int width, int frames, int side,
                                                    int merge, int m0, int n0) {
  T* stages = shared_memory<T>();
  T* rounded = stages + Tile::ELEMENTS;
  for (int i = threadIdx.x; i < 3 * LEVELS; i += Tile::THREADS) rounded[i] = from_f32<T>(levels[i]);
  __syncthreads();

  const Patches<T> patches{pictures, rounded, rows, height, width, frames, side, merge};
  const int depth = 3 * frames * side * side, p = patches.per_picture();
  Tile tile;
  tile.multiply(stages, patches, Matrix<T>{weight, cols, depth}, m0, n0, depth);
  tile.store(out, rows, cols, m0, n0, [=](int row, int col, float sum) {
    if (bias != nullptr) sum += to_f32(bias[col]);
    if (position != nullptr) sum += to_f32(position[static_cast<int64_t>(row % p) * cols + col]);
    return sum;
  });
}

extern "C" __global__ void __launch_bounds__(256) patch_embed_forward_bf16(bf16* out, const uint8_t* pictures, const float* levels,
                                                                           const bf16* weight, const bf16* bias, const bf16* position, int rows,
                                                                           int cols, int height, int width, int frames, int side, int merge) {
  patch_embed_forward<LargeTile>(out, pictures, levels, weight, bias, position, rows, cols, height, width, frames, side, merge,
                                 blockIdx.x * 128, blockIdx.y * 128);
}

extern "C" __global__ void __launch_bounds__(128) patch_embed_forward_bf16_t64(bf16* out, const uint8_t* pictures, const float* levels,
                                                                               const bf16* weight, const bf16* bias, const bf16* position,
                                                                               int rows, int cols, int height, int width, int frames, int side,
                                                                               int merge) {
  patch_embed_forward<SmallTile>(out, pictures, levels, weight, bias, position, rows, cols, height, width, frames, side, merge,
                                 blockIdx.x * 64, blockIdx.y * 64);
}

extern "C" __global__ void __launch_bounds__(64) patch_embed_forward_f32(float* out, const uint8_t* pictures, const float* levels,
                                                                         const float* weight, const float* bias, const float* position,
                                                                         int rows, int cols, int height, int width, int frames, int side,
                                                                         int merge) {
  patch_embed_forward<ExactTile>(out, pictures, levels, weight, bias, position, rows, cols, height, width, frames, side, merge,
                                 blockIdx.x * 32, blockIdx.y * 32);
}

extern "C" __global__ void __launch_bounds__(128) patch_embed_cut_forward_bf16(bf16* out, const uint8_t* pictures, const float* levels, int rows,
                                                                               int height, int width, int frames, int side, int merge) {
  patch_embed_cut(out, pictures, levels, rows, height, width, frames, side, merge);
}

extern "C" __global__ void __launch_bounds__(128) patch_embed_cut_forward_f32(float* out, const uint8_t* pictures, const float* levels, int rows,
                                                                              int height, int width, int frames, int side, int merge) {
  patch_embed_cut(out, pictures, levels, rows, height, width, frames, side, merge);
}

extern "C" __global__ void __launch_bounds__(256) patch_embed_backward_bf16(float* dposition, float* sums, const bf16* dy, int pictures, uint64_t n) {
  patch_embed_backward(dposition, sums, dy, pictures, n);
}

extern "C" __global__ void __launch_bounds__(256) patch_embed_backward_f32(float* dposition, float* sums, const float* dy, int pictures, uint64_t n) {
  patch_embed_backward(dposition, sums, dy, pictures, n);
}

extern "C" __global__ void __launch_bounds__(256) patch_embed_sums_backward_f32(float* dbias, const float* sums, int rows, int cols) {
  add_column_sums(dbias, sums, rows, cols);
}
