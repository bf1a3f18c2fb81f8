//! Decoding beyond the golden runs: sampling streams, shared prompts and pictures, limits.

#[path = "common/models.rs"]
mod models;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mpa::models::generate::{Completion, Request};
use mpa::models::image::Rgb;
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::ops::sample::Sampling;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

fn vlm() -> Vlm {
    Vlm::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm").to_str().unwrap(), None)
        .unwrap()
}

fn picture() -> Arc<Rgb> {
    Arc::new(Rgb { width: 31, height: 47, data: (0..31 * 47 * 3).map(|i| (i * 7 % 251) as u8).collect() })
}

fn request(text: &str, images: &[Arc<Rgb>], samples: usize, seed: u64) -> Request {
    let mut content: Vec<Content> = images.iter().map(|_| Content::Image).collect();
    content.push(Content::Text(text.to_string()));
    Request {
        messages: vec![Message::new("user", content)],
        images: images.to_vec(),
        tiles: vec![],
        max_new_tokens: 9,
        sampling: Sampling { temperature: 1.0, top_p: 0.9 },
        samples,
        seed,
        draft: None,
    }
}

fn ids(completions: &[Completion]) -> Vec<Vec<u32>> {
    completions.iter().map(|c| c.ids.clone()).collect()
}

#[test]
fn samples_are_streams_of_their_own() {
    let vlm = vlm();
    let image = picture();
    let four = vlm.generate(&[request("Ask.", std::slice::from_ref(&image), 4, 7)]).unwrap();
    let two = vlm.generate(&[request("Ask.", std::slice::from_ref(&image), 2, 7)]).unwrap();
    let other = vlm.generate(&[request("Ask.", &[image], 4, 8)]).unwrap();
    let four = ids(&four[0]);
    assert_eq!(four[..2], ids(&two[0])[..], "fewer samples are the first of more");
    assert_ne!(four, ids(&other[0]), "another seed");
    assert!(four.iter().any(|s| s != &four[0]), "samples differ from each other");
}

#[test]
fn neighbours_do_not_change_what_is_drawn() {
    let vlm = vlm();
    let image = picture();
    let wanted = request("What is on it?", std::slice::from_ref(&image), 3, 11);
    let alone = ids(&vlm.generate(std::slice::from_ref(&wanted)).unwrap()[0]);
    let mut batch: Vec<Request> = (0..20)
        .map(|i| {
            request(
                &"Tell me more. ".repeat(1 + i % 5),
                if i % 2 == 0 { &[] } else { std::slice::from_ref(&image) },
                1 + i % 3,
                i as u64,
            )
        })
        .collect();
    for place in [0, 7, 20] {
        batch.insert(place, wanted.clone());
        let all = vlm.generate(&batch).unwrap();
        assert_eq!(all.len(), batch.len());
        assert!(all.iter().zip(&batch).all(|(c, r)| c.len() == r.samples));
        assert_eq!(ids(&all[place]), alone, "in place {place}");
        batch.remove(place);
    }
}

#[test]
fn threads_do_not_change_a_token() {
    let vlm = vlm();
    let batch: Vec<Request> = (0..6).map(|i| request("Describe.", &[picture()], 2, i)).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| vlm.generate(&batch).unwrap())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

#[test]
fn limits_are_kept_and_bad_requests_refused() {
    let vlm = vlm();
    let mut none = request("Hello.", &[], 1, 0);
    none.max_new_tokens = 0;
    assert!(vlm.generate(&[none]).unwrap()[0][0].ids.is_empty());
    assert!(vlm.generate(&[]).unwrap().is_empty());
    assert_eq!(vlm.generate(&[request("Hello.", &[], 0, 0)]).unwrap_err().exit_code(), 2);

    let long = request(&"long ".repeat(3000), &[], 1, 0);
    let e = vlm.generate(&[long]).unwrap_err();
    assert!(e.to_string().contains("2047"), "{e}");

    let mut nearly = request("x", &[], 1, 0);
    nearly.max_new_tokens = usize::MAX;
    nearly.sampling.temperature = 0.0;
    let room = 2048 - vlm.encode(&nearly.messages, &[], true).unwrap().len();
    let done = &vlm.generate(&[nearly]).unwrap()[0][0];
    assert!(done.ended || done.ids.len() == room, "{} of {room}", done.ids.len());
}

