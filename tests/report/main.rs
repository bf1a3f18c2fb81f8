//! Reports of small folders made by hand: everything is in them, nothing from outside, nothing unescaped, the same bytes again, and no browser
//! has to scroll sideways on a phone.

#[path = "../common/mod.rs"]
mod common;
mod folders;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use folders::{WHO, evaluation, is_right, put, put_lines, run_folder};
use mpa::mpa::{report, score};
use serde_json::json;
use tempfile::TempDir;

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
        "92.5 %",
        "65.0 %",
        "82.5 %",
        "64 %",
        "of the gap closed",
        "from the left side?",
        "\u{2717}",
        "\u{2713}",
        "expected PNG, JPEG or WebP",
        "<b>14</b><div>pictures",
        "<b>33</b><div>parsed",
        "<b>28</b><div>teacher consistent",
        "<b>24</b><div>student wrong",
        "<b>20</b><div>kept",
        "(8 of 20)",
        "(4 of 8)",
        "(4 of 5)",
        "(2 of 2)",
        "(1 of 1)",
        "0.5 times as many rehearsal",
        "Levelling changed",
        "+17.5 points (95 % interval",
        "+2.5 points (95 % interval +0.0 to +7.5, so it may be chance)",
        "500 optimizer steps",
        "<svg role=\"img\"",
        "<title>Training loss by step</title>",
        "<title>Samples kept by pictures looked at</title>",
        "Won: wrong before",
        "Lost: right before",
        "data:image/png;base64,iVBOR",
        "prefers-color-scheme: dark",
        "the teacher disagrees with itself",
    ] {
        assert!(html.contains(text), "{text}");
    }
    // The scores' own intervals are those of `mpa score`, the difference is that of each question.
    let right = |who: &str| {
        let (_, count, first) = WHO.into_iter().find(|(name, ..)| *name == who).unwrap();
        (0..40).map(move |i| f64::from(u8::from(is_right(i, count, first))))
    };
    let [low, high] = score::interval(&right("student").collect::<Vec<_>>());
    assert!(html.contains(&format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)));
    let change: Vec<f64> = right("student").zip(right("leveled")).map(|(a, b)| b - a).collect();
    let [low, high] =
        score::interval(&change).map(|bound| format!("{:+.1}", 100.0 * bound).replace('-', "\u{2212}"));
    assert!(html.contains(&format!("{low} to {high}")), "{low} {high}");
    let curves = (2..6).map(|i| html.matches(&format!("class=\"c{i}\" stroke-width=\"2\"")).count());
    assert_eq!(curves.collect::<Vec<_>>(), [2, 1, 1, 1], "one curve an arm, and one of what was kept");
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
    assert_eq!(html.matches("://").count(), 2);
    assert_eq!(html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count(), 2);
    assert!(!html.contains(" href=") && !html.contains("srcset") && !html.contains("<iframe"));
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

/// The program, in `folder`.
fn mpa(folder: &Path, args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_mpa")).current_dir(folder).args(args).output().unwrap()
}

