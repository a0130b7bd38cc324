//! `posthaste replay [list|show|cancel|pause|resume]`

use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Common, encoded};
use crate::cli::output::{complain, say};
use crate::cli::{Format, stop_signal};
use crate::config::Config;

/// How often progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Times are RFC 3339 (2026-01-31T12:00:00Z) or how long ago (90m, 24h, 7d). Without --state it is the dead that go out \
again; with --event or --delivery it is what is named, however it ended. A partner gets a delivery again under the \
webhook-id that it had, unless --new-ids is given."
)]
pub(in crate::cli) struct ReplayArgs {
    #[command(subcommand)]
    command: Option<ReplayCommand>,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Subcommand)]
enum ReplayCommand {
    /// List replays, newest first
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Show a replay and how far it is
    Show(One),
    /// End a replay; what it has put back already goes out
    Cancel(One),
    /// Let a replay rest
    Pause(One),
    /// Let a replay go on
    Resume(One),
    /// Follow a replay to its end
    Follow(One),
}

/// One replay.
#[derive(Debug, Args)]
struct One {
    /// Its id: rpl_…
    id: String,
    #[command(flatten)]
    common: Common,
}

/// What is replayed, and how.
#[derive(Debug, Args)]
struct Start {
    /// Events that came then or later
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Events that came before [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Events of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Events of this type, or these: `order.*`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Deliveries to this partner
    #[arg(long)]
    partner: Option<String>,
    /// Deliveries to this endpoint
    #[arg(long)]
    endpoint: Option<String>,
    /// Deliveries that ended so; may be given several times [default: dead]
    #[arg(long = "state", value_enum, value_name = "STATE")]
    states: Vec<State>,
    /// This event alone, with --tenant; may be given several times
    #[arg(long = "event", value_name = "ID", requires = "tenant")]
    events: Vec<String>,
    /// This delivery alone; may be given several times
    #[arg(long = "delivery", value_name = "ID", conflicts_with = "events")]
    deliveries: Vec<String>,
    /// Deliveries a second [default: 100]
    #[arg(long, value_name = "N")]
    pace: Option<u32>,
    /// Partners are to take them for other messages: a webhook-id of its own for each
    #[arg(long)]
    new_ids: bool,
    /// Only count what would go out
    #[arg(long, conflicts_with = "follow")]
    dry_run: bool,
    /// Stay until it is complete; Ctrl-C leaves it running
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

/// How a delivery has ended.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Given up
    Dead,
    /// The receiver has it
    Delivered,
    /// Not wanted any more
    Canceled,
    /// Had nowhere to go: routed anew
    Unrouted,
}

/// A replay, as far as progress is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Progress {
    id: String,
    state: String,
    total: Option<u64>,
    queued: u64,
    waiting: i64,
    delivered: u64,
    pub(super) failed: u64,
    waits_for: Option<String>,
}

impl Start {
    fn body(&self) -> Value {
        let state = |state: &State| match state {
            State::Dead => "dead",
            State::Delivered => "delivered",
            State::Canceled => "canceled",
            State::Unrouted => "unrouted",
        };
        let filter = json!({
            "since": self.since, "until": self.until, "tenant": self.tenant, "type": self.event_type,
            "partner": self.partner, "endpoint": self.endpoint, "deliveries": self.deliveries,
            "states": self.states.iter().map(state).collect::<Vec<_>>(),
            "events": self.events.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>(),
        });
        json!({ "filter": filter, "pace": self.pace, "new_ids": self.new_ids, "dry_run": self.dry_run })
    }
}

