//! Reads the index of a log: one record at a time, by position, by search, or in order.
//!
//! The records of all segments are numbered as one, and their offsets are those of the whole log. A missing or unreadable
//! index is one without records, and a record that fails its check is passed over. Nothing is loaded as a whole: an index
//! grows by a few hundred megabytes a day in the worst case.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::record::{RECORD_BYTES, Record, header};
use super::segments::{Data, index_path};
use crate::name::RunNumber;

/// [`RECORD_BYTES`] as a file size.
pub(super) const RECORD: u64 = RECORD_BYTES as u64;

/// 256 records, 8 KiB: what is read ahead in order.
const BLOCK_RECORDS: u64 = 256;

/// An index as it was when it was last looked at.
#[derive(Clone, Debug)]
pub(super) struct Index {
    /// One for each segment, the oldest first. Never empty.
    parts: Vec<Part>,
    /// The record after the last that is looked at.
    count: u64,
}

/// The index of one segment.
#[derive(Clone, Debug)]
struct Part {
    number: u64,
    file: Option<Arc<File>>,
    /// The first byte of the segment, and the byte after its last, once that is known for good.
    start: u64,
    end: u64,
    /// Its records.
    records: Range<u64>,
}

/// The segment that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    pub(super) number: u64,
    /// Its first byte.
    pub(super) start: u64,
    /// Its first record, which may not be there yet.
    pub(super) first_record: u64,
}

impl Part {
    /// Opens the index of the newest segment.
    fn open(dir: &Path, number: u64, start: u64, first: u64) -> Self {
        let mut part = Self { number, file: None, start, end: u64::MAX, records: first..first };
        let Ok(file) = File::open(index_path(dir, number)) else { return part };
        let mut begin = [0; RECORD_BYTES];
        if file.read_exact_at(&mut begin, 0).is_ok() && begin == header() {
            part.file = Some(Arc::new(file));
            part.grow();
        }
        part
    }

    fn grow(&mut self) {
        let len = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |seen| seen.len());
        self.records.end = self.records.start + (len / RECORD).saturating_sub(1);
    }

    /// Reads the records from `at` on into `bytes`, as many as it has room for.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Option<()> {
        self.file.as_ref()?.read_exact_at(bytes, (at - self.records.start + 1) * RECORD).ok()
    }

    /// The record of these bytes, as one of the whole log.
    fn decode(&self, bytes: &[u8]) -> Option<Record> {
        let record = Record::decode(bytes.try_into().ok()?)?;
        // An index may say more than its segment has, after a power failure.
        Some(Record { offset: self.start.saturating_add(record.offset).min(self.end), ..record })
    }
}

impl Index {
    /// Opens the index of the segments of `data`, whose length has been taken before: whatever lies before it has its
    /// marks already.
    pub(super) fn open(dir: &Path, data: &Data) -> Self {
        let mut index = Self { parts: Vec::new(), count: 0 };
        for (number, start) in data.segments() {
            index.append(dir, number, start);
        }
        index
    }

    /// Goes on with the index of the segment that begins at `start`.
    pub(super) fn append(&mut self, dir: &Path, number: u64, start: u64) {
        if let Some(last) = self.parts.last_mut() {
            last.end = start;
        }
        let part = Part::open(dir, number, start, self.count);
        self.count = part.records.end;
        self.parts.push(part);
    }

    /// Lets go of the segments before that one.
    pub(super) fn forget_before(&mut self, number: u64) {
        self.parts.retain(|part| part.number >= number);
    }

    /// The same, as if it had the first `count` records only.
    pub(super) fn shortened(&self, count: u64) -> Self {
        Self { parts: self.parts.clone(), count: self.count.min(count) }
    }

    /// The newest segment.
    pub(super) fn newest(&self) -> Newest {
        self.parts.last().map_or(Newest { number: 1, start: 0, first_record: 0 }, |part| Newest {
            number: part.number,
            start: part.start,
            first_record: part.records.start,
        })
    }

    /// The last run on record.
    pub(super) fn last_run(&self) -> Option<RunNumber> {
        self.last_before(self.count).map(|(_, record)| record.run)
    }

