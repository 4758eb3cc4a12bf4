//! Progress on stderr: a block that is redrawn on a terminal, plain lines elsewhere.
//!
//! Settled services are printed once and scroll away; below them the pending ones are redrawn. The cursor is never
//! hidden and no mode of the terminal is changed, so there is nothing to restore however this process ends.
//! Reads the clock.

use std::time::{Duration, Instant};

use crossterm::Command;
use crossterm::cursor::MoveToPreviousLine;
use crossterm::terminal::{self, Clear, ClearType};
use locald_utils::protocol::ServiceStatus;
use locald_utils::time::{UnixMillis, human};

use crate::progress::{Goal, Line, Progress};
use crate::screen::{Paint, Screen, Tone};

/// 10 s of silence: after that people and agents begin to wonder whether a command hangs.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Four times a second: enough for a running second count.
const REDRAW: Duration = Duration::from_millis(250);

/// 40 ms between redraws while events come in hundreds: no eye sees more.
const REDRAW_AFTER_NEWS: Duration = Duration::from_millis(40);

/// Tells a person what happens while a request is under way.
pub(crate) struct Reporter<'a> {
    screen: &'a mut Screen,
    progress: Progress,
    mode: Mode,
    /// The width of the column of names.
    width: usize,
    last_said: Instant,
}

enum Mode {
    /// Nothing is shown.
    Silent,
    /// One line for each change.
    Plain,
    /// A block below what is settled.
    Live {
        /// The lengths of the lines that are drawn, to be drawn over.
        drawn: Vec<usize>,
        /// Whether the block shows everything that is known.
        is_current: bool,
    },
}

impl<'a> Reporter<'a> {
    /// Begins to report on services whose names are at most `width` long.
    pub(crate) fn new(screen: &'a mut Screen, goal: Goal, width: usize) -> Self {
        let mode = if screen.json() || screen.quiet() {
            Mode::Silent
        } else if screen.is_live() {
            Mode::Live { drawn: Vec::new(), is_current: true }
        } else {
            Mode::Plain
        };
        Self { screen, progress: Progress::new(goal), mode, width, last_said: Instant::now() }
    }

    /// A reporter that says nothing.
    pub(crate) fn silent(screen: &'a mut Screen) -> Self {
        let (progress, mode) = (Progress::new(Goal::Down), Mode::Silent);
        Self { screen, progress, mode, width: 0, last_said: Instant::now() }
    }

    /// Takes news of a service.
    pub(crate) fn observe(&mut self, status: &ServiceStatus) {
        let now = UnixMillis::now();
        let Some(line) = self.progress.observe(status, now) else { return };
        let is_settled = self.progress.is_settled(status);
        self.width = self.width.max(line.service.len());
        let text = settled_line(&line, self.width, self.screen.stderr_paint());
        match &mut self.mode {
            Mode::Silent => {}
            Mode::Plain => {
                self.screen.say(&text);
                self.last_said = Instant::now();
            }
            Mode::Live { drawn, is_current } => {
                if is_settled {
                    self.screen.draw(&(erase(drawn, columns()) + &text + "\n"));
                    drawn.clear();
                }
                *is_current = false;
            }
        }
    }

    /// How long nothing needs to be shown if nothing happens.
    pub(crate) fn patience(&self) -> Duration {
        let since = self.last_said.elapsed();
        match &self.mode {
            Mode::Silent => Duration::MAX,
            Mode::Plain => HEARTBEAT.saturating_sub(since),
            Mode::Live { is_current: true, .. } => REDRAW.saturating_sub(since),
            Mode::Live { is_current: false, .. } => REDRAW_AFTER_NEWS.saturating_sub(since),
        }
    }

    /// Shows what is due: called when [`Reporter::patience`] has run out, harmless before.
    pub(crate) fn tick(&mut self) {
        if !self.patience().is_zero() {
            return;
        }
        let now = UnixMillis::now();
        match &mut self.mode {
            Mode::Silent => {}
            Mode::Plain => self.screen.say(&self.progress.heartbeat(now)),
            Mode::Live { drawn, is_current } => {
                let (columns, rows) = size();
                let lines = block(&self.progress.pending(now), self.width, columns, rows);
                let paint = self.screen.stderr_paint();
                let mut text = erase(drawn, columns);
                for line in &lines {
                    text.push_str(&paint.text(Tone::Busy, line));
                    text.push('\n');
                }
                self.screen.draw(&text);
                *drawn = lines.iter().map(|line| columns_of(line)).collect();
                *is_current = true;
            }
        }
        self.last_said = Instant::now();
    }

    /// Ends the report; what was pending is no longer shown. Returns the screen for what is to be said next.
    pub(crate) fn finish(self) -> &'a mut Screen {
        if let Mode::Live { drawn, .. } = &self.mode {
            self.screen.draw(&erase(drawn, columns()));
        }
        self.screen
    }
}

fn columns() -> usize {
    size().0
}

/// Columns and rows of the terminal; 80 and 24 where nobody has told it a size, as under `script` and in some CI.
fn size() -> (usize, usize) {
    match terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => (columns.into(), rows.into()),
        Ok(_) | Err(_) => (80, 24),
    }
}

