//! Tenants, partners, endpoints, event types, transforms and what was rejected: always through a running relay's API.

pub(super) mod audit;
pub(super) mod endpoint;
pub(super) mod event_type;
pub(super) mod partner;
pub(super) mod prune;
pub(super) mod rejected;
pub(super) mod replay;
pub(super) mod tenant;
pub(super) mod transform;

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::client::{Answer, Client};
use super::output::say;
use super::{Format, Server};
use crate::config::Config;

/// What each of these commands takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// How to print the answer
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    server: Server,
}

/// A server, and how its answers are printed.
struct Admin {
    client: Client,
    format: Format,
}

/// A column of a table: its title, its width, and where its text stands in an entry.
type Column = (&'static str, usize, &'static str);

impl Admin {
    fn new(common: &Common, config: &Config) -> anyhow::Result<Self> {
        Ok(Self { client: Client::new(&common.server, config)?, format: common.format })
    }

    /// Calls the server and prints the object it answers; nothing where the answer is empty.
    async fn call(&self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<()> {
        self.print(&self.ask(method, path, body).await?)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
        let body = body.map(Bytes::from).unwrap_or_default();
        let answer = self.client.request(method, path, &[], body).await?;
        anyhow::ensure!(answer.status.is_success(), "{}", answer.complaint());
        Ok(answer)
    }

    fn print(&self, answer: &Answer) -> anyhow::Result<()> {
        if answer.body.is_empty() {
            return Ok(());
        }
        if self.format == Format::Json {
            // As it came: numbers keep their digits.
            return say(answer.text());
        }
        let members: Map<String, Value> = answer.read()?;
        let width = members.keys().map(String::len).max().unwrap_or_default();
        for (name, value) in &members {
            say(format_args!("{name:<width$}  {}", shown(value)))?;
        }
        Ok(())
    }

    /// Prints every entry of a list, page after page.
    async fn list(&self, path: &str, name: &str, columns: &[Column]) -> anyhow::Result<()> {
        let mut entries: Vec<Box<RawValue>> = Vec::new();
        // The path may have a query already.
        let first = if path.contains('?') { '&' } else { '?' };
        let mut query = format!("{first}limit=200");
        loop {
            let answer = self.ask(Method::GET, &format!("{path}{query}"), None).await?;
            let mut page: std::collections::BTreeMap<String, Box<RawValue>> = answer.read()?;
            let part = page.remove(name).context("the server's answer can't be read")?;
            entries.extend(serde_json::from_str::<Vec<Box<RawValue>>>(part.get())?);
            let cursor = page.remove("next_cursor");
            let cursor = cursor.map(|raw| serde_json::from_str::<Option<String>>(raw.get())).transpose()?;
            match cursor.flatten() {
                Some(cursor) => query = format!("{first}limit=200&cursor={}", encoded(&cursor)),
                None => break,
            }
        }
        if self.format == Format::Json {
            return say(serde_json::to_string(&entries)?);
        }
        let line = |texts: Vec<String>| {
            let cells = texts.iter().zip(columns).map(|(text, (_, width, _))| format!("{text:<width$}"));
            cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
        };
        say(line(columns.iter().map(|(title, ..)| (*title).to_owned()).collect()))?;
        for entry in entries {
            let entry: Value = serde_json::from_str(entry.get())?;
            say(line(columns.iter().map(|(_, _, key)| shown(&entry[*key])).collect()))?;
        }
        Ok(())
    }
}

/// A value in a table: texts and lists of texts as they are, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if !items.is_empty() && items.iter().all(|item| !item.is_object()) => {
            items.iter().map(shown).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// A segment of a path or a value of a query (RFC 3986 §2.1).
pub(super) fn encoded(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let encode = |byte: u8| {
        if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}

/// A file's text, or standard input's for `-`.
fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input can't be read")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    }
    Ok(text)
}

/// A file's JSON as its text, digits, order and all.
fn read_json(path: &Path) -> anyhow::Result<Box<RawValue>> {
    let text = read(path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// The members of an object that is sent, in order.
#[derive(Default)]
struct Members(Vec<(&'static str, String)>);

impl Members {
    /// Adds a member where there is a value.
    fn add(&mut self, name: &'static str, value: Option<impl serde::Serialize>) -> anyhow::Result<()> {
        if let Some(value) = value {
            self.0.push((name, serde_json::to_string(&value)?));
        }
        Ok(())
    }

    fn into_json(self) -> String {
        let members: Vec<_> = self.0.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_and_tables_are_written_plainly() {
        assert_eq!(encoded("a b/ü?"), "a%20b%2F%C3%BC%3F");
        assert_eq!(shown(&json!(["order.*", 5])), "order.*,5");
        assert_eq!(shown(&json!({"a": [null]})), r#"{"a":[null]}"#);
        let mut members = Members::default();
        members.add("a", Some(1)).unwrap();
        members.add("b", None::<u8>).unwrap();
        members.add("c", Some("\"")).unwrap();
        assert_eq!(members.into_json(), r#"{"a":1,"c":"\""}"#);
    }
}
