//! Event types: what events there are, for those who subscribe to them.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::conditional::IfMatch;
use super::paging::{Page, PageQuery};
use super::{OrProblem as _, check_id, faults, json_text, not_found, versioned, written};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::{EventTypeRow, LedgerError};
use crate::provisioning::EventTypeSettings;

/// An event type as it is set.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what EventTypeSettings::parse reads")]
pub(crate) struct EventTypeBody {
    /// What happened, for people.
    #[schema(value_type = String, required = false, max_length = 2_048)]
    description: Option<String>,
    /// JSON Schema of its payload.
    #[schema(value_type = Option<Object>)]
    schema: Option<Box<RawValue>>,
    /// A payload as it may come.
    #[schema(value_type = Option<serde_json::Value>)]
    example: Option<Box<RawValue>>,
}

/// An event type as it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventTypeView {
    /// Its name.
    name: String,
    /// What happened, for people.
    description: String,
    /// JSON Schema of its payload.
    #[schema(value_type = Option<Object>)]
    schema: Option<Box<RawValue>>,
    /// A payload as it may come.
    #[schema(value_type = Option<serde_json::Value>)]
    example: Option<Box<RawValue>>,
    /// Whether Svix was told of it as it is now.
    synced: bool,
    /// When it was made, in milliseconds since the Unix epoch.
    created_at: i64,
}

/// A page of event types.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EventTypesView {
    /// By name.
    event_types: Vec<EventTypeView>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
}

impl EventTypeView {
    fn read(row: EventTypeRow) -> Result<Self, LedgerError> {
        let settings = EventTypeSettings::parse(&row.settings).map_err(|_| {
            LedgerError::Unavailable(format!("the settings of event type {} can't be read", row.name))
        })?;
        let synced = row.synced >= row.version;
        Ok(Self::new(row.name, settings, synced, row.created_at.as_millis()))
    }

    fn new(name: String, settings: EventTypeSettings, synced: bool, created_at: i64) -> Self {
        let EventTypeSettings { description, schema, example } = settings;
        Self { name, description, schema, example, synced, created_at }
    }
}

/// All event types, a page at a time.
#[utoipa::path(get, path = "/v1/event-types", tag = "event types", params(PageQuery),
    responses((status = 200, body = EventTypesView), Problems))]
pub(super) async fn list_event_types(
    State(state): State<HttpState>,
    caller: Caller,
    page: Page,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let read = state.ledger.database().event_types(page.after.as_deref(), page.read_limit()).await;
    let mut rows = read.or_problem(&state)?;
    let next_cursor = page.cut(&mut rows, |row| &row.name);
    let views: Result<Vec<_>, _> = rows.into_iter().map(EventTypeView::read).collect();
    let event_types = views.or_problem(&state)?;
    Ok(Json(EventTypesView { event_types, next_cursor }).into_response())
}

/// One event type.
#[utoipa::path(get, path = "/v1/event-types/{name}", tag = "event types",
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = EventTypeView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn get_event_type(
    State(state): State<HttpState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let row = state.ledger.database().event_type(&name).await.or_problem(&state)?;
    let row = row.ok_or_else(|| not_found("event type", &name))?;
    let version = row.version;
    let view = EventTypeView::read(row).or_problem(&state)?;
    Ok(versioned(StatusCode::OK, version, view))
}

/// Makes an event type or sets what it is from now on, whole. Svix is told in the background.
#[utoipa::path(put, path = "/v1/event-types/{name}", tag = "event types",
    params(
        ("name" = String, Path, description = "Its name: 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`",
            min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9_-][a-zA-Z0-9._-]*$"),
        ("if-match" = Option<String>, Header, description = "Only where this is its ETag")),
    request_body = EventTypeBody,
    responses(
        (status = 200, description = "Known before", body = EventTypeView,
            headers(("etag" = String, description = "Its version"))),
        (status = 201, description = "New", body = EventTypeView,
            headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn put_event_type(
    State(state): State<HttpState>,
    caller: Caller,
    Path(name): Path<String>,
    if_match: IfMatch,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    check_id("/name", "an event type", &name)?;
    let settings = EventTypeSettings::parse(&json_text(&headers, &body)?).map_err(|found| faults(&found))?;
    let text = settings.to_json().or_problem(&state)?;
    let database = state.ledger.database();
    let known = database.event_type(&name).await.or_problem(&state)?;
    let guard = if_match.check(known.as_ref().map(|row| row.version))?;
    let now = state.clock.now();
    let put = database.put_event_type(&name, &text, guard, now).await;
    let (status, version) = written(&state, put).await?;
    state.event_types_changed.notify_one();
    let created_at = known.map_or(now, |row| row.created_at).as_millis();
    Ok(versioned(status, version, EventTypeView::new(name, settings, false, created_at)))
}
