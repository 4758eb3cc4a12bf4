//! Facts in, report out, and both ways of showing it.

use locald_utils::name::{ProjectId, RunId, RunNumber};
use std::path::{Path, PathBuf};
use std::time::Duration;

use locald_utils::paths::Home;
use locald_utils::process::features::{Feature, FileSystem, Inotify, Limit, Limits, Logout, Machine, Medium, Unit};
use locald_utils::process::{ProcessId, ProcessState};
use locald_utils::record::RunRef;

use super::shell::{in_home, quoted};
use super::*;
use crate::render::{human as text, json};
use crate::screen::Paint;
use crate::testing::name;

const WEB: &str = "00000000000000aa";
const DB: &str = "00000000000000bb";

fn machine() -> Machine {
    let same = |value| Some(Limit { soft: Some(value), hard: Some(value) });
    Machine {
        kernel: "Linux 6.9.0".into(),
        features: vec![
            (Feature::ProcessTable, Ok("/proc".into())),
            (Feature::Subreaper, Ok("PR_SET_CHILD_SUBREAPER".into())),
            (Feature::CgroupLeaf, Err("/sys/fs/cgroup/a.scope belongs to somebody else".into())),
        ],
        limits: Limits {
            pid_max: Some(4_194_304),
            open_files: Some(Limit { soft: Some(1024), hard: None }),
            processes: same(30_000),
            inotify: Some(Inotify { instances: 128, watches: 65_536 }),
        },
        logout: None,
    }
}

fn fine(path: &str) -> Directory {
    let file_system = Some(FileSystem { medium: Medium::Local, free_bytes: 12 << 30, root: "/home".into() });
    Directory { path: path.into(), condition: Condition::Fine { mode: 0o700 }, file_system }
}

