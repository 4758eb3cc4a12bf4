//! Selects a part of a log: by run, by time, by number of lines.
//!
//! A [`LogReader`] sees the log as it was when it was opened. Every selection is found by searching the index or by
//! reading backwards from the end; nothing here reads more of a log than the part that is asked for and some pages.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Entry, LineEnd, cuts, whole_characters};
use super::follower::Follower;
use super::index::Index;
use super::record::{Mark, Record, Stream};
use super::segments::{self, Data};
use super::text::{Escapes, LineText};
use crate::name::RunNumber;
use crate::time::UnixMillis;

/// 64 KiB: what is read at once when looking backwards for lines.
const BLOCK_BYTES: u64 = 64 * 1024;

/// 4 KiB: what a failure message shows of one line at most.
const MESSAGE_LINE_BYTES: usize = 4096;

/// The log of one service, as it was when it was opened.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    data: Data,
    end: u64,
    index: Index,
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The bytes.
    pub bytes: Range<u64>,
    /// The records about them.
    records: Range<u64>,
}

/// One run in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpan {
    /// Its number; `None` for bytes that the index says nothing about.
    pub run: Option<RunNumber>,
    /// When it began, if that is on record.
    pub started_at: Option<UnixMillis>,
    /// When it ended, if it has and that is on record.
    pub ended_at: Option<UnixMillis>,
    /// Its output.
    pub selection: Selection,
}

/// Names a run by its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunChoice {
    /// The newest run.
    Current,
    /// The run before the newest.
    Previous,
    /// The run with this number.
    Number(RunNumber),
}

