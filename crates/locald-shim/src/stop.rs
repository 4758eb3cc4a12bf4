//! The shim's way through a stop: carries out what the sweep orders, runs the stop command, and sees when the run is over.
//!
//! When what happens is the ladder's to decide (`process::ladder`), who is of the run is membership's, and the sweep
//! (`process::sweep`) finds, signals and counts. Here is what only the shim can do: its children, its records, its daemon.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use locald_utils::fail;
use locald_utils::process;
use locald_utils::process::ladder::{Action, ROUND, View};
use locald_utils::process::membership;
use locald_utils::process::sweep::{Sweep, Target};
use locald_utils::process::watch::MemberEvent;
use locald_utils::record::{self, StopRecord};
use locald_utils::shim_protocol::FromShim;
use nix::sys::signal::Signal;

use crate::live::Live;
use crate::pump::{Pump, State};
use crate::spawn::{Helper, Plan, Progress};

impl Pump {
    fn target<'a>(&'a self, live: &'a Live) -> Target<'a> {
        Target {
            run: &self.identity.run.id,
            leader: live.leader,
            // It is reaped last, when the run is over.
            is_pinned: true,
            keeper: Some(self.shim.pid),
            reapers: &[],
            terminal: live.terminal,
            terminal_session: None,
            cgroup: live.cgroup.as_ref(),
            home: self.home.as_deref(),
            signal: live.order.stop.signal.0,
            command: live.command.as_ref().map(|command| command.process),
            probes: &live.probe_leaders,
        }
    }

    /// Sends a signal to every member.
    pub(crate) fn signal_members(&self, live: &Live, signal: Signal) {
        // Whoever cannot be found at this moment, or has ended, gets nothing.
        for process in self.target(live).members(&live.memory).unwrap_or_default() {
            let _ = process::signal(process.id, signal);
        }
    }

    /// Takes note of who is of the run now, so that they and their children are known when their parents are gone. Where
    /// orphans come to the shim there is nothing to note.
    pub(crate) fn see_members(&mut self) {
        let State::Live(live) = &self.state else { return };
        if live.watch.as_fd().is_none() {
            return;
        }
        let memory = live.stop.as_ref().map_or(&live.memory, Sweep::memory);
        // A table that cannot be read shows nobody; the next fork is another occasion.
        let members = self.target(live).members(memory).unwrap_or_default();
        let State::Live(live) = &mut self.state else { return };
        match &mut live.stop {
            Some(stop) => stop.see(live.leader, &members),
            None => drop(live.memory.add(&members)),
        }
        for process in &members {
            // One that has ended meanwhile, or runs as somebody else, cannot be watched; it is known all the same.
            let _ = live.watch.add(process.id);
        }
    }

    /// Hears that members have forked or ended.
    pub(crate) fn hear_members(&mut self) {
        let now = self.now();
        let State::Live(live) = &mut self.state else { return };
        // What cannot be read now is readable again in the next turn.
        let events = live.watch.drain().unwrap_or_default();
        if events.is_empty() {
            return;
        }
        for event in &events {
            if let (MemberEvent::Exited(process, status), Some(forked)) = (event, &mut live.forked) {
                forked.ended(process.pid, *status);
            }
        }
        (live.has_ends, live.look_at) = (true, Some(now + ROUND));
        if let Some(stop) = &mut live.stop {
            stop.ladder().hurry(now);
        }
        self.see_members();
    }

    /// Ends the run, or shortens the stop that is under way.
    pub(crate) fn stop(&mut self, grace: Duration) {
        let now = self.now();
        let State::Live(live) = &mut self.state else { return };
        let mut actions = Vec::new();
        match &mut live.stop {
            Some(stop) => stop.ladder().shorten(now, grace, &mut actions),
            None => {
                let has_command = live.order.stop.command.is_some() && live.helper.is_none();
                let memory = std::mem::take(&mut live.memory);
                live.stop = Some(Sweep::begin(now, grace, has_command, true, memory, &mut actions));
            }
        }
        fail::point("a stop begins");
        self.end_probes();
        self.tell_stopping();
        self.carry_out(actions);
        fail::point("the first step of a stop is done");
    }

    fn tell_stopping(&mut self) {
        let State::Live(live) = &self.state else { return };
        let Some(stop) = &live.stop else { return };
        let kill_at = self.wall(stop.kill_at());
        let grace = stop.kill_at().unwrap_or_default().saturating_sub(self.now());
        let record = StopRecord::begin(self.identity.run.clone(), grace);
        // The record helps whoever comes after a crash; a stop does not wait for a full disk.
        let _ = record::store(&self.record_dir, record::STOP, &record);
        self.link.tell(&FromShim::Stopping { kill_at }, &[]);
    }

