//! What a command is about: the home, the directory, the project file, and the project in it.
//!
//! A project is its directory. So it can be looked at and ended while its file is broken, and after the file is gone:
//! whoever ran `git clean` in a running project still has `locald down`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use locald_utils::config::origin::Origins;
use locald_utils::config::{self, ConfigErrors, FILE_NAME};
use locald_utils::name::{ProjectId, ProjectName, ServiceName};
use locald_utils::paths::{Home, HomeError, service_dir};
use locald_utils::protocol::{Failure, FailureCode, ProjectStatus};
use locald_utils::spec::{Environment, ProjectSpec};

use crate::args::Global;
use crate::client::Client;
use crate::failure::{self, Problem};
use crate::{environment, names};

/// Who asks, from where.
#[derive(Debug)]
pub(crate) struct Context {
    global: Global,
    home: Result<Home, HomeError>,
}

impl Context {
    /// The context of this process.
    pub(crate) fn of_process(global: Global) -> Self {
        Self { global, home: Home::from_env() }
    }

    /// A context with a home of its own, for tests.
    #[cfg(test)]
    pub(crate) fn within(home: &Home, dir: &Path) -> Self {
        let global = Global { dir: Some(dir.to_owned()), ..Global::default() };
        Self { global, home: Ok(home.clone()) }
    }

    /// The home.
    pub(crate) fn home(&self) -> Result<&Home, Failure> {
        self.home.as_ref().map_err(failure::home)
    }

    /// The home, or why there is none, for whoever can do without.
    pub(crate) fn home_or_why(&self) -> Result<&Home, &HomeError> {
        self.home.as_ref()
    }

    /// The profiles that this person usually wants, as they have written them down.
    pub(crate) fn usual_profiles(&self) -> String {
        std::env::var("LOCALD_PROFILES").unwrap_or_default()
    }

    /// The environment that services start from.
    pub(crate) fn environment(&self) -> Environment {
        environment::for_services(std::env::vars_os())
    }

    /// The variables of this process that services do not get.
    pub(crate) fn removed(&self) -> Vec<String> {
        environment::removed(std::env::vars_os())
    }

    /// The environment that a one-off command starts from.
    pub(crate) fn one_off_environment(&self) -> Environment {
        environment::for_one_off(std::env::vars_os())
    }

    /// Where the person is, and which project file that means.
    pub(crate) fn place(&self) -> Result<Place, Failure> {
        let Global { dir, file, short_file, .. } = &self.global;
        let dir = dir.as_deref().unwrap_or(Path::new("."));
        // An empty LOCALD_FILE is none.
        match short_file.as_ref().or(file.as_ref()).filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => Place::of_file(&dir.join(file)),
            None => Place::of_directory(dir),
        }
    }
}

/// Where a person is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The directory that the search for a project begins in; canonical unless it is gone.
    start: PathBuf,
    /// The project file that was named, or was found there or above.
    file: Option<PathBuf>,
    /// Whether `file` was named.
    is_named: bool,
}

impl Place {
    fn of_file(file: &Path) -> Result<Self, Failure> {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Some(name) = file.file_name() else {
            return Err(Failure::new(FailureCode::Usage, format!("{} is no file", file.display())));
        };
        let start = canonical(parent)?;
        Ok(Self { file: Some(start.join(name)), start, is_named: true })
    }

    fn of_directory(dir: &Path) -> Result<Self, Failure> {
        let start = canonical(dir)?;
        if start.is_file() {
            let failure = Failure::new(FailureCode::Usage, format!("{} is no directory", dir.display()));
            return Err(failure.hint("name a project file with --file"));
        }
        let file = config::find(&start);
        Ok(Self { start, file, is_named: false })
    }

