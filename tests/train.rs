//! Training beyond the golden runs: whole towers against finite differences, resume, dropout, accumulation, adapters on disk.

mod common;
#[path = "common/models.rs"]
mod models;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Rng, Tolerance, assert_close};
use mpa::models::image::Rgb;
use mpa::models::vlm::Vlm;
use mpa::models::weights::Weights;
use mpa::tensor::{Place, Tensor};
use mpa::train::batch::Kept;
use mpa::train::fit::{
    FitReport, LoraOptions, Picture, Sample, Tower, TrainOptions, Trainable, Trainer, level,
};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm")
}

fn vlm() -> Vlm {
    Vlm::load(model().to_str().unwrap(), None).unwrap()
}

/// A picture of one tile and noise.
fn picture(seed: u64) -> Picture {
    let mut rng = Rng(seed);
    let data = (0..3 * 40 * 48).map(|_| rng.next() as u8).collect();
    Picture::Pixels(Arc::new(Rgb { width: 48, height: 40, data }))
}

fn samples(n: usize) -> Vec<Sample> {
    let pictures = [picture(1), picture(2)];
    let sample = |i: usize| Sample {
        id: i.to_string(),
        images: if i % 3 == 2 { vec![] } else { vec![pictures[i % 2].clone()] },
        prompt: format!("What is number {i}?"),
        answer: format!("It is {}.", i * 7),
    };
    (0..n).map(sample).collect()
}

fn options() -> TrainOptions {
    TrainOptions {
        lr: 1e-3,
        steps: Some(6),
        batch: 4,
        checkpoint_every: 2,
        seed: 5,
        ..TrainOptions::default()
    }
}

fn lora(dropout: f32) -> Trainable {
    let targets = ["q_proj", "v_proj", "down_proj", "fc1", "proj"].map(String::from).to_vec();
    Trainable::Lora(LoraOptions { rank: 4, alpha: 8.0, dropout, rslora: true, targets })
}

fn prepared(trainer: &Trainer, samples: &[Sample]) -> Vec<Arc<mpa::train::batch::Prepared>> {
    let samples: Vec<&Sample> = samples.iter().collect();
    trainer.prepare(&samples, &mut Kept::default()).unwrap().into_iter().map(Arc::new).collect()
}

#[test]
fn a_picture_goes_through_a_frozen_vision_side_once() {
    let targets = ["q_proj".to_string()].to_vec();
    let text = LoraOptions { targets: vec![r".*text_model.*q_proj".to_string()], ..LoraOptions::default() };
    let all = LoraOptions { targets, ..LoraOptions::default() };
    let samples = samples(4); // of two pictures: 0, 1, none, 1
    for (options_of, frozen) in [(text, true), (all, false)] {
        let trainer = Trainer::new(vlm(), Trainable::Lora(options_of), options()).unwrap();
        let mut kept = Kept::default();
        let first = trainer.prepare(&[&samples[1]], &mut kept).unwrap();
        let then = trainer.prepare(&[&samples[0], &samples[3]], &mut kept).unwrap();
        assert_eq!(Arc::ptr_eq(&first[0].pictures[0], &then[1].pictures[0]), frozen);
        assert!(!Arc::ptr_eq(&then[0].pictures[0], &then[1].pictures[0]));
    }
}