    /// Moves the run on: to its stop when the leader has exited, along the ladder, to its end.
    pub(crate) fn step_run(&mut self) {
        let now = self.now();
        let State::Live(live) = &self.state else { return };
        if live.exit.is_some() && live.helper.is_some() {
            // What the helper had to say is in its socket.
            self.hear_helper();
        }
        let State::Live(live) = &mut self.state else { return };
        let is_due = live.look_at.take_if(|at| *at <= now).is_some();
        let has_ends = std::mem::take(&mut live.has_ends) || is_due;
        if live.forked.is_some() && live.stop.is_none() && !has_ends {
            // Those who were left are there.
            return;
        }
        let view = self.look(now);
        if view.empty && view.command_over {
            return self.finish();
        }
        let mut actions = Vec::new();
        let State::Live(live) = &mut self.state else { return };
        match (&mut live.stop, live.exit) {
            (Some(stop), _) => stop.step(now, view, &mut actions),
            (None, Some((status, _))) if live.order.forking && live.started_at.is_some() && status.is_success() => {
                return self.go_on_without_launcher();
            }
            (None, Some((status, at))) => {
                // The leader has left others behind: they are ended before the run counts as over.
                let grace = live.order.stop.grace;
                let memory = std::mem::take(&mut live.memory);
                live.stop = Some(Sweep::begin(now, grace, false, false, memory, &mut actions));
                self.link.tell(&FromShim::LeaderExited { status, at }, &[]);
                self.end_probes();
                self.tell_stopping();
            }
            (None, None) => {}
        }
        self.carry_out(actions);
    }

    /// Goes on with what a launcher has left: that is the service from now on. Sees to it that somebody stands for it.
    fn go_on_without_launcher(&mut self) {
        self.see_members();
        let State::Live(live) = &self.state else { return };
        if live.forked.as_ref().is_some_and(|forked| forked.main.is_some()) {
            return;
        }
        let members = self.target(live).members(&live.memory).unwrap_or_default();
        let main = membership::oldest_root(&members);
        let State::Live(live) = &mut self.state else { return };
        let forked = live.forked.get_or_insert_default();
        forked.main = main;
        let Some(main) = main else {
            // Nobody is to be seen at this moment, in the middle of a fork say. The next end is another occasion.
            return;
        };
        self.store_record();
        fail::point("what a launcher has left is on record");
        self.link.tell(&FromShim::Forked { main }, &[]);
    }

    /// What is left of the run.
    fn look(&mut self, now: Duration) -> View {
        let State::Live(live) = &self.state else { return View { empty: true, command_over: true } };
        let memory = live.stop.as_ref().map_or(&live.memory, Sweep::memory);
        let is_empty = live.exit.is_some() && self.target(live).is_empty(memory);
        let command_over = live.command.is_none();
        let State::Live(live) = &mut self.state else { return View { empty: true, command_over: true } };
        let empty = is_empty && live.stop.as_mut().is_none_or(|stop| stop.are_ports_free(now));
        View { empty, command_over }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            let State::Live(live) = &mut self.state else { return };
            // Taken out while it acts, because it looks at the rest of the run.
            let Some(mut stop) = live.stop.take() else { return };
            let State::Live(live) = &self.state else { return };
            let target = self.target(live);
            let mut command = None;
            match action {
                Action::Ask | Action::Kill | Action::GiveUp => {}
                Action::RunCommand => command = self.run_command(live),
                Action::EndCommand => {
                    if let Some(command) = target.command {
                        // It leads a session of its own, and is unreaped: the number is its.
                        let _ = process::signal_group(command.pid, Signal::SIGKILL);
                    }
                }
            }
            let survivors = stop.carry_out(action, &target);
            let State::Live(live) = &mut self.state else { return };
            live.stop = Some(stop);
            if let Some(survivors) = survivors {
                live.survivors.clone_from(&survivors);
                self.link.tell(&FromShim::Survivors { survivors }, &[]);
            }
            let State::Live(live) = &mut self.state else { return };
            match command {
                Some(Ok(command)) => live.command = Some(command),
                Some(Err(error)) => self.note(&format!("stop_command could not be started: {error}")),
                None => {}
            }
        }
    }

    /// Starts the stop command, with its output in the log. One that cannot be run says so there, and the stop goes on.
    fn run_command(&self, live: &Live) -> Option<io::Result<Helper>> {
        let command = live.order.stop.command.clone()?;
        let [_, stdout, stderr] = self.output.as_ref()?.stdio();
        let plan = Plan {
            command,
            workdir: live.order.workdir.clone(),
            environment: live.order.environment.clone(),
            takes_terminal: false,
            run: self.identity.run.id.clone(),
            notification: None,
        };
        let null = std::fs::File::open("/dev/null");
        Some(null.and_then(|null| Helper::start(plan, live.cgroup.as_ref(), [null.as_fd(), stdout, stderr])))
    }

    /// Hears how far the stop command has come.
    pub(crate) fn hear_command(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let Some(command) = &mut live.command else { return };
        match command.progress() {
            Progress::Waiting | Progress::Running => {}
            Progress::Ready(_) => {
                // A gate that does not open is a command that is gone; its exit follows.
                let _ = command.open_gate();
            }
            Progress::Failed(failure) => {
                let text = format!("stop_command could not be run: {}", failure.message);
                self.note(&text);
            }
        }
    }
}
