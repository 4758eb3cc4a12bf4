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
use std::path::{Path, PathBuf};
use std::time::Duration;

use locald_utils::log::{Entry, Follower, LogReader, RunChoice};
use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::record::{Ended, ExitStatus};

pub(crate) use self::chord::Chord;
use self::input::{Input, Raw, Way};
use self::picture::Picture;
use super::watch::{Wake, Watch};
use crate::context::Context;
use crate::failure::{self, Problem};
use crate::render::json;
use crate::screen::Screen;
use crate::shim::Seat;
use crate::view;

/// 256 KiB: many screens of any terminal, and read and drawn within some milliseconds.
const REPLAYED: u64 = 256 * 1024;

/// 64 KiB: what is shown before anybody else gets a turn.
const AT_ONCE: usize = 64 * 1024;

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
    let way = show(&name, &dir, seat, &args.detach_keys, &how)?;
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

/// Shows the terminal of the run that `seat` is in front of, until the person leaves or it ends. `how` says how to leave.
fn show(name: &ServiceName, dir: &Path, seat: Seat, keys: &Chord, how: &str) -> Result<Way, Failure> {
    let unusable = |error: io::Error| failure::io("set up the terminal", &error);
    let (until, hold) = io::pipe().map_err(|error| failure::io("make a pipe", &error))?;
    let watch = Watch::new(vec![dir.to_owned()], None, Some(until.into()))?;
    let (run, is_writer) = (seat.run.number, seat.master.is_some());
    // What it shows so far, of the size for which it was written.
    let mut picture = Picture::new(seat.size);
    let follower = replay(dir, run, &mut picture).map_err(|error| unreadable(name, &error))?;

    // The signals first: none of them may end this process with its terminal as it is from the next line on. The size of
    // this terminal is that of the service's now, where one types.
    let input = Input::new(seat, keys.clone(), hold).map_err(unusable)?;
    let raw = Raw::enter().map_err(unusable)?;
    let input = input.serve();
    let size = input::own_size().filter(|_| is_writer);
    size.into_iter().for_each(|size| picture.resize(size));
    let mut showing = Showing { name, run, follower, watch, picture, size, shown: Vec::new() };
    let mut out = io::stdout().lock();
    let way = match showing.until_over(&mut out, how) {
        Ok(Over::Ended) => Ok(input.way()),
        // Nobody is there any more.
        Ok(Over::Unseen) => Ok(Way::Left),
        Err(failure) => Err(failure),
    };
    if matches!(way, Ok(Way::Ended(_))) {
        // All of its output is there by now.
        showing.take_rest(&mut out);
    }
    showing.leave(&mut out);
    drop(raw);
    way
}

/// The log of a run on its way to a terminal.
struct Showing<'a> {
    name: &'a ServiceName,
    run: RunNumber,
    follower: Follower,
    watch: Watch,
    picture: Picture,
    /// The size of the terminal, where the service's follows it.
    size: Option<(u16, u16)>,
    /// What is to be written next.
    shown: Vec<u8>,
}

/// Why no more is shown.
enum Over {
    /// The person left, or the run ended.
    Ended,
    /// The terminal takes nothing more.
    Unseen,
}

