//! A control group for each run, where the system lets us have one: cgroup v2 (cgroups(7)), on Linux alone.
//!
//! A process cannot leave its cgroup by itself, whatever it does to its session, descriptors or environment, so the list of a
//! cgroup's processes is exact, and one write kills all of them, forks under way included. Nothing here is required: where
//! no leaf can be made (no cgroup v2, not ours to write to), a run has none and the other evidence does.
//!
//! What knows the place of the mount is [`Hierarchy`]; a [`Cgroup`] is one leaf. On macOS neither ever comes to be.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::digest;

/// How deep cgroups below a leaf are followed: services that make cgroups of their own (a container runtime) go two deep.
const DEEPEST: u32 = 8;

/// The place where leaves can be made: the cgroup that this process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    dir: PathBuf,
    home: String,
}

impl Hierarchy {
    /// Finds the place for the leaves of the home with this state directory, and tries it: `None` when no leaf can be made.
    ///
    /// The names of leaves tell homes apart by the first 8 digits of a digest. A process that was itself started in a leaf of
    /// that home goes up to where the leaf was made: what looks after all runs must not end with one of them.
    #[must_use]
    pub fn of_home(state: &Path) -> Option<Self> {
        let mut home = digest::hex(state.as_os_str().as_bytes());
        home.truncate(8);
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read("/proc/self/mountinfo").ok()?;
        let prefix = format!("{LEAF}{home}-");
        let dir = directory(&mounts, own_path(&own)?)?;
        let above = above_leaf(&dir, &prefix);
        if above != dir {
            fs::write(above.join("cgroup.procs"), "0").ok()?;
        }
        let hierarchy = Self { dir: above, home };
        let probe = hierarchy.leaf(&format!("probe{}", std::process::id()));
        probe.make().ok()?;
        // Kernels before 5.14 cannot kill a cgroup as a whole; a list of processes is worth having all the same.
        probe.remove();
        Some(hierarchy)
    }

    /// The leaf of a run, which need not exist yet.
    #[must_use]
    pub fn leaf(&self, run: &str) -> Cgroup {
        Cgroup { dir: self.dir.join(format!("{LEAF}{}-{run}", self.home)) }
    }

    /// The leaves of this home that are there, each with the id of its run.
    #[must_use]
    pub fn leaves(&self) -> Vec<(String, Cgroup)> {
        let prefix = format!("{LEAF}{}-", self.home);
        let run = |dir: &Path| dir.file_name()?.to_str()?.strip_prefix(&prefix).map(str::to_owned);
        below(&self.dir).filter_map(|dir| Some((run(&dir)?, Cgroup { dir }))).collect()
    }

    /// Where leaves are made.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What the name of every leaf of ours begins with.
const LEAF: &str = "locald-";

/// The cgroup of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// The cgroup at a path that a record has kept.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One below it, which is a part of it: whoever is there is here as well, and it goes with this one.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        Self { dir: self.dir.join(name) }
    }

    /// Makes it.
    ///
    /// # Errors
    /// Those of mkdir(2); EACCES and EROFS where it is not ours to make.
    pub fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Moves the calling process into it; what it starts from then on is born there.
    ///
    /// # Errors
    /// EACCES where the kernel does not let us, EOPNOTSUPP where the leaf takes no processes.
    pub fn enter(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), "0")
    }

    /// The numbers of all processes in it and below it, zombies left out. None when it is gone.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        collect(&self.dir, DEEPEST, &mut found);
        found
    }

    /// Kills every process in it, those that are about to be forked included (`cgroup.kill`, since Linux 5.14).
    ///
    /// # Errors
    /// ENOENT before that version, or when it is gone.
    pub fn kill(&self) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(self.dir.join("cgroup.kill")).and_then(|mut file| {
            use io::Write;
            file.write_all(b"1")
        })
    }

    /// Removes it, with what is below it. One that still has processes stays (rmdir(2), EBUSY).
    pub fn remove(&self) {
        remove(&self.dir, DEEPEST);
    }
}

fn below(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn collect(dir: &Path, depth: u32, found: &mut Vec<i32>) {
    let Ok(list) = fs::read_to_string(dir.join("cgroup.procs")) else { return };
    // A process of another pid namespace shows as 0 there.
    found.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    if depth > 0 {
        below(dir).for_each(|dir| collect(&dir, depth - 1, found));
    }
}

fn remove(dir: &Path, depth: u32) {
    // Usually nothing is below, and one call does.
    if fs::remove_dir(dir).is_ok() || depth == 0 {
        return;
    }
    below(dir).for_each(|dir| remove(&dir, depth - 1));
    let _ = fs::remove_dir(dir);
}

/// The path of the calling process in the v2 hierarchy, out of `/proc/self/cgroup` (cgroups(7)): the line `0::PATH`.
fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| path.starts_with('/'))
}

