//! `posthaste audit svix`

use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Common, encoded, replay};
use crate::cli::Format;
use crate::cli::output::{complain, say};
use crate::config::Config;
use crate::replays::LISTED_MAX;

/// Exit code where something is missing and nothing was done about it.
const INCOMPLETE: u8 = 3;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AuditCommand {
    /// Compare what was delivered to Svix with what Svix has; exit code 3 where something is missing
    Svix(SvixArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SvixArgs {
    /// Events that came then or later (RFC 3339, or how long ago: 90m, 24h, 7d)
    #[arg(long, value_name = "TIME")]
    since: String,
    /// Events that came before [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Events of this tenant alone
    #[arg(long)]
    tenant: Option<String>,
    /// Send what is missing again, as a replay, and follow that
    #[arg(long)]
    fix: bool,
    /// Deliveries a second of that replay [default: 100]
    #[arg(long, value_name = "N", requires = "fix")]
    pace: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Deserialize)]
struct Part {
    checked: u64,
    missing: Vec<Value>,
    unconfirmed: Vec<Value>,
    next_cursor: Option<String>,
    retry_after_s: Option<u64>,
    since: String,
}

#[derive(Default, Serialize)]
struct Report {
    checked: u64,
    missing: Vec<Value>,
    unconfirmed: Vec<Value>,
    /// Replays that send what is missing.
    replays: Vec<String>,
}

pub(in crate::cli) async fn run(command: AuditCommand, config: Config) -> anyhow::Result<ExitCode> {
    let AuditCommand::Svix(args) = command;
    let admin = Admin::new(&args.common, &config)?;
    let mut report = compare(&admin, &args).await?;
    if args.fix {
        for deliveries in report.missing.chunks(LISTED_MAX) {
            let ids: Vec<_> = deliveries.iter().map(|delivery| &delivery["delivery"]).collect();
            let body = json!({ "filter": { "deliveries": ids, "states": ["delivered"] }, "pace": args.pace });
            let started: Value =
                admin.ask(Method::POST, "/v1/replays", Some(body.to_string())).await?.read()?;
            report.replays.push(started["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    show(&admin, &report)?;
    for id in &report.replays {
        match replay::wait(&admin, id).await? {
            None => return Ok(ExitCode::SUCCESS),
            Some(replay) if replay.failed > 0 => {
                complain(format_args!(
                    "{} of {id} did not go through at once; they are tried again",
                    replay.failed
                ));
                return Ok(ExitCode::FAILURE);
            }
            Some(_) => {}
        }
    }
    let left = !report.missing.is_empty() && !args.fix;
    Ok(if left { ExitCode::from(INCOMPLETE) } else { ExitCode::SUCCESS })
}

async fn compare(admin: &Admin, args: &SvixArgs) -> anyhow::Result<Report> {
    let rest = [("until", &args.until), ("tenant", &args.tenant)];
    let rest = rest.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let rest: String = rest.map(|(name, value)| format!("&{name}={}", encoded(value.as_str()))).collect();
    let mut since = args.since.clone();
    let bar = ProgressBar::new_spinner();
    let (mut report, mut cursor) = (Report::default(), None::<String>);
    loop {
        let next = cursor.map_or_else(String::new, |cursor| format!("&cursor={}", encoded(&cursor)));
        let path = format!("/v1/audits/svix?since={}{rest}{next}", encoded(&since));
        let part: Part = admin.ask(Method::GET, &path, None).await?.read()?;
        // The relay's clock decides what a span means, the same in every part.
        since = part.since;
        report.checked += part.checked;
        report.missing.extend(part.missing);
        report.unconfirmed.extend(part.unconfirmed);
        let missing = report.missing.len();
        bar.set_message(format!("{} compared, {missing} missing", HumanCount(report.checked)));
        bar.tick();
        match part.next_cursor {
            None => break,
            Some(next) => cursor = Some(next),
        }
        if let Some(seconds) = part.retry_after_s {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

fn show(admin: &Admin, report: &Report) -> anyhow::Result<()> {
    if admin.format == Format::Json {
        return say(serde_json::to_string(report)?);
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let found = [("missing", &report.missing), ("unconfirmed", &report.unconfirmed)];
    if found.iter().any(|(_, deliveries)| !deliveries.is_empty()) {
        say(format_args!("{:<12} {:<24} {:<36} {:<26} DELIVERY", "", "TENANT", "EVENT", "DELIVERED"))?;
    }
    for (what, deliveries) in found {
        for delivery in deliveries {
            let (tenant, id) = (text(&delivery["tenant"]), text(&delivery["id"]));
            let (at, name) = (text(&delivery["delivered_at"]), text(&delivery["delivery"]));
            say(format_args!("{what:<12} {tenant:<24} {id:<36} {at:<26} {name}"))?;
        }
    }
    let Report { checked, missing, unconfirmed, replays } = report;
    say(format_args!(
        "{checked} deliveries compared: {} missing at Svix, {} stored there and perhaps never sent on",
        missing.len(),
        unconfirmed.len()
    ))?;
    for id in replays {
        say(format_args!("{id} sends what is missing"))?;
    }
    Ok(())
}
