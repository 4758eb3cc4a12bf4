//! Hands out a part of a log in order: lines, and what the index says about the places between them.
//!
//! A line ends after its newline, or where a run ends, begins or has a gap: what two runs wrote is never glued together.
//! The bytes of all lines, one after the other, are exactly the bytes of the log. A line longer than
//! [`MAX_PIECE_BYTES`] comes in pieces, so memory is bounded whatever a service prints.
//!
//! Of a service with two streams, the log may have one in the middle of a line of the other. What there is of that line waits then
//! until the rest has come: the lines of both are whole, and in the order in which they ended.
//!
//! Read [`Cursor::advance`]; everything else serves it.

use std::io;
use std::path::Path;

use super::index::{Index, Records};
use super::record::{Mark, Record, Stream};
use super::segments::Data;
use crate::name::RunNumber;
use crate::time::UnixMillis;

/// 64 KiB, the capacity of a pipe: longer than any line that people read, short enough to hold one per service.
pub const MAX_PIECE_BYTES: usize = 64 * 1024;

/// What a cursor or a follower stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A run began.
    Started {
        /// The run.
        run: RunNumber,
        /// When.
        at: UnixMillis,
    },
    /// What follows was written by a run that had begun earlier; its output up to here has been removed.
    Continued {
        /// The run.
        run: RunNumber,
        /// When it began.
        started_at: UnixMillis,
        /// When the output that follows began.
        at: UnixMillis,
    },
    /// A run ended.
    Ended {
        /// The run.
        run: RunNumber,
        /// When.
        at: UnixMillis,
    },
    /// Output is missing here: it could not be written.
    Gap {
        /// The run that wrote it.
        run: RunNumber,
        /// When writing became possible again.
        at: UnixMillis,
        /// How many bytes, at most.
        lost: u64,
    },
    /// The log was deleted, replaced or emptied, or what came next was removed before it was read. What follows is what is
    /// left of it. Only a follower says this.
    Restarted,
    /// A line, or a piece of one.
    Line(Line<'a>),
}

impl Entry<'_> {
    /// When the entry came, as far as the index knows.
    #[must_use]
    pub fn time(&self) -> Option<UnixMillis> {
        match self {
            Self::Started { at, .. } | Self::Continued { at, .. } | Self::Ended { at, .. } | Self::Gap { at, .. } => {
                Some(*at)
            }
            Self::Restarted => None,
            Self::Line(line) => line.time,
        }
    }
}

/// A line, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The run that wrote it; `None` where the index does not say.
    pub run: Option<RunNumber>,
    /// The stream by which it came; `None` for a terminal, and where the index does not say.
    pub stream: Option<Stream>,
    /// When its first byte came, or up to 10 ms before that; `None` where the index does not say.
    pub time: Option<UnixMillis>,
    /// Where the line begins in the log; the same for all its pieces.
    pub offset: u64,
    /// The bytes as they came, the newline included. A piece never ends within a character.
    pub bytes: &'a [u8],
    /// How it goes on.
    pub end: LineEnd,
}

/// How a [`Line`] goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// It ended with a newline.
    Newline,
    /// It ended without a newline: the run or the log ended, or output is missing here.
    Unfinished,
    /// The next piece belongs to the same line. The last piece of a line may be empty.
    Continues,
}

/// Stands at one entry of a log after the other.
#[derive(Debug)]
pub struct Cursor {
    data: Data,
    records: Records,
    /// The byte after the entry that the cursor stands at.
    position: u64,
    /// The byte after the last one to be handed out.
    end: u64,
    /// Whether more may come at the end: a line without newline waits there until it is complete.
    is_live: bool,
    /// The run, the stream and the time of the byte at `position`.
    run: Option<RunNumber>,
    stream: Option<Stream>,
    time: Option<UnixMillis>,
    /// The line of each stream that has been begun and not ended.
    lines: [Option<OpenLine>; Stream::PLACES],
    current: Current,
    /// The bytes of a current line that had to wait, to the last.
    joined: Vec<u8>,
    buffer: Buffer,
}