impl LogReader {
    /// Opens the log of a service directory; `None` if the service has never written one.
    ///
    /// # Errors
    /// When there is a log and it cannot be opened.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        Self::open_from(dir, 0)
    }

    /// Opens the segments from that number on.
    pub(super) fn open_from(dir: &Path, number: u64) -> io::Result<Option<Self>> {
        // All that there were may have been removed since, because others have been made: who keeps little of much output does
        // that, and not again and again. What cannot be opened for another reason is no log.
        for _ in 0..100 {
            let mut numbers = segments::list(dir)?.data;
            numbers.retain(|other| *other >= number);
            if numbers.is_empty() {
                return Ok(None);
            }
            if let Some(data) = Data::open(dir, &numbers)? {
                let index = Index::open(dir, &data);
                return Ok(Some(Self { dir: dir.to_owned(), end: data.end(), data, index }));
            }
        }
        Ok(None)
    }

    /// All of it.
    #[must_use]
    pub fn all(&self) -> Selection {
        Selection { bytes: 0..self.end, records: 0..self.index.count() }
    }

    /// Lists the runs, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<RunSpan> {
        let mut runs = Vec::new();
        let mut next = 0;
        runs.extend(self.uncovered(0));
        while let Some((first, record)) = self.index.first_from(next) {
            let span = self.span(first, &record);
            next = span.selection.records.end;
            runs.push(span);
            runs.extend(self.uncovered(next));
        }
        runs
    }

    /// Finds one run; `None` if the log does not have it.
    #[must_use]
    pub fn run(&self, choice: RunChoice) -> Option<RunSpan> {
        match choice {
            RunChoice::Current => self.newest(),
            RunChoice::Previous => self.before(&self.newest()?),
            RunChoice::Number(run) => {
                let first = self.index.partition(0, |record| record.run < run);
                let (first, record) = self.index.first_from(first)?;
                (record.run == run).then(|| self.span(first, &record))
            }
        }
    }

    /// Narrows a selection to the lines that came at `time` or later, as far as the index knows.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn since(&self, selection: &Selection, time: UnixMillis) -> io::Result<Selection> {
        let first = self.index.partition(0, |record| record.time < time).max(selection.records.start);
        let start = match self.index.first_from(first) {
            Some((_, record)) => self.line_start(selection, record.offset)?,
            None => selection.bytes.end,
        };
        Ok(self.from(selection, start))
    }

    /// Narrows a selection to the lines that came at `time` or earlier, as far as the index knows.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn until(&self, selection: &Selection, time: UnixMillis) -> io::Result<Selection> {
        let first = self.index.partition(0, |record| record.time <= time).min(selection.records.end);
        let mut narrowed = selection.clone();
        if let Some((_, record)) = self.index.first_from(first).filter(|(at, _)| *at < selection.records.end) {
            narrowed.bytes.end = self.line_start(selection, record.offset)?;
            narrowed.records.end = first.max(narrowed.records.start);
        }
        Ok(narrowed)
    }

    /// Narrows a selection to its last `lines` lines. A line without newline at the end counts as one.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_lines(&self, selection: &Selection, lines: usize) -> io::Result<Selection> {
        let start = self.last_line_starts(selection, lines)?;
        Ok(if start == selection.bytes.start { selection.clone() } else { self.from(selection, start) })
    }

    /// Narrows a selection to the bytes from `start` on.
    #[must_use]
    pub fn from(&self, selection: &Selection, start: u64) -> Selection {
        let start = start.clamp(selection.bytes.start, selection.bytes.end);
        let first = self.index.partition(0, |record| record.offset < start);
        Selection {
            bytes: start..selection.bytes.end,
            records: first.clamp(selection.records.start, selection.records.end)..selection.records.end,
        }
    }

    /// Reads a selection.
    #[must_use]
    pub fn entries(&self, selection: &Selection) -> Cursor {
        let Selection { bytes, records } = selection;
        let index = self.index.shortened(records.end);
        Cursor::new(self.data.clone(), bytes.start, bytes.end, index, records.start)
    }

    /// Reads on from where a selection begins, without an end.
    #[must_use]
    pub fn follow(&self, selection: &Selection) -> Follower {
        let rest =
            Selection { bytes: selection.bytes.start..self.end, records: selection.records.start..self.index.count() };
        Follower::from_cursor(&self.dir, self.entries(&rest))
    }

    /// The last run, or the bytes that follow it without belonging to any.
    fn newest(&self) -> Option<RunSpan> {
        let count = self.index.count();
        self.uncovered(count).or_else(|| self.ending_with(&self.index.last_before(count)?.1))
    }

    /// What lies before `span`: a run, or bytes that belong to none.
    fn before(&self, span: &RunSpan) -> Option<RunSpan> {
        let first = span.selection.records.start;
        let uncovered = span.run.and_then(|_| self.uncovered(first));
        uncovered.or_else(|| self.ending_with(&self.index.last_before(first)?.1))
    }

    /// The run that `record` belongs to.
    fn ending_with(&self, record: &Record) -> Option<RunSpan> {
        let first = self.index.partition(0, |other| other.run < record.run);
        self.index.first_from(first).map(|(first, record)| self.span(first, &record))
    }

    /// The run whose first record is at `first`.
    fn span(&self, first: u64, record: &Record) -> RunSpan {
        let next = self.index.partition(first, |other| other.run <= record.run).max(first + 1);
        let last = self.index.last_before(next).map_or(*record, |(_, last)| last);
        let start = record.offset.min(self.end);
        let is_over = last.mark == Mark::RunEnd;
        let end = match self.index.first_from(next) {
            _ if is_over => last.offset,
            Some((_, following)) => following.offset,
            None => self.end,
        };
        RunSpan {
            run: Some(record.run),
            started_at: match record.mark {
                Mark::RunStart => Some(record.time),
                Mark::Continued { started_at } => Some(started_at),
                Mark::Data | Mark::RunEnd | Mark::Gap { .. } => None,
            },
            ended_at: is_over.then_some(last.time),
            selection: Selection { bytes: start..end.clamp(start, self.end), records: first..next },
        }
    }

    /// The bytes before the record at `at` that belong to no run: nobody has marked them, or a run was over already.
    fn uncovered(&self, at: u64) -> Option<RunSpan> {
        let start = match self.index.last_before(at) {
            Some((_, record)) if record.mark != Mark::RunEnd => return None,
            Some((_, record)) => record.offset,
            None => 0,
        };
        let end = self.index.first_from(at).map_or(self.end, |(_, record)| record.offset.min(self.end));
        (start < end).then_some(RunSpan {
            run: None,
            started_at: None,
            ended_at: None,
            selection: Selection { bytes: start..end, records: at..at },
        })
    }

    /// The first place at `offset` or later where a line of the selection begins.
    fn line_start(&self, selection: &Selection, offset: u64) -> io::Result<u64> {
        let Range { start, end } = selection.bytes;
        if offset <= start || offset >= end {
            return Ok(offset.clamp(start, end));
        }
        let mut before = [0];
        self.data.read_exact_at(&mut before, offset - 1)?;
        if before == *b"\n" {
            return Ok(offset);
        }
        // Otherwise the line in progress ends first, unless a record says that none is, or that it is another stream's.
        let record = self.index.partition(0, |record| record.offset < offset);
        let stream_before = |at| self.index.last_before(at).and_then(|(_, record)| record.stream);
        if stream_before(record) != stream_before(self.index.partition(record, |record| record.offset <= offset)) {
            return Ok(offset);
        }
        let mut cursor = Cursor::new(self.data.clone(), offset, end, self.index.clone(), record);
        while cursor.advance()? {
            match cursor.entry() {
                Some(Entry::Line(line)) if line.end == LineEnd::Continues => {}
                Some(Entry::Line(_)) => return Ok(cursor.position()),
                Some(
                    Entry::Started { .. }
                    | Entry::Continued { .. }
                    | Entry::Ended { .. }
                    | Entry::Gap { .. }
                    | Entry::Restarted,
                )
                | None => {
                    return Ok(offset);
                }
            }
        }
        Ok(end)
    }

    /// Where the last `lines` lines of a selection begin.
    fn last_line_starts(&self, selection: &Selection, lines: usize) -> io::Result<u64> {
        let Range { start, end } = selection.bytes;
        if lines == 0 {
            return Ok(end);
        }
        let mut left = lines;
        let mut lowest = end;
        let mut next_record = self.index.partition(0, |record| record.offset < end).min(selection.records.end);
        let mut block = Vec::new();
        let mut block_end = end;
        while block_end > start {
            let block_start = block_end.saturating_sub(BLOCK_BYTES).max(start);
            block.resize(usize::try_from(block_end - block_start).unwrap_or(0), 0);
            self.data.read_exact_at(&mut block, block_start)?;
            let mut newlines = memchr::memrchr_iter(b'\n', &block).map(|at| block_start + at as u64 + 1).peekable();
            // The places where a line begins, from the last one down, be it behind a newline or at a record.
            loop {
                let cut = self.cut_before(&mut next_record, selection.records.start, block_start);
                let Some(place) = newlines.peek().copied().max(cut) else { break };
                newlines.next_if_eq(&place);
                if cut == Some(place) {
                    next_record -= 1;
                }
                // Behind the last newline no line begins, and a newline and several records may be at one place.
                if place < lowest {
                    lowest = place;
                    left -= 1;
                    if left == 0 {
                        return Ok(place);
                    }
                }
            }
            block_end = block_start;
        }
        Ok(start)
    }

    /// The place behind `floor` where the last record before `next` ends a line. Leaves `next` behind that record.
    fn cut_before(&self, next: &mut u64, first: u64, floor: u64) -> Option<u64> {
        while *next > first {
            match self.index.get(*next - 1) {
                Some(record) if record.offset <= floor => return None,
                Some(record) if cuts(&record) => return Some(record.offset),
                Some(_) | None => *next -= 1,
            }
        }
        None
    }
}

