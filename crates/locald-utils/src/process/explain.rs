//! Why a program could not be run, in words a person can act on.
//!
//! The kernel answers ENOENT for a missing program, a missing interpreter and Windows line endings alike. The file is
//! looked at after the failure, to tell them apart; what is found is an explanation, never a condition.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::record::{StartFailure, StartStage};

/// A failed step that has no story of its own.
#[must_use]
pub fn step(stage: StartStage, error: &io::Error, what: &str) -> StartFailure {
    let errno = error.raw_os_error().unwrap_or(0);
    StartFailure { stage, errno, path: None, message: format!("{what}: {error}"), hint: None, permanent: false }
}

/// The working directory cannot be entered.
#[must_use]
pub fn workdir(dir: &Path, error: &io::Error) -> StartFailure {
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!("its working directory {} does not exist", dir.display()),
        io::ErrorKind::NotADirectory => format!("its working directory {} is not a directory", dir.display()),
        io::ErrorKind::PermissionDenied => {
            format!("its working directory {} may not be entered (EACCES)", dir.display())
        }
        _ => format!("its working directory {} could not be entered: {error}", dir.display()),
    };
    let errno = error.raw_os_error().unwrap_or(0);
    StartFailure {
        stage: StartStage::Workdir,
        errno,
        path: Some(dir.to_owned()),
        message,
        hint: Some("create it, or change `workdir`".into()),
        permanent: true,
    }
}

/// The program is in no directory of `PATH`.
#[must_use]
pub fn lookup(name: &str, path: Option<&OsStr>, not_executable: &Option<PathBuf>) -> StartFailure {
    if let Some(file) = not_executable {
        return StartFailure {
            stage: StartStage::Lookup,
            errno: Errno::EACCES as i32,
            path: Some(file.clone()),
            message: format!("{} is not executable (EACCES)", file.display()),
            hint: Some(format!("`chmod +x {}` makes it so", file.display())),
            permanent: true,
        };
    }
    let hint = match path {
        None => "its environment has no PATH".to_owned(),
        Some(path) => match nearest_program(name, path) {
            Some(near) => format!("there is `{near}`; or install `{name}`, or write its path"),
            None => format!("install it, or write its path; PATH is {}", path.to_string_lossy()),
        },
    };
    StartFailure {
        stage: StartStage::Lookup,
        errno: Errno::ENOENT as i32,
        path: Some(PathBuf::from(name)),
        message: format!("there is no program `{name}` in PATH (ENOENT)"),
        hint: Some(hint),
        permanent: true,
    }
}

