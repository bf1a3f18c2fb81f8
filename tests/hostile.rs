//! The commands on what nobody gives them on purpose: pictures, files and places that are not as they should be.
#[path = "common/models.rs"]
mod models;

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::{Value, json};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn mpa(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpa"));
    command.current_dir(folder).args(args).output().unwrap()
}

/// What it says on stderr; it ends with `code`.
#[track_caller]
fn ends(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = mpa(folder, args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    stderr
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn png(path: &Path, width: u32, height: u32) {
    image::RgbImage::from_pixel(width, height, image::Rgb([200, 10, 10])).save(path).unwrap();
}

/// transformers refuses a picture with sides of more than 200 to 1, and Qwen2-VL with it: that is no reason to leave the others.
#[test]
fn a_picture_that_the_model_refuses_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, width) in [("a", 60), ("b", 5000), ("c", 50)] {
        png(&at.join(format!("{name}.png")), width, 1.max(width / 201));
    }
    let model = format!("{GOLDEN}/qwen2vl");
    let args = ["annotate", "--model", &model, "--images", ".", "--task", "text", "--max-new-tokens", "2"];
    let said = ends(at, 0, &[&args[..], &["--out", "out.jsonl"]].concat());
    assert!(
        said.contains("skipped \"b.png\": ./b.png: a picture of 5000x24, expected sides in a ratio"),
        "{said}"
    );
    let rejected: Vec<Value> = records(&at.join("out.jsonl")).iter().map(|r| r["rejected"].clone()).collect();
    assert_eq!(rejected, ["unparsed", "unreadable", "unparsed"]);
    // One that is asked for alone is the user's mistake.
    let said = ends(at, 2, &["generate", "--model", &model, "--image", "b.png", "--prompt", "what?"]);
    assert!(said.contains("5000x24"), "{said}");
}

/// The same of a calibration, whose folder may well be that of the pictures to annotate; and no text is not a text.
#[test]
fn a_calibration_skips_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("mixed")).unwrap();
    fs::create_dir(at.join("good")).unwrap();
    for out in ["mixed", "good"] {
        png(&at.join(out).join("b.png"), 60, 40);
    }
    fs::write(at.join("mixed/a.png"), "no picture").unwrap();
    png(&at.join("mixed/c.png"), 5000, 1);
    fs::write(at.join("empty.txt"), " \n").unwrap();
    let model = format!("{GOLDEN}/qwen2vl");
    let quantize = |from: &str, code: i32| {
        ends(
            at,
            code,
            &["quantize", "--model", &model, "--calibration", from, "--out", &format!("{from}-int8")],
        )
    };
    let said = quantize("mixed", 0);
    assert!(said.contains("skipped mixed/a.png: ") && said.contains("skipped mixed/c.png: "), "{said}");
    quantize("good", 0);
    let weights = |name: &str| fs::read(at.join(name).join("model.safetensors")).unwrap();
    assert!(weights("mixed-int8") == weights("good-int8"));
    assert!(quantize("empty.txt", 2).contains("empty.txt: has no text"));
    fs::remove_file(at.join("mixed/b.png")).unwrap();
    fs::remove_dir_all(at.join("mixed-int8")).unwrap();
    assert!(quantize("mixed", 2).contains("nothing to read"));
}

