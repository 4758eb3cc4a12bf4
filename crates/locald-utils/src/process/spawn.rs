//! Starting a program without fork: posix_spawn in its own session, with exactly the descriptors it is given.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};

/// A program to be started. Signals are at their defaults and unblocked in it, and it leads a session of its own.
///
/// Descriptors that it is not given are closed if they close on exec; on macOS all of them are, 0 to 2 included.
///
/// In a cgroup of its own it is started by clone3(2), on Linux; nothing of ours runs in the child then either but exec.
///
/// nix and std both can start programs; this adds what neither has: a new session without running code in a forked
/// child, which macOS does not survive (fork(2) there).
#[derive(Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    descriptors: Vec<(OwnedFd, RawFd)>,
    cgroup: Option<PathBuf>,
}

impl Spawn {
    /// Plans to run `program`, a path, with itself as `argv[0]` and this process's environment.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self {
            args: vec![program.clone().into()],
            program,
            env: std::env::vars_os().collect(),
            descriptors: Vec::new(),
            cgroup: None,
        }
    }

    /// Has it started in a cgroup, if that can be done at once.
    #[must_use]
    pub fn cgroup(mut self, dir: Option<&Path>) -> Self {
        self.cgroup = dir.map(Path::to_owned);
        self
    }

    /// Replaces `argv[0]`.
    #[must_use]
    pub fn arg0(mut self, name: impl Into<OsString>) -> Self {
        self.args[0] = name.into();
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Replaces the environment.
    #[must_use]
    pub fn env(mut self, env: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        self.env = env.into_iter().collect();
        self
    }

    /// Gives the program a duplicate of `from` as its descriptor `to`.
    ///
    /// # Errors
    /// EMFILE when no descriptor is left for the duplicate.
    pub fn descriptor(mut self, from: impl AsFd, to: RawFd) -> io::Result<Self> {
        // The duplicates lie above every target, so that placing one never overwrites the source of another.
        const ABOVE_TARGETS: RawFd = 16;
        debug_assert!(to < ABOVE_TARGETS, "targets lie below the duplicates");
        self.descriptors.push((super::sys::duplicate_above(from, ABOVE_TARGETS)?, to));
        Ok(self)
    }

    /// Starts the program and returns its process number. It is a child: whoever starts it reaps it.
    ///
    /// # Errors
    /// Those of posix_spawn(3): ENOENT, EACCES and their kin for the program, EAGAIN at the process limit.
    pub fn start(self) -> io::Result<i32> {
        self.start_anywhere().map(|(pid, _)| pid)
    }

    /// Starts the program as [`Spawn::start`] does. Returns its process number, and whether it is in the cgroup that was named.
    ///
    /// # Errors
    /// As [`Spawn::start`]. That it could not be started in the cgroup is none.
    pub fn start_anywhere(self) -> io::Result<(i32, bool)> {
        // Descriptors that this process was started with may be open across exec, and would be held open for days.
        super::sys::close_on_exec_from(3)?;
        let mut actions = PosixSpawnFileActions::init()?;
        for (from, to) in &self.descriptors {
            actions.add_dup2(from.as_raw_fd(), *to)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        let mut flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
        flags |= PosixSpawnFlags::from_bits_retain(SETSID);
        #[cfg(target_os = "macos")]
        {
            flags |= PosixSpawnFlags::from_bits_retain(CLOEXEC_DEFAULT);
        }
        attributes.set_flags(flags)?;
        let mut defaults = SigSet::all();
        // The dispositions of these two cannot be set (sigaction(2)).
        defaults.remove(Signal::SIGKILL);
        defaults.remove(Signal::SIGSTOP);
        attributes.set_sigdefault(&defaults)?;
        attributes.set_sigmask(&SigSet::empty())?;
        let args = self.args.iter().map(|arg| c_string(arg)).collect::<io::Result<Vec<_>>>()?;
        let env = self.env.iter().cloned().map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend_from_slice(value.as_bytes());
            c_string(OsStr::from_bytes(&entry))
        });
        let env = env.collect::<io::Result<Vec<_>>>()?;
        let program = c_string(self.program.as_os_str())?;
        #[cfg(target_os = "linux")]
        if let Some(pid) = self.cgroup.as_deref().and_then(|dir| {
            let descriptors: Vec<_> = self.descriptors.iter().map(|(from, to)| (from.as_raw_fd(), *to)).collect();
            let image = super::sys::Image { program: &program, args: &args, env: &env, descriptors: &descriptors };
            // Whatever keeps it from that, the other way starts it or says why not.
            let cgroup = std::fs::File::open(dir).ok()?;
            super::sys::start_in_cgroup(cgroup.as_fd(), &image).ok()
        }) {
            return Ok((pid, true));
        }
        Ok((posix_spawn(program.as_c_str(), &actions, &attributes, &args, &env)?.as_raw(), false))
    }
}

