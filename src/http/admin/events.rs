//! Events: lists, and one event's whole story.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::paging::{Page, bad_query};
use super::times::time;
use super::{OrProblem as _, not_found};
use crate::domain::partner::EventTypeFilter;
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::{EventFilter, EventState};
use crate::story::{EventPage, Found, Story};

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Of this tenant. A key that is bound to one sees no other.
    #[param(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// Of this type; `order.*`: of all types below it.
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// That stand so: `pending`, `delivered`, `dead`, `canceled` or `unrouted`.
    #[param(pattern = "^(pending|delivered|dead|canceled|unrouted)$")]
    state: Option<String>,
    /// Recorded then or later: RFC 3339, or milliseconds since the Unix epoch.
    since: Option<String>,
    /// Recorded before, likewise.
    until: Option<String>,
    /// Most entries, 1 to 200; 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(pattern = r"^[A-Za-z0-9_-]*$")]
    cursor: Option<String>,
}

/// Which of a tenant's sources an id is from.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceQuery {
    /// The event's source; empty: the event without one. Where it is absent, the newest event of the id is told.
    source: Option<String>,
}

/// The tenant whose events are asked for: the one the key is bound to, unless another is named.
pub(super) fn asked_tenant(caller: &Caller, named: Option<String>) -> Result<Option<String>, Problem> {
    if let Some(tenant) = &named {
        super::check_tenant(tenant)?;
        caller.require_tenant(tenant)?;
    }
    Ok(named.or_else(|| caller.tenant.clone()))
}

impl EventsQuery {
    fn filter(self, caller: &Caller) -> Result<(EventFilter, Page), Problem> {
        let page = Page::new(self.limit, self.cursor)?;
        let event_type = self.event_type.as_deref().map(EventTypeFilter::parse).transpose();
        let state = self.state.as_deref().map(|state| {
            let names = EventState::ALL.map(EventState::as_str).join(", ");
            EventState::parse(state).ok_or_else(|| bad_query(format!("state must be one of {names}")))
        });
        let filter = EventFilter {
            tenant: asked_tenant(caller, self.tenant)?,
            event_type: event_type.map_err(|why| bad_query(format!("type: {why}")))?,
            state: state.transpose()?,
            since: time("since", self.since.as_deref())?,
            until: time("until", self.until.as_deref())?,
        };
        Ok((filter, page))
    }
}

/// Events by filter, newest first. A page looks at a bounded part of the ledger: it may be short, or empty, and
/// `next_cursor` goes on. Where a read replica is configured, the list may lag behind.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventsQuery),
    responses((status = 200, body = EventPage), Problems))]
pub(super) async fn list_events(
    State(state): State<HttpState>,
    caller: Caller,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let (filter, page) = query.filter(&caller)?;
    let cursor = page.after.as_deref().map(str::parse).transpose();
    let cursor = cursor.map_err(|_| bad_query("cursor must be the next_cursor of another page".into()))?;
    let mut listed = state.stories().events(&filter, cursor, page.limit()).await.or_problem(&state)?;
    listed.next_cursor = listed.next_cursor.as_deref().map(Page::cursor);
    Ok(Json(listed).into_response())
}

/// One event's whole story: when it came and how often, where it went, every attempt, what its deliveries wait for, and
/// what can be done. 410 where it is known, but its payload is no longer kept.
#[utoipa::path(get, path = "/v1/events/{tenant}/{id}", tag = "events", params(
        ("tenant" = String, Path, description = "Whose it is"),
        ("id" = String, Path, description = "Its id, percent-encoded"), SourceQuery),
    responses((status = 200, body = Story), Problems))]
pub(super) async fn get_event(
    State(state): State<HttpState>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
    query: Result<Query<SourceQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let source = ask_for_one(&caller, &tenant, &id, query)?;
    match state.stories().story(&tenant, source.as_deref(), &id).await.or_problem(&state)? {
        Found::Story(story) => Ok(Json(*story).into_response()),
        Found::Pruned(at) => Err(pruned(&id, &at.to_rfc3339())),
        Found::SourceNeeded => {
            let detail = format!(
                "there is no event `{id}` of the first thousand sources that this tenant has: name its own (?source=)"
            );
            Err(Problem::new(StatusCode::NOT_FOUND, "source_needed", detail))
        }
        Found::Nothing => Err(not_found("event", &id)),
    }
}

/// An event's bytes, as they came.
#[utoipa::path(get, path = "/v1/events/{tenant}/{id}/payload", tag = "events", params(
        ("tenant" = String, Path, description = "Whose it is"),
        ("id" = String, Path, description = "Its id, percent-encoded"), SourceQuery),
    responses((status = 200, description = "The event as it came", body = Object), Problems))]
pub(super) async fn get_payload(
    State(state): State<HttpState>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
    query: Result<Query<SourceQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let source = ask_for_one(&caller, &tenant, &id, query)?;
    let payload = state.stories().payload(&tenant, source.as_deref(), &id).await.or_problem(&state)?;
    let payload = payload.ok_or_else(|| not_found("event", &id))?;
    Ok(([(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], payload).into_response())
}

/// Whether the caller may see it, and the source that is asked for.
fn ask_for_one(
    caller: &Caller,
    tenant: &str,
    id: &str,
    query: Result<Query<SourceQuery>, QueryRejection>,
) -> Result<Option<String>, Problem> {
    caller.require(Scope::Read)?;
    caller.require_tenant(tenant)?;
    let Query(SourceQuery { source }) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    // No name has a NUL, and Postgres refuses to be asked for one.
    let nameless =
        [Some(tenant), Some(id), source.as_deref()].iter().flatten().any(|name| name.contains('\0'));
    if nameless { Err(not_found("event", id)) } else { Ok(source) }
}

fn pruned(id: &str, at: &str) -> Problem {
    let detail = format!(
        "event `{id}` was recorded at about {at}, and what it carried is no longer kept: all that is known is that it \
         came, so that it counts as a duplicate when it comes again"
    );
    Problem::new(StatusCode::GONE, "pruned", detail)
}
