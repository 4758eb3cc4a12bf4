//! `--dry-run` says what would be done and why, and does nothing; `up` says on the side what it leaves alone with another environment.

use serde_json::{Value, json};

use crate::support::{Site, free_port};

const SHOP: &str = "[services.db]\ncommand = 'exec sleep 600'\nenv = { TOKEN = \"first\", LEVEL = \"1\" }\n\
     [services.seed]\ntype = \"job\"\ncommand = 'true'\ndepends_on = [\"db\"]\n\
     [services.web]\ncommand = 'exec sleep 600'\ndepends_on = { db = { restart = true }, seed = \"completed\" }\n\
     [services.other]\ncommand = 'exec sleep 600'\n\
     [services.mail]\ncommand = 'exec sleep 600'\nprofiles = [\"full\"]\n";

fn preview(site: &Site, words: &str) -> Value {
    let value = site.locald(&format!("{words} --dry-run --json")).run().ok().json();
    assert_eq!((&value["schema"], &value["dry_run"]), (&1.into(), &true.into()), "{value}");
    value
}

/// Each service with what would be done.
fn steps(value: &Value) -> String {
    let services = value["services"].as_array().expect("services").iter();
    let step = |service: &Value| {
        format!("{} {}", service["name"].as_str().expect("a name"), service["step"].as_str().expect("a step"))
    };
    services.map(step).collect::<Vec<_>>().join(", ")
}

fn of<'a>(value: &'a Value, name: &str) -> &'a Value {
    value["services"].as_array().expect("services").iter().find(|service| service["name"] == name).expect("a service")
}

#[test]
fn without_a_daemon_everything_would_be_started_and_none_is_started() {
    let site = Site::new(SHOP);
    let all = preview(&site, "up");
    assert_eq!(steps(&all), "db start, seed start, web start, other start, mail skip");
    assert_eq!(of(&all, "seed")["waiting_for"], json!([{ "service": "db", "condition": "ready" }]));
    assert_eq!(
        steps(&preview(&site, "up other --profile full")),
        "db skip, seed skip, web skip, other start, mail start"
    );
    let shown = site.locald("up --dry-run").run().ok();
    shown.says("waits for db, seed").says("only with profile full").says("nothing was changed");
    assert_eq!(site.locald("up seed --dry-run --quiet").run().ok().stdout, "db\nseed\n");
    assert!(site.processes().is_empty());
    site.locald("up webb --dry-run").run().code(4).says("did you mean `web`?");
    site.locald("up -f --dry-run").run().code(2);
    site.locald("up --reveal").run().code(2);
}

#[test]
fn what_runs_is_left_alone_and_what_changed_is_told_key_by_key() {
    let site = Site::new(SHOP);
    site.up();
    assert_eq!(steps(&preview(&site, "up")), "db leave, seed leave, web leave, other leave, mail skip");
    let text = SHOP.replace("TOKEN = \"first\", LEVEL = \"1\"", "TOKEN = \"second\", NEW = \"new\"").replacen(
        "sleep 600",
        "sleep 601",
        1,
    );
    let text = text.replace(
        "[services.other]\ncommand = 'exec sleep 600'\n",
        "[services.other]\ncommand = 'exec sleep 600'\nrestart = \"always\"\n",
    );
    site.write("locald.toml", &text);
    let value = preview(&site, "up");
    assert_eq!(steps(&value), "db restart, seed leave, web restart, other leave, mail skip");
    let db = of(&value, "db");
    assert_eq!(db["because"], json!([{ "kind": "changed" }]));
    let hidden = |key: &str| json!({ "key": key, "from": null, "to": null, "redacted": true });
    let command =
        json!({ "key": "command", "from": "\"exec sleep 600\"", "to": "\"exec sleep 601\"", "redacted": false });
    assert_eq!(db["changes"], json!([command, hidden("env.NEW"), hidden("env.TOKEN"), hidden("env.LEVEL")]));
    assert_eq!(of(&value, "web")["because"], json!([{ "kind": "follows", "service": "db" }]));
    assert_eq!(of(&value, "other")["changes"][0]["key"], "restart.policy");

    let shown = site.locald("up --dry-run").run().ok();
    let shown = shown
        .says("command: \"exec sleep 600\" -> \"exec sleep 601\"")
        .says("env.TOKEN changed")
        .says("env.NEW is new");
    shown
        .says("env.LEVEL is gone")
        .says("it has changed")
        .says("it follows db")
        .says_nothing_of("second")
        .says_nothing_of("first");
    site.locald("up --dry-run --reveal")
        .run()
        .ok()
        .says("env.TOKEN: \"first\" -> \"second\"")
        .says("env.NEW: \"new\" (new)");

    // Nothing has been done, and then exactly that is done.
    assert_eq!(site.service("db")["run"], 1);
    assert_eq!(steps(&preview(&site, "start")), "db leave, seed leave, web leave, other leave, mail skip");
    let start = preview(&site, "start seed");
    assert_eq!(steps(&start), "db leave, seed start, web skip, other skip, mail skip");
    assert_eq!(of(&start, "seed")["because"], json!([{ "kind": "asked" }]));
    assert_eq!(steps(&preview(&site, "restart other")), "db skip, seed skip, web skip, other restart, mail skip");
    site.up();
    let run = |service: &str| site.service(service)["run"].clone();
    assert_eq!((run("db"), run("seed"), run("web"), run("other")), (2.into(), 1.into(), 2.into(), 1.into()));
    assert_eq!(steps(&preview(&site, "up")), "db leave, seed leave, web leave, other leave, mail skip");
}

