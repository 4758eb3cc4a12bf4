//! The project file: from what a person wrote to specs, or to every mistake in it at once.
//!
//! [`load`] tells the story: read the bytes, parse them as TOML (`parse`), read the tables into the types a person
//! writes (`written`, whose schema is [`schema()`]), resolve those into a [`ProjectSpec`] (`resolve`, with `template` and
//! `dotenv`). Every step adds to one list of mistakes and goes on; `diagnostic` puts the list in words. Nothing here
//! talks to a daemon, starts anything, or changes a file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::spec::ProjectSpec;

mod diagnostic;
mod dotenv;
mod files;
pub mod form;
mod health;
pub mod origin;
mod parse;
mod resolve;
mod schema;
mod template;
mod value;
mod written;

#[cfg(test)]
mod tests;

pub use diagnostic::{ConfigErrors, Diagnostic, Place};
pub use schema::schema;

/// The name of a project file.
pub const FILE_NAME: &str = "locald.toml";

/// 1 MiB. A project file is written by hand; what is larger is something else.
const MAX_BYTES: u64 = 1024 * 1024;

/// Looks for a project file in `start` and the directories above it.
///
/// Whatever has the name counts, a directory or a broken link too: [`load`] then says what is wrong with it, where
/// passing it by would pick the project of a directory further up.
#[must_use]
pub fn find(start: &Path) -> Option<PathBuf> {
    start.ancestors().map(|dir| dir.join(FILE_NAME)).find(|file| file.symlink_metadata().is_ok())
}

/// Reads and resolves a project file, as [`load_with_origins`], for whoever does not ask where its values are written.
///
/// # Errors
/// As [`load_with_origins`].
pub fn load(file: &Path) -> Result<ProjectSpec, ConfigErrors> {
    read(file).map(|(spec, _, _)| spec)
}

/// Reads and resolves a project file, and says where each value is written.
///
/// References in an `env_file` that the file does not answer itself are looked up in the environment of this process.
///
/// # Errors
/// Every mistake in the file, each with its place, in the order of the file.
pub fn load_with_origins(file: &Path) -> Result<(ProjectSpec, origin::Origins), ConfigErrors> {
    let (spec, found, source) = read(file)?;
    let name = spec.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let origins = origin::origins(found, &source, &name);
    Ok((spec, origins))
}

/// Does the work of [`load`]; also returns what was found where, and the text.
fn read(file: &Path) -> Result<(ProjectSpec, Vec<origin::Found>, String), ConfigErrors> {
    let read = read_bytes(file).and_then(|bytes| Ok((bytes, canonical(file)?)));
    let (bytes, file_canonical, dir) = match read {
        Ok((bytes, (file, dir))) => (bytes, file, dir),
        Err(reason) => return Err(ConfigErrors::unreadable(file, &reason)),
    };
    let source = match decode(bytes) {
        Ok(source) => source,
        Err((lossy, valid)) => return Err(ConfigErrors::not_utf8(file, lossy, valid)),
    };
    let lookup = |name: &str| std::env::var(name).ok();
    let surroundings = resolve::Surroundings { file: &file_canonical, dir: &dir, lookup: &lookup };
    match load_text(&source, &surroundings) {
        Ok((spec, found)) => Ok((spec, found, source)),
        Err(mistakes) => Err(ConfigErrors::new(file, source, mistakes)),
    }
}

/// The files that a project is read from: the project file, and the env files that it names, whether they exist or not. Of a file
/// that cannot be read, or is full of mistakes, as many as can be made out.
#[must_use]
pub fn files(file: &Path) -> Vec<PathBuf> {
    let mut files = vec![file.to_owned()];
    let source = read_bytes(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut syntax = parse::Syntax::default();
    let text = parse::repaired(&source, &mut syntax);
    let written = written::read(&parse::table(&text, &mut syntax), &mut Vec::new());
    files.extend(resolve::env_files(&written, file.parent().unwrap_or(Path::new(""))));
    files
}

/// Does the work of [`read`] on text that has been read.
fn load_text(
    source: &str,
    around: &resolve::Surroundings<'_>,
) -> Result<(ProjectSpec, Vec<origin::Found>), Vec<diagnostic::Mistake>> {
    let mut syntax = parse::Syntax::default();
    let text = parse::repaired(source, &mut syntax);
    let root = parse::table(&text, &mut syntax);
    let mut mistakes = Vec::new();
    let written = written::read(&root, &mut mistakes);
    let mut found = Vec::new();
    let spec = resolve::resolve(&written, source, around, &mut found, &mut mistakes);
    mistakes.retain(|mistake| syntax.trusts(mistake));
    mistakes.extend(syntax.mistakes);
    mistakes.sort_by_key(|mistake| mistake.span.start);
    match spec {
        Some(spec) if mistakes.is_empty() => Ok((spec, found)),
        Some(_) | None => Err(mistakes),
    }
}

/// Finds the directory of a project file, and the file in it, without symbolic links.
///
/// The file itself may be a link: the project is where the link lies, so that worktrees can share one file.
fn canonical(file: &Path) -> Result<(PathBuf, PathBuf), String> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let dir = fs::canonicalize(parent).map_err(|error| reason(&error))?;
    let name = file.file_name().ok_or_else(|| "it is not a file".to_owned())?;
    Ok((dir.join(name), dir))
}

/// Reads a regular file of bounded size, or says why not.
fn read_bytes(file: &Path) -> Result<Vec<u8>, String> {
    let metadata = fs::metadata(file).map_err(|error| reason(&error))?;
    if metadata.is_dir() {
        return Err("it is a directory".to_owned());
    }
    // Opening a FIFO would wait for a writer.
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(|error| reason(&error))?;
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| reason(&error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("it has more than 1 MiB".to_owned());
    }
    Ok(bytes)
}

/// Puts the usual errors of a path in words; they read the same on every system.
fn reason(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        "it does not exist".to_owned()
    } else if error.kind() == std::io::ErrorKind::PermissionDenied {
        "permission denied".to_owned()
    } else {
        error.to_string()
    }
}

/// Makes text of bytes, without the byte order mark some editors put in front.
///
/// Fails with the text as far as it can be shown and the offset of the first byte that is not UTF-8.
fn decode(bytes: Vec<u8>) -> Result<String, (String, usize)> {
    const BOM: char = '\u{feff}';
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix(BOM).map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let lossy = String::from_utf8_lossy(error.as_bytes()).into_owned();
            Err(match lossy.strip_prefix(BOM) {
                Some(rest) => (rest.to_owned(), valid.saturating_sub(BOM.len_utf8())),
                None => (lossy, valid),
            })
        }
    }
}
