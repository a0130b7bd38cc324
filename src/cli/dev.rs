//! `posthaste dev`
use std::process::ExitCode;

use clap::Args;

use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct DevArgs {}

pub(super) async fn run(_args: DevArgs, _config: Config) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
