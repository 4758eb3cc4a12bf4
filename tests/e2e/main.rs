//! The promises of locald, each tried from the outside: real programs, a real kernel, a home of its own for every test.
//!
//! A module for each topic; its tests are named after what they hold locald to. The harness is in `tests/support`, what
//! services of the tests are made of in `tests/fixtures`.

#[path = "../support/mod.rs"]
mod support;

mod attach;
#[cfg(debug_assertions)]
mod clock;
mod concurrent;
mod config;
mod daemon;
#[cfg(target_os = "linux")]
mod delegation;
mod doctor;
mod down;
mod drift;
mod dry_run;
mod edits;
mod environment;
mod exits;
mod failures;
#[cfg(target_os = "linux")]
mod fallback;
mod files;
mod forking;
mod health;
#[cfg(target_os = "linux")]
mod hung;
mod inputs;
mod json;
mod limits;
mod order;
mod output;
mod owners;
mod pipes;
mod ports;
mod profiles;
mod run;
mod shim;
#[cfg(target_os = "linux")]
mod standby;
mod succession;
mod survivors;
mod terminal;
mod up;
#[cfg(target_os = "linux")]
mod upgrade;
mod usage;
mod watch;
