//! What tells a model, or an adapter, from others: what was begun with one must not go on with another.
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result};
use crate::models::{adapter, hub};
use crate::random;

/// Samples of a file, the first at its beginning, and the bytes of each: enough to notice training, which changes weights everywhere, and quick to
/// read where the whole file is many gigabytes.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4096;

/// Of the settings in the folder, and of the names, sizes and samples of its safetensors files; 16 hexadecimal digits.
pub fn of(folder: &Path) -> Result<String> {
    let io = |e| Error::io(folder, e);
    let entries: Vec<_> = fs::read_dir(folder).map_err(io)?.collect::<std::io::Result<_>>().map_err(io)?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "safetensors"));
    files.sort();
    let mut state = 0;
    for name in hub::SETTINGS.into_iter().chain([adapter::CONFIG]) {
        match fs::read(folder.join(name)) {
            Ok(bytes) => state = random::mix(state, &[random::hash(name), random::hash_bytes(&bytes)]),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(folder.join(name), e)),
        }
    }
    for file in files {
        let name = random::hash(&file.file_name().unwrap_or_default().to_string_lossy());
        let (size, sampled) = sample(&file).map_err(|e| Error::io(&file, e))?;
        state = random::mix(state, &[name, size, sampled]);
    }
    Ok(format!("{state:016x}"))
}

fn sample(path: &Path) -> std::io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    for i in 0..SAMPLES {
        file.seek(SeekFrom::Start(size.saturating_sub(SAMPLE) * i / (SAMPLES - 1)))?;
        (&file).take(SAMPLE).read_to_end(&mut bytes)?;
    }
    Ok((size, random::hash_bytes(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_names_sizes_and_settings_tell() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut bytes = vec![7; 1 << 20];
        let mut seen = vec![of(folder.path()).unwrap()];
        let mut differs = || {
            let now = of(folder.path()).unwrap();
            assert!(!seen.contains(&now), "{seen:?}");
            seen.push(now);
        };
        fs::write(at("model.safetensors"), &bytes).unwrap();
        differs();
        for changed in [0, bytes.len() - 1] {
            bytes[changed] = 8;
            fs::write(at("model.safetensors"), &bytes).unwrap();
            differs();
        }
        fs::write(at("model.safetensors"), &bytes[1..]).unwrap();
        differs();
        fs::rename(at("model.safetensors"), at("adapter_model.safetensors")).unwrap();
        differs();
        for name in ["config.json", "chat_template.jinja", "adapter_config.json"] {
            for text in ["{}", "{ }"] {
                fs::write(at(name), text).unwrap();
                differs();
            }
        }
        fs::write(at("training.json"), "{}").unwrap();
        assert_eq!(&of(folder.path()).unwrap(), seen.last().unwrap());
    }
}
