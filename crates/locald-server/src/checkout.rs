//! From which commit a run was started: asked of `git`, beside the start and never in its way.
//!
//! One question per directory is under way at a time; runs that start meanwhile share the next answer. A directory that
//! is no checkout, a machine without git, or a git that takes too long leave the record without a commit.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use locald_utils::process::{self, Spawn};
use locald_utils::record::{ExitStatus, RunRef};
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::ledger::Ledger;
use crate::reaper::Reaper;

/// 10 s: a status of a very large checkout with a cold cache.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs that wait for an answer, by directory. An entry exists as long as a question is under way.
type Waiting = Rc<RefCell<HashMap<PathBuf, Vec<RunRef>>>>;

/// Asks git about directories.
#[derive(Clone)]
pub(crate) struct Checkouts {
    ledger: Ledger,
    reaper: Reaper,
    waiting: Waiting,
}

impl Checkouts {
    /// Answers go to `ledger`.
    pub(crate) fn new(ledger: Ledger, reaper: Reaper) -> Self {
        Self { ledger, reaper, waiting: Waiting::default() }
    }

    /// Has the commit of `dir` written to the record of `run`.
    pub(crate) fn record(&self, dir: &Path, run: RunRef) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(dir) {
            waiting.push(run);
            return;
        }
        self.waiting.borrow_mut().insert(dir.to_owned(), Vec::new());
        let (checkouts, dir) = (self.clone(), dir.to_owned());
        tokio::task::spawn_local(async move {
            let mut runs = vec![run];
            while !runs.is_empty() {
                match tokio::time::timeout(LIMIT, ask(&dir, &checkouts.reaper)).await {
                    Ok(Ok(Some((commit, is_dirty)))) => {
                        for run in &runs {
                            checkouts.ledger.checkout(run, Some(commit.clone()), is_dirty);
                        }
                    }
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, dir = %dir.display(), "git could not be asked"),
                    Err(_) => tracing::warn!(dir = %dir.display(), "git status took too long"),
                }
                runs = checkouts.waiting.borrow_mut().get_mut(&dir).map(std::mem::take).unwrap_or_default();
            }
            checkouts.waiting.borrow_mut().remove(&dir);
        });
    }
}

/// Ends the question when nobody waits for it any more.
struct Question {
    git: i32,
    exit: oneshot::Receiver<ExitStatus>,
}

impl Drop for Question {
    fn drop(&mut self) {
        // It leads a session and a group of its own, and what it runs, filters and questions to submodules, is in there. As
        // long as its exit has not come it is unreaped, which pins the group's number. Without its leader, what may be
        // left of the group cannot be told from another one and is left alone.
        if matches!(self.exit.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            let _ = process::signal_group(self.git, Signal::SIGKILL);
        }
    }
}

async fn ask(dir: &Path, reaper: &Reaper) -> io::Result<Option<(String, bool)>> {
    let Some(git) = process::find_program("git", std::env::var_os("PATH").as_deref()).ok() else { return Ok(None) };
    let (reader, writer) = io::pipe()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let git = question(git, dir).descriptor(&null, 0)?.descriptor(&writer, 1)?.descriptor(&null, 2)?.start()?;
    let mut question = Question { git, exit: reaper.exit_of(git) };
    drop(writer);
    let mut text = String::new();
    pipe::Receiver::from_owned_fd(reader.into())?.read_to_string(&mut text).await?;
    let is_success = (&mut question.exit).await.is_ok_and(|status| status.is_success());
    Ok(if is_success { parse(&text) } else { None })
}

/// `git status`, so that nothing is left of it: no daemon, no fetch, no maintenance.
fn question(git: PathBuf, dir: &Path) -> Spawn {
    // What another checkout's environment says (GIT_DIR) is not about this one.
    let env = std::env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"GIT_"));
    // Without optional locks it never gets in the way of the person's own git. Objects that a partial clone lacks are not
    // fetched (git(1), GIT_OPTIONAL_LOCKS, GIT_NO_LAZY_FETCH); before 2.45 they are, but without the maintenance after it.
    let env = env.chain(
        [("GIT_OPTIONAL_LOCKS", "0"), ("GIT_NO_LAZY_FETCH", "1")].map(|(name, value)| (name.into(), value.into())),
    );
    let mut question = Spawn::new(git).arg("-C").arg(dir).env(env);
    // The file system monitor would be started for the question and stay (git-fsmonitor--daemon(1)).
    for setting in ["core.fsmonitor=false", "maintenance.auto=false", "gc.auto=0"] {
        question = question.arg("-c").arg(setting);
    }
    // Neither what is ahead nor what was renamed makes a difference, and both can take long.
    let status = ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--no-ahead-behind", "--no-renames"];
    status.into_iter().fold(question, Spawn::arg)
}

