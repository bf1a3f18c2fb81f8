//! Every kernel of kernels/*.cu against float64, run on the CPU (kernels/host) through the launchers that the GPU gets. One file per op.
//!
//! MPA_HOST_KERNELS=/path/to.so runs another build of the kernels: under a sanitizer, or with a planted fault (scripts/).

#[path = "../common/mod.rs"]
mod common;
mod device;

mod adamw;
mod add;
mod attention;
mod attention_backward;
mod attention_backward_hopper;
mod attention_hopper;
mod attention_paged;
mod clip_grad_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod gemm_int8;
mod gemm_int8_hopper;
mod kv_cache;
mod layer_norm;
mod linear;
mod linear_backward;
mod lora;
mod patch_embed;
mod pixel_shuffle;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;
