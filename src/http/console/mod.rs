//! The console at `/console`: what operators see and press, as pages made here.
//!
//! It is a client of the API that happens to be inside: every page shows what `/v1` answers for the visitor's key, every
//! button is a call to it ([`api`]). So it can neither show nor do what that key may not. Pages work without JavaScript;
//! htmx brings parts of them up to date. Nothing runs and nothing is asked while nobody looks.

mod api;
mod assets;
mod chart;
mod dead;
mod endpoints;
mod events;
mod fields;
mod figures;
mod keys;
mod overview;
mod page;
mod partners;
mod replays;
mod session;
mod settings;
mod sign_in;
mod sources;
mod tenants;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::middleware::map_response;
use axum::routing::{any, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use self::page::Failure;
use self::sign_in::SignInLimit;
use super::state::HttpState;

/// What the pages share. Cheap to clone.
#[derive(Clone)]
struct Console {
    http: HttpState,
    /// `/v1`, called from inside.
    api: Router,
    sign_ins: Arc<SignInLimit>,
}

impl FromRef<Console> for HttpState {
    fn from_ref(console: &Console) -> Self {
        console.http.clone()
    }
}

/// Every page, over the API that `api` serves.
pub(super) fn routes(http: HttpState, api: Router) -> Router {
    let console = Console { http, api, sign_ins: Arc::default() };
    Router::new()
        .route("/console", get(overview::show))
        .route("/console/sign-in", get(sign_in::page).post(sign_in::sign_in))
        .route("/console/sign-out", post(sign_in::sign_out))
        .route("/console/theme", post(session::set_theme))
        .route("/console/assets/{name}", get(assets::serve))
        .route("/console/events", get(events::list))
        .route("/console/event", get(events::one))
        .route("/console/deliveries/{id}/retry", post(events::retry))
        .route("/console/deliveries/{id}/cancel", post(events::cancel))
        .route("/console/dead", get(dead::list))
        .route("/console/replays", get(replays::list).post(replays::start))
        .route("/console/replays/new", get(replays::new))
        .route("/console/replays/{id}", get(replays::one))
        .route("/console/replays/{id}/cancel", post(replays::cancel))
        .route("/console/replays/{id}/pause", post(replays::pause))
        .route("/console/replays/{id}/resume", post(replays::resume))
        .route("/console/partners", get(partners::list))
        .route("/console/partners/new", get(partners::new).post(partners::create))
        .route("/console/partners/{partner}", get(partners::one))
        .route("/console/partners/{partner}/edit", get(partners::edit).post(partners::save))
        .route("/console/partners/{partner}/pause", post(partners::pause))
        .route("/console/partners/{partner}/resume", post(partners::resume))
        .route("/console/partners/{partner}/delete", post(partners::delete))
        .route("/console/partners/{partner}/endpoints/new", get(endpoints::new).post(endpoints::create))
        .route("/console/endpoints/{id}", get(endpoints::one))
        .route("/console/endpoints/{id}/edit", get(endpoints::edit).post(endpoints::save))
        .route("/console/endpoints/{id}/test", post(endpoints::test))
        .route("/console/endpoints/{id}/rotate", post(endpoints::rotate))
        .route("/console/endpoints/{id}/enable", post(endpoints::enable))
        .route("/console/endpoints/{id}/disable", post(endpoints::disable))
        .route("/console/endpoints/{id}/delete", post(endpoints::delete))
        .route("/console/sources", get(sources::list))
        .route("/console/rejected/{id}", get(sources::rejected))
        .route("/console/rejected/{id}/replay", post(sources::replay))
        .route("/console/rejected/{id}/delete", post(sources::delete))
        .route("/console/tenants", get(tenants::search))
        .route("/console/tenants/{tenant}", get(tenants::one).post(tenants::save))
        .route("/console/keys", get(keys::list).post(keys::create))
        .route("/console/keys/{id}/revoke", post(keys::revoke))
        .route("/console/settings", get(settings::show))
        .route("/console/", get(async || page::redirect("/console")))
        .route("/console/{*elsewhere}", any(async || Failure::no_such_page()))
        .layer(DefaultBodyLimit::max(session::FORM_MAX_BYTES))
        .layer(CatchPanicLayer::new())
        .layer(map_response(page::finish))
        .with_state(console)
}
