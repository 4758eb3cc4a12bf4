//! What a terminal shows after all that was written to it.
//!
//! The terminal of a service leaves newlines as they are, because its log holds what the service wrote. Whoever shows it
//! sends the cursor back to the first column with each, as the terminal of a person would, unless the service has taken
//! over the whole screen: then it says itself where the cursor goes.

use std::num::NonZeroU16;

use vt100::Parser;

/// A terminal that is not there.
pub(super) struct Picture {
    parser: Parser,
    /// Whether the last byte was a carriage return.
    is_returned: bool,
}

impl Picture {
    /// An empty one of this size: rows and columns.
    pub(super) fn new(size: (u16, u16)) -> Self {
        let (rows, columns) = at_least_one(size);
        Self { parser: Parser::new(rows, columns, 0), is_returned: false }
    }

    /// Takes another size.
    pub(super) fn resize(&mut self, size: (u16, u16)) {
        let (rows, columns) = at_least_one(size);
        self.parser.screen_mut().set_size(rows, columns);
    }

    /// Takes what a service wrote, and puts what a person's terminal is to be sent into `shown`.
    pub(super) fn write(&mut self, bytes: &[u8], shown: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, has_newline) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                Some(_) | None => (piece, false),
            };
            self.parser.process(text);
            shown.extend_from_slice(text);
            self.is_returned = text.last().map_or(self.is_returned, |last| *last == b'\r');
            if has_newline {
                let newline: &[u8] = match self.takes_the_screen() || self.is_returned {
                    true => b"\n",
                    false => b"\r\n",
                };
                self.parser.process(newline);
                shown.extend_from_slice(newline);
                self.is_returned = false;
            }
        }
    }

    /// Whether the service has taken over the whole screen, as editors do.
    pub(super) fn takes_the_screen(&self) -> bool {
        self.parser.screen().alternate_screen()
    }

    /// What brings another terminal to show the same, the cursor and the modes included.
    pub(super) fn redraw(&self) -> Vec<u8> {
        let screen = self.parser.screen();
        let mut bytes = Vec::new();
        if self.takes_the_screen() {
            // What lies behind it shows again when the service gives the screen back.
            let mut behind = Parser::default();
            *behind.screen_mut() = screen.clone();
            behind.process(b"\x1b[?1049l");
            bytes.extend_from_slice(behind.screen().state_formatted().as_bytes());
            bytes.extend_from_slice(b"\x1b[?1049h");
        }
        bytes.extend_from_slice(screen.state_formatted().as_bytes());
        bytes
    }

    /// The lines as text, without what is empty at their ends and after the last.
    pub(super) fn lines(&self) -> Vec<String> {
        let screen = self.parser.screen();
        let (_, columns) = screen.size();
        let mut lines: Vec<String> = screen.rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }

    /// Where the cursor is, from 0: row and column.
    pub(super) fn cursor(&self) -> (u16, u16) {
        self.parser.screen().cursor_position()
    }

    /// How many lines it has room for.
    pub(super) fn rows(&self) -> u16 {
        self.parser.screen().size().0.get()
    }

    /// Whether the cursor is seen.
    pub(super) fn has_cursor(&self) -> bool {
        !self.parser.screen().hide_cursor()
    }

    /// Puts a terminal that showed this back to how a shell expects it.
    pub(super) fn leave(&self, out: &mut Vec<u8>) {
        // A sequence that was cut off, colours, character sets, the cursor and its shape, wrapping, insertion, keypad, mouse,
        // focus, bracketed paste, synchronized output, how keys are reported, margins, the title: what a service may have changed
        // and a shell does not change back (XTerm Control Sequences; the kitty keyboard protocol).
        const SETTLED: &str = "\x18\x1b[0m\x1b(B\x0f\x1b[?25h\x1b[0 q\x1b[?7h\x1b[4l\x1b[?1l\x1b>\x1b[?9l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?1004l\
                               \x1b[?2004l\x1b[?2026l\x1b[<u\x1b[>4m\x1b[?6l\x1b[r\x1b[23;0t";
        out.extend_from_slice(SETTLED.as_bytes());
        if self.takes_the_screen() {
            out.extend_from_slice(b"\x1b[?1049l\r\n");
        } else {
            // Below what is shown: setting the scroll region has moved the cursor.
            out.extend_from_slice(format!("\x1b[{};1H\r\n", self.cursor().0 + 1).as_bytes());
        }
    }
}

/// A terminal of which nobody knows the size has 0 of both.
fn at_least_one((rows, columns): (u16, u16)) -> (NonZeroU16, NonZeroU16) {
    (NonZeroU16::new(rows).unwrap_or(NonZeroU16::MIN), NonZeroU16::new(columns).unwrap_or(NonZeroU16::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> (Picture, Vec<u8>) {
        let mut picture = Picture::new((4, 20));
        let mut shown = Vec::new();
        picture.write(bytes, &mut shown);
        (picture, shown)
    }

    #[test]
    fn a_newline_goes_to_the_first_column_unless_the_screen_is_taken() {
        assert_eq!(written(b"one\ntwo\r\nthree").1, b"one\r\ntwo\r\nthree");
        assert_eq!(written(b"one\ntwo\nthree").0.lines(), ["one", "two", "three"]);
        assert_eq!(written(b"a\n\x1b[?1049hb\nc\x1b[?1049l\nd\n").1, b"a\r\n\x1b[?1049hb\nc\x1b[?1049l\r\nd\r\n");
        let (mut picture, mut shown) = written(b"one\r");
        picture.write(b"\ntwo", &mut shown);
        assert_eq!(shown, b"one\r\ntwo");
    }

    #[test]
    fn a_redraw_shows_the_same() {
        for bytes in [
            &b"\x1b[31mred\x1b[0m\nplain"[..],
            b"1\n2\n3\n4\n5\n6",
            b"shell\n\x1b[?1049h\x1b[2J\x1b[2;3Hhere\x1b[?25l\x1b[?2004h",
        ] {
            let (picture, _) = written(bytes);
            let mut other = Picture::new((4, 20));
            other.parser.process(&picture.redraw());
            assert_eq!(other.lines(), picture.lines());
            assert_eq!((other.cursor(), other.has_cursor()), (picture.cursor(), picture.has_cursor()));
            assert_eq!(other.takes_the_screen(), picture.takes_the_screen());
            let mut picture = picture;
            for picture in [&mut other, &mut picture] {
                picture.parser.process(b"\x1b[?1049l|");
            }
            assert_eq!((other.lines(), other.cursor()), (picture.lines(), picture.cursor()));
        }
    }

    #[test]
    fn whoever_leaves_has_the_terminal_as_a_shell_expects_it() {
        let (picture, _) = written(b"shell\n\x1b[?1049h\x1b[?25l\x1b[?1000h\x1b[?2004hfull");
        let mut other = Picture::new((4, 20));
        other.parser.process(b"$ locald attach\r\n");
        other.parser.process(&picture.redraw());
        let mut bytes = Vec::new();
        picture.leave(&mut bytes);
        other.parser.process(&bytes);
        let screen = other.parser.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        // As the service left it when it took the screen.
        assert_eq!((other.lines(), other.cursor()), (vec!["shell".to_owned()], (2, 0)));
    }
}
