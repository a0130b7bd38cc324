//! `posthaste transform preview`

use std::path::PathBuf;
use std::process::ExitCode;

use axum::http::Method;
use clap::Subcommand;
use serde_json::value::RawValue;

use super::{Admin, Common, Members, read_json};
use crate::cli::Format;
use crate::cli::output::say;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TransformCommand {
    /// Apply a transform to a payload and print what would go out
    Preview {
        /// The transform, a JSON file, or `-`
        #[arg(long)]
        file: PathBuf,
        /// The payload, a JSON file, or `-`
        #[arg(long)]
        payload: PathBuf,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(serde::Deserialize)]
struct Previewed {
    result: Box<RawValue>,
}

pub(in crate::cli) async fn run(command: TransformCommand, config: Config) -> anyhow::Result<ExitCode> {
    let TransformCommand::Preview { file, payload, common } = command;
    let mut members = Members::default();
    members.add("transform", Some(read_json(&file)?))?;
    members.add("payload", Some(read_json(&payload)?))?;
    let admin = Admin::new(&common, &config)?;
    let answer = admin.ask(Method::POST, "/v1/transforms/preview", Some(members.into_json())).await?;
    if common.format == Format::Json {
        admin.print(&answer)?;
    } else {
        say(answer.read::<Previewed>()?.result.get())?;
    }
    Ok(ExitCode::SUCCESS)
}