/// The loss at weights moved by `h` along `direction`, less the loss without: what the gradient must predict.
#[test]
fn gradients_of_all_towers_match_finite_differences() {
    let samples = samples(3);
    let options = TrainOptions { max_grad_norm: 0.0, ..options() };
    let towers = Trainable::Full(vec![Tower::Vision, Tower::Connector, Tower::Text]);
    let mut trainer = Trainer::new(vlm(), towers.clone(), options.clone()).unwrap();
    let batch = prepared(&trainer, &samples);
    trainer.gradients(&batch).unwrap();
    let grads = trainer.named_gradients();
    assert!(grads.len() > 60, "{} weights", grads.len());

    for (name, grad) in grads {
        // Along the gradient itself the change is largest: h * |g|.
        let g = grad.f32s().unwrap();
        let norm = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if name.ends_with("self_attn.k_proj.bias") {
            // Softmax does not see what is added to all scores of a query: this gradient is rounding alone.
            assert!(norm < 1e-5, "{name}: {norm}");
            continue;
        }
        assert!(norm > 1e-6, "{name}: no gradient");
        let h = 3e-3 / norm.max(0.1);
        let shifted = |sign: f64| {
            let mut vlm = vlm();
            vlm.visit(&mut |n, param| {
                if n == name {
                    let mut value = param.value.to_f32().unwrap();
                    for (w, &g) in value.f32s_mut().unwrap().iter_mut().zip(g) {
                        *w += (sign * h * f64::from(g) / norm) as f32;
                    }
                    param.value = value;
                }
            });
            let mut trainer = Trainer::new(vlm, towers.clone(), options.clone()).unwrap();
            let batch = prepared(&trainer, &samples);
            trainer.gradients(&batch).unwrap()
        };
        let measured = (shifted(1.0) - shifted(-1.0)) / (2.0 * h);
        // Loss is about 8 with f32 rounding of about 1e-6 in each of the two evaluations, so 1e-6 / h, and 1 % for curvature.
        let tolerance = 2e-6 / h + 0.01 * norm;
        assert!((measured - norm).abs() <= tolerance, "{name}: measured {measured}, gradient {norm}");
    }
}

#[test]
fn a_frozen_tower_gets_no_gradient_and_does_not_move() {
    let samples = samples(3);
    let mut trainer = Trainer::new(vlm(), Trainable::Full(vec![Tower::Connector]), options()).unwrap();
    trainer.step(&samples, 1e-2).unwrap();
    let names: Vec<String> = trainer.named_gradients().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["model.connector.modality_projection.proj.weight"]);
    let weights = |vlm: &mut Vlm| {
        let mut all = Vec::new();
        vlm.visit(&mut |name, p| all.push((name.to_string(), p.value.bytes().unwrap().to_vec())));
        all
    };
    let (before, after) = (weights(&mut vlm()), weights(&mut trainer.into_model()));
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        assert_eq!(before == after, name != &names[0], "{name}");
    }
}

#[test]
fn accumulation_changes_nothing_but_rounding() {
    let samples = samples(4);
    let gradients = |accumulate| {
        let mut trainer = Trainer::new(vlm(), lora(0.0), TrainOptions { accumulate, ..options() }).unwrap();
        let batch = prepared(&trainer, &samples);
        let loss = trainer.gradients(&batch).unwrap();
        (loss, trainer.named_gradients())
    };
    let (loss, whole) = gradients(1);
    for accumulate in [2, 4] {
        let (other, parts) = gradients(accumulate);
        assert!((loss - other).abs() < 1e-6, "{loss} {other}");
        for ((name, a), (_, b)) in parts.iter().zip(&whole) {
            // f32 sums of some hundred terms in another order.
            let want = common::to_f64(b);
            let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
            let tolerance = Tolerance { abs: 2e-5 * largest + 1e-9, rel: 0.0 };
            assert_close(name, a.f32s().unwrap(), &want, tolerance);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = Trainer::new(vlm(), lora(0.1), options()).unwrap();
            let report = trainer.step(&samples(4), 1e-3).unwrap();
            let bytes: Vec<Vec<u8>> =
                trainer.named_gradients().iter().map(|(_, g)| g.bytes().unwrap().to_vec()).collect();
            (report.loss.to_bits(), report.grad_norm.to_bits(), bytes)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

fn train(out: &Path, trainable: &Trainable, stop_after: usize) -> bool {
    let mut count = 0;
    // A kill is played by a panic inside the callback: nothing is cleaned up.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let on_step: &mut dyn FnMut(usize, usize, f64, f64) = &mut |_, _, _, _| {
            count += 1;
            assert!(count <= stop_after, "killed");
        };
        level(&model(), &samples(7), trainable, &options(), &Place::cpu(), out, on_step).unwrap();
    }));
    result.is_ok()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn resume_after_a_kill_gives_the_same_bytes() {
    for trainable in [lora(0.1), Trainable::Full(vec![Tower::Connector, Tower::Text])] {
        let whole = tempfile::tempdir().unwrap();
        assert!(train(whole.path(), &trainable, usize::MAX));
        let want = files(whole.path());
        assert!(!want.iter().any(|(name, _)| name == "checkpoint"));
        for killed_in in [0, 1, 2, 3, 5] {
            let out = tempfile::tempdir().unwrap();
            assert!(!train(out.path(), &trainable, killed_in));
            assert!(train(out.path(), &trainable, usize::MAX));
            for ((name, got), (_, want)) in files(out.path()).iter().zip(&want) {
                assert!(got == want, "{name} after a kill in step {}", killed_in + 1);
            }
            assert!(train(out.path(), &trainable, 0), "a finished run takes no step");
        }
    }
}

