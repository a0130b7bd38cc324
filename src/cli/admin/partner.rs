//! `posthaste partner put|get|list|delete`

use std::path::PathBuf;
use std::process::ExitCode;

use axum::http::Method;
use clap::Subcommand;
use serde_json::json;

use super::{Admin, Common, Members, encoded, read};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PartnerCommand {
    /// Make a partner, or set what it is, whole: what is not given gets its default
    Put {
        /// Its id
        partner: String,
        /// What people call it
        #[arg(long, required_unless_present = "file")]
        name: Option<String>,
        /// Most requests a second, over time
        #[arg(long)]
        per_second: Option<f64>,
        /// Most requests at once after a pause
        #[arg(long, requires = "per_second")]
        burst: Option<u32>,
        /// Most requests in flight
        #[arg(long)]
        max_in_flight: Option<u32>,
        /// Send nothing for now
        #[arg(long)]
        paused: bool,
        /// Send an endpoint no event before it has answered a challenge
        #[arg(long)]
        verify_endpoints: bool,
        /// The settings as a JSON file instead, or `-`
        #[arg(long, conflicts_with_all = ["name", "per_second", "burst", "max_in_flight", "paused",
            "verify_endpoints"])]
        file: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Show a partner
    Get {
        /// Its id
        partner: String,
        #[command(flatten)]
        common: Common,
    },
    /// List all partners
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Delete a partner that has no endpoints
    Delete {
        /// Its id
        partner: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(in crate::cli) async fn run(command: PartnerCommand, config: Config) -> anyhow::Result<ExitCode> {
    let path = |partner: &str| format!("/v1/partners/{}", encoded(partner));
    match command {
        PartnerCommand::Put {
            partner,
            name,
            per_second,
            burst,
            max_in_flight,
            paused,
            verify_endpoints,
            file,
            common,
        } => {
            let body = match file {
                Some(file) => read(&file)?,
                None => {
                    let rate = per_second.map(|per_second| json!({"per_second": per_second, "burst": burst}));
                    let mut members = Members::default();
                    members.add("name", name)?;
                    members.add("rate_limit", rate)?;
                    members.add("max_in_flight", max_in_flight)?;
                    members.add("paused", paused.then_some(true))?;
                    members.add("verify_endpoints", verify_endpoints.then_some(true))?;
                    members.into_json()
                }
            };
            Admin::new(&common, &config)?.call(Method::PUT, &path(&partner), Some(body)).await?;
        }
        PartnerCommand::Get { partner, common } => {
            Admin::new(&common, &config)?.call(Method::GET, &path(&partner), None).await?;
        }
        PartnerCommand::List { common } => {
            let columns = [
                ("ID", 24, "id"),
                ("IN FLIGHT", 9, "max_in_flight"),
                ("PAUSED", 6, "paused"),
                ("RATE", 32, "rate_limit"),
                ("NAME", 0, "name"),
            ];
            Admin::new(&common, &config)?.list("/v1/partners", "partners", &columns).await?;
        }
        PartnerCommand::Delete { partner, common } => {
            Admin::new(&common, &config)?.call(Method::DELETE, &path(&partner), None).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
