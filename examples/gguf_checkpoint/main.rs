//! Writes a text-only checkpoint folder in the layout of transformers (model_type llama, f32) from a GGUF file of the Llama family with a
//! tokenizer of SmolLM's kind: used by scripts/real-text-tower.
//!
//!     cargo run --release --example gguf_checkpoint -- MODEL.gguf OUT
mod gguf;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use mpa::models::weights;
use mpa::tensor::Tensor;
use serde_json::{Value as Json, json};

use gguf::{Gguf, Value};

/// GGUF's names of a block's tensors, and transformers'.
const BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn main() -> ExitCode {
    match convert() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("gguf_checkpoint: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn convert() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = args.as_slice() else { anyhow::bail!("usage: gguf_checkpoint MODEL.gguf OUT") };
    let file = std::fs::read(from).with_context(|| from.clone())?;
    let gguf = Gguf::parse(&file).with_context(|| from.clone())?;
    let architecture = gguf.text("general.architecture")?;
    ensure!(architecture == "llama", "architecture {architecture}, expected llama");
    let to = Path::new(to);
    std::fs::create_dir_all(to)?;
    let write = |name: &str, json: &Json| std::fs::write(to.join(name), format!("{json:#}\n"));
    write("config.json", &config(&gguf)?)?;
    write("tokenizer.json", &tokenizer(&gguf)?)?;
    write("tokenizer_config.json", &tokenizer_config(&gguf)?)?;
    let tensors = tensors(&gguf)?;
    let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, t)| (name.clone(), t)).collect();
    Ok(weights::save(&to.join("model.safetensors"), &borrowed)?)
}

fn config(gguf: &Gguf) -> Result<Json> {
    let int = |key: &str| gguf.int(&format!("llama.{key}"));
    // A number that was kept as f32, in its shortest decimal form.
    let short =
        |key: &str| -> Result<f64> { Ok((gguf.float(&format!("llama.{key}"))? as f32).to_string().parse()?) };
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": int("embedding_length")?,
        "intermediate_size": int("feed_forward_length")?,
        "num_hidden_layers": int("block_count")?,
        "num_attention_heads": int("attention.head_count")?,
        "num_key_value_heads": int("attention.head_count_kv")?,
        "max_position_embeddings": int("context_length")?,
        "rms_norm_eps": short("attention.layer_norm_rms_epsilon")?,
        "rope_theta": short("rope.freq_base")?,
        "vocab_size": gguf.list("tokenizer.ggml.tokens")?.len(),
        "tie_word_embeddings": !gguf.tensors.contains_key("output.weight"),
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": gguf.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.int("tokenizer.ggml.eos_token_id")?,
        "torch_dtype": "float32",
    }))
}

/// Byte-level BPE as transformers' own reader of GGUF makes it, whose perplexities are the ones to compare with. (SmolLM2's published tokenizer
/// cuts digits apart first, which GGUF notes by "smollm" alone: here they mostly are single tokens as well, but not after a space.)
fn tokenizer(gguf: &Gguf) -> Result<Json> {
    let kind = (gguf.text("tokenizer.ggml.model")?, gguf.text("tokenizer.ggml.pre")?);
    ensure!(kind == ("gpt2", "smollm"), "a tokenizer of kind {kind:?}, expected gpt2 and smollm");
    let tokens = texts(gguf.list("tokenizer.ggml.tokens")?)?;
    let merges = texts(gguf.list("tokenizer.ggml.merges")?)?;
    let vocabulary: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let added: Vec<Json> = control(gguf)?
        .into_iter()
        .map(|id| {
            json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    }))
}

fn tokenizer_config(gguf: &Gguf) -> Result<Json> {
    let tokens = texts(gguf.list("tokenizer.ggml.tokens")?)?;
    let token = |key: &str| -> Result<Json> {
        let id = gguf.int(&format!("tokenizer.ggml.{key}_token_id"))?;
        Ok(json!(tokens.get(id).with_context(|| format!("no token {id}"))?))
    };
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos")?,
        "eos_token": token("eos")?,
        "chat_template": gguf.text("tokenizer.chat_template")?,
        "clean_up_tokenization_spaces": false,
        "model_max_length": gguf.int("llama.context_length")?,
    }))
}

/// Ids of tokens of type 3: they are no text.
fn control(gguf: &Gguf) -> Result<Vec<usize>> {
    let types = gguf.list("tokenizer.ggml.token_type")?.iter().enumerate();
    Ok(types.filter(|(_, kind)| matches!(kind, Value::Int(3))).map(|(id, _)| id).collect())
}

fn texts(list: &[Value]) -> Result<Vec<&str>> {
    let mut texts = Vec::with_capacity(list.len());
    for value in list {
        let Value::Text(text) = value else { anyhow::bail!("a list of texts has something else in it") };
        texts.push(text.as_str());
    }
    Ok(texts)
}

fn tensors(gguf: &Gguf) -> Result<Vec<(String, Tensor)>> {
    let mut left: Vec<&String> = gguf.tensors.keys().collect();
    let mut tensors = Vec::new();
    let mut take = |from: &str, to: String, heads: Option<usize>| -> Result<()> {
        let (shape, mut data) = gguf.decode(from)?;
        if let Some(heads) = heads {
            data = unpaired(&data, shape[0], heads)?;
        }
        left.retain(|name| *name != from);
        tensors.push((to, Tensor::from_vec(&shape, data)?));
        Ok(())
    };
    take("token_embd.weight", "model.embed_tokens.weight".into(), None)?;
    take("output_norm.weight", "model.norm.weight".into(), None)?;
    if gguf.tensors.contains_key("output.weight") {
        take("output.weight", "lm_head.weight".into(), None)?;
    }
    let (heads, kv_heads) =
        (gguf.int("llama.attention.head_count")?, gguf.int("llama.attention.head_count_kv")?);
    for i in 0..gguf.int("llama.block_count")? {
        for (from, to) in BLOCK {
            let heads = match from {
                "attn_q" => Some(heads),
                "attn_k" => Some(kv_heads),
                _ => None,
            };
            take(&format!("blk.{i}.{from}.weight"), format!("model.layers.{i}.{to}.weight"), heads)?;
        }
    }
    ensure!(left.is_empty(), "tensors that are not used: {left:?}");
    Ok(tensors)
}

/// GGUF has the two rows that a rotation mixes next to each other, transformers half a head apart.
fn unpaired(data: &[f32], rows: usize, heads: usize) -> Result<Vec<f32>> {
    ensure!(heads > 0 && rows.is_multiple_of(2 * heads), "{rows} rows for {heads} heads");
    let (size, width) = (rows / heads, data.len() / rows);
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (head, i) = (row / size, row % size);
        let from = head * size + i % (size / 2) * 2 + i / (size / 2);
        out.extend_from_slice(&data[from * width..(from + 1) * width]);
    }
    Ok(out)
}
