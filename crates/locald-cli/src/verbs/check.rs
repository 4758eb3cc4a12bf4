//! `check`: reads the project file and says what is wrong with it. Needs no daemon and touches nothing.

use crate::context::Context;
use crate::failure::Problem;
use crate::render::json;
use crate::screen::Screen;
use crate::view::count;

pub(super) fn run(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let spec = context.place()?.load()?;
    if screen.json() {
        screen.answer(&json::checked(&spec));
    } else if !screen.quiet() {
        let services = count(spec.services.len(), "service");
        screen.answer(&format!("{}: {services}, no mistakes in {}", spec.name, spec.file.display()));
    }
    Ok(0)
}
