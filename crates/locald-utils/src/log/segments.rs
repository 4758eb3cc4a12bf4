//! The files that a log is made of, and their bytes as one.
//!
//! A log is cut into segments with ascending numbers: `log.000001` and its index `index.000001`, and so on. The newest is
//! written, the others never change again, and the oldest are removed. The bytes of a log are those of its segments, one
//! after the other, and are addressed as if they lay in one file that begins with the oldest segment that is left.
//!
//! No byte is ever moved, so there is nothing to be interrupted at: a segment begins when its data file is made, at which
//! moment its index lies there already. `log` is a symbolic link to the newest, for people and for `tail -F`.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the link to the newest segment, and what the names of all begin with.
const LATEST: &str = "log";

const INDEX: &str = "index";

/// The file with the bytes of a segment.
#[must_use]
pub fn data_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{LATEST}.{number:06}"))
}

/// The file with the index of a segment.
#[must_use]
pub fn index_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{INDEX}.{number:06}"))
}

/// The numbers of the segments, and of the indexes: an index alone is what an interrupted step left behind.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) data: Vec<u64>,
    pub(super) indexes: Vec<u64>,
}

/// Lists the segments of a directory, the oldest first; none if there is no such directory.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(listing),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some((kind, number)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let is_number = number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit());
        let Some(number) = number.parse().ok().filter(|_| is_number) else { continue };
        match kind {
            LATEST => listing.data.push(number),
            INDEX => listing.indexes.push(number),
            _ => {}
        }
    }
    listing.data.sort_unstable();
    listing.indexes.sort_unstable();
    Ok(listing)
}

/// The files of the newest segment, which are the ones that grow.
#[must_use]
pub fn latest_files(dir: &Path) -> Vec<PathBuf> {
    let newest = list(dir).ok().and_then(|listing| listing.data.last().copied());
    newest.map_or_else(Vec::new, |number| vec![data_path(dir, number), index_path(dir, number)])
}

/// Makes `log` a link to a segment. It is a convenience: who reads a log looks for the newest segment.
pub(super) fn link_latest(dir: &Path, number: u64) {
    let target = data_path(Path::new(""), number);
    let link = dir.join(LATEST);
    if fs::read_link(&link).is_ok_and(|now| now == target) {
        return;
    }
    let new = dir.join(format!("{LATEST}.new"));
    let _ = fs::remove_file(&new);
    if std::os::unix::fs::symlink(&target, &new).is_ok() {
        let _ = fs::rename(&new, &link);
    }
}

/// The bytes of a log as far as they were there when it was last looked at.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// The segments that are still of interest, the oldest first. Never empty.
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    number: u64,
    file: Arc<File>,
    start: u64,
    end: u64,
}

impl Data {
    /// Opens the segments with these numbers, those that have been removed meanwhile excepted; `None` if none is left.
    pub(super) fn open(dir: &Path, numbers: &[u64]) -> io::Result<Option<Self>> {
        let mut parts: Vec<Part> = Vec::new();
        for &number in numbers {
            let Some(file) = open(dir, number)? else {
                // Those before it have been removed by now as well.
                parts.clear();
                continue;
            };
            let start = parts.last().map_or(0, |part| part.end);
            parts.push(Part { number, end: start + file.metadata()?.len(), file: Arc::new(file), start });
        }
        Ok((!parts.is_empty()).then_some(Self { parts }))
    }

    /// The number and the first byte of each segment.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u64, u64)> {
        self.parts.iter().map(|part| (part.number, part.start))
    }

    fn newest(&self) -> &Part {
        &self.parts[self.parts.len() - 1]
    }

    /// The number of the newest segment.
    pub(super) fn number(&self) -> u64 {
        self.newest().number
    }

    /// The byte after the last.
    pub(super) fn end(&self) -> u64 {
        self.newest().end
    }

    /// Takes in what was written to the newest segment since. `false` if it is shorter than it was.
    pub(super) fn grow(&mut self) -> io::Result<bool> {
        let last = self.parts.len() - 1;
        let newest = &mut self.parts[last];
        let end = newest.start + newest.file.metadata()?.len();
        let is_longer = end >= newest.end;
        if is_longer {
            newest.end = end;
        }
        Ok(is_longer)
    }

    /// Opens the segment that follows the newest, if there is one: the newest is complete then.
    pub(super) fn following(&self, dir: &Path) -> io::Result<Option<File>> {
        open(dir, self.number() + 1)
    }

    /// Goes on with that segment, and lets go of those before `position`. Returns where it begins.
    pub(super) fn append(&mut self, file: File, position: u64) -> u64 {
        let (number, start) = (self.number() + 1, self.end());
        self.parts.retain(|part| part.end > position);
        self.parts.push(Part { number, file: Arc::new(file), start, end: start });
        start
    }

    /// The segment to go on with where the newest one has been replaced by another, or removed while others are there: the
    /// one of its number or after it, or all there are when a log has been begun anew. `None` while it is in its place.
    pub(super) fn replacement(&self, dir: &Path) -> io::Result<Option<u64>> {
        let newest = self.newest();
        match fs::metadata(data_path(dir, newest.number)) {
            Ok(now) => {
                let ours = newest.file.metadata()?;
                Ok(((now.dev(), now.ino()) != (ours.dev(), ours.ino())).then_some(newest.number))
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let last = list(dir)?.data.last().copied();
                Ok(last.map(|last| match last {
                    last if last >= newest.number => newest.number,
                    // The newest alone has been removed, and the one before it is written to again.
                    last if last + 1 == newest.number => last,
                    _ => 0,
                }))
            }
            Err(e) => Err(e),
        }
    }

    /// Reads some bytes from `position` on: none at the end only.
    pub(super) fn read_at(&self, room: &mut [u8], position: u64) -> io::Result<usize> {
        let at = self.parts.partition_point(|part| part.end <= position);
        let Some(part) = self.parts.get(at).filter(|part| part.start <= position) else { return Ok(0) };
        let left = usize::try_from(part.end - position).unwrap_or(usize::MAX);
        let len = room.len().min(left);
        loop {
            match part.file.read_at(&mut room[..len], position - part.start) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Reads all of these bytes.
    pub(super) fn read_exact_at(&self, mut room: &mut [u8], mut position: u64) -> io::Result<()> {
        while !room.is_empty() {
            let count = self.read_at(room, position)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            room = &mut room[count..];
            position += count as u64;
        }
        Ok(())
    }
}

fn open(dir: &Path, number: u64) -> io::Result<Option<File>> {
    match File::open(data_path(dir, number)) {
        Ok(file) => Ok(Some(file)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}
