//! Checks the figures of `mpa demo --json` against the goals of the demo (docs/demo.md): used by CI.
//!
//!     mpa demo --json > demo.json && cargo run --release --example check_demo -- demo.json

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn main() -> ExitCode {
    match check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("check_demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: check_demo FILE.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let demo: Value = serde_json::from_str(&text).with_context(|| path.clone())?;
    let get = |key: &str| demo[key].as_f64().with_context(|| format!("{path}: no number {key}"));

    let (teacher, student, leveled) = (get("teacher")?, get("student")?, get("leveled")?);
    for key in ["teacher", "student", "leveled", "parity_only", "all_pseudo", "random_subset"] {
        ensure!((0.0..=1.0).contains(&get(key)?), "{key} is {}, expected 0 to 1", get(key)?);
    }
    let counts = ["pictures", "pseudo_labels", "kept"].map(get);
    let [pictures, labels, kept] = counts;
    let (pictures, labels, kept) = (pictures?, labels?, kept?);
    ensure!(
        pictures >= 1.0 && labels >= kept && kept >= 1.0,
        "{pictures} pictures, {labels} labels, {kept} kept"
    );
    ensure!(get("pseudo_accuracy")? < 1.0 && get("kept_accuracy")? <= 1.0, "accuracies of the labels");

    let gap = (leveled - student) / (teacher - student);
    ensure!((gap - get("gap_closed")?).abs() < 1e-9, "gap_closed is {}, computed {gap}", get("gap_closed")?);
    let goals = [
        ("teacher", teacher, 0.90),
        ("leveled - student", leveled - student, 0.12),
        ("gap_closed", gap, 0.50),
        ("leveled - random_subset", leveled - get("random_subset")?, 0.0),
        ("leveled - all_pseudo", leveled - get("all_pseudo")?, 0.0),
    ];
    for (name, value, goal) in goals {
        println!("{name:24} {value:.3}, goal {goal:.2}");
    }
    println!("{:24} {student:.3}, goal 0.55 to 0.70", "student");
    for (name, value, goal) in goals {
        ensure!(value >= goal, "{name} is {value:.4}, the goal is {goal}");
    }
    ensure!((0.55..=0.70).contains(&student), "student is {student:.4}, the goal is 0.55 to 0.70");
    Ok(())
}
