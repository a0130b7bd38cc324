//! `posthaste health`

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::output::say;
use super::{Format, Server};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// How to print the answer
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    server: Server,
}

pub(super) async fn run(args: HealthArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server, &config)?;
    let answer = client.get("/health/ready").await?;
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(health) if args.format == Format::Table && health["status"].is_string() => {
            lines(&health).into_iter().try_for_each(say)?;
        }
        // As it came; a proxy's own words, too.
        _ => say(answer.text())?,
    }
    Ok(if answer.status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How it stands, what waits, and what is not as it should be.
fn lines(health: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = vec![format!(
        "{} (role {}), {} deliveries waiting",
        text(&health["status"]).replace('_', " "),
        text(&health["role"]),
        health["waiting"]
    )];
    let each = |name: &str| health[name].as_array().into_iter().flatten();
    lines.extend(each("reasons").map(text));
    lines.extend(each("gates").map(|gate| {
        let mut line = format!("gate {}: {}", text(&gate["gate"]), text(&gate["state"]));
        if let Some(reason) = gate["reason"].as_str() {
            line.push_str(&format!(", {reason}"));
        }
        if let Some(wait) = gate["opens_in_ms"].as_u64() {
            line.push_str(&format!(", next try in {} s", wait.div_ceil(1_000)));
        }
        line + &format!(", {} of {} in flight", gate["in_flight"], gate["max_in_flight"])
    }));
    lines.extend(each("sources").map(|source| {
        let mut line = format!(
            "source {} ({}): {}",
            text(&source["source"]),
            text(&source["kind"]),
            text(&source["state"])
        );
        if let Some(reason) = source["reason"].as_str() {
            line.push_str(&format!(", {reason}"));
        }
        if let Some(lag) = source["lag"].as_u64() {
            line.push_str(&format!(", {lag} messages wait at its broker"));
        }
        line
    }));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_has_a_line_each() {
        let health = json!({
            "status": "not_ready", "role": "all", "waiting": 12, "reasons": ["draining: it ends"],
            "gates": [{"gate": "svix", "state": "closed", "reason": "throttled", "opens_in_ms": 1_200,
                "in_flight": 1, "max_in_flight": 4}],
            "sources": [{"source": "orders", "kind": "nats", "state": "down", "reason": "no route", "lag": 3}],
        });
        assert_eq!(
            lines(&health),
            [
                "not ready (role all), 12 deliveries waiting",
                "draining: it ends",
                "gate svix: closed, throttled, next try in 2 s, 1 of 4 in flight",
                "source orders (nats): down, no route, 3 messages wait at its broker",
            ]
        );
    }
}
