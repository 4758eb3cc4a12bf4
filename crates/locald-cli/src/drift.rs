//! What runs against what is on disk now: whether the program of a run was replaced since, and whether the checkout has moved on.
//!
//! The run's side is on record; this looks at the other one, and only when somebody asks how things stand. git itself is not run
//! for it: where `HEAD` is can be read (gitrepository-layout(5)), and a `status` has to be quick.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use locald_utils::record::{Executable, Origin};

/// 200 ms: how long the programs may take to be looked at. On a disk it is microseconds; a network file system that does not answer is not
/// waited for. (Known gap: it then holds this process, which has answered by then, until it does.)
const LOOK_LIMIT: Duration = Duration::from_millis(200);

/// How a run differs from what is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Whether its program is another one now, or gone.
    pub(crate) is_program_changed: bool,
    /// The commit that it was started from, where that is on record.
    pub(crate) commit: Option<String>,
    /// That commit and the one that is checked out, where they differ and that was looked at.
    pub(crate) head: Option<(String, String)>,
}

/// Looks at what there is for these runs, in their order. `checkout` is a directory whose commit is of interest.
pub(crate) fn look(origins: &[Option<&Origin>], checkout: Option<&Path>) -> Vec<Drift> {
    let executables: Vec<Option<Executable>> =
        origins.iter().map(|origin| origin.and_then(|origin| origin.executable.clone())).collect();
    let mut changed = vec![false; origins.len()];
    if executables.iter().any(Option::is_some) {
        let (tell, told) = mpsc::channel();
        let looking = move || {
            let looked = executables.iter().map(|one| one.as_ref().is_some_and(is_changed)).collect::<Vec<bool>>();
            // Nobody may be waiting any more.
            let _ = tell.send(looked);
        };
        if std::thread::Builder::new().spawn(looking).is_ok() {
            changed = told.recv_timeout(LOOK_LIMIT).unwrap_or(changed);
        }
    }
    let now = checkout.filter(|_| origins.iter().flatten().any(|origin| origin.commit.is_some())).and_then(head);
    let moved = |origin: Option<&&Origin>| {
        let (then, now) = (origin?.commit.clone()?, now.clone()?);
        (then != now).then_some((then, now))
    };
    let drift = |(origin, is_program_changed): (&Option<&Origin>, bool)| Drift {
        is_program_changed,
        commit: origin.and_then(|origin| origin.commit.clone()),
        head: moved(origin.as_ref()),
    };
    origins.iter().zip(changed).map(drift).collect()
}

fn is_changed(executable: &Executable) -> bool {
    match fs::metadata(&executable.path) {
        Ok(meta) => (meta.mtime(), meta.size()) != (executable.mtime, executable.size),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The commit that is checked out in a directory; `None` where there is none, or git keeps it in a way that is not read here.
fn head(dir: &Path) -> Option<String> {
    let git = dir.ancestors().map(|dir| dir.join(".git")).find(|git| git.symlink_metadata().is_ok())?;
    let git_dir = match fs::read_to_string(&git) {
        // In a worktree it is a file that says where the directory is.
        Ok(text) => git.parent()?.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => git,
    };
    let text = fs::read_to_string(git_dir.join("HEAD")).ok()?;
    let Some(name) = text.trim_end().strip_prefix("ref:").map(str::trim) else { return commit(&text) };
    let common = match fs::read_to_string(git_dir.join("commondir")) {
        Ok(path) => git_dir.join(path.trim()),
        Err(_) => git_dir.clone(),
    };
    let loose = |dir: &PathBuf| fs::read_to_string(dir.join(name)).ok().and_then(|text| commit(&text));
    let packed = || {
        let refs = fs::read_to_string(common.join("packed-refs")).ok()?;
        refs.lines().find_map(|line| line.split_once(' ').filter(|(_, of)| *of == name)).and_then(|(id, _)| commit(id))
    };
    loose(&git_dir).or_else(|| loose(&common)).or_else(packed)
}

fn commit(text: &str) -> Option<String> {
    let id = text.trim();
    (matches!(id.len(), 40 | 64) && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn git(dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
        let done = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git runs");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    #[test]
    fn the_commit_is_read_as_git_says_it() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("main");
        fs::create_dir_all(dir.join("deep/er")).expect("made");
        assert_eq!(head(&dir), None);
        git(&dir, &["init", "--quiet"]);
        assert_eq!(head(&dir), None, "there is no commit yet");
        let commit = |dir: &Path| git(dir, &["commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", "one"]);
        let is_read = |dir: &Path| assert_eq!(head(dir), Some(git(dir, &["rev-parse", "HEAD"])));
        commit(&dir);
        is_read(&dir.join("deep/er"));
        git(&dir, &["pack-refs", "--all"]);
        is_read(&dir);
        git(&dir, &["worktree", "add", "--quiet", "../tree"]);
        let tree = root.path().join("tree");
        commit(&tree);
        is_read(&tree);
        assert_ne!(head(&tree), head(&dir));
        git(&dir, &["checkout", "--quiet", "--detach"]);
        is_read(&dir);
    }

    #[test]
    fn a_program_that_was_replaced_or_removed_is_another_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server");
        fs::write(&path, "one").expect("written");
        let meta = path.metadata().expect("there");
        let path_text = path.to_string_lossy().into_owned();
        let executable = Executable { path: path_text, mtime: meta.mtime(), size: meta.size() };
        let origin = Origin { executable: Some(executable), commit: None };
        let changed =
            || look(&[None, Some(&origin)], None).iter().map(|one| one.is_program_changed).collect::<Vec<_>>();
        assert_eq!(changed(), [false, false]);
        fs::write(&path, "another").expect("written");
        assert_eq!(changed(), [false, true]);
        fs::remove_file(&path).expect("removed");
        assert_eq!(changed(), [false, true]);
    }
}
