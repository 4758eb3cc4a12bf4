//! A change of a file that a service watches runs it again, once, and nothing else does.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Site, send};

/// A service that says which text it has found when it started.
fn web(more: &str) -> String {
    format!("[services.web]\ncommand = 'echo \"web $(cat src/app.txt)\" >> \"$EVENTS\"; exec sleep 600'\n{more}\n")
}

fn site(more: &str) -> Site {
    let site = Site::new(&web(more));
    save(&site, "src/app.txt", "1");
    site
}

fn save(site: &Site, name: &str, text: &str) {
    let path = site.project().join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, text).expect("written");
}

/// Saves in one step. What is written in place may be seen twice by who begins to watch just then: empty, and full.
fn replace(site: &Site, name: &str, text: &str) {
    let new = site.project().with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, site.project().join(name)).expect("renamed");
}

fn run(site: &Site, service: &str) -> Value {
    site.service(service)["run"].clone()
}

#[test]
fn a_saved_file_runs_its_service_again_and_status_says_which() {
    let site = site("watch = [\"src/**/*.txt\"]");
    site.up();
    site.await_event("web 1");
    save(&site, "src/app.txt", "2");
    site.await_event("web 2");
    let status = site.await_state("web", "ready");
    assert_eq!((&status["run"], &status["restarts"]), (&2.into(), &0.into()));
    assert_eq!(status["notes"], json!(["run again because src/app.txt changed"]));
    save(&site, "src/deep/new.txt", "3");
    site.await_events("web 2", 2);
    let note = "run again 2 times because files changed, the last of them src/deep/new.txt";
    site.eventually("the note", || (site.service("web")["notes"] == json!([note])).then_some(()));
    // A person who asks begins anew.
    site.locald("restart").run().ok();
    assert_eq!(site.service("web")["notes"], json!([]));
    fs::remove_file(site.project().join("src/deep/new.txt")).expect("removed");
    site.await_events("web 2", 4);
}

#[test]
fn what_is_ignored_or_does_not_match_runs_nothing_again() {
    let other = "[services.all]\ncommand = 'echo all >> \"$EVENTS\"; exec sleep 600'\n\
                 watch = [\"src/gen\", \"src/.hidden.txt\", \"src/app.md\", \"src/no.txt\"]\n";
    let site = Site::new(&[web("watch = [\"src/**/*.txt\", \"!src/no.txt\"]"), other.to_owned()].concat());
    save(&site, "src/app.txt", "1");
    save(&site, "src/gen/made.txt", "1");
    save(&site, ".gitignore", "gen/\n");
    site.up();
    for (round, file) in ["src/gen/made.txt", "src/.hidden.txt", "src/app.md", "src/no.txt"].iter().enumerate() {
        save(&site, file, "2");
        site.await_events("all", round + 2);
    }
    save(&site, "src/app.txt", "2");
    site.await_event("web 2");
    assert_eq!(site.await_state("web", "ready")["run"], 2);
}

// The directory was not watched before, and nobody looked again.
#[test]
fn what_is_not_ignored_any_more_is_watched_from_then_on() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\nwatch = [\"src/**/*.js\"]\n");
    let [made, lib] = ["src/made/a.js", "src/lib/a.js"].map(|file| site.project().join(file));
    for file in [&made, &lib] {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("mkdir");
        std::fs::write(file, "1").expect("writes");
    }
    site.write(".gitignore", "made\nlib\n");
    site.write("src/.ignore", "lib\n");
    site.up();
    let await_run = |run: u64, file: &str| {
        let web = site.eventually("another run", || {
            let web = site.service("web");
            (web["run"] == run && web["state"] == "ready").then_some(web)
        });
        assert!(web["notes"].to_string().contains(file), "{web}");
    };
    // Above the place that is watched, and in it.
    site.write(".gitignore", "lib\n");
    await_run(2, "src/made/a.js");
    std::fs::write(&made, "22").expect("writes");
    await_run(3, "src/made/a.js");
    site.write(".gitignore", "");
    site.write("src/.ignore", "");
    await_run(4, "src/lib/a.js");
    site.write("src/.ignore", "made\n");
    await_run(5, "src/made/a.js");
    std::fs::write(&made, "333").expect("writes");
    std::fs::write(&lib, "22").expect("writes");
    await_run(6, "src/lib/a.js");
    site.down();
}

#[test]
fn a_service_that_has_failed_is_run_again_when_the_file_is_mended() {
    let toml = "[services.web]\ncommand = 'sh src/app.sh'\nwatch = \"src\"\n";
    let site = Site::new(toml);
    save(&site, "src/app.sh", "exit 3");
    site.locald("up").run().code(1).says("failed: exit 3");
    save(&site, "src/app.sh", "exec sleep 600");
    site.await_state("web", "ready");
    save(&site, "src/app.sh", "exit 4");
    assert_eq!(site.await_state("web", "failed")["last"]["exit_code"], 4);
    save(&site, "src/app.sh", "exec sleep 600");
    assert_eq!(site.await_state("web", "ready")["run"], 4);
}

