//! What may be typed. Says nothing about what it does; that is in `verbs`.
//!
//! `-f` is short for `--file` before the verb (`locald -f other.toml up`), as in `docker compose -f`. After the verb it
//! belongs to the verb, where it means "follow" (`locald logs -f`); `--file` and `-C` may stand anywhere.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use locald_utils::name::OwnerName;
use locald_utils::protocol::{Failure, FailureCode, Owner, WaitFor};

use crate::habits;
use crate::render::json;
use crate::verbs::attach::{AttachArgs, ScreenArgs};
use crate::verbs::logs::LogsArgs;

/// Runs the services of a development project.
#[derive(Debug, Parser)]
#[command(name = "locald", version, arg_required_else_help = true, max_term_width = 100)]
#[command(
    long_about = "Runs the services of a development project.\n\n`locald up` starts what locald.toml declares in the \
                  order its dependencies need, `locald status` tells how it stands, `locald down` ends it and proves \
                  that nothing is left."
)]
#[command(after_help = "Examples:
  locald up              start everything and wait until it is ready
  locald status          how it stands
  locald logs -f web     follow the output of one service
  locald down            end everything

Exit codes: 0 done, 1 failed, 2 usage or locald.toml, 3 nothing runs, 4 no such service or project,
124 timed out, 130 interrupted.")]
pub(crate) struct Cli {
    /// What every verb understands.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb understands.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Global {
    /// Act as if started in DIR.
    #[arg(short = 'C', long = "directory", value_name = "DIR", global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Use FILE instead of the locald.toml found in or above the directory.
    #[arg(long = "file", value_name = "FILE", global = true, env = "LOCALD_FILE", hide_env_values = true)]
    pub(crate) file: Option<PathBuf>,
    /// The same as --file; only before the verb.
    #[arg(short = 'f', id = "short_file", value_name = "FILE")]
    pub(crate) short_file: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, global = true)]
    pub(crate) color: ColorWhen,
    /// Print names only, or nothing where only progress would be shown.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more about how it is done.
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub(crate) verbose: bool,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal, unless NO_COLOR or TERM=dumb says otherwise.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start services and wait until they are ready. [changes state]
    Up(UpArgs),
    /// End all services of the project and prove that nothing is left. [changes state]
    Down(DownArgs),
    /// Start services that are stopped. [changes state]
    Start(StartArgs),
    /// End services; others stay. [changes state]
    Stop(StopArgs),
    /// End services and start them again, with the environment of now. [changes state]
    Restart(RestartArgs),
    /// Run a command with the environment, directory and dependencies of a service. [changes state]
    Run(RunArgs),
    /// Show how the services of the project stand. [read-only]
    #[command(visible_alias = "ps")]
    Status(StatusArgs),
    /// Show what services have written; needs no daemon. [read-only]
    #[command(after_help = "Examples:
  locald logs                the newest run of every service, merged by time
  locald logs -f web         follow one service, over restarts
  locald logs --since 15m --grep error
  locald logs db --run previous -n all")]
    Logs(LogsArgs),
    /// Show the terminal of a service in this one, and type into it; needs no daemon.
    #[command(after_help = "Examples:
  locald attach web                       Ctrl-Space Ctrl-Q leaves it running
  locald attach web --read-only           any number may look on
  locald attach web --detach-keys 'ctrl-b d'

The first of the keys pressed twice is that key. The size of the terminal follows whoever types.
Exits with 0 when you detach, and with the service's own exit code when it ends.")]
    Attach(AttachArgs),
    /// Print what the terminal of a service shows; needs no daemon. [read-only]
    Screen(ScreenArgs),
    /// List all projects that the daemon knows. [read-only]
    Ls,
    /// List the ports of all projects, and who listens on them. [read-only]
    #[command(after_help = "Examples:
  locald ports
  locald ports --quiet      only the numbers
  locald ports --json

Lists every port that a service of this home has, and every other on which its processes listen. NOTE
tells where the two differ. Without a daemon it lists what locald.toml here says, and what still runs.")]
    Ports,
    /// Check locald.toml; needs no daemon. [read-only]
    Check,
    /// Show the configuration with all defaults, and where each value comes from; needs no daemon. [read-only]
    Config(ConfigArgs),
    /// Wait until services are ready, completed or stopped. [read-only]
    Wait(WaitArgs),
    /// Start, stop or look at the daemon.
    Daemon(DaemonArgs),
    /// Tell what this machine offers, and what is left over; needs no daemon. [read-only]
    #[command(
        after_help = "Looks at what the kernel offers for ending services reliably, at the limits that hold, at the home
of locald, and at every process and file of locald that nobody looks after, in any home of yours.
Each problem comes with the one command that ends it. Nothing is killed or changed.

