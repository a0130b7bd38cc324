//! `posthaste explain TENANT EVENT`: the story as a timeline, and whether it reached them in the end.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{Common, encoded, plain};
use crate::cli::Format;
use crate::cli::client::Client;
use crate::cli::output::say;
use crate::config::Config;

/// Most of a receiver's answer that is shown, in characters.
const ANSWER_SHOWN: usize = 300;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainArgs {
    /// Whose event it is
    tenant: String,
    /// Its id
    event: String,
    /// Its source, where the same id came from several
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    common: Common,
}

pub(in crate::cli) async fn run(args: ExplainArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.common.server, &config)?;
    let source = args.source.map_or(String::new(), |source| format!("?source={}", encoded(&source)));
    let path = format!("/v1/events/{}/{}{source}", encoded(&args.tenant), encoded(&args.event));
    let answer = client.get(&path).await?;
    let story: Value = answer.read()?;
    match args.common.format {
        Format::Json => say(answer.text())?,
        Format::Table => {
            for line in lines(&story) {
                say(line)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A member as text; `-` where it is absent.
fn text(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

fn lines(story: &Value) -> Vec<String> {
    let get = |name: &str| text(story, name);
    let mut lines = vec![format!("event {} of tenant {}: {}", get("id"), get("tenant"), get("state"))];
    let source = if story["source"] == "" { String::new() } else { format!(", source {}", get("source")) };
    lines.push(format!(
        "  {}  recorded: type {}{source}, {} bytes",
        get("received_at"),
        get("type"),
        get("size_bytes")
    ));
    lines.extend(repeats(story));
    for delivery in story["deliveries"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.extend(timeline(delivery));
    }
    let others: Vec<_> =
        story["other_sources"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !others.is_empty() {
        lines.push(String::new());
        let others: Vec<_> = others.iter().map(|source| format!("`{}`", plain(source))).collect();
        lines.push(format!(
            "The same id came from other sources too ({}): name one with --source.",
            others.join(", ")
        ));
    }
    lines.push(String::new());
    lines.push(get("conclusion"));
    lines
}

/// How often it came again.
fn repeats(story: &Value) -> Vec<String> {
    let repeats = &story["repeats"];
    let times = |name: &str| match repeats[name].as_i64().unwrap_or_default() {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let mut lines = Vec::new();
    if repeats["duplicates"].as_i64().unwrap_or_default() > 0 {
        let at = text(repeats, "last_duplicate_at");
        lines.push(format!(
            "  {at}  duplicate: it came again {}, the last time then; passed over",
            times("duplicates")
        ));
    }
    if repeats["conflicts"].as_i64().unwrap_or_default() > 0 {
        let at = text(repeats, "last_conflict_at");
        let differs = match repeats["conflict_differs_in"].as_str() {
            Some("type") => format!("its type differed ({})", text(repeats, "conflict_type")),
            _ => "its data differed".to_owned(),
        };
        let count = times("conflicts");
        lines.push(format!("  {at}  conflict: another event came under this id {count}, the last time then; refused, {differs}"));
    }
    lines
}

/// One delivery: what happened to it, in the order of time.
fn timeline(delivery: &Value) -> Vec<String> {
    let destination = &delivery["destination"];
    let to = match destination["kind"].as_str() {
        Some("svix") => format!("Svix application {}", text(destination, "svix_app")),
        _ => format!(
            "{} ({}, {})",
            text(destination, "partner"),
            text(destination, "endpoint"),
            text(destination, "host")
        ),
    };
    let mut lines = vec![format!("to {to}: {}  {}", text(delivery, "state"), text(delivery, "id"))];
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for attempt in delivery["attempts"].as_array().into_iter().flatten() {
        steps.push((text(attempt, "at"), attempt_lines(attempt)));
    }
    for step in delivery["steering"].as_array().into_iter().flatten() {
        let was = step["was"].as_str().map_or(String::new(), |was| format!(" (it was {})", plain(was)));
        let by = step["by"].as_str().map_or("an operator".to_owned(), plain);
        steps.push((text(step, "at"), vec![format!("{} by {by}{was}", text(step, "action"))]));
    }
    // RFC 3339 in UTC sorts as text.
    steps.sort_by(|one, other| one.0.cmp(&other.0));
    for (at, words) in steps {
        let mut words = words.into_iter();
        lines.push(format!("  {at}  {}", words.next().unwrap_or_default()));
        lines.extend(words.map(|more| format!("  {:24}  {more}", "")));
    }
    if delivery["reason"].is_string() {
        let (at, state, reason) =
            (text(delivery, "done_at"), text(delivery, "state"), text(delivery, "reason"));
        lines.push(format!("  {at}  {state}: {reason}"));
    }
    if delivery["dispatch_unconfirmed"] == true {
        lines.push(format!("  {:24}  stored at Svix; whether it was sent on from there is not known", ""));
    }
    let waits = &delivery["waits_for"];
    if waits.is_object() {
        let until = waits["until"].as_str().map_or(String::new(), |until| format!(" until {}", plain(until)));
        lines.push(format!("  {:24}  waits: {}{until}", "now", text(waits, "reason")));
        lines.push(format!("  {:24}  {}", "", text(waits, "detail")));
    }
    lines
}

fn attempt_lines(attempt: &Value) -> Vec<String> {
    let status = attempt["status"].as_i64().map_or(String::new(), |status| format!(" (status {status})"));
    let again = attempt["retry_at"].as_str().map_or(String::new(), |at| format!(", again at {}", plain(at)));
    let (n, code, latency) = (text(attempt, "n"), text(attempt, "code"), text(attempt, "latency_ms"));
    let mut lines = vec![format!("attempt {n}: {code}{status}, {latency} ms{again}")];
    let detail = text(attempt, "detail");
    if !detail.trim().is_empty() {
        let more = if detail.chars().nth(ANSWER_SHOWN).is_some() { " …" } else { "" };
        lines.push(detail.chars().take(ANSWER_SHOWN).chain(more.chars()).collect());
    }
    lines
}
