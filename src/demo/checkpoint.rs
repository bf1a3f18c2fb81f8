//! The demo models' folders in the SmolVLM format: sizes, configuration files, first weights, and how a model grows.
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::demo::draw::SIDE;
use crate::demo::vocabulary;
use crate::error::{Error, Result};
use crate::models::weights::{Weights, save};
use crate::random;
use crate::tensor::Tensor;

/// Width of both towers.
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const PATCH: usize = 8;
/// Side of the pixel shuffle.
const SHUFFLE: usize = 2;
const PATCHES: usize = (SIDE / PATCH) * (SIDE / PATCH);

/// Where teacher and student differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub vision_layers: usize,
    pub vision_mlp: usize,
    pub text_layers: usize,
    pub text_mlp: usize,
}

pub const STUDENT: Size = Size { vision_layers: 3, vision_mlp: 256, text_layers: 3, text_mlp: 176 };
pub const TEACHER: Size = Size { vision_layers: 4, vision_mlp: 512, text_layers: 6, text_mlp: 352 };

/// Named weights of a model.
pub type Tensors = BTreeMap<String, Tensor>;

impl Size {
    /// Name and shape of every weight.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        let kv = HIDDEN / HEADS * KV_HEADS;
        let vision = "model.vision_model";
        add(format!("{vision}.embeddings.patch_embedding.weight"), &[HIDDEN, 3, PATCH, PATCH]);
        add(format!("{vision}.embeddings.patch_embedding.bias"), &[HIDDEN]);
        add(format!("{vision}.embeddings.position_embedding.weight"), &[PATCHES, HIDDEN]);
        for layer in 0..self.vision_layers {
            let at = format!("{vision}.encoder.layers.{layer}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                add(format!("{at}.self_attn.{name}.weight"), &[HIDDEN, HIDDEN]);
                add(format!("{at}.self_attn.{name}.bias"), &[HIDDEN]);
            }
            for name in ["layer_norm1", "layer_norm2"] {
                add(format!("{at}.{name}.weight"), &[HIDDEN]);
                add(format!("{at}.{name}.bias"), &[HIDDEN]);
            }
            add(format!("{at}.mlp.fc1.weight"), &[self.vision_mlp, HIDDEN]);
            add(format!("{at}.mlp.fc1.bias"), &[self.vision_mlp]);
            add(format!("{at}.mlp.fc2.weight"), &[HIDDEN, self.vision_mlp]);
            add(format!("{at}.mlp.fc2.bias"), &[HIDDEN]);
        }
        add(format!("{vision}.post_layernorm.weight"), &[HIDDEN]);
        add(format!("{vision}.post_layernorm.bias"), &[HIDDEN]);
        let shuffled = HIDDEN * SHUFFLE * SHUFFLE;
        add("model.connector.modality_projection.proj.weight".into(), &[HIDDEN, shuffled]);
        add("model.text_model.embed_tokens.weight".into(), &[vocabulary::tokens().len(), HIDDEN]);
        for layer in 0..self.text_layers {
            let at = format!("model.text_model.layers.{layer}");
            for (name, rows) in [("q_proj", HIDDEN), ("k_proj", kv), ("v_proj", kv), ("o_proj", HIDDEN)] {
                add(format!("{at}.self_attn.{name}.weight"), &[rows, HIDDEN]);
            }
            add(format!("{at}.mlp.gate_proj.weight"), &[self.text_mlp, HIDDEN]);
            add(format!("{at}.mlp.up_proj.weight"), &[self.text_mlp, HIDDEN]);
            add(format!("{at}.mlp.down_proj.weight"), &[HIDDEN, self.text_mlp]);
            add(format!("{at}.input_layernorm.weight"), &[HIDDEN]);
            add(format!("{at}.post_attention_layernorm.weight"), &[HIDDEN]);
        }
        add("model.text_model.norm.weight".into(), &[HIDDEN]);
        all
    }

    /// config.json.
    fn config(&self) -> Value {
        let vocab = vocabulary::tokens().len();
        json!({
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "image_token_id": vocabulary::IMAGE,
            "scale_factor": SHUFFLE,
            "tie_word_embeddings": true,
            "torch_dtype": "float32",
            "vocab_size": vocab,
            "text_config": {
                "model_type": "llama",
                "hidden_size": HIDDEN,
                "intermediate_size": self.text_mlp,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HIDDEN / HEADS,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000,
                "max_position_embeddings": 128,
                "vocab_size": vocab,
                "bos_token_id": vocabulary::START,
                "eos_token_id": vocabulary::END,
                "pad_token_id": vocabulary::PAD,
                "attention_bias": false,
                "mlp_bias": false,
                "tie_word_embeddings": true,
            },
            "vision_config": {
                "model_type": "idefics3",
                "hidden_size": HIDDEN,
                "intermediate_size": self.vision_mlp,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": HEADS,
                "num_channels": 3,
                "image_size": SIDE,
                "patch_size": PATCH,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
        })
    }
}

