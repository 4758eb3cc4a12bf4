//! The shim's way into a run: what the order takes is made ready, the helper is told its plan and let through the gate.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use locald_utils::fail;
use locald_utils::log::LogWriter;
use locald_utils::process::ProcessId;
use locald_utils::process::membership::Memory;
use locald_utils::process::watch::MemberWatch;
use locald_utils::record::{self, StartFailure, StartStage};
use locald_utils::shim_protocol::{FromShim, StartOrder};
use locald_utils::spec::Environment;
use locald_utils::time::UnixMillis;

use crate::live::Live;
use crate::output::Output;
use crate::pump::{Pump, State};
use crate::signs::{Notification, Signs};
use crate::spawn::{Plan, Progress, Spare, failure};

impl Pump {
    pub(crate) fn start(&mut self, order: StartOrder) {
        let spare = match std::mem::replace(&mut self.state, State::Over) {
            State::Idle(spare) => spare,
            other => return self.state = other,
        };
        match self.prepare(order, spare) {
            Ok(live) => self.state = State::Live(Box::new(live)),
            Err(failure) => self.tell_failure(failure),
        }
    }

    fn prepare(&mut self, order: StartOrder, spare: Spare) -> Result<Live, StartFailure> {
        let (output, watch, notification) = match self.outfit(&order) {
            Ok(outfit) => outfit,
            Err(failure) => {
                spare.dismiss();
                return Err(failure);
            }
        };
        let plan = Plan {
            command: order.command.clone(),
            workdir: order.workdir.clone(),
            environment: order.environment.clone(),
            takes_terminal: order.tty,
            run: self.identity.run.id.clone(),
            notification: notification.as_ref().map(|notification| notification.number),
        };
        let writer = notification.as_ref().map(|notification| notification.writer.as_fd());
        let (helper, cgroup) = spare
            .take(plan, output.stdio(), writer)
            .map_err(|error| failure(StartStage::Helper, &error, "could not start the exec helper"))?;
        fail::point("the helper is started");
        let terminal = output.terminal_number();
        self.output = Some(output);
        Ok(Live {
            order,
            leader: helper.process,
            terminal,
            cgroup,
            helper: Some((helper, false)),
            failed: None,
            started_at: None,
            exit: None,
            forked: None,
            has_ends: false,
            look_at: None,
            memory: Memory::default(),
            watch,
            stop: None,
            command: None,
            probes: Vec::new(),
            probe_count: 0,
            probe_cgroups: Vec::new(),
            probe_leaders: Vec::new(),
            probe_sessions: VecDeque::new(),
            survivors: Vec::new(),
        })
    }

    /// What a run needs beside its processes: the log and what leads to it, the watch over its members, and the ears for its signs.
    fn outfit(&mut self, order: &StartOrder) -> Result<(Output, MemberWatch, Option<Notification>), StartFailure> {
        let log = LogWriter::open(&self.identity.service_dir, self.identity.run.number, &order.log, UnixMillis::now())
            .map_err(|error| failure(StartStage::Log, &error, "could not open its log"))?;
        let output = if order.tty {
            Output::terminal(log).map_err(|error| failure(StartStage::Terminal, &error, "could not open a terminal"))?
        } else {
            // A run that could not be ended and was given up, and the one that began beside it, have records in two places.
            let is_alone = record::places(&self.identity.service_dir) == [self.record_dir.as_path()];
            Output::pipes(log, is_alone)
                .map_err(|error| failure(StartStage::Terminal, &error, "could not open pipes for its output"))?
        };
        let watch = MemberWatch::new()
            .map_err(|error| failure(StartStage::Helper, &error, "could not watch for its processes"))?;
        let (signs, notification) = Signs::open(&order.signs)
            .map_err(|error| failure(StartStage::Helper, &error, "could not listen for its readiness"))?;
        // From here on it is to be closed.
        self.signs = signs;
        Ok((output, watch, notification))
    }

    pub(crate) fn hear_helper(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let Some((helper, gate_open)) = &mut live.helper else { return };
        match helper.progress() {
            Progress::Waiting => {}
            // One that is to be ended does not begin: it leaves when it is not let through.
            Progress::Ready(_) if live.stop.is_some() || live.exit.is_some() => live.helper = None,
            Progress::Ready(pid) => {
                if let Some(process) = ProcessId::of(pid) {
                    live.leader = process;
                }
                self.open_gate();
            }
            Progress::Running if *gate_open => {
                live.helper = None;
                let started = FromShim::Started { leader: live.leader, at: live.started_at.unwrap_or_default() };
                let descriptors = self.output.as_ref().map(Output::descriptors).unwrap_or_default();
                self.link.tell(&started, &descriptors);
                for &check in self.signs.seen() {
                    self.link.tell(&FromShim::Sign { check }, &[]);
                }
                // From here on it mostly waits. Only a stop command, or probes, will need the environment once more.
                if live.order.stop.command.is_none() && live.order.probes.is_empty() {
                    live.order.environment = Environment::new();
                }
                self.is_settled = true;
            }
            Progress::Running => {
                live.failed = Some(StartFailure {
                    stage: StartStage::Helper,
                    errno: 0,
                    path: None,
                    message: "its exec helper was ended before it could run anything".to_owned(),
                    hint: None,
                    permanent: false,
                });
                live.helper = None;
            }
            Progress::Failed(failure) => {
                live.failed = Some(failure);
                live.helper = None;
            }
        }
    }

    /// Writes down who the processes of the run are, and lets the helper become the program.
    fn open_gate(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let record = live.record(&self.identity, &self.boot, self.shim);
        let Some((helper, gate_open)) = &mut live.helper else { return };
        let gate = record::store(&self.record_dir, record::PID, &record)
            .map_err(|error| failure(StartStage::Record, &error, "could not write the record of the run"))
            .and_then(|()| {
                live.started_at = Some(UnixMillis::now());
                helper.open_gate().map_err(|error| failure(StartStage::Helper, &error, "could not open the gate"))
            });
        match gate {
            Ok(()) => {
                fail::point("the gate is open");
                *gate_open = true;
                self.see_members();
            }
            // Dropping the helper closes the gate for good: it exits.
            Err(failure) => {
                live.failed = Some(failure);
                live.helper = None;
            }
        }
    }

    /// Writes down anew who the processes of the run are.
    pub(crate) fn store_record(&self) {
        let State::Live(live) = &self.state else { return };
        // The one before is true as well, and says less.
        let _ = record::store(&self.record_dir, record::PID, &live.record(&self.identity, &self.boot, self.shim));
    }
}
