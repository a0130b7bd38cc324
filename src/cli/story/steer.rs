//! `posthaste retry|cancel DELIVERY`

use std::process::ExitCode;

use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use serde_json::Value;

use super::{Common, encoded};
use crate::cli::Format;
use crate::cli::client::Client;
use crate::cli::output::say;
use crate::config::Config;

#[derive(Debug, Args)]
pub(in crate::cli) struct SteerArgs {
    /// Its id, `dlv_…`, as `explain`, `deliveries` and `dead` show it; may be given more than once
    #[arg(required = true, value_name = "DELIVERY")]
    deliveries: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// What to do with them.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) enum Action {
    Retry,
    Cancel,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Cancel => "cancel",
        }
    }
}

/// Does it to one after another; exit code 1 where one of them was refused, but the others are done all the same.
pub(in crate::cli) async fn run(action: Action, args: SteerArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.common.server, &config)?;
    let mut code = ExitCode::SUCCESS;
    for id in &args.deliveries {
        let path = format!("/v1/deliveries/{}/{}", encoded(id), action.as_str());
        let answer = client.request(Method::POST, &path, &[], Bytes::new()).await?;
        if !answer.status.is_success() {
            crate::cli::output::complain(format_args!("{id}: {}", answer.complaint()));
            code = ExitCode::FAILURE;
            continue;
        }
        if args.common.format == Format::Json {
            say(answer.text())?;
            continue;
        }
        let told: Value = answer.read()?;
        say(match (action, told["state"].as_str().unwrap_or_default()) {
            (Action::Retry, "pending") => format!("{id}: on its way again"),
            (_, state) => format!("{id}: {state}"),
        })?;
    }
    Ok(code)
}
