//! Straight to a partner's URL: signed, reshaped, one POST.
//!
//! Success is a 2xx on the head of the answer. Redirects are failures, answers are not decoded, and no more than
//! [`ANSWER_LIMIT_BYTES`] of a body is read, for no longer than [`ANSWER_TIMEOUT`]: the rest is the partner's business.
//! Of a success nobody asks for the words: its body gets only [`SUCCESS_BODY_TIMEOUT`] to end, so that the connection
//! can be used again, and no place in flight is held for one that does not.
//!
//! An attempt without an answer has a code of its own: those of [`ConnectError::code`] where there was no connection,
//! else `timeout`, `connection_lost`, `answer_invalid` or `answer_too_large`.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use axum::http::{Request, Uri};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::timeout::error::Elapsed;
use tower::{ServiceBuilder, ServiceExt as _};

use super::address_guard::{ConnectError, GuardedHttps};
use super::reshape::reshape;
use super::signature::{self, EndpointSecret, SignatureScheme};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::{DeadReason, Delivery, Failure, Outcome};
use crate::domain::event::Relay;
use crate::domain::key::{idempotency_key, replayed_key};
use crate::domain::outcomes::{self, Receiver};
use crate::domain::partner::DisableReason;
use crate::domain::retry::{self, RetrySchedule};
use crate::domain::trace::TraceContext;
use crate::domain::transform::Transform;

/// Most of an answer's body that is read.
pub const ANSWER_LIMIT_BYTES: usize = 16 << 10;
/// Longest head of an answer over HTTP/1.1, and most that is read of one at once: what floods us with provisional (1xx)
/// answers must not keep a thread busy for longer than it takes to notice that its time is up.
pub const HEAD_LIMIT_BYTES: usize = 32 << 10;
/// Longest that an answer's body is waited for.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that the body of a delivery's success is waited for. An honest one comes along with its head.
pub const SUCCESS_BODY_TIMEOUT: Duration = Duration::from_millis(100);
/// What is kept of an answer.
const EXCERPT_LIMIT_BYTES: usize = 1 << 10;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// At least as many as may be in flight to one: those beyond it would be closed and opened again all the time.
const IDLE_PER_HOST: usize = 256;
const AGENT: &str = concat!("posthaste/", env!("CARGO_PKG_VERSION"));

/// An endpoint as a sender needs it.
#[derive(Debug, Clone)]
pub struct LiveEndpoint {
    /// Its id.
    pub id: Arc<str>,
    /// Whose it is.
    pub partner: Arc<str>,
    /// Where it is.
    pub url: Uri,
    /// What the partner wants along.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How the payload is reshaped.
    pub transform: Option<Arc<Transform>>,
    /// How requests are signed.
    pub scheme: SignatureScheme,
    /// The secret, and during a rotation the one before it with its end.
    pub secret: EndpointSecret,
    /// See `secret`.
    pub previous_secret: Option<(EndpointSecret, Timestamp)>,
    /// Time for one request.
    pub timeout: Duration,
    /// When a delivery is tried again.
    pub retry_schedule: RetrySchedule,
    /// The first failure after its last success, as the ledger knows it.
    pub failing_since: Option<Timestamp>,
    /// It has not answered its ownership challenge yet, and gets no event before.
    pub unproven: bool,
    /// Why it is disabled; `None` while it is active.
    pub disabled: Option<DisableReason>,
    /// It has answered 410 to this process since its settings were read: nothing more is sent to it, also before the
    /// ledger has disabled it.
    pub is_gone: Arc<AtomicBool>,
}

/// Where endpoints are looked up: in memory.
pub trait Endpoints: Send + Sync {
    /// The endpoint with this id, as it is now.
    fn endpoint(&self, id: &str) -> Option<Arc<LiveEndpoint>>;

    /// Whether the endpoint exists although [`Self::endpoint`] can't give it: its secret does not open, for one.
    fn is_unreadable(&self, id: &str) -> bool;

    /// How what goes to Svix for this tenant is reshaped.
    fn svix_transform(&self, tenant: &str) -> Option<Arc<Transform>>;
}

