//! Files named by patterns: what a service watches, and the inputs of a job.
//!
//! A pattern is a path relative to the project's directory in which `*` stands for anything but `/`, `**` for any directories,
//! `?` for one character, `[a-z]` and `{a,b}` for one of several. What comes before the first of these is a place; a pattern
//! that is all place names one file, or a directory and all in it. `!` in front takes away.
//!
//! What a wildcard finds is less what `.gitignore`, `.ignore` and git's own settings leave out, hidden files (unless the
//! pattern has the dot) and `.git`. A place that is written out is taken at its word: `.env` is watched although git ignores it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ignore::{DirEntry, WalkBuilder};

use crate::digest;
use crate::time::UnixMillis;

/// 20,000: more directories than that are not looked at, because each is watched.
const MOST_DIRECTORIES: usize = 20_000;

/// 200,000: more files than that are not remembered.
const MOST_FILES: usize = 200_000;

/// Whether the files of a watched directory are to be watched as well: kqueue(2) tells of a directory only that a name came or went.
/// inotify(7) tells of writes to its files anyway.
pub const FILES_AS_WELL: bool = cfg!(not(target_os = "linux"));

/// The files that say which files are ignored where they are, and below.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// The digest of no files at all.
pub const NO_FILES: &str = "none";

/// The files that some patterns name, whichever there are.
#[derive(Clone, Debug)]
pub struct FileSet {
    dir: PathBuf,
    places: Vec<Place>,
    without: Arc<GlobSet>,
}

/// Where to look, and for what.
#[derive(Clone, Debug)]
struct Place {
    base: PathBuf,
    /// What is wanted, relative to `base`; `None` for all there is.
    globs: Option<GlobSet>,
    sees_hidden: bool,
    /// How deep to look, where that is known.
    depth: Option<usize>,
}

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    modified: (i64, i64),
    size: u64,
    /// That it may be executed, or not any more, may be what a service waits for.
    executable: u32,
    /// A file that takes the place of another has another.
    identity: Identity,
}

/// Device and inode: which file or directory it is, whatever its name.
pub type Identity = (u64, u64);

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

impl Stamp {
    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
            executable: metadata.mode() & 0o111,
            identity: identity(metadata),
        }
    }
}

/// What there was when somebody looked.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// The files.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// What those of them are that are symbolic links. A change of it stirs there, under that name.
    pub targets: BTreeSet<PathBuf>,
    /// The directories in which files of the set, or what they lead to, are or may appear.
    pub directories: BTreeMap<PathBuf, Identity>,
    /// The file that was changed, renamed or created last, and when.
    pub newest: Option<(UnixMillis, PathBuf)>,
    /// When anything was changed last, a directory too: something may be gone from it.
    pub stirred: UnixMillis,
}

impl Sight {
    /// The first file that differs from what was seen before.
    #[must_use]
    pub fn difference<'a>(&'a self, before: &'a Self) -> Option<&'a Path> {
        let differs = self.files.iter().find(|&(path, stamp)| before.files.get(path) != Some(stamp));
        let is_gone = || before.files.keys().find(|path| !self.files.contains_key(*path));
        differs.map(|(path, _)| path).or_else(is_gone).map(PathBuf::as_path)
    }

    fn add_directory(&mut self, path: &Path, metadata: &Metadata) -> Result<(), FilesError> {
        if self.directories.len() >= MOST_DIRECTORIES {
            return Err(FilesError::TooMany(MOST_DIRECTORIES, "directories"));
        }
        self.directories.insert(path.to_owned(), identity(metadata));
        self.stirred = self.stirred.max(changed_at(metadata));
        Ok(())
    }

    fn add_file(&mut self, path: &Path, metadata: &Metadata) -> Result<(), FilesError> {
        if self.files.len() >= MOST_FILES {
            return Err(FilesError::TooMany(MOST_FILES, "files"));
        }
        self.files.insert(path.to_owned(), Stamp::of(metadata));
        let at = changed_at(metadata);
        self.stirred = self.stirred.max(at);
        if self.newest.as_ref().is_none_or(|(newest, _)| *newest < at) {
            self.newest = Some((at, path.to_owned()));
        }
        Ok(())
    }
}

/// When something was changed last. Unlike the time of a file's content, this one cannot be set, and a rename changes it too.
fn changed_at(metadata: &Metadata) -> UnixMillis {
    let millis = metadata.ctime().saturating_mul(1000).saturating_add(metadata.ctime_nsec() / 1_000_000);
    UnixMillis(u64::try_from(millis).unwrap_or_default())
}

