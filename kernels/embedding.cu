// forward: out[t] = table[ids[t]], the embedding of tokens and the gathering of rows.
// splice:  out[positions[t]] = features[sources[t]], picture features into the rows of picture tokens, keys and values into the cache. The
//          positions differ from one another (the launcher checks), so no two warps write one row.
//
// Rows of C elements. One warp a row, four rows a block; a lane copies every 32nd pack of 16 bytes.
// Bytes: 2 T C sizeof + 4 T (8 T for splice). No FLOPs. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 (SmolVLM-500M) takes 9.4 us.
// Reached: not yet run on a GPU.
//
// backward:        dtable[id] += sum of dy[t] over the t with ids[t] = id; dtable [V, C] float, dy [T, C].
// splice_backward: dfeatures[source] += sum of dy[position] over the positions that got that source; dy becomes 0 there.
// Indices come sorted into `runs` of rows that are added up (src/ops/embedding.rs): the index of each run, where its rows begin (and one end more),
// then all rows. So a sum has one order, and no atomics are needed.
// splice_backward: one warp a run, as most have one row. backward: one block of 8 warps a run and strip of 32 packs, every warp with every eighth row of the
// run: the token of pictures comes thousands of times.
// Bytes: 2 T C sizeof and T C sizeof + 8 distinct ids C; T = 8192, C = 960 in bf16: 14 us and at most 24 us at 3.35 TB/s (H100).
// Reached: not yet run on a GPU.
#include "rows.cuh"

template <class T>
__device__ __forceinline__ void embedding_forward(T* out, const uint32_t* ids, const T* table, int rows, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  copy_row(out + static_cast<int64_t>(row) * cols, table + static_cast<int64_t>(ids[row]) * cols, cols);
}

template <class T>
__device__ __forceinline__ void splice_forward(T* out, const T* features, const uint32_t* positions, const uint32_t* sources, int rows, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  copy_row(out + static_cast<int64_t>(positions[row]) * cols, features + static_cast<int64_t>(sources[row]) * cols, cols);
}

// Rows by run, see above.
struct Runs {
  const uint32_t* table;
  int count;

  __device__ __forceinline__ int64_t index(int run) const { return table[run]; }
  __device__ __forceinline__ uint32_t start(int run) const { return table[count + run]; }
  __device__ __forceinline__ int64_t row(uint32_t at) const { return table[2 * static_cast<int64_t>(count) + 1 + at]; }
};

template <class T>
__device__ __forceinline__ void splice_backward(T* dfeatures, T* dy, Runs runs, int cols) {
  const int run = blockIdx.x * ROWS + warp_id();
  if (run >= runs.count) return;
  const uint32_t start = runs.start(run), end = runs.start(run + 1);
  T* to = dfeatures + runs.index(run) * cols;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    Pack<T, N> a = load_pack<N>(to + c), zero;
    float sum[N];
    for (int i = 0; i < N; i++) {
      sum[i] = to_f32(a[i]);
      zero[i] = from_f32<T>(0.0f);
    }
    for (uint32_t r = start; r < end; r++) {
      T* from = dy + runs.row(r) * cols + c;
      const Pack<T, N> d = load_pack<N>(from);
      for (int i = 0; i < N; i++) sum[i] += to_f32(d[i]);
      store_pack(from, zero);
    }
    for (int i = 0; i < N; i++) a[i] = from_f32<T>(sum[i]);
    store_pack(to + c, a);
  });
}

template <class T>
__device__ __forceinline__ void embedding_backward(float* dtable, const T* dy, Runs runs, int cols) {
  constexpr int N = 16 / sizeof(T), WARPS = 8, STRIP = 32 * N;
  float* sums = shared_memory<float>();  // [WARPS, STRIP]
  const int run = blockIdx.x, first = blockIdx.y * STRIP, mine = lane_id() * N;
  const uint32_t start = runs.start(run);
  const int rows = runs.start(run + 1) - start;  // signed: a counter that may wrap keeps the compiler from loading several rows at a time
  const int count = cols - first - mine;  // elements from this lane's first on; none or less beyond the row
  float sum[N] = {};
  // f(elements of a row from the lane's first on) for each row of the run that is the warp's.
  const auto each_row = [&](auto f) {
#pragma unroll 4
    for (int r = warp_id(); r < rows; r += WARPS) f(dy + runs.row(start + r) * cols + first + mine);
  };
  // Packs need aligned rows: other widths go element by element, and so does the end of a row.
  // mutant: flip: more goes element by element, which only takes longer.
  if (cols % N == 0 && count >= N) {
    each_row([&](const T* from) {
      const Pack<T, N> d = load_pack<N>(from);
      for (int i = 0; i < N; i++) sum[i] += to_f32(d[i]);
    });
  } else {
    each_row([&](const T* from) {
      for (int i = 0; i < N; i++) {
        if (i < count) sum[i] += to_f32(from[i]);
      }
    });
  }
  for (int i = 0; i < N; i++) sums[warp_id() * STRIP + mine + i] = sum[i];
  __syncthreads();
  const int c = threadIdx.x;
  if (c >= STRIP || first + c >= cols) return;
  float total = 0.0f;
  for (int w = 0; w < WARPS; w++) total += sums[w * STRIP + c];
  dtable[runs.index(run) * cols + first + c] += total;
}

extern "C" __global__ void __launch_bounds__(128) embedding_forward_bf16(bf16* out, const uint32_t* ids, const bf16* table, int rows, int cols) {
  embedding_forward(out, ids, table, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_forward_f32(float* out, const uint32_t* ids, const float* table, int rows, int cols) {
  embedding_forward(out, ids, table, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_forward_bf16(bf16* out, const bf16* features, const uint32_t* positions,
                                                                                const uint32_t* sources, int rows, int cols) {
  splice_forward(out, features, positions, sources, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_forward_f32(float* out, const float* features, const uint32_t* positions,
                                                                               const uint32_t* sources, int rows, int cols) {
  splice_forward(out, features, positions, sources, rows, cols);
}

extern "C" __global__ void __launch_bounds__(256) embedding_backward_bf16(float* dtable, const bf16* dy, const uint32_t* table, int runs, int cols) {
  embedding_backward(dtable, dy, Runs{table, runs}, cols);
}

extern "C" __global__ void __launch_bounds__(256) embedding_backward_f32(float* dtable, const float* dy, const uint32_t* table, int runs, int cols) {
  embedding_backward(dtable, dy, Runs{table, runs}, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_backward_bf16(bf16* dfeatures, bf16* dy, const uint32_t* table, int runs, int cols) {
  splice_backward(dfeatures, dy, Runs{table, runs}, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_backward_f32(float* dfeatures, float* dy, const uint32_t* table, int runs, int cols) {
  splice_backward(dfeatures, dy, Runs{table, runs}, cols);
}
