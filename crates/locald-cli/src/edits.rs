//! Watches a few files, and says through a descriptor when one of them has been saved.
//!
//! As in the daemon's lookout, what the kernel tells is a hint: a change is a difference between two looks.

use std::collections::BTreeSet;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use locald_utils::fileset::{FILES_AS_WELL, FileSet, Sight};
use locald_utils::spec::Watch;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Files that are watched as long as this is there.
#[derive(Debug)]
pub(crate) struct Edits {
    told: PipeReader,
}

impl Edits {
    /// Begins to watch files by their paths, whether they exist or not.
    ///
    /// # Errors
    /// When the system gives no watch.
    pub(crate) fn watch(paths: &[PathBuf]) -> io::Result<Self> {
        let files = FileSet::of_paths(paths);
        // A file that is a link is saved where it leads to, and may become one at any time.
        let targets: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let (told, mut tell) = io::pipe()?;
        let (stir, stirs) = mpsc::sync_channel(1);
        let (concerned, known) = (files.clone(), targets.clone());
        let on_event = move |event: notify::Result<notify::Event>| {
            // That somebody reads a file, or writes another, is no edit.
            let is_of = |path: &PathBuf| {
                concerned.concerns(path) || known.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
            };
            let is_other = |event: notify::Event| event.kind.is_access() || !event.paths.iter().any(is_of);
            if !event.is_ok_and(is_other) {
                // A full channel holds a hint already.
                let _ = stir.try_send(());
            }
        };
        let mut kernel = notify::recommended_watcher(on_event).map_err(io::Error::other)?;
        let mut look = move || {
            loop {
                let sight = look(&files, &mut kernel)?;
                let mut known = targets.lock().unwrap_or_else(PoisonError::into_inner);
                // What was saved there before it was known is seen by the next look.
                if *known == sight.targets {
                    return Ok::<_, notify::Error>(sight);
                }
                known.clone_from(&sight.targets);
            }
        };
        let mut seen = look().map_err(io::Error::other)?;
        thread::spawn(move || {
            while stirs.recv().is_ok() {
                loop {
                    match stirs.recv_timeout(Watch::DEBOUNCE) {
                        Ok(()) => {}
                        Err(RecvTimeoutError::Timeout) => break,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                // What cannot be watched any more is told of no more; it could when it began.
                let Ok(now) = look() else { return };
                if now.difference(&seen).is_some() && tell.write_all(b"!").is_err() {
                    // Nobody is there any more.
                    return;
                }
                seen = now;
            }
        });
        Ok(Self { told })
    }

    /// What to poll: readable when something has been saved.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Takes note of it. Waits for it if there is nothing to take note of.
    pub(crate) fn take(&mut self) {
        // One is as good as many.
        let _ = self.told.read(&mut [0; 64]);
    }
}

/// Looks at the files, and has the directories watched that they are in.
fn look(files: &FileSet, kernel: &mut RecommendedWatcher) -> notify::Result<Sight> {
    let mut failed = None;
    let mut enter = |path: &Path| {
        // Watching again what is watched makes sure that it is this directory, and not one that was here before.
        if let Err(error) = kernel.watch(path, RecursiveMode::NonRecursive) {
            failed.get_or_insert(error);
        }
    };
    let sight = files.look(&mut |path, _| enter(path)).map_err(|error| notify::Error::generic(&error.to_string()))?;
    if FILES_AS_WELL {
        sight.files.keys().for_each(|path| enter(path));
    }
    failed.map_or(Ok(sight), Err)
}
