//! More than one segment: when the next begins, what is kept, and what is found whatever a writer died at or others removed.

use super::*;

/// Whether a run is there from its beginning on.
fn is_complete(reader: &LogReader, run: &RunSpan) -> bool {
    matches!(drain(reader.entries(&run.selection)).first(), Some(Seen::Started(_)))
}

proptest! {
    #[test]
    fn what_is_kept_is_the_newest_and_no_more_than_allowed(steps in steps(), max_size in 300u64..1500) {
        let dir = scratch();
        // Of what a segment takes when it is looked at, the last 10 ms have not been looked at before.
        const SLACK: u64 = 20 * 40 + 3 * RECORD_BYTES as u64;
        let on_disk = || {
            let sizes = fs::read_dir(dir.path()).expect("a directory").map(|entry| {
                let seen = entry.expect("an entry").metadata().expect("a file");
                if seen.is_symlink() { 0 } else { seen.len() }
            });
            sizes.sum::<u64>()
        };
        let mut most = 0;
        let expected = play(dir.path(), &sized(max_size), &steps, || most = most.max(on_disk()));
        prop_assert!(most <= max_size + SLACK, "{most} of {max_size}");

        let reader = reader(dir.path());
        let seen = drain(reader.entries(&reader.all()));
        let kept = bytes_of(&seen);
        prop_assert!(expected.all().ends_with(&kept));
        prop_assert_eq!(plain_bytes(dir.path()), kept.clone());
        // Every line is still known to be of its run, and to have come at its time.
        let removed = expected.bytes.len() - kept.len();
        for (run, time, offset, bytes) in lines_of(&seen) {
            let (_, want_run, came) = expected.bytes[removed + usize::try_from(offset).expect("small")];
            let time = time.expect("a time");
            prop_assert_eq!(run, Some(want_run), "{:?}", bytes);
            prop_assert!(time <= came && came.since(time).as_millis() < 10, "{:?} came at {:?}", time, came);
        }
        // Of the first run that is left, the start is known even if its first output is not kept.
        let runs = reader.runs();
        prop_assert!(runs.iter().skip(1).all(|run| is_complete(&reader, run)));
        prop_assert!(runs.iter().all(|run| run.started_at.is_some() && run.ended_at.is_some()));
        prop_assert_eq!(runs.last().and_then(|run| run.run), Some(RunNumber(expected.runs)));
        match (&seen[0], is_complete(&reader, &runs[0])) {
            (Seen::Started(_), true) => {}
            (Seen::Continued(run, started_at), false) => {
                prop_assert_eq!((runs[0].run, runs[0].started_at), (Some(RunNumber(*run)), Some(*started_at)));
            }
            (first, is_complete) => prop_assert!(false, "{first:?}, {is_complete}"),
        }
    }

    #[test]
    fn a_follower_that_falls_behind_says_so_and_goes_on(steps in steps(), max_size in 300u64..1500) {
        let dir = scratch();
        let mut follower = Follower::new(dir.path());
        let mut seen = Vec::new();
        let expected = play(dir.path(), &sized(max_size), &steps, || seen.extend(news(&mut follower)));
        // It ends with what was written last. What is missing is missing at its beginning or where it says so.
        let all = expected.all();
        let mut before = all.len();
        for (behind, part) in seen.rsplit(|seen| *seen == Seen::Restarted).enumerate() {
            let bytes = bytes_of(part);
            let place = (0..=before.saturating_sub(bytes.len())).rev().find(|place| all[*place..before].starts_with(&bytes));
            let Some(place) = place else { return Err(TestCaseError::fail(format!("{bytes:?} is not in {all:?}"))) };
            prop_assert!(behind > 0 || place + bytes.len() == all.len());
            before = place;
        }
    }
}

/// A log of four segments, all of one run. Returns its bytes.
fn four_segments(dir: &Path) -> (LogWriter, Vec<u8>) {
    let mut writer = open_with(dir, 1, &sized(8 * 150), at(0));
    for n in 0..4 {
        writer.write(&[b"0123456789abcdef\n".repeat(6), b"12345678\n".to_vec()].concat(), at(20 * n));
    }
    assert_eq!(segments::list(dir).expect("readable").data, [1, 2, 3, 4]);
    (writer, plain_bytes(dir))
}

