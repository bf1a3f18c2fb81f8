// store:   pages[rows[t]] = x[t]
// gather:  out[128 i + r] = pages[128 list[i] + r], r < 128                                    (Kwon et al. 2023: pages of 128 rows)
// In int8 each key/value head of a row has a scale of its own, as in quantize.cuh, with its bits:
//   store:   q = round(x * (127 / max|x|)), scale = max|x| / 127        gather:  q scale, rounded to the storage type
//
// x [T, NKV*HS], out [128 * pages of the list, NKV*HS]; pages [rows, NKV*HS] of T, or int8 and float scales [rows, NKV]. One warp a row, or in
// int8 a head of a row, four a block; a lane takes every 32nd pack of 16 bytes. x is read twice for int8, the second time from L1.
// Bytes a row: 2 NKV HS sizeof, in int8 NKV (HS (sizeof + 1) + 4). Bound by memory: at 3.35 TB/s (H100) 8192 tokens of Qwen2-VL-7B's keys
// (NKV 4, HS 128) in bf16 take 5.0 us stored or gathered, in int8 3.8 us.
// Reached: not yet run on a GPU.
// Considered: keys and values in one launch (a decode step's launches are in a graph); several heads of int8 a warp (HS 64 in bf16 has packs for
// 8 of the 32 lanes).
#include "quantize.cuh"

constexpr int PAGE = 128;  // src/ops/kv_cache.rs
static_assert(PAGE % ROWS == 0, "what is gathered is whole blocks");

// Where row `row` of what is gathered lies.
__device__ __forceinline__ int64_t place(const uint32_t* list, int row) { return static_cast<int64_t>(list[row / PAGE]) * PAGE + row % PAGE; }

template <class T>
__device__ __forceinline__ void kv_cache_store_forward(T* pages, const T* x, const uint32_t* rows, int count, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= count) return;
  copy_row(pages + static_cast<int64_t>(rows[row]) * cols, x + static_cast<int64_t>(row) * cols, cols);
}

template <class T>
__device__ __forceinline__ void kv_cache_gather_forward(T* out, const T* pages, const uint32_t* list, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  copy_row(out + static_cast<int64_t>(row) * cols, pages + place(list, row) * cols, cols);
}

// One head of a row, N elements at a time, by one warp; its scale. Unrolled, the compiler runs out of the 32 registers that it allows itself.
template <int N, class T>
__device__ __forceinline__ float quantize_head(int8_t* q, const T* x, int head_size) {
  unsigned most = 0;
#pragma unroll 1
  for (int c = lane_id() * N; c < head_size; c += 32 * N) most = larger(most, load_pack<N>(x + c));
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) most = max(most, __shfl_xor_sync(FULL_WARP, most, bit));
  const Levels levels(most);
#pragma unroll 1
  for (int c = lane_id() * N; c < head_size; c += 32 * N) store_pack(q + c, quantized(levels, load_pack<N>(x + c)));
  return levels.scale;
}

template <class T>
__device__ __forceinline__ void kv_cache_store_int8_forward(int8_t* pages, float* scales, const T* x, const uint32_t* rows, int count, int heads,
                                                            int head_size) {
  constexpr int N = 16 / sizeof(T);
  const int piece = blockIdx.x * ROWS + warp_id();
  if (piece >= count) return;
  const int64_t to = static_cast<int64_t>(rows[piece / heads]) * heads + piece % heads;
  x += static_cast<int64_t>(piece) * head_size;
  pages += to * head_size;
  // mutant: condition: false sends every width there, which only takes longer.
  const float scale = head_size % N == 0 ? quantize_head<N>(pages, x, head_size) : quantize_head<1>(pages, x, head_size);
  if (lane_id() == 0) scales[to] = scale;
}

template <class T>
__device__ __forceinline__ void kv_cache_gather_int8_forward(T* out, const int8_t* pages, const float* scales, const uint32_t* list, int heads,
                                                             int head_size) {
  const int piece = blockIdx.x * ROWS + warp_id();
  const int64_t from = place(list, piece / heads) * heads + piece % heads;
  out += static_cast<int64_t>(piece) * head_size;
  pages += from * head_size;
  const float scale = scales[from];
  each_pack<T>(head_size, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<int8_t, N> q = load_pack<N>(pages + c);
    Pack<T, N> x;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = from_f32<T>(to_f32(q[i]) * scale);
    store_pack(out + c, x);
  });
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_store_forward_bf16(bf16* pages, const bf16* x, const uint32_t* rows, int count, int cols) {
  kv_cache_store_forward(pages, x, rows, count, cols);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_store_forward_f32(float* pages, const float* x, const uint32_t* rows, int count, int cols) {
  kv_cache_store_forward(pages, x, rows, count, cols);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_gather_forward_bf16(bf16* out, const bf16* pages, const uint32_t* list, int cols) {
  kv_cache_gather_forward(out, pages, list, cols);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_gather_forward_f32(float* out, const float* pages, const uint32_t* list, int cols) {
  kv_cache_gather_forward(out, pages, list, cols);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_store_int8_forward_bf16(int8_t* pages, float* scales, const bf16* x, const uint32_t* rows,
                                                                                   int count, int heads, int head_size) {
  kv_cache_store_int8_forward(pages, scales, x, rows, count, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_store_int8_forward_f32(int8_t* pages, float* scales, const float* x, const uint32_t* rows,
                                                                                  int count, int heads, int head_size) {
  kv_cache_store_int8_forward(pages, scales, x, rows, count, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_gather_int8_forward_bf16(bf16* out, const int8_t* pages, const float* scales,
                                                                                    const uint32_t* list, int heads, int head_size) {
  kv_cache_gather_int8_forward(out, pages, scales, list, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) kv_cache_gather_int8_forward_f32(float* out, const int8_t* pages, const float* scales,
                                                                                   const uint32_t* list, int heads, int head_size) {
  kv_cache_gather_int8_forward(out, pages, scales, list, heads, head_size);
}
