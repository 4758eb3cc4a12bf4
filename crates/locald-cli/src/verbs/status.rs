//! `status`: how every declared service stands. Starts no daemon and reports without one.

use locald_utils::paths::Home;
use locald_utils::process::{mark, sweep};
use locald_utils::protocol::{ServiceStatus, State};
use locald_utils::record::Stray;
use locald_utils::spec::Kind;
use locald_utils::time::UnixMillis;

use super::show_lost;
use crate::args::StatusArgs;
use crate::client::Client;
use crate::context::{Context, Project};
use crate::drift;
use crate::failure::Problem;
use crate::listening;
use crate::orphans;
use crate::render::{human, json};
use crate::sample;
use crate::screen::Screen;
use crate::view::{self, Health, Row};

pub(super) fn run(args: &StatusArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let home = context.home()?;
    let mut client = Client::connect(home)?;
    let place = context.place()?;
    let mut found = Project::find(&place, client.as_mut());
    if client.as_ref().is_some_and(Client::is_gone) {
        // It went away before it answered, and nobody has taken its place.
        client = None;
        found = Project::find(&place, None);
    }
    let mut project = found?;
    if client.is_none() {
        project.known = project.spec().and_then(|spec| orphans::find(home, spec));
    }
    let wanted = project.select(&args.services.patterns)?;
    let mut rows = view::rows(project.spec(), project.known.as_ref());
    if !args.services.patterns.is_empty() {
        rows.retain(|row| wanted.contains(&row.status.name));
    }
    for row in &mut rows {
        row.strays = strays(home, &row.status);
    }
    if !args.short && !screen.quiet() {
        let notes = listening::notes(project.name(), rows.iter().map(|row| &row.status));
        for (row, note) in rows.iter_mut().zip(notes) {
            row.listening = note;
        }
        // Commits are made all the time, and most services do not care: it is told to whoever asks for more.
        let checkout = project.known.as_ref().map(|known| known.dir.as_path()).filter(|_| args.wide || screen.json());
        let origins = project.known.as_ref().map(|known| &known.origins);
        let of = |row: &Row| origins.and_then(|origins| origins.get(&row.status.name)).filter(|_| row.is_alive());
        let drifts = drift::look(&rows.iter().map(of).collect::<Vec<_>>(), checkout);
        for (row, drift) in rows.iter_mut().zip(drifts) {
            row.drift = drift;
        }
    }
    if args.wide {
        let usages = sample::usage(rows.iter().map(|row| &row.status));
        for (row, usage) in rows.iter_mut().zip(usages) {
            row.usage = usage;
        }
    }
    let health = view::health(rows.iter().map(|row| &row.status));
    show(args, &project, &rows, health, screen);
    if let (Some(client), None) = (&mut client, &project.known) {
        show_lost(client, screen)?;
    }
    Ok(if args.exit_code { health.exit_code() } else { 0 })
}

/// Looks for what has lost its parents, in a run that goes on. When it is being ended, much does.
fn strays(home: &Home, status: &ServiceStatus) -> Vec<Stray> {
    // What a launcher leaves behind has no parent either, and is the service.
    if status.kind == Kind::Forking && status.state == State::Starting {
        return Vec::new();
    }
    match (&status.state, status.shim, status.leader) {
        (State::Starting | State::Ready | State::Unready, Some(shim), Some(leader)) if shim.is_alive() => {
            sweep::strays_of(shim.pid, leader, mark::supervisor(home.state()))
        }
        _ => Vec::new(),
    }
}

fn show(args: &StatusArgs, project: &Project, rows: &[Row], health: Health, screen: &mut Screen) {
    let now = UnixMillis::now();
    if screen.json() {
        let spec = project.spec().map(json::Project::of_spec);
        let about = spec.or_else(|| project.known.as_ref().map(json::Project::of_status));
        if let Some(about) = about {
            screen.answer(&json::status(&about, rows, now));
        }
    } else if args.short {
        let ready = view::ready_count(rows.iter().map(|row| &row.status));
        let total = view::total(rows.iter().map(|row| &row.status));
        screen.answer(&format!("{ready}/{total} ready"));
    } else if screen.quiet() {
        screen.answer(&rows.iter().map(|row| format!("{}\n", row.status.name)).collect::<String>());
    } else {
        let table = human::status(rows, now, args.wide, screen.stdout_paint());
        let is_all = args.services.patterns.is_empty();
        screen.answer(&format!("{table}\n{}\n", bottom_line(project, health, is_all)));
    }
}

/// Which project it is, and what there is to know or do about it.
fn bottom_line(project: &Project, health: Health, is_all: bool) -> String {
    let dir = project.spec().map(|spec| &spec.dir).or_else(|| project.known.as_ref().map(|known| &known.dir));
    let dir = dir.map_or(String::new(), |dir| format!(" in {}", dir.display()));
    let hint = match (&project.spec, health) {
        (Some(Err(_)), _) => "; its project file has mistakes, `locald check` shows them",
        (None, _) => "; its project file is gone, `locald down` still ends it",
        (Some(Ok(_)), Health::Idle) if is_all => "; nothing runs, `locald up` starts it",
        (Some(Ok(_)), Health::Idle) => "; nothing of that runs, `locald start` starts it",
        (Some(Ok(_)), Health::Fine | Health::Wrong | Health::Settling) => "",
    };
    format!("{}{dir}{hint}", project.name())
}
