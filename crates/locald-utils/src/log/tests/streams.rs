//! Two streams in one log: whose a line is, and that it is whole although the other stream came in the middle of it.

use super::*;

/// The line of each stream.
type Said = (Option<Stream>, String, LineEnd);

const OUT: Option<Stream> = Some(Stream::Stdout);
const ERR: Option<Stream> = Some(Stream::Stderr);

fn said(entry: Entry<'_>) -> Option<Said> {
    let Entry::Line(Line { stream, bytes, end, .. }) = entry else { return None };
    Some((stream, String::from_utf8_lossy(bytes).into_owned(), end))
}

fn all_said(mut cursor: Cursor) -> Vec<Said> {
    let mut all = Vec::new();
    while cursor.advance().expect("the log can be read") {
        all.extend(cursor.entry().and_then(said));
    }
    all
}

fn line(stream: Option<Stream>, text: &str) -> Said {
    (stream, text.to_owned(), LineEnd::Newline)
}

/// Writes what the streams say, 3 ms apart.
fn write_all(writer: &mut LogWriter, said: &[(Option<Stream>, &str)]) {
    for (n, (stream, text)) in said.iter().enumerate() {
        let now = at(3 * n as u64);
        writer.switch(*stream, now);
        writer.write(text.as_bytes(), now);
    }
}

#[test]
fn a_line_is_whole_although_the_other_stream_came_in_the_middle_of_it() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    let parts = [(OUT, "first\nsec"), (ERR, "oops: "), (OUT, "ond\n"), (ERR, "bad\n"), (OUT, "tail"), (ERR, "end")];
    write_all(&mut writer, &parts);
    writer.end(at(40));
    let reader = reader(dir.path());
    let unfinished = |stream, text: &str| (stream, text.to_owned(), LineEnd::Unfinished);
    let expected = [
        line(OUT, "first\n"),
        line(OUT, "second\n"),
        line(ERR, "oops: bad\n"),
        unfinished(ERR, "end"),
        unfinished(OUT, "tail"),
    ];
    let mut seen = all_said(reader.entries(&reader.all()));
    seen[3..].sort_by_key(|(stream, ..)| Stream::place(*stream) == 1);
    assert_eq!(seen, expected);
    assert_eq!(plain_bytes(dir.path()), b"first\nsecoops: ond\nbad\ntailend", "in the order in which it came");
    assert_eq!(tail(dir.path(), RunNumber(1), 9).expect("readable").len(), 5);
}

#[test]
fn a_terminal_has_no_stream_and_a_new_run_begins_without_the_lines_of_the_last() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    write_all(&mut writer, &[(ERR, "of 1"), (OUT, "cut of")]);
    // Its shim was killed: nobody has marked its end.
    let mut writer = open(dir.path(), 2, at(50));
    writer.write(b"of 2\n", at(51));
    let reader = reader(dir.path());
    let seen = all_said(reader.entries(&reader.all()));
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(seen[2], line(None, "of 2\n"));
}

#[test]
fn whose_a_line_is_is_known_after_rotation_and_from_wherever_the_log_is_read() {
    let dir = scratch();
    let mut writer = open_with(dir.path(), 1, &sized(4000), at(0));
    for n in 0..200 {
        let stream = if n % 5 < 3 { OUT } else { ERR };
        writer.switch(stream, at(n));
        writer.write(format!("{n}\n").as_bytes(), at(n));
    }
    let reader = reader(dir.path());
    let seen = all_said(reader.entries(&reader.all()));
    assert!(seen.len() > 20 && seen.len() < 200, "{}", seen.len());
    let check = |seen: &[Said]| {
        for (stream, text, _) in seen {
            let n: u64 = text.trim().parse().expect("a number");
            assert_eq!(*stream, if n % 5 < 3 { OUT } else { ERR }, "{n}");
        }
    };
    check(&seen);
    for lines in 1..seen.len() {
        let part = all_said(reader.entries(&reader.last_lines(&reader.all(), lines).expect("readable")));
        assert_eq!(part, seen[seen.len() - lines..]);
    }
    for ms in 150..200 {
        check(&all_said(reader.entries(&reader.since(&reader.all(), at(ms)).expect("readable"))));
    }
}

#[test]
fn a_follower_shows_the_beginning_of_a_line_that_the_other_stream_came_after() {
    let dir = scratch();
    let mut follower = Follower::new(dir.path());
    let mut writer = open(dir.path(), 1, at(0));
    let seen = |follower: &mut Follower| {
        let mut all = Vec::new();
        while follower.advance().expect("readable") {
            all.extend(follower.entry().and_then(said));
        }
        all
    };
    write_all(&mut writer, &[(OUT, "Name: "), (ERR, "warning\n")]);
    assert_eq!(seen(&mut follower), [line(ERR, "warning\n")]);
    assert_eq!(follower.held(), b"Name: ");
    assert!(follower.release().expect("readable"));
    assert_eq!(follower.entry().and_then(said), Some((OUT, "Name: ".to_owned(), LineEnd::Continues)));
    assert_eq!(seen(&mut follower), []);
    write_all(&mut writer, &[(OUT, "x\n")]);
    assert_eq!(seen(&mut follower), [line(OUT, "x\n")]);
    assert!(!follower.release().expect("readable"));
}

#[test]
fn a_log_that_was_deleted_is_begun_anew_with_the_stream_that_is_being_written() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    write_all(&mut writer, &[(ERR, "gone\n")]);
    fs::remove_file(data_path(dir.path(), 1)).expect("removed");
    writer.write(b"after\n", at(20));
    let reader = reader(dir.path());
    assert_eq!(all_said(reader.entries(&reader.all())), [line(ERR, "after\n")]);
}

