//! `posthaste serve`

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::BAD_CONFIG;
use super::output::complain;
use crate::app::{App, SystemClock};
use crate::config::{Config, Role};
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// What this node does of the work [default: as the configuration says, which is `all`]
    #[arg(long, value_enum)]
    role: Option<Role>,
}

pub(super) async fn run(args: ServeArgs, mut config: Config) -> anyhow::Result<ExitCode> {
    config.role = args.role.unwrap_or(config.role);
    if let Err(error) = config.check_role() {
        complain(error);
        return Ok(ExitCode::from(BAD_CONFIG));
    }
    telemetry::init(&config.log).map_err(anyhow::Error::msg)?;
    let served = serve(&config).await;
    telemetry::flush();
    served
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let app = App::start(config, Arc::new(SystemClock::new())).await?;
    let (address, role) = (app.address(), config.role);
    tracing::info!(%address, %role, version = env!("CARGO_PKG_VERSION"), "listening");
    let failure = tokio::select! {
        stopped = super::stop_signal() => {
            stopped?;
            tracing::info!("stopping; once more to end at once");
            None
        }
        reason = app.ledger().excluded() => {
            tracing::error!(%reason, "stopping: this node can't go on");
            Some(reason)
        }
    };
    app.stop().await;
    tracing::info!("stopped");
    match failure {
        Some(reason) => Err(anyhow::Error::msg(reason)),
        None => Ok(ExitCode::SUCCESS),
    }
}
