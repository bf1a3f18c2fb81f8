//! Checkpoint folders of the sizes of real models, with random weights and a tokenizer of numbered words: for measurements where no published
//! weights are at hand. transformers loads them as well.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::vlm::Vlm;
use crate::models::weights::Weights;
use crate::tensor::DType;

/// What tells the models of the SmolVLM family apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ModelShape {
    pub name: &'static str,
    pub text: Tower,
    pub kv_heads: usize,
    pub vision: Tower,
    pub image_size: usize,
    pub patch_size: usize,
    /// Side of the pixel shuffle.
    pub shuffle: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tower {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
}

const fn tower(hidden: usize, layers: usize, heads: usize, intermediate: usize) -> Tower {
    Tower { hidden, layers, heads, intermediate }
}

/// HuggingFaceTB/SmolVLM-*-Instruct; `tiny` is for tests.
pub const MODELS: [ModelShape; 4] = [
    ModelShape {
        name: "tiny",
        text: tower(64, 2, 4, 96),
        kv_heads: 2,
        vision: tower(32, 1, 2, 64),
        image_size: 64,
        patch_size: 8,
        shuffle: 4,
    },
    ModelShape {
        name: "smolvlm-256m",
        text: tower(576, 30, 9, 1536),
        kv_heads: 3,
        vision: tower(768, 12, 12, 3072),
        image_size: 512,
        patch_size: 16,
        shuffle: 4,
    },
    ModelShape {
        name: "smolvlm-500m",
        text: tower(960, 32, 15, 2560),
        kv_heads: 5,
        vision: tower(768, 12, 12, 3072),
        image_size: 512,
        patch_size: 16,
        shuffle: 4,
    },
    ModelShape {
        name: "smolvlm-2.2b",
        text: tower(2048, 24, 32, 8192),
        kv_heads: 32,
        vision: tower(1152, 27, 16, 4304),
        image_size: 384,
        patch_size: 14,
        shuffle: 3,
    },
];

/// Rows and columns of the largest grid of tiles.
const GRID: usize = 4;
const VOCABULARY: usize = 49280;
const POSITIONS: usize = 8192;
const SPECIAL: [&str; 7] = [
    "<unk>",
    "<pad>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
];
const END: usize = 3;
const IMAGE: usize = 6;
/// Words `w0`, `w1`, ... that are a token each.
pub const WORDS: usize = 1000;

/// As SmolVLM's.
const TEMPLATE: &str = concat!(
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}",
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}",
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}",
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n",
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
);

impl ModelShape {
    pub fn find(name: &str) -> Result<ModelShape> {
        let names: Vec<&str> = MODELS.iter().map(|m| m.name).collect();
        let found = MODELS.into_iter().find(|m| m.name == name);
        found.ok_or_else(|| Error::Usage(format!("--shape {name}: expected {}", names.join(", "))))
    }

    /// A model with random weights of `dtype` that are a function of `seed`; `folder` gets its settings, and no weights. `split`: pictures become
    /// a grid of tiles and one more, not one tile.
    pub fn build(&self, folder: &Path, split: bool, dtype: DType, seed: u64) -> Result<Vlm> {
        self.write_settings(folder, split)?;
        Vlm::with_weights(folder.to_path_buf(), Weights::random(folder, dtype, seed))
    }

    fn write_settings(&self, folder: &Path, split: bool) -> Result<()> {
        let ids = json!({"bos_token_id": 2, "eos_token_id": END, "pad_token_id": 1});
        let side = self.image_size / self.patch_size / self.shuffle;
        let files = [
            ("config.json", self.config()),
            ("generation_config.json", ids),
            ("preprocessor_config.json", self.preprocessor(split)),
            (
                "processor_config.json",
                json!({"image_seq_len": side * side, "processor_class": "Idefics3Processor"}),
            ),
            ("tokenizer.json", tokenizer()),
            (
                "tokenizer_config.json",
                json!({
                    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, "padding_side": "left",
                    "clean_up_tokenization_spaces": false, "bos_token": SPECIAL[2], "eos_token": SPECIAL[END],
                    "pad_token": SPECIAL[1], "unk_token": SPECIAL[0],
                    "additional_special_tokens": [SPECIAL[4], SPECIAL[IMAGE], SPECIAL[END]],
                }),
            ),
        ];
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| Error::io(&path, e))
        };
        for (name, value) in files {
            write(name, &format!("{value:#}\n"))?;
        }
        write("chat_template.jinja", TEMPLATE)
    }

    fn config(&self) -> Value {
        let (text, vision) = (self.text, self.vision);
        json!({
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "image_token_id": IMAGE,
            "scale_factor": self.shuffle,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "vocab_size": VOCABULARY,
            "text_config": {
                "model_type": "llama", "hidden_size": text.hidden, "intermediate_size": text.intermediate,
                "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "num_key_value_heads": self.kv_heads,
                "head_dim": text.hidden / text.heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100_000,
                "max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": END,
                "pad_token_id": 1, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false,
            },
            "vision_config": {
                "model_type": "idefics3", "hidden_size": vision.hidden, "intermediate_size": vision.intermediate,
                "num_hidden_layers": vision.layers, "num_attention_heads": vision.heads, "num_channels": 3,
                "image_size": self.image_size, "patch_size": self.patch_size, "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
        })
    }

    fn preprocessor(&self, split: bool) -> Value {
        json!({
            "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
            "do_convert_rgb": true, "do_image_splitting": split, "do_normalize": true, "do_pad": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1,
            "max_image_size": {"longest_edge": self.image_size}, "rescale_factor": 1.0 / 255.0,
            "size": {"longest_edge": GRID * self.image_size},
        })
    }
}

/// Whole words with the blank before them.
fn tokenizer() -> Value {
    let places = (1..=GRID).flat_map(|row| (1..=GRID).map(move |col| format!("<row_{row}_col_{col}>")));
    let special: Vec<String> = SPECIAL.map(String::from).into_iter().chain(places).collect();
    let words = ["User:", "User", ":", "\nAssistant:", "Assistant:"].map(String::from).into_iter();
    let words = words.chain((0..WORDS).map(|i| format!(" w{i}")));
    let vocabulary: Map<String, Value> =
        special.iter().cloned().chain(words).enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added = |(id, content): (usize, &String)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": r"[ \n]?[^\s:]+:?|\s"}, "behavior": "Isolated", "invert": false,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": SPECIAL[0]},
    })
}
