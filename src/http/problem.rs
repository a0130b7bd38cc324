//! Refusals as `application/problem+json` (RFC 9457), every one of them.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;

use crate::ingest::{IngestError, ItemResult, Status};
use crate::ledger::LedgerError;

/// The media type of a refusal.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// The status again, for those who only see the body.
    #[serde(serialize_with = "as_number")]
    #[schema(value_type = u16)]
    pub status: StatusCode,
    /// A short, stable code for programs.
    pub code: &'static str,
    /// The status in words.
    pub title: &'static str,
    /// What is wrong, for people.
    pub detail: String,
    /// Each bad field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds until it is worth another try.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

/// A bad field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) into the request's body.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A refusal with a code of its own.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status, code, title, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// The same, with when to come again. Callers pass a jittered value: those refused together come back apart.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// A strict request that was refused for its invalid or conflicting events.
    pub fn bad_items(results: &[ItemResult], in_array: bool) -> Self {
        let invalid = results.iter().any(|result| result.status == Status::Invalid);
        let counted = if invalid { Status::Invalid } else { Status::Conflict };
        let bad: Vec<_> = results.iter().filter(|result| result.status == counted).collect();
        let (status, code, what) = if invalid {
            (StatusCode::BAD_REQUEST, "invalid_events", "invalid")
        } else {
            (StatusCode::CONFLICT, "conflict", "in conflict with stored events")
        };
        let detail = format!(
            "{} of {} events {} {what}; nothing was stored (Prefer: handling=lenient stores the good ones)",
            bad.len(),
            results.len(),
            if bad.len() == 1 { "is" } else { "are" },
        );
        let pointer = |result: &ItemResult| match in_array {
            true => format!("/{}{}", result.index, result.pointer),
            false => result.pointer.clone(),
        };
        let errors = bad.iter().map(|result| FieldError {
            pointer: pointer(result),
            detail: result.detail.clone().unwrap_or_default(),
        });
        Self { errors: errors.collect(), ..Self::new(status, code, detail) }
    }

    /// A refused request, with `retry_after_s` where another try may help.
    pub fn of_ingest(error: &IngestError, retry_after_s: u32) -> Self {
        use crate::domain::parse::ParseError;

        let status = match error {
            IngestError::Ledger(error) => return Self::of_ledger(error, retry_after_s),
            // Not jittered: it is when this very request would be taken.
            IngestError::OverLimit(over) => {
                let problem =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "tenant_ingest_limit", error.to_string());
                return problem.retry_after(over.retry_after_s());
            }
            IngestError::Parse(ParseError::Malformed { .. }) => (StatusCode::BAD_REQUEST, "malformed"),
            IngestError::Parse(ParseError::TooDeep) => (StatusCode::BAD_REQUEST, "too_deep"),
            IngestError::Parse(ParseError::TooManyEvents { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_many_events")
            }
            IngestError::Parse(ParseError::UnsupportedType { .. }) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type")
            }
            IngestError::ForeignTenant { .. } => (StatusCode::FORBIDDEN, "foreign_tenant"),
            IngestError::BadTenantHeader(_) => (StatusCode::BAD_REQUEST, "bad_header"),
            IngestError::UnverifiedPush => (StatusCode::UNAUTHORIZED, "unauthorized"),
            IngestError::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
        };
        Self::new(status.0, status.1, error.to_string())
    }

    /// What the ledger could not do.
    pub fn of_ledger(error: &LedgerError, retry_after_s: u32) -> Self {
        let (status, code) = match error {
            LedgerError::BacklogFull { tenant: true, .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "tenant_backlog_full")
            }
            LedgerError::BacklogFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "backlog_full"),
            LedgerError::Taken(_) => return Self::new(StatusCode::CONFLICT, "taken", error.to_string()),
            LedgerError::Unavailable(_) | LedgerError::NumberLost(_) | LedgerError::Refused(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "ledger_unavailable")
            }
        };
        Self::new(status, code, error.to_string()).retry_after(retry_after_s)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = self.status;
        let retry_after = self.retry_after_s;
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Gives refusals that a layer or the router made their proper form. What is JSON already is somebody's answer.
pub async fn normalize(response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    let formed = kind.is_some_and(|kind| kind == PROBLEM_JSON || kind == "application/json");
    if formed || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (code, detail) = match status {
        StatusCode::NOT_FOUND => ("not_found", "there is nothing under this path"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this path does not take this method"),
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "the body is larger than http.body_limit_bytes"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported_encoding", "only gzip, identity and JSON are read")
        }
        status if status.is_server_error() => ("internal", "something went wrong here; it is in the log"),
        _ => ("bad_request", "the request can't be read"),
    };
    let allow = response.headers().get(ALLOW).cloned();
    let mut problem = Problem::new(status, code, detail).into_response();
    if let Some(allow) = allow {
        problem.headers_mut().insert(ALLOW, allow);
    }
    problem
}
