//! Events: the search, and one event's story.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Deserialize;

use super::Console;
use super::api::{At as Address, Refusal, at};
use super::page::{Failure, Frame, Part, done, page, page_with, redirect};
use super::session::{Form, Visitor};
use super::words::{At, When, bytes, moment_of, pretty, readable, span};

/// Most bytes of a payload that a page shows.
const PAYLOAD_SHOWN_BYTES: usize = 32 << 10;
pub(super) const STATES: [&str; 5] = ["pending", "delivered", "dead", "canceled", "unrouted"];

/// How a state of an event or a delivery looks.
pub(super) fn class_of(state: &str) -> &'static str {
    match state {
        "delivered" | "completed" => "good",
        "dead" => "bad",
        "pending" | "unrouted" | "running" => "warn",
        _ => "idle",
    }
}

#[derive(Debug, Deserialize)]
struct Event {
    tenant: String,
    source: String,
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    received_at: At,
    state: String,
    /// How many deliveries were made of it.
    destinations: u64,
}

#[derive(Debug, Deserialize)]
struct Events {
    events: Vec<Event>,
    next_cursor: Option<String>,
}

impl Event {
    fn link(&self) -> String {
        event_link(&self.tenant, &self.source, &self.id)
    }

    fn class(&self) -> &'static str {
        class_of(&self.state)
    }
}

