//! Waits until a log may have changed, without looking again and again.
//!
//! The kernel reports changes of directories (inotify, kqueue). A directory that does not exist yet is awaited by
//! watching the nearest one that does. A report says only that it is time to look: what has changed, the followers find
//! out, so reports may be many, few, or about something else.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use locald_utils::fileset::FILES_AS_WELL;
use locald_utils::log::latest_files;
use locald_utils::protocol::{Failure, FailureCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use notify::{Error, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// Watches the log directories of some services.
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    dirs: Vec<PathBuf>,
    watched: BTreeMap<PathBuf, Identity>,
    wakes: Receiver<()>,
    news: Arc<News>,
}

/// Why [`Watch::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something may have changed.
    Changed,
    /// Nothing has changed for as long as asked.
    Quiet,
    /// Nobody reads the output any more.
    HungUp,
    /// No more is wanted than what is there.
    Ended,
}

/// What the other threads have seen.
#[derive(Default)]
struct News {
    /// Something that is watched may be gone, and its watch with it, even if its name is there again.
    is_moved: AtomicBool,
    is_hung_up: AtomicBool,
    is_ended: AtomicBool,
}

impl Watch {
    /// Begins to watch `dirs`, and, if they are given, the reader of `output` and the other end of `until`, which is closed
    /// when no more is wanted.
    ///
    /// # Errors
    /// When the system gives no watch.
    pub(super) fn new(dirs: Vec<PathBuf>, output: Option<OwnedFd>, until: Option<OwnedFd>) -> Result<Self, Failure> {
        // One wake is as good as many.
        let (wake, wakes) = sync_channel(1);
        let news = Arc::new(News::default());
        if let Some(output) = output {
            watch_hangup(output, wake.clone(), Arc::clone(&news), |news| &news.is_hung_up);
        }
        if let Some(until) = until {
            watch_hangup(until, wake.clone(), Arc::clone(&news), |news| &news.is_ended);
        }
        let seen = Arc::clone(&news);
        let on_event = move |event: notify::Result<Event>| {
            match event.map(|event| event.kind) {
                // Reading a log is reported as well, and our own reading must not wake us.
                Ok(EventKind::Access(_)) => return,
                Ok(EventKind::Remove(_) | EventKind::Modify(notify::event::ModifyKind::Name(_))) | Err(_) => {
                    seen.is_moved.store(true, Ordering::Release);
                }
                Ok(EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other) => {}
            }
            // A full channel holds a wake already.
            let _ = wake.try_send(());
        };
        let watcher = notify::recommended_watcher(on_event).map_err(|error| cannot_watch(None, &error))?;
        let mut watch = Self { watcher, dirs, watched: BTreeMap::new(), wakes, news };
        watch.renew()?;
        Ok(watch)
    }

    /// Watches what exists by now. Whatever changes after this wakes the next [`Self::wait`].
    ///
    /// # Errors
    /// When the system gives no watch.
    pub(super) fn renew(&mut self) -> Result<(), Failure> {
        if self.news.is_moved.swap(false, Ordering::AcqRel) {
            for path in std::mem::take(&mut self.watched).into_keys() {
                // The watch of something deleted has gone by itself.
                let _ = self.watcher.unwatch(&path);
            }
        }
        // A watch may have been given for something that was being deleted: nothing would ever be reported of it. So each
        // counts only when the same thing still bears its name after the watch was given.
        loop {
            let wanted: BTreeMap<PathBuf, Identity> = self.dirs.iter().flat_map(|dir| targets(dir)).collect();
            if wanted == self.watched {
                return Ok(());
            }
            for (path, _) in self.watched.extract_if(.., |path, identity| wanted.get(path) != Some(identity)) {
                let _ = self.watcher.unwatch(&path);
            }
            for (path, identity) in wanted {
                if self.watched.contains_key(&path) {
                    continue;
                }
                match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                    Ok(()) => {
                        self.watched.insert(path, identity);
                    }
                    // Deleted in this moment. The next round finds what exists instead.
                    Err(_) if identify(&path) != Some(identity) => {}
                    Err(error) => return Err(cannot_watch(Some(&path), &error)),
                }
            }
        }
    }

    /// Waits for a change; with a `limit` no longer than that.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Wake {
        let woken = match limit {
            Some(limit) => self.wakes.recv_timeout(limit),
            None => self.wakes.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match woken {
            _ if self.news.is_hung_up.load(Ordering::Acquire) => Wake::HungUp,
            _ if self.news.is_ended.load(Ordering::Acquire) => Wake::Ended,
            Err(RecvTimeoutError::Timeout) => Wake::Quiet,
            // Without a watcher nothing would ever come.
            Err(RecvTimeoutError::Disconnected) => Wake::HungUp,
            Ok(()) => Wake::Changed,
        }
    }
}

/// What a name stands for at the moment: device and inode.
type Identity = (u64, u64);

