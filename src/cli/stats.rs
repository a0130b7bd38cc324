//! `posthaste stats`

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::admin::encoded;
use super::client::Client;
use super::output::say;
use super::{Format, Server};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// How far back: a number and m, h or d, up to 48h
    #[arg(long, value_name = "TIME", default_value = "1h")]
    window: String,
    /// One partner alone, with each of its endpoints
    #[arg(long, value_name = "PARTNER")]
    partner: Option<String>,
    /// How to print the answer
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    server: Server,
}

const TITLES: [&str; 11] = [
    "PARTNER",
    "ENDPOINT",
    "STATE",
    "DELIVERED",
    "FAILED",
    "ERRORS",
    "P50",
    "P90",
    "P99",
    "WAITING",
    "OLDEST",
];
/// Columns of words; numbers stand to the right.
const WORDS: usize = 3;

pub(super) async fn run(args: StatsArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server, &config)?;
    let mut path = format!("/v1/stats?window={}", encoded(&args.window));
    if let Some(partner) = &args.partner {
        path.push_str(&format!("&partner={}", encoded(partner)));
    }
    let answer = client.get(&path).await?;
    let report: Value = answer.read()?;
    if args.format == Format::Json {
        say(answer.text())?;
        return Ok(ExitCode::SUCCESS);
    }
    let whole = &report["whole"];
    if whole.is_object() {
        say(head(whole, &args.window))?;
        say("")?;
    }
    let mut rows = vec![TITLES.map(str::to_owned)];
    if report["svix"].is_object() {
        rows.push(row("svix", "", &report["svix"]));
    }
    for partner in report["partners"].as_array().into_iter().flatten() {
        let name = text(&partner["partner"]);
        rows.push(row(&name, "", partner));
        let endpoints = partner["endpoints"].as_array().into_iter().flatten();
        rows.extend(endpoints.map(|endpoint| row("", &text(&endpoint["endpoint"]), endpoint)));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; TITLES.len()] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if column < WORDS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        say(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to say of everything together.
fn head(whole: &Value, window: &str) -> String {
    let count = |name: &str| text(&whole[name]);
    format!(
        "last {window}: {} accepted ({}/s), {} delivered ({}/s), {} failed ({}), {} dead\n\
         p50 {}, p90 {}, p99 {}; {} in flight, {} waiting, the oldest for {}",
        count("accepted"),
        count("accepted_per_s"),
        count("delivered"),
        count("delivered_per_s"),
        count("failed"),
        percent(&whole["error_rate"]),
        count("dead"),
        millis(&whole["p50_ms"]),
        millis(&whole["p90_ms"]),
        millis(&whole["p99_ms"]),
        count("in_flight"),
        count("backlog"),
        age(&whole["oldest_age_s"]),
    )
}

fn row(partner: &str, endpoint: &str, figures: &Value) -> [String; TITLES.len()] {
    [
        partner.to_owned(),
        endpoint.to_owned(),
        state(figures),
        text(&figures["delivered"]),
        text(&figures["failed"]),
        percent(&figures["error_rate"]),
        millis(&figures["p50_ms"]),
        millis(&figures["p90_ms"]),
        millis(&figures["p99_ms"]),
        text(&figures["backlog"]),
        age(&figures["oldest_age_s"]),
    ]
}

/// What keeps a receiver from getting anything, or that nothing does.
fn state(figures: &Value) -> String {
    if figures["paused"] == true {
        return "paused".into();
    }
    let gate = &figures["gate"];
    match (figures["state"].as_str(), figures["disabled_reason"].as_str(), gate["state"].as_str()) {
        (None, ..) => String::new(),
        (Some(state), Some(reason), _) => format!("{state}: {reason}"),
        (Some("active"), None, Some(gated @ ("closed" | "probing"))) => {
            format!("{gated}: {}", text(&gate["reason"]))
        }
        (Some(state), ..) => state.to_owned(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn percent(share: &Value) -> String {
    share.as_f64().map_or_else(|| "-".into(), |share| format!("{:.2} %", share * 100.0))
}

fn millis(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(millis) if millis < 10.0 => format!("{millis:.1} ms"),
        Some(millis) if millis < 10_000.0 => format!("{millis:.0} ms"),
        Some(millis) => format!("{:.0} s", millis / 1_000.0),
    }
}

/// A time in its largest unit.
fn age(seconds: &Value) -> String {
    match seconds.as_f64() {
        None => "-".into(),
        Some(seconds) if seconds < 120.0 => format!("{seconds:.0} s"),
        Some(seconds) if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        Some(seconds) => format!("{:.0} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!((millis(&json!(1.26)), millis(&json!(31_000.0))), ("1.3 ms".into(), "31 s".into()));
        assert_eq!((percent(&json!(0.0123)), percent(&Value::Null)), ("1.23 %".into(), "-".into()));
        let ages = [59.0, 600.0, 7_200.0, 200_000.0].map(|seconds| age(&json!(seconds)));
        assert_eq!(ages, ["59 s", "10 min", "2 h", "2 d"]);
        let closed = json!({"state": "active", "gate": {"state": "closed", "reason": "throttled"}});
        assert_eq!(state(&closed), "closed: throttled");
        assert_eq!(state(&json!({"state": "disabled", "disabled_reason": "gone"})), "disabled: gone");
        assert_eq!((state(&json!({"paused": true})), state(&json!({}))), ("paused".into(), String::new()));
    }
}
