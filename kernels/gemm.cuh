// The tile of a matrix product C [M, N] = A [M, K] B [N, K]^T that one block makes, for every kernel that is one: both operands lie along K.
// bf16 runs on tensor cores with float sums; f32 is a plain tile of FMAs, exact. Neither depends on how the operands come to be:
//
// An operand, rows of `depth` elements, is a type with
//   line(row)            where a row begins; null if there is no such row
//   place(k)             what is to be known of k, one for many rows
//   at(line, place)      the element, zero outside of the operand
//   load8(to, line, place)  bf16 only: the 8 elements from k on (k % 8 == 0) to shared memory, at once or by cp.async
//
// An element of C is one sum over k upwards in steps of 16 (bf16) or 1 (f32), whatever the tile and the other rows: its bits depend on its own
// row of A and of B alone.
#pragma once
#include "mma.cuh"

// A row-major matrix as it lies, aligned to 16 bytes.
template <class T>
struct Matrix {
  const T* data;
  int rows, depth;

  __device__ __forceinline__ const T* line(int row) const { return row < rows ? data + static_cast<int64_t>(row) * depth : nullptr; }
  __device__ __forceinline__ int place(int k) const { return k; }
  __device__ __forceinline__ T at(const T* line, int k) const { return line != nullptr && k < depth ? line[k] : from_f32<T>(0.0f); }
  // 16 bytes at a time want aligned rows; others go element by element.
  // mutant: condition: false sends every row there, which only takes longer.
  __device__ __forceinline__ bool aligned() const { return depth % 8 == 0; }

  __device__ __forceinline__ void load8(T* to, const T* line, int k) const {
    if (aligned()) {
      const bool read = line != nullptr && k < depth;
      cp_async16(to, read ? line + k : data, read);
    } else {
      store_pack(to, masked8(line, k));
    }
  }
  // The same into registers.
  __device__ __forceinline__ Pack<T, 8> get8(const T* line, int k) const {
    return aligned() && line != nullptr && k < depth ? load_pack<8>(line + k) : masked8(line, k);
  }
  __device__ __forceinline__ Pack<T, 8> masked8(const T* line, int k) const {
    Pack<T, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; i++) pack[i] = at(line, k + i);
    return pack;
  }
};

// bf16: WARPS_M x WARPS_N warps make M x N elements. K goes by in steps of 32 through STAGES buffers: two steps are on their way while one is
// multiplied, and one barrier a step keeps them apart.
template <int M, int N, int WARPS_M, int WARPS_N>
struct Tile {
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int STAGES = 3;
  static constexpr int STEP = 32;
  static constexpr int CHUNKS = STEP / 8;             // of 16 bytes in a row of a buffer
  static constexpr int BUFFER = (M + N) * STEP;       // elements of a stage: A's rows, then B's
  static constexpr int ELEMENTS = STAGES * BUFFER;    // of shared memory
  static constexpr int MT = M / WARPS_M / 16;         // mma tiles of a warp
  static constexpr int NT = N / WARPS_N / 8;
  static constexpr int ROWS_A = M * CHUNKS / THREADS; // rows that a thread loads a chunk of
  static constexpr int ROWS_B = N * CHUNKS / THREADS;
  static_assert(NT % 2 == 0 && M * CHUNKS % THREADS == 0 && N * CHUNKS % THREADS == 0, "whole pairs of tiles and rounds of loads");

  float sums[MT][NT][4];

  // A row has 64 bytes, so two rows cross all banks; the swizzle spreads what ldmatrix reads at once, one chunk of 8 rows, over all of them.
  static __device__ __forceinline__ bf16* chunk(bf16* buffer, int row, int i) { return buffer + row * STEP + (i ^ row / 2 % CHUNKS) * 8; }

  static __device__ __forceinline__ int warp_m() { return warp_id() / WARPS_N * (M / WARPS_M); }
  static __device__ __forceinline__ int warp_n() { return warp_id() % WARPS_N * (N / WARPS_N); }

  // sums = A's rows from m0 on times B's from n0 on. `shared` [ELEMENTS] holds the stages.
  template <class A, class B>
  __device__ __forceinline__ void multiply(bf16* shared, const A& a, const B& b, int m0, int n0, int depth) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

    // A thread loads the same chunk of the same rows in every step.
    const int mine = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
    decltype(a.line(0)) line_a[ROWS_A];
    decltype(b.line(0)) line_b[ROWS_B];
#pragma unroll
    for (int i = 0; i < ROWS_A; i++) line_a[i] = a.line(m0 + first + i * (THREADS / CHUNKS));
#pragma unroll
    for (int i = 0; i < ROWS_B; i++) line_b[i] = b.line(n0 + first + i * (THREADS / CHUNKS));
    auto load = [&](int step) {
      bf16* buffer = shared + step % STAGES * BUFFER;
      const auto place_a = a.place(step * STEP + mine * 8);
      const auto place_b = b.place(step * STEP + mine * 8);
#pragma unroll
      for (int i = 0; i < ROWS_A; i++) a.load8(chunk(buffer, first + i * (THREADS / CHUNKS), mine), line_a[i], place_a);
#pragma unroll
      for (int i = 0; i < ROWS_B; i++) b.load8(chunk(buffer + M * STEP, first + i * (THREADS / CHUNKS), mine), line_b[i], place_b);
      cp_async_commit();
    };

