//! Training through the CUDA kernels, run on this CPU: against the CPU's own ops, twice, recomputed, resumed, and within the memory foretold.
#![cfg(feature = "host-kernels")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Rng, Tolerance, assert_close, to_f64};
use mpa::models::image::Rgb;
use mpa::models::vlm::Vlm;
use mpa::tensor::{DType, Device, Gpu, MATMUL_WORKSPACE, Place, Tensor};
use mpa::train::batch::{Kept, Prepared};
use mpa::train::fit::{LoraOptions, Picture, Sample, Tower, TrainOptions, Trainable, Trainer, level};
use mpa::train::plan::plan;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm")
}

fn host() -> Device {
    Device::Cuda(Gpu::host(1).unwrap())
}

/// Two with a picture of one tile each, one without.
fn samples() -> Vec<Sample> {
    let sample = |i: u64| {
        let mut rng = Rng(i + 1);
        let data = (0..3 * 40 * 48).map(|_| rng.next() as u8).collect();
        let picture = Picture::Pixels(Arc::new(Rgb { width: 48, height: 40, data }));
        Sample {
            id: i.to_string(),
            images: if i == 2 { vec![] } else { vec![picture] },
            prompt: format!("What is number {i}?"),
            answer: format!("It is {}.", i * 7),
        }
    };
    (0..3).map(sample).collect()
}

/// Adapters in all three towers.
fn lora(dropout: f32) -> Trainable {
    let targets = ["q_proj", "k_proj", "v_proj", "down_proj", "fc1", "proj"].map(String::from).to_vec();
    Trainable::Lora(LoraOptions { rank: 4, alpha: 8.0, dropout, rslora: false, targets })
}

fn everything() -> Trainable {
    Trainable::Full(vec![Tower::Vision, Tower::Connector, Tower::Text])
}

fn options() -> TrainOptions {
    TrainOptions { lr: 1e-2, batch: 3, seed: 5, ..TrainOptions::default() }
}

/// With each picture as one tile, which keeps the tests short.
fn vlm() -> Vlm {
    let mut vlm = Vlm::load(model().to_str().unwrap(), None).unwrap();
    let vision = vlm.vision.as_mut().unwrap();
    vision.images = vision.images.clone().without_splitting();
    vlm
}

fn trainer(trainable: Trainable, options: TrainOptions, device: &Device, dtype: DType) -> Trainer {
    Trainer::new(vlm(), trainable, options).unwrap().to_device(device, dtype).unwrap()
}

fn prepared(trainer: &Trainer) -> Vec<Arc<Prepared>> {
    let samples = samples();
    let samples: Vec<&Sample> = samples.iter().collect();
    trainer.prepare(&samples, &mut Kept::default()).unwrap().into_iter().map(Arc::new).collect()
}

/// Loss and gradients, of adapters after a step, since at first they are zero.
fn gradients(mut trainer: Trainer, adapters: bool) -> (f64, Vec<(String, Tensor)>) {
    let batch = prepared(&trainer);
    if adapters {
        trainer.step_prepared(&batch, 1e-2).unwrap();
    }
    (trainer.gradients(&batch).unwrap(), trainer.named_gradients())
}

#[test]
fn gradients_of_all_towers_are_the_cpus() {
    for (trainable, adapters) in [(lora(0.0), true), (lora(0.3), true), (everything(), false)] {
        let run = |device, dtype| gradients(trainer(trainable.clone(), options(), device, dtype), adapters);
        let (want_loss, want) = run(&Device::Cpu, DType::F32);
        let (loss, got) = run(&host(), DType::F32);
        assert!((loss - want_loss).abs() < 2e-5, "{loss} {want_loss}");
        assert_eq!(got.len(), want.len());
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            // As tests/golden/lora.rs, which allows 1e-4 of the largest; the step before, Adam's first, makes signs of tiny gradients.
            let want = to_f64(want);
            let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
            let tolerance = Tolerance { abs: 3e-4 * largest + 1e-7, rel: 0.0 };
            assert_close(name, got.to_f32().unwrap().f32s().unwrap(), &want, tolerance);
        }
    }
}

