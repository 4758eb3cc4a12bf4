//! The log store of one service: the bytes as they came, and a side index.
//!
//! `log` holds what the runs of a service wrote, one after the other, byte for byte; any tool can read it. `log.idx` says
//! which bytes belong to which run and when they came. The index is a convenience: without it, or with a part of it,
//! every byte is still there, as output of an unknown run at an unknown time.
//!
//! One [`LogWriter`] writes, any number of readers read, and nobody locks. The writer puts a mark into the index before
//! the bytes it is about; readers look at the length of `log` before they look into the index. So whoever sees a byte
//! sees its mark too.
//!
//! Read `record` for the format, `writer` for the promises, `reader` for how a part is selected, `cursor` for how a part
//! is handed out, `follower` for how that goes on, `text` for how a line is shown. Splitting `log` into segments will be
//! a rename by the writer of both files: a follower reads the old file to its end before it opens the new one.

mod cursor;
mod follower;
mod index;
mod reader;
mod record;
mod text;
mod writer;

pub use cursor::{Cursor, Entry, Line, LineEnd, MAX_PIECE_BYTES};
pub use follower::Follower;
pub use reader::{LogReader, RunChoice, RunSpan, Selection, tail};
pub use record::{Mark, Record};
pub use text::{Escapes, LineText, plain};
pub use writer::{LogWriter, MARK_INTERVAL_MS};

/// The file of a service directory that holds the bytes.
pub const DATA_FILE: &str = "log";

/// The file of a service directory that holds the index.
pub const INDEX_FILE: &str = "log.idx";

#[cfg(test)]
mod tests;
