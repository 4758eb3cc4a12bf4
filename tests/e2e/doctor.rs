//! `doctor` finds what nobody looks after, says how to end it, and ends nothing itself.
//!
//! It looks at the whole machine, where other tests run. So a test picks out what is about its own site, and of the exit
//! code demands only that it agrees with the list.

use std::path::{Path, PathBuf};
use std::process::Command;

use locald_utils::process::ProcessId;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send};

/// A service that does not mind losing its terminal together with its shim.
const DEAF: &str = "[services.web]\ncommand = '''trap \"\" HUP; exec sleep 600'''\n";

/// Asks `asker` for what `doctor` has to say about `site`: the leftovers, and all problems.
fn about(site: &Site, asker: &Site) -> (Vec<Value>, Vec<Value>) {
    let ran = asker.locald("doctor --json").run();
    let exit = ran.exit();
    let found = ran.json();
    let problems = found["problems"].as_array().expect("a list");
    assert_eq!((found["ok"].as_bool(), exit), (Some(problems.is_empty()), Some(i32::from(!problems.is_empty()))));
    let root = site.root();
    let root = root.to_str().expect("text");
    let ours = |list: &Value| -> Vec<Value> {
        list.as_array().expect("a list").iter().filter(|one| one.to_string().contains(root)).cloned().collect()
    };
    (ours(&found["leftovers"]), ours(&found["problems"]))
}

/// The only leftover of a site, which must be of this kind.
fn only(site: &Site, asker: &Site, kind: &str) -> Value {
    let (mut leftovers, problems) = about(site, asker);
    assert_eq!(leftovers.len(), 1, "{leftovers:?}");
    let leftover = leftovers.remove(0);
    assert_eq!(leftover["kind"], kind, "{leftover}");
    assert!(problems.iter().any(|problem| problem["fix"] == leftover["fix"]), "{problems:?}");
    leftover
}

fn assert_nothing_about(site: &Site, asker: &Site) {
    assert_eq!(about(site, asker), (vec![], vec![]));
}

/// Does what a person would who believes `doctor`.
fn follow(site: &Site, leftover: &Value) {
    let program = Path::new(env!("CARGO_BIN_EXE_locald")).parent().expect("a directory");
    let path = format!("{}:/usr/bin:/bin", program.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", leftover["fix"].as_str().expect("a command")]);
    shell.env_clear().env("PATH", path).env("HOME", site.root()).env("LOCALD_HOME", site.home());
    let output = shell.output().expect("sh");
    assert!(output.status.success(), "{leftover}: {}", String::from_utf8_lossy(&output.stderr));
}

fn pids(leftover: &Value) -> Vec<i64> {
    let processes = leftover["processes"].as_array().expect("a list");
    processes.iter().map(|process| process["pid"].as_i64().expect("a pid")).collect()
}

fn end(site: &Site, process: ProcessId) {
    send(process, Signal::SIGKILL);
    site.await_end(process);
}

#[test]
fn a_healthy_home_has_no_problem() {
    let site = Site::new(DEAF);
    assert_nothing_about(&site, &site);
    site.up();
    assert_nothing_about(&site, &site);
    let ran = site.locald("doctor").run();
    let daemon = format!("pid {}, locald {}", site.daemon().pid, env!("CARGO_PKG_VERSION"));
    ran.says("Containment").says("supervised").says(&daemon);
    site.down();
    assert_nothing_about(&site, &site);
}

#[test]
fn a_run_whose_records_are_gone_is_named_and_not_killed() {
    let site = Site::new(DEAF);
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    end(&site, daemon);
    end(&site, shim);
    std::fs::remove_dir_all(site.home().join("projects")).expect("removes");

    let (leftovers, _) = about(&site, &site);
    let kinds: Vec<&Value> = leftovers.iter().map(|leftover| &leftover["kind"]).collect();
    assert_eq!(kinds, ["run_without_record", "sockets"], "{leftovers:?}");
    let (run, sockets) = (&leftovers[0], &leftovers[1]);
    assert_eq!((&run["service"], &run["home"]), (&"shop:web".into(), &site.home().to_str().into()));
    assert_eq!((pids(run), &run["fix"]), (vec![web.pid.into()], &format!("kill {}", web.pid).into()));
    assert_eq!(run["processes"][0]["command"], "sleep 600");
    assert_eq!(run["processes"][0]["dir"], site.project().to_str().expect("text"));
    assert_eq!(sockets["files"].as_array().map(Vec::len), Some(2), "{sockets}");
    let ran = site.locald("doctor").run().code(1);
    ran.says(&format!("pid {} (sleep 600)", web.pid)).says(&format!("fix: kill {}\n", web.pid));
    site.locald("doctor --quiet").run().code(1).says(&format!("kill {}\n", web.pid));
    assert!(web.is_alive());
    assert!(site.daemons().is_empty(), "doctor started a daemon");

    follow(&site, run);
    site.await_end(web);
    follow(&site, sockets);
    assert_nothing_about(&site, &site);
    // The next daemon takes away the run's cgroup.
    site.locald("daemon start").run().ok();
}

#[test]
fn the_supervised_run_of_another_home_is_no_problem() {
    let (site, other) = (Site::new(DEAF), Site::new(DEAF));
    other.up();
    assert_nothing_about(&other, &site);
    other.locald("daemon stop").run().ok();
    assert_nothing_about(&other, &site);
    let found: Value = site.locald("doctor --json").run().json();
    assert!(found["supervised"]["without_daemon"].as_u64() > Some(0), "{found}");
}

#[test]
fn a_run_without_shim_and_daemon_is_taken_over_by_the_command_that_doctor_names() {
    let (site, other) = (Site::new(DEAF), Site::new(DEAF));
    other.up();
    let (shim, web) = (other.recorded("web", "shim", "shim"), other.leader("web"));
    other.locald("daemon stop").run().ok();
    end(&other, shim);
    let (leftovers, _) = about(&other, &site);
    assert_eq!((&leftovers[0]["kind"], pids(&leftovers[0])), (&"run_without_shim".into(), vec![web.pid.into()]));
    follow(&site, &leftovers[0]);
    assert_eq!(other.daemons().len(), 1);
    assert!(site.daemons().is_empty() && web.is_alive());
    // The daemon sees to the socket of the dead shim when the run is over.
    assert_nothing_about(&other, &site);
    other.down();
    assert!(!web.is_alive());
}

#[test]
fn a_leader_that_cleared_its_environment_is_found_by_its_record() {
    let site = Site::new("[services.web]\ncommand = '''trap \"\" HUP; exec env -i sleep 600'''\n");
    site.up();
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    site.locald("daemon stop").run().ok();
    assert_nothing_about(&site, &site);
    end(&site, shim);
    let (leftovers, _) = about(&site, &site);
    let found: Vec<_> = leftovers.iter().map(|leftover| (leftover["kind"].as_str(), pids(leftover))).collect();
    assert_eq!(found, [(Some("run_without_shim"), vec![web.pid.into()]), (Some("sockets"), vec![])]);
    follow(&site, &leftovers[0]);
    site.down();
    assert!(!web.is_alive());
}

#[test]
#[cfg(target_os = "linux")]
fn what_hides_is_found_when_leader_shim_and_daemon_are_dead() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"\nsleep 600'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    for process in [daemon, shim, web] {
        end(&site, process);
    }
    site.locald("status").run().ok().says("unknown");
    let (leftovers, _) = about(&site, &site);
    let found: Vec<_> = leftovers.iter().map(|leftover| (leftover["kind"].as_str(), pids(leftover))).collect();
    assert!(found.contains(&(Some("run_without_shim"), vec![child.pid.into()])), "{found:?}");
    // Nothing leads to it any more but the limit that it has inherited.
    for record in ["shim", "pid"] {
        std::fs::remove_file(site.service_dir("web").join(record)).expect("removes");
    }
    let found = site.locald("doctor --json").run().json();
    let is_ours = |one: &&Value| pids(one) == [i64::from(child.pid)];
    let left = found["leftovers"].as_array().expect("a list").iter().find(is_ours).expect("found").clone();
    assert_eq!(left["kind"], "run_without_record", "{left}");
    follow(&site, &left);
    site.eventually("it to end", || (!child.is_alive()).then_some(()));
    // It clears the cgroup away that no record names.
    site.locald("daemon start").run().ok();
}

