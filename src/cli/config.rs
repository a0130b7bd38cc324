//! `posthaste config check|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::BAD_CONFIG;
use super::output::{complain, say};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether the configuration can be used
    Check,
    /// Print every setting as it is in force, as TOML, secrets redacted
    Show,
}

/// The configuration has been read by now: one that is bad in itself never gets here.
pub(super) fn run(command: &ConfigCommand, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check => {
            if let Err(error) = config.check_role() {
                complain(error);
                return Ok(ExitCode::from(BAD_CONFIG));
            }
            say("the configuration is good")?;
        }
        ConfigCommand::Show => say(config.show()?.trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}
