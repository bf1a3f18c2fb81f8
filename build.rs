//! Compiles kernels/*.cu: each to a fatbin that the program carries (nvcc), or, with the feature host-kernels, all to a library that runs
//! them on the CPU for tests (kernels/host/build.sh). Without nvcc the program is built without kernels and says so.
//!
//! MPA_REQUIRE_NVCC=1 makes a missing nvcc and a register spill errors. MPA_NVCC_JOBS says how many files are compiled at a time.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// Machine code for Ampere, Ada and Hopper, and PTX for whatever comes later.
const TARGETS: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
];

fn main() {
    for variable in
        ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "PATH", "CXX", "MPA_REQUIRE_NVCC", "MPA_COMMIT"]
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=.cuda/nvidia/cu13/bin/nvcc");
    if let Err(why) = run() {
        println!("cargo::error={}", why.replace('\n', " | "));
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    println!("cargo::rustc-env=MPA_COMMIT={}", commit(&root));
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let kernels = sources(&root.join("kernels"))?;
    let required = env::var("MPA_REQUIRE_NVCC").is_ok_and(|v| v == "1");
    let host = env::var_os("CARGO_FEATURE_HOST_KERNELS").is_some();
    if host {
        build_host_library(&root, &out)?;
    }
    let compiled = match find_nvcc(&root) {
        _ if host => Err("the feature host-kernels runs them on the CPU".to_owned()),
        Ok(nvcc) => {
            let version = nvcc_version(&nvcc)?;
            Ok((compile_all(&nvcc, &version, &kernels, &out, required)?, version))
        }
        Err(why) if required => return Err(format!("MPA_REQUIRE_NVCC=1, but {why}")),
        Err(why) => {
            println!(
                "cargo::warning=built without CUDA kernels: {why}; scripts/setup-nvcc.sh fetches a compiler"
            );
            Err(why)
        }
    };
    let compiled = compiled.as_ref().map(|(c, version)| (c.as_slice(), version.as_str()));
    write_table(&out.join("kernels.rs"), compiled.map_err(String::as_str), &kernels)
}

/// The commit that measurements name: MPA_COMMIT (scripts/gpu-pack.sh sets it). Else the one at hand, which later commits may follow without a
/// build: watching git would compile everything again for each of them.
fn commit(root: &Path) -> String {
    if let Ok(commit) = env::var("MPA_COMMIT")
        && !commit.trim().is_empty()
    {
        return commit.trim().to_owned();
    }
    let output = Command::new("git").arg("-C").arg(root).args(["rev-parse", "--short", "HEAD"]).output();
    match output {
        Ok(output) if output.status.success() => {
            format!("{} or later", String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => "unknown".to_owned(),
    }
}

/// A kernels/*.cu: its path, and the names of its kernels with the most threads of a block.
struct Source {
    path: PathBuf,
    stem: String,
    text: String,
    symbols: Vec<(String, u32)>,
}

fn sources(folder: &Path) -> Result<Vec<Source>, String> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            let text = read(&path)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            sources.push(Source { symbols: symbols(&text), path, stem, text });
        }
    }
    sources.sort_by(|a, b| a.stem.cmp(&b.stem));
    Ok(sources)
}

/// Name and launch bound of each `extern "C" __global__ void __launch_bounds__(THREADS) NAME(`. Without a bound: 1024, the most there is.
fn symbols(text: &str) -> Vec<(String, u32)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let symbol = |entry: &str| {
        let bound = entry.split_once("__launch_bounds__(").filter(|(before, _)| !before.contains('('));
        let (threads, entry) = match bound.and_then(|(_, rest)| rest.split_once(')')) {
            Some((bound, rest)) => {
                let digits: String = bound.trim().chars().take_while(char::is_ascii_digit).collect();
                (digits.parse().unwrap_or(1024), rest)
            }
            None => (1024, entry),
        };
        let head = entry.split('(').next().unwrap_or_default();
        head.rsplit(|c| !is_name(c)).find(|part| !part.is_empty()).map(|name| (name.to_owned(), threads))
    };
    text.split("extern \"C\" __global__").skip(1).filter_map(symbol).collect()
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// nvcc, by absolute path: NVCC, CUDA_HOME or CUDA_PATH, ./.cuda, the virtual environment, PATH, /usr/local/cuda.
fn find_nvcc(root: &Path) -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        let nvcc = PathBuf::from(nvcc);
        return if nvcc.is_file() {
            Ok(nvcc)
        } else {
            Err(format!("NVCC names no file: {}", nvcc.display()))
        };
    }
    let from = |variable: &str| env::var_os(variable).map(PathBuf::from);
    let mut folders: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|v| from(v)).map(|p| p.join("bin")).collect();
    folders.push(root.join(".cuda/nvidia/cu13/bin"));
    if let Some(environment) = from("VIRTUAL_ENV")
        && let Ok(pythons) = fs::read_dir(environment.join("lib"))
    {
        folders.extend(pythons.flatten().map(|e| e.path().join("site-packages/nvidia/cu13/bin")));
    }
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders.push(PathBuf::from("/usr/local/cuda/bin"));
    folders.into_iter().map(|f| f.join("nvcc")).find(|f| f.is_file()).ok_or_else(|| {
        "no nvcc in NVCC, CUDA_HOME, CUDA_PATH, .cuda, VIRTUAL_ENV, PATH or /usr/local/cuda".to_string()
    })
}