    /// Loads the project, for verbs that start something.
    ///
    /// # Errors
    /// [`FailureCode::NotFound`] when there is no project file, else every mistake in it; or when the inputs of a job cannot be read.
    pub(crate) fn load(&self) -> Result<ProjectSpec, Problem> {
        let file = self.file().ok_or_else(|| self.not_found())?;
        let mut project = config::load(file)?;
        project.look_at_inputs().map_err(|(service, error)| {
            let failure = Failure::new(FailureCode::Usage, format!("the inputs of `{service}`: {error}"));
            failure.hint("nothing has been started or stopped")
        })?;
        Ok(project)
    }

    /// As [`Place::load`], and says where each value is written.
    pub(crate) fn load_with_origins(&self) -> Result<(ProjectSpec, Origins), Problem> {
        match self.file() {
            Some(file) => Ok(config::load_with_origins(file)?),
            None => Err(self.not_found().into()),
        }
    }

    /// The project file, if there is one. A broken link is one: loading it says what is wrong.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref().filter(|file| file.symlink_metadata().is_ok())
    }

    /// The ids that the project may have, the most likely first: one where a file says where it is, else one for each
    /// directory from here up.
    fn ids(&self) -> Vec<ProjectId> {
        match self.file.as_deref().and_then(Path::parent) {
            Some(dir) => vec![ProjectId::of_directory(dir)],
            None => self.start.ancestors().map(ProjectId::of_directory).collect(),
        }
    }

    /// Asks the daemon for the project at this place.
    pub(crate) fn known(&self, client: &mut Client) -> Result<Option<ProjectStatus>, Failure> {
        let ids = self.ids();
        let only = if let [id] = ids.as_slice() { Some(id) } else { None };
        let mut projects = client.status(only)?;
        let found = ids.iter().find_map(|id| projects.iter().position(|project| project.id == *id));
        Ok(found.map(|index| projects.swap_remove(index)))
    }

    /// Whether a file was named, and the project here is that of another one: a directory is one project, whatever its file is called.
    pub(crate) fn is_of_another_file(&self, known: &ProjectStatus) -> bool {
        self.is_named && self.file.as_ref().is_some_and(|file| *file != known.file)
    }

    /// Finds the logs of the services that `patterns` mean, all when there is no pattern: each service's name and
    /// directory. Asks no daemon, and needs no readable project file where something has run before.
    ///
    /// # Errors
    /// When nothing is known of a project here, or a pattern matches nothing.
    pub(crate) fn logs(&self, home: &Home, patterns: &[String]) -> Result<Vec<(ServiceName, PathBuf)>, Problem> {
        // Who named a file that is not there, beside one that is, does not mean what that one has run.
        if self.is_named && self.file().is_none() && self.start.join(FILE_NAME).exists() {
            return Err(self.not_found().into());
        }
        let spec = self.file().map(config::load);
        let named = spec.as_ref().and_then(|spec| spec.as_ref().ok());
        let mut names: Vec<ServiceName> =
            named.into_iter().flat_map(|spec| &spec.services).map(|service| service.name.clone()).collect();
        let project = named.map_or_else(|| ProjectName::from_directory(&self.start), |spec| spec.name.clone());
        let dirs: Vec<PathBuf> = self.ids().iter().map(|id| home.project(id, &project)).collect();
        // Without a file the project may lie in any directory from here up: the nearest that has ever run.
        let dir = dirs.iter().find(|dir| dir.is_dir()).or(dirs.first()).cloned().unwrap_or_default();
        let recorded = dir.join("services").read_dir().into_iter().flatten().flatten();
        let mut recorded: Vec<ServiceName> =
            recorded.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        recorded.sort();
        recorded.retain(|name| !names.contains(name));
        names.extend(recorded);
        match spec {
            None if names.is_empty() => return Err(self.not_found().into()),
            Some(Err(errors)) if names.is_empty() => return Err(errors.into()),
            None | Some(_) => {}
        }
        let selected = if patterns.is_empty() { names } else { names::select(patterns, &names, project.as_str())? };
        Ok(selected.into_iter().map(|name| (name.clone(), service_dir(&dir, &name))).collect())
    }

    /// Makes the failure of a place without a project.
    pub(crate) fn not_found(&self) -> Failure {
        match &self.file {
            Some(file) if self.is_named => {
                Failure::new(FailureCode::NotFound, format!("there is no project file {}", file.display()))
            }
            // Something may have run in a directory that is gone, so this is not looked at before.
            Some(_) | None if !self.start.exists() => {
                Failure::new(FailureCode::NotFound, format!("there is no directory {}", self.start.display()))
            }
            Some(_) | None => {
                let message = format!("no {FILE_NAME} in {} or any directory above it", self.start.display());
                let hint = format!(
                    "a project begins with a {FILE_NAME} of two lines: `[services.web]` and `command = \"npm run dev\"`"
                );
                Failure::new(FailureCode::NotFound, message).hint(hint)
            }
        }
    }
}