    /// The numbers of the segments.
    pub(super) fn segments(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(|part| part.number)
    }

    /// Takes in the records that were written to the newest segment since.
    pub(super) fn grow(&mut self) {
        if let Some(newest) = self.parts.last_mut() {
            newest.grow();
            self.count = newest.records.end;
        }
    }

    /// Takes the index that has replaced the one of the newest segment, if there is one. Returns whether there is.
    fn renew(&mut self, dir: &Path) -> bool {
        let Some(newest) = self.parts.last_mut() else { return false };
        let is_gone = newest.file.as_ref().is_none_or(|file| file.metadata().is_ok_and(|seen| seen.nlink() == 0));
        if !is_gone {
            return false;
        }
        let new = Part::open(dir, newest.number, newest.start, newest.records.start);
        let is_there = new.file.is_some();
        if is_there {
            self.count = new.records.end;
            *newest = new;
        }
        is_there
    }

    /// The first record that is there to be read.
    fn first(&self) -> u64 {
        self.parts.first().map_or(0, |part| part.records.start)
    }

    /// The number of records, those that fail their check included.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The segment that the record at `at` is about.
    fn part(&self, at: u64) -> Option<&Part> {
        let part = self.parts.get(self.parts.partition_point(|part| part.records.end <= at))?;
        (at < self.count && part.records.contains(&at)).then_some(part)
    }

    /// The record at `at`, unless it is torn.
    pub(super) fn get(&self, at: u64) -> Option<Record> {
        let part = self.part(at)?;
        let mut bytes = [0; RECORD_BYTES];
        part.read(at, &mut bytes)?;
        part.decode(&bytes)
    }

    /// The last whole record before `at`, and where it is.
    pub(super) fn last_before(&self, at: u64) -> Option<(u64, Record)> {
        (self.first()..at.min(self.count)).rev().find_map(|at| Some((at, self.get(at)?)))
    }

    /// The first whole record at or after `at`, and where it is.
    pub(super) fn first_from(&self, at: u64) -> Option<(u64, Record)> {
        (at.max(self.first())..self.count).find_map(|at| Some((at, self.get(at)?)))
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
    /// The records from `block_start` on, `None` for those that fail their check.
    block: Vec<Option<Record>>,
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

    /// Takes in what was written since, or the index that has taken the place of the newest one.
    ///
    /// Of a new index, the records from `position` on are handed out. Returns the last one before those.
    pub(super) fn refresh(&mut self, dir: &Path, position: u64) -> Option<Record> {
        if self.index.renew(dir) {
            let next = self.index.partition(self.index.first(), |record| record.offset < position);
            let before = self.index.last_before(next).map(|(_, record)| record);
            *self = Self::new(self.index.clone(), next);
            return before;
        }
        self.index.grow();
        self.look_again();
        None
    }

    /// Goes on with the index of the segment that begins at `start`. Those before the segment `oldest` are done with.
    pub(super) fn append(&mut self, dir: &Path, number: u64, start: u64, oldest: u64) {
        self.index.append(dir, number, start);
        self.index.forget_before(oldest);
        self.look_again();
    }

    fn look_again(&mut self) {
        if self.peeked.is_none() {
            // What failed its check at the end may have been written in the meantime.
            self.block.clear();
            self.find();
        }
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
        let in_block = |at: u64, start: u64| at.checked_sub(start).and_then(|place| usize::try_from(place).ok());
        if let Some(record) = in_block(at, self.block_start).and_then(|place| self.block.get(place)) {
            return *record;
        }
        let part = self.index.part(at)?;
        let count = BLOCK_RECORDS.min(part.records.end.min(self.index.count) - at);
        let mut bytes = vec![0; usize::try_from(count * RECORD).ok()?];
        self.block.clear();
        part.read(at, &mut bytes)?;
        self.block.extend(bytes.chunks_exact(RECORD_BYTES).map(|bytes| part.decode(bytes)));
        self.block_start = at;
        *self.block.first()?
    }
}
