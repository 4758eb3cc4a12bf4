//! A service has the environment of whoever called, as it was then, and what the project file adds.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::{Site, free_port, shown};

#[test]
fn a_service_has_the_environment_of_now() {
    let site = Site::new("[services.web]\ncommand = 'echo $FOO; sleep 600'\n");
    site.locald("up").env("FOO", "1").run().ok();
    site.down();
    site.locald("up").env("FOO", "2").run().ok();
    site.locald("restart").env("FOO", "3").run().ok();
    site.locald("restart").run().ok();
    site.down();
    assert_eq!(shown(&site.log("web")), "1\n2\n3\n\n");
}

#[test]
fn values_may_hold_anything_but_nul() {
    let site = Site::new(
        "[services.job]\ntype = \"job\"\ncommand = 'printf \"%s\\n\" \"$ODD\" \"$URL\" \"$FILE\"'\nenv_file = \".env\"\n\
         [services.job.env]\nURL = \"postgres://h/db?sslmode=off\"\n",
    );
    site.write(".env", "FILE=a=b=c\nURL=overridden\n");
    site.locald("up").env("ODD", OsStr::from_bytes(b"\xff=\xfe =")).run().ok();
    assert_eq!(site.log("job"), b"\xff=\xfe =\npostgres://h/db?sslmode=off\na=b=c\n");
}

// Whoever had another PATH than whoever had started it restarted it.
#[test]
fn an_env_file_that_takes_from_the_caller_is_the_same_for_another_caller() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\nenv_file = \".env\"\n");
    site.write(".env", "A=${WHO:-nobody}/x\nB=${C:-$A}\nD=fixed\n");
    site.locald("up").env("WHO", "ada").run().ok();
    let up = site.locald("up").env("WHO", "bob").run().ok();
    up.says("already running").says("another environment");
    let web = site.service("web");
    assert_eq!((&web["run"], &web["changed"]), (&1.into(), &false.into()), "{web}");
    // What is written is another matter.
    site.write(".env", "A=${WHO:-somebody}/x\nB=${C:-$A}\nD=fixed\n");
    site.locald("up").env("WHO", "ada").run().ok();
    assert_eq!(site.service("web")["run"], 2);
    site.down();
}

#[test]
fn what_belongs_to_the_callers_terminal_stays_with_the_caller() {
    let site = Site::new("[services.job]\ntype = \"job\"\ncommand = 'env'\n");
    let up = site.locald("up").env("TMUX", "x").env("SSH_TTY", "x").env("LOCALD_RUN", "x").env("KEPT", "x").run().ok();
    let log = shown(&site.log("job"));
    let has = |name: &str| log.lines().any(|line| line.starts_with(&format!("{name}=")));
    assert!(has("KEPT") && has("PATH") && has("LOCALD_RUN") && !has("TMUX") && !has("SSH_TTY"), "{log}\n{up}");
    assert!(log.lines().any(|line| line == "LOCALD_SERVICE=shop:job"), "{log}");
    assert!(!log.lines().any(|line| line == "LOCALD_RUN=x"), "{log}");
}

#[test]
fn ports_are_exported_and_known_to_others() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.db]\ncommand = 'echo db $PORT; \"$ZOO\" listen $PORT'\nport = {port}\n\
         [services.auto]\ncommand = ['sh', '-c', 'echo auto $PORT; exec \"$ZOO\" listen $PORT']\nport = \"auto\"\n\
         [services.job]\ntype = \"job\"\ncommand = 'echo $URL ${{services.auto.port}}'\n\
         env = {{ URL = \"db:${{services.db.port}}\" }}\n"
    ));
    site.up();
    let auto = site.service("auto")["port"].as_u64().expect("a port");
    assert_eq!(shown(&site.log("job")), format!("db:{port} {auto}\n"));
    assert!(shown(&site.log("db")).starts_with(&format!("db {port}\n")));
    assert!(shown(&site.log("auto")).starts_with(&format!("auto {auto}\n")));
    assert_ne!(auto, u64::from(port));

    site.locald("restart auto").run().ok();
    assert_eq!(site.service("auto")["port"], auto);
    site.down();
    site.locald("daemon stop").run().ok();
    site.up();
    assert_eq!(site.service("auto")["port"], auto);
}

