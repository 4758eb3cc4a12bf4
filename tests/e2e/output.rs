//! What services write is kept, byte for byte, and they have a terminal to write to.

use std::io::{BufRead, BufReader};

use crate::support::{Site, shown};

/// Runs a job to its end and returns its log.
fn log_of(command: &str) -> Vec<u8> {
    let site = Site::new(&format!("[services.job]\ntype = \"job\"\ncommand = '''{command}'''\n"));
    site.up();
    site.log("job")
}

#[test]
fn the_last_line_needs_no_end() {
    let site = Site::new("[services.web]\ncommand = \"printf 'panic: boom'; exit 7\"\n");
    site.locald("up").run().code(1).says("failed: exit 7").says("panic: boom");
    assert_eq!(shown(&site.log("web")), "panic: boom");
    site.locald("logs web").run().ok().says("panic: boom");
}

#[test]
fn bytes_that_are_no_text_stay_and_so_does_what_follows() {
    let site =
        Site::new("[services.job]\ntype = \"job\"\ncommand = '''printf '\\377\\376\\n\\000x\\n'; echo later'''\n");
    site.up();
    assert_eq!(site.log("job"), b"\xff\xfe\n\x00x\nlater\n");
    site.locald("logs job").run().ok().says("later");
}

#[test]
fn a_hundred_megabytes_at_full_speed_are_all_there_in_order() {
    const LINES: u64 = 1_000_000;
    let site = Site::new(&format!("[services.job]\ntype = \"job\"\ncommand = '\"$ZOO\" numbers {LINES}'\n"));
    site.locald("up --timeout 10m").run().ok();
    assert_eq!(last_numbers(&site, LINES), LINES);
    let site_log = site.locald("logs job -n 1").run().ok();
    assert!(site_log.stdout.contains(&format!("{:099}", LINES - 1)), "{site_log}");
}

/// Reads a log with the lines of `zoo numbers`, which must be the last of so many without a gap. Returns how many are left.
fn last_numbers(site: &Site, all: u64) -> u64 {
    let mut next = None;
    let mut count = 0;
    for file in site.log_files("job") {
        let mut log = BufReader::with_capacity(1 << 20, std::fs::File::open(file).expect("a log"));
        let mut line = Vec::new();
        while log.read_until(b'\n', &mut line).expect("reads") > 0 {
            let number = next.unwrap_or_else(|| shown(&line).trim().parse().expect("a number"));
            assert_eq!(shown(&line), format!("{number:099}\n"));
            line.clear();
            next = Some(number + 1);
            count += 1;
        }
    }
    assert_eq!(next, Some(all));
    count
}

#[test]
fn output_is_bounded_and_what_is_left_is_the_newest_in_order() {
    const LINES: u64 = 300_000;
    let site = Site::new(&format!(
        "[services.job]\ntype = \"job\"\ncommand = '\"$ZOO\" numbers {LINES}'\nlog = {{ max_size = \"4MB\" }}\n"
    ));
    site.locald("up --timeout 10m").run().ok();
    let left = last_numbers(&site, LINES);
    // An eighth may be missing, and as much more may be there as comes within 10 ms.
    assert!((4_000_000 * 6 / 8..8_000_000).contains(&(left * 100)), "{left} lines are left");
    let shown = site.locald("logs job -n all").run().ok();
    assert_eq!(shown.stdout.lines().count() as u64, left + 1, "{shown}");
    let first = shown.stdout.lines().next().expect("a line");
    assert!(first.contains("job#1, started ") && first.contains("its output before this is no longer kept"), "{first}");
    let latest = std::fs::canonicalize(site.service_dir("job").join("log")).expect("a link to the newest file");
    assert_eq!(Some(&latest), site.log_files("job").last());
    site.locald("up").run().ok();
    assert_eq!(site.locald("logs job --run 1 -n 1").run().ok().stdout.trim(), format!("{:099}", LINES - 1));
}

#[test]
fn a_service_has_a_terminal_of_a_usual_size() {
    let log = log_of("for i in 0 1 2; do test -t $i && echo $i; done; stty size; echo $TERM");
    let log = shown(&log);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!((&lines[..3], lines[4]), (&["0", "1", "2"][..], "xterm-256color"), "{log}");
    let size: Vec<u16> = lines[3].split(' ').map(|number| number.parse().expect("a number")).collect();
    assert!((20..=200).contains(&size[0]) && (80..=400).contains(&size[1]), "{size:?}");
}

#[test]
fn a_service_has_descriptors_0_to_2_and_no_others() {
    assert_eq!(shown(&log_of("\"$ZOO\" descriptors")), "descriptors: 0 1 2\n");
}

#[test]
fn the_output_of_earlier_runs_is_kept() {
    let site = Site::new("[services.web]\ncommand = 'echo run of $WHO; sleep 600'\n");
    site.locald("up").env("WHO", "first").run().ok();
    site.locald("restart").env("WHO", "second").run().ok();
    site.down();
    assert_eq!(shown(&site.log("web")), "run of first\nrun of second\n");
    site.locald("logs").run().ok().says("run of second").says_nothing_of("run of first");
    site.locald("logs --run previous").run().ok().says("run of first").says_nothing_of("run of second");
    site.locald("logs --run 1").run().ok().says("run of first");
}

#[test]
fn up_gives_its_output_to_nobody_else() {
    use std::io::Read;
    // A daemon that kept the pipe open would keep a shell's `$(locald up)` waiting for ever.
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let up = site.locald("up").stdout_to(writer).start();
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("reads");
    up.finish().ok();
    assert!(text.contains("1 service ready"), "{text}");
    assert_eq!(site.service("web")["state"], "ready");
}
