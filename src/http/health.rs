//! `/health`: alive, and able to take events.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::state::HttpState;
use crate::config::Role;
use crate::dispatcher::{Dispatcher, GateStatus};
use crate::domain::scheduler::GateId;
use crate::sources::SourceStatus;

/// Most gates that readiness tells of.
const GATES_SHOWN: usize = 100;

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Live {
    status: &'static str,
    /// What this node does of the work.
    role: Role,
    version: &'static str,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Ready {
    status: &'static str,
    /// What this node does of the work. A `worker` takes no events, ready or not.
    role: Role,
    /// Why it can't do its work. Empty while it can.
    reasons: Vec<String>,
    /// Deliveries that wait.
    waiting: u64,
    /// The ways out; a node that only takes events has none. A closed one is shown, and events are taken all the same.
    gates: Vec<GateView>,
    /// The ledger's clock. One that is in doubt is shown; events are taken and sent all the same, and nothing is pruned.
    clock: ClockView,
    /// The queues and streams that are read. One that is down is shown, and the rest goes on.
    sources: Vec<SourceView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ClockView {
    /// `trusted`; `skewed`: this machine's clock differs from the ledger's; `unconfirmed`: the clock does not follow on
    /// the ledger's last heartbeat, and has not yet run evenly for an hour since.
    state: &'static str,
    /// How many milliseconds this machine's clock is ahead of the ledger's; of an unconfirmed one, how many it is ahead of
    /// the last heartbeat.
    skew_ms: i64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct SourceView {
    source: String,
    kind: &'static str,
    /// `connecting`, `up`, `paused` or `down`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Messages that wait at the broker, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
}

impl SourceView {
    fn new(source: &SourceStatus) -> Self {
        let state = source.state();
        Self {
            source: source.name.clone(),
            kind: source.kind,
            state: state.as_str(),
            reason: state.reason().map(str::to_owned),
            lag: source.lag(),
        }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct GateView {
    gate: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens_in_ms: Option<u64>,
    max_in_flight: u32,
    in_flight: u32,
}

/// `GET /health/live`: 200 as long as the process answers.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Live)))]
pub async fn live(State(state): State<HttpState>) -> Response {
    Json(Live { status: "ok", role: state.options.role, version: env!("CARGO_PKG_VERSION") }).into_response()
}

/// `GET /health/ready`: 200 where the node does the work of its role (takes events; a worker: sends), 503 with the
/// reasons where not.
#[utoipa::path(get, path = "/health/ready", tag = "health", responses(
    (status = 200, description = "Events are taken (a worker: sent)", body = Ready),
    (status = 503, description = "Not so", body = Ready)))]
pub async fn ready(State(state): State<HttpState>) -> Response {
    let mut reasons = Vec::new();
    if state.is_draining() {
        reasons.push("draining: this process is about to end".to_owned());
    }
    let role = state.options.role;
    if role.takes_events() {
        reasons.extend(state.ledger.admits().err().map(|error| error.to_string()));
    } else {
        // A full backlog is what a worker is there for.
        reasons.extend(state.ledger.trouble());
    }
    // Svix's always; of endpoints' only those that are not open, and not all of ten thousand.
    let told = |gate: &GateStatus| gate.gate == GateId::Svix || gate.reason.is_some();
    let gates = state.dispatcher.as_ref().map(Dispatcher::gates).unwrap_or_default();
    let gates = gates.into_iter().filter(told).take(GATES_SHOWN).map(|gate| GateView {
        gate: gate.gate.as_str().to_owned(),
        state: gate.state(),
        reason: gate.reason.map(crate::domain::gate::CloseReason::as_str),
        opens_in_ms: gate.opens_in.and_then(|wait| u64::try_from(wait.as_millis()).ok()),
        max_in_flight: gate.width,
        in_flight: gate.in_flight,
    });
    let gates = gates.collect();
    let ready = reasons.is_empty();
    let clock = state.ledger.clock().status();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Ready {
        status: if ready { "ready" } else { "not_ready" },
        role,
        reasons,
        waiting: state.ledger.waiting(),
        gates,
        clock: ClockView { state: clock.state.as_str(), skew_ms: clock.skew_ms },
        sources: state.sources.iter().map(|source| SourceView::new(source)).collect(),
    };
    (status, Json(body)).into_response()
}
