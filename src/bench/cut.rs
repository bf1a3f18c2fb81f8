//! Small versions of the shapes.

use super::work::{Shape, Work};

/// A few rows of the first spans.
fn few_of(spans: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let cut = |&(q, k): &(usize, usize)| (q.min(33), k.min(if q == 1 { 64 } else { 33 }));
    spans.iter().take(2).map(cut).collect()
}

impl Shape {
    /// A ceiling that a CPU reaches within a second.
    pub(super) fn for_a_cpu(self) -> Shape {
        match self.work {
            Work::Copy { .. } => Shape { name: "64 MiB".into(), work: Work::Copy { size: 64 << 20 }, ..self },
            _ => Shape {
                name: "1024 x 1024 x 1024".into(),
                work: Work::Linear { m: 1024, n: 1024, k: 1024 },
                ..self
            },
        }
    }

    /// A few rows of it.
    pub(super) fn cut(self) -> Shape {
        let (few, wide) = (|n: usize| n.min(5), |n: usize| n.min(64));
        let work = match self.work {
            Work::Copy { size } => Work::Copy { size: size.min(1 << 16) },
            Work::Linear { m, n, k } => Work::Linear { m: few(m), n: wide(n), k: wide(k) },
            Work::GemmInt8 { m, n, k } => Work::GemmInt8 { m: few(m), n: wide(n), k: wide(k) },
            Work::GemmInt8Swiglu { m, n, k } => Work::GemmInt8Swiglu { m: few(m), n: wide(n), k: wide(k) },
            Work::Quantize { rows, cols } => Work::Quantize { rows: few(rows), cols },
            Work::RmsNormQuantized { rows, cols } => Work::RmsNormQuantized { rows: few(rows), cols },
            Work::Lora { m, n, k, r } => Work::Lora { m: few(m), n: wide(n), k: wide(k), r: few(r) },
            Work::LinearInputBackward { m, n, k } => {
                Work::LinearInputBackward { m: few(m), n: wide(n), k: wide(k) }
            }
            Work::LinearWeightBackward { m, n, k } => {
                Work::LinearWeightBackward { m: few(m), n: wide(n), k: wide(k) }
            }
            Work::LinearBiasBackward { rows, cols } => {
                Work::LinearBiasBackward { rows: few(rows), cols: wide(cols) }
            }
            // More rows than are few to linear's kernels.
            Work::LoraGroup { k, r, widths, .. } => Work::LoraGroup {
                m: 17,
                k: wide(k),
                r: few(r),
                widths: widths.into_iter().map(wide).collect(),
            },
            Work::LoraBackward { k, r, widths, .. } => Work::LoraBackward {
                m: 17,
                k: wide(k),
                r: few(r),
                widths: widths.into_iter().map(wide).collect(),
            },
            Work::Attention { heads, kv_heads, head_size, causal, spans } => {
                let spans = few_of(&spans);
                Work::Attention { heads: heads / kv_heads, kv_heads: 1, head_size, causal, spans }
            }
            Work::AttentionPaged { heads, kv_heads, head_size, int8, spans } => {
                let spans = few_of(&spans);
                Work::AttentionPaged { heads: heads / kv_heads, kv_heads: 1, head_size, int8, spans }
            }
            Work::KvCacheStore { rows, kv_heads, head_size, int8 } => {
                Work::KvCacheStore { rows: few(rows), kv_heads, head_size, int8 }
            }
            Work::AttentionBackward { heads, kv_heads, head_size, causal, spans } => {
                let spans = few_of(&spans);
                Work::AttentionBackward { heads: heads / kv_heads, kv_heads: 1, head_size, causal, spans }
            }
            Work::RmsNorm { rows, cols } => Work::RmsNorm { rows: few(rows), cols },
            Work::RmsNormResidual { rows, cols } => Work::RmsNormResidual { rows: few(rows), cols },
            Work::LayerNorm { rows, cols } => Work::LayerNorm { rows: few(rows), cols },
            Work::RmsNormBackward { rows, cols } => Work::RmsNormBackward { rows: few(rows), cols },
            Work::LayerNormBackward { rows, cols } => Work::LayerNormBackward { rows: few(rows), cols },
            Work::SwigluBackward { rows, cols } => Work::SwigluBackward { rows: few(rows), cols },
            Work::GeluBackward { rows, cols } => Work::GeluBackward { rows: few(rows), cols },
            Work::EmbeddingBackward { tokens, width, vocabulary } => {
                Work::EmbeddingBackward { tokens: few(tokens), width, vocabulary: wide(vocabulary) }
            }
            Work::CrossEntropy { rows, vocabulary } => {
                Work::CrossEntropy { rows: few(rows), vocabulary: wide(vocabulary) }
            }
            Work::Adamw { tensors, len } => Work::Adamw { tensors: few(tensors), len: wide(len) },
            Work::Add { rows, cols } => Work::Add { rows: few(rows), cols },
            Work::Swiglu { rows, cols } => Work::Swiglu { rows: few(rows), cols },
            Work::Gelu { rows, cols } => Work::Gelu { rows: few(rows), cols },
            Work::Rope { tokens, heads, kv_heads, head_size } => {
                Work::Rope { tokens: few(tokens), heads, kv_heads, head_size }
            }
            Work::Embedding { tokens, width, vocabulary } => {
                Work::Embedding { tokens: few(tokens), width, vocabulary: wide(vocabulary) }
            }
            Work::Splice { width, .. } => Work::Splice { tokens: 8, width, features: 5 },
            Work::PixelShuffle { width, factor, .. } => {
                Work::PixelShuffle { pictures: 1, patches: 4 * factor * factor, width: wide(width), factor }
            }
            Work::PatchEmbed { patch, frames, merge, width, position, .. } => Work::PatchEmbed {
                pictures: 1,
                side: 2 * patch,
                patch,
                frames,
                merge,
                width: wide(width),
                position,
            },
            Work::Sample { rows, vocabulary, temperature, top_p } => {
                Work::Sample { rows: few(rows), vocabulary: wide(vocabulary), temperature, top_p }
            }
        };
        Shape { name: format!("{} (cut)", self.name), work, ..self }
    }
}
