// The tile of a matrix product C [M, N] = A [M, K] B [N, K]^T that one block makes, for every kernel that is one. bf16 runs on tensor cores
// with float sums, and so does int8 with int sums, two elements in the place of one; f32 is a plain tile of FMAs, exact. None depends on how the
// operands come to be:
//
// An operand, rows of `depth` elements, is a type with
//   line(row)            where a row begins; null if there is no such row
//   place(k)             what is to be known of k, one for many rows
//   at(line, place)      the element, zero outside of the operand
//   load8(to, line, place)  bf16 only: the 8 elements from k on (k % 8 == 0) to shared memory, at once or by cp.async
//                           (int8: the 16 elements from 2 k on: a depth, and k, count pairs)
// or Across<such a type>: it lies the other way, each line holds one k of all rows.
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
  // The same into registers, as an mma takes them. WIDE is aligned(), asked before the loop: where a load meets the element by element way at a
  // branch, ptxas takes it apart, and so waits for it, before the next load.
  template <bool WIDE>
  __device__ __forceinline__ Pack<uint32_t, 4> words8(const T* line, int k) const {
    Pack<uint32_t, 4> words{};
    if constexpr (WIDE) {
      if (line != nullptr && k < depth) words = load_pack<4>(reinterpret_cast<const uint32_t*>(line + k));
    } else {
      const Pack<T, 8> pack = masked8(line, k);
      memcpy(&words, &pack, 16);
    }
    return words;
  }
  __device__ __forceinline__ Pack<T, 8> masked8(const T* line, int k) const {
    Pack<T, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; i++) pack[i] = at(line, k + i);
    return pack;
  }
};

// The operand whose row r at k is element r of line k: what lies as [depth, rows].
template <class Lines>
struct Across {
  Lines lines;
};

constexpr int STEP = 32;  // of K, in both tiles

// Where chunk i (of 16 bytes) of a line of WIDTH elements lies. ldmatrix reads the same chunk of 8 lines at once: the swizzle spreads them over
// all banks, which a line crosses in part (two of 64 bytes cross them once) or several times.
template <int WIDTH>
__device__ __forceinline__ bf16* chunk(bf16* buffer, int line, int i) {
  // mutant: condition: another order of the chunks, where more lines meet in a bank, which only takes longer.
  constexpr int LINES = WIDTH < 64 ? 64 / WIDTH : 1, SPREAD = WIDTH < 64 ? WIDTH / 8 : 8;
  return buffer + line * WIDTH + (i ^ line / LINES % SPREAD) * 8;
}

// SIDE rows of an operand by STEP of k in shared memory: how THREADS threads load it, chunk by chunk, and a warp takes fragments of mma_bf16 from
// it. A thread loads the same chunk of the same rows in every step.
template <class Operand, int SIDE, int THREADS>
struct Side {
  static constexpr int CHUNKS = STEP / 8, ROUNDS = SIDE * CHUNKS / THREADS;
  static_assert(SIDE * CHUNKS % THREADS == 0, "whole rounds of loads");

  const Operand& operand;
  decltype(Operand{}.line(0)) lines[ROUNDS];

  __device__ __forceinline__ Side(const Operand& operand, int row0) : operand(operand) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) lines[i] = operand.line(row0 + row(i));
  }
  static __device__ __forceinline__ int row(int i) { return threadIdx.x / CHUNKS + i * (THREADS / CHUNKS); }

  __device__ __forceinline__ void load(bf16* to, int k0) const {
    const int mine = threadIdx.x % CHUNKS;
    const auto place = operand.place(k0 + mine * 8);
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) operand.load8(chunk<STEP>(to, row(i), mine), lines[i], place);
  }

  // As A: the lower and upper 8 of 16 rows at the first 8 of 16 k, then at the last. As B: the lower 8 rows at both, then the upper.
  static __device__ __forceinline__ void fragment_a(uint32_t (&f)[4], bf16* from, int row, int k) {
    ldmatrix_x4(f, chunk<STEP>(from, row + lane_id() % 16, k / 8 + lane_id() / 16));
  }
  static __device__ __forceinline__ void fragment_b(uint32_t (&f)[4], bf16* from, int row, int k) {
    ldmatrix_x4(f, chunk<STEP>(from, row + lane_id() / 16 * 8 + lane_id() % 8, k / 8 + lane_id() / 8 % 2));
  }
};