/// Why files cannot be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There are more than is reasonable.
    #[error("the patterns take in more than {0} {1}; name the places that matter, or take some away with \"!...\"")]
    TooMany(usize, &'static str),
    /// One of them cannot be read.
    #[error("{}: {error}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl FileSet {
    /// The files in `dir` that the patterns name.
    ///
    /// # Errors
    /// When one of the patterns is not possible: an empty one, or one with a bracket that is not closed.
    pub fn new<'a>(dir: &Path, patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut groups: BTreeMap<(PathBuf, bool, Option<usize>), Option<GlobSetBuilder>> = BTreeMap::new();
        let mut without = GlobSetBuilder::new();
        for pattern in patterns {
            if let Some(pattern) = pattern.strip_prefix('!') {
                let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
                // Who takes all of a directory away takes the directory.
                without.add(glob(pattern.trim_end_matches("/**"))?);
                without.add(glob(&format!("{}/**", pattern.trim_end_matches("/**")))?);
                continue;
            }
            let (base, rest) = split(pattern)?;
            let base = if base.is_empty() { dir.to_owned() } else { dir.join(base) };
            let Some(rest) = rest else {
                groups.insert((base, false, None), None);
                continue;
            };
            let steps = rest.split('/').count();
            let depth = (!rest.contains("**")).then_some(steps);
            let says_dot = |step: &str| step.starts_with('.') || step.contains("{.") || step.contains(",.");
            let sees_hidden = rest.split('/').any(says_dot);
            let globs = groups.entry((base, sees_hidden, depth)).or_insert_with(|| Some(GlobSetBuilder::new()));
            // Next to a pattern that takes all, another one adds nothing.
            if let Some(globs) = globs {
                globs.add(glob(&rest)?);
            }
        }
        let build = |globs: GlobSetBuilder| globs.build().map_err(|error| PatternError(error.to_string()));
        let places = groups.into_iter().map(|((base, sees_hidden, depth), globs)| {
            Ok(Place { base, globs: globs.map(build).transpose()?, sees_hidden, depth })
        });
        Ok(Self { dir: dir.to_owned(), places: places.collect::<Result<_, _>>()?, without: Arc::new(build(without)?) })
    }

    /// These files, whether they exist or not.
    #[must_use]
    pub fn of_paths(paths: &[PathBuf]) -> Self {
        let place = |path: &PathBuf| Place { base: path.clone(), globs: None, sees_hidden: false, depth: None };
        Self { dir: PathBuf::from("/"), places: paths.iter().map(place).collect(), without: Arc::default() }
    }

    /// Looks at what there is. `enter` is told of each directory before it is listed, so that a watch that begins there misses
    /// nothing. Where a place does not exist yet, the nearest directory above it is one to watch.
    ///
    /// What cannot be read, or vanishes meanwhile, counts as not there.
    ///
    /// # Errors
    /// [`FilesError::TooMany`].
    pub fn look(&self, enter: &mut dyn FnMut(&Path, Identity)) -> Result<Sight, FilesError> {
        let mut sight = Sight::default();
        for place in &self.places {
            match std::fs::metadata(&place.base) {
                Ok(metadata) if metadata.is_dir() => {
                    // Ignore files above it count as well. What else is changed there is none of its files.
                    let above = place.base.ancestors().skip(1).take_while(|above| above.starts_with(&self.dir));
                    for above in above.filter(|_| self.dir != Path::new("/")) {
                        if let Ok(metadata) = std::fs::metadata(above) {
                            enter(above, identity(&metadata));
                            sight.directories.entry(above.to_owned()).or_insert_with(|| identity(&metadata));
                        }
                    }
                    self.walk(place, &mut sight, enter)?;
                }
                Ok(metadata) => {
                    nearest(&place.base, &mut sight, enter)?;
                    if place.globs.is_none() && metadata.is_file() && !self.is_without(&place.base) {
                        let is_link =
                            std::fs::symlink_metadata(&place.base).is_ok_and(|metadata| metadata.is_symlink());
                        take(&place.base, &metadata, is_link, &mut sight, enter)?;
                    }
                }
                Err(_) => nearest(&place.base, &mut sight, enter)?,
            }
        }
        Ok(sight)
    }

    /// Whether a file of this name may be of the set, be a part of the way to one, or say which are ignored. Ignore files are not asked.
    #[must_use]
    pub fn concerns(&self, path: &Path) -> bool {
        let is_of = |place: &Place| match path.strip_prefix(&place.base) {
            Ok(rest) => rest.as_os_str().is_empty() || place.globs.as_ref().is_none_or(|globs| globs.is_match(rest)),
            Err(_) => place.base.starts_with(path),
        };
        let is_ignore_file = path.file_name().is_some_and(|name| IGNORE_FILES.iter().any(|ignore| name == *ignore));
        let ignores_for = |place: &Place| {
            path.parent().is_some_and(|dir| dir.starts_with(&place.base) || place.base.starts_with(dir))
        };
        (!self.is_without(path) && self.places.iter().any(is_of))
            || (is_ignore_file && self.places.iter().any(ignores_for))
    }

    /// Whether a pattern takes this away.
    fn is_without(&self, path: &Path) -> bool {
        path.strip_prefix(&self.dir).is_ok_and(|path| self.without.is_match(path))
    }

    fn walk(&self, place: &Place, sight: &mut Sight, enter: &mut dyn FnMut(&Path, Identity)) -> Result<(), FilesError> {
        let set = self.clone();
        let walk = WalkBuilder::new(&place.base)
            .hidden(!place.sees_hidden)
            .require_git(false)
            .max_depth(place.depth)
            .filter_entry(move |entry| {
                entry.depth() == 0 || !(set.is_without(entry.path()) || entry.file_name() == ".git")
            })
            .build();
        // What is not there any more, or may not be read, has nothing to say.
        for entry in walk.filter_map(Result::ok) {
            let path = entry.path();
            let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir()) || entry.depth() == 0;
            if is_directory {
                // As deep as it goes nothing is looked for.
                if place.depth.is_none_or(|depth| entry.depth() < depth)
                    && let Ok(metadata) = std::fs::metadata(path)
                {
                    enter(path, identity(&metadata));
                    sight.add_directory(path, &metadata)?;
                }
            } else if place.takes(&entry)
                && let Ok(metadata) = std::fs::metadata(path)
                && metadata.is_file()
            {
                take(path, &metadata, entry.path_is_symlink(), sight, enter)?;
            }
        }
        Ok(())
    }

    /// A digest of the names and the contents of all files: the same where the same files are, whenever and wherever that is, and
    /// [`NO_FILES`] where none are.
    ///
    /// # Errors
    /// When there are too many, or one of them cannot be read.
    pub fn digest(&self) -> Result<String, FilesError> {
        let sight = self.look(&mut |_, _| {})?;
        if sight.files.is_empty() {
            return Ok(NO_FILES.to_owned());
        }
        let mut text = String::new();
        for path in sight.files.keys() {
            let name = path.strip_prefix(&self.dir).unwrap_or(path);
            let content = digest_of(path).map_err(|error| FilesError::Unreadable { path: path.clone(), error })?;
            // Writing to a string does not fail.
            let _ = writeln!(text, "{content} {:?}", name.as_os_str());
        }
        let mut hex = digest::hex(text.as_bytes());
        hex.truncate(16);
        Ok(hex)
    }
}

