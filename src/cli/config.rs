//! `posthaste config check|show`

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether the configuration can be used
    Check,
    /// Print every setting as it is in force, as TOML, secrets redacted
    Show,
}

/// The configuration has been read by now: a bad one never gets here.
pub(super) fn run(command: &ConfigCommand, config: &Config) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check => println!("the configuration is good"),
        ConfigCommand::Show => print!("{}", config.show()?),
    }
    Ok(ExitCode::SUCCESS)
}
