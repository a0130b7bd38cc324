//! `posthaste event-type put|list`

use std::path::PathBuf;
use std::process::ExitCode;

use axum::http::Method;
use clap::Subcommand;

use super::{Admin, Common, Members, encoded, read_json};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum EventTypeCommand {
    /// Make an event type, or set what it is, whole
    Put {
        /// Its name
        name: String,
        /// What happened, for people
        #[arg(long)]
        description: Option<String>,
        /// A file with the JSON Schema of its payload
        #[arg(long, value_name = "FILE")]
        schema: Option<PathBuf>,
        /// A file with a payload as it may come
        #[arg(long, value_name = "FILE")]
        example: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// List all event types
    List {
        #[command(flatten)]
        common: Common,
    },
}

pub(in crate::cli) async fn run(command: EventTypeCommand, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        EventTypeCommand::Put { name, description, schema, example, common } => {
            let mut members = Members::default();
            members.add("description", description)?;
            members.add("schema", schema.map(|file| read_json(&file)).transpose()?)?;
            members.add("example", example.map(|file| read_json(&file)).transpose()?)?;
            let path = format!("/v1/event-types/{}", encoded(&name));
            Admin::new(&common, &config)?.call(Method::PUT, &path, Some(members.into_json())).await?;
        }
        EventTypeCommand::List { common } => {
            let columns = [("NAME", 40, "name"), ("AT SVIX", 8, "synced"), ("DESCRIPTION", 0, "description")];
            Admin::new(&common, &config)?.list("/v1/event-types", "event_types", &columns).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