/// Reads the commit and whether there are changes out of `git status --porcelain=v2 --branch` (git-status(1)).
fn parse(text: &str) -> Option<(String, bool)> {
    let commit = text.lines().find_map(|line| line.strip_prefix("# branch.oid "))?;
    let is_dirty = text.lines().any(|line| !line.starts_with('#'));
    Some((commit.to_owned(), is_dirty))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use locald_utils::process::ProcessId;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn commit_and_dirty_state_are_read() {
        let clean = "# branch.oid 1234abcd\n# branch.head main\n";
        assert_eq!(parse(clean), Some(("1234abcd".into(), false)));
        assert_eq!(
            parse(&format!("{clean}1 .M N... 100644 100644 100644 a b file\n")),
            Some(("1234abcd".into(), true))
        );
        assert_eq!(parse(""), None);
    }

    /// A program of the test's own.
    fn script(path: &Path, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("an executable");
    }

    /// Waits for a number that a script writes on a line of its own.
    fn await_pid(path: &Path) -> ProcessId {
        eventually("a pid", || ProcessId::of(std::fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok()?))
    }

    fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(value) = condition() {
                return value;
            }
            assert!(Instant::now() < until, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn reap(pid: i32) -> WaitStatus {
        waitpid(Pid::from_raw(pid), None).expect("a child")
    }

    /// Ends what a test that fails would leave behind.
    struct Left(ProcessId);

    impl Drop for Left {
        fn drop(&mut self) {
            let _ = process::signal(self.0, Signal::SIGKILL);
        }
    }

    // Only git itself used to be ended.
    #[test]
    fn what_git_runs_ends_with_a_question_that_takes_too_long() {
        let dir = tempfile::tempdir().expect("a directory");
        let (git, child) = (dir.path().join("git"), dir.path().join("child"));
        script(&git, &format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n", child.display()));
        let git = question(git, dir.path()).start().expect("starts");
        let child = await_pid(&child);
        let _left = Left(child);
        let (_reaped, exit) = oneshot::channel();
        drop(Question { git, exit });
        eventually("the end of both", || {
            let is_over = |process: ProcessId| !process.is_alive();
            (is_over(child) && ProcessId::of(git).is_none_or(is_over)).then_some(())
        });
        reap(git);
    }

    #[test]
    fn a_question_that_was_answered_signals_nobody() {
        let git = Spawn::new("/bin/sleep").arg("600").start().expect("starts");
        let process = ProcessId::of(git).expect("a process");
        let (reaped, exit) = oneshot::channel();
        reaped.send(ExitStatus::Code(0)).expect("sent");
        // As if its number belonged to somebody else now.
        drop(Question { git, exit });
        process::signal(process, Signal::SIGTERM).expect("ended");
        assert!(matches!(reap(git), WaitStatus::Signaled(_, Signal::SIGTERM, _)));
    }

    // With a person's own settings git starts the file system monitor, which stays.
    #[test]
    fn git_is_asked_without_its_file_system_monitor() {
        let dir = tempfile::tempdir().expect("a directory");
        let (hook, called, answer) = (dir.path().join("hook"), dir.path().join("called"), dir.path().join("answer"));
        script(&hook, &format!("#!/bin/sh\ntouch {}\n", called.display()));
        let git = |args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.arg("-C").arg(dir.path()).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
            let done = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git runs");
            assert!(done.status.success(), "{done:?}");
        };
        git(&["init", "--quiet"]);
        std::fs::write(dir.path().join("file"), "1\n").expect("written");
        git(&["add", "file"]);
        git(&["commit", "--quiet", "--no-gpg-sign", "-m", "one"]);
        std::fs::write(dir.path().join("file"), "2\n").expect("written");
        git(&["config", "core.fsmonitor", &hook.display().to_string()]);

        let program = process::find_program("git", std::env::var_os("PATH").as_deref()).expect("git");
        let out = File::create(&answer).expect("a file");
        let asked = question(program, dir.path()).descriptor(&out, 1).expect("a descriptor").start().expect("starts");
        reap(asked);
        let (commit, is_dirty) = parse(&std::fs::read_to_string(&answer).expect("an answer")).expect("a commit");
        assert_eq!((commit.len(), is_dirty), (40, true));
        assert!(!called.exists(), "the monitor was asked");
    }
}
