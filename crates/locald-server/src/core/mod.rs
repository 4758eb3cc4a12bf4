//! What shall run, and when: decided here, without clock, kernel or async.
//!
//! [`lifecycle`] is the life of one service, [`attempts`] how soon it is tried again, [`project`] how the services of one gate each other, [`fleet`] what is asked of all of
//! them, [`plan`] what that means for others, [`health`] whether a run is ready, [`watching`] when files are looked at, [`ownership`] who wants a service,
//! [`goal`] when a request has come about, [`preview`] what one would do. Everything takes the time as an argument and returns effects;
//! `supervisor` reads the clock and carries them out. `sim` runs thousands of random schedules against the promises.

use std::time::Duration;

pub(crate) mod attempts;
pub(crate) mod fleet;
pub(crate) mod goal;
pub(crate) mod health;
pub(crate) mod lifecycle;
pub(crate) mod ownership;
pub(crate) mod plan;
pub(crate) mod preview;
pub(crate) mod project;
#[cfg(test)]
mod sim;
pub(crate) mod watching;

/// A moment on the daemon's monotonic clock: the time since the daemon started.
pub(crate) type Time = Duration;
