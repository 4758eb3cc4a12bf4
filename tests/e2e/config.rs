//! `locald config` shows what the project file comes to, where each value is from, and no secrets.

use serde_json::{Value, json};

use crate::support::Site;

const SHOP: &str = "[services.db]\ncommand = \"exec sleep 600\"\nport = 5432\nhealth_check = \"true\"\n\
     [services.web]\ncommand = ['sleep', '600']\nport = \"auto\"\ndepends_on = [\"db\"]\nrestart = \"on-failure\"\nhealth_check = \"true\"\n\
     env_file = \".env\"\nenv = { URL = \"postgres://me:hidden@localhost:${services.db.port}/shop\", A = \"file\" }\n";

fn shop() -> Site {
    let site = Site::new(SHOP);
    site.write(".env", "# mine\nA=env_file\nAPI_KEY=hidden\nLEVEL=debug\n");
    site
}

fn web(value: &Value) -> &Value {
    value["services"].as_array().expect("services").iter().find(|service| service["name"] == "web").expect("declared")
}

fn of<'a>(lines: &'a Value, key: &str, name: &str) -> &'a Value {
    lines
        .as_array()
        .expect("lines")
        .iter()
        .find(|line| line[key] == name)
        .unwrap_or_else(|| panic!("{name} in {lines}"))
}

#[test]
fn what_is_printed_is_the_same_project_file_with_every_default() {
    let site = shop();
    let shown = site.locald("config --reveal").run().ok();
    let shown = shown.says("stop_grace = \"5s\"").says("restart.policy = \"on-failure\"").says("env.LEVEL = \"debug\"");
    site.up();
    let digest = |site: &Site| site.service("web")["changed"].clone();
    site.write("locald.toml", &shown.stdout);
    assert_eq!((digest(&site), site.service("db")["changed"].clone()), (false.into(), false.into()), "{shown}");
    assert_eq!(site.locald("config --reveal").run().ok().stdout, shown.stdout);
    site.locald("config db").run().ok().says("[services.db]").says_nothing_of("[services.web]");
    site.locald("config wbe").run().code(4).says("did you mean `web`?");
}

#[test]
fn every_value_says_where_it_is_from_and_secrets_are_not_shown() {
    let site = shop();
    let call = |words: &'static str| {
        site.locald(words).env("A", "caller").env("MY_TOKEN", "hidden").env("TMUX", "x").env("LOCALD_RUN", "x")
    };
    let shown = call("config web --origin").run().ok().says_nothing_of("hidden");
    let shown = shown.says("command = [\"sleep\", \"600\"]  # locald.toml:6").says("stop_grace = \"5s\"  # default");
    let shown = shown.says("env.A = \"file\"  # locald.toml:12, over .env:2").says("env.API_KEY = \"***\"  # .env:3");
    let shown = shown.says("URL = \"postgres://me:***@localhost:5432/shop\"").says("MY_TOKEN = \"***\"  (caller)");
    let shown =
        shown.says("A = \"file\"  (locald.toml:12, over .env:2, caller)").says("PORT = (not known yet)  (locald)");
    shown.says("Left with the caller: LOCALD_RUN, TMUX");
    assert!(site.processes().is_empty(), "no daemon is needed");

    let value = call("config --json").run().ok().json();
    let environment = &web(&value)["environment"];
    let a = json!({ "name": "A", "value": "file", "redacted": false, "origin": "file", "file": "locald.toml", "line": 12,
                    "over": [{ "origin": "file", "file": ".env", "line": 2 }, { "origin": "caller" }] });
    assert_eq!(of(environment, "name", "A"), &a);
    assert_eq!(of(environment, "name", "API_KEY")["redacted"], true);
    assert_eq!(of(environment, "name", "HOME")["origin"], "caller");
    assert_eq!(
        of(&web(&value)["keys"], "key", "restart.policy")["sources"],
        json!([{ "file": "locald.toml", "line": 9 }])
    );
    assert_eq!(web(&value)["removed"], json!(["LOCALD_RUN", "TMUX"]));

    let open = call("config --json --reveal").run().ok().json();
    let open = &web(&open)["environment"];
    assert_eq!(
        (&of(open, "name", "API_KEY")["value"], &of(open, "name", "MY_TOKEN")["value"]),
        (&"hidden".into(), &"hidden".into())
    );
    // What is shown is what there is, and the port is known when it has been assigned.
    let run = call("run --no-deps web -- env").run().ok();
    let value = call("config --json --reveal").run().ok().json();
    let environment = web(&value)["environment"].as_array().expect("a list");
    for line in run.stdout.lines() {
        let (name, text) = line.split_once('=').expect("a variable");
        // A one-off command has the caller's terminal.
        if name != "TMUX" {
            assert_eq!(of(&environment.clone().into(), "name", name)["value"], text, "{line}");
        }
    }
}

#[test]
fn mistakes_are_told_as_by_check() {
    let site = Site::new("[services.web]\ncomand = \"x\"\n");
    site.locald("config").run().code(2).says("did you mean `command`?");
    let value = site.locald("config --json").run().code(2).json();
    assert_eq!((&value["verb"], &value["errors"][0]["line"]), (&"config".into(), &2.into()));
}
