//! int8 folders.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use mpa::models::int8::{self, Parts, ROTATION};
use mpa::models::weights::{Weights, save};
use mpa::quant::Folds;
use mpa::tensor::{DType, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::memory::peak;
use super::models::copy;
use super::{FAMILIES, PARTS, complaint, golden, load, logits, quantized};

fn write(from: &Path, parts: Parts) -> TempDir {
    write_rotated(from, parts, ROTATION)
}

fn write_rotated(from: &Path, parts: Parts, rotation: usize) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    int8::write(&mut load(from), parts, &Folds::new(), rotation, out.path()).unwrap();
    out
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_folder_is_the_model_that_is_quantised_while_it_is_loaded() {
    for family in FAMILIES {
        for parts in PARTS {
            for rotation in [1, 16, ROTATION] {
                let folder = write_rotated(&golden(family), parts, rotation);
                let (stored, mut loaded) = (load(folder.path()), load(&golden(family)));
                loaded.quantize(parts, &Folds::new(), rotation).unwrap();
                let (stored, loaded) = (logits(&stored), logits(&loaded));
                let what = format!("{family}, {parts:?}, {rotation}");
                assert_eq!(stored.f32s().unwrap(), loaded.f32s().unwrap(), "{what}");
            }
        }
    }
}

#[test]
fn a_folder_has_what_compressed_tensors_has() {
    let folder = write_rotated(&golden("smolvlm"), Parts::Text, 1);
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let layer = "model.text_model.layers.0.self_attn.k_proj";
    let (weight, scale) = (
        file.tensor(&format!("{layer}.weight")).unwrap(),
        file.tensor(&format!("{layer}.weight_scale")).unwrap(),
    );
    assert_eq!((weight.dtype(), weight.shape()), (Dtype::I8, &[32, 64][..]));
    assert_eq!((scale.dtype(), scale.shape()), (Dtype::F32, &[32, 1][..]));
    let section = &config(folder.path())["quantization_config"];
    assert_eq!(section["quant_method"], "compressed-tensors");
    assert_eq!(section["format"], "int-quantized");
    let ignored = section["ignore"].as_array().unwrap();
    assert!(ignored.contains(&json!("lm_head")), "{ignored:?}");
    assert!(!ignored.contains(&json!(layer)), "{ignored:?}");
    for name in ["tokenizer.json", "preprocessor_config.json"] {
        assert_eq!(
            fs::read(folder.path().join(name)).unwrap(),
            fs::read(golden("smolvlm").join(name)).unwrap()
        );
    }
}

/// Cuts a checkpoint into `count` shards.
fn shard(from: &Path, to: &Path, count: usize) {
    copy(from, to);
    for entry in fs::read_dir(to).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().contains(".safetensors") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let mut weights = Weights::open(from).unwrap();
    let mut map = BTreeMap::new();
    let mut parts: Vec<Vec<(String, Tensor)>> = (0..count).map(|_| Vec::new()).collect();
    for (i, name) in weights.names().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", i % count));
        parts[i % count].push((name.clone(), weights.take_any(&name).unwrap()));
    }
    for (i, part) in parts.iter().enumerate() {
        let borrowed: Vec<(String, &Tensor)> = part.iter().map(|(n, t)| (n.clone(), t)).collect();
        save(&to.join(format!("model-{i}.safetensors")), &borrowed).unwrap();
    }
    let index = json!({"weight_map": map});
    fs::write(to.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_stay_shards() {
    for family in FAMILIES {
        let sharded = tempfile::tempdir().unwrap();
        shard(&golden(family), sharded.path(), 3);
        let folder = write(sharded.path(), Parts::TextHead);
        assert!(folder.path().join("model-2.safetensors").exists());
        let whole = quantized(&golden(family), Parts::TextHead, &Folds::new());
        let (stored, whole) = (logits(&load(folder.path())), logits(&whole));
        assert_eq!(stored.f32s().unwrap(), whole.f32s().unwrap(), "{family}");
    }
}

/// A text-only checkpoint of the golden tokenizer, random: its shards' sizes are chosen here.
fn llama(to: &Path, layers: usize, width: usize) -> usize {
    copy(&golden("smolvlm"), to);
    let vocab = 440;
    let config = json!({"model_type": "llama", "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab, "eos_token_id": 1, "tie_word_embeddings": true});
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let mut rng = super::Rng(3);
    let mut tensors = BTreeMap::new();
    tensors.insert("model.embed_tokens.weight".to_string(), rng.tensor(&[vocab, width], 0.1));
    tensors.insert("model.norm.weight".to_string(), rng.tensor(&[width], 1.0));
    for i in 0..layers {
        let [c, kv, inner] = [width, width / 2, 2 * width];
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[c]),
            ("post_attention_layernorm", &[c]),
            ("self_attn.q_proj", &[c, c]),
            ("self_attn.k_proj", &[kv, c]),
            ("self_attn.v_proj", &[kv, c]),
            ("self_attn.o_proj", &[c, c]),
            ("mlp.gate_proj", &[inner, c]),
            ("mlp.up_proj", &[inner, c]),
            ("mlp.down_proj", &[c, inner]),
        ];
        for (part, shape) in parts {
            tensors.insert(format!("model.layers.{i}.{part}.weight"), rng.tensor(shape, 0.2));
        }
    }
    let bytes = tensors.values().map(|t| 4 * t.len()).sum();
    let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(n, t)| (n.clone(), t)).collect();
    save(&to.join("model.safetensors"), &borrowed).unwrap();
    bytes
}

/// Of a few tokens, without a picture.
fn text_logits(vlm: &mpa::models::vlm::Vlm) -> Tensor {
    let prompt = mpa::models::vlm::Prompt { ids: &[5, 7, 100, 3], features: Vec::new() };
    vlm.text.logits(vlm.states(&prompt, &[]).unwrap(), mpa::models::linear::Pass::Infer).unwrap().0
}

#[test]
fn memory_does_not_grow_with_the_shards() {
    let plain = tempfile::tempdir().unwrap();
    let width = 512;
    let bytes = llama(plain.path(), 6, width);
    let mut vlm = load(plain.path());
    let out = tempfile::tempdir().unwrap();
    let (written, held) =
        peak(|| int8::write(&mut vlm, Parts::TextHead, &Folds::new(), ROTATION, out.path()).unwrap());
    assert!((written.bytes as f64) < 0.4 * written.bytes_before as f64, "{written:?}");
    // The largest matrix in int8, 1 MiB of it in f32 and in int8, the writer's 1 MiB, and a little: far below a shard.
    let most = 2 * width * width + (1 << 20) + (1 << 18) + (1 << 20) + (1 << 19);
    assert!(held < most && most < bytes / 5, "{held} bytes were held, of a shard of {bytes}");
}

/// Settings that tie a head which the checkpoint has apart: what is there counts, as it is and in int8.
#[test]
fn a_head_that_is_not_the_embedding_is_not_tied() {
    let said = tempfile::tempdir().unwrap();
    copy(&golden("smolvlm"), said.path());
    let mut settings = config(said.path());
    settings["tie_word_embeddings"] = json!(true);
    fs::write(said.path().join("config.json"), settings.to_string()).unwrap();
    let (tied, apart) = (load(said.path()), load(&golden("smolvlm")));
    assert!(!tied.text.is_tied());
    assert_eq!(logits(&tied).f32s().unwrap(), logits(&apart).f32s().unwrap());
    for parts in PARTS {
        let [tied, apart] = [said.path(), &golden("smolvlm")].map(|from| write(from, parts));
        let [tied, apart] = [tied, apart].map(|folder| logits(&load(folder.path())));
        assert_eq!(tied.f32s().unwrap(), apart.f32s().unwrap(), "{parts:?}");
    }
}

/// Of two names of one matrix, a file may have the head's: so do those that safetensors' `save_model` writes.
#[test]
fn a_tied_head_stands_for_a_missing_embedding() {
    let [usual, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    llama(usual.path(), 2, 32);
    copy(usual.path(), other.path());
    tamper(other.path(), |all| {
        let embedding = all.remove("model.embed_tokens.weight").unwrap();
        all.insert("lm_head.weight".into(), embedding);
    });
    let same = |folders: [&Path; 2]| {
        let [want, got] = folders.map(|folder| text_logits(&load(folder)));
        assert_eq!(got.f32s().unwrap(), want.f32s().unwrap());
    };
    same([usual.path(), other.path()]);
    for parts in [Parts::Text, Parts::TextHead] {
        let [want, got] = [&usual, &other].map(|folder| write(folder.path(), parts));
        same([want.path(), got.path()]);
    }
}

#[test]
fn a_tied_head_becomes_a_layer_of_its_own() {
    let plain = tempfile::tempdir().unwrap();
    llama(plain.path(), 2, 32);
    let folder = write(plain.path(), Parts::TextHead);
    let stored = load(folder.path());
    assert!(!stored.text.is_tied());
    let loaded = quantized(plain.path(), Parts::TextHead, &Folds::new());
    assert_eq!(text_logits(&stored).f32s().unwrap(), text_logits(&loaded).f32s().unwrap());
    let ignored = |folder: &Path| config(folder)["quantization_config"]["ignore"].clone();
    assert_eq!(ignored(folder.path()), json!([]));
    let folder = write(plain.path(), Parts::Text);
    assert!(load(folder.path()).text.is_tied());
    // To transformers a tied head is a linear layer as others are.
    assert_eq!(ignored(folder.path()), json!(["lm_head"]));
}

/// Rewrites the weights of an int8 folder.
fn tamper(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut all);
    let views = all
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const LAYER: &str = "model.text_model.layers.1.mlp.up_proj";

#[test]
fn nothing_wrong_is_loaded() {
    let scale = format!("{LAYER}.weight_scale");
    let weight = format!("{LAYER}.weight");
    type Change = Box<dyn Fn(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)>;
    let cases: Vec<(&str, &str, Change)> = vec![
        (
            "missing",
            &scale,
            Box::new({
                let s = scale.clone();
                move |all| drop(all.remove(&s))
            }),
        ),
        (
            "unused",
            "lm_head.weight_scale",
            Box::new(|all| {
                all.insert("lm_head.weight_scale".into(), (Dtype::F32, vec![440, 1], vec![0; 1760]));
            }),
        ),
        (
            "not f32, bf16 or f16",
            &scale,
            Box::new({
                let s = scale.clone();
                move |all| {
                    all.insert(s.clone(), (Dtype::I8, vec![112, 1], vec![1; 112]));
                }
            }),
        ),
        (
            "of another shape",
            &scale,
            Box::new({
                let s = scale.clone();
                move |all| {
                    all.insert(s.clone(), (Dtype::F32, vec![1, 112], vec![0; 448]));
                }
            }),
        ),
        (
            "not int8",
            &weight,
            Box::new({
                let w = weight.clone();
                move |all| {
                    all.insert(w.clone(), (Dtype::BF16, vec![112, 64], vec![0; 112 * 128]));
                }
            }),
        ),
        (
            "not f32, bf16 or f16",
            "lm_head.weight",
            Box::new(|all| {
                all.insert("lm_head.weight".into(), (Dtype::I8, vec![440, 64], vec![1; 440 * 64]));
            }),
        ),
        (
            "negative or no numbers",
            &scale,
            Box::new({
                let s = scale.clone();
                move |all| {
                    all.get_mut(&s).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                }
            }),
        ),
        (
            "negative or no numbers",
            &scale,
            Box::new({
                let s = scale.clone();
                move |all| {
                    all.get_mut(&s).unwrap().2[..4].copy_from_slice(&(-1.0_f32).to_le_bytes());
                }
            }),
        ),
    ];
    for (fault, name, change) in cases {
        let folder = write(&golden("smolvlm"), Parts::Text);
        tamper(folder.path(), change);
        let said = complaint(mpa::models::vlm::Vlm::load(folder.path().to_str().unwrap(), None));
        assert!(said.contains(fault) && said.contains(name), "{fault}, {name}: {said}");
    }
}

#[test]
fn the_config_must_say_what_the_weights_are() {
    let hadamard = "/config_groups/group_0/input_activations/hadamard";
    let edits: [(&str, Value, &str); 13] = [
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme: expected null"),
        ("/config_groups/group_0/output_activations", json!({}), "output_activations: expected null"),
        ("/config_groups/group_0/input_activations/type", json!("float"), "type: expected \"int\""),
        ("", Value::Null, "not f32, bf16 or f16"),
        ("/quant_method", json!("gptq"), "quant_method"),
        ("/format", json!("pack-quantized"), "format"),
        ("/format", json!("int-quantized"), "hadamard"),
        (hadamard, json!(96), "hadamard"),
        (hadamard, json!(256), "hadamard"),
        (hadamard, json!("64"), "hadamard"),
        ("/config_groups/group_0/weights/strategy", json!("tensor"), "strategy"),
        ("/config_groups/group_0/input_activations/dynamic", json!(false), "dynamic"),
        ("/ignore", json!(["re:("]), "ignore"),
    ];
    for (pointer, value, named) in edits {
        let folder = write(&golden("smolvlm"), Parts::Text);
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        *config["quantization_config"].pointer_mut(pointer).unwrap() = value;
        fs::write(&path, config.to_string()).unwrap();
        let said = complaint(mpa::models::vlm::Vlm::load(folder.path().to_str().unwrap(), None));
        assert!(said.contains(named), "{pointer}: {said}");
    }
}

/// What transformers would load and not rotate has a name and a key that it refuses, and so have programs of before there was a rotation; one of
/// compressed-tensors' own transforms, which are another layout, is refused here.
#[test]
fn a_rotation_is_not_to_be_overlooked() {
    let folder = write(&golden("smolvlm"), Parts::Text);
    let mut config = config(folder.path());
    let section = &mut config["quantization_config"];
    assert_eq!(section["format"], "int-quantized-hadamard");
    assert_eq!(section["config_groups"]["group_0"]["input_activations"]["hadamard"], 128);
    section["transform_config"] = json!({"config_groups": {"R4": {"type": "hadamard"}}});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let said = complaint(mpa::models::vlm::Vlm::load(folder.path().to_str().unwrap(), None));
    assert!(said.contains("transform_config"), "{said}");
}

#[test]
fn others_folders_are_read() {
    // Scales as [N] or in bf16, and exceptions as patterns over the checkpoint's names.
    let folder = write(&golden("smolvlm"), Parts::Text);
    let want = logits(&load(folder.path()));
    tamper(folder.path(), |all| {
        for (name, (_, shape, _)) in all.iter_mut().filter(|(name, _)| name.ends_with("weight_scale")) {
            assert_eq!(shape.len(), 2, "{name}");
            shape.truncate(1);
        }
    });
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let patterns = json!(["re:.*lm_head", "re:model.vision_model.*", "re:model.connector"]);
    config["quantization_config"]["ignore"] = patterns;
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(logits(&load(folder.path())).f32s().unwrap(), want.f32s().unwrap());
}

#[test]
fn an_int8_folder_is_saved_as_it_is() {
    let folder = write(&golden("smolvlm"), Parts::All);
    let saved = tempfile::tempdir().unwrap();
    load(folder.path()).save(saved.path()).unwrap();
    let again = load(saved.path());
    assert_eq!(logits(&again).f32s().unwrap(), logits(&load(folder.path())).f32s().unwrap());
}

fn mpa(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("mpa").unwrap().args(args).args(["--backend", "cpu"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_command_writes_what_the_option_computes() {
    let (model, out) = (golden("smolvlm"), tempfile::tempdir().unwrap());
    let (model, int8) = (model.to_str().unwrap(), out.path().join("int8"));
    let int8 = int8.to_str().unwrap();
    let (code, said, errors) = mpa(&["quantize", "--model", model, "--out", int8, "--json"]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["layers"], 21);
    let ask = ["--prompt", "What is it?", "--max-new-tokens", "9", "--json"];
    let ask = |more: &[&str]| mpa(&[&["generate"], more, &ask].concat());
    let (stored, loaded) = (ask(&["--model", int8]), ask(&["--model", model, "--int8"]));
    assert_eq!((stored.0, &stored.1), (0, &loaded.1), "{} {}", stored.2, loaded.2);

    for (args, expected) in [
        (vec!["quantize", "--model", model, "--out", int8], "is not empty"),
        (vec!["quantize", "--model", int8, "--out", "/nowhere/at/all"], "int8 already"),
        (vec!["generate", "--model", int8, "--int8", "--prompt", "x"], "int8 already"),
        (vec!["generate", "--model", model, "--int8=half", "--prompt", "x"], "possible values"),
    ] {
        let (code, _, errors) = mpa(&args);
        assert!(code == 2 && errors.contains(expected), "{args:?}: {errors}");
    }
}

#[test]
fn types_are_kept() {
    let mut vlm = load(write(&golden("smolvlm"), Parts::Text).path());
    let mut before = load(&golden("smolvlm"));
    let mut types = BTreeMap::new();
    before.visit(&mut |name, param| {
        types.insert(name.to_string(), param.value.dtype());
    });
    vlm.visit(&mut |name, param| {
        let dtype = param.value.dtype();
        let expected = if name.ends_with("weight_scale") { DType::F32 } else { types[name] };
        assert!(dtype == expected || dtype == DType::I8, "{name}: {dtype}");
    });
}
