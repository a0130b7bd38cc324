//! `posthaste prune`

use std::process::ExitCode;

use axum::http::Method;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Admin, Common};
use crate::cli::Format;
use crate::cli::output::say;
use crate::config::Config;
use crate::retention::Pruned;

#[derive(Debug, Args)]
#[command(after_help = "\
A relay does this by itself (`retention.prune_every_ms`). With --before or --tenant it is events alone that go, with their \
deliveries' ends; their identities are remembered for as long as `retention.dedup_days` says. What waits never goes.")]
pub(in crate::cli) struct PruneArgs {
    /// Only count what may go
    #[arg(long)]
    dry_run: bool,
    /// Events whose deliveries were all done before this time (RFC 3339, or how long ago: 90m, 24h, 7d), however long
    /// they are to be kept
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// Events of this tenant alone
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Deserialize)]
struct Part {
    #[serde(flatten)]
    pruned: Pruned,
    next_cursor: Option<String>,
    before: Option<String>,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    #[serde(flatten)]
    pruned: Pruned,
}

pub(in crate::cli) async fn run(args: PruneArgs, config: Config) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(&args.common, &config)?;
    let mut before = args.before;
    let (mut pruned, mut cursor) = (Pruned::default(), None);
    loop {
        let body =
            json!({ "dry_run": args.dry_run, "before": before, "tenant": args.tenant, "cursor": cursor });
        let part: Part = admin.ask(Method::POST, "/v1/prune", Some(body.to_string())).await?.read()?;
        pruned = pruned.plus(part.pruned);
        // The relay's clock decides what a span means, the same in every part.
        before = part.before.or(before);
        cursor = part.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    if admin.format == Format::Json {
        say(serde_json::to_string(&Report { dry_run: args.dry_run, pruned })?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Pruned { events, identities, attempts, request_keys, rejected, replays, leftovers } = pruned;
    for (what, count) in [
        ("events", events),
        ("identities of events", identities),
        ("failed attempts", attempts),
        ("keys of requests", request_keys),
        ("rejected messages", rejected),
        ("replays", replays),
        ("left of pruned events and removed receivers", leftovers),
    ] {
        say(format_args!("{count:>12}  {what}"))?;
    }
    say(if args.dry_run { "would go; nothing is gone" } else { "are gone" })?;
    Ok(ExitCode::SUCCESS)
}
