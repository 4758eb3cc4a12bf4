//! Writes the output of one run to the log store: at once, and whatever happens to the disk.
//!
//! [`LogWriter::write`] cannot fail and keeps nothing back. What the disk does not take is counted and dropped, and the
//! index says where and how much as soon as the disk takes bytes again. A log that was deleted or truncated under the
//! writer is begun anew. All of that is found out at most every 10 ms, together with the mark that is due then: two
//! `fstat` and one small `write` beside the bytes themselves. Nothing here reads a clock or allocates per write.
//!
//! A process that uses this ignores SIGXFSZ, or a file size limit kills it before `write` can say EFBIG (setrlimit(2)).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::index::{Index, RECORD};
use super::record::{Mark, Record, header};
use super::{DATA_FILE, INDEX_FILE};
use crate::name::RunNumber;
use crate::time::UnixMillis;

/// 10 ms between two marks: times are exact to what a person can tell apart, and a busy log pays one small write in
/// hundreds for them.
pub const MARK_INTERVAL_MS: u64 = 10;

/// Writes the output of one run. There is one per service at a time.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    run: RunNumber,
    started_at: UnixMillis,
    /// Where this run's output begins.
    start: u64,
    /// `None` while it is gone and cannot be made again: everything is lost then.
    data: Option<File>,
    /// Where the next byte goes.
    end: u64,
    /// Bytes written since the file was last seen to exist.
    unchecked: u64,
    /// `None` while there is none: the log does without.
    index: Option<IndexFile>,
    marked_at: UnixMillis,
    lost: u64,
    /// Those of `lost` that no gap mark tells of yet.
    unmarked: u64,
}

impl LogWriter {
    /// Opens the log of a service for `run`, and marks that it begins.
    ///
    /// Makes the directory (0700) and the files (0600) that do not exist. The output of earlier runs stays. If the last
    /// run in the index is `run` itself, it goes on: somebody takes over from a writer that died.
    ///
    /// # Errors
    /// When the directory or `log` cannot be made or opened. A problem with the index alone is none.
    pub fn open(dir: &Path, run: RunNumber, now: UnixMillis) -> io::Result<Self> {
        let (data, end) = open_data(dir)?;
        let opened = IndexFile::open(dir, run, end);
        let goes_on = opened.as_ref().is_ok_and(|(_, last_run)| *last_run == Some(run));
        let mut writer = Self {
            dir: dir.to_owned(),
            run,
            started_at: now,
            start: end,
            data: Some(data),
            end,
            unchecked: 0,
            index: opened.ok().map(|(index, _)| index),
            marked_at: now,
            lost: 0,
            unmarked: 0,
        };
        writer.mark(if goes_on { Mark::Data } else { Mark::RunStart }, end, now);
        Ok(writer)
    }

    /// Appends `bytes`, now. What the system does not take is dropped and counted.
    pub fn write(&mut self, bytes: &[u8], now: UnixMillis) {
        if bytes.is_empty() {
            return;
        }
        // A clock that was set back makes a mark due as well.
        if now.0.abs_diff(self.marked_at.0) >= MARK_INTERVAL_MS {
            self.check();
            self.mark(Mark::Data, self.end, now);
            self.marked_at = now;
        }
        let at = self.end;
        let written = self.append(bytes);
        if written > 0 && self.unmarked > 0 {
            self.mark_gap(at, now);
        }
        self.lose((bytes.len() - written) as u64);
    }

    /// Counts `bytes` of output that was lost before it came here, to be marked as missing at this place.
    pub fn lose(&mut self, bytes: u64) {
        self.lost += bytes;
        self.unmarked += bytes;
    }

    /// Marks that the run is over, and what is missing at its end.
    pub fn end(&mut self, now: UnixMillis) {
        self.check();
        if self.unmarked > 0 {
            self.mark_gap(self.end, now);
        }
        self.mark(Mark::RunEnd, self.end, now);
    }

    /// How many bytes of this run were dropped.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes as much of `bytes` as the system takes; says how much.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let Some(data) = &mut self.data else { return 0 };
        let mut written = 0;
        while written < bytes.len() {
            match data.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.end += written as u64;
        self.unchecked += written as u64;
        written
    }

