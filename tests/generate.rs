//! Decoding beyond the golden runs: sampling streams, shared prompts and pictures, limits.

use std::path::Path;
use std::sync::Arc;

use mpa::models::generate::{Completion, Request};
use mpa::models::image::Rgb;
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::ops::sample::Sampling;

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
