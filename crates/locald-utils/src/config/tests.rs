//! Mistakes as people see them, compared whole, and what a file without mistakes becomes.
//!
//! `mistakes.md` holds one file for each kind of mistake and what is said about it. With `LOCALD_UPDATE=1` in the
//! environment, the tests write that page and the JSON Schema anew instead of comparing them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::health::{HealthCheck, HttpProbe, Probe};
use crate::name::{ProjectId, ServiceName};
use crate::spec::{
    CommandSpec, Condition, Dependency, Kind, LogPolicy, Part, PortSpec, RestartPolicy, RestartWhen, ServiceSpec,
    StopPolicy, StopSignal, Template,
};

/// A project directory that goes away with the test.
struct Project(tempfile::TempDir);

impl Project {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let project = Self(tempfile::tempdir().expect("a temporary directory"));
        project.file(FILE_NAME, text);
        project
    }

    fn dir(&self) -> PathBuf {
        fs::canonicalize(self.0.path()).expect("it exists")
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.0.path().join(name), content).expect("writable");
        self
    }

    fn load(&self) -> Result<ProjectSpec, ConfigErrors> {
        load(&self.0.path().join(FILE_NAME))
    }

    fn errors(&self) -> ConfigErrors {
        self.load().expect_err("the file has mistakes")
    }

    /// The rendered mistakes, with the project's directory as `DIR`.
    fn mistakes(&self) -> String {
        let text = self.errors().render(false).replace(&self.dir().display().to_string(), "DIR");
        text.replace(&self.0.path().display().to_string(), "DIR")
    }

    fn places(&self) -> Vec<(usize, usize)> {
        let places = self.errors().diagnostics().into_iter().filter_map(|diagnostic| diagnostic.place);
        places.map(|place| (place.line, place.column)).collect()
    }
}

/// Compares a file of the repository with what it should hold, or rewrites it if asked to.
fn assert_current(path: &Path, content: &str) {
    if std::env::var_os("LOCALD_UPDATE").is_some() {
        fs::write(path, content).expect("writable");
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == content,
        "{} is not current; LOCALD_UPDATE=1 rewrites it. It should be:\n{content}",
        path.display()
    );
}

#[test]
fn every_kind_of_mistake_reads_as_in_mistakes_md() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/mistakes.md"));
    let page = fs::read_to_string(path).expect("readable");
    let mut current = String::new();
    let mut inputs = page.split("```toml\n");
    current.push_str(inputs.next().unwrap_or_default());
    for input in inputs {
        let (toml, rest) = input.split_once("```\n").expect("the file ends");
        let after =
            rest.split_once("```text\n").and_then(|(_, rest)| rest.split_once("```\n")).map_or(rest, |(_, a)| a);
        let project = Project::new(toml);
        project.file("bad.env", "A=1\nB C\n1D=2\n").file("latin1.env", b"A=\xe9\n").file("a-file", "");
        current.push_str(&format!("```toml\n{toml}```\n```text\n{}```\n{after}", project.mistakes()));
    }
    assert_current(path, &current);
}

#[test]
fn the_schema_in_docs_is_current() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/locald.schema.json"));
    let text = serde_json::to_string_pretty(&schema()).expect("serialises");
    assert_current(path, &format!("{text}\n"));
}

#[test]
fn the_page_on_the_project_file_names_every_key() {
    let page = include_str!("../../../../docs/config.md");
    let schema = schema();
    let service = &schema["properties"]["services"]["additionalProperties"]["properties"];
    let restart = &service["restart"]["anyOf"][1]["properties"];
    let health = &service["health_check"]["anyOf"][1]["properties"];
    for table in [&schema["properties"]["project"]["properties"], service, restart, health] {
        for key in table.as_object().expect("a table has keys").keys() {
            assert!(page.contains(&format!("`{key}`")), "docs/config.md says nothing of `{key}`");
        }
    }
    assert_eq!(schema["required"], serde_json::json!(["services"]));
}

