//! `completions`: a script that completes verbs and flags in a shell, made from the definitions in `args`.

use clap::{CommandFactory, ValueEnum};

use crate::args::{Cli, CompletionsArgs};
use crate::render::json;
use crate::screen::Screen;

pub(super) fn run(args: &CompletionsArgs, screen: &mut Screen) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "locald", &mut script);
    let script = String::from_utf8_lossy(&script);
    if screen.json() {
        let shell = args.shell.to_possible_value();
        screen.answer(&json::completions(shell.as_ref().map_or("", |shell| shell.get_name()), &script));
    } else {
        screen.answer(&script);
    }
    0
}
