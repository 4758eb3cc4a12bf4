//! How to tell whether a service is ready, and whether it stays so: the checks as resolved.
//!
//! A check has a [`Probe`], which is asked again and again, and limits. A service without any is ready when one of its processes
//! listens on its port, or, without a port, when its leader has run for a moment. What follows from an answer is decided by the
//! daemon's core.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::redaction;
use crate::spec::CommandSpec;

/// One check of a service. A service is ready when all of its checks pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// The time between two probes of a ready service. Until it is ready it is asked more often.
    #[serde(rename = "interval_ms", with = "crate::time::millis")]
    pub interval: Duration,
    /// How long one probe may take.
    #[serde(rename = "timeout_ms", with = "crate::time::millis")]
    pub timeout: Duration,
    /// How long the service may take to pass for the first time; without a limit for as long as it takes.
    #[serde(rename = "start_period_ms", default, with = "crate::time::optional_millis")]
    pub start_period: Option<Duration>,
    /// So many failures in a row end the readiness of a service.
    pub retries: u32,
}

impl HealthCheck {
    /// 10 s: soon enough for a person who looks, and 0.1 % of a core where a probe takes 10 ms.
    pub const INTERVAL: Duration = Duration::from_secs(10);

    /// 5 s: a development server that compiles a page takes some of them.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// 3: one that is busy for a moment is not restarted.
    pub const RETRIES: u32 = 3;

    /// A check with the default limits.
    #[must_use]
    pub fn of(probe: Probe) -> Self {
        let (interval, timeout, retries) = (Self::INTERVAL, Self::TIMEOUT, Self::RETRIES);
        Self { probe, interval, timeout, start_period: None, retries }
    }
}

/// What is asked of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Probe {
    /// One of its processes listens on its port: the default for a service with a port.
    Listen,
    /// It answers a GET.
    Http(HttpProbe),
    /// It takes a connection.
    Tcp {
        /// Where; the service's own port if nothing is said.
        port: Option<u16>,
    },
    /// A command ends with exit code 0.
    Command {
        /// That command, run with the environment and in the directory of the service.
        command: CommandSpec,
    },
    /// A line of its output since the run began.
    Log {
        /// A regular expression that the line contains a match of, escape sequences left out.
        pattern: String,
    },
    /// It says so itself.
    Notify {
        /// On this descriptor, by a newline; otherwise by `READY=1` to `$NOTIFY_SOCKET` (sd_notify(3)).
        fd: Option<i32>,
    },
}

/// Reads the pattern of a [`Probe::Log`].
///
/// # Errors
/// When it is none, or would take more memory and time than a shim has for it.
pub fn pattern(text: &str) -> Result<regex_lite::Regex, regex_lite::Error> {
    /// 64 KiB: a pattern of some hundred characters takes a few.
    const SIZE: usize = 64 * 1024;
    regex_lite::RegexBuilder::new(text).size_limit(SIZE).build()
}

/// A GET and what counts as a good answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpProbe {
    /// The path and query, from the slash on.
    pub path: String,
    /// Where; the service's own port if nothing is said.
    pub port: Option<u16>,
    /// The statuses that are good; none for 200 to 399.
    #[serde(default)]
    pub status: Vec<u16>,
    /// What is sent in the head of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Whether it is asked over TLS.
    #[serde(default)]
    pub tls: bool,
    /// Whether any certificate will do.
    #[serde(default)]
    pub insecure: bool,
}

impl HttpProbe {
    /// Whether an answer with this status is a good one.
    #[must_use]
    pub fn accepts(&self, status: u16) -> bool {
        if self.status.is_empty() { (200..400).contains(&status) } else { self.status.contains(&status) }
    }