// Across: the lines of a step, SIDE elements of each, which ldmatrix turns.
template <class Lines, int SIDE, int THREADS>
struct Side<Across<Lines>, SIDE, THREADS> {
  static constexpr int CHUNKS = SIDE / 8, ROUNDS = STEP * CHUNKS / THREADS;
  static_assert(STEP * CHUNKS % THREADS == 0, "whole rounds of loads");

  const Lines& lines;
  const int row0;

  __device__ __forceinline__ Side(const Across<Lines>& operand, int row0) : lines(operand.lines), row0(row0) {}

  __device__ __forceinline__ void load(bf16* to, int k0) const {
    const int mine = threadIdx.x % CHUNKS;
    const auto place = lines.place(row0 + mine * 8);
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int k = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
      lines.load8(chunk<SIDE>(to, k, mine), lines.line(k0 + k), place);
    }
  }

  static __device__ __forceinline__ void fragment_a(uint32_t (&f)[4], bf16* from, int row, int k) {
    ldmatrix_x4_trans(f, chunk<SIDE>(from, k + lane_id() / 16 * 8 + lane_id() % 8, row / 8 + lane_id() / 8 % 2));
  }
  static __device__ __forceinline__ void fragment_b(uint32_t (&f)[4], bf16* from, int row, int k) {
    ldmatrix_x4_trans(f, chunk<SIDE>(from, k + lane_id() / 8 % 2 * 8 + lane_id() % 8, row / 8 + lane_id() / 16));
  }
};

// One step of both: what a register of bf16 is to the one, four int8 are to the other.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(c, a, b0, b1); }
__device__ __forceinline__ void mma(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_s8(c, a, b0, b1); }

// bf16, or int8 with Sum int: WARPS_M x WARPS_N warps make M x N elements. K goes by in steps through STAGES buffers: all but one are on their way
// while that one is multiplied, and one barrier a step keeps them apart.
template <int M, int N, int WARPS_M, int WARPS_N, int STAGES = 3, class Sum = float>
struct Tile {
  static constexpr int ROWS = M, COLS = N;
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int BUFFER = (M + N) * STEP;       // elements of a stage: A's rows, then B's
  static constexpr int ELEMENTS = STAGES * BUFFER;    // of shared memory
  static constexpr int MT = M / WARPS_M / 16;         // mma tiles of a warp
  static constexpr int NT = N / WARPS_N / 8;
  static_assert(NT % 2 == 0, "whole pairs of tiles");

  Sum sums[MT][NT][4];

  static __device__ __forceinline__ int warp_m() { return warp_id() / WARPS_N * (M / WARPS_M); }
  static __device__ __forceinline__ int warp_n() { return warp_id() % WARPS_N * (N / WARPS_N); }

  // sums = A's rows from m0 on times B's from n0 on. `shared` [ELEMENTS] holds the stages.
  template <class A, class B>
  __device__ __forceinline__ void multiply(bf16* shared, const A& a, const B& b, int m0, int n0, int depth) {
    clear();
    add(shared, a, b, m0, n0, depth);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[i][j][e] = 0;
  }