/// A line that has been begun and not ended.
#[derive(Debug)]
struct OpenLine {
    start: LineStart,
    /// Whether a piece of it has been handed out.
    is_handed_out: bool,
    /// What came of it before another stream did, and has not been handed out. No longer than a piece.
    waiting: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct LineStart {
    run: Option<RunNumber>,
    stream: Option<Stream>,
    time: Option<UnixMillis>,
    offset: u64,
}

/// [`Entry`] without its bytes: `len` of them lie at the beginning of the buffer, and those of a line that `is_joined` apart.
#[derive(Clone, Copy, Debug)]
enum Current {
    Nothing,
    Started { run: RunNumber, at: UnixMillis },
    Continued { run: RunNumber, started_at: UnixMillis, at: UnixMillis },
    Ended { run: RunNumber, at: UnixMillis },
    Gap { run: RunNumber, at: UnixMillis, lost: u64 },
    Line { start: LineStart, len: usize, is_joined: bool, end: LineEnd },
}

impl Cursor {
    /// A cursor before `position`, which ends at `end`, with the records of `index` from the one at `next_record` on.
    pub(super) fn new(data: Data, position: u64, end: u64, index: Index, next_record: u64) -> Self {
        let before = index.last_before(next_record).map(|(_, record)| record);
        let mut cursor = Self {
            data,
            records: Records::new(index, next_record),
            position,
            end,
            is_live: false,
            run: None,
            stream: None,
            time: None,
            lines: Default::default(),
            current: Current::Nothing,
            joined: Vec::new(),
            buffer: Buffer::new(MAX_PIECE_BYTES),
        };
        if let Some(before) = before {
            cursor.attribute(before);
        }
        cursor
    }

    /// Makes the cursor wait at its end for what may still come, until [`Self::settle`].
    pub(super) fn live(mut self) -> Self {
        self.is_live = true;
        self
    }

    #[cfg(test)]
    pub(super) fn with_max_piece(mut self, bytes: usize) -> Self {
        self.buffer = Buffer::new(bytes);
        self
    }

    /// Goes to the next entry. Says `false` at the end, where [`Self::entry`] has nothing.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn advance(&mut self) -> io::Result<bool> {
        self.leave();
        loop {
            // What the index says about a place comes before the bytes at that place.
            if let Some(record) = self.records.peek().copied().filter(|record| record.offset <= self.position) {
                if cuts(&record) && self.end_line() {
                    return Ok(true);
                }
                self.records.bump();
                if self.take(record) {
                    return Ok(true);
                }
            } else if self.position < self.end {
                let before = self.position;
                let is_found = self.find_line(false)?;
                // A file that turned out shorter than it was ends here. What has to wait for another stream is gone past.
                if is_found || (self.position < self.end && self.position == before) {
                    return Ok(is_found);
                }
            } else {
                return Ok(!self.is_live && self.end_line());
            }
        }
    }

