//! `--json` of every verb: one object on stdout, nothing on stderr, compared whole.

use serde_json::{Value, json};

use crate::support::{Site, free_port};

/// Replaces what differs from run to run by what kind of thing it is.
fn normal(site: &Site, value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let normal_field = |(key, value): (String, Value)| {
                let value = match (key.as_str(), value) {
                    (_, Value::Null) => Value::Null,
                    ("pid", Value::Number(_)) => "PID".into(),
                    ("id", Value::String(_)) => "ID".into(),
                    ("version", Value::String(_)) => "VERSION".into(),
                    (key, Value::Number(_)) if key.ends_with("_at") => "INSTANT".into(),
                    (key, Value::Number(_)) if key.ends_with("_ms") => "MS".into(),
                    (_, value) => normal(site, value),
                };
                (key, value)
            };
            fields.into_iter().map(normal_field).collect()
        }
        Value::Array(values) => values.into_iter().map(|value| normal(site, value)).collect(),
        Value::String(text) => text.replace(site.root().to_str().expect("text"), "ROOT").into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// Runs a verb with `--json` and demands an exit code.
fn answer(site: &Site, words: &str, code: i32) -> Value {
    let value = site.locald(&format!("{words} --json")).run().code(code).json();
    normal(site, value)
}

fn project() -> Value {
    json!({ "name": "shop", "id": "ID", "dir": "ROOT/shop", "file": "ROOT/shop/locald.toml" })
}

/// A service that has never run.
fn stopped(name: &str, kind: &str) -> Value {
    json!({
        "name": name, "kind": kind, "desired": "down", "state": "stopped", "text": "stopped", "run": null, "pid": null,
        "started_at": null, "ready_at": null, "uptime_ms": null, "restarts": 0, "port": null, "last": null, "notes": [],
    })
}

/// A service that is ready in its run `run`.
fn ready(name: &str, run: u32) -> Value {
    with(
        stopped(name, "service"),
        json!({
            "desired": "up", "state": "ready", "text": "ready", "run": run, "pid": "PID", "started_at": "INSTANT",
            "ready_at": "INSTANT", "uptime_ms": "MS",
        }),
    )
}

/// How a run ended that was asked to.
fn ended(run: u32) -> Value {
    json!({
        "run": run, "exit_code": null, "signal": "SIGTERM", "stopped": true, "forced": false, "started_at": "INSTANT",
        "exited_at": "INSTANT", "ended_at": "INSTANT", "processes": 1, "killed": 0, "strays": [], "survivors": [],
        "stop_ms": "MS", "lost_output_bytes": 0,
    })
}

/// `value` with the fields of `more`.
fn with(mut value: Value, more: Value) -> Value {
    let (Some(fields), Value::Object(more)) = (value.as_object_mut(), more) else { panic!("two objects") };
    fields.extend(more);
    value
}

const WEB: &str = "[services.web]\ncommand = 'exec sleep 600'\n";

#[test]
fn verbs_that_change_something_answer_with_what_became_of_it() {
    let site = Site::new(WEB);
    let none = json!({ "services": 0, "processes": 0, "killed": 0, "left": 0 });
    let one = json!({ "services": 1, "processes": 1, "killed": 0, "left": 0 });
    let did = |verb: &str, totals: &Value, service: Value| {
        json!({
            "schema": 1, "verb": verb, "ok": true, "project": project(), "took_ms": "MS", "totals": totals,
            "services": [service],
        })
    };
    let done = |service: Value, unchanged: bool, ended: Value| {
        with(service, json!({ "result": "done", "unchanged": unchanged, "ended": ended }))
    };
    let at_rest = |run: u32| {
        let last = json!({ "run": run, "started_at": "INSTANT", "last": ended(run) });
        with(stopped("web", "service"), last)
    };
    let up = done(ready("web", 1), false, Value::Null);
    assert_eq!(answer(&site, "up", 0), did("up", &none, up));
    assert_eq!(answer(&site, "up", 0), did("up", &none, done(ready("web", 1), true, Value::Null)));
    assert_eq!(answer(&site, "wait", 0), did("wait", &none, done(ready("web", 1), true, Value::Null)));
    assert_eq!(answer(&site, "stop web", 0), did("stop", &one, done(at_rest(1), false, ended(1))));
    let again = with(ready("web", 2), json!({ "last": ended(1) }));
    let started = answer(&site, "start web", 0);
    assert_eq!(started["services"], json!([done(again, false, Value::Null)]));
    let third = with(ready("web", 3), json!({ "last": ended(2) }));
    assert_eq!(answer(&site, "restart", 0), did("restart", &one, done(third, false, ended(2))));
    assert_eq!(answer(&site, "down", 0), did("down", &one, done(at_rest(3), false, ended(3))));
    let nothing = json!({ "schema": 1, "verb": "down", "ok": true, "took_ms": "MS", "totals": none, "services": [] });
    assert_eq!(answer(&site, "down", 0), nothing);
}

