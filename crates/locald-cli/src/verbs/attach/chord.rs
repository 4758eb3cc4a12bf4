//! The keys that detach, found among all that is typed.
//!
//! The first key pressed twice is that key once, so every sequence can be typed. What turns out not to be the chord goes
//! through late, but whole.

use std::fmt;

/// At most so many keys: nobody types more to get away.
const MOST_KEYS: usize = 4;

/// Some keys, pressed one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chord(Vec<u8>);

impl Chord {
    /// Reads keys as they are written: `ctrl-space ctrl-q`, `ctrl-]`, `ctrl-b d`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let keys: Vec<u8> = text.split_ascii_whitespace().map(key).collect::<Result<_, _>>()?;
        match keys.as_slice() {
            [] => Err("no key is given; write \"ctrl-space ctrl-q\", for example".to_owned()),
            // The first key twice is the first key: with it as the second, nobody would ever get away.
            [first, second, ..] if first == second => Err("the first two keys must be different".to_owned()),
            keys if keys.len() > MOST_KEYS => Err(format!("more than {MOST_KEYS} keys")),
            _ => Ok(Self(keys)),
        }
    }
}

fn key(text: &str) -> Result<u8, String> {
    let wrong = || format!("{text:?} is no key; keys are a, ctrl-a, ctrl-], ctrl-space, ctrl-\\ and the like");
    let lower = text.to_ascii_lowercase();
    let (name, is_control) = match lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^')) {
        Some(name) if !name.is_empty() => (name, true),
        Some(_) | None => (text, false),
    };
    match (name.as_bytes(), is_control) {
        (b"space", true) => Ok(0),
        (b"space", false) => Ok(b' '),
        (&[byte @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')], true) => Ok(byte & 0x1f),
        (&[byte @ 0x21..=0x7e], false) => Ok(byte),
        _ => Err(wrong()),
    }
}

impl fmt::Display for Chord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            match key {
                0 => write!(f, "{gap}Ctrl-Space")?,
                b' ' => write!(f, "{gap}Space")?,
                1..=0x1f => write!(f, "{gap}Ctrl-{}", char::from(key | 0x40))?,
                key => write!(f, "{gap}{}", char::from(*key))?,
            }
        }
        Ok(())
    }
}

/// Looks for a chord in what is typed.
#[derive(Debug)]
pub(super) struct Typed<'a> {
    chord: &'a Chord,
    /// So many keys of it have been pressed.
    pressed: usize,
    /// What came for them.
    held: Vec<u8>,
}

impl<'a> Typed<'a> {
    /// Begins to look.
    pub(super) fn new(chord: &'a Chord) -> Self {
        Self { chord, pressed: 0, held: Vec::new() }
    }

    /// Takes what was typed; puts what is meant for the service into `through`. Says whether the chord is complete: what
    /// was typed after it is meant for nobody.
    pub(super) fn take(&mut self, typed: &[u8], through: &mut Vec<u8>) -> bool {
        let Chord(keys) = self.chord;
        let mut rest = typed;
        while let Some((key, length)) = first_key(rest) {
            let (bytes, behind) = rest.split_at(length);
            rest = behind;
            if key == keys[self.pressed] {
                self.held.extend_from_slice(bytes);
                self.pressed += 1;
                if self.pressed == keys.len() {
                    return true;
                }
                continue;
            }
            let is_doubled = self.pressed == 1 && key == keys[0];
            through.append(&mut self.held);
            self.pressed = 0;
            if is_doubled {
                continue;
            }
            // It may begin the chord anew.
            if key == keys[0] {
                self.held.extend_from_slice(bytes);
                self.pressed = 1;
            } else {
                through.extend_from_slice(bytes);
            }
        }
        false
    }
}

/// The first key of what was typed, and how many bytes it takes.
///
/// A program may have asked the terminal to report keys with Control as sequences, `CSI code ; 5 u` (kitty keyboard protocol), where
/// 5 is Control alone and a `:1` or `:2` may say that it was pressed or repeated.
fn first_key(typed: &[u8]) -> Option<(u8, usize)> {
    let (&first, _) = typed.split_first()?;
    let reported = || {
        let body = typed.strip_prefix(b"\x1b[")?;
        let end = body.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'))?;
        let (code, modifiers) = std::str::from_utf8(&body[..end]).ok()?.split_once(';')?;
        let is_control = body[end] == b'u' && matches!(modifiers, "5" | "5:1" | "5:2");
        let code: u8 = code.parse().ok().filter(|_| is_control)?;
        let key = if code == b' ' { 0 } else { code.to_ascii_uppercase() & 0x1f };
        Some((key, b"\x1b[".len() + end + 1))
    };
    Some(reported().unwrap_or((first, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(keys: &str, typed: &[&[u8]]) -> (Vec<u8>, bool) {
        let chord = Chord::parse(keys).expect("keys");
        let mut looking = Typed::new(&chord);
        let mut through = Vec::new();
        let is_complete = typed.iter().any(|typed| looking.take(typed, &mut through));
        (through, is_complete)
    }

    #[test]
    fn the_chord_is_found_however_it_comes_and_nothing_of_it_goes_through() {
        assert_eq!(through("ctrl-space ctrl-q", &[b"ab\x00\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(through("ctrl-space ctrl-q", &[b"ab\x00", b"\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(through("ctrl-]", &[b"ab", b"\x1d"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn the_chord_is_found_where_keys_are_reported_as_sequences() {
        assert_eq!(through("ctrl-space ctrl-q", &[b"a\x1b[32;5u", b"\x1b[113;5:1u"]), (b"a".to_vec(), true));
        let others = b"\x1b[32;5u\x1b[A\x1b[113;6u\x1b[";
        assert_eq!(through("ctrl-space ctrl-q", &[others]), (others.to_vec(), false));
    }

    #[test]
    fn what_only_began_like_the_chord_goes_through() {
        assert_eq!(through("ctrl-space ctrl-q", &[b"a\x00", b"b"]), (b"a\x00b".to_vec(), false));
        assert_eq!(through("ctrl-b d x", &[b"\x02d\x02d", b"x"]), (b"\x02d".to_vec(), true));
    }

    #[test]
    fn the_first_key_twice_is_that_key_so_the_chord_itself_can_be_typed() {
        assert_eq!(through("ctrl-b d", &[b"\x02\x02d"]), (b"\x02d".to_vec(), false));
        assert_eq!(through("ctrl-b d", &[b"\x02\x02\x02", b"d"]), (b"\x02".to_vec(), true));
    }

    #[test]
    fn keys_are_shown_as_they_are_written() {
        for (written, shown) in [
            ("ctrl-space ctrl-q", "Ctrl-Space Ctrl-Q"),
            ("^b d", "Ctrl-B d"),
            ("Ctrl-]", "Ctrl-]"),
            ("space D", "Space D"),
        ] {
            assert_eq!(Chord::parse(written).expect("keys").to_string(), shown);
        }
        for wrong in ["", "ctrl-", "ctrl-1", "enter", "é", "a a", "a b c d e"] {
            assert!(Chord::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