    /// Finds out whether the files are still there, and begins them anew if not.
    fn check(&mut self) {
        let seen = self.data.as_ref().and_then(|data| data.metadata().ok());
        match seen {
            Some(seen) if seen.nlink() > 0 && seen.len() >= self.end => {
                // Whatever somebody else appended counts as output of this run.
                self.end = seen.len();
                self.unchecked = 0;
                self.check_index();
            }
            Some(seen) if seen.nlink() > 0 => self.resume_truncated(seen.len()),
            Some(_) | None => self.recreate(),
        }
    }

    /// Goes on in a log that somebody made shorter.
    fn resume_truncated(&mut self, len: u64) {
        // Of what was written since the last look, `len` bytes at most came after the cut; the others may be gone.
        self.lose(self.unchecked.saturating_sub(len));
        self.start = if len <= self.unchecked { 0 } else { len };
        self.end = len;
        self.unchecked = 0;
        self.begin_index();
    }

    /// Makes a log that was deleted again. As long as that fails, output is dropped.
    fn recreate(&mut self) {
        // Some of it may have been written before the file was deleted, so this is an upper bound.
        self.lose(self.unchecked);
        self.unchecked = 0;
        self.data = None;
        self.index = None;
        if let Ok((data, end)) = open_data(&self.dir) {
            self.data = Some(data);
            self.start = end;
            self.end = end;
            self.begin_index();
        }
    }

    fn check_index(&mut self) {
        let is_there =
            self.index.as_ref().is_some_and(|index| index.file.metadata().is_ok_and(|seen| seen.nlink() > 0));
        if !is_there {
            self.begin_index();
        }
    }

    /// Begins a new index, in which this run is the only one known.
    fn begin_index(&mut self) {
        self.index = IndexFile::create(&self.dir).ok();
        self.mark(Mark::RunStart, self.start, self.started_at);
    }

    fn mark_gap(&mut self, at: u64, now: UnixMillis) {
        // If the index does not take it now, the next place where bytes are written gets it.
        if self.mark(Mark::Gap { lost: self.unmarked }, at, now) {
            self.unmarked = 0;
        }
    }

    fn mark(&mut self, mark: Mark, offset: u64, time: UnixMillis) -> bool {
        let record = Record { offset, time, run: self.run, mark };
        self.index.as_mut().is_some_and(|index| index.append(&record))
    }
}

/// The index as its writer has it.
#[derive(Debug)]
struct IndexFile {
    file: File,
    /// Where the next record goes. Behind it lies nothing, or a torn record that the next one overwrites.
    end: u64,
}

impl IndexFile {
    /// Opens the index of a log of `data_end` bytes, and says which run was the last. Begins a new one where the old one
    /// cannot be about this log, or knows a later run.
    fn open(dir: &Path, run: RunNumber, data_end: u64) -> io::Result<(Self, Option<RunNumber>)> {
        let old = Index::open(dir);
        let newest = old.last_before(old.count());
        let last = match newest {
            // The log was deleted or emptied, and its index was left behind.
            Some((_, record)) if record.offset > data_end && data_end == 0 => None,
            // The log is shorter than it was, as after a power failure. What the index says about the rest still holds.
            Some((_, record)) if record.offset > data_end => {
                old.last_before(old.partition(0, |record| record.offset <= data_end))
            }
            Some(_) | None => newest,
        };
        match last {
            Some((at, record)) if record.run <= run => {
                let file = OpenOptions::new().write(true).open(dir.join(INDEX_FILE))?;
                let end = (at + 2) * RECORD;
                file.set_len(end)?;
                Ok((Self { file, end }, Some(record.run)))
            }
            Some(_) | None => Ok((Self::create(dir)?, None)),
        }
    }

    /// Begins a new index in a new file, so that readers of the old one notice.
    fn create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(INDEX_FILE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all_at(&header(), 0)?;
        Ok(Self { file, end: RECORD })
    }

    fn append(&mut self, record: &Record) -> bool {
        let is_written = self.file.write_all_at(&record.encode(), self.end).is_ok();
        if is_written {
            self.end += RECORD;
        }
        is_written
    }
}

fn open_data(dir: &Path) -> io::Result<(File, u64)> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let data = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(DATA_FILE))?;
    let end = data.metadata()?.len();
    Ok((data, end))
}
