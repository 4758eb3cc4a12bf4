//! Watches the files of services, on a thread of its own that sleeps until the kernel, or the daemon, has something for it.
//!
//! What the kernel says is taken for a hint that something stirs somewhere; when the core asks, the files are looked at, and
//! compared with what was seen before. So a lost event, a directory that takes the place of another, or an editor that saves by
//! way of three other names makes no difference. A disk that does not answer holds up this thread and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use locald_utils::fileset::{FILES_AS_WELL, FileSet, Sight as Files};
use locald_utils::name::{ProjectId, RunNumber, ServiceKey};
use locald_utils::spec::{Inputs, ServiceSpec, Watch};
use locald_utils::time::UnixMillis;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{ErrorKind, Event, EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::core::watching::Sight;

/// What the lookout reports.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Something stirs where this service has files.
    Stir(ServiceKey),
    /// What its files look like, and why not all of them can be watched.
    Sight(ServiceKey, Sight, Option<String>),
    /// On which inputs a run has worked that has completed, and what it has done; `None` when nobody can say.
    Done(ServiceKey, RunNumber, Option<(Inputs, String)>),
}

/// The daemon's end of it.
pub(crate) struct Lookout {
    /// What each service watches, as the thread has been told.
    watched: BTreeMap<ServiceKey, Watch>,
    /// Where the thread is told; `None` until there is something to watch.
    thread: Option<mpsc::Sender<Task>>,
    // Unbounded on both ways: what stirs again before it was heard of is told once.
    reports: UnboundedSender<Seen>,
    seen: UnboundedReceiver<Seen>,
}

enum Task {
    Watch(ServiceKey, FileSet, PathBuf, UnixMillis),
    Forget(ServiceKey),
    Look(ServiceKey),
    /// Something stirs here; `None` where the kernel has lost count.
    Stirred(Option<PathBuf>),
    /// This has gone, or has another name, and is not watched any more, whatever is there now.
    Gone(PathBuf),
}

impl Lookout {
    /// A lookout that has nothing to watch yet.
    pub(crate) fn new() -> Self {
        let (reports, seen) = unbounded_channel();
        Self { watched: BTreeMap::new(), thread: None, reports, seen }
    }

    /// Waits for something to be seen.
    pub(crate) async fn next(&mut self) -> Option<Seen> {
        self.seen.recv().await
    }

    /// Has the files watched that a service of the project in `dir` is run again for, or none any more. What was changed before `since`
    /// is not told of.
    pub(crate) fn mind(&mut self, key: &ServiceKey, dir: &Path, watch: Option<&Watch>, since: UnixMillis) {
        let before = self.watched.get(key);
        // When it acts is not the kernel's concern.
        if before.map(|before| &before.paths) == watch.map(|watch| &watch.paths) {
            return;
        }
        let Some(watch) = watch else {
            self.watched.remove(key);
            self.tell(Task::Forget(key.clone()));
            return;
        };
        self.watched.insert(key.clone(), watch.clone());
        match FileSet::new(dir, watch.paths.iter().map(String::as_str)) {
            Ok(files) => self.tell(Task::Watch(key.clone(), files, dir.to_owned(), since)),
            // A later version of the project file has other patterns.
            Err(error) => self.report(blind(key.clone(), error.to_string())),
        }
    }

    /// Forgets all services of a project.
    pub(crate) fn forget(&mut self, project: &ProjectId) {
        let keys: Vec<ServiceKey> = self.watched.keys().filter(|key| key.project == *project).cloned().collect();
        for key in keys {
            self.watched.remove(&key);
            self.tell(Task::Forget(key));
        }
    }

    /// Has the files of a service looked at.
    pub(crate) fn look(&mut self, key: ServiceKey) {
        self.tell(Task::Look(key));
    }

