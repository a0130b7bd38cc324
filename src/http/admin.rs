//! `/v1`: tenants and API keys.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::auth::{Caller, Scope, new_key};
use super::problem::{FieldError, Problem};
use super::state::HttpState;
use crate::domain::tenant::{NAME_LIMIT_BYTES, Route, svix_name_is_valid};
use crate::ledger::{KeyInfo, LedgerError, TenantRow};

/// A tenant's route, as it is set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantBody {
    route: RouteName,
    /// Only for `svix`; by default the tenant's own name.
    svix_app: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RouteName {
    Svix,
    Direct,
}

/// A tenant's route, as it is told.
#[derive(Debug, Serialize)]
struct TenantView {
    tenant: String,
    route: RouteName,
    #[serde(skip_serializing_if = "Option::is_none")]
    svix_app: Option<String>,
    /// It has no route of its own: this is the default one.
    default: bool,
}

impl TenantView {
    fn new(tenant: String, route: Route, default: bool) -> Self {
        let (route, svix_app) = match route {
            Route::Svix { app } => (RouteName::Svix, Some(app)),
            Route::Direct => (RouteName::Direct, None),
        };
        Self { tenant, route, svix_app, default }
    }
}

/// `GET /v1/tenants/{tenant}`: where the tenant's events go.
pub async fn get_tenant(
    State(state): State<HttpState>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_tenant(&tenant)?;
    check_tenant(&tenant)?;
    let snapshot = state.directory.snapshot();
    let default = snapshot.own_route(&tenant).is_none();
    let route = snapshot
        .route(&tenant, state.options.default_route)
        .map_err(|taken| Problem::new(StatusCode::CONFLICT, "taken", taken.to_string()))?;
    Ok(Json(TenantView::new(tenant, route, default)).into_response())
}

/// `PUT /v1/tenants/{tenant}`: sets where its events go from now on. 201 for a new one, 200 for a known one.
pub async fn put_tenant(
    State(state): State<HttpState>,
    caller: Caller,
    Path(tenant): Path<String>,
    body: Result<Json<TenantBody>, JsonRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_tenant(&tenant)?;
    check_tenant(&tenant)?;
    let body = read(body)?;
    let route = match (body.route, body.svix_app) {
        (RouteName::Direct, None) => Route::Direct,
        (RouteName::Direct, Some(_)) => {
            return Err(bad_field("/svix_app", "a direct route has no Svix application"));
        }
        (RouteName::Svix, app) => Route::Svix { app: app.unwrap_or_else(|| tenant.clone()) },
    };
    if let Route::Svix { app } = &route
        && !svix_name_is_valid(app)
    {
        return Err(bad_field(
            "/svix_app",
            "a Svix application has 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`",
        ));
    }
    let row = TenantRow { id: tenant.clone(), route: route.clone() };
    let new = state.ledger.database().put_tenant(&row).await.map_err(|error| ledger(&state, &error))?;
    state.directory.reload().await.map_err(|error| ledger(&state, &error))?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TenantView::new(tenant, route, false))).into_response())
}

/// A key that is to be made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyBody {
    name: String,
    scopes: Vec<String>,
    tenant: Option<String>,
}

/// A key that was made: the only time it is told.
#[derive(Debug, Serialize)]
struct NewKeyView {
    key: String,
    #[serde(flatten)]
    info: KeyInfo,
}

#[derive(Debug, Serialize)]
struct KeysView {
    keys: Vec<KeyInfo>,
}

/// `POST /v1/keys`: makes a key and tells it, this once.
pub async fn create_key(
    State(state): State<HttpState>,
    caller: Caller,
    body: Result<Json<KeyBody>, JsonRejection>,
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
    state.ledger.database().add_api_key(&key).await.map_err(|error| ledger(&state, &error))?;
    state.directory.reload().await.map_err(|error| ledger(&state, &error))?;
    let view = NewKeyView { key: text.expose_secret().to_owned(), info: key.info };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

/// `GET /v1/keys`: every key there ever was, without its secret.
pub async fn list_keys(State(state): State<HttpState>, caller: Caller) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let keys = state.ledger.database().all_api_keys().await.map_err(|error| ledger(&state, &error))?;
    let keys = keys.into_iter().map(|key| key.info).collect();
    Ok(Json(KeysView { keys }).into_response())
}

/// `DELETE /v1/keys/{id}`: the key is good no longer, on every node within a second.
pub async fn revoke_key(
    State(state): State<HttpState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_unbound()?;
    let now = state.clock.now();
    let revoked =
        state.ledger.database().revoke_api_key(&id, now).await.map_err(|error| ledger(&state, &error))?;
    state.directory.reload().await.map_err(|error| ledger(&state, &error))?;
    if !revoked {
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no good key `{id}`")));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn ledger(state: &HttpState, error: &LedgerError) -> Problem {
    Problem::of_ledger(error, state.retry_after_s())
}

fn bad_field(pointer: &str, detail: &str) -> Problem {
    let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_field", detail);
    problem.errors.push(FieldError { pointer: pointer.to_owned(), detail: detail.to_owned() });
    problem
}

fn check_tenant(tenant: &str) -> Result<(), Problem> {
    if tenant.is_empty() || tenant.len() > NAME_LIMIT_BYTES || tenant.contains(char::is_control) {
        return Err(bad_field("/tenant", "a tenant has 1 to 256 bytes and no control characters"));
    }
    Ok(())
}

fn read<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|rejection| {
        let code = match rejection.status() {
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_type",
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            _ => "invalid_body",
        };
        Problem::new(rejection.status(), code, rejection.body_text())
    })
}
