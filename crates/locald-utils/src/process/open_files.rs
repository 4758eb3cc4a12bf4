//! How many descriptors a process may have: the soft limit RLIMIT_NOFILE (getrlimit(2)), which a process may raise itself as far
//! as the hard one.
//!
//! Programs of ours need more than the 256 of macOS or the 1024 of Linux when services are many. Services are to have the limit
//! that their user has chosen: some programs close every number below it, or cannot use higher ones (select(2)).

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// 10,240: enough for 3,000 services, and the most that macOS lets anybody have whatever the hard limit says (`OPEN_MAX`).
const ENOUGH: u64 = 10_240;

static ORIGINAL: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process as far as it may and makes sense. What cannot be raised stays as it is.
pub fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let enough = ENOUGH.min(hard);
    // Whoever calls this a second time learns nothing about the beginning.
    if soft < enough && ORIGINAL.set(soft).is_ok() {
        // A limit that is refused stays.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, enough, hard);
    }
}

/// The soft limit that this process was started with. `None` when it was not raised.
#[must_use]
pub fn original() -> Option<u64> {
    ORIGINAL.get().copied()
}

/// The soft limit of this process.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(ENOUGH, |(soft, _)| soft)
}

/// Sets the soft limit of this process, and so of what it starts, as far as that may be. Descriptors that are open stay open.
pub fn set(soft: u64) {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // As above.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard);
    }
}

/// Does something with the limit that this process was started with, for what is started by it.
pub fn with_original<T>(action: impl FnOnce() -> T) -> T {
    let Some(original) = original() else { return action() };
    set(original);
    let result = action();
    set(ENOUGH);
    result
}