    /// Looks on which inputs a job has worked that has completed. As they are now, if that is how they were when it was asked for, or if
    /// nothing has been changed since its first instruction ran, `began`; otherwise someone has saved one of them meanwhile, and
    /// nobody can say. A file system that hangs holds nobody up: then it has not been done.
    pub(crate) fn verify(&self, key: &ServiceKey, run: RunNumber, dir: &Path, spec: &ServiceSpec, began: UnixMillis) {
        let (Some(work), Some(inputs)) = (spec.work(), &spec.inputs) else { return };
        let (key, reports, spec) = (key.clone(), self.reports.clone(), spec.clone());
        let files = FileSet::new(dir, inputs.paths.iter().map(String::as_str));
        let look = move || {
            let worked_on = || {
                let (files, inputs) = (files.ok()?, spec.inputs.clone()?);
                let inputs = Inputs { digest: Some(files.digest().ok()?), ..inputs };
                let done = ServiceSpec { inputs: Some(inputs.clone()), ..spec }.work()?;
                // After the files were read, so that no save in between goes unnoticed.
                let is_known = done == work || files.look(&mut |_, _| {}).ok()?.stirred < began;
                is_known.then_some((inputs, done))
            };
            // Nobody to tell: the daemon is about to go.
            let _ = reports.send(Seen::Done(key, run, worked_on()));
        };
        // Without a thread nothing is known of it, and it is done again next time.
        let _ = thread::Builder::new().name("inputs".to_owned()).spawn(look);
    }

    fn tell(&mut self, task: Task) {
        if self.thread.is_none() && matches!(task, Task::Watch(..)) {
            let (tasks, inbox) = mpsc::channel();
            let (reports, events) = (self.reports.clone(), tasks.clone());
            let spawned =
                thread::Builder::new().name("lookout".to_owned()).spawn(move || keep_watch(&inbox, events, reports));
            match spawned {
                Ok(_) => self.thread = Some(tasks),
                Err(error) => {
                    tracing::error!(%error, "no thread that could watch files");
                    if let Task::Watch(key, ..) = &task {
                        self.report(blind(key.clone(), format!("nothing can be watched: {error}")));
                    }
                }
            }
        }
        // It has ended only if it could not begin, and has said so.
        if let Some(thread) = &self.thread {
            let _ = thread.send(task);
        }
    }

    fn report(&self, seen: Seen) {
        // The other end is ours.
        let _ = self.reports.send(seen);
    }
}

/// Nothing was seen, and this is why.
fn blind(key: ServiceKey, why: String) -> Seen {
    Seen::Sight(key, Sight::Same, Some(why))
}

/// What one service watches.
struct Watched {
    files: FileSet,
    /// The project's directory, to which names of files are relative when they are told.
    dir: PathBuf,
    /// What was seen last; nothing when it could not be looked at.
    seen: Files,
    is_blind: bool,
    /// So many looks in a row have found directories that were new.
    found_new: u32,
}

/// 20: what has new directories at every look is told of all the same.
const MOST_NEW: u32 = 20;

/// The thread's own.
struct Keeper {
    kernel: Box<dyn Watcher>,
    /// Whether files are watched beside the directories that they are in.
    files_as_well: bool,
    services: BTreeMap<ServiceKey, Watched>,
    /// What the kernel watches: device and inode, and for whom.
    places: HashMap<PathBuf, Place>,
    reports: UnboundedSender<Seen>,
}

struct Place {
    identity: (u64, u64),
    services: BTreeSet<ServiceKey>,
}

