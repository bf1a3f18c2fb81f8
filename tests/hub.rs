//! Model arguments: folders, the hub's cache, and a download from a hub that this test plays itself.
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use mpa::models::hub::resolve;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[track_caller]
fn complaint(model: &str, wants: &[&str]) -> u8 {
    let error = resolve(model).err().unwrap_or_else(|| panic!("{model} was resolved"));
    let message = error.to_string();
    for want in wants.iter().chain(&[model]) {
        assert!(message.contains(want), "{model}: no {want:?} in: {message}");
    }
    error.exit_code()
}

/// Files of a repository, by name.
type Files = BTreeMap<&'static str, Vec<u8>>;

fn checkpoint(index: bool) -> Files {
    let mut files: Files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("preprocessor_config.json", b"{ }".to_vec()),
        ("chat_template.json", b"{\"chat_template\": \"\"}".to_vec()),
        ("README.md", b"not needed".to_vec()),
        ("onnx/model.onnx", b"not needed either".to_vec()),
    ]
    .into();
    if index {
        let places =
            br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}"#;
        files.insert("model.safetensors.index.json", places.to_vec());
        files.insert("one.safetensors", vec![1; 100_000]);
        files.insert("two.safetensors", vec![2; 7]);
    } else {
        files.insert("model.safetensors", vec![3; 5]);
    }
    files
}

/// The hub's answer to one request.
fn answer(stream: TcpStream, files: &Files, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let mut start = 0;
    let mut end = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = range.trim().split_once('-').unwrap();
            start = from.parse().unwrap();
            end = to.parse::<usize>().ok().map(|to| to + 1);
        }
    }
    asked.lock().unwrap().push(path.clone());
    let mut stream = stream;
    if path == "/api/models/owner/whole/revision/main" || path == "/api/models/owner/sharded/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    match path.split_once("/resolve/main/").and_then(|(_, name)| files.get(name).map(|body| (name, body))) {
        Some((name, body)) => {
            let part = &body[start.min(body.len())..end.unwrap_or(body.len()).min(body.len())];
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                name.replace('/', "-"),
                start + part.len().max(1) - 1,
                body.len(),
                part.len()
            )?;
            stream.write_all(part)
        }
        None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    }
}

/// Starts a hub on this machine; returns its address and the paths that it is asked for.
fn start_hub() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let repositories =
        [("/owner/sharded", checkpoint(true)), ("/owner/", checkpoint(false)), ("", checkpoint(true))];
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Which repository is meant is in the first line, which is not consumed by looking at it.
            let mut head = [0; 256];
            let n = stream.peek(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).to_string();
            let files = &repositories.iter().find(|(prefix, _)| head.contains(prefix)).unwrap().1;
            let _ = answer(stream, files, &log);
        }
    });
    (address, asked)
}

/// A snapshot in the layout of the hub's cache.
fn cache_snapshot(hub: &Path, id: &str, files: &Files, without: &str) {
    let repository = hub.join(format!("models--{}", id.replace('/', "--")));
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| **name != without && !name.contains('/')) {
        fs::write(snapshot.join(name), bytes).unwrap();
    }
}

fn folders_and_nonsense() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path).unwrap(), folder.path());
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(complaint(file.to_str().unwrap(), &["expected a checkpoint folder", "this is a file"]), 2);
    for model in ["./nothing", "/no/such", "~/models", "a/b/c", "../x", "owner/", "C:\\models"] {
        assert_eq!(complaint(model, &["expected a checkpoint folder", "there is no such folder"]), 2);
    }
    for model in ["", "a b", "owner/na me", "owner/name@main", "owner/-name", "owner/a..b", "é"] {
        assert_eq!(complaint(model, &["a hub id such as"]), 2);
    }
}

fn warm_cache(hub: &Path) {
    for (id, index) in [("owner/warm", true), ("single", false)] {
        cache_snapshot(hub, id, &checkpoint(index), "");
        let folder = resolve(id).unwrap();
        assert!(folder.ends_with(COMMIT) && folder.join("config.json").is_file(), "{}", folder.display());
    }
    let mut newer = checkpoint(false);
    newer.remove("preprocessor_config.json");
    newer.insert("processor_config.json", b"{}".to_vec());
    cache_snapshot(hub, "owner/newer", &newer, "");
    resolve("owner/newer").unwrap();
    // A snapshot that lacks something is no model: the hub, which cannot be reached, is asked.
    for (i, without) in ["tokenizer.json", "two.safetensors", "chat_template.json"].iter().enumerate() {
        let id = format!("owner/cold{i}");
        cache_snapshot(hub, &id, &checkpoint(true), without);
        assert_eq!(
            complaint(
                &id,
                &[hub.to_str().unwrap(), "neither a folder nor whole in the cache", "could not be asked"]
            ),
            1
        );
    }
}

fn downloads(asked: &Mutex<Vec<String>>) {
    let whole = resolve("owner/whole").unwrap();
    assert_eq!(fs::read(whole.join("model.safetensors")).unwrap(), [3; 5]);
    let sharded = resolve("owner/sharded").unwrap();
    assert_eq!(fs::read(sharded.join("one.safetensors")).unwrap(), vec![1; 100_000]);
    assert_eq!(fs::read(sharded.join("two.safetensors")).unwrap(), [2; 7]);
    assert_eq!(fs::read(sharded.join("tokenizer.json")).unwrap(), b"{\"a\": 1}");
    let paths = std::mem::take(&mut *asked.lock().unwrap());
    assert!(paths.iter().all(|path| !path.contains("README") && !path.contains("onnx")), "{paths:?}");
    // The second time nothing is asked.
    assert_eq!(resolve("owner/sharded").unwrap(), sharded);
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(complaint("owner/unknown", &["404"]), 1);
}

/// Of huggingface_hub: another place of the cache, and no network.
fn other_settings() {
    let hub = tempfile::tempdir().unwrap();
    let mut text = checkpoint(false);
    text.remove("preprocessor_config.json");
    cache_snapshot(hub.path(), "owner/text", &text, "");
    text.insert("config.json", b"{\"vision_config\": {}}".to_vec());
    cache_snapshot(hub.path(), "owner/blind", &text, "");
    complaint("owner/text", &["could not be asked"]);
    // SAFETY: as in the test.
    unsafe {
        std::env::set_var("HF_HUB_CACHE", hub.path());
        std::env::set_var("HF_HUB_OFFLINE", "yes");
    }
    resolve("owner/text").unwrap();
    // With a vision side it would want to know about pictures.
    complaint("owner/blind", &[hub.path().to_str().unwrap(), "HF_HUB_OFFLINE is set"]);
    // SAFETY: as in the test.
    unsafe {
        std::env::remove_var("HF_HUB_CACHE");
        std::env::remove_var("HF_HUB_OFFLINE");
    }
}

/// One test, since the environment belongs to the whole process.
#[test]
fn a_model_is_a_folder_or_a_hub_id() {
    let home = tempfile::tempdir().unwrap();
    // A port that is free, and closed again: nobody answers there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // SAFETY: this is the only test of the process, and no other thread runs yet that could read the environment.
    unsafe {
        std::env::set_var("HF_HOME", home.path());
        std::env::set_var("HF_ENDPOINT", format!("http://{closed}"));
    }
    folders_and_nonsense();
    warm_cache(&home.path().join("hub"));
    other_settings();
    let (address, asked) = start_hub();
    // SAFETY: as above; the thread of the hub does not read the environment.
    unsafe { std::env::set_var("HF_ENDPOINT", address) };
    downloads(&asked);
}
