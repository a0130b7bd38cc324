//! What Svix has: its messages, page by page.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, USER_AGENT};
use axum::http::response::Parts;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use serde::Deserialize;

use super::{AGENT, SvixSender, event_id_is_valid, words};
use crate::domain::clock::Timestamp;
use crate::domain::event::Identity;
use crate::domain::key::idempotency_key;
use crate::domain::tenant::Destination;
use crate::domain::time_text::parse_time;

/// Most messages that Svix gives in an answer.
const PAGE: u32 = 250;
/// Without their payloads, messages are short; Svix takes ids of 256 characters.
const LIST_LIMIT_BYTES: usize = 4 << 20;

/// A page of messages, newest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MessagePage {
    /// Svix's own id of each, and when Svix created it.
    pub messages: Vec<(String, Timestamp)>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
}

/// Why there is no page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Too fast; how long Svix wants to be left alone, where it says so.
    #[error("Svix asks to slow down")]
    Throttled(Option<Duration>),
    /// It may go better later.
    #[error("Svix can't be asked: {0}")]
    Unavailable(String),
    /// It will not go better.
    #[error("Svix refuses: {0}")]
    Refused(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    data: Vec<ListedMessage>,
    iterator: Option<String>,
    done: bool,
}

#[derive(Deserialize)]
struct ListedMessage {
    id: String,
    timestamp: String,
}

impl ListedMessage {
    fn created(&self) -> Result<Timestamp, ListError> {
        parse_time(&self.timestamp, Timestamp::default()).map_err(ListError::Refused)
    }
}

impl SvixSender {
    /// A page of the messages of an application that were created before `before`, newest first, from `iterator` on; `None`
    /// where Svix does not know the application.
    ///
    /// There is no `after`: a self-hosted Svix takes only one of the two, and none beside an iterator.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list_messages(
        &self,
        app: &str,
        before: Timestamp,
        iterator: Option<&str>,
    ) -> Result<Option<MessagePage>, ListError> {
        let before = before.to_rfc3339();
        let mut path = format!("/api/v1/app/{app}/msg/?limit={PAGE}&with_content=false&before={before}");
        if let Some(iterator) = iterator {
            path.push_str("&iterator=");
            path.extend(url::form_urlencoded::byte_serialize(iterator.as_bytes()));
        }
        let (head, body) = self.get(&path).await?;
        match head.status {
            StatusCode::OK => {
                let page: Listed = read(&body)?;
                let message = |message: ListedMessage| Ok((message.created()?, message.id));
                let messages: Result<Vec<_>, ListError> = page.data.into_iter().map(message).collect();
                let messages = messages?.into_iter().map(|(created, id)| (id, created)).collect();
                Ok(Some(MessagePage { messages, next: page.iterator.filter(|_| !page.done) }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.no_answer(&head, &body)),
        }
    }

    /// When Svix created the message of this name (Svix's own id or an `eventId`) in an application; `None` where it has none.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn find_message(&self, app: &str, name: &str) -> Result<Option<Timestamp>, ListError> {
        let (head, body) = self.get(&format!("/api/v1/app/{app}/msg/{name}/?with_content=false")).await?;
        match head.status {
            StatusCode::OK => read::<ListedMessage>(&body)?.created().map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.no_answer(&head, &body)),
        }
    }

    /// The longest pause that a `Retry-After` of Svix's can ask for.
    pub const fn retry_after_max(&self) -> Duration {
        self.options.retry_after_max
    }

    /// The names that the message of a delivery may have at Svix.
    pub fn names_of(&self, destination: &Destination, identity: &Identity) -> Vec<String> {
        let key = idempotency_key(&self.options.environment, &destination.to_string(), identity);
        let id = Some(identity.id.to_string()).filter(|id| event_id_is_valid(id));
        id.into_iter().chain([key]).collect()
    }

    async fn get(&self, path: &str) -> Result<(Parts, Bytes), ListError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("{}{path}", self.api.server_url()))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(USER_AGENT, AGENT)
            .body(Full::new(Bytes::new()))
            .map_err(|error| ListError::Refused(error.to_string()))?;
        let exchange = async {
            let unavailable = |error: &dyn std::fmt::Display| ListError::Unavailable(error.to_string());
            let response = self.http.request(request).await.map_err(|error| unavailable(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LIST_LIMIT_BYTES).collect().await;
            Ok((head, body.map_err(|error| unavailable(&error))?.to_bytes()))
        };
        let exchanged = tokio::time::timeout(self.options.timeout, exchange).await;
        exchanged.unwrap_or_else(|_| {
            let detail = format!("no answer within {} ms", self.options.timeout.as_millis());
            Err(ListError::Unavailable(detail))
        })
    }

    /// The error that an answer stands for. As with a message: 429 is a throttle, and so is 503 with a `Retry-After`.
    fn no_answer(&self, head: &Parts, body: &[u8]) -> ListError {
        let status = head.status;
        let wait = self.wait(&head.headers);
        if status == StatusCode::TOO_MANY_REQUESTS
            || (status == StatusCode::SERVICE_UNAVAILABLE && wait.is_some())
        {
            return ListError::Throttled(wait.flatten());
        }
        let detail = format!("{status} {}", words(body));
        match status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
            true => ListError::Unavailable(detail),
            false => ListError::Refused(detail),
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ListError> {
    serde_json::from_slice(body)
        .map_err(|error| ListError::Refused(format!("its answer can't be read: {error}")))
}
