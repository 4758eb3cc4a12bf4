//! Follows a log: hands out what there is, and later what has come since, whatever happens to the file.
//!
//! A follower does not wait; whoever uses it finds out when to look again. It keeps the file open: of a log that was
//! deleted, replaced or renamed it reads the rest before it goes on with the new one. A log that was emptied and has
//! already grown past the follower's place when it looks again is not told apart from one that has grown.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::DATA_FILE;
use super::cursor::{Cursor, Entry};
use super::reader::LogReader;

/// Stands at one entry of a log after the other, also at those that come later.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    /// `None` while there is no log.
    cursor: Option<Cursor>,
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
        Self { dir: dir.to_owned(), cursor: None, state: State::Reading }
    }

    /// Goes on behind `cursor`.
    pub(super) fn from_cursor(dir: &Path, cursor: Cursor) -> Self {
        Self { dir: dir.to_owned(), cursor: Some(cursor.live()), state: State::Reading }
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
                let Some(reader) = LogReader::open(&self.dir)? else { return Ok(false) };
                self.cursor = Some(reader.entries(&reader.all())?.live());
                continue;
            };
            match self.state {
                State::Reading => {
                    // The identity is compared before the last look at the old file: its writer has left it for good.
                    if cursor.advance()? {
                        return Ok(true);
                    }
                    let is_replaced = is_replaced(&self.dir, cursor)?;
                    let is_truncated = cursor.refresh(&self.dir)?;
                    if is_truncated {
                        cursor.settle();
                        self.state = State::Leaving;
                    } else if cursor.advance()? {
                        return Ok(true);
                    } else if is_replaced {
                        cursor.settle();
                        self.state = State::Leaving;
                    } else {
                        return Ok(false);
                    }
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

/// Whether another file lies where the one that the cursor reads lay. A log that is gone may still be written to.
fn is_replaced(dir: &Path, cursor: &Cursor) -> io::Result<bool> {
    let now = match std::fs::metadata(dir.join(DATA_FILE)) {
        Ok(now) => now,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(false),
        Err(e) => return Err(e),
    };
    let ours = cursor.file().metadata()?;
    Ok((now.dev(), now.ino()) != (ours.dev(), ours.ino()))
}
