//! The HTTP side: ingest, administration, console, health, metrics. It records and answers; it never sends.

mod admin;
mod auth;
mod console;
mod encoding;
mod health;
mod metrics;
mod notifications;
mod openapi;
mod patience;
mod problem;
mod push;
mod server;
mod state;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_response;
use axum::routing::{get, post};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::map_request_body::MapRequestBodyLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

pub use self::auth::{Scope, new_key};
pub use self::push::PushGate;
pub use self::server::{ServerLimits, serve};
pub use self::state::{HttpOptions, HttpState};

/// Longest body of an administrative request, in bytes.
const ADMIN_BODY_LIMIT_BYTES: usize = 256 << 10;

/// Every route there is.
pub fn router(state: HttpState) -> Router {
    let limit = state.options.body_limit_bytes;
    let mut ingest = Router::new();
    for path in &state.options.ingest_paths {
        ingest = ingest.route(path, post(notifications::take));
    }
    // What announces too much is refused before any of it is read; the handler counts what comes, and what is in it.
    let bounded = ServiceBuilder::new()
        .layer(RequestBodyLimitLayer::new(limit))
        .layer(MapRequestBodyLayer::new(Body::new));
    let described = OpenApiRouter::with_openapi(openapi::base(&state.options.ingest_paths));
    let (admin, document) = described.merge(admin::routes()).split_for_parts();
    let admin = admin.layer(DefaultBodyLimit::max(ADMIN_BODY_LIMIT_BYTES));
    let seen_from_inside = admin.clone().route("/health/ready", get(health::ready)).with_state(state.clone());
    let console = console::routes(state.clone(), seen_from_inside);
    let api = Router::new()
        .merge(ingest.layer(bounded))
        .merge(admin)
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .layer(CatchPanicLayer::new())
        .layer(map_response(problem::normalize))
        .with_state(state);
    // In this order: whoever is merged in last answers what nobody knows.
    console.merge(api)
}