/// Resolves symlinks. A directory that is gone keeps its name: something may run in it still.
fn canonical(dir: &Path) -> Result<PathBuf, Failure> {
    match dir.canonicalize() {
        Ok(dir) => Ok(dir),
        Err(error) if error.kind() == ErrorKind::NotFound => std::path::absolute(dir)
            .map_err(|_| Failure::new(FailureCode::NotFound, "the current directory does not exist any more")),
        Err(error) => Err(failure::io(format_args!("enter {}", dir.display()), &error)),
    }
}

/// The project at a place, as far as file and daemon know it. At least one of both does.
#[derive(Debug)]
pub(crate) struct Project {
    /// What the file says now; `Err` with its mistakes, `None` when there is none.
    pub(crate) spec: Option<Result<ProjectSpec, ConfigErrors>>,
    /// What the daemon knows.
    pub(crate) known: Option<ProjectStatus>,
}

impl Project {
    /// Finds the project for verbs that look at it or end it. Needs the file only when the daemon does not know it.
    ///
    /// # Errors
    /// When there is neither a file nor anything known; the mistakes of the file when that is all there is.
    pub(crate) fn find(place: &Place, client: Option<&mut Client>) -> Result<Self, Problem> {
        let known = match client {
            Some(client) => place.known(client)?,
            None => None,
        };
        let spec = place.file().map(config::load);
        if spec.is_none() && known.as_ref().is_some_and(|known| place.is_of_another_file(known)) {
            return Err(place.not_found().into());
        }
        match (spec, known) {
            (None, None) => Err(place.not_found().into()),
            (Some(Err(errors)), None) => Err(errors.into()),
            (spec, known) => Ok(Self { spec, known }),
        }
    }

    /// What the file says, if it can be read.
    pub(crate) fn spec(&self) -> Option<&ProjectSpec> {
        self.spec.as_ref().and_then(|spec| spec.as_ref().ok())
    }

    /// Its name for messages.
    pub(crate) fn name(&self) -> &str {
        let spec = self.spec().map(|spec| spec.name.as_str());
        spec.or_else(|| self.known.as_ref().map(|known| known.name.as_str())).unwrap_or("this project")
    }

    /// Every service of the file, then those that only the daemon knows.
    pub(crate) fn service_names(&self) -> Vec<ServiceName> {
        let mut names: Vec<ServiceName> =
            self.spec().into_iter().flat_map(|spec| &spec.services).map(|service| service.name.clone()).collect();
        for service in self.known.iter().flat_map(|known| &known.services) {
            if !names.contains(&service.name) {
                names.push(service.name.clone());
            }
        }
        names
    }

    /// The services that `patterns` mean; none when there is no pattern.
    pub(crate) fn select(&self, patterns: &[String]) -> Result<Vec<ServiceName>, Failure> {
        names::select(patterns, &self.service_names(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeDaemon, Step, project_status};
    use locald_utils::protocol::Reply;

    #[test]
    fn a_file_above_the_directory_is_found_and_its_directory_is_the_project() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        std::fs::create_dir_all(root.join("web/src")).expect("mkdir");
        std::fs::write(root.join(FILE_NAME), "").expect("writes");
        let place = Place::of_directory(&root.join("web/src")).expect("a place");
        assert_eq!(place.file(), Some(root.join(FILE_NAME).as_path()));
        assert_eq!(place.ids(), [ProjectId::of_directory(&root)]);
    }

    #[test]
    fn a_named_file_that_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        let place = Place::of_file(&root.join("other.toml")).expect("a place");
        let Err(Problem::Failure(failure)) = place.load() else { panic!("found") };
        assert_eq!(failure.code, FailureCode::NotFound);
        assert_eq!(failure.message, format!("there is no project file {}", root.join("other.toml").display()));
    }