  // The same added to the sums; all threads must be done with `shared`.
  template <class A, class B>
  __device__ __forceinline__ void add(bf16* shared, const A& a, const B& b, int m0, int n0, int depth) {
    const Side<A, M, THREADS> side_a(a, m0);
    const Side<B, N, THREADS> side_b(b, n0);
    auto load = [&](int step) {
      bf16* buffer = shared + step % STAGES * BUFFER;
      side_a.load(buffer, step * STEP);
      side_b.load(buffer + M * STEP, step * STEP);
      cp_async_commit();
    };

    // Steps beyond the last are loaded as zeros and not used: the groups to wait for are counted alike in all steps.
    // mutant: flip: one more is what the first step loads, in its place.
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step * STEP < depth; step++) {  // mutant: flip: one more step is one of zeros
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // this step's buffer is whole, and all are done with the one that is loaded now
      load(step + STAGES - 1);
      add_step(shared + step % STAGES * BUFFER, side_a, side_b);
    }
    cp_async_wait<0>();  // a block must not end while copies, be they zeros, are under way into its shared memory
  }

  template <class SideA, class SideB>
  __device__ __forceinline__ void add_step(bf16* buffer, const SideA&, const SideB&) {
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
      uint32_t fa[MT][4], fb[NT / 2][4];
#pragma unroll
      for (int i = 0; i < MT; i++) SideA::fragment_a(fa[i], buffer, warp_m() + 16 * i, k);
#pragma unroll
      for (int j = 0; j < NT / 2; j++) SideB::fragment_b(fb[j], buffer + M * STEP, warp_n() + 16 * j, k);
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++) mma(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  // use(row, col, sum) for each element of the tile, also for those beyond the matrix.
  template <class Use>
  __device__ __forceinline__ void each(int m0, int n0, Use use) const {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          use(m0 + warp_m() + 16 * i + e / 2 * 8 + lane_id() / 4, n0 + warp_n() + 8 * j + lane_id() % 4 * 2 + e % 2, sums[i][j][e]);
  }

  // c[row, col] = finish(row, col, sum) for this block's part of c [rows, cols].
  template <class T, class Finish>
  __device__ __forceinline__ void store(T* c, int rows, int cols, int m0, int n0, Finish finish) const {
    store_pairs(c, rows, cols, m0, n0, [&](int row, int col, int i, int j, int e) { return finish(row, col, sums[i / 2][j][i % 2 * 2 + e]); });
  }

  // c[row, col] = finish(what it holds, sum). Whole pairs are read at once: a finish that reads c waits for each, as the store of the one before
  // might have changed it. They stay words up to the finish: ptxas waits for a load whose halves meet the zeros beyond c.
  template <class Finish>
  __device__ __forceinline__ void update(bf16* c, int rows, int cols, int m0, int n0, Finish finish) const {
    // mutant: condition: false reads elements one by one, which only takes longer.
    if (cols % 2 == 0) {
      uint32_t held[2 * MT][NT];
      const int row0 = m0 + warp_m() + lane_id() / 4, col0 = n0 + warp_n() + lane_id() % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2 * MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++) {
          const int row = row0 + 8 * i, col = col0 + 8 * j;
          const bf16* from = c + static_cast<int64_t>(row) * cols + col;
          held[i][j] = row < rows && col < cols ? load_pack<1>(reinterpret_cast<const uint32_t*>(from))[0] : 0;
        }
      store_pairs(c, rows, cols, m0, n0, [&](int, int, int i, int j, int e) {
        const float was = to_f32(__ushort_as_bfloat16(held[i][j] >> 16 * e));
        return finish(was, sums[i / 2][j][i % 2 * 2 + e]);
      });
    } else {
      store(c, rows, cols, m0, n0, [&](int row, int col, float sum) { return finish(to_f32(c[static_cast<int64_t>(row) * cols + col]), sum); });
    }
  }

  // c[row, col] = value(row, col, i, j, e): a thread has 2 MT rows i of NT pairs j of elements e.
  template <class T, class Value>
  __device__ __forceinline__ void store_pairs(T* c, int rows, int cols, int m0, int n0, Value value) const {
    const int group = lane_id() / 4, quad = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * MT; i++) {
      const int row = m0 + warp_m() + 8 * i + group;
      if (row >= rows) continue;
#pragma unroll
      for (int j = 0; j < NT; j++) {
        const int col = n0 + warp_n() + 8 * j + 2 * quad;
        T* to = c + static_cast<int64_t>(row) * cols + col;
        // mutant: condition: false stores pairs one by one, which only takes longer.
        if (cols % 2 == 0) {  // pairs are whole and aligned
          if (col >= cols) continue;
          store_pack(to, Pack<T, 2>{from_f32<T>(value(row, col, i, j, 0)), from_f32<T>(value(row, col + 1, i, j, 1))});
        } else {
          // mutant: flip: col is even, cols is not.
          if (col < cols) to[0] = from_f32<T>(value(row, col, i, j, 0));
          if (col + 1 < cols) to[1] = from_f32<T>(value(row, col + 1, i, j, 1));
        }
      }
    }
  }
};

