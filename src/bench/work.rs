//! What is run, in numbers: sizes, bytes, FLOPs.

use serde::Serialize;

/// What an op is run on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Work {
    /// From one place of the device's memory to another.
    Copy {
        size: usize,
    },
    Linear {
        m: usize,
        n: usize,
        k: usize,
    },
    /// In int8, to the type of the activations.
    GemmInt8 {
        m: usize,
        n: usize,
        k: usize,
    },
    /// Gate and up projection with SwiGLU between them and what is quantised.
    GemmInt8Swiglu {
        m: usize,
        n: usize,
        k: usize,
    },
    Quantize {
        rows: usize,
        cols: usize,
    },
    /// With a residual, to int8 alone.
    RmsNormQuantized {
        rows: usize,
        cols: usize,
    },
    Lora {
        m: usize,
        n: usize,
        k: usize,
        r: usize,
    },
    LinearInputBackward {
        m: usize,
        n: usize,
        k: usize,
    },
    LinearWeightBackward {
        m: usize,
        n: usize,
        k: usize,
    },
    LinearBiasBackward {
        rows: usize,
        cols: usize,
    },
    /// Adapters of rank r that share x [m, k], for layers of these widths.
    LoraGroup {
        m: usize,
        k: usize,
        r: usize,
        widths: Vec<usize>,
    },
    LoraBackward {
        m: usize,
        k: usize,
        r: usize,
        widths: Vec<usize>,
    },
    /// `spans`: queries and keys of each sequence.
    Attention {
        heads: usize,
        kv_heads: usize,
        head_size: usize,
        causal: bool,
        spans: Vec<(usize, usize)>,
    },
    /// Over pages, in int8 or as the activations are.
    AttentionPaged {
        heads: usize,
        kv_heads: usize,
        head_size: usize,
        int8: bool,
        spans: Vec<(usize, usize)>,
    },
    /// Rows of keys, or values, that go to pages.
    KvCacheStore {
        rows: usize,
        kv_heads: usize,
        head_size: usize,
        int8: bool,
    },
    AttentionBackward {
        heads: usize,
        kv_heads: usize,
        head_size: usize,
        causal: bool,
        spans: Vec<(usize, usize)>,
    },
    RmsNorm {
        rows: usize,
        cols: usize,
    },
    RmsNormResidual {
        rows: usize,
        cols: usize,
    },
    LayerNorm {
        rows: usize,
        cols: usize,
    },
    /// With the gradient that the residual connection brings, without one of the weight.
    RmsNormBackward {
        rows: usize,
        cols: usize,
    },
    /// With those of weight and bias.
    LayerNormBackward {
        rows: usize,
        cols: usize,
    },
    Add {
        rows: usize,
        cols: usize,
    },
    SwigluBackward {
        rows: usize,
        cols: usize,
    },
    GeluBackward {
        rows: usize,
        cols: usize,
    },
    EmbeddingBackward {
        tokens: usize,
        width: usize,
        vocabulary: usize,
    },
    /// Losses and their gradient, of f32 logits.
    CrossEntropy {
        rows: usize,
        vocabulary: usize,
    },
    /// Clipping and one step of so many matrices of `len` f32 elements.
    Adamw {
        tensors: usize,
        len: usize,
    },
    Swiglu {
        rows: usize,
        cols: usize,
    },
    Gelu {
        rows: usize,
        cols: usize,
    },
    Rope {
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head_size: usize,
    },
    Embedding {
        tokens: usize,
        width: usize,
        vocabulary: usize,
    },
    Splice {
        tokens: usize,
        width: usize,
        features: usize,
    },
    PixelShuffle {
        pictures: usize,
        patches: usize,
        width: usize,
        factor: usize,
    },
    /// Square pictures; patches of `frames` x `patch` x `patch`, put out in squares of `merge` x `merge`.
    PatchEmbed {
        pictures: usize,
        side: usize,
        patch: usize,
        frames: usize,
        merge: usize,
        width: usize,
        position: bool,
    },
    Sample {
        rows: usize,
        vocabulary: usize,
        temperature: f32,
        top_p: f32,
    },
}

#[derive(Clone, Debug, Serialize)]
pub struct Shape {
    pub name: String,
    /// It says what the device can do at most.
    pub ceiling: bool,
    #[serde(flatten)]
    pub work: Work,
}

