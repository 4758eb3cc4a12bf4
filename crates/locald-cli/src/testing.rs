//! What tests of this crate share: captured streams, values of the protocol, and a daemon that follows a script.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;

use locald_utils::frame::{self, Decoder};
use locald_utils::name::{ProjectId, RunId, RunNumber, ServiceName};
use locald_utils::paths::Home;
use locald_utils::process::ProcessId;
use locald_utils::protocol::{
    ClientMessage, Desired, Event, Failure, Hello, ProjectStatus, Reply, Request, ServerMessage, ServiceStatus, State,
};
use locald_utils::record::{Ended, ExitStatus, RunRef};
use locald_utils::spec::{CommandSpec, Kind, LogPolicy, ProjectSpec, RestartPolicy, ServiceSpec, StopPolicy, Template};
use locald_utils::time::UnixMillis;

use crate::client::Client;
use crate::screen::Screen;
use crate::view::never_started;

/// The time at which the protocol's values in tests are looked at.
pub(crate) const NOW: UnixMillis = UnixMillis(1_000_000);

/// The instant so many milliseconds before [`NOW`].
pub(crate) fn ago(ms: u64) -> Option<UnixMillis> {
    Some(UnixMillis(NOW.0 - ms))
}

/// A name that is known to be valid.
pub(crate) fn name(name: &str) -> ServiceName {
    name.parse().expect("a valid name")
}

/// A service in a state, without a history.
pub(crate) fn service(service: &str, state: State) -> ServiceStatus {
    ServiceStatus { desired: Desired::Up, state, ..never_started(name(service), Kind::Service) }
}

/// A service that was ready after 1.2 s and runs for 3 minutes.
pub(crate) fn ready(service_name: &str) -> ServiceStatus {
    ServiceStatus {
        run: Some(RunNumber(7)),
        leader: Some(ProcessId { pid: 4711, start: 1 }),
        started_at: ago(200_000),
        ready_at: ago(198_800),
        ..service(service_name, State::Ready)
    }
}

/// A run that ended 12 s before [`NOW`], after 200 ms, without a trace.
pub(crate) fn ended(service_name: &str, status: ExitStatus) -> Ended {
    Ended {
        run: RunRef {
            project: ProjectId::from_recorded("0123456789ab"),
            project_name: "shop".parse().expect("a valid name"),
            service: name(service_name),
            number: RunNumber(7),
            id: RunId::random().expect("random"),
        },
        status,
        forked: false,
        started_at: ago(12_200),
        exited_at: UnixMillis(NOW.0 - 12_000),
        ended_at: UnixMillis(NOW.0 - 12_000),
        stopped: false,
        forced: false,
        processes: 1,
        killed: 0,
        strays: Vec::new(),
        survivors: Vec::new(),
        stop_took: std::time::Duration::from_millis(4),
        lost_output: 0,
    }
}

/// A project in `/work/<name>` whose services are stopped.
pub(crate) fn project_status(project: &str, services: &[&str]) -> ProjectStatus {
    let dir = PathBuf::from("/work").join(project);
    ProjectStatus {
        id: ProjectId::of_directory(&dir),
        name: project.parse().expect("a valid name"),
        file: dir.join("locald.toml"),
        dir,
        services: services.iter().map(|name| service(name, State::Stopped)).collect(),
        origins: BTreeMap::new(),
    }
}

/// The project of [`project_status`] as its file declares it.
pub(crate) fn spec(services: &[&str]) -> ProjectSpec {
    let service = |service: &&str| ServiceSpec {
        name: name(service),
        kind: Kind::Service,
        command: CommandSpec::Shell(Template::text("sleep 1")),
        workdir: "/work/shop".into(),
        env: BTreeMap::new(),
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
    };
    let project = project_status("shop", &[]);
    let services = services.iter().map(service).collect();
    ProjectSpec { id: project.id, name: project.name, dir: project.dir, file: project.file, services }
}

/// Two streams whose text can be looked at.
#[derive(Clone, Default)]
pub(crate) struct Captured {
    stdout: Rc<RefCell<Vec<u8>>>,
    stderr: Rc<RefCell<Vec<u8>>>,
}

