//! `posthaste send`
use std::process::ExitCode;

use clap::Args;

use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct SendArgs {}

pub(super) async fn run(_args: SendArgs, _config: Config) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
