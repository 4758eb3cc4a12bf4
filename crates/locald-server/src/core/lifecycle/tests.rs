use locald_utils::spec::RestartPolicy;

use super::*;

pub(crate) fn spec(name: &str) -> ServiceSpec {
    use locald_utils::spec::{CommandSpec, LogPolicy, StopPolicy, Template};
    ServiceSpec {
        name: name.parse().expect("valid"),
        kind: Kind::Service,
        command: CommandSpec::Argv(vec![Template::text("x")]),
        workdir: "/".into(),
        env: Default::default(),
        borrowed: BTreeMap::new(),
        tty: true,
        port: None,
        depends_on: Vec::new(),
        health: Vec::new(),
        restart: RestartPolicy::default(),
        stop: StopPolicy::default(),
        log: LogPolicy::default(),
        profiles: Vec::new(),
        watch: None,
        inputs: None,
    }
}

pub(crate) fn ended(run: RunNumber, status: ExitStatus) -> Arc<Ended> {
    use locald_utils::name::{ProjectId, RunId};
    use locald_utils::record::RunRef;
    Arc::new(Ended {
        run: RunRef {
            project: ProjectId::from_recorded("p"),
            project_name: "p".parse().expect("valid"),
            service: "s".parse().expect("valid"),
            number: run,
            id: serde_json::from_str::<RunId>("\"0\"").expect("valid"),
        },
        status,
        forked: false,
        started_at: None,
        exited_at: UnixMillis(0),
        ended_at: UnixMillis(0),
        stopped: false,
        forced: false,
        processes: 1,
        killed: 0,
        strays: Vec::new(),
        survivors: Vec::new(),
        stop_took: Duration::ZERO,
        lost_output: 0,
    })
}

fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

fn started() -> News {
    News::Started { leader: ProcessId { pid: 10, start: 1 }, shim: ProcessId { pid: 9, start: 1 }, at: UnixMillis(0) }
}

/// A lifecycle whose run 1 has started at 0 under `when`.
fn running(when: RestartWhen) -> (Lifecycle, Arc<ServiceSpec>) {
    let mut spec = spec("s");
    spec.restart.when = when;
    let spec = Arc::new(spec);
    let mut life = Lifecycle::new(RunNumber(0));
    life.want_up();
    assert_eq!(life.spawn(ms(0), spec.clone(), StartedOn::new(), &Ports::new()), RunNumber(1));
    assert!(life.hear(ms(0), RunNumber(1), started()));
    (life, spec)
}

#[test]
fn ready_comes_a_moment_after_the_start_and_not_before() {
    let (mut life, _) = running(RestartWhen::No);
    assert!(!life.tick(ms(99)));
    assert_eq!(life.deadline(), Some(MOMENT));
    assert!(life.tick(MOMENT));
    assert!(life.is_ready());
}

#[test]
fn a_run_that_is_not_healthy_is_replaced_if_the_policy_says_so_and_stays_otherwise() {
    for (when, is_replaced) in [(RestartWhen::No, false), (RestartWhen::OnFailure, true), (RestartWhen::Always, true)] {
        let (mut life, _) = running(when);
        life.tick(ms(100));
        assert!(life.hear(ms(1200), RunNumber(1), News::Unready("refused".into())));
        assert!(!life.is_ready() && life.is_started() != is_replaced && life.is_leaving() == is_replaced);
        if !is_replaced {
            life.hear(ms(1300), RunNumber(1), News::Ready);
            assert!(life.is_ready(), "a dip is no end");
            continue;
        }
        // Ended by us, with the exit code of success: it failed all the same.
        life.hear(ms(1300), RunNumber(1), News::Stopping { kill_at: UnixMillis(0) });
        life.hear(ms(1400), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(0))));
        assert_eq!(life.actual, Actual::Waiting, "it had been ready for more than a second");
        assert_eq!((life.attempts.restarts, life.is_leaving()), (1, false));
    }
}

