//! How a command ends when it could not do its work: one message, one hint, one exit code.
//!
//! [`Failure`] and its codes are the protocol's; this file adds the mistakes of a project file, which have a form of
//! their own, and shows both.

use locald_utils::config::ConfigErrors;
use locald_utils::paths::HomeError;
use locald_utils::protocol::{Failure, FailureCode};

use crate::render::{human, json};
use crate::screen::Screen;

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Problem {
    /// A failure of the daemon's or our own.
    Failure(Failure),
    /// The mistakes of the project file.
    Config(ConfigErrors),
}

impl Problem {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failure(failure) => failure.code.exit_code(),
            Self::Config(_) => FailureCode::Usage.exit_code(),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<ConfigErrors> for Problem {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

/// Makes the failure of a home that cannot be used.
pub(crate) fn home(error: &HomeError) -> Failure {
    Failure::new(FailureCode::Failed, error.to_string())
}

/// Makes the failure of a system call: what was tried, and why it did not work.
pub(crate) fn io(tried: impl std::fmt::Display, error: &std::io::Error) -> Failure {
    Failure::new(FailureCode::Failed, format!("could not {tried}: {error}"))
}

/// Shows why the command could not do its work.
pub(crate) fn report(problem: &Problem, verb: &str, screen: &mut Screen) {
    if screen.json() {
        let line = match problem {
            Problem::Failure(failure) => json::failure(Some(verb), failure),
            Problem::Config(errors) => json::config_errors(verb, errors),
        };
        screen.answer(&line);
        return;
    }
    match problem {
        Problem::Failure(failure) => screen.say(&human::failure(failure, screen.stderr_paint())),
        Problem::Config(errors) => screen.say(&errors.render(screen.stderr_paint().is_on())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Captured;

    fn broken(text: &str) -> ConfigErrors {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("locald.toml");
        std::fs::write(&file, text).expect("writes");
        locald_utils::config::load(&file).expect_err("mistakes")
    }

    #[test]
    fn mistakes_of_the_file_are_a_list_for_programs() {
        let errors = broken("[services.web]\ncommand = \"x\"\nprot = 1\nport = 99999\n");
        let captured = Captured::default();
        report(&errors.into(), "check", &mut captured.json_screen());
        let value: serde_json::Value = serde_json::from_str(&captured.stdout()).expect("one object");
        assert_eq!(value["error"]["code"], "usage");
        assert_eq!(value["error"]["message"], "2 mistakes in the project file");
        let lines: Vec<_> = value["errors"].as_array().expect("a list").iter().map(|error| &error["line"]).collect();
        assert_eq!(lines, [3, 4]);
        assert_eq!(captured.stderr(), "");
    }

    #[test]
    fn every_code_has_its_exit_code() {
        let codes = [
            (FailureCode::Failed, 1),
            (FailureCode::Protocol, 1),
            (FailureCode::ShuttingDown, 1),
            (FailureCode::Usage, 2),
            (FailureCode::NotRunning, 3),
            (FailureCode::NotFound, 4),
            (FailureCode::TimedOut, 124),
            (FailureCode::Interrupted, 130),
        ];
        for (code, exit) in codes {
            assert_eq!(Problem::from(Failure::new(code, "x")).exit_code(), exit);
        }
        assert_eq!(Problem::from(broken("[services.web")).exit_code(), 2);
    }

    #[test]
    fn a_failure_goes_to_stderr_as_text_and_to_stdout_as_json() {
        let failure = Failure::new(FailureCode::NotFound, "no service `wbe` in shop").hint("did you mean `web`?");
        let captured = Captured::default();
        report(&failure.clone().into(), "up", &mut captured.screen());
        assert_eq!(captured.stdout(), "");
        assert_eq!(captured.stderr(), "error: no service `wbe` in shop\nhint: did you mean `web`?\n");

        let captured = Captured::default();
        report(&failure.into(), "up", &mut captured.json_screen());
        assert_eq!(captured.stderr(), "");
        assert_eq!(
            captured.stdout(),
            "{\"schema\":1,\"verb\":\"up\",\"error\":{\"code\":\"not_found\",\
             \"message\":\"no service `wbe` in shop\",\"hint\":\"did you mean `web`?\"}}\n"
        );
    }
}