#[test]
fn what_a_run_wrote_is_a_plain_checkpoint_to_the_next() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let full = Trainable::Full(vec![Tower::Connector]);
    let run = |model: &Path, count, out: &Path| {
        level(model, &samples(count), &full, &options(), &Place::cpu(), out, &mut |_, _, _, _| {}).unwrap();
    };
    run(&model(), 7, first.path());
    run(first.path(), 6, second.path());
    run(first.path(), 6, second.path());
    let names = |folder: &Path| files(folder).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(first.path()), names(second.path()));
}

#[test]
fn a_folder_of_another_run_is_refused() {
    let out = tempfile::tempdir().unwrap();
    assert!(train(out.path(), &lora(0.0), usize::MAX));
    let e =
        level(&model(), &samples(6), &lora(0.0), &options(), &Place::cpu(), out.path(), &mut |_, _, _, _| {})
            .unwrap_err();
    assert!(e.to_string().contains("training.json"), "{e}");
    assert_eq!(e.exit_code(), 2);
}

/// Going on with another model of the same name, or with other pictures for the same questions, would train on both.
#[test]
fn other_models_and_pictures_are_refused_but_not_other_ways_to_the_same_bits() {
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    models::copy(&model(), folder.path());
    for name in ["a.png", "b.png"] {
        fs::copy(model().join("../images/cat.png"), folder.path().join(name)).unwrap();
    }
    let fit = |picture: &str, options: &TrainOptions| {
        let mut samples = samples(4);
        samples[2].images = vec![Picture::File(folder.path().join(picture))];
        level(folder.path(), &samples, &lora(0.0), options, &Place::cpu(), out.path(), &mut |_, _, _, _| {})
    };
    let plain = options();
    let first = fit("a.png", &plain).unwrap();
    let free = TrainOptions { recompute: true, checkpoint_every: 1, ..options() };
    assert_eq!(fit("a.png", &free).unwrap(), first);
    let refused = |result: Result<FitReport, mpa::error::Error>| {
        let said = result.unwrap_err().to_string();
        assert!(said.contains("training.json: this folder holds a run with another model"), "{said}");
    };
    refused(fit("b.png", &plain));
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    refused(fit("a.png", &plain));
}

#[test]
fn a_training_that_diverged_is_not_saved() {
    for trainable in [lora(0.0), Trainable::Full(vec![Tower::Connector])] {
        let out = tempfile::tempdir().unwrap();
        let mut trainer = Trainer::new(vlm(), trainable, options()).unwrap();
        trainer.step(&samples(3), 1e39).unwrap();
        let said = trainer.save(out.path()).unwrap_err().to_string();
        assert!(said.contains("a smaller learning rate may help"), "{said}");
        assert_eq!(files(out.path()), []);
    }
}

