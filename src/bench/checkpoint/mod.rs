//! Checkpoint folders of the sizes of real models, with random weights and a tokenizer of numbered words: for measurements where no published
//! weights are at hand. transformers loads them as well.

mod tokenizer;

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::vlm::Vlm;
use crate::models::weights::Weights;
use crate::tensor::DType;

/// What tells models apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ModelShape {
    pub name: &'static str,
    pub text: Tower,
    pub kv_heads: usize,
    /// Without layers: it takes no pictures.
    pub vision: Tower,
    /// Side of a tile: SmolVLM. 0: pictures are left whole: Qwen2-VL.
    pub image_size: usize,
    pub patch_size: usize,
    /// Patches along a side of the square that becomes a token.
    pub merge: usize,
    pub vocabulary: usize,
    /// The embedding is the head.
    pub tied: bool,
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

const SMOLVLM: ModelShape = ModelShape {
    name: "smolvlm",
    text: tower(0, 0, 1, 0),
    kv_heads: 1,
    vision: tower(768, 12, 12, 3072),
    image_size: 512,
    patch_size: 16,
    merge: 4,
    vocabulary: 49_280,
    tied: false,
};

const QWEN2_VL: ModelShape = ModelShape {
    name: "qwen2-vl",
    vision: tower(1280, 32, 16, 5120),
    image_size: 0,
    patch_size: 14,
    merge: 2,
    vocabulary: 151_936,
    ..SMOLVLM
};

/// HuggingFaceTB/SmolVLM-*-Instruct, its text tower alone (SmolLM2), and Qwen/Qwen2-VL-*-Instruct; the tiny ones are for tests.
pub const MODELS: [ModelShape; 8] = [
    ModelShape {
        name: "tiny",
        text: tower(64, 2, 4, 96),
        kv_heads: 2,
        vision: tower(32, 1, 2, 64),
        image_size: 64,
        patch_size: 8,
        ..SMOLVLM
    },
    ModelShape {
        name: "smollm2-135m",
        text: tower(576, 30, 9, 1536),
        kv_heads: 3,
        vision: tower(0, 0, 1, 0),
        vocabulary: 49_152,
        tied: true,
        ..SMOLVLM
    },
    ModelShape { name: "smolvlm-256m", text: tower(576, 30, 9, 1536), kv_heads: 3, ..SMOLVLM },
    ModelShape { name: "smolvlm-500m", text: tower(960, 32, 15, 2560), kv_heads: 5, ..SMOLVLM },
    ModelShape {
        name: "smolvlm-2.2b",
        text: tower(2048, 24, 32, 8192),
        kv_heads: 32,
        vision: tower(1152, 27, 16, 4304),
        image_size: 384,
        patch_size: 14,
        merge: 3,
        ..SMOLVLM
    },
    ModelShape {
        name: "qwen2-vl-tiny",
        text: tower(64, 2, 4, 96),
        kv_heads: 2,
        vision: tower(32, 1, 2, 128),
        tied: true,
        vocabulary: 2048,
        ..QWEN2_VL
    },
    ModelShape { name: "qwen2-vl-2b", text: tower(1536, 28, 12, 8960), kv_heads: 2, tied: true, ..QWEN2_VL },
    ModelShape {
        name: "qwen2-vl-7b",
        text: tower(3584, 28, 28, 18_944),
        kv_heads: 4,
        vocabulary: 152_064,
        ..QWEN2_VL
    },
];

