//! The named shapes of real models: the one list, which benches/peers/*.py get from `mpa bench ops --shapes --json`.

use super::work::{Shape, Work};

/// A language model's sizes.
struct Text {
    name: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    intermediate: usize,
    vocabulary: usize,
}

const TEXTS: [Text; 3] = [
    Text {
        name: "SmolVLM-500M",
        hidden: 960,
        heads: 15,
        kv_heads: 5,
        head_size: 64,
        intermediate: 2560,
        vocabulary: 49280,
    },
    Text {
        name: "Qwen2-VL-2B",
        hidden: 1536,
        heads: 12,
        kv_heads: 2,
        head_size: 128,
        intermediate: 8960,
        vocabulary: 151_936,
    },
    Text {
        name: "Qwen2-VL-7B",
        hidden: 3584,
        heads: 28,
        kv_heads: 4,
        head_size: 128,
        intermediate: 18944,
        vocabulary: 152_064,
    },
];

/// A vision tower's sizes, and pictures (tiles) of one prompt.
struct Vision {
    name: &'static str,
    hidden: usize,
    heads: usize,
    head_size: usize,
    intermediate: usize,
    pictures: usize,
    patches: usize,
}

const SMOL_VISION: Vision = Vision {
    name: "SmolVLM-500M vision, 17 tiles",
    hidden: 768,
    heads: 12,
    head_size: 64,
    intermediate: 3072,
    pictures: 17,
    patches: 1024,
};
const QWEN_VISION: Vision = Vision {
    name: "Qwen2-VL vision, 4 pictures",
    hidden: 1280,
    heads: 16,
    head_size: 80,
    intermediate: 5120,
    pictures: 4,
    patches: 1024,
};

/// Sequences of a decode step, and what each has behind it.
const DECODE: (usize, usize) = (32, 1024);
/// Tokens of a batch of prompts.
const PROMPT: usize = 4096;
/// Answer tokens whose logits exist at a time.
const LOSSES: usize = 512;
/// Prompts of one batch.
const RAGGED: [usize; 8] = [1400, 1100, 1024, 777, 512, 300, 129, 61];

fn tokens(n: usize) -> String {
    if n == 1 { "1 token".into() } else { format!("{n} tokens") }
}

fn shape(name: impl Into<String>, work: Work) -> Shape {
    Shape { name: name.into(), ceiling: false, work }
}

/// The ceilings first.
pub fn shapes() -> Vec<Shape> {
    let ceiling = |name: &str, work| Shape { ceiling: true, ..shape(name, work) };
    let mut all = vec![
        ceiling("1 GiB", Work::Copy { size: 1 << 30 }),
        ceiling("8192 x 8192 x 8192", Work::Linear { m: 8192, n: 8192, k: 8192 }),
    ];
    for text in &TEXTS {
        all.extend(attention_of(text));
        all.extend(products_of(text));
        all.extend(rest_of(text));
        all.extend(training_of(text));
    }
    // The models that are large enough for it.
    all.extend(TEXTS[1..].iter().flat_map(quantised_of));
    for vision in [&SMOL_VISION, &QWEN_VISION] {
        all.extend(tower(vision));
    }
    all.extend(pictures());
    all
}

fn attention_of(t: &Text) -> Vec<Shape> {
    let &Text { name, heads, kv_heads, head_size, .. } = t;
    let over =
        |spans: Vec<(usize, usize)>| Work::Attention { heads, kv_heads, head_size, causal: true, spans };
    let mut all: Vec<Shape> = [1024, 2048, 4096]
        .into_iter()
        .map(|n| shape(format!("{name}, prompt of {n}"), over(vec![(n, n)])))
        .collect();
    all.push(shape(
        format!("{name}, {} ragged prompts", RAGGED.len()),
        over(RAGGED.map(|n| (n, n)).to_vec()),
    ));
    all.extend(all.clone().into_iter().filter_map(backward_of));
    let (sequences, keys) = DECODE;
    all.push(shape(format!("{name}, decode {sequences} x {keys}"), over(vec![(1, keys); sequences])));
    for (pages, int8) in [("float", false), ("int8", true)] {
        let paged = |spans| Work::AttentionPaged { heads, kv_heads, head_size, int8, spans };
        let stored = |rows| Work::KvCacheStore { rows, kv_heads, head_size, int8 };
        all.extend([
            shape(
                format!("{name}, decode {sequences} x {keys}, {pages} pages"),
                paged(vec![(1, keys); sequences]),
            ),
            shape(format!("{name}, piece 512 of {keys}, {pages} pages"), paged(vec![(512, keys)])),
            shape(format!("{name}, {PROMPT} rows, {pages} pages"), stored(PROMPT)),
            shape(format!("{name}, {sequences} rows, {pages} pages"), stored(sequences)),
        ]);
    }
    all
}

