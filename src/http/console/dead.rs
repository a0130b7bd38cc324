//! Dead letters: deliveries that were given up, and wait for a person or a replay.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::Console;
use super::api::{Refusal, at};
use super::events::Delivery;
use super::page::{Failure, Frame, Part, page};
use super::session::Visitor;
use super::words::{At, When, moment_of};

#[derive(Debug, Deserialize)]
struct Deliveries {
    deliveries: Vec<Delivery>,
    next_cursor: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Search {
    tenant: String,
    partner: String,
    since: String,
    cursor: String,
}

impl Search {
    fn with(&self, place: &[&str]) -> super::api::At {
        at(place)
            .with("tenant", self.tenant.trim())
            .with("partner", self.partner.trim())
            .with("since", self.since.trim())
    }
}

#[derive(Template)]
#[template(path = "console/dead.html")]
struct DeadPage<'a> {
    frame: Frame<'a>,
    search: Search,
    deliveries: Vec<Delivery>,
    next: Option<String>,
    /// Where all of these are counted and replayed.
    replay: String,
    trouble: Option<String>,
}

impl DeadPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

/// `GET /console/dead`.
pub(super) async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Query(search): Query<Search>,
) -> Result<Response, Failure> {
    let from = at(&["v1", "deliveries"])
        .with("state", "dead")
        .with("tenant", search.tenant.trim())
        .with("partner", search.partner.trim())
        .with("since", &moment_of(&search.since, visitor.now))
        .with("cursor", search.cursor.trim());
    let found: Result<Deliveries, Refusal> = visitor.api(&console).get(&from).await;
    let (found, trouble) = match found {
        Ok(found) => (found, None),
        Err(refusal) if refusal.is_about_input() => {
            (Deliveries { deliveries: Vec::new(), next_cursor: None }, Some(refusal.detail))
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let Deliveries { deliveries, next_cursor } = found;
    let next = next_cursor.map(|cursor| search.with(&["console", "dead"]).with("cursor", &cursor).to_link());
    let replay = search.with(&["console", "replays", "new"]).with("state", "dead").to_link();
    let frame = Frame::new(&visitor, Part::Dead, "Dead letters");
    Ok(page(&visitor, &DeadPage { frame, search, deliveries, next, replay, trouble }))
}
