//! `posthaste health`

use std::process::ExitCode;

use clap::Args;

use super::Server;
use super::client::Client;
use super::output::say;
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    server: Server,
}

pub(super) async fn run(args: HealthArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server, &config)?;
    let answer = client.get("/health/ready").await?;
    say(answer.text())?;
    Ok(if answer.status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