/// What is the same for all endpoints.
#[derive(Debug, Clone)]
pub struct DirectOptions {
    /// Part of every idempotency key.
    pub environment: String,
    /// What goes out as the payload, before a transform.
    pub relay: Relay,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_max: Duration,
    /// Largest payload that a transform may make, in bytes.
    pub max_payload_bytes: usize,
}

/// Sends to endpoints. See the module's own words.
pub struct DirectSender {
    options: DirectOptions,
    http: Client<GuardedHttps, Full<Bytes>>,
    endpoints: Arc<dyn Endpoints>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for DirectSender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("DirectSender").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What an endpoint answered to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The `Retry-After` header as it came.
    pub retry_after: Option<String>,
    /// The `Date` header as it came.
    pub date: Option<String>,
    /// The first KiB of the body.
    pub excerpt: String,
}

impl DirectSender {
    /// A sender that dials with `connector`.
    pub fn new(
        options: DirectOptions,
        connector: GuardedHttps,
        endpoints: Arc<dyn Endpoints>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_buf_size(HEAD_LIMIT_BYTES)
            .build(connector);
        Self { options, http, endpoints, clock }
    }

    /// When a delivery to this endpoint is tried again.
    pub fn retry_schedule(&self, id: &str) -> RetrySchedule {
        let endpoint = self.endpoints.endpoint(id);
        endpoint.map_or_else(|| RetrySchedule::new(Vec::new()), |endpoint| endpoint.retry_schedule.clone())
    }

