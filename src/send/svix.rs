//! The way to Svix: one message per event.
//!
//! Messages are created by our own POST, because the SDK can't tell `Retry-After`, retries on its own and
//! re-serialises the payload; everything else (look-ups, applications) goes through the `svix` crate.

mod again;
mod answers;
pub mod audit;
pub mod portal;

use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::svix::api::{ApplicationListOptions, MessageGetOptions, Svix, SvixOptions as SdkOptions};
use ::svix::error::Error as SvixError;
use ::svix::models::{ApplicationIn, MessageOut};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER, USER_AGENT};
use axum::http::uri::{self, PathAndQuery};
use axum::http::{HeaderMap, HeaderName, Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use secrecy::{ExposeSecret as _, SecretString};

use self::answers::{api_failure, message_id, transport_failure, words};
use crate::domain::clock::Clock;
use crate::domain::delivery::{DeadReason, Delivery, Failure, Outcome};
use crate::domain::event::Relay;
use crate::domain::key::idempotency_key;
use crate::domain::outcomes::{self, Receiver};
use crate::domain::retry::{self, RetrySchedule};
use crate::domain::tenant::svix_name_is_valid;
use crate::domain::trace::TraceContext;
use crate::send::direct::Endpoints;
use crate::send::reshape::reshape;
use crate::send::svix_event_types::SvixEventTypes;

/// Svix forgets idempotency keys after 12 hours: a delivery older than this is looked up before it is posted.
const LOOK_UP_AFTER: Duration = Duration::from_secs(11 * 3_600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// More of an answer is not read.
const ANSWER_LIMIT_BYTES: usize = 64 << 10;
const AGENT: &str = concat!("posthaste/", env!("CARGO_PKG_VERSION"));
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How Svix is reached.
#[derive(Debug, Clone)]
pub struct SvixOptions {
    /// API token.
    pub token: SecretString,
    /// Base URL; by default the token's suffix picks the region.
    pub server_url: Option<String>,
    /// Create an application that Svix does not know.
    pub create_applications: bool,
    /// Time for one request.
    pub timeout: Duration,
    /// Longest `Retry-After` that is honoured.
    pub retry_after_max: Duration,
    /// When a delivery is tried again.
    pub retry_schedule: RetrySchedule,
    /// Part of every idempotency key.
    pub environment: String,
    /// What goes out as the payload, before the tenant's transform.
    pub relay: Relay,
    /// Largest payload that a transform may make, in bytes.
    pub max_payload_bytes: usize,
}

/// Sends to Svix. See the module's own words.
pub struct SvixSender {
    options: SvixOptions,
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: HeaderValue,
    server: Uri,
    api: Svix,
    /// Applications this process has made sure of. Held while one is made, so that a burst makes it once.
    applications: tokio::sync::Mutex<HashSet<String>>,
    /// For tenants' transforms.
    endpoints: Arc<dyn Endpoints>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for SvixSender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SvixSender").field("server_url", &self.api.server_url()).finish_non_exhaustive()
    }
}

/// What Svix answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl SvixSender {
    /// A sender with its own pool of connections.
    ///
    /// # Errors
    /// A token that is no header value, a server that is no URL, or a machine without CA certificates: one clear line.
    pub fn new(
        options: SvixOptions,
        endpoints: Arc<dyn Endpoints>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // First of all: the SDK panics where this fails.
        let tls = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| format!("no CA certificates (install the package ca-certificates): {error}"))?;
        let connector = tls.https_or_http().enable_http1().wrap_connector(connector);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        let token = options.token.expose_secret();
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "svix.token has characters that no header may have".to_owned())?;
        authorization.set_sensitive(true);
        let api = Svix::new(
            token.to_owned(),
            Some(SdkOptions {
                server_url: options.server_url.clone(),
                timeout: Some(options.timeout),
                // The ledger retries; a second layer would only hold a place in flight.
                num_retries: Some(0),
                ..SdkOptions::default()
            }),
        );
        let server = api.server_url();
        let server = server.parse().map_err(|error| format!("svix.server_url {server} is none: {error}"))?;
        Ok(Self {
            options,
            http,
            authorization,
            server,
            api,
            applications: tokio::sync::Mutex::default(),
            endpoints,
            clock,
        })
    }

    /// Where messages go.
    pub fn server_url(&self) -> &str {
        self.api.server_url()
    }

    /// A client of the same server for event types.
    pub fn event_types(&self) -> SvixEventTypes {
        SvixEventTypes::new(self.api.clone())
    }

    /// When a delivery is tried again.
    pub const fn retry_schedule(&self) -> &RetrySchedule {
        &self.options.retry_schedule
    }

    /// Makes sure that Svix has the delivery's message in `app`, once; `trace` goes along with the request. Svix takes no
    /// headers for its receivers.
    ///
    /// What is rare is boxed: a future is as large as the largest thing it may wait for, and is moved on its way into a
    /// task.
    pub async fn send(&self, delivery: &Delivery, app: &str, trace: Option<&TraceContext>) -> Outcome {
        match self.send_message(delivery, app, trace).await {
            Outcome::Unauthorized(failure) => Box::pin(self.who_is_refused(failure)).await,
            outcome => outcome,
        }
    }

    /// Tells a refused account (401, 403) from a refused application or event: a cheap request that concerns no application
    /// is refused only where the account is.
    async fn who_is_refused(&self, failure: Failure) -> Outcome {
        let options = ApplicationListOptions { limit: Some(1), ..ApplicationListOptions::default() };
        match self.api.application().list(Some(options)).await.as_ref().map_err(api_failure) {
            Err(Outcome::Unauthorized(_)) => Outcome::Unauthorized(failure),
            _ => Outcome::Refused(failure),
        }
    }

    async fn send_message(&self, delivery: &Delivery, app: &str, trace: Option<&TraceContext>) -> Outcome {
        let key = idempotency_key(
            &self.options.environment,
            &delivery.lane.destination.to_string(),
            &delivery.identity,
        );
        if delivery.replay.nth > 0 {
            return Box::pin(self.send_again(delivery, app, &key, trace)).await;
        }
        let event_id = Some(&*delivery.identity.id).filter(|id| event_id_is_valid(id)).unwrap_or(&key);
        let payload = match self.payload(delivery).await {
            Ok(payload) => payload,
            Err(failure) => return Outcome::Rejected(DeadReason::TransformFailed, failure),
        };
        let message = Message { delivery, app, payload: &payload, key: &key, trace };
        if self.clock.now().since(delivery.received_at) > LOOK_UP_AFTER {
            match Box::pin(self.look_up(app, event_id)).await {
                Ok(Some(found)) if message.is_same(&found) => {
                    return delivered(StatusCode::OK, Some(found.id), delivery.uncertain);
                }
                Ok(_) => {}
                Err(outcome) => return outcome,
            }
        }
        let answer = match self.post_into(&message, event_id).await {
            Ok(answer) => answer,
            Err(outcome) => return outcome,
        };
        if answer.status == StatusCode::CONFLICT {
            return Box::pin(self.resolve_conflict(&message, event_id)).await;
        }
        self.conclude(&message, event_id, &answer).await
    }

    /// What an answer to the message POST means. 409 has been dealt with.
    async fn conclude(&self, message: &Message<'_>, event_id: &str, answer: &Answer) -> Outcome {
        if !answer.status.is_success() {
            return self.outcome(answer);
        }
        match message_id(&answer.body) {
            Some(id) => delivered(answer.status, Some(id), false),
            None => Box::pin(self.confirm(message, event_id, answer.status)).await,
        }
    }

    /// A yes without a message may be Svix's, cut short, or that of a proxy or a sign-in page on the way: a look-up tells.
    async fn confirm(&self, message: &Message<'_>, event_id: &str, status: StatusCode) -> Outcome {
        let failure = match self.look_up(message.app, event_id).await {
            Ok(Some(found)) if message.is_same(&found) => {
                return delivered(status, Some(found.id), message.delivery.uncertain);
            }
            Ok(_) => failure("not_stored", status.as_u16(), "a yes, but Svix does not have the message"),
            Err(Outcome::Failed(failure)) => failure,
            Err(outcome) => return outcome,
        };
        Outcome::Failed(Failure { may_have_arrived: true, ..failure })
    }

    /// Posts a message, into an application that is made where it is missing.
    async fn post_into(&self, message: &Message<'_>, event_id: &str) -> Result<Answer, Outcome> {
        let Message { delivery, app, .. } = *message;
        let answer = self.post(message, event_id).await?;
        if answer.status != StatusCode::NOT_FOUND || !self.options.create_applications {
            return Ok(answer);
        }
        Box::pin(self.create_application(app, &delivery.lane.tenant)).await?;
        let answer = self.post(message, event_id).await?;
        if answer.status == StatusCode::NOT_FOUND {
            // It is gone again: the next attempt makes it anew.
            self.applications.lock().await.remove(app);
        }
        Ok(answer)
    }

    /// A 409 says that a message with this `eventId` exists; a look-up says which.
    async fn resolve_conflict(&self, message: &Message<'_>, event_id: &str) -> Outcome {
        let Message { delivery, app, key, .. } = *message;
        match self.look_up(app, event_id).await {
            Ok(Some(found)) if message.is_same(&found) => {
                return delivered(StatusCode::CONFLICT, Some(found.id), delivery.uncertain);
            }
            Ok(Some(_)) if event_id != key => {}
            Ok(Some(_)) => {
                return conflict("another message has this event's idempotency key as its eventId");
            }
            // Svix knows an id that it can't find: it is not settled yet.
            Ok(None) => {
                return Outcome::Failed(failure("conflict_unresolved", 409, "409, but no such message"));
            }
            Err(outcome) => return outcome,
        }
        // The id belongs to another event (ids are unique by source, Svix's by application): the key is ours alone.
        match self.post(message, key).await {
            Ok(answer) if answer.status == StatusCode::CONFLICT => match self.look_up(app, key).await {
                Ok(Some(found)) if message.is_same(&found) => {
                    delivered(StatusCode::CONFLICT, Some(found.id), delivery.uncertain)
                }
                Ok(_) => {
                    conflict("Svix has other messages under both this event's id and its idempotency key")
                }
                Err(outcome) => outcome,
            },
            Ok(answer) => self.conclude(message, key, &answer).await,
            Err(outcome) => outcome,
        }
    }

    /// What an answer means that is no success. Redirects are not followed: the token is for this server alone.
    fn outcome(&self, answer: &Answer) -> Outcome {
        let failure = Failure::answered(answer.status.as_u16(), &words(&answer.body));
        outcomes::judge(Receiver::Svix, failure, self.wait(&answer.headers))
    }

    /// The wait that an answer asks for; see [`outcomes::judge`].
    fn wait(&self, headers: &HeaderMap) -> Option<Option<Duration>> {
        let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let wait = header(RETRY_AFTER)?;
        Some(retry::retry_after(wait, header(DATE), self.clock.now(), self.options.retry_after_max))
    }

    async fn post(&self, message: &Message<'_>, event_id: &str) -> Result<Answer, Outcome> {
        let body = message_body(&message.delivery.event_type, event_id, message.payload);
        let mut request = Request::post(self.messages_of(message.app)?)
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static(AGENT))
            .header(IDEMPOTENCY_KEY.clone(), message.key)
            .body(Full::new(body))
            .map_err(bad_request)?;
        super::add_trace(request.headers_mut(), message.trace);
        // In its place: a time-out would move it.
        let exchange = pin!(async {
            let response = self.http.request(request).await.map_err(|error| transport_failure(&error))?;
            let (head, body) = response.into_parts();
            // The head tells; a body that does not come in full is only without words.
            let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Ok(Answer { status: head.status, headers: head.headers, body })
        });
        tokio::time::timeout(self.options.timeout, exchange).await.unwrap_or_else(|_| {
            let detail = format!("no answer within {} ms", self.options.timeout.as_millis());
            Err(Outcome::Failed(Failure::transport("timeout", detail, true)))
        })
    }

    /// Where an application's messages are created. The server's part was read once.
    fn messages_of(&self, app: &str) -> Result<Uri, Outcome> {
        let path =
            [self.server.path().trim_end_matches('/'), "/api/v1/app/", app, "/msg/?with_content=false"];
        let mut parts = uri::Parts::default();
        parts.scheme = self.server.scheme().cloned();
        parts.authority = self.server.authority().cloned();
        parts.path_and_query =
            Some(PathAndQuery::from_maybe_shared(Bytes::from(path.concat())).map_err(bad_request)?);
        Uri::from_parts(parts).map_err(bad_request)
    }

    async fn look_up(&self, app: &str, event_id: &str) -> Result<Option<MessageOut>, Outcome> {
        let options = MessageGetOptions { with_content: Some(true) };
        match self.api.message().get(app.to_owned(), event_id.to_owned(), Some(options)).await {
            Ok(message) => Ok(Some(message)),
            Err(SvixError::Http(answer)) if answer.status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(api_failure(&error)),
        }
    }

    async fn create_application(&self, app: &str, tenant: &str) -> Result<(), Outcome> {
        let mut applications = self.applications.lock().await;
        if applications.contains(app) {
            return Ok(());
        }
        let wanted = ApplicationIn { uid: Some(app.to_owned()), ..ApplicationIn::new(tenant.to_owned()) };
        match self.api.application().get_or_create(wanted, None).await {
            Ok(_) => {
                tracing::info!(%app, %tenant, "created the Svix application");
                applications.insert(app.to_owned());
                Ok(())
            }
            Err(error) => Err(match api_failure(&error) {
                // What is refused here is the application, not the event.
                Outcome::Rejected(_, failure) => Outcome::Failed(failure),
                outcome => outcome,
            }),
        }
    }

    /// What goes out: the event or its data, reshaped as the tenant's route wants it.
    async fn payload(&self, delivery: &Delivery) -> Result<Bytes, Failure> {
        let payload = self.options.relay.payload(&delivery.body, delivery.data.as_ref());
        let payload = delivery.body.slice_ref(payload);
        match self.endpoints.svix_transform(&delivery.identity.tenant) {
            Some(transform) => {
                Box::pin(reshape(transform, payload, delivery, self.options.max_payload_bytes)).await
            }
            None => Ok(payload),
        }
    }
}