using LargeTile = Tile<128, 128, 2, 4>;  // 256 threads, 48 KiB
using SmallTile = Tile<64, 64, 2, 2>;    // 128 threads, 24 KiB

// f32: 64 threads make SIDE x SIDE elements, 4 x 4 each.
struct ExactTile {
  static constexpr int SIDE = 32, ROWS = SIDE, COLS = SIDE;
  static constexpr int THREADS = 64;
  static constexpr int STRIDE = STEP + 1;               // an odd number of banks from row to row
  static constexpr int ELEMENTS = 2 * SIDE * STRIDE;    // of shared memory

  float sums[4][4];

  template <class A, class B>
  __device__ __forceinline__ void multiply(float* shared, const A& a, const B& b, int m0, int n0, int depth) {
    clear();
    add(shared, a, b, m0, n0, depth);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = 0.0f;
  }

  template <class A, class B>
  __device__ __forceinline__ void add(float* shared, const A& a, const B& b, int m0, int n0, int depth) {
    float *rows_a = shared, *rows_b = shared + SIDE * STRIDE;
    const int first_m = threadIdx.x / 8, first_n = threadIdx.x % 8;  // and every 8th row from there
    for (int k0 = 0; k0 < depth; k0 += STEP) {  // mutant: flip: one more step is one of zeros
      load(rows_a, a, m0, k0);
      load(rows_b, b, n0, k0);
      __syncthreads();
#pragma unroll 8
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

  // Neighbouring threads read neighbouring elements, whichever way the operand lies.
  template <class Operand>
  static __device__ __forceinline__ void load(float* to, const Operand& operand, int row0, int k0) {
    const int k = threadIdx.x % STEP;
    const auto place = operand.place(k0 + k);
#pragma unroll 1
    for (int row = threadIdx.x / STEP; row < SIDE; row += THREADS / STEP) to[row * STRIDE + k] = operand.at(operand.line(row0 + row), place);
  }
  template <class Lines>
  static __device__ __forceinline__ void load(float* to, const Across<Lines>& operand, int row0, int k0) {
    const int row = threadIdx.x % SIDE;
    const auto place = operand.lines.place(row0 + row);
#pragma unroll 1
    // mutant: flip: one more lands in what pads a row.
    for (int k = threadIdx.x / SIDE; k < STEP; k += THREADS / SIDE) to[row * STRIDE + k] = operand.lines.at(operand.lines.line(k0 + k), place);
  }

  template <class Use>
  __device__ __forceinline__ void each(int m0, int n0, Use use) const {
#pragma unroll
    for (int i = 0; i < 16; i++) use(m0 + threadIdx.x / 8 + i / 4 * 8, n0 + threadIdx.x % 8 + i % 4 * 8, sums[i / 4][i % 4]);
  }

  template <class Finish>
  __device__ __forceinline__ void store(float* c, int rows, int cols, int m0, int n0, Finish finish) const {
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int row = m0 + threadIdx.x / 8 + i / 4 * 8, col = n0 + threadIdx.x % 8 + i % 4 * 8;
      if (row < rows && col < cols) c[static_cast<int64_t>(row) * cols + col] = finish(row, col, sums[i / 4][i % 4]);
    }
  }

  template <class Finish>
  __device__ __forceinline__ void update(float* c, int rows, int cols, int m0, int n0, Finish finish) const {
    store(c, rows, cols, m0, n0, [=](int row, int col, float sum) { return finish(c[static_cast<int64_t>(row) * cols + col], sum); });
  }
};
