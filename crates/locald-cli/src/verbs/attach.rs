//! `attach`: the terminal of a service in this one. `screen`: what it shows.
//!
//! What the service writes is read from its log, as by `logs -f`: a terminal that stalls harms only itself, any number may
//! look, and no daemon is needed. What is typed goes straight into the service's terminal, which the shim hands to one
//! process at a time. [`run`] tells the story. Two threads: this one shows the log, the other, in `input`, waits for keys,
//! signals and the end of the run. `picture` knows what the terminal shows, so that it is there at once and can be put back;
//! `chord` finds the keys that detach.

mod chord;
mod input;
mod picture;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use locald_utils::log::{Entry, Follower, LogReader, RunChoice};
use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::record::{Ended, ExitStatus};

pub(crate) use self::chord::Chord;
use self::input::{Input, Raw, Way};
use self::picture::Picture;
use super::logs::watch::{Wake, Watch};
use crate::context::Context;
use crate::failure::{self, Problem};
use crate::render::json;
use crate::screen::Screen;
use crate::shim::Seat;
use crate::view;

/// 256 KiB: many screens of any terminal, and read and drawn within some milliseconds.
const REPLAYED: u64 = 256 * 1024;

/// Options of `locald attach`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AttachArgs {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
    /// Look on, type nothing; Ctrl-C leaves as well
    #[arg(short, long)]
    pub(crate) read_only: bool,
    /// The keys that leave: ctrl-space ctrl-q, ctrl-], ctrl-b d
    #[arg(long, value_name = "KEYS", env = "LOCALD_DETACH_KEYS", default_value = "ctrl-space ctrl-q", value_parser = Chord::parse)]
    pub(crate) detach_keys: Chord,
}

/// Options of `locald screen`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScreenArgs {
    /// The service
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
}

/// Shows the terminal of a service, and types into it, until the person leaves or the run ends.
pub(super) fn run(args: &AttachArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    if screen.json() {
        let failure = Failure::new(FailureCode::Usage, "attach shows a terminal and has no --json");
        return Err(failure.hint("`locald screen --json` and `locald logs -f --json` are for programs").into());
    }
    let (name, dir) = one_service(&args.service, context)?;
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let failure = Failure::new(FailureCode::Usage, "attach needs a terminal to read from and to write to");
        return Err(failure.hint(format!("`locald logs -f {name}` follows it anywhere")).into());
    }
    let seat = Seat::take(&name, &dir, args.read_only)?;
    let run = seat.run.number;
    let how = match args.read_only {
        true => format!("looking at {name}{run}; {} or Ctrl-C leaves", args.detach_keys),
        false => format!("attached to {name}{run}; {} detaches", args.detach_keys),
    };
    let way = Attached { name: &name, dir, run, seat, args }.show(&how)?;
    Ok(match way {
        Way::Left => {
            screen.say(&format!("detached; {name}{run} runs on"));
            0
        }
        Way::Ended(ended) => {
            screen.say(&format!("{name}{run}: {}", view::exit_words(&ended)));
            own_code(&ended)
        }
        Way::ShimLost => {
            screen.say(&format!("the shim of {name}{run} is gone; `locald status` tells how things stand"));
            1
        }
        Way::Signal => FailureCode::Interrupted.exit_code(),
    })
}

/// The exit code that tells how a run ended, as a shell would.
fn own_code(ended: &Ended) -> u8 {
    match ended.status {
        ExitStatus::Code(code) => u8::try_from(code).unwrap_or(1),
        ExitStatus::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
        ExitStatus::Unknown => 1,
    }
}

/// The one service that is meant, and its directory.
fn one_service(pattern: &str, context: &Context) -> Result<(ServiceName, PathBuf), Problem> {
    let mut found = context.place()?.logs(context.home()?, &[pattern.to_owned()])?;
    match (found.pop(), found.is_empty()) {
        (Some(service), true) => Ok(service),
        (Some(_) | None, _) => {
            let message = format!("{pattern:?} means more than one service");
            Err(Failure::new(FailureCode::Usage, message).hint("name one of them").into())
        }
    }
}

/// Somebody in front of a service's terminal.
struct Attached<'a> {
    name: &'a ServiceName,
    dir: PathBuf,
    run: RunNumber,
    seat: Seat,
    args: &'a AttachArgs,
}

