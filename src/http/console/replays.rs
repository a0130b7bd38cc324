//! Replays: what one would put back, counted first; then how far it is.

use askama::Template;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Console;
use super::api::{BadField, at};
use super::events::class_of;
use super::fields::{Faults, plain_number};
use super::page::{Cursor, Failure, Frame, Part, done, page, page_with};
use super::session::{Fields, Form, Visitor};
use super::words::{At, When, count, counted, moment_of};

const STATES: [&str; 4] = ["dead", "canceled", "unrouted", "delivered"];

#[derive(Debug, Deserialize)]
struct Replay {
    id: String,
    state: String,
    filter: FilterTold,
    pace: u64,
    #[serde(default)]
    new_ids: bool,
    #[serde(default)]
    started_by: String,
    created_at: At,
    ended_at: Option<At>,
    total: Option<u64>,
    queued: u64,
    waiting: u64,
    delivered: u64,
    failed: u64,
    canceled: u64,
    #[serde(default)]
    unroutable: u64,
    waits_for: Option<String>,
}

/// What the API tells of a filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FilterTold {
    tenant: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    partner: Option<String>,
    endpoint: Option<String>,
    states: Vec<String>,
    since: Option<String>,
    until: Option<String>,
    events: Vec<serde::de::IgnoredAny>,
    deliveries: Vec<serde::de::IgnoredAny>,
}

impl FilterTold {
    /// In a line.
    fn words(&self) -> String {
        let states = match &self.states[..] {
            [] => "dead".to_owned(),
            states => states.join(", "),
        };
        let mut words = vec![states];
        let named = [
            ("tenant", &self.tenant),
            ("type", &self.event_type),
            ("partner", &self.partner),
            ("endpoint", &self.endpoint),
            ("since", &self.since),
            ("until", &self.until),
        ];
        for (what, value) in named {
            words.extend(value.as_ref().map(|value| format!("{what} {value}")));
        }
        if !self.events.is_empty() {
            words.push(counted(self.events.len() as u64, "named event"));
        }
        if !self.deliveries.is_empty() {
            words.push(counted(self.deliveries.len() as u64, "named delivery").replace("ys", "ies"));
        }
        words.join(" · ")
    }
}

impl Replay {
    fn class(&self) -> &'static str {
        class_of(&self.state)
    }

    fn is_under_way(&self) -> bool {
        matches!(self.state.as_str(), "running" | "paused")
    }

    /// How much of it is done with, and of how much.
    fn progress(&self) -> (u64, u64) {
        let gone = self.queued.saturating_sub(self.waiting) + self.unroutable;
        (gone, self.total.unwrap_or(self.queued + self.unroutable).max(gone))
    }

    fn told(&self, number: &u64) -> String {
        count(*number)
    }
}

#[derive(Debug, Deserialize)]
struct Replays {
    replays: Vec<Replay>,
    next_cursor: Option<String>,
}

#[derive(Template)]
#[template(path = "console/replays.html")]
struct ReplaysPage<'a> {
    frame: Frame<'a>,
    replays: Vec<Replay>,
    next: Option<String>,
}

impl ReplaysPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

/// `GET /console/replays`.
pub(super) async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Query(query): Query<Cursor>,
) -> Result<Response, Failure> {
    let from = at(&["v1", "replays"]).with("cursor", query.cursor.as_deref().unwrap_or_default());
    let Replays { replays, next_cursor } = visitor.api(&console).get(&from).await?;
    let next = next_cursor.map(|cursor| at(&["console", "replays"]).with("cursor", &cursor).to_link());
    let frame = Frame::new(&visitor, Part::Replays, "Replays");
    Ok(page(&visitor, &ReplaysPage { frame, replays, next }))
}

#[derive(Template)]
#[template(path = "console/replay.html")]
struct ReplayPage<'a> {
    frame: Frame<'a>,
    replay: Replay,
}

impl ReplayPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

/// `GET /console/replays/{id}`.
pub(super) async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let replay: Replay = visitor.api(&console).get(&at(&["v1", "replays", &id])).await?;
    let frame = Frame::new(&visitor, Part::Replays, "Replay");
    Ok(page(&visitor, &ReplayPage { frame, replay }))
}

/// What stands in the form's fields.
#[derive(Debug, Default)]
struct Filled {
    tenant: String,
    event_type: String,
    partner: String,
    endpoint: String,
    states: Vec<String>,
    since: String,
    until: String,
    pace: String,
    new_ids: bool,
}

impl Filled {
    fn read(fields: &Fields) -> Self {
        let text = |name| fields.text(name).to_owned();
        Self {
            tenant: text("tenant"),
            event_type: text("type"),
            partner: text("partner"),
            endpoint: text("endpoint"),
            states: fields.all("state").map(str::to_owned).collect(),
            since: text("since"),
            until: text("until"),
            pace: text("pace"),
            new_ids: fields.is_set("new_ids"),
        }
    }

    fn has(&self, state: &str) -> bool {
        self.states.iter().any(|ticked| ticked == state)
    }

