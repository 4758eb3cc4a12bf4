//! The last lines a service wrote, to be shown when it failed. The log store is `locald_utils::log`'s.

use locald_utils::log;
use locald_utils::name::{ProjectId, ProjectName, RunNumber, ServiceName};
use locald_utils::paths::{Home, service_dir};

/// 20: what fits a screen beside the rest, and usually holds the reason.
const LINES: usize = 20;

/// Reads the last lines that a run wrote. Empty when there are none, or they cannot be read: an excerpt is a help
/// beside a failure, and no failure of its own.
pub(crate) fn last_lines(
    home: &Home,
    id: &ProjectId,
    name: &ProjectName,
    service: &ServiceName,
    run: RunNumber,
) -> Vec<String> {
    log::tail(&service_dir(&home.project(id, name), service), run, LINES).unwrap_or_default()
}
