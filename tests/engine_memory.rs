//! What the engine takes of a GPU, with the CPU in its place: what is foretold is what it takes, and it does with what there is.
#![cfg(feature = "host-kernels")]

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
use mpa::tensor::{DType, Device, Gpu};

fn model(name: &str, pages: PageType) -> (Vlm, Arc<Gpu>) {
    let gpu = Gpu::host(1).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let vlm = Vlm::load(folder.to_str().unwrap(), None).unwrap();
    let mut vlm = vlm.to_device(&Device::Cuda(Arc::clone(&gpu)), DType::F32).unwrap();
    vlm.pages = pages;
    (vlm, gpu)
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

fn tokens(vlm: &Vlm, request: &Request) -> usize {
    let grids: Vec<_> = request.tiles.iter().map(|t| (t.rows, t.cols)).collect();
    vlm.encode(&request.messages, &grids, true).unwrap().len()
}

#[test]
fn probe() {
    for name in ["smolvlm", "qwen2vl"] {
        let (vlm, gpu) = model(name, PageType::Float);
        let vision = vlm.vision.as_ref().unwrap();
        println!("{name} most patches {}", vision.most_patches());
        for side in [30, 60, 100, 200, 400, 1000] {
            let mut r = [request("", vec![picture(0, side)], "What?")];
            vlm.prepare(&mut r).unwrap();
            println!("side {side}: {} tokens, {} patches", tokens(&vlm, &r[0]), vision.patches(&r[0].tiles[0]).unwrap());
        }
        for (c, p) in [(3, 600), (64, 8192)] {
            let t = std::time::Instant::now();
            println!("{:?} {:?}", vlm.room(Limits { pass_tokens: p, ..Limits::completions(c) }).unwrap(), t.elapsed());
        }
        println!("{:?}", gpu.memory_use());
    }
}
