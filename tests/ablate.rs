//! `mpa ablate` with the demo's models: shared stages, kills, side by side, mistakes in grids, and the numbers of the tables.
#[path = "common/kills.rs"]
mod kills;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use mpa::demo::inputs::{self, Plan};
use mpa::mpa::ablate::table::{Row, Spread, csv, groups, latex, markdown};
use tempfile::TempDir;

const GRID: &str = "base = \"demo/config.toml\"\n[grid]\nrule = [\"exact\", \"random\"]\nlr = [1e-3, 2e-3]\n";

/// A folder with little of everything, and grid.toml.
fn home(grid: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let plan = Plan { pictures: 30, pairs: 2, held_out: 10, questions: 2, steps: 4 };
    inputs::prepare(&home.path().join("demo"), 3, plan).unwrap();
    inputs::write_labels(&home.path().join("demo/inputs/labelled.jsonl"), 3, plan).unwrap();
    std::fs::write(home.path().join("grid.toml"), grid).unwrap();
    home
}

fn command(home: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
    command.current_dir(home).args(["ablate", "--quiet", "grid.toml", "--out", out]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ablate(home: &Path, out: &str, more: &[&str]) -> Output {
    command(home, out, more).output().unwrap()
}

fn kinds(out: &Path) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(out.join("stages")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        *kinds.entry(name.split_once('-').unwrap().0.to_string()).or_default() += 1;
    }
    kinds
}

/// Every file with its bytes, without times: done.json and the last column of results.csv.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() || path.ends_with("done.json") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            if path.ends_with("results.csv") {
                let text = String::from_utf8(bytes).unwrap();
                let cut = |line: &str| line.rsplit_once(',').unwrap().0.to_string() + "\n";
                bytes = text.lines().map(cut).collect::<String>().into_bytes();
            }
            all.insert(path.strip_prefix(folder).unwrap().to_path_buf(), bytes);
        }
    }
    all
}

fn same(got: &Path, want: &Path) {
    let (got, want) = (files(got), files(want));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, bytes) in &want {
        assert!(&got[name] == bytes, "{} differs", name.display());
    }
}

