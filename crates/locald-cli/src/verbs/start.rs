//! `start`: starts services that are stopped, with what they depend on. What runs stays, even if its spec changed.

use locald_utils::protocol::Action;

use super::Start;
use crate::args::StartArgs;
use crate::context::Context;
use crate::failure::Problem;
use crate::screen::Screen;

pub(super) fn run(args: &StartArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (services, profiles, limit) = (&args.services, &args.profiles, args.limit);
    let (force, owner, farewell) = (args.force, None, None);
    Start { verb: "start", action: Action::Start, services, profiles, limit, force, owner, farewell }.run_or_tell(
        args.dry_run,
        context,
        screen,
    )
}