/// What the model cannot take is named and left out, as if it had not been there; where nothing is left, the folder can be used afterwards.
#[test]
fn samples_that_do_not_fit_are_left_out_of_a_training() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    png(&at.join("good.png"), 60, 40);
    png(&at.join("thin.png"), 5000, 1);
    let sample = |image: &str, question: &str| {
        let sample = json!({"image": image, "question": question, "answer": "a"});
        format!("{sample}\n")
    };
    let good = sample("good.png", "what?");
    let (thin, long) = (sample("thin.png", "what?"), sample("good.png", &"word ".repeat(5000)));
    fs::write(at.join("good.jsonl"), good.repeat(3)).unwrap();
    fs::write(at.join("mixed.jsonl"), format!("{good}{thin}{good}{long}{good}")).unwrap();
    fs::write(at.join("bad.jsonl"), format!("{thin}{long}")).unwrap();
    let model = format!("{GOLDEN}/qwen2vl");
    let level = |model: &str, data: &str, out: &str, code: i32| {
        ends(at, code, &["level", "--model", model, "--data", data, "--batch", "1", "--out", out])
    };
    fs::create_dir(at.join("empty")).unwrap();
    level("empty", "good.jsonl", "out", 2);
    let said = level(&model, "bad.jsonl", "out", 2);
    assert!(
        said.contains("none of 2 training samples fits: \"")
            && said.contains("thin.png: a picture of 5000x1")
    );
    let left: Vec<_> =
        fs::read_dir(at.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["settings.json"]);
    level(&model, "good.jsonl", "out", 0);
    assert_eq!(records(&at.join("out/loss.jsonl")).len(), 3);
    assert!(level(&model, "mixed.jsonl", "out", 2).contains("was begun with data"));

    let told = |said: &str| {
        assert!(said.contains("thin.png: a picture of 5000x1, expected sides"), "{said}");
        assert!(said.contains(" tokens, expected at most ") && said.len() < 1000, "{said}");
        assert_eq!(said.matches("mpa: skipped ").count(), 2, "{said}");
    };
    told(&level(&model, "mixed.jsonl", "mixed", 0));
    // Finished long ago, it still knows.
    told(&level(&model, "mixed.jsonl", "mixed", 0));
    let adapter = |out: &str| fs::read(at.join(out).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("mixed") == adapter("out"));
}

/// A copy of a golden model in `to`, with other settings in one of its files.
fn altered(model: &str, to: &Path, file: &str, key: &str, value: Value) {
    models::copy(Path::new(&format!("{GOLDEN}/{model}")), to);
    let path = to.join(file);
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    settings[key] = value;
    fs::write(path, settings.to_string()).unwrap();
}

/// Settings of pictures that are not those of config.json are told by their file and key, not by an op.
#[test]
fn a_processor_makes_of_pictures_what_the_model_takes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    png(&at.join("a.png"), 60, 40);
    let cases = [
        ("smolvlm", "max_image_size", json!({"longest_edge": 56}), "max_image_size: expected "),
        ("qwen2vl", "patch_size", json!(7), "patch_size * merge_size: expected the model's "),
        ("qwen2vl", "merge_size", json!(1), "patch_size * merge_size: expected the model's "),
        (
            "qwen2vl",
            "image_processor_type",
            json!("Idefics3ImageProcessor"),
            "image_processor_type: expected one that leaves",
        ),
    ];
    for (i, (model, key, value, want)) in cases.into_iter().enumerate() {
        let name = format!("m{i}");
        altered(model, &at.join(&name), "preprocessor_config.json", key, value);
        let said = ends(at, 2, &["generate", "--model", &name, "--image", "a.png", "--prompt", "what?"]);
        assert!(said.contains("preprocessor_config.json: ") && said.contains(want), "{model} {key}: {said}");
    }
}

