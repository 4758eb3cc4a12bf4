//! Digests of specs, environments and directories: enough to tell whether two are the same, never to hide a value.

use sha2::{Digest, Sha256};

/// The SHA-256 digest of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
