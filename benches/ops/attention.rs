use criterion::{Criterion, criterion_group};
use mpa::ops::attention::{Config, Span, Spans, backward, forward};

use crate::{as_dtype, measure_flops, tensor};
use mpa::tensor::DType;

struct Place {
    name: &'static str,
    spans: usize,
    q_len: usize,
    k_len: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    causal: bool,
}

const PLACES: [Place; 8] = [
    Place {
        name: "Qwen2-VL-2B text, prompt of 1000 tokens",
        spans: 1,
        q_len: 1000,
        k_len: 1000,
        heads: 12,
        kv_heads: 2,
        head_size: 128,
        causal: true,
    },
    Place {
        name: "Qwen2-VL-7B text, prompt of 1000 tokens",
        spans: 1,
        q_len: 1000,
        k_len: 1000,
        heads: 28,
        kv_heads: 4,
        head_size: 128,
        causal: true,
    },
    Place {
        name: "SmolVLM vision, 1 picture of 1024 patches",
        spans: 1,
        q_len: 1024,
        k_len: 1024,
        heads: 12,
        kv_heads: 12,
        head_size: 64,
        causal: false,
    },
    Place {
        name: "SmolVLM-500M text, prompt of 1000 tokens",
        spans: 1,
        q_len: 1000,
        k_len: 1000,
        heads: 15,
        kv_heads: 5,
        head_size: 64,
        causal: true,
    },
    Place {
        name: "SmolVLM-500M text, 64 next tokens after 1000",
        spans: 64,
        q_len: 1,
        k_len: 1000,
        heads: 15,
        kv_heads: 5,
        head_size: 64,
        causal: true,
    },
    Place {
        name: "demo text, 50 samples of 40 tokens",
        spans: 50,
        q_len: 40,
        k_len: 40,
        heads: 4,
        kv_heads: 4,
        head_size: 16,
        causal: true,
    },
    Place {
        name: "demo vision, 50 pictures of 64 patches",
        spans: 50,
        q_len: 64,
        k_len: 64,
        heads: 4,
        kv_heads: 4,
        head_size: 16,
        causal: false,
    },
    Place {
        name: "demo text, 64 next tokens after 40",
        spans: 64,
        q_len: 1,
        k_len: 40,
        heads: 4,
        kv_heads: 4,
        head_size: 16,
        causal: true,
    },
];

/// FLOPs count all keys, also those that the causal mask hides.
fn both(c: &mut Criterion) {
    for place in PLACES {
        let Place { name, spans, q_len, k_len, heads, kv_heads, head_size, causal } = place;
        let config = Config { heads, kv_heads, head_size, scale: 1.0 / (head_size as f32).sqrt(), causal };
        let (q, k) = ([spans * q_len, heads * head_size], [spans * k_len, kv_heads * head_size]);
        let (mut out, mut lse) = (tensor(&q), as_dtype(&[spans * q_len, heads], DType::F32));
        let (mut dq, mut dk, mut dv, dout) = (tensor(&q), tensor(&k), tensor(&k), tensor(&q));
        let (q, k, v) = (tensor(&q), tensor(&k), tensor(&k));
        let spans: Spans =
            (0..spans).map(|i| Span { q_start: i * q_len, q_len, k_start: i * k_len, k_len }).collect();
        let flops = 4 * spans.len() * q_len * k_len * heads * head_size;
        measure_flops(c, "attention forward", name, flops, || {
            forward(&mut out, Some(&mut lse), &q, &k, &v, &spans, config).expect("shapes fit")
        });
        if q_len > 1 {
            measure_flops(c, "attention backward", name, flops * 5 / 2, || {
                backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, &spans, config)
                    .expect("shapes fit")
            });
        }
    }
}

criterion_group!(benches, both);