    /// What the cursor stands at, once [`Self::advance`] has said `true`.
    #[must_use]
    pub fn entry(&self) -> Option<Entry<'_>> {
        match self.current {
            Current::Nothing => None,
            Current::Started { run, at } => Some(Entry::Started { run, at }),
            Current::Continued { run, started_at, at } => Some(Entry::Continued { run, started_at, at }),
            Current::Ended { run, at } => Some(Entry::Ended { run, at }),
            Current::Gap { run, at, lost } => Some(Entry::Gap { run, at, lost }),
            Current::Line { start: LineStart { run, stream, time, offset }, len, is_joined, end } => {
                let bytes = if is_joined { &self.joined } else { &self.buffer.bytes()[..len] };
                Some(Entry::Line(Line { run, stream, time, offset, bytes, end }))
            }
        }
    }

    /// The byte after the entry that the cursor stands at.
    #[must_use]
    pub fn position(&self) -> u64 {
        let len = match self.current {
            Current::Line { len, .. } => len as u64,
            Current::Nothing
            | Current::Started { .. }
            | Current::Continued { .. }
            | Current::Ended { .. }
            | Current::Gap { .. } => 0,
        };
        self.position + len
    }

    /// The beginning of a line that waits at the end for the rest of it.
    pub(super) fn held(&self) -> &[u8] {
        let waiting = self.lines.iter().flatten().map(|line| &line.waiting[..]).find(|waiting| !waiting.is_empty());
        match self.current {
            Current::Nothing => waiting.unwrap_or(self.buffer.bytes()),
            Current::Started { .. }
            | Current::Continued { .. }
            | Current::Ended { .. }
            | Current::Gap { .. }
            | Current::Line { .. } => &[],
        }
    }

    /// Hands out what [`Self::held`] shows, as a piece that continues.
    pub(super) fn release(&mut self) -> io::Result<bool> {
        if self.held().is_empty() {
            return Ok(false);
        }
        if (0..self.lines.len()).any(|place| self.hand_out_waiting(place)) {
            return Ok(true);
        }
        if self.buffer.bytes().is_empty() { Ok(false) } else { self.find_line(true) }
    }

    /// Takes in what was written since.
    pub(super) fn refresh(&mut self, dir: &Path) -> io::Result<News> {
        // Where there is a next segment, its writer has left this one for good, and this is the last look at it.
        let following = self.data.following(dir)?;
        // The length first: whatever lies before it has its marks in the index already.
        if !self.data.grow()? {
            return Ok(News::Shorter);
        }
        self.end = self.data.end();
        if let Some(before) = self.records.refresh(dir, self.position) {
            self.attribute(before);
        }
        let Some(file) = following else { return Ok(News::Grown) };
        let start = self.data.append(file, self.position);
        let oldest = self.data.segments().next().map_or(0, |(number, _)| number);
        self.records.append(dir, self.data.number(), start, oldest);
        Ok(News::NextSegment)
    }

    /// Ends the waiting: nothing more comes behind what has been read.
    pub(super) fn settle(&mut self) {
        self.is_live = false;
    }

    /// The segments that the cursor reads.
    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    /// Goes past the bytes of the entry that the cursor stood at.
    fn leave(&mut self) {
        if let Current::Line { start, len, end, .. } = self.current {
            self.position += len as u64;
            self.buffer.consume(len);
            match end {
                LineEnd::Newline | LineEnd::Unfinished => self.lines[Stream::place(start.stream)] = None,
                LineEnd::Continues => {}
            }
        }
        self.current = Current::Nothing;
    }

    /// Takes over what a record says about the bytes behind it. Says whether that is an entry of its own.
    fn take(&mut self, record: Record) -> bool {
        let Record { run, time: at, mark, .. } = record;
        // A writer that had to begin a new index marks the beginning of its run once more.
        let is_new = self.run != Some(run);
        self.attribute(record);
        match mark {
            Mark::Data => return false,
            Mark::RunStart | Mark::Continued { .. } if !is_new => return false,
            Mark::RunStart => self.current = Current::Started { run, at },
            Mark::Continued { started_at } => self.current = Current::Continued { run, started_at, at },
            Mark::RunEnd => self.current = Current::Ended { run, at },
            Mark::Gap { lost } => self.current = Current::Gap { run, at, lost },
        }
        true
    }

    fn attribute(&mut self, record: Record) {
        match record.mark {
            Mark::RunStart | Mark::Continued { .. } | Mark::Data | Mark::Gap { .. } => {
                self.run = Some(record.run);
                self.stream = record.stream;
                self.time = Some(record.time);
            }
            Mark::RunEnd => {
                self.run = None;
                self.stream = None;
                self.time = None;
            }
        }
    }

    /// Ends a line of which pieces have been handed out as continuing, or wait. Says whether there was one.
    fn end_line(&mut self) -> bool {
        let is_begun = |line: &&mut OpenLine| line.is_handed_out || !line.waiting.is_empty();
        let Some(line) = self.lines.iter_mut().flatten().find(is_begun) else { return false };
        self.joined = std::mem::take(&mut line.waiting);
        self.current = Current::Line { start: line.start, len: 0, is_joined: true, end: LineEnd::Unfinished };
        true
    }

    /// Hands out what waits of the line at `place`, as a piece that continues. Says whether that is a whole character at least.
    fn hand_out_waiting(&mut self, place: usize) -> bool {
        let Some(line) = &mut self.lines[place] else { return false };
        let rest = line.waiting.split_off(whole_characters(&line.waiting));
        self.joined = std::mem::replace(&mut line.waiting, rest);
        if self.joined.is_empty() {
            return false;
        }
        line.is_handed_out = true;
        self.current = Current::Line { start: line.start, len: 0, is_joined: true, end: LineEnd::Continues };
        true
    }

    /// Finds the line, or the piece of one, that begins at `position` or has waited for what is there, at least one byte.
    ///
    /// Says `false` if it has to wait there for the rest of it, unless it `is_released`; or has gone past what waits for another
    /// stream to be over.
    fn find_line(&mut self, is_released: bool) -> io::Result<bool> {
        let place = Stream::place(self.stream);
        let start = LineStart { run: self.run, stream: self.stream, time: self.time, offset: self.position };
        let (reached, stop) = self.read_line()?;
        let max_piece = self.buffer.max_piece;
        let begun = || OpenLine { start, is_handed_out: false, waiting: Vec::new() };
        let line = self.lines[place].get_or_insert_with(begun);
        let (start, is_handed_out, waits) = (line.start, line.is_handed_out, line.waiting.len());
        if waits + reached > max_piece && waits > 0 && self.hand_out_waiting(place) {
            return Ok(true);
        }
        let (len, end) = match (self.find_cut(reached, stop), stop) {
            (Some(Cut { len, is_end: true }), _) => (len, LineEnd::Unfinished),
            (Some(Cut { len, is_end: false }), _) => {
                if let Some(line) = &mut self.lines[place] {
                    line.waiting.extend_from_slice(&self.buffer.piece()[..len]);
                }
                self.position += len as u64;
                self.buffer.consume(len);
                return Ok(false);
            }
            (None, Stop::Newline) => (reached, LineEnd::Newline),
            (None, Stop::DataEnd) if !self.is_live => (reached, LineEnd::Unfinished),
            (None, Stop::DataEnd) if !is_released => return Ok(false),
            (None, Stop::DataEnd | Stop::Full) => {
                (whole_characters(&self.buffer.piece()[..reached]), LineEnd::Continues)
            }
        };
        if len == 0 && (!(is_handed_out || waits > 0) || end == LineEnd::Continues) {
            // The file is shorter than it was, or there is not a whole character yet.
            return Ok(false);
        }
        let Some(line) = &mut self.lines[place] else { return Ok(false) };
        line.is_handed_out = true;
        let is_joined = !line.waiting.is_empty();
        if is_joined {
            self.joined = std::mem::take(&mut line.waiting);
            self.joined.extend_from_slice(&self.buffer.piece()[..len]);
        }
        self.current = Current::Line { start, len, is_joined, end };
        Ok(true)
    }

    /// Reads ahead until the line at `position` ends, or as far as it goes. Says how many bytes that are.
    fn read_line(&mut self) -> io::Result<(usize, Stop)> {
        loop {
            let bytes = self.buffer.piece();
            if let Some(newline) = memchr::memchr(b'\n', bytes) {
                return Ok((newline + 1, Stop::Newline));
            }
            let buffered = bytes.len();
            if buffered == self.buffer.max_piece {
                return Ok((buffered, Stop::Full));
            }
            let unread = self.end - self.position - buffered as u64;
            if unread == 0 {
                return Ok((buffered, Stop::DataEnd));
            }
            if self.buffer.read(&self.data, self.position, unread)? == 0 {
                // Somebody made the file shorter.
                self.end = self.position + buffered as u64;
            }
        }
    }

    /// Reads the records about the `len` bytes at `position`. Says after how many of them a record ends the line, or interrupts it.
    ///
    /// A record behind the last byte counts as well, unless the line has ended there anyway.
    fn find_cut(&mut self, len: usize, stop: Stop) -> Option<Cut> {
        let behind = self.position + len as u64;
        while let Some(record) = self.records.peek().copied() {
            if record.offset > behind || (record.offset == behind && stop == Stop::Newline) {
                return None;
            }
            if cuts(&record) || record.stream != self.stream {
                let len = usize::try_from(record.offset.saturating_sub(self.position)).ok()?;
                return Some(Cut { len, is_end: cuts(&record) });
            }
            self.records.bump();
            self.attribute(record);
        }
        None
    }
}

