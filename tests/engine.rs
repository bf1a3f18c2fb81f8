//! Requests that come and go: what each yields is what it yields alone.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use mpa::error::{Error, Result};
use mpa::models::engine::{Exchange, Limits, Next, Spent};
use mpa::models::generate::{Completion, Request};
use mpa::models::image::Rgb;
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::ops::kv_cache::{PAGE, PageType};
use mpa::ops::sample::Sampling;

fn models() -> [Vlm; 2] {
    ["smolvlm", "qwen2vl"].map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        Vlm::load(folder.to_str().unwrap(), None).unwrap()
    })
}

fn picture(i: usize) -> Arc<Rgb> {
    let (width, height) = (31 + 5 * i, 47 - 3 * i);
    let data = (0..width * height * 3).map(|p| (p * (7 + i) % 251) as u8).collect();
    Arc::new(Rgb { width, height, data })
}

fn request(i: usize, pictures: &[Arc<Rgb>]) -> Request {
    let images: Vec<Arc<Rgb>> =
        if i % 4 == 3 { vec![] } else { vec![Arc::clone(&pictures[i % pictures.len()])] };
    let mut content: Vec<Content> = images.iter().map(|_| Content::Image).collect();
    // What begins alike for longer than a page, where there is no picture.
    let preface = if images.is_empty() { "In a few words, ".repeat(40) } else { String::new() };
    let question = ["What is on it?", "Why is that so, in a few words?", "Colours."][i % 3];
    content.push(Content::Text(preface + &question.repeat(1 + i % 2)));
    let temperature = if i.is_multiple_of(5) { 1.0 } else { 0.0 };
    Request {
        messages: vec![Message::new("user", content)],
        images,
        tiles: vec![],
        max_new_tokens: [1, 12, 0, 5, 7][i % 5],
        sampling: Sampling { temperature, top_p: 0.9 },
        samples: 1 + i % 3 / 2,
        seed: i as u64,
        draft: (i % 2 == 1).then(|| "a red 7".to_string()),
    }
}

/// Hands out `requests`, and now and then none although there are more.
struct Desk {
    requests: VecDeque<Request>,
    asked: usize,
    answers: Vec<Option<Result<Vec<Completion>>>>,
    order: Vec<usize>,
    /// Requests given out and not answered, at most.
    under_way: usize,
    most: usize,
    /// All are at hand.
    steady: bool,
}

impl Desk {
    fn new(requests: Vec<Request>) -> Desk {
        let answers = requests.iter().map(|_| None).collect();
        let (requests, order) = (requests.into(), Vec::new());
        Desk { requests, asked: 0, answers, order, under_way: 0, most: 0, steady: false }
    }

    fn go(mut self, vlm: &Vlm, limits: Limits) -> (Desk, Spent) {
        let spent = vlm.answer(limits, &mut self).unwrap();
        assert!(self.requests.is_empty() && self.answers.iter().all(Option::is_some));
        (self, spent)
    }
}

impl Exchange for Desk {
    fn next(&mut self, wait: bool) -> Result<Next> {
        self.asked += 1;
        if !wait && !self.steady && self.asked.is_multiple_of(3) {
            return Ok(Next::Later);
        }
        let next = self.requests.pop_front();
        self.under_way += usize::from(next.is_some());
        self.most = self.most.max(self.under_way);
        Ok(next.map_or(Next::End, Next::Request))
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        assert!(self.answers[index].is_none(), "request {index} is answered twice");
        self.answers[index] = Some(answer);
        self.order.push(index);
        self.under_way -= 1;
        Ok(())
    }
}

