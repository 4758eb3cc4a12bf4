//! Which values are not for everybody to see. Pure.
//!
//! Screens are shared, and what is printed ends in logs and transcripts. So a value is replaced by [`HIDDEN`] when
//!
//! - a word of the variable's name says so: `SECRET`, `TOKEN`, `PASSWORD`, `PASSWD`, `PASSPHRASE`, `CREDENTIALS`, `APIKEY`, `COOKIE`, `JWT` and
//!   their like, alone or within a word (`PGPASSWORD`), or `KEY`, `KEYS`, `AUTH`, `PASS`, or `_PWD` at its end; unless the name ends in `FILE`, `PATH`, `DIR` or `SOCK`, which
//!   only say where something is, or in `PUBLIC_KEY`;
//! - it begins as the tokens of well-known issuers do (`ghp_`, `sk-`, `xoxb-`, `AKIA`, `eyJ`, `-----BEGIN` and so on).
//!
//! Of a longer text (a command, a value) only these parts are replaced: the password in a URL (`postgres://me:PASSWORD@host`), a parameter
//! of a query that is named like a secret (`?token=VALUE`), what a variable or an option is set to that is (`PGPASSWORD=VALUE`,
//! `--api-key=VALUE`, `--api-key VALUE`), what follows `Bearer` or `Basic`, and each word that begins as such a token does.
//!
//! Nothing here is safe from a value that looks like any other. It keeps what is known for a secret off the screen.

use std::borrow::Cow;

/// What stands for a value that is not shown.
pub const HIDDEN: &str = "***";

/// Within a word of a name.
const WORDS: &[&str] =
    &["APIKEY", "COOKIE", "CREDENTIAL", "JWT", "PASSPHRASE", "PASSWD", "PASSWORD", "PRIVATE", "SECRET", "TOKEN"];

/// The last word of a name.
const LAST_WORDS: &[&str] = &["AUTH", "KEY", "KEYS", "PASS", "SALT"];

/// After another word; alone it is a directory.
const PWD: &str = "PWD";

/// What comes before the secret in the value of `Authorization` (RFC 9110, 11.6.2).
const SCHEMES: &[&str] = &["Bearer", "Basic"];

/// The last word of a name that says where something is.
const PLACES: &[&str] = &["DIR", "FILE", "PATH", "SOCK", "SOCKET"];

/// How a key begins that has several lines.
const KEY_BLOCK: &str = "-----BEGIN";

/// How tokens begin.
const PREFIXES: &[&str] = &[
    KEY_BLOCK,
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

/// Anywhere in the name of a header or of a parameter of a query, besides [`WORDS`].
const SENT_WORDS: &[&str] = &["AUTHORIZATION", "KEY"];

/// A value as it may be shown, under the name of its variable. It is borrowed when it is all there.
#[must_use]
pub fn shown<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if !value.is_empty() && (is_secret_name(name) || is_token(value)) {
        return HIDDEN.into();
    }
    line(value)
}

/// The value of a header as it may be shown.
#[must_use]
pub fn sent<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if !value.is_empty() && (is_sent_secret(name) || is_token(value)) {
        return HIDDEN.into();
    }
    line(value)
}

/// A text of several words as it may be shown.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    let open = without_tokens(&without_parameters(&without_passwords(text))).into_owned();
    if open == text { text.into() } else { open.into() }
}

/// The arguments of a command as they may be shown: each as a text, and after an option that is named like a secret not at all.
#[must_use]
pub fn arguments(arguments: &[&str]) -> Vec<String> {
    let announcing = [None].into_iter().chain(arguments.iter().copied().map(Some));
    let shown = |(before, argument): (Option<&str>, &&str)| {
        let is_open = argument.is_empty() || argument.starts_with(['-', '$']);
        if before.is_some_and(announces_secret) && !is_open { HIDDEN.to_owned() } else { line(argument).into_owned() }
    };
    announcing.zip(arguments).map(shown).collect()
}

/// A text without the words in it that begin like a token, and without what is assigned to a name like that of a secret.
fn without_tokens(text: &str) -> Cow<'_, str> {
    let is_edge = |c: char| c.is_whitespace() || "\"'`=:,;()[]{}<>&|?@\\".contains(c);
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (between, word) = rest.split_at(rest.find(|c| !is_edge(c)).unwrap_or(rest.len()));
        let (word, after) = word.split_at(word.find(is_edge).unwrap_or(word.len()));
        // After `https:`.
        let bare = word.strip_prefix("//").unwrap_or(word);
        // `npm_config_cache=/tmp` is no token, and `=` ends many that are.
        let is_name = after.strip_prefix('=').is_some_and(|value| value.starts_with(|c| !is_edge(c)));
        shown.push_str(between);
        rest = after;
        if is_token(bare) && !is_name {
            shown.push_str(&word[..word.len() - bare.len()]);
            shown.push_str(HIDDEN);
            if bare.starts_with(KEY_BLOCK) {
                rest = &after[after.find(['"', '\'']).unwrap_or(after.len())..];
            }
        } else {
            shown.push_str(word);
            if let Some(value) = after.strip_prefix('=').filter(|_| is_secret_name(word)) {
                shown.push('=');
                rest = assigned(value, &mut shown);
            } else if let Some(value) = after.strip_prefix(' ').filter(|_| announces_secret(word)) {
                shown.push(' ');
                // Another option is no value.
                rest = if value.starts_with(['-', ' ']) { value } else { assigned(value, &mut shown) };
            }
        }
    }
    if shown == text { text.into() } else { shown.into() }
}

