//! Text for people. Pure: from rows and outcomes to whole texts; which stream they go to is the verbs' business.

use std::fmt::Write;

use locald_utils::config::form;
use locald_utils::protocol::{
    DaemonStatus, Failure, FailureCode, Outcome, OutcomeResult, ProjectStatus, ServiceOutcome, State, Step,
};
use locald_utils::spec::ProjectSpec;
use locald_utils::time::{UnixMillis, human};

use crate::configuration::{Configured, Line, Variable};
use crate::diagnosis::{self, Facts, LeftoverKind, Problem, Report, Verdict};
use crate::ports::PortRow;
use crate::preview::{self, Change, Planned};
use crate::screen::{Paint, Tone};
use crate::view::{self, Row, StopTotals, Word, bytes, clean, count};

/// An error message with its way out.
pub(crate) fn failure(failure: &Failure, paint: Paint) -> String {
    let mut text = match failure.code {
        // What a person did is no error.
        FailureCode::Interrupted => format!("{}\n", failure.message),
        FailureCode::Failed
        | FailureCode::Usage
        | FailureCode::NotRunning
        | FailureCode::NotFound
        | FailureCode::TimedOut
        | FailureCode::Protocol
        | FailureCode::ShuttingDown => format!("{} {}\n", paint.text(Tone::Bad, "error:"), failure.message),
    };
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("{} {hint}\n", paint.text(Tone::Strong, "hint:")));
    }
    text
}

/// The table of `status`. `wide` adds what the runs use.
pub(crate) fn status(rows: &[Row], now: UnixMillis, wide: bool, paint: Paint) -> String {
    let mut header = vec!["SERVICE", "STATE", "UPTIME", "RESTARTS", "PORTS"];
    if wide {
        header.extend(["PID", "PROCS", "CPU", "MEMORY"]);
    }
    header.push("NOTE");
    let cells = rows.iter().map(|row| {
        let status = &row.status;
        let mut cells = vec![
            plain(status.name.to_string()),
            view::word(status, now),
            plain(row.uptime(now).map_or_else(dash, human)),
            plain(status.restarts.to_string()),
            plain(status.port.map_or_else(dash, |port| port.to_string())),
        ];
        if wide {
            cells.push(plain(status.leader.map_or_else(dash, |leader| leader.pid.to_string())));
            cells.push(plain(row.usage.map_or_else(dash, |usage| usage.processes.to_string())));
            cells.push(plain(row.usage.map_or_else(dash, |usage| format!("{:.0}%", usage.cpu_percent))));
            cells.push(plain(row.usage.map_or_else(dash, |usage| bytes(usage.memory_bytes))));
        }
        cells.push(plain(row.notes(now).join("; ")));
        cells
    });
    table(&header, &cells.collect::<Vec<_>>(), paint)
}

/// The table of `ls`.
pub(crate) fn projects(projects: &[ProjectStatus], paint: Paint) -> String {
    let cells: Vec<Vec<Word>> = projects
        .iter()
        .map(|project| {
            let health = view::health(project.services.iter());
            let tone = match health {
                view::Health::Fine => Tone::Good,
                view::Health::Wrong => Tone::Bad,
                view::Health::Settling => Tone::Busy,
                view::Health::Idle => Tone::Faint,
            };
            let ready = view::ready_count(project.services.iter());
            let text = format!("{ready}/{} ready", view::total(project.services.iter()));
            vec![plain(project.name.to_string()), Word { text, tone }, plain(project.dir.display().to_string())]
        })
        .collect();
    table(&["PROJECT", "SERVICES", "DIRECTORY"], &cells, paint)
}

