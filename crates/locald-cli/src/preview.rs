//! What a start would do, for people: the daemon's preview, what is different in the file, and what is worth saying. Pure.

use std::collections::BTreeMap;

use locald_utils::config::form::Key;
use locald_utils::exports;
use locald_utils::name::{ProfileName, ServiceName};
use locald_utils::protocol::{Because, Failure, Preview, Step, WaitingOn};
use locald_utils::selection;
use locald_utils::spec::{ProjectSpec, ServiceSpec};

use crate::environment;
use crate::secrets::{self, Value};

/// A service, and what would happen to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// What the daemon would do.
    pub(crate) preview: Preview,
    /// How what is written differs from what runs.
    pub(crate) changes: Vec<Change>,
    /// What else there is to say.
    pub(crate) note: Option<String>,
}

/// A key that is written otherwise than it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The key.
    pub(crate) key: Key,
    /// Its value in the run; `None` if it was not there.
    pub(crate) from: Option<Value>,
    /// Its value in the file now; `None` if it is gone.
    pub(crate) to: Option<Value>,
}

impl Change {
    /// Its values as they are printed. Those of variables are for who asks for them: most are of no interest, and some are secrets.
    pub(crate) fn printed(&self, reveal: bool) -> (Option<&str>, Option<&str>) {
        if self.is_variable() && !reveal {
            return (None, None);
        }
        (self.from.as_ref().map(|from| from.printed(reveal)), self.to.as_ref().map(|to| to.printed(reveal)))
    }

    /// Whether something of the values is not for everybody to see.
    pub(crate) fn is_private(&self) -> bool {
        self.is_variable() || self.from.iter().chain(&self.to).any(Value::is_redacted)
    }

    fn is_variable(&self) -> bool {
        matches!(self.key, Key::Variable(_))
    }
}

/// Whether a service would get a new run.
pub(crate) fn is_new_run(planned: &Planned) -> bool {
    matches!(planned.preview.step, Step::Start | Step::Restart)
}

/// Adds to what the daemon says what the file says.
pub(crate) fn planned(previews: Vec<Preview>, project: &ProjectSpec) -> Vec<Planned> {
    let planned = previews.into_iter().map(|preview| {
        let written = project.services.iter().find(|service| service.name == preview.service);
        let changes = match (&preview.running, written) {
            (Some(running), Some(written)) => changes(running, written),
            (Some(_) | None, _) => Vec::new(),
        };
        let note = match (preview.step, written) {
            (_, None) => Some("not in the project file; it runs on".to_owned()),
            (Step::Skip, Some(written)) if preview.running.is_none() && !written.profiles.is_empty() => {
                let profiles: Vec<&str> = written.profiles.iter().map(ProfileName::as_str).collect();
                Some(format!("only with profile {}", profiles.join(" or ")))
            }
            (Step::Refuse, Some(_)) => {
                Some("what is left of its last run could not be ended; --force starts it beside that".to_owned())
            }
            (Step::Leave, Some(written)) if !changes.is_empty() => {
                let needs_run = preview.running.as_ref().is_some_and(|running| running.digest() != written.digest());
                let note =
                    if needs_run { "it has changed; `up` restarts it" } else { "what has changed needs no new run" };
                Some(note.to_owned())
            }
            (_, Some(_)) => None,
        };
        Planned { preview, changes, note }
    });
    planned.collect()
}

/// What would happen without a daemon. Services that run all the same are taken over by the next one, which then knows more.
///
/// # Errors
/// As the daemon's.
pub(crate) fn without_daemon(
    project: &ProjectSpec,
    named: &[ServiceName],
    profiles: &[ProfileName],
    running: &[ServiceName],
) -> Result<Vec<Planned>, Failure> {
    let meant = selection::meant(project, named, profiles, |name| running.contains(name))?;
    let about = selection::with_dependencies(project, &meant)?;
    let preview = |spec: &ServiceSpec| {
        let step = match (running.contains(&spec.name), about.contains(&spec.name)) {
            (true, _) => Step::Leave,
            (false, true) => Step::Start,
            (false, false) => Step::Skip,
        };
        let needs = spec.depends_on.iter();
        let needs = needs.map(|on| WaitingOn { service: on.service.clone(), condition: on.condition });
        Preview {
            service: spec.name.clone(),
            step,
            because: Vec::new(),
            waits_for: if step == Step::Start { needs.collect() } else { Vec::new() },
            running: None,
            environment: Vec::new(),
        }
    };
    let mut planned = planned(project.services.iter().map(preview).collect(), project);
    for one in planned.iter_mut().filter(|one| one.preview.step == Step::Start) {
        let has_inputs = |spec: &&ServiceSpec| spec.name == one.preview.service && spec.inputs.is_some();
        if project.services.iter().any(|spec| has_inputs(&spec)) {
            one.note = Some("unless it has done so with the same inputs, which the daemon knows".to_owned());
        }
    }
    for one in planned.iter_mut().filter(|one| one.preview.step == Step::Leave) {
        one.note = Some("it runs without a daemon; `locald daemon start` takes it over and knows more".to_owned());
    }
    Ok(planned)
}

