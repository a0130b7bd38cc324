//! A small HTTP client for tests.

use std::time::Duration;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// The verdicts, in order.
    pub fn statuses(&self) -> Vec<String> {
        let results = self.json()["results"].as_array().cloned().unwrap_or_default();
        results.iter().map(|result| result["status"].as_str().expect("a status").to_owned()).collect()
    }

    /// A problem's code, after a look at its form.
    pub fn problem(&self) -> String {
        let json = self.json();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{json}");
        assert_eq!(json["status"], self.status.as_u16(), "{json}");
        json["code"].as_str().expect("a code").to_owned()
    }
}

/// A client of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl HttpClient {
    pub fn new(base: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), base }
    }

    /// Sends a request and reads the answer, or says why there was none.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| format!("{error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(Duration::from_secs(60), exchange).await.map_err(|_| "no answer in 60 s")?
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// Posts events as `application/json`.
    pub async fn post(&self, body: impl Into<Bytes>) -> Answer {
        self.post_with(&[], body).await
    }

    /// Posts events to a server that may go away meanwhile.
    pub async fn try_post(&self, body: impl Into<Bytes>) -> Result<Answer, String> {
        self.try_send(Method::POST, "/notifications", &[("content-type", "application/json")], body).await
    }

    /// Posts events with further headers; a content type among them wins.
    pub async fn post_with(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut all = headers.to_vec();
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        self.send(Method::POST, "/notifications", &all, body).await
    }
}
