//! Lengths of time and amounts of data, with their units.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{Item, Written};
use crate::config::diagnostic::Mistake;

/// How a length of time is written.
const TIME_PATTERN: &str = "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";

/// A length of time, written as a string with units.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Time(pub(in crate::config) Duration);

schema_of!(Time, {
    "type": "string",
    "pattern": TIME_PATTERN,
    "minLength": 2,
    "examples": ["500ms", "10s", "1m30s"]
});

impl Written for Time {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const EXPECTED: &str = "a duration such as \"10s\"";
        const HELP: &str = "units are d, h, m, s and ms, the largest first: \"500ms\", \"10s\", \"1m30s\"";
        let Some(text) = item.string() else {
            let help = match item.integer() {
                Some(number @ 0..) => format!("say the unit: \"{number}s\" or \"{number}ms\""),
                Some(_) | None => HELP.to_owned(),
            };
            mistakes.push(item.wrong_type(EXPECTED).help(help));
            return None;
        };
        match duration(text) {
            Some(time) if time <= MAX_TIME => Some(Self(time)),
            Some(_) => {
                mistakes.push(item.wrong_value("is longer than a year").help("the longest duration is \"365d\""));
                None
            }
            None => {
                let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
                let help =
                    if is_number { format!("say the unit: \"{text}s\" or \"{text}ms\"") } else { HELP.to_owned() };
                mistakes.push(item.wrong_type(EXPECTED).help(help));
                None
            }
        }
    }
}

/// A length of time of an hour or more.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Age(pub(in crate::config) Duration);

schema_of!(Age, {
    "type": "string",
    "pattern": TIME_PATTERN,
    "minLength": 2,
    "examples": ["12h", "7d", "30d"]
});

impl Written for Age {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Time(age) = Time::read(item, mistakes)?;
        if age < Duration::from_secs(3600) {
            mistakes.push(item.wrong_value("is too short").help("the shortest is \"1h\""));
            return None;
        }
        Some(Self(age))
    }
}

/// A year: longer than anybody waits, short enough that no sum of such times overflows.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads `1d2h3m4s5ms` or a part of it, with the units in that order.
///
/// A number too large for its type counts as longer than [`MAX_TIME`].
fn duration(text: &str) -> Option<Duration> {
    const UNITS_MS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = text;
    let mut units = UNITS_MS.as_slice();
    let mut total_ms = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0)?;
        let number = rest[..digits].parse().unwrap_or(u64::MAX);
        rest = &rest[digits..];
        let unit_length = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let index = units.iter().position(|(unit, _)| *unit == &rest[..unit_length])?;
        total_ms = total_ms.saturating_add(units[index].1.saturating_mul(number));
        units = &units[index + 1..];
        rest = &rest[unit_length..];
    }
    Some(Duration::from_millis(total_ms))
}

/// A number of bytes, written as a string with a unit.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Size(pub(in crate::config) u64);

schema_of!(Size, {
    "type": "string",
    "pattern": "^[0-9]+(\\.[0-9]+)? ?([kKMGT]i?)?B$",
    "examples": ["50MB", "1GB"]
});

/// 1 MB: less is not kept, because it is dealt with in eighths.
const MIN_SIZE: u64 = 1_000_000;

impl Written for Size {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const EXPECTED: &str = "a size such as \"50MB\"";
        const HELP: &str = "units are B, kB, MB and GB: \"50MB\", \"1GB\"";
        let Some(text) = item.string() else {
            let help = match item.integer() {
                Some(number @ 0..) => format!("say the unit: \"{number}MB\" or \"{number}B\""),
                Some(_) | None => HELP.to_owned(),
            };
            mistakes.push(item.wrong_type(EXPECTED).help(help));
            return None;
        };
        let has_unit = text.ends_with(['B', 'b']);
        match text.parse::<ByteSize>() {
            Ok(size) if has_unit && size.0 >= MIN_SIZE => Some(Self(size.0)),
            Ok(_) if has_unit => {
                mistakes.push(item.wrong_value("is too small").help("the smallest size is \"1MB\""));
                None
            }
            Ok(_) => {
                let help = format!("say the unit: \"{text}MB\" or \"{text}B\"");
                mistakes.push(item.wrong_type(EXPECTED).help(help));
                None
            }
            Err(_) => {
                mistakes.push(item.wrong_type(EXPECTED).help(HELP));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_the_largest_first() {
        let good =
            [("0s", 0), ("500ms", 500), ("10s", 10_000), ("1m", 60_000), ("1m30s", 90_000), ("1h1ms", 3_600_001)];
        for (text, ms) in good {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1 s", "1s1m", "1s1s", "1S", "10sec", "1m30", "١s", " 1s"] {
            assert_eq!(duration(text), None, "{text}");
        }
        assert!(duration("99999999999999999999h").is_some_and(|time| time > MAX_TIME));
    }
}
