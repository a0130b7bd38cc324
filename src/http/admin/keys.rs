//! API keys.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{OrProblem as _, bad_field, check_tenant, not_found, read, reload};
use crate::domain::object::JsonObject;
use crate::domain::tenant::NAME_LIMIT_BYTES;
use crate::http::auth::{Caller, Scope, new_key};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::KeyInfo;

/// A key that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyBody {
    /// What it is for.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    name: String,
    /// `ingest`, `read`, `admin`; at least one.
    #[schema(value_type = Vec<Scope>, min_items = 1)]
    scopes: Vec<String>,
    /// The one tenant it is good for; all where absent.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
}

/// A key that was made: the only time it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NewKeyView {
    key: String,
    #[serde(flatten)]
    info: KeyInfo,
}

/// Every key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct KeysView {
    keys: Vec<KeyInfo>,
}

/// Makes a key and tells it, this once.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", request_body = KeyBody,
    responses((status = 201, body = NewKeyView), Problems))]
pub(super) async fn create_key(
    State(state): State<HttpState>,
    caller: Caller,
    body: Result<Json<JsonObject<KeyBody>>, JsonRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let body = read(body)?;
    if body.name.trim().is_empty()
        || body.name.len() > NAME_LIMIT_BYTES
        || body.name.contains(char::is_control)
    {
        return Err(bad_field("/name", "a name has 1 to 256 bytes and no control characters"));
    }
    if let Some(tenant) = &body.tenant {
        check_tenant(tenant)?;
    }
    let scopes: Option<Vec<_>> = body.scopes.iter().map(|scope| Scope::parse(scope)).collect();
    let Some(scopes) = scopes.filter(|scopes| !scopes.is_empty()) else {
        return Err(bad_field("/scopes", "scopes are `ingest`, `read` and `admin`, at least one of them"));
    };
    let (key, text) = new_key(body.name.trim(), &scopes, body.tenant.as_deref(), &state.clock);
    state.ledger.database().add_api_key(&key).await.or_problem(&state)?;
    reload(&state).await?;
    let view = NewKeyView { key: text.expose_secret().to_owned(), info: key.info };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

/// Every key there ever was, without its secret.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", responses((status = 200, body = KeysView), Problems))]
pub(super) async fn list_keys(State(state): State<HttpState>, caller: Caller) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let keys = state.ledger.database().all_api_keys().await.or_problem(&state)?;
    let keys = keys.into_iter().map(|key| key.info).collect();
    Ok(Json(KeysView { keys }).into_response())
}

/// Revokes a key: it is good no longer, on every node within a second.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "The part of the key between `ph_` and the next `_`")),
    responses((status = 204, description = "Revoked"), Problems))]
pub(super) async fn revoke_key(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let now = state.clock.now();
    let revoked = state.ledger.database().revoke_api_key(&id, now).await.or_problem(&state)?;
    reload(&state).await?;
    if !revoked {
        return Err(not_found("good key", &id));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