#[test]
fn status_and_ls_answer_with_how_things_stand() {
    let site = Site::new(&format!("{WEB}[services.migrate]\ntype = \"job\"\ncommand = 'true'\n"));
    let row = |service: Value| with(service, json!({ "configured": true, "changed": false, "program_changed": false }));
    let status = |health: &str, ready: u32, services: Value| {
        json!({
            "schema": 1, "verb": "status", "project": project(), "health": health, "ready": ready, "total": 2,
            "services": services,
        })
    };
    let idle = json!([row(stopped("web", "service")), row(stopped("migrate", "job"))]);
    assert_eq!(answer(&site, "status", 0), status("idle", 0, idle));
    assert_eq!(answer(&site, "ls", 0), json!({ "schema": 1, "verb": "ls", "projects": [] }));

    site.up();
    let last = with(ended(1), json!({ "exit_code": 0, "signal": null, "stopped": false, "processes": 1 }));
    let completed = with(
        stopped("migrate", "job"),
        json!({
            "desired": "up", "state": "completed", "text": "exited 0", "run": 1, "started_at": "INSTANT", "last": last,
        }),
    );
    let services = json!([row(ready("web", 1)), row(completed)]);
    assert_eq!(answer(&site, "status", 0), status("fine", 2, services));
    let known = with(project(), json!({ "health": "fine", "ready": 2, "total": 2 }));
    assert_eq!(answer(&site, "ls", 0), json!({ "schema": 1, "verb": "ls", "projects": [known] }));

    let wide = site.locald("status --wide --json web").run().ok().json();
    assert_eq!(wide["services"][0]["usage"]["processes"], 1);
    assert!(wide["services"][0]["usage"]["memory_bytes"].as_u64() > Some(0), "{wide}");
}

#[test]
fn a_service_that_failed_says_why_and_what_it_wrote() {
    let site = Site::new("[services.web]\ncommand = 'echo boom; exit 7'\n[services.bad]\ncommand = [\"./missing\"]\n");
    let up = answer(&site, "up", 1);
    assert_eq!((&up["ok"], &up["services"][0]["result"]), (&false.into(), &"failed".into()));
    assert_eq!(up["services"][0]["failure"], json!({ "kind": "exited" }));
    assert_eq!(up["services"][0]["output"], json!(["boom"]));
    assert_eq!(
        up["services"][1]["failure"],
        json!({
            "kind": "start", "stage": "exec", "errno": 2, "path": "./missing", "hint": null, "permanent": true,
            "message": "./missing does not exist (ENOENT)",
        })
    );
}

#[test]
fn what_waits_says_for_what() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.db]\ncommand = 'exec sleep 600'\nport = {port}\n[services.web]\ncommand = 'x'\ndepends_on = [\"db\"]\n"
    ));
    answer(&site, "up --timeout 1ms", 124);
    site.await_state("db", "starting");
    let up = answer(&site, "up --timeout 1ms", 124);
    let web = &up["services"][1];
    assert_eq!((&web["state"], &web["result"]), (&"waiting".into(), &"timed_out".into()));
    assert_eq!(web["waiting_for"], json!([{ "service": "db", "condition": "ready" }]));
    assert_eq!((&up["services"][0]["state"], &up["services"][0]["port"]), (&"starting".into(), &port.into()));
}

#[test]
fn check_and_completions_answer_without_a_daemon() {
    let site = Site::new(WEB);
    let check = json!({ "schema": 1, "verb": "check", "ok": true, "project": project(), "services": ["web"] });
    assert_eq!(answer(&site, "check", 0), check);
    let completions = answer(&site, "completions bash", 0);
    assert_eq!((&completions["shell"], &completions["verb"]), (&"bash".into(), &"completions".into()));
    assert!(completions["script"].as_str().is_some_and(|script| script.contains("locald")));
    assert!(site.processes().is_empty());
}

