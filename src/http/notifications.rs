//! `POST /notifications`: one event or a batch, answered after the commit.

use std::error::Error;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::auth::Scope;
use super::encoding::{self, Coding, TooLong};
use super::openapi::Problems;
use super::patience::BodyTimeout;
use super::problem::Problem;
use super::push::Producer;
use super::state::HttpState;
use crate::domain::parse::{Incoming, Shape};
use crate::ingest::{Handling, ItemResult, Receipt, Status};

/// Longest `Idempotency-Key`, in bytes.
const REQUEST_KEY_LIMIT_BYTES: usize = 256;
static PREFER: HeaderName = HeaderName::from_static("prefer");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The answer to a request whose events are stored.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Receipt202<'a> {
    /// How many events are new.
    accepted: usize,
    /// How many were stored before.
    duplicates: usize,
    /// One for each event, in order.
    #[schema(inline = false)]
    results: &'a [ItemResult],
}

/// One event, an object, or an array of them.
struct Events;

impl PartialSchema for Events {
    fn schema() -> RefOr<Schema> {
        let event = ObjectBuilder::new().schema_type(Type::Object);
        let anything = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        AnyOfBuilder::new().item(event).item(ArrayBuilder::new().items(anything)).into()
    }
}

impl ToSchema for Events {}

/// Takes events in. 202 when all are accepted or duplicates, 207 when only some are (`Prefer: handling=lenient`),
/// 204 for a Pub/Sub push of which something was kept as rejected; otherwise a problem, and nothing is stored.
#[utoipa::path(post, path = "/notifications", tag = "events",
    params(
        ("prefer" = Option<String>, Header, description = "`handling=lenient` stores the good events of a batch"),
        ("idempotency-key" = Option<String>, Header, description = "A resend with it is the same request",
            min_length = 1, max_length = 256),
        ("x-tenant" = Option<String>, Header, description = "Tenant of events that name none",
            min_length = 1, max_length = 256)),
    request_body(description = "One event or an array: CloudEvents 1.0, the short form, or a Pub/Sub push",
        content((Events = "application/json"), (Object = "application/cloudevents+json"),
            (Vec<serde_json::Value> = "application/cloudevents-batch+json"))),
    responses(
        (status = 202, description = "All are accepted or duplicates", body = Receipt202),
        (status = 204, description = "A Pub/Sub push; what was bad in it is kept as rejected"),
        (status = 207, description = "Some are stored", body = Receipt202),
        Problems))]
pub async fn take(
    State(state): State<HttpState>,
    producer: Producer,
    request: Request,
) -> Result<Response, Problem> {
    let began = state.clock.moment();
    match record(&state, &producer, request).await {
        Ok(response) => {
            state.watch.metrics.accepted(began.until(state.clock.moment()));
            Ok(response)
        }
        Err(problem) => {
            state.watch.metrics.refused(problem.code);
            Err(problem)
        }
    }
}

async fn record(state: &HttpState, producer: &Producer, request: Request) -> Result<Response, Problem> {
    let caller = &producer.caller;
    caller.require(Scope::Ingest)?;
    admit(state)?;
    let (parts, body) = request.into_parts();
    let lenient = prefers_lenient(&parts.headers);
    let request_key = request_key(&parts.headers)?;
    let tenant = header(&parts.headers, "x-tenant")?;
    if let Some(tenant) = tenant {
        caller.require_tenant(tenant)?;
    }
    let body = read(state, &parts.headers, body).await?;
    let incoming = Incoming {
        body,
        content_type: header(&parts.headers, CONTENT_TYPE.as_str())?,
        headers: &parts.headers,
        tenant: tenant.or(caller.tenant.as_deref()),
    };
    let handling = Handling {
        strict: !lenient,
        request_key,
        bound_tenant: caller.tenant.as_deref(),
        pusher: producer.pusher,
    };
    let receipt = state
        .ingest
        .take(incoming, handling)
        .await
        .map_err(|error| Problem::of_ingest(&error, state.retry_after_s()))?;
    let mut response = answer(&receipt)?;
    if lenient {
        let applied = HeaderValue::from_static("handling=lenient");
        response.headers_mut().insert(PREFERENCE_APPLIED.clone(), applied);
    }
    Ok(response)
}