fn keep_watch(inbox: &mpsc::Receiver<Task>, events: mpsc::Sender<Task>, reports: UnboundedSender<Seen>) {
    let on_event = move |event: notify::Result<Event>| {
        // The keeper goes last, with the daemon.
        let tell = |path: Option<PathBuf>| {
            let _ = events.send(Task::Stirred(path));
        };
        match event {
            Ok(event) if event.need_rescan() => tell(None),
            Ok(event) if changes(event.kind) => {
                let is_gone = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
                for path in event.paths {
                    if is_gone {
                        let _ = events.send(Task::Gone(path.clone()));
                    }
                    tell(Some(path));
                }
            }
            Ok(_) => {}
            Err(_) => tell(None),
        }
    };
    let mut keeper = match notify::recommended_watcher(on_event) {
        Ok(kernel) => Keeper::new(Box::new(kernel), FILES_AS_WELL, reports),
        Err(error) => {
            let why = why(None, &error);
            tracing::error!(why, "files cannot be watched");
            for task in inbox {
                if let Task::Watch(key, ..) = task {
                    let _ = reports.send(blind(key, why.clone()));
                }
            }
            return;
        }
    };
    while let Ok(task) = inbox.recv() {
        let mut stirred = BTreeSet::new();
        // Whatever has come meanwhile is told of once.
        for task in std::iter::once(task).chain(inbox.try_iter()) {
            match task {
                Task::Watch(key, files, dir, since) => keeper.watch(key, files, dir, since),
                Task::Forget(key) => keeper.forget(&key),
                Task::Look(key) => keeper.look(&key),
                Task::Gone(path) => keeper.lose(&path),
                Task::Stirred(Some(path)) => keeper.concerned(&path, &mut stirred),
                Task::Stirred(None) => stirred.extend(keeper.services.keys().cloned()),
            }
        }
        stirred.into_iter().for_each(|key| keeper.report(Seen::Stir(key)));
    }
}

/// Whether something of the kind can have changed a file. That one was opened and read has not.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Any | EventKind::Other => true,
    }
}