#[test]
fn a_missing_picture_is_an_error() {
    let mut request = request("What is it?", &[picture()], 1, 0);
    request.images.clear();
    assert!(vlm().generate(&[request]).is_err());
}

/// Both families' tiny checkpoints.
fn models() -> [Vlm; 2] {
    ["smolvlm", "qwen2vl"].map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        Vlm::load(folder.to_str().unwrap(), None).unwrap()
    })
}

fn greedy(text: &str, images: &[Arc<Rgb>], draft: Option<&str>) -> Request {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0 };
    Request { sampling, draft: draft.map(str::to_string), ..request(text, images, 1, 0) }
}

fn one(vlm: &Vlm, request: &Request) -> Completion {
    vlm.generate(std::slice::from_ref(request)).unwrap().remove(0).remove(0)
}

#[test]
fn drafts_change_no_token() {
    let image = picture();
    for vlm in models() {
        for (text, images) in [("What is on it?", std::slice::from_ref(&image)), ("Two colours.", &[])] {
            for max_new_tokens in [0, 1, 4, 9] {
                let plain = Request { max_new_tokens, ..greedy(text, images, None) };
                let want = one(&vlm, &plain);
                // What it writes itself, the beginning of that, that and more, something else, and nothing.
                let own = one(&vlm, &greedy(text, images, None)).text;
                let half: String = own.chars().take(own.chars().count() / 2).collect();
                for draft in [&own, &half, &format!("{own} and more of it, much more"), "no, 42", ""] {
                    let got = one(&vlm, &Request { draft: Some(draft.to_string()), ..plain.clone() });
                    assert_eq!(
                        (&got.ids, &got.text, got.ended),
                        (&want.ids, &want.text, want.ended),
                        "{draft:?}"
                    );
                    assert!(got.draft_logprob.unwrap() < 0.0);
                }
            }
            // Drawn at random, the tokens are those of the stream.
            let drawn = request(text, images, 3, 5);
            let with = Request { draft: Some("a draft".into()), ..drawn.clone() };
            let [want, got] = [drawn, with].map(|r| ids(&vlm.generate(&[r]).unwrap()[0]));
            assert_eq!(got, want);
        }
    }
}

/// A model that ends its answers: where the draft is the whole of one, nothing is left to decode.
#[test]
fn a_draft_that_ends_ends_the_answer() {
    for vlm in models() {
        let own = one(&vlm, &greedy("Two colours.", &[], None));
        let messages = [Message::new("user", vec![Content::Text("Two colours.".into())])];
        let (whole, start) = vlm.encode_answered(&messages, &[], &own.text).unwrap();
        // Let the token after the first one of the draft be an end token: what is decoded must stop there.
        let mut ending = vlm;
        let second = own.ids[1];
        ending.config.eos_token_ids.push(second);
        let want = one(&ending, &greedy("Two colours.", &[], None));
        assert_eq!((&want.ids[..], want.ended), (&own.ids[..1], true));
        let got = one(&ending, &greedy("Two colours.", &[], Some(&own.text)));
        assert_eq!((got.ids, got.ended), (want.ids, true), "{:?}", &whole[start..]);
    }
}