#[test]
fn a_run_that_is_not_ready_in_time_has_failed_whatever_the_policy() {
    for when in [RestartWhen::No, RestartWhen::OnFailure] {
        let (mut life, _) = running(when);
        life.hear(ms(50), RunNumber(1), News::Late("refused".into()));
        assert!(life.is_leaving());
        life.hear(ms(60), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Signal(15))));
        match when {
            RestartWhen::No => assert_eq!(life.actual, Actual::Failed(Reason::Unhealthy("refused".into()))),
            _ => assert!(matches!(life.actual, Actual::Backoff { .. }), "{:?}", life.actual),
        }
    }
}

#[test]
fn what_a_person_wants_counts_more_than_health() {
    let (mut life, _) = running(RestartWhen::OnFailure);
    life.hear(ms(50), RunNumber(1), News::Late("refused".into()));
    life.want_down(false);
    life.hear(ms(60), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Signal(15))));
    assert_eq!(life.actual, Actual::Stopped);
    assert!(!life.hear(ms(61), RunNumber(1), News::Unready("late news".into())));
    life.want_up();
    assert!(!life.is_leaving(), "the next run begins without the health of the last");
}

/// A lifecycle whose run 1 of a launcher has started at 0 under `when`.
fn launching(when: RestartWhen) -> Lifecycle {
    let (mut life, spec) = running(when);
    let spec = Arc::new(ServiceSpec { kind: Kind::Forking, ..spec.as_ref().clone() });
    life.hear(ms(0), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(1))));
    life.want_new_run();
    life.spawn(ms(0), spec, StartedOn::new(), &Ports::new());
    assert!(life.hear(ms(0), RunNumber(2), started()));
    life
}

#[test]
fn what_a_launcher_leaves_is_ready_when_the_launcher_has_succeeded_and_no_time_makes_it_so() {
    let mut life = launching(RestartWhen::No);
    assert_eq!((life.tick(ms(9000)), life.deadline(), life.is_ready()), (false, None, false));
    let main = ProcessId { pid: 20, start: 2 };
    assert!(life.hear(ms(9001), RunNumber(2), News::Forked { main }));
    assert!(life.is_ready());
    assert_eq!(life.leader, Some(main));
    let next = ProcessId { pid: 21, start: 3 };
    assert!(life.hear(ms(9002), RunNumber(2), News::Forked { main: next }));
    assert_eq!(life.actual, Actual::Ready { since: ms(9001) }, "another stands for the same service");
    let over = Ended { forked: true, ..ended(RunNumber(2), ExitStatus::Code(0)).as_ref().clone() };
    life.hear(ms(9003), RunNumber(2), News::Ended(Arc::new(over)));
    assert_eq!(life.actual, Actual::Completed);
}

#[test]
fn a_launcher_that_leaves_nothing_or_fails_was_no_start() {
    let mut life = launching(RestartWhen::No);
    life.hear(ms(5), RunNumber(2), News::Ended(ended(RunNumber(2), ExitStatus::Code(0))));
    assert!(matches!(&life.actual, Actual::Failed(Reason::Start(failure)) if failure.stage == StartStage::Launch));
    let mut life = launching(RestartWhen::OnFailure);
    life.hear(ms(5), RunNumber(2), News::Ended(ended(RunNumber(2), ExitStatus::Code(0))));
    assert!(matches!(life.actual, Actual::Backoff { .. }), "it is tried again: {:?}", life.actual);
    let mut life = launching(RestartWhen::No);
    life.hear(ms(5), RunNumber(2), News::LeaderExited(ExitStatus::Code(3)));
    life.hear(ms(6), RunNumber(2), News::Ended(ended(RunNumber(2), ExitStatus::Code(3))));
    assert_eq!(life.actual, Actual::Failed(Reason::Exited));
}

#[test]
fn an_exit_within_the_moment_is_no_readiness() {
    let (mut life, _) = running(RestartWhen::No);
    assert!(life.hear(ms(50), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(1)))));
    assert_eq!(life.actual, Actual::Failed(Reason::Exited));
    assert!(!life.tick(ms(200)));
}

