//! Writes the output of one run to the log store: at once, and whatever happens to the disk.
//!
//! [`LogWriter::write`] cannot fail and keeps nothing back. What the disk does not take is counted and dropped, and the
//! index says where and how much as soon as the disk takes bytes again. A segment that has become large or old is followed by
//! the next (`retention` says when). A log that was deleted or truncated under the writer is begun anew; that is found out at
//! most every 10 ms, together with the mark that is due then: some `stat` and one small `write` beside the bytes themselves.
//! Nothing here reads a clock, and a write between two marks allocates nothing.
//!
//! What comes from a pipe need not be seen: [`LogWriter::splice`] has the kernel move it, which nothing can come between. Whatever is
//! out of the ordinary, a full disk or the end of a segment, is left to [`LogWriter::write`].
//!
//! A process that uses this ignores SIGXFSZ, or a file size limit kills it before `write` can say EFBIG (setrlimit(2)).

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::index::Index;
use super::index_writer::{self, IndexWriter, Opened};
use super::record::{Mark, Record, Stream};
use super::retention::{Retained, written_at};
use super::segments::{self, Data, data_path};
use crate::fail;
use crate::name::RunNumber;
use crate::spec::LogPolicy;
use crate::time::UnixMillis;

/// 10 ms between two marks: times are exact to what a person can tell apart, and a busy log pays one small write in
/// hundreds for them.
pub const MARK_INTERVAL_MS: u64 = 10;

/// Writes the output of one run. There is one per service at a time, but for a run that could not be ended and goes on beside the
/// next: then one of the two is a guest in the other's segment.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    /// The segments before the one that is written.
    retained: Retained,
    /// The segment that is written, and when it began.
    number: u64,
    began_at: UnixMillis,
    /// With what this run begins in that segment.
    first: Record,
    /// Whether somebody else writes the index: the writer of another run, beside which this one goes on.
    is_guest: bool,
    /// `None` while it is gone and cannot be made again: everything is lost then.
    data: Option<File>,
    /// The same file for `splice`, which takes none that appends, once that was tried.
    #[cfg(target_os = "linux")]
    spliced: Option<File>,
    /// Whether the file system may be one to which pipes can be spliced.
    #[cfg(target_os = "linux")]
    can_splice: bool,
    /// The stream that is being written.
    stream: Option<Stream>,
    /// Where the next byte goes.
    end: u64,
    /// When the last one came.
    written_at: UnixMillis,
    /// Whether it ended a line; `None` when nobody has seen it.
    is_line_over: Option<bool>,
    /// Whether the next segment is to be tried, if this one is full.
    may_begin: bool,
    /// Bytes written since the file was last seen to exist.
    unchecked: u64,
    /// `None` while there is none: the log does without.
    index: Option<IndexWriter>,
    marked_at: UnixMillis,
    lost: u64,
    /// Those of `lost` that no gap mark tells of yet.
    unmarked: u64,
}

impl LogWriter {
    /// Opens the log of a service for `run`, and marks that it begins.
    ///
    /// Makes the directory (0700) and the files (0600) that do not exist. The output of earlier runs stays, as far as
    /// `policy` keeps it. If the last run in the index is `run` itself, it goes on: somebody takes over from a writer that
    /// died.
    ///
    /// # Errors
    /// When the directory or the data file cannot be made or opened. A problem with the index alone is none.
    pub fn open(dir: &Path, run: RunNumber, policy: &LogPolicy, now: UnixMillis) -> io::Result<Self> {
        Self::open_as(dir, run, policy, now, false)
    }

    /// As [`LogWriter::open`], for a run whose writer has died. If a later run has begun meanwhile, what this one writes goes
    /// where that one writes, and the index says nothing about it.
    ///
    /// # Errors
    /// As [`LogWriter::open`].
    pub fn take_over(dir: &Path, run: RunNumber, policy: &LogPolicy, now: UnixMillis) -> io::Result<Self> {
        Self::open_as(dir, run, policy, now, true)
    }