Examples:
  locald doctor
  locald doctor --quiet      only the commands
  locald doctor --json       everything

Exits with 0 when there is no problem, otherwise with 1."
    )]
    Doctor,
    /// Print a completion script for a shell. [read-only]
    #[command(after_help = "Examples:
  locald completions bash > ~/.local/share/bash-completion/completions/locald
  locald completions zsh > ~/.zfunc/_locald
  locald completions fish > ~/.config/fish/completions/locald.fish")]
    Completions(CompletionsArgs),
}

impl Verb {
    /// The verb as typed, for the `verb` field of `--json`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Up(_) => "up",
            Self::Down(_) => "down",
            Self::Start(_) => "start",
            Self::Stop(_) => "stop",
            Self::Restart(_) => "restart",
            Self::Run(_) => "run",
            Self::Status(_) => "status",
            Self::Logs(_) => "logs",
            Self::Attach(_) => "attach",
            Self::Screen(_) => "screen",
            Self::Ls => "ls",
            Self::Ports => "ports",
            Self::Check => "check",
            Self::Config(_) => "config",
            Self::Wait(_) => "wait",
            Self::Daemon(args) => args.verb.name(),
            Self::Doctor => "doctor",
            Self::Completions(_) => "completions",
        }
    }
}

/// Services by name.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Services {
    /// Names or quoted globs ('api-*'); all when none is given.
    #[arg(value_name = "SERVICE")]
    pub(crate) patterns: Vec<String>,
}

/// Services by profile.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Profiles {
    /// Start also the services with this profile; may be given several times. Without it and without names,
    /// LOCALD_PROFILES counts.
    #[arg(long = "profile", id = "profile", value_name = "PROFILE")]
    pub(crate) patterns: Vec<String>,
}

/// Whether it is only to be said what would be done.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct DryRun {
    /// Say what would be done and why, and do nothing; starts no daemon.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: show the values of variables that would change.
    #[arg(long, requires = "dry_run")]
    pub(crate) reveal: bool,
}

/// How long to wait for the outcome.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limit {
    /// How long to wait, with a unit: 500ms, 30s, 2m.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// As whom services are started, and for how long.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AsOwner {
    /// As whom, for scripts and agents: the services are ended when the last of their owners has left
    /// (`down --owner NAME`), unless somebody without a name wants them.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<OwnerName>,
    /// How long the owner wants them, with a unit: 30m, 2h. Asking again begins another lease.
    #[arg(long, value_name = "TIME", value_parser = lease, requires = "owner")]
    pub(crate) lease: Option<Duration>,
}

impl AsOwner {
    /// The owner, if one is named.
    pub(crate) fn owner(&self) -> Option<Owner> {
        Some(Owner { name: self.owner.clone()?, lease: self.lease })
    }
}

/// The arguments of `up`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald up                  everything
  locald up web              web and what it depends on
  locald up --profile full   what belongs to the profile as well
  locald up -f               everything, and show what it writes
  locald up -f --watch-config    and apply locald.toml whenever it is saved
  locald up --timeout 5m     for a slow first build
  locald up --owner ci --lease 30m   end it when ci leaves, in half an hour at the latest
  locald up --dry-run        what it would do, and why

A service with `profiles` is started only when one of them is asked for, it is named, or another
that starts depends on it; from then on it belongs to the project until it is stopped.

Services run on after this command ends. `up` twice is fine: what runs is left alone, unless its
part of locald.toml changed. Interrupting it ends only the waiting.

With -f, Ctrl-C stops the services: the whole project, or those that were named. A second one kills
them, a third leaves that to the daemon. `d` leaves and lets them run. It ends by itself when all
have ended: with 1 if one failed. -f cannot be combined with --json.")]
pub(crate) struct UpArgs {
    /// Stay and show what the services write, until Ctrl-C stops them.
    #[arg(short = 'f', long, conflicts_with = "dry_run")]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) dry_run: DryRun,
    #[command(flatten)]
    pub(crate) services: Services,
    #[command(flatten)]
    pub(crate) profiles: Profiles,
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// Start also where processes of an earlier run could not be ended. They are left alone, and shown.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) owner: AsOwner,
    /// With -f: apply locald.toml whenever it, or an env file, is saved. A mistake in it changes nothing.
    #[arg(long, requires = "follow")]
    pub(crate) watch_config: bool,
}

/// The arguments of `down`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald down               each service gets its grace period
  locald down --now         kill at once
  locald down --owner ci    ci leaves: only what nobody else wants is ended

