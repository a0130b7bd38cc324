//! `posthaste serve`

use std::process::ExitCode;
use std::sync::Arc;

use crate::app::{App, SystemClock};
use crate::config::Config;
use crate::telemetry;

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    telemetry::init(&config.log).map_err(anyhow::Error::msg)?;
    let app = App::start(&config, Arc::new(SystemClock::new())).await?;
    tracing::info!(address = %app.address(), version = env!("CARGO_PKG_VERSION"), "listening");
    super::stop_signal().await?;
    tracing::info!("stopping; once more to end at once");
    app.stop().await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
