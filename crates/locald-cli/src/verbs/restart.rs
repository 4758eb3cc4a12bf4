//! `restart`: gives services a new run, with the spec and the environment of now; a stopped one is started.

use locald_utils::protocol::Action;

use super::Start;
use crate::args::RestartArgs;
use crate::context::Context;
use crate::failure::Problem;
use crate::screen::Screen;

pub(super) fn run(args: &RestartArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (services, profiles, limit) = (&args.services, &args.profiles, args.limit);
    let (force, owner, farewell) = (args.force, None, None);
    Start { verb: "restart", action: Action::Restart, services, profiles, limit, force, owner, farewell }.run_or_tell(
        args.dry_run,
        context,
        screen,
    )
}