/// The compiler's own words, like 13.0.88: numbers of registers are those of one version.
fn nvcc_version(nvcc: &Path) -> Result<String, String> {
    let output =
        Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once(", V").and_then(|(_, rest)| rest.split_whitespace().next());
    version.map(str::to_owned).ok_or_else(|| format!("{} --version says no version: {text}", nvcc.display()))
}

/// What nvcc made of one source.
struct Compiled {
    fatbin: PathBuf,
    /// ptxas' report.
    report: String,
}

fn compile_all(
    nvcc: &Path,
    version: &str,
    kernels: &[Source],
    out: &Path,
    strict: bool,
) -> Result<Vec<Compiled>, String> {
    let jobs = env::var("MPA_NVCC_JOBS").ok().and_then(|v| v.parse().ok());
    let jobs = jobs.or_else(|| thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let surroundings = format!("nvcc {version}\n{}", headers(kernels)?);
    let next = Mutex::new(0..kernels.len());
    let done: Mutex<BTreeMap<usize, Result<Compiled, String>>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..jobs.min(kernels.len()) {
            scope.spawn(|| {
                while let Some(i) = next.lock().ok().and_then(|mut n| n.next()) {
                    let compiled = compile(nvcc, &kernels[i], &surroundings, out);
                    if let Ok(mut done) = done.lock() {
                        done.insert(i, compiled);
                    }
                }
            });
        }
    });
    let done = done.into_inner().map_err(|e| e.to_string())?;
    let compiled = done.into_values().collect::<Result<Vec<_>, _>>()?;
    if strict {
        compiled.iter().zip(kernels).try_for_each(|(c, k)| refuse_spills(&k.stem, &c.report))?;
    }
    Ok(compiled)
}

/// The text of all headers beside the kernels: a kernel is compiled again when one of them changes.
fn headers(kernels: &[Source]) -> Result<String, String> {
    let Some(folder) = kernels.first().and_then(|k| k.path.parent()) else { return Ok(String::new()) };
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "cuh"))
        .collect();
    paths.sort();
    paths.iter().map(|p| read(p)).collect::<Result<Vec<_>, _>>().map(|texts| texts.concat())
}

fn compile(nvcc: &Path, source: &Source, surroundings: &str, out: &Path) -> Result<Compiled, String> {
    let fatbin = out.join(format!("{}.fatbin", source.stem));
    let (log, key) = (fatbin.with_extension("ptxas"), fatbin.with_extension("key"));
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v", "-fatbin", "-o"]).arg(&fatbin);
    TARGETS.iter().for_each(|target| {
        command.args(["-gencode", target]);
    });
    command.arg(&source.path);
    let identity = format!("{command:?}\n{}{surroundings}", source.text);
    if fatbin.is_file() && fs::read_to_string(&key).is_ok_and(|old| old == identity) {
        return Ok(Compiled { fatbin, report: read(&log)? });
    }
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("nvcc does not compile {}:\n{report}", source.path.display()));
    }
    // Times differ from run to run: the same sources shall make the same binary.
    let report: String = report.split_inclusive('\n').filter(|line| !line.contains("Compile time")).collect();
    for (path, text) in [(&log, &report), (&key, &identity)] {
        fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(Compiled { fatbin, report })
}

fn refuse_spills(stem: &str, report: &str) -> Result<(), String> {
    let spills =
        |line: &&str| line.contains("spill") && !line.contains("0 bytes spill stores, 0 bytes spill loads");
    match report.lines().find(spills) {
        Some(line) => Err(format!("kernels/{stem}.cu spills registers: {}", line.trim())),
        None => Ok(()),
    }
}

/// The table that src/tensor/cuda/kernels.rs includes. `compiled`: by module, and the compiler's version.
fn write_table(
    path: &Path,
    compiled: Result<(&[Compiled], &str), &str>,
    kernels: &[Source],
) -> Result<(), String> {
    let mut text = String::new();
    let why = compiled.err();
    let (modules, nvcc) = compiled.unwrap_or_default();
    let _ = writeln!(
        text,
        "/// Why this binary has no kernels; `None` if it has.\npub const NO_KERNELS: Option<&str> = {why:?};"
    );
    let _ = writeln!(
        text,
        "/// The version of the compiler; empty without one.\npub const NVCC: &str = {nvcc:?};"
    );
    let _ = writeln!(text, "pub(super) static MODULES: &[Module] = &[");
    for (source, Compiled { fatbin, report }) in kernels.iter().zip(modules) {
        let Source { stem, symbols, .. } = source;
        let _ = writeln!(
            text,
            "    Module {{ stem: {stem:?}, fatbin: &Aligned(*include_bytes!({fatbin:?})).0, symbols: &{symbols:?}, report: {report:?} }},"
        );
    }
    let _ = writeln!(text, "];");
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn build_host_library(root: &Path, out: &Path) -> Result<(), String> {
    let script = root.join("kernels/host/build.sh");
    let output = Command::new("bash")
        .arg(&script)
        .arg("plain")
        .arg(out.join("libmpa_host_kernels.so"))
        .output()
        .map_err(|e| format!("bash {}: {e}", script.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}:\n{}", script.display(), String::from_utf8_lossy(&output.stderr)))
}