/// The table of `ports`.
pub(crate) fn ports(rows: &[PortRow], now: UnixMillis, paint: Paint) -> String {
    /// A command line may be longer than a screen is wide, and there is a column after it.
    const WIDEST: usize = 40;
    let listener = |row: &PortRow| {
        let Some(first) = row.listeners.first() else { return dash() };
        let command = clean(&first.command);
        let shown: String = command.chars().take(WIDEST).collect();
        let cut = if shown.len() < command.len() { "..." } else { "" };
        let more = match row.listeners.len() {
            0 | 1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        format!("{} ({shown}{cut}){more}", first.pid)
    };
    let cells: Vec<Vec<Word>> = rows
        .iter()
        .map(|row| {
            vec![
                plain(row.port.to_string()),
                plain(row.project.name.clone().unwrap_or_else(|| row.project.id.to_string())),
                plain(row.service.name.to_string()),
                view::word(&row.service, now),
                plain(listener(row)),
                plain(row.note.clone().unwrap_or_default()),
            ]
        })
        .collect();
    table(&["PORT", "PROJECT", "SERVICE", "STATE", "LISTENER", "NOTE"], &cells, paint)
}

/// The configuration of services, as a project file again. With `origin` each line ends with where its value is written, and what a
/// service finds in its environment follows in comments.
pub(crate) fn config(project: &ProjectSpec, services: &[Configured], origin: bool) -> String {
    let mut text = format!(
        "# {}\n[project]\nname = {}\n",
        clean(&project.file.display().to_string()),
        form::string(project.name.as_str())
    );
    for service in services {
        let _ = write!(text, "\n[services.{}]\n", form::name(&service.name));
        for Line { key, value, sources, .. } in &service.keys {
            let _ = write!(text, "{key} = {value}");
            if origin {
                let mut places = sources.iter().rev().map(|source| format!("{}:{}", clean(&source.file), source.line));
                let counts = places.next().unwrap_or_else(|| "default".to_owned());
                let over: Vec<String> = places.collect();
                let over = if over.is_empty() { String::new() } else { format!(", over {}", over.join(", ")) };
                let _ = write!(text, "  # {counts}{over}");
            }
            text.push('\n');
        }
        if origin {
            text.push_str(&environment(service));
        }
    }
    text
}

/// What a service finds in its environment, in order of precedence.
fn environment(service: &Configured) -> String {
    let mut text = format!("# The environment of {}; what comes later is over what comes before:\n", service.name);
    for Variable { name, value, origin, over, .. } in &service.environment {
        let value = value.as_deref().map_or_else(|| "(not known yet)".to_owned(), form::string);
        let over: Vec<String> = over.iter().map(ToString::to_string).collect();
        let over = if over.is_empty() { String::new() } else { format!(", over {}", over.join(", ")) };
        let _ = writeln!(text, "#   {} = {value}  ({}{over})", clean(name), clean(&origin.to_string()));
    }
    if !service.removed.is_empty() {
        let names: Vec<String> = service.removed.iter().map(|name| clean(name)).collect();
        let _ = writeln!(text, "# Left with the caller: {}", names.join(", "));
    }
    text
}

/// What a start would do to each service, and below it what is different.
pub(crate) fn dry_run(planned: &[Planned], reveal: bool, paint: Paint) -> String {
    let cells: Vec<Vec<Word>> = planned
        .iter()
        .map(|one| {
            let (text, tone) = match one.preview.step {
                Step::Start => ("start", Tone::Good),
                Step::Restart => ("restart", Tone::Busy),
                Step::Leave => ("leave alone", Tone::Plain),
                Step::Skip => ("not asked for", Tone::Faint),
                Step::Refuse => ("refused", Tone::Bad),
            };
            let step = Word { text: text.to_owned(), tone };
            vec![plain(one.preview.service.to_string()), step, plain(clean(&preview::why(one)))]
        })
        .collect();
    let table = table(&["SERVICE", "WOULD", "WHY"], &cells, paint);
    let mut lines = table.lines();
    let mut text = lines.next().map_or(String::new(), |header| format!("{header}\n"));
    for (line, one) in lines.zip(planned) {
        text.push_str(&format!("{line}\n"));
        for change in &one.changes {
            text.push_str(&format!("  {}\n", clean(&difference(change, reveal))));
        }
    }
    text
}

/// How a key differs: `command: "a" -> "b"`, `env.TOKEN changed`.
fn difference(change: &Change, reveal: bool) -> String {
    let Change { key, from, to } = change;
    match (change.printed(reveal), from, to) {
        // Of two that look alike only what is not shown is different.
        ((Some(from), Some(to)), ..) if from != to => format!("{key}: {from} -> {to}"),
        ((None, Some(to)), None, _) => format!("{key}: {to} (new)"),
        ((Some(from), None), _, None) => format!("{key}: {from} (gone)"),
        (_, Some(_), Some(_)) => format!("{key} changed"),
        (_, None, _) => format!("{key} is new"),
        (_, Some(_), None) => format!("{key} is gone"),
    }
}

/// The daemon about itself.
pub(crate) fn daemon(status: &DaemonStatus, now: UnixMillis) -> String {
    let running = human(now.since(status.started_at));
    let rows = [
        ("pid", status.pid.to_string()),
        ("version", format!("{} (protocol {})", status.version, status.protocol)),
        ("running", format!("{running}, daemon {} of this home", status.epoch)),
        ("projects", status.projects.to_string()),
        ("runs", status.runs.to_string()),
        ("clients", status.clients.to_string()),
        ("home", status.home.display().to_string()),
        ("socket", status.socket.display().to_string()),
        ("log", status.log.display().to_string()),
    ];
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<9} {value}");
        text
    })
}