#[test]
fn a_segment_ends_where_a_line_does() {
    let dir = scratch();
    let mut writer = open_with(dir.path(), 1, &sized(8 * 1000), at(0));
    writer.write(&[b'x'; 2000], at(0));
    writer.write(b" the end\nnext\nlast\n", at(20));
    assert_eq!(fs::read(data_path(dir.path(), 2)).expect("a second segment"), b"next\nlast\n");
    // Whoever never ends a line gets no more room than others.
    writer.write(&[b'y'; 2000], at(40));
    writer.write(&[b'y'; 10], at(60));
    assert_eq!(fs::read(data_path(dir.path(), 3)).expect("a third segment"), [b'y'; 10]);
    let reader = reader(dir.path());
    assert_eq!(lines_of(&drain(reader.entries(&reader.all()))).len(), 4);
}

#[test]
fn a_segment_that_is_old_is_followed_by_the_next_and_removed_when_it_is_too_old() {
    let dir = scratch();
    let policy = LogPolicy { max_age: std::time::Duration::from_secs(8), ..LogPolicy::default() };
    let mut writer = open_with(dir.path(), 1, &policy, at(0));
    for second in 0..=12 {
        writer.write(format!("{second}\n").as_bytes(), at(1000 * second));
    }
    // Each second begins a segment; to that of second 3 nothing was written for 9 seconds.
    assert_eq!(plain_bytes(dir.path()), b"4\n5\n6\n7\n8\n9\n10\n11\n12\n");
    let reader = reader(dir.path());
    let run = reader.run(RunChoice::Current).expect("a run");
    assert_eq!((run.started_at, is_complete(&reader, &run)), (Some(at(0)), false));
}

#[test]
fn a_burst_between_two_looks_at_the_files_costs_no_more_than_any_other_output() {
    let dir = scratch();
    let mut writer = open_with(dir.path(), 1, &sized(8 * 1000), at(0));
    for n in 0..100 {
        writer.write(format!("{n:0499}\n").as_bytes(), at(n / 20));
    }
    let kept = plain_bytes(dir.path()).len();
    assert!((5000..=8000).contains(&kept), "{kept} of 8000 bytes are kept");
}

#[test]
fn output_does_not_stay_because_something_is_written_later() {
    let dir = scratch();
    let policy = LogPolicy { max_age: std::time::Duration::from_secs(8), ..LogPolicy::default() };
    let mut writer = open_with(dir.path(), 1, &policy, at(0));
    writer.write(b"old\n", at(0));
    writer.write(b"new\nnewer\n", at(8500));
    assert_eq!(plain_bytes(dir.path()), b"new\nnewer\n");
}

#[test]
fn two_writers_lose_nothing_and_the_later_run_is_on_record() {
    let dir = scratch();
    let policy = sized(8 * 2000);
    let mut older = open_with(dir.path(), 1, &policy, at(0));
    let mut newer = open_with(dir.path(), 2, &policy, at(0));
    let mut follower = Follower::new(dir.path());
    let mut seen = Vec::new();
    for n in 0..120 {
        older.write(format!("older {n:02}\n").as_bytes(), at(20 * n + 20));
        newer.write(format!("newer {n:02}\n").as_bytes(), at(20 * n + 30));
        seen.extend(news(&mut follower));
    }
    // Somebody takes over from the older one; what is on record about the newer one stays.
    drop(older);
    let mut older = LogWriter::take_over(dir.path(), RunNumber(1), &policy, at(3000)).expect("the log opens");
    older.write(b"older still\n", at(3020));
    newer.write(b"newer still\n", at(3040));
    seen.extend(news(&mut follower));
    let text = String::from_utf8(bytes_of(&seen)).expect("text");
    for who in ["older", "newer"] {
        for n in 0..120 {
            assert!(text.contains(&format!("{who} {n:02}\n")), "{who} {n}");
        }
        assert!(text.contains(&format!("{who} still\n")));
    }
    let newest = reader(dir.path()).run(RunChoice::Current).expect("a run");
    assert_eq!(newest.run, Some(RunNumber(2)));
}

#[test]
fn a_follower_goes_on_where_the_newest_segment_alone_was_removed() {
    let dir = scratch();
    let (writer, all) = four_segments(dir.path());
    let mut follower = Follower::new(dir.path());
    assert_eq!(bytes_of(&news(&mut follower)), all);
    drop(writer);
    let third = fs::read(data_path(dir.path(), 3)).expect("a segment");
    fs::remove_file(data_path(dir.path(), 4)).expect("it was there");
    write_run(dir.path(), 2, 200, &["on\n"]);
    let seen = news(&mut follower);
    assert_eq!(seen[0], Seen::Restarted);
    assert_eq!(bytes_of(&seen), [&third[..], b"on\n"].concat());
}

