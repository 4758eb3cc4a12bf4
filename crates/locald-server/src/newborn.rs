//! A shim that has come up and has not been told what to run.
//!
//! To bring up a shim and its exec helper is most of what a start takes. So one stands by while anything runs: for the service that
//! dies, the dependent of one that becomes ready, the one whose files were saved. It is of no run until it is taken; it knows
//! nothing but the id of whatever run that will be, after which its cgroup is named. There is at most one, it is made when
//! nothing has been started for a while, and it goes when nothing runs any more. A start that finds none, or one that does not
//! answer, brings up its own.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use locald_utils::name::RunId;
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::{self, ProcessId, open_files};
use locald_utils::record::{self, ExitStatus, ShimRecord, StartFailure};
use locald_utils::shim_protocol::{ROOM, SHIM_ROLE, STANDBY_ROLE, ShimIdentity, StandbyIdentity, StartOrder, ToShim};
use locald_utils::{fail, frame};
use nix::sys::signal::Signal;
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, spawn_local};

use crate::actor::Context;
use crate::adoption;
use crate::launch::shim_failure;
use crate::shim_link::{self, ShimLink};

/// 1 s without a start: then a shim is made that stands by. What is started at once one after the other needs the processor itself.
const CALM: Duration = Duration::from_secs(1);

/// What a shim is told to come up with, for a run of this id.
pub(crate) fn standby_identity(context: &Context, run: &RunId) -> StandbyIdentity {
    StandbyIdentity { open_files: open_files::original(), cgroup: leaf(context, run).map(|leaf| leaf.dir().to_owned()) }
}

/// The cgroup of a run, where it can have one.
fn leaf(context: &Context, run: &RunId) -> Option<Cgroup> {
    context.cgroups.as_ref().map(|place| place.leaf(run.as_str()))
}

/// The process of a shim.
struct Started {
    shim: Option<ProcessId>,
    exit: oneshot::Receiver<ExitStatus>,
    stream: UnixStream,
}

impl Started {
    fn start(context: &Context, arguments: [&str; 2]) -> io::Result<Self> {
        let (pid, stream) = ShimLink::start(&context.shim_program, arguments, &context.log, context.home.state())?;
        let exit = context.reaper.exit_of(pid);
        Ok(Self { shim: ProcessId::of(pid), exit, stream })
    }
}

/// Ends a shim, so that it does not come late and meet the next one, and takes its cgroup away.
async fn end(context: &Context, shim: Option<ProcessId>, exit: oneshot::Receiver<ExitStatus>, run: &RunId) {
    if let Some(shim) = shim {
        let _ = process::signal(shim, Signal::SIGKILL);
    }
    let _ = exit.await;
    if let Some(leaf) = leaf(context, run) {
        adoption::clear_leaf(&leaf).await;
    }
}

/// A shim that knows its run.
pub(crate) struct Newborn {
    identity: ShimIdentity,
    shim: Option<ProcessId>,
    exit: oneshot::Receiver<ExitStatus>,
}

impl Newborn {
    /// Has a shim come up for a run: the one that stands by, if it answers. Returns the connection to it as well.
    ///
    /// # Errors
    /// Why no shim could be started.
    pub(crate) async fn bring_up(
        context: &Context,
        waiting: Option<Waiting>,
        identity: ShimIdentity,
    ) -> Result<(Self, io::Result<ShimLink>), StartFailure> {
        if let Some(waiting) = waiting {
            let (newborn, link) = waiting.call(context, identity.clone()).await;
            match link {
                Ok(link) => return Ok((newborn, Ok(link))),
                Err(error) => {
                    tracing::warn!(%error, "the shim that stood by cannot be used");
                    newborn.end(context).await;
                }
            }
        }
        let started = serde_json::to_string(&identity).map_err(io::Error::from);
        let started = started.and_then(|identity| Started::start(context, [SHIM_ROLE, &identity]));
        let Started { shim, exit, stream } = started.map_err(|error| StartFailure {
            path: Some(context.shim_program.path().to_owned()),
            ..shim_failure(&format!("could not start {}", context.shim_program.path().display()), &error)
        })?;
        Ok((Self { identity, shim, exit }, ShimLink::born(stream, context.epoch).await))
    }

