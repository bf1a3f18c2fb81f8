//! What is checked of each model, but for training.

use std::sync::Arc;

use mpa::models::generate::Request;
use mpa::models::image::Tiles;
use mpa::models::linear::Pass;
use mpa::models::vlm::{Prompt, Vlm};
use mpa::ops::attention::Span;
use mpa::ops::patch_embed::Pixels;
use mpa::ops::sample::Sampling;
use mpa::tensor::Tensor;
#[cfg(feature = "host-kernels")]
use mpa::tensor::{DType, Device};
use serde_json::Value;

use super::common::{Tolerance, assert_close};
use super::set::{Fixture, Golden, Row, json};

/// The README's: ten times the noise between two of the reference's own attention implementations (1.1e-5).
pub const LOGITS: Tolerance = Tolerance { abs: 1e-4, rel: 0.0 };

const CASES: [&str; 4] = ["single", "batch", "multi", "text"];

pub fn tokenizer(golden: &Golden) {
    let cases = json(&golden.folder.join("fixtures/tokenizer_cases.json"));
    let ids = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let prompter = &golden.vlm.prompter;
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(prompter.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(prompter.encode(text, false).unwrap(), ids(&case["no_special"]), "{text:?}");
        assert_eq!(prompter.decode(&ids(&case["ids"]), true).unwrap(), case["decoded"], "{text:?}");
    }
}

fn tiles(vlm: &Vlm, row: &Row) -> Vec<Tiles> {
    row.images.iter().map(|image| vlm.vision().unwrap().images.process(image).unwrap()).collect()
}

/// Ids of a prompt, or of a whole conversation if the assistant has spoken last.
fn encode(vlm: &Vlm, row: &Row) -> Vec<u32> {
    let grids: Vec<_> = tiles(vlm, row).iter().map(|t| (t.rows, t.cols)).collect();
    let answered = row.messages.last().is_some_and(|m| m.role == "assistant");
    vlm.encode(&row.messages, &grids, !answered).unwrap()
}

pub fn prompts_and_pixels(golden: &Golden) {
    for name in CASES {
        let Some(rows) = golden.case(name) else { continue };
        let fixture = golden.fixture(&format!("{name}.safetensors"));
        let want = fixture.rows("input/input_ids", "input/attention_mask");
        for (i, row) in rows.iter().enumerate() {
            let text = golden.vlm.prompter.render(&row.messages, true).unwrap();
            assert_eq!(text, golden.report["cases"][name]["prompts"][i], "{name}");
            let got: Vec<i64> = encode(&golden.vlm, row).iter().map(|&id| i64::from(id)).collect();
            assert_eq!(got, want[i], "{name} row {i}");
        }
        let (shape, all) = &fixture.ints["ref/position_ids"];
        // [3, B, T] with M-RoPE, [B, T] without.
        let axes = if shape.len() == 3 { 3 } else { 1 };
        let (mask, width) = (fixture.ints("input/attention_mask"), shape[shape.len() - 1]);
        for (i, row) in rows.iter().enumerate() {
            let grids: Vec<_> = tiles(&golden.vlm, row).iter().map(|t| (t.rows, t.cols)).collect();
            let (got, _) = golden.vlm.positions(&encode(&golden.vlm, row), &grids).unwrap();
            for axis in 0..axes {
                let at = (axis * rows.len() + i) * width;
                let real = all[at..at + width].iter().zip(&mask[i * width..]).filter(|(_, m)| **m == 1);
                let want: Vec<i64> = real.map(|(p, _)| *p).collect();
                let got: Vec<i64> = got.iter().map(|p| i64::from(p[axis])).collect();
                assert_eq!(got, want, "{name} row {i}: positions, axis {axis}");
            }
        }
        if fixture.floats.contains_key("input/pixel_values") {
            pixels(golden, &fixture, &rows, name);
        }
    }
}