/// The gradient of attention at the same place.
fn backward_of(forward: Shape) -> Option<Shape> {
    let Work::Attention { heads, kv_heads, head_size, causal, spans } = forward.work else { return None };
    Some(shape(forward.name, Work::AttentionBackward { heads, kv_heads, head_size, causal, spans }))
}

fn products_of(t: &Text) -> Vec<Shape> {
    let &Text { name, hidden, heads, head_size, intermediate, vocabulary, .. } = t;
    let mut all = Vec::new();
    for m in [PROMPT, DECODE.0, 1] {
        let layers = [
            ("q", heads * head_size, hidden),
            ("gate", intermediate, hidden),
            ("down", hidden, intermediate),
        ];
        all.extend(
            layers.map(|(layer, n, k)| {
                shape(format!("{name} {layer}, {}", tokens(m)), Work::Linear { m, n, k })
            }),
        );
    }
    for m in [DECODE.0, 1] {
        all.push(shape(
            format!("{name} logits, {}", tokens(m)),
            Work::Linear { m, n: vocabulary, k: hidden },
        ));
    }
    all.push(shape(
        format!("{name} gate, {PROMPT} tokens, rank 16"),
        Work::Lora { m: PROMPT, n: intermediate, k: hidden, r: 16 },
    ));
    all
}

fn rest_of(t: &Text) -> Vec<Shape> {
    let &Text { name, hidden, heads, kv_heads, head_size, intermediate, vocabulary } = t;
    let mut all = Vec::new();
    for rows in [PROMPT, DECODE.0] {
        let works = [
            Work::RmsNorm { rows, cols: hidden },
            Work::RmsNormResidual { rows, cols: hidden },
            Work::Add { rows, cols: hidden },
            Work::Swiglu { rows, cols: intermediate },
            Work::Rope { tokens: rows, heads, kv_heads, head_size },
            Work::Embedding { tokens: rows, width: hidden, vocabulary },
        ];
        all.extend(works.map(|work| shape(format!("{name}, {}", tokens(rows)), work)));
    }
    let learning = [
        Work::RmsNormBackward { rows: PROMPT, cols: hidden },
        Work::SwigluBackward { rows: PROMPT, cols: intermediate },
        Work::EmbeddingBackward { tokens: PROMPT, width: hidden, vocabulary },
    ];
    all.extend(learning.map(|work| shape(format!("{name}, {}", tokens(PROMPT)), work)));
    let answers = Work::CrossEntropy { rows: LOSSES, vocabulary };
    all.push(shape(format!("{name}, {}", tokens(LOSSES)), answers));
    // Two adapters for each of a layer's seven matrices.
    let adapters = Work::Adamw { tensors: 2 * 7 * 32, len: 16 * hidden };
    all.push(shape(format!("{name}, adapters of rank 16"), adapters));
    let rows = DECODE.0;
    for (way, temperature, top_p) in [("argmax", 0.0, 1.0), ("top-p 0.9", 0.8, 0.9)] {
        all.push(shape(
            format!("{name}, {way}, {rows} rows"),
            Work::Sample { rows, vocabulary, temperature, top_p },
        ));
    }
    all
}

