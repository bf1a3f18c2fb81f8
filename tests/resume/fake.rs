//! A teacher and a student that follow a script, and a run folder's worth of input for them.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use mpa::error::{Error, Result};
use mpa::models::generate::{Completion, Request};
use mpa::models::image::Rgb;
use mpa::models::prompt::Content;
use mpa::mpa::engine::{Answerer, Engine, Job, Loading};
use mpa::random::{hash, mix};
use mpa::tensor::DType;
use mpa::train::fit::{FitReport, OnStep};

/// What an answerer says depends on its name, its adapter and the request alone.
#[derive(Default)]
pub struct Fake {
    pub loads: AtomicUsize,
    /// Requests answered so far, over all models.
    pub asked: Arc<AtomicUsize>,
    /// Fail at this many requests, as if killed.
    pub die_at: Option<usize>,
    /// Requests that fit into memory together.
    pub room: Option<usize>,
    /// A request whose text ends in this never fits.
    pub too_large: Option<&'static str>,
    /// Whether --dtype is bf16.
    pub bf16: bool,
    /// The text and the picture of each request answered.
    pub seen: Seen,
}

type Seen = Arc<Mutex<Vec<(String, Arc<Rgb>)>>>;

struct Model {
    skill: u64,
    asked: Arc<AtomicUsize>,
    die_at: usize,
    room: usize,
    too_large: Option<&'static str>,
    seen: Seen,
}

impl Engine for Fake {
    fn dtype(&self) -> Option<DType> {
        self.bf16.then_some(DType::Bf16)
    }

    fn load(&self, model: &Path, adapter: Option<&Path>, _: Loading) -> Result<Box<dyn Answerer>> {
        self.loads.fetch_add(1, SeqCst);
        let teacher = model.ends_with("teacher");
        let learned = match adapter {
            None => 0,
            Some(folder) => fs::read(folder.join("adapter_model.safetensors")).unwrap().len() as u64 % 3,
        };
        let skill = if teacher { 9 } else { 5 + learned };
        let die_at = self.die_at.unwrap_or(usize::MAX);
        let (room, too_large) = (self.room.unwrap_or(usize::MAX), self.too_large);
        let (asked, seen) = (Arc::clone(&self.asked), Arc::clone(&self.seen));
        Ok(Box::new(Model { skill, asked, die_at, room, too_large, seen }))
    }

    fn level(&self, job: Job<'_>, on_step: OnStep<'_>) -> Result<FitReport> {
        let steps = job.options.steps.unwrap();
        fs::create_dir_all(job.out).unwrap();
        let text: String = job.samples.iter().map(|s| format!("{} -> {}\n", s.prompt, s.answer)).collect();
        let line = |step| {
            format!("{{\"step\":{step},\"loss\":{},\"lr\":0.1,\"grad_norm\":1.0}}\n", 1.0 / step as f64)
        };
        fs::write(job.out.join("loss.jsonl"), (1..=steps).map(line).collect::<String>()).unwrap();
        fs::write(job.out.join("adapter_model.safetensors"), format!("{steps} steps\n{text}")).unwrap();
        for step in 1..=steps {
            on_step(step, steps, 1.0, 0.1);
        }
        Ok(FitReport { steps, first_loss: 1.0, last_loss: 0.5, tokens: 7, skipped: Vec::new() })
    }
}

impl Answerer for Model {
    fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        let ends = |request: &Request, end| matches!(request.messages[0].content.last(), Some(Content::Text(t)) if t.ends_with(end));
        let too_large = self.too_large.is_some_and(|end| requests.iter().any(|r| ends(r, end)));
        if requests.len() > self.room || too_large {
            return Err(Error::OutOfMemory { wanted: requests.len() << 30, in_use: 1 << 30 });
        }
        requests
            .iter()
            .map(|request| {
                if self.asked.fetch_add(1, SeqCst) + 1 > self.die_at {
                    return Err(Error::Failure("killed".to_string()));
                }
                Ok((0..request.samples).map(|i| completion(self.say(request, i))).collect())
            })
            .collect()
    }
}

