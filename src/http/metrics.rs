//! `GET /metrics`: for Prometheus.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Scope};
use super::openapi::Problems;
use super::problem::Problem;
use super::state::HttpState;
use crate::dispatcher::Dispatcher;
use crate::telemetry::{MEDIA_TYPE, Standing};

/// How things stand and what was counted, as OpenMetrics text. Needs the scope `read` of all tenants.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "OpenMetrics 1.0 text", body = String, content_type = "application/openmetrics-text"),
    Problems))]
pub async fn metrics(State(state): State<HttpState>, caller: Caller) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    // A node that only takes events sends none.
    let dispatcher = state.dispatcher.as_ref();
    let snapshot = state.directory.snapshot();
    let mut disabled = BTreeMap::new();
    for reason in snapshot.endpoints().filter_map(|endpoint| endpoint.live?.disabled) {
        *disabled.entry(reason.as_str()).or_default() += 1;
    }
    let partners = snapshot.endpoints().map(|endpoint| (endpoint.id.clone(), endpoint.partner.clone()));
    let standing = Standing {
        role: state.options.role,
        now: state.clock.now(),
        gates: dispatcher.map(Dispatcher::gates).unwrap_or_default(),
        in_flight: dispatcher.map_or(0, Dispatcher::in_flight),
        waiting: state.ledger.waiting(),
        waiting_limit: state.ledger.waiting_limit(),
        ledger_up: state.ledger.trouble().is_none(),
        unsettled: state.ledger.unsettled(),
        jobs: state.ledger.jobs().read(),
        wal_bytes: state.ledger.wal_bytes(),
        clock: state.ledger.clock().status(),
        sources: state.sources.clone(),
        // A ledger that is down shows as such; the rest is told all the same.
        backlogs: state.watch.stats.backlogs().await.ok(),
        partners: partners.collect(),
        disabled,
        attempts: state.watch.stats.meters().shown(),
        spans: state.watch.tracer.counts(),
    };
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], state.watch.metrics.render(standing)).into_response())
}
