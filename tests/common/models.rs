//! Checkpoints that a test may change.

use std::fs;
use std::path::Path;

/// The files of a checkpoint, not its folders, in `to`, which is made if need be. They may be written to, whatever the originals allow.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        fs::write(to.join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
}