    /// Tells it what to run. Nothing of it is left when that fails.
    pub(crate) async fn order(
        self,
        context: &Context,
        link: io::Result<ShimLink>,
        order: StartOrder,
    ) -> Result<(ShimLink, ShimIdentity), StartFailure> {
        let told = async {
            let mut link = link?;
            // An environment may be larger than what a socket holds for a shim that does not read.
            let sent = tokio::time::timeout(shim_link::HELLO_LIMIT, link.send(&ToShim::Start(Box::new(order)))).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(link)
        };
        match told.await {
            Ok(link) => Ok((link, self.identity)),
            Err(error) => {
                self.end(context).await;
                Err(shim_failure("its shim did not come up (the daemon's log says why)", &error))
            }
        }
    }

    /// Ends it, and takes away what it has left. Its own words are in the log.
    pub(crate) async fn end(self, context: &Context) {
        end(context, self.shim, self.exit, &self.identity.run.id).await;
        let place = record::place_of(&self.identity.service_dir, &self.identity.run.id);
        // It is gone, and nobody replaces what is there.
        let is_its = |found: &ShimRecord| found.run.id == self.identity.run.id;
        if record::load::<ShimRecord>(&place, record::SHIM).is_ok_and(|found| found.as_ref().is_some_and(is_its)) {
            let _ = record::remove(&place, record::SHIM);
        }
        let _ = record::leave(&place);
        let _ = std::fs::remove_file(&self.identity.socket);
        let _ = std::fs::remove_file(context.home.notify_socket(&self.identity.run.id));
    }
}

/// A shim that stands by.
pub(crate) struct Waiting {
    /// The id of the run that it will be of.
    pub(crate) run: RunId,
    started: Started,
}

impl Waiting {
    fn start(context: &Context) -> io::Result<Self> {
        let run = RunId::random()?;
        let mut identity = serde_json::to_string(&standby_identity(context, &run))?;
        let room = ROOM.saturating_sub(identity.len());
        identity.extend(std::iter::repeat_n(' ', room));
        fail::point("a shim is to stand by");
        Ok(Self { run, started: Started::start(context, [STANDBY_ROLE, &identity])? })
    }

    /// Tells it which run it is of.
    async fn call(self, context: &Context, identity: ShimIdentity) -> (Newborn, io::Result<ShimLink>) {
        let Started { shim, exit, mut stream } = self.started;
        // It has had the time to be stopped by somebody. One that is gone gets nothing.
        if let Some(shim) = shim {
            let _ = process::signal(shim, Signal::SIGCONT);
        }
        // A message of this size does not wait for who reads it.
        let told = frame::write_message(&mut stream, &identity);
        fail::point("the shim that stood by is told its run");
        let link = match told {
            Ok(()) => ShimLink::born(stream, context.epoch).await,
            Err(error) => Err(error),
        };
        (Newborn { identity, shim, exit }, link)
    }
}

/// The place of the shim that stands by.
#[derive(Default)]
pub(crate) struct Standby {
    /// Locked for as long as it takes to end one.
    waiting: Mutex<Option<Waiting>>,
    /// What will make one when it has been calm.
    soon: RefCell<Option<AbortHandle>>,
}

impl Standby {
    /// Takes the shim that stands by, if there is one that has room for such an identity.
    pub(crate) fn take(&self, identity: &ShimIdentity) -> Option<Waiting> {
        let has_room = serde_json::to_string(identity).is_ok_and(|text| text.len() <= ROOM);
        if has_room { self.waiting.try_lock().ok()?.take() } else { None }
    }

    /// Has a shim stand by when nothing else has been started for a while.
    pub(crate) fn prepare(context: &Rc<Context>) {
        // Elsewhere the arguments of a process say for ever what they said when it was started.
        if !cfg!(target_os = "linux") {
            return;
        }
        let task = {
            let context = context.clone();
            spawn_local(async move {
                tokio::time::sleep(CALM).await;
                let mut place = context.standby.waiting.lock().await;
                if place.is_some() || !context.budget.has_runs() {
                    return;
                }
                match Waiting::start(&context) {
                    Ok(waiting) => *place = Some(waiting),
                    Err(error) => tracing::debug!(%error, "no shim could be started to stand by"),
                }
            })
        };
        if let Some(before) = context.standby.soon.borrow_mut().replace(task.abort_handle()) {
            before.abort();
        }
    }

    /// Ends the shim that stands by.
    pub(crate) async fn end(&self, context: &Context) {
        if let Some(soon) = self.soon.borrow_mut().take() {
            soon.abort();
        }
        let mut place = self.waiting.lock().await;
        if let Some(Waiting { run, started: Started { shim, exit, .. } }) = place.take() {
            end(context, shim, exit, &run).await;
        }
    }

    /// Ends the shim that stands by if nothing runs any more.
    pub(crate) async fn rest(&self, context: &Context) {
        if !context.budget.has_runs() {
            self.end(context).await;
        }
    }
}
