//! Understands the times that people type after `--since` and `--until`.

use jiff::civil::{DateTime, Time};
use jiff::{Span, Timestamp, Zoned};
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::time::UnixMillis;

/// Understands `text` as an instant, seen from `now` and its time zone.
///
/// RFC 3339 is an instant; a date, or a date and a time, is local; a time alone is today; a span is that long ago.
///
/// # Errors
/// [`FailureCode::Usage`] if it is none of them.
pub(super) fn parse(option: &str, text: &str, now: &Zoned) -> Result<UnixMillis, Failure> {
    instant(text.trim(), now).and_then(|time| u64::try_from(time.as_millisecond()).ok()).map(UnixMillis).ok_or_else(
        || {
            Failure::new(FailureCode::Usage, format!("`{text}` is no time for {option}"))
                .hint("write 15m or 2h30m (ago), 10:30 (today), 2026-01-02, or 2026-01-02T10:30:00+01:00")
        },
    )
}

fn instant(text: &str, now: &Zoned) -> Option<Timestamp> {
    let local = |time: DateTime| time.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp());
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    // Without these characters, digits alone would pass for a date or an hour.
    if text.contains('-')
        && let Ok(time) = text.parse::<DateTime>()
    {
        return local(time);
    }
    // A span may have a colon too, but nobody means "ten hours ago" by 10:00.
    if text.contains(':') {
        return text.parse::<Time>().ok().and_then(|time| local(now.date().to_datetime(time)));
    }
    let span = text.parse::<Span>().ok().filter(|span| !span.is_negative())?;
    now.checked_sub(span).ok().map(|time| time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood_as_people_write_them() {
        // The time zone is written out, as POSIX does: an hour ahead of UTC, two in summer.
        let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a time zone");
        let now = "2026-06-10T12:00:00Z".parse::<Timestamp>().expect("a time").to_zoned(zone);
        let table = [
            ("2026-06-09T08:00:00Z", "2026-06-09T08:00:00Z"),
            ("2026-06-09T08:00:00.250+02:00", "2026-06-09T06:00:00.25Z"),
            ("2026-06-09 08:00:00+02:00", "2026-06-09T06:00:00Z"),
            ("2026-06-09T08:00", "2026-06-09T06:00:00Z"),
            ("2026-06-09 08:00:30", "2026-06-09T06:00:30Z"),
            ("2026-06-09", "2026-06-08T22:00:00Z"),
            ("2026-01-02", "2026-01-01T23:00:00Z"),
            ("10:30", "2026-06-10T08:30:00Z"),
            ("10:30:05", "2026-06-10T08:30:05Z"),
            (" 10:30 ", "2026-06-10T08:30:00Z"),
            ("15m", "2026-06-10T11:45:00Z"),
            ("2h30m", "2026-06-10T09:30:00Z"),
            ("2h 30m", "2026-06-10T09:30:00Z"),
            ("90s", "2026-06-10T11:58:30Z"),
            ("500ms", "2026-06-10T11:59:59.5Z"),
            ("1d", "2026-06-09T12:00:00Z"),
            ("1w", "2026-06-03T12:00:00Z"),
        ];
        for (text, want) in table {
            let want = want.parse::<Timestamp>().expect("a time").as_millisecond();
            assert_eq!(parse("--since", text, &now), Ok(UnixMillis(want.unsigned_abs())), "{text}");
        }
        for text in ["", "yesterday", "10", "1030", "25:00", "10:30:99", "2026-13-01", "15", "m", "-15m", "1900-01-01"]
        {
            let failure = parse("--since", text, &now).expect_err(text);
            assert_eq!(failure.code, FailureCode::Usage, "{text}");
            assert_eq!(failure.message, format!("`{text}` is no time for --since"));
        }
    }
}