#[test]
fn a_record_of_a_run_that_died_with_its_shim_is_cleared_by_the_command_that_doctor_names() {
    let site = Site::new(DEAF);
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    for process in [daemon, shim, web] {
        end(&site, process);
    }
    let (leftovers, _) = about(&site, &site);
    let record = leftovers.iter().find(|leftover| leftover["kind"] == "records").expect("a record");
    assert_eq!(record["files"][0], site.service_dir("web").join("shim").to_str().expect("text"));
    follow(&site, record);
    site.eventually("the record to be cleared", || (!site.service_dir("web").join("shim").exists()).then_some(()));
    assert_nothing_about(&site, &site);
}

#[test]
fn a_shim_whose_home_is_gone_is_named_and_ends_its_service() {
    let site = Site::new(DEAF);
    let asker = Site::new(DEAF);
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    end(&site, daemon);
    std::fs::remove_dir_all(site.home()).expect("removes");
    let leftover = only(&site, &asker, "shim");
    assert_eq!((pids(&leftover), &leftover["service"]), (vec![shim.pid.into()], &"shop:web".into()));
    assert!(shim.is_alive() && web.is_alive());
    follow(&asker, &leftover);
    site.await_end(web);
    site.await_end(shim);
    assert_nothing_about(&site, &asker);
}

#[test]
fn a_daemon_whose_home_is_gone_is_named() {
    let site = Site::new(DEAF);
    let asker = Site::new(DEAF);
    site.locald("daemon start").run().ok();
    let daemon = site.daemon();
    std::fs::remove_dir_all(site.home()).expect("removes");
    // A daemon that has just been started may still make it.
    let leftover = site.eventually("the daemon to be named", || about(&site, &asker).0.pop());
    assert_eq!((&leftover["kind"], pids(&leftover)), (&"daemon".into(), vec![daemon.pid.into()]));
    assert!(daemon.is_alive());
    follow(&asker, &leftover);
    site.await_end(daemon);
    assert_nothing_about(&site, &asker);
}

#[test]
fn a_directory_open_to_others_is_closed_by_the_command_that_doctor_names() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new(DEAF);
    let run = site.home().join("run");
    std::fs::create_dir_all(&run).expect("a directory");
    let open = |dir: &PathBuf| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).expect("a mode");
    open(&run);
    let (leftovers, problems) = about(&site, &site);
    assert_eq!((leftovers.len(), problems.len()), (0, 1), "{problems:?}");
    follow(&site, &problems[0]);
    assert_nothing_about(&site, &site);
    site.up();
}
