//! `doctor`: what this machine offers, and what is left over anywhere. Starts no daemon, kills nothing, changes nothing.

use crate::context::Context;
use crate::diagnosis;
use crate::render::{human, json};
use crate::screen::Screen;
use crate::survey;

pub(super) fn run(context: &Context, screen: &mut Screen) -> u8 {
    let facts = survey::take(context);
    let report = diagnosis::diagnose(&facts);
    if screen.json() {
        screen.answer(&json::doctor(&facts, &report));
    } else if screen.quiet() {
        screen.answer(&report.problems.iter().map(|problem| format!("{}\n", problem.fix)).collect::<String>());
    } else {
        screen.answer(&human::doctor(&facts, &report, screen.stdout_paint()));
    }
    u8::from(!report.problems.is_empty())
}
