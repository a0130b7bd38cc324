//! What must not be shown, in errors and in `posthaste config show`.

use std::fmt::Write as _;

use figment::error::{Actual, Kind};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serializer};

/// Whether the setting at `path` may hold a secret.
fn is_secret(path: &str) -> bool {
    ["token", "key", "key_previous", "url", "secret"].iter().any(|word| path.ends_with(word))
}

/// A value in an error message: never a secret.
pub(super) fn shown<'a>(path: &str, text: &'a str) -> &'a str {
    if is_secret(path) { "…" } else { text }
}

/// All of figment's complaints on one line, each with its place. Values of secrets are left out, and so is the line
/// of the file that a syntax error quotes.
pub(super) fn one_line(error: &figment::Error) -> String {
    let mut line = String::new();
    for (index, complaint) in error.clone().into_iter().map(hidden).enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        // Writing to a String can't fail.
        let _ = write!(line, "{separator}{complaint}");
    }
    let quoted = |text: &str| {
        text.trim_start_matches(|mark: char| mark.is_ascii_digit() || mark == ' ').starts_with('|')
    };
    line.lines().filter(|line| !quoted(line)).collect::<Vec<_>>().join(" ")
}

/// The first of figment's complaints about a table that is read by itself: the setting, and what is wrong with it.
pub(super) fn first(error: figment::Error) -> String {
    let Some(complaint) = error.into_iter().map(hidden).next() else { return String::new() };
    match complaint.path.last() {
        Some(setting) if !matches!(complaint.kind, Kind::UnknownField(..)) => {
            format!("{setting}: {}", complaint.kind)
        }
        _ => complaint.kind.to_string(),
    }
}

/// A complaint without the value, where that may be a secret.
fn hidden(mut complaint: figment::Error) -> figment::Error {
    if let Kind::InvalidType(actual, _) | Kind::InvalidValue(actual, _) = &mut complaint.kind
        && complaint.path.last().is_some_and(|setting| is_secret(setting))
    {
        *actual = Actual::Other("another kind of value".into());
    }
    complaint
}

/// A database URL without its password.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let Some(at) = rest[..end].rfind('@') else { return url.to_owned() };
    match rest[..at].split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:[redacted]{}", &rest[at..]),
        None => url.to_owned(),
    }
}

/// Serializes that there is a secret, or none.
pub(super) fn redacted<S: Serializer>(
    secret: &Option<SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) if !secret.expose_secret().is_empty() => serializer.serialize_some("[redacted]"),
        _ => serializer.serialize_none(),
    }
}

/// Serializes how many secrets there are.
pub(super) fn all_redacted<S: Serializer>(
    secrets: &[SecretString],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(secrets.iter().map(|_| "[redacted]"))
}

/// A list of secrets; in the file it may also be written like the variable, comma-separated.
pub(super) fn listed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SecretString>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Listed {
        One(SecretString),
        All(Vec<SecretString>),
    }
    Ok(match Listed::deserialize(deserializer)? {
        Listed::All(secrets) => secrets,
        Listed::One(text) => {
            let parts = text.expose_secret().split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(SecretString::from).collect()
        }
    })
}
