//! The program that shims are, as it was when the daemon started.
//!
//! Installing another version puts other files in place of ours, or takes them away, while we run. The shims of one daemon are
//! all of its own version: on Linux its file is kept open and executed through the descriptor (proc_pid_fd(5)). Elsewhere a
//! program can only be executed by its name.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use locald_utils::process::sys;

/// What a program of the kernel's own format begins with. A script is read by name, by the interpreter.
const ELF: [u8; 4] = *b"\x7fELF";

/// Beyond whatever a child is given.
const LOWEST: i32 = 10;

/// The program of this daemon's shims.
#[derive(Debug)]
pub(crate) struct ShimProgram {
    path: PathBuf,
    pinned: Option<OwnedFd>,
}

impl ShimProgram {
    /// Finds it beside the daemon's own, and holds on to it.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn find() -> io::Result<Self> {
        let path = std::env::current_exe()?.with_file_name("locald-shim");
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let mut file = File::open(&path).map_err(named)?;
        let mut start = [0; ELF.len()];
        let is_program = cfg!(target_os = "linux") && file.read_exact(&mut start).is_ok() && start == ELF;
        // Not one of the low numbers, which are other descriptors by the time a shim executes it.
        let pinned = if is_program { Some(sys::duplicate_above(&file, LOWEST).map_err(named)?) } else { None };
        Ok(Self { path, pinned })
    }

    /// Where it was found.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What to execute.
    pub(crate) fn image(&self) -> PathBuf {
        match &self.pinned {
            Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => self.path.clone(),
        }
    }
}