impl Model {
    fn say(&self, request: &Request, sample: usize) -> String {
        let text = match &request.messages[0].content.last() {
            Some(Content::Text(text)) => text.clone(),
            _ => String::new(),
        };
        if sample == 0 {
            self.seen.lock().unwrap().push((text.clone(), Arc::clone(&request.images[0])));
        }
        if !text.starts_with("Q: ") {
            assert_eq!(request.images.len(), 1);
            let colour = request.images[0].data[0];
            let draw = mix(request.seed, &[sample as u64]) % 1000;
            return match draw % 6 {
                0 => format!("I see {colour} and {draw}"),
                _ => format!(
                    "Question: which number {draw} has colour {colour}?\nAnswer: {}",
                    truth(&text, draw)
                ),
            };
        }
        let question = text.trim_start_matches("Q: ");
        let draw = question.split(' ').find_map(|word| word.parse().ok()).unwrap_or(0);
        let right = mix(hash(question), &[]) % 10 < self.skill;
        if right { format!(" It is {}.", truth("", draw)) } else { "no idea".to_string() }
    }
}

fn truth(_: &str, draw: u64) -> String {
    format!("n{}", draw % 7)
}

fn completion(text: String) -> Completion {
    Completion { ids: vec![0; text.len()], text, ended: true, draft_logprob: None }
}

/// Input for a run: pictures (one of them broken), questions, model folders, and config.toml. `batch`: of every stage.
pub fn input(folder: &Path, batch: usize) -> PathBuf {
    let pictures = folder.join("pictures");
    fs::create_dir_all(pictures.join("more")).unwrap();
    for (i, name) in ["a.png", "b.png", "more/c.png"].iter().enumerate() {
        let pixels = vec![40 + i as u8; 3 * 4 * 4];
        image::save_buffer(pictures.join(name), &pixels, 4, 4, image::ColorType::Rgb8).unwrap();
    }
    fs::write(pictures.join("broken.png"), b"not a picture").unwrap();
    fs::create_dir_all(folder.join("models/teacher")).unwrap();
    fs::create_dir_all(folder.join("models/student")).unwrap();
    fs::create_dir_all(folder.join("benchmark")).unwrap();
    let questions: String = (0..4)
        .map(|i| {
            format!(
                "{{\"id\":\"q{i}\",\"image\":\"../pictures/a.png\",\"question\":\"what is {i} ?\",\"answers\":[\"It is n{i}\",\"n{i}\"]}}\n"
            )
        })
        .collect();
    fs::write(folder.join("benchmark/val.jsonl"), questions).unwrap();
    let config = folder.join("small.toml");
    fs::write(&config, text(batch)).unwrap();
    config
}

pub fn text(batch: usize) -> String {
    format!(
        "seed = 3 # a comment\n\n[models]\nteacher = \"models/teacher\"\nstudent = \"models/student\"\n\n[annotate]\nimages = \"pictures\"\n\
         prompt = \"Ask.\"\nsamples = 4\ntemperature = 1.0\nbatch = {batch}\n\n[predict]\nprompt = \"Q: {{question}}\"\nbatch = {batch}\n\n\
         [level]\narms = [\"leveled\", \"parity_only\", \"all_pseudo\", \"random_subset\"]\nrehearsal = 0.5\nsteps = 7\n\n\
         [evaluate]\nquestions = \"benchmark/val.jsonl\"\n"
    )
}

/// Every file under `folder` but its times by its path in it; links as where they lead.
pub fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    walk(folder, folder, &mut files);
    files
}

fn walk(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        if path.ends_with("times.json") {
            continue;
        }
        if path.is_symlink() {
            files.insert(name, b"link".to_vec());
        } else if path.is_dir() {
            walk(root, &path, files);
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// Lays the files of `tree` out again; links lead where those of `original` do.
pub fn plant(folder: &Path, files: &BTreeMap<String, Vec<u8>>, original: &Path) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if bytes == b"link" {
            std::os::unix::fs::symlink(fs::read_link(original.join(name)).unwrap(), path).unwrap();
        } else {
            fs::write(path, bytes).unwrap();
        }
    }
}