/// Says why something cannot be watched.
fn why(path: Option<&Path>, error: &notify::Error) -> String {
    let what = path.map_or_else(|| "files".to_owned(), |path| path.display().to_string());
    let reason = match &error.kind {
        ErrorKind::MaxFilesWatch => "the limit of watches is reached (sysctl fs.inotify.max_user_watches)".to_owned(),
        ErrorKind::Io(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => {
            "no descriptors are left, or no inotify instances (sysctl fs.inotify.max_user_instances)".to_owned()
        }
        ErrorKind::Io(error) => error.to_string(),
        ErrorKind::Generic(_) | ErrorKind::PathNotFound | ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => {
            error.to_string()
        }
    };
    format!("{what} cannot be watched: {reason}")
}

impl Keeper {
    fn new(kernel: Box<dyn Watcher>, files_as_well: bool, reports: UnboundedSender<Seen>) -> Self {
        Self { kernel, files_as_well, services: BTreeMap::new(), places: HashMap::new(), reports }
    }

    fn report(&self, seen: Seen) {
        // Nobody to tell: the daemon is about to go.
        let _ = self.reports.send(seen);
    }

    fn watch(&mut self, key: ServiceKey, files: FileSet, dir: PathBuf, since: UnixMillis) {
        // What was seen by other patterns is left when that has been looked at which these name.
        let seen = self.services.remove(&key).map(|watched| watched.seen).unwrap_or_default();
        self.services.insert(key.clone(), Watched { files, dir, seen, is_blind: false, found_new: 0 });
        let problem = self.see(&key);
        let newest = self.services.get(&key).and_then(|watched| {
            let (at, path) = watched.seen.newest.as_ref().filter(|(at, _)| *at >= since)?;
            Some((*at, watched.name(path)))
        });
        self.report(Seen::Sight(key, Sight::First(newest), problem));
    }

    fn look(&mut self, key: &ServiceKey) {
        let Some(watched) = self.services.get(key) else { return };
        let (before, was_blind) = (watched.seen.clone(), watched.is_blind);
        let problem = self.see(key);
        let Some(watched) = self.services.get_mut(key) else { return };
        // What was written into a directory before that was watched has not stirred: it need not have come to rest yet.
        let is_new = watched.seen.directories.keys().any(|dir| !before.directories.contains_key(dir));
        watched.found_new = if is_new && !was_blind && !watched.is_blind { watched.found_new + 1 } else { 0 };
        if (1..MOST_NEW).contains(&watched.found_new) {
            watched.seen.files = before.files;
            self.report(Seen::Sight(key.clone(), Sight::Same, problem));
            return self.report(Seen::Stir(key.clone()));
        }
        // Without two looks there is nothing to compare.
        let comparable = (!was_blind && !watched.is_blind).then_some(&watched.seen);
        let sight = match comparable.and_then(|seen| seen.difference(&before)) {
            Some(path) => Sight::Changed(watched.name(path)),
            None => Sight::Same,
        };
        self.report(Seen::Sight(key.clone(), sight, problem));
    }

    fn forget(&mut self, key: &ServiceKey) {
        if let Some(watched) = self.services.remove(key) {
            self.leave(key, &watched.seen, &Files::default());
        }
    }

    /// Looks at the files of a service, and has the kernel watch where they are from now on. Returns why it cannot, or not everywhere.
    fn see(&mut self, key: &ServiceKey) -> Option<String> {
        let Self { kernel, services, places, .. } = self;
        let watched = services.get_mut(key)?;
        let (mut problem, mut entered) = (None, Files::default());
        let mut enter = |path: &Path, identity: (u64, u64)| {
            entered.directories.insert(path.to_owned(), identity);
            let place = places.entry(path.to_owned()).or_insert(Place { identity: (0, 0), services: BTreeSet::new() });
            place.services.insert(key.clone());
            if place.identity == identity {
                return;
            }
            // What is watched is the directory that was here before, wherever that is now.
            if place.identity != (0, 0) {
                let _ = kernel.unwatch(path);
            }
            match kernel.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => place.identity = identity,
                // It is gone already, and that stirs what is above it.
                Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => place.identity = (0, 0),
                Err(error) => {
                    place.identity = (0, 0);
                    problem.get_or_insert_with(|| why(Some(path), &error));
                }
            }
        };
        let looked = watched.files.look(&mut enter);
        if let (true, Ok(seen)) = (self.files_as_well, &looked) {
            seen.files.iter().for_each(|(path, stamp)| enter(path, stamp.identity()));
        }
        watched.is_blind = looked.is_err();
        let seen = looked.unwrap_or_else(|error| {
            problem = Some(error.to_string());
            Files::default()
        });
        let before = std::mem::replace(&mut watched.seen, seen.clone());
        if watched.is_blind {
            self.leave(key, &entered, &seen);
        }
        self.leave(key, &before, &seen);
        problem
    }

    /// Stops watching what a service has no files in any more.
    fn leave(&mut self, key: &ServiceKey, before: &Files, now: &Files) {
        let directories = before.directories.keys().filter(|path| !now.directories.contains_key(*path));
        let files = before.files.keys().filter(|path| self.files_as_well && !now.files.contains_key(*path));
        for path in directories.chain(files) {
            let Some(place) = self.places.get_mut(path) else { continue };
            place.services.remove(key);
            if place.services.is_empty() {
                self.places.remove(path);
                // What is gone is not watched any more.
                let _ = self.kernel.unwatch(path);
            }
        }
    }

    /// Takes note that what was watched here, and below, is watched no more: the kernel's watcher forgets what is removed or renamed,
    /// and something with the same inode may be there now.
    fn lose(&mut self, path: &Path) {
        for (_, place) in self.places.iter_mut().filter(|(place, _)| place.starts_with(path)) {
            place.identity = (0, 0);
        }
    }

    /// Adds the services that something which stirs at `path` is about.
    fn concerned(&self, path: &Path, stirred: &mut BTreeSet<ServiceKey>) {
        let near = [Some(path), path.parent()].into_iter().flatten();
        let mut is_directory = None;
        for key in near.filter_map(|path| self.places.get(path)).flat_map(|place| &place.services) {
            let Some(watched) = self.services.get(key) else { continue };
            let mut is_directory =
                || *is_directory.get_or_insert_with(|| self.places.contains_key(path) || path.is_dir());
            // A directory may have brought files with it, or taken some away.
            if watched.files.concerns(path) || watched.seen.targets.contains(path) || is_directory() {
                stirred.insert(key.clone());
            }
        }
    }
}