pub(in crate::cli) async fn run(args: ReplayArgs, config: Config) -> anyhow::Result<ExitCode> {
    let (one, action) = match args.command {
        None => return start(args.start, &config).await,
        Some(ReplayCommand::List { common }) => {
            let columns = [
                ("ID", 33, "id"),
                ("STATE", 10, "state"),
                ("TOTAL", 9, "total"),
                ("QUEUED", 9, "queued"),
                ("DELIVERED", 9, "delivered"),
                ("FAILED", 7, "failed"),
                ("CREATED", 24, "created_at"),
                ("BY", 0, "started_by"),
            ];
            Admin::new(&common, &config)?.list("/v1/replays", "replays", &columns).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(ReplayCommand::Follow(one)) => {
            let admin = Admin::new(&one.common, &config)?;
            return follow(&admin, &one.id).await;
        }
        Some(ReplayCommand::Show(one)) => (one, None),
        Some(ReplayCommand::Cancel(one)) => (one, Some("cancel")),
        Some(ReplayCommand::Pause(one)) => (one, Some("pause")),
        Some(ReplayCommand::Resume(one)) => (one, Some("resume")),
    };
    let path = format!("/v1/replays/{}", encoded(&one.id));
    let admin = Admin::new(&one.common, &config)?;
    match action {
        None => admin.call(Method::GET, &path, None).await?,
        Some(action) => admin.call(Method::POST, &format!("{path}/{action}"), None).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(start: Start, config: &Config) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(&start.common, config)?;
    let answer = admin.ask(Method::POST, "/v1/replays", Some(start.body().to_string())).await?;
    if start.dry_run {
        if admin.format == Format::Json {
            say(answer.text())?;
        } else {
            show_preview(&answer.read()?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !start.follow {
        admin.print(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let started: Progress = answer.read()?;
    follow(&admin, &started.id).await
}

fn show_preview(preview: &Value) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    say(format_args!("{:<10} {:<24} {:<40} DELIVERIES", "STATE", "PARTNER", "DESTINATION"))?;
    for count in preview["counts"].as_array().into_iter().flatten() {
        let (state, partner) = (text(&count["state"]), text(&count["partner"]));
        let (destination, deliveries) = (text(&count["destination"]), &count["deliveries"]);
        say(format_args!("{state:<10} {partner:<24} {destination:<40} {deliveries}"))?;
    }
    let total = &preview["total"];
    match preview["counted_until"].as_str() {
        None => say(format_args!("{total} would go out again")),
        Some(until) => say(format_args!(
            "at least {total} would go out again: events were counted up to {until}, where it took too long"
        )),
    }
}

/// Shows progress until the end, and how it ended. Ctrl-C leaves the replay running.
async fn follow(admin: &Admin, id: &str) -> anyhow::Result<ExitCode> {
    let Some(ended) = wait(admin, id).await? else { return Ok(ExitCode::SUCCESS) };
    admin.call(Method::GET, &format!("/v1/replays/{}", encoded(id)), None).await?;
    Ok(if ended.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows progress until the end; how it ended. `None` where somebody did not want to wait any more.
pub(super) async fn wait(admin: &Admin, id: &str) -> anyhow::Result<Option<Progress>> {
    let bar = ProgressBar::new_spinner();
    let followed = async {
        loop {
            let path = format!("/v1/replays/{}", encoded(id));
            let answer = admin.ask(Method::GET, &path, None).await?;
            let progress: Progress = answer.read()?;
            show_progress(&bar, &progress);
            if matches!(progress.state.as_str(), "completed" | "canceled") {
                return anyhow::Ok(progress);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let ended = tokio::select! {
        ended = followed => Some(ended),
        asked = stop_signal() => {
            asked?;
            None
        }
    };
    bar.finish_and_clear();
    let Some(ended) = ended else {
        complain(format_args!("{id} goes on without us; `posthaste replay cancel {id}` ends it"));
        return Ok(None);
    };
    ended.map(Some)
}

fn show_progress(bar: &ProgressBar, progress: &Progress) {
    if let Some(total) = progress.total
        && bar.length() != Some(total)
    {
        bar.set_length(total);
        let style = "{bar:30} {pos} of {len}, {per_sec}, {eta} left  {msg}";
        // Ours, and right; the plain one would do as well.
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    }
    bar.set_position(progress.queued);
    let Progress { state, waiting, delivered, failed, waits_for, .. } = progress;
    let waits_for = waits_for.as_ref().map_or_else(String::new, |what| format!("; waits for {what}"));
    bar.set_message(format!("{state}: {delivered} delivered, {failed} failed, {waiting} waiting{waits_for}"));
}