/// Adds a file, and where it really is.
fn take(
    path: &Path,
    metadata: &Metadata,
    is_link: bool,
    sight: &mut Sight,
    enter: &mut dyn FnMut(&Path, Identity),
) -> Result<(), FilesError> {
    sight.add_file(path, metadata)?;
    if let Some(target) = is_link.then(|| path.canonicalize().ok()).flatten() {
        nearest(&target, sight, enter)?;
        sight.targets.insert(target);
    }
    Ok(())
}

/// Adds the nearest directory above a path.
fn nearest(path: &Path, sight: &mut Sight, enter: &mut dyn FnMut(&Path, Identity)) -> Result<(), FilesError> {
    let found = path
        .ancestors()
        .skip(1)
        .find_map(|above| std::fs::metadata(above).ok().filter(Metadata::is_dir).map(|metadata| (above, metadata)));
    let Some((above, metadata)) = found else { return Ok(()) };
    enter(above, identity(&metadata));
    sight.add_directory(above, &metadata)
}

impl Place {
    fn takes(&self, entry: &DirEntry) -> bool {
        let path = entry.path().strip_prefix(&self.base).unwrap_or(entry.path());
        self.globs.as_ref().is_none_or(|globs| globs.is_match(path))
    }
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut hasher = digest::Hasher::default();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.hex()),
            length => hasher.add(&buffer[..length]),
        }
    }
}

