//! What Svix has: its messages, page by page.

use axum::http::header::{AUTHORIZATION, USER_AGENT};
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use serde::Deserialize;
use std::time::Duration;

use super::{AGENT, SvixSender, words};
use crate::domain::clock::Timestamp;

/// Most messages that Svix gives in an answer.
const PAGE: u32 = 250;
/// Without their payloads, messages are short; Svix takes ids of 256 characters.
const LIST_LIMIT_BYTES: usize = 4 << 20;

/// A page of messages, newest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MessagePage {
    /// The `eventId` of each; its own id where it has none.
    pub event_ids: Vec<String>,
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
#[serde(rename_all = "camelCase")]
struct ListedMessage {
    id: String,
    event_id: Option<String>,
}

impl SvixSender {
    /// Messages of an application that came after `after` and before `before`, from `iterator` on. An application that
    /// Svix does not know has none.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list_messages(
        &self,
        app: &str,
        after: Timestamp,
        before: Timestamp,
        iterator: Option<&str>,
    ) -> Result<MessagePage, ListError> {
        let mut path = format!(
            "/api/v1/app/{app}/msg/?limit={PAGE}&with_content=false&after={}&before={}",
            after.to_rfc3339(),
            before.to_rfc3339()
        );
        if let Some(iterator) = iterator {
            path.push_str("&iterator=");
            path.extend(url::form_urlencoded::byte_serialize(iterator.as_bytes()));
        }
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
        let (head, body) = exchanged.unwrap_or_else(|_| {
            let detail = format!("no answer within {} ms", self.options.timeout.as_millis());
            Err(ListError::Unavailable(detail))
        })?;
        match head.status {
            StatusCode::OK => {
                let page: Listed =
                    serde_json::from_slice(&body).map_err(|error| ListError::Refused(error.to_string()))?;
                let id = |message: ListedMessage| message.event_id.unwrap_or(message.id);
                let event_ids = page.data.into_iter().map(id).collect();
                Ok(MessagePage { event_ids, next: page.iterator.filter(|_| !page.done) })
            }
            StatusCode::NOT_FOUND => Ok(MessagePage::default()),
            StatusCode::TOO_MANY_REQUESTS => {
                let header = head.headers.get(axum::http::header::RETRY_AFTER);
                Err(ListError::Throttled(self.wait(header.and_then(|header| header.to_str().ok()))))
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Err(ListError::Unavailable(format!("{status} {}", words(&body))))
            }
            status => Err(ListError::Refused(format!("{status} {}", words(&body)))),
        }
    }
}
