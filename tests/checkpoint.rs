//! Weights of checkpoint folders: what is taken and saved, and that nothing wrong passes.
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use mpa::error::{Error, Result};
use mpa::models::config::Config;
use mpa::models::weights::{Weights, save};
use mpa::tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
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

/// Every name of the SmolVLM layout with its shape.
fn smolvlm_names(c: &Config) -> Vec<(String, Vec<usize>)> {
    let (t, v) = (&c.text, c.vision.as_ref().unwrap());
    let patches = v.tile_patches();
    let shuffled = v.hidden_size * v.merge * v.merge;
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
        assert_eq!(tensor.bytes().unwrap(), reference.tensor(name).unwrap().data(), "{name}");
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
        assert_eq!(tensor.to_f32().unwrap().f32s().unwrap(), [1.0, -2.0]);
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
    let half = rng.tensor(&[7], 1.0).to_dtype(DType::Bf16).unwrap();
    let other = rng.tensor(&[2, 2], 1.0).to_dtype(DType::F16).unwrap();
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
    assert_eq!(reference.tensor("z").unwrap().data(), wide.bytes().unwrap());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&first).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let mut weights = Weights::open_file(&path).unwrap();
    for (name, want) in named([0, 1, 2, 3]) {
        let got = weights.take(&name, want.shape());
        assert_eq!((got.dtype(), got.bytes().unwrap()), (want.dtype(), want.bytes().unwrap()), "{name}");
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
