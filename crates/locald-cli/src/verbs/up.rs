//! `up`: brings the project to what its file says, and waits until that is so. What runs and is unchanged stays.
//! With `-f` it stays as well; that is in `follow`.

use locald_utils::protocol::{Action, Failure, FailureCode};

use super::{Start, follow};
use crate::args::UpArgs;
use crate::context::Context;
use crate::failure::Problem;
use crate::screen::Screen;

/// How to go on from here.
pub(super) const FAREWELL: &str = "follow with `locald logs -f`, stop with `locald down`";

pub(super) fn run(args: &UpArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (services, profiles, limit) = (&args.services, &args.profiles, args.limit);
    let farewell = (!args.follow).then_some(FAREWELL);
    let (force, owner) = (args.force, args.owner.owner());
    let owner = owner.as_ref();
    let start = Start { verb: "up", action: Action::Up, services, profiles, limit, force, owner, farewell };
    if !args.follow {
        return start.run_or_tell(args.dry_run, context, screen);
    }
    if screen.json() {
        let failure = Failure::new(FailureCode::Usage, "`up -f` shows what services write, and has no --json");
        return Err(failure.hint("`locald up --json`, then `locald logs -f --json`").into());
    }
    follow::run(&start, args.watch_config, context, screen)
}
