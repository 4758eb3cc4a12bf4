//! How a line of a log is shown: without what would move the cursor, and as it looked when it was complete.
//!
//! The log itself keeps every byte. For display, escape sequences (ECMA-48) are taken out, or all but colours; of a
//! progress bar, which returns to the beginning of its line again and again, only the last state is left; `\r\n` is a
//! newline. Tabs and bytes that are no UTF-8 stay. State is kept between the pieces of a line, so a sequence that is cut
//! in two is still one sequence.

use std::borrow::Cow;

const ESC: u8 = 0x1b;

/// 64 bytes: longer colour sequences than any program sends, and a bound for those that never end.
const MAX_COLOR_BYTES: usize = 64;

/// Which escape sequences stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// None.
    Strip,
    /// Colours and other attributes of characters (SGR, ECMA-48 8.3.117).
    Colors,
}

/// Makes the text of one line after the other.
#[derive(Debug)]
pub struct LineText {
    escapes: Escapes,
    state: State,
    /// Where the output was at a carriage return that no text has followed yet. The next text takes the place of what
    /// is there.
    returned_at: Option<usize>,
    /// Whether earlier pieces of the line have text already.
    has_text: bool,
    is_colored: bool,
    /// The sequence in progress, as far as it may stay.
    sequence: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// After ESC and intermediate bytes.
    Intermediate,
    /// After ESC `[`.
    Control,
    /// After ESC and one of `]PX^_`: a text for the terminal, up to BEL or ESC `\`.
    String,
    /// After ESC in such a text.
    StringEscape,
}

impl LineText {
    /// Begins with a new line.
    #[must_use]
    pub fn new(escapes: Escapes) -> Self {
        Self {
            escapes,
            state: State::Text,
            returned_at: None,
            has_text: false,
            is_colored: false,
            sequence: Vec::new(),
        }
    }

    /// Appends what is shown of a line, or a piece of one, to `out`. The newline is not shown.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        self.returned_at = self.returned_at.map(|_| start);
        let mut rest = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        while let Some(first) = rest.first() {
            if self.state != State::Text {
                self.sequence_byte(*first, out);
                rest = &rest[1..];
                continue;
            }
            let len = memchr::memchr2(ESC, b'\r', rest).unwrap_or(rest.len());
            if len > 0 {
                self.overwrite(start, out);
                out.extend_from_slice(&rest[..len]);
            } else if *first == ESC {
                self.state = State::Escape;
            } else {
                self.returned_at = Some(out.len());
            }
            rest = &rest[len.max(1)..];
        }
        self.has_text |= out.len() > start;
    }

    /// Ends the line. Appends what the terminal needs before something else is written.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.is_colored {
            out.extend_from_slice(b"\x1b[0m");
        }
        self.state = State::Text;
        self.returned_at = None;
        self.has_text = false;
        self.is_colored = false;
    }

    /// Text follows: after a carriage return it takes the place of what this piece has shown before that.
    fn overwrite(&mut self, start: usize, out: &mut Vec<u8>) {
        if let Some(returned_at) = self.returned_at.take() {
            // Earlier pieces cannot be taken back.
            let between: &[u8] = if self.has_text { b" " } else { b"" };
            out.splice(start..returned_at, between.iter().copied());
        }
    }

    fn sequence_byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.state = match (self.state, byte) {
            // CAN and SUB end any sequence.
            (_, 0x18 | 0x1a) => State::Text,
            (State::String | State::StringEscape, 0x07) | (State::StringEscape, b'\\') => State::Text,
            (State::String, ESC) => State::StringEscape,
            (State::String, _) => State::String,
            (_, ESC) => State::Escape,
            (State::Escape | State::StringEscape, b'[') => {
                self.sequence.clear();
                State::Control
            }
            (State::Escape | State::StringEscape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape | State::StringEscape | State::Intermediate, 0x20..=0x2f) => State::Intermediate,
            (State::Control, 0x40..=0x7e) => {
                self.end_control(byte, out);
                State::Text
            }
            (State::Control, _) => {
                if self.sequence.len() < MAX_COLOR_BYTES {
                    self.sequence.push(byte);
                }
                State::Control
            }
            (State::Text | State::Escape | State::StringEscape | State::Intermediate, _) => State::Text,
        };
    }

    /// Keeps a control sequence if it sets colours.
    fn end_control(&mut self, last: u8, out: &mut Vec<u8>) {
        let is_color = last == b'm' && self.sequence.iter().all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':'));
        match self.escapes {
            Escapes::Colors if is_color && self.sequence.len() < MAX_COLOR_BYTES => {
                out.extend_from_slice(b"\x1b[");
                out.extend_from_slice(&self.sequence);
                out.push(last);
                self.is_colored = true;
            }
            Escapes::Colors | Escapes::Strip => {}
        }
    }
}

