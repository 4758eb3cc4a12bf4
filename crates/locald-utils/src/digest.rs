//! Digests of specs, environments, directories and files: enough to tell whether two are the same, never to hide a value.

use sha2::{Digest, Sha256};

use crate::spec::OsText;

/// Enough of the digest of a variable's value to tell whether another one is the same: 16 hexadecimal digits.
#[must_use]
pub fn of_value(value: &OsText) -> String {
    let mut hex = hex(value.as_os_str().as_encoded_bytes());
    hex.truncate(16);
    hex
}

/// The SHA-256 digest of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.add(bytes);
    hasher.hex()
}

/// A digest of what comes piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds a piece.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The SHA-256 digest of all pieces, one after the other, as 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
        self.0.finalize().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}