impl Work {
    pub fn op(&self) -> &'static str {
        match self {
            Work::Copy { .. } => "copy",
            Work::Linear { .. } => "linear",
            Work::GemmInt8 { .. } => "gemm_int8",
            Work::GemmInt8Swiglu { .. } => "gemm_int8_swiglu",
            Work::Quantize { .. } => "quantize",
            Work::RmsNormQuantized { .. } => "rms_norm_quantized",
            Work::Lora { .. } => "lora",
            Work::LinearInputBackward { .. } => "linear_input_backward",
            Work::LinearWeightBackward { .. } => "linear_weight_backward",
            Work::LinearBiasBackward { .. } => "linear_bias_backward",
            Work::LoraGroup { .. } => "lora_group",
            Work::LoraBackward { .. } => "lora_backward",
            Work::Attention { .. } => "attention",
            Work::AttentionPaged { .. } => "attention_paged",
            Work::KvCacheStore { .. } => "kv_cache_store",
            Work::AttentionBackward { .. } => "attention_backward",
            Work::RmsNorm { .. } => "rms_norm",
            Work::RmsNormResidual { .. } => "rms_norm_residual",
            Work::LayerNorm { .. } => "layer_norm",
            Work::RmsNormBackward { .. } => "rms_norm_backward",
            Work::LayerNormBackward { .. } => "layer_norm_backward",
            Work::SwigluBackward { .. } => "swiglu_backward",
            Work::GeluBackward { .. } => "gelu_backward",
            Work::EmbeddingBackward { .. } => "embedding_backward",
            Work::CrossEntropy { .. } => "cross_entropy",
            Work::Adamw { .. } => "adamw",
            Work::Add { .. } => "add",
            Work::Swiglu { .. } => "swiglu",
            Work::Gelu { .. } => "gelu",
            Work::Rope { .. } => "rope",
            Work::Embedding { .. } => "embedding",
            Work::Splice { .. } => "splice",
            Work::PixelShuffle { .. } => "pixel_shuffle",
            Work::PatchEmbed { .. } => "patch_embed",
            Work::Sample { .. } => "sample",
        }
    }

    /// What must be read and written at least once, for elements of `size` bytes.
    pub fn bytes(&self, size: usize) -> usize {
        let elements = match self {
            &Work::Copy { size } => return 2 * size,
            &Work::Linear { m, n, k } | &Work::LinearInputBackward { m, n, k } => m * k + n * k + m * n,
            // Elements of int8 are bytes, scales f32.
            &Work::GemmInt8 { m, n, k } => return m * k + n * k + 4 * (m + n) + m * n * size,
            // The activations, in bf16, are no one's output.
            &Work::GemmInt8Swiglu { m, n, k } => return m * k + 2 * n * k + 8 * (m + n) + m * n,
            &Work::Quantize { rows, cols } => return rows * cols * (size + 1) + 4 * rows,
            &Work::RmsNormQuantized { rows, cols } => {
                return rows * cols * (3 * size + 1) + cols * size + 4 * rows;
            }
            // Gradients of weights are f32, read and written.
            &Work::LinearWeightBackward { m, n, k } => return (m * k + m * n) * size + 8 * n * k,
            &Work::LinearBiasBackward { rows, cols } => return rows * cols * size + 8 * cols,
            Work::LoraGroup { m, k, r, widths } => {
                let all: usize = widths.iter().sum();
                m * k + r * (all + k * widths.len()) + 2 * m * all + m * r * widths.len()
            }
            Work::LoraBackward { m, k, r, widths } => {
                let all: usize = widths.iter().sum();
                let weights = r * (all + k * widths.len());
                return (m * all + 3 * m * k + m * r * widths.len() + weights) * size + 8 * weights;
            }
            &Work::Lora { m, n, k, r } => m * k + r * (n + k) + 2 * m * n + m * r,
            Work::Attention { heads, kv_heads, head_size, spans, .. } => {
                let rows = |(q, k): &(usize, usize)| 2 * q * heads + 2 * k * kv_heads;
                spans.iter().map(rows).sum::<usize>() * head_size
            }
            Work::AttentionPaged { heads, kv_heads, head_size, int8, spans } => {
                let row = kept(*kv_heads, *head_size, *int8, size);
                let bytes = |&(q, k): &(usize, usize)| 2 * q * heads * head_size * size + 2 * k * row;
                return spans.iter().map(bytes).sum();
            }
            &Work::KvCacheStore { rows, kv_heads, head_size, int8 } => {
                return rows * (kv_heads * head_size * size + kept(kv_heads, head_size, int8, size));
            }
            // q, out, dout, dq; k, v, dk, dv.
            Work::AttentionBackward { heads, kv_heads, head_size, spans, .. } => {
                let rows = |(q, k): &(usize, usize)| 4 * q * heads + 4 * k * kv_heads;
                spans.iter().map(rows).sum::<usize>() * head_size
            }
            &Work::RmsNorm { rows, cols } => 2 * rows * cols + cols,
            &Work::RmsNormResidual { rows, cols } => 4 * rows * cols + cols,
            &Work::LayerNorm { rows, cols } => 2 * rows * cols + 2 * cols,
            &Work::Add { rows, cols } | &Work::Swiglu { rows, cols } => 3 * rows * cols,
            &Work::RmsNormBackward { rows, cols } => 4 * rows * cols + cols,
            // Gradients of weights are f32, read and written.
            &Work::LayerNormBackward { rows, cols } => return (3 * rows * cols + cols) * size + 16 * cols,
            &Work::SwigluBackward { rows, cols } => 5 * rows * cols,
            &Work::GeluBackward { rows, cols } => 3 * rows * cols,
            &Work::EmbeddingBackward { tokens, width, vocabulary } => {
                return tokens * width * size + 8 * tokens.min(vocabulary) * width;
            }
            &Work::CrossEntropy { rows, vocabulary } => return rows * vocabulary * (4 + size),
            // Gradients are read twice.
            &Work::Adamw { tensors, len } => return 32 * tensors * len,
            &Work::Gelu { rows, cols } => 2 * rows * cols,
            &Work::Rope { tokens, heads, kv_heads, head_size } => {
                // Cosines and sines are f32.
                let turned = 2 * tokens * (heads + kv_heads) * head_size;
                return turned * size + tokens * head_size * 4;
            }
            &Work::Embedding { tokens, width, .. } => return tokens * (2 * width * size + 4),
            &Work::Splice { width, features, .. } => return features * (2 * width * size + 8),
            &Work::PixelShuffle { pictures, patches, width, .. } => 2 * pictures * patches * width,
            &Work::PatchEmbed { pictures, side, patch, frames, width, position, .. } => {
                // Pixels are bytes.
                let patches = (side / patch).pow(2);
                let once =
                    3 * frames * patch * patch * width + width + if position { patches * width } else { 0 };
                return pictures * (3 * side * side + patches * width * size) + once * size;
            }
            // Logits are f32, ids are 4 bytes.
            &Work::Sample { rows, vocabulary, .. } => return rows * (vocabulary + 1) * 4,
        };
        elements * size
    }

    /// Additions and multiplications of matrix products; of attention those that the mask leaves. 0 for what memory limits anyway.
    pub fn flops(&self) -> usize {
        match self {
            &Work::GemmInt8Swiglu { m, n, k } => 4 * m * n * k,
            &Work::Linear { m, n, k }
            | &Work::GemmInt8 { m, n, k }
            | &Work::LinearInputBackward { m, n, k }
            | &Work::LinearWeightBackward { m, n, k } => 2 * m * n * k,
            Work::LoraGroup { m, k, r, widths } => {
                2 * m * r * (widths.iter().sum::<usize>() + k * widths.len())
            }
            Work::LoraBackward { m, k, r, widths } => {
                4 * m * r * (widths.iter().sum::<usize>() + k * widths.len())
            }
            &Work::Lora { m, n, k, r } => 2 * m * r * (n + k),
            Work::Attention { heads, head_size, causal, spans, .. } => {
                4 * heads * head_size * seen(spans, *causal)
            }
            Work::AttentionPaged { heads, head_size, spans, .. } => 4 * heads * head_size * seen(spans, true),
            // Five products, as the field counts them.
            Work::AttentionBackward { heads, head_size, causal, spans, .. } => {
                10 * heads * head_size * seen(spans, *causal)
            }
            &Work::PatchEmbed { pictures, side, patch, frames, width, .. } => {
                2 * pictures * (side / patch).pow(2) * 3 * frames * patch * patch * width
            }
            _ => 0,
        }
    }
}

/// Bytes of a row of keys, or values, in a page.
fn kept(kv_heads: usize, head_size: usize, int8: bool, size: usize) -> usize {
    kv_heads * if int8 { head_size + 4 } else { head_size * size }
}

/// Pairs of a query and a key that it sees.
fn seen(spans: &[(usize, usize)], causal: bool) -> usize {
    spans.iter().map(|&(q, k)| if causal { q * (k - q) + q * (q + 1) / 2 } else { q * k }).sum()
}
