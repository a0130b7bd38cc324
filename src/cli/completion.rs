//! `posthaste completion`: what a shell needs to complete our commands.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::output::closed;

#[derive(Debug, Args)]
#[command(after_help = "For bash: posthaste completion bash > /etc/bash_completion.d/posthaste")]
pub(super) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "posthaste", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(closed)?;
    Ok(ExitCode::SUCCESS)
}