    fn open_as(dir: &Path, run: RunNumber, policy: &LogPolicy, now: UnixMillis, takes_over: bool) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut listing = segments::list(dir)?;
        if listing.data.is_empty() {
            listing.data.push(1);
        }
        let number = listing.data[listing.data.len() - 1];
        let (file, seen) = open_data(dir, number)?;
        let end = seen.len();
        segments::link_latest(dir, number);
        // Only the newest can be missing by now, when somebody deletes it at this moment.
        let known = Data::open(dir, &listing.data)?.filter(|data| data.number() == number);
        let known = known.map(|data| (Index::open(dir, &data), data.end()));
        let is_guest = takes_over && known.as_ref().is_some_and(|(index, _)| index.last_run() > Some(run));
        let opened = known.filter(|_| !is_guest).map(|(index, end)| index_writer::open(dir, &index, run, end, now));
        let start = Record { offset: end, time: now, run, stream: None, mark: Mark::RunStart };
        let Opened { index, is_new, began_at, first } =
            opened.unwrap_or(Opened { index: None, is_new: true, began_at: None, first: None });
        let mut writer = Self {
            dir: dir.to_owned(),
            retained: Retained::new(dir, policy, &listing, number, now),
            number,
            began_at: began_at.unwrap_or(now),
            first: first.unwrap_or(start),
            is_guest,
            written_at: written_at(&seen).min(now),
            data: Some(file),
            #[cfg(target_os = "linux")]
            spliced: None,
            #[cfg(target_os = "linux")]
            can_splice: true,
            stream: None,
            end,
            is_line_over: Some(true),
            may_begin: true,
            unchecked: 0,
            index,
            marked_at: now,
            lost: 0,
            unmarked: 0,
        };
        if is_new || first.is_none() {
            writer.append_record(writer.first);
        }
        if first.is_some() {
            writer.mark(Mark::Data, end, now);
        }
        writer.retained.prune(now);
        Ok(writer)
    }

    /// Appends `bytes`, now. What the system does not take is dropped and counted.
    pub fn write(&mut self, bytes: &[u8], now: UnixMillis) {
        if bytes.is_empty() {
            return;
        }
        let mut bytes = bytes;
        self.mark_if_due(now);
        if self.is_full(now)
            && let Some(cut) = self.cut(bytes)
        {
            let (head, rest) = bytes.split_at(cut);
            self.put(head, now);
            bytes = rest;
            // What fails now is tried again when a mark is due.
            self.may_begin = self.begin_segment(now);
        }
        self.put(bytes, now);
    }

    /// Says by which stream what follows comes, until the next time.
    pub fn switch(&mut self, stream: Option<Stream>, now: UnixMillis) {
        if self.stream != stream {
            self.stream = stream;
            self.mark(Mark::Data, self.end, now);
        }
    }

    /// Moves up to `most` bytes from a pipe to the end of the log, now, without looking at them, and returns how many. `None` when they
    /// have to be read and written this time.
    ///
    /// Nobody else may write to this log meanwhile: what two move to its end at the same moment, one of them loses.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when the pipe is empty.
    #[cfg(target_os = "linux")]
    pub fn splice(&mut self, pipe: BorrowedFd<'_>, most: usize, now: UnixMillis) -> io::Result<Option<usize>> {
        use nix::errno::Errno;
        use nix::fcntl::SpliceFFlags;
        self.mark_if_due(now);
        if !self.can_splice || self.is_guest || self.is_full(now) {
            return Ok(None);
        }
        let Some(file) = self.spliced() else { return Ok(None) };
        let most = most.min(usize::try_from(self.retained.room(self.bytes())).unwrap_or(usize::MAX));
        let moved = loop {
            // As if it were appended.
            let end = file.metadata().map_or(0, |seen| i64::try_from(seen.len()).unwrap_or(i64::MAX));
            match nix::fcntl::splice(pipe, None, &file, Some(&mut { end }), most, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Err(Errno::EINTR) => {}
                Err(errno) if is_full(&errno.into()) && self.retained.remove_oldest() => {}
                moved => break moved,
            }
        };
        self.spliced = Some(file);
        match moved {
            Ok(0) | Err(Errno::EAGAIN) => Err(ErrorKind::WouldBlock.into()),
            Ok(count) => {
                let at = self.end;
                self.end += count as u64;
                self.took(at, count, None, now);
                Ok(Some(count))
            }
            Err(errno) => {
                self.can_splice = errno != Errno::EINVAL;
                Ok(None)
            }
        }
    }

    /// As on Linux, where there is such a call; here all bytes have to be read and written.
    #[cfg(not(target_os = "linux"))]
    pub fn splice(&mut self, _pipe: BorrowedFd<'_>, _most: usize, _now: UnixMillis) -> io::Result<Option<usize>> {
        Ok(None)
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
        self.stream = None;
        self.mark(Mark::RunEnd, self.end, now);
    }

    /// How many bytes of this run were dropped.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    // ---- bytes

    /// Writes what the system takes, marks the gap before it, and counts the rest as lost.
    fn put(&mut self, bytes: &[u8], now: UnixMillis) {
        let at = self.end;
        let written = self.append(bytes);
        if written > 0 {
            self.took(at, written, Some(bytes[written - 1] == b'\n'), now);
        }
        self.lose((bytes.len() - written) as u64);
    }

    /// Takes note that the system has taken bytes at `at`.
    fn took(&mut self, at: u64, count: usize, is_line_over: Option<bool>, now: UnixMillis) {
        self.unchecked += count as u64;
        self.written_at = now;
        self.is_line_over = is_line_over;
        if self.unmarked > 0 {
            self.mark_gap(at, now);
        }
    }

    /// The segment as a file that does not append.
    #[cfg(target_os = "linux")]
    fn spliced(&mut self) -> Option<File> {
        use std::os::fd::AsRawFd;
        if let Some(file) = self.spliced.take() {
            return Some(file);
        }
        // Through the descriptor: the same file, whatever has become of its name.
        let path = format!("/proc/self/fd/{}", self.data.as_ref()?.as_raw_fd());
        OpenOptions::new().read(true).write(true).open(path).ok()
    }

    /// Goes on in another file.
    fn write_to(&mut self, data: Option<File>, end: u64) {
        self.data = data;
        #[cfg(target_os = "linux")]
        {
            self.spliced = None;
        }
        self.end = end;
        self.unchecked = 0;
    }

    /// Whether the last byte has ended a line. One that nobody has seen is looked at.
    #[cfg(target_os = "linux")]
    fn is_line_over(&mut self) -> bool {
        use std::os::unix::fs::FileExt;
        self.is_line_over.unwrap_or_else(|| {
            let Some(file) = self.spliced() else { return false };
            let mut last = [0];
            let is_line_over = file.read_exact_at(&mut last, self.end.saturating_sub(1)).is_ok() && last == *b"\n";
            self.spliced = Some(file);
            is_line_over
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn is_line_over(&self) -> bool {
        self.is_line_over == Some(true)
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
                // What is new is worth more than what is old.
                Err(e) if is_full(&e) && self.retained.remove_oldest() => {}
                Err(_) => break,
            }
        }
        self.end += written as u64;
        written
    }

    // ---- segments

    /// Behind how many of these bytes the segment is to end: where a line does, unless that is too far. Readers see no difference;
    /// who looks at the files does.
    fn cut(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.is_line_over() {
            return Some(0);
        }
        let newline = memchr::memchr(b'\n', &bytes[..bytes.len() - 1]);
        let too_far = self.retained.is_too_large(self.bytes()).then_some(0);
        newline.map(|newline| newline + 1).or(too_far)
    }

    /// Whether the next segment is to begin, as far as it may.
    fn is_full(&self, now: UnixMillis) -> bool {
        let may_begin = self.may_begin && self.data.is_some() && self.end > 0;
        may_begin && (self.retained.is_large(self.bytes()) || self.retained.is_old(self.began_at, now))
    }

    /// What the segment takes on disk.
    fn bytes(&self) -> u64 {
        self.end + self.index.as_ref().map_or(0, IndexWriter::bytes)
    }

    /// Completes the segment, and goes on with the next. Where that cannot be made, this one goes on, and `false` is returned.
    fn begin_segment(&mut self, now: UnixMillis) -> bool {
        self.retained.prune(now);
        if self.join_newest(now) {
            return true;
        }
        let number = self.number + 1;
        let mark = self.first.continued();
        let first = Record { offset: 0, time: now, run: self.first.run, stream: self.stream, mark };
        // Before the data: who sees a byte sees its mark.
        let mut index = IndexWriter::create(&self.dir, number).ok();
        if let Some(index) = &mut index {
            index.append(&first);
        }
        fail::point("the index of a segment is made");
        let data = loop {
            match private().append(true).create_new(true).open(data_path(&self.dir, number)) {
                Ok(data) => break data,
                Err(e) if is_full(&e) && self.retained.remove_oldest() => {}
                Err(_) => return false,
            }
        };
        fail::point("a segment is made");
        self.retained.push(self.number, self.bytes(), self.written_at);
        self.retained.prune(now);
        segments::link_latest(&self.dir, number);
        fail::point("the link leads to the segment");
        (self.number, self.began_at, self.first, self.is_guest) = (number, now, first, false);
        self.write_to(Some(data), 0);
        self.index = index;
        true
    }

    /// Goes on in the segment that the writer of another run has begun, if there is one, and leaves the index to that writer.
    ///
    /// There is another beside a run that could not be ended. Whoever follows the log has left this segment by now, so what is
    /// written to it within the last 10 ms may be missed there.
    fn join_newest(&mut self, now: UnixMillis) -> bool {
        let newest = segments::list(&self.dir).ok().and_then(|listing| listing.data.last().copied());
        let Some(number) = newest.filter(|newest| *newest > self.number) else { return false };
        let Ok((data, seen)) = open_data(&self.dir, number) else { return false };
        (self.number, self.began_at, self.is_guest) = (number, now, true);
        self.write_to(Some(data), seen.len());
        self.index = None;
        true
    }

    // ---- what others did to the files

    /// Finds out whether the files are still there, and begins them anew if not.
    fn check(&mut self) {
        let seen = self.data.as_ref().and_then(|data| data.metadata().ok());
        match seen {
            Some(seen) if seen.nlink() > 0 && seen.len() >= self.end => {
                // Whatever somebody else appended counts as output of this run.
                self.end = seen.len();
                self.unchecked = 0;
                if self.index.as_ref().is_none_or(IndexWriter::is_gone) {
                    self.begin_index();
                }
            }
            Some(seen) if seen.nlink() > 0 => self.resume_truncated(seen.len()),
            Some(_) | None => self.recreate(),
        }
    }

    /// Goes on in a segment that somebody made shorter.
    fn resume_truncated(&mut self, len: u64) {
        // Of what was written since the last look, `len` bytes at most came after the cut; the others may be gone.
        self.lose(self.unchecked.saturating_sub(len));
        self.first.offset = if len <= self.unchecked { 0 } else { len };
        self.end = len;
        self.unchecked = 0;
        self.begin_index();
    }

    /// Makes a segment that was deleted again. As long as that fails, output is dropped.
    fn recreate(&mut self) {
        // Some of it may have been written before the file was deleted, so this is an upper bound.
        self.lose(self.unchecked);
        self.write_to(None, self.end);
        self.index = None;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        if let Ok((data, seen)) = made.and_then(|()| open_data(&self.dir, self.number)) {
            self.write_to(Some(data), seen.len());
            self.first.offset = self.end;
            self.begin_index();
            segments::link_latest(&self.dir, self.number);
        }
    }

    // ---- marks

    /// Begins a new index, in which this run is the only one known.
    fn begin_index(&mut self) {
        if self.is_guest {
            return;
        }
        self.index = IndexWriter::create(&self.dir, self.number).ok();
        self.append_record(Record { stream: None, ..self.first });
    }

    /// Makes the mark that is due, and looks whether the files are as they were, at most every 10 ms.
    fn mark_if_due(&mut self, now: UnixMillis) {
        // A clock that was set back makes a mark due as well.
        if now.0.abs_diff(self.marked_at.0) >= MARK_INTERVAL_MS {
            self.check();
            if data_path(&self.dir, self.number + 1).exists() {
                self.join_newest(now);
            }
            self.marked_at = now;
            self.mark(Mark::Data, self.end, now);
            self.may_begin = true;
        }
    }

    fn mark_gap(&mut self, at: u64, now: UnixMillis) {
        // If the index does not take it now, the next place where bytes are written gets it.
        if self.mark(Mark::Gap { lost: self.unmarked }, at, now) {
            self.unmarked = 0;
        }
    }

    fn mark(&mut self, mark: Mark, offset: u64, time: UnixMillis) -> bool {
        self.append_record(Record { offset, time, run: self.first.run, stream: self.stream, mark })
    }

    fn append_record(&mut self, record: Record) -> bool {
        self.index.as_mut().is_some_and(|index| index.append(&record))
    }
}

/// Whether the file system has no room for this user.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn open_data(dir: &Path, number: u64) -> io::Result<(File, Metadata)> {
    let data = private().append(true).create(true).open(data_path(dir, number))?;
    let seen = data.metadata()?;
    Ok((data, seen))
}
