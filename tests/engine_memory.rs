//! What the engine takes of a GPU, with the CPU in its place: what is foretold is what it takes, and it does with what there is.
#![cfg(feature = "host-kernels")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use mpa::error::{Error, Result};
use mpa::models::engine::{Exchange, Limits, Next, Spent};
use mpa::models::generate::{Completion, Request};
use mpa::models::image::Rgb;
use mpa::models::int8::{Parts, ROTATION};
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::ops::kv_cache::{PAGE, PageType};
use mpa::ops::sample::Sampling;
use mpa::quant::Folds;
use mpa::tensor::{DType, Device, Gpu};

/// With pages in int8 the weights are too, and activations bf16.
fn model(name: &str, pages: PageType) -> (Vlm, Arc<Gpu>) {
    let gpu = Gpu::host(1).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let mut vlm = Vlm::load(folder.to_str().unwrap(), None).unwrap();
    vlm.pages = pages;
    let dtype = if pages.is_float() { DType::F32 } else { DType::Bf16 };
    if !pages.is_float() {
        vlm.quantize(Parts::default(), &Folds::new(), ROTATION).unwrap();
    }
    (vlm.to_device(&Device::Cuda(Arc::clone(&gpu)), dtype).unwrap(), gpu)
}

fn picture(i: usize, side: usize) -> Arc<Rgb> {
    let data = (0..side * side * 3).map(|p| (p * (7 + i) % 251) as u8).collect();
    Arc::new(Rgb { width: side, height: side, data })
}

fn request(before: &str, images: Vec<Arc<Rgb>>, question: &str) -> Request {
    let mut content = vec![Content::Text(before.to_string())];
    content.extend(images.iter().map(|_| Content::Image));
    content.push(Content::Text(question.to_string()));
    Request {
        messages: vec![Message::new("user", content)],
        images,
        tiles: vec![],
        max_new_tokens: 6,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 0,
        draft: None,
    }
}

/// All requests at hand from the start.
#[derive(Default)]
struct Desk {
    requests: VecDeque<Request>,
    answers: Vec<Option<Result<Vec<Completion>>>>,
}

impl Exchange for Desk {
    fn next(&mut self, _: bool) -> Result<Next> {
        Ok(self.requests.pop_front().map_or(Next::End, Next::Request))
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        self.answers[index] = Some(answer);
        Ok(())
    }
}

fn answers(vlm: &Vlm, limits: Limits, requests: &[Request]) -> (Vec<Result<Vec<Completion>>>, Spent) {
    let answers = requests.iter().map(|_| None).collect();
    let mut desk = Desk { requests: requests.to_vec().into(), answers };
    let spent = vlm.answer(limits, &mut desk).unwrap();
    (desk.answers.into_iter().map(Option::unwrap).collect(), spent)
}

/// Tokens of a request's prompt, and of the prompt with its draft.
fn tokens(vlm: &Vlm, request: &Request) -> (usize, usize) {
    let grids: Vec<_> = request.tiles.iter().map(|t| (t.rows, t.cols)).collect();
    let prompt = vlm.encode(&request.messages, &grids, true).unwrap().len();
    let draft = request.draft.as_deref().unwrap_or_default();
    (prompt, vlm.encode_answered(&request.messages, &grids, draft).unwrap().0.len())
}

/// The largest n up to `end` with f(n) <= most; f never falls.
fn largest(end: usize, most: usize, f: impl Fn(usize) -> usize) -> usize {
    let all: Vec<usize> = (0..=end).collect();
    all.partition_point(|&n| f(n) <= most) - 1
}

/// Two requests that come near all that `LIMITS` allow at once. A long one with pictures almost up to its end, so that its embeddings are held to the
/// last of its passes, which sees a whole context of keys and, together with the other one, has as many tokens as a pass takes; rows of logits for
/// their drafts; three sequences to be decoded. Then one with as many pictures as a pass through the vision tower takes, which finds the memory as
/// the others have left it.
fn load(vlm: &Vlm) -> Vec<Request> {
    let ask = |pictures: &Request, n: usize, before: usize, draft: usize| Request {
        tiles: pictures.tiles[..n].to_vec(),
        draft: Some("7 ".repeat(draft)),
        ..request(&"7 ".repeat(before), pictures.images[..n].to_vec(), "What?")
    };
    let mut pictures = [request("", (0..120).map(|i| picture(i, 50)).collect(), "")];
    vlm.prepare(&mut pictures).unwrap();
    let pictures = &pictures[0];
    let short = Request { samples: 2, ..ask(pictures, 0, 0, 30) };
    let pass = LIMITS.pass_tokens;
    let (begin, end) = (3 * pass + 24, 4 * pass - tokens(vlm, &short).1);
    let n = largest(120, begin, |n| tokens(vlm, &ask(pictures, n, 0, 0)).0);
    let before = largest(2000, begin, |before| tokens(vlm, &ask(pictures, n, before, 0)).0);
    let draft = largest(500, end, |draft| tokens(vlm, &ask(pictures, n, before, draft)).1);
    let mut others = [request("", (0..80).map(|i| picture(i, 50)).collect(), "")];
    vlm.prepare(&mut others).unwrap();
    let each = vlm.vision.as_ref().unwrap().patches(&others[0].tiles[0]).unwrap();
    vec![ask(pictures, n, before, draft), short, ask(&others[0], LIMITS.pass_patches / each, 0, 0)]
}

