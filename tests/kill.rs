//! `mpa run` killed with SIGKILL at many moments, with the demo's models: it goes on and ends with the same bytes.

#[path = "common/kills.rs"]
mod kills;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use mpa::demo::inputs::{self, Plan};

/// Little of everything, with several checkpoints in each arm.
fn prepare(folder: &Path) -> PathBuf {
    let plan = Plan { pictures: 40, pairs: 2, held_out: 12, questions: 2, steps: 12 };
    inputs::prepare(folder, 3, plan).unwrap();
    let config = folder.join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let often =
        text.replace("checkpoint_every = 200", "checkpoint_every = 2").replace("batch = 64", "batch = 4");
    assert_ne!(text, often);
    std::fs::write(&config, often).unwrap();
    config
}

fn start(config: &Path, out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mpa"))
        .args(["run", "--quiet"])
        .arg(config)
        .arg("--out")
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Every file below a folder but its times with its bytes; links are the run's inputs and not followed.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() || path.ends_with("times.json") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.strip_prefix(folder).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let home = tempfile::tempdir().unwrap();
    let config = prepare(&home.path().join("demo"));
    let whole = home.path().join("whole");
    let begun = Instant::now();
    assert!(start(&config, &whole).wait().unwrap().success());
    let took = begun.elapsed();
    let want = files(&whole);
    assert!(want.contains_key(Path::new("report.html")) && want.contains_key(Path::new("summary.json")));

    let out = home.path().join("killed");
    let kills = kills::until_done(took, 0.01, || start(&config, &out));
    assert!(kills >= 5, "killed {kills} times only");
    assert!(start(&config, &out).wait().unwrap().success());
    let got = files(&out);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, bytes) in &want {
        assert!(&got[name] == bytes, "{} differs after {kills} kills", name.display());
    }
}
