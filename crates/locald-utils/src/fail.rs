//! Faults that a test causes from outside: places at which a process dies, and a wall clock that is set.
//!
//! A program says once which one it is ([`arm`]), and names the places as it passes them ([`point`]). With
//! `LOCALD_FAIL=PROGRAM:N:FILE` in the environment, the first process of that program that comes to its N-th place dies there
//! as by `kill -9`, and its place is written to FILE. Only if there is no FILE: whoever comes after it lives. A runner that
//! counts N up until nobody dies has had the program die at every place it passes.
//!
//! With `LOCALD_CLOCK=FILE` the wall clock of every process is off by as many milliseconds as FILE says at the moment.
//!
//! In a release build there is nothing of this.

use std::ffi::OsString;

/// Says which program this process is: `server`, or `shim-SERVICE`.
pub fn arm(program: &str) {
    #[cfg(debug_assertions)]
    armed::arm(program);
    #[cfg(not(debug_assertions))]
    let _ = program;
}

/// A place at which the process may die: what has just been done, or is about to be.
#[inline]
pub fn point(place: &str) {
    #[cfg(debug_assertions)]
    armed::point(place);
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// What a process that is given an environment of its own has to have in it, for the places in it to count.
pub fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    let names: &[&str] = if cfg!(debug_assertions) { &[PLAN, CLOCK] } else { &[] };
    names.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}

/// By how many milliseconds the wall clock is off.
#[must_use]
pub fn clock_error() -> i64 {
    #[cfg(debug_assertions)]
    let error = std::env::var_os(CLOCK).and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    #[cfg(not(debug_assertions))]
    let error = None;
    error.unwrap_or(0)
}

/// The variable with the plan.
const PLAN: &str = "LOCALD_FAIL";

/// The variable with the file of the clock.
const CLOCK: &str = "LOCALD_CLOCK";

#[cfg(debug_assertions)]
mod armed {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill};

    struct Death {
        at: u64,
        file: String,
    }

    static DEATH: OnceLock<Option<Death>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn arm(program: &str) {
        let wanted = std::env::var(super::PLAN).ok().and_then(|text| {
            let (of, rest) = text.split_once(':')?;
            let (at, file) = rest.split_once(':')?;
            (of == program).then_some(Death { at: at.parse().ok()?, file: file.to_owned() })
        });
        let _ = DEATH.set(wanted);
    }

    pub(super) fn point(place: &str) {
        let Some(Some(Death { at, file })) = DEATH.get() else { return };
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 != *at {
            return;
        }
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(file) else { return };
        let _ = writeln!(file, "{place}");
        let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
        // SIGKILL does not return; whoever traces this process may hold it back.
        std::thread::park();
    }
}
