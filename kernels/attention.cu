#include "attention_plain.cuh"
#include "attention_prefill.cuh"

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs64(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                                              const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  attention_prefill<64>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs72(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                                              const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  attention_prefill<72>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs80(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                                              const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  attention_prefill<80>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs96(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                                              const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  attention_prefill<96>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs128(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                                                               const int4* spans, int tiles, int heads, int kv_heads,
                                                                               int head_size, float scale, int causal) {
  attention_prefill<128>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs64(float* out, float* lse, const float* q, const float* k,
                                                                             const float* v, const int4* spans, int tiles, int heads, int kv_heads,
                                                                             int head_size, float scale, int causal) {
  plain::attention<64>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs128(float* out, float* lse, const float* q, const float* k,
                                                                              const float* v, const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  plain::attention<128>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs256(float* out, float* lse, const float* q, const float* k,
                                                                              const float* v, const int4* spans, int tiles, int heads, int kv_heads,
                                                                              int head_size, float scale, int causal) {
  plain::attention<256>(out, lse, q, k, v, spans, tiles, heads, kv_heads, head_size, scale, causal);
}
