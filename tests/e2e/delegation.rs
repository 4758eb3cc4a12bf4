//! A user who was given a control group has runs in leaves of it, wherever the hierarchy is mounted (cgroups(7), delegation).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::support::{Site, zoo};

/// An ordinary user, whom nobody else is.
const USER: u32 = 61_012;

/// Where cgroups of version 2 are, if anywhere: beside those of version 1 as well.
fn mounted() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    mount.split(' ').nth(1).map(PathBuf::from)
}

/// A cgroup that is the user's, as a system manager would hand it over. Taken away in the end, when nobody is in it any more.
struct Delegated(PathBuf);

impl Delegated {
    fn to_user() -> Option<Self> {
        let dir = mounted()?.join(format!("lt-{}", std::process::id()));
        // Who is not root, or has a mount that is read-only, hands over nothing.
        fs::create_dir(&dir).ok()?;
        let delegated = Self(dir);
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(delegated.0.join(name), Some(USER), Some(USER)).ok()?;
        }
        Some(delegated)
    }

    fn leaves(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("a cgroup").map(|entry| entry.expect("an entry").path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn processes_in(cgroup: &Path) -> String {
    fs::read_to_string(cgroup.join("cgroup.procs")).expect("its processes")
}

#[test]
fn a_user_who_was_given_a_cgroup_has_each_run_in_a_leaf_of_it_and_no_leaf_is_left() {
    let Some(delegated) = Delegated::to_user() else { return };
    let mut site = Site::new("[services.web]\ncommand = '\"$ZOO\" traceless \"$ZOO\" idle hidden; exec sleep 600'\n");
    site.belong_to(USER);
    let user = USER.to_string();
    let enter = "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"";
    let words = ["sh", "-c", enter, "sh"].map(OsStr::new);
    let as_user = [zoo().as_os_str(), OsStr::new("as"), OsStr::new(&user), OsStr::new(&user)];
    site.run_by(words.into_iter().chain([delegated.0.as_os_str()]).chain(as_user));
    site.up();
    let leaves = delegated.leaves();
    assert_eq!(leaves.len(), 1, "{leaves:?}");
    assert!(processes_in(&leaves[0]).lines().any(|pid| pid == site.leader("web").pid.to_string()));
    site.locald("doctor").run().says("a run can have a cgroup of its own");
    site.down();
    assert!(delegated.leaves().is_empty(), "{:?} is left", delegated.leaves());
    let daemon = site.daemon();
    site.locald("daemon stop").run().ok();
    site.await_end(daemon);
    site.eventually("an empty cgroup", || processes_in(&delegated.0).is_empty().then_some(()));
}
