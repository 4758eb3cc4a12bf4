//! `ls`: every project the daemon knows, wherever it lies. Starts no daemon.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Problem;
use crate::render::{human, json};
use crate::screen::Screen;

pub(super) fn run(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let projects = match Client::connect(context.home()?)? {
        Some(mut client) => match client.status(None) {
            Err(_) if client.is_gone() => Vec::new(),
            projects => projects?,
        },
        None => Vec::new(),
    };
    if screen.json() {
        screen.answer(&json::projects(&projects));
    } else if screen.quiet() {
        screen.answer(&projects.iter().map(|project| format!("{}\n", project.name)).collect::<String>());
    } else if projects.is_empty() {
        screen.say("no project runs; `locald up` in a project's directory starts it");
    } else {
        screen.answer(&human::projects(&projects, screen.stdout_paint()));
    }
    Ok(0)
}
