//! Tenants: where their events go.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{bad_field, check_tenant, faults, ledger, read, reload};
use crate::domain::tenant::{Route, svix_name_is_valid};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::TenantRow;
use crate::provisioning;

/// A tenant's route, as it is set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantBody {
    route: RouteName,
    /// Only for `svix`; by default the tenant's own name.
    svix_app: Option<String>,
    /// Only for `svix`: how the payload is reshaped (`omit`, `rename`, `set`, `map`).
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
}

/// Where events go: to a Svix application, or to the endpoints of partners.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RouteName {
    /// To a Svix application.
    Svix,
    /// To the endpoints of partners alone.
    Direct,
}

/// A tenant's route, as it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantView {
    tenant: String,
    route: RouteName,
    /// Only for `svix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    svix_app: Option<String>,
    /// How the payload is reshaped on its way to Svix.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
    /// It has no route of its own: this is the default one.
    default: bool,
}

impl TenantView {
    fn new(tenant: String, route: Route, transform: Option<Box<RawValue>>, default: bool) -> Self {
        let (route, svix_app) = match route {
            Route::Svix { app } => (RouteName::Svix, Some(app)),
            Route::Direct => (RouteName::Direct, None),
        };
        Self { tenant, route, svix_app, transform, default }
    }
}

/// Where a tenant's events go.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant")),
    responses((status = 200, body = TenantView), Problems))]
pub(super) async fn get_tenant(
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
    let row = state.ledger.database().tenant(&tenant).await.map_err(|error| ledger(&state, &error))?;
    let transform = row.and_then(|row| RawValue::from_string(row.transform?).ok());
    Ok(Json(TenantView::new(tenant, route, transform, default)).into_response())
}

/// Sets where a tenant's events go from now on, whole.
#[utoipa::path(put, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant")),
    request_body = TenantBody,
    responses(
        (status = 200, description = "Known before", body = TenantView),
        (status = 201, description = "New", body = TenantView),
        Problems))]
pub(super) async fn put_tenant(
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
    if let Some(transform) = &body.transform {
        if route == Route::Direct {
            return Err(bad_field("/transform", "a direct route has no transform: its endpoints have"));
        }
        provisioning::vet_transform(transform.get()).map_err(|fault| faults(&[fault]))?;
    }
    let transform = body.transform.as_ref().map(|transform| transform.get().to_owned());
    let row = TenantRow { id: tenant.clone(), route: route.clone(), transform };
    let new = state.ledger.database().put_tenant(&row).await.map_err(|error| ledger(&state, &error))?;
    reload(&state).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TenantView::new(tenant, route, body.transform, false))).into_response())
}
