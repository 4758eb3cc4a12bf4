//! Asking a service how it is: whether it listens, takes connections, or answers a request.
//!
//! Commands are run by the shim, and what a run says of itself is heard by the shim. Here is what the daemon can find out from
//! outside. A port counts only when one of the run's own processes listens on it: whoever else answers there says nothing about it.

mod http;

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::process::{self, ProcessId};
use locald_utils::time::human;
use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::core::health::Answer;

/// 5 ms: a dependent starts soon after, and a look costs a fraction of a millisecond.
const FIRST: Duration = Duration::from_millis(5);
/// 1 s, after twenty: who has waited that long does not notice, and a port that is never opened costs next to nothing.
const LONGEST: Duration = Duration::from_secs(1);

/// A run that is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// Its processes hang below this one.
    pub(crate) shim: ProcessId,
    /// Its own port.
    pub(crate) port: Option<u16>,
}

impl Subject {
    fn listens_on(&self, port: u16) -> bool {
        // What cannot be looked at is not open yet.
        let members: Vec<i32> =
            process::descendants(self.shim.pid).unwrap_or_default().iter().map(|process| process.id.pid).collect();
        process::listens_on(&members, port).unwrap_or(false)
    }
}

/// Asks once. What is lasting is waited for, for as long as it takes.
pub(crate) async fn ask(subject: Subject, check: HealthCheck) -> Answer {
    let Some(port) = check.probe.port(subject.port) else {
        return Answer::Unasked("it has no port".to_owned());
    };
    let answer = async {
        match &check.probe {
            Probe::Listen => {
                listening(subject, port).await;
                Answer::Good
            }
            _ if !subject.listens_on(port) => Answer::Bad(format!("none of its processes listens on port {port}")),
            Probe::Tcp { .. } => match connect(port).await {
                Ok(_) => Answer::Good,
                Err(error) => failed(&error),
            },
            Probe::Http(http) => match http::get(http, port).await {
                Ok(status) if http.accepts(status.as_u16()) => Answer::Good,
                Ok(status) => Answer::Bad(format!("answered {status}")),
                Err(error) => failed(&error),
            },
            Probe::Command { .. } | Probe::Log { .. } | Probe::Notify { .. } => {
                Answer::Unasked("it is for its shim to ask".to_owned())
            }
        }
    };
    if check.probe.is_lasting() {
        return answer.await;
    }
    let late = |_| Answer::Bad(format!("no answer within {}", human(check.timeout)));
    tokio::time::timeout(check.timeout, answer).await.unwrap_or_else(late)
}

/// Waits until one of its own processes listens on a port. No kernel tells when a process begins to, so this looks: often at first,
/// then less often, and not at all once it does.
async fn listening(subject: Subject, port: u16) {
    let began = Instant::now();
    while !subject.listens_on(port) {
        tokio::time::sleep((began.elapsed() / 20).clamp(FIRST, LONGEST)).await;
    }
}

/// Connects to a port of this machine, by either family.
async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => Ok(stream),
        // The first answer is the one that people know.
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error),
    }
}

/// What an error says about the service, or that it says nothing.
fn failed(error: &io::Error) -> Answer {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
            Answer::Unasked(format!("it could not be asked: {}", errno.desc()))
        }
        Some(Errno::ECONNREFUSED) => Answer::Bad("refused the connection".to_owned()),
        Some(Errno::ECONNRESET | Errno::EPIPE) => Answer::Bad("closed the connection without an answer".to_owned()),
        Some(_) | None => Answer::Bad(error.to_string()),
    }
}