    /// What was wanted of an answer that was no good one: `not 404`, `not one of 200 to 399`.
    #[must_use]
    pub fn but(&self) -> String {
        match self.status.as_slice() {
            [] => "not one of 200 to 399".to_owned(),
            [one] => format!("not {one}"),
            several => {
                let several: Vec<String> = several.iter().map(u16::to_string).collect();
                format!("not one of {}", several.join(", "))
            }
        }
    }

    /// What is asked for, at a port.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://localhost:{port}{}", self.path)
    }
}

impl Probe {
    /// The port that is asked, where there is one: `own` is that of the service.
    #[must_use]
    pub fn port(&self, own: Option<u16>) -> Option<u16> {
        match self {
            Self::Listen => own,
            Self::Http(HttpProbe { port, .. }) | Self::Tcp { port } => port.or(own),
            Self::Command { .. } | Self::Log { .. } | Self::Notify { .. } => None,
        }
    }

    /// Whether a service that has passed has passed for good: it cannot take back what it has said.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Listen | Self::Log { .. } | Self::Notify { .. } => true,
            Self::Http(_) | Self::Tcp { .. } | Self::Command { .. } => false,
        }
    }

    /// What is asked, in words, without secrets: "GET http://localhost:8080/healthz".
    #[must_use]
    pub fn describe(&self, own: Option<u16>) -> String {
        let port = self.port(own);
        let shown = port.map_or_else(|| "its port".to_owned(), |port| format!("port {port}"));
        match self {
            Self::Listen => format!("listening on {shown}"),
            Self::Http(http) => format!("GET {}", redaction::line(&http.url(port.unwrap_or(0)))),
            Self::Tcp { .. } => format!("connecting to {shown}"),
            Self::Command { command } => format!("`{}`", redaction::line(&command.to_string())),
            Self::Log { pattern } => format!("output matching /{}/", redaction::line(pattern)),
            Self::Notify { fd: None } => "READY=1 to $NOTIFY_SOCKET".to_owned(),
            Self::Notify { fd: Some(fd) } => format!("a newline on descriptor {fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: &[u16]) -> HttpProbe {
        let path = "/healthz?full".to_owned();
        HttpProbe { path, port: None, status: status.to_vec(), headers: BTreeMap::new(), tls: false, insecure: false }
    }

    #[test]
    fn success_is_what_is_said_or_anything_that_is_no_error() {
        assert_eq!(
            [199, 200, 302, 399, 400, 503].map(|status| http(&[]).accepts(status)),
            [false, true, true, true, false, false]
        );
        assert_eq!([200, 204, 401].map(|status| http(&[204, 401]).accepts(status)), [false, true, true]);
        let but = [&[][..], &[404], &[204, 401]].map(|status| http(status).but());
        assert_eq!(but, ["not one of 200 to 399", "not 404", "not one of 204, 401"]);
    }

    #[test]
    fn a_probe_says_what_it_asks() {
        assert_eq!(Probe::Http(http(&[])).describe(Some(8080)), "GET http://localhost:8080/healthz?full");
        let secret = HttpProbe { path: "/?token=abc&full".to_owned(), ..http(&[]) };
        assert_eq!(Probe::Http(secret).describe(Some(80)), "GET http://localhost:80/?token=***&full");
        assert_eq!(Probe::Tcp { port: Some(9090) }.describe(Some(8080)), "connecting to port 9090");
        assert_eq!(Probe::Listen.describe(Some(8080)), "listening on port 8080");
        assert_eq!(Probe::Notify { fd: Some(4) }.describe(None), "a newline on descriptor 4");
    }

    #[test]
    fn a_check_survives_json() {
        let check =
            HealthCheck { start_period: Some(Duration::from_secs(30)), ..HealthCheck::of(Probe::Http(http(&[200]))) };
        let json = serde_json::to_value(&check).expect("serialises");
        assert_eq!(json["probe"]["type"], "http");
        assert_eq!(json["start_period_ms"], 30_000);
        assert_eq!(serde_json::from_value::<HealthCheck>(json).expect("parses"), check);
    }
}