/// Everything that a run of ten steps leaves: losses, norms, the adapter's bytes. `seed` is of the order in which warps and lanes run.
fn ten_steps(seed: u64, recompute: bool) -> (Vec<[u64; 2]>, Vec<u8>) {
    let device = Device::Cuda(Gpu::host(seed).unwrap());
    let mut trainer = trainer(lora(0.1), TrainOptions { recompute, ..options() }, &device, DType::Bf16);
    let batch = prepared(&trainer);
    let step =
        |_| trainer.step_prepared(&batch, 1e-3).map(|r| [r.loss.to_bits(), r.grad_norm.to_bits()]).unwrap();
    let reports = (0..10).map(step).collect();
    let out = tempfile::tempdir().unwrap();
    trainer.save(out.path()).unwrap();
    (reports, fs::read(out.path().join("adapter_model.safetensors")).unwrap())
}

#[test]
fn ten_steps_twice_and_recomputed_give_the_same_bytes() {
    let first = ten_steps(1, false);
    assert_eq!(first, ten_steps(2, false), "again");
    assert_eq!(first, ten_steps(3, true), "recomputed");
    let [from, to] = [first.0[0][0], first.0[9][0]].map(f64::from_bits);
    assert!(to < 0.9 * from, "the loss goes from {from} to {to}");
}

/// bf16 activations against f32, both with weights that bf16 holds exactly.
#[test]
fn bf16_gradients_are_those_of_f32_but_for_rounding() {
    let rounded = |trainable: Trainable| {
        let mut vlm = vlm();
        vlm.visit(&mut |_, p| p.value = p.value.to_dtype(DType::Bf16).unwrap().to_f32().unwrap());
        Trainer::new(vlm, trainable, TrainOptions { seed: 5, ..options() }).unwrap()
    };
    let run = |mut trainer: Trainer| {
        let batch = prepared(&trainer);
        (trainer.gradients(&batch).unwrap(), trainer.named_gradients())
    };
    let (want_loss, want) = run(rounded(everything()));
    let (loss, got) = run(rounded(everything()).to_device(&host(), DType::Bf16).unwrap());
    // Roundings to bf16 on the way to a weight's gradient: as tests/golden/check.rs counts them for the forward (16 a text layer, 13 a vision
    // layer), and about twice as many on the way back. Each is off by 2^-9 of the value in the root mean square, and independent errors add
    // up like the root of their number.
    let config = &vlm().config;
    let forward = (16 * config.text.layers + 13 * config.vision.as_ref().unwrap().layers) as f64;
    let share = (3.0 * forward).sqrt() * 2f64.powi(-9);
    assert!((loss - want_loss).abs() < share * want_loss, "{loss} {want_loss}");
    let mut all = [0.0; 2];
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (i, ((name, got), (_, want_here))) in got.iter().zip(&want).enumerate() {
        let (got, want_here) = (to_f64(got), to_f64(want_here));
        let error = norm(&got.iter().zip(&want_here).map(|(g, w)| g - w).collect::<Vec<_>>());
        let mut size = norm(&want_here);
        if name.ends_with("k_proj.bias") {
            // It shifts all scores of a query alike, which softmax does not see: its gradient is zero but for the rounding of what cancels, the
            // columns of the keys' gradients, whose size is that of the weight's gradient.
            let (above, weight) = &want[i - 1];
            assert_eq!(above.replace("weight", "bias"), *name);
            size = norm(&to_f64(weight));
        }
        // One tensor's may have more: scores' gradients, dP - delta, are differences of numbers that are nearly equal.
        assert!(error <= 2.0 * share * size, "{name}: off by {} of its size, expected {share}", error / size);
        all = [all[0] + error * error, all[1] + norm(&want_here).powi(2)];
    }
    let off = (all[0] / all[1]).sqrt();
    assert!(off <= share, "all gradients: off by {off} of their size, expected {share}");
}