/// Bit for bit: the tiles that the mask names, in order; padding tiles are the batch's business.
fn pixels(golden: &Golden, fixture: &Fixture, rows: &[Row], name: &str) {
    if let Some((_, grids)) = fixture.ints.get("input/image_grid_thw") {
        let all: Vec<Tiles> = rows.iter().flat_map(|row| tiles(&golden.vlm, row)).collect();
        return patches(golden, &all, grids, fixture.f32s("input/pixel_values"), name);
    }
    let (shape, want) = &fixture.floats["input/pixel_values"];
    let (mask, tile) = (fixture.ints("input/tile_mask"), shape[2..].iter().product::<usize>());
    let real = |(pixels, mask): (&[f32], &i64)| (*mask == 1).then(|| pixels.to_vec());
    let want: Vec<f32> = want.chunks(tile).zip(mask).filter_map(real).flatten().collect();
    let all: Vec<Tiles> = rows.iter().flat_map(|row| tiles(&golden.vlm, row)).collect();
    let got: Vec<f32> = all.iter().flat_map(|t| t.normalised().unwrap().f32s().unwrap().to_vec()).collect();
    assert_eq!(got.len(), want.len(), "{name}: number of pixels");
    let wrong = got.iter().zip(&want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
    assert_eq!(wrong, 0, "{name}: {wrong} of {} pixel values differ", want.len());
}

/// Pictures that are left whole: their grids, and their pixels cut into patches in the order of squares, with every frame.
fn patches(golden: &Golden, pictures: &[Tiles], grids: &[i64], want: &[f32], name: &str) {
    let c = golden.vlm.config.vision.as_ref().unwrap();
    let (side, merge) = (c.patch_size, c.merge);
    let mut got = Vec::new();
    for (picture, grid) in pictures.iter().zip(grids.chunks(3)) {
        let all = picture.normalised().unwrap();
        let [_, _, height, width] = *all.shape() else { panic!("{all:?}") };
        let (rows, cols) = (height / side, width / side);
        assert_eq!([1, rows as i64, cols as i64], *grid, "{name}");
        assert_eq!((rows, cols), (picture.rows * merge, picture.cols * merge), "{name}");
        let pixels = all.f32s().unwrap();
        for i in 0..rows * cols {
            let (square, within) = (i / (merge * merge), i % (merge * merge));
            let y = square / (cols / merge) * merge + within / merge;
            let x = square % (cols / merge) * merge + within % merge;
            for channel in 0..3 {
                for _ in 0..c.frames {
                    for line in 0..side {
                        let at = (channel * height + y * side + line) * width + x * side;
                        got.extend_from_slice(&pixels[at..at + side]);
                    }
                }
            }
        }
    }
    assert_eq!((pictures.len() * 3, got.len()), (grids.len(), want.len()), "{name}");
    let wrong = got.iter().zip(want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
    assert_eq!(wrong, 0, "{name}: {wrong} of {} pixel values differ", want.len());
}

pub fn image_modes(golden: &Golden) {
    let fixture = golden.fixture("image_modes.safetensors");
    let processor = golden.vlm.vision().unwrap().images.clone().without_splitting();
    for mode in ["gray", "alpha"] {
        let picture = processor.process(&golden.image(mode)).unwrap();
        if let Some((_, grid)) = fixture.ints.get(&format!("{mode}/image_grid_thw")) {
            patches(golden, &[picture], grid, fixture.f32s(&format!("{mode}/pixel_values")), mode);
            continue;
        }
        let got = picture.normalised().unwrap();
        let want = fixture.f32s(&format!("{mode}/pixel_values"));
        assert!(
            got.f32s().unwrap().iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits())
                && got.len() == want.len(),
            "{mode}: pixels differ"
        );
    }
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn close(what: &str, got: &Tensor, want: &[f32]) {
    assert_close(what, &values(got), &f64s(want), LOGITS);
}

/// Wherever the tensor lies.
fn values(t: &Tensor) -> Vec<f32> {
    t.to_f32().unwrap().f32s().unwrap().to_vec()
}

pub fn vision(golden: &Golden) {
    for name in ["single", "batch", "multi"] {
        let Some(rows) = golden.case(name) else { continue };
        let fixture = golden.fixture(&format!("{name}.safetensors"));
        let all: Vec<Tiles> = rows.iter().flat_map(|row| tiles(&golden.vlm, row)).collect();
        let side = golden.vlm.vision().unwrap();
        let pixels: Vec<&Pixels> = all.iter().map(|t| &t.pixels).collect();
        let (hidden, saved) = side.tower.forward(&pixels, Pass::Infer).unwrap();
        let (features, _) = side.connector.forward(&hidden, Pass::Infer).unwrap();
        for (what, got) in [
            ("ref/vision_embeddings", &saved.embeddings),
            ("ref/vision_output", &hidden),
            ("ref/connector_output", &features),
        ] {
            if let Some((_, want)) = fixture.floats.get(what) {
                close(&format!("{name} {what}"), got, want);
            }
        }
        // All pictures at once or one at a time, the same features.
        let refs: Vec<&Tiles> = all.iter().collect();
        let each = golden.vlm.features(&refs).unwrap();
        close(name, &Tensor::concat(&each.iter().collect::<Vec<_>>()).unwrap(), &values(&features));
    }
}

/// Residual streams and logits of one prompt followed by `more` tokens.
fn run(vlm: &Vlm, row: &Row, more: &[u32]) -> (Vec<Tensor>, Tensor) {
    let tiles = tiles(vlm, row);
    let features = vlm.features(&tiles.iter().collect::<Vec<_>>()).unwrap();
    let mut ids = encode(vlm, row);
    ids.extend_from_slice(more);
    let x = vlm.embed(&[Prompt { ids: &ids, features: features.iter().collect() }]).unwrap();
    let grids: Vec<_> = tiles.iter().map(|t| (t.rows, t.cols)).collect();
    let (positions, _) = vlm.positions(&ids, &grids).unwrap();
    let span = Span { q_start: 0, q_len: ids.len(), k_start: 0, k_len: ids.len() };
    let (hidden, saved) = vlm
        .text
        .forward(x, &positions, &Arc::new(vec![span].into()), Pass::Train { seed: 0, recompute: false })
        .unwrap();
    let (logits, head) = vlm.text.logits(hidden, Pass::Infer).unwrap();
    let mut streams: Vec<Tensor> = saved.hidden_states().cloned().collect();
    streams.push(head.normed().clone());
    (streams, logits)
}

fn last_row(t: &Tensor) -> Vec<f32> {
    values(t)[(t.rows() - 1) * t.cols()..].to_vec()
}

pub fn text(golden: &Golden) {
    for name in CASES {
        let Some(rows) = golden.case(name) else { continue };
        let fixture = golden.fixture(&format!("{name}.safetensors"));
        for (i, row) in rows.iter().enumerate() {
            let (streams, logits) = run(&golden.vlm, row, &[]);
            if let Some((_, want)) = fixture.floats.get("ref/logits") {
                close(&format!("{name} logits"), &logits, want);
            }
            if let Some((_, want)) = fixture.floats.get("ref/logits_last") {
                let want = f64s(&want[i * logits.cols()..(i + 1) * logits.cols()]);
                assert_close(&format!("{name} row {i} last logits"), &last_row(&logits), &want, LOGITS);
            }
            if let Some((_, want)) = fixture.floats.get("ref/hidden_states_last_position") {
                let got: Vec<f32> = streams.iter().flat_map(last_row).collect();
                assert_close(&format!("{name} hidden states"), &got, &f64s(want), LOGITS);
            }
            if let Some((shape, want)) = fixture.floats.get("ref/generated_logits") {
                let generated: Vec<u32> = fixture.ints("ref/generated").iter().map(|&t| t as u32).collect();
                let (_, logits) = run(&golden.vlm, row, &generated[..shape[0] - 1]);
                let all = values(&logits);
                let tail = &all[all.len() - want.len()..];
                assert_close(&format!("{name} logits while decoding"), tail, &f64s(want), LOGITS);
            }
        }
    }
}

pub fn generation(golden: &Golden) {
    let mut together = Vec::new();
    let mut alone = Vec::new();
    for name in CASES {
        let Some(rows) = golden.case(name) else { continue };
        let fixture = golden.fixture(&format!("{name}.safetensors"));
        let width = fixture.ints["ref/generated"].0[1];
        let mut requests = Vec::new();
        for (row, want) in rows.into_iter().zip(fixture.ints("ref/generated").chunks(width)) {
            requests.push(Request {
                messages: row.messages,
                images: row.images,
                tiles: vec![],
                max_new_tokens: width,
                sampling: Sampling { temperature: 0.0, top_p: 1.0 },
                samples: 1,
                seed: 0,
                draft: None,
            });
            alone.push(want.iter().map(|&t| t as u32).collect::<Vec<_>>());
        }
        let got = golden.vlm.generate(&requests).unwrap();
        for (i, completions) in got.iter().enumerate() {
            let want = &alone[together.len() + i];
            assert_eq!(&completions[0].ids, want, "{name} row {i}");
            assert_eq!(
                completions[0].text, golden.report["cases"][name]["generated_text"][i],
                "{name} row {i}"
            );
        }
        together.extend(requests);
    }
    // All cases as one ragged batch, then in reverse: the same tokens.
    for _ in 0..2 {
        let got = golden.vlm.generate(&together).unwrap();
        for (completions, want) in got.iter().zip(&alone) {
            assert_eq!(&completions[0].ids, want, "in one batch");
        }
        together.reverse();
        alone.reverse();
    }
}

/// Logits after the last token of each row.
pub fn last_logits(vlm: &Vlm, rows: &[Row]) -> Vec<f32> {
    rows.iter().flat_map(|row| last_row(&run(vlm, row, &[]).1)).collect()
}

/// Roundings to bf16 on the way to a logit. A text layer: two norms, q, k, v, their rotation (two), the weights of attention, its output, o, the
/// first sum, gate, up, their product, down, the second sum. A vision layer: the same without gate, and without rotation where positions are
/// learned. At the ends: patches, the tower's norm and the projection, or the merger's four, and the last norm.
#[cfg(feature = "host-kernels")]
pub fn roundings(config: &mpa::models::config::Config) -> f64 {
    let vision = config.vision.as_ref();
    let (layer, ends) = if vision.is_some_and(|v| v.tile.is_none()) { (15, 6) } else { (13, 4) };
    (16 * config.text.layers + layer * vision.map_or(0, |v| v.layers) + ends) as f64
}

/// The model in bf16 on `device` against the same weights, rounded to bf16, computed in f32 on the CPU.
#[cfg(feature = "host-kernels")]
pub fn bf16(golden: &Golden, device: &Device) {
    let narrow = |name: &str, param: &mut mpa::models::param::Param| {
        let rounded = param.value.to_dtype(DType::Bf16).unwrap();
        param.value = rounded.to_f32().unwrap_or_else(|e| panic!("{name}: {e}"));
    };
    let mut reference = super::set::load(&golden.folder, None);
    reference.visit(&mut |name, param| narrow(name, param));
    let kernels = super::set::load(&golden.folder, None).to_device(device, DType::Bf16).unwrap();
    // Each is off by 2^-9 of the value in the root mean square, and independent errors add up like the root of their number. The largest of 10^5
    // is 4.5 deviations off if all have one; those of some rows are larger: transformers in bf16 (5.24, torch 2.8, CPU) has one of 6.2 on qwen2vl.
    let roundings = roundings(&reference.config);
    for name in CASES {
        let Some(rows) = golden.case(name) else { continue };
        for row in &rows {
            let want = f64s(&values(&run(&reference, row, &[]).1));
            let got = values(&run(&kernels, row, &[]).1);
            let size = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
            let deviation = size * roundings.sqrt() * 2f64.powi(-9);
            assert_close(
                &format!("{name} in bf16"),
                &got,
                &want,
                Tolerance { abs: 7.0 * deviation, rel: 0.0 },
            );
            let square = |(g, w): (&f32, &f64)| (f64::from(*g) - w).powi(2);
            let error = (got.iter().zip(&want).map(square).sum::<f64>() / want.len() as f64).sqrt();
            assert!(
                error <= deviation,
                "{name} in bf16: errors of {error} in the root mean square, {deviation} expected"
            );
        }
    }
}
