//! `posthaste tenant put|get`

use std::path::PathBuf;
use std::process::ExitCode;

use axum::http::Method;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{Admin, Common, Members, encoded, read_json};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TenantCommand {
    /// Set where a tenant's events go and what it may take, whole: what is not given gets its default
    Put {
        /// The tenant
        tenant: String,
        /// Where its events go [default: Svix where a token is configured, else direct]
        #[arg(long, value_enum)]
        route: Option<RouteName>,
        /// Its Svix application [default: its own name]
        #[arg(long, requires = "route", value_name = "UID")]
        svix_app: Option<String>,
        /// A file with the transform of what goes to Svix
        #[arg(long, requires = "route", value_name = "FILE")]
        transform: Option<PathBuf>,
        /// Its share beside other tenants at the same destination, 1 to 100
        #[arg(long)]
        weight: Option<u32>,
        /// Events a second that it may put in on one node, over time
        #[arg(long)]
        per_second: Option<f64>,
        /// Events that it may put in at once after a pause
        #[arg(long, requires = "per_second")]
        burst: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// A link into Svix's portal for a tenant that is routed to Svix; whoever opens it, is in
    Portal {
        /// The tenant
        tenant: String,
        /// How long it is good, in seconds [default: 3600]
        #[arg(long, value_name = "S")]
        expiry: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// Show a tenant
    Get {
        /// The tenant
        tenant: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RouteName {
    /// To a Svix application
    Svix,
    /// To the endpoints of partners alone
    Direct,
}

pub(in crate::cli) async fn run(command: TenantCommand, config: Config) -> anyhow::Result<ExitCode> {
    let path = |tenant: &str| format!("/v1/tenants/{}", encoded(tenant));
    match command {
        TenantCommand::Put { tenant, route, svix_app, transform, weight, per_second, burst, common } => {
            let route = route.map(|route| if route == RouteName::Svix { "svix" } else { "direct" });
            let limit = per_second.map(|per_second| json!({"per_second": per_second, "burst": burst}));
            let mut members = Members::default();
            members.add("route", route)?;
            members.add("svix_app", svix_app)?;
            members.add("transform", transform.map(|file| read_json(&file)).transpose()?)?;
            members.add("weight", weight)?;
            members.add("ingest_limit", limit)?;
            let body = Some(members.into_json());
            Admin::new(&common, &config)?.call(Method::PUT, &path(&tenant), body).await?;
        }
        TenantCommand::Portal { tenant, expiry, common } => {
            let body = Some(json!({ "expiry_s": expiry }).to_string());
            let path = format!("{}/portal", path(&tenant));
            Admin::new(&common, &config)?.call(Method::POST, &path, body).await?;
        }
        TenantCommand::Get { tenant, common } => {
            Admin::new(&common, &config)?.call(Method::GET, &path(&tenant), None).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