/// The layers in int8: prompts, and decode steps.
fn quantised_of(t: &Text) -> Vec<Shape> {
    const TOKENS: [usize; 4] = [2048, 32, 8, 1];
    let &Text { name, hidden, heads, kv_heads, head_size, intermediate, .. } = t;
    let mut all = Vec::new();
    for m in TOKENS {
        let layers = [
            ("q", heads * head_size, hidden),
            ("k", kv_heads * head_size, hidden),
            ("v", kv_heads * head_size, hidden),
            ("o", hidden, heads * head_size),
            ("gate", intermediate, hidden),
            ("up", intermediate, hidden),
            ("down", hidden, intermediate),
        ];
        let named = |what: &str| format!("{name} {what}, {}", tokens(m));
        all.extend(layers.map(|(layer, n, k)| shape(named(layer), Work::GemmInt8 { m, n, k })));
        let both = Work::GemmInt8Swiglu { m, n: intermediate, k: hidden };
        all.push(shape(named("gate, up"), both));
        all.push(shape(named("attention"), Work::Quantize { rows: m, cols: heads * head_size }));
        all.push(shape(named("block"), Work::RmsNormQuantized { rows: m, cols: hidden }));
    }
    all
}

/// A micro-batch in training: what the layers' products and adapters take.
fn training_of(t: &Text) -> Vec<Shape> {
    const TOKENS: usize = 8192;
    const RANK: usize = 16;
    let &Text { name, hidden: k, heads, kv_heads, head_size, intermediate, .. } = t;
    let groups = [
        ("q, k, v", vec![heads * head_size, kv_heads * head_size, kv_heads * head_size]),
        ("gate, up", vec![intermediate; 2]),
    ];
    let (m, n) = (TOKENS, intermediate);
    let mut all = vec![
        shape(format!("{name} gate, {TOKENS} tokens"), Work::LinearInputBackward { m, n, k }),
        shape(format!("{name} gate, {TOKENS} tokens"), Work::LinearWeightBackward { m, n, k }),
        shape(format!("{name}, {TOKENS} tokens"), Work::LinearBiasBackward { rows: m, cols: k }),
    ];
    for (layers, widths) in groups {
        let name = format!("{name} {layers}, {TOKENS} tokens, rank {RANK}");
        all.push(shape(name.clone(), Work::LoraGroup { m, k, r: RANK, widths: widths.clone() }));
        all.push(shape(name, Work::LoraBackward { m, k, r: RANK, widths }));
    }
    all
}

fn tower(v: &Vision) -> Vec<Shape> {
    let &Vision { name, hidden, heads, head_size, intermediate, pictures, patches } = v;
    let rows = pictures * patches;
    let spans = vec![(patches, patches); pictures];
    let attention = shape(name, Work::Attention { heads, kv_heads: heads, head_size, causal: false, spans });
    let backward = backward_of(attention.clone());
    let rest = [
        shape(name, Work::LayerNorm { rows, cols: hidden }),
        shape(name, Work::Gelu { rows, cols: intermediate }),
        shape(name, Work::LayerNormBackward { rows, cols: hidden }),
        shape(name, Work::GeluBackward { rows, cols: intermediate }),
        shape(format!("{name}, fc1"), Work::Linear { m: rows, n: intermediate, k: hidden }),
        shape(format!("{name}, fc2"), Work::Linear { m: rows, n: hidden, k: intermediate }),
    ];
    [attention].into_iter().chain(backward).chain(rest).collect()
}

fn pictures() -> Vec<Shape> {
    let Vision { name, hidden, pictures, patches, .. } = SMOL_VISION;
    let merged = pictures * patches / 16;
    let smol = Work::PatchEmbed {
        pictures,
        side: 512,
        patch: 16,
        frames: 1,
        merge: 1,
        width: hidden,
        position: true,
    };
    let so400m = Work::PatchEmbed {
        pictures: 13,
        side: 384,
        patch: 14,
        frames: 1,
        merge: 1,
        width: 1152,
        position: true,
    };
    let qwen = Work::PatchEmbed {
        pictures: 4,
        side: 448,
        patch: 14,
        frames: 2,
        merge: 2,
        width: QWEN_VISION.hidden,
        position: false,
    };
    let turned = Work::Rope { tokens: 4096, heads: 16, kv_heads: 16, head_size: 80 };
    vec![
        shape(name, smol),
        shape("SigLIP so400m, 13 tiles", so400m),
        shape(QWEN_VISION.name, qwen),
        shape(QWEN_VISION.name, turned),
        shape(name, Work::PixelShuffle { pictures, patches, width: hidden, factor: 4 }),
        shape(name, Work::Splice { tokens: 2048, width: TEXTS[0].hidden, features: merged }),
    ]
}
