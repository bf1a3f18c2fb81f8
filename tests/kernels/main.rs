//! Every kernel of kernels/*.cu against float64, run on the CPU (kernels/host) through the launchers that the GPU gets. One file per op.
//!
//! MPA_HOST_KERNELS=/path/to.so runs another build of the kernels: under a sanitizer, or with a planted fault (scripts/).

#[path = "../common/mod.rs"]
mod common;
mod device;

mod add;
mod attention;
mod attention_hopper;
mod embedding;
mod gelu;
mod layer_norm;
mod linear;
mod patch_embed;
mod pixel_shuffle;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;
