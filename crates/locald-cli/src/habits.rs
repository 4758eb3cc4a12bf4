//! What is typed by people who come from other tools, and what it is called here.
//!
//! Nothing of it is understood: two names for one thing make two things of it. But whoever types it is told, and is not sent to
//! whatever is spelled alike (`top` is no mistyped `stop`).

use clap::error::{ContextKind, ContextValue};

/// Verbs of docker compose, overmind, process-compose, foreman and systemd.
const VERBS: &[(&[&str], &str)] = &[
    (
        &["exec"],
        "`locald run SERVICE -- COMMAND` runs a command as the service would, `locald attach SERVICE` types into it",
    ),
    (&["top", "stats"], "`locald status --wide` shows processes, CPU and memory"),
    (&["kill"], "`locald stop --now SERVICE` ends it at once, `locald down --now` everything"),
    (&["rm", "remove", "prune"], "`locald down` leaves nothing that would have to be removed"),
    (&["quit", "shutdown", "halt"], "`locald down` ends all services of the project"),
    (
        &["events", "history", "why"],
        "`locald status` says why a service is as it is, `locald logs` what it wrote; --json has more of both",
    ),
    (&["port"], "`locald ports` lists the ports of all services"),
    (&["watch"], "`watch = [\"src/**\"]` in locald.toml runs a service again when files change"),
    (&["connect", "console"], "`locald attach SERVICE` shows its terminal and types into it"),
    (&["log", "tail", "echo"], "`locald logs -f` follows the output of all services"),
    (&["reload", "apply", "sync"], "`locald up` applies locald.toml to what has changed"),
    (
        &["process", "list", "project", "info"],
        "`locald status` shows the services of this project, `locald ls` all projects",
    ),
    (
        &["build", "create", "pull"],
        "what has to be made first is a job: `type = \"job\"`, and `depends_on` where it is needed",
    ),
    (&["pause", "unpause"], "`locald stop SERVICE` ends it, `locald start SERVICE` starts it again"),
    (&["enable", "disable"], "`profiles = [\"NAME\"]` in locald.toml says what is started only when it is asked for"),
    (&["init", "new"], "write locald.toml: `[services.web]`, and below it `command = \"npm run dev\"`"),
];

/// Flags, with the verbs that they are typed after; none means any.
const FLAGS: &[(&[&str], &[&str], &str)] = &[
    (
        &["up", "start"],
        &["-d", "--detach", "-D", "--detached", "--daemonize"],
        "leave it out: services run on when this ends",
    ),
    (&["up", "start"], &["--wait"], "leave it out: it ends when all are ready"),
    (
        &["up"],
        &["--build"],
        "what has to be made first is a job: `type = \"job\"`, and `depends_on` where it is needed",
    ),
    (&["up"], &["--force-recreate"], "`locald restart` gives services a new run"),
    (&["up", "down"], &["--remove-orphans"], "`locald down` ends everything, also what is no longer in the file"),
    (&["up", "start"], &["-l", "--only"], "name the services: `locald up web worker`"),
    (&["up"], &["-t", "--tui", "--no-tui"], "leave it out: `locald up` shows lines, `locald up -f` follows the output"),
    (&["status", "ps", "ls"], &["-a", "--all"], "leave it out: everything is shown, stopped or not"),
    (&["logs"], &["--tail", "--lines"], "`-n LINES`, or `-n all`"),
    (&["logs"], &["--follow-new", "--since-start"], "`--run current` shows the newest run from its beginning"),
    (
        &["stop", "down", "restart"],
        &["-t", "--timeout"],
        "`stop_grace` in locald.toml says how long; `--now` ends at once",
    ),
    (&["stop", "down"], &["-s", "--signal"], "`stop_signal` in locald.toml says which"),
    (&["down"], &["--volumes"], "locald keeps no data of services; what they have written is theirs"),
    (&["run"], &["--rm", "-it", "-i", "-t"], "leave it out: the command has your terminal, and leaves nothing behind"),
    (&[], &["-p", "--project-name", "--project-directory"], "a project is its directory: `-C DIR`"),
];

/// What to do instead of what could not be understood, if somebody else has taught it.
pub(crate) fn hint(error: &clap::Error, typed: &[String]) -> Option<&'static str> {
    let told = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(verb) = told(ContextKind::InvalidSubcommand) {
        return VERBS.iter().find(|(names, _)| names.contains(&verb)).map(|(_, hint)| *hint);
    }
    let flag = told(ContextKind::InvalidArg)?;
    let is_after = |verbs: &[&str]| verbs.is_empty() || typed.iter().any(|word| verbs.contains(&word.as_str()));
    let found = FLAGS.iter().find(|(verbs, flags, _)| flags.contains(&flag) && is_after(verbs));
    found.map(|(_, _, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    fn hint_for(line: &str) -> Option<&'static str> {
        let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = Cli::try_parse_from(std::iter::once("locald".to_owned()).chain(typed.clone())).expect_err(line);
        hint(&error, &typed)
    }

    #[test]
    fn what_other_tools_have_taught_is_answered_with_what_it_is_called_here() {
        for (line, part) in [
            ("exec web sh", "locald run SERVICE"),
            ("top", "status --wide"),
            ("kill web", "stop --now"),
            ("up -d", "leave it out"),
            ("up --wait web", "leave it out"),
            ("logs --tail 10 web", "-n LINES"),
            ("stop -t 5 web", "stop_grace"),
            ("ps -a", "everything is shown"),
            ("-p shop up", "-C DIR"),
        ] {
            assert!(hint_for(line).is_some_and(|hint| hint.contains(part)), "{line}: {:?}", hint_for(line));
        }
        for line in ["statsu", "up --nonsense", "nonsense"] {
            assert_eq!(hint_for(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_understood_is_no_habit() {
        let cli = Cli::command();
        let is_verb = |name: &&str| cli.find_subcommand(name).is_some();
        let known: Vec<&&str> = VERBS.iter().flat_map(|(names, _)| *names).filter(|name| is_verb(name)).collect();
        assert_eq!(known, Vec::<&&str>::new());
    }
}
