//! Criterion benches, one file per op, as in src/ops. Shapes are of real models and named.

mod adamw;
mod add;
mod attention;
mod clip_grad_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gelu;
mod layer_norm;
mod linear;
mod lora;
mod matmul;
mod patch_embed;
mod pixel_shuffle;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;

criterion::criterion_main!(
    adamw::benches,
    add::benches,
    attention::benches,
    clip_grad_norm::benches,
    cross_entropy::benches,
    dropout::benches,
    embedding::benches,
    gelu::benches,
    layer_norm::benches,
    linear::benches,
    lora::benches,
    matmul::benches,
    patch_embed::benches,
    pixel_shuffle::benches,
    rms_norm::benches,
    rope::benches,
    sample::benches,
    swiglu::benches,
);
