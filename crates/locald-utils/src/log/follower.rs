//! Follows a log: hands out what there is, and later what has come since, whatever happens to the file.
//!
//! A follower does not wait; whoever uses it finds out when to look again. It keeps its segment open: of a log that was
//! deleted, replaced or renamed it reads the rest before it goes on with what is there now. A log that was emptied and has
//! already grown past the follower's place when it looks again is not told apart from one that has grown.

use std::io;
use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Entry, News};
use super::reader::LogReader;

/// Stands at one entry of a log after the other, also at those that come later.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    /// `None` while there is no log.
    cursor: Option<Cursor>,
    /// The segment that a new cursor begins with, if it is there.
    first: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The cursor's entry counts.
    Reading,
    /// What is left of a log that is gone is handed out; then comes its successor.
    Leaving,
    /// The entry is [`Entry::Restarted`].
    Restarting,
}

impl Follower {
    /// Follows the log of a service directory from its beginning. Neither has to exist yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), cursor: None, first: 0, state: State::Reading }
    }

    /// Goes on behind `cursor`.
    pub(super) fn from_cursor(dir: &Path, cursor: Cursor) -> Self {
        Self { dir: dir.to_owned(), cursor: Some(cursor.live()), first: 0, state: State::Reading }
    }

    /// Goes to the next entry. Says `false` when there is none yet: ask again when the directory has changed.
    ///
    /// A line that has no newline yet waits, up to a piece of it; see [`Self::held`].
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn advance(&mut self) -> io::Result<bool> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                let Some(reader) = LogReader::open_from(&self.dir, self.first)? else {
                    return Ok(false);
                };
                self.cursor = Some(reader.entries(&reader.all()).live());
                continue;
            };
            match self.state {
                State::Reading => {
                    if cursor.advance()? {
                        return Ok(true);
                    }
                    // The identity is compared before the last look at the old file: its writer has left it for good.
                    let replacement = cursor.data().replacement(&self.dir)?;
                    self.first = match (cursor.refresh(&self.dir)?, replacement) {
                        (News::NextSegment, _) => continue,
                        (News::Grown, _) if cursor.advance()? => return Ok(true),
                        (News::Grown, None) => return Ok(false),
                        (News::Shorter, None) => cursor.data().number(),
                        (News::Grown | News::Shorter, Some(first)) => first,
                    };
                    cursor.settle();
                    self.state = State::Leaving;
                }
                State::Leaving => {
                    if cursor.advance()? {
                        return Ok(true);
                    }
                    self.state = State::Restarting;
                    return Ok(true);
                }
                State::Restarting => {
                    self.cursor = None;
                    self.state = State::Reading;
                }
            }
        }
    }

    /// What the follower stands at, once [`Self::advance`] has said `true`.
    #[must_use]
    pub fn entry(&self) -> Option<Entry<'_>> {
        match self.state {
            State::Restarting => Some(Entry::Restarted),
            State::Reading | State::Leaving => self.cursor.as_ref()?.entry(),
        }
    }

    /// The beginning of a line that waits for its newline, once [`Self::advance`] has said `false`.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        self.cursor.as_ref().map_or(&[], Cursor::held)
    }

    /// Goes to what [`Self::held`] shows, as a piece of a line that continues.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn release(&mut self) -> io::Result<bool> {
        self.cursor.as_mut().map_or(Ok(false), Cursor::release)
    }
}