#[test]
fn limits_and_neighbours_change_no_answer() {
    let pictures: Vec<_> = (0..3).map(picture).collect();
    let [smol, qwen] = models();
    let [mut smol_int8, _] = models();
    smol_int8.pages = PageType::Int8;
    for vlm in [smol, qwen, smol_int8] {
        let mut requests: Vec<Request> = (0..30).map(|i| request(i, &pictures)).collect();
        vlm.prepare(&mut requests).unwrap();
        let alone = |r: &Request| vlm.generate(std::slice::from_ref(r)).unwrap().remove(0);
        let want: Vec<Vec<Completion>> = requests.iter().map(alone).collect();
        let page = PAGE * vlm.text.cache_bytes(vlm.pages);
        let some = Limits::completions(4);
        let limits = [
            Limits::completions(1),
            some,
            Limits::completions(100),
            // Prompts in pieces, and a cache with room for one or two of them.
            Limits { pass_tokens: 16, ..some },
            // A picture that is larger than a pass over pictures is a pass.
            Limits { pass_patches: 1, ..some },
            Limits { cache_bytes: Some(8 * page), ..some },
        ];
        for limits in limits {
            let (desk, spent) = Desk::new(requests.clone()).go(&vlm, limits);
            for (i, (got, want)) in desk.answers.iter().zip(&want).enumerate() {
                // Log-probabilities to the bit.
                assert_eq!(got.as_ref().unwrap().as_ref().unwrap(), want, "request {i}, {limits:?}");
            }
            assert!(desk.most <= limits.completions, "{} under way, {limits:?}", desk.most);
            let new: usize = want.iter().flatten().map(|c| c.ids.len()).sum();
            assert!(spent.new_tokens > 0 && spent.new_tokens <= new, "{spent:?}");
            assert_eq!(spent.pictures, pictures.len());
            if limits == some {
                // What is short goes out before what is long.
                assert!(!desk.order.is_sorted(), "{:?}", desk.order);
            }
            if limits.completions == 100 {
                assert!(spent.shared_tokens > 0, "{spent:?}");
            }
        }
    }
}

#[test]
fn what_can_never_fit_is_told_and_the_rest_answered() {
    let [vlm, _] = models();
    let mut requests: Vec<Request> = (0..6).map(|i| request(i, &[picture(0)])).collect();
    requests[2].messages = vec![Message::new("user", vec![Content::Text("long ".repeat(3000))])];
    requests[2].images.clear();
    requests[2].max_new_tokens = 1;
    requests[4].samples = 0;
    requests[5].max_new_tokens = 1500;
    let row = vlm.text.cache_bytes(vlm.pages);
    let limits = Limits { cache_bytes: Some(1000 * row), ..Limits::completions(3) };
    let (desk, _) = Desk::new(requests.clone()).go(&vlm, limits);
    for (i, answer) in desk.answers.iter().enumerate() {
        match (i, answer.as_ref().unwrap()) {
            (2, Err(Error::TooLong { most: 2047, .. })) | (4, Err(Error::Usage(_))) => {}
            (5, Err(Error::OutOfMemory { wanted, .. })) => assert!(*wanted > 1500 * row),
            (0 | 1 | 3, Ok(got)) => assert_eq!(*got, vlm.generate(&requests[i..=i]).unwrap()[0]),
            (i, other) => panic!("request {i}: {other:?}"),
        }
    }
}

/// A picture that Qwen2-VL refuses, among others and however early pictures are cut up.
#[test]
fn a_picture_that_no_model_takes_ends_its_own_request_alone() {
    let [_, vlm] = models();
    let thin = Arc::new(Rgb { width: 402, height: 2, data: vec![9; 402 * 2 * 3] });
    let mut requests: Vec<Request> = (0..3).map(|i| request(i, &[picture(0)])).collect();
    requests[1].images = vec![thin];
    let want = [0, 2].map(|i| vlm.generate(&requests[i..=i]).unwrap().remove(0));
    for ahead in [false, true] {
        if ahead {
            vlm.prepare(&mut requests).unwrap();
        }
        let (desk, _) = Desk::new(requests.clone()).go(&vlm, Limits::completions(3));
        let [Some(Ok(first)), Some(Err(error)), Some(Ok(last))] = &desk.answers[..] else {
            panic!("{:?}", desk.answers);
        };
        assert_eq!([first, last], [&want[0], &want[1]]);
        assert!(matches!(error, Error::Picture { width: 402, height: 2, .. }), "{error}");
    }
}

