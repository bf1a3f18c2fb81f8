//! Writing records one by one, so that a killed process loses one line at most and the next goes on behind it.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::data::files;
use crate::data::records::Record;
use crate::error::{Error, Result};

/// A JSONL file that grows at its end. Locked while it is open.
pub struct Appender {
    path: PathBuf,
    file: File,
    done: Vec<Done>,
}

/// A record that was there at the start.
#[derive(Clone)]
pub struct Done {
    pub id: String,
    /// Of what it was made, and what was made of that.
    pub texts: [Option<u64>; 4],
    /// Its picture could not be read: where that was, no longer matters.
    pub unreadable: bool,
}

impl Appender {
    /// Opens or makes the file; drops an incomplete last line and reads which ids are there.
    pub fn open(path: &Path) -> Result<Appender> {
        files::make_parent(path)?;
        let io = |e| Error::io(path, e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(io)?;
        lock(&file, path)?;
        let mut reader = BufReader::new(&file);
        let (mut done, mut kept) = (Vec::new(), 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(io)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let number = done.len();
            let record = Record::parse(&line, number, number + 1)
                .map_err(|what| Error::line(path, number + 1, what))?;
            let unreadable = record.rejected.as_deref() == Some("unreadable");
            done.push(Done { texts: record.texts(), unreadable, id: record.id });
            kept += read as u64;
        }
        drop(reader);
        file.set_len(kept).map_err(io)?;
        file.seek(SeekFrom::Start(kept)).map_err(io)?;
        Ok(Appender { path: path.to_path_buf(), file, done })
    }

    /// Records that were there at the start, in the order of the file.
    pub fn done(&self) -> &[Done] {
        &self.done
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One write call a record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.file.write_all(&record.to_line()?).map_err(|e| Error::io(&self.path, e))
    }

    /// Hands what was written to the disk.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }
}

/// How long a killed process may take to be gone and to let its locks go.
const PATIENCE: Duration = Duration::from_secs(3);

/// Fails if another process holds `file`; where the file system knows no locks, goes on without.
pub fn lock(file: &File, path: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Failure(format!("{}: another process is writing it", path.display())));
            }
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
        }
    }
}
