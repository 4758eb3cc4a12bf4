//! Containment, tried with everything at once and again and again: nothing that a service starts outlives its run, and
//! nobody else is touched.
//!
//! `tactics` does it wherever a developer works, `places` where locald itself has a strange place, `numbers` where process
//! numbers are scarce. How often is up to `LOCALD_ZOO_ROUNDS` and `LOCALD_WRAP_STOPS`; the figures are written to stderr.

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the harness is that of the end-to-end tests; this needs a part of it")]
mod support;

#[cfg(target_os = "linux")]
mod namespace;
#[cfg(target_os = "linux")]
mod numbers;
mod places;
mod rounds;
mod tactics;
