//! Writes the index of the newest segment.

use std::fs::{File, OpenOptions, remove_file};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::index::{Index, Newest, RECORD};
use super::record::{Mark, Record, header};
use super::segments::index_path;
use crate::name::RunNumber;
use crate::time::UnixMillis;

/// An index as its writer has it.
#[derive(Debug)]
pub(super) struct IndexWriter {
    file: File,
    /// Where the next record goes. Behind it lies nothing, or a torn record that the next one overwrites.
    end: u64,
}

impl IndexWriter {
    /// Begins an index in a new file, so that readers of the old one notice.
    pub(super) fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let path = index_path(dir, number);
        match remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all_at(&header(), 0)?;
        Ok(Self { file, end: RECORD })
    }

    /// Goes on behind the first `count` records of an index.
    fn resume(dir: &Path, number: u64, count: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(index_path(dir, number))?;
        let end = (count + 1) * RECORD;
        file.set_len(end)?;
        Ok(Self { file, end })
    }

    /// Writes a record behind the others. Says whether that was possible.
    pub(super) fn append(&mut self, record: &Record) -> bool {
        let is_written = self.file.write_all_at(&record.encode(), self.end).is_ok();
        if is_written {
            self.end += RECORD;
        }
        is_written
    }

    /// The size of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// Whether the file has been deleted or replaced.
    pub(super) fn is_gone(&self) -> bool {
        !self.file.metadata().is_ok_and(|seen| seen.nlink() > 0)
    }
}

/// The index of the newest segment, opened to go on with, and what it says.
#[derive(Debug)]
pub(super) struct Opened {
    /// `None` if there is none and none could be made.
    pub(super) index: Option<IndexWriter>,
    /// Whether it has no record yet.
    pub(super) is_new: bool,
    /// The time of the first record of the segment, if it has any.
    pub(super) began_at: Option<UnixMillis>,
    /// With what the run begins in the segment, if it goes on: it has been written by somebody else before.
    pub(super) first: Option<Record>,
}

/// Opens the index of the newest segment for `run`, beginning a new one where the old one cannot be about this log.
/// `index` is all that is on record, `end` the byte after the last of the log.
///
/// Where a later run is on record, numbers have begun again, and nothing that is on record can be put in order with what
/// comes: it is removed.
pub(super) fn open(dir: &Path, index: &Index, run: RunNumber, end: u64, now: UnixMillis) -> Opened {
    let Newest { number, start, first_record } = index.newest();
    let last = index.last_before(index.count());
    if last.is_some_and(|(_, last)| last.run > run) {
        for number in index.segments() {
            // One that cannot be removed makes searches go wrong by some lines, which is all an index is for.
            let _ = remove_file(index_path(dir, number));
        }
        return Opened { index: IndexWriter::create(dir, number).ok(), is_new: true, began_at: None, first: None };
    }
    let count = match last {
        // The log was deleted or emptied, and its index was left behind.
        Some((_, last)) if last.offset > end && end == start => first_record,
        // The log is shorter than it was, as after a power failure. What the index says about the rest still holds.
        Some((_, last)) if last.offset > end => index.partition(first_record, |record| record.offset <= end),
        Some(_) | None => index.count(),
    };
    let known = index.shortened(count);
    let last = known.last_before(count);
    let resumed = match last {
        Some((at, _)) if at >= first_record => IndexWriter::resume(dir, number, at + 1 - first_record).ok(),
        Some(_) | None => None,
    };
    let is_new = resumed.is_none();
    Opened {
        index: resumed.or_else(|| IndexWriter::create(dir, number).ok()),
        is_new,
        began_at: known.first_from(first_record).map(|(_, record)| record.time),
        first: last.filter(|(_, last)| last.run == run).map(|_| first_of(&known, run, start, first_record, now)),
    }
}

/// With what a run that is on record begins in the newest segment, which has its records from `first_record` on and its
/// bytes from `start` on.
fn first_of(index: &Index, run: RunNumber, start: u64, first_record: u64, now: UnixMillis) -> Record {
    let first = index.partition(0, |record| record.run < run);
    let started_at = index.first_from(first).map_or(now, |(_, record)| match record.mark {
        Mark::Continued { started_at } => started_at,
        Mark::RunStart | Mark::Data | Mark::RunEnd | Mark::Gap { .. } => record.time,
    });
    let continued = Mark::Continued { started_at };
    match index.first_from(first.max(first_record)) {
        Some((_, here)) => {
            let mark = if here.mark == Mark::RunStart { Mark::RunStart } else { continued };
            Record { offset: here.offset - start, stream: None, mark, ..here }
        }
        // The index of this segment is gone; the run has filled all of it.
        None => Record { offset: 0, time: now, run, stream: None, mark: continued },
    }
}
