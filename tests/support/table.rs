//! The process table as an outsider sees it: which processes are a site's.
//!
//! On Linux it is read from `/proc`, without any code of locald's, so that a mistake there does not hide itself here.
//! macOS shows environments and directories to programs by calls alone, for which locald-utils has the safe wrappers.

use std::fmt::Write;
use std::path::Path;

use locald_utils::process::ProcessId;

/// A process that was seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) process: ProcessId,
    pub(crate) parent: i32,
    pub(crate) command: String,
}

impl Seen {
    /// Looks at one process.
    pub(crate) fn look(process: ProcessId) -> Self {
        let parent = locald_utils::process::look(process.pid).map_or(0, |process| process.parent);
        let command = locald_utils::process::command(process.pid).unwrap_or_default();
        Self { process, parent, command }
    }

    /// Whether it is one of locald's programs, or what a daemon asks git for the record of a run, which may take longer than
    /// a short run. The exec helper is a shim until it has become the service.
    pub(crate) fn is_locald(&self) -> bool {
        let program = self.command.split(' ').next().unwrap_or_default();
        let is_ours = self.command.contains(" -c core.fsmonitor=false -c maintenance.auto=false ");
        let is_asked = program.ends_with("git") && (is_ours || self.command.ends_with(" (ending)"));
        is_asked || ["/locald", "/locald-server", "/locald-shim"].iter().any(|name| program.ends_with(name))
    }

    /// Whether it is a shim, or what a shim has started and is not yet the service.
    pub(crate) fn is_shim(&self) -> bool {
        self.command.split(' ').next().is_some_and(|program| program.ends_with("/locald-shim"))
    }

    /// Whether it is a daemon.
    pub(crate) fn is_daemon(&self) -> bool {
        self.command.split(' ').next().is_some_and(|program| program.ends_with("/locald-server"))
    }
}

/// Shows processes, one in a line.
pub(super) fn show(seen: &[Seen]) -> String {
    seen.iter().fold(String::new(), |mut text, Seen { process, parent, command }| {
        let _ = writeln!(text, "  pid {} parent {parent}: {command}", process.pid);
        text
    })
}

/// Finds the live processes that have a `LOCALD_HOME` below `root` or are locald's own for such a home, work there, or mention
/// it on their command line.
#[cfg(target_os = "linux")]
pub(super) fn of(root: &Path) -> Vec<Seen> {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    let mention = root.as_os_str().as_bytes();
    let markers = [b"LOCALD_HOME=".as_slice(), b"LOCALD_SUPERVISOR="].map(|name| [name, mention, b"/"].concat());
    let mut seen = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Whatever cannot be read any more, or belongs to somebody else, is not ours.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((before, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let (state, parent) = (fields[0], fields[1].parse().unwrap_or(0));
        let start = fields[19].parse().unwrap_or(0);
        if state == "Z" || state == "X" || pid == std::process::id().cast_signed() {
            continue;
        }
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let dir = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let is_marked = |variable: &[u8]| markers.iter().any(|marker| variable.starts_with(marker));
        let is_marked = environ.split(|byte| *byte == 0).any(is_marked);
        let mentions = command.windows(mention.len()).any(|part| part == mention);
        // A command of the test's own that is ending has no command line any more, and is no zombie yet.
        if command.is_empty() && parent == std::process::id().cast_signed() {
            continue;
        }
        // What watches a test's programs is the test's.
        let is_tracer = command.starts_with(b"strace\0");
        if (is_marked || mentions || dir.starts_with(root)) && !is_tracer {
            let mut text = String::from_utf8_lossy(&command).replace('\0', " ");
            // One that is ending gives up its memory page by page; its name is the kernel's to the last.
            if !command.ends_with(b"\0") {
                text = format!("/{} (ending)", before.split_once('(').map_or("", |(_, name)| name));
            }
            seen.push(Seen { process: ProcessId { pid, start }, parent, command: text });
        }
    }
    seen
}

/// Finds the live processes that have a `LOCALD_HOME` below `root`, work there, or mention it on their command line.
///
/// The environment of Apple's own programs (`/bin/sh`, `/bin/sleep`) is hidden; those are found by directory.
#[cfg(target_os = "macos")]
pub(super) fn of(root: &Path) -> Vec<Seen> {
    use locald_utils::process::{self, ProcessState};

    let mut seen = Vec::new();
    for process in process::all().expect("the process table") {
        let pid = process.id.pid;
        if process.state == ProcessState::Zombie || pid == std::process::id().cast_signed() {
            continue;
        }
        let is_marked = process::marker(pid, "LOCALD_HOME").is_some_and(|value| Path::new(&value).starts_with(root));
        let command = process::command(pid).unwrap_or(process.name);
        let mentions = root.to_str().is_some_and(|root| command.contains(root));
        let is_below = process::working_directory(pid).is_some_and(|dir| dir.starts_with(root));
        if is_marked || mentions || is_below {
            seen.push(Seen { process: process.id, parent: process.parent, command });
        }
    }
    seen
}