fn variables(set: &[(&'static str, &str)]) -> Variables {
    set.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// A healthy machine with a home and its daemon, and nothing that runs.
fn facts() -> Facts {
    let program = |name: &'static str| Program {
        name,
        path: Path::new("/opt/bin").join(name),
        condition: ProgramCondition::Version("0.1.0".into()),
    };
    Facts {
        version: "0.1.0",
        user: "ann".into(),
        machine: machine(),
        home: HomeFacts {
            variables: variables(&[("LOCALD_HOME", "/h")]),
            directories: Ok(Directories { state: fine("/h"), runtime: fine("/h/run") }),
            daemon: DaemonFacts::Runs { pid: 812, version: "0.1.0".into() },
            programs: vec![program("locald-server"), program("locald-shim")],
        },
        traces: Traces { homes: vec![home("/h", true)], ..Traces::default() },
    }
}

fn home(dir: &'static str, has_daemon: bool) -> TracedHome {
    TracedHome {
        home: Home::under(Path::new(dir)),
        variables: variables(&[("LOCALD_HOME", dir)]),
        exists: true,
        has_daemon,
        dead_sockets: Vec::new(),
    }
}

fn described(pid: i32, command: &str) -> Described {
    Described {
        id: ProcessId { pid, start: 1 },
        state: ProcessState::Live,
        command: command.to_owned(),
        directory: Some("/work/shop".into()),
        age: Some(Duration::from_secs(200)),
    }
}

fn member(pid: i32, run: &str, home: usize) -> Member {
    let process = described(pid, "sleep 600");
    Member { process, run: run.to_owned(), service: Some("shop:web".into()), home: Some(home) }
}

fn run(id: &str) -> RunRef {
    RunRef {
        project: ProjectId::from_recorded("0123456789ab"),
        project_name: "shop".parse().expect("a valid name"),
        service: name("web"),
        number: RunNumber(7),
        id: serde_json::from_value::<RunId>(id.into()).expect("an id"),
    }
}

fn record(id: &str, home: usize, has_shim: bool) -> Record {
    let file = PathBuf::from("/h/projects/shop-0123456789ab/services/web/shim");
    Record { run: run(id), file, home: Some(home), is_of_this_boot: true, has_shim }
}

fn shim(id: &str, is_recorded: bool, has_children: bool) -> Shim {
    Shim {
        process: described(700, "/opt/bin/locald-shim run {}"),
        run: run(id),
        service_dir: "/h/projects/shop-0123456789ab/services/web".into(),
        is_recorded,
        has_children,
    }
}

/// What is left over: of what kind, and the command that ends it.
fn left(traces: Traces) -> Vec<(LeftoverKind, String)> {
    let report = diagnose(&Facts { traces, ..facts() });
    assert_eq!(report.problems.len(), report.leftovers.len(), "{report:?}");
    report.leftovers.into_iter().map(|leftover| (leftover.kind, leftover.problem.fix)).collect()
}

/// The problems of a report, the command of each.
fn fixes(facts: &Facts) -> Vec<String> {
    diagnose(facts).problems.into_iter().map(|problem| problem.fix).collect()
}

#[test]
fn a_healthy_machine_is_told_in_full_and_has_no_problem() {
    let facts = facts();
    let report = diagnose(&facts);
    assert_eq!(
        text::doctor(&facts, &report, Paint(false)),
        "\
locald 0.1.0 on Linux 6.9.0

Containment
  ok       process table  shows who runs and whose child it is (/proc)
  ok       subreaper      orphans of a run come to its shim, so no children left means nobody left (PR_SET_CHILD_SUBREAPER)
  missing  cgroup         /sys/fs/cgroup/a.scope belongs to somebody else; without: members are found by descent, group, session and marker

Limits
  ok  process numbers  below 4194304
  ok  open files       1024, may be raised to unlimited
  ok  processes        30000
  ok  inotify          128 instances, 65536 watches

Home
  ok  state          /h, mode 700, 12.0 GB free
  ok  sockets        /h/run, mode 700
  ok  daemon         pid 812, locald 0.1.0
  ok  locald-server  /opt/bin/locald-server, locald 0.1.0
  ok  locald-shim    /opt/bin/locald-shim, locald 0.1.0

Leftovers
  ok  runs  0 supervised

no problems
"
    );
}

#[test]
fn a_problem_is_told_with_its_reason_and_the_command_that_ends_it() {
    let mut facts = facts();
    facts.home.daemon = DaemonFacts::Runs { pid: 812, version: "0.0.9".into() };
    facts.traces.members = vec![member(900, WEB, 0), member(901, WEB, 0), member(902, DB, 0)];
    facts.traces.members[1].process.command = "sh -c \x1b[31mred".into();
    facts.traces.records = vec![record(DB, 0, true)];
    let report = diagnose(&facts);
    let shown = text::doctor(&facts, &report, Paint(false));
    let (_, end) = shown.split_once("\nHome\n").expect("a section");
    assert_eq!(
        format!("Home\n{end}"),
        "\
Home
  ok       state          /h, mode 700, 12.0 GB free
  ok       sockets        /h/run, mode 700
  problem  daemon         pid 812, locald 0.0.9
  ok       locald-server  /opt/bin/locald-server, locald 0.1.0
  ok       locald-shim    /opt/bin/locald-shim, locald 0.1.0

Leftovers
  ok       runs  1 supervised
  problem  run   2 processes of shop:web left over from a run without a record

2 problems

the daemon is locald 0.0.9
  this program is locald 0.1.0; services run on meanwhile
  fix: locald daemon stop && locald daemon start

2 processes of shop:web left over from a run without a record
  /h has no record of it, so nobody will end it: pid 900 (sleep 600), 3m 20s old, in /work/shop; \
pid 901 (sh -c  [31mred), 3m 20s old, in /work/shop
  fix: kill 900 901
"
    );
}

#[test]
fn as_json_everything_is_one_object() {
    let mut facts = facts();
    facts.machine.features.truncate(1);
    facts.home.programs.truncate(1);
    facts.traces.members = vec![member(900, WEB, 0)];
    let report = diagnose(&facts);
    let value: serde_json::Value = serde_json::from_str(&json::doctor(&facts, &report)).expect("one object");
    let what = "1 process of shop:web left over from a run without a record";
    let why = "/h has no record of it, so nobody will end it: pid 900 (sleep 600), 3m 20s old, in /work/shop";
    assert_eq!(
        value,
        serde_json::json!({
            "schema": 1, "verb": "doctor", "ok": false, "version": "0.1.0",
            "machine": {
                "kernel": "Linux 6.9.0", "pid_max": 4_194_304, "open_files": 1024, "processes": 30_000,
                "inotify_instances": 128, "inotify_watches": 65_536,
            },
            "containment": [{
                "name": "process table", "there": true, "detail": "/proc",
                "gives": "shows who runs and whose child it is", "without": "no run can be looked after",
            }],
            "home": {
                "state": "/h", "sockets": "/h/run", "free_bytes": 12_884_901_888_u64,
                "daemon": { "pid": 812, "version": "0.1.0" },
                "programs": [{ "path": "/opt/bin/locald-server", "version": "0.1.0" }],
            },
            "supervised": { "runs": 0, "without_daemon": 0 },
            "leftovers": [{
                "kind": "run_without_record", "service": "shop:web", "run": WEB, "home": "/h",
                "processes": [{ "pid": 900, "command": "sleep 600", "dir": "/work/shop", "age_ms": 200_000 }],
                "files": [], "what": what, "why": why, "fix": "kill 900",
            }],
            "problems": [{ "what": what, "why": why, "fix": "kill 900" }],
        })
    );
}

#[test]
fn a_run_that_somebody_looks_after_is_no_problem_whosever_home_it_is() {
    for (has_shim, has_daemon, without_daemon) in [(true, true, 0), (true, false, 1), (false, true, 0)] {
        for home_of_run in [0, 1] {
            let traces = Traces {
                homes: vec![home("/h", has_daemon), home("/other", has_daemon)],
                // Its environment names the first home, whatever home its records are in.
                members: vec![member(900, WEB, 0), member(901, WEB, 0)],
                records: vec![record(WEB, home_of_run, has_shim)],
                ..Traces::default()
            };
            let report = diagnose(&Facts { traces, ..facts() });
            assert_eq!(report.supervised, Supervised { runs: 1, without_daemon });
            assert!(report.problems.is_empty(), "{:?}", report.problems);
        }
    }
}

#[test]
fn a_run_whose_shim_is_gone_is_taken_over_by_a_daemon_of_its_own_home() {
    for (home_of_run, fix) in [(0, "locald daemon start"), (1, "LOCALD_HOME='/my home' locald daemon start")] {
        let traces = Traces {
            homes: vec![home("/h", false), home("/my home", false)],
            members: vec![member(900, WEB, home_of_run)],
            records: vec![record(WEB, home_of_run, false)],
            ..Traces::default()
        };
        assert_eq!(left(traces), [(LeftoverKind::RunWithoutShim, fix.to_owned())]);
    }
}

#[test]
fn what_no_record_leads_to_is_ended_by_its_numbers_and_a_stopped_process_hears_only_sigkill() {
    let traces = |state, exists| {
        let mut traces =
            Traces { homes: vec![home("/h", true)], members: vec![member(900, WEB, 0)], ..Traces::default() };
        traces.members.push(Member { process: Described { state, ..described(901, "x") }, ..member(901, WEB, 0) });
        traces.homes[0].exists = exists;
        traces
    };
    let fix = |fix: &str| fix.to_owned();
    assert_eq!(left(traces(ProcessState::Live, true)), [(LeftoverKind::RunWithoutRecord, fix("kill 900 901"))]);
    assert_eq!(left(traces(ProcessState::Stopped, true)), [(LeftoverKind::RunWithoutRecord, fix("kill -9 900 901"))]);
    assert_eq!(left(traces(ProcessState::Live, false)), [(LeftoverKind::RunWithoutHome, fix("kill 900 901"))]);
}

#[test]
fn a_record_of_an_earlier_boot_does_not_vouch_for_a_run() {
    let stale = Record { is_of_this_boot: false, ..record(WEB, 0, false) };
    let traces = Traces {
        homes: vec![home("/h", true)],
        members: vec![member(900, WEB, 0)],
        records: vec![stale],
        ..Traces::default()
    };
    assert_eq!(left(traces), [(LeftoverKind::RunWithoutRecord, "kill 900".to_owned())]);
}

#[test]
fn a_shim_without_a_record_is_left_over_once_its_run_lives() {
    let traces = |is_recorded, has_children| Traces {
        homes: vec![home("/h", true)],
        members: vec![member(900, WEB, 0)],
        shims: vec![shim(WEB, is_recorded, has_children)],
        records: if is_recorded { vec![record(WEB, 0, true)] } else { Vec::new() },
        ..Traces::default()
    };
    assert_eq!(left(traces(false, true)), [(LeftoverKind::Shim, "kill 700".to_owned())], "its run is not told twice");
    // One that starts has not written it yet, one that leaves has taken it away.
    assert_eq!(left(traces(false, false)), []);
    assert_eq!(left(traces(true, true)), []);
}

#[test]
fn a_daemon_that_nobody_can_reach_is_left_over_unless_it_may_still_come() {
    let traces = |age_ms, exists, has_socket| {
        let mut traces = Traces { homes: vec![home("/h", false), home("/x", false)], ..Traces::default() };
        traces.homes[1].exists = exists;
        let process =
            Described { age: Some(Duration::from_millis(age_ms)), ..described(600, "/opt/bin/locald-server") };
        traces.daemons.push(Daemon { process, home: Some(1), has_socket });
        left(traces)
    };
    let is_left = [(LeftoverKind::Daemon, "kill 600".to_owned())];
    assert_eq!(traces(2_000, false, false), is_left);
    assert_eq!(traces(11_000, true, false), is_left);
    assert_eq!(traces(500, false, false), []);
    assert_eq!(traces(9_000, true, false), []);
    assert_eq!(traces(99_000, true, true), []);
}

#[test]
fn records_of_runs_that_are_over_wait_for_a_daemon_and_not_where_one_is() {
    let traces = |has_daemon, is_of_this_boot, members| Traces {
        homes: vec![home("/h", has_daemon)],
        members,
        records: vec![Record { is_of_this_boot, ..record(WEB, 0, false) }],
        ..Traces::default()
    };
    let is_left = [(LeftoverKind::Records, "locald daemon start".to_owned())];
    assert_eq!(left(traces(false, true, Vec::new())), is_left);
    assert_eq!(left(traces(false, false, Vec::new())), is_left);
    assert_eq!(left(traces(true, false, Vec::new())), []);
    assert_eq!(left(traces(false, true, vec![member(900, WEB, 0)]))[0].0, LeftoverKind::RunWithoutShim);
}

#[test]
fn dead_sockets_of_shims_are_removed_and_that_of_a_daemon_is_replaced() {
    let traces = |sockets: &[&str], has_daemon| {
        let mut home = home("/my home", has_daemon);
        home.dead_sockets = sockets.iter().map(|name| Path::new("/my home/run").join(name)).collect();
        left(Traces { homes: vec![self::home("/h", true), home], ..Traces::default() })
    };
    let start = "LOCALD_HOME='/my home' locald daemon start".to_owned();
    assert_eq!(traces(&["daemon.sock"], false), [(LeftoverKind::Sockets, start)]);
    let remove = "rm '/my home/run/daemon.sock' '/my home/run/s/a'".to_owned();
    assert_eq!(traces(&["daemon.sock", "s/a"], false), [(LeftoverKind::Sockets, remove)]);
    assert_eq!(traces(&["s/a"], true), [], "its daemon sees to it");
}

#[test]
fn a_daemon_of_the_same_state_with_other_sockets_is_found_and_vouches_for_its_runs() {
    let of = |runtime: Option<&str>| {
        let mut set = variables(&[("HOME", "/home/ann")]);
        set.extend(runtime.map(|dir| ("XDG_RUNTIME_DIR", dir.to_owned())));
        let home = Home::from_lookup(|name| set.get(name).map(Into::into)).expect("a home");
        TracedHome { home, variables: set, exists: true, has_daemon: false, dead_sockets: Vec::new() }
    };
    for (own, theirs, fix) in [
        (of(None), of(Some("/run/user/7")), "export XDG_RUNTIME_DIR=/run/user/7"),
        (of(Some("/run/user/7")), of(None), "unset XDG_RUNTIME_DIR"),
    ] {
        let mut facts = facts();
        facts.home.variables = own.variables.clone();
        facts.home.daemon = DaemonFacts::None;
        facts.traces.homes = vec![own, TracedHome { has_daemon: true, ..theirs }];
        facts.traces.members = vec![member(900, WEB, 0)];
        facts.traces.records = vec![record(WEB, 0, false)];
        assert_eq!(fixes(&facts), [fix]);
        assert_eq!(diagnose(&facts).supervised, Supervised { runs: 1, without_daemon: 0 });
    }
}

#[test]
fn a_daemon_that_does_not_answer_is_woken_or_ended() {
    for (state, fix) in [(ProcessState::Stopped, "kill -CONT 600"), (ProcessState::Live, "kill -9 600")] {
        let mut facts = facts();
        facts.home.daemon = DaemonFacts::Trouble { why: "the daemon (pid 600) did not answer within 2.0s".into() };
        let process = Described { state, ..described(600, "/opt/bin/locald-server") };
        facts.traces.daemons.push(Daemon { process, home: Some(0), has_socket: true });
        assert_eq!(fixes(&facts), [fix]);
    }
    let mut facts = facts();
    facts.home.daemon = DaemonFacts::Trouble { why: "garbage".into() };
    assert_eq!(fixes(&facts), ["rm /h/run/daemon.sock"]);
}

#[test]
fn each_condition_of_a_directory_has_its_way_out() {
    let elsewhere = "export LOCALD_HOME=\"/var/tmp/locald-$(id -u)\"";
    let foreign = || Condition::Foreign { owner: 7 };
    let open = Condition::Open { dir: "/h h/run/s".into(), mode: 0o777 };
    for (condition, is_state, fix) in [
        (Condition::Absent, true, None),
        (Condition::Unwritable { dir: "/".into() }, true, Some(elsewhere)),
        (Condition::Link { target: "/big disk".into() }, true, Some("export LOCALD_HOME='/big disk'")),
        (Condition::Link { target: "/big disk".into() }, false, Some("rm '/h h'")),
        (Condition::Other, true, Some("mv '/h h' '/h h.old'")),
        (foreign(), true, Some("sudo chown -R \"$(id -u)\" '/h h'")),
        (foreign(), false, Some("sudo rm -r '/h h'")),
        (open, false, Some("chmod 700 '/h h/run/s'")),
        (Condition::Unreadable { why: "x".into() }, true, Some(elsewhere)),
    ] {
        let mut facts = facts();
        let directories = facts.home.directories.as_mut().expect("directories");
        let shown = format!("{condition:?}");
        let directory = Directory { condition, ..fine("/h h") };
        *(if is_state { &mut directories.state } else { &mut directories.runtime }) = directory;
        assert_eq!(fixes(&facts), fix.into_iter().collect::<Vec<_>>(), "{shown}");
    }
}

#[test]
fn a_state_on_another_machine_or_a_full_disk_is_a_problem_and_one_in_memory_is_noted() {
    let on = |medium, free_bytes| {
        let mut facts = facts();
        let file_system = Some(FileSystem { medium, free_bytes, root: "/home".into() });
        let directories = facts.home.directories.as_mut().expect("directories");
        directories.state = Directory { file_system: file_system.clone(), ..fine("/home/ann/h") };
        directories.runtime = Directory { file_system, ..fine("/home/ann/h/run") };
        let report = diagnose(&facts);
        let fixes: Vec<String> = report.problems.iter().map(|problem| problem.fix.clone()).collect();
        (report.home[0].verdict, fixes)
    };
    assert_eq!(on(Medium::Local, 1 << 30), (Verdict::Ok, vec![]));
    assert_eq!(on(Medium::Memory, 1 << 30), (Verdict::Note, vec![]));
    let (verdict, fixes) = on(Medium::Network, 1 << 30);
    assert_eq!(
        (verdict, fixes.as_slice()),
        (Verdict::Problem, &["export LOCALD_HOME=\"/var/tmp/locald-$(id -u)\"".to_owned()][..])
    );
    let (verdict, fixes) = on(Medium::Local, 1 << 20);
    assert_eq!((verdict, fixes[0].as_str()), (Verdict::Problem, "sudo du -xh /home | sort -h | tail -n 20"));
}

#[test]
fn limits_that_are_too_low_are_raised_as_far_as_their_user_may() {
    let limit = |soft, hard| Some(Limit { soft: Some(soft), hard });
    let with = |kernel: &str, change: fn(&mut Limits, Option<Limit>), value| {
        let mut facts = facts();
        facts.machine.kernel = kernel.to_owned();
        change(&mut facts.machine.limits, value);
        fixes(&facts)
    };
    let files = |limits: &mut Limits, value| limits.open_files = value;
    let processes = |limits: &mut Limits, value| limits.processes = value;
    assert_eq!(with("Linux 6", files, limit(256, Some(256))), Vec::<String>::new());
    assert_eq!(with("Linux 6", files, limit(64, None)), ["ulimit -n 4096"]);
    assert_eq!(with("Linux 6", files, limit(64, Some(128))), ["sudo prlimit --pid $$ --nofile=4096:4096"]);
    assert_eq!(with("Darwin 24", files, limit(64, Some(128))), ["ulimit -n 128"]);
    assert_eq!(with("Linux 6", processes, limit(64, Some(50_000))), ["ulimit -u 4096"]);
    let mut facts = facts();
    facts.machine.limits.processes = limit(64, Some(64));
    facts.user = "root".into();
    assert!(fixes(&facts).is_empty(), "nothing is counted against the superuser");
    facts.machine.limits.inotify = Some(Inotify { instances: 8, watches: 65_536 });
    assert_eq!(fixes(&facts).len(), 1);
}

#[test]
fn what_ends_at_logout_is_a_problem_only_where_the_session_is_killed() {
    let at = |unit, kills, lingers| {
        let mut facts = facts();
        facts.machine.logout = Some(Logout { unit, kills, lingers });
        let report = diagnose(&facts);
        (report.limits.last().expect("a line").verdict, report.problems.len())
    };
    assert_eq!(at(Unit::Session, Some(true), true), (Verdict::Problem, 1));
    assert_eq!(at(Unit::Session, Some(false), false), (Verdict::Ok, 0));
    assert_eq!(at(Unit::Session, None, false), (Verdict::Ok, 0));
    assert_eq!(at(Unit::UserManager, None, false), (Verdict::Note, 0));
    assert_eq!(at(Unit::UserManager, Some(true), true), (Verdict::Ok, 0));
    assert_eq!(at(Unit::Neither, Some(true), false), (Verdict::Ok, 0));
}

#[test]
fn programs_that_do_not_belong_together_or_cannot_run_are_told() {
    let with = |condition| {
        let mut facts = facts();
        facts.home.programs[1].condition = condition;
        fixes(&facts)
    };
    let install = ["cargo install --path ."];
    assert_eq!(with(ProgramCondition::Missing), install);
    assert_eq!(with(ProgramCondition::Version("0.2.0".into())), install);
    assert_eq!(with(ProgramCondition::Mute { why: "it answers \"x\"".into() }), install);
    assert_eq!(with(ProgramCondition::NotExecutable), ["chmod +x /opt/bin/locald-shim"]);
}

#[test]
fn without_a_process_table_and_without_a_home_there_is_still_a_report() {
    let mut facts = facts();
    facts.machine.features[0].1 = Err("no".into());
    facts.home.directories = Err("neither LOCALD_HOME nor HOME is set".into());
    facts.home.daemon = DaemonFacts::None;
    facts.traces = Traces::default();
    assert_eq!(fixes(&facts), ["sudo mount -t proc proc /proc", "export LOCALD_HOME=\"$HOME/.locald\""]);
}

#[test]
fn a_command_for_another_home_sets_what_differs_and_nothing_else() {
    let own = variables(&[("XDG_STATE_HOME", "/s"), ("HOME", "/home/ann"), ("XDG_RUNTIME_DIR", "/run/7")]);
    let to = |theirs: &[(&'static str, &str)]| in_home("go", Some(&variables(theirs)), &own);
    assert_eq!(to(&[("XDG_STATE_HOME", "/s"), ("HOME", "/else"), ("XDG_RUNTIME_DIR", "/run/7")]), "go");
    assert_eq!(to(&[("LOCALD_HOME", "/l"), ("HOME", "/else")]), "LOCALD_HOME=/l go");
    assert_eq!(to(&[("HOME", "/home/ann")]), "XDG_STATE_HOME= XDG_RUNTIME_DIR= go");
    let own = variables(&[("LOCALD_HOME", "/l"), ("HOME", "/home/ann")]);
    assert_eq!(in_home("go", Some(&variables(&[("HOME", "/home/ann")])), &own), "LOCALD_HOME= go");
    assert_eq!(in_home("go", None, &own), "go");
}

#[test]
fn a_quoted_word_is_the_same_word_to_a_shell() {
    for text in ["", "plain", "two words", "it's", "$HOME `x` \"y\" \\ ;|&*?~#!", "line\nbreak", "ü", "-9", "a=b"] {
        let script = format!("printf '%s' {}", quoted(text));
        let output = std::process::Command::new("sh").arg("-c").arg(&script).output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{script}");
    }
}
