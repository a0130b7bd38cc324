//! `posthaste audit svix`

use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Common, encoded, replay};
use crate::cli::output::{complain, say};
use crate::cli::{Format, stop_signal};
use crate::config::Config;
use crate::replays::LISTED_MAX;

/// Exit code where something is missing and nothing was done about it.
const INCOMPLETE: u8 = 3;
/// How often in a row a part is asked for again, and the first pause before that, which doubles.
const FAILURES_MAX: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

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
    /// Go on where an audit was interrupted, as it said then; give the same times
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
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
    #[serde(default)]
    requests: u64,
    since: String,
}

#[derive(Default, Serialize)]
struct Report {
    checked: u64,
    missing: Vec<Value>,
    unconfirmed: Vec<Value>,
    /// Replays that send what is missing.
    replays: Vec<String>,
    /// Requests that it cost at Svix.
    requests: u64,
}

pub(in crate::cli) async fn run(command: AuditCommand, config: Config) -> anyhow::Result<ExitCode> {
    let AuditCommand::Svix(args) = command;
    let admin = Admin::new(&args.common, &config)?;
    let mut audit = Running::begin(&args);
    let bar = ProgressBar::new_spinner();
    let ended = tokio::select! {
        ended = audit.compare(&admin, &bar) => ended,
        stop = stop_signal() => stop.and(Err(anyhow::anyhow!("interrupted"))),
    };
    bar.finish_and_clear();
    if let Err(error) = ended {
        show(&admin, &audit.report)?;
        return Err(error.context(audit.how_to_go_on()));
    }
    let mut report = audit.report;
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

/// An audit under way.
struct Running {
    since: String,
    until: Option<String>,
    tenant: Option<String>,
    cursor: Option<String>,
    report: Report,
}

impl Running {
    fn begin(args: &SvixArgs) -> Self {
        Self {
            since: args.since.clone(),
            until: args.until.clone(),
            tenant: args.tenant.clone(),
            cursor: args.cursor.clone(),
            report: Report::default(),
        }
    }

    /// Compares part after part. A relay or a Svix that can't be reached is asked again, with longer and longer pauses.
    async fn compare(&mut self, admin: &Admin, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut failures = 0;
        loop {
            match self.part(admin).await {
                Ok(part) => {
                    failures = 0;
                    // The relay's clock decides what a span means, the same in every part.
                    self.since = part.since;
                    self.cursor = part.next_cursor;
                    self.report.checked += part.checked;
                    self.report.missing.extend(part.missing);
                    self.report.unconfirmed.extend(part.unconfirmed);
                    self.report.requests += part.requests;
                    if self.cursor.is_none() {
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_secs(part.retry_after_s.unwrap_or_default())).await;
                }
                Err(error) if failures == FAILURES_MAX || !may_pass(&error) => return Err(error),
                Err(error) => {
                    bar.println(format!("posthaste: {error:#}; trying again"));
                    tokio::time::sleep(FIRST_PAUSE * (1 << failures)).await;
                    failures += 1;
                }
            }
            let Report { checked, missing, requests, .. } = &self.report;
            let missing = missing.len();
            let (checked, requests) = (HumanCount(*checked), HumanCount(*requests));
            bar.set_message(format!("{checked} compared, {missing} missing, {requests} requests to Svix"));
            bar.tick();
        }
    }

    async fn part(&self, admin: &Admin) -> anyhow::Result<Part> {
        let mut path = format!("/v1/audits/svix?since={}", encoded(&self.since));
        for (name, value) in [("until", &self.until), ("tenant", &self.tenant), ("cursor", &self.cursor)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        let answer = admin.client.get(&path).await?;
        if answer.status.is_server_error() {
            return Err(Unavailable(answer.complaint()).into());
        }
        answer.read()
    }

    fn how_to_go_on(&self) -> String {
        let Self { since, until, cursor, .. } = self;
        let until = until.as_ref().map_or_else(String::new, |until| format!(" --until {until}"));
        let cursor = cursor.as_ref().map_or_else(String::new, |cursor| format!(" --cursor {cursor}"));
        format!("the audit is not complete; go on with --since {since}{until}{cursor}")
    }
}

/// The relay, or Svix behind it, can't answer now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unavailable(String);

/// Whether it may go better soon: no connection, or a 5xx.
fn may_pass(error: &anyhow::Error) -> bool {
    error.is::<Unavailable>() || error.chain().any(|cause| cause.is::<hyper_util::client::legacy::Error>())
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
    let Report { checked, missing, unconfirmed, replays, requests } = report;
    say(format_args!(
        "{checked} deliveries compared with {requests} requests: {} missing at Svix, {} stored there and perhaps never sent on",
        missing.len(),
        unconfirmed.len()
    ))?;
    for id in replays {
        say(format_args!("{id} sends what is missing"))?;
    }
    Ok(())
}
