//! Endpoints: the URLs of partners.

mod change;
mod views;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use secrecy::ExposeSecret as _;

pub(super) use self::change::{
    __path_disable_endpoint, __path_enable_endpoint, __path_patch_endpoint, __path_rotate_secret,
    disable_endpoint, enable_endpoint, patch_endpoint, rotate_secret,
};
use self::views::{EndpointBody, EndpointView, EndpointsView, NewEndpointView};
use super::conditional::IfMatch;
use super::paging::{Page, PageQuery};
use super::{OrProblem as _, faults, gone, json_text, not_found, reload, versioned};
use crate::domain::partner::{EndpointSettings, EndpointState};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::{EndpointRow, NewEndpoint};
use crate::provisioning;
use crate::send::{TestError, TestResult};

/// A partner's endpoints, a page at a time.
#[utoipa::path(get, path = "/v1/partners/{partner}/endpoints", tag = "endpoints",
    params(("partner" = String, Path, description = "The partner's id"), PageQuery),
    responses((status = 200, body = EndpointsView), Problems))]
pub(super) async fn list_endpoints(
    State(state): State<HttpState>,
    caller: Caller,
    Path(partner): Path<String>,
    page: Page,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    let database = state.ledger.database();
    let known = database.partner(&partner).await.or_problem(&state)?;
    known.ok_or_else(|| not_found("partner", &partner))?;
    let read = database.endpoints_of(&partner, page.after.as_deref(), page.read_limit()).await;
    let mut rows = read.or_problem(&state)?;
    let next_cursor = page.cut(&mut rows, |row| &row.id);
    let views: Result<Vec<_>, _> = rows.iter().map(|row| view(&state, row)).collect();
    Ok(Json(EndpointsView { endpoints: views?, next_cursor }).into_response())
}

/// Adds an endpoint to a partner; its secret is told this once.
#[utoipa::path(post, path = "/v1/partners/{partner}/endpoints", tag = "endpoints",
    params(("partner" = String, Path, description = "The partner's id")),
    request_body = EndpointBody,
    responses(
        (status = 201, description = "New", body = NewEndpointView,
            headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn add_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(partner): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let settings = EndpointSettings::parse(&json_text(&headers, &body)?).map_err(|found| faults(&found))?;
    let settings = provisioning::vet(settings, &state.dial_policy).map_err(|found| faults(&found))?;
    let (clock, vault) = (&*state.clock, &*state.vault);
    let id = provisioning::new_endpoint_id(clock);
    let secret = provisioning::secret(None, &settings.signature, clock).map_err(|fault| faults(&[fault]))?;
    let sealed = provisioning::seal_secret(vault, &id, &secret, clock);
    let stored = provisioning::seal_settings(vault, &id, &settings, clock);
    let endpoint = NewEndpoint {
        id: id.clone(),
        partner: partner.clone(),
        settings: stored.or_problem(&state)?,
        secret: sealed.or_problem(&state)?,
    };
    let now = state.clock.now();
    let added = state.ledger.database().add_endpoint(&endpoint, now).await;
    let added = added.or_problem(&state)?;
    let version = added.ok_or_else(|| not_found("partner", &partner))?;
    reload(&state).await?;
    let row = EndpointRow {
        id,
        partner,
        settings: endpoint.settings,
        secret: endpoint.secret,
        previous_secret: None,
        state: EndpointState::Active,
        failing_since: None,
        proven_at: None,
        version,
        created_at: now,
    };
    let endpoint = EndpointView::new(&row, settings, now);
    let body = NewEndpointView { secret: secret.text().expose_secret().to_owned(), endpoint };
    Ok(versioned(StatusCode::CREATED, version, body))
}

/// One endpoint, without its secret.
#[utoipa::path(get, path = "/v1/endpoints/{id}", tag = "endpoints",
    params(("id" = String, Path, description = "The endpoint's id, `ep_…`")),
    responses(
        (status = 200, body = EndpointView, headers(("etag" = String, description = "Its version"))),
        Problems))]
pub(super) async fn get_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_unbound()?;
    let row = find(&state, &id).await?;
    Ok(versioned(StatusCode::OK, row.version, view(&state, &row)?))
}

/// Deletes an endpoint. What waits for it is not sent any more.
#[utoipa::path(delete, path = "/v1/endpoints/{id}", tag = "endpoints",
    params(
        ("id" = String, Path, description = "The endpoint's id, `ep_…`"),
        ("if-match" = Option<String>, Header, description = "Only where this is its ETag")),
    responses((status = 204, description = "Gone"), Problems))]
pub(super) async fn delete_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let known = find(&state, &id).await?;
    let guard = if_match.check(Some(known.version))?;
    let deleted = state.ledger.database().delete_endpoint(&id, guard).await;
    gone(&state, deleted, &if_match, not_found("endpoint", &id)).await
}

/// Sends a `posthaste.test` event to the endpoint now, whatever its filters say, and tells what came back.
#[utoipa::path(post, path = "/v1/endpoints/{id}/test", tag = "endpoints",
    params(("id" = String, Path, description = "The endpoint's id, `ep_…`")),
    responses((status = 200, description = "What came back, good or bad", body = TestResult), Problems))]
pub(super) async fn test_endpoint(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    find(&state, &id).await?;
    let Some(tester) = &state.endpoint_tester else {
        let detail = "this process does not send to endpoints";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "not_available", detail));
    };
    match tester.test(&id).await {
        Ok(result) => Ok(Json(result).into_response()),
        Err(TestError::Unknown) => Err(not_found("endpoint", &id)),
        Err(TestError::Unavailable(why)) => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_available", why);
            Err(problem.retry_after(state.retry_after_s()))
        }
    }
}

async fn find(state: &HttpState, id: &str) -> Result<EndpointRow, Problem> {
    let row = state.ledger.database().endpoint(id).await.or_problem(state)?;
    row.ok_or_else(|| not_found("endpoint", id))
}

fn view(state: &HttpState, row: &EndpointRow) -> Result<EndpointView, Problem> {
    let settings = provisioning::open_settings(&state.vault, row).or_problem(state)?;
    Ok(EndpointView::new(row, settings, state.clock.now()))
}