#[test]
fn a_service_that_was_not_executable_is_run_again_when_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new("[services.web]\ncommand = [\"src/app.sh\"]\nwatch = \"src\"\n");
    save(&site, "src/app.sh", "#!/bin/sh\nexec sleep 600\n");
    site.locald("up").run().code(1).says("chmod +x");
    let app = site.project().join("src/app.sh");
    std::fs::set_permissions(&app, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    site.await_state("web", "ready");
    site.down();
}

#[test]
fn saving_by_renames_and_a_directory_that_takes_the_place_of_another_are_seen() {
    let site = site("watch = [\"src/**\"]");
    let project = site.project();
    site.up();
    // As an editor does: beside it, the old one out of the way, the new one in its place.
    save(&site, "src/.app.txt.tmp", "2");
    fs::rename(project.join("src/app.txt"), project.join("src/app.txt~")).expect("renamed");
    fs::rename(project.join("src/.app.txt.tmp"), project.join("src/app.txt")).expect("renamed");
    fs::remove_file(project.join("src/app.txt~")).expect("removed");
    site.await_event("web 2");
    // As another branch does: all of it gone, and there again.
    save(&site, "branch/app.txt", "3");
    save(&site, "branch/deep/a.txt", "3");
    fs::rename(project.join("src"), project.join("old")).expect("renamed");
    fs::rename(project.join("branch"), project.join("src")).expect("renamed");
    site.await_event("web 3");
    // And what is new there is watched, and what was there before is not.
    save(&site, "old/app.txt", "no");
    save(&site, "src/deep/a.txt", "4");
    site.await_events("web 3", 2);
    fs::remove_dir_all(project.join("src")).expect("removed");
    site.await_event("web ");
    save(&site, "src/app.txt", "5");
    site.await_event("web 5");
}

#[test]
fn a_place_that_does_not_exist_yet_is_watched_from_the_moment_it_does() {
    let site = site("watch = [\"made/by/a/tool/*.js\", \".env\"]");
    site.up();
    save(&site, "made/by/other.js", "no");
    save(&site, "src/app.txt", "2");
    save(&site, "made/by/a/tool/out.js", "1");
    site.await_event("web 2");
    save(&site, "src/app.txt", "3");
    save(&site, ".env", "A=1");
    site.await_event("web 3");
    assert_eq!(site.await_state("web", "ready")["run"], 3);
}

#[test]
fn a_change_while_no_daemon_was_there_is_made_good_by_the_next() {
    let site = site("watch = [\"src/*\"]");
    site.up();
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    save(&site, "src/app.txt", "2");
    site.locald("daemon start").run().ok();
    site.await_event("web 2");
    let daemon = site.daemon();
    site.await_state("web", "ready");
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    // Nothing has changed since.
    site.locald("up").run().ok().says("already running");
    replace(&site, "src/app.txt", "3");
    site.await_event("web 3");
    assert_eq!(site.await_state("web", "ready")["run"], 3);
}

#[test]
fn what_nobody_wants_is_not_started_by_a_change() {
    let both = [web("watch = \"src\""), web("watch = \"src\"").replace("web", "api")].concat();
    let site = Site::new(&both);
    save(&site, "src/app.txt", "1");
    site.up();
    site.locald("stop web").run().ok();
    save(&site, "src/app.txt", "2");
    site.await_event("api 2");
    assert_eq!(site.service("web")["state"], "stopped");
    site.locald("start web").run().ok();
    assert_eq!(run(&site, "web"), 2);
    // What is no longer written is no longer watched.
    site.write("locald.toml", both.replacen("watch = \"src\"", "", 1));
    site.locald("up").run().ok().says("already running");
    save(&site, "src/app.txt", "3");
    site.await_event("api 3");
    site.await_state("api", "ready");
    assert_eq!(run(&site, "web"), 2);
}

#[test]
fn a_job_is_done_again_and_those_that_follow_are_run_again() {
    let site = Site::new(
        "[services.build]\ntype = \"job\"\ncommand = 'echo \"build $(cat src/app.txt)\" >> \"$EVENTS\"'\nwatch = \"src\"\n\
         [services.web]\ncommand = 'echo web >> \"$EVENTS\"; exec sleep 600'\n\
         depends_on = { build = { restart = true } }\n",
    );
    save(&site, "src/app.txt", "1");
    site.up();
    assert_eq!(site.said(), ["build 1", "web"]);
    save(&site, "src/app.txt", "2");
    site.await_events("web", 2);
    assert_eq!(site.said(), ["build 1", "web", "build 2", "web"]);
}

