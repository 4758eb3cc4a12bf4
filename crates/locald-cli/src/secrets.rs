//! Which values are not for everybody to see. Pure.
//!
//! Screens are shared, and what is printed ends in logs and transcripts. So a value is replaced by [`HIDDEN`] when
//!
//! - a word of the variable's name says so: `SECRET`, `TOKEN`, `PASSWORD`, `PASSWD`, `PASSPHRASE`, `CREDENTIALS`, `APIKEY`, `COOKIE`, `JWT` and
//!   their like, alone or within a word (`PGPASSWORD`), or `KEY`, `AUTH` or `PASS` at its end; unless the name ends in `FILE`, `PATH`, `DIR` or `SOCK`, which
//!   only say where something is, or in `PUBLIC_KEY`;
//! - it begins as the tokens of well-known issuers do (`ghp_`, `sk-`, `xoxb-`, `AKIA`, `eyJ`, `-----BEGIN` and so on);
//! - it is the password in a URL (`postgres://me:PASSWORD@host`), which alone is replaced.
//!
//! Nothing here is safe from a value that looks like any other. It keeps what is known for a secret off the screen.

use std::borrow::Cow;

/// What stands for a value that is not shown.
pub(crate) const HIDDEN: &str = "***";

/// Within a word of a name.
const WORDS: &[&str] =
    &["APIKEY", "COOKIE", "CREDENTIAL", "JWT", "PASSPHRASE", "PASSWD", "PASSWORD", "PRIVATE", "SECRET", "TOKEN"];

/// The last word of a name.
const LAST_WORDS: &[&str] = &["AUTH", "KEY", "PASS", "SALT"];

/// The last word of a name that says where something is.
const PLACES: &[&str] = &["DIR", "FILE", "PATH", "SOCK", "SOCKET"];

/// How tokens begin.
const PREFIXES: &[&str] = &[
    "-----BEGIN",
    "AKIA",
    "ASIA",
    "AIza",
    "eyJ",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "npm_",
    "pypi-",
    "rk_live_",
    "sk-",
    "sk_live_",
    "sk_test_",
    "xoxa-",
    "xoxb-",
    "xoxp-",
];

/// A value as it may be shown, under the name of its variable. It is borrowed when it is all there.
pub(crate) fn shown<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if !value.is_empty() && (is_secret_name(name) || PREFIXES.iter().any(|prefix| value.starts_with(prefix))) {
        return HIDDEN.into();
    }
    without_passwords(value)
}

/// A text without the passwords of URLs in it.
pub(crate) fn without_passwords(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("://").map(|at| at + 3) {
        let (before, after) = rest.split_at(start);
        let end = after.find(|c: char| "/?#\"'".contains(c) || c.is_whitespace()).unwrap_or(after.len());
        let password = after[..end].rfind('@').and_then(|at| Some((after[..at].find(':')? + 1, at)));
        shown.push_str(before);
        match password.filter(|(from, to)| from < to) {
            Some((from, to)) => {
                shown.push_str(&after[..from]);
                shown.push_str(HIDDEN);
                rest = &after[to..];
            }
            None => rest = after,
        }
    }
    if shown.is_empty() {
        return text.into();
    }
    shown.push_str(rest);
    if shown == text { text.into() } else { shown.into() }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).rev();
    let (last, before) = (words.next().unwrap_or_default(), words.next());
    if PLACES.contains(&last) || (last == "KEY" && before == Some("PUBLIC")) {
        return false;
    }
    LAST_WORDS.contains(&last) || WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_like_a_secret_is_hidden() {
        for name in [
            "API_KEY",
            "github_token",
            "PGPASSWORD",
            "DB.PASS",
            "AWS_SECRET_ACCESS_KEY",
            "SESSION_COOKIE",
            "STRIPE_APIKEY",
            "BASIC_AUTH",
        ] {
            assert_eq!(shown(name, "x"), HIDDEN, "{name}");
        }
        for name in [
            "PATH",
            "KEYBOARD",
            "SSH_AUTH_SOCK",
            "PASSWORD_FILE",
            "PUBLIC_KEY",
            "AUTHOR",
            "PASSENGER",
            "MONKEY",
            "LANG",
        ] {
            assert_eq!(shown(name, "x"), "x", "{name}");
        }
        assert_eq!(shown("TOKEN", ""), "", "that there is none may be known");
    }

    #[test]
    fn what_looks_like_a_token_is_hidden_and_of_a_url_the_password() {
        for value in ["ghp_abc", "sk-abc", "eyJhbGciOi", "-----BEGIN RSA PRIVATE KEY-----"] {
            assert_eq!(shown("X", value), HIDDEN, "{value}");
        }
        for (value, expected) in [
            ("postgres://me:pa:ss@host/db?a=b", "postgres://me:***@host/db?a=b"),
            ("a http://u:p@h/ and redis://:q@h:1", "a http://u:***@h/ and redis://:***@h:1"),
            ("http://localhost:3000/a@b:c", "http://localhost:3000/a@b:c"),
            ("http://me@host", "http://me@host"),
            ("http://me:@host", "http://me:@host"),
            ("://", "://"),
        ] {
            assert_eq!(shown("URL", value), expected);
        }
        assert!(matches!(shown("URL", "http://localhost:3000"), Cow::Borrowed(_)));
    }
}
