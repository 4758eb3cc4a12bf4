//! A job with inputs is done once for the same inputs, also over `down` and daemons.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Site, send};

/// A job that says what it has found, and fails where it finds "bad".
const BUILD: &str = "[services.build]\ntype = \"job\"\ninputs = [\"src/**/*.txt\"]\n\
    command = 'echo \"build $(cat src/a.txt)\" >> \"$EVENTS\"; ! grep -q bad src/a.txt'\n\
    [services.web]\ncommand = 'exec sleep 600'\ndepends_on = [\"build\"]\n";

fn site(toml: &str) -> Site {
    let site = Site::new(toml);
    std::fs::create_dir(site.project().join("src")).expect("made");
    save(&site, "1");
    site
}

fn save(site: &Site, text: &str) {
    site.write("src/a.txt", text);
}

/// What `up` comes to, after what it did before has been taken note of.
fn up(site: &Site) -> usize {
    site.up();
    site.said().len()
}

/// Waits until the next `up` after a `down` has nothing to do: the daemon looks at the inputs once more when a job has completed.
fn await_memory(site: &Site) {
    site.eventually("the job to be remembered", || {
        let before = site.said().len();
        site.down();
        (up(site) == before).then_some(())
    });
}

#[test]
fn a_job_is_done_again_when_an_input_has_changed_and_only_then() {
    let site = site(BUILD);
    assert_eq!(up(&site), 1);
    site.locald("up").run().ok().says("already running");
    assert_eq!(site.said(), ["build 1"]);
    save(&site, "2");
    assert_eq!(up(&site), 2);
    site.write("src/other.md", "no input");
    assert_eq!(up(&site), 2);
    // As before: what was done then is not known any more.
    save(&site, "1");
    assert_eq!(up(&site), 3);
    site.write("src/b.txt", "new");
    assert_eq!(up(&site), 4);
    assert_eq!(site.service("web")["run"], 1, "nothing of the service has changed");
    // That none are left is a change like any other.
    fs::remove_dir_all(site.project().join("src")).expect("removed");
    assert_eq!(up(&site), 5);
    assert_eq!(up(&site), 5);
}

#[test]
fn what_a_job_has_done_is_remembered_over_down_and_daemons() {
    let site = site(BUILD);
    site.up();
    await_memory(&site);
    let build = site.service("build");
    assert_eq!(build["state"], "completed");
    assert_eq!(build["notes"], json!(["not run: its inputs are as when it last succeeded"]));
    site.down();
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    let before = site.said().len();
    assert_eq!(up(&site), before);
    site.down();
    save(&site, "2");
    assert_eq!(up(&site), before + 1);
    await_memory(&site);
    site.down();
    // Another command makes something else of them.
    let before = site.said().len();
    site.write("locald.toml", BUILD.replace("echo \"build", "echo \"make"));
    assert_eq!(up(&site), before + 1);
}

#[test]
fn a_job_that_failed_is_done_again_and_so_is_one_that_a_person_names() {
    let site = site(BUILD);
    save(&site, "bad");
    site.locald("up").run().code(1);
    site.locald("up").run().code(1);
    assert_eq!(site.said(), ["build bad", "build bad"]);
    save(&site, "good");
    site.up();
    await_memory(&site);
    let before = site.said().len();
    site.locald("restart build").run().ok();
    site.locald("start build").run().ok();
    assert_eq!(site.said().len(), before + 2);
    site.down();
    site.locald("start build").run().ok();
    assert_eq!(site.said().len(), before + 3);
}

// All were done again, the one with inputs as well.
#[test]
fn jobs_that_are_done_are_left_alone_by_who_starts_or_restarts_everything() {
    let site = Site::new(
        "[services.seed]\ntype = \"job\"\ncommand = 'echo seed >> $EVENTS'\n\
         [services.build]\ntype = \"job\"\ncommand = 'echo build >> $EVENTS'\ninputs = [\"*.in\"]\n\
         [services.web]\ncommand = 'exec sleep 600'\n",
    );
    site.up();
    assert_eq!(site.said().len(), 2);
    site.locald("start").run().ok();
    site.locald("restart --dry-run").run().ok().says("web");
    site.locald("restart").run().ok();
    assert_eq!((site.said().len(), &site.service("web")["run"]), (2, &2.into()));
    site.locald("restart seed").run().ok();
    site.locald("start build").run().ok();
    assert_eq!(site.said()[2..], ["seed", "build"]);
    site.down();
}

#[test]
fn a_job_whose_inputs_changed_while_it_ran_is_done_again() {
    let site = site(
        "[services.build]\ntype = \"job\"\ninputs = [\"src\"]\ncommand = 'echo build >> \"$EVENTS\"; read go < gate'\n",
    );
    let gate = site.project().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let running = site.locald("up").start();
    site.await_event("build");
    save(&site, "2");
    std::fs::write(&gate, "go\n").expect("let go");
    running.finish().ok();
    site.eventually("the daemon to see that", || {
        let log = std::fs::read_to_string(site.home().join("daemon.log")).expect("a log");
        log.contains("its inputs were changed while it worked").then_some(())
    });
    // As they were when it was asked for, and not when it was done.
    save(&site, "1");
    let running = site.locald("up").start();
    site.await_events("build", 2);
    std::fs::write(&gate, "go\n").expect("let go");
    running.finish().ok();
}

#[test]
fn inputs_that_cannot_be_read_are_named_and_nothing_happens() {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    let site = site(BUILD);
    let secret = site.write("src/secret.txt", "");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("set");
    site.locald("up").run().code(2).says("the inputs of `build`").says("secret.txt: Permission denied");
    assert_eq!(site.said().len(), 0);
}

// What a failed run had left of the outputs was taken for what the run before it had made.
#[test]
fn what_was_done_before_a_run_that_failed_is_not_done_any_more() {
    let site = site(BUILD);
    site.up();
    await_memory(&site);
    save(&site, "bad");
    site.locald("up").run().code(1);
    save(&site, "1");
    let before = site.said().len();
    assert_eq!(up(&site), before + 1);
}

// A completed job had no spec after the daemon's death, and so nothing that could differ.
#[test]
fn a_job_whose_inputs_or_command_changed_is_done_again_by_the_next_daemon() {
    let site = site(&[BUILD, "[services.plain]\ntype = \"job\"\ncommand = 'echo plain >> \"$EVENTS\"'\n"].concat());
    site.up();
    let kill = || {
        let daemon = site.daemon();
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
    };
    kill();
    save(&site, "2");
    site.up();
    site.await_event("build 2");
    kill();
    let text = std::fs::read_to_string(site.project().join("locald.toml")).expect("the file");
    site.write("locald.toml", text.replace("echo plain", "echo fancy"));
    site.up();
    site.await_event("fancy");
    assert_eq!(site.said().iter().filter(|line| *line == "plain").count(), 1);
}

// What a change had it do again was done once more by the next `up`, which knew only what it had seen itself.
#[test]
fn what_a_change_has_had_done_is_not_done_again_by_up() {
    let site = site(&BUILD.replacen("inputs =", "watch = \"src\"\ninputs =", 1));
    site.up();
    // The daemon looks at the inputs once more when the job has completed, and an `up` may come before that.
    let mut round = 1;
    site.eventually("nothing to do", || {
        round += 1;
        save(&site, &round.to_string());
        site.await_event(&format!("build {round}"));
        site.await_state("build", "completed");
        let before = site.said().len();
        (up(&site) == before).then_some(())
    });
}
