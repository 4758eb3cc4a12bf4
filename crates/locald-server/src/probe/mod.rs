//! Asking a service how it is: whether it listens, takes connections, or answers a request.
//!
//! Commands are run by the shim, and what a run says of itself is heard by the shim. Here is what the daemon can find out from
//! outside. A port counts only when one of the run's own processes listens on it: whoever else answers there says nothing about it.

mod http;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::process::{self, ProcessId};
use locald_utils::time::human;
use nix::errno::Errno;
use tokio::net::TcpStream;

use crate::core::health::Answer;

/// A run that is asked.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Its processes are these, and what hangs below them: its shim, or, without one, those that are known.
    pub(crate) roots: Rc<[ProcessId]>,
    /// Its own port.
    pub(crate) port: Option<u16>,
}

impl Subject {
    /// Whether its own processes listen on a port: over IPv4, and over IPv6.
    fn listens_on(&self, port: u16) -> (bool, bool) {
        // What cannot be looked at is not open yet.
        let roots = self.roots.iter().filter(|root| root.is_alive()).map(|root| root.pid);
        let below = |root| process::descendants(root).unwrap_or_default().into_iter().map(|process| process.id.pid);
        let members: Vec<i32> = roots.flat_map(|root| std::iter::once(root).chain(below(root))).collect();
        process::listens_on(&members, port).unwrap_or_default()
    }
}

/// Asks once.
pub(crate) async fn ask(subject: Subject, check: HealthCheck) -> Answer {
    let Some(port) = check.probe.port(subject.port) else {
        return Answer::Unasked("it has no port".to_owned());
    };
    let families = match subject.listens_on(port) {
        (false, false) => return Answer::Bad(format!("none of its processes listens on TCP port {port}")),
        families => families,
    };
    let answer = async {
        match &check.probe {
            Probe::Listen => Answer::Good,
            Probe::Tcp { .. } => match connect(port, families).await {
                Ok(_) => Answer::Good,
                Err(error) => failed(&error),
            },
            Probe::Http(http) => match http::get(http, port, families).await {
                Ok(status) if http.accepts(status.as_u16()) => Answer::Good,
                Ok(status) => Answer::Bad(format!("answered {status}, {}", http.but())),
                Err(error) => failed(&error),
            },
            Probe::Command { .. } | Probe::Log { .. } | Probe::Notify { .. } => {
                Answer::Unasked("it is for its shim to ask".to_owned())
            }
        }
    };
    let late = |_| Answer::Bad(format!("no answer within {}", human(check.timeout)));
    tokio::time::timeout(check.timeout, answer).await.unwrap_or_else(late)
}

/// Connects to a port of this machine, by a family that its own processes listen on: by the other it may be somebody else's.
async fn connect(port: u16, (v4, v6): (bool, bool)) -> io::Result<TcpStream> {
    let v4 = v4.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let v6 = v6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for address in v4.into_iter().chain(v6) {
        result = TcpStream::connect((address, port)).await;
        if result.is_ok() {
            break;
        }
    }
    result
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