#[test]
fn segments_that_are_removed_while_they_are_opened_are_not_glued_to_others() {
    let dir = scratch();
    let (_writer, _) = four_segments(dir.path());
    fs::remove_file(data_path(dir.path(), 2)).expect("it was there");
    let data = segments::Data::open(dir.path(), &[1, 2, 3, 4]).expect("readable").expect("some are left");
    assert_eq!(data.segments().map(|(number, _)| number).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn log_leads_to_the_newest_segment() {
    let dir = scratch();
    let (writer, _) = four_segments(dir.path());
    assert_eq!(fs::read_link(dir.path().join("log")).expect("a link"), Path::new("log.000004"));
    drop(writer);
    fs::remove_file(dir.path().join("log")).expect("it was there");
    open_with(dir.path(), 2, &sized(8 * 150), at(100));
    assert_eq!(fs::read_link(dir.path().join("log")).expect("a link"), Path::new("log.000004"));
}

#[test]
fn a_writer_that_dies_at_any_step_of_a_segment_costs_no_byte() {
    /// What is on disk when the writer dies, made from a log that is complete.
    type Death = fn(&Path);
    let deaths: [(&str, Death); 5] = [
        ("the index of the next segment is made", |dir| {
            fs::write(index_path(dir, 5), record::header()).expect("an index");
        }),
        ("it has its first record in part", |dir| {
            fs::write(index_path(dir, 5), [&record::header()[..], &[7; 11]].concat()).expect("an index");
        }),
        ("the data is made, and the link is not", |dir| {
            fs::write(index_path(dir, 5), record::header()).expect("an index");
            fs::write(data_path(dir, 5), "").expect("a segment");
        }),
        ("the link is made beside the old one", |dir| {
            std::os::unix::fs::symlink("log.000005", dir.join("log.new")).expect("a link");
        }),
        ("the index of a removed segment is left", |dir| {
            fs::write(index_path(dir, 0), record::header()).expect("an index");
        }),
    ];
    for (step, death) in deaths {
        let dir = scratch();
        let (writer, mut all) = four_segments(dir.path());
        let mut follower = Follower::new(dir.path());
        let mut seen = news(&mut follower);
        drop(writer);
        death(dir.path());
        no_byte_is_lost(dir.path(), &all);
        let mut writer = open_with(dir.path(), 1, &sized(8 * 150), at(100));
        writer.write(b"after\n", at(120));
        writer.end(at(140));
        all.extend_from_slice(b"after\n");
        no_byte_is_lost(dir.path(), &all);
        seen.extend(news(&mut follower));
        assert_eq!(bytes_of(&seen), all, "{step}");
        let reader = reader(dir.path());
        let run = reader.run(RunChoice::Current).expect("a run");
        let found = (run.run, run.started_at, is_complete(&reader, &run));
        assert_eq!(found, (Some(RunNumber(1)), Some(at(0)), true), "{step}");
        let segments::Listing { data, indexes } = segments::list(dir.path()).expect("readable");
        assert_eq!(data, indexes, "{step}: nothing is left over");
    }
}

#[test]
fn the_index_of_an_old_segment_can_be_lost() {
    let dir = scratch();
    let (_writer, all) = four_segments(dir.path());
    fs::remove_file(index_path(dir.path(), 2)).expect("it was there");
    no_byte_is_lost(dir.path(), &all);
    let runs = reader(dir.path()).runs();
    assert_eq!(runs.len(), 1, "the segment lies within the run");
}

#[test]
fn a_log_that_is_begun_anew_with_lower_numbers_is_followed() {
    let dir = scratch();
    let mut follower = Follower::new(dir.path());
    let (writer, all) = four_segments(dir.path());
    assert_eq!(bytes_of(&news(&mut follower)), all);
    drop(writer);
    fs::remove_dir_all(dir.path()).expect("it was there");
    assert_eq!(news(&mut follower), []);
    write_run(dir.path(), 2, 200, &["anew\n"]);
    let seen = news(&mut follower);
    assert_eq!(seen[..2], [Seen::Restarted, Seen::Started(2)]);
    assert_eq!(bytes_of(&seen), b"anew\n");
}