/// What `doctor` found: a line for each thing that was looked at, then each problem with the command that ends it.
pub(crate) fn doctor(facts: &Facts, report: &Report, paint: Paint) -> String {
    let mut text = format!("locald {} on {}\n", facts.version, facts.machine.kernel);
    let mut section = |title: &str, lines: Vec<(Word, &str, String)>| {
        text.push_str(&format!("\n{}\n", paint.text(Tone::Strong, title)));
        let widths = [
            lines.iter().map(|(word, ..)| word.text.len()).max().unwrap_or(0),
            lines.iter().map(|(_, name, _)| name.len()).max().unwrap_or(0),
        ];
        for (word, name, about) in lines {
            let gap = " ".repeat(widths[0] - word.text.len());
            let word = paint.text(word.tone, &word.text);
            text.push_str(&format!("  {word}{gap}  {name:<width$}  {}\n", clean(&about), width = widths[1]));
        }
    };
    let offers = report.containment.iter().map(|offer| match &offer.presence {
        Ok(seen) => (verdict(Verdict::Ok), offer.name, format!("{} ({seen})", offer.gives)),
        Err(why) => {
            let word = Word { text: "missing".to_owned(), tone: Tone::Busy };
            (word, offer.name, format!("{why}; without: {}", offer.without))
        }
    });
    section("Containment", offers.collect());
    let shown = |lines: &'_ [diagnosis::Line]| {
        lines.iter().map(|line| (verdict(line.verdict), line.name, line.text.clone())).collect()
    };
    section("Limits", shown(&report.limits));
    section("Home", shown(&report.home));
    let supervised = report.supervised;
    let mut runs = format!("{} supervised", supervised.runs);
    if supervised.without_daemon > 0 {
        runs.push_str(&format!(", {} of them without a daemon", supervised.without_daemon));
    }
    let mut lines = vec![(verdict(Verdict::Ok), "runs", runs)];
    for leftover in &report.leftovers {
        lines.push((verdict(Verdict::Problem), leftover_name(leftover.kind), leftover.problem.what.clone()));
    }
    section("Leftovers", lines);
    let numbers = match report.problems.len() {
        0 => "no problems".to_owned(),
        problems => count(problems, "problem"),
    };
    text.push_str(&format!("\n{numbers}\n"));
    for Problem { what, why, fix } in &report.problems {
        let what = paint.text(Tone::Bad, &clean(what));
        text.push_str(&format!("\n{what}\n  {}\n  {} {}\n", clean(why), paint.text(Tone::Strong, "fix:"), clean(fix)));
    }
    text
}

fn verdict(verdict: Verdict) -> Word {
    let (text, tone) = match verdict {
        Verdict::Ok => ("ok", Tone::Good),
        Verdict::Note => ("note", Tone::Busy),
        Verdict::Problem => ("problem", Tone::Bad),
    };
    Word { text: text.to_owned(), tone }
}

fn leftover_name(kind: LeftoverKind) -> &'static str {
    match kind {
        LeftoverKind::RunWithoutRecord | LeftoverKind::RunWithoutHome | LeftoverKind::RunWithoutShim => "run",
        LeftoverKind::Shim => "shim",
        LeftoverKind::Daemon => "daemon",
        LeftoverKind::Records => "records",
        LeftoverKind::Sockets => "sockets",
    }
}

