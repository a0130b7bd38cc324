//! `/v1`: what an administrator sets and sees. One file a subject.

mod audits;
mod conditional;
mod deliveries;
mod endpoints;
mod event_types;
mod events;
mod keys;
mod paging;
mod partners;
mod prune;
mod rejected;
mod replays;
mod stats;
mod tenants;
mod times;
mod transforms;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderMap};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{FieldError, Problem};
use super::state::HttpState;
use crate::domain::object::JsonObject;
use crate::domain::parse::why_not_a_name;
use crate::domain::partner::SettingFault;
use crate::domain::tenant::svix_name_is_valid;
use crate::ledger::{LedgerError, Put};

/// Every route under `/v1`, with its description.
pub(super) fn routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::new()
        .routes(routes!(tenants::get_tenant, tenants::put_tenant))
        .routes(routes!(keys::create_key, keys::list_keys))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(partners::list_partners))
        .routes(routes!(partners::get_partner, partners::put_partner, partners::delete_partner))
        .routes(routes!(endpoints::list_endpoints, endpoints::add_endpoint))
        .routes(routes!(endpoints::get_endpoint, endpoints::patch_endpoint, endpoints::delete_endpoint))
        .routes(routes!(endpoints::rotate_secret))
        .routes(routes!(endpoints::enable_endpoint))
        .routes(routes!(endpoints::disable_endpoint))
        .routes(routes!(endpoints::test_endpoint))
        .routes(routes!(event_types::list_event_types))
        .routes(routes!(event_types::get_event_type, event_types::put_event_type))
        .routes(routes!(transforms::preview_transform))
        .routes(routes!(events::list_events))
        .routes(routes!(events::get_event))
        .routes(routes!(events::get_payload))
        .routes(routes!(deliveries::list_deliveries))
        .routes(routes!(deliveries::get_delivery))
        .routes(routes!(deliveries::retry_delivery))
        .routes(routes!(deliveries::cancel_delivery))
        .routes(routes!(rejected::list_rejected))
        .routes(routes!(rejected::get_rejected, rejected::delete_rejected))
        .routes(routes!(rejected::replay_rejected))
        .routes(routes!(stats::get_stats))
        .routes(routes!(replays::list_replays, replays::start_replay))
        .routes(routes!(replays::get_replay))
        .routes(routes!(replays::cancel_replay))
        .routes(routes!(replays::pause_replay))
        .routes(routes!(replays::resume_replay))
        .routes(routes!(tenants::open_portal))
        .routes(routes!(audits::audit_svix))
        .routes(routes!(prune::prune))
}

fn ledger(state: &HttpState, error: &LedgerError) -> Problem {
    Problem::of_ledger(error, state.retry_after_s())
}

/// The ledger's answer, or what it could not do as a refusal.
trait OrProblem<T> {
    /// The answer; its error as [`Problem::of_ledger`] words it.
    fn or_problem(self, state: &HttpState) -> Result<T, Problem>;
}

impl<T> OrProblem<T> for Result<T, LedgerError> {
    fn or_problem(self, state: &HttpState) -> Result<T, Problem> {
        self.map_err(|error| ledger(state, &error))
    }
}

/// Every node reads again; this one now.
async fn reload(state: &HttpState) -> Result<(), Problem> {
    state.directory.reload().await.or_problem(state)
}

/// What became of a PUT: its status and the version that is there now, known to this node. 412 where somebody else was
/// faster.
async fn written(state: &HttpState, put: Result<Put, LedgerError>) -> Result<(StatusCode, i64), Problem> {
    let written = match put.or_problem(state)? {
        Put::Created(version) => (StatusCode::CREATED, version),
        Put::Updated(version) => (StatusCode::OK, version),
        Put::VersionConflict => return Err(conditional::failed()),
    };
    reload(state).await?;
    Ok(written)
}

/// What became of a DELETE, known to this node: 412 where somebody else was faster and it was conditional, 404 where it
/// was not.
async fn gone(
    state: &HttpState,
    deleted: Result<bool, LedgerError>,
    if_match: &conditional::IfMatch,
    absent: Problem,
) -> Result<Response, Problem> {
    if !deleted.or_problem(state)? {
        return Err(if if_match.is_set() { conditional::failed() } else { absent });
    }
    reload(state).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn bad_field(pointer: &str, detail: &str) -> Problem {
    faults(&[SettingFault { pointer: pointer.to_owned(), detail: detail.to_owned() }])
}

/// Everything that is wrong with what was given, each with its place.
fn faults(faults: &[SettingFault]) -> Problem {
    let detail = match faults {
        [only] => only.detail.clone(),
        several => format!("{} fields are wrong", several.len()),
    };
    let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_field", detail);
    let field =
        |fault: &SettingFault| FieldError { pointer: fault.pointer.clone(), detail: fault.detail.clone() };
    problem.errors = faults.iter().map(field).collect();
    problem
}

fn not_found(what: &str, id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} `{id}`"))
}

fn check_tenant(tenant: &str) -> Result<(), Problem> {
    if why_not_a_name(tenant).is_some() {
        return Err(bad_field("/tenant", "a tenant has 1 to 256 bytes and no control characters"));
    }
    Ok(())
}

/// Names that stand in paths and go to Svix.
fn check_id(pointer: &str, what: &str, id: &str) -> Result<(), Problem> {
    if svix_name_is_valid(id) && !id.starts_with('.') {
        return Ok(());
    }
    let detail = format!("{what} has 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`, and no dot at its beginning");
    Err(bad_field(pointer, &detail))
}

/// What a body says, which must be an object.
fn read<T>(body: Result<Json<JsonObject<T>>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(JsonObject(body))| body).map_err(|rejection| unreadable(&rejection))
}

fn unreadable(rejection: &JsonRejection) -> Problem {
    let code = match rejection.status() {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_type",
        StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
        _ => "invalid_body",
    };
    Problem::new(rejection.status(), code, rejection.body_text())
}

/// A body as JSON text, digits, order and all. Whether it is JSON is for whoever reads it to say.
fn json_text(headers: &HeaderMap, body: &Bytes) -> Result<String, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence != "application/json" && !essence.ends_with("+json") {
        let detail = "the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", detail));
    }
    String::from_utf8(body.to_vec()).map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_body", "the body is not UTF-8 (RFC 8259 §8.1)")
    })
}

/// An answer with its version as an entity tag (RFC 9110 §8.8.3).
fn versioned<T: Serialize>(status: StatusCode, version: i64, body: T) -> Response {
    (status, [(ETAG, format!("\"{version}\""))], Json(body)).into_response()
}
