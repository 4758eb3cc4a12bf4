//! `up`: brings the project to what its file says, and waits until that is so. What runs and is unchanged stays.

use locald_utils::protocol::Action;

use super::Start;
use crate::args::UpArgs;
use crate::context::Context;
use crate::failure::Problem;
use crate::screen::Screen;

/// How to go on from here.
const FAREWELL: &str = "follow with `locald logs -f`, stop with `locald down`";

pub(super) fn run(args: &UpArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (services, limit) = (&args.services, args.limit);
    Start { verb: "up", action: Action::Up, services, limit, farewell: Some(FAREWELL) }.run(context, screen)
}
