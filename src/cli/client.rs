//! How the command line talks to a running relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use super::Server;
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::retry;
use crate::ledger::lock_holder;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    api_key: Option<String>,
}

/// What the server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    retry_after: Option<String>,
}

impl Answer {
    /// How long the server wants to be left alone (its `Retry-After`), where it says so.
    pub fn wait(&self, now: Timestamp) -> Option<Duration> {
        retry::retry_after(self.retry_after.as_deref()?, None, now, Duration::MAX)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// The body of a success, or the server's own words as an error.
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        anyhow::ensure!(self.status.is_success(), "{}", self.complaint());
        serde_json::from_slice(&self.body).context("the server's answer can't be read")
    }

    /// What the server found wrong, in a line.
    pub fn complaint(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Problem {
            detail: String,
            #[serde(default)]
            errors: Vec<Field>,
        }
        #[derive(serde::Deserialize)]
        struct Field {
            pointer: String,
            detail: String,
        }
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => match problem.errors.first() {
                Some(first) => {
                    format!("{}: {} ({}: {})", self.status, problem.detail, first.pointer, first.detail)
                }
                None => format!("{}: {}", self.status, problem.detail),
            },
            Err(_) => format!("{}: {}", self.status, self.text()),
        }
    }
}

impl Client {
    /// A client of the server that the arguments name, or of the one that the configuration would start.
    pub fn new(server: &Server, config: &Config) -> anyhow::Result<Self> {
        let base = server.url.clone().unwrap_or_else(|| base_url(config));
        Self::at(base, server.api_key.clone())
    }

    /// A client of the server at `base`.
    pub fn at(base: String, api_key: Option<String>) -> anyhow::Result<Self> {
        let base = base.trim_end_matches('/').to_owned();
        anyhow::ensure!(
            base.starts_with("http://") || base.starts_with("https://"),
            "the server's URL must begin with http:// or https://, not `{base}`"
        );
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .context("no CA certificates (install the package ca-certificates)")?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Self { http: HyperClient::builder(TokioExecutor::new()).build(connector), base, api_key })
    }

    /// One call to the admin API, with a JSON body or none; its answer, or the server's words as an error.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> anyhow::Result<T> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        self.request(method, path, &[], body).await?.read()
    }

    /// The same client for a server at `base`.
    pub fn of(&self, base: &str) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), ..self.clone() }
    }

    /// Where this client's server is.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> anyhow::Result<Answer> {
        self.request(Method::POST, path, headers, body).await
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// Sends a request, with `application/json` where it has a body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).context("the request can't be made")?;
        let exchange = async {
            let response = self.http.request(request).await?;
            let (head, body) = response.into_parts();
            let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = retry_after.map(str::to_owned);
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer { status: head.status, body, retry_after })
        };
        let answer = tokio::time::timeout(TIMEOUT, exchange);
        answer
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", TIMEOUT.as_secs()))
            .and_then(|answer| answer)
            .with_context(|| format!("no answer from {} (is the relay running?)", self.base))
    }
}

/// Where a server with this configuration is reached from the same machine.
fn base_url(config: &Config) -> String {
    let announced = lock_holder(&config.database_url).and_then(|address| address.parse().ok());
    url_of(announced.unwrap_or(config.http.listen))
}

/// The base URL of a server of this machine that listens on `address`.
pub(super) fn url_of(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}
