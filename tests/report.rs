//! report.html of a small run folder made by hand: everything is in it, nothing from outside, nothing unescaped, the same bytes again.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Rng;
use image::{Rgb, RgbImage};
use mpa::mpa::report;
use serde_json::{Value, json};
use tempfile::TempDir;

const EVIL: &str = "<script>alert('x')</script> \"q\" & <img src=x onerror=y>";

fn put(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn put_lines(path: PathBuf, lines: &[Value]) {
    put(path, &lines.iter().map(|line| format!("{line}\n")).collect::<String>());
}

/// A bar chart, or a large photo-like picture.
fn picture(number: usize) -> RgbImage {
    let mut rng = Rng(number as u64);
    if number % 3 == 2 {
        let (a, b) = (rng.below(200) as u32, rng.below(200) as u32);
        return RgbImage::from_fn(900, 600, |x, y| {
            let wave = ((x + a) as f64 / 90.0).sin() * ((y + b) as f64 / 70.0).cos();
            Rgb([(128.0 + 100.0 * wave) as u8, (x / 4) as u8, (y / 3) as u8])
        });
    }
    let bars: Vec<u32> = (0..5).map(|_| 8 + rng.below(48) as u32).collect();
    let colours = [[220, 60, 50], [50, 120, 220], [40, 160, 90], [230, 170, 40], [140, 80, 190]];
    RgbImage::from_fn(64, 64, |x, y| {
        let bar = (x / 13).min(4) as usize;
        if x % 13 > 2 && 63 - y < bars[bar] { Rgb(colours[bar]) } else { Rgb([245, 245, 240]) }
    })
}

fn scores(accuracy: f64) -> Value {
    json!({"records": 400, "unreadable": 1, "accuracy": accuracy, "contains": accuracy + 0.01})
}

/// A finished run of 12 pictures with 3 annotations each.
fn run_folder(out: &Path) {
    for number in 0..12 {
        let path = out.join(format!("pictures/{number}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture(number).save(path).unwrap();
    }
    put(out.join("pictures/12.png"), "no picture at all");
    let record = |i: usize| {
        json!({"id": format!("{}.png#{}", i / 3, i % 3), "image": format!("pictures/{}.png", i / 3),
            "question": format!("How high is bar number {}, counted from the left side?", i % 5 + 1), "answer": (i % 7).to_string(),
            "teacher": (i % 7).to_string(), "student": (i % 7 + 1).to_string()})
    };
    let with = |mut record: Value, changes: Value| {
        for (key, value) in changes.as_object().unwrap() {
            record[key] = value.clone();
        }
        record
    };
    let all: Vec<Value> = (0..36).map(record).collect();
    put_lines(out.join("annotate.jsonl"), &all);
    let mut parity = all[..20].to_vec();
    parity[0] = with(parity[0].clone(), json!({"question": EVIL, "student": EVIL}));
    put_lines(out.join("parity.jsonl"), &parity);
    let known: Vec<Value> =
        all[20..28].iter().map(|r| with(r.clone(), json!({"student": r["answer"]}))).collect();
    put_lines(out.join("rehearsal.jsonl"), &known);
    let mut rejected: Vec<Value> = all[28..33]
        .iter()
        .map(|r| with(r.clone(), json!({"rejected": "teacher_inconsistent", "teacher": "red"})))
        .collect();
    for i in 33..35 {
        rejected.push(json!({"id": format!("u{i}"), "image": "pictures/11.png", "rejected": "unparsed", "annotation": EVIL}));
    }
    rejected.push(json!({"id": "12.png", "image": "pictures/12.png", "rejected": "unreadable", "reason": "expected PNG, JPEG or WebP"}));
    put_lines(out.join("rejected.jsonl"), &rejected);
    let counts = json!({"records": 36, "teacher_consistent": 28, "student_wrong": 24, "kept": 20, "rehearsal": 8,
        "rejected": {"student_right": 8, "teacher_inconsistent": 5, "unparsed": 2, "unreadable": 1}});
    let arms = ["leveled", "parity_only", "all_pseudo", "random_subset"];
    for (number, arm) in arms.iter().enumerate() {
        let mut rng = Rng(number as u64);
        let line = |step: usize| {
            let loss = 0.2 + 1.8 / (1.0 + step as f64 / (30.0 + 10.0 * number as f64)) + 0.3 * rng.uniform();
            json!({"step": step, "loss": loss, "lr": 2e-3, "grad_norm": 1.0})
        };
        put_lines(out.join(format!("level/{arm}/loss.jsonl")), &(1..=500).map(line).collect::<Vec<_>>());
    }
    for (who, shift) in [("student", 0), ("leveled", 1)] {
        let answer = |i: usize| {
            let wrong = (i + shift).is_multiple_of(4) || (shift == 0 && i.is_multiple_of(3));
            json!({"id": i.to_string(), "image": format!("../../pictures/{}.png", i % 12), "question": "Which colour is first?",
                "answer": "red", "prediction": if wrong { "blue" } else { "Red." }})
        };
        put_lines(
            out.join(format!("evaluate/{who}/predictions.jsonl")),
            &(0..40).map(answer).collect::<Vec<_>>(),
        );
    }
    let summary = json!({"pseudo_labels": 36, "rejected": {"unparsed": 2, "unreadable": 1}, "select": counts, "steps": 500,
        "samples": {"leveled": 30, "parity_only": 20, "all_pseudo": 33, "random_subset": 20},
        "scores": {"teacher": scores(0.9225), "student": scores(0.65), "leveled": scores(0.835), "parity_only": scores(0.69),
            "all_pseudo": scores(0.72), "random_subset": scores(0.81)},
        "gap_closed": {"leveled": 0.679, "parity_only": 0.147, "all_pseudo": 0.257, "random_subset": 0.587}});
    put(out.join("summary.json"), &summary.to_string());
    put(
        out.join("config.started.toml"),
        "seed = 7\n[models]\nteacher = \"inputs/teacher\"\nstudent = \"inputs/student\"\n[annotate]\nimages = \"inputs/images\"\n\
         prompt = \"Write a question about the chart.\\nQuestion: ...\\nAnswer: ...\"\nsamples = 3\n[select]\nrule = \"exact\"\n\
         [level]\nrehearsal = 0.5\nlr = 0.002\ntargets = [\"q_proj\", \"v_proj\"]\n",
    );
}

fn written(out: &Path) -> String {
    report::write(out).unwrap();
    fs::read_to_string(out.join("report.html")).unwrap()
}

#[test]
fn the_report_says_what_the_run_did() {
    let folder = TempDir::new().unwrap();
    run_folder(folder.path());
    let html = written(folder.path());
    for text in [
        "92.2 %",
        "65.0 %",
        "83.5 %",
        "68 %",
        "of the gap closed",
        "from the left side?",
        "\u{2717}",
        "\u{2713}",
        "expected PNG, JPEG or WebP",
        "(12 of 20)",
        "(6 of 8)",
        "(5 of 5)",
        "(2 of 2)",
        "(1 of 1)",
        "0.5 times as many rehearsal",
        "Levelling changed",
        "+18.5 points",
        "+2.5 points (within chance",
        "500 optimizer steps",
        "<svg role=\"img\"",
        "Won: wrong before",
        "Lost: right before",
        "data:image/png;base64,iVBOR",
        "prefers-color-scheme: dark",
        "teacher inconsistent",
    ] {
        assert!(html.contains(text), "{text}");
    }
    let curves = (2..6).map(|i| html.matches(&format!("class=\"c{i}\" stroke-width=\"2\"")).count());
    assert_eq!(curves.collect::<Vec<_>>(), [1; 4], "one curve an arm");
    if let Some(copy) = std::env::var_os("MPA_KEEP_REPORT") {
        fs::write(copy, &html).unwrap();
    }
}

#[test]
fn the_report_needs_nothing_else_and_runs_nothing() {
    let folder = TempDir::new().unwrap();
    run_folder(folder.path());
    let html = written(folder.path());
    assert!(!html.contains("<script") && !html.contains("<img src=x"), "text of the models is escaped");
    assert!(html.contains("&lt;script&gt;"));
    for (i, _) in html.match_indices("src=\"") {
        assert!(html[i + 5..].starts_with("data:image/"), "{}", &html[i..i + 40]);
    }
    // The only address is the name of the SVG format, which no browser looks up.
    assert_eq!(html.matches("://").count(), 1);
    assert_eq!(html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count(), 1);
    assert!(!html.contains("url(") && !html.contains("@import") && !html.contains("<link"));
    assert!(html.len() < 2 << 20, "{} bytes", html.len());
}

#[test]
fn the_same_run_gives_the_same_bytes_anywhere() {
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    run_folder(a.path());
    run_folder(b.path());
    let html = written(a.path());
    assert!(html == written(b.path()) && html == written(a.path()));
    assert!(!html.contains(a.path().to_str().unwrap()));
}

#[test]
fn a_run_without_scores_or_parity_set_has_a_report() {
    let folder = TempDir::new().unwrap();
    run_folder(folder.path());
    let out = folder.path();
    fs::remove_dir_all(out.join("level")).unwrap();
    fs::remove_dir_all(out.join("evaluate")).unwrap();
    put(out.join("parity.jsonl"), "");
    let counts = json!({"records": 0, "teacher_consistent": 0, "student_wrong": 0, "kept": 0, "rehearsal": 0, "rejected": {}});
    let summary = json!({"pseudo_labels": 0, "rejected": {}, "select": counts, "steps": 0, "samples": {}, "scores": {}, "gap_closed": {}});
    put(out.join("summary.json"), &summary.to_string());
    let html = written(out);
    assert!(html.contains("nothing was scored") && !html.contains("<svg") && !html.contains("NaN"));
}

#[test]
fn a_broken_file_is_named() {
    let folder = TempDir::new().unwrap();
    assert_eq!(report::write(folder.path()).unwrap_err().exit_code(), 2);
    run_folder(folder.path());
    put(folder.path().join("level/leveled/loss.jsonl"), "{\"step\": 1, \"loss\": 2}\n{\"step\": 2}\n");
    let message = report::write(folder.path()).unwrap_err().to_string();
    assert!(message.contains("loss.jsonl:2") && message.contains("loss"), "{message}");
}