/// Weights that are no numbers are told by the file, or the layer, and never written into another folder.
#[test]
fn weights_that_are_not_finite_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    altered("smolvlm", &at.join("nan"), "preprocessor_config.json", "do_resize", json!(true));
    let path = at.join("nan/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.text_model.layers.0.mlp.up_proj.weight";
    let begin = 8 + header + tensors[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[begin..begin + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();

    let said = ends(at, 2, &["quantize", "--model", "nan", "--out", "q"]);
    assert!(
        said.contains(&format!("model.safetensors: {name}: ")) && said.contains("NaN in row 0, column 0"),
        "{said}"
    );
    let said = ends(at, 1, &["generate", "--model", "nan", "--prompt", "what?"]);
    assert!(said.contains("nan: ") && said.contains("expected finite logits"), "{said}");

    fs::write(at.join("data.jsonl"), "{\"question\": \"what?\", \"answer\": \"a\"}\n").unwrap();
    let whole = format!("{GOLDEN}/smolvlm");
    let level =
        ["level", "--model", &whole, "--data", "data.jsonl", "--targets", "up_proj", "--out", "adapter"];
    ends(at, 0, &level);
    let said = ends(at, 2, &["merge", "--model", "nan", "--adapter", "adapter", "--out", "merged"]);
    assert!(said.contains("layers.0.mlp.up_proj: expected finite weights"), "{said}");
}

/// Two that train into one folder would write one log.
#[test]
fn a_training_folder_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("data.jsonl"), "{\"question\": \"what?\", \"answer\": \"a\"}\n".repeat(2)).unwrap();
    let model = format!("{GOLDEN}/smolvlm");
    let args = ["level", "--model", &model, "--data", "data.jsonl", "--batch", "1", "--out", "out"];
    ends(at, 0, &args);
    fs::remove_file(at.join("out/adapter_model.safetensors")).unwrap();
    let log = fs::File::options().append(true).open(at.join("out/loss.jsonl")).unwrap();
    log.lock().unwrap();
    let said = ends(at, 1, &args);
    assert!(said.contains("loss.jsonl: another process is writing it"), "{said}");
    log.unlock().unwrap();
    // What a kill left while the adapter was written is no file of the next one.
    fs::write(at.join("out/.adapter_model.safetensors.tmp"), "half").unwrap();
    ends(at, 0, &args);
    assert_eq!(records(&at.join("out/loss.jsonl")).len(), 2);
    let names = fs::read_dir(at.join("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.as_encoded_bytes().starts_with(b".")));
}

/// Of two that begin one output in the same instant with different settings, the second must not put its own in the place of the first one's.
#[test]
fn settings_are_those_of_the_process_that_writes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("q.jsonl"), "{\"question\": \"what?\"}\n").unwrap();
    let model = format!("{GOLDEN}/smolvlm");
    let predict = ["predict", "--model", &model, "--questions", "q.jsonl"];
    let to = |out, more: &[&'static str]| [&predict[..], &["--out", out], more].concat();
    ends(at, 0, &to("out.jsonl", &[]));
    let settings = at.join("out.jsonl.settings.json");
    let (before, first) = (fs::read(&settings).unwrap(), fs::read(at.join("out.jsonl")).unwrap());
    // The first one has its settings, and no record yet.
    fs::write(at.join("out.jsonl"), "").unwrap();
    let held = fs::File::open(&settings).unwrap();
    held.lock().unwrap();
    let said = ends(at, 1, &to("out.jsonl", &["--max-new-tokens", "2"]));
    assert!(said.contains("out.jsonl.settings.json: another process is writing it"), "{said}");
    assert_eq!(fs::read(&settings).unwrap(), before);
    held.unlock().unwrap();
    ends(at, 0, &to("out.jsonl", &[]));
    assert_eq!(fs::read(at.join("out.jsonl")).unwrap(), first);
    assert_eq!(fs::read(&settings).unwrap(), before);
    // Longer settings than the new ones leave nothing of theirs.
    fs::write(at.join("out.jsonl"), "").unwrap();
    fs::write(&settings, [&before[..], &before[..]].concat()).unwrap();
    ends(at, 0, &to("out.jsonl", &[]));
    assert_eq!(fs::read(&settings).unwrap(), before);
    // A file of somebody else's gets no settings.
    fs::write(at.join("other.jsonl"), "{}\n").unwrap();
    let said = ends(at, 2, &to("other.jsonl", &[]));
    assert!(said.contains("was not made by this command"), "{said}");
    assert!(!at.join("other.jsonl.settings.json").exists());
}

/// A result that is sent to a device or through a link goes there, and neither is replaced by a file.
#[cfg(unix)]
#[test]
fn devices_and_links_stay_what_they_are() {
    use std::os::fd::AsRawFd;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let pipe = format!("/proc/self/fd/{}", writer.as_raw_fd());
    if Path::new(&pipe).exists() {
        mpa::data::files::write(Path::new(&pipe), b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "through");
    }
    // Nobody can write to a socket by its name, which is an error and not a reason to put a file there.
    let _socket = std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
    assert!(mpa::data::files::write(&at.join("socket"), b"x").is_err());
    assert!(!at.join("socket").metadata().unwrap().is_file());
    fs::create_dir(at.join("far")).unwrap();
    fs::write(at.join("far/file"), "old").unwrap();
    std::os::unix::fs::symlink("far/file", at.join("link")).unwrap();
    mpa::data::files::write(&at.join("link"), b"new").unwrap();
    assert!(at.join("link").is_symlink());
    assert_eq!(fs::read_to_string(at.join("far/file")).unwrap(), "new");
    // Records are added to a file later, which a socket does not allow.
    fs::write(at.join("q.jsonl"), "{\"question\": \"what?\"}\n").unwrap();
    let model = format!("{GOLDEN}/smolvlm");
    let said = ends(at, 2, &["predict", "--model", &model, "--questions", "q.jsonl", "--out", "socket"]);
    assert!(said.contains("socket: is no file"), "{said}");
    assert!(!at.join("socket.settings.json").exists());
    let said = ends(at, 2, &["predict", "--model", &model, "--questions", "q.jsonl", "--out", "q.jsonl/x"]);
    assert!(said.contains("q.jsonl"), "{said}");
}

/// A run on a benchmark, killed while its log was written: the interval is of the score that it stands beside.
#[test]
fn a_report_is_of_the_metric_and_of_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let student = run.join("evaluate/student");
    fs::create_dir_all(&student).unwrap();
    fs::create_dir_all(run.join("level/leveled")).unwrap();
    fs::write(run.join("config.started.toml"), "[level]\narms = [\"leveled\"]\n[evaluate]\n").unwrap();
    // Of ten people two have said so: 0.6 by leave-one-out, for every question. As text of its own each is right.
    let answers = [["yes"; 2].as_slice(), ["no"; 8].as_slice()].concat();
    let line = |id: usize| {
        let line = json!({"id": id, "question": "\u{7}?", "answers": answers, "prediction": "yes"});
        format!("{line}\n")
    };
    let lines: String = (0..20).map(line).collect();
    fs::write(student.join("predictions.jsonl"), format!("{lines}{{\"id\": 20, \"quest")).unwrap();
    let scores =
        json!({"records": 20, "unreadable": 0, "metric": "vqa_accuracy", "accuracy": 0.6, "contains": 1.0});
    fs::write(student.join("scores.json"), scores.to_string()).unwrap();
    fs::write(run.join("level/leveled/loss.jsonl"), "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"lo").unwrap();
    let annotated =
        "{\"id\": 1, \"image\": \"a.png\", \"rejected\": \"unparsed\", \"annotation\": \"\\u0007<b>\"}\n{\"i";
    fs::write(run.join("annotate.jsonl"), annotated).unwrap();
    ends(folder.path(), 0, &["report", "run"]);
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("60.0 to 60.0"), "no interval of the score");
    assert!(html.contains("Training loss") && html.contains("&lt;b&gt;"));
    assert!(!html.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
}

/// What is wrong with a file is said of the file: its own line, and the byte as it is.
#[test]
fn broken_json_is_told_by_the_line_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let question =
        "{\"data\": [{\"question_id\": 1, \"image_id\": \"x\", \"question\": \"?\", \"answers\": [\"a\"]}]}";
    fs::write(at.join("a.json"), question).unwrap();
    let score = |annotations: &str, predictions: &str| {
        fs::write(at.join("p.jsonl"), predictions).unwrap();
        let files = ["--annotations", annotations, "--predictions", "p.jsonl"];
        ends(at, 2, &[&["score", "--benchmark", "textvqa"], &files[..]].concat())
    };
    let said = score("a.json", "{\"question_id\": 1, \"answer\": \"a\"}\n{\"question_id\": 2, \"ans");
    assert_eq!(said, "mpa: p.jsonl:2: not JSON: EOF while parsing a string, in column 23\n");
    let said = score("a.json", "[\n {\"question_id\": 1, \"answer\": \"a\"}\n]\n");
    assert_eq!(said, "mpa: p.jsonl:1: expected a JSON object a line, got a list over several lines\n");
    fs::write(at.join("wide.json"), [0xff, 0xfe, b'{', 0]).unwrap();
    let said = score("wide.json", "");
    assert_eq!(said, "mpa: wide.json: is UTF-16, expected UTF-8\n");
}

