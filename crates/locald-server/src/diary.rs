//! The daemon's own log: structured lines in a file that cannot grow without bound.
//!
//! Values of environment variables never get here: nothing that is logged holds any.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::fmt::MakeWriter;

/// 1 MiB, twice: the current file and the one before. Weeks of starts and stops.
const LIMIT: u64 = 1 << 20;

struct Diary {
    path: PathBuf,
    file: File,
    size: u64,
}

/// Where tracing writes to.
struct Handle(Mutex<Diary>);

/// Starts writing to `path`. `LOCALD_LOG` sets the level: error, warn, info (the default), debug, trace.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn start(path: &Path) -> io::Result<()> {
    let level = std::env::var("LOCALD_LOG").ok().and_then(|level| level.parse::<tracing::Level>().ok());
    let handle = Handle(Mutex::new(Diary::open(path)?));
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        // It would be told on stderr, where a daemon has the same file, or nobody; and who cannot write there panics.
        .log_internal_errors(false)
        .with_writer(handle);
    // A second subscriber in one process is only met in tests.
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
    Ok(())
}

impl Diary {
    fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size })
    }

    fn turn_over(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, self.path.with_extension("log.old"))?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

impl Write for &Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut diary = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
        if diary.size >= LIMIT {
            diary.turn_over()?;
        }
        let count = diary.file.write(bytes)?;
        diary.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Handle {
    type Writer = &'a Handle;

    fn make_writer(&'a self) -> &'a Handle {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("daemon.log");
        let handle = Handle(Mutex::new(Diary::open(&path).expect("opens")));
        for _ in 0..3 * LIMIT / 1024 {
            (&handle).write_all(&[b'x'; 1024]).expect("writes");
        }
        let sizes: Vec<u64> = std::fs::read_dir(dir.path())
            .expect("lists")
            .map(|entry| entry.expect("entry").metadata().expect("meta").len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|&size| size <= LIMIT), "{sizes:?}");
    }
}