/// The keys that differ, as the file has them, then those that are gone.
fn changes(running: &ServiceSpec, written: &ServiceSpec) -> Vec<Change> {
    let mut before: BTreeMap<Key, Value> = secrets::of_service(running).into_iter().collect();
    let mut changes = Vec::new();
    for (key, value) in secrets::of_service(written) {
        let from = before.remove(&key);
        if from.as_ref().map(|from| &from.whole) != Some(&value.whole) {
            changes.push(Change { key, from, to: Some(value) });
        }
    }
    changes.extend(before.into_iter().map(|(key, value)| Change { key, from: Some(value), to: None }));
    changes
}

/// Why it would happen, and what else there is to say.
pub(crate) fn why(planned: &Planned) -> String {
    let Planned { preview, changes: _, note } = planned;
    let mut parts: Vec<String> = Vec::new();
    for because in &preview.because {
        parts.push(match because {
            Because::Changed => "it has changed".to_owned(),
            Because::Ports => "its port, or one that it mentions, is another now".to_owned(),
            Because::Inputs => "its inputs have changed".to_owned(),
            Because::Asked => "it was asked for".to_owned(),
            Because::Follows(service) => format!("it follows {service}"),
        });
    }
    if preview.step == Step::Restart && preview.because.is_empty() {
        parts.push("under way".to_owned());
    }
    if !preview.waits_for.is_empty() {
        let names: Vec<&str> = preview.waits_for.iter().map(|on| on.service.as_str()).collect();
        parts.push(format!("waits for {}", names.join(", ")));
    }
    let names = of_interest(&preview.environment);
    if !names.is_empty() {
        parts.push(format!("its environment differs in {}", list(&names)));
    }
    parts.extend(note.clone());
    parts.join("; ")
}

/// What `up` says on the side of services that it left alone: that they have another environment than a new run would have.
pub(crate) fn environment_note(previews: &[Preview]) -> Option<String> {
    let differ: Vec<(&str, Vec<&str>)> = previews
        .iter()
        .map(|preview| (preview.service.as_str(), of_caller(&preview.environment)))
        .filter(|(_, names)| !names.is_empty())
        .collect();
    let services: Vec<&str> = differ.iter().map(|(service, _)| *service).collect();
    let who = match services.as_slice() {
        [] => return None,
        [one] => format!("{one} runs"),
        [before @ .., last] => format!("{} and {last} run", before.join(", ")),
    };
    let mut names: Vec<&str> = differ.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    Some(format!("{who} with another environment than this one ({}); `locald restart` takes this one", list(&names)))
}

/// The variables that make a difference: not those that any two sessions have otherwise.
fn of_interest(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| !environment::is_of_session(name)).collect()
}

/// Those of them that the caller has otherwise: not the ports of the project, which locald tells.
fn of_caller(names: &[String]) -> Vec<&str> {
    let mut names = of_interest(names);
    names.retain(|name| !exports::is_export(name));
    names
}