#[test]
fn what_looks_like_a_secret_is_not_shown_in_any_key() {
    let text = |version: &str| {
        format!(
            "[services.web]\ncommand = 'exec sleep 600 # postgres://u:{version}pw@h/x'\nport = 'auto'\n\
             stop_command = \"curl -H 'Authorization: Bearer ghp_{version}' x\"\n\
             health_check = {{ type = 'http', path = '/?token={version}abc&full=1', start_period = '1h', \
             headers = {{ Authorization = 'Bearer {version}kret', X-Api-Key = '{version}kkk', Accept = '{version}' }} }}\n\
             [services.call]\ncommand = ['call', '--api-key', '{version} arg', 'x']\nprofiles = ['call']\n"
        )
    };
    let site = Site::new(&text("old"));
    site.locald("up --timeout 1s").run().code(124);
    site.write("locald.toml", text("new"));
    let secrets = |site: &Site, words: &'static str| {
        let mut shown = site.locald(words).run().ok();
        for secret in ["pw@", "ghp_", "abc", "kret", "kkk", " arg"] {
            shown = shown.says_nothing_of(secret);
        }
        shown
    };
    let shown = secrets(&site, "up --dry-run");
    shown.says("command changed").says("stop_command changed").says("/?token=***&full=1").says("Accept = \"new\"");
    secrets(&site, "config call").says("[\"call\", \"--api-key\", \"***\", \"x\"]");
    secrets(&site, "config").says("u:***@h/x").says("X-Api-Key = \"***\"").says("Bearer ***' x");
    secrets(&site, "config --origin --json");
    let value = secrets(&site, "up --dry-run --json").json();
    let hidden = "\"exec sleep 600 # postgres://u:***@h/x\"";
    let command = json!({ "key": "command", "from": hidden, "to": hidden, "redacted": true });
    assert_eq!(of(&value, "web")["changes"][0], command);
    site.locald("up --dry-run --reveal").run().ok().says("oldpw@").says("ghp_new").says("newkret");
}

#[test]
fn what_runs_without_a_daemon_is_not_called_stopped() {
    let site = Site::new(SHOP);
    site.locald("up db").run().ok();
    site.locald("daemon stop").run().ok();
    assert_eq!(steps(&preview(&site, "up db other")), "db leave, seed skip, web skip, other start, mail skip");
    site.locald("up --dry-run").run().ok().says("it runs without a daemon");
    assert!(site.daemons().is_empty());
}

#[test]
fn the_environment_of_the_caller_is_taken_with_the_next_run_and_a_difference_is_told() {
    let site = Site::new(SHOP);
    let at = |words: &'static str| site.locald(words).env("NODE_ENV", "one").env("DISPLAY", ":1").env("DEEP", "x");
    at("up").run().ok().says_nothing_of("another environment");
    at("up").run().ok().says_nothing_of("another environment");
    // What any two terminals have otherwise is no news to a person.
    let other = |words: &'static str| {
        site.locald(words).env("NODE_ENV", "two").env("DISPLAY", ":2").env("TERM_PROGRAM", "x").env("SHLVL", "9")
    };
    let up = other("up").run().ok();
    up.says("db, web and other run with another environment than this one (DEEP, NODE_ENV); `locald restart`");
    assert_eq!(site.service("db")["run"], 1);
    other("up -q").run().ok().says_nothing_of("another environment");
    other("up --dry-run").run().ok().says("its environment differs in DEEP, NODE_ENV");
    let value = other("up --dry-run --json").run().ok().json();
    assert_eq!(of(&value, "web")["environment"], json!(["DEEP", "DISPLAY", "NODE_ENV"]));
    assert_eq!(of(&value, "web")["step"], "leave");
    // The next daemon knows it as well.
    site.locald("daemon stop").run().ok();
    other("restart web").run().ok();
    let value = other("up --dry-run --json").run().ok().json();
    assert_eq!(
        (&of(&value, "web")["environment"], &of(&value, "other")["environment"]),
        (&json!([]), &json!(["DEEP", "DISPLAY", "NODE_ENV"]))
    );
}

#[test]
fn a_port_that_was_changed_in_the_file_is_not_called_another_environment() {
    let port = free_port();
    let text = |port: u16| {
        format!(
            "[services.db]\ncommand = 'exec \"$ZOO\" listen {port}'\nport = {port}\n[services.web]\ncommand = 'exec sleep 600'\n"
        )
    };
    let site = Site::new(&text(port));
    site.up();
    site.write("locald.toml", text(free_port()));
    site.locald("up").run().ok().says_nothing_of("another environment");
    assert_eq!((&site.service("db")["run"], &site.service("web")["run"]), (&2.into(), &1.into()));
    site.locald("up --dry-run").run().ok().says("its environment differs in LOCALD_PORT_DB, LOCALD_URL_DB");
}
