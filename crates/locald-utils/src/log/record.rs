//! The format of an index, version 1: a header and records of 32 bytes each, little endian.
//!
//! ```text
//! header   0 magic "locald.x"   8 version u32   12 zero                                          29 check u24
//! record   0 offset u64         8 unix ms u64   16 detail u64       24 run u32   28 kind u8      29 check u24
//! ```
//! The upper half of a kind is the stream of what follows: 0 for a terminal, which has but one, 1 for stdout, 2 for stderr.
//!
//! 32 divides every page and block size, so a write that is torn at a page border tears no record. A record that is torn
//! elsewhere, zeroed or overwritten fails its check and is skipped. Offsets count from the beginning of the segment, and a
//! detail is the bytes lost of a gap or the start of a run that continues, in unix ms. Offsets and run numbers never fall
//! from one record to the next; times do when the clock is set back.

use serde::Serialize;

use crate::name::RunNumber;
use crate::time::UnixMillis;

/// The size of the header and of each record.
pub(super) const RECORD_BYTES: usize = 32;

/// Where the check begins, in the header and in each record.
const CHECK: usize = 29;

const MAGIC: &[u8; 8] = b"locald.x";

/// Grows by one when a reader of the version before would misread a record.
const VERSION: u32 = 1;

/// One entry of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The byte of the log that the record stands before.
    pub offset: u64,
    /// When it was written.
    pub time: UnixMillis,
    /// The run that was writing.
    pub run: RunNumber,
    /// By which stream what follows came.
    pub stream: Option<Stream>,
    /// What it says.
    pub mark: Mark,
}

/// One of the two streams of a service without a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// How many places whoever keeps something for each stream needs: one for each, and one for terminals.
    pub const PLACES: usize = 3;

    /// The place of a stream among those.
    #[must_use]
    pub fn place(stream: Option<Self>) -> usize {
        match stream {
            None => 0,
            Some(Self::Stdout) => 1,
            Some(Self::Stderr) => 2,
        }
    }

    /// The stream at such a place; `None` where there is none.
    fn at(place: u8) -> Option<Option<Self>> {
        match place {
            0 => Some(None),
            1 => Some(Some(Self::Stdout)),
            2 => Some(Some(Self::Stderr)),
            _ => None,
        }
    }
}

/// What a [`Record`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The run's output begins here.
    RunStart,
    /// What follows came at the record's time or up to 10 ms later.
    Data,
    /// The output of a run that began in an earlier segment goes on here.
    Continued {
        /// When the run began.
        started_at: UnixMillis,
    },
    /// The run is over.
    RunEnd,
    /// Output that could not be written is missing here.
    Gap {
        /// How many bytes.
        lost: u64,
    },
}

impl Record {
    /// How the run that begins with this record goes on in the next segment.
    pub(super) fn continued(&self) -> Mark {
        match self.mark {
            Mark::Continued { started_at } => Mark::Continued { started_at },
            Mark::RunStart | Mark::Data | Mark::RunEnd | Mark::Gap { .. } => Mark::Continued { started_at: self.time },
        }
    }

    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let (kind, detail) = match self.mark {
            Mark::RunStart => (1, 0),
            Mark::Data => (2, 0),
            Mark::RunEnd => (3, 0),
            Mark::Gap { lost } => (4, lost),
            Mark::Continued { started_at } => (5, started_at.0),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&u64::to_le_bytes(detail));
        bytes[24..28].copy_from_slice(&self.run.0.to_le_bytes());
        bytes[28] = kind | (Stream::place(self.stream) as u8) << 4;
        seal(bytes)
    }

    /// Reads a record; `None` if the bytes are none.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        if !is_sealed(bytes) {
            return None;
        }
        let stream = Stream::at(bytes[28] >> 4)?;
        let mark = match bytes[28] & 0xf {
            1 => Mark::RunStart,
            2 => Mark::Data,
            3 => Mark::RunEnd,
            4 => Mark::Gap { lost: u64_at(bytes, 16) },
            5 => Mark::Continued { started_at: UnixMillis(u64_at(bytes, 16)) },
            _ => return None,
        };
        let run = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
        Some(Self { offset: u64_at(bytes, 0), time: UnixMillis(u64_at(bytes, 8)), run: RunNumber(run), stream, mark })
    }
}

/// The first 32 bytes of an index.
pub(super) fn header() -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    seal(bytes)
}

fn u64_at(bytes: &[u8; RECORD_BYTES], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn seal(mut bytes: [u8; RECORD_BYTES]) -> [u8; RECORD_BYTES] {
    let check = check(&bytes);
    bytes[CHECK..].copy_from_slice(&check);
    bytes
}

fn is_sealed(bytes: &[u8; RECORD_BYTES]) -> bool {
    bytes[CHECK..] == check(bytes)
}

/// FNV-1a of 32 bits, of which the upper 8 are folded into the lower 24. It tells torn from whole; it is no defence.
fn check(bytes: &[u8; RECORD_BYTES]) -> [u8; 3] {
    let hash =
        bytes[..CHECK].iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = hash.to_le_bytes();
    [a ^ d, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mark: Mark) -> Record {
        let (time, run, stream) = (UnixMillis(1_700_000_000_123), RunNumber(7), Some(Stream::Stderr));
        Record { offset: 0x0102_0304_0506, time, run, stream, mark }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let continued = Mark::Continued { started_at: UnixMillis(1_600_000_000_000) };
        for mark in [Mark::RunStart, Mark::Data, Mark::RunEnd, Mark::Gap { lost: u64::MAX }, continued] {
            for stream in [None, Some(Stream::Stdout), Some(Stream::Stderr)] {
                let record = Record { stream, ..record(mark) };
                assert_eq!(Record::decode(&record.encode()), Some(record));
            }
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_fixed() {
        let (time, run, mark) = (UnixMillis(2), RunNumber(4), Mark::Gap { lost: 3 });
        let hex = |stream| -> String {
            let bytes = Record { offset: 1, time, run, stream, mark }.encode();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(hex(None), "0100000000000000020000000000000003000000000000000400000004c19766");
        assert_eq!(hex(Some(Stream::Stderr))[..58], *"0100000000000000020000000000000003000000000000000400000024");
    }

    #[test]
    fn a_flipped_bit_or_a_torn_tail_is_no_record() {
        let whole = record(Mark::Data).encode();
        for bit in 0..RECORD_BYTES * 8 {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bytes), None, "bit {bit}");
        }
        for length in 0..RECORD_BYTES - 1 {
            let mut bytes = [0; RECORD_BYTES];
            bytes[..length].copy_from_slice(&whole[..length]);
            assert_eq!(Record::decode(&bytes), None, "torn after {length}");
        }
        assert_eq!(Record::decode(&[0; RECORD_BYTES]), None);
        assert_eq!(Record::decode(&header()), None);
    }
}
