//! `up -f --watch-config`: a saved project file is applied, and only what it changes; a mistake in it changes nothing.

use crate::support::{Site, Terminal};

const WEB: &str = "[services.web]\ncommand = 'echo web; exec sleep 600'\n";
const DB: &str = "[services.db]\ncommand = 'echo db; exec sleep 600'\n";

/// Waits until the terminal shows a text.
fn await_text(site: &Site, terminal: &Terminal, text: &str) {
    site.eventually(&format!("{text:?} on the terminal"), || terminal.shown().contains(text).then_some(()));
}

#[test]
fn a_saved_project_file_is_applied_to_what_it_changes_and_new_services_are_shown() {
    let api = "[services.api]\ncommand = 'echo at your service; exec sleep 600'\n";
    let site = Site::new(&[WEB, DB, &api.replace("your", "her")].concat());
    site.up();
    site.down();
    site.write("locald.toml", [WEB, DB].concat());
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "following");
    site.write("locald.toml", [WEB, DB].concat().replace("echo web", "echo another"));
    await_text(&site, &terminal, "another");
    site.eventually("another run", || (site.service("web")["run"] == 3).then_some(()));
    assert_eq!(site.service("db")["run"], 2);
    site.write("locald.toml", [WEB, DB, api].concat());
    await_text(&site, &terminal, "at your service");
    let shown = terminal.shown();
    let line = shown.lines().find(|line| line.contains("at your service")).unwrap_or_default();
    assert!(line.contains("api"), "whose it is: {line:?}");
    site.await_state("api", "ready");
    assert!(!shown.contains("at her service"), "of a run before: {shown}");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0));
    assert!(terminal.shown().contains("3 services stopped"), "{}", terminal.shown());
    site.assert_no_service_is_left();
}

#[test]
fn a_broken_save_changes_nothing_and_the_mended_one_is_applied() {
    let site = Site::new(&[WEB, DB].concat());
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "following");
    site.write("locald.toml", [WEB, DB].concat().replace("command", "comand"));
    await_text(&site, &terminal, "unknown key `comand`");
    await_text(&site, &terminal, "nothing is changed");
    site.write("locald.toml", [WEB, DB].concat());
    await_text(&site, &terminal, "no service is another than before");
    site.write("locald.toml", [WEB, DB].concat().replace("echo db", "echo repaired"));
    await_text(&site, &terminal, "repaired");
    assert_eq!((&site.service("web")["run"], &site.service("db")["run"]), (&1.into(), &2.into()));
    terminal.types("d");
    assert_eq!(terminal.finish(), Some(0));
}

#[test]
fn a_saved_env_file_and_a_service_that_failed_are_seen_too() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo \"got $WORD\"; [ \"$WORD\" != bad ] && exec sleep 600'\nenv_file = \".env\"\n",
    );
    site.write(".env", "WORD=bad\n");
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "failed: exit 1");
    await_text(&site, &terminal, "following");
    site.write(".env", "WORD=good\n");
    await_text(&site, &terminal, "got good");
    site.await_state("web", "ready");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0));
}

// Whoever had named services was told that nothing had changed, and they ran on with what they depend on as it was.
#[test]
fn a_change_of_what_a_named_service_depends_on_is_applied() {
    let web = "[services.web]\ncommand = 'exec sleep 600'\ndepends_on = [\"db\"]\n";
    let site = Site::new(&[web, DB, "[services.other]\ncommand = 'exec sleep 600'\n"].concat());
    let mut terminal = Terminal::locald(&site, "up -f --watch-config web");
    await_text(&site, &terminal, "following");
    let other = "[services.other]\ncommand = 'exec sleep 601'\n";
    site.write("locald.toml", [web, &DB.replace("echo db", "echo repaired"), other].concat());
    site.eventually("another run", || (site.service("db")["run"] == 2).then_some(()));
    site.await_state("db", "ready");
    assert_eq!((&site.service("web")["run"], &site.service("other")["state"]), (&1.into(), &"stopped".into()));
    terminal.types("d");
    assert_eq!(terminal.finish(), Some(0));
}

// Nothing tells the one from the other but where it is saved from then on.
#[test]
fn a_file_that_becomes_a_link_is_followed_to_where_it_leads() {
    let site = Site::new("[services.web]\ncommand = 'echo web $WORD; exec sleep 600'\nenv_file = \".env\"\n");
    site.write(".env", "WORD=one");
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "web one");
    let [env, real] = [".env", "elsewhere/.env"].map(|file| site.project().join(file));
    std::fs::create_dir(site.project().join("elsewhere")).expect("mkdir");
    std::fs::rename(&env, &real).expect("renamed");
    std::os::unix::fs::symlink(&real, &env).expect("linked");
    // Whenever that is seen: a save that comes later is applied.
    let mut saved = std::time::Instant::now();
    site.eventually("a save to be applied", || {
        if saved.elapsed() > std::time::Duration::from_millis(500) {
            std::fs::write(&real, "WORD=two").expect("writes");
            saved = std::time::Instant::now();
        }
        terminal.shown().contains("web two").then_some(())
    });
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0));
}

#[test]
fn a_lease_that_is_over_is_told_and_the_next_save_is_applied() {
    let site = Site::new(WEB);
    let mut terminal = Terminal::locald(&site, "up -f --watch-config --owner ci --lease 3s");
    await_text(&site, &terminal, "nothing runs any more, for nobody wants it without ci");
    site.write("locald.toml", WEB.replace("echo web", "echo once more"));
    await_text(&site, &terminal, "once more");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    site.assert_no_service_is_left();
}

#[test]
fn it_needs_somebody_who_follows() {
    let site = Site::new(WEB);
    site.locald("up --watch-config").run().code(2).says("--follow");
}

#[test]
fn a_project_file_that_is_a_link_is_applied_when_what_it_leads_to_is_saved() {
    let site = Site::new(WEB);
    let real = site.project().with_extension("toml");
    std::fs::rename(site.project().join("locald.toml"), &real).expect("renamed");
    std::os::unix::fs::symlink(&real, site.project().join("locald.toml")).expect("linked");
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "following");
    std::fs::write(&real, WEB.replace("echo web", "echo another")).expect("written");
    await_text(&site, &terminal, "another");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0));
    site.assert_no_service_is_left();
}

#[test]
fn what_somebody_has_stopped_is_not_started_by_an_edit_of_another() {
    let site = Site::new(&[WEB, DB].concat());
    let mut terminal = Terminal::locald(&site, "up -f --watch-config");
    await_text(&site, &terminal, "following");
    site.locald("stop db").run().ok();
    site.write("locald.toml", [WEB, DB].concat().replace("echo web", "echo another"));
    await_text(&site, &terminal, "another");
    site.await_state("web", "ready");
    assert_eq!((&site.service("db")["state"], &site.service("db")["run"]), (&"stopped".into(), &1.into()));
    site.write("locald.toml", WEB.replace("echo web", "echo another"));
    await_text(&site, &terminal, "no service is another");
    site.write("locald.toml", [&WEB.replace("echo web", "echo another"), DB].concat());
    site.await_state("db", "ready");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0));
    site.assert_no_service_is_left();
}
