//! Pictures that come, go, or lie where the run does.
use std::fs;
use std::path::PathBuf;

use mpa::error::Result;
use mpa::models::generate::{Completion, Request};
use mpa::mpa::engine::Answerer;
use mpa::mpa::progress::Progress;
use mpa::mpa::{annotate, predict};

use super::fake::{Fake, input, tree};
use super::{different, go, scratch};

/// Wherever the run's folder lies, its links lead to no more pictures.
#[test]
fn a_run_inside_its_pictures_annotates_these_alone() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let inside = folder.path().join("pictures/more/run");
    let outcome = go(&Fake::default(), &config, Some(&inside)).unwrap();
    assert_eq!(outcome.summary.pseudo_labels, 13);
    let again = go(&Fake::default(), &config, Some(&folder.path().join("beside"))).unwrap();
    assert_eq!(again.summary, outcome.summary);
}

#[test]
fn pictures_that_come_after_the_selection_are_refused_before_anything_changes() {
    let folder = scratch();
    let config = input(folder.path(), 2);
    let out = go(&Fake::default(), &config, None).unwrap().folder;
    let want = tree(&out);
    let pictures = folder.path().join("pictures");
    fs::copy(pictures.join("a.png"), pictures.join("z.png")).unwrap();
    let text = go(&Fake::default(), &config, None).unwrap_err().to_string();
    assert!(text.contains("\"z.png#0\" was not there when this run selected"), "{text}");
    assert_eq!(different(&tree(&out), &want), Vec::<String>::new());
    fs::remove_file(pictures.join("z.png")).unwrap();
    go(&Fake::default(), &config, None).unwrap();
}

/// Answers anything; takes the pictures away when it is first asked.
struct Unplugs {
    pictures: PathBuf,
    to: Option<PathBuf>,
}

impl Answerer for Unplugs {
    fn generate(&self, requests: &[Request]) -> Result<Vec<Vec<Completion>>> {
        if let Some(to) = self.to.as_ref().filter(|_| self.pictures.exists()) {
            fs::rename(&self.pictures, to).unwrap();
        }
        let text = "Question: what?\nAnswer: this".to_string();
        let completion = Completion { ids: vec![0], text, ended: true, draft_logprob: None };
        Ok(requests.iter().map(|r| vec![completion.clone(); r.samples]).collect())
    }
}

/// As a disk that is unplugged: no fault of the pictures on it.
#[test]
fn pictures_that_vanish_are_asked_about_when_they_are_there_again() {
    let folder = scratch();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    for i in 0..8_u8 {
        let at = pictures.join(format!("{i}.png"));
        image::save_buffer(at, &[i; 3 * 4 * 4], 4, 4, image::ColorType::Rgb8).unwrap();
    }
    fs::write(pictures.join("broken.png"), b"not a picture").unwrap();
    let options = options(1);
    let go = |to: Option<PathBuf>, out: &str| {
        let answerer = Unplugs { pictures: pictures.clone(), to };
        let (out, silent) = (folder.path().join(out), Progress::silent());
        annotate::run(&pictures, &options, &answerer, &out, 1, &silent)
    };
    let want = go(None, "want.jsonl").unwrap();
    assert_eq!((want.good(), want.rejected["unreadable"]), (8, 1));
    let away = folder.path().join("away");
    let error = go(Some(away.clone()), "out.jsonl").unwrap_err().to_string();
    assert!(error.contains(".png: is gone, and has been there before"), "{error}");
    fs::rename(&away, &pictures).unwrap();
    assert_eq!(go(None, "out.jsonl").unwrap(), want);
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(text("out.jsonl"), text("want.jsonl"));

    // A question about a picture was asked where the picture was.
    let options = predict::Options { prompt: "{question}".to_string(), max_new_tokens: 9, drafts: false };
    let go = |to: Option<PathBuf>| {
        let answerer = Unplugs { pictures: pictures.clone(), to };
        let [asked, out] = ["out.jsonl", "answers.jsonl"].map(|name| folder.path().join(name));
        predict::run("predict", &asked, &options, &answerer, &out, 1, &Progress::silent())
    };
    let error = go(Some(away.clone())).unwrap_err().to_string();
    assert!(error.contains(".png: is gone, and has been there before"), "{error}");
    fs::rename(&away, &pictures).unwrap();
    assert_eq!(go(None).unwrap().good(), 8);
}

fn options(samples: usize) -> annotate::Options {
    let prompt = "Ask.".to_string();
    annotate::Options { prompt, samples, temperature: 0.0, top_p: 1.0, max_new_tokens: 9, seed: 0 }
}

/// What was annotated has such ids; they must not be another record's.
#[test]
fn ids_that_samples_would_have_are_refused() {
    let folder = scratch();
    image::save_buffer(folder.path().join("a.png"), &[7; 3 * 4 * 4], 4, 4, image::ColorType::Rgb8).unwrap();
    let go = |ids: [&str; 2], samples: usize| {
        let lines = ids.map(|id| format!("{{\"id\":\"{id}\",\"image\":\"a.png\"}}\n")).concat();
        let (list, out) = (folder.path().join("list.jsonl"), folder.path().join("out.jsonl"));
        fs::write(&list, lines).unwrap();
        let answerer = Unplugs { pictures: folder.path().join("a.png"), to: None };
        let outcome = annotate::run(&list, &options(samples), &answerer, &out, 1, &Progress::silent());
        let _ = fs::remove_file(out);
        outcome
    };
    let error = go(["0", "0#1"], 2).unwrap_err().to_string();
    assert!(error.contains("list.jsonl:2: id \"0#1\" is also that of a sample of \"0\""), "{error}");
    for (ids, samples) in [(["0", "0#1"], 1), (["0", "0#2"], 2), (["0", "1#0"], 2), (["0", "0#01"], 2)] {
        assert_eq!(go(ids, samples).unwrap().records, 2 * samples, "{ids:?}");
    }
}