/// `POSIX_SPAWN_SETSID` of glibc 2.26 and musl (0x80), which nix does not name.
#[cfg(target_os = "linux")]
const SETSID: libc::c_int = 0x80;
/// `POSIX_SPAWN_SETSID` of macOS 10.15 (spawn.h).
#[cfg(target_os = "macos")]
const SETSID: libc::c_int = 0x0400;
/// `POSIX_SPAWN_CLOEXEC_DEFAULT` of macOS (spawn.h): only descriptors named by a file action are inherited.
#[cfg(target_os = "macos")]
const CLOEXEC_DEFAULT: libc::c_int = 0x4000;

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an argument or variable contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_started_program_leads_its_session_and_has_the_descriptors_it_was_given() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let (input, gate) = std::io::pipe().expect("a pipe");
        let spawn = Spawn::new("/bin/sh").arg("-c").arg("printf '%s' \"$X\"; read x; printf '%s' \"$x\"");
        let spawn = spawn.env([("X".into(), "a=b".into())]);
        let spawn = spawn.descriptor(&input, 0).expect("dup").descriptor(&writer, 1).expect("dup");
        let pid = spawn.start().expect("starts");
        drop((input, writer));
        let mut output = [0; 3];
        reader.read_exact(&mut output).expect("read");
        assert_eq!(&output, b"a=b");
        let process = crate::process::look(pid).expect("it waits");
        assert_eq!((process.session, process.group), (pid, pid), "it leads its session");
        (&gate).write_all(b"through\n").expect("writes");
        let mut output = String::new();
        reader.read_to_string(&mut output).expect("read");
        assert_eq!(output, "through");
        assert_eq!(waitpid(Pid::from_raw(pid), None).expect("waits"), WaitStatus::Exited(Pid::from_raw(pid), 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_program_is_born_in_its_cgroup_as_it_would_be_elsewhere() {
        use crate::process::cgroup::Hierarchy;
        let Some(place) = Hierarchy::of_home(std::path::Path::new("/a/home/of/spawn")) else {
            eprintln!("no cgroup can be made here, so none is tried");
            return;
        };
        let leaf = place.leaf(&std::process::id().to_string());
        leaf.make().expect("made");
        let (input, gate) = std::io::pipe().expect("a pipe");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let spawn = Spawn::new("/bin/sh")
            .cgroup(Some(leaf.dir()))
            .arg("-c")
            .arg("trap; read x; ls /dev/fd/3 /dev/fd/9; exit 3");
        let spawn = spawn.descriptor(&input, 0).and_then(|spawn| spawn.descriptor(&writer, 1)).expect("duplicates");
        let (pid, is_inside) = spawn.descriptor(&writer, 2).expect("a duplicate").start_anywhere().expect("started");
        drop((input, writer));
        assert!(is_inside, "this system has clone3 and lets us use it");
        assert_eq!(leaf.processes(), [pid]);
        let seen = crate::process::look(pid).expect("alive");
        assert_eq!((seen.session, seen.group, seen.parent), (pid, pid, std::process::id().cast_signed()));
        drop(gate);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert!(text.contains("/dev/fd/3") && text.contains("No such file"), "no other descriptor is open: {text}");
        assert_eq!(waitpid(Pid::from_raw(pid), None), Ok(WaitStatus::Exited(Pid::from_raw(pid), 3)));
        let missing = Spawn::new("/no/such/program").cgroup(Some(leaf.dir())).start().expect_err("no such file");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        leaf.remove();
        assert!(!leaf.dir().exists());
    }

    #[test]
    fn a_missing_program_is_an_error_and_no_exit_code() {
        let error = Spawn::new("/nonexistent/program").start().expect_err("no such file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