#[test]
fn every_service_is_told_the_ports_of_all() {
    let (db, tls) = (free_port(), free_port());
    let site = Site::new(&format!(
        "[services.my-db]\ncommand = 'exec \"$ZOO\" listen $PORT'\nport = {db}\n\
         [services.tls]\ncommand = 'exec sleep 600'\nport = {tls}\n\
         health_check = [{{ type = \"http\", tls = true }}]\n\
         [services.auto]\ncommand = 'exec \"$ZOO\" listen $LOCALD_PORT_AUTO'\nport = \"auto\"\n\
         [services.job]\ntype = \"job\"\ncommand = 'env | grep -E \"^LOCALD_(PORT|URL)_\" | sort'\n\
         [services.job.env]\nLOCALD_PORT_MY_DB = 1\nLOCALD_PORT_GONE = 2\n"
    ));
    // A locald within a service is another project's.
    site.locald("up job auto my-db").env("LOCALD_PORT_OTHER", "3").run().ok();
    let auto = site.service("auto")["port"].as_u64().expect("a port");
    let expected = format!(
        "LOCALD_PORT_AUTO={auto}\nLOCALD_PORT_GONE=2\nLOCALD_PORT_MY_DB={db}\nLOCALD_PORT_TLS={tls}\n\
         LOCALD_URL_AUTO=http://localhost:{auto}\nLOCALD_URL_MY_DB=http://localhost:{db}\n\
         LOCALD_URL_TLS=https://localhost:{tls}\n"
    );
    assert_eq!(shown(&site.log("job")), expected);
}

#[test]
fn a_stop_command_and_a_health_check_are_told_the_ports_of_all() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.db]\ncommand = 'exec \"$ZOO\" listen $PORT'\nport = {port}\n\
         [services.web]\ncommand = 'exec sleep 600'\nhealth_check = 'echo check $LOCALD_PORT_DB >> \"$EVENTS\"'\n\
         stop_command = 'echo stop $LOCALD_URL_DB >> \"$EVENTS\"'\n"
    ));
    site.up();
    site.down();
    let said = site.said();
    assert_eq!(said.first(), Some(&format!("check {port}")));
    assert_eq!(said.last(), Some(&format!("stop http://localhost:{port}")));
}

#[test]
fn a_port_that_changes_restarts_its_service_and_those_that_mention_it() {
    let (first, second) = (free_port(), free_port());
    let toml = |port| {
        format!(
            "[services.db]\ncommand = 'exec \"$ZOO\" listen $PORT'\nport = {port}\n\
             [services.api]\ncommand = 'echo $DB $LOCALD_PORT_DB; exec sleep 600'\n\
             env = {{ DB = \"db:${{services.db.port}}\" }}\n\
             [services.web]\ncommand = 'echo $LOCALD_PORT_DB; exec sleep 600'\n"
        )
    };
    let site = Site::new(&toml(first));
    site.up();
    site.write("locald.toml", toml(second));
    assert_eq!(site.service("web")["changed"], false);
    assert_eq!((&site.service("api")["changed"], &site.service("db")["changed"]), (&true.into(), &true.into()));
    site.up();
    let run = |service: &str| site.service(service)["run"].clone();
    assert_eq!((run("db"), run("api"), run("web")), (2.into(), 2.into(), 1.into()));
    assert_eq!(site.service("db")["port"], second);
    site.locald("restart web").run().ok();
    site.eventually("the lines of both", || {
        let (api, web) = (shown(&site.log("api")), shown(&site.log("web")));
        let both = format!("db:{first} {first}\ndb:{second} {second}\n");
        (api == both && web == format!("{first}\n{second}\n")).then_some(())
    });
}