/// Hides the value that something is set to which is named like a secret (`PGPASSWORD=x psql`, `--api-key='x'`), unless it names
/// another variable. Returns what follows it.
fn assigned<'a>(value: &'a str, shown: &mut String) -> &'a str {
    let quote = value.chars().next().filter(|c| "\"'".contains(*c));
    let inner = &value[quote.map_or(0, char::len_utf8)..];
    let is_end = |c: char| quote.map_or(c.is_whitespace() || "\"'`;|&()".contains(c), |quote| c == quote);
    let (hidden, rest) = inner.split_at(inner.find(is_end).unwrap_or(inner.len()));
    shown.extend(quote);
    let is_open = hidden.is_empty() || hidden.starts_with('$') || hidden.starts_with(HIDDEN);
    shown.push_str(if is_open { hidden } else { HIDDEN });
    rest
}

/// A text without the values of parameters in it that are named like a secret: `?token=VALUE`, `&key=VALUE`.
fn without_parameters(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(['?', '&']).map(|at| at + 1) {
        let (before, after) = rest.split_at(start);
        shown.push_str(before);
        rest = after;
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "_-.%[]".contains(c);
        let name = &after[..after.find(|c| !is_of_name(c)).unwrap_or(after.len())];
        let Some(value) = after[name.len()..].strip_prefix('=').filter(|_| is_sent_secret(name)) else { continue };
        let end = value.find(|c: char| "&#\"'`;".contains(c) || c.is_whitespace()).unwrap_or(value.len());
        shown.push_str(name);
        shown.push('=');
        if end > 0 {
            shown.push_str(HIDDEN);
        }
        rest = &value[end..];
    }
    shown.push_str(rest);
    if shown == text { text.into() } else { shown.into() }
}

/// A text without the passwords of URLs in it.
fn without_passwords(text: &str) -> Cow<'_, str> {
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

fn is_token(word: &str) -> bool {
    PREFIXES.iter().any(|prefix| word.starts_with(prefix))
}

/// Whether the next word is a secret: after `--api-key` and its like, and after the scheme of an `Authorization`.
fn announces_secret(word: &str) -> bool {
    SCHEMES.contains(&word) || (word.starts_with("--") && is_secret_name(word))
}

/// Whether a header or a parameter of a query is named like a secret.
fn is_sent_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    SENT_WORDS.iter().chain(WORDS).any(|word| upper.contains(word)) || is_secret_name(name)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).rev();
    let (last, before) = (words.next().unwrap_or_default(), words.next());
    if PLACES.contains(&last) || (last == "KEY" && before == Some("PUBLIC")) {
        return false;
    }
    // `OLDPWD` is one word.
    (last == PWD && before.is_some()) || LAST_WORDS.contains(&last) || WORDS.iter().any(|word| name.contains(word))
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

    #[test]
    fn of_a_line_each_token_is_hidden_and_each_parameter_named_like_a_secret() {
        for (text, expected) in [
            ("curl -H 'Authorization: Bearer ghp_abc' x", "curl -H 'Authorization: Bearer ***' x"),
            ("curl -H 'Authorization: Bearer x' y", "curl -H 'Authorization: Bearer ***' y"),
            (
                "run --token x --password 'a b' --api-key --key-file /k",
                "run --token *** --password '***' --api-key --key-file /k",
            ),
            ("MYSQL_PWD=x ENCRYPTION_KEYS=y OLDPWD=/z PWD=/z", "MYSQL_PWD=*** ENCRYPTION_KEYS=*** OLDPWD=/z PWD=/z"),
            ("TOKEN=sk-abc run --key=\"AKIA1\" a:eyJh", "TOKEN=*** run --key=\"***\" a:***"),
            ("line\nxoxb-1\n", "line\n***\n"),
            ("git clone https://ghp_abc@h/x", "git clone https://***@h/x"),
            ("a '-----BEGIN KEY-----\nMII=\n-----END KEY-----' b", "a '***' b"),
            ("npm_config_cache=/tmp npm start", "npm_config_cache=/tmp npm start"),
            ("PGPASSWORD=x psql; DB_PASS='a b' y", "PGPASSWORD=*** psql; DB_PASS='***' y"),
            ("run --api-key=x --key-file=/k TOKEN=$TOKEN", "run --api-key=*** --key-file=/k TOKEN=$TOKEN"),
            ("eyJh==", "***=="),
            ("./task-runner risk-free && monkey", "./task-runner risk-free && monkey"),
            ("/health?token=abc&full=1&api_key=d#x", "/health?token=***&full=1&api_key=***#x"),
            ("curl 'http://h/?a=b&password=c' x&", "curl 'http://h/?a=b&password=***' x&"),
            ("/health?token=&key", "/health?token=&key"),
        ] {
            assert_eq!(line(text), expected, "{text}");
            assert_eq!(shown("X", &format!("- {text}")), format!("- {expected}"), "{text}");
        }
        let argv =
            ["run", "--api-key", "a b", "--token", "-v", "--key", "", "--secret", "$SECRET", "--auth=x", "y", "--pass"];
        let open = [
            "run",
            "--api-key",
            HIDDEN,
            "--token",
            "-v",
            "--key",
            "",
            "--secret",
            "$SECRET",
            "--auth=***",
            "y",
            "--pass",
        ];
        assert_eq!(arguments(&argv), open);
        assert!(arguments(&[]).is_empty());
    }

    #[test]
    fn of_a_header_the_name_counts() {
        for name in
            ["Authorization", "proxy-authorization", "Cookie", "X-Api-Key", "x-keyid", "X-Auth", "X-Secret-Path"]
        {
            assert_eq!(sent(name, "x"), HIDDEN, "{name}");
        }
        for name in ["Accept", "Host", "X-Author"] {
            assert_eq!(sent(name, "x"), "x", "{name}");
        }
        assert_eq!(sent("X-Forwarded", "Bearer ghp_abc"), "Bearer ***");
    }
}