/// Predictions took hours: no other spelling of their name makes them an output.
#[test]
fn an_output_is_never_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let line = "{\"id\": \"1\", \"question_id\": 1, \"question\": \"?\", \"answer\": \"a\", \"prediction\": \"a\"}\n";
    for name in ["teacher.jsonl", "student.jsonl"] {
        fs::write(at.join(name), line).unwrap();
    }
    fs::write(at.join("a.json"), "[{\"question_id\": 1, \"answers\": [\"a\"]}]").unwrap();
    fs::create_dir(at.join("sub")).unwrap();
    let select = ["select", "--teacher", "teacher.jsonl", "--student", "student.jsonl", "--out"];
    let score =
        ["score", "--benchmark", "textvqa", "--annotations", "a.json", "--predictions", "teacher.jsonl"];
    for args in [
        [&select[..], &["./teacher.jsonl"]].concat(),
        [&select[..], &["sub/../student.jsonl"]].concat(),
        [&select[..], &["parity.jsonl", "--rehearsal", "./parity.jsonl"]].concat(),
        [&select[..], &["parity.jsonl", "--rejected", "sub/../teacher.jsonl"]].concat(),
        // Folders that would be made.
        [&select[..], &["new/parity.jsonl", "--rejected", "./new/parity.jsonl"]].concat(),
        [&select[..], &["new/../teacher.jsonl"]].concat(),
        [&score[..], &["--per-question", "./teacher.jsonl"]].concat(),
        [&score[..], &["--per-question", "sub/../a.json"]].concat(),
        [&score[..], &["--per-question", "new/deep/../../a.json"]].concat(),
    ] {
        assert!(ends(at, 2, &args).contains("is named twice"), "{args:?}");
    }
    assert_eq!(fs::read_to_string(at.join("teacher.jsonl")).unwrap(), line);
    assert!(!at.join("parity.jsonl").exists() && !at.join("new").exists());
    ends(at, 0, &[&select[..], &["parity.jsonl"]].concat());
    ends(at, 0, &[&score[..], &["--per-question", "scores.jsonl"]].concat());
}