struct Sink(Rc<RefCell<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    /// A screen for people on these streams.
    pub(crate) fn screen(&self) -> Screen {
        self.screen_with(false, false)
    }

    /// A screen for programs on these streams.
    pub(crate) fn json_screen(&self) -> Screen {
        self.screen_with(true, false)
    }

    /// A screen on these streams.
    pub(crate) fn screen_with(&self, json: bool, quiet: bool) -> Screen {
        Screen::plain(Box::new(Sink(self.stdout.clone())), Box::new(Sink(self.stderr.clone())), json, quiet)
    }

    /// What went to stdout.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.stdout.borrow().clone()).expect("UTF-8")
    }

    /// What went to stderr.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.stderr.borrow().clone()).expect("UTF-8")
    }
}

/// What a [`FakeDaemon`] does next with its only client.
#[derive(Debug)]
pub(crate) enum Step {
    /// Waits for a request and keeps it.
    Request,
    /// Sends an event of the last request.
    Event(Event),
    /// Answers the last request.
    Reply(Reply),
    /// Answers with the status of a project, called shop, in [`FakeDaemon::project`].
    Project(Vec<ServiceStatus>),
    /// Refuses the last request.
    Failure(Failure),
    /// Sends a message as it is.
    Message(ServerMessage),
    /// Sends bytes as they are.
    Bytes(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Does nothing until the client leaves.
    Wait,
}

/// A daemon for one client, in a home of its own.
pub(crate) struct FakeDaemon {
    /// Its home.
    pub(crate) home: Home,
    /// A directory for the project, beside the home.
    pub(crate) project: PathBuf,
    requests: Arc<Mutex<Vec<Request>>>,
    _dir: tempfile::TempDir,
}

impl FakeDaemon {
    /// Starts a daemon that follows `script` with its first client.
    pub(crate) fn start(script: Vec<Step>) -> Self {
        // A number that no process has (the largest is 2^22, proc_sys_kernel(5)): this test is not to wait for its own end.
        Self::greeting(Hello { pid: 1 << 23, ..Hello::new() }, script)
    }

    /// The same, with a greeting of its own.
    pub(crate) fn greeting(hello: Hello, script: Vec<Step>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        let (home, project) = (Home::under(&root.join("home")), root.join("project"));
        std::fs::create_dir(&project).expect("mkdir");
        home.prepare().expect("prepares");
        let listener = UnixListener::bind(home.daemon_socket()).expect("binds");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (kept, dir_of_project) = (requests.clone(), project.clone());
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            // A client that leaves early is part of some tests.
            let _ = follow(stream, &hello, script, &dir_of_project, &kept);
        });
        Self { home, project, requests, _dir: dir }
    }

    /// Connects to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.home).expect("connects").expect("a daemon")
    }

    /// What it was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

fn follow(
    mut stream: UnixStream,
    hello: &Hello,
    script: Vec<Step>,
    project: &Path,
    requests: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut id = 0;
    frame::write_message(&mut stream, hello)?;
    let _: Option<Hello> = frame::read_message(&mut stream, &mut decoder)?;
    for step in script {
        match step {
            Step::Request => {
                let Some(message) = frame::read_message::<ClientMessage>(&mut stream, &mut decoder)? else { break };
                id = message.id;
                requests.lock().expect("not poisoned").push(message.request);
            }
            Step::Event(event) => frame::write_message(&mut stream, &ServerMessage::Event { id, event })?,
            Step::Reply(reply) => {
                frame::write_message(&mut stream, &ServerMessage::Reply { id, reply: Box::new(reply) })?;
            }
            Step::Project(services) => {
                let status = ProjectStatus {
                    id: ProjectId::of_directory(project),
                    dir: project.to_owned(),
                    file: project.join("locald.toml"),
                    services,
                    ..project_status("shop", &[])
                };
                let reply = Box::new(Reply::Status { projects: vec![status] });
                frame::write_message(&mut stream, &ServerMessage::Reply { id, reply })?;
            }
            Step::Failure(failure) => frame::write_message(&mut stream, &ServerMessage::Failure { id, failure })?,
            Step::Message(message) => frame::write_message(&mut stream, &message)?,
            Step::Bytes(bytes) => stream.write_all(&bytes)?,
            Step::Close => stream.shutdown(Shutdown::Both)?,
            Step::Wait => drop(frame::read_message::<ClientMessage>(&mut stream, &mut decoder)?),
        }
    }
    Ok(())
}