    /// Makes one attempt; `trace` goes out with it.
    pub async fn send(&self, delivery: &Delivery, id: &str, trace: Option<&TraceContext>) -> Outcome {
        let Some(endpoint) = self.endpoints.endpoint(id) else {
            if self.endpoints.is_unreadable(id) {
                // The operator's to mend (a master key, most likely): it costs the event nothing.
                let detail = "the endpoint's settings or secret can't be read; the log says why";
                return Outcome::Unauthorized(Failure::transport("endpoint_unreadable", detail, false));
            }
            return Outcome::Canceled(Failure::transport(
                "endpoint_deleted",
                "the endpoint was deleted",
                false,
            ));
        };
        let gone = endpoint.is_gone.load(Ordering::Acquire).then_some(DisableReason::Gone);
        if let Some(reason) = endpoint.disabled.as_ref().or(gone.as_ref()) {
            let failure =
                Failure::transport("endpoint_disabled", format!("disabled: {}", reason.as_str()), false);
            return Outcome::Rejected(DeadReason::EndpointDisabled, failure);
        }
        let payload = match self.payload(delivery, &endpoint).await {
            Ok(payload) => payload,
            Err(failure) => return Outcome::Rejected(DeadReason::TransformFailed, failure),
        };
        let key = idempotency_key(
            &self.options.environment,
            &delivery.lane.destination.to_string(),
            &delivery.identity,
        );
        // A replay is the same message to its receiver, unless it was asked to be another.
        let key = if delivery.replay.new_id { replayed_key(&key, delivery.replay.nth) } else { key };
        match self.exchange(&endpoint, &key, payload, trace, SUCCESS_BODY_TIMEOUT).await {
            Ok(reply) => self.outcome(&reply),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// One signed request under `webhook_id`; the answer, or why there was none.
    ///
    /// # Errors
    /// A [`Failure`] with a distinct code for each way a request can end without an answer.
    pub async fn post(
        &self,
        endpoint: &LiveEndpoint,
        webhook_id: &str,
        payload: Bytes,
    ) -> Result<Reply, Failure> {
        self.exchange(endpoint, webhook_id, payload, None, ANSWER_TIMEOUT).await
    }

    /// The same, with a bound of its own for the body of a success.
    async fn exchange(
        &self,
        endpoint: &LiveEndpoint,
        webhook_id: &str,
        payload: Bytes,
        trace: Option<&TraceContext>,
        success_body_timeout: Duration,
    ) -> Result<Reply, Failure> {
        let mut request = self.request(endpoint, webhook_id, payload)?;
        super::add_trace(request.headers_mut(), trace);
        // For the head: it has told, and what the body says, and whether it ever ends, changes nothing.
        let client = ServiceBuilder::new().timeout(endpoint.timeout).service(self.http.clone());
        let response = client.oneshot(request).await.map_err(|error| failure(&*error, endpoint.timeout))?;
        let (head, body) = response.into_parts();
        let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let (retry_after, date) = (header(RETRY_AFTER).map(str::to_owned), header(DATE).map(str::to_owned));
        let status = head.status.as_u16();
        if status == 410 {
            endpoint.is_gone.store(true, Ordering::Release);
        }
        // These hold for everything that waits for the endpoint: their bodies must not keep the news from the gate.
        let patience = match status {
            200..=299 => success_body_timeout,
            410 | 429 | 503 => SUCCESS_BODY_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        Ok(Reply { status, retry_after, date, excerpt: read(body, patience).await })
    }

    fn request(
        &self,
        endpoint: &LiveEndpoint,
        webhook_id: &str,
        payload: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let now = self.clock.now();
        let mut secrets = vec![endpoint.secret.clone()];
        let previous = endpoint.previous_secret.iter().filter(|(_, until)| now < *until);
        secrets.extend(previous.map(|(secret, _)| secret.clone()));
        let signature =
            signature::sign(&endpoint.scheme, &secrets, webhook_id, now.as_millis() / 1_000, &payload)
                .map_err(|error| Failure::transport("not_signed", error, false))?;
        let mut request = Request::post(endpoint.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, value) in endpoint.headers.iter().cloned().chain(signature) {
            request = request.header(name, value);
        }
        request.body(Full::new(payload)).map_err(|error| Failure::transport("bad_request", error, false))
    }

    async fn payload(&self, delivery: &Delivery, endpoint: &LiveEndpoint) -> Result<Bytes, Failure> {
        let payload = self.options.relay.payload(&delivery.body, delivery.data.as_ref());
        let payload = delivery.body.slice_ref(payload);
        match &endpoint.transform {
            // What is rare is boxed: see `SvixSender::send`.
            Some(transform) => {
                let limit_bytes = self.options.max_payload_bytes;
                Box::pin(reshape(transform.clone(), payload, delivery, limit_bytes)).await
            }
            None => Ok(payload),
        }
    }

    fn outcome(&self, reply: &Reply) -> Outcome {
        if (200..=299).contains(&reply.status) {
            return Outcome::Delivered { status: reply.status, remote_id: None, dispatch_unconfirmed: false };
        }
        let redirected = format!("redirects are not followed: {}", reply.excerpt);
        let words = match reply.status {
            300..=399 => redirected.trim_end_matches([':', ' ']),
            _ => &reply.excerpt,
        };
        let wait = reply.retry_after.as_deref().map(|wait| {
            retry::retry_after(wait, reply.date.as_deref(), self.clock.now(), self.options.retry_after_max)
        });
        outcomes::judge(Receiver::Endpoint, Failure::answered(reply.status, words), wait)
    }
}

/// What it means that no answer came within `timeout`.
fn failure(error: &(dyn Error + 'static), timeout: Duration) -> Failure {
    if error.is::<Elapsed>() {
        return Failure::transport("timeout", format!("no answer within {} ms", timeout.as_millis()), true);
    }
    if let Some(connect) = ConnectError::find(error) {
        return Failure::transport(connect.code(), connect, false);
    }
    let last = std::iter::successors(Some(error), |error| (*error).source()).last();
    let detail = last.map(ToString::to_string).unwrap_or_default();
    Failure::transport(super::without_answer(error), detail, true)
}

/// The beginning of a body; reads a little more than is kept, so that small answers end and their connection is used
/// again. What has come is kept when the time is up.
async fn read(mut body: Incoming, patience: Duration) -> String {
    let mut start = BytesMut::new();
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            seen += data.len();
            let room = EXCERPT_LIMIT_BYTES.saturating_sub(start.len());
            start.extend_from_slice(&data[..data.len().min(room)]);
            if seen > ANSWER_LIMIT_BYTES {
                break;
            }
        }
    };
    // Too slow or not, the head has told.
    let _ = tokio::time::timeout(patience, reading).await;
    String::from_utf8_lossy(&start).into_owned()
}
