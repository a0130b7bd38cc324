//! Deliveries: lists, one with its attempts, out again, or not any more.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::events::asked_tenant;
use super::paging::{Page, bad_query};
use super::times::time;
use super::{OrProblem as _, not_found};
use crate::domain::delivery::DeliveryId;
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::{DeliveryCursor, DeliveryFilter, DeliveryState, LedgerError};
use crate::story::{DeliveryPage, DeliveryStory, Operator, Wish};

/// Which deliveries.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeliveriesQuery {
    /// That stand so: `pending`, `delivered`, `dead` or `canceled`.
    #[param(pattern = "^(pending|delivered|dead|canceled)$")]
    state: Option<String>,
    /// Of this tenant. A key that is bound to one sees no other.
    #[param(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// To this partner's endpoints.
    partner: Option<String>,
    /// To this endpoint, `ep_…`, or this Svix application, as `svix:` and its uid.
    endpoint: Option<String>,
    /// Of events recorded then or later: RFC 3339, or milliseconds since the Unix epoch.
    since: Option<String>,
    /// Of events recorded before, likewise.
    until: Option<String>,
    /// Most entries, 1 to 200; 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(pattern = r"^[A-Za-z0-9_-]*$")]
    cursor: Option<String>,
}

/// Deliveries by filter: newest first; those that wait (`state=pending`) lane by lane, and in each what falls due first.
/// A page looks at a bounded part of the ledger: it may be short, or empty, and `next_cursor` goes on.
/// Where a read replica is configured, the list may lag behind.
#[utoipa::path(get, path = "/v1/deliveries", tag = "deliveries", params(DeliveriesQuery),
    responses((status = 200, body = DeliveryPage), Problems))]
pub(super) async fn list_deliveries(
    State(state): State<HttpState>,
    caller: Caller,
    query: Result<Query<DeliveriesQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let Query(query) = query.map_err(|rejection| bad_query(rejection.body_text()))?;
    let page = Page::new(query.limit, query.cursor)?;
    let stories = state.stories();
    let wanted = query.state.as_deref().map(|state| {
        let names = DeliveryState::ALL.map(DeliveryState::as_str).join(", ");
        DeliveryState::parse(state).ok_or_else(|| bad_query(format!("state must be one of {names}")))
    });
    let named = [query.partner.as_deref(), query.endpoint.as_deref()];
    if named.iter().flatten().any(|name| name.contains(char::is_control)) {
        return Err(bad_query("neither a partner nor an endpoint has control characters in its name".into()));
    }
    let filter = DeliveryFilter {
        state: wanted.transpose()?,
        tenant: asked_tenant(&caller, query.tenant)?,
        destinations: stories.destinations(query.partner.as_deref(), query.endpoint.as_deref()),
        since: time("since", query.since.as_deref())?,
        until: time("until", query.until.as_deref())?,
    };
    let cursor = page.after.as_deref().map(|text| {
        DeliveryCursor::parse(text)
            .filter(|cursor| cursor.fits(filter.state))
            .ok_or_else(|| bad_query("cursor must be the next_cursor of another page".into()))
    });
    let listed = stories.deliveries(&filter, cursor.transpose()?, page.limit()).await;
    let mut listed = listed.or_problem(&state)?;
    listed.next_cursor = listed.next_cursor.as_deref().map(Page::cursor);
    Ok(Json(listed).into_response())
}

/// One delivery: its attempts, what operators did to it, and what it waits for.
#[utoipa::path(get, path = "/v1/deliveries/{id}", tag = "deliveries",
    params(("id" = String, Path, description = "Its id, `dlv_…`")),
    responses((status = 200, body = DeliveryStory), Problems))]
pub(super) async fn get_delivery(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let found = state.stories().delivery(number(&id)?).await.or_problem(&state)?;
    // Of another tenant's it is not even told that it exists.
    let own = |story: &DeliveryStory| caller.tenant.as_ref().is_none_or(|own| *own == story.delivery.tenant);
    found.filter(own).map(|story| Json(story).into_response()).ok_or_else(|| absent(&id))
}

/// Lets a delivery go out again now, under the same idempotency key and `webhook-id`: one that is dead, canceled or
/// delivered, or that waits for the time of its next attempt, which is now then. It goes before what waits in its lane.
/// Its receiver may recognise the key: Svix does, and sends a message that it has no second time.
#[utoipa::path(post, path = "/v1/deliveries/{id}/retry", tag = "deliveries",
    params(("id" = String, Path, description = "Its id, `dlv_…`")),
    responses((status = 200, description = "It is under way; how it stands", body = DeliveryStory), Problems))]
pub(super) async fn retry_delivery(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    answer(&state, &id, state.stories().retry(number(&id)?, operator(caller)).await)
}

/// Takes a delivery that waits out of the queue, for good: it ends as canceled. 409 while it is being sent.
#[utoipa::path(post, path = "/v1/deliveries/{id}/cancel", tag = "deliveries",
    params(("id" = String, Path, description = "Its id, `dlv_…`")),
    responses((status = 200, description = "It is canceled", body = DeliveryStory), Problems))]
pub(super) async fn cancel_delivery(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    answer(&state, &id, state.stories().cancel(number(&id)?, operator(caller)).await)
}

fn operator(caller: Caller) -> Operator {
    Operator { name: caller.name, tenant: caller.tenant }
}

fn answer(state: &HttpState, id: &str, wish: Result<Wish, LedgerError>) -> Result<Response, Problem> {
    match wish.or_problem(state)? {
        Wish::Granted(story) => Ok(Json(*story).into_response()),
        Wish::Refused(code, words) => Err(Problem::new(StatusCode::CONFLICT, code, words)),
        Wish::Nothing => Err(absent(id)),
    }
}

/// What is no id is the id of nothing.
fn number(id: &str) -> Result<DeliveryId, Problem> {
    DeliveryId::parse(id).ok_or_else(|| absent(id))
}

fn absent(id: &str) -> Problem {
    not_found("delivery", id)
}
