//! `posthaste endpoint add|get|list|update|delete|enable|disable|rotate|test`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{Admin, Common, Members, encoded, read, read_json};
use crate::cli::output::complain;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum EndpointCommand {
    /// Add an endpoint to a partner, and print it with its secret, this once
    Add {
        /// Whose it is
        partner: String,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        common: Common,
    },
    /// Show an endpoint
    Get(One),
    /// List a partner's endpoints
    List {
        /// Whose they are
        partner: String,
        #[command(flatten)]
        common: Common,
    },
    /// Change an endpoint: what is not given stays
    Update {
        /// Its id, `ep_…`
        id: String,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        common: Common,
    },
    /// Delete an endpoint
    Delete(One),
    /// Let an endpoint get events again
    Enable(One),
    /// Stop an endpoint from getting events
    Disable(One),
    /// Give an endpoint a new secret, and print it, this once
    Rotate {
        /// Its id, `ep_…`
        id: String,
        /// How long the old secret signs too, in milliseconds [default: a day]
        #[arg(long)]
        grace_ms: Option<u64>,
        /// A file with the new secret, or `-` [default: one is made]
        #[arg(long)]
        secret_file: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Send a test event to an endpoint now, and show what came back; exit code 1 where it failed
    Test(One),
}

/// One endpoint.
#[derive(Debug, Args)]
pub(in crate::cli) struct One {
    /// Its id, `ep_…`
    id: String,
    #[command(flatten)]
    common: Common,
}

/// What an endpoint is.
#[derive(Debug, Args)]
pub(in crate::cli) struct Settings {
    /// Where events go
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// The one tenant whose events it gets
    #[arg(long)]
    tenant: Option<String>,
    /// What it gets: a type, `order.*` or `*`; may be given more than once
    #[arg(long = "event-type", value_name = "TYPE")]
    event_types: Vec<String>,
    /// A header of the partner's own, `Name: value`; may be given more than once
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// A file with the transform, or `-`
    #[arg(long, value_name = "FILE")]
    transform: Option<PathBuf>,
    /// Time for one attempt, in milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Waits after the first, second … failure, in milliseconds, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "MS,MS…")]
    retry_schedule_ms: Option<Vec<u64>>,
    /// Sign with hex HMAC-SHA256 in this header instead of by Standard Webhooks
    #[arg(long, value_name = "HEADER")]
    hmac_header: Option<String>,
    /// What stands before the hex digits, e.g. `sha256=`
    #[arg(long, requires = "hmac_header", value_name = "TEXT")]
    hmac_prefix: Option<String>,
    /// The settings as a JSON file instead, or `-`
    #[arg(long, conflicts_with_all = ["to", "tenant", "event_types", "headers", "transform", "timeout_ms",
        "retry_schedule_ms", "hmac_header", "hmac_prefix"])]
    file: Option<PathBuf>,
}

impl Settings {
    fn into_json(self) -> anyhow::Result<String> {
        if let Some(file) = &self.file {
            return read(file);
        }
        let mut headers = Map::new();
        for header in &self.headers {
            let (name, value) = header.split_once(':').context("a header has the form `Name: value`")?;
            headers.insert(name.trim().to_owned(), Value::from(value.trim()));
        }
        let signature = self.hmac_header.map(|header| match self.hmac_prefix {
            Some(prefix) => json!({"scheme": "hex_hmac_sha256", "header": header, "prefix": prefix}),
            None => json!({"scheme": "hex_hmac_sha256", "header": header}),
        });
        let mut members = Members::default();
        members.add("url", self.to)?;
        members.add("tenant", self.tenant)?;
        members.add("event_types", (!self.event_types.is_empty()).then_some(self.event_types))?;
        members.add("headers", (!headers.is_empty()).then_some(headers))?;
        members.add("transform", self.transform.map(|file| read_json(&file)).transpose()?)?;
        members.add("timeout_ms", self.timeout_ms)?;
        members.add("retry_schedule_ms", self.retry_schedule_ms)?;
        members.add("signature", signature)?;
        Ok(members.into_json())
    }
}

pub(in crate::cli) async fn run(command: EndpointCommand, config: Config) -> anyhow::Result<ExitCode> {
    let of = |partner: &str| format!("/v1/partners/{}/endpoints", encoded(partner));
    let path = |id: &str| format!("/v1/endpoints/{}", encoded(id));
    let (one, method, action) = match command {
        EndpointCommand::Add { partner, settings, common } => {
            let admin = Admin::new(&common, &config)?;
            admin.call(Method::POST, &of(&partner), Some(settings.into_json()?)).await?;
            complain("this is the only time the secret is shown");
            return Ok(ExitCode::SUCCESS);
        }
        EndpointCommand::List { partner, common } => {
            let columns = [
                ("ID", 28, "id"),
                ("STATE", 8, "state"),
                ("TENANT", 16, "tenant"),
                ("EVENT TYPES", 24, "event_types"),
                ("URL", 0, "url"),
            ];
            Admin::new(&common, &config)?.list(&of(&partner), "endpoints", &columns).await?;
            return Ok(ExitCode::SUCCESS);
        }
        EndpointCommand::Update { id, settings, common } => {
            let admin = Admin::new(&common, &config)?;
            admin.call(Method::PATCH, &path(&id), Some(settings.into_json()?)).await?;
            return Ok(ExitCode::SUCCESS);
        }
        EndpointCommand::Rotate { id, grace_ms, secret_file, common } => {
            let secret = secret_file.map(|file| read(&file)).transpose()?;
            let mut members = Members::default();
            members.add("grace_ms", grace_ms)?;
            members.add("secret", secret.as_deref().map(str::trim))?;
            let admin = Admin::new(&common, &config)?;
            let path = format!("{}/secret/rotate", path(&id));
            admin.call(Method::POST, &path, Some(members.into_json())).await?;
            complain("this is the only time the secret is shown");
            return Ok(ExitCode::SUCCESS);
        }
        EndpointCommand::Test(one) => return test(&one, &config).await,
        EndpointCommand::Get(one) => (one, Method::GET, ""),
        EndpointCommand::Delete(one) => (one, Method::DELETE, ""),
        EndpointCommand::Enable(one) => (one, Method::POST, "/enable"),
        EndpointCommand::Disable(one) => (one, Method::POST, "/disable"),
    };
    let path = format!("{}{action}", path(&one.id));
    Admin::new(&one.common, &config)?.call(method, &path, None).await?;
    Ok(ExitCode::SUCCESS)
}

async fn test(one: &One, config: &Config) -> anyhow::Result<ExitCode> {
    let admin = Admin::new(&one.common, config)?;
    let answer = admin.ask(Method::POST, &format!("/v1/endpoints/{}/test", encoded(&one.id)), None).await?;
    admin.print(&answer)?;
    let result: Value = answer.read()?;
    Ok(if result["error"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
