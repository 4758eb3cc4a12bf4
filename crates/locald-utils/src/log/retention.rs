//! How much of a log is kept: removes the oldest segments when there is too much, or when they are too old.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::segments::{Listing, data_path, index_path};
use crate::fail;
use crate::spec::LogPolicy;
use crate::time::UnixMillis;

/// A log has so many segments when it is full: what goes at once is an eighth of it.
const SEGMENTS: u64 = 8;

/// 64 KiB: how much longer a segment may become for the sake of a line, if a quarter of it is more.
const LINE_SLACK: u64 = 64 * 1024;

/// The complete segments of a log, and what its policy says about them.
#[derive(Debug)]
pub(super) struct Retained {
    dir: PathBuf,
    policy: LogPolicy,
    segments: VecDeque<Segment>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    /// What its files take.
    bytes: u64,
    written_at: UnixMillis,
}

impl Retained {
    /// Takes over the segments before `current`, and removes what an interrupted removal has left of others.
    pub(super) fn new(dir: &Path, policy: &LogPolicy, listing: &Listing, current: u64, now: UnixMillis) -> Self {
        for index in listing.indexes.iter().filter(|index| **index != current && !listing.data.contains(index)) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(index_path(dir, *index));
        }
        let before = listing.data.iter().filter(|number| **number < current);
        let segments = before.filter_map(|number| Segment::read(dir, *number, now)).collect();
        Self { dir: dir.to_owned(), policy: *policy, segments }
    }

    /// Whether a segment with so many bytes, its index included, is to be followed by the next.
    pub(super) fn is_large(&self, bytes: u64) -> bool {
        bytes >= self.segment_bytes()
    }

    /// How many more bytes a segment with so many may have.
    #[cfg(target_os = "linux")]
    pub(super) fn room(&self, bytes: u64) -> u64 {
        self.segment_bytes().saturating_sub(bytes).max(1)
    }

    /// Whether it is so large that the end of a line is not waited for.
    pub(super) fn is_too_large(&self, bytes: u64) -> bool {
        bytes >= self.segment_bytes() + (self.segment_bytes() / 4).min(LINE_SLACK)
    }

    /// Whether a segment that began then is to be followed by the next.
    pub(super) fn is_old(&self, began_at: UnixMillis, now: UnixMillis) -> bool {
        now.since(began_at) >= self.policy.max_age / SEGMENTS as u32
    }

    /// Adds a segment that is complete.
    pub(super) fn push(&mut self, number: u64, bytes: u64, written_at: UnixMillis) {
        self.segments.push_back(Segment { number, bytes, written_at });
    }

    /// Removes the segments that the policy does not keep.
    pub(super) fn prune(&mut self, now: UnixMillis) {
        let limit = self.policy.max_size.saturating_sub(self.segment_bytes());
        let mut bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        while let Some(oldest) = self.segments.front() {
            // A clock that was set back keeps segments young for a long time; their number is limited all the same.
            let is_one_of_many = self.segments.len() as u64 > 2 * SEGMENTS;
            if bytes <= limit && now.since(oldest.written_at) <= self.policy.max_age && !is_one_of_many {
                return;
            }
            bytes -= oldest.bytes;
            self.remove_oldest();
        }
    }

    /// Removes the oldest segment; `false` if there is none.
    pub(super) fn remove_oldest(&mut self) -> bool {
        let Some(Segment { number, .. }) = self.segments.pop_front() else { return false };
        // The data first: an index alone is known to be left over. What cannot be removed now is found by the next writer.
        if fs::remove_file(data_path(&self.dir, number)).is_ok() {
            fail::point("a segment is removed, and its index is not");
            let _ = fs::remove_file(index_path(&self.dir, number));
        }
        true
    }

    fn segment_bytes(&self) -> u64 {
        self.policy.max_size / SEGMENTS
    }
}

impl Segment {
    fn read(dir: &Path, number: u64, now: UnixMillis) -> Option<Self> {
        let data = fs::metadata(data_path(dir, number)).ok()?;
        let index = fs::metadata(index_path(dir, number)).map_or(0, |index| index.len());
        Some(Self { number, bytes: data.len() + index, written_at: written_at(&data).min(now) })
    }
}

/// When a file was written to last.
pub(super) fn written_at(file: &fs::Metadata) -> UnixMillis {
    UnixMillis(u64::try_from(file.mtime()).unwrap_or(0).saturating_mul(1000))
}