#[test]
fn dropout_masks_follow_the_step() {
    let samples = samples(3);
    let losses = |dropout| {
        let mut trainer = Trainer::new(vlm(), lora(dropout), options()).unwrap();
        // The first step makes B differ from zero, so that the mask can matter; the others move nothing.
        [1e-1, 0.0, 0.0].map(|lr| trainer.step(&samples, lr).unwrap().loss.to_bits())
    };
    let with = losses(0.5);
    assert_eq!(with, losses(0.5), "the same run");
    assert_ne!(with[1], with[2], "another step, another mask");
    let without = losses(0.0);
    assert_eq!(without[1], without[2]);
    assert_ne!(with[1], without[1]);
}

#[test]
fn recomputed_blocks_give_the_same_bits() {
    let samples = samples(3);
    for trainable in [lora(0.1), Trainable::Full(vec![Tower::Vision, Tower::Text])] {
        let run = |recompute| {
            let options = TrainOptions { recompute, ..options() };
            let mut trainer = Trainer::new(vlm(), trainable.clone(), options).unwrap();
            let losses = [1e-2, 1e-2].map(|lr| trainer.step(&samples, lr).unwrap().loss.to_bits());
            let named = trainer.named_gradients().into_iter();
            (losses, named.map(|(name, g)| (name, g.bytes().unwrap().to_vec())).collect::<Vec<_>>())
        };
        assert_eq!(run(false), run(true));
    }
}

#[test]
fn bf16_base_weights_train_f32_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let mut half = vlm();
    half.visit(&mut |_, p| p.value = p.value.to_dtype(mpa::tensor::DType::Bf16).unwrap());
    half.save(folder.path()).unwrap();
    let load = || Vlm::load(folder.path().to_str().unwrap(), None).unwrap();
    let mut wide = load();
    wide.visit(&mut |_, p| p.value = p.value.to_f32().unwrap());
    let run = |vlm: Vlm| {
        let mut trainer = Trainer::new(vlm, lora(0.0), options()).unwrap();
        let loss = trainer.step(&samples(3), 1e-3).unwrap().loss;
        (loss, trainer.named_gradients())
    };
    let ((loss, half), (want, wide)) = (run(load()), run(wide));
    // By a bf16 weight the input of a layer is rounded to bf16, 2^-9 off in the root mean square: four inputs in each of the 3 + 2 blocks, and those of
    // the projection and the head. Independent errors add up like the root of their number.
    let share = 22f64.sqrt() * 2f64.powi(-9);
    assert!((loss - want).abs() < share * want, "{loss} {want}");
    let mut square = [0.0; 2];
    for ((name, g), (_, w)) in half.iter().zip(&wide) {
        assert_eq!(g.dtype(), mpa::tensor::DType::F32);
        for (g, w) in common::to_f64(g).into_iter().zip(common::to_f64(w)) {
            assert!(g.is_finite(), "{name}: {g}");
            square = [square[0] + (g - w) * (g - w), square[1] + w * w];
        }
    }
    let off = (square[0] / square[1]).sqrt();
    assert!(off < share, "gradients off by {off} of their size, expected {share}");
}