/// Where an event's story is. Names are parameters: they may be anything, `..` too.
pub(super) fn event_link(tenant: &str, source: &str, id: &str) -> String {
    at(&["console", "event"]).with("tenant", tenant).with_any("source", source).with("id", id).to_link()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Search {
    tenant: String,
    #[serde(rename = "type")]
    event_type: String,
    state: String,
    since: String,
    until: String,
    id: String,
    cursor: String,
}

impl Search {
    fn is_set(&self) -> bool {
        let Self { tenant, event_type, state, since, until, .. } = self;
        [tenant, event_type, state, since, until].iter().any(|text| !text.trim().is_empty())
    }

    fn next(&self, cursor: &str) -> String {
        at(&["console", "events"])
            .with("tenant", self.tenant.trim())
            .with("type", self.event_type.trim())
            .with("state", self.state.trim())
            .with("since", self.since.trim())
            .with("until", self.until.trim())
            .with("cursor", cursor)
            .to_link()
    }
}

#[derive(Template)]
#[template(path = "console/events.html")]
struct EventsPage<'a> {
    frame: Frame<'a>,
    search: Search,
    states: [&'static str; 5],
    events: Vec<Event>,
    next: Option<String>,
    trouble: Option<String>,
}

impl EventsPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

/// `GET /console/events`.
pub(super) async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Query(search): Query<Search>,
) -> Result<Response, Failure> {
    let tenant = match search.tenant.trim() {
        "" => visitor.caller.tenant.clone().unwrap_or_default(),
        tenant => tenant.to_owned(),
    };
    let id = search.id.trim();
    let mut trouble = None;
    if !id.is_empty() && !tenant.is_empty() {
        let target = at(&["console", "event"]).with("tenant", &tenant).with("id", id);
        return Ok(redirect(&target.to_link()));
    } else if !id.is_empty() {
        trouble = Some("An id is one tenant's: name the tenant too.".to_owned());
    }
    let from = at(&["v1", "events"])
        .with("tenant", search.tenant.trim())
        .with("type", search.event_type.trim())
        .with("state", search.state.trim())
        .with("since", &moment_of(&search.since, visitor.now))
        .with("until", &moment_of(&search.until, visitor.now))
        .with("cursor", search.cursor.trim());
    let found: Result<Events, Refusal> = visitor.api(&console).get(&from).await;
    let Events { events, next_cursor } = match found {
        Ok(found) => found,
        Err(refusal) if refusal.is_about_input() => {
            trouble = Some(refusal.detail);
            Events { events: Vec::new(), next_cursor: None }
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let status = if trouble.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let next = next_cursor.map(|cursor| search.next(&cursor));
    let frame = Frame::new(&visitor, Part::Events, "Events");
    Ok(page_with(&visitor, status, &EventsPage { frame, search, states: STATES, events, next, trouble }))
}

/// Where a delivery goes.
#[derive(Debug, Deserialize)]
pub(super) struct Destination {
    svix_app: Option<String>,
    endpoint: Option<String>,
    partner: Option<String>,
    host: Option<String>,
}

impl Destination {
    /// What people call it.
    pub fn name(&self) -> String {
        match (&self.svix_app, &self.partner, &self.endpoint) {
            (Some(app), _, _) => format!("Svix · {app}"),
            (None, Some(partner), _) => partner.clone(),
            (None, None, Some(endpoint)) => format!("{endpoint} (deleted)"),
            (None, None, None) => "unknown".into(),
        }
    }

    /// What else tells it apart.
    pub fn place(&self) -> &str {
        self.host.as_deref().unwrap_or_default()
    }

    /// Its page, where it has one.
    pub fn link(&self) -> Option<String> {
        self.partner.as_ref()?;
        let endpoint = self.endpoint.as_deref()?;
        Some(at(&["console", "endpoints", endpoint]).to_link())
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Delivery {
    pub id: String,
    pub tenant: String,
    pub source: String,
    pub event_id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub destination: Destination,
    pub state: String,
    pub failures: u64,
    pub done_at: Option<At>,
    pub status: Option<i64>,
    pub reason: Option<String>,
    #[serde(default)]
    pub dispatch_unconfirmed: bool,
}

impl Delivery {
    pub fn event_link(&self) -> String {
        event_link(&self.tenant, &self.source, &self.event_id)
    }

    pub fn class(&self) -> &'static str {
        class_of(&self.state)
    }

    pub fn is_pending(&self) -> bool {
        self.state == "pending"
    }

    /// Why it ended so, in words.
    pub fn why(&self) -> String {
        match (self.reason.as_deref(), self.status) {
            (Some(reason), Some(status)) => format!("{}, last answer {status}", reason.replace('_', " ")),
            (Some(reason), None) => reason.replace('_', " "),
            (None, Some(status)) => status.to_string(),
            (None, None) => String::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Attempt {
    n: u64,
    at: At,
    latency_ms: u64,
    status: Option<i64>,
    code: String,
    detail: String,
    retry_at: Option<At>,
}

impl Attempt {
    fn is_delivered(&self) -> bool {
        self.code == "delivered"
    }

    fn words(&self) -> String {
        match (self.is_delivered(), self.status) {
            (true, Some(status)) => format!("delivered, {status}"),
            (true, None) => "delivered".into(),
            (false, Some(status)) => format!("failed, {status}"),
            (false, None) => format!("failed: {}", self.code.replace('_', " ")),
        }
    }

    fn took(&self) -> String {
        span(self.latency_ms)
    }
}

#[derive(Debug, Deserialize)]
struct Steering {
    at: At,
    action: String,
    by: Option<String>,
}

impl Steering {
    fn who(&self) -> &str {
        self.by.as_deref().unwrap_or("an operator")
    }
}

#[derive(Debug, Deserialize)]
struct WaitsFor {
    reason: String,
    until: Option<At>,
    detail: String,
}

impl WaitsFor {
    fn words(&self) -> String {
        self.reason.replace('_', " ")
    }
}

#[derive(Debug, Deserialize)]
struct DeliveryStory {
    #[serde(flatten)]
    delivery: Delivery,
    attempts: Vec<Attempt>,
    #[serde(default)]
    steering: Vec<Steering>,
    waits_for: Option<WaitsFor>,
}

/// What happened to a delivery, in order.
enum Step<'a> {
    Attempt(&'a Attempt),
    Steered(&'a Steering),
}

impl DeliveryStory {
    fn steps(&self) -> Vec<Step<'_>> {
        let attempts = self.attempts.iter().map(|attempt| (attempt.at, Step::Attempt(attempt)));
        let steered = self.steering.iter().map(|steering| (steering.at, Step::Steered(steering)));
        let mut steps: Vec<_> = attempts.chain(steered).collect();
        steps.sort_by_key(|(at, _)| *at);
        steps.into_iter().map(|(_, step)| step).collect()
    }
}

#[derive(Debug, Deserialize)]
struct Repeats {
    duplicates: u64,
    last_duplicate_at: Option<At>,
    conflicts: u64,
    last_conflict_at: Option<At>,
}

#[derive(Debug, Deserialize)]
struct Story {
    #[serde(flatten)]
    event: Event,
    size_bytes: u64,
    repeats: Repeats,
    #[serde(default)]
    other_sources: Vec<String>,
    unrouted: Option<String>,
    deliveries: Vec<DeliveryStory>,
    conclusion: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Name {
    tenant: String,
    id: String,
    source: Option<String>,
}

#[derive(Template)]
#[template(path = "console/event.html")]
struct EventPage<'a> {
    frame: Frame<'a>,
    story: Story,
    payload: Option<String>,
    size: String,
}

impl EventPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }

    fn other(&self, source: &str) -> String {
        event_link(&self.story.event.tenant, source, &self.story.event.id)
    }

    fn here(&self) -> String {
        self.story.event.link()
    }
}

fn address(name: &Name, last: &[&str]) -> Address {
    let place = at(&[&["v1", "events", name.tenant.as_str(), name.id.as_str()], last].concat());
    match &name.source {
        Some(source) => place.with_any("source", source),
        None => place,
    }
}

/// `GET /console/event`.
pub(super) async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Query(name): Query<Name>,
) -> Result<Response, Failure> {
    let api = visitor.api(&console);
    let story: Story = api.get(&address(&name, &[])).await?;
    let name = Name { source: Some(story.event.source.clone()), ..name };
    // It may have been pruned since.
    let payload = match api.bytes(&address(&name, &["payload"])).await {
        Ok(payload) => {
            let text = std::str::from_utf8(&payload).ok().filter(|text| text.len() <= PAYLOAD_SHOWN_BYTES);
            Some(text.map_or_else(|| readable(&payload, PAYLOAD_SHOWN_BYTES), pretty))
        }
        Err(_) => None,
    };
    let frame = Frame::new(&visitor, Part::Events, story.event.id.as_str());
    let size = bytes(story.size_bytes);
    Ok(page(&visitor, &EventPage { frame, story, payload, size }))
}

/// `POST /console/deliveries/{id}/retry`.
pub(super) async fn retry(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    press(&console, &form, &id, "retry").await
}

/// `POST /console/deliveries/{id}/cancel`.
pub(super) async fn cancel(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    press(&console, &form, &id, "cancel").await
}

async fn press(console: &Console, form: &Form, id: &str, action: &str) -> Result<Response, Failure> {
    let visitor = &form.visitor;
    let at = at(&["v1", "deliveries", id, action]);
    let story: DeliveryStory = visitor.api(console).ask(Method::POST, &at).await?;
    let (event, to) = (&story.delivery.event_id, story.delivery.destination.name());
    let words = match action {
        "retry" => format!("{event} goes out to {to} again now."),
        _ => format!("{event} is not sent to {to} any more."),
    };
    let back = match form.fields.text("back") {
        "dead" => Part::Dead.path().to_owned(),
        _ => story.delivery.event_link(),
    };
    Ok(done(visitor, &back, &words))
}