    fn body(&self, visitor: &Visitor, dry_run: bool) -> Result<Body, Vec<BadField>> {
        let mut faults = Vec::new();
        let pace = plain_number(&self.pace, "/pace", &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let filter = Filter {
            tenant: given(&self.tenant),
            event_type: given(&self.event_type),
            partner: given(&self.partner),
            endpoint: given(&self.endpoint),
            states: self.states.clone(),
            since: given(&moment_of(&self.since, visitor.now)),
            until: given(&moment_of(&self.until, visitor.now)),
        };
        Ok(Body { filter, dry_run, pace, new_ids: self.new_ids })
    }
}

#[derive(Debug, Serialize)]
struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    event_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    states: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

#[derive(Debug, Serialize)]
struct Body {
    filter: Filter,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pace: Option<u32>,
    new_ids: bool,
}

#[derive(Debug, Deserialize)]
struct Preview {
    total: u64,
    complete: bool,
    counts: Vec<PreviewCount>,
}

#[derive(Debug, Deserialize)]
struct PreviewCount {
    state: String,
    destination: Option<String>,
    partner: Option<String>,
    deliveries: u64,
}

impl PreviewCount {
    fn to(&self) -> &str {
        self.partner.as_deref().or(self.destination.as_deref()).unwrap_or("routed anew")
    }

    fn number(&self) -> String {
        count(self.deliveries)
    }

    fn class(&self) -> &'static str {
        class_of(&self.state)
    }
}

impl Preview {
    fn words(&self) -> String {
        let at_least = if self.complete { "" } else { "at least " };
        let what = if self.total == 1 { "delivery" } else { "deliveries" };
        format!("{at_least}{} {what}", count(self.total))
    }
}

#[derive(Template)]
#[template(path = "console/replay_form.html")]
struct ReplayForm<'a> {
    frame: Frame<'a>,
    states: [&'static str; 4],
    filled: Filled,
    faults: Faults,
    preview: Option<Preview>,
}

/// `GET /console/replays/new`: the form, and what it would put back as it is filled in. Counting changes nothing.
pub(super) async fn new(
    State(console): State<Console>,
    visitor: Visitor,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let fields = Fields::of_query(query.as_deref().unwrap_or_default());
    let mut filled = Filled::read(&fields);
    if query.is_none() {
        filled.states = vec!["dead".into()];
        return Ok(show(&visitor, filled, Vec::new(), None));
    }
    let body = match filled.body(&visitor, true) {
        Ok(body) => body,
        Err(faults) => return Ok(show(&visitor, filled, faults, None)),
    };
    match visitor.api(&console).change(Method::POST, &at(&["v1", "replays"]), Some(&body), "").await {
        Ok(preview) => Ok(show(&visitor, filled, Vec::new(), Some(preview))),
        Err(refusal) if refusal.is_about_input() => Ok(show(&visitor, filled, refusal.into_fields(), None)),
        Err(refusal) => Err(refusal.into()),
    }
}

fn show(visitor: &Visitor, filled: Filled, faults: Vec<BadField>, preview: Option<Preview>) -> Response {
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let frame = Frame::new(visitor, Part::Replays, "New replay");
    let form = ReplayForm { frame, states: STATES, filled, faults: Faults::new(faults), preview };
    page_with(visitor, status, &form)
}

/// `POST /console/replays`.
pub(super) async fn start(State(console): State<Console>, form: Form) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let filled = Filled::read(&fields);
    let body = match filled.body(&visitor, false) {
        Ok(body) => body,
        Err(faults) => return Ok(show(&visitor, filled, faults, None)),
    };
    let started = visitor.api(&console).change(Method::POST, &at(&["v1", "replays"]), Some(&body), "").await;
    let replay: Replay = match started {
        Ok(replay) => replay,
        Err(refusal) if refusal.is_about_input() => {
            return Ok(show(&visitor, filled, refusal.into_fields(), None));
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let target = at(&["console", "replays", &replay.id]).to_link();
    Ok(done(&visitor, &target, "The replay runs. It goes behind what is fresh, and can be paused."))
}

/// `POST /console/replays/{id}/cancel`.
pub(super) async fn cancel(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    press(
        &console,
        &form.visitor,
        &id,
        "cancel",
        "The replay is canceled: what was put back already goes out.",
    )
    .await
}

/// `POST /console/replays/{id}/pause`.
pub(super) async fn pause(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    press(&console, &form.visitor, &id, "pause", "The replay rests: what was put back already goes out.")
        .await
}

/// `POST /console/replays/{id}/resume`.
pub(super) async fn resume(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    press(&console, &form.visitor, &id, "resume", "The replay goes on.").await
}

async fn press(
    console: &Console,
    visitor: &Visitor,
    id: &str,
    action: &str,
    words: &str,
) -> Result<Response, Failure> {
    visitor.api(console).press(Method::POST, &at(&["v1", "replays", id, action])).await?;
    Ok(done(visitor, &at(&["console", "replays", id]).to_link(), words))
}
