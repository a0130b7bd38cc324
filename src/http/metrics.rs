//! `GET /metrics`: for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Scope};
use super::openapi::Problems;
use super::problem::Problem;
use super::state::HttpState;
use crate::dispatcher::Dispatcher;
use crate::telemetry::Standing;

/// The text format, as its scrapers know it.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How things stand and what was counted, in Prometheus' text format. Needs the scope `read` of all tenants.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"),
    Problems))]
pub async fn metrics(State(state): State<HttpState>, caller: Caller) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    // A node that only takes events sends none.
    let dispatcher = state.dispatcher.as_ref();
    let standing = Standing {
        gates: dispatcher.map(Dispatcher::gates).unwrap_or_default(),
        in_flight: dispatcher.map_or(0, Dispatcher::in_flight),
        waiting: state.ledger.waiting(),
        sources: state.sources.clone(),
    };
    Ok(([(CONTENT_TYPE, TEXT)], state.metrics.render(standing)).into_response())
}