impl Attached<'_> {
    fn show(self, how: &str) -> Result<Way, Failure> {
        let Self { name, dir, run, seat, args } = self;
        let unreadable = |error: io::Error| failure::io(format_args!("read the log of {name}"), &error);
        let unusable = |error: io::Error| failure::io("set up the terminal", &error);
        let (until, hold) = io::pipe().map_err(|error| failure::io("make a pipe", &error))?;
        let mut watch = Watch::new(vec![dir.clone()], None, Some(until.into()))?;
        let is_writer = seat.master.is_some();

        // What it shows so far, of the size for which it was written.
        let mut picture = Picture::new(seat.size);
        let mut follower = follow(&dir, run).map_err(unreadable)?;
        let mut shown = Vec::new();
        take(&mut follower, run, &mut picture, &mut shown).map_err(unreadable)?;

        let raw = Raw::enter().map_err(unusable)?;
        // From here on the size of this terminal is that of the service's, where one types.
        let input = Input::new(seat, &args.detach_keys, hold).map_err(unusable)?.serve();
        let mut size = input::own_size();
        if let Some(size) = size.filter(|_| is_writer) {
            picture.resize(size);
        }
        let mut out = io::stdout().lock();
        let mut write = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
        let mut written = write(&opening(&picture, how));
        while written.is_ok() {
            // Watched first, read second: what comes in between is reported.
            watch.renew()?;
            shown.clear();
            take(&mut follower, run, &mut picture, &mut shown).map_err(unreadable)?;
            written = write(&shown);
            match watch.wait(None) {
                Wake::Changed | Wake::Quiet => {}
                Wake::HungUp | Wake::Ended => break,
            }
            // The service redraws what it shows, so there is something to read whenever the size is another.
            if is_writer && input::own_size() != size {
                size = input::own_size();
                size.into_iter().for_each(|size| picture.resize(size));
            }
        }
        shown.clear();
        take(&mut follower, run, &mut picture, &mut shown).map_err(unreadable)?;
        picture.leave(&mut shown);
        // Nobody is there to see it any more if this fails.
        let _ = write(&shown);
        drop(raw);
        Ok(if written.is_ok() { input.way() } else { Way::Left })
    }
}

/// What puts a picture on the screen, with what was there before moved up, and says how to get away: in the title, and in
/// the first or the last line, whichever the cursor is not near to, until the service writes over it.
fn opening(picture: &Picture, how: &str) -> Vec<u8> {
    let mut bytes = vec![b'\n'; usize::from(picture.rows())];
    bytes.extend(picture.redraw());
    let line = if picture.cursor().0 < picture.rows() / 2 { picture.rows() } else { 1 };
    bytes.extend_from_slice(format!("\x1b7\x1b[{line};1H\x1b[0;7m {how} \x1b[0m\x1b8").as_bytes());
    bytes.extend_from_slice(format!("\x1b[22;0t\x1b]0;{how}\x07").as_bytes());
    bytes
}

/// Begins to read what a run has written last.
fn follow(dir: &std::path::Path, run: RunNumber) -> io::Result<Follower> {
    let Some(reader) = LogReader::open(dir)? else { return Ok(Follower::new(dir)) };
    let Some(span) = reader.run(RunChoice::Number(run)) else { return Ok(reader.follow(&reader.all())) };
    let start = span.selection.bytes.end.saturating_sub(REPLAYED);
    Ok(reader.follow(&reader.from(&span.selection, start)))
}

/// Takes what the run has written since, also the beginning of a line.
fn take(follower: &mut Follower, run: RunNumber, picture: &mut Picture, shown: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if !follower.advance()? && !follower.release()? {
            return Ok(());
        }
        match follower.entry() {
            Some(Entry::Line(line)) if line.run.is_none_or(|of| of == run) => picture.write(line.bytes, shown),
            Some(Entry::Gap { run: of, lost, .. }) if of == run => {
                picture.write(format!("\r\n--- {lost} bytes are missing here ---\r\n").as_bytes(), shown);
            }
            Some(
                Entry::Line(_)
                | Entry::Gap { .. }
                | Entry::Started { .. }
                | Entry::Continued { .. }
                | Entry::Ended { .. }
                | Entry::Restarted,
            )
            | None => {}
        }
    }
}

/// Prints what the terminal of a service shows.
pub(super) fn screen(args: &ScreenArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (name, dir) = one_service(&args.service, context)?;
    let seat = Seat::take(&name, &dir, true)?;
    let run = seat.run.number;
    let mut picture = Picture::new(seat.size);
    let mut follower =
        follow(&dir, run).map_err(|error| failure::io(format_args!("read the log of {name}"), &error))?;
    take(&mut follower, run, &mut picture, &mut Vec::new())
        .map_err(|error| failure::io(format_args!("read the log of {name}"), &error))?;
    let lines = picture.lines();
    if screen.json() {
        let cursor = picture.has_cursor().then(|| picture.cursor());
        screen.answer(&json::screen(&name, run, seat.size, cursor, picture.takes_the_screen(), &lines));
    } else if !lines.is_empty() {
        screen.answer(&lines.iter().map(|line| format!("{}\n", view::clean(line))).collect::<String>());
    }
    Ok(0)
}