/// Two runs that differ, one of them half done, an evaluation on a benchmark, and an ablation: the page of all.
fn page_of_many(home: &Path) -> String {
    for name in ["<script>first", "second"] {
        run_folder(&home.join(name));
    }
    let second = home.join("second");
    evaluation(&second.join("evaluate/leveled"), "../..", 37, 0);
    let config = fs::read_to_string(second.join("config.started.toml")).unwrap();
    let other = "lr = 0.004\narms = [\"leveled\", \"all_pseudo\"]";
    let config = config.replace("lr = 0.002", other) + "[evaluate]\nquestions = \"val.jsonl\"\n";
    put(second.join("config.started.toml"), &config);
    put(
        second.join("times.json"),
        r#"{"device": "an abacus", "seconds": {"annotate": 90.0, "level_leveled": 30.0}}"#,
    );
    fs::remove_file(second.join("summary.json")).unwrap();
    fs::remove_dir_all(second.join("level/all_pseudo")).unwrap();
    fs::remove_dir_all(second.join("evaluate/all_pseudo")).unwrap();
    for (name, shift) in [("before", 0), ("after", 4)] {
        let out = home.join(name);
        evaluation(&out, "../second", 20, shift);
        let line =
            |i: usize| json!({"question_id": i, "score": if is_right(i, 20, shift) { 1.0 } else { 0.3 }});
        put_lines(out.join("per_question.jsonl"), &(0..40).map(line).collect::<Vec<_>>());
        let scores = json!({"metric": "vqa_accuracy", "score": 0.65, "interval": [0.5, 0.7], "questions": 40, "missing": 0});
        put(out.join("scores.json"), &scores.to_string());
        put(
            out.join("settings.json"),
            &json!({"model": name, "adapter": null, "benchmark": "textvqa"}).to_string(),
        );
    }
    put(home.join("grid/results.csv"), "cell\n");
    put(home.join("grid/summary.md"), "| rule | after |\n|---|---|\n| a \\| b | 81.0 ± 0.5 |\n");
    for plot in ["rank", "scores"] {
        put(home.join(format!("grid/plot-{plot}.svg")), "<svg xmlns=\"http://www.w3.org/2000/svg\"/>");
    }
    let folders = ["<script>first", "second", "before", "after", "grid"];
    let output = mpa(home, &[&["report"], &folders[..], &["--out", "all.html"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"all.html\n");
    fs::read_to_string(home.join("all.html")).unwrap()
}

#[test]
fn several_folders_are_compared() {
    let home = TempDir::new().unwrap();
    let html = page_of_many(home.path()).replace("&#x2f;", "/");
    for text in [
        "5 folders compared",
        "<tr><th>level.lr</th><td dir=\"auto\">0.002</td><td dir=\"auto\">0.004</td><td dir=\"auto\">\u{2013}</td>",
        "<th>levelled, accuracy</th>",
        "+10.0",
        "<th>textvqa, VQA accuracy</th>",
        "From &lt;script&gt;first to second",
        "From before to after",
        "level/all_pseudo/loss.jsonl, evaluate/all_pseudo/scores.json, summary.json are missing",
        "an abacus",
        "<td class=\"n\">2 min 00 s</td>",
        "<td class=\"n\">75.0 %</td>",
        "2500.0 ms",
        "<th>a | b</th>",
        "81.0 ± 0.5",
        "data:image/svg+xml;base64,",
        "alt=\"Scores of each group before and after levelling, as in the table\"",
        "alt=\"Scores after levelling against rank\"",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(!html.contains("<script"));
    assert!(html.len() < 2 << 20, "{} bytes", html.len());
    // Of 20 right answers each, 4 places further, as many are won as lost.
    let flips = html.split("From before to after").nth(1).unwrap();
    assert!(flips.contains("Won: wrong before, right after") && flips.contains("(4 of 4)"), "flips");
}

/// Ids are numbers in many files: those of other questions are no pairs.
#[test]
fn other_questions_with_the_same_ids_are_not_compared_one_by_one() {
    let home = TempDir::new().unwrap();
    for (name, right) in [("one", 20), ("two", 30)] {
        evaluation(&home.path().join(name), "..", right, 0);
    }
    let page = || {
        let output = mpa(home.path(), &["report", "one", "two", "--out", "r.html"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(home.path().join("r.html")).unwrap()
    };
    assert!(page().contains("From one to two"));
    let predictions = home.path().join("two/predictions.jsonl");
    let other = fs::read_to_string(&predictions).unwrap().replace("Which colour is first?", "Which is last?");
    put(predictions, &other);
    let html = page();
    assert!(html.contains("+25.0") && !html.contains("From one to two"));
}

#[test]
fn samples_that_the_margin_kept_are_not_called_right_and_wrong() {
    let folder = TempDir::new().unwrap();
    run_folder(folder.path());
    let by_rule = written(folder.path());
    let config = folder.path().join("config.started.toml");
    put(config.clone(), &fs::read_to_string(&config).unwrap().replace("\"exact\"", "\"margin\""));
    let by_margin = written(folder.path());
    let (agrees, likelier) =
        ("the student gives another answer", "more likely to the teacher than to the student");
    assert!(by_rule.contains(agrees) && !by_rule.contains(likelier));
    assert!(!by_margin.contains(agrees) && by_margin.contains(likelier));
    let marks = |html: &str| html.matches('\u{2717}').count();
    assert!(marks(&by_margin) < marks(&by_rule));
}

/// Of two models with one name the contents tell.
#[test]
fn runs_on_other_models_have_other_settings() {
    let home = TempDir::new().unwrap();
    for (name, student) in [("one", "1a"), ("two", "2b")] {
        run_folder(&home.path().join(name));
        let contents = json!({"student": student, "teacher": "3c"});
        put(home.path().join(name).join("inputs/contents.json"), &contents.to_string());
    }
    assert_eq!(mpa(home.path(), &["report", "one", "two", "--out", "r.html"]).status.code(), Some(0));
    let html = fs::read_to_string(home.path().join("r.html")).unwrap();
    assert!(html.contains("<th>inputs.student</th>") && !html.contains("<th>inputs.teacher</th>"));
}

#[test]
fn a_folder_that_is_none_is_named_with_what_is_missing() {
    let home = TempDir::new().unwrap();
    let folder = home.path();
    fs::create_dir_all(folder.join("empty")).unwrap();
    put(folder.join("half/predictions.jsonl"), "");
    fs::create_dir_all(folder.join("grid/stages")).unwrap();
    run_folder(&folder.join("run"));
    put(folder.join("run/level/leveled/loss.jsonl"), "{\"step\": 1}\n");
    evaluation(&folder.join("short"), "../run", 20, 0);
    put(folder.join("short/per_question.jsonl"), "{\"question_id\": 1, \"score\": 1.0}\n");
    for (name, want) in [
        ("gone", "gone: no such folder"),
        ("empty", "config.started.toml"),
        ("half", "half: an evaluation that is not finished: scores.json is missing"),
        ("grid", "results.csv and summary.md are missing"),
        ("run", "loss.jsonl:1"),
        ("short", "per_question.jsonl: has 1 questions, expected the 40"),
    ] {
        let output = mpa(folder, &["report", name]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(want), "{name}: {said}");
        assert!(!folder.join(name).join("report.html").exists());
    }
    assert_eq!(mpa(folder, &["report"]).status.code(), Some(2));
}

/// WCAG's relative luminance of #rrggbb.
fn luminance(colour: &str) -> f64 {
    let part = |i: usize| {
        let value = f64::from(u8::from_str_radix(&colour[i..i + 2], 16).unwrap()) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn text_stands_out_in_light_and_in_dark() {
    let folder = TempDir::new().unwrap();
    run_folder(folder.path());
    let html = written(folder.path());
    let schemes: Vec<&str> =
        html.split(":root {").skip(1).take(2).map(|rest| rest.split('}').next().unwrap()).collect();
    for scheme in schemes {
        let colour = |name: &str| {
            let rest = scheme.split(&format!("--{name}: ")).nth(1).unwrap();
            luminance(&rest[..7])
        };
        // 4.5 is WCAG's AA for text, 3 for lines and bars.
        let texts = ["ink", "dim", "good", "bad", "even", "accent"].map(|name| (name, 4.5));
        let lines = ["c0", "c1", "c2", "c3", "c4", "c5"].map(|name| (name, 3.0));
        for (name, least) in texts.into_iter().chain(lines) {
            for ground in ["page", "card"] {
                let (a, b) = (colour(name), colour(ground));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= least, "{name} on {ground}: {contrast:.2}");
            }
        }
    }
}

/// A page in a frame as wide as a phone, which writes what sticks out of it into the title.
fn framed(html: &str) -> String {
    let html = html.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "<!doctype html><title>-</title><iframe id=f width=360 height=30000 style=border:0 srcdoc=\"{html}\"></iframe><script>onload = () => {{
        const page = document.getElementById('f').contentDocument, out = [];
        for (const one of page.querySelectorAll('details')) one.open = true;
        for (const one of page.querySelectorAll('body *'))
            if (!one.closest('.scroll') && one.getBoundingClientRect().right > 360.5) out.push(one.tagName + '.' + one.className);
        document.title = 'laid out ' + page.documentElement.scrollWidth + ' [' + out + ']';
        }}</script>"
    )
}

#[test]
fn a_phone_has_nothing_to_scroll_sideways() {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .flat_map(|path| browsers.map(|name| path.join(name)))
        .find(|path| path.is_file());
    let Some(browser) = found else {
        eprintln!("skipped: none of {browsers:?} is there");
        return;
    };
    let home = TempDir::new().unwrap();
    let html = page_of_many(home.path());
    let page = home.path().join("framed.html");
    put(page.clone(), &framed(&html));
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .arg(format!("--user-data-dir={}", home.path().join("browser").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let title = said.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next());
    assert_eq!(title, Some("laid out 360 []"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_broken_file_is_named() {
    let folder = TempDir::new().unwrap();
    assert_eq!(report::write(folder.path()).unwrap_err().exit_code(), 2);
    run_folder(folder.path());
    put(folder.path().join("level/leveled/loss.jsonl"), "{\"step\": 1, \"loss\": 2}\n{\"step\": 2}\n");
    let message = report::write(folder.path()).unwrap_err().to_string();
    assert!(message.contains("loss.jsonl:2") && message.contains("loss"), "{message}");
    for name in ["level/leveled/loss.jsonl", "summary.json", "config.started.toml"] {
        fs::write(folder.path().join(name), b"\xff\n").unwrap();
        let error = report::write(folder.path()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn costs_and_tokens_are_those_of_each_stage() {
    let home = TempDir::new().unwrap();
    let run = home.path().join("run");
    run_folder(&run);
    let times = r#"{"device": "an abacus", "seconds": {"annotate": 1800.0, "level_leveled": 72.0},
        "work": {"annotate": {"pictures": 40, "read": 6000, "written": 700}, "level_leveled": {"pictures": 0, "read": 800, "written": 0}}}"#;
    put(run.join("times.json"), times);
    let cells = |name: &str, html: &str| -> Vec<String> {
        let row = html.split(&format!("<tr><th>{name}</th>")).nth(1).unwrap().split("</tr>").next().unwrap();
        let cells = row.split("<td class=\"n\">").skip(1);
        cells.map(|cell| cell.strip_suffix("</td>").unwrap().to_string()).collect()
    };
    let page = |args: &[&str]| {
        let output = mpa(home.path(), &[&["report", "run"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(run.join("report.html")).unwrap()
    };
    let html = page(&["--per-hour", "2.5"]);
    assert!(html.contains("On an abacus, an hour of which costs 2.5."), "price");
    let annotate = cells("annotate", &html);
    assert_eq!(annotate[..3], ["30 min 00 s", "96.2 %", "1.25"]);
    assert_eq!(annotate[5..], ["40", "6000", "700"]);
    let level = cells("level: levelled", &html);
    assert_eq!((&level[2], &level[5..]), (&"0.0500".to_string(), &["", "800", ""].map(String::from)[..]));
    let all = cells("all stages", &html);
    assert_eq!((&all[2], &all[5..]), (&"1.30".to_string(), &["40", "6800", "700"].map(String::from)[..]));

    // Without a price there is no column, and without counts, as of older runs, none of these.
    assert_eq!(cells("annotate", &page(&[])).len(), 7);
    put(run.join("times.json"), r#"{"device": "an abacus", "seconds": {"annotate": 1800.0}}"#);
    assert_eq!(cells("annotate", &page(&[])).len(), 4);
    for price in ["-1", "NaN", "two"] {
        let output = mpa(home.path(), &["report", "run", "--per-hour", price]);
        assert_eq!(output.status.code(), Some(2), "{price}");
    }
}

#[test]
fn a_report_replaces_nothing_but_a_report() {
    let home = TempDir::new().unwrap();
    run_folder(&home.path().join("run"));
    put(home.path().join("notes.html"), "<!doctype html><title>my notes</title>");
    let report = |out: &str| mpa(home.path(), &["report", "run", "--out", out]);
    let refused = report("notes.html");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("notes.html: exists and is no report of this program"), "{said}");
    assert!(fs::read_to_string(home.path().join("notes.html")).unwrap().contains("my notes"));
    for _ in 0..2 {
        assert_eq!(report("new.html").status.code(), Some(0));
    }
}
