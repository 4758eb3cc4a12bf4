//! The environment that services start from: the caller's, less what belongs to the caller's terminal or agent.
//!
//! A service outlives the terminal and the agent session that started it, and its output is read elsewhere. So that it
//! is the same whoever calls, these are left out:
//!
//! - the terminal and its multiplexer: `COLUMNS`, `LINES`, `COLORTERM`, `WINDOWID`, `VTE_VERSION`, `TERM_*`, `TMUX*`,
//!   `STY`, `WINDOW`, `ZELLIJ*`, `KITTY_*`, `WEZTERM_*`, `ITERM_*`, `LC_TERMINAL*`, `ALACRITTY_*`, `GHOSTTY_*`, `WARP_*`,
//!   `KONSOLE_*`, `GNOME_TERMINAL_*`, `TERMINAL_EMULATOR`, `WT_SESSION`, `WT_PROFILE_ID`, `GPG_TTY`, `SSH_TTY`,
//!   `SSH_CLIENT`, `SSH_CONNECTION`;
//! - the shell's own: `SHLVL`, `PWD`, `OLDPWD`, `_`;
//! - editors and coding agents: `VSCODE_*`, `INSIDE_EMACS`, `NVIM`, `NVIM_LISTEN_ADDRESS`, `VIM`, `VIMRUNTIME`,
//!   `CLAUDECODE`, `CLAUDE_CODE_*`, `CURSOR_*`, `CODEX_*`, `GEMINI_CLI`, `AI_AGENT`; keys that a service may use
//!   (`*_API_KEY`) stay;
//! - what names descriptors of the caller that no service inherits: `MAKEFLAGS`, `MFLAGS`, `MAKELEVEL`,
//!   `CARGO_MAKEFLAGS`, `NOTIFY_SOCKET`, `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`;
//! - locald's own about the caller: `LOCALD_SERVICE`, `LOCALD_RUN`, `LOCALD_SUPERVISOR`, `LOCALD_FILE`, `LOCALD_PROFILES`, and the ports of the
//!   caller's project, `LOCALD_PORT_*` and `LOCALD_URL_*`. `LOCALD_HOME` stays, so that a locald within a service finds the
//!   same home.
//!
//! What a login, a desktop session or a shell gives to everything in it is kept, for a service may need it (`SSH_AUTH_SOCK`,
//! `DISPLAY`), and yet no two sessions have the same; where environments are compared it makes no difference ([`is_of_session`]):
//! `SSH_AUTH_SOCK`, `SSH_AGENT_PID`, `DBUS_SESSION_BUS_ADDRESS`, `DISPLAY`, `WAYLAND_DISPLAY`, `XAUTHORITY`, `SESSION_MANAGER`, `XDG_SESSION_*`,
//! `XDG_SEAT*`, `XDG_VTNR`, `XDG_ACTIVATION_TOKEN`, `DESKTOP_STARTUP_ID`, `GNOME_KEYRING_CONTROL`, `INVOCATION_ID`, `JOURNAL_STREAM`, `MANAGERPID`,
//! `SYSTEMD_EXEC_PID`, `SECURITYSESSIONID`, `LaunchInstanceID`, `XPC_*`, `__*`, `PS1`, `PS2`, `PROMPT*`, `HIST*`, `STARSHIP_*`, `P9K_*`, `DIRENV_*`.
//!
//! `TERM` is always [`TERM`]: the terminal of a service is locald's, not the caller's. A one-off command runs in the caller's, and
//! keeps what describes it.

use std::ffi::OsString;

use locald_utils::exports;
use locald_utils::spec::{Environment, OsText};

/// What the terminal of every service is called. Understood by every terminal database, and what terminals emulate.
pub(crate) const TERM: &str = "xterm-256color";

/// What describes the caller's terminal. A one-off command has it, for the terminal is the same.
const TERMINAL: &[&str] = &[
    "COLORTERM",
    "COLUMNS",
    "GPG_TTY",
    "LINES",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "STY",
    "TERM",
    "TERMINAL_EMULATOR",
    "VTE_VERSION",
    "WINDOW",
    "WINDOWID",
    "WT_PROFILE_ID",
    "WT_SESSION",
];

/// How the names of further variables begin that describe it.
const TERMINAL_PREFIXES: &[&str] = &[
    "ALACRITTY_",
    "GHOSTTY_",
    "GNOME_TERMINAL_",
    "ITERM_",
    "KITTY_",
    "KONSOLE_",
    "LC_TERMINAL",
    "TERM_",
    "TMUX",
    "WARP_",
    "WEZTERM_",
    "ZELLIJ",
];

/// What else stays with the caller.
const DROPPED: &[&str] = &[
    "AI_AGENT",
    "CARGO_MAKEFLAGS",
    "CLAUDECODE",
    "GEMINI_CLI",
    "INSIDE_EMACS",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LOCALD_FILE",
    "LOCALD_PROFILES",
    "LOCALD_RUN",
    "LOCALD_SERVICE",
    "LOCALD_SUPERVISOR",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "NOTIFY_SOCKET",
    "NVIM",
    "NVIM_LISTEN_ADDRESS",
    "OLDPWD",
    "PWD",
    "SHLVL",
    "VIM",
    "VIMRUNTIME",
    "_",
];