/// A picture about which three ask one after the other is seen once, and its tokens are computed once, though each is answered before the
/// next one comes. When nobody holds it any more it is forgotten.
#[test]
fn a_picture_that_is_still_held_is_seen_once() {
    for vlm in models() {
        let mut requests: Vec<Request> = [0, 1, 2].map(|i| request(i, &[picture(0)])).to_vec();
        let images = requests[0].images.clone();
        for r in &mut requests {
            r.images.clone_from(&images);
            r.samples = 1;
        }
        vlm.prepare(&mut requests).unwrap();
        let alone = |r: &Request| vlm.generate(std::slice::from_ref(r)).unwrap().remove(0);
        let want: Vec<Vec<Completion>> = requests.iter().map(alone).collect();
        let grid = (requests[0].tiles[0].rows, requests[0].tiles[0].cols);
        let features = vlm.encode(&requests[0].messages, &[grid], true).unwrap();
        let features = vlm.picture_tokens(&features).len();
        let held = requests.clone();
        // Pages for one request and little more: those of the last one are kept as long as there is room.
        let tight = Limits {
            cache_bytes: Some(3 * PAGE * vlm.text.cache_bytes(vlm.pages)),
            ..Limits::completions(1)
        };
        for limits in [Limits::completions(1), tight] {
            let (desk, spent) = Desk::new(requests.clone()).go(&vlm, limits);
            let got: Vec<_> = desk.answers.into_iter().map(|a| a.unwrap().unwrap()).collect();
            assert_eq!(got, want, "{limits:?}");
            assert_eq!(spent.pictures, 1, "{spent:?}");
            let least = if limits == tight { 0 } else { 2 * features };
            assert!(spent.shared_tokens >= least, "{spent:?}, {features} picture tokens");
        }
        drop(held);
    }
}

/// Full pages of what requests begin with are there once: more of them are under way than would fit with copies.
#[test]
fn what_begins_alike_takes_its_pages_once() {
    let [vlm, _] = models();
    let ask = |i: usize| Request {
        messages: vec![Message::new(
            "user",
            vec![Content::Text("In a few words, ".repeat(60) + &format!("why is {i}?"))],
        )],
        images: vec![],
        tiles: vec![],
        max_new_tokens: 4,
        sampling: Sampling { temperature: 0.0, top_p: 1.0 },
        samples: 1,
        seed: 0,
        draft: None,
    };
    let requests: Vec<Request> = (0..6).map(ask).collect();
    let tokens = vlm.encode(&requests[0].messages, &[], true).unwrap().len();
    let full = tokens / PAGE;
    assert!(full >= 2 && tokens % PAGE + 4 <= PAGE, "{tokens} tokens");
    let want = vlm.generate(&requests).unwrap();
    let steps = |pages: usize| {
        let cache_bytes = Some(pages * PAGE * vlm.text.cache_bytes(vlm.pages));
        let desk = Desk { steady: true, ..Desk::new(requests.clone()) };
        let (desk, spent) = desk.go(&vlm, Limits { cache_bytes, ..Limits::completions(7) });
        let got: Vec<_> = desk.answers.into_iter().map(|a| a.unwrap().unwrap()).collect();
        assert_eq!(got, want);
        spent.steps
    };
    let each = want.iter().map(|w| w[0].ids.len() - 1).max().unwrap();
    // Six times the last page of a request, and once those before it: all together, one step behind the first. With one page less one has to wait.
    assert_eq!(steps(full + 6), each + 1);
    assert!(steps(full + 5) > each + 1);
    assert!(steps(full + 1) > steps(full + 3));
}

/// It is what a draft saves that is lost, not the answer.
#[test]
fn a_draft_that_there_is_no_room_for_is_left_out() {
    for vlm in models() {
        let plain = Request { draft: None, max_new_tokens: 5, ..request(2, &[picture(0)]) };
        let long = Request { draft: Some("a red 7 ".repeat(60)), ..plain.clone() };
        let want = vlm.generate(std::slice::from_ref(&plain)).unwrap().remove(0);
        assert!(vlm.generate(std::slice::from_ref(&long)).unwrap()[0][0].draft_logprob.is_some());
        let pages = |n: usize| Limits {
            cache_bytes: Some(n * PAGE * vlm.text.cache_bytes(vlm.pages)),
            ..Limits::completions(1)
        };
        // As many as it has room in without the draft.
        let fits = |n: &usize| {
            Desk::new(vec![plain.clone()]).go(&vlm, pages(*n)).0.answers[0].as_ref().unwrap().is_ok()
        };
        let least = (1..9).find(fits).unwrap();
        let (desk, _) = Desk::new(vec![long]).go(&vlm, pages(least));
        assert_eq!(desk.answers[0].as_ref().unwrap().as_ref().unwrap(), &want);
    }
}
