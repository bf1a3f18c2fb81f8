//! Folders of runs and evaluations, made by hand.
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::common::Rng;

const EVIL_NAME: &str = "<script>\"'&.png";
const EVIL: &str = "<script>alert('x')</script> \"q\" & <img src=x onerror=y>";

pub fn put(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub fn put_lines(path: PathBuf, lines: &[Value]) {
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

/// Who is scored: how many of 40 questions they have right, and where in them these begin.
pub const WHO: [(&str, usize, usize); 6] = [
    ("teacher", 37, 0),
    ("student", 26, 0),
    ("leveled", 33, 9),
    ("parity_only", 28, 0),
    ("all_pseudo", 29, 0),
    ("random_subset", 32, 9),
];

pub fn is_right(i: usize, count: usize, first: usize) -> bool {
    (i * 7 + first) % 40 < count
}

fn scores(right: usize) -> Value {
    let accuracy = right as f64 / 40.0;
    json!({"records": 40, "unreadable": 1, "accuracy": accuracy, "contains": accuracy + 0.01})
}

/// The folder of an evaluation on the pictures of `run_folder`, which are `up` from it.
pub fn evaluation(out: &Path, up: &str, right: usize, first: usize) {
    let answer = |i: usize| {
        json!({"id": i.to_string(), "image": format!("{up}/pictures/{}.png", i % 12), "question": "Which colour is first?",
            "answer": "red", "prediction": if is_right(i, right, first) { "Red." } else { "blue" }})
    };
    put_lines(out.join("predictions.jsonl"), &(0..40).map(answer).collect::<Vec<_>>());
    put(out.join("scores.json"), &scores(right).to_string());
}

/// A finished run of 12 pictures with 3 annotations each.
pub fn run_folder(out: &Path) {
    for number in 0..12 {
        let path = out.join(format!("pictures/{number}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture(number).save(path).unwrap();
    }
    put(out.join("pictures/12.png"), "no picture at all");
    picture(1).save(out.join("pictures").join(EVIL_NAME)).unwrap();
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
    let mut all: Vec<Value> = (0..36).map(record).collect();
    all[0] = with(
        all[0].clone(),
        json!({"question": EVIL, "id": EVIL_NAME, "image": format!("pictures/{EVIL_NAME}")}),
    );
    let mut annotated = all[..33].to_vec();
    for i in 33..35 {
        annotated.push(json!({"id": format!("u{i}"), "image": "pictures/11.png", "rejected": "unparsed", "annotation": EVIL}));
    }
    annotated.push(json!({"id": "12.png", "image": "pictures/12.png", "rejected": "unreadable", "reason": "expected PNG, JPEG or WebP"}));
    for name in ["annotate", "teacher", "student"] {
        put_lines(out.join(format!("{name}.jsonl")), &annotated);
    }
    let mut parity = all[..20].to_vec();
    parity[0]["student"] = json!(EVIL);
    put_lines(out.join("parity.jsonl"), &parity);
    let known: Vec<Value> =
        all[20..28].iter().map(|r| with(r.clone(), json!({"student": r["answer"]}))).collect();
    put_lines(out.join("rehearsal.jsonl"), &known);
    let rejected: Vec<Value> = all[28..33]
        .iter()
        .map(|r| with(r.clone(), json!({"rejected": "teacher_inconsistent", "teacher": "red"})))
        .collect();
    put_lines(out.join("rejected.jsonl"), &rejected);
    let counts = json!({"records": 36, "teacher_consistent": 28, "student_wrong": 24, "kept": 20, "rehearsal": 8,
        "rejected": {"student_right": 8, "teacher_inconsistent": 5, "unparsed": 2, "unreadable": 1}});
    put(out.join("select.json"), &counts.to_string());
    let arms = ["leveled", "parity_only", "all_pseudo", "random_subset"];
    for (number, arm) in arms.iter().enumerate() {
        let mut rng = Rng(number as u64);
        let line = |step: usize| {
            let loss = 0.2 + 1.8 / (1.0 + step as f64 / (30.0 + 10.0 * number as f64)) + 0.3 * rng.uniform();
            json!({"step": step, "loss": loss, "lr": 2e-3, "grad_norm": 1.0})
        };
        put_lines(out.join(format!("level/{arm}/loss.jsonl")), &(1..=500).map(line).collect::<Vec<_>>());
    }
    for (who, right, first) in WHO {
        evaluation(&out.join("evaluate").join(who), "../..", right, first);
    }
    let summary = json!({"pseudo_labels": 36, "rejected": {"unparsed": 2, "unreadable": 1}, "select": counts, "steps": 500,
        "samples": {"leveled": 30, "parity_only": 20, "all_pseudo": 33, "random_subset": 20},
        "scores": WHO.map(|(who, right, _)| (who, scores(right))).into_iter().collect::<HashMap<_, _>>(),
        "gap_closed": {"leveled": 0.636, "parity_only": 0.182, "all_pseudo": 0.273, "random_subset": 0.545}});
    put(out.join("summary.json"), &summary.to_string());
    put(
        out.join("config.started.toml"),
        "seed = 7\n[models]\nteacher = \"inputs/teacher\"\nstudent = \"inputs/student\"\n[annotate]\nimages = \"inputs/images\"\n\
         prompt = \"Write a question about the chart.\\nQuestion: ...\\nAnswer: ...\"\nsamples = 3\n[select]\nrule = \"exact\"\n\
         [level]\nrehearsal = 0.5\nlr = 0.002\ntargets = [\"q_proj\", \"v_proj\"]\n",
    );
}
