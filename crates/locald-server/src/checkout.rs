//! From which commit a run was started: asked of `git`, beside the start and never in its way.
//!
//! One question per directory is under way at a time; runs that start meanwhile share the next answer. A directory that
//! is no checkout, a machine without git, or a git that takes too long leave the record without a commit.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use locald_utils::process::{self, ProcessId, Spawn};
use locald_utils::record::RunRef;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

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
struct Question(ProcessId);

impl Drop for Question {
    fn drop(&mut self) {
        // It leads a session of its own. Gone already is what is usual.
        let _ = process::signal(self.0, nix::sys::signal::Signal::SIGKILL);
    }
}

async fn ask(dir: &Path, reaper: &Reaper) -> io::Result<Option<(String, bool)>> {
    let Some(git) = process::find_program("git", std::env::var_os("PATH").as_deref()).ok() else { return Ok(None) };
    let (reader, writer) = io::pipe()?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // Without optional locks it never gets in the way of the person's own git (git(1), GIT_OPTIONAL_LOCKS).
    // And what another checkout's environment says (GIT_DIR) is not about this one.
    let env = std::env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"GIT_"));
    let env = env.chain([("GIT_OPTIONAL_LOCKS".into(), "0".into())]);
    let pid = Spawn::new(git)
        .arg("-C")
        .arg(dir)
        .arg("status")
        .arg("--porcelain=v2")
        .arg("--branch")
        .arg("--untracked-files=no")
        .env(env)
        .descriptor(&null, 0)?
        .descriptor(&writer, 1)?
        .descriptor(&null, 2)?
        .start()?;
    drop(writer);
    let exit = reaper.exit_of(pid);
    let _question = ProcessId::of(pid).map(Question);
    let mut text = String::new();
    pipe::Receiver::from_owned_fd(reader.into())?.read_to_string(&mut text).await?;
    let is_success = exit.await.is_ok_and(|status| status.is_success());
    Ok(if is_success { parse(&text) } else { None })
}

/// Reads the commit and whether there are changes out of `git status --porcelain=v2 --branch` (git-status(1)).
fn parse(text: &str) -> Option<(String, bool)> {
    let commit = text.lines().find_map(|line| line.strip_prefix("# branch.oid "))?;
    let is_dirty = text.lines().any(|line| !line.starts_with('#'));
    Some((commit.to_owned(), is_dirty))
}

#[cfg(test)]
mod tests {
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
}