/// Random weights of a size: normal, with the standard deviation that keeps activations at their scale.
pub fn fresh(size: Size, seed: u64) -> Result<Tensors> {
    let mut rng = random::stream(seed, &[random::hash("fresh weights")]);
    let mut tensors = Tensors::new();
    for (name, shape) in size.shapes() {
        let len = shape.iter().product();
        let data = if shape.len() == 1 {
            vec![if name.ends_with("bias") { 0.0 } else { 1.0 }; len]
        } else {
            let fan_in: usize = shape[1..].iter().product();
            let deviation = if name.contains("embed_tokens") {
                0.1
            } else if name.contains("position_embedding") {
                0.3
            } else if is_residual_output(&name) {
                0.5 / (fan_in as f32).sqrt()
            } else {
                1.0 / (fan_in as f32).sqrt()
            };
            (0..len).map(|_| deviation * random::normal(&mut rng) as f32).collect()
        };
        tensors.insert(name, Tensor::from_vec(&shape, data)?);
    }
    Ok(tensors)
}

/// The model of `size` that computes what `small` computes: new layers and new MLP columns write zero into the residual stream.
/// New rows and the inner weights of new layers are random, so that training has something to start from.
pub fn grow(small: &Tensors, size: Size, seed: u64) -> Result<Tensors> {
    let mut grown = fresh(size, seed)?;
    for (name, tensor) in &mut grown {
        match small.get(name) {
            Some(old) => copy_block(tensor, old, is_residual_output(name))?,
            None if is_residual_output(name) => *tensor = Tensor::zeros(tensor.shape()),
            None => {}
        }
    }
    match small.keys().find(|name| !grown.contains_key(*name)) {
        Some(name) => {
            Err(Error::op("grow", "a size that holds the small model", format!("no room for {name}")))
        }
        None => Ok(grown),
    }
}

/// Weights whose product is added to the residual stream.
fn is_residual_output(name: &str) -> bool {
    ["o_proj.weight", "out_proj.weight", "fc2.weight", "down_proj.weight"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Copies `old` into the first rows and columns of `new`; `zero` clears what it does not cover.
fn copy_block(new: &mut Tensor, old: &Tensor, zero: bool) -> Result<()> {
    let (rows, cols, width) = (old.rows(), old.cols(), new.cols());
    if new.shape().len() != old.shape().len() || rows > new.rows() || cols > width {
        return Err(Error::op("grow", format!("at most {:?}", new.shape()), format!("{:?}", old.shape())));
    }
    let old = old.to_f32()?;
    let (from, to) = (old.f32s()?, new.f32s_mut()?);
    if zero {
        to.fill(0.0);
    }
    for (row, line) in from.chunks_exact(cols).enumerate() {
        to[row * width..row * width + cols].copy_from_slice(line);
    }
    Ok(())
}

/// The weights of a folder.
pub fn read(folder: &Path) -> Result<Tensors> {
    let mut weights = Weights::open(folder)?;
    let mut tensors = Tensors::new();
    for name in weights.names() {
        let tensor = weights.take_any(&name)?;
        tensors.insert(name, tensor);
    }
    weights.finish()?;
    Ok(tensors)
}

/// Writes a whole checkpoint folder.
pub fn write(folder: &Path, size: Size, tensors: &Tensors) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let files = [
        ("config.json", size.config()),
        ("generation_config.json", generation_config()),
        ("preprocessor_config.json", preprocessor_config()),
        ("processor_config.json", processor_config()),
        ("tokenizer.json", vocabulary::tokenizer()),
        ("tokenizer_config.json", vocabulary::tokenizer_config()),
    ];
    for (name, value) in files {
        write_text(&folder.join(name), &format!("{value:#}\n"))?;
    }
    write_text(&folder.join("chat_template.jinja"), vocabulary::CHAT_TEMPLATE)?;
    let named: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    save(&folder.join("model.safetensors"), &named)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}

fn generation_config() -> Value {
    json!({
        "do_sample": false,
        "bos_token_id": vocabulary::START,
        "eos_token_id": vocabulary::END,
        "pad_token_id": vocabulary::PAD,
    })
}

fn processor_config() -> Value {
    let side = SIDE / PATCH / SHUFFLE;
    json!({"image_seq_len": side * side, "processor_class": "Idefics3Processor"})
}

/// A picture of SIDE x SIDE stays itself: one tile.
fn preprocessor_config() -> Value {
    json!({
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_convert_rgb": true,
        "do_image_splitting": false,
        "do_normalize": true,
        "do_pad": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": SIDE},
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": SIDE},
    })
}