/// What every session has otherwise.
const SESSION: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "DESKTOP_STARTUP_ID",
    "DISPLAY",
    "GNOME_KEYRING_CONTROL",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LaunchInstanceID",
    "MANAGERPID",
    "PS1",
    "PS2",
    "SECURITYSESSIONID",
    "SESSION_MANAGER",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "SYSTEMD_EXEC_PID",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_ACTIVATION_TOKEN",
    "XDG_VTNR",
];

const SESSION_PREFIXES: &[&str] =
    &["DIRENV_", "HIST", "P9K_", "PROMPT", "STARSHIP_", "XDG_SEAT", "XDG_SESSION_", "XPC_", "__"];

const DROPPED_PREFIXES: &[&str] =
    &["CLAUDE_CODE_", "CODEX_", "CURSOR_", exports::PORT_PREFIX, exports::URL_PREFIX, "VSCODE_"];

/// Makes what services start from out of the caller's variables.
///
/// A variable whose name is no UTF-8 is left out: no project file could mention it.
pub(crate) fn for_services(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
    let mut environment = kept(variables, is_kept);
    environment.insert("TERM".to_owned(), OsText::from(TERM));
    environment
}

/// Makes what a one-off command starts from, which has the caller's own terminal.
pub(crate) fn for_one_off(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
    kept(variables, |name| is_kept(name) || is_terminal(name))
}

/// The names of the caller's variables that services do not get, sorted.
pub(crate) fn removed(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names = variables.into_iter().map(|(name, _)| name.to_string_lossy().into_owned());
    // Theirs has another value.
    let mut names: Vec<String> = names.filter(|name| !is_kept(name) && name != "TERM").collect();
    names.sort();
    names
}

/// Whether a variable is of one login, desktop session or shell, so that a difference in it says nothing.
pub(crate) fn is_of_session(name: &str) -> bool {
    is_in(name, SESSION, SESSION_PREFIXES)
}

fn kept(variables: impl IntoIterator<Item = (OsString, OsString)>, is_kept: impl Fn(&str) -> bool) -> Environment {
    let named = variables.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, OsText(value))));
    named.filter(|(name, _)| is_kept(name)).collect()
}

fn is_kept(name: &str) -> bool {
    !is_terminal(name) && !is_in(name, DROPPED, DROPPED_PREFIXES)
}

fn is_terminal(name: &str) -> bool {
    is_in(name, TERMINAL, TERMINAL_PREFIXES)
}

fn is_in(name: &str, names: &[&str], prefixes: &[&str]) -> bool {
    names.contains(&name) || (prefixes.iter().any(|prefix| name.starts_with(prefix)) && !name.ends_with("_API_KEY"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_belongs_to_the_callers_terminal_or_agent_is_left_out() {
        for name in [
            "TERM_PROGRAM",
            "TERM_PROGRAM_VERSION",
            "TERM_SESSION_ID",
            "TMUX",
            "TMUX_PANE",
            "SSH_TTY",
            "SHLVL",
            "PWD",
            "_",
            "KITTY_WINDOW_ID",
            "LC_TERMINAL_VERSION",
            "VSCODE_GIT_IPC_HANDLE",
            "CLAUDECODE",
            "CLAUDE_CODE_ENTRYPOINT",
            "CURSOR_TRACE_ID",
            "CODEX_SANDBOX",
            "MAKEFLAGS",
            "LOCALD_SERVICE",
            "LOCALD_RUN",
            "LOCALD_FILE",
            "LOCALD_PORT_DB",
            "LOCALD_PROFILES",
            "LOCALD_URL_DB",
        ] {
            assert!(!is_kept(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "LANG",
            "LC_ALL",
            "TERMINFO",
            "SSH_AUTH_SOCK",
            "LOCALD_HOME",
            "DATABASE_URL",
            "CODEX_API_KEY",
            "NO_COLOR",
            "EDITOR",
            "VIRTUAL_ENV",
            "WINDOW_TITLE",
        ] {
            assert!(is_kept(name), "{name}");
        }
    }

    #[test]
    fn values_stay_as_they_are_and_term_is_our_own() {
        let odd = OsString::from_vec(vec![0xff, b'=', b'x']);
        let variables = [
            ("TERM".into(), "dumb".into()),
            ("URL".into(), "postgres://h/db?sslmode=off".into()),
            ("ODD".into(), odd.clone()),
            (OsString::from_vec(vec![0xff]), "x".into()),
        ];
        let expected: Environment = [
            ("ODD".to_owned(), OsText(odd)),
            ("TERM".to_owned(), OsText::from("xterm-256color")),
            ("URL".to_owned(), OsText::from("postgres://h/db?sslmode=off")),
        ]
        .into();
        assert_eq!(for_services(variables), expected);
    }

    #[test]
    fn a_one_off_command_keeps_the_callers_terminal_and_nothing_of_a_run() {
        let caller =
            ["TERM", "TMUX", "COLUMNS", "KITTY_PID", "HOME", "LOCALD_RUN", "LOCALD_SERVICE", "PWD", "CLAUDECODE"];
        let found = for_one_off(caller.map(|name| (name.into(), "x".into())));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["COLUMNS", "HOME", "KITTY_PID", "TERM", "TMUX"]);
    }

    #[test]
    fn the_lists_are_sorted_so_that_an_entry_is_found() {
        for list in [TERMINAL, TERMINAL_PREFIXES, DROPPED, DROPPED_PREFIXES, SESSION, SESSION_PREFIXES] {
            assert!(list.is_sorted(), "{list:?}");
        }
    }
}
