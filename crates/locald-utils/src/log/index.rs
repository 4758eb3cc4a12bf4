//! Reads `log.idx`: one record at a time, by position, by search, or in order.
//!
//! A missing or unreadable index is one without records, and a record that fails its check is passed over. Nothing is
//! loaded as a whole: an index grows by a few hundred megabytes a day in the worst case.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::INDEX_FILE;
use super::record::{RECORD_BYTES, Record, header};

/// [`RECORD_BYTES`] as a file size.
pub(super) const RECORD: u64 = RECORD_BYTES as u64;

/// 256 records, 8 KiB: what is read ahead in order.
const BLOCK_RECORDS: u64 = 256;

/// An index as it was when it was last looked at.
#[derive(Debug)]
pub(super) struct Index {
    file: Option<File>,
    count: u64,
}

impl Index {
    /// Opens the index of a service directory.
    pub(super) fn open(dir: &Path) -> Self {
        let mut index = Self { file: None, count: 0 };
        let Ok(file) = File::open(dir.join(INDEX_FILE)) else { return index };
        let mut start = [0; RECORD_BYTES];
        if file.read_exact_at(&mut start, 0).is_ok() && start == header() {
            index.file = Some(file);
            index.grow();
        }
        index
    }

    /// Another handle on the same file, with a view of its first `count` records.
    pub(super) fn duplicate(&self, count: u64) -> Self {
        match self.file.as_ref().map(File::try_clone) {
            Some(Ok(file)) => Self { file: Some(file), count: count.min(self.count) },
            Some(Err(_)) | None => Self { file: None, count: 0 },
        }
    }

    /// Takes in the records that were written since.
    pub(super) fn grow(&mut self) {
        let len = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |seen| seen.len());
        self.count = (len / RECORD).saturating_sub(1);
    }

    /// Whether the file has been deleted or replaced, or was not there in the first place.
    pub(super) fn is_gone(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.metadata().is_ok_and(|seen| seen.nlink() == 0))
    }

    /// The number of records, those that fail their check included.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The record at `at`, unless it is torn.
    pub(super) fn get(&self, at: u64) -> Option<Record> {
        if at >= self.count {
            return None;
        }
        let mut bytes = [0; RECORD_BYTES];
        self.file.as_ref()?.read_exact_at(&mut bytes, (at + 1) * RECORD).ok()?;
        Record::decode(&bytes)
    }

    /// The last whole record before `at`, and where it is.
    pub(super) fn last_before(&self, at: u64) -> Option<(u64, Record)> {
        (0..at.min(self.count)).rev().find_map(|at| Some((at, self.get(at)?)))
    }

    /// The first whole record at or after `at`, and where it is.
    pub(super) fn first_from(&self, at: u64) -> Option<(u64, Record)> {
        (at..self.count).find_map(|at| Some((at, self.get(at)?)))
    }

    /// The place, `from` or later, before which `holds` is true of every whole record and after which it is not. `holds`
    /// must not become true again once it is false.
    pub(super) fn partition(&self, from: u64, holds: impl Fn(&Record) -> bool) -> u64 {
        let (mut low, mut high) = (from, self.count.max(from));
        while low < high {
            let middle = low + (high - low) / 2;
            // A torn record stands where the whole one before it stands. Each is looked at once in all of the search.
            let whole = (low..=middle).rev().find_map(|at| Some((at, self.get(at)?)));
            match whole {
                Some((at, record)) if !holds(&record) => high = at,
                Some(_) | None => low = middle + 1,
            }
        }
        low
    }
}

/// Reads an index in order.
#[derive(Debug)]
pub(super) struct Records {
    index: Index,
    next: u64,
    peeked: Option<Record>,
    block: Vec<u8>,
    /// The record that `block` begins with.
    block_start: u64,
}

impl Records {
    /// Reads `index` from the record at `next` on.
    pub(super) fn new(index: Index, next: u64) -> Self {
        let mut records = Self { index, next, peeked: None, block: Vec::new(), block_start: 0 };
        records.find();
        records
    }

    /// The record that [`Self::bump`] goes past.
    #[inline]
    pub(super) fn peek(&self) -> Option<&Record> {
        self.peeked.as_ref()
    }

    /// Goes on to the next record.
    pub(super) fn bump(&mut self) {
        self.next += 1;
        self.find();
    }

    /// Takes in what was written since, or the index that has taken the place of this one.
    ///
    /// Of a new index, the records from `position` on are handed out. Returns the last one before those.
    pub(super) fn refresh(&mut self, dir: &Path, position: u64) -> Option<Record> {
        if self.index.is_gone() {
            let index = Index::open(dir);
            if index.file.is_some() {
                let next = index.partition(0, |record| record.offset < position);
                let before = index.last_before(next).map(|(_, record)| record);
                *self = Self::new(index, next);
                return before;
            }
        }
        self.index.grow();
        if self.peeked.is_none() {
            // What failed its check at the end may have been written in the meantime.
            self.block.clear();
            self.find();
        }
        None
    }

    /// Moves on to the first whole record from `next` on. If there is none, `next` stays before the torn ones.
    fn find(&mut self) {
        self.peeked = None;
        for at in self.next..self.index.count {
            if let Some(record) = self.read(at) {
                self.next = at;
                self.peeked = Some(record);
                return;
            }
        }
    }

    fn read(&mut self, at: u64) -> Option<Record> {
        let len = self.block.len() as u64;
        if !(self.block_start * RECORD..self.block_start * RECORD + len).contains(&(at * RECORD)) {
            let count = BLOCK_RECORDS.min(self.index.count - at);
            self.block.resize(usize::try_from(count * RECORD).unwrap_or(0), 0);
            self.block_start = at;
            let file = self.index.file.as_ref()?;
            if file.read_exact_at(&mut self.block, (at + 1) * RECORD).is_err() {
                self.block.clear();
                return None;
            }
        }
        let start = usize::try_from((at - self.block_start) * RECORD).ok()?;
        Record::decode(self.block.get(start..start + RECORD_BYTES)?.try_into().ok()?)
    }
}
