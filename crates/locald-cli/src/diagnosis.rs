//! What `doctor` makes of what it found. Pure: facts go in, a report comes out; `survey` gathers, `render` shows.
//!
//! [`diagnose`] tells the story: containment, limits, the home, leftovers. Only what keeps locald from doing what it
//! promises, or what nobody would ever clean up, is a problem, and each problem has one command that ends it. A feature
//! that is missing is none as long as there is a way round. A run that its shim or a daemon looks after is never one,
//! whosever home it belongs to.

use std::path::PathBuf;

use locald_utils::process::features::Presence;

mod facts;
mod home;
mod leftovers;
mod machine;
pub(crate) mod shell;

pub(crate) use facts::*;

/// What there is to say.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) containment: Vec<Offer>,
    pub(crate) limits: Vec<Line>,
    pub(crate) home: Vec<Line>,
    pub(crate) supervised: Supervised,
    pub(crate) leftovers: Vec<Leftover>,
    /// All of them, those of the leftovers too.
    pub(crate) problems: Vec<Problem>,
}

/// What the machine offers, or does not.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) name: &'static str,
    pub(crate) presence: Presence,
    pub(crate) gives: &'static str,
    pub(crate) without: &'static str,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    Note,
    Problem,
}

/// One thing that was looked at.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) verdict: Verdict,
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

/// Runs that somebody looks after, in all homes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Supervised {
    pub(crate) runs: usize,
    /// Of these, the runs that have a shim and no daemon: the next one takes them over.
    pub(crate) without_daemon: usize,
}

/// Something that nobody looks after.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) kind: LeftoverKind,
    /// `project:service`.
    pub(crate) service: Option<String>,
    pub(crate) run: Option<String>,
    /// The state directory of the home it belongs to.
    pub(crate) home: Option<PathBuf>,
    pub(crate) processes: Vec<Described>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) problem: Problem,
}

/// What kind of thing nobody looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftoverKind {
    /// A run that no record of its home leads to.
    RunWithoutRecord,
    /// A run whose home does not exist any more.
    RunWithoutHome,
    /// A run whose shim is gone, and there is no daemon.
    RunWithoutShim,
    /// A shim that no record leads to.
    Shim,
    /// A daemon that nobody can reach.
    Daemon,
    /// Records of runs that are over.
    Records,
    /// Sockets at which nobody listens.
    Sockets,
}

/// Something that is wrong, and the one command that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) fix: String,
}

impl Problem {
    fn new(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), fix: fix.into() }
    }
}

/// Says what the facts mean.
pub(crate) fn diagnose(facts: &Facts) -> Report {
    let mut problems = Vec::new();
    let containment = machine::containment(&facts.machine, &mut problems);
    let limits = machine::limits(facts, &mut problems);
    let home = home::home(facts, &mut problems);
    let (supervised, leftovers) = leftovers::leftovers(&facts.traces, &facts.home.variables);
    problems.extend(leftovers.iter().map(|leftover| leftover.problem.clone()));
    Report { containment, limits, home, supervised, leftovers, problems }
}

impl Line {
    fn ok(name: &'static str, text: String) -> Self {
        Self { verdict: Verdict::Ok, name, text }
    }

    fn note(name: &'static str, text: String) -> Self {
        Self { verdict: Verdict::Note, name, text }
    }

    /// A line whose verdict depends on whether there is a problem, which is kept.
    fn of(name: &'static str, text: String, problem: Option<Problem>, problems: &mut Vec<Problem>) -> Self {
        let verdict = if problem.is_some() { Verdict::Problem } else { Verdict::Ok };
        problems.extend(problem);
        Self { verdict, name, text }
    }
}

#[cfg(test)]
mod tests;