/// What a look at the files found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The log is as it was, or longer.
    Grown,
    /// The next segment has begun; there may be still more.
    NextSegment,
    /// The log is shorter than it was.
    Shorter,
}

/// Where a record comes between the bytes of a line.
struct Cut {
    len: usize,
    /// Whether the line ends there. Otherwise another stream begins.
    is_end: bool,
}

/// Why a line is read no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Newline,
    /// It fills a piece.
    Full,
    /// There are no more bytes.
    DataEnd,
}

/// Whether a line ends where the record stands.
pub(super) fn cuts(record: &Record) -> bool {
    match record.mark {
        Mark::RunStart | Mark::RunEnd | Mark::Gap { .. } => true,
        Mark::Continued { .. } | Mark::Data => false,
    }
}

/// The length of `bytes` without a UTF-8 character that has only begun at their end.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    for (behind, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x00..=0x7f | 0xc0..=0xc1 | 0xf5..=0xff => 1,
        };
        return if length > behind + 1 { bytes.len() - behind - 1 } else { bytes.len() };
    }
    bytes.len()
}

/// The bytes from the cursor's position on, as far as they have been read.
#[derive(Debug)]
struct Buffer {
    max_piece: usize,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(max_piece: usize) -> Self {
        Self { max_piece, bytes: Vec::new(), start: 0, end: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// As many of the bytes as a piece may have.
    fn piece(&self) -> &[u8] {
        &self.bytes[self.start..self.end.min(self.start + self.max_piece)]
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
    }

    /// Reads up to `unread` more bytes of a log of which this holds those from `position` on. Says how many came.
    fn read(&mut self, data: &Data, position: u64, unread: u64) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // Four pieces: few and large reads, and seldom more than a quarter to move to the front.
        let len = (4 * self.max_piece - self.end).min(usize::try_from(unread).unwrap_or(usize::MAX));
        if self.bytes.len() < self.end + len {
            self.bytes.resize(self.end + len, 0);
        }
        let room = &mut self.bytes[self.end..self.end + len];
        let count = data.read_at(room, position + self.end as u64)?;
        self.end += count;
        Ok(count)
    }
}