#[test]
fn late_news_of_an_old_run_are_dropped() {
    let (mut life, spec) = running(RestartWhen::No);
    life.hear(ms(5), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(0))));
    life.want_new_run();
    life.spawn(ms(10), spec, StartedOn::new(), &Ports::new());
    assert!(!life.hear(ms(11), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(3)))));
    assert_eq!(life.actual, Actual::Spawning);
}

#[test]
fn a_run_that_was_ready_a_second_is_replaced_at_once_and_others_back_off() {
    let (mut life, spec) = running(RestartWhen::OnFailure);
    life.tick(ms(100));
    life.hear(ms(1100), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Signal(9))));
    assert_eq!(life.actual, Actual::Waiting);
    let run = life.spawn(ms(1100), spec, StartedOn::new(), &Ports::new());
    life.hear(ms(1101), run, started());
    life.hear(ms(1102), run, News::Ended(ended(run, ExitStatus::Code(1))));
    let Actual::Backoff { starts: 2, until } = life.actual else { panic!("{:?}", life.actual) };
    assert!((ms(1102 + 200)..=ms(1102 + 300)).contains(&until), "{until:?}");
    assert_eq!(life.attempts.restarts, 2);
}

#[test]
fn ten_starts_in_a_minute_are_a_crash_loop_and_a_person_starts_afresh() {
    let (mut life, mut spec) = running(RestartWhen::Always);
    // With the default of 30 s the waits would be too long for ten starts in a minute.
    Arc::make_mut(&mut spec).restart.max_backoff = ms(1000);
    life.running = Some(spec.clone());
    let mut now = ms(0);
    loop {
        life.hear(now, life.newest, News::Ended(ended(life.newest, ExitStatus::Code(1))));
        match life.actual {
            Actual::Backoff { until, .. } => now = until,
            Actual::Failed(Reason::CrashLoop { starts, within, .. }) => {
                assert_eq!(starts, 10);
                assert!(within <= RestartPolicy::CRASH_LOOP_WINDOW);
                break;
            }
            ref other => panic!("{other:?}"),
        }
        life.tick(now);
        life.spawn(now, spec.clone(), StartedOn::new(), &Ports::new());
        assert!(life.newest.0 < 12, "no crash loop was seen");
    }
    life.want_up();
    assert!(life.is_leaving());
    assert_eq!(life.attempts.restarts, 0);
}

#[test]
fn a_permanent_start_failure_does_not_loop() {
    let (mut life, spec) = running(RestartWhen::Always);
    life.hear(ms(1), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Code(1))));
    life.tick(ms(1000));
    let run = life.spawn(ms(1000), spec, StartedOn::new(), &Ports::new());
    let failure = StartFailure {
        stage: locald_utils::record::StartStage::Exec,
        errno: 2,
        path: None,
        message: "no such program".into(),
        hint: None,
        permanent: true,
    };
    life.hear(ms(1001), run, News::StartFailed(failure.clone()));
    assert_eq!(life.actual, Actual::Failed(Reason::Start(failure)));
}

#[test]
fn up_during_a_stop_keeps_one_run_and_asks_for_the_next() {
    let (mut life, _) = running(RestartWhen::No);
    life.want_down(false);
    life.hear(ms(10), RunNumber(1), News::Stopping { kill_at: UnixMillis(5) });
    life.want_up();
    assert!(life.is_leaving() && life.is_occupied());
    life.want_up();
    assert_eq!(life.at_least, RunNumber(2));
    life.hear(ms(20), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Signal(15))));
    assert_eq!(life.actual, Actual::Waiting);
}

#[test]
fn an_unknown_exit_is_a_failure() {
    let (mut life, _) = running(RestartWhen::No);
    life.hear(ms(1), RunNumber(1), News::Ended(ended(RunNumber(1), ExitStatus::Unknown)));
    assert_eq!(life.actual, Actual::Failed(Reason::Exited));
}
