//! Whether Svix has what it was given.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use utoipa::IntoParams;

use super::paging::bad_query;
use super::{check_tenant, ledger};
use crate::audit::{Audit, AuditError, AuditPart, AuditRange};
use crate::domain::time_text::parse_time;
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;

/// What is compared.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Events that came then or later: a time (RFC 3339), or how long ago (`90m`, `24h`, `7d`).
    since: String,
    /// Events that came before; by default all that came.
    until: Option<String>,
    /// Events of this tenant alone.
    #[param(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// `next_cursor` of the part before; give the same `until`, and the `since` that it has.
    #[param(pattern = r"^[A-Za-z0-9_-]+$")]
    cursor: Option<String>,
}

/// Compares what the ledger says was delivered to Svix with what Svix has, a part of some seconds at a time. What is
/// missing goes out again by `POST /v1/replays` with its `deliveries`.
#[utoipa::path(get, path = "/v1/audits/svix", tag = "replays", params(AuditQuery),
    responses((status = 200, body = AuditPart), Problems))]
pub(super) async fn audit_svix(
    State(state): State<HttpState>,
    caller: Caller,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let tenant = query.tenant.or_else(|| caller.tenant.clone());
    if let Some(tenant) = &tenant {
        check_tenant(tenant)?;
        caller.require_tenant(tenant)?;
    }
    let now = state.clock.now();
    let time = |text: &str| parse_time(text, now).map_err(bad_query);
    let since = time(&query.since)?;
    let until = query.until.as_deref().map(time).transpose()?;
    if since >= until.unwrap_or(now) {
        return Err(bad_query("since must be before until".into()));
    }
    let after = query.cursor.map(|cursor| read_cursor(&cursor)).transpose()?;
    let Some(svix) = &state.senders.svix else {
        return Err(Problem::new(StatusCode::CONFLICT, "svix_not_configured", "no Svix token is configured"));
    };
    let audit = Audit { ledger: &state.ledger, svix, audits: &state.audits, clock: state.clock.clone() };
    let part = audit.part(&AuditRange { since, until, tenant, after }).await;
    let mut part = part.map_err(|error| match error {
        AuditError::Ledger(error) => ledger(&state, &error),
        AuditError::Svix(error) => {
            Problem::new(StatusCode::BAD_GATEWAY, "svix_unavailable", error.to_string())
        }
    })?;
    part.next_cursor = part.next_cursor.map(|cursor| URL_SAFE_NO_PAD.encode(cursor));
    Ok(Json(part).into_response())
}

fn read_cursor(cursor: &str) -> Result<i64, Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(cursor).ok();
    let number = decoded.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    number.ok_or_else(|| bad_query("cursor must be the next_cursor of the part before".into()))
}