#[test]
fn adapters_written_by_others_are_read() {
    use mpa::models::adapter;
    let out = tempfile::tempdir().unwrap();
    let mut tuned = Trainer::new(vlm(), lora(0.0), options()).unwrap();
    tuned.step(&samples(3), 1e-1).unwrap();
    tuned.save(out.path()).unwrap();
    let config = out.path().join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();

    // One module may have a scale of its own; a pattern that names the rank in the file changes nothing.
    let patched =
        text.replace("\"rank_pattern\": {}", "\"rank_pattern\": {\"layers.0.self_attn.q_proj\": 4}");
    assert_ne!(patched, text);
    fs::write(&config, &patched).unwrap();
    adapter::load(&mut vlm(), out.path()).unwrap();

    // A plain state dict has the adapter's name in its keys.
    let path = out.path().join("adapter_model.safetensors");
    let mut file = Weights::open_file(&path).unwrap();
    let renamed: Vec<(String, Tensor)> = file
        .names()
        .into_iter()
        .map(|name| (name.replace(".weight", ".default.weight"), file.take_any(&name).unwrap()))
        .collect();
    let renamed: Vec<(String, &Tensor)> = renamed.iter().map(|(name, t)| (name.clone(), t)).collect();
    mpa::models::weights::save(&path, &renamed).unwrap();
    adapter::load(&mut vlm(), out.path()).unwrap();

    for (from, to, key) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa_niter_4\"", "init_lora_weights"),
        // Of two patterns the first in the file, not the first by name, is the rank: 5 is not that of the file's tensors.
        (
            "\"rank_pattern\": {}",
            "\"rank_pattern\": {\"self_attn.q_proj\": 5, \"layers.0.self_attn.q_proj\": 4}",
            "lora_A",
        ),
        ("\"r\": 4", "\"r\": 5", "lora_A"),
        ("\"r\": 4", "\"r\": 0", "key r"),
    ] {
        fs::write(&config, text.replace(from, to)).unwrap();
        let e = adapter::load(&mut vlm(), out.path()).unwrap_err();
        assert!(e.to_string().contains(key), "{key}: {e}");
        assert_eq!(e.exit_code(), 2, "{e}");
    }
}

/// Python's regexes are others, and peft would match a whole attention too, of which it makes no adapter.
#[test]
fn what_a_pattern_matched_is_saved_by_name() {
    let out = tempfile::tempdir().unwrap();
    let targets = vec![r".*text_model\.layers\.[[:digit:]]\.self_attn.*".to_string()];
    let lora = Trainable::Lora(LoraOptions { targets, ..LoraOptions::default() });
    Trainer::new(vlm(), lora, options()).unwrap().save(out.path()).unwrap();
    let text = fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
    let saved = serde_json::from_str::<serde_json::Value>(&text).unwrap()["target_modules"].take();
    let saved: Vec<String> = serde_json::from_value(saved).unwrap();
    assert_eq!((saved.len(), saved[0].as_str()), (12, "model.text_model.layers.0.self_attn.k_proj"));
    assert!(saved.is_sorted());
}

#[test]
fn lora_targets_are_matched_as_peft_does() {
    let count = |targets: &[&str]| {
        let mut vlm = vlm();
        let options = LoraOptions {
            targets: targets.iter().map(|s| s.to_string()).collect(),
            ..LoraOptions::default()
        };
        mpa::models::adapter::attach(&mut vlm, &options, 0)?;
        let mut n = 0;
        vlm.visit_linears(&mut |_, l| n += usize::from(l.lora.is_some()));
        Ok::<usize, mpa::error::Error>(n)
    };
    assert_eq!(count(&["q_proj"]).unwrap(), 5); // 2 vision and 3 text layers
    assert_eq!(count(&["out_proj", "lm_head"]).unwrap(), 3);
    assert_eq!(count(&["layers.1.self_attn.q_proj"]).unwrap(), 2);
    assert_eq!(count(&[r".*text_model.*\.(q|k)_proj"]).unwrap(), 6);
    assert!(count(&["_proj"]).is_err(), "a suffix counts only after a dot");
    let said = count(&["q_proj", "v_porj"]).unwrap_err().to_string();
    assert!(said.contains("LoRA target \"v_porj\" matches no linear layer"), "{said}");
    assert!(count(&["q_proj("]).is_err());
}

#[test]
fn a_tensor_of_another_model_is_an_error() {
    let out = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(vlm(), lora(0.0), options()).unwrap();
    trainer.save(out.path()).unwrap();
    let path = out.path().join("adapter_model.safetensors");
    let extra = Tensor::zeros(&[4, 4]);
    let name = "base_model.model.model.text_model.layers.9.self_attn.q_proj.lora_A.weight".to_string();
    mpa::models::weights::save(&path, &[(name.clone(), &extra)]).unwrap();
    let e = mpa::models::adapter::load(&mut vlm(), out.path()).unwrap_err();
    assert!(e.to_string().contains("layers.9"), "{e}");
}