Exits with 0 only when no process of any service is left; otherwise with 1, naming each.")]
pub(crate) struct DownArgs {
    /// Kill at once instead of waiting for the grace period.
    #[arg(long)]
    pub(crate) now: bool,
    /// Only that this owner leaves: what others want stays.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<OwnerName>,
}

/// The arguments of `start`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald start web
  locald start 'api-*'")]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) dry_run: DryRun,
    #[command(flatten)]
    pub(crate) services: Services,
    #[command(flatten)]
    pub(crate) profiles: Profiles,
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// Start also where processes of an earlier run could not be ended. They are left alone, and shown.
    #[arg(long)]
    pub(crate) force: bool,
}

/// The arguments of `stop`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald stop web
  locald stop --now 'api-*'")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) services: Services,
    /// Kill at once instead of waiting for the grace period.
    #[arg(long)]
    pub(crate) now: bool,
}

/// The arguments of `restart`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald restart web
  FEATURE=1 locald restart web     with another environment")]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    pub(crate) dry_run: DryRun,
    #[command(flatten)]
    pub(crate) services: Services,
    #[command(flatten)]
    pub(crate) profiles: Profiles,
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// Start also where processes of an earlier run could not be ended. They are left alone, and shown.
    #[arg(long)]
    pub(crate) force: bool,
}

/// The arguments of `run`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald run web -- npm test
  locald run db -- psql -h localhost
  locald run api ./manage.py migrate     options of the command need no `--`
  locald run web -- sh -c 'echo $PORT'
  locald run --no-deps web -- env        starts nothing

Starts what the service depends on and waits for it, not the service. Then locald becomes the command: terminal,
signals and exit code are the command's own. It is no run of the service, and `down` does not end it.")]
pub(crate) struct RunArgs {
    /// Start nothing that the service depends on.
    #[arg(long)]
    pub(crate) no_deps: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// The service whose environment, directory and dependencies it has.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
    /// The command and its arguments; run without a shell.
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// The arguments of `status`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = "Examples:
  locald status
  locald status --wide          with processes, CPU and memory
  locald status --short         for a prompt: 3/4 ready
  locald status --exit-code     for a script

Exits with 0 when it could report. With --exit-code: 0 nothing is wrong, 1 a service failed or is unready,
3 nothing runs, 5 a service is on its way (waiting, starting, a job at work, or stopping).")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) services: Services,
    /// Add the leader's pid, and processes, CPU and memory of the whole run.
    #[arg(long, conflicts_with = "short")]
    pub(crate) wide: bool,
    /// Print one short line.
    #[arg(long)]
    pub(crate) short: bool,
    /// Let the exit code tell how the services stand.
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// The arguments of `config`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = "Examples:
  locald config                  all services
  locald config web --origin     where each value comes from, and the whole environment
  locald config --reveal         with secrets

What is printed is a project file again. A value that looks like a secret is printed as ***, unless
--reveal is given: its variable, option, header or query parameter is named like one (TOKEN, PASSWORD,
API_KEY), it begins like a known kind of token, or it is the password in a URL.")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) services: Services,
    /// Say of each value where it is written, and of each variable of the environment where it comes from.
    #[arg(long)]
    pub(crate) origin: bool,
    /// Show values that look like secrets.
    #[arg(long)]
    pub(crate) reveal: bool,
}

/// The arguments of `wait`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  locald wait web                           until it is ready
  locald wait migrate --for completed
  locald wait --for stopped --timeout 5s

Exits with 0 when it holds, 1 when it can never hold, 124 when the time is up, 3 when nothing runs.")]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) services: Services,
    /// What to wait for.
    #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t)]
    pub(crate) until: Until,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// Services are ready, jobs have completed.
    #[default]
    Ready,
    /// Jobs have ended with exit code 0.
    Completed,
    /// No process is left.
    Stopped,
}

impl From<Until> for WaitFor {
    fn from(until: Until) -> Self {
        match until {
            Until::Ready => Self::Ready,
            Until::Completed => Self::Completed,
            Until::Stopped => Self::Stopped,
        }
    }
}

/// The arguments of `daemon`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct DaemonArgs {
    /// What to do with the daemon.
    #[command(subcommand)]
    pub(crate) verb: DaemonVerb,
}

/// What to do with the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonVerb {
    /// Start the daemon if it does not run. Other verbs do so by themselves. [changes state]
    Start,
    /// End the daemon. Services run on, and the next daemon takes them over. [changes state]
    Stop {
        /// End all services of all projects first.
        #[arg(long)]
        all: bool,
    },
    /// Show the daemon; exits with 3 when none runs. [read-only]
    Status,
    /// Run the daemon in the foreground, with its log on stderr.
    Run,
}