#[test]
fn a_service_that_writes_what_it_watches_is_left_alone_after_a_few_times() {
    let site = Site::new(
        "[services.web]\ncommand = '(sleep 0.2; echo x >> src/made.txt) & exec sleep 600'\nwatch = \"src\"\n",
    );
    save(&site, "src/app.txt", "1");
    site.up();
    let note = site.eventually("the note", || {
        let note = site.service("web")["notes"].to_string();
        note.contains("watch: ").then_some(note)
    });
    assert!(note.contains("src/made.txt changed within 2 s of a start"), "{note}");
    let service = site.service("web");
    assert_eq!((&service["state"], &service["run"]), (&"ready".into(), &6.into()));
}

// The kernel's watcher had forgotten what was renamed, and the inode was the same as before: nothing was seen there any more.
#[test]
fn a_directory_that_was_moved_away_and_back_is_still_watched() {
    let site = site("watch = [\"src/**\"]");
    let project = site.project();
    save(&site, "src/deep/a.txt", "1");
    site.up();
    for round in 2..4 {
        fs::rename(project.join("src/deep"), project.join("elsewhere")).expect("renamed");
        fs::rename(project.join("elsewhere"), project.join("src/deep")).expect("renamed");
        save(&site, "src/deep/a.txt", &round.to_string());
        site.await_events("web 1", round);
    }
    fs::remove_dir_all(project.join("src/deep")).expect("removed");
    fs::create_dir(project.join("src/deep")).expect("made");
    site.await_events("web 1", 4);
    save(&site, "src/deep/a.txt", "5");
    site.await_events("web 1", 5);
}

#[test]
fn a_watch_that_is_new_to_a_service_that_runs_restarts_nothing_by_itself() {
    let site = site("");
    site.up();
    save(&site, "src/app.txt", "2");
    // Times of files are those of the kernel's last tick: what is newer than one tick counts as changed afterwards.
    let saved = SystemTime::now();
    site.eventually("a tick", || saved.elapsed().ok().filter(|elapsed| *elapsed > Duration::from_millis(20)));
    site.write("locald.toml", web("watch = \"src\""));
    site.locald("up").run().ok().says("already running");
    replace(&site, "src/app.txt", "3");
    site.await_event("web 3");
    assert_eq!(site.await_state("web", "ready")["run"], 2);
}

// Nothing told that what it watches is another until something else happened to it.
#[test]
fn what_a_service_watches_is_as_written_even_if_another_was_brought_up() {
    let other = "[services.other]\ncommand = 'exec sleep 600'\n";
    let site = site(other);
    site.up();
    site.write("locald.toml", [&web("watch = \"src\""), other].concat());
    site.locald("up other").run().ok();
    replace(&site, "src/app.txt", "2");
    site.await_event("web 2");
    site.write("locald.toml", web(other));
    site.locald("up other").run().ok();
    save(&site, "src/app.txt", "3");
    site.locald("restart other").run().ok();
    assert_eq!(site.await_state("web", "ready")["run"], 2);
}

#[test]
fn a_file_that_is_a_link_is_watched_where_it_leads_to() {
    let site = site("watch = [\"conf/*.toml\"]");
    save(&site, "elsewhere/a.toml", "1");
    save(&site, "conf/other.txt", "1");
    std::os::unix::fs::symlink("../elsewhere/a.toml", site.project().join("conf/a.toml")).expect("linked");
    site.up();
    site.await_event("web 1");
    save(&site, "elsewhere/a.toml", "2");
    site.await_events("web 1", 2);
    // As an editor saves it.
    save(&site, "elsewhere/new", "3");
    fs::rename(site.project().join("elsewhere/new"), site.project().join("elsewhere/a.toml")).expect("renamed");
    site.await_events("web 1", 3);
    save(&site, "elsewhere/b.toml", "4");
    fs::remove_file(site.project().join("conf/a.toml")).expect("removed");
    site.await_events("web 1", 4);
    assert_eq!(site.await_state("web", "ready")["run"], 4);
}

// A new directory is watched when it is looked at; what was written there before had not stirred, and so the first half of a checkout
// was taken for all of it.
#[test]
fn a_directory_that_is_being_filled_is_waited_for() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo $(find src -type f | wc -l) >> \"$EVENTS\"; exec sleep 600'\n\
         watch = { paths = [\"src/**\"], debounce = \"400ms\" }\n",
    );
    save(&site, "src/app.txt", "1");
    site.up();
    site.await_event("1");
    for number in 0..200 {
        save(&site, &format!("src/new/{number}"), "");
        std::thread::sleep(Duration::from_millis(5));
    }
    site.await_event("201");
    assert_eq!(site.said(), ["1", "201"]);
}