#[test]
fn health_checks_have_their_defaults_and_what_is_said() {
    let checks = |written: &str| {
        let text = format!("[services.web]\ncommand = \"true\"\nport = 80\nhealth_check = {written}\n");
        let spec = Project::new(text).load().map_err(|errors| errors.render(false)).expect("no mistakes");
        spec.services[0].health.clone()
    };
    assert_eq!(checks("\"./ok\""), [HealthCheck::of(Probe::Command { command: shell("./ok") })]);
    let http = HttpProbe {
        path: "/".into(),
        port: None,
        status: Vec::new(),
        headers: BTreeMap::new(),
        tls: false,
        insecure: false,
    };
    assert_eq!(checks("{ type = \"http\" }"), [HealthCheck::of(Probe::Http(http.clone()))]);
    let all = checks(
        "[{ type = \"http\", path = \"/h\", port = 81, status = [200, 401], headers = { A = 1 }, tls = true, insecure = true, \
         interval = \"1s\", timeout = \"2s\", start_period = \"3s\", retries = 4 }, \
         { type = \"log\", pattern = 'up \\d' }, { type = \"notify\", fd = 3 }]",
    );
    let http = HttpProbe {
        path: "/h".into(),
        port: Some(81),
        status: vec![200, 401],
        headers: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        tls: true,
        insecure: true,
    };
    let seconds = Duration::from_secs;
    let first = HealthCheck {
        probe: Probe::Http(http),
        interval: seconds(1),
        timeout: seconds(2),
        start_period: Some(seconds(3)),
        retries: 4,
    };
    let log = HealthCheck::of(Probe::Log { pattern: "up \\d".into() });
    assert_eq!(all, [first, log, HealthCheck::of(Probe::Notify { fd: Some(3) })]);
}