/// The directory of a cgroup, through the first v2 mount that shows it (proc_pid_mountinfo(5)): mounted alone, or beside v1
/// as systemd's hybrid layout has it.
fn directory(mounts: &[u8], path: &str) -> Option<PathBuf> {
    mounts.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let root = unescape(fields.nth(3)?);
        let point = unescape(fields.next()?);
        // Behind the optional fields, which end with a dash, comes the type.
        if fields.skip_while(|field| *field != b"-").nth(1)? != b"cgroup2" {
            return None;
        }
        let below = Path::new(path).strip_prefix(Path::new(OsStr::from_bytes(&root))).ok()?;
        Some(Path::new(OsStr::from_bytes(&point)).join(below))
    })
}

/// Undoes how mountinfo writes spaces, tabs, line ends and backslashes: `\040` and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            Some(_) | None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// The directory that `dir` lies in, above the outermost leaf with this prefix; `dir` itself when there is no such leaf.
fn above_leaf(dir: &Path, prefix: &str) -> PathBuf {
    let is_leaf = |dir: &Path| dir.file_name().is_some_and(|name| name.as_bytes().starts_with(prefix.as_bytes()));
    let outermost = dir.ancestors().filter(|dir| is_leaf(dir)).last();
    outermost.and_then(Path::parent).unwrap_or(dir).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &[u8] = b"24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
        35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &[u8] = b"35 24 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        36 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 35 0:32 / /sys/fs/cgroup/unified rw shared:3 master:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_mount_is_found_in_every_layout() {
        let path = own_path("12:memory:/user\n0::/user.slice/a.scope\n").expect("the v2 line");
        assert_eq!(directory(UNIFIED, path), Some("/sys/fs/cgroup/user.slice/a.scope".into()));
        assert_eq!(directory(HYBRID, path), Some("/sys/fs/cgroup/unified/user.slice/a.scope".into()));
        assert_eq!(directory(HYBRID, "/"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(directory(b"36 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", path), None);
        assert_eq!(own_path("12:memory:/user\n"), None);
        assert_eq!(directory(b"short\n\n", "/"), None);
    }

    #[test]
    fn a_mount_that_shows_only_a_part_is_used_for_what_it_shows() {
        let part = b"35 24 0:30 /docker/4f /sys/fs/cgroup\\040two rw - cgroup2 none rw\n";
        assert_eq!(directory(part, "/docker/4f/a"), Some("/sys/fs/cgroup two/a".into()));
        assert_eq!(directory(part, "/elsewhere"), None);
    }

    #[test]
    fn whoever_was_started_in_a_leaf_goes_up_to_where_the_leaf_is() {
        let above = |dir: &str| above_leaf(Path::new(dir), "locald-ab12-");
        assert_eq!(above("/c/user/locald-ab12-77/locald-ab12-78/x"), Path::new("/c/user"));
        assert_eq!(above("/c/user/locald-other-77"), Path::new("/c/user/locald-other-77"));
        assert_eq!(above("/c/user"), Path::new("/c/user"));
    }

    #[test]
    fn nothing_is_there_where_there_is_no_leaf() {
        let dir = tempfile::tempdir().expect("a directory");
        let leaf = Cgroup::at(dir.path().join("gone"));
        assert!(leaf.processes().is_empty());
        assert!(leaf.kill().is_err() && leaf.enter().is_err());
        leaf.remove();
    }

    #[test]
    fn what_runs_in_a_leaf_is_listed_and_killed_as_one() {
        let Some(hierarchy) = Hierarchy::of_home(Path::new("/a/home/of/this/test")) else {
            eprintln!("no cgroup can be made here, so none is tried");
            return;
        };
        let leaf = hierarchy.leaf(&format!("{}", std::process::id()));
        leaf.make().expect("made");
        let ours = (std::process::id().to_string(), leaf.clone());
        assert!(hierarchy.leaves().contains(&ours));
        // The shell moves itself, and then starts one in a session of its own below a cgroup of its own.
        let script =
            "echo 0 > $1/cgroup.procs && mkdir $1/deep && { sleep 600 & echo $! > $1/deep/cgroup.procs; read x; }";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(leaf.dir())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        while leaf.processes().len() < 2 {
            assert!(child.try_wait().expect("a child").is_none(), "the shell has ended");
            std::thread::yield_now();
        }
        assert!(leaf.processes().contains(&child.id().cast_signed()));
        leaf.remove();
        assert!(leaf.dir().exists(), "a leaf with processes stays");
        leaf.kill().expect("killed");
        child.wait().expect("reaped");
        while !leaf.processes().is_empty() {
            std::thread::yield_now();
        }
        leaf.remove();
        assert!(!leaf.dir().exists() && !hierarchy.leaves().contains(&ours));
    }
}