/// Names of variables, some of them if they are many.
fn list(names: &[&str]) -> String {
    /// 5: more than that is another environment altogether.
    const MOST: usize = 5;
    match names.len().checked_sub(MOST) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use locald_utils::spec::{CommandSpec, Template};

    use super::*;
    use crate::testing::{name, spec};

    fn preview(service: &str, step: Step) -> Preview {
        let (because, waits_for, environment) = (Vec::new(), Vec::new(), Vec::new());
        Preview { service: name(service), step, because, waits_for, running: None, environment }
    }

    #[test]
    fn changes_are_named_by_the_keys_of_the_file() {
        let mut running = spec(&["web"]).services.remove(0);
        running.env.insert("GONE".into(), Template::text("1"));
        running.env.insert("KEPT".into(), Template::text("1"));
        running.env.insert("URL".into(), Template::text("1"));
        let mut written = spec(&["web"]);
        written.services[0].command = CommandSpec::Argv(vec![Template::text("a"), Template::text("b c")]);
        written.services[0].env.insert("KEPT".into(), Template::text("1"));
        written.services[0].env.insert("URL".into(), Template::text("2"));
        written.services[0].stop.grace = std::time::Duration::from_secs(90);
        let preview = Preview { running: Some(Box::new(running)), ..preview("web", Step::Restart) };
        let planned = planned(vec![preview], &written);
        let shown: Vec<String> = planned[0]
            .changes
            .iter()
            .map(|change| {
                let (from, to) = change.printed(true);
                format!("{} {from:?} {to:?}", change.key)
            })
            .collect();
        assert_eq!(
            shown,
            [
                r#"command Some("\"sleep 1\"") Some("[\"a\", \"b c\"]")"#,
                r#"stop_grace Some("\"5s\"") Some("\"1m30s\"")"#,
                r#"env.URL Some("\"1\"") Some("\"2\"")"#,
                r#"env.GONE Some("\"1\"") None"#,
            ]
        );
    }

    #[test]
    fn of_a_changed_line_what_is_secret_is_not_printed() {
        let shell = |line: &str| CommandSpec::Shell(Template::text(line));
        let mut running = spec(&["web"]).services.remove(0);
        running.command = shell("a postgres://u:old@h/x");
        let mut written = running.clone();
        written.command = shell("b postgres://u:new@h/x");
        let change = changes(&running, &written).remove(0);
        assert!(change.is_private());
        let printed = (Some(r#""a postgres://u:***@h/x""#), Some(r#""b postgres://u:***@h/x""#));
        assert_eq!(change.printed(false), printed);
        assert_eq!(change.printed(true).0, Some(r#""a postgres://u:old@h/x""#));
        // That something has changed is known, and not what.
        written.command = shell("a postgres://u:new@h/x");
        let change = changes(&running, &written).remove(0);
        assert_eq!(change.printed(false).0, change.printed(false).1);
    }

    #[test]
    fn a_difference_that_any_two_terminals_have_is_not_told() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let one = Preview {
            environment: names(&["SSH_AUTH_SOCK", "DISPLAY", "XDG_SESSION_ID"]),
            ..preview("a", Step::Leave)
        };
        assert_eq!(environment_note(std::slice::from_ref(&one)), None);
        let two = Preview { environment: names(&["DISPLAY", "NODE_ENV", "PATH"]), ..preview("b", Step::Leave) };
        let note = |previews: &[Preview]| environment_note(previews).expect("something");
        let said = "b runs with another environment than this one (NODE_ENV, PATH); `locald restart` takes this one";
        assert_eq!(note(&[one, two.clone()]), said);
        // A port that was changed in the file is not the caller's doing.
        let port = names(&["LOCALD_PORT_DB", "LOCALD_URL_DB", "NODE_ENV", "PATH"]);
        assert_eq!(note(&[Preview { environment: port, ..two.clone() }]), said);
        let port = Preview { environment: names(&["LOCALD_PORT_DB"]), ..preview("b", Step::Leave) };
        assert_eq!(environment_note(std::slice::from_ref(&port)), None);
        assert_eq!(
            why(&Planned { preview: port, changes: Vec::new(), note: None }),
            "its environment differs in LOCALD_PORT_DB"
        );
        let many = Preview { environment: names(&["A", "B", "C", "D", "PATH", "Z"]), ..preview("c", Step::Leave) };
        assert!(
            note(&[two, many])
                .starts_with("b and c run with another environment than this one (A, B, C, D, NODE_ENV and 2 more)")
        );
    }

    #[test]
    fn without_a_daemon_what_does_not_run_is_started() {
        let mut project = spec(&["db", "web", "mail"]);
        project.services[2].profiles = vec!["full".parse().expect("valid")];
        let planned = without_daemon(&project, &[], &[], &[name("db")]).expect("possible");
        let shown: Vec<_> = planned.iter().map(|one| (one.preview.step, one.note.is_some())).collect();
        assert_eq!(shown, [(Step::Leave, true), (Step::Start, false), (Step::Skip, true)]);
    }
}
