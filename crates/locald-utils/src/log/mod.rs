//! The log store of one service: the bytes as they came, and a side index.
//!
//! `log.000001`, `log.000002` and so on hold what the runs of a service wrote, one after the other, byte for byte; any tool
//! can read them, and `log` leads to the newest. An index beside each says which bytes belong to which run and when they
//! came. The index is a convenience: without it, or with a part of it, every byte is still there, as output of an unknown
//! run at an unknown time.
//!
//! One [`LogWriter`] writes, any number of readers read, and nobody locks. The writer puts a mark into the index before
//! the bytes it is about; readers look at the length of the data before they look into the index. So whoever sees a byte
//! sees its mark too.
//!
//! Read `record` for the format, `segments` for the files, `writer` for the promises, `retention` for what is kept, `reader`
//! for how a part is selected, `cursor` for how a part is handed out, `follower` for how that goes on, `text` for how a
//! line is shown.

mod cursor;
mod follower;
mod index;
mod index_writer;
mod reader;
mod record;
mod retention;
mod segments;
mod text;
mod writer;

pub use cursor::{Cursor, Entry, Line, LineEnd, MAX_PIECE_BYTES};
pub use follower::Follower;
pub use reader::{LogReader, RunChoice, RunSpan, Selection, tail};
pub use record::{Mark, Record, Stream};
pub use segments::{data_path, index_path, latest_files};
pub use text::{Escapes, LineText, plain};
pub use writer::{LogWriter, MARK_INTERVAL_MS};

#[cfg(test)]
mod tests;
