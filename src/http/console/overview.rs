//! The first page: how things stand, worst first.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::Console;
use super::api::at;
use super::page::{Failure, Frame, Part, page, redirect};
use super::session::Visitor;
use super::sources::Source;
use super::words::{count, span};

#[derive(Debug, Deserialize)]
struct Ready {
    status: String,
    reasons: Vec<String>,
    waiting: u64,
    gates: Vec<Gate>,
    sources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
struct Gate {
    gate: String,
    state: String,
    reason: Option<String>,
    opens_in_ms: Option<u64>,
    max_in_flight: u32,
    in_flight: u32,
}

impl Gate {
    fn name(&self) -> &str {
        if self.gate == "svix" { "Svix" } else { &self.gate }
    }

    fn opens_in(&self) -> Option<String> {
        self.opens_in_ms.map(span)
    }
}

#[derive(Template)]
#[template(path = "console/overview.html")]
struct OverviewPage<'a> {
    frame: Frame<'a>,
    ready: Ready,
    waiting: String,
}

/// `GET /console`.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor) -> Result<Response, Failure> {
    if !visitor.is_unbound() {
        return Ok(redirect(Part::Events.path()));
    }
    let ready: Ready = visitor.api(&console).get_whatever(&at(&["health", "ready"])).await?;
    let frame = Frame::new(&visitor, Part::Overview, "Overview");
    Ok(page(&visitor, &OverviewPage { frame, waiting: count(ready.waiting), ready }))
}