/// Refuses what can't be taken now, before a byte of the body is read.
fn admit(state: &HttpState) -> Result<(), Problem> {
    if !state.options.role.takes_events() {
        // 503 and not 404: a producer that is sent here by mistake comes again, and may meet a node that does.
        let detail = "this node does not take events: its role is worker; send them to one that does";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "takes_no_events", detail);
        return Err(problem.retry_after(state.retry_after_s()));
    }
    if state.is_draining() {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "this process is about to end; try again",
        );
        return Err(problem.retry_after(state.retry_after_s()));
    }
    state.ledger.admits().map_err(|error| Problem::of_ledger(&error, state.retry_after_s()))
}

fn answer(receipt: &Receipt) -> Result<Response, Problem> {
    if !receipt.stored {
        return Err(Problem::bad_items(&receipt.results, receipt.shape == Shape::Array));
    }
    let (accepted, duplicates) = (receipt.count(Status::Accepted), receipt.count(Status::Duplicate));
    let all = accepted + duplicates == receipt.results.len();
    let status = match (all, receipt.shape) {
        (true, _) => StatusCode::ACCEPTED,
        // What was bad is kept, and Pub/Sub must not send it again.
        (false, Shape::PubSubPush) => return Ok(StatusCode::NO_CONTENT.into_response()),
        (false, _) => StatusCode::MULTI_STATUS,
    };
    let body = Receipt202 { accepted, duplicates, results: &receipt.results };
    Ok((status, axum::Json(body)).into_response())
}

/// The whole body, within its limits of size and time.
async fn read(state: &HttpState, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let limit = state.options.body_limit_bytes;
    let coding = Coding::of(headers).ok_or_else(|| {
        let detail = "Content-Encoding must be gzip or identity";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail)
    })?;
    encoding::collect(body, coding, limit).await.map_err(|error| {
        if comes_from::<LengthLimitError>(&*error) || comes_from::<TooLong>(&*error) {
            let detail = format!("the body has more than {limit} bytes (after decompression)");
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
        }
        if comes_from::<BodyTimeout>(&*error) {
            return Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", error.to_string());
        }
        Problem::new(StatusCode::BAD_REQUEST, "bad_body", format!("the body can't be read: {error}"))
    })
}

/// Whether an error, or one that led to it, is of this kind.
fn comes_from<E: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.any(<dyn Error>::is::<E>)
}

/// Whether the caller wants the good events stored although others are bad (RFC 7240 §4.4).
fn prefers_lenient(headers: &HeaderMap) -> bool {
    let preferences = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
    // The first of a kind counts (§2).
    preferences
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("handling"))
        .is_some_and(|(_, value)| value.trim().trim_matches('"').eq_ignore_ascii_case("lenient"))
}

fn request_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let key = header(headers, "idempotency-key")?;
    if key.is_some_and(|key| key.is_empty() || key.len() > REQUEST_KEY_LIMIT_BYTES) {
        let detail = format!("Idempotency-Key must have 1 to {REQUEST_KEY_LIMIT_BYTES} characters");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_header", detail));
    }
    Ok(key)
}

/// A header as text; a value that is none is refused rather than passed over.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| {
        let detail = format!("the header {name} has characters other than visible ASCII");
        Problem::new(StatusCode::BAD_REQUEST, "bad_header", detail)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["handling=lenient"], true)]
    #[case(&["respond-async, Handling = \"lenient\"; x=1"], true)]
    #[case(&["respond-async", "handling=lenient"], true)]
    #[case(&["handling=strict"], false)]
    #[case(&["handling=strict, handling=lenient"], false)]
    #[case(&["lenient"], false)]
    #[case(&[], false)]
    fn preferences(#[case] values: &[&'static str], #[case] lenient: bool) {
        let headers: HeaderMap =
            values.iter().map(|value| (PREFER.clone(), value.parse().unwrap())).collect();
        assert_eq!(prefers_lenient(&headers), lenient);
    }
}
