//! Draws what `view` and `progress` decided: as text for people, as JSON for programs, live on a terminal.

pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod live;
