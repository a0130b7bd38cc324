//! Taking away what was kept for long enough, now.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{OrProblem as _, bad_field, check_tenant, read};
use crate::domain::clock::Timestamp;
use crate::domain::object::JsonObject;
use crate::domain::time_text::{parse_span, parse_time};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::retention::{Phase, PruneWish, Pruned};

/// What is to be taken away: all that was kept for long enough, or events alone.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PruneBody {
    /// Only count it.
    dry_run: bool,
    /// Events whose deliveries were all done before, however long they are to be kept: a time (RFC 3339), or how long
    /// ago (`90m`, `24h`, `7d`).
    before: Option<String>,
    /// Events of this tenant alone.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// `next_cursor` of the part before; give the same `before` as a time.
    #[schema(pattern = r"^[A-Za-z0-9_-]+$")]
    cursor: Option<String>,
}

/// What was taken away, or would be.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PruneView {
    dry_run: bool,
    #[serde(flatten)]
    pruned: Pruned,
    /// Where the next part begins; null where all is done.
    next_cursor: Option<String>,
    /// The `before` of the request, as a time: the next part wants it so.
    before: Option<Timestamp>,
}

/// Takes away what was kept for long enough, for some seconds; call it again with `next_cursor` for the rest. What waits
/// is never taken away.
#[utoipa::path(post, path = "/v1/prune", tag = "retention", request_body = PruneBody,
    responses((status = 200, body = PruneView), Problems))]
pub(super) async fn prune(
    State(state): State<HttpState>,
    caller: Caller,
    body: Result<Json<JsonObject<PruneBody>>, JsonRejection>,
) -> Result<Response, Problem> {
    let PruneBody { dry_run, before, tenant, cursor } = read(body)?;
    caller.require(if dry_run { Scope::Read } else { Scope::Admin })?;
    let tenant = tenant.or_else(|| caller.tenant.clone());
    if let Some(tenant) = &tenant {
        check_tenant(tenant)?;
        caller.require_tenant(tenant)?;
    }
    let by_age = before.as_deref().is_none_or(|text| parse_span(text).is_some());
    if by_age && !dry_run && !state.pruner.may_prune() {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "clock_in_doubt",
            "the ledger's clock is in doubt (see `clock` at /health/ready), so nothing is pruned by age; name a time in \
             `before`, or wait until the clock is trusted again",
        ));
    }
    let now = state.clock.now();
    let before = before.map(|text| parse_time(&text, now)).transpose();
    let before = before.map_err(|why| bad_field("/before", &why))?;
    if before.is_some_and(|before| before > now) {
        return Err(bad_field("/before", "`before` must not lie in the future"));
    }
    let from = cursor.map(|cursor| read_cursor(&cursor)).transpose()?.unwrap_or_default();
    let wish = PruneWish { dry_run, before, tenant };
    let (pruned, next) = state.pruner.part(&wish, from).await.or_problem(&state)?;
    let text = serde_json::to_vec(&next).unwrap_or_default();
    let next_cursor = (next != Phase::Done).then(|| URL_SAFE_NO_PAD.encode(text));
    Ok(Json(PruneView { dry_run, pruned, next_cursor, before }).into_response())
}

fn read_cursor(cursor: &str) -> Result<Phase, Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(cursor).ok();
    let phase = decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    phase.ok_or_else(|| bad_field("/cursor", "must be the next_cursor of the part before"))
}