/// The text of a whole line: no escape sequences, no newline, the last state of a progress bar.
#[must_use]
pub fn plain(line: &[u8]) -> Cow<'_, [u8]> {
    let bare = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
    if memchr::memchr2(ESC, b'\r', bare).is_none() {
        return Cow::Borrowed(bare);
    }
    let mut out = Vec::with_capacity(line.len());
    LineText::new(Escapes::Strip).push(line, &mut out);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(escapes: Escapes, pieces: &[&[u8]]) -> Vec<u8> {
        let mut text = LineText::new(escapes);
        let mut out = Vec::new();
        for piece in pieces {
            // What a piece shows may have been written and forgotten before the next one comes.
            let mut shown = Vec::new();
            text.push(piece, &mut shown);
            out.append(&mut shown);
        }
        text.end(&mut out);
        out
    }

    #[test]
    fn escapes_go_and_everything_else_stays() {
        let table: &[(&[u8], &[u8])] = &[
            (b"plain\n", b"plain"),
            (b"\tat f(\x1b[36ma.js\x1b[39m:1)\n", b"\tat f(a.js:1)"),
            (b"\x1b]0;title\x07text\n", b"text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", b"link"),
            (b"\x1b(Bcharset \x1b=keypad \x1b7cursor\n", b"charset keypad cursor"),
            (b"\x1b[2J\x1b[H\x1b[?25lclear\n", b"clear"),
            (b"\x1b[31\x18cancelled\n", b"cancelled"),
            (b"\x1b[3\x1b[1mrestarted\n", b"restarted"),
            (b"bad \xff\xfe\xc3( utf-8\n", b"bad \xff\xfe\xc3( utf-8"),
            (b"unfinished \x1b[3", b"unfinished "),
        ];
        for (line, text) in table {
            assert_eq!(&shown(Escapes::Strip, &[line]), text, "{}", line.escape_ascii());
            assert_eq!(plain(line), *text);
        }
    }

    #[test]
    fn colours_stay_where_they_may_and_end_with_the_line() {
        assert_eq!(shown(Escapes::Colors, &[b"\x1b[1;31mred\x1b[2K\n"]), b"\x1b[1;31mred\x1b[0m");
        assert_eq!(shown(Escapes::Colors, &[b"\x1b[>4;1mnot a colour\n"]), b"not a colour");
        assert_eq!(shown(Escapes::Colors, &[b"none\n"]), b"none");
        assert_eq!(shown(Escapes::Colors, &[b" 10%\r\x1b[32m100%\n"]), b"\x1b[32m100%\x1b[0m");
    }

    #[test]
    fn of_a_progress_bar_the_last_state_is_left() {
        let table: &[(&[u8], &[u8])] = &[
            (b"text\r\n", b"text"),
            (b"text\r\r\n", b"text"),
            (b" 10%\r 50%\r100%\n", b"100%"),
            (b" 10%\r 50%\r", b" 50%"),
            (b"building\r\x1b[Kdone\n", b"done"),
            (b"\rfirst\n", b"first"),
        ];
        for (line, text) in table {
            assert_eq!(&shown(Escapes::Strip, &[line]), text, "{}", line.escape_ascii());
            assert_eq!(plain(line), *text);
        }
    }

    #[test]
    fn a_progress_bar_in_pieces_takes_nothing_back_that_has_been_shown() {
        assert_eq!(shown(Escapes::Strip, &[b" 10%\r 20%", b"\r 30%\r", b" 40%\n"]), b" 20%  30%  40%");
        assert_eq!(shown(Escapes::Strip, &[b"text\r", b"\n"]), b"text");
    }

    #[test]
    fn a_line_does_not_inherit_from_the_one_before() {
        let mut text = LineText::new(Escapes::Colors);
        let mut out = Vec::new();
        text.push(b"open \x1b]0;never ended", &mut out);
        text.end(&mut out);
        text.push(b"next\r", &mut out);
        text.end(&mut out);
        text.push(b"last", &mut out);
        text.end(&mut out);
        assert_eq!(out, b"open nextlast");
    }

    proptest! {
        #[test]
        fn a_sequence_cut_in_two_is_one_sequence(
            parts in prop::collection::vec(prop::sample::select(vec!["a", "é", "\t", "\x1b[31m", "\x1b[?1;2h", "\x1b]0;t\x07", "\x1b]8;;u\x1b\\", "\x1b(B", "\x1b7"]), 0..12),
            cuts in prop::collection::vec(0usize..80, 0..6),
        ) {
            let line = parts.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.min(&line.len()).to_owned()).collect();
            cuts.extend([0, line.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &line.as_bytes()[cut[0]..cut[1]]).collect();
            for escapes in [Escapes::Strip, Escapes::Colors] {
                prop_assert_eq!(shown(escapes, &pieces), shown(escapes, &[line.as_bytes()]));
            }
        }
    }
}