/// What became of a start: what of the runs before had to be killed, what strayed, and `shop: 2 services ready, 1 completed, 1
/// already running in 1.2s; of the runs before 3 processes ended`.
pub(crate) fn started(project: &str, outcome: &Outcome) -> String {
    let of = |matches: fn(&ServiceOutcome) -> bool| outcome.services.iter().filter(|service| matches(service)).count();
    let is_new = |service: &ServiceOutcome| service.result == OutcomeResult::Done && !service.unchanged;
    let completed = of(|service| service.result == OutcomeResult::Done && service.service.state == State::Completed);
    let new = outcome.services.iter().filter(|s| is_new(s) && s.service.state != State::Completed).count();
    let same = of(|s| s.result == OutcomeResult::Done && s.unchanged && s.service.state != State::Completed);
    let parts = [
        (new, "ready"),
        (same, "already running"),
        (completed, "completed"),
        (of(|service| service.result == OutcomeResult::Failed), "failed"),
        (of(|service| service.result == OutcomeResult::TimedOut), "not ready in time"),
        (of(|service| service.result == OutcomeResult::Superseded), "stopped meanwhile"),
    ];
    let mut texts = Vec::new();
    for (number, what) in parts.into_iter().filter(|(number, _)| *number > 0) {
        let number = if texts.is_empty() { count(number, "service") } else { number.to_string() };
        texts.push(format!("{number} {what}"));
    }
    if texts.is_empty() {
        return format!("{project}: no services");
    }
    let took = if outcome.services.iter().all(|service| service.unchanged) {
        String::new()
    } else {
        format!(" in {}", human(outcome.took))
    };
    let totals = view::stop_totals(outcome);
    let before = match totals.services {
        0 => String::new(),
        1 => format!("; of the run before {}", processes_ended(totals)),
        _ => format!("; of the runs before {}", processes_ended(totals)),
    };
    format!("{}{project}: {}{took}{before}", how_they_ended(outcome), texts.join(", "))
}

/// Why a service did not come up: how it ended and the last lines it wrote.
pub(crate) fn why_failed(service: &ServiceOutcome, output: &[String], now: UnixMillis, paint: Paint) -> String {
    let name = &service.service.name;
    let mut text = match service.result {
        OutcomeResult::TimedOut => {
            let word = view::word(&service.service, now).text;
            let note = view::health_note(&service.service, now).map_or(String::new(), |note| format!(": {note}"));
            format!("{} is not ready in time: {word}{note}\n", paint.text(Tone::Bad, name.as_str()))
        }
        OutcomeResult::Done | OutcomeResult::Failed | OutcomeResult::Superseded => {
            let word = view::word(&service.service, now).text;
            let said = view::with_failure_note(&word, &service.service);
            format!("{}: {said}\n", paint.text(Tone::Bad, name.as_str()))
        }
    };
    for line in output {
        text.push_str(&format!("  {} {}\n", paint.text(Tone::Faint, "|"), clean(line)));
    }
    if !output.is_empty() {
        text.push_str(&format!("more: locald logs {name}\n"));
    }
    text
}

/// What became of a stop: what had to be killed, what strayed, and the numbers.
pub(crate) fn stopped(outcome: &Outcome) -> String {
    let totals = view::stop_totals(outcome);
    let numbers = [
        format!("{} stopped", count(totals.services, "service")),
        processes_ended(totals),
        format!("{} left in {}", totals.left, human(outcome.took)),
    ];
    how_they_ended(outcome) + &numbers.join(", ") + "\n"
}

/// `3 processes ended`, and how many of them were killed.
fn processes_ended(totals: StopTotals) -> String {
    let all = count(totals.processes, "process");
    match totals.killed {
        0 => format!("{all} ended"),
        killed => format!("{all} ended ({killed} killed)"),
    }
}

/// What had to be killed, and what strayed, service by service.
fn how_they_ended(outcome: &Outcome) -> String {
    let mut text = String::new();
    for service in &outcome.services {
        let Some(ended) = view::asked_end(service) else { continue };
        let name = &service.service.name;
        if let Some(note) = view::force_note(ended) {
            text.push_str(&format!("{name}: {note}\n"));
        }
        if !ended.strays.is_empty() {
            let number = count(ended.strays.len(), "stray");
            text.push_str(&format!("{name}: {number} ended with it: {}\n", view::names(&ended.strays)));
        }
    }
    text
}