/// The stages' own names, as the README has them, in a folder that is then given to a run or an ablation.
#[test]
fn a_run_does_not_take_the_place_of_files_that_it_has_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let plan = mpa::demo::inputs::Plan { pictures: 8, pairs: 2, held_out: 4, questions: 2, steps: 2 };
    mpa::demo::inputs::prepare(&at.join("demo"), 1, plan).unwrap();
    fs::write(at.join("demo/grid.toml"), "base = \"config.toml\"\n[grid]\nrule = [\"none\"]\n").unwrap();
    for (args, name) in [
        (&["run", "demo/config.toml"][..], "demo/parity.jsonl"),
        (&["run", "demo/config.toml", "--out", "mine"], "mine/teacher.jsonl"),
        (&["ablate", "demo/grid.toml", "--out", "grid"], "grid/results.csv"),
    ] {
        let own = at.join(name);
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "my own\n").unwrap();
        let said = ends(at, 2, args);
        assert!(said.contains(name) && said.contains("take another --out"), "{said}");
        assert_eq!(fs::read_to_string(&own).unwrap(), "my own\n");
        fs::remove_file(&own).unwrap();
        ends(at, 0, args);
        ends(at, 0, args);
    }
}

/// What a killed start left of a folder is thrown away by the next; what anybody else put into one is not touched.
#[test]
fn a_folder_that_is_not_whole_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = format!("{GOLDEN}/smolvlm");
    let quantize = ["quantize", "--model", &model, "--out", "int8"];
    let names = |folder: &str| {
        let entries = fs::read_dir(at.join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    ends(at, 0, &quantize);
    let whole = names("int8");
    assert!(ends(at, 2, &quantize).contains("int8: is not empty"));
    assert!(
        ends(at, 2, &["merge", "--model", &model, "--adapter", "x", "--out", "int8"])
            .contains("int8: is not empty")
    );
    fs::remove_file(at.join("int8/config.json")).unwrap();
    for left in [".unfinished", "model-00007.safetensors", ".model.safetensors.tmp"] {
        fs::write(at.join("int8").join(left), "half").unwrap();
    }
    // Locked, as by one that still runs.
    let running = fs::File::open(at.join("int8/.unfinished")).unwrap();
    running.lock().unwrap();
    assert!(ends(at, 2, &quantize).contains("another process is writing here"));
    assert!(at.join("int8/model-00007.safetensors").exists());
    drop(running);
    ends(at, 0, &quantize);
    assert_eq!(names("int8"), whole);
}
