//! Digests of specs, environments and directories: enough to tell whether two are the same, never to hide a value.

use sha2::{Digest, Sha256};

/// The SHA-256 digest of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    Sha256::digest(bytes).iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
