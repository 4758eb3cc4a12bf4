//! The command line of locald: understands what a person typed, asks the daemon, and shows what became of it.
//!
//! Read [`main`] first, then a file of `verbs`. Config errors end here, before a daemon is asked for anything. What may
//! be typed is in `args`; what it means for the project at hand in `context` and `names`; how the daemon is reached in
//! `client` and `daemon`; what is shown is decided in `view` and `progress`, both pure, and drawn in `render`. For
//! `doctor`, `survey` gathers facts and the pure `diagnosis` says what they mean; `listening` does both for ports, `drift` for what is on disk, and the pure `preview` says what a start would do. `configuration` is what `config`
//! shows, and `secrets` knows what is not for everybody to see.
//! Whether or when a service runs is never decided here.

mod args;
mod client;
mod configuration;
mod context;
mod daemon;
mod diagnosis;
mod drift;
mod edits;
mod environment;
mod failure;
mod habits;
mod interrupt;
mod listening;
mod names;
mod orphans;
mod output;
mod peer;
mod person;
mod ports;
mod preview;
mod progress;
mod render;
mod sample;
mod screen;
mod secrets;
mod shim;
mod survey;
#[cfg(test)]
mod testing;
mod verbs;
mod view;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::context::Context;
use crate::screen::Screen;

/// Runs one command line and returns the exit code of the process.
///
/// 0 done and seen to be done; 1 it failed; 2 usage or project file; 3 nothing to talk to or nothing runs, where that
/// matters; 4 no such service or project; 124 timed out; 130 interrupted.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(args::explain(&error, std::env::args_os())),
    };
    // A follower of logs has some open for each service.
    locald_utils::process::open_files::raise();
    let mut screen = Screen::of_process(&cli.global);
    let context = Context::of_process(cli.global);
    let code = match verbs::run(&cli.verb, &context, &mut screen) {
        Ok(code) => code,
        Err(problem) => {
            failure::report(&problem, cli.verb.name(), &mut screen);
            problem.exit_code()
        }
    };
    ExitCode::from(screen.finish(code))
}
