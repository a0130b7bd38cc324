//! `posthaste rejected list|show|replay|delete`

use std::process::ExitCode;

use axum::http::Method;
use clap::{Args, Subcommand};

use super::{Admin, Common, encoded};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum RejectedCommand {
    /// List what was rejected, newest first
    List {
        /// Only what came this way: `pubsub_push`, or a source's kind and name, e.g. `nats:orders`
        #[arg(long)]
        origin: Option<String>,
        /// Only what came then or later, in milliseconds since the Unix epoch
        #[arg(long, value_name = "MS")]
        since: Option<i64>,
        #[command(flatten)]
        common: Common,
    },
    /// Show a rejected message with its bytes
    Show(One),
    /// Take a rejected message in again, after a fix; exit code 1 where it still can't be accepted
    Replay(One),
    /// Drop a rejected message for good
    Delete(One),
}

/// One rejected message.
#[derive(Debug, Args)]
pub(in crate::cli) struct One {
    /// Its number
    id: i64,
    #[command(flatten)]
    common: Common,
}

pub(in crate::cli) async fn run(command: RejectedCommand, config: Config) -> anyhow::Result<ExitCode> {
    let (one, method, action) = match command {
        RejectedCommand::List { origin, since, common } => {
            let columns = [
                ("ID", 8, "id"),
                ("RECEIVED", 14, "received_at"),
                ("ORIGIN", 24, "origin"),
                ("BYTES", 8, "body_bytes"),
                ("REASON", 0, "reason"),
            ];
            let mut query = Vec::new();
            query.extend(origin.map(|origin| format!("origin={}", encoded(&origin))));
            query.extend(since.map(|since| format!("since={since}")));
            let path = format!("/v1/rejected?{}", query.join("&"));
            Admin::new(&common, &config)?.list(path.trim_end_matches('?'), "rejected", &columns).await?;
            return Ok(ExitCode::SUCCESS);
        }
        RejectedCommand::Show(one) => (one, Method::GET, ""),
        RejectedCommand::Replay(one) => (one, Method::POST, "/replay"),
        RejectedCommand::Delete(one) => (one, Method::DELETE, ""),
    };
    let path = format!("/v1/rejected/{}{action}", one.id);
    Admin::new(&one.common, &config)?.call(method, &path, None).await?;
    Ok(ExitCode::SUCCESS)
}
