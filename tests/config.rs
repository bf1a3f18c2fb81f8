//! Configurations of checkpoint folders: what is read, and that nothing wrong passes.
use std::fs;
use std::path::{Path, PathBuf};

use mpa::error::Result;
use mpa::models::config::{Config, TextConfig, VisionConfig};
use mpa::models::family::Family;
use mpa::ops::gelu::Kind;
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

/// What the error says, having checked that it is the user's mistake.
#[track_caller]
fn complaint<T>(result: Result<T>) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn read(config: &Value) -> Result<Config> {
    Config::read(folder(&[("config.json", config.to_string().as_bytes())]).path())
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
        family: Family::Idefics3,
        text: TextConfig {
            hidden_size: 64,
            intermediate_size: 112,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_size: 16,
            qkv_bias: false,
            rms_norm_eps: 1e-5,
            rope_theta: 1e5,
            mrope: None,
            max_positions: 2048,
            vocab_size: 440,
            tie_word_embeddings: false,
        },
        vision: Some(VisionConfig {
            hidden_size: 48,
            intermediate_size: 96,
            layers: 2,
            heads: 3,
            tile: Some(48),
            patch_size: 6,
            frames: 1,
            merge: 4,
            activation: Kind::Tanh,
            layer_norm_eps: 1e-6,
            image_token_id: 438,
        }),
        eos_token_ids: vec![439],
    };
    let got = Config::read(&smolvlm()).unwrap();
    assert_eq!(got, want);
    assert_eq!(got.vision.unwrap().tile_tokens(), 4);
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let got =
        read(&json!({"model_type": "idefics3", "image_token_id": 5, "scale_factor": 7, "text_config": {}}))
            .unwrap();
    let text = TextConfig {
        hidden_size: 4096,
        intermediate_size: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_size: 128,
        qkv_bias: false,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        mrope: None,
        max_positions: 2048,
        vocab_size: 32_000,
        tie_word_embeddings: false,
    };
    let vision = VisionConfig {
        hidden_size: 1152,
        intermediate_size: 3072,
        layers: 12,
        heads: 16,
        tile: Some(224),
        patch_size: 32,
        frames: 1,
        merge: 7,
        activation: Kind::Tanh,
        layer_norm_eps: 1e-6,
        image_token_id: 5,
    };
    let family = Family::Idefics3;
    assert_eq!(got, Config { family, text, vision: Some(vision), eos_token_ids: vec![2] });
    // Without any text_config, Idefics3Config makes one of its own.
    let got = read(&json!({"model_type": "idefics3", "image_token_id": 5, "scale_factor": 7})).unwrap();
    assert_eq!(got.text.rms_norm_eps, 1e-5);
}

/// Qwen2-VL-2B's, as published but for what is the default.
fn qwen2_vl() -> Value {
    json!({
        "model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 151_936,
        "tie_word_embeddings": true, "use_sliding_window": false, "sliding_window": 32_768, "eos_token_id": 151_645,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"hidden_size": 1536, "in_chans": 3, "spatial_patch_size": 14},
    })
}

#[test]
fn qwen2_vl_is_read_as_published_and_as_transformers_5_writes_it() {
    let got = read(&qwen2_vl()).unwrap();
    let text = TextConfig {
        hidden_size: 1536,
        intermediate_size: 8960,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        head_size: 128,
        qkv_bias: true,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        mrope: Some([16, 24, 24]),
        max_positions: 32_768,
        vocab_size: 151_936,
        tie_word_embeddings: true,
    };
    let vision = VisionConfig {
        hidden_size: 1280,
        intermediate_size: 5120,
        layers: 32,
        heads: 16,
        tile: None,
        patch_size: 14,
        frames: 2,
        merge: 2,
        activation: Kind::Quick,
        layer_norm_eps: 1e-6,
        image_token_id: 151_655,
    };
    let want = Config { family: Family::Qwen2Vl, text, vision: Some(vision), eos_token_ids: vec![151_645] };
    assert_eq!(got, want);

    let mut text = qwen2_vl();
    let keys = text.as_object_mut().unwrap();
    let vision = keys.remove("vision_config").unwrap();
    keys.remove("rope_scaling");
    keys.insert("model_type".into(), json!("qwen2_vl_text"));
    let rope = json!({"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]});
    keys.insert("rope_parameters".into(), rope);
    let nested = json!({
        "model_type": "qwen2_vl", "tie_word_embeddings": true, "text_config": text, "vision_config": vision,
    });
    assert_eq!(read(&nested).unwrap(), want);
    // As earlier transformers wrote it: either of the two ties.
    let mut older = nested.clone();
    older["tie_word_embeddings"] = json!(false);
    older["text_config"]["tie_word_embeddings"] = json!(true);
    assert_eq!(read(&older).unwrap(), want);
}

#[test]
fn what_qwen2_vl_does_not_compute_here_is_an_error() {
    let cases = [
        ("/use_sliding_window", json!(true), "use_sliding_window: expected false"),
        ("/rope_scaling/mrope_section", json!([16, 24]), "mrope_section: expected 3 lengths"),
        ("/rope_scaling/mrope_section", json!([16, 24, 25]), "half the head size, 64"),
        ("/rope_scaling/mrope_section", json!(null), "mrope_section: expected 3 lengths"),
        ("/rope_scaling/type", json!("yarn"), "rope_scaling.type: expected mrope"),
        ("/vision_config/hidden_act", json!("gelu"), "vision_config.hidden_act: expected quick_gelu"),
        ("/vision_config/num_heads", json!(7), "vision_config.embed_dim: expected a multiple"),
        ("/vision_config/embed_dim", json!(32), "vision_config.num_heads: expected heads of a size"),
        ("/vision_config/mlp_ratio", json!(1 << 18), "vision_config.mlp_ratio: expected a whole number"),
        ("/image_token_id", json!(151_936), "image_token_id: expected a whole number from 0 to 151935"),
    ];
    for (pointer, value, want) in cases {
        let mut config = qwen2_vl();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        let message = complaint(read(&config));
        assert!(message.contains(want), "{pointer}: {message}");
    }
}

#[test]
fn a_text_model_has_its_keys_at_the_top_and_no_vision() {
    let got = read(&json!({
        "model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49_152, "rope_theta": 1e5, "tie_word_embeddings": true,
    }))
    .unwrap();
    assert_eq!((got.family, got.vision), (Family::Llama, None));
    assert_eq!((got.text.head_size, got.text.rope_theta, got.text.qkv_bias), (64, 1e5, false));
}

#[test]
fn a_tile_may_have_pixels_beyond_its_last_whole_patch() {
    // SmolVLM-2.2B: tiles of 384 pixels, patches of 14, pixel shuffle 3.
    let mut config = small();
    config["scale_factor"] = json!(3);
    config["vision_config"] = json!({"image_size": 384, "patch_size": 14});
    assert_eq!(read(&config).unwrap().vision.unwrap().tile_tokens(), 81);
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
        (
            "/model_type",
            json!("internvl"),
            "model_type: expected a family that this binary knows (idefics3, smolvlm, qwen2_vl, llama), got \"internvl\"",
        ),
        ("/model_type", Value::Null, "model_type: expected a family"),
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
