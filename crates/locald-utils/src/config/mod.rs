//! The project file: from what a person wrote to specs, or to every mistake in it at once.

use std::path::{Path, PathBuf};

use crate::spec::ProjectSpec;

/// The name of a project file.
pub const FILE_NAME: &str = "locald.toml";

/// Looks for a project file in `start` and the directories above it.
#[must_use]
pub fn find(start: &Path) -> Option<PathBuf> {
    start.ancestors().map(|dir| dir.join(FILE_NAME)).find(|file| file.is_file())
}

/// Reads and resolves a project file.
///
/// # Errors
/// Every mistake in the file, each with its place.
pub fn load(file: &Path) -> Result<ProjectSpec, ConfigErrors> {
    let _ = file;
    Err(ConfigErrors { file: file.to_owned() })
}

/// Every mistake of a project file.
#[derive(Debug)]
pub struct ConfigErrors {
    /// The file.
    pub file: PathBuf,
}

impl ConfigErrors {
    /// Writes every mistake with file:line:column, an excerpt, a caret and a suggestion.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let _ = color;
        String::new()
    }
}
