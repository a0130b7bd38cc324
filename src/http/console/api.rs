//! The API, called from inside. The console has no way to the ledger of its own: it can do what the API offers, sees what
//! the API would show this key, and is refused what the API would refuse it.

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use axum::http::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::http::auth::Caller;

/// Longest answer that is read, in bytes.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// The API as one caller has it.
pub(super) struct Api<'a> {
    pub router: &'a Router,
    pub caller: &'a Caller,
}

/// A path with its query, every part escaped.
#[derive(Debug, Clone)]
pub(super) struct At {
    path: String,
    query: String,
}

/// A refusal of the API.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Refusal {
    pub status: u16,
    pub detail: String,
    #[serde(default)]
    pub errors: Vec<BadField>,
}

/// A field that the API did not take.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct BadField {
    pub pointer: String,
    pub detail: String,
}

/// What the API tells, and which version of it.
pub(super) struct Versioned<T> {
    pub value: T,
    /// Its entity tag; empty where it has none.
    pub etag: String,
}

/// `/a/b/c`, each part escaped.
pub(super) fn at(parts: &[&str]) -> At {
    let escaped = |part: &&str| byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20");
    At { path: parts.iter().map(|part| format!("/{}", escaped(part))).collect(), query: String::new() }
}

impl At {
    /// The same with a parameter; an empty value is left out.
    pub fn with(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.with_any(name, value) }
    }

    /// The same with a parameter that may be empty.
    pub fn with_any(mut self, name: &str, value: &str) -> Self {
        self.query = Serializer::new(self.query).append_pair(name, value).finish();
        self
    }

    /// Path and query, as a link has them.
    pub fn to_link(&self) -> String {
        let At { path, query } = self;
        if query.is_empty() { path.clone() } else { format!("{path}?{query}") }
    }
}

impl Api<'_> {
    /// What is there.
    pub async fn get<T: DeserializeOwned>(&self, at: &At) -> Result<T, Refusal> {
        self.versioned(at).await.map(|answer| answer.value)
    }

    /// The bytes that are there.
    pub async fn bytes(&self, at: &At) -> Result<Vec<u8>, Refusal> {
        self.exchange(Method::GET, at, None, "").await.map(|(_, body)| body)
    }

    /// What is told whatever the status: how things stand is told with 503 too.
    pub async fn get_whatever<T: DeserializeOwned>(&self, at: &At) -> Result<T, Refusal> {
        let (_, _, body) = self.raw(Method::GET, at, None, "").await?;
        read(&body)
    }

    /// What is there, and its version.
    pub async fn versioned<T: DeserializeOwned>(&self, at: &At) -> Result<Versioned<T>, Refusal> {
        let (etag, body) = self.exchange(Method::GET, at, None, "").await?;
        Ok(Versioned { value: read(&body)?, etag })
    }

    /// Asks for a change, and tells what came of it. `version`: the entity tag that it must have still; empty for any.
    pub async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        at: &At,
        body: Option<&(impl Serialize + Sync)>,
        version: &str,
    ) -> Result<T, Refusal> {
        // As text from here on: a transform keeps its digits.
        let text = body.map(serde_json::to_string).transpose();
        let text = text.map_err(|error| Refusal::internal(&error.to_string()))?;
        let (_, answer) = self.exchange(method, at, text, version).await?;
        read(&answer)
    }

    /// Asks for a change that needs no words and whose answer does not matter.
    pub async fn press(&self, method: Method, at: &At) -> Result<(), Refusal> {
        self.exchange(method, at, None, "").await.map(drop)
    }

    /// Asks for something that needs no words, and tells what came of it.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, at: &At) -> Result<T, Refusal> {
        let (_, answer) = self.exchange(method, at, None, "").await?;
        read(&answer)
    }

    async fn exchange(
        &self,
        method: Method,
        at: &At,
        body: Option<String>,
        version: &str,
    ) -> Result<(String, Vec<u8>), Refusal> {
        let (status, etag, body) = self.raw(method, at, body, version).await?;
        if status.is_success() {
            return Ok((etag, body));
        }
        let unread = |_| Refusal {
            status: status.as_u16(),
            detail: status.canonical_reason().unwrap_or("refused").to_owned(),
            errors: Vec::new(),
        };
        Err(serde_json::from_slice(&body).unwrap_or_else(unread))
    }

    async fn raw(
        &self,
        method: Method,
        at: &At,
        body: Option<String>,
        version: &str,
    ) -> Result<(StatusCode, String, Vec<u8>), Refusal> {
        let mut request = Request::builder().method(method).uri(at.to_link()).extension(self.caller.clone());
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if !version.is_empty() {
            request = request.header(IF_MATCH, version);
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from));
        let request = request.map_err(|error| Refusal::internal(&error.to_string()))?;
        let Ok(answer) = self.router.clone().oneshot(request).await;
        let (head, body) = answer.into_parts();
        let etag = head.headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
        let body = axum::body::to_bytes(body, ANSWER_MAX_BYTES).await;
        let body = body.map_err(|error| Refusal::internal(&error.to_string()))?.to_vec();
        Ok((head.status, etag, body))
    }
}

impl Refusal {
    fn internal(detail: &str) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
        Self { status, detail: detail.to_owned(), errors: Vec::new() }
    }

    /// Whether it is about what was filled in, so that a form is shown again with it.
    pub const fn is_about_input(&self) -> bool {
        matches!(self.status, 400 | 409 | 412 | 422)
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // What answers without a body has nothing to tell.
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        tracing::error!(%error, "the console can't read what the API answers");
        Refusal::internal("the answer could not be read; it is in the log")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_path_is_escaped() {
        let at = at(&["v1", "tenants", "a/../b?c#d é"]).with("q", "x&y=z").with("empty", "");
        assert_eq!(at.to_link(), "/v1/tenants/a%2F..%2Fb%3Fc%23d%20%C3%A9?q=x%26y%3Dz");
    }

    #[test]
    fn a_name_that_means_a_folder_is_a_name() {
        assert_eq!(at(&["v1", "tenants", "..", "a b"]).to_link(), "/v1/tenants/../a%20b");
    }
}