/// Names every process that a stop could not end, and every service that it could not stop otherwise.
pub(crate) fn not_stopped(outcome: &Outcome, user: impl Fn(u32) -> String, now: UnixMillis, paint: Paint) -> String {
    let mut text = String::new();
    let error = paint.text(Tone::Bad, "error:");
    for service in &outcome.services {
        let name = &service.service.name;
        let survivors = view::survivors(&service.service, service.ended.as_ref());
        for survivor in &survivors {
            let (pid, command) = (survivor.process.pid, clean(&survivor.command));
            let (user, reason) = (user(survivor.uid), clean(&survivor.reason));
            text.push_str(&format!("{error} {name}: pid {pid} ({command}) of user {user} is still alive: {reason}\n"));
        }
        match service.result {
            OutcomeResult::Done => {}
            OutcomeResult::Failed | OutcomeResult::TimedOut if survivors.is_empty() => {
                let word = view::word(&service.service, now).text;
                text.push_str(&format!("{error} {name} is not stopped: {word}\n"));
            }
            OutcomeResult::Failed | OutcomeResult::TimedOut => {}
            OutcomeResult::Superseded => {
                text.push_str(&format!("{error} {name} was started again by someone else\n"));
            }
        }
    }
    text
}

fn plain(text: String) -> Word {
    Word { text, tone: Tone::Plain }
}

fn dash() -> String {
    "-".to_owned()
}