    #[test]
    fn a_project_whose_file_is_gone_is_found_from_a_directory_below() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        std::fs::create_dir_all(root.join("src")).expect("mkdir");
        let mut known = project_status("shop", &["web"]);
        known.id = ProjectId::of_directory(&root);
        let projects = vec![project_status("other", &[]), known.clone()];
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Reply(Reply::Status { projects })]);
        let place = Place::of_directory(&root.join("src")).expect("a place");
        let project = Project::find(&place, Some(&mut daemon.client())).expect("found");
        assert_eq!(project.known, Some(known));
        assert_eq!(project.service_names(), ["web".parse().expect("valid")]);
    }

    #[test]
    fn a_named_file_that_is_missing_is_no_project_although_there_is_one_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        let find = |name: &str| {
            let id = ProjectId::of_directory(&root);
            let known = ProjectStatus { id, file: root.join(FILE_NAME), ..project_status("shop", &["web"]) };
            let daemon = FakeDaemon::start(vec![Step::Request, Step::Reply(Reply::Status { projects: vec![known] })]);
            let place = Place::of_file(&root.join(name)).expect("a place");
            Project::find(&place, Some(&mut daemon.client()))
        };
        let Err(Problem::Failure(failure)) = find("nope.toml") else { panic!("found") };
        assert_eq!(failure.message, format!("there is no project file {}", root.join("nope.toml").display()));
        // What runs of a file that is gone can still be looked at and ended, by whatever way it is named.
        assert!(find(FILE_NAME).is_ok());
    }

    #[test]
    fn a_directory_that_does_not_exist_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let nope = dir.path().canonicalize().expect("canonical").join("nope");
        let place = Place::of_directory(&nope).expect("a place");
        let Err(Problem::Failure(failure)) = Project::find(&place, None) else { panic!("found") };
        assert_eq!(failure.message, format!("there is no directory {}", nope.display()));
    }

    #[test]
    fn logs_are_found_without_a_daemon_and_after_the_file_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        let home = Home::under(&root.join("home"));
        let web =
            root.join("home/projects").join(format!("shop-{}", ProjectId::of_directory(&root))).join("services/web");
        std::fs::create_dir_all(&web).expect("mkdir");
        std::fs::create_dir_all(root.join("src")).expect("mkdir");
        let place = Place::of_directory(&root.join("src")).expect("a place");
        let found = vec![("web".parse().expect("valid"), web)];
        assert_eq!(place.logs(&home, &[]).expect("found"), found);
        assert_eq!(place.logs(&home, &["w*".into()]).expect("found"), found);
        let Err(Problem::Failure(failure)) = place.logs(&home, &["db".into()]) else { panic!("found") };
        assert_eq!(failure.code, FailureCode::NotFound);
        let named = Place::of_file(&root.join("dev.toml")).expect("a place");
        assert_eq!(named.logs(&home, &[]).expect("found"), found, "it may be that file which is gone");
        std::fs::write(root.join(FILE_NAME), "").expect("writes");
        let Err(Problem::Failure(failure)) = named.logs(&home, &[]) else { panic!("of another file") };
        assert_eq!(failure.message, format!("there is no project file {}", root.join("dev.toml").display()));
    }

    #[test]
    fn a_directory_without_a_project_is_told_with_a_way_to_make_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::of_directory(dir.path()).expect("a place");
        let Err(Problem::Failure(failure)) = Project::find(&place, None) else { panic!("found") };
        assert_eq!(failure.code, FailureCode::NotFound);
        assert!(failure.hint.is_some_and(|hint| hint.contains("[services.web]")));
    }
}
