//! The shim's way out: the last of the output, the account of how the run ended, and nothing left that speaks of it.

use locald_utils::fail;
use locald_utils::process::sweep::Account;
use locald_utils::record::{self, Ended, ExitStatus, StartFailure};
use locald_utils::shim_protocol::FromShim;
use locald_utils::time::UnixMillis;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::live::Live;
use crate::output::Output;
use crate::pump::{PATIENCE, Pump, State};

impl Pump {
    /// The run is over: drains what it wrote, records how it ended, and tells.
    pub(crate) fn finish(&mut self) {
        fail::point("nobody is left");
        let lost_output = self.output.take().map_or(0, Output::drain);
        fail::point("the output is drained");
        let now = self.now();
        let State::Live(live) = std::mem::replace(&mut self.state, State::Over) else { return };
        let Live { leader, cgroup, failed, started_at, exit, forked, stop, .. } = *live;
        // Nothing else bears the leader's number any more: its zombie may go.
        let _ = waitpid(Pid::from_raw(leader.pid), None);
        fail::point("the leader is reaped");
        if let Some(cgroup) = cgroup {
            cgroup.remove();
        }
        if let Some(failure) = failed {
            return self.tell_failure(failure);
        }
        let has_forked = forked.is_some();
        let exit = forked.map_or(exit, |forked| forked.exit);
        let (status, exited_at) = exit.unwrap_or((ExitStatus::Unknown, UnixMillis::now()));
        let (began, requested) = stop.as_ref().map_or((now, false), |stop| (stop.began, stop.requested));
        let Account { processes, killed, strays, holders } = stop.map_or_else(Account::default, |mut stop| {
            // A launcher has ended long since.
            if !has_forked {
                stop.reaped(leader.pid);
            }
            stop.account()
        });
        // Who is left by a launcher is the service, and has not strayed from it.
        let strays = if has_forked && requested { Vec::new() } else { strays };
        let ended = Ended {
            run: self.identity.run.clone(),
            status,
            forked: has_forked,
            started_at,
            exited_at,
            ended_at: UnixMillis::now(),
            stopped: requested,
            forced: killed > 0,
            processes: processes.max(1),
            killed,
            strays,
            survivors: holders,
            stop_took: now.saturating_sub(began),
            lost_output,
        };
        // Without this record only a connected daemon will know; it is told all the same.
        if let Err(error) = record::store(&self.record_dir, &record::exit(&ended.run.id), &ended) {
            crate::say(&format!("locald-shim: could not record how {} ended: {error}", self.identity.run.service));
        }
        self.forget_records();
        fail::point("the records of the run are gone");
        self.tell_last(FromShim::Ended(Box::new(ended)));
        fail::point("the end is told");
    }

    pub(crate) fn tell_failure(&mut self, failure: StartFailure) {
        self.forget_records();
        self.tell_last(FromShim::StartFailed(failure));
    }

    fn tell_last(&mut self, message: FromShim) {
        self.link.tell_viewers(&message);
        let is_heard = self.link.tell(&message, &[]);
        self.state = if is_heard { State::Told(Box::new(message), self.now() + PATIENCE) } else { State::Over };
    }

    /// Takes away the records that say a run is on, and the socket. Once: after that they may be the next run's.
    fn forget_records(&mut self) {
        if std::mem::replace(&mut self.is_forgotten, true) {
            return;
        }
        for name in [record::PID, record::STOP, record::SHIM] {
            // A record that stays is cleared by the next daemon: its processes are gone.
            let _ = record::remove(&self.record_dir, name);
        }
        // As above.
        let _ = record::leave(&self.record_dir);
        self.signs.close();
        self.link.close();
    }

    /// Nobody says what to run, or nobody wants it any more.
    pub(crate) fn give_up(&mut self) {
        if let State::Idle(spare) = std::mem::replace(&mut self.state, State::Over) {
            spare.dismiss();
        }
    }

    pub(crate) fn leave(mut self) {
        self.forget_records();
    }
}