    // Steps beyond the last are loaded as zeros and not used: the groups to wait for are counted alike in all steps.
    // mutant: flip: one more is what the first step loads, in its place.
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step * STEP < depth; step++) {  // mutant: flip: one more step is one of zeros
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // this step's buffer is whole, and all are done with the one that is loaded now
      load(step + STAGES - 1);
      add_step(shared + step % STAGES * BUFFER);
    }
    cp_async_wait<0>();  // a block must not end while copies, be they zeros, are under way into its shared memory
  }

  __device__ __forceinline__ void add_step(bf16* buffer) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
      // Of 16 rows of A: the lower and upper 8 rows at the first 8 of k, then at the last. Of 16 rows of B: the lower 8 at both, then the upper.
      uint32_t fa[MT][4], fb[NT / 2][4];
#pragma unroll
      for (int i = 0; i < MT; i++) ldmatrix_x4(fa[i], chunk(buffer, warp_m() + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < NT / 2; j++) {
        const int row = warp_n() + 16 * j + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(fb[j], chunk(buffer + M * STEP, row, 2 * k + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++) mma_bf16(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  // c[row, col] = finish(row, col, sum) for this block's part of c [rows, cols].
  template <class T, class Finish>
  __device__ __forceinline__ void store(T* c, int rows, int cols, int m0, int n0, Finish finish) const {
    const int group = lane_id() / 4, quad = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * MT; i++) {
      const int row = m0 + warp_m() + 8 * i + group;
      if (row >= rows) continue;
#pragma unroll
      for (int j = 0; j < NT; j++) {
        const int col = n0 + warp_n() + 8 * j + 2 * quad;
        T* to = c + static_cast<int64_t>(row) * cols + col;
        const float* sum = sums[i / 2][j] + i % 2 * 2;
        // mutant: condition: false stores pairs one by one, which only takes longer.
        if (cols % 2 == 0) {  // pairs are whole and aligned
          if (col >= cols) continue;
          store_pack(to, Pack<T, 2>{from_f32<T>(finish(row, col, sum[0])), from_f32<T>(finish(row, col + 1, sum[1]))});
        } else {
          // mutant: flip: col is even, cols is not.
          if (col < cols) to[0] = from_f32<T>(finish(row, col, sum[0]));
          if (col + 1 < cols) to[1] = from_f32<T>(finish(row, col + 1, sum[1]));
        }
      }
    }
  }
};

using LargeTile = Tile<128, 128, 2, 4>;  // 256 threads, 48 KiB
using SmallTile = Tile<64, 64, 2, 2>;    // 128 threads, 24 KiB

// f32: 64 threads make SIDE x SIDE elements, 4 x 4 each.
struct ExactTile {
  static constexpr int SIDE = 32;
  static constexpr int STEP = 32;
  static constexpr int THREADS = 64;
  static constexpr int STRIDE = STEP + 1;               // an odd number of banks from row to row
  static constexpr int ELEMENTS = 2 * SIDE * STRIDE;    // of shared memory

  float sums[4][4];

  template <class A, class B>
  __device__ __forceinline__ void multiply(float* shared, const A& a, const B& b, int m0, int n0, int depth) {
    float *rows_a = shared, *rows_b = shared + SIDE * STRIDE;
    const int first_m = threadIdx.x / 8, first_n = threadIdx.x % 8;  // and every 8th row from there
#pragma unroll
    for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = 0.0f;
    for (int k0 = 0; k0 < depth; k0 += STEP) {  // mutant: flip: one more step is one of zeros
      const int k = threadIdx.x % STEP;
      const auto place_a = a.place(k0 + k);
      const auto place_b = b.place(k0 + k);
      for (int row = threadIdx.x / STEP; row < SIDE; row += THREADS / STEP) {
        rows_a[row * STRIDE + k] = a.at(a.line(m0 + row), place_a);
        rows_b[row * STRIDE + k] = b.at(b.line(n0 + row), place_b);
      }
      __syncthreads();
      for (int i = 0; i < STEP; i++) {
        float x[4], y[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          x[j] = rows_a[(first_m + 8 * j) * STRIDE + i];
          y[j] = rows_b[(first_n + 8 * j) * STRIDE + i];
        }
#pragma unroll
        for (int j = 0; j < 16; j++) sums[j / 4][j % 4] += x[j / 4] * y[j % 4];
      }
      __syncthreads();  // all have read before the next step is written
    }
  }

  template <class Finish>
  __device__ __forceinline__ void store(float* c, int rows, int cols, int m0, int n0, Finish finish) const {
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int row = m0 + threadIdx.x / 8 + i / 4 * 8, col = n0 + threadIdx.x % 8 + i % 4 * 8;
      if (row < rows && col < cols) c[static_cast<int64_t>(row) * cols + col] = finish(row, col, sums[i / 4][i % 4]);
    }
  }
};