impl Watched {
    /// The name of a file, as people of this project know it.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.dir).unwrap_or(path).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use notify::{Config, EventHandler, WatcherKind};

    use super::*;

    /// A kernel that has no watch left.
    #[derive(Debug)]
    struct Exhausted;

    impl Watcher for Exhausted {
        fn new<F: EventHandler>(_: F, _: Config) -> notify::Result<Self> {
            Ok(Self)
        }

        fn watch(&mut self, _: &Path, _: RecursiveMode) -> notify::Result<()> {
            Err(notify::Error::new(ErrorKind::MaxFilesWatch))
        }

        fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
            Ok(())
        }

        fn kind() -> WatcherKind {
            WatcherKind::NullWatcher
        }
    }

    fn key() -> ServiceKey {
        ServiceKey { project: ProjectId::of_directory(Path::new("/p")), service: "web".parse().expect("valid") }
    }

    fn keeper(files_as_well: bool) -> (Keeper, UnboundedReceiver<Seen>) {
        let (reports, seen) = unbounded_channel();
        let kernel = notify::recommended_watcher(|_| {}).expect("a watcher");
        (Keeper::new(Box::new(kernel), files_as_well, reports), seen)
    }

    fn sights(seen: &mut UnboundedReceiver<Seen>) -> Vec<(Sight, Option<String>)> {
        let sight = |seen| match seen {
            Seen::Sight(_, sight, problem) => (sight, problem),
            Seen::Stir(_) | Seen::Done(..) => panic!("{seen:?}"),
        };
        std::iter::from_fn(|| seen.try_recv().ok()).map(sight).collect()
    }

    #[test]
    fn files_are_watched_as_long_as_somebody_has_them() {
        for files_as_well in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let file = dir.path().join("a.py");
            std::fs::write(&file, "").expect("written");
            let set = FileSet::new(dir.path(), ["*.py"]).expect("good patterns");
            let (mut keeper, mut seen) = keeper(files_as_well);
            keeper.watch(key(), set, dir.path().to_owned(), UnixMillis(u64::MAX));
            assert!(keeper.places.contains_key(dir.path()));
            assert_eq!(keeper.places.contains_key(&file), files_as_well);
            std::fs::remove_file(&file).expect("removed");
            keeper.look(&key());
            assert!(!keeper.places.contains_key(&file) && keeper.places.contains_key(dir.path()));
            assert_eq!(sights(&mut seen), [(Sight::First(None), None), (Sight::Changed("a.py".into()), None)]);
            keeper.forget(&key());
            assert!(keeper.places.is_empty(), "{:?}", keeper.places.keys());
        }
    }

    #[test]
    fn a_place_that_cannot_be_watched_hides_no_change_elsewhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a.py");
        std::fs::write(&file, "").expect("written");
        let set = FileSet::new(dir.path(), ["*.py"]).expect("good patterns");
        let (mut keeper, mut seen) = keeper(false);
        keeper.watch(key(), set, dir.path().to_owned(), UnixMillis(u64::MAX));
        assert_eq!(sights(&mut seen), [(Sight::First(None), None)]);
        std::fs::write(&file, "more").expect("written");
        keeper.kernel = Box::new(Exhausted);
        keeper.lose(dir.path());
        keeper.look(&key());
        let (sight, problem) = sights(&mut seen).remove(0);
        assert_eq!(sight, Sight::Changed("a.py".into()));
        assert!(problem.is_some_and(|problem| problem.contains("max_user_watches")));
    }
}
