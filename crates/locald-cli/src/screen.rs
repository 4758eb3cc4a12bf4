//! Where text goes: answers to stdout, everything else to stderr, and whether either takes colour.
//!
//! A reader that went away (`locald status | head -1`) is no error; a full disk behind stdout is one, and is told at
//! the end.

use std::io::{self, ErrorKind, IsTerminal, Write};

use locald_utils::protocol::FailureCode;

use crate::args::{ColorWhen, Global};

/// The two streams of the process and what they take.
pub(crate) struct Screen {
    stdout: Box<dyn Write>,
    stderr: Box<dyn Write>,
    stdout_paint: Paint,
    stderr_paint: Paint,
    /// Whether lines on stderr may be drawn over.
    live: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
    /// The first error of stdout. Nothing is written after it.
    stdout_error: Option<io::Error>,
}

impl Screen {
    /// The streams of this process.
    pub(crate) fn of_process(global: &Global) -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let wishes = Wishes {
            when: global.color,
            no_color: is_set("NO_COLOR"),
            force: std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0"),
            dumb: std::env::var_os("TERM").is_some_and(|value| value == "dumb"),
        };
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            stdout_paint: wishes.paint(io::stdout().is_terminal()),
            stderr_paint: wishes.paint(stderr_is_terminal),
            live: stderr_is_terminal && !wishes.dumb,
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            stdout_error: None,
        }
    }

    /// Says something on the side, unless only the answer is wanted.
    pub(crate) fn note(&mut self, text: &str) {
        if !self.quiet && !self.json {
            self.say(text);
        }
    }

    /// One that shows nothing.
    pub(crate) fn silent() -> Self {
        Self::plain(Box::new(io::sink()), Box::new(io::sink()), false, true)
    }

    /// Two streams without colour.
    pub(crate) fn plain(stdout: Box<dyn Write>, stderr: Box<dyn Write>, json: bool, quiet: bool) -> Self {
        let (stdout_paint, stderr_paint) = (Paint(false), Paint(false));
        Self {
            stdout,
            stderr,
            stdout_paint,
            stderr_paint,
            live: false,
            json,
            quiet,
            verbose: false,
            stdout_error: None,
        }
    }

    /// Whether the answer shall be JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Whether only the least shall be shown.
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// Whether progress may be drawn over itself.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// The colours of stdout.
    pub(crate) fn stdout_paint(&self) -> Paint {
        self.stdout_paint
    }

    /// The colours of stderr.
    pub(crate) fn stderr_paint(&self) -> Paint {
        self.stderr_paint
    }

    /// Writes the answer, or part of it, to stdout; ends the last line if it is not ended.
    pub(crate) fn answer(&mut self, text: &str) {
        if self.stdout_error.is_some() {
            return;
        }
        let written = self.stdout.write_all(ended(text).as_bytes()).and_then(|()| self.stdout.flush());
        self.stdout_error = written.err();
    }

    /// Writes text to stderr; ends the last line if it is not ended.
    pub(crate) fn say(&mut self, text: &str) {
        self.draw(&ended(text));
    }

    /// Writes text to stderr if the person asked for more than usual.
    pub(crate) fn mention(&mut self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }

    /// Writes bytes to stderr as they are.
    pub(crate) fn draw(&mut self, text: &str) {
        // There is nowhere to tell that stderr is gone.
        let _ = self.stderr.write_all(text.as_bytes()).and_then(|()| self.stderr.flush());
    }

    /// Ends the output. Returns `code`, or another when the answer could not be written.
    pub(crate) fn finish(mut self, code: u8) -> u8 {
        match self.stdout_error.take() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                self.say(&format!("error: could not write the answer: {error}"));
                FailureCode::Failed.exit_code()
            }
            Some(_) | None => code,
        }
    }
}

fn ended(text: &str) -> std::borrow::Cow<'_, str> {
    if text.is_empty() || text.ends_with('\n') { text.into() } else { format!("{text}\n").into() }
}

/// What the person and the environment say about colour.
struct Wishes {
    when: ColorWhen,
    no_color: bool,
    force: bool,
    dumb: bool,
}

impl Wishes {
    /// Decides for one stream: the flag first, then `NO_COLOR`, `CLICOLOR_FORCE`, `TERM=dumb`, then what the stream is.
    fn paint(&self, is_terminal: bool) -> Paint {
        Paint(match self.when {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto if self.no_color => false,
            ColorWhen::Auto if self.force => true,
            ColorWhen::Auto => is_terminal && !self.dumb,
        })
    }
}

/// Whether a stream takes colour. Sixteen colours only, so that the person's own theme applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint(pub(crate) bool);

/// What a colour stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As wished.
    Good,
    /// On its way.
    Busy,
    /// Wrong.
    Bad,
    /// Of no interest at the moment.
    Faint,
    /// A heading.
    Strong,
    /// Nothing special.
    Plain,
}

impl Paint {
    /// Whether there is colour.
    pub(crate) fn is_on(self) -> bool {
        self.0
    }

    /// Colours a text.
    pub(crate) fn text(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Strong => "1",
            Tone::Plain => return text.to_owned(),
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_environment_and_the_environment_over_the_stream() {
        let wishes = |when, no_color, force, dumb| Wishes { when, no_color, force, dumb };
        let on = |wishes: Wishes, terminal| wishes.paint(terminal).is_on();
        assert!(on(wishes(ColorWhen::Auto, false, false, false), true));
        assert!(!on(wishes(ColorWhen::Auto, false, false, false), false));
        assert!(!on(wishes(ColorWhen::Auto, true, true, false), true));
        assert!(on(wishes(ColorWhen::Auto, false, true, true), false));
        assert!(!on(wishes(ColorWhen::Auto, false, false, true), true));
        assert!(on(wishes(ColorWhen::Always, true, false, true), false));
        assert!(!on(wishes(ColorWhen::Never, false, true, false), true));
    }

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_and_a_full_disk_is_one() {
        for (kind, code) in [(ErrorKind::BrokenPipe, 0), (ErrorKind::StorageFull, 1)] {
            let mut screen = Screen::plain(Box::new(Broken(kind)), Box::new(io::sink()), false, false);
            screen.answer("one");
            screen.answer("two");
            assert_eq!(screen.finish(0), code);
        }
    }
}
