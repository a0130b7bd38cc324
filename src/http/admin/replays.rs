//! Replays: deliveries that are done, out again.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::paging::{Page, PageQuery};
use super::{bad_field, ledger, not_found, read};
use crate::domain::object::{self, JsonObject};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::replays::{Replay, ReplayError, ReplayFilter, ReplayPreview, ReplayWish};

/// A wish for a replay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayBody {
    /// Which deliveries.
    #[serde(default, deserialize_with = "object::one")]
    #[schema(inline = false)]
    filter: ReplayFilter,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
    /// Deliveries a second; 100 where absent.
    #[schema(minimum = 1, maximum = 10_000)]
    pace: Option<u32>,
    /// Partners are to take them for other messages: each gets a `webhook-id` of its own.
    #[serde(default)]
    new_ids: bool,
}

/// A page of replays.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayPageView {
    /// Newest first.
    #[schema(inline = false)]
    replays: Vec<Replay>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
}

fn problem(state: &HttpState, error: ReplayError) -> Problem {
    match error {
        ReplayError::Invalid { pointer: pointer @ "/pace", detail } => bad_field(pointer, &detail),
        ReplayError::Invalid { pointer, detail } => bad_field(&format!("/filter{pointer}"), &detail),
        ReplayError::Unknown(id) => not_found("replay", &id),
        error @ ReplayError::Ended(_) => {
            Problem::new(StatusCode::CONFLICT, "replay_ended", error.to_string())
        }
        ReplayError::Ledger(error) => ledger(state, &error),
    }
}

/// Starts a replay, or counts what it would put back (`dry_run`).
///
/// A delivery goes out again under the `webhook-id` that it had, so that receivers that have it can tell, unless
/// `new_ids` is set. Svix sends a message that it has again by itself; one that it lost is posted.
#[utoipa::path(post, path = "/v1/replays", tag = "replays", request_body = ReplayBody,
    responses(
        (status = 200, description = "A dry run: the count", body = ReplayPreview),
        (status = 201, description = "It runs", body = Replay),
        Problems))]
pub(super) async fn start_replay(
    State(state): State<HttpState>,
    caller: Caller,
    body: Result<Json<JsonObject<ReplayBody>>, JsonRejection>,
) -> Result<Response, Problem> {
    let ReplayBody { mut filter, dry_run, pace, new_ids } = read(body)?;
    caller.require(if dry_run { Scope::Read } else { Scope::Admin })?;
    if let Some(bound) = &caller.tenant {
        caller.require_tenant(filter.tenant.get_or_insert_with(|| bound.clone()))?;
    }
    if dry_run {
        let preview = state.replays.preview(&filter).await.map_err(|error| problem(&state, error))?;
        return Ok(Json(preview).into_response());
    }
    let wish = ReplayWish { filter, pace, new_ids };
    let replay = state.replays.start(&wish, &caller.name).await.map_err(|error| problem(&state, error))?;
    let location = format!("/v1/replays/{}", replay.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(replay)).into_response())
}

/// Replays, a page at a time, newest first.
/// Where a read replica is configured, the list may lag behind.
#[utoipa::path(get, path = "/v1/replays", tag = "replays", params(PageQuery),
    responses((status = 200, body = ReplayPageView), Problems))]
pub(super) async fn list_replays(
    State(state): State<HttpState>,
    caller: Caller,
    page: Page,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let before = page.after.as_deref();
    let listed = state.replays.list(caller.tenant.as_deref(), before, page.read_limit()).await;
    let mut replays = listed.map_err(|error| problem(&state, error))?;
    let next_cursor = page.cut(&mut replays, |replay| &replay.id);
    Ok(Json(ReplayPageView { replays, next_cursor }).into_response())
}

/// A replay and how far it is.
#[utoipa::path(get, path = "/v1/replays/{id}", tag = "replays",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = Replay), Problems))]
pub(super) async fn get_replay(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    Ok(Json(find(&state, &caller, &id).await?).into_response())
}

/// Ends a replay: nothing more is put back. What was put back already goes out.
#[utoipa::path(post, path = "/v1/replays/{id}/cancel", tag = "replays",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = Replay), Problems))]
pub(super) async fn cancel_replay(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let changing = state.replays.cancel(&id);
    change(&state, &caller, &id, changing).await
}

/// Lets a replay rest. What was put back already goes out.
#[utoipa::path(post, path = "/v1/replays/{id}/pause", tag = "replays",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = Replay), Problems))]
pub(super) async fn pause_replay(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let changing = state.replays.pause(&id);
    change(&state, &caller, &id, changing).await
}

/// Lets a replay go on.
#[utoipa::path(post, path = "/v1/replays/{id}/resume", tag = "replays",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, body = Replay), Problems))]
pub(super) async fn resume_replay(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let changing = state.replays.resume(&id);
    change(&state, &caller, &id, changing).await
}

/// Does what an administrator wants of a replay that the caller may know of: the replay as it is then.
async fn change(
    state: &HttpState,
    caller: &Caller,
    id: &str,
    changing: impl Future<Output = Result<Replay, ReplayError>>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    find(state, caller, id).await?;
    let replay = changing.await.map_err(|error| problem(state, error))?;
    Ok(Json(replay).into_response())
}

/// A replay that the caller may know of.
async fn find(state: &HttpState, caller: &Caller, id: &str) -> Result<Replay, Problem> {
    let found = state.replays.get(id).await.map_err(|error| problem(state, error))?;
    let known = |replay: &Replay| caller.tenant.is_none() || replay.filter.tenant == caller.tenant;
    found.filter(known).ok_or_else(|| not_found("replay", id))
}
