//! Partners: receiver organisations.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::conditional::IfMatch;
use super::paging::{Page, PageQuery};
use super::{OrProblem as _, check_id, faults, gone, json_text, not_found, versioned, written};
use crate::domain::clock::Timestamp;
use crate::domain::partner::{PartnerSettings, RateLimit};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::PartnerRow;

/// A partner as it is set.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what PartnerSettings::parse reads")]
pub(crate) struct PartnerBody {
    /// What people call it, 1 to 256 bytes.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    name: String,
    /// How fast it may be sent to; no limit where absent.
    rate_limit: Option<RateLimitBody>,
    /// Most requests in flight to it; 64 where absent.
    #[schema(minimum = 1, maximum = 10_000)]
    max_in_flight: Option<u32>,
    /// Nothing is sent while this is set; deliveries wait.
    paused: Option<bool>,
    /// An endpoint gets no event before it has answered a challenge.
    verify_endpoints: Option<bool>,
}

/// A bucket of tokens, one for each request.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what PartnerSettings::parse reads")]
pub(crate) struct RateLimitBody {
    /// Requests a second, over time; 0.5 is one every two seconds.
    #[schema(minimum = 0.001, maximum = 100_000)]
    per_second: f64,
    /// Most requests at once after a pause. By default those of one second, at least one.
    #[schema(minimum = 1, maximum = 1_000_000)]
    burst: Option<u32>,
}

/// A partner as it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PartnerView {
    /// Its id.
    id: String,
    /// What people call it.
    name: String,
    /// How fast it may be sent to; no limit where null.
    rate_limit: Option<RateLimitView>,
    /// Most requests in flight to it; 64 where null.
    max_in_flight: Option<u32>,
    /// Nothing is sent while this is set; deliveries wait.
    paused: bool,
    /// An endpoint gets no event before it has answered a challenge.
    verify_endpoints: bool,
    /// When it was made, in milliseconds since the Unix epoch.
    created_at: i64,
}

/// A bucket of tokens, one for each request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RateLimitView {
    /// Requests a second, over time.
    per_second: f64,
    /// Most requests at once after a pause.
    burst: u32,
}

/// A page of partners.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PartnersView {
    /// By id.
    partners: Vec<PartnerView>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
}

impl PartnerView {
    fn new(id: String, settings: PartnerSettings, created_at: Timestamp) -> Self {
        let PartnerSettings { name, rate_limit, max_in_flight, paused, verify_endpoints } = settings;
        let rate_limit =
            rate_limit.map(|RateLimit { per_second, burst }| RateLimitView { per_second, burst });
        Self {
            id,
            name,
            rate_limit,
            max_in_flight,
            paused,
            verify_endpoints,
            created_at: created_at.as_millis(),
        }
    }
}

impl From<PartnerRow> for PartnerView {
    fn from(row: PartnerRow) -> Self {
        Self::new(row.id, row.settings, row.created_at)
    }
}

/// All partners, a page at a time.
#[utoipa::path(get, path = "/v1/partners", tag = "partners", params(PageQuery),
    responses((status = 200, body = PartnersView), Problems))]
pub(super) async fn list_partners(
    State(state): State<HttpState>,
    caller: Caller,
    page: Page,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    let read = state.ledger.database().partners(page.after.as_deref(), page.read_limit()).await;
    let mut rows = read.or_problem(&state)?;
    let next_cursor = page.cut(&mut rows, |row| &row.id);
    let partners = rows.into_iter().map(PartnerView::from).collect();
    Ok(Json(PartnersView { partners, next_cursor }).into_response())
}

/// One partner.
#[utoipa::path(get, path = "/v1/partners/{partner}", tag = "partners",
    params(("partner" = String, Path, description = "The partner's id")),
    responses(
        (status = 200, body = PartnerView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn get_partner(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    let row = state.ledger.database().partner(&id).await.or_problem(&state)?;
    let row = row.ok_or_else(|| not_found("partner", &id))?;
    Ok(versioned(StatusCode::OK, row.version, PartnerView::from(row)))
}

/// Makes a partner or sets what it is from now on, whole: what is absent gets its default.
#[utoipa::path(put, path = "/v1/partners/{partner}", tag = "partners",
    params(
        ("partner" = String, Path, description = "The partner's id: 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`",
            min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9_-][a-zA-Z0-9._-]*$"),
        ("if-match" = Option<String>, Header, description = "Only where this is its ETag")),
    request_body = PartnerBody,
    responses(
        (status = 200, description = "Known before", body = PartnerView,
            headers(("etag" = String, description = "Its version"))),
        (status = 201, description = "New", body = PartnerView,
            headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn put_partner(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    check_id("/partner", "a partner", &id)?;
    let settings = PartnerSettings::parse(&json_text(&headers, &body)?).map_err(|found| faults(&found))?;
    let database = state.ledger.database();
    let known = database.partner(&id).await.or_problem(&state)?;
    let guard = if_match.check(known.as_ref().map(|row| row.version))?;
    let now = state.clock.now();
    let put = database.put_partner(&id, &settings, guard, now).await;
    let (status, version) = written(&state, put).await?;
    let created_at = known.map_or(now, |row| row.created_at);
    Ok(versioned(status, version, PartnerView::new(id, settings, created_at)))
}

/// Deletes a partner that has no endpoints.
#[utoipa::path(delete, path = "/v1/partners/{partner}", tag = "partners",
    params(
        ("partner" = String, Path, description = "The partner's id"),
        ("if-match" = Option<String>, Header, description = "Only where this is its ETag")),
    responses((status = 204, description = "Gone"), Problems))]
pub(super) async fn delete_partner(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let database = state.ledger.database();
    let known = database.partner(&id).await.or_problem(&state)?;
    let known = known.ok_or_else(|| not_found("partner", &id))?;
    let guard = if_match.check(Some(known.version))?;
    let deleted = database.delete_partner(&id, guard).await;
    gone(&state, deleted, &if_match, not_found("partner", &id)).await
}