#[test]
fn the_daemon_answers_about_itself() {
    let site = Site::new(WEB);
    let none = json!({ "schema": 1, "verb": "daemon status", "running": false, "daemon": null });
    assert_eq!(answer(&site, "daemon status", 3), none);
    let about = json!({
        "pid": "PID", "version": "VERSION", "protocol": 1, "started_at": "INSTANT", "epoch": 1, "home": "ROOT/h",
        "socket": "ROOT/h/run/daemon.sock", "log": "ROOT/h/daemon.log", "projects": 0, "runs": 0, "clients": 1,
    });
    let start = json!({ "schema": 1, "verb": "daemon start", "running": true, "daemon": about });
    assert_eq!(answer(&site, "daemon start", 0), start);
    assert_eq!(answer(&site, "daemon status", 0), with(start, json!({ "verb": "daemon status" })));
    site.up();
    let status = answer(&site, "daemon status", 0);
    assert_eq!((&status["daemon"]["projects"], &status["daemon"]["runs"]), (&1.into(), &1.into()));
    let stop = answer(&site, "daemon stop --all", 0);
    assert_eq!((&stop["verb"], &stop["totals"]["left"]), (&"daemon stop".into(), &0.into()));
    assert_eq!(stop["services"][0]["ended"], ended(1));
}

#[test]
fn doctor_answers_with_what_it_found() {
    let site = Site::new(WEB);
    let ran = site.locald("doctor --json").run();
    let exit = ran.exit();
    let doctor = normal(&site, ran.json());
    // What else runs on this machine may be a problem.
    let is_fine = doctor["problems"].as_array().expect("a list").is_empty();
    assert_eq!((doctor["ok"].as_bool(), exit), (Some(is_fine), Some(i32::from(!is_fine))));
    let mut fields: Vec<&String> = doctor.as_object().expect("an object").keys().collect();
    fields.sort();
    let all = "containment home leftovers machine ok problems schema supervised verb version";
    assert_eq!(fields, all.split(' ').collect::<Vec<_>>());
    let head = json!([doctor["schema"], doctor["verb"], doctor["version"]]);
    assert_eq!(head, json!([1, "doctor", "VERSION"]));
    let home = &doctor["home"];
    assert_eq!((&home["state"], &home["sockets"]), (&"ROOT/h".into(), &"ROOT/h/run".into()));
    assert_eq!(home["daemon"], Value::Null);
    assert_eq!(home["programs"].as_array().map(Vec::len), Some(2));
    let table = &doctor["containment"][0];
    assert_eq!((&table["name"], &table["there"]), (&"process table".into(), &true.into()));
}

#[test]
fn logs_are_a_line_of_json_for_each_line() {
    let site = Site::new("[services.web]\ncommand = 'echo one; echo two; exec sleep 600'\n");
    site.up();
    site.eventually("both lines", || site.log("web").ends_with(b"two\n").then_some(()));
    let logs = site.locald("logs --json").run().ok();
    let lines: Vec<Value> = logs.stdout.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let texts: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(texts, ["one", "two"], "{logs}");
    assert!(lines.iter().all(|line| line.is_object()), "{logs}");
}

#[test]
fn errors_are_objects_with_the_same_exit_code() {
    let site = Site::new(WEB);
    let error = |verb: &str, code: &str, message: &str, hint: &str| json!({ "schema": 1, "verb": verb, "error": { "code": code, "message": message, "hint": hint } });
    for verb in ["up", "status", "stop"] {
        let expected = error(verb, "not_found", "no service `wbe` in shop", "did you mean `web`? its services: web");
        assert_eq!(answer(&site, &format!("{verb} wbe"), 4), expected);
    }
    let nothing =
        error("wait", "not_running", "nothing of shop runs", "`locald up` starts it and waits until it is ready");
    assert_eq!(answer(&site, "wait", 3), nothing);
    let usage = answer(&site, "up --frobnicate", 2);
    assert_eq!(usage["error"]["code"], "usage");

    site.write("locald.toml", "[services.web]\ncomand = 'x'\nport = 0\n");
    let broken = answer(&site, "up", 2);
    assert_eq!(
        (&broken["error"]["code"], &broken["error"]["message"]),
        (&"usage".into(), &"2 mistakes in the project file".into())
    );
    let first = &broken["errors"][0];
    assert_eq!(
        (&first["file"], &first["line"], &first["column"]),
        (&"ROOT/shop/locald.toml".into(), &2.into(), &1.into())
    );
    std::fs::remove_file(site.project().join("locald.toml")).expect("removes");
    assert_eq!(answer(&site, "up", 4)["error"]["code"], "not_found");
}
