//! Tenants: where their events go, and what they may take.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{bad_field, check_tenant, faults, ledger, read, reload, unreadable};
use crate::domain::object::{self, JsonObject};
use crate::domain::partner::RateLimit;
use crate::domain::tenant::{DEFAULT_WEIGHT, Route, WEIGHTS, svix_name_is_valid};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::TenantRow;
use crate::provisioning;
use crate::retention::{self, TenantRetention};
use crate::send::svix::portal::PortalError;

/// A tenant as it is set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantBody {
    /// By default Svix where a token is configured, else direct.
    route: Option<RouteName>,
    /// Only for `svix`; by default the tenant's own name.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[a-zA-Z0-9._-]+$")]
    svix_app: Option<String>,
    /// Only for `svix`: how the payload is reshaped (`omit`, `rename`, `set`, `map`).
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
    /// Its share beside other tenants at the same destination; 1 where absent.
    #[schema(minimum = 1, maximum = 100)]
    weight: Option<u32>,
    /// How fast it may put events in on one node; the configured default where absent.
    #[serde(default, deserialize_with = "object::optional")]
    ingest_limit: Option<IngestLimitBody>,
    /// How long what its events leave behind is kept; as configured where absent.
    #[serde(default, deserialize_with = "object::optional")]
    #[schema(inline = false)]
    retention: Option<TenantRetention>,
}

/// A bucket of tokens, one for each event.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IngestLimitBody {
    /// Events a second, over time; 0.5 is one every two seconds.
    #[schema(minimum = 0.001, maximum = 100_000)]
    per_second: f64,
    /// Most events at once after a pause; a larger batch is taken too, and waited for afterwards. By default those of
    /// one second, at least one.
    #[schema(minimum = 1, maximum = 1_000_000)]
    burst: Option<u32>,
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

/// A tenant as it is told.
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
    /// Its share beside other tenants at the same destination.
    weight: u32,
    /// How fast it may put events in on one node; the configured default where null.
    ingest_limit: Option<IngestLimitView>,
    /// How long what its events leave behind is kept; as configured where absent in it.
    #[schema(inline = false)]
    retention: TenantRetention,
}

/// A bucket of tokens, one for each event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct IngestLimitView {
    /// Events a second, over time.
    per_second: f64,
    /// Most events at once after a pause.
    burst: u32,
}

impl TenantView {
    /// What is told of `row`, which goes to `route`.
    fn new(row: TenantRow, route: Route) -> Self {
        let (route, svix_app) = match route {
            Route::Svix { app } => (RouteName::Svix, Some(app)),
            Route::Direct => (RouteName::Direct, None),
        };
        let limit = |RateLimit { per_second, burst }| IngestLimitView { per_second, burst };
        Self {
            default: row.route.is_none(),
            tenant: row.id,
            route,
            svix_app,
            transform: row.transform.and_then(|text| RawValue::from_string(text).ok()),
            weight: row.weight,
            ingest_limit: row.ingest_limit.map(limit),
            retention: row.retention,
        }
    }
}

impl TenantBody {
    /// The row that this sets.
    fn check(self, tenant: &str) -> Result<TenantRow, Problem> {
        let route = self.route(tenant)?;
        if let Some(transform) = &self.transform {
            match &route {
                Some(Route::Svix { .. }) => {}
                Some(Route::Direct) => {
                    return Err(bad_field(
                        "/transform",
                        "a direct route has no transform: its endpoints have",
                    ));
                }
                None => return Err(bad_field("/transform", "needs `route` to be `svix`")),
            }
            provisioning::vet_transform(transform.get()).map_err(|fault| faults(&[fault]))?;
        }
        let weight = self.weight.unwrap_or(DEFAULT_WEIGHT);
        if !WEIGHTS.contains(&weight) {
            let detail =
                format!("`weight` must be a whole number from {} to {}", WEIGHTS.start(), WEIGHTS.end());
            return Err(bad_field("/weight", &detail));
        }
        let limit = self.ingest_limit.map(|limit| RateLimit::new(limit.per_second, limit.burst));
        let ingest_limit = limit
            .transpose()
            .map_err(|fault| bad_field(&format!("/ingest_limit{}", fault.pointer), &fault.detail))?;
        let transform = self.transform.map(|transform| transform.get().to_owned());
        let retention = self.retention.unwrap_or_default();
        let days = [("events_days", retention.events_days), ("dedup_days", retention.dedup_days)];
        if let Some((name, _)) = days.iter().find(|(_, days)| *days > Some(retention::DAYS_MAX)) {
            let detail = format!("`{name}` is at most {}; 0 is for ever", retention::DAYS_MAX);
            return Err(bad_field(&format!("/retention/{name}"), &detail));
        }
        if let TenantRetention { events_days: Some(events), dedup_days: Some(dedup) } = retention
            && retention::too_short(events, dedup)
        {
            let detail = "identities can't be forgotten before their events: `dedup_days` is too short";
            return Err(bad_field("/retention/dedup_days", detail));
        }
        Ok(TenantRow { id: tenant.to_owned(), route, transform, weight, ingest_limit, retention })
    }