/// A delivery as the message it is to become.
struct Message<'a> {
    delivery: &'a Delivery,
    app: &'a str,
    payload: &'a [u8],
    key: &'a str,
    trace: Option<&'a TraceContext>,
}

impl Message<'_> {
    /// Whether a message at Svix is this one: same type and payload. Both payloads are compared as values, because
    /// Svix gives one back with its keys sorted and its whitespace gone.
    fn is_same(&self, found: &MessageOut) -> bool {
        if found.event_type != *self.delivery.event_type {
            return false;
        }
        // What Svix says where it no longer has the payload: the type is all there is to compare.
        let expired = found.payload == serde_json::json!({ "expired": true });
        expired
            || serde_json::from_slice::<serde_json::Value>(self.payload)
                .is_ok_and(|ours| ours == found.payload)
    }
}

fn delivered(status: StatusCode, remote_id: Option<String>, dispatch_unconfirmed: bool) -> Outcome {
    Outcome::Delivered { status: status.as_u16(), remote_id, dispatch_unconfirmed }
}

/// What can't be put into a request.
fn bad_request(error: impl fmt::Display) -> Outcome {
    rejected(Failure::transport("bad_request", error, false))
}

const fn rejected(failure: Failure) -> Outcome {
    Outcome::Rejected(DeadReason::Rejected, failure)
}

