//! Transforms, tried out.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{faults, read};
use crate::domain::clock::Timestamp;
use crate::domain::object::{self, JsonObject};
use crate::domain::transform::{Context, DEFAULT_OUTPUT_LIMIT_BYTES, Transform};
use crate::http::auth::{Caller, Scope};
use crate::http::openapi::Problems;
use crate::http::problem::{FieldError, Problem};
use crate::http::state::HttpState;
use crate::provisioning;
use crate::send::reshape;

/// A transform, and what to try it on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreviewBody {
    /// The transform: `omit`, `rename`, `set`, `map`.
    #[schema(value_type = Object)]
    transform: Box<RawValue>,
    /// The payload: what would be sent without it.
    #[schema(value_type = serde_json::Value)]
    payload: Box<RawValue>,
    /// What `$event` stands for.
    #[serde(default, deserialize_with = "object::one")]
    event: PreviewEvent,
}

/// What is known of an event whether or not its payload says so.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PreviewEvent {
    /// By default `evt_preview`.
    id: String,
    /// By default `posthaste.test`.
    r#type: String,
    /// By default `preview`.
    tenant: String,
    /// By default none.
    source: String,
}

impl Default for PreviewEvent {
    fn default() -> Self {
        let (id, kind, tenant) = ("evt_preview", "posthaste.test", "preview");
        Self { id: id.into(), r#type: kind.into(), tenant: tenant.into(), source: String::new() }
    }
}

/// What came of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreviewView {
    /// What would go out.
    #[schema(value_type = serde_json::Value)]
    result: Box<RawValue>,
}

/// Applies a transform to a payload and tells the result, or what is wrong and where. Nothing is stored or sent.
#[utoipa::path(post, path = "/v1/transforms/preview", tag = "transforms", request_body = PreviewBody,
    responses((status = 200, body = PreviewView), Problems))]
pub(super) async fn preview_transform(
    State(state): State<HttpState>,
    caller: Caller,
    body: Result<Json<JsonObject<PreviewBody>>, JsonRejection>,
) -> Result<Response, Problem> {
    caller.require(Scope::Read)?;
    let body = read(body)?;
    let payload_bytes = body.payload.get().len();
    let transform = provisioning::vet_transform(body.transform.get()).map_err(|fault| faults(&[fault]))?;
    let received_at = state.clock.now();
    let preview = move || applied(&transform, &body, received_at);
    let text = reshape::apart(payload_bytes, preview).await?;
    let result = RawValue::from_string(text).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("the result is no JSON: {error}"))
    })?;
    Ok(Json(PreviewView { result }).into_response())
}

/// What goes out, as JSON text.
fn applied(transform: &Transform, body: &PreviewBody, received_at: Timestamp) -> Result<String, Problem> {
    let context = Context {
        id: &body.event.id,
        event_type: &body.event.r#type,
        tenant: &body.event.tenant,
        source: &body.event.source,
        received_at,
    };
    let payload = body.payload.get();
    let applied = transform.apply(payload.as_bytes(), &context, DEFAULT_OUTPUT_LIMIT_BYTES);
    let applied = applied.map_err(|error| {
        let mut problem =
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "transform_failed", error.to_string());
        problem.errors.push(FieldError {
            pointer: format!("/payload{}", error.pointer()),
            detail: format!("{}: {error}", error.code()),
        });
        problem
    })?;
    Ok(match applied {
        Cow::Borrowed(_) => payload.to_owned(),
        Cow::Owned(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
    })
}