    fn route(&self, tenant: &str) -> Result<Option<Route>, Problem> {
        let app = self.svix_app.clone();
        let app = match (self.route, app) {
            (None, None) => return Ok(None),
            (Some(RouteName::Direct), None) => return Ok(Some(Route::Direct)),
            (Some(RouteName::Svix), app) => app.unwrap_or_else(|| tenant.to_owned()),
            (Some(RouteName::Direct), Some(_)) => {
                return Err(bad_field("/svix_app", "a direct route has no Svix application"));
            }
            (None, Some(_)) => return Err(bad_field("/svix_app", "needs `route` to be `svix`")),
        };
        if !svix_name_is_valid(&app) {
            let detail = "a Svix application has 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`";
            return Err(bad_field("/svix_app", detail));
        }
        Ok(Some(Route::Svix { app }))
    }
}

/// The route of a tenant that has none of its own.
fn default_route(state: &HttpState, tenant: &str) -> Result<Route, Problem> {
    let snapshot = state.directory.snapshot();
    let route = snapshot.route(tenant, state.options.default_route);
    route.map_err(|taken| Problem::new(StatusCode::CONFLICT, "taken", taken.to_string()))
}

/// A tenant: where its events go, and what it may take.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant", min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")),
    responses((status = 200, body = TenantView), Problems))]
pub(super) async fn get_tenant(
    State(state): State<HttpState>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    caller.require_tenant(&tenant)?;
    check_tenant(&tenant)?;
    let row = state.ledger.database().tenant(&tenant).await.map_err(|error| ledger(&state, &error))?;
    let row = row.unwrap_or_else(|| TenantRow::new(tenant, None));
    let route = row.route.clone().map_or_else(|| default_route(&state, &row.id), Ok)?;
    Ok(Json(TenantView::new(row, route)).into_response())
}

/// What a link into the portal should be like.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PortalBody {
    /// How long it is good, in seconds; an hour where absent.
    #[schema(minimum = 3_600, maximum = 604_800)]
    expiry_s: Option<u64>,
}

/// A link into Svix's portal.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PortalView {
    /// Whoever opens it, is in: hand it to the tenant alone.
    url: String,
    /// How long it is good, in seconds.
    expiry_s: u64,
}

/// How long a link may be good at Svix, in seconds.
const PORTAL_EXPIRIES: std::ops::RangeInclusive<u64> = 3_600..=604_800;

/// A link into Svix's portal for a tenant that is routed to Svix. 409 where it is not.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/portal", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant", min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")),
    request_body = Option<PortalBody>,
    responses((status = 200, body = PortalView), Problems))]
pub(super) async fn open_portal(
    State(state): State<HttpState>,
    caller: Caller,
    Path(tenant): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_tenant(&tenant)?;
    check_tenant(&tenant)?;
    let wish: Option<JsonObject<PortalBody>> = if body.is_empty() {
        None
    } else {
        Json::from_bytes(&body).map_err(|rejection| unreadable(&rejection))?.0
    };
    let wish = wish.map(|JsonObject(wish)| wish).unwrap_or_default();
    let expiry_s = wish.expiry_s.unwrap_or(*PORTAL_EXPIRIES.start());
    if !PORTAL_EXPIRIES.contains(&expiry_s) {
        return Err(bad_field("/expiry_s", "a link is good for an hour to a week: 3600 to 604800"));
    }
    let row = state.ledger.database().tenant(&tenant).await.map_err(|error| ledger(&state, &error))?;
    let route = row.and_then(|row| row.route).map_or_else(|| default_route(&state, &tenant), Ok)?;
    let Route::Svix { app } = route else {
        let detail = format!("tenant `{tenant}` is not routed to Svix: there is no portal for it");
        return Err(Problem::new(StatusCode::CONFLICT, "not_on_svix", detail));
    };
    let Some(svix) = &state.senders.svix else {
        let detail = "no Svix token is configured";
        return Err(Problem::new(StatusCode::CONFLICT, "svix_not_configured", detail));
    };
    let link = svix.portal_link(&app, &tenant, expiry_s).await;
    let url = link.map_err(|error| match error {
        PortalError::UnknownApplication(_) => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_application", error.to_string())
        }
        PortalError::Refused(_) => Problem::new(StatusCode::BAD_GATEWAY, "svix_refused", error.to_string()),
    })?;
    Ok(Json(PortalView { url, expiry_s }).into_response())
}

/// Sets where a tenant's events go and what it may take from now on, whole: what is absent gets its default.
#[utoipa::path(put, path = "/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant", min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")),
    request_body = TenantBody,
    responses(
        (status = 200, description = "Known before", body = TenantView),
        (status = 201, description = "New", body = TenantView),
        Problems))]
pub(super) async fn put_tenant(
    State(state): State<HttpState>,
    caller: Caller,
    Path(tenant): Path<String>,
    body: Result<Json<JsonObject<TenantBody>>, JsonRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Admin)?;
    caller.require_tenant(&tenant)?;
    check_tenant(&tenant)?;
    let row = read(body)?.check(&tenant)?;
    let new = state.ledger.database().put_tenant(&row).await.map_err(|error| ledger(&state, &error))?;
    reload(&state).await?;
    let route = row.route.clone().map_or_else(|| default_route(&state, &row.id), Ok)?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TenantView::new(row, route))).into_response())
}