#[test]
fn the_logprob_of_a_draft_is_the_mean_over_its_tokens() {
    use mpa::models::linear::Pass;
    use mpa::models::vlm::Prompt;
    use mpa::ops::attention::Span;

    let image = picture();
    for vlm in models() {
        let request = greedy("What is on it?", std::slice::from_ref(&image), Some("a red 7"));
        let got = one(&vlm, &request).draft_logprob.unwrap();

        let tiles = vlm.vision().unwrap().images.process(&image).unwrap();
        let features = vlm.features(&[&tiles]).unwrap();
        let grids = [(tiles.rows, tiles.cols)];
        let (ids, start) = vlm.encode_answered(&request.messages, &grids, "a red 7").unwrap();
        let (positions, _) = vlm.positions(&ids, &grids).unwrap();
        let x = vlm.embed(&[Prompt { ids: &ids, features: features.iter().collect() }]).unwrap();
        let span = Span { q_start: 0, q_len: ids.len(), k_start: 0, k_len: ids.len() };
        let (x, _) = vlm.text.forward(x, &positions, &Arc::new(vec![span].into()), Pass::Infer).unwrap();
        let (logits, _) = vlm.text.logits(x, Pass::Infer).unwrap();
        let rows: Vec<&[f32]> = logits.f32s().unwrap().chunks(logits.cols()).collect();
        let logprob = |i: usize| {
            let row = rows[i - 1];
            let most = row.iter().fold(f64::MIN, |m, &x| m.max(f64::from(x)));
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - most).exp()).sum();
            f64::from(row[ids[i] as usize]) - most - sum.ln()
        };
        let want = (start..ids.len()).map(logprob).sum::<f64>() / (ids.len() - start) as f64;
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }
}

#[test]
fn prompts_that_begin_alike_are_as_alone() {
    let (image, other) = (picture(), Arc::new(Rgb { width: 40, height: 30, data: vec![200; 3600] }));
    for vlm in models() {
        let mut batch = Vec::new();
        for (i, text) in
            ["What is on it?", "What is on the left?", "Why?", "What is on it?"].iter().enumerate()
        {
            let images = [std::slice::from_ref(&image), std::slice::from_ref(&other), &[]];
            for images in images {
                batch.push(greedy(text, images, (i % 2 == 0).then_some("a red 7")));
            }
        }
        let alone: Vec<Completion> = batch.iter().map(|request| one(&vlm, request)).collect();
        for _ in 0..2 {
            let together = vlm.generate(&batch).unwrap();
            for (request, got) in batch.iter().zip(&together) {
                let at = batch.iter().position(|r| std::ptr::eq(r, request)).unwrap();
                assert_eq!(got[0].ids, alone[at].ids);
                // To the bit.
                assert_eq!(got[0].draft_logprob, alone[at].draft_logprob);
            }
        }
    }
}

/// A still picture stands in each frame of a patch: one frame whose weights are the sum of theirs sees the same.
#[test]
fn patches_of_one_frame_are_those_of_two_with_their_sum() {
    const PATCH: &str = "visual.patch_embed.proj.weight";
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen2vl");
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    models::copy(&golden, at);
    let config = fs::read_to_string(golden.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["vision_config"]["temporal_patch_size"] = 1.into();
    fs::write(at.join("config.json"), config.to_string()).unwrap();

    let bytes = fs::read(golden.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let two = file.tensor(PATCH).unwrap();
    let &[c, 3, 2, side, across] = two.shape() else { panic!("{:?}", two.shape()) };
    let number = |i: usize| f32::from_le_bytes(two.data()[4 * i..][..4].try_into().unwrap());
    let of_frame = side * across;
    let sum = |i: usize| {
        number(i / of_frame * 2 * of_frame + i % of_frame)
            + number((i / of_frame * 2 + 1) * of_frame + i % of_frame)
    };
    let one: Vec<u8> = (0..c * 3 * of_frame).flat_map(|i| sum(i).to_le_bytes()).collect();
    let one = TensorView::new(Dtype::F32, vec![c, 3, 1, side, across], &one).unwrap();
    let others = file.tensors().into_iter().filter(|(name, _)| name != PATCH);
    let tensors = others.chain([(PATCH.to_string(), one)]);
    fs::write(at.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();

    let features = |folder: &Path| {
        let vlm = Vlm::load(folder.to_str().unwrap(), None).unwrap();
        let tiles = vlm.vision().unwrap().images.process(&picture()).unwrap();
        vlm.features(&[&tiles]).unwrap()[0].f32s().unwrap().to_vec()
    };
    let (one, two) = (features(at), features(&golden));
    assert!(two.iter().any(|x| x.abs() > 0.1) && one.len() == two.len());
    // Two sums of 588 terms in other orders, through two blocks.
    let apart = one.iter().zip(&two).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart}");
}
