//! Configurations and weights of checkpoint folders: what is read, and that nothing wrong passes.
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use mpa::error::{Error, Result};
use mpa::models::config::{Config, TextConfig, VisionConfig};
use mpa::models::weights::{Weights, save};
use mpa::tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

fn smolvlm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm")
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn read(config: &Value) -> Result<Config> {
    Config::read(folder(&[("config.json", config.to_string().as_bytes())]).path())
}

/// What the error says, having checked that it is the user's mistake.
#[track_caller]
fn complaint<T>(result: Result<T>) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

/// A small configuration that is right, for faults to be planted in.
fn small() -> Value {
    json!({
        "model_type": "smolvlm", "image_token_id": 9, "scale_factor": 2,
        "text_config": {"hidden_size": 12, "num_attention_heads": 3, "vocab_size": 10, "eos_token_id": 1},
        "vision_config": {"hidden_size": 8, "num_attention_heads": 2, "image_size": 8, "patch_size": 2},
    })
}

fn planted(pointer: &str, value: Value) -> Value {
    let mut config = small();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}

#[test]
fn the_golden_config_is_read_whole() {
    let want = Config {
        text: TextConfig {
            hidden_size: 64,
            intermediate_size: 112,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_size: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 1e5,
            max_positions: 2048,
            vocab_size: 440,
            tie_word_embeddings: false,
        },
        vision: VisionConfig {
            hidden_size: 48,
            intermediate_size: 96,
            layers: 2,
            heads: 3,
            image_size: 48,
            patch_size: 6,
            layer_norm_eps: 1e-6,
        },
        image_token_id: 438,
        scale_factor: 4,
        eos_token_ids: vec![439],
    };
    let got = Config::read(&smolvlm()).unwrap();
    assert_eq!(got, want);
    assert_eq!(got.tile_tokens(), 4);
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let got = read(&json!({"model_type": "idefics3", "image_token_id": 5, "scale_factor": 7})).unwrap();
    let text = TextConfig {
        hidden_size: 4096,
        intermediate_size: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_size: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        max_positions: 2048,
        vocab_size: 32_000,
        tie_word_embeddings: false,
    };
    let vision = VisionConfig {
        hidden_size: 1152,
        intermediate_size: 3072,
        layers: 12,
        heads: 16,
        image_size: 224,
        patch_size: 32,
        layer_norm_eps: 1e-6,
    };
    assert_eq!(got, Config { text, vision, image_token_id: 5, scale_factor: 7, eos_token_ids: vec![2] });
}

#[test]
fn a_tile_may_have_pixels_beyond_its_last_whole_patch() {
    // SmolVLM-2.2B: tiles of 384 pixels, patches of 14, pixel shuffle 3.
    let mut config = small();
    config["scale_factor"] = json!(3);
    config["vision_config"] = json!({"image_size": 384, "patch_size": 14});
    assert_eq!(read(&config).unwrap().tile_tokens(), 81);
}

#[test]
fn keys_of_newer_and_older_configurations_are_honoured() {
    let rope = json!({"rope_type": "default", "rope_theta": 273768.0});
    assert_eq!(read(&planted("/text_config/rope_parameters", rope)).unwrap().text.rope_theta, 273_768.0);
    assert!(read(&planted("/tie_word_embeddings", json!(true))).unwrap().text.tie_word_embeddings);
    assert!(
        read(&planted("/text_config/tie_word_embeddings", json!(true))).unwrap().text.tie_word_embeddings
    );
    assert!(read(&planted("/text_config/perceiver_config", json!({"anything": []}))).is_ok());
    assert_eq!(read(&planted("/text_config/head_dim", json!(6))).unwrap().text.head_size, 6);
}

