//! What the machine offers, and which of its limits are too low.

use locald_utils::process::features::{Feature, Limit, Limits, Logout, Machine, Presence, Unit};

use super::facts::Facts;
use super::shell::quoted;
use super::{Line, Offer, Problem};

/// 256: what macOS gives a login. A daemon holds some four descriptors for each run.
const LOW_OPEN_FILES: u64 = 256;

/// 256: an editor, a browser and a desktop have that many, threads included.
const LOW_PROCESSES: u64 = 256;

/// A limit that is enough for a machine full of services, where one has to be raised.
const ENOUGH: u64 = 4096;

/// 16 and 1024: an editor and a file manager use more than half of either.
const LOW_INOTIFY: (u64, u64) = (16, 1024);

pub(super) fn containment(machine: &Machine, problems: &mut Vec<Problem>) -> Vec<Offer> {
    let offer = |(feature, presence): &(Feature, Presence)| {
        let (name, gives, without) = meaning(*feature);
        if let (Feature::ProcessTable, Err(why)) = (feature, presence) {
            problems.push(Problem::new("the process table cannot be read", why, "sudo mount -t proc proc /proc"));
        }
        Offer { name, presence: presence.clone(), gives, without }
    };
    machine.features.iter().map(offer).collect()
}

/// The name of a feature, what it gives, and how locald does without it.
fn meaning(feature: Feature) -> (&'static str, &'static str, &'static str) {
    match feature {
        Feature::ProcessTable => {
            ("process table", "shows who runs and whose child it is", "no run can be looked after")
        }
        Feature::OtherUsers => (
            "other users",
            "members that changed their user are seen, and who holds a port",
            "a member that changes its user is not seen, and a port's holder has no name",
        ),
        Feature::ChildrenList => {
            ("children", "the children of a process are listed", "children are looked up in the whole table")
        }
        Feature::Subreaper => (
            "subreaper",
            "orphans of a run come to its shim, so no children left means nobody left",
            "orphans are found by group, session and marker",
        ),
        Feature::UniqueIds => {
            ("unique ids", "descent is known although parents have gone", "descent is known as long as parents live")
        }
        Feature::Pidfd => (
            "pidfd",
            "a signal reaches the process that is meant and no other, and its end is an event",
            "start times are checked right before each signal",
        ),
        Feature::PidfdGroup => (
            "pidfd of groups",
            "the same for a process group",
            "a group is signalled by its number, which its leader keeps from being reused",
        ),
        Feature::ExitEvent => (
            "exit events",
            "the end of a process that is no child is an event",
            "such a process is looked at once a second",
        ),
        Feature::CgroupLeaf => (
            "cgroup",
            "a run can have a cgroup of its own, which no process of it leaves",
            "members are found by descent, group, session and marker",
        ),
        Feature::CgroupKill => (
            "cgroup.kill",
            "a cgroup is killed at once, however fast it forks",
            "members are killed in rounds, until a round finds none",
        ),
        Feature::LimitMarker => (
            "limit as a marker",
            "a process that clears its environment can still be told by a limit it inherits",
            "a process that clears its environment is found by descent, group and session",
        ),
        Feature::CloseRange => {
            ("close_range", "a new program's descriptors are closed in one call", "descriptors are closed one by one")
        }
    }
}

pub(super) fn limits(facts: &Facts, problems: &mut Vec<Problem>) -> Vec<Line> {
    let Limits { pid_max, open_files, processes, inotify } = facts.machine.limits;
    let is_linux = facts.machine.kernel.starts_with("Linux");
    let mut lines = Vec::new();
    if let Some(max) = pid_max {
        lines.push(Line::ok("process numbers", format!("below {max}")));
    }
    if let Some(limit) = open_files {
        let problem = too_low(limit, LOW_OPEN_FILES).map(|soft| {
            let fix = raised(limit, "-n", "nofile", is_linux);
            let why = "services inherit it; raised here, it holds for the daemon that this shell starts next";
            Problem::new(format!("a process may open only {soft} files"), why, fix)
        });
        lines.push(Line::of("open files", shown(limit), problem, problems));
    }
    if let Some(limit) = processes {
        // Nothing is counted against the superuser (getrlimit(2)).
        let problem = too_low(limit, LOW_PROCESSES).filter(|_| facts.user != "root").map(|soft| {
            let fix = raised(limit, "-u", "nproc", is_linux);
            Problem::new(format!("you may have only {soft} processes"), "threads of all programs count", fix)
        });
        lines.push(Line::of("processes", shown(limit), problem, problems));
    }
    if let Some(inotify) = inotify {
        let text = format!("{} instances, {} watches", inotify.instances, inotify.watches);
        let is_low = inotify.instances < LOW_INOTIFY.0 || inotify.watches < LOW_INOTIFY.1;
        let problem = is_low.then(|| {
            let fix = "sudo sysctl -w fs.inotify.max_user_instances=128 fs.inotify.max_user_watches=65536";
            Problem::new("few files can be watched", format!("{text}; `locald logs -f` and editors share them"), fix)
        });
        lines.push(Line::of("inotify", text, problem, problems));
    }
    if let Some(logout) = &facts.machine.logout {
        lines.push(at_logout(logout, &facts.user, problems));
    }
    lines
}

fn too_low(limit: Limit, low: u64) -> Option<u64> {
    limit.soft.filter(|soft| *soft < low)
}

fn shown(limit: Limit) -> String {
    let number = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
    if limit.soft == limit.hard {
        return number(limit.soft);
    }
    format!("{}, may be raised to {}", number(limit.soft), number(limit.hard))
}

/// The command that raises a limit for a shell and what it starts.
fn raised(limit: Limit, flag: &str, name: &str, is_linux: bool) -> String {
    match limit.hard {
        Some(hard) if hard < ENOUGH && is_linux => format!("sudo prlimit --pid $$ --{name}={ENOUGH}:{ENOUGH}"),
        Some(hard) if hard < ENOUGH => format!("ulimit {flag} {hard}"),
        Some(_) | None => format!("ulimit {flag} {ENOUGH}"),
    }
}

fn at_logout(logout: &Logout, user: &str, problems: &mut Vec<Problem>) -> Line {
    const NAME: &str = "logging out";
    match (logout.unit, logout.kills, logout.lingers) {
        (Unit::Session, Some(true), _) => {
            let why =
                "KillUserProcesses is on in logind.conf, and a daemon that is started here belongs to this session";
            let dir = "/etc/systemd/logind.conf.d";
            let text = quoted(&format!("[Login]\\nKillExcludeUsers=root {user}\\n"));
            let fix = format!(
                "sudo mkdir -p {dir} && printf {text} | sudo tee {dir}/locald.conf && sudo systemctl reload systemd-logind"
            );
            let problem = Problem::new("services end when you log out", why, fix);
            Line::of(NAME, "ends services".to_owned(), Some(problem), problems)
        }
        (Unit::UserManager, _, false) => Line::note(
            NAME,
            "ends services that are started here; `loginctl enable-linger` lets them run on".to_owned(),
        ),
        (Unit::Session, Some(false) | None, _) | (Unit::UserManager, _, true) | (Unit::Neither, _, _) => {
            Line::ok(NAME, "ends no service".to_owned())
        }
    }
}