/// A line that stays: `web     ready in 1.2s`.
fn settled_line(line: &Line, width: usize, paint: Paint) -> String {
    format!("{:<width$}  {}", line.service, paint.text(line.word.tone, &line.word.text))
}

/// The lines of the block: as many as fit the screen, each no wider than it.
fn block(pending: &[Line], width: usize, columns: usize, rows: usize) -> Vec<String> {
    // One row stays free for the cursor and one for what is typed.
    let room = rows.saturating_sub(2).max(1);
    let shown = if pending.len() > room { room - 1 } else { pending.len() };
    let mut lines: Vec<String> = pending[..shown]
        .iter()
        .map(|line| {
            let elapsed = line.elapsed.map_or(String::new(), |elapsed| format!("  {}", running(elapsed)));
            fit(&format!("{:<width$}  {}{elapsed}", line.service, line.word.text), columns)
        })
        .collect();
    if shown < pending.len() {
        lines.push(fit(&format!("and {} more", pending.len() - shown), columns));
    }
    lines
}

/// A time that counts up before one's eyes: in tenths of a second, of which people can see no less.
fn running(elapsed: Duration) -> String {
    if elapsed.as_secs() == 0 { format!("0.{}s", elapsed.subsec_millis() / 100) } else { human(elapsed) }
}

/// Cuts a line so that it cannot wrap.
fn fit(line: &str, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    if columns_of(line) <= room {
        return line.to_owned();
    }
    let mut used = 1;
    let kept = line.chars().take_while(|c| {
        used += columns_of_char(*c);
        used <= room
    });
    kept.chain(std::iter::once('…')).collect()
}

/// The columns a line takes. Everything from Hangul on counts as wide: too short a line is better than one that wraps.
fn columns_of(line: &str) -> usize {
    line.chars().map(columns_of_char).sum()
}

fn columns_of_char(c: char) -> usize {
    if c < '\u{1100}' || c == '…' { 1 } else { 2 }
}

/// Makes the control sequence that takes `drawn` off a screen of `columns`. Lines that were drawn on a wider screen
/// have wrapped since.
fn erase(drawn: &[usize], columns: usize) -> String {
    let rows: usize = drawn.iter().map(|length| length.div_ceil(columns.max(1)).max(1)).sum();
    let mut text = String::new();
    if rows > 0 {
        // Writing to a String does not fail.
        let _ = MoveToPreviousLine(u16::try_from(rows).unwrap_or(u16::MAX)).write_ansi(&mut text);
        let _ = Clear(ClearType::FromCursorDown).write_ansi(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use locald_utils::protocol::State;

    use super::*;
    use crate::testing::{Captured, ready, service};
    use crate::view::Word;

    fn pending(service: &str, text: &str, seconds: u64) -> Line {
        let word = Word { text: text.to_owned(), tone: Tone::Busy };
        Line { service: service.to_owned(), word, elapsed: Some(Duration::from_secs(seconds)) }
    }

    #[test]
    fn the_block_fits_the_screen() {
        let lines = [pending("web", "waiting for db to be ready", 3), pending("api", "starting", 12)];
        assert_eq!(running(Duration::from_millis(291)), "0.2s");
        assert_eq!(block(&lines, 6, 80, 24), ["web     waiting for db to be ready  3.0s", "api     starting  12s"]);
        assert_eq!(block(&lines, 6, 20, 24), ["web     waiting fo…", "api     starting  …"]);
        let many: Vec<Line> = (0..30).map(|number| pending(&format!("s{number}"), "starting", 1)).collect();
        assert_eq!(
            block(&many, 3, 80, 6),
            ["s0   starting  1.0s", "s1   starting  1.0s", "s2   starting  1.0s", "and 27 more"]
        );
    }

    #[test]
    fn erasing_counts_the_rows_that_lines_take_now() {
        assert_eq!(erase(&[], 80), "");
        assert_eq!(erase(&[10, 79], 80), "\x1b[2F\x1b[J");
        assert_eq!(erase(&[10, 79], 40), "\x1b[3F\x1b[J");
    }

    #[test]
    fn elsewhere_each_change_is_one_line() {
        let captured = Captured::default();
        let mut screen = captured.screen();
        let mut reporter = Reporter::new(&mut screen, Goal::Up, 6);
        for status in [service("web", State::Spawning), service("web", State::Starting), ready("web"), ready("worker")]
        {
            reporter.observe(&status);
        }
        reporter.tick();
        reporter.finish();
        assert_eq!(captured.stderr(), "web     starting\nweb     ready in 1.2s\nworker  ready in 1.2s\n");
    }

    #[test]
    fn programs_and_quiet_people_are_not_told() {
        for (json, quiet) in [(true, false), (false, true)] {
            let captured = Captured::default();
            let mut screen = captured.screen_with(json, quiet);
            let mut reporter = Reporter::new(&mut screen, Goal::Up, 6);
            reporter.observe(&ready("web"));
            reporter.finish();
            assert_eq!(captured.stderr(), "");
        }
    }
}