impl Showing<'_> {
    /// Shows what there is and what comes.
    fn until_over(&mut self, out: &mut impl Write, how: &str) -> Result<Over, Failure> {
        self.shown = opening(&self.picture, how);
        loop {
            if self.write(out).is_err() {
                return Ok(Over::Unseen);
            }
            // Watched first, read second: what comes in between is reported.
            self.watch.renew()?;
            let taken = self.take().map_err(|error| unreadable(self.name, &error))?;
            if self.write(out).is_err() {
                return Ok(Over::Unseen);
            }
            match self.watch.wait((taken == Taken::Part).then_some(Duration::ZERO)) {
                Wake::Changed | Wake::Quiet => {}
                Wake::HungUp | Wake::Ended => return Ok(Over::Ended),
            }
            // The service redraws what it shows, so there is something to read whenever the size is another.
            if self.size.is_some() && input::own_size() != self.size {
                self.size = input::own_size();
                self.size.into_iter().for_each(|size| self.picture.resize(size));
            }
        }
    }

    /// Takes what the run has written since, also the beginning of a line, but not more than a terminal shows at once: a
    /// service may write faster than anybody shows it.
    fn take(&mut self) -> io::Result<Taken> {
        while self.shown.len() < AT_ONCE {
            if !self.follower.advance()? && !self.follower.release()? {
                return Ok(Taken::All);
            }
            let Some(entry) = self.follower.entry() else { continue };
            if draw(&entry, self.run, &mut self.picture, &mut self.shown) {
                return Ok(Taken::All);
            }
        }
        Ok(Taken::Part)
    }

    /// Shows what is left of a run that is over.
    fn take_rest(&mut self, out: &mut impl Write) {
        // What cannot be read or shown any more is in the log.
        while let Ok(taken) = self.take() {
            if self.write(out).is_err() || taken == Taken::All {
                return;
            }
        }
    }

    fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        let written = out.write_all(&self.shown).and_then(|()| out.flush());
        self.shown.clear();
        written
    }

    /// Puts the terminal back. Nobody is there to see it any more if that fails.
    fn leave(&mut self, out: &mut impl Write) {
        self.shown.clear();
        self.picture.leave(&mut self.shown);
        let _ = self.write(out);
    }
}

/// How much was taken of what there was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    All,
    Part,
}

fn unreadable(name: &ServiceName, error: &io::Error) -> Failure {
    failure::io(format_args!("read the log of {name}"), error)
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

/// Draws what a run has written last, up to now. Returns what follows it from there on.
fn replay(dir: &Path, run: RunNumber, picture: &mut Picture) -> io::Result<Follower> {
    let Some(reader) = LogReader::open(dir)? else { return Ok(Follower::new(dir)) };
    let selection = reader.run(RunChoice::Number(run)).map_or_else(|| reader.all(), |span| span.selection);
    let end = selection.bytes.end;
    let mut cursor = reader.entries(&reader.from(&selection, end.saturating_sub(REPLAYED)));
    let mut shown = Vec::new();
    while cursor.advance()? {
        let Some(entry) = cursor.entry() else { continue };
        draw(&entry, run, picture, &mut shown);
        shown.clear();
    }
    Ok(reader.follow(&reader.from(&selection, end)))
}

/// Draws what an entry of the log shows of `run`, and puts what a person's terminal is to be sent into `shown`. Says whether the run
/// has nothing more to show.
fn draw(entry: &Entry<'_>, run: RunNumber, picture: &mut Picture, shown: &mut Vec<u8>) -> bool {
    match entry {
        Entry::Line(line) if line.run.is_none_or(|of| of == run) => picture.write(line.bytes, shown),
        Entry::Gap { run: of, lost, .. } if *of == run => {
            picture.write(format!("\r\n--- up to {lost} bytes are missing here ---\r\n").as_bytes(), shown);
        }
        Entry::Started { run: of, .. } => return *of > run,
        Entry::Line(_) | Entry::Gap { .. } | Entry::Continued { .. } | Entry::Ended { .. } | Entry::Restarted => {}
    }
    false
}

/// Prints what the terminal of a service shows.
pub(super) fn screen(args: &ScreenArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (name, dir) = one_service(&args.service, context)?;
    let seat = Seat::take(&name, &dir, true)?;
    let run = seat.run.number;
    let mut picture = Picture::new(seat.size);
    replay(&dir, run, &mut picture).map_err(|error| unreadable(&name, &error))?;
    let lines = picture.lines();
    if screen.json() {
        let cursor = picture.has_cursor().then(|| picture.cursor());
        screen.answer(&json::screen(&name, run, seat.size, cursor, picture.takes_the_screen(), &lines));
    } else if !lines.is_empty() {
        screen.answer(&lines.iter().map(|line| format!("{}\n", view::clean(line))).collect::<String>());
    }
    Ok(0)
}