proptest! {
    /// Whatever is cut where: each stream's lines are its own bytes, in order.
    #[test]
    fn the_lines_of_a_stream_are_its_bytes(
        parts in prop::collection::vec((0..3usize, "[aé\n]{0,12}"), 0..40),
        max_piece in 4..40usize,
        followed in any::<bool>(),
    ) {
        let dir = scratch();
        let streams = [None, OUT, ERR];
        let mut expected: [String; Stream::PLACES] = Default::default();
        let mut got: [Vec<u8>; Stream::PLACES] = Default::default();
        let mut take = |entry: Entry<'_>| {
            if let Entry::Line(line) = entry {
                got[Stream::place(line.stream)].extend_from_slice(line.bytes);
                assert!(std::str::from_utf8(line.bytes).is_ok(), "within a character");
            }
        };
        let mut writer = open(dir.path(), 1, at(0));
        let mut follower = Follower::new(dir.path());
        for (n, (place, text)) in parts.iter().enumerate() {
            let now = at(3 * n as u64);
            writer.switch(streams[*place], now);
            writer.write(text.as_bytes(), now);
            expected[*place].push_str(text);
            while followed && follower.advance().expect("readable") {
                take(follower.entry().expect("an entry"));
            }
            if followed && n % 3 == 0 && follower.release().expect("readable") {
                take(follower.entry().expect("an entry"));
            }
        }
        writer.end(at(1000));
        if followed {
            while follower.advance().expect("readable") {
                take(follower.entry().expect("an entry"));
            }
        } else {
            let reader = reader(dir.path());
            let mut cursor = reader.entries(&reader.all()).with_max_piece(max_piece);
            while cursor.advance().expect("readable") {
                take(cursor.entry().expect("an entry"));
            }
        }
        prop_assert_eq!(got, expected.map(String::into_bytes));
    }
}

#[cfg(target_os = "linux")]
mod spliced {
    use std::io::pipe;
    use std::os::fd::AsFd;

    use super::*;

    /// Moves bytes through a pipe, as a shim does. Says how many times they had to be read and written.
    fn pass(writer: &mut LogWriter, bytes: &[u8], now: UnixMillis) -> u32 {
        let (reader, mut sender) = pipe().expect("a pipe");
        sender.write_all(bytes).expect("it takes so much");
        drop(sender);
        let (mut left, mut read) = (bytes.len(), 0);
        while left > 0 {
            match writer.splice(reader.as_fd(), 64 * 1024, now).expect("not empty") {
                Some(count) => left -= count,
                None => {
                    let mut buffer = [0; 100];
                    let count = nix::unistd::read(&reader, &mut buffer).expect("readable");
                    writer.write(&buffer[..count], now);
                    (left, read) = (left - count, read + 1);
                }
            }
        }
        read
    }

    #[test]
    fn what_is_spliced_is_marked_as_what_is_written_and_segments_end_where_a_line_does() {
        let dir = scratch();
        let mut writer = open_with(dir.path(), 1, &sized(80_000), at(0));
        let mut all = Vec::new();
        let mut read = 0;
        for n in 0..2000_u64 {
            let text = format!("line {n:06} of some length\n");
            writer.switch(if n.is_multiple_of(7) { ERR } else { OUT }, at(n));
            read += pass(&mut writer, text.as_bytes(), at(n));
            all.extend_from_slice(text.as_bytes());
        }
        assert!(read < 100, "most of it was not looked at, but {read} pieces were");
        let kept = plain_bytes(dir.path());
        assert!(all.ends_with(&kept) && kept.len() > 30_000 && kept.len() < 80_000, "{}", kept.len());
        for number in segments::list(dir.path()).expect("readable").data {
            assert_eq!(fs::read(data_path(dir.path(), number)).expect("a segment").last(), Some(&b'\n'));
        }
        let reader = reader(dir.path());
        for (stream, text, end) in all_said(reader.entries(&reader.all())) {
            let n: u64 = text[5..11].parse().expect("a number");
            assert_eq!((stream, end), (if n.is_multiple_of(7) { ERR } else { OUT }, LineEnd::Newline), "{n}");
        }
    }

    #[test]
    fn an_empty_pipe_would_block_and_what_others_have_appended_stays() {
        let dir = scratch();
        let mut writer = open(dir.path(), 1, at(0));
        let (reader, _sender) = pipe().expect("a pipe");
        let blocked = writer.splice(reader.as_fd(), 100, at(0)).expect_err("empty");
        assert_eq!(blocked.kind(), std::io::ErrorKind::WouldBlock);
        pass(&mut writer, b"one\n", at(1));
        let mut other = OpenOptions::new().append(true).open(data_path(dir.path(), 1)).expect("there");
        other.write_all(b"not ours\n").expect("appended");
        pass(&mut writer, b"two\n", at(2));
        assert_eq!(plain_bytes(dir.path()), b"one\nnot ours\ntwo\n");
    }

    #[test]
    fn a_log_that_was_deleted_takes_what_is_spliced_in_a_new_file() {
        let dir = scratch();
        let mut writer = open(dir.path(), 1, at(0));
        pass(&mut writer, b"gone\n", at(0));
        fs::remove_file(data_path(dir.path(), 1)).expect("removed");
        pass(&mut writer, b"after\n", at(20));
        assert_eq!(plain_bytes(dir.path()), b"after\n");
    }
}