const CONTEXT: usize = 2048;
const LIMITS: Limits = Limits { completions: 3, pass_tokens: 520, pass_patches: 1280, cache_bytes: None };

#[test]
fn passes_take_what_is_foretold() {
    for (name, pages) in [
        ("smolvlm", PageType::Float),
        ("smolvlm", PageType::Int8),
        ("qwen2vl", PageType::Float),
        ("qwen2vl", PageType::Int8),
    ] {
        let (mut vlm, gpu) = model(name, pages);
        vlm.config.text.max_positions = CONTEXT;
        let weights = gpu.memory_use().in_use;
        // The first two requests' pages and no more.
        let cache_bytes = Some(30 * PAGE * vlm.text.cache_bytes(pages));
        let limits = Limits { cache_bytes, ..LIMITS };
        let room = vlm.room(limits).unwrap();
        assert_eq!((room.limits, room.longest, room.pages), (limits, CONTEXT, 30));
        let (answers, spent) = answers(&vlm, limits, &load(&vlm));
        let completions: Vec<usize> = answers.iter().map(|a| a.as_ref().unwrap().len()).collect();
        assert_eq!((completions, spent.restarts), (vec![1, 2, 1], 0));
        let cache = room.pages * room.page_bytes;
        let took = gpu.memory_use().most_reserved - weights - cache;
        // In the order of these requests blocks of other sizes are left over than in the order of the rehearsal.
        let near = took.abs_diff(room.passes) * 10 <= took;
        assert!(near && took <= room.kept_free(), "{name} {pages:?}: {took} of {room:?}");
    }
}

/// Where there is room for one small pass after the other and a few pages, every request is answered as where there is room for all, without one pass
/// that runs out of memory; where there is room for less, those that are too long are told so, and the others answered.
#[test]
fn little_memory_is_enough() {
    for name in ["smolvlm", "qwen2vl"] {
        let (vlm, gpu) = model(name, PageType::Float);
        let pictures: Vec<_> = (0..3).map(|i| picture(i, 40 + 10 * i)).collect();
        let ask = |i: usize| {
            let images = if i % 4 == 3 { vec![] } else { vec![Arc::clone(&pictures[i % 3])] };
            let question = ["What is on it?", "Why is that so?", "Colours."][i % 3];
            Request {
                samples: 1 + i % 3 / 2,
                draft: (i % 2 == 1).then(|| "a red 7".to_string()),
                sampling: Sampling { temperature: if i.is_multiple_of(5) { 1.0 } else { 0.0 }, top_p: 0.9 },
                ..request("", images, question)
            }
        };
        let mut requests: Vec<Request> = (0..9).map(ask).collect();
        // More completions than there are to be, and a prompt of several passes.
        requests[4].samples = 5;
        requests.push(request(&"7 ".repeat(700), vec![], "What?"));
        vlm.prepare(&mut requests).unwrap();
        let limits = Limits::completions(4);
        let plenty = vlm.room(limits).unwrap();
        let (want, _) = answers(&vlm, limits, &requests);
        let mut tightest = plenty;
        for (megabytes, fits_all) in [(12, true), (5, false)] {
            let free = gpu.free_memory().unwrap() >> 20;
            let _ballast: Vec<_> = (megabytes..free).map(|_| gpu.alloc(1 << 20).unwrap()).collect();
            let room = vlm.room(limits).unwrap();
            assert!(room.passes < tightest.passes && room.pages >= room.longest.div_ceil(PAGE), "{room:?}");
            tightest = room;
            let (got, spent) = answers(&vlm, limits, &requests);
            assert_eq!(spent.restarts, 0, "{room:?}");
            let mut refused = 0;
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                match (got, want) {
                    (Ok(got), Ok(want)) => assert_eq!(got, want, "{name} {i}"),
                    (Err(Error::OutOfMemory { .. }), _) if !fits_all => refused += 1,
                    other => panic!("{name} {i}: {other:?}"),
                }
            }
            assert!(refused < requests.len() && (fits_all || refused > 0), "{refused} refused, {room:?}");
        }
    }
}

/// The launches of a decode step are kept with the addresses of the cache that they read; a cache that is made anew is another.
#[test]
fn no_step_reads_a_cache_that_is_gone() {
    let (vlm, _gpu) = model("smolvlm", PageType::Float);
    let ask = |words: usize, new: usize| Request {
        max_new_tokens: new,
        ..request(&"7 ".repeat(words), vec![], "What?")
    };
    let long = |most: usize| largest(200, most, |words| tokens(&vlm, &ask(words, 1)).0);
    // A page, then two; the second's first steps are not longer than what the first's launches serve.
    let (few, more) = (PAGE - 28, PAGE - 8);
    let requests = [ask(long(few), 12), ask(long(more), 30)];
    let answered = |requests: &[Request]| -> Vec<Vec<Completion>> {
        let (answers, _) = answers(&vlm, Limits::completions(1), requests);
        answers.into_iter().map(Result::unwrap).collect()
    };
    let together = answered(&requests);
    assert!(together[0][0].ids.len() >= 3 && together[1][0].ids.len() > 8, "{together:?}");
    let alone: Vec<_> = requests.iter().flat_map(|request| answered(std::slice::from_ref(request))).collect();
    assert_eq!(together, alone);
}
