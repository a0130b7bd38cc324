//! The way to the collector: OTLP over HTTP, protobuf.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message as _;
use secrecy::ExposeSecret as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Ended, otlp};
use crate::config::ExportSettings;

/// Most spans in one request.
const BATCH: usize = 512;
/// Longest that a span waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// Waits before a batch that may go better later is sent again; then it is dropped.
const RETRY_AFTER: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for what is left at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_LIMIT_BYTES: usize = 64 << 10;
const AGENT: &str = concat!("posthaste/", env!("CARGO_PKG_VERSION"));

/// Sends spans to a collector.
pub(super) struct Exporter {
    settings: ExportSettings,
    headers: HeaderMap,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The last batch was not taken: said once.
    is_failing: bool,
}

/// Why a batch was not taken.
struct Refusal {
    reason: String,
    may_retry: bool,
}

impl Exporter {
    pub fn new(settings: ExportSettings) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            let header =
                HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value.expose_secret()).ok());
            let Some((name, mut value)) = header else {
                return Err(format!("OTEL_EXPORTER_OTLP_HEADERS: `{name}` can't be a header"));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| format!("no CA certificates (install the package ca-certificates): {error}"))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { settings, headers, http, is_failing: false })
    }

    /// The next spans: as many as a request takes, or those of a moment. After `stop` what is there; `None` where that is
    /// nothing.
    pub async fn gather(
        &self,
        ended: &mut mpsc::Receiver<Ended>,
        stop: &CancellationToken,
    ) -> Option<Vec<Ended>> {
        let mut batch = Vec::new();
        let gathering = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if ended.recv_many(&mut batch, room).await == 0 {
                    return;
                }
                if batch.len() < BATCH {
                    tokio::time::sleep(BATCH_WAIT).await;
                    let room = BATCH - batch.len();
                    let more = std::iter::from_fn(|| ended.try_recv().ok()).take(room);
                    batch.extend(more);
                    return;
                }
            }
        };
        if stop.run_until_cancelled(gathering).await.is_none() {
            while batch.len() < BATCH
                && let Ok(span) = ended.try_recv()
            {
                batch.push(span);
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch; again a few times where it may go better later.
    pub async fn export(&mut self, batch: Vec<Ended>, stop: &CancellationToken) -> Result<(), ()> {
        let body = Bytes::from(otlp::request(&self.settings.resource, batch).encode_to_vec());
        let mut waits = RETRY_AFTER.into_iter();
        loop {
            let refusal = match self.post(body.clone(), stop.is_cancelled()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("the collector takes traces again");
                    }
                    return Ok(());
                }
                Err(refusal) => refusal,
            };
            if !std::mem::replace(&mut self.is_failing, true) {
                let reason = &refusal.reason;
                tracing::warn!(%reason, "the collector takes no traces: they are dropped, and nothing else is");
            }
            let wait = waits.next().filter(|_| refusal.may_retry);
            let Some(wait) = wait else { return Err(()) };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Err(());
            }
        }
    }

    async fn post(&self, body: Bytes, is_last: bool) -> Result<(), Refusal> {
        let refusal = |reason: String, may_retry| Refusal { reason, may_retry };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.settings.url)
            .body(Full::new(body))
            .map_err(|error| refusal(error.to_string(), false))?;
        *request.headers_mut() = self.headers.clone();
        let exchange = async {
            let answer =
                self.http.request(request).await.map_err(|error| refusal(error.to_string(), true))?;
            let status = answer.status();
            // So that the connection can be used again.
            let _ = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect().await;
            // As the OTLP specification has it ("Retryable Response Codes").
            let may_retry = matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            if status.is_success() { Ok(()) } else { Err(refusal(status.to_string(), may_retry)) }
        };
        let timeout = if is_last { self.settings.timeout.min(LAST_TIMEOUT) } else { self.settings.timeout };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(refusal(format!("no answer within {} ms", timeout.as_millis()), true)))
    }
}