fn conflict(detail: &str) -> Outcome {
    rejected(failure("event_id_conflict", 409, detail))
}

fn failure(code: &str, status: u16, detail: &str) -> Failure {
    Failure { code: code.to_owned(), ..Failure::answered(status, detail) }
}

/// Whether Svix takes `id` as an `eventId`: its pattern, and not the prefix of its own ids.
fn event_id_is_valid(id: &str) -> bool {
    svix_name_is_valid(id) && !id.starts_with("msg_")
}

/// `{"eventType":…,"eventId":…,"payload":…}` with the payload's bytes as they are.
fn message_body(event_type: &str, event_id: &str, payload: &[u8]) -> Bytes {
    let texts = event_type.len() + event_id.len();
    let mut body = Vec::with_capacity(payload.len() + texts + 64);
    let mut quoted = |name: &[u8], text: &str| {
        body.extend_from_slice(name);
        // Neither a text nor memory refuses.
        let _ = serde_json::to_writer(&mut body, text);
    };
    quoted(br#"{"eventType":"#, event_type);
    quoted(br#","eventId":"#, event_id);
    body.extend_from_slice(br#","payload":"#);
    body.extend_from_slice(payload);
    body.push(b'}');
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_stays_as_it_is() {
        let body = message_body("a\"b", "evt_1", br#"{"n":1.10,"n":12345678901234567890}"#);
        let expected =
            r#"{"eventType":"a\"b","eventId":"evt_1","payload":{"n":1.10,"n":12345678901234567890}}"#;
        assert_eq!(body, expected.as_bytes());
    }

    #[test]
    fn ids_that_svix_would_refuse_are_known() {
        assert!(event_id_is_valid("evt_1.a-B"));
        for id in ["", "a b", "é", "a/b", "msg_1", &"x".repeat(257)] {
            assert!(!event_id_is_valid(id), "{id}");
        }
    }
}