fn identify(path: &Path) -> Option<Identity> {
    let meta = path.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// What has to be watched to learn about the log in `dir`.
///
/// The directory, or the nearest that exists, and the one above it: as long as a deleted log is kept open, Linux does not
/// report that its directory is deleted (inotify(7), IN_DELETE_SELF comes with the last reference), but the one above
/// reports that an entry is gone.
fn targets(dir: &Path) -> Vec<(PathBuf, Identity)> {
    let identified = |path: &Path| Some((path.to_owned(), identify(path)?));
    let mut targets = Vec::new();
    targets.extend(dir.ancestors().filter_map(identified).take(2));
    if FILES_AS_WELL {
        // Only the newest grows; that there is a newer one is reported of the directory.
        targets.extend(latest_files(dir).iter().filter_map(|file| identified(file)));
    }
    targets
}

fn cannot_watch(path: Option<&Path>, error: &Error) -> Failure {
    let what = path.map_or_else(|| "logs".to_owned(), |path| path.display().to_string());
    let failure = Failure::new(FailureCode::Failed, format!("could not watch {what}: {error}"));
    match &error.kind {
        ErrorKind::MaxFilesWatch => failure.hint("raise fs.inotify.max_user_watches"),
        ErrorKind::Io(_) if path.is_none() => failure.hint("raise fs.inotify.max_user_instances"),
        ErrorKind::Io(_)
        | ErrorKind::Generic(_)
        | ErrorKind::PathNotFound
        | ErrorKind::WatchNotFound
        | ErrorKind::InvalidConfig(_) => failure,
    }
}

/// Waits on a thread of its own for the other end of `fd` to go away: `logs -f | head` then ends at once, and not with the
/// next line.
fn watch_hangup(fd: OwnedFd, wake: SyncSender<()>, news: Arc<News>, flag: fn(&News) -> &AtomicBool) {
    std::thread::spawn(move || {
        // POLLERR and POLLHUP are reported without being asked for (poll(2)), but macOS looks at a descriptor only if it
        // is asked for something. There is never priority data to read here.
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLRDBAND)];
        while let Err(nix::errno::Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        if fds[0].revents().is_some_and(|seen| seen.intersects(gone)) {
            flag(&news).store(true, Ordering::Release);
            let _ = wake.try_send(());
        }
    });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use locald_utils::log::data_path;

    use super::*;

    /// Long enough for a busy machine; nothing waits for it to pass.
    const DEADLINE: Option<Duration> = Some(Duration::from_secs(20));

    /// A log directory in one that nobody else writes to.
    fn log_dir(base: &tempfile::TempDir) -> PathBuf {
        let dir = base.path().join("services/web");
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    /// Takes the wakes that are on their way for what was done so far.
    fn settle(watch: &Watch) {
        while watch.wait(Some(Duration::from_millis(50))) == Wake::Changed {}
    }

    #[test]
    fn a_write_wakes_and_a_read_does_not() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let log = data_path(&log_dir(&base), 1);
        fs::write(&log, "one").expect("a log");
        let mut watch = Watch::new(vec![log_dir(&base)], None, None).expect("a watch");
        settle(&watch);
        fs::read(&log).expect("the log");
        assert_eq!(watch.wait(Some(Duration::from_millis(50))), Wake::Quiet);
        fs::write(&log, "two").expect("a log");
        assert_eq!(watch.wait(DEADLINE), Wake::Changed);
        watch.renew().expect("a watch");
    }

    #[test]
    fn a_directory_is_awaited_and_awaited_again_after_its_deletion() {
        let base = tempfile::tempdir().expect("a temporary directory");
        // Deep enough that nobody else writes to what is watched.
        let dir = base.path().join("home/a/b");
        fs::create_dir_all(base.path().join("home")).expect("a directory");
        let mut watch = Watch::new(vec![dir.clone()], None, None).expect("a watch");
        for round in 0..3 {
            fs::create_dir_all(&dir).expect("a directory");
            assert_eq!(watch.wait(DEADLINE), Wake::Changed, "round {round}");
            watch.renew().expect("a watch");
            settle(&watch);
            watch.renew().expect("a watch");
            fs::write(data_path(&dir, 1), "text").expect("a log");
            assert_eq!(watch.wait(DEADLINE), Wake::Changed, "round {round}");
            settle(&watch);
            fs::remove_dir_all(&dir).expect("it was there");
            // Deleted and there again before anybody looks.
            fs::create_dir_all(&dir).expect("a directory");
            assert_eq!(watch.wait(DEADLINE), Wake::Changed, "round {round}");
            settle(&watch);
            watch.renew().expect("a watch");
            fs::write(data_path(&dir, 1), "text").expect("a log");
            assert_eq!(watch.wait(DEADLINE), Wake::Changed, "round {round}");
            fs::remove_dir_all(base.path().join("home/a")).expect("it was there");
            settle(&watch);
            watch.renew().expect("a watch");
        }
    }

    #[test]
    fn a_reader_that_goes_away_wakes() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let watch = Watch::new(vec![log_dir(&base)], Some(write), None).expect("a watch");
        drop(read);
        assert_eq!(watch.wait(DEADLINE), Wake::HungUp);
    }

    #[test]
    fn closing_the_other_end_says_that_no_more_is_wanted() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let (until, hold) = std::io::pipe().expect("a pipe");
        let watch = Watch::new(vec![log_dir(&base)], None, Some(until.into())).expect("a watch");
        settle(&watch);
        drop(hold);
        assert_eq!(watch.wait(DEADLINE), Wake::Ended);
    }
}