/// Rows and columns of the largest grid of tiles.
const GRID: usize = 4;
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
const QWEN_SPECIAL: [&str; 7] =
    ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"];
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
        let special = self.special();
        let files = [
            ("config.json", self.config()),
            ("generation_config.json", ids),
            ("preprocessor_config.json", self.preprocessor(split)),
            ("processor_config.json", self.processor()),
            ("tokenizer.json", tokenizer::tokenizer(&special)),
            (
                "tokenizer_config.json",
                json!({
                    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, "padding_side": "left",
                    "clean_up_tokenization_spaces": false, "bos_token": special[2], "eos_token": special[END],
                    "pad_token": special[1], "unk_token": special[0],
                    "additional_special_tokens": [special[4], special[IMAGE], special[END]],
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
        let picture = if self.is_whole() { "<|vision_start|><|image_pad|><|vision_end|>" } else { "<image>" };
        let template = TEMPLATE.replace("<image>", picture).replace("<end_of_utterance>", special[END]);
        write("chat_template.jinja", &template)
    }

    /// Pictures have any size: Qwen2-VL.
    fn is_whole(&self) -> bool {
        self.image_size == 0
    }

    fn special(&self) -> [&'static str; 7] {
        if self.is_whole() { QWEN_SPECIAL } else { SPECIAL }
    }

    fn processor(&self) -> Value {
        if self.is_whole() {
            return json!({"processor_class": "Qwen2VLProcessor"});
        }
        let side = self.image_size / self.patch_size / self.merge;
        json!({"image_seq_len": side * side, "processor_class": "Idefics3Processor"})
    }

    fn qwen_config(&self) -> Value {
        let (text, vision) = (self.text, self.vision);
        let eighth = text.hidden / text.heads / 8;
        json!({
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            "hidden_size": text.hidden, "intermediate_size": text.intermediate, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "num_key_value_heads": self.kv_heads, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "max_position_embeddings": POSITIONS,
            "vocab_size": self.vocabulary, "bos_token_id": 2, "eos_token_id": END, "pad_token_id": 1,
            "image_token_id": IMAGE, "video_token_id": self.vocabulary - 1, "vision_start_token_id": 4,
            "vision_end_token_id": 5, "use_sliding_window": false, "tie_word_embeddings": self.tied,
            "rope_scaling": {"type": "mrope", "mrope_section": [eighth, 3 * eighth / 2, 4 * eighth - eighth - 3 * eighth / 2]},
            "torch_dtype": "bfloat16",
            "vision_config": {
                "depth": vision.layers, "embed_dim": vision.hidden, "hidden_size": text.hidden, "in_channels": 3,
                "mlp_ratio": vision.intermediate / vision.hidden, "num_heads": vision.heads, "patch_size": self.patch_size,
                "spatial_merge_size": self.merge, "temporal_patch_size": 2,
            },
        })
    }

    fn config(&self) -> Value {
        if self.is_whole() {
            self.qwen_config()
        } else if self.vision.layers == 0 {
            self.text_config()
        } else {
            self.smolvlm_config()
        }
    }

    fn text_config(&self) -> Value {
        let text = self.text;
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama", "hidden_size": text.hidden, "intermediate_size": text.intermediate,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": text.hidden / text.heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100_000,
            "max_position_embeddings": POSITIONS, "vocab_size": self.vocabulary, "bos_token_id": 2, "eos_token_id": END,
            "pad_token_id": 1, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        })
    }

    fn smolvlm_config(&self) -> Value {
        let vision = self.vision;
        json!({
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "image_token_id": IMAGE,
            "scale_factor": self.merge,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "text_config": self.text_config(),
            "vision_config": {
                "model_type": "idefics3", "hidden_size": vision.hidden, "intermediate_size": vision.intermediate,
                "num_hidden_layers": vision.layers, "num_attention_heads": vision.heads, "num_channels": 3,
                "image_size": self.image_size, "patch_size": self.patch_size, "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
        })
    }

    fn preprocessor(&self, split: bool) -> Value {
        if self.is_whole() {
            // The paper's bounds.
            return json!({
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
                "patch_size": self.patch_size, "merge_size": self.merge, "temporal_patch_size": 2,
                "min_pixels": 128 * 28 * 28, "max_pixels": 512 * 28 * 28,
            });
        }
        json!({
            "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
            "do_convert_rgb": true, "do_image_splitting": split, "do_normalize": true, "do_pad": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 1,
            "max_image_size": {"longest_edge": self.image_size}, "rescale_factor": 1.0 / 255.0,
            "size": {"longest_edge": GRID * self.image_size},
        })
    }
}
