//! How this home stands: its directories, its daemon, the programs beside this one.

use std::path::{Path, PathBuf};

use locald_utils::process::ProcessState;
use locald_utils::process::features::{FileSystem, Medium};

use super::facts::{Condition, DaemonFacts, Directories, Directory, Facts, Program, ProgramCondition};
use super::shell::{quoted, word};
use super::{Line, Problem};
use crate::view::bytes;

/// 100 MB: a busy service writes its whole log of some ten megabytes several times before anybody looks.
const LOW_DISK: u64 = 100 << 20;

pub(super) fn home(facts: &Facts, problems: &mut Vec<Problem>) -> Vec<Line> {
    let found = &facts.home;
    let mut lines = Vec::new();
    match &found.directories {
        Ok(Directories { state, runtime }) => {
            lines.push(directory("state", state, true, problems));
            lines.push(directory("sockets", runtime, false, problems));
        }
        Err(why) => {
            let problem = Problem::new("this home cannot be used", why, "export LOCALD_HOME=\"$HOME/.locald\"");
            lines.push(Line::of("directories", why.clone(), Some(problem), problems));
        }
    }
    lines.push(daemon(facts, problems));
    lines.extend(found.programs.iter().map(|found| program(found, facts.version, problems)));
    lines
}

fn directory(name: &'static str, dir: &Directory, is_state: bool, problems: &mut Vec<Problem>) -> Line {
    let path = dir.path.display().to_string();
    let elsewhere = "export LOCALD_HOME=\"/var/tmp/locald-$(id -u)\"";
    let problem = match &dir.condition {
        Condition::Absent | Condition::Fine { .. } => None,
        Condition::Unwritable { dir } => {
            Some(("nothing can be written to", format!("{} does not take it", dir.display()), elsewhere.to_owned()))
        }
        Condition::Link { target } => {
            let fix = if is_state {
                format!("export LOCALD_HOME={}", word(target))
            } else {
                format!("rm {}", word(&dir.path))
            };
            Some(("a symlink lies at", "whoever can change it could pose as the daemon".to_owned(), fix))
        }
        Condition::Other => {
            let fix = format!("mv {} {}", word(&dir.path), word(&with_suffix(&dir.path, ".old")));
            Some(("no directory is", "something else has its name".to_owned(), fix))
        }
        Condition::Foreign { owner } => {
            // What lies among the sockets is worth nothing, and may be somebody's trap.
            let fix = if is_state {
                format!("sudo chown -R \"$(id -u)\" {}", word(&dir.path))
            } else {
                format!("sudo rm -r {}", word(&dir.path))
            };
            Some(("somebody else owns", format!("it belongs to user {owner}"), fix))
        }
        Condition::Open { dir, mode } => {
            let why = format!("its mode is {mode:03o}, and whoever can write to it could pose as the daemon");
            Some(("other users can write to", why, format!("chmod 700 {}", word(dir))))
        }
        Condition::Unreadable { why } => Some(("it cannot be told what is", why.clone(), elsewhere.to_owned())),
    };
    if let Some((what, why, fix)) = problem {
        return Line::of(name, path.clone(), Some(Problem::new(format!("{what} {path}"), why, fix)), problems);
    }
    let mut text = match &dir.condition {
        Condition::Fine { mode } => format!("{path}, mode {mode:03o}"),
        _ => format!("{path}, made when it is needed"),
    };
    let Some(FileSystem { medium, free_bytes, root }) = &dir.file_system else { return Line::ok(name, text) };
    let (medium, free_bytes) = (*medium, *free_bytes);
    if free_bytes < LOW_DISK {
        let why = "records and logs can soon not be written; this shows what takes the space";
        let fix = format!("sudo du -xh {} | sort -h | tail -n 20", word(root));
        let what = format!("only {} are free for {path}", bytes(free_bytes));
        return Line::of(name, text, Some(Problem::new(what, why, fix)), problems);
    }
    if !is_state {
        return Line::ok(name, text);
    }
    text.push_str(&format!(", {} free", bytes(free_bytes)));
    match medium {
        Medium::Local => Line::ok(name, text),
        Medium::Memory => Line::note(name, format!("{text}, in memory: gone with the next restart of the machine")),
        Medium::Network => {
            let why = "databases and locks are not safe there, and another machine may use it at the same time";
            let problem = Problem::new(format!("{path} is on a network file system"), why, elsewhere);
            Line::of(name, text, Some(problem), problems)
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn daemon(facts: &Facts, problems: &mut Vec<Problem>) -> Line {
    const NAME: &str = "daemon";
    let traces = &facts.traces;
    match &facts.home.daemon {
        DaemonFacts::Runs { pid, version } => {
            let problem = (version != facts.version).then(|| {
                let why = format!("this program is locald {}; services run on meanwhile", facts.version);
                Problem::new(
                    format!("the daemon is locald {version}"),
                    why,
                    "locald daemon stop && locald daemon start",
                )
            });
            Line::of(NAME, format!("pid {pid}, locald {version}"), problem, problems)
        }
        DaemonFacts::Trouble { why } => {
            let process = traces.daemons.iter().find(|daemon| daemon.home == Some(0)).map(|daemon| &daemon.process);
            let fix = match process {
                Some(process) if process.state == ProcessState::Stopped => format!("kill -CONT {}", process.id.pid),
                Some(process) => format!("kill -9 {}", process.id.pid),
                // Nobody of ours, or out of sight: the next daemon finds the place free.
                None => {
                    format!("rm {}", traces.homes.first().map_or(String::new(), |own| word(&own.home.daemon_socket())))
                }
            };
            let problem = Problem::new("the daemon does not answer", format!("{why}; services run on without it"), fix);
            Line::of(NAME, why.clone(), Some(problem), problems)
        }
        DaemonFacts::None => {
            // One of the same state whose sockets lie elsewhere keeps every other from starting.
            let own = traces.homes.first();
            let twin = own.and_then(|own| {
                let mut others = traces.homes.iter().skip(1).filter(|other| other.has_daemon);
                others.find(|other| other.home.state() == own.home.state())
            });
            let Some(twin) = twin else {
                return Line::ok(NAME, "none runs; verbs that need one start it".to_owned());
            };
            let sockets = twin.home.runtime().display();
            let fix = match twin.variables.get("XDG_RUNTIME_DIR") {
                Some(dir) => format!("export XDG_RUNTIME_DIR={}", quoted(dir)),
                None => "unset XDG_RUNTIME_DIR".to_owned(),
            };
            let why = "it was started with another XDG_RUNTIME_DIR, and a state has one daemon only";
            let problem = Problem::new(format!("the daemon of this home listens elsewhere, in {sockets}"), why, fix);
            Line::of(NAME, format!("listens in {sockets}"), Some(problem), problems)
        }
    }
}

fn program(program: &Program, own: &str, problems: &mut Vec<Problem>) -> Line {
    let path = program.path.display();
    let install = "cargo install --path .";
    let why = "the programs of locald belong together; this is for its source directory";
    let (text, problem) = match &program.condition {
        ProgramCondition::Version(version) if version == own => (format!("{path}, locald {version}"), None),
        ProgramCondition::Version(version) => {
            let what = format!("{path} is of locald {version}, this program of {own}");
            (format!("{path}, locald {version}"), Some(Problem::new(what, why, install)))
        }
        ProgramCondition::Missing => {
            (format!("{path} is missing"), Some(Problem::new(format!("{path} is missing"), why, install)))
        }
        ProgramCondition::NotExecutable => {
            let what = format!("{path} is not executable");
            let fix = format!("chmod +x {}", word(&program.path));
            (what.clone(), Some(Problem::new(what, "without it nothing can be started", fix)))
        }
        ProgramCondition::Mute { why: silence } => {
            let what = format!("{path} does not say which version it is");
            (what.clone(), Some(Problem::new(what, silence, install)))
        }
    };
    Line::of(program.name, text, problem, problems)
}
