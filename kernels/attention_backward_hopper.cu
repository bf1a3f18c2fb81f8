// attention_backward.cu's gradients in bf16 on Hopper: warps that load and warps that multiply. Formulas, shapes, spans, the statistics and
// the parts of groups are as there, and so are its two other launches: attention_delta_backward_bf16, attention_group_backward_bf16.
//
//   attention_hopper_keys_backward_bf16_hsN      128 keys x query head a block: dk and dv; 64 queries at a time, three stages
//   attention_hopper_queries_backward_bf16_hsN   128 queries x head a block: dq; 128 keys at a time, two stages
// HS up to N, a multiple of 8. Blocks: attention_span.cuh.
//
// A block owns 128 rows of two inputs, A and B: keys and values, or queries and the gradients of their outputs. One warp asks for them, then
// for tiles of the other two, C and D, which it puts into a ring (tile_load). Two warpgroups multiply, by wgmma, 64 of the rows each:
//   S = A C^T,  dP = B D^T  from shared memory; then P and dS in registers, where S's layout is the one that an operand needs;
//   dv += P D,  dk += dS C  for keys (there S is S^T);   dq += dS C  for queries.
// While P is computed dP is still under way, and in `keys` P D while dS is; the other warpgroup has its products as well. A tile's are over
// before the next one's begin: with products under way at the loop's end ptxas puts all of them one after the other (its C7515, 13.0).
// A tile is free again when all eight warps have said so. Nothing but inputs and statistics is ever in shared memory.
//
// The last tile may go on into the next span, or past the end of the tensor (zeros). 0 * NaN is NaN, so the loading warp puts zeros over such
// rows of C and D, and over the statistics of such queries, before it hands the tile on: then S, dP and dS C are 0, whatever P is.
//
// Why two kernels, with seven products where there must be five: dk and dv are sums over queries, dq is one over keys. A block that owns the
// ones can only add to the other in memory: with atomics in no order, in turn with blocks that wait, or in parts, whose bytes take longer than
// two products (attention_backward.cu). Here each sum stays in one block's registers and has one order: the same bits every time.
//
// FLOPs, bytes and floors as in attention_backward.cu, at 989 TFLOP/s and 3.35 TB/s (H100):
//   Qwen2-VL-2B, T = 2048, causal, NH 12, NKV 2, HS 128: 45 GFLOP, 46 us; 29 MB, 9 us; parts 50 MB, 15 us.
//   SmolVLM-500M, T = 2048, causal, NH 15, NKV 5, HS 64: 28 GFLOP, 29 us; 21 MB, 6 us; parts 31 MB, 9 us.
//   SmolVLM's vision tower, 17 tiles of 1024 patches, NH 12, HS 64: 192 GFLOP, 194 us; 214 MB, 64 us; no parts.
// Shared memory gives 128 bytes a cycle. wgmma m64nNk16 takes N / 2 cycles; to read A from there 16, B N / 4. A tile of a warpgroup, cycles of
// products, of reading for them, of filling (its half) and of exponentials: in `keys` 1024, 768, 128, 256 at HS 128, 512, 384, 64, 256 at HS 64;
// in `queries` 1536, 1024, 256, 512 and 768, 512, 128, 512. With 64 keys a tile `queries` would need all of the 128 bytes.
// Registers of a multiplying thread, of 240 (the first warpgroup keeps 24), at HS 128: sums 128 in `keys`, 64 in `queries`; S and dP 64, 128;
// operands P and dS 32, 32. Shared memory at HS 128: 162 and 192 KiB. One block a multiprocessor.
// Reached: not yet run on a GPU.
//
// Considered: K and V as register operands in `keys`: 64 registers more. 128 queries a tile at HS 64: 256 registers before any address.
// Statistics by tile_load: rows of 8 bytes cannot be cut out just anywhere; the loading warp has time, and reads them before it waits for room.
#include "attention_backward_hopper.cuh"

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_keys_backward_bf16_hs64(bf16* dk, bf16* dv, float* dk_parts,
                                                                                              float* dv_parts,
                                                                                              const __grid_constant__ TensorMap dout,
                                                                                              const __grid_constant__ TensorMap q,
                                                                                              const __grid_constant__ TensorMap k,
                                                                                              const __grid_constant__ TensorMap v,
                                                                                              const float* stats, const int4* spans,
                                                                                              int rows, int heads, int kv_heads,
                                                                                              int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::keys<64>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_keys_backward_bf16_hs80(bf16* dk, bf16* dv, float* dk_parts,
                                                                                              float* dv_parts,
                                                                                              const __grid_constant__ TensorMap dout,
                                                                                              const __grid_constant__ TensorMap q,
                                                                                              const __grid_constant__ TensorMap k,
                                                                                              const __grid_constant__ TensorMap v,
                                                                                              const float* stats, const int4* spans,
                                                                                              int rows, int heads, int kv_heads,
                                                                                              int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::keys<80>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_keys_backward_bf16_hs96(bf16* dk, bf16* dv, float* dk_parts,
                                                                                              float* dv_parts,
                                                                                              const __grid_constant__ TensorMap dout,
                                                                                              const __grid_constant__ TensorMap q,
                                                                                              const __grid_constant__ TensorMap k,
                                                                                              const __grid_constant__ TensorMap v,
                                                                                              const float* stats, const int4* spans,
                                                                                              int rows, int heads, int kv_heads,
                                                                                              int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::keys<96>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_keys_backward_bf16_hs128(bf16* dk, bf16* dv, float* dk_parts,
                                                                                               float* dv_parts,
                                                                                               const __grid_constant__ TensorMap dout,
                                                                                               const __grid_constant__ TensorMap q,
                                                                                               const __grid_constant__ TensorMap k,
                                                                                               const __grid_constant__ TensorMap v,
                                                                                               const float* stats, const int4* spans,
                                                                                               int rows, int heads, int kv_heads,
                                                                                               int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::keys<128>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_queries_backward_bf16_hs64(bf16* dq,
                                                                                                 const __grid_constant__ TensorMap dout,
                                                                                                 const __grid_constant__ TensorMap q,
                                                                                                 const __grid_constant__ TensorMap k,
                                                                                                 const __grid_constant__ TensorMap v,
                                                                                                 const float* stats, const int4* spans,
                                                                                                 int rows, int heads,
                                                                                                 int kv_heads, int head_size, float scale,
                                                                                                 int causal) {
#ifdef MPA_HOPPER
  hopper::queries<64>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_queries_backward_bf16_hs80(bf16* dq,
                                                                                                 const __grid_constant__ TensorMap dout,
                                                                                                 const __grid_constant__ TensorMap q,
                                                                                                 const __grid_constant__ TensorMap k,
                                                                                                 const __grid_constant__ TensorMap v,
                                                                                                 const float* stats, const int4* spans,
                                                                                                 int rows, int heads,
                                                                                                 int kv_heads, int head_size, float scale,
                                                                                                 int causal) {
#ifdef MPA_HOPPER
  hopper::queries<80>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_queries_backward_bf16_hs96(bf16* dq,
                                                                                                 const __grid_constant__ TensorMap dout,
                                                                                                 const __grid_constant__ TensorMap q,
                                                                                                 const __grid_constant__ TensorMap k,
                                                                                                 const __grid_constant__ TensorMap v,
                                                                                                 const float* stats, const int4* spans,
                                                                                                 int rows, int heads,
                                                                                                 int kv_heads, int head_size, float scale,
                                                                                                 int causal) {
#ifdef MPA_HOPPER
  hopper::queries<96>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_queries_backward_bf16_hs128(bf16* dq,
                                                                                                  const __grid_constant__ TensorMap dout,
                                                                                                  const __grid_constant__ TensorMap q,
                                                                                                  const __grid_constant__ TensorMap k,
                                                                                                  const __grid_constant__ TensorMap v,
                                                                                                  const float* stats, const int4* spans,
                                                                                                  int rows, int heads,
                                                                                                  int kv_heads, int head_size, float scale,
                                                                                                  int causal) {
#ifdef MPA_HOPPER
  hopper::queries<128>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}
