//! Sources, and what came from them and could never be accepted.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::Method;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Console;
use super::api::at;
use super::page::{Failure, Frame, Part, done, page};
use super::session::{Form, Visitor};
use super::words::{At, When, bytes, pretty, readable};

/// Most bytes of a message that a page shows.
const BODY_SHOWN_BYTES: usize = 32 << 10;

/// A queue or stream that is read.
#[derive(Debug, Deserialize)]
pub(super) struct Source {
    pub source: String,
    pub kind: String,
    pub state: String,
    pub reason: Option<String>,
    pub lag: Option<u64>,
}

impl Source {
    /// How its state looks.
    pub fn class(&self) -> &'static str {
        match self.state.as_str() {
            "up" => "good",
            "down" => "bad",
            "paused" => "warn",
            _ => "idle",
        }
    }
}

#[derive(Debug, Deserialize)]
struct Ready {
    sources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
struct Row {
    id: i64,
    received_at: At,
    origin: String,
    reason: String,
    body_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Rejected {
    rejected: Vec<Row>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    id: i64,
    received_at: At,
    origin: String,
    reason: String,
    attributes: Box<RawValue>,
    content_type: Option<String>,
    tenant: Option<String>,
    item: usize,
    body_base64: String,
}

#[derive(Deserialize)]
pub(super) struct Filter {
    cursor: Option<String>,
    origin: Option<String>,
}

#[derive(Template)]
#[template(path = "console/sources.html")]
struct SourcesPage<'a> {
    frame: Frame<'a>,
    sources: Vec<Source>,
    rejected: Vec<Row>,
    origin: String,
    next: Option<String>,
}

impl SourcesPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }

    fn size(&self, number: &u64) -> String {
        bytes(*number)
    }
}

/// `GET /console/sources`.
pub(super) async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Query(filter): Query<Filter>,
) -> Result<Response, Failure> {
    let api = visitor.api(&console);
    let origin = filter.origin.unwrap_or_default();
    let from = at(&["v1", "rejected"])
        .with("origin", origin.trim())
        .with("cursor", filter.cursor.as_deref().unwrap_or_default());
    let Rejected { rejected, next_cursor } = api.get(&from).await?;
    let Ready { sources } = api.get_whatever(&at(&["health", "ready"])).await?;
    let next = next_cursor.map(|cursor| {
        at(&["console", "sources"]).with("origin", origin.trim()).with("cursor", &cursor).to_link()
    });
    let frame = Frame::new(&visitor, Part::Sources, "Sources");
    Ok(page(&visitor, &SourcesPage { frame, sources, rejected, origin, next }))
}

#[derive(Template)]
#[template(path = "console/rejected.html")]
struct RejectedPage<'a> {
    frame: Frame<'a>,
    received: When,
    message: Message,
    attributes: String,
    body: String,
    size: String,
}

/// `GET /console/rejected/{id}`.
pub(super) async fn rejected(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let message: Message = visitor.api(&console).get(&at(&["v1", "rejected", &id])).await?;
    let body = STANDARD.decode(&message.body_base64).unwrap_or_default();
    let shown = RejectedPage {
        frame: Frame::new(&visitor, Part::Sources, format!("Rejected message {}", message.id)),
        received: When::new(message.received_at.0, visitor.now),
        attributes: pretty(message.attributes.get()),
        size: bytes(body.len() as u64),
        body: readable(&body, BODY_SHOWN_BYTES),
        message,
    };
    Ok(page(&visitor, &shown))
}

/// `POST /console/rejected/{id}/replay`.
pub(super) async fn replay(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::POST, &at(&["v1", "rejected", &id, "replay"])).await?;
    let words = format!("Message {id} was taken in as an event, and is rejected no longer.");
    Ok(done(&form.visitor, Part::Sources.path(), &words))
}

/// `POST /console/rejected/{id}/delete`.
pub(super) async fn delete(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::DELETE, &at(&["v1", "rejected", &id])).await?;
    Ok(done(&form.visitor, Part::Sources.path(), &format!("Message {id} is deleted.")))
}
