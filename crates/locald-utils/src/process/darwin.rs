//! What the macOS kernel writes about processes, as bytes: the layouts and their parsers, without a system call.
//!
//! `macos` asks the kernel and hands its answers to the functions here. They take any bytes, never panic, and are
//! compiled and tested on every system, because nobody runs the tests on a Mac. Offsets are those of XNU for 64-bit
//! processes (xnu-11417, macOS 15.4), where both architectures are little endian; the tests state the C declarations
//! again and hold the offsets against them.

mod arguments;
pub mod notes;
mod processes;
pub mod signals;
mod sockets;

use nix::errno::Errno;

pub use arguments::*;
pub use processes::*;
pub use sockets::*;

/// Asks again with a larger buffer until the answer leaves room in it, for questions whose answer may grow meanwhile.
///
/// `ask` returns how many bytes it wrote. A full buffer and ENOMEM both mean that there may be more: sysctl says ENOMEM,
/// libproc cuts the answer off silently.
///
/// # Errors
/// Those of `ask`; ENOMEM when 128 MiB are not enough, which hold more processes than there are numbers for.
pub fn read_growing(first: usize, mut ask: impl FnMut(&mut [u8]) -> nix::Result<usize>) -> nix::Result<Vec<u8>> {
    const MOST: usize = 128 * 1024 * 1024;
    let mut size = first.max(1);
    while size <= MOST {
        let mut buffer = vec![0; size];
        match ask(&mut buffer) {
            Ok(count) if count < size => {
                buffer.truncate(count);
                return Ok(buffer);
            }
            Ok(_) | Err(Errno::ENOMEM) => size *= 2,
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ENOMEM)
}

/// The bytes before the first NUL, or all of them.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The string at `at`, without its NUL, and where the next one begins. `None` when no NUL ends it.
fn string_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = rest.iter().position(|&byte| byte == 0)?;
    Some((&rest[..length], at + length + 1))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes_at(bytes, at)?))
}

fn bytes_at<const SIZE: usize>(bytes: &[u8], at: usize) -> Option<[u8; SIZE]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// What the tests of several layouts share.
#[cfg(test)]
mod record {
    /// A record of the kernel's, built field by field.
    pub(super) struct Record(pub(super) Vec<u8>);

    impl Record {
        pub(super) fn new(size: usize) -> Self {
            Self(vec![0; size])
        }

        pub(super) fn with<const SIZE: usize>(mut self, at: usize, value: [u8; SIZE]) -> Self {
            self.0[at..at + SIZE].copy_from_slice(&value);
            self
        }
    }

    /// sys/proc_info.h
    #[repr(C)]
    pub(super) struct VinfoStat {
        vst_dev: u32,
        vst_mode: u16,
        vst_nlink: u16,
        vst_ino: u64,
        vst_uid: u32,
        vst_gid: u32,
        vst_times: [i64; 8],
        vst_size: i64,
        vst_blocks: i64,
        vst_blksize: i32,
        vst_flags: u32,
        vst_gen: u32,
        vst_rdev: u32,
        vst_qspare: [i64; 2],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_that_grows_while_it_is_read_is_read_again() {
        let mut answers = [Err(Errno::ENOMEM), Ok(8), Ok(15)].into_iter();
        let mut sizes = Vec::new();
        let bytes = read_growing(4, |buffer| {
            sizes.push(buffer.len());
            buffer.fill(7);
            answers.next().expect("three questions")
        });
        assert_eq!((sizes, bytes), (vec![4, 8, 16], Ok(vec![7; 15])));
        assert_eq!(read_growing(4, |_| Err(Errno::EPERM)), Err(Errno::EPERM));
        assert_eq!(read_growing(1024 * 1024, |buffer| Ok(buffer.len())), Err(Errno::ENOMEM));
    }

    /// Has every parser read `bytes`. None may panic, and what it gives back is bounded by what it was given.
    fn read_by_all(bytes: &[u8]) {
        let most = |count: usize, size: usize| assert!(count <= bytes.len() / size, "{count} of {}", bytes.len());
        most(processes(bytes).len(), KINFO_PROC_SIZE);
        most(socket_descriptors(bytes).count(), FD_INFO_SIZE);
        most(listening_sockets(bytes).len(), 3 * 24);
        if let Some(arguments) = Arguments::parse(bytes) {
            most(arguments.argv.len(), 1);
            match arguments.environment {
                Environment::Withheld => {}
                Environment::Shown(entries) => most(entries.len(), 1),
            }
        }
        let _ = (ListeningSocket::parse(bytes), UniqueId::parse(bytes), working_directory(bytes), local_address(bytes));
    }

    /// One valid answer of each kind.
    fn answers() -> Vec<Vec<u8>> {
        use super::{arguments, processes, sockets};
        vec![
            processes::fixtures::list(),
            processes::fixtures::unique_id(),
            processes::fixtures::working_directory(),
            arguments::fixtures::arguments(),
            sockets::fixtures::descriptors(),
            sockets::fixtures::descriptor(),
            sockets::fixtures::connections(),
        ]
    }

    #[test]
    fn an_answer_that_is_cut_off_anywhere_is_no_trap() {
        for answer in answers() {
            for cut in 0..=answer.len() {
                read_by_all(&answer[..cut]);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_trap(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            read_by_all(&bytes);
        }

        #[test]
        fn an_answer_with_any_words_written_over_is_no_trap(
            which in 0..7_usize,
            words in proptest::collection::vec((any::<proptest::sample::Index>(), word()), 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut answer = answers().remove(which);
            for (at, word) in words {
                let at = at.index(answer.len() / 4) * 4;
                answer[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            read_by_all(&answer);
            read_by_all(&answer[..cut.index(answer.len())]);
        }
    }

    /// A word that a length or a count may be taken from: the hostile ones, and any.
    fn word() -> impl Strategy<Value = u32> {
        let hostile =
            prop::sample::select(vec![0, 1, 7, 8, 23, 24, 25, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, u32::MAX]);
        prop_oneof![hostile, any::<u32>()]
    }
}
