//! Each question's score against the public evaluators', where ../shared/scores is.
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use mpa::data::benchmarks::{Benchmark, Files};
use mpa::mpa::score;
use serde_json::Value;

fn folder() -> Option<PathBuf> {
    let set = std::env::var_os("MPA_SCORES").map(PathBuf::from);
    set.or_else(|| {
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/scores")).filter(|path| path.is_dir())
    })
}

#[test]
fn every_question_scores_as_in_the_public_evaluators() {
    let Some(folder) = folder() else {
        eprintln!("no ../shared/scores, nothing to compare with");
        return;
    };
    let totals: HashMap<String, f64> =
        serde_json::from_slice(&fs::read(folder.join("totals.json")).unwrap()).unwrap();
    let okvqa = "okvqa/mscoco_val2014_annotations.json";
    for (benchmark, annotations, questions) in [
        (Benchmark::Textvqa, "textvqa/TextVQA_0.5.1_val.json", None),
        (Benchmark::Stvqa, "stvqa/train_task_1.json", None),
        (Benchmark::Chartqa, "chartqa/test_combined.json", None),
        (Benchmark::Okvqa, okvqa, None),
        (Benchmark::Okvqa, okvqa, Some(folder.join("okvqa/OpenEnded_mscoco_val2014_questions.json"))),
        (Benchmark::Okvqa, "okvqa/okvqa_val_combine.json", None),
    ] {
        let annotations = folder.join(annotations);
        let own = annotations.parent().unwrap();
        let name = own.file_name().unwrap().to_str().unwrap();
        let files = Files { benchmark, annotations: &annotations, questions: questions.as_deref() };
        let scores = score::run(&files, benchmark.metric(), &own.join("predictions.jsonl")).unwrap();
        let text = fs::read_to_string(own.join("expected.jsonl")).unwrap();
        let expected: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(expected.len() > 100 && expected.len() == scores.questions, "{name}");
        for (want, got) in expected.iter().zip(&scores.per_question) {
            assert_eq!(want["question_id"], got.question_id, "{name}");
            // The order of the sums is not the evaluator's: a few units in the last place.
            let off = (want["score"].as_f64().unwrap() - got.score).abs();
            assert!(off <= 1e-12, "{name} {}: {} expected {}", got.question_id, got.score, want["score"]);
        }
        assert!((totals[name] - scores.score).abs() <= 1e-12, "{name}: {}", scores.score);
        assert_eq!((scores.missing, scores.duplicates, scores.unknown), (0, 0, 0), "{name}");
    }
}
