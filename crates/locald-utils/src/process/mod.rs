//! Processes: who they are, what they belong to, how to end them. Callers see no difference between systems.

use serde::{Deserialize, Serialize};

/// Identifies a process within one boot: its number and when it started.
///
/// A number alone is reused; no signal goes to a number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// When it started: clock ticks since boot on Linux (proc_pid_stat(5), field 22), microseconds since 1970 on macOS.
    pub start: u64,
}
