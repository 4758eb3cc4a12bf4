//! A service that cannot be started says why: one sentence, exit code 1, at once, and no second try that cannot help.

use crate::support::{Ran, Site};

/// Runs `up`, which must fail before anything has run; looks that it is not tried again, and leaves nothing.
fn cannot_start(site: &Site) -> Ran {
    let up = site.locald("up").run().code(1);
    let web = site.service("web");
    assert_eq!((&web["state"], &web["failure"]["kind"]), (&"failed".into(), &"start".into()), "{web}");
    assert_eq!((&web["run"], &web["restarts"]), (&1.into(), &0.into()));
    site.assert_no_service_is_left();
    up
}

/// A project with one service that is to be restarted always.
fn service(command: &str) -> Site {
    Site::new(&format!("[services.web]\ncommand = {command}\nrestart = \"always\"\n"))
}

#[test]
fn a_missing_program_is_named() {
    cannot_start(&service("[\"no-such-program\"]")).says("there is no program `no-such-program` in PATH (ENOENT)");
    let site = service("[\"./no-such-file\"]");
    cannot_start(&site).says("no-such-file does not exist (ENOENT)");
}

#[test]
fn a_file_that_is_not_executable_is_told_from_a_missing_one() {
    let site = service("[\"./server\"]");
    site.write("server", "#!/bin/sh\nsleep 600\n");
    cannot_start(&site).says("server is not executable (EACCES)").says("chmod +x");
}

#[test]
fn a_missing_interpreter_is_named() {
    let site = service("[\"./server\"]");
    site.script("server", "#!/usr/bin/no-such-interpreter\nsleep 600\n");
    cannot_start(&site).says("the interpreter of ./server, /usr/bin/no-such-interpreter, does not exist (ENOENT)");
}

#[test]
fn windows_line_endings_are_recognised() {
    let site = service("[\"./server\"]");
    site.script("server", "#!/bin/sh\r\nsleep 600\r\n");
    cannot_start(&site).says("has CRLF line endings");
}

#[test]
fn a_directory_is_no_program() {
    let site = service("[\"./server\"]");
    site.write("server/main.sh", "#!/bin/sh\nsleep 600\n");
    cannot_start(&site).says("server is a directory (EACCES)");
}

#[test]
fn a_missing_working_directory_is_a_mistake_in_the_file() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\nworkdir = \"web\"\n");
    site.locald("up").run().code(2).says("locald.toml:3").says("web");
    assert!(site.processes().is_empty());
}

#[test]
fn a_working_directory_that_goes_before_the_start_is_named() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\nworkdir = \"web\"\nrestart = \"always\"\ndepends_on = [\"clean\"]\n\
         [services.clean]\ntype = \"job\"\ncommand = \"rmdir web\"\n",
    );
    std::fs::create_dir(site.project().join("web")).expect("a directory");
    cannot_start(&site).says("its working directory").says("does not exist");
}

#[test]
fn other_services_start_nevertheless() {
    let site = Site::new("[services.web]\ncommand = [\"./missing\"]\n[services.db]\ncommand = 'sleep 600'\n");
    site.locald("up").run().code(1);
    assert_eq!(site.service("db")["state"], "ready");
    site.down();
}