/// The last `lines` lines of a run as text, for a failure message: without escape sequences, long lines cut short.
///
/// Empty if there is no log or it does not have the run. Output that the index says nothing about counts as the run's,
/// because better the wrong lines than none.
///
/// # Errors
/// When the log cannot be read.
pub fn tail(dir: &Path, run: RunNumber, lines: usize) -> io::Result<Vec<String>> {
    let Some(reader) = LogReader::open(dir)? else { return Ok(Vec::new()) };
    let uncovered = || reader.newest().filter(|span| span.run.is_none());
    let Some(span) = reader.run(RunChoice::Number(run)).or_else(uncovered) else { return Ok(Vec::new()) };
    let mut cursor = reader.entries(&reader.last_lines(&span.selection, lines)?);
    let mut texts = Vec::new();
    let mut lines: [_; Stream::PLACES] = std::array::from_fn(|_| (LineText::new(Escapes::Strip), Vec::new()));
    while cursor.advance()? {
        let Some(Entry::Line(line)) = cursor.entry() else { continue };
        let (text, shown) = &mut lines[Stream::place(line.stream)];
        if shown.len() <= MESSAGE_LINE_BYTES {
            text.push(line.bytes, shown);
        }
        if line.end != LineEnd::Continues {
            text.end(shown);
            if shown.len() > MESSAGE_LINE_BYTES {
                shown.truncate(whole_characters(&shown[..MESSAGE_LINE_BYTES]));
                shown.extend_from_slice("…".as_bytes());
            }
            texts.push(String::from_utf8_lossy(shown).into_owned());
            shown.clear();
        }
    }
    Ok(texts)
}