/// Takes a pattern apart: the place, and what is looked for there, if it has wildcards.
fn split(pattern: &str) -> Result<(String, Option<String>), PatternError> {
    if pattern.is_empty() {
        return Err(PatternError("it is empty".to_owned()));
    }
    let pattern = pattern.trim_start_matches("./");
    let steps: Vec<&str> = pattern.split('/').collect();
    let is_wild = |step: &&str| step.contains(['*', '?', '[', '{', '\\']);
    let Some(first) = steps.iter().position(is_wild) else {
        return Ok((pattern.trim_end_matches('/').to_owned(), None));
    };
    let base = match steps[..first].join("/") {
        base if base.is_empty() && pattern.starts_with('/') => "/".to_owned(),
        base => base,
    };
    Ok((base, Some(steps[first..].join("/"))))
}

fn glob(pattern: &str) -> Result<globset::Glob, PatternError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map_err(|error| PatternError(error.kind().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, *file).expect("a file");
        }
        dir
    }

    fn found(dir: &Path, patterns: &[&str]) -> Vec<String> {
        let set = FileSet::new(dir, patterns.iter().copied()).expect("good patterns");
        let sight = set.look(&mut |_, _| {}).expect("not too many");
        let name = |path: &PathBuf| path.strip_prefix(dir).unwrap_or(path).display().to_string();
        sight.files.keys().map(name).collect()
    }

    #[test]
    fn patterns_find_what_they_say_from_the_directory_of_the_project() {
        let dir = tree(&["a.py", "src/b.py", "src/deep/c.py", "src/deep/d.ts", "src/e.txt", "x/src/f.py"]);
        for (patterns, expected) in [
            (&["*.py"] as &[&str], &["a.py"] as &[&str]),
            (&["**/*.py"], &["a.py", "src/b.py", "src/deep/c.py", "x/src/f.py"]),
            (&["src/**/*.py"], &["src/b.py", "src/deep/c.py"]),
            (&["./src/**/*.{py,ts}"], &["src/b.py", "src/deep/c.py", "src/deep/d.ts"]),
            (&["src/*"], &["src/b.py", "src/e.txt"]),
            (&["src"], &["src/b.py", "src/deep/c.py", "src/deep/d.ts", "src/e.txt"]),
            (&["src/", "!src/deep"], &["src/b.py", "src/e.txt"]),
            (&["src/**", "!src/deep/**"], &["src/b.py", "src/e.txt"]),
            (&["src/**", "!**/*.py"], &["src/deep/d.ts", "src/e.txt"]),
            (&["a.py", "src/e.txt", "nothing.txt"], &["a.py", "src/e.txt"]),
            (&["a.py", "src/e.txt", "!a.py"], &["src/e.txt"]),
            (&["?.py", "src/[a-b].py"], &["a.py", "src/b.py"]),
            (&["nowhere/**/*.py"], &[]),
        ] {
            assert_eq!(found(dir.path(), patterns), expected, "{patterns:?}");
        }
    }

    #[test]
    fn what_is_ignored_or_hidden_is_found_by_its_name_alone() {
        let dir = tree(&["src/a.js", "src/gen/b.js", "src/.cache/c.js", "node_modules/d.js", ".env", ".git/e.js"]);
        std::fs::write(dir.path().join(".gitignore"), "node_modules/\n.env\ngen\n").expect("written");
        assert_eq!(found(dir.path(), &["**/*.js"]), ["src/a.js"]);
        assert_eq!(found(dir.path(), &["**", "src/.cache/*"]), ["src/.cache/c.js", "src/a.js"]);
        assert_eq!(found(dir.path(), &["src/**/.*/*.js"]), ["src/.cache/c.js"]);
        assert_eq!(found(dir.path(), &[".env"]), [".env"], "written out");
        assert_eq!(found(dir.path(), &["src/{.cache,gen}/*.js"]), ["src/.cache/c.js"]);
        assert_eq!(found(dir.path(), &["node_modules/*.js"]), ["node_modules/d.js"], "a place that is written out");
    }

    #[test]
    fn a_directory_is_entered_only_where_something_may_be_found() {
        let dir = tree(&["a.toml", "src/b.rs", "src/deep/c.rs", "target/debug/d.rs"]);
        let entered = |patterns: &[&str]| {
            let set = FileSet::new(dir.path(), patterns.iter().copied()).expect("good patterns");
            let mut entered = Vec::new();
            let mut enter = |path: &Path, _| {
                entered
                    .push(path.strip_prefix(dir.path()).map_or("above".to_owned(), |path| path.display().to_string()));
            };
            let sight = set.look(&mut enter).expect("not too many");
            assert_eq!(sight.directories.len(), entered.len());
            entered.sort();
            entered
        };
        assert_eq!(entered(&["*.toml"]), [""]);
        assert_eq!(entered(&["src/*/*.rs"]), ["", "src", "src/deep"], "above it there may be ignore files");
        assert_eq!(entered(&["a.toml"]), [""], "a file is watched from its directory");
        assert_eq!(entered(&["src/new/deeper/**"]), ["src"], "what is missing, from the nearest that is there");
        std::fs::write(dir.path().join(".ignore"), "target\n").expect("written");
        assert_eq!(entered(&["**/*.rs"]), ["", "src", "src/deep"]);
    }

    #[test]
    fn what_a_link_leads_to_is_watched_where_it_is() {
        let dir = tree(&["conf/x", "real/a.toml", "real/b.toml"]);
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join(name)).expect("linked");
        };
        link("../real/a.toml", "conf/a.toml");
        link("real/b.toml", "b.toml");
        link("nowhere", "conf/c.toml");
        let set = FileSet::new(dir.path(), ["conf/*.toml", "b.toml"]).expect("good patterns");
        let sight = set.look(&mut |_, _| {}).expect("not too many");
        let real = dir.path().canonicalize().expect("it exists").join("real");
        assert_eq!(sight.targets, BTreeSet::from([real.join("a.toml"), real.join("b.toml")]));
        assert!(sight.directories.contains_key(&real), "{:?}", sight.directories);
        std::fs::write(real.join("a.toml"), "changed").expect("written");
        let now = set.look(&mut |_, _| {}).expect("not too many");
        assert_eq!(now.difference(&sight), Some(dir.path().join("conf/a.toml").as_path()));
    }

    #[test]
    fn a_name_tells_whether_it_may_be_of_the_set() {
        let set = FileSet::new(Path::new("/p"), ["src/**/*.py", "a/b.txt", "!src/gen/**"]).expect("good patterns");
        for path in ["/p/src/a.py", "/p/src/x/y.py", "/p/src", "/p/a", "/p/a/b.txt", "/p"] {
            assert!(set.concerns(Path::new(path)), "{path}");
        }
        for path in ["/p/src/a.ts", "/p/src/gen/a.py", "/p/a/c.txt", "/p/other", "/q"] {
            assert!(!set.concerns(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_change_is_a_file_that_is_new_gone_or_other_than_before() {
        let dir = tree(&["a", "b"]);
        let set = FileSet::new(dir.path(), ["*"]).expect("good patterns");
        let look = || set.look(&mut |_, _| {}).expect("not too many");
        let first = look();
        assert_eq!(look().difference(&first), None);
        std::fs::write(dir.path().join("c"), "new").expect("written");
        assert_eq!(look().difference(&first), Some(dir.path().join("c").as_path()));
        // As an editor saves: beside it, and then in its place.
        let second = look();
        std::fs::rename(dir.path().join("c"), dir.path().join("a")).expect("renamed");
        assert_eq!(look().difference(&second), Some(dir.path().join("a").as_path()));
        let third = look();
        std::fs::remove_file(dir.path().join("b")).expect("removed");
        assert_eq!(look().difference(&third), Some(dir.path().join("b").as_path()));
    }

    #[test]
    fn a_digest_is_of_names_and_contents_and_of_nothing_else() {
        let (one, two) = (tree(&["src/a", "src/b"]), tree(&["src/b", "src/a"]));
        let digest = |dir: &Path| FileSet::new(dir, ["src/*"]).expect("good").digest().expect("readable");
        let before = digest(one.path());
        assert_eq!(before, digest(two.path()));
        std::fs::write(one.path().join("src/a"), "else").expect("written");
        assert_ne!(before, digest(one.path()), "another content");
        std::fs::rename(two.path().join("src/a"), two.path().join("src/c")).expect("renamed");
        assert_ne!(before, digest(two.path()), "another name");
        std::fs::remove_dir_all(two.path().join("src")).expect("removed");
        assert_eq!(digest(two.path()), NO_FILES);
    }

    #[test]
    fn impossible_patterns_are_refused() {
        for pattern in ["", "src/[a", "{a", "!{a"] {
            assert!(FileSet::new(Path::new("/p"), [pattern]).is_err(), "{pattern}");
        }
    }
}