/// Lines up cells in columns, two spaces apart; the last column is as wide as it is.
fn table(header: &[&str], rows: &[Vec<Word>], paint: Paint) -> String {
    let header: Vec<Word> = header.iter().map(|&text| Word { text: text.to_owned(), tone: Tone::Strong }).collect();
    let lines: Vec<&Vec<Word>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].text.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for cells in lines {
        let filled = cells.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
        for (column, cell) in cells.iter().enumerate().take(filled) {
            text.push_str(&paint.text(cell.tone, &cell.text));
            if column + 1 < filled {
                let gap = widths[column] - cell.text.chars().count() + 2;
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use locald_utils::process::ProcessId;
    use locald_utils::protocol::{FailedReason, ServiceStatus};
    use locald_utils::record::{Ended, ExitStatus, Stray, Survivor};

    use super::*;
    use crate::sample::Usage;
    use crate::testing::{NOW, ended, project_status, ready, service};

    const OFF: Paint = Paint(false);

    fn row(status: ServiceStatus) -> Row {
        Row::of(status)
    }

    fn rows() -> Vec<Row> {
        let failed = ServiceStatus {
            restarts: 2,
            last: Some(ended("web", ExitStatus::Code(1))),
            ..service("web", State::Failed { reason: FailedReason::Exited })
        };
        let usage = Some(Usage { processes: 3, cpu_percent: 12.4, memory_bytes: 5 << 20 });
        vec![
            Row { usage, is_changed: true, ..row(ServiceStatus { port: Some(5432), ..ready("db") }) },
            row(failed),
            row(service("worker", State::Stopped)),
        ]
    }

    #[test]
    fn status_is_a_table_with_a_note_where_there_is_one() {
        assert_eq!(
            status(&rows(), NOW, false, OFF),
            "\
SERVICE  STATE                    UPTIME  RESTARTS  PORTS  NOTE
db       ready                    3m 20s  0         5432   changed since it started
web      failed: exit 1, 12s ago  -       2         -
worker   stopped                  -       0         -
"
        );
    }

    #[test]
    fn wide_adds_what_the_run_uses() {
        assert_eq!(
            status(&rows()[..1], NOW, true, OFF),
            "\
SERVICE  STATE  UPTIME  RESTARTS  PORTS  PID   PROCS  CPU  MEMORY  NOTE
db       ready  3m 20s  0         5432   4711  3      12%  5.0 MB  changed since it started
"
        );
    }

    #[test]
    fn colour_does_not_shift_the_columns() {
        let text = status(&rows(), NOW, false, Paint(true));
        assert!(text.contains("\x1b[32mready\x1b[0m                    3m 20s"), "{text}");
    }

    #[test]
    fn ls_says_how_much_of_each_project_is_ready() {
        let mut shop = project_status("shop", &["db"]);
        shop.services.push(ready("web"));
        assert_eq!(
            projects(&[shop, project_status("blog", &[])], OFF),
            "\
PROJECT  SERVICES   DIRECTORY
shop     1/2 ready  /work/shop
blog     0/0 ready  /work/blog
"
        );
    }

    fn outcome(services: Vec<ServiceOutcome>) -> Outcome {
        Outcome { services, took: Duration::from_millis(1_234) }
    }

    fn became(service: ServiceStatus, result: OutcomeResult, unchanged: bool) -> ServiceOutcome {
        ServiceOutcome { service, result, unchanged, ended: None }
    }

    #[test]
    fn a_start_is_summed_up_in_one_line() {
        use OutcomeResult::{Done, Failed, TimedOut};
        let completed = |name| service(name, State::Completed);
        for (services, text) in [
            (vec![became(ready("web"), Done, false)], "shop: 1 service ready in 1.2s"),
            (
                vec![became(ready("web"), Done, true), became(ready("db"), Done, true)],
                "shop: 2 services already running",
            ),
            (
                vec![
                    became(ready("web"), Done, false),
                    became(ready("api"), Done, false),
                    became(ready("db"), Done, true),
                    became(completed("migrate"), Done, false),
                ],
                "shop: 2 services ready, 1 already running, 1 completed in 1.2s",
            ),
            (
                vec![
                    became(service("web", State::Failed { reason: FailedReason::Exited }), Failed, false),
                    became(service("api", State::Starting), TimedOut, false),
                ],
                "shop: 1 service failed, 1 not ready in time in 1.2s",
            ),
            (vec![], "shop: no services"),
        ] {
            assert_eq!(started("shop", &outcome(services)), text);
        }
    }

    #[test]
    fn a_failed_start_shows_how_it_ended_and_what_it_wrote_last() {
        let state = State::Failed { reason: FailedReason::Exited };
        let web = ServiceStatus { last: Some(ended("web", ExitStatus::Code(7))), ..service("web", state) };
        let failed = became(web, OutcomeResult::Failed, false);
        let output = ["listening".to_owned(), "panic: \x1b[31mboom".to_owned()];
        assert_eq!(
            why_failed(&failed, &output, NOW, OFF),
            "web: failed: exit 7, 12s ago\n  | listening\n  | panic:  [31mboom\nmore: locald logs web\n"
        );
    }

    #[test]
    fn a_stop_ends_with_numbers_and_names_what_was_killed_and_what_strayed() {
        let process = ProcessId { pid: 812, start: 1 };
        let stray = Stray { process, command: "sleep 601".into() };
        let forced = Ended {
            processes: 3,
            killed: 1,
            forced: true,
            stopped: true,
            strays: vec![stray; 6],
            stop_took: Duration::from_secs(5),
            ..ended("web", ExitStatus::Signal(9))
        };
        let web = ServiceOutcome {
            ended: Some(forced),
            ..became(service("web", State::Stopped), OutcomeResult::Done, false)
        };
        let db = became(service("db", State::Stopped), OutcomeResult::Done, true);
        let each = "sleep 601, ".repeat(2);
        assert_eq!(
            stopped(&outcome(vec![web, db])),
            format!(
                "web: 1 process killed after 5.0s\nweb: 6 strays ended with it: {each}and 4 more\n\
                 1 service stopped, 3 processes ended (1 killed), 0 left in 1.2s\n"
            )
        );
    }

    #[test]
    fn a_restart_says_how_the_run_before_ended() {
        let before =
            Ended { processes: 3, killed: 1, stopped: true, forced: true, ..ended("web", ExitStatus::Signal(9)) };
        let web =
            ServiceOutcome { ended: Some(before), ..became(service("web", State::Ready), OutcomeResult::Done, false) };
        let text = started("shop", &outcome(vec![web]));
        assert!(text.starts_with("web: 1 process killed after "), "{text}");
        let end = "shop: 1 service ready in 1.2s; of the run before 3 processes ended (1 killed)";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn what_is_left_is_named_with_its_user_and_why() {
        let process = ProcessId { pid: 812, start: 1 };
        let survivor = Survivor { process, command: "sudo sleep 9".into(), uid: 0, reason: "not permitted".into() };
        let state = State::Failed { reason: FailedReason::Survivors { survivors: vec![survivor] } };
        let outcome = outcome(vec![
            became(service("web", state), OutcomeResult::Failed, false),
            became(ready("db"), OutcomeResult::Superseded, false),
            became(service("api", State::Stopping { kill_at: None }), OutcomeResult::TimedOut, false),
        ]);
        assert_eq!(
            not_stopped(&outcome, |uid| format!("user-{uid}"), NOW, OFF),
            "error: web: pid 812 (sudo sleep 9) of user user-0 is still alive: not permitted\n\
             error: db was started again by someone else\n\
             error: api is not stopped: stopping\n"
        );
        assert!(stopped(&outcome).ends_with("0 services stopped, 0 processes ended, 1 left in 1.2s\n"));
    }

    #[test]
    fn memory_is_shown_with_its_unit() {
        assert_eq!([512 << 10, 12_900_000, 3 << 30].map(bytes), ["512 KB", "12.3 MB", "3.0 GB"]);
    }
}