#[test]
fn shared_stages_run_once_and_kills_and_jobs_change_nothing() {
    let home = home(GRID);
    let begun = Instant::now();
    let output = ablate(home.path(), "whole", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let took = begun.elapsed();
    let whole = home.path().join("whole");
    let want = [("annotate", 1), ("evaluate", 6), ("level", 4), ("predict", 2), ("select", 1)];
    assert_eq!(kinds(&whole), want.map(|(kind, n)| (kind.to_string(), n)).into());
    let table = std::fs::read_to_string(whole.join("results.csv")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
    let columns = "pseudo,parity,samples,steps,teacher,before,after,gap_recovered,error,seconds";
    assert!(table.lines().next().unwrap().ends_with(columns), "{table}");
    for name in ["summary.md", "summary.tex", "plot-scores.svg", "inputs.json"] {
        assert!(whole.join(name).exists(), "{name}");
    }
    let curve = std::fs::read_to_string(whole.join("plot-lr.svg")).unwrap();
    for text in ["0.001", "0.002", "exact", "random", "against lr"] {
        assert!(curve.contains(text), "{text} in {curve}");
    }

    assert!(ablate(home.path(), "two", &["--jobs", "2"]).status.success());
    same(&home.path().join("two"), &whole);

    let kills = kills::until_done(took, 0.02, || command(home.path(), "killed", &[]).spawn().unwrap());
    assert!(kills >= 3, "killed {kills} times only");
    assert!(ablate(home.path(), "killed", &[]).status.success());
    same(&home.path().join("killed"), &whole);
}

/// The cell that annotates has the teacher answer its questions meanwhile, one that asks in another way afterwards: whoever comes first, the stages
/// are the same to the byte, killed or not.
#[test]
fn the_teacher_answers_while_it_annotates_or_afterwards() {
    let prompts = ["{question}", "{question} In a word."];
    let grid = |[a, b]: [&str; 2]| {
        format!(
            "base = \"demo/config.toml\"\n[grid]\nrule = \"exact\"\n\"predict.prompt\" = [\"{a}\", \"{b}\"]\n"
        )
    };
    let home = home(&grid(prompts));
    let begun = Instant::now();
    let mut loud = Command::new(env!("CARGO_BIN_EXE_mpa"));
    let output =
        loud.current_dir(home.path()).args(["ablate", "grid.toml", "--out", "one"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let took = begun.elapsed();
    let one = home.path().join("one/stages");
    let counted = kinds(&home.path().join("one"));
    assert_eq!((counted["annotate"], counted["predict"]), (1, 4));
    // To evaluate it, to annotate and answer meanwhile, and to answer in the other way.
    let loaded = said.lines().filter(|line| line.contains("loading") && line.contains("teacher")).count();
    assert_eq!(loaded, 3, "{said}");

    std::fs::write(home.path().join("grid.toml"), grid([prompts[1], prompts[0]])).unwrap();
    assert!(ablate(home.path(), "other", &[]).status.success());
    same(&home.path().join("other/stages"), &one);

    let kills = kills::until_done(took, 0.05, || command(home.path(), "killed", &[]).spawn().unwrap());
    assert!(kills >= 3, "killed {kills} times only");
    assert!(ablate(home.path(), "killed", &["--jobs", "2"]).status.success());
    same(&home.path().join("killed/stages"), &one);
}

#[test]
fn pictures_rounds_and_labels() {
    let home = home(
        "base = \"demo/config.toml\"\n[supervised]\ndata = \"demo/inputs/labelled.jsonl\"\n\
         [grid]\nrule = \"none\"\npictures = [10, 20]\n[[cell]]\nrule = \"supervised\"\n\
         [[cell]]\nrule = \"none\"\nrounds = 2\npictures = 20\n",
    );
    let output = ablate(home.path(), "out", &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Annotations of 20 pictures are those of 10 as well, and the first round of two is a cell of its own.
    let want = [("annotate", 1), ("evaluate", 6), ("level", 4), ("merge", 1), ("predict", 3), ("select", 3)];
    assert_eq!(kinds(&home.path().join("out")), want.map(|(kind, n)| (kind.to_string(), n)).into());
    // What needs no annotations makes nobody annotate.
    let stages = home.path().join("out/stages");
    let stage = std::fs::read_dir(&stages).unwrap().map(|entry| entry.unwrap().path());
    let annotated = stage.map(|stage| stage.join("annotate.jsonl")).find(|file| file.exists()).unwrap();
    assert_eq!(std::fs::read_to_string(annotated).unwrap().lines().count(), 40);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |row: usize, key: &str| json["rows"][row][key].as_u64().unwrap();
    // Two pairs a picture, some of which may be rejected.
    assert!(count(0, "pseudo") > 10 && count(0, "pseudo") <= 20, "{json}");
    assert!(count(1, "pseudo") > 20 && count(1, "pseudo") <= 40, "{json}");
    assert_eq!((count(2, "pseudo"), count(2, "samples")), (0, 30), "{json}");
    assert_eq!(count(3, "samples"), count(1, "samples"), "{json}");
}

/// The base has steps, which would leave epochs without effect.
#[test]
fn epochs_take_the_place_of_the_bases_steps() {
    let home = home("base = \"demo/config.toml\"\n[grid]\nrule = \"none\"\npictures = 10\nepochs = [1, 8]\n");
    let output = ablate(home.path(), "out", &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = |row: usize| json["rows"][row]["steps"].as_u64().unwrap();
    assert!(steps(0) < steps(1), "{json}");
}

/// Of a config only the task may be a name that stands for no path.
#[test]
fn a_folder_may_have_the_name_of_a_task() {
    let home = home(GRID);
    let demo = home.path().join("demo");
    let config = std::fs::read_to_string(demo.join("config.toml")).unwrap();
    let line = config.lines().find(|line| line.starts_with("images = ")).unwrap();
    std::fs::rename(demo.join(line.split('"').nth(1).unwrap()), demo.join("chart")).unwrap();
    std::fs::write(demo.join("config.toml"), config.replace(line, "images = \"chart\"")).unwrap();
    let output = ablate(home.path(), "out", &["--dry-run"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_second_round_selects_anew_with_the_levelled_student() {
    let home = home(
        "base = \"demo/config.toml\"\n[grid]\nrule = [\"exact\", \"margin\"]\nrounds = [1, 2]\nmargin = -100\nrehearsal = 0\n",
    );
    let output = ablate(home.path(), "out", &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Of each rule: one round is the first of two; the second has a merge, the student's answers, a selection and a levelling of its own. The
    // first round's teacher, student and annotations are those of both rules.
    let want = [("annotate", 1), ("evaluate", 6), ("level", 4), ("merge", 2), ("predict", 4), ("select", 4)];
    assert_eq!(kinds(&home.path().join("out")), want.map(|(kind, n)| (kind.to_string(), n)).into());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = json["rows"].as_array().unwrap();
    for row in rows {
        assert!(row["samples"].as_u64() == row["parity"].as_u64() && row["after"].is_f64(), "{json}");
    }
    // At a margin of -100 all that the teacher has right is kept, in both rounds; exact keeps less.
    let parity = |row: usize| rows[row]["parity"].as_u64().unwrap();
    let (axes, margin) =
        (json["axes"].as_array().unwrap(), |row: usize| rows[row]["values"].to_string().contains("margin"));
    assert!(axes.iter().any(|axis| axis == "rounds"));
    let of = |rule: bool| (0..4).filter(|row| margin(*row) == rule).map(parity).collect::<Vec<_>>();
    assert_eq!(of(true).len(), 2);
    assert_eq!(of(true)[0], of(true)[1], "{json}");
    assert!(of(false).iter().all(|kept| *kept < of(true)[0]), "{json}");
}

#[test]
fn targets_are_a_name_a_list_or_a_regex() {
    let home = home(
        "base = \"demo/config.toml\"\n[grid]\nrule = \"none\"\ntargets = [\"q_proj\", [\"q_proj\", \"v_proj\"], \".*text_model.*up_proj\"]\n",
    );
    let output = ablate(home.path(), "out", &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown: Vec<&str> = (0..3).map(|row| json["rows"][row]["values"][1].as_str().unwrap()).collect();
    assert_eq!(shown, ["q_proj", "q_proj v_proj", ".*text_model.*up_proj"], "{json}");
    let mut adapted = Vec::new();
    for entry in std::fs::read_dir(home.path().join("out/stages")).unwrap() {
        let adapter = entry.unwrap().path().join("model/adapter_model.safetensors");
        let Ok(bytes) = std::fs::read(adapter) else { continue };
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let names: Vec<String> = tensors.names().into_iter().map(String::from).collect();
        let has = |part: &str| names.iter().any(|name| name.contains(part));
        adapted.push(["q_proj", "v_proj", "up_proj"].map(has));
    }
    adapted.sort_unstable();
    assert_eq!(adapted, [[false, false, true], [true, false, false], [true, true, false]]);
    assert!(!home.path().join("out/plot-targets.svg").exists(), "names are no numbers");
}

#[test]
fn stages_of_one_type_are_not_those_of_another() {
    let grid = "base = \"demo/config.toml\"\n[grid]\nrule = \"exact\"\n";
    let home = home(grid);
    assert!(ablate(home.path(), "both", &[]).status.success());
    let stored = kinds(&home.path().join("both"));
    assert!(ablate(home.path(), "both", &["--dtype", "bf16"]).status.success());
    let both = kinds(&home.path().join("both"));
    assert_eq!(both, stored.into_iter().map(|(kind, n)| (kind, 2 * n)).collect());

    assert!(ablate(home.path(), "bf16", &["--dtype", "bf16"]).status.success());
    let [results, alone] =
        ["both", "bf16"].map(|out| files(&home.path().join(out)).remove(Path::new("results.csv")));
    assert_eq!(results, alone);
}

#[test]
fn an_input_that_changed_is_noticed() {
    let home = home(GRID);
    assert!(ablate(home.path(), "out", &[]).status.success());
    assert!(ablate(home.path(), "out", &[]).status.success(), "nothing has changed");
    let questions = home.path().join("demo/inputs/eval/questions.jsonl");
    let before = std::fs::read_to_string(&questions).unwrap();
    std::fs::write(&questions, before.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    let output = ablate(home.path(), "out", &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    for part in ["questions.jsonl", "has changed since", "take another --out", "inputs.json"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The user says that it is the same; then its stages hold.
    std::fs::remove_file(home.path().join("out/inputs.json")).unwrap();
    assert!(ablate(home.path(), "out", &[]).status.success());
    // A picture more in a folder.
    std::fs::write(home.path().join("demo/inputs/images/more.png"), b"").unwrap();
    let output = ablate(home.path(), "out", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Links that lead back would be looked into for ever, and one that leads nowhere is no picture.
#[test]
fn links_among_the_pictures_stop_no_grid() {
    use std::os::unix::ffi::OsStringExt;
    let home = home("base = \"demo/config.toml\"\n[grid]\nrule = \"none\"\n");
    let images = home.path().join("demo/inputs/images");
    for name in ["a", "b", "c"] {
        std::os::unix::fs::symlink(".", images.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", images.join("nothing.png")).unwrap();
    let output = ablate(home.path(), "out", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let noted = std::fs::read_to_string(home.path().join("out/inputs.json")).unwrap();
    assert!(noted.contains("\"files\": 30,"), "{noted}");
    // A name that is not UTF-8 is shown as well as it can be.
    let odd = std::ffi::OsString::from_vec(b"odd\xff".to_vec());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
    command.current_dir(home.path()).args(["ablate", "grid.toml", "--dry-run", "--json", "--out"]).arg(odd);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("odd\u{fffd}"));
}

/// What a grid makes is no input of it.
#[test]
fn a_grid_inside_its_pictures_goes_on() {
    let home = home("base = \"demo/config.toml\"\n[grid]\nrule = \"exact\"\n");
    for _ in 0..2 {
        let output = ablate(home.path(), "demo/inputs/images/grid", &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn how_many_cells_run_at_a_time_is_told_and_follows_memory() {
    let home = home("base = \"demo/config.toml\"\n[grid]\nrule = \"none\"\nlr = [1e-3, 2e-3]\n");
    let told = |more: &[&str], threads: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
        command.current_dir(home.path()).env("RAYON_NUM_THREADS", threads);
        let output = command.args(["ablate", "grid.toml", "--out", "out"]).args(more).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        told
    };
    assert!(told(&[], "1").contains("1 cells at a time: "));
    // More than memory could hold is tried where it is asked for: no more than there are cells.
    assert!(told(&["--jobs", "1000000"], "1").contains("2 cells at a time: "));
}

#[test]
fn a_failed_cell_is_told_and_the_others_go_on() {
    let grid =
        "base = \"demo/config.toml\"\n[grid]\nmargin = [-100, 1e6]\nrule = \"margin\"\nrehearsal = 0\n";
    let home = home(grid);
    let output = ablate(home.path(), "out", &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["failed"], 1);
    assert!(json["rows"][0]["error"].is_null() && json["rows"][0]["after"].is_f64(), "{json}");
    assert!(json["rows"][1]["error"].as_str().unwrap().contains("nothing to level on"), "{json}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cell 002") && told.contains("1 of 2 cells failed"), "{told}");
}

#[test]
fn bad_grids_are_refused_before_anything_runs() {
    let home = home(GRID);
    let cases = [
        ("[grid]\nrules = [\"exact\"]\n", "`grid.rules`: unknown axis"),
        ("[grid]\nlr = []\n", "`grid.lr`: expected at least one value"),
        ("[grid]\nlr = [1e-3, 1e-3]\n", "`grid.lr`: 0.001 is there twice"),
        ("[grid]\nlr = [1e-3, -1.0]\n", "`level.lr`: expected above 0 (1e-45) and at most 3.4e38, got -1"),
        ("[grid]\nrule = [\"best\"]\n", "`rule`: expected contains"),
        ("[grid]\nrule = [\"supervised\"]\n", "[supervised]"),
        ("[grid]\npictures = 0\n", "`pictures`: expected a number of at least 1"),
        ("[grid]\nrounds = \"two\"\n", "`rounds`: expected a number of at least 1"),
        ("[grid]\n\"level.bach\" = [1]\n", "bach"),
        (
            "[grid]\ntargets = [\"q_proj\", \"nothing\"]\n",
            "cell 002: `level.targets`: LoRA target \"nothing\" matches no",
        ),
        ("[grid]\ntargets = [\"(\"]\n", "`level.targets`: LoRA targets: \"(\" is no regex"),
        ("gird = 1\n", "unknown key `gird`"),
        ("", "no cells"),
        ("[grid\n", "grid.toml:2"),
        ("[grid]\n\"level.arms\" = [[\"leveled\"]]\n", "`grid.level.arms`: a cell is one arm"),
        ("[grid]\nlr = [1e-3]\n\"level.lr\" = [0.5]\n", "`level.lr` and `lr` set the same"),
        (
            "[grid]\nrule = \"exact\"\n\"select.rule\" = \"contains\"\n",
            "`rule` and `select.rule` set the same",
        ),
    ];
    for (text, expected) in cases {
        let text = format!("base = \"demo/config.toml\"\n{text}");
        std::fs::write(home.path().join("grid.toml"), &text).unwrap();
        let output = ablate(home.path(), "out", &[]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {told}");
        assert!(told.contains(expected) && told.contains("grid.toml"), "{text}: {told}");
        assert!(!home.path().join("out").exists(), "{text}");
    }
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let home = home(GRID);
    let output = ablate(home.path(), "out", &["--dry-run"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "4 cells; stages: 1 annotate, 6 evaluate, 4 level, 2 predict, 1 select";
    assert!(text.contains(expected), "{text}");
    assert!(!home.path().join("out").exists());
}

#[test]
fn means_and_deviations_are_those_of_the_hand() {
    // 2 4 4 4 5 5 7 9: mean 5, squares 32, by n - 1 = 7. Rounding of a few operations.
    let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!(spread.mean, 5.0);
    assert!((spread.deviation.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    assert_eq!(Spread::of(&[3.0]), Some(Spread { mean: 3.0, deviation: None }));
    assert_eq!(Spread::of(&[]), None);

    let row = |rule: &str, seed: &str, after: f64| Row {
        values: vec![rule.into(), seed.into()],
        parity: 10,
        teacher: Some(0.9),
        before: Some(0.5),
        after: Some(after),
        gap_recovered: Some((after - 0.5) / 0.4),
        ..Row::default()
    };
    let (values, error) = (vec!["a_b".into(), "2".into()], Some("a, \"b\"".into()));
    let failed = Row { cell: "004".into(), values, error, ..Row::default() };
    let rows = [row("exact", "0", 0.6), row("exact", "1", 0.7), row("a_b", "0", 0.5), failed];
    let axes = ["rule".to_string(), "seed".to_string()];
    let broken = groups(&axes, &[row("one\r\n\ntwo", "0", 0.5)]);
    assert!(markdown(&axes, &broken).contains("\n| one two | 1 |"));
    assert!(latex(&axes, &broken).contains("\none two & 1 &"));
    let groups = groups(&axes, &rows);
    assert_eq!(groups.len(), 2);
    // 0.6 and 0.7: sqrt(2 * 0.05^2); a gap of 0.25 and 0.5: sqrt(2 * 0.125^2).
    let text = markdown(&axes, &groups);
    let line = "| exact | 2 | 10 ± 0 | 90.0 ± 0.0 | 50.0 ± 0.0 | 65.0 ± 7.1 | 37.5 ± 17.7 |";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("| a_b | 2 (1 failed) | 10 | 90.0 | 50.0 | 50.0 | 0.0 |"), "{text}");
    let text = latex(&axes, &groups);
    assert!(text.contains("a\\_b & 2 (1 failed) & 10") && text.contains("65.0 $\\pm$ 7.1"), "{text}");
    let text = csv(&axes, &rows);
    assert!(text.contains("004,a_b,2,0,0,0,0,,,,,\"a, \"\"b\"\"\",0.0"), "{text}");
}