#[test]
fn the_example_in_docs_has_no_mistakes() {
    let page = include_str!("../../../../docs/config.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let project = Project::new(example);
    project.file(".env", "").file(".env.local", "");
    fs::create_dir(project.dir().join("web")).expect("writable");
    let spec = project.load().map_err(|errors| errors.render(false)).expect("no mistakes");
    assert_eq!(spec.services.len(), 3);
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("a valid name")
}

fn shell(line: &str) -> CommandSpec {
    CommandSpec::Shell(Template::text(line))
}

fn plain_service(service: &str, dir: &Path) -> ServiceSpec {
    ServiceSpec {
        name: name(service),
        kind: Kind::Service,
        command: shell("true"),
        workdir: dir.to_owned(),
        env: BTreeMap::new(),
        borrowed: BTreeMap::new(),
        tty: true,
        port: None,
        depends_on: Vec::new(),
        health: Vec::new(),
        restart: RestartPolicy::default(),
        stop: StopPolicy::default(),
        log: LogPolicy::default(),
        profiles: Vec::new(),
        watch: None,
        inputs: None,
    }
}

#[test]
fn a_full_file_becomes_a_spec_in_the_order_of_the_file() {
    let project = Project::new(
        r#"#:schema https://example.org/locald.schema.json
[project]
name = "shop"

[services.web]
command = "npm run dev -- --port $PORT --db ${services.db.port} ${HOME} $$"
workdir = "./web"
port = "auto"
env = { URL = "http://h:${services.db.port}/${services.web.port}", N = 3, HEX = 0x1F, ON = true, B = "env", E = "" }
env_file = ["a.env", "b.env"]
depends_on = ["db", "migrate"]
restart = { policy = "on-failure", backoff = "100ms", max_backoff = "1m30s", limit = 3, reset_after = "1h" }
stop_signal = "int"
stop_grace = "0s"
stop_command = ["./quiesce", "${services.web.port}"]
log = { max_size = "1.5GB", max_age = "1d12h" }
profiles = ["full", "debug"]

[services.migrate]
type = "job"
command = ["./bin/migrate", "--all", ""]

[services.db]
command = "true"
port = 5432
restart = "always"
"#,
    );
    project.file("a.env", "A=a\nB=a\nC=${services.db.port\n".replace("${services.db.port", "'${services.db.port}'"));
    project.file("b.env", "\u{feff}B=b\nD=$A=$B\n");
    let dir = project.dir();
    fs::create_dir(dir.join("web")).expect("writable");

    let web_port = || Part::Port { port_of: name("web") };
    let text = |text: &str| Part::Text(text.to_owned());
    let env = [
        ("A", Template::text("a")),
        ("B", Template::text("env")),
        ("C", Template::text("${services.db.port}")),
        ("D", Template::text("a=b")),
        ("E", Template::text("")),
        ("HEX", Template::text("0x1F")),
        ("N", Template::text("3")),
        ("ON", Template::text("true")),
        ("URL", Template(vec![text("http://h:5432/"), web_port()])),
    ];
    let web = ServiceSpec {
        command: shell("npm run dev -- --port $PORT --db 5432 ${HOME} $$"),
        workdir: dir.join("web"),
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        tty: true,
        port: Some(PortSpec::Auto),
        depends_on: vec![
            Dependency { service: name("db"), condition: Condition::Ready, restart: false },
            Dependency { service: name("migrate"), condition: Condition::Completed, restart: false },
        ],
        restart: RestartPolicy {
            when: RestartWhen::OnFailure,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(90),
            limit: 3,
            reset_after: Duration::from_secs(3600),
        },
        stop: StopPolicy {
            signal: StopSignal(nix::sys::signal::Signal::SIGINT),
            grace: Duration::ZERO,
            command: Some(CommandSpec::Argv(vec![Template::text("./quiesce"), Template(vec![web_port()])])),
        },
        log: LogPolicy { max_size: 1_500_000_000, max_age: Duration::from_secs(36 * 3600) },
        profiles: ["full", "debug"].map(|profile| profile.parse().expect("valid")).to_vec(),
        ..plain_service("web", &dir)
    };
    let migrate = ServiceSpec {
        kind: Kind::Job,
        command: CommandSpec::Argv(["./bin/migrate", "--all", ""].map(Template::text).to_vec()),
        ..plain_service("migrate", &dir)
    };
    let db = ServiceSpec {
        port: Some(PortSpec::Fixed(5432)),
        restart: RestartPolicy { when: RestartWhen::Always, ..RestartPolicy::default() },
        ..plain_service("db", &dir)
    };
    let expected = ProjectSpec {
        id: ProjectId::of_directory(&dir),
        name: "shop".parse().expect("valid"),
        file: dir.join(FILE_NAME),
        dir,
        services: vec![web, migrate, db],
    };
    let spec = project.load().expect("no mistakes");
    assert_eq!(spec, expected);
    // Paths that differ in a `.` are equal, and yet would give another digest.
    assert_eq!(spec.services[0].workdir.as_os_str(), expected.services[0].workdir.as_os_str());
}

#[test]
fn dependencies_say_how_far_they_must_have_come_or_leave_it_to_their_type() {
    let services = "[services.db]\ncommand = \"true\"\n[services.migrate]\ntype = \"job\"\ncommand = \"true\"\n";
    let of_web = |depends_on: &str| {
        let text = format!("[services.web]\ncommand = \"true\"\ndepends_on = {depends_on}\n{services}");
        let spec = Project::new(text).load().expect("no mistakes");
        spec.services[0].depends_on.iter().map(|d| (d.service.to_string(), d.condition)).collect::<Vec<_>>()
    };
    let wants = |db, migrate| vec![("db".to_owned(), db), ("migrate".to_owned(), migrate)];
    assert_eq!(of_web("[\"db\", \"migrate\"]"), wants(Condition::Ready, Condition::Completed));
    let both = of_web("{ db = \"ready\", migrate = \"completed\" }");
    assert_eq!(both, wants(Condition::Ready, Condition::Completed));
    let both = of_web("{ db = \"started\", migrate = \"started\" }");
    assert_eq!(both, wants(Condition::Started, Condition::Started));
}

#[test]
fn the_directory_names_the_project_and_symbolic_links_make_no_second_one() {
    let real = Project::new("[services.a]\ncommand = \"true\"");
    let outer = tempfile::tempdir().expect("a temporary directory");
    let link = outer.path().join("link");
    std::os::unix::fs::symlink(real.dir(), &link).expect("writable");
    let spec = load(&link.join(FILE_NAME)).expect("no mistakes");
    assert_eq!(spec, real.load().expect("no mistakes"));
    assert_eq!(spec.name, crate::name::ProjectName::from_directory(&real.dir()));

    // A link to the file alone is a project of its own, where the link lies.
    std::os::unix::fs::symlink(real.dir().join(FILE_NAME), outer.path().join(FILE_NAME)).expect("writable");
    let spec = load(&outer.path().join(FILE_NAME)).expect("no mistakes");
    assert_eq!(spec.dir, fs::canonicalize(outer.path()).expect("it exists"));
}

#[test]
fn a_project_file_is_found_from_below_even_if_it_cannot_be_read() {
    let outer = Project::new("");
    let inner = outer.dir().join("a");
    fs::create_dir_all(inner.join("b")).expect("writable");
    assert_eq!(find(&inner.join("b")), Some(outer.dir().join(FILE_NAME)));
    std::os::unix::fs::symlink("nowhere", inner.join(FILE_NAME)).expect("writable");
    assert_eq!(find(&inner.join("b")), Some(inner.join(FILE_NAME)));
}

#[test]
fn a_byte_order_mark_and_crlf_do_not_move_columns() {
    let text = "\u{feff}[services.web]\r\n\tcommand = \"é😀\"\r\n\tport = \"é\" # x\r\nfoo = 1\r\n";
    let project = Project::new(text);
    assert_eq!(project.places(), [(3, 9), (4, 1)]);
    let expected = "\
error: `port` must be a number from 1 to 65535 or \"auto\", not the string \"é\"
 --> DIR/locald.toml:3:9
  |
3 |     port = \"é\" # x
  |            ^^^ expected a number from 1 to 65535 or \"auto\"
  |
  = help: \"auto\" lets locald choose a free port and keep it
";
    assert!(project.mistakes().starts_with(expected), "{}", project.mistakes());
    let project = Project::new("\u{feff}foo = 1");
    assert_eq!(project.places(), [(1, 1), (1, 1)]);
    let project = Project::new("\u{feff}[services.web]\r\ncommand = \"true\"\r\nenv = { A = 1 }\r\n");
    assert!(project.load().is_ok());
}

#[test]
fn references_are_placed_in_strings_with_escapes() {
    let line = r#"command = "é\t${services.x.port} \u0024{services.web.port}" "#;
    assert_eq!(Project::new(format!("[services.web]\n{line}\n")).places(), [(2, 11), (2, 11)]);
    let line = r#"command = "é\t${services.x.port} ${services.web.port}" "#;
    assert_eq!(Project::new(format!("[services.web]\n{line}\n")).places(), [(2, 15), (2, 34)]);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let project = Project::new("");
    let path = project.0.path().join(FILE_NAME);
    fs::remove_file(&path).expect("writable");
    let message = |reason: &str| {
        format!(
            "error: could not read DIR/locald.toml: {reason}\n--> DIR/locald.toml\n = help: `-f FILE` names another project file\n"
        )
    };
    assert_eq!(project.mistakes(), message("it does not exist"));
    fs::create_dir(&path).expect("writable");
    assert_eq!(project.mistakes(), message("it is a directory"));
    assert_eq!(project.places(), []);
    fs::remove_dir(&path).expect("writable");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("writable");
    assert_eq!(project.mistakes(), message("it is not a regular file"));
    fs::remove_file(&path).expect("writable");
    project.file(FILE_NAME, "#".repeat(1024 * 1024 + 1));
    assert_eq!(project.mistakes(), message("it has more than 1 MiB"));
}

#[test]
fn a_file_that_is_not_utf8_says_where() {
    let project = Project::new(b"\xef\xbb\xbf# \xc3\xa9\n# \xc3\xa9\xff\xfe x\n");
    let expected = "\
error: the file is not valid UTF-8
 --> DIR/locald.toml:2:4
  |
2 | # é\u{fffd}\u{fffd} x
  |    ^ this byte does not belong to any character
  |
  = help: save the file as UTF-8
";
    assert_eq!(project.mistakes(), expected);
}

#[test]
fn diagnostics_have_the_place_the_message_and_the_help() {
    let project = Project::new("[services.web]\ncomand = \"x\"\n");
    let file = project.0.path().join(FILE_NAME);
    let diagnostics = project.errors().diagnostics();
    assert_eq!(
        serde_json::to_value(&diagnostics).expect("serialises"),
        serde_json::json!([
            { "file": file, "line": 2, "column": 1, "message": "unknown key `comand`", "help": "did you mean `command`?" }
        ])
    );
    let json = serde_json::to_string(&diagnostics).expect("serialises");
    assert_eq!(serde_json::from_str::<Vec<Diagnostic>>(&json).expect("parses"), diagnostics);
    assert_eq!(project.errors().to_string(), format!("{} has a mistake", file.display()));
}

#[test]
fn color_changes_nothing_but_the_color() {
    let errors = Project::new("[services.web]\ncomand = \"x\"\nport = 0").errors();
    let mut plain = String::new();
    let colored = errors.render(true);
    let mut is_escape = false;
    for c in colored.chars() {
        match c {
            '\u{1b}' => is_escape = true,
            'm' if is_escape => is_escape = false,
            c if !is_escape => plain.push(c),
            _ => {}
        }
    }
    assert_ne!(plain, colored);
    assert_eq!(plain, errors.render(false));
}

#[test]
fn two_hundred_mistakes_are_shown_and_the_rest_counted() {
    let text: String = (0..203).map(|i| format!("x{i} = 1\n")).collect();
    let errors = Project::new(format!("{text}[services.web]\ncommand = \"true\"")).errors();
    assert!(errors.render(false).ends_with("\n\nand 3 more\n"));
    assert_eq!(errors.diagnostics().len(), 200);
}

#[test]
fn a_message_does_not_repeat_more_than_anybody_reads() {
    let key = "é".repeat(10_000);
    let diagnostics = Project::new(format!("[services.\"{key}\"]\n\"{key}\" = {key}")).errors().diagnostics();
    for diagnostic in &diagnostics {
        assert!(diagnostic.message.chars().count() <= 401 && diagnostic.help.iter().all(|help| help.len() < 1000));
    }
    assert!(!diagnostics.is_empty());
}

/// Checks what holds for every text: no panic, and a mistake for every failure, each with a place that is there.
fn check_any_text(text: &str) {
    let around = resolve::Surroundings { file: Path::new("/p/locald.toml"), dir: Path::new("/p"), lookup: &|_| None };
    let Err(mistakes) = load_text(text, &around) else { return };
    assert!(!mistakes.is_empty());
    let errors = ConfigErrors::new(Path::new("locald.toml"), text.to_owned(), mistakes);
    let rendered = errors.render(false);
    let places = rendered.lines().filter_map(|line| line.trim_start().strip_prefix("--> locald.toml:"));
    let found: Vec<String> = places.map(str::to_owned).collect();
    let expected: Vec<String> = errors
        .diagnostics()
        .iter()
        .filter_map(|diagnostic| diagnostic.place)
        .map(|place| format!("{}:{}", place.line, place.column))
        .collect();
    assert_eq!(found, expected, "{text:?}\n{rendered}");
}

/// Pieces of which random files are made that get further than random characters do.
const PIECES: &[&str] = &[
    "[services.a]\n",
    "[services.b]\n",
    "[services]\n",
    "[project]\n",
    "[[services.a]]\n",
    "[services.a.env]\n",
    "[services.\"\"]\n",
    "name = \"x\"\n",
    "command = \"x ${services.a.port} ${services.\"\n",
    "command = [\"a\", 1]\n",
    "command = [\n",
    "command = ",
    "port = 1\n",
    "port = \"auto\"\n",
    "port = 08\n",
    "depends_on = [\"a\", \"b\", \"b\"]\n",
    "depends_on = [\"a\"",
    "]",
    "[",
    "{",
    "}",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "=",
    ",",
    ".",
    "\n",
    "\r\n",
    "\t",
    "#",
    "é",
    "😀",
    "\u{feff}",
    "\0",
    "\u{200b}",
    "\r",
    "env = { A = 1, A = 2 }\n",
    "env.A = 3\n",
    "restart = { policy = \"no\" }\n",
    "restart = \"x\"\n",
    "stop_grace = \"1m30s\"\n",
    "stop_signal = \"kill\"\n",
    "a.b.c = 1979-05-27\n",
    "type = \"job\"\n",
    "services = 1\n",
    "services.a.command = \"\\u0000\"\n",
    "foo\n",
    "x = {\n",
    "[services.a",
    "1",
    "-",
    "inf",
    "true",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        check_any_text(&text);
    }

    #[test]
    fn no_text_made_of_pieces_panics(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        check_any_text(&pieces.concat());
    }

    #[test]
    fn no_env_file_panics(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..20), text in any::<String>()) {
        dotenv::read(&(pieces.concat() + &text), &mut BTreeMap::new(), &|name| Some(name.to_owned()), |_, _| {});
    }
}

#[test]
fn a_launcher_has_no_terminal_unless_it_asks_for_one() {
    let of = |more: &str| {
        let project = Project::new(format!("[services.a]\ncommand = \"true\"\n{more}\n"));
        project.load().expect("valid").services.remove(0)
    };
    let (plain, job, forking) = (of(""), of("type = \"job\""), of("type = \"forking\""));
    assert_eq!((plain.tty, job.tty, forking.tty), (true, true, false));
    assert_eq!((forking.kind, of("type = \"forking\"\ntty = true").tty), (Kind::Forking, true));
    assert!(!of("tty = false").tty);
    let piped = ServiceSpec { tty: false, ..plain.clone() };
    assert_ne!(piped.digest(), plain.digest(), "`up` restarts what has another kind of output");
}
