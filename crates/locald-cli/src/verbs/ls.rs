//! `ls`: every project the daemon knows, wherever it lies; without a daemon, those of which something runs. Starts none.

use crate::client::Client;
use crate::context::Context;
use crate::failure::Problem;
use crate::orphans;
use crate::render::{human, json};
use crate::screen::Screen;

pub(super) fn run(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let home = context.home()?;
    let known = match Client::connect(home)? {
        Some(mut client) => match client.status(None) {
            // It went away before it answered, and nobody has taken its place.
            Err(_) if client.is_gone() => None,
            projects => Some(projects?),
        },
        None => None,
    };
    let has_daemon = known.is_some();
    let projects = known.unwrap_or_else(|| orphans::all(home));
    if screen.json() {
        screen.answer(&json::projects(&projects));
    } else if screen.quiet() {
        screen.answer(&projects.iter().map(|project| format!("{}\n", project.name)).collect::<String>());
    } else if projects.is_empty() {
        screen.say("no project runs; `locald up` in a project's directory starts it");
    } else {
        screen.answer(&human::projects(&projects, screen.stdout_paint()));
        if !has_daemon {
            screen.note("no daemon runs; `locald daemon start` starts one, which takes them over");
        }
    }
    Ok(0)
}
