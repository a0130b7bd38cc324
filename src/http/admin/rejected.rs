//! What could never be accepted, from a source or a Pub/Sub push: to be looked at, taken in after a fix, or dropped.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::paging::{Page, bad_query};
use super::{OrProblem as _, not_found};
use crate::domain::clock::Timestamp;
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::{FieldError, Problem};
use crate::http::state::HttpState;
use crate::ingest::{ItemResult, Status};
use crate::ledger::{Rejected, RejectedFilter, RejectedRow};

/// Which of the rejected.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct RejectedQuery {
    /// How they came: `pubsub_push`, or a source's kind and name, e.g. `nats:orders`.
    origin: Option<String>,
    /// When they came at the earliest, in milliseconds since the Unix epoch.
    since: Option<i64>,
    /// Most entries, 1 to 200; 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(pattern = r"^[A-Za-z0-9_-]*$")]
    cursor: Option<String>,
}

/// A rejected message in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RejectedRowView {
    /// Its number.
    id: i64,
    /// When it came, in milliseconds since the Unix epoch.
    received_at: i64,
    /// How it came: `pubsub_push`, or a source's kind and name.
    origin: String,
    /// Why it can't be accepted.
    reason: String,
    /// How many bytes it has.
    body_bytes: i64,
}

/// A page of rejected messages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RejectedPageView {
    /// Newest first.
    rejected: Vec<RejectedRowView>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
}

/// A rejected message, whole.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RejectedView {
    /// Its number.
    id: i64,
    /// When it came, in milliseconds since the Unix epoch.
    received_at: i64,
    /// How it came: `pubsub_push`, or a source's kind and name.
    origin: String,
    /// Why it can't be accepted.
    reason: String,
    /// What stood beside its bytes.
    #[schema(value_type = Object)]
    attributes: Box<RawValue>,
    /// Its content type, where that was told apart from the attributes.
    content_type: Option<String>,
    /// The one tenant that its source is for.
    tenant: Option<String>,
    /// The event's place in its message, from 0.
    item: usize,
    /// Its bytes, in base64 (RFC 4648 §4).
    body_base64: String,
    /// Its bytes as text, where they are UTF-8.
    body: Option<String>,
}

/// What became of a rejected message that was taken in again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayedView {
    /// One for each event, in order; all `accepted` or `duplicate`.
    #[schema(inline = false)]
    results: Vec<ItemResult>,
}

impl RejectedRowView {
    fn new(row: RejectedRow) -> Self {
        let RejectedRow { id, received_at, origin, reason, body_bytes } = row;
        Self { id, received_at: received_at.as_millis(), origin, reason, body_bytes }
    }
}

impl RejectedView {
    fn new(message: Rejected) -> Self {
        // A push's attributes are kept as they came, and might be any JSON.
        let attributes = RawValue::from_string(message.attributes);
        Self {
            id: message.id,
            received_at: message.received_at.as_millis(),
            origin: message.origin,
            reason: message.reason,
            attributes: attributes.unwrap_or_else(|_| RawValue::NULL.to_owned()),
            content_type: message.content_type,
            tenant: message.tenant,
            item: message.item,
            body_base64: STANDARD.encode(&message.body),
            body: String::from_utf8(message.body).ok(),
        }
    }
}

/// What could never be accepted, a page at a time, newest first. Needs a key that is bound to no tenant.
/// Where a read replica is configured, the list may lag behind.
#[utoipa::path(get, path = "/v1/rejected", tag = "rejected", params(RejectedQuery),
    responses((status = 200, body = RejectedPageView), Problems))]
pub(super) async fn list_rejected(
    State(state): State<HttpState>,
    caller: Caller,
    query: Result<Query<RejectedQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let page = Page::new(query.limit, query.cursor)?;
    let before = page.after.as_deref().map(str::parse).transpose();
    let before = before.map_err(|_| bad_query("cursor must be the next_cursor of another page".into()))?;
    let since = query.since.map(Timestamp::from_millis);
    let filter = RejectedFilter { origin: query.origin, since, before };
    let rows = state.ledger.database().rejected(&filter, page.read_limit()).await.or_problem(&state)?;
    let mut rows: Vec<_> = rows.into_iter().map(|row| (row.id.to_string(), row)).collect();
    let next_cursor = page.cut(&mut rows, |(id, _)| id);
    let rejected = rows.into_iter().map(|(_, row)| RejectedRowView::new(row)).collect();
    Ok(Json(RejectedPageView { rejected, next_cursor }).into_response())
}

/// One rejected message, with its bytes.
#[utoipa::path(get, path = "/v1/rejected/{id}", tag = "rejected",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = RejectedView), Problems))]
pub(super) async fn get_rejected(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    Ok(Json(RejectedView::new(find(&state, &id).await?)).into_response())
}

/// Takes a rejected message in again, as the event that it would have been, and drops it here. 422 where it still can't
/// be an event and 409 where it is in conflict with one: then it stays.
#[utoipa::path(post, path = "/v1/rejected/{id}/replay", tag = "rejected",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = ReplayedView), Problems))]
pub(super) async fn replay_rejected(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let message = find(&state, &id).await?;
    let replayed = state.ingest.replay(&message).await;
    let results = replayed.map_err(|error| Problem::of_ingest(&error, state.retry_after_s()))?;
    if let Some(problem) = still_bad(&results) {
        return Err(problem);
    }
    // After the commit: what comes in between finds duplicates.
    state.ledger.database().delete_rejected(message.id).await.or_problem(&state)?;
    Ok(Json(ReplayedView { results }).into_response())
}

/// Drops a rejected message for good.
#[utoipa::path(delete, path = "/v1/rejected/{id}", tag = "rejected",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 204, description = "It is gone"), Problems))]
pub(super) async fn delete_rejected(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let number = number(&id)?;
    match state.ledger.database().delete_rejected(number).await.or_problem(&state)? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent(&id)),
    }
}

async fn find(state: &HttpState, id: &str) -> Result<Rejected, Problem> {
    let found = state.ledger.database().rejected_message(number(id)?).await.or_problem(state)?;
    found.ok_or_else(|| absent(id))
}

/// What is no number is the number of nothing.
fn number(id: &str) -> Result<i64, Problem> {
    id.parse().map_err(|_| absent(id))
}

fn absent(id: &str) -> Problem {
    not_found("rejected message", id)
}

/// Why a message stays where it is.
fn still_bad(results: &[ItemResult]) -> Option<Problem> {
    let of = |status| results.iter().filter(move |result| result.status == status);
    let (status, code, bad) = match of(Status::Invalid).next() {
        Some(_) => (StatusCode::UNPROCESSABLE_ENTITY, "still_invalid", Status::Invalid),
        None => (StatusCode::CONFLICT, "conflict", Status::Conflict),
    };
    let detail = |result: &ItemResult| result.detail.clone().unwrap_or_default();
    let first = of(bad).next()?;
    let mut problem = Problem::new(status, code, format!("it stays rejected: {}", detail(first)));
    let field = |result: &ItemResult| FieldError { pointer: result.pointer.clone(), detail: detail(result) };
    problem.errors = of(bad).map(field).collect();
    Some(problem)
}
