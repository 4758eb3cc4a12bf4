//! How many daemons a home has had, kept beside the ledger: a shim obeys no daemon with a lower number than it has seen.
//!
//! The ledger has the number as well. It may be moved away to begin with an empty one, though, and what runs has to be
//! taken over then, too. Each of the two makes up for the other, so that neither can keep the daemon from starting.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The number of the last daemon, as far as the file tells; 0 when it does not.
pub(crate) fn load(path: &Path) -> u64 {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "what is in the epoch's file is no number");
            0
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "could not read the epoch");
            0
        }
    }
}

/// Keeps the number of this daemon. When this returns it is on disk, unless the log says why not.
pub(crate) fn store(path: &Path, epoch: u64) {
    if let Err(error) = replace(path, &format!("{epoch}\n")) {
        tracing::error!(%error, path = %path.display(), "could not write the epoch; the ledger alone has it");
    }
}

/// Puts a new file in the place of the old one, so that a reader finds all of either.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    locald_utils::fail::point("the epoch is written beside its place");
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_found_again_and_garbage_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("epoch");
        assert_eq!(load(&path), 0);
        for epoch in [1, 20, 3] {
            store(&path, epoch);
            assert_eq!(load(&path), epoch);
        }
        for garbage in ["", "-1", "4 5", "99999999999999999999", "\u{0}\u{0}"] {
            std::fs::write(&path, garbage).expect("written");
            assert_eq!(load(&path), 0, "{garbage:?}");
        }
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert_eq!(load(&path), 0);
        store(&path, 7);
        assert_eq!(load(&path), 7);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_no_obstacle() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("epoch");
        std::fs::create_dir(&path).expect("a directory in its place");
        assert_eq!(load(&path), 0);
        store(&path, 7);
        assert_eq!(load(&path), 0);
    }
}
