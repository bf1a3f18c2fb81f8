//! Times the teacher's work on pictures with a model of a real one's size: each is annotated, and a question about it is answered, while other
//! pictures are read and cut up. Weights, pictures and words are random.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use serde::Serialize;

use super::model::{Load, asking, picture, words};
use crate::data::images;
use crate::error::{Error, Result};
use crate::models::engine::{Exchange, Limits, Next, Spent};
use crate::models::generate::{Completion, Request};
use crate::models::vlm::Vlm;
use crate::tensor::Device;

/// New tokens of an answer, as the benchmarks' are short.
const ANSWER: usize = 5;
/// Of 100, as pictures on the web have.
const JPEG_QUALITY: u8 = 90;

/// Of all pictures.
#[derive(Clone, Debug, Serialize)]
pub struct Labelling {
    pub pictures: usize,
    pub seconds: f64,
    pub pictures_s: f64,
    /// Tokens written, of annotations and answers.
    pub tokens: usize,
    pub tokens_s: f64,
    /// Seconds that a thread beside the model took for reading, decoding, resizing and cutting pictures.
    pub reading: f64,
    pub spent: Spent,
    /// The most memory that was in use: on a GPU of the arena, else of the process.
    pub peak_bytes: Option<usize>,
}

/// `pictures` of them, `load.batch` completions at a time, each annotated with `load.new` tokens.
pub fn labelling(vlm: &Vlm, load: &Load, pictures: usize, folder: &Path) -> Result<Labelling> {
    if pictures == 0 || load.batch == 0 || load.tiles == 0 {
        return Err(Error::Usage("bench engine: expected at least one picture, completion and tile".into()));
    }
    let paths = (0..pictures).map(|i| written(i, load, folder)).collect::<Result<Vec<_>>>()?;
    let go = |paths: &[PathBuf]| {
        let (reading, limits) = (AtomicU64::new(0), Limits::completions(load.batch));
        let began = Instant::now();
        let (spent, tokens) = std::thread::scope(|scope| {
            // Two batches ahead.
            let (send, read) = sync_channel(2 * load.batch);
            scope.spawn(|| read_ahead(vlm, load, paths, send, &reading));
            let mut gallery =
                Gallery { read, questions: VecDeque::new(), load, asked: Vec::new(), open: 0, tokens: 0 };
            let spent = vlm.answer(limits, &mut gallery)?;
            Ok::<_, Error>((spent, gallery.tokens))
        })?;
        Ok::<_, Error>((began.elapsed(), spent, tokens, Duration::from_nanos(reading.into_inner())))
    };
    // Kernels are loaded and memory is asked for once.
    go(&paths[..load.batch.min(pictures)])?;
    let (took, spent, tokens, reading) = go(&paths)?;
    let seconds = took.as_secs_f64();
    Ok(Labelling {
        pictures,
        seconds,
        pictures_s: pictures as f64 / seconds,
        tokens,
        tokens_s: tokens as f64 / seconds,
        reading: reading.as_secs_f64(),
        spent,
        peak_bytes: match vlm.text.device() {
            Device::Cpu => super::peak_resident(),
            Device::Cuda(gpu) => Some(gpu.memory_use().peak),
        },
    })
}

/// The `i`-th picture as a file.
fn written(i: usize, load: &Load, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{i}.jpg"));
    let Some(rgb) = picture(i, load) else { return Err(Error::Failure("a prompt without a picture".into())) };
    let mut bytes = Vec::new();
    let size = (rgb.width as u32, rgb.height as u32);
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode(&rgb.data, size.0, size.1, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Failure(format!("{}: {e}", path.display())))?;
    fs::write(&path, bytes).map_err(|e| Error::io(&path, e))?;
    Ok(path)
}

/// Sends a request about each picture; an error ends it.
fn read_ahead(
    vlm: &Vlm,
    load: &Load,
    paths: &[PathBuf],
    send: SyncSender<Result<Request>>,
    nanoseconds: &AtomicU64,
) {
    for (i, path) in paths.iter().enumerate() {
        let began = Instant::now();
        let request = images::read(path).and_then(|rgb| {
            let mut request = asking(vec![rgb.into()], words(i, load.words), load.new);
            vlm.prepare(std::slice::from_mut(&mut request)).map(|()| request)
        });
        nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let ends = request.is_err();
        if send.send(request).is_err() || ends {
            return;
        }
    }
}

/// Requests to annotate as pictures are read, and a question about each that is annotated.
struct Gallery<'a> {
    read: Receiver<Result<Request>>,
    questions: VecDeque<Request>,
    load: &'a Load,
    /// Of each request under way: the question that follows it.
    asked: Vec<Option<Request>>,
    /// Annotations under way.
    open: usize,
    tokens: usize,
}

impl Exchange for Gallery<'_> {
    fn next(&mut self, wait: bool) -> Result<Next> {
        if let Some(question) = self.questions.pop_front() {
            self.asked.push(None);
            return Ok(Next::Request(question));
        }
        let read = match wait {
            true => self.read.recv().map_err(|_| TryRecvError::Disconnected),
            false => self.read.try_recv(),
        };
        match read {
            Ok(request) => {
                let request = request?;
                let text = words(self.asked.len() + 1, self.load.words);
                let mut question = asking(request.images.clone(), text, ANSWER);
                question.tiles = request.tiles.clone();
                self.asked.push(Some(question));
                self.open += 1;
                Ok(Next::Request(request))
            }
            Err(TryRecvError::Disconnected) if self.open == 0 => Ok(Next::End),
            Err(_) => Ok(Next::Later),
        }
    }

    fn done(&mut self, index: usize, answer: Result<Vec<Completion>>) -> Result<()> {
        self.tokens += answer?.iter().map(|completion| completion.ids.len()).sum::<usize>();
        if let Some(question) = self.asked.get_mut(index).and_then(Option::take) {
            self.open -= 1;
            self.questions.push_back(question);
        }
        Ok(())
    }
}
