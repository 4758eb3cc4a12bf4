//! `wait`: ends when a condition holds, can never hold, or the time is up. Changes nothing.

use locald_utils::protocol::{Failure, FailureCode, OutcomeResult, Request};
use locald_utils::time::{UnixMillis, human};

use super::{SLACK, Wait, carry_out, width};
use crate::args::{Until, WaitArgs};
use crate::context::{Context, Project};
use crate::daemon;
use crate::failure::Problem;
use crate::progress::Goal;
use crate::render::json;
use crate::screen::Screen;
use crate::view;

pub(super) fn run(args: &WaitArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let place = context.place()?;
    let mut client = daemon::connect_if_anything_runs(context.home()?, screen)?;
    let project = Project::find(&place, client.as_mut())?;
    let wanted = project.select(&args.services.patterns)?;
    let (Some(mut client), Some(known)) = (client, &project.known) else {
        return nothing_runs(args.until, project.name(), screen);
    };
    let wait = Wait {
        goal: if args.until == Until::Stopped { Goal::Down } else { Goal::Up },
        width: width(&wanted),
        limit: args.limit.timeout.checked_add(SLACK),
        interrupted: "interrupted",
        advice: "`locald status` tells how things stand",
    };
    let timeout = args.limit.timeout;
    let request = Request::Wait { project: known.id.clone(), services: wanted, until: args.until.into(), timeout };
    let outcome = carry_out(&mut client, request, &wait, screen)?;
    if screen.json() {
        let project = json::Project::of_status(known);
        screen.answer(&json::outcome("wait", Some(&project), &outcome, &[], UnixMillis::now()));
    } else {
        let now = UnixMillis::now();
        for service in outcome.services.iter().filter(|service| service.result != OutcomeResult::Done) {
            let (name, word) = (&service.service.name, view::word(&service.service, now).text);
            let what = match service.result {
                OutcomeResult::TimedOut => format!("after {}", human(args.limit.timeout)),
                OutcomeResult::Done | OutcomeResult::Failed | OutcomeResult::Superseded => "for good".to_owned(),
            };
            screen.say(&format!("{name} is not {} {what}: {word}", condition(args.until)));
        }
    }
    Ok(view::outcome_code(&outcome))
}

/// Nothing runs: so everything is stopped, and nothing else can be waited for.
fn nothing_runs(until: Until, project: &str, screen: &mut Screen) -> Result<u8, Problem> {
    match until {
        Until::Stopped => {
            super::show_nothing_runs("wait", screen);
            Ok(0)
        }
        Until::Ready | Until::Completed => {
            let failure = Failure::new(FailureCode::NotRunning, format!("nothing of {project} runs"));
            Err(failure.hint("`locald up` starts it and waits until it is ready").into())
        }
    }
}

fn condition(until: Until) -> &'static str {
    match until {
        Until::Ready => "ready",
        Until::Completed => "completed",
        Until::Stopped => "stopped",
    }
}