#[test]
fn end_tokens_come_from_the_first_file_that_names_some() {
    let with = |config: &Value, generation: &str| {
        let config = config.to_string();
        Config::read(
            folder(&[("config.json", config.as_bytes()), ("generation_config.json", generation.as_bytes())])
                .path(),
        )
    };
    let mut config = small();
    assert_eq!(with(&config, r#"{"eos_token_id": [3, 4]}"#).unwrap().eos_token_ids, [3, 4]);
    assert_eq!(with(&config, r#"{"eos_token_id": null}"#).unwrap().eos_token_ids, [1]);
    config["eos_token_id"] = json!(7);
    assert_eq!(read(&config).unwrap().eos_token_ids, [7]);
    for wrong in [r#"{"eos_token_id": 10}"#, r#"{"eos_token_id": [1, "2"]}"#, r#"{"eos_token_id": -1}"#] {
        let message = complaint(with(&config, wrong));
        assert!(message.contains("generation_config.json: eos_token_id: expected"), "{message}");
    }
}

#[test]
fn a_config_that_cannot_be_honoured_names_file_key_and_value() {
    let big = 1u64 << 40;
    let cases = [
        ("/model_type", json!("qwen2_vl"), "model_type: expected one of idefics3, smolvlm, got \"qwen2_vl\""),
        ("/model_type", Value::Null, "model_type: expected one of"),
        ("/text_config", json!([]), "text_config: expected an object, got []"),
        (
            "/text_config/model_type",
            json!("mistral"),
            "text_config.model_type: expected llama, got \"mistral\"",
        ),
        ("/text_config/attention_bias", json!(true), "text_config.attention_bias: expected false, got true"),
        ("/text_config/mlp_bias", json!(true), "text_config.mlp_bias: expected false"),
        ("/text_config/mlp_bias", json!(1), "text_config.mlp_bias: expected true or false, got 1"),
        ("/text_config/qk_layer_norms", json!(true), "text_config.qk_layer_norms: expected false"),
        (
            "/text_config/rope_scaling",
            json!({"type": "linear"}),
            "text_config.rope_scaling: expected null, got {",
        ),
        (
            "/text_config/rope_parameters",
            json!({"rope_type": "yarn"}),
            "rope_parameters.rope_type: expected default",
        ),
        ("/text_config/hidden_act", json!("gelu"), "text_config.hidden_act: expected silu, got \"gelu\""),
        ("/vision_config/hidden_act", json!("gelu"), "vision_config.hidden_act: expected gelu_pytorch_tanh"),
        (
            "/vision_config/num_channels",
            json!(1),
            "vision_config.num_channels: expected a whole number from 3 to 3, got 1",
        ),
        (
            "/text_config/hidden_size",
            json!(13),
            "text_config.hidden_size: expected a multiple of num_attention_heads = 3",
        ),
        ("/text_config/hidden_size", json!(0), "text_config.hidden_size: expected a whole number from 1 to"),
        ("/text_config/hidden_size", json!(-4), "text_config.hidden_size: expected a whole number"),
        ("/text_config/hidden_size", json!(12.5), "text_config.hidden_size: expected a whole number"),
        ("/text_config/hidden_size", json!("12"), "text_config.hidden_size: expected a whole number"),
        ("/text_config/hidden_size", json!(big), "text_config.hidden_size: expected a whole number"),
        ("/text_config/hidden_size", json!(9), "text_config.head_dim: expected an even head size"),
        ("/text_config/head_dim", json!(7), "text_config.head_dim: expected an even head size"),
        ("/text_config/head_dim", json!(1 << 18), "text_config.head_dim: expected an even head size"),
        (
            "/text_config/num_key_value_heads",
            json!(2),
            "num_key_value_heads: expected a divisor of num_attention_heads = 3",
        ),
        (
            "/text_config/num_key_value_heads",
            json!(6),
            "num_key_value_heads: expected a whole number from 1 to 3",
        ),
        (
            "/text_config/num_hidden_layers",
            json!(0),
            "text_config.num_hidden_layers: expected a whole number",
        ),
        (
            "/text_config/rms_norm_eps",
            json!(0),
            "text_config.rms_norm_eps: expected a positive number, got 0",
        ),
        ("/text_config/rms_norm_eps", json!(1e300), "text_config.rms_norm_eps: expected a positive number"),
        ("/text_config/rope_theta", json!("1e4"), "text_config.rope_theta: expected a positive number"),
        ("/text_config/vocab_size", json!(9), "image_token_id: expected a whole number from 0 to 8, got 9"),
        (
            "/vision_config/num_attention_heads",
            json!(3),
            "vision_config.hidden_size: expected a multiple of num_attention_heads",
        ),
        (
            "/vision_config/patch_size",
            json!(9),
            "vision_config.patch_size: expected a whole number from 1 to 8",
        ),
        ("/vision_config/patch_size", json!(0), "vision_config.patch_size: expected a whole number"),
        (
            "/scale_factor",
            json!(3),
            "scale_factor: expected a divisor of the 4 patches of a tile's side, got 3",
        ),
        ("/scale_factor", json!(0), "scale_factor: expected a whole number"),
        ("/tie_word_embeddings", json!("no"), "tie_word_embeddings: expected true or false"),
    ];
    assert!(read(&small()).is_ok());
    for (pointer, value, want) in cases {
        let message = complaint(read(&planted(pointer, value.clone())));
        assert!(message.contains("config.json: ") && message.contains(want), "{pointer} {value}: {message}");
    }
    // The default of a missing key may be what does not fit.
    let mut config = small();
    config.as_object_mut().unwrap().remove("image_token_id");
    let message = complaint(read(&config));
    assert!(message.contains("image_token_id") && message.contains("128257"), "{message}");
}

#[test]
fn a_config_file_that_is_not_one_is_an_error() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "not valid JSON"),
        (b"{\"model_type\": ", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b"\xff\xfe{}", "expected UTF-8 text"),
        (&[b'['; 100_000], "not valid JSON"),
    ];
    for (bytes, want) in cases {
        let message = complaint(Config::read(folder(&[("config.json", bytes)]).path()));
        assert!(message.contains("config.json") && message.contains(want), "{message}");
    }
    assert!(complaint(Config::read(folder(&[]).path())).contains("config.json"));
    let nested = tempfile::tempdir().unwrap();
    fs::create_dir(nested.path().join("config.json")).unwrap();
    assert!(complaint(Config::read(nested.path())).contains("expected a file"));
    let huge = tempfile::tempdir().unwrap();
    fs::File::create(huge.path().join("config.json")).unwrap().set_len(1 << 34).unwrap();
    assert!(complaint(Config::read(huge.path())).contains("bytes"));
}

/// Every name of the SmolVLM layout with its shape.
fn smolvlm_names(c: &Config) -> Vec<(String, Vec<usize>)> {
    let (t, v) = (&c.text, &c.vision);
    let patches = v.patches_per_side().pow(2);
    let shuffled = v.hidden_size * c.scale_factor * c.scale_factor;
    let mut names: Vec<(String, Vec<usize>)> = vec![
        ("lm_head.weight".into(), vec![t.vocab_size, t.hidden_size]),
        ("model.text_model.embed_tokens.weight".into(), vec![t.vocab_size, t.hidden_size]),
        ("model.text_model.norm.weight".into(), vec![t.hidden_size]),
        ("model.connector.modality_projection.proj.weight".into(), vec![t.hidden_size, shuffled]),
    ];
    for i in 0..t.layers {
        let (h, q, kv) = (t.hidden_size, t.heads * t.head_size, t.kv_heads * t.head_size);
        let parts = [
            ("input_layernorm", vec![h]),
            ("post_attention_layernorm", vec![h]),
            ("self_attn.q_proj", vec![q, h]),
            ("self_attn.k_proj", vec![kv, h]),
            ("self_attn.v_proj", vec![kv, h]),
            ("self_attn.o_proj", vec![h, q]),
            ("mlp.gate_proj", vec![t.intermediate_size, h]),
            ("mlp.up_proj", vec![t.intermediate_size, h]),
            ("mlp.down_proj", vec![h, t.intermediate_size]),
        ];
        names
            .extend(parts.map(|(part, shape)| (format!("model.text_model.layers.{i}.{part}.weight"), shape)));
    }
    let h = v.hidden_size;
    let mut biased = vec![
        ("embeddings.patch_embedding".to_string(), vec![h, 3, v.patch_size, v.patch_size]),
        ("post_layernorm".to_string(), vec![h]),
    ];
    for i in 0..v.layers {
        let parts = [
            ("layer_norm1", vec![h]),
            ("layer_norm2", vec![h]),
            ("self_attn.q_proj", vec![h, h]),
            ("self_attn.k_proj", vec![h, h]),
            ("self_attn.v_proj", vec![h, h]),
            ("self_attn.out_proj", vec![h, h]),
            ("mlp.fc1", vec![v.intermediate_size, h]),
            ("mlp.fc2", vec![h, v.intermediate_size]),
        ];
        biased.extend(parts.map(|(part, shape)| (format!("encoder.layers.{i}.{part}"), shape)));
    }
    for (name, shape) in biased {
        names.push((format!("model.vision_model.{name}.bias"), vec![shape[0]]));
        names.push((format!("model.vision_model.{name}.weight"), shape));
    }
    names.push(("model.vision_model.embeddings.position_embedding.weight".into(), vec![patches, h]));
    names
}

#[test]
fn all_golden_weights_are_taken() {
    let names = smolvlm_names(&Config::read(&smolvlm()).unwrap());
    let mut weights = Weights::open(&smolvlm()).unwrap();
    let bytes = fs::read(smolvlm().join("model.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape) in &names {
        assert!(weights.contains(name), "{name}");
        let tensor = weights.take(name, shape);
        assert_eq!((tensor.shape(), tensor.dtype()), (shape.as_slice(), DType::F32), "{name}");
        assert_eq!(tensor.bytes(), reference.tensor(name).unwrap().data(), "{name}");
        assert!(!weights.contains(name), "{name}");
    }
    assert_eq!(weights.names(), Vec::<String>::new());
    weights.finish().unwrap();
}

#[test]
fn finish_lists_every_fault_at_once() {
    let bytes = fs::read(smolvlm().join("model.safetensors")).unwrap();
    let mut weights = Weights::open(folder(&[("model.safetensors", &bytes)]).path()).unwrap();
    let mut names = smolvlm_names(&Config::read(&smolvlm()).unwrap());
    let forgotten = names.pop().unwrap().0;
    names[0].1 = vec![440, 63];
    names.push(("model.text_model.extra".into(), vec![2, 3]));
    let tensors: Vec<Tensor> = names.iter().map(|(name, shape)| weights.take(name, shape)).collect();
    assert_eq!((tensors[0].shape(), tensors.last().unwrap().shape()), (&[440, 63][..], &[2, 3][..]));
    assert_eq!(weights.names(), [forgotten.as_str()]);
    let message = complaint(weights.finish());
    for want in [
        "1 missing: model.text_model.extra",
        &format!("1 unused: {forgotten}"),
        "1 of another shape: lm_head.weight: expected [440, 63], got [440, 64]",
    ] {
        assert!(message.contains(want), "{message}");
    }
}

#[test]
fn a_stand_in_is_never_larger_than_the_file() {
    let mut weights = Weights::open(&smolvlm()).unwrap();
    for huge in [vec![1 << 40], vec![usize::MAX, 2], vec![1 << 62, 1 << 62]] {
        assert!(weights.take("missing", &huge).is_empty());
    }
    assert!(complaint(weights.finish()).contains("3 missing: missing, missing, missing"));
}

/// A safetensors file made by the crate, not by us.
fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.to_string(), TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn three_element_types_are_read_and_others_named() {
    let halves: [u8; 4] = [0x80, 0x3f, 0x00, 0xc0];
    let f16: [u8; 4] = [0x00, 0x3c, 0x00, 0xc0];
    let bytes = file(&[
        ("b", Dtype::BF16, &[2], &halves),
        ("h", Dtype::F16, &[1, 2], &f16),
        ("i", Dtype::I64, &[1], &[0; 8]),
        ("j", Dtype::I64, &[1], &[0; 8]),
        ("none", Dtype::F32, &[0, 3], &[]),
    ]);
    let folder = folder(&[("adapter.safetensors", &bytes)]);
    let mut weights = Weights::open_file(&folder.path().join("adapter.safetensors")).unwrap();
    for (name, shape, dtype) in [("b", vec![2], DType::Bf16), ("h", vec![1, 2], DType::F16)] {
        let tensor = weights.take(name, &shape);
        assert_eq!(tensor.dtype(), dtype);
        assert_eq!(tensor.to_f32().f32s().unwrap(), [1.0, -2.0]);
    }
    assert_eq!(weights.take_any("none").unwrap().shape(), [0, 3]);
    let message = complaint(weights.take_any("i"));
    assert!(message.contains("i: expected f32, bf16 or f16, got I64"), "{message}");
    assert!(complaint(weights.take_any("nothing")).contains("no tensor nothing"));
    weights.take("j", &[1]);
    assert!(complaint(weights.finish()).contains("1 not f32, bf16 or f16: j: I64"));
}

#[test]
fn shards_are_one_checkpoint() {
    let index =
        br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    let a = file(&[("a", Dtype::F32, &[1], &1f32.to_le_bytes())]);
    let b = file(&[("b", Dtype::F32, &[1], &2f32.to_le_bytes())]);
    let name = "model.safetensors.index.json";
    let sharded = folder(&[(name, index), ("one.safetensors", &a), ("two.safetensors", &b)]);
    let mut weights = Weights::open(sharded.path()).unwrap();
    assert_eq!(weights.names(), ["a", "b"]);
    assert_eq!(weights.take("b", &[1]).f32s().unwrap(), [2.0]);
    assert_eq!(weights.take("a", &[1]).f32s().unwrap(), [1.0]);
    weights.finish().unwrap();

    let absent = folder(&[(name, index), ("one.safetensors", &a)]);
    assert!(complaint(Weights::open(absent.path())).contains("two.safetensors"));
    let both = file(&[("a", Dtype::F32, &[1], &[0; 4]), ("b", Dtype::F32, &[1], &[0; 4])]);
    let twice = folder(&[(name, index), ("one.safetensors", &a), ("two.safetensors", &both)]);
    assert!(
        complaint(Weights::open(twice.path()))
            .contains("tensor a is both in one.safetensors and in two.safetensors")
    );
    let moved = folder(&[(name, index), ("one.safetensors", &b), ("two.safetensors", &a)]);
    assert!(
        complaint(Weights::open(moved.path()))
            .contains("not there: a in one.safetensors, b in two.safetensors")
    );
    assert!(complaint(Weights::open(folder(&[]).path())).contains("found neither"));
}

#[test]
fn an_index_does_not_lead_out_of_its_folder() {
    for shard in
        ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "", ".", "..", "./a.safetensors", "a/"]
    {
        let index = json!({"weight_map": {"a": shard}}).to_string();
        let message =
            complaint(Weights::open(folder(&[("model.safetensors.index.json", index.as_bytes())]).path()));
        assert!(message.contains("weight_map: a: expected a file in this folder"), "{shard}: {message}");
    }
    for index in ["{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#, "{", ""] {
        let message =
            complaint(Weights::open(folder(&[("model.safetensors.index.json", index.as_bytes())]).path()));
        assert!(message.contains("model.safetensors.index.json"), "{index}: {message}");
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    let good = fs::read(smolvlm().join("model.safetensors")).unwrap();
    let mut longer = good.clone();
    longer.push(0);
    let mut lying = good.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let damaged =
        [&[][..], &good[..7], &good[..1000], &good[..good.len() - 1], &longer, &lying, b"\0\0\0\0\0\0\0\0"];
    for bytes in damaged {
        let message = complaint(Weights::open(folder(&[("model.safetensors", bytes)]).path()));
        assert!(message.contains("model.safetensors: not a valid safetensors file"), "{message}");
    }
}

#[test]
fn what_is_saved_is_read_back_and_has_the_same_bytes_each_time() {
    let mut rng = common::Rng(1);
    let wide = rng.tensor(&[3, 5], 1.0);
    let half = rng.tensor(&[7], 1.0).to_dtype(DType::Bf16);
    let other = rng.tensor(&[2, 2], 1.0).to_dtype(DType::F16);
    let empty = Tensor::zeros(&[0, 4]);
    let named = |order: [usize; 4]| {
        let all = [("z", &wide), ("a\"é", &half), ("m", &other), ("e", &empty)];
        order.map(|i| (all[i].0.to_string(), all[i].1))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    save(&path, &named([0, 1, 2, 3])).unwrap();
    let first = fs::read(&path).unwrap();
    save(&path, &named([3, 1, 0, 2])).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");

    let reference = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(reference.tensor("z").unwrap().data(), wide.bytes());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&first).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let mut weights = Weights::open_file(&path).unwrap();
    for (name, want) in named([0, 1, 2, 3]) {
        let got = weights.take(&name, want.shape());
        assert_eq!((got.dtype(), got.bytes()), (want.dtype(), want.bytes()), "{name}");
    }
    weights.finish().unwrap();
}

#[test]
fn save_reports_what_cannot_be_written() {
    let tensor = Tensor::zeros(&[1]);
    let twice = [("a".to_string(), &tensor), ("a".to_string(), &tensor)];
    let folder = tempfile::tempdir().unwrap();
    let error = save(&folder.path().join("x.safetensors"), &twice).unwrap_err();
    assert!(error.to_string().contains("tensor a is given twice"), "{error}");
    let error = save(&folder.path().join("no/x.safetensors"), &twice[..1]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