fn nearest_program(name: &str, path: &OsStr) -> Option<String> {
    let entries = std::env::split_paths(path).filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    crate::name::nearest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// The kernel refused to run the program.
#[must_use]
pub fn exec(program: &Path, errno: Errno, argv: &[CString], environment: &[CString]) -> StartFailure {
    let shown = program.display();
    let (message, hint) = match errno {
        Errno::ENOENT => missing(program),
        Errno::EACCES if program.is_dir() => {
            (format!("{shown} is a directory (EACCES)"), Some("name the program in it".to_owned()))
        }
        Errno::EACCES => denied(program),
        Errno::ENOTDIR => (format!("a part of the path {shown} is not a directory (ENOTDIR)"), None),
        Errno::ENOEXEC => {
            let hint = "a script needs a first line like `#!/bin/sh`; a binary must be built for this machine";
            (
                format!("{shown} is neither a script with a `#!` line nor a program for this machine (ENOEXEC)"),
                Some(hint.to_owned()),
            )
        }
        Errno::ETXTBSY => {
            (format!("{shown} is being written (ETXTBSY)"), Some("wait for the build to finish".to_owned()))
        }
        Errno::E2BIG => {
            let size = |texts: &[CString]| texts.iter().map(|text| text.as_bytes_with_nul().len()).sum::<usize>();
            let text = format!(
                "its arguments ({} bytes) and environment ({} bytes) are larger than the system allows (E2BIG)",
                size(argv),
                size(environment)
            );
            (text, Some("`getconf ARG_MAX` shows the limit".to_owned()))
        }
        Errno::ELOOP => (format!("{shown} is a loop of symlinks (ELOOP)"), None),
        other => (format!("{shown} could not be run: {}", other.desc()), None),
    };
    // Out of memory or processes may pass by itself; everything else waits for a person.
    let permanent = !matches!(errno, Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ETXTBSY);
    StartFailure {
        stage: StartStage::Exec,
        errno: errno as i32,
        path: Some(program.to_owned()),
        message,
        hint,
        permanent,
    }
}

/// Tells apart what ENOENT can mean.
fn missing(program: &Path) -> (String, Option<String>) {
    let shown = program.display();
    if !program.exists() {
        return (format!("{shown} does not exist (ENOENT)"), None);
    }
    match interpreter(program) {
        Some(interpreter) if interpreter.ends_with('\r') => (
            format!("{shown} has CRLF line endings, so its interpreter is not found (ENOENT)"),
            Some(format!("`sed -i 's/\\r$//' {shown}` makes them LF")),
        ),
        Some(interpreter) if interpreter.is_empty() => {
            (format!("the `#!` line of {shown} names no interpreter (ENOENT)"), None)
        }
        Some(interpreter) => (
            format!("the interpreter of {shown}, {interpreter}, does not exist (ENOENT)"),
            Some(format!("install {interpreter}, or change the `#!` line")),
        ),
        None => (
            format!("the loader that {shown} needs does not exist (ENOENT)"),
            Some("it was built for another system or C library".to_owned()),
        ),
    }
}

/// Tells apart what EACCES can mean for a file.
fn denied(program: &Path) -> (String, Option<String>) {
    let shown = program.display();
    if nix::unistd::access(program, nix::unistd::AccessFlags::F_OK).is_err() {
        return (format!("a directory on the way to {shown} may not be entered (EACCES)"), None);
    }
    if nix::unistd::access(program, nix::unistd::AccessFlags::X_OK).is_err() {
        return (format!("{shown} is not executable (EACCES)"), Some(format!("`chmod +x {shown}` makes it so")));
    }
    match interpreter(program) {
        Some(interpreter) if !interpreter.is_empty() => {
            (format!("the interpreter of {shown}, {interpreter}, may not be run (EACCES)"), None)
        }
        Some(_) | None => {
            (format!("{shown} may not be run (EACCES)"), Some("is its file system mounted with noexec?".to_owned()))
        }
    }
}

/// The interpreter that a script's `#!` line names, carriage return included; `None` for anything else.
fn interpreter(program: &Path) -> Option<String> {
    let mut start = [0; 256];
    let count = File::open(program).ok()?.read(&mut start).ok()?;
    let line = start[..count].strip_prefix(b"#!")?;
    let line = line.split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let line = line.trim_start_matches([' ', '\t']);
    Some(line.split([' ', '\t']).next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("writes");
        path
    }

    #[test]
    fn the_three_causes_of_enoent_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = exec(&dir.path().join("none"), Errno::ENOENT, &[], &[]);
        assert!(missing.message.ends_with("none does not exist (ENOENT)"), "{}", missing.message);
        let interpreter = exec(&script(dir.path(), "a", "#! /usr/bin/nodejs -x\n"), Errno::ENOENT, &[], &[]);
        assert!(
            interpreter.message.ends_with("a, /usr/bin/nodejs, does not exist (ENOENT)"),
            "{}",
            interpreter.message
        );
        let crlf = exec(&script(dir.path(), "b", "#!/bin/sh\r\necho\r\n"), Errno::ENOENT, &[], &[]);
        assert!(crlf.message.contains("CRLF"), "{}", crlf.message);
        let loader = exec(&script(dir.path(), "c", "\x7fELF"), Errno::ENOENT, &[], &[]);
        assert!(loader.message.contains("loader"), "{}", loader.message);
        assert!([missing, interpreter, crlf, loader].iter().all(|failure| failure.permanent));
    }

    #[test]
    fn eacces_names_directories_and_missing_permission() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(exec(dir.path(), Errno::EACCES, &[], &[]).message.contains("is a directory"));
        let plain = exec(&script(dir.path(), "a", "text"), Errno::EACCES, &[], &[]);
        assert!(plain.message.contains("is not executable"), "{}", plain.message);
        assert!(plain.hint.expect("a hint").contains("chmod +x"));
    }
}
