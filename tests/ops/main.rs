//! Every op against float64 and finite differences. One file per op, as in src/ops.

#[path = "../common/mod.rs"]
mod common;

mod adamw;
mod add;
mod attention;
mod clip_grad_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod gemm_int8;
mod kv_cache;
mod layer_norm;
mod linear;
mod lora;
mod matmul;
mod patch_embed;
mod pixel_shuffle;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;