impl DaemonVerb {
    fn name(&self) -> &'static str {
        match self {
            Self::Start => "daemon start",
            Self::Stop { .. } => "daemon stop",
            Self::Status => "daemon status",
            Self::Run => "daemon run",
        }
    }
}

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration(text)?;
    if lease.is_zero() {
        return Err("it would be over at once; `locald down --owner NAME` ends it".to_owned());
    }
    Ok(lease)
}

/// Reads a time with units: `500ms`, `30s`, `2m`, `1h30m`.
///
/// A bare number is refused: nobody agrees whether it means seconds or milliseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err("write a number and a unit: 30s".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 =
            rest[..digits].parse().map_err(|_| format!("`{text}` is not a time; write 500ms, 30s or 2m"))?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => return Err(format!("`{text}` has no unit; write {text}s for seconds")),
            unit => return Err(format!("`{unit}` is no unit of time; use ms, s, m or h")),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(ms).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(|| format!("`{text}` is too long"))?;
    }
    Ok(total)
}

/// Shows a usage error, or the help or version that was asked for. Returns the exit code.
pub(crate) fn explain(error: &clap::Error, typed: impl Iterator<Item = OsString>) -> u8 {
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    let typed: Vec<String> = typed.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let text = error.to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let mut failure = Failure::new(FailureCode::Usage, message);
    failure.hint = habits::hint(error, &typed).map(str::to_owned);
    if error.use_stderr() && typed.iter().any(|argument| argument == "--json") {
        // A reader that has gone away wants no answer.
        let _ = writeln!(std::io::stdout(), "{}", json::failure(None, &failure));
    } else if let Some(hint) = &failure.hint {
        let _ = writeln!(std::io::stderr(), "error: {message}\nhint: {hint}");
    } else {
        let _ = error.print();
    }
    code
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).expect("parses")
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn file_and_directory_may_stand_before_or_after_the_verb() {
        for line in ["locald -C /a --file b.toml up", "locald up -C /a --file b.toml", "locald -f b.toml -C /a up"] {
            let cli = parse(line);
            assert_eq!(cli.global.dir, Some("/a".into()), "{line}");
            assert_eq!(cli.global.file.or(cli.global.short_file), Some("b.toml".into()), "{line}");
        }
    }

    #[test]
    fn short_f_after_a_verb_is_not_the_file() {
        assert!(Cli::try_parse_from(["locald", "status", "-f", "x"]).is_err());
    }

    #[test]
    fn short_f_after_up_and_logs_is_follow() {
        let cli = parse("locald -f b.toml up -f web");
        assert_eq!(cli.global.short_file, Some("b.toml".into()));
        assert!(matches!(cli.verb, Verb::Up(args) if args.follow && args.services.patterns == ["web"]));
        assert!(matches!(parse("locald logs -f").verb, Verb::Logs(args) if args.follow));
    }

    #[test]
    fn flags_of_every_verb_are_global() {
        let cli = parse("locald status --json -q -v --color never --wide web");
        assert!(cli.global.json && cli.global.quiet && cli.global.verbose);
        assert_eq!(cli.global.color, ColorWhen::Never);
        assert!(matches!(cli.verb, Verb::Status(args) if args.wide && args.services.patterns == ["web"]));
    }

    #[test]
    fn ps_is_status_and_wait_names_its_condition() {
        assert_eq!(parse("locald ps").verb.name(), "status");
        let Verb::Wait(args) = parse("locald wait db --for stopped --timeout 1m30s").verb else { panic!("not wait") };
        assert_eq!(args.until, Until::Stopped);
        assert_eq!(args.limit.timeout, Duration::from_secs(90));
    }

    #[test]
    fn a_one_off_command_begins_after_the_service_and_keeps_its_options() {
        let words = |line: &str| {
            let cli = parse(line);
            let Verb::Run(args) = cli.verb else { panic!("not run") };
            let command = args.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
            format!("{} {} {} {command}", args.service, args.no_deps, cli.global.json)
        };
        assert_eq!(words("locald run web -- ls -la --json"), "web false false ls -la --json");
        assert_eq!(words("locald run web ls -la --json -q"), "web false false ls -la --json -q");
        assert_eq!(words("locald run --no-deps --json web -- ls -- -C"), "web true true ls -- -C");
        assert_eq!(words("locald run web --no-deps ls"), "web true false ls");
        for line in ["locald run web", "locald run web --", "locald run"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_time_needs_a_unit() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("60"), Err("`60` has no unit; write 60s for seconds".into()));
        assert_eq!(duration("5 days"), Err("`5 days` has no unit; write 5 dayss for seconds".into()));
        for text in ["", "s", "-1s", "1.5s", "99999999999999999999s", "9999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