/// All files of a run folder but checkpoints, which are gone at its end.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_killed_run_goes_on_and_whole_checkpoints_keep_what_is_frozen() {
    let options = TrainOptions { steps: Some(5), checkpoint_every: 2, ..options() };
    let place = Place { device: host(), dtype: DType::Bf16, keep: false };
    let samples = samples();
    for trainable in [lora(0.1), Trainable::Full(vec![Tower::Connector])] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let run = |out: &Path, last: usize| {
            let mut on_step = |step: usize, _: usize, _: f64, _: f64| assert!(step <= last, "killed");
            let run = std::panic::AssertUnwindSafe(|| {
                level(&model(), &samples, &trainable, &options, &place, out, &mut on_step).unwrap()
            });
            std::panic::catch_unwind(run).is_ok()
        };
        assert!(run(folders[0].path(), usize::MAX));
        assert!(!run(folders[1].path(), 3));
        assert!(run(folders[1].path(), usize::MAX));
        assert_eq!(files(folders[0].path()), files(folders[1].path()));
        if let Trainable::Full(_) = trainable {
            let (mut before, mut after) =
                (vlm(), Vlm::load(folders[0].path().to_str().unwrap(), None).unwrap());
            let mut all = Vec::new();
            before.visit(&mut |name, p| all.push((name.to_string(), p.value.clone())));
            let mut all = all.into_iter();
            after.visit(&mut |name, p| {
                let (was, value) = all.next().unwrap();
                assert_eq!(was, name);
                let same =
                    value.to_f32().unwrap().bytes().unwrap() == p.value.to_f32().unwrap().bytes().unwrap();
                assert_eq!(same, !name.contains("connector"), "{name}");
            });
        }
    }
}

#[test]
fn a_step_takes_the_memory_that_was_foretold() {
    let folder = tempfile::tempdir().unwrap();
    let samples: Vec<Sample> = samples()
        .into_iter()
        .enumerate()
        .map(|(i, sample)| {
            let path = folder.path().join(format!("{i}.png"));
            let images = sample.images.iter().map(|picture| match picture {
                Picture::Pixels(rgb) => {
                    let (width, height) = (rgb.width as u32, rgb.height as u32);
                    image::RgbImage::from_raw(width, height, rgb.data.clone()).unwrap().save(&path).unwrap();
                    Picture::File(path.clone())
                }
                file => file.clone(),
            });
            Sample { images: images.collect(), ..sample }
        })
        .collect();
    for (trainable, recompute) in [(lora(0.0), false), (lora(0.0), true), (everything(), false)] {
        let options = TrainOptions { steps: Some(3), batch: 2, recompute, ..options() };
        let foretold = plan(&model(), &samples, &trainable, &options, DType::Bf16).unwrap();
        let gpu = Gpu::host(1).unwrap();
        let place = Place { device: Device::Cuda(Arc::clone(&gpu)), dtype: DType::Bf16, keep: false };
        let out = tempfile::tempdir().unwrap();
        level(&model(), &samples, &trainable, &options, &place, out.path(), &mut |_, _, _, _| {}).unwrap();
        let usage = gpu.memory_use();
        let near = |what: &str, took: usize, foretold: usize| {
            assert!(
                foretold.abs_diff(took) * 10 <= took,
                "{what}: {foretold} foretold, {took} taken, {trainable:?}"
            );
        };
        near("in use", usage.peak, foretold.step_bytes);
        near("reserved", usage.most_reserved, foretold.takes_bytes - MATMUL_WORKSPACE);
        assert_eq!((foretold.samples, foretold.steps), (3, 3));
    }
}

/// With a vision side that is trained, a step may have fewer tokens than another, and more to do.
#[test]
fn the_largest_step_is_that_of_the_most_pictures_where_these_are_learned_from() {
    let picture = Picture::Pixels(Arc::new(Rgb { width: 96, height: 96, data: vec![9; 3 * 96 * 96] }));
    let seen = Sample { images: vec![picture], ..samples().remove(0) };
    let read = Sample { prompt: "word ".repeat(50), ..samples().remove(2) };
    let options = TrainOptions { batch: 1, ..options() };
    let plan = |samples: &[Sample]| plan(&model(), samples, &everything(), &options, DType::Bf16).unwrap();
    let alone = [&seen, &read].map(|sample| plan(std::slice::from_ref(sample)));
    assert!(alone[0].most_tokens < alone[1].most_tokens, "{alone:?}");
    assert!(alone[0].step_bytes > alone[1].step_bytes, "{alone:?}");
    let both = plan(&[seen, read]);
    assert!(both.step_bytes >= alone[0].step_bytes, "{both:?} {alone:?}");
    assert_eq!(both.most_tokens, alone[0].most_tokens);
}
