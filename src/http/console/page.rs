//! What all pages share: the frame around them, how they are sent, and what stands in their place when something fails.

use askama::Template;
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use axum::http::{Response as HttpResponse, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::api::Refusal;
use super::assets;
use super::session::{FLASH_COOKIE, Theme, Visitor, flash_cookie, set_cookie};
use super::sign_in::form_cookie;
use crate::domain::clock::Timestamp;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use crate::ledger::LedgerError;

/// What runs, what loads: this origin alone, and nothing inline. An escape that is forgotten still runs nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Where a list goes on.
#[derive(Debug, Deserialize)]
pub(super) struct Cursor {
    pub cursor: Option<String>,
}

/// The parts of the console, in the order of the menu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Overview,
    Events,
    Dead,
    Replays,
    Partners,
    Sources,
    Tenants,
    Keys,
    Settings,
}

impl Part {
    const ALL: [Self; 9] = [
        Self::Overview,
        Self::Events,
        Self::Dead,
        Self::Replays,
        Self::Partners,
        Self::Sources,
        Self::Tenants,
        Self::Keys,
        Self::Settings,
    ];

    /// What the menu calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Events => "Events",
            Self::Dead => "Dead letters",
            Self::Replays => "Replays",
            Self::Partners => "Partners",
            Self::Sources => "Sources",
            Self::Tenants => "Tenants",
            Self::Keys => "Keys",
            Self::Settings => "Settings",
        }
    }

    /// Where it is.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Overview => "/console",
            Self::Events => "/console/events",
            Self::Dead => "/console/dead",
            Self::Replays => "/console/replays",
            Self::Partners => "/console/partners",
            Self::Sources => "/console/sources",
            Self::Tenants => "/console/tenants",
            Self::Keys => "/console/keys",
            Self::Settings => "/console/settings",
        }
    }

    /// Whether there is something in it for this visitor: what the API would refuse them is not in their menu.
    fn is_for(self, visitor: &Visitor) -> bool {
        match self {
            Self::Events | Self::Dead | Self::Tenants => true,
            Self::Keys => visitor.is_admin() && visitor.is_unbound(),
            Self::Overview | Self::Replays | Self::Partners | Self::Sources | Self::Settings => {
                visitor.is_unbound()
            }
        }
    }
}

/// What stands around a page.
pub(super) struct Frame<'a> {
    pub title: String,
    pub part: Part,
    pub visitor: &'a Visitor,
    pub urls: &'static assets::Urls,
    pub version: &'static str,
}

impl<'a> Frame<'a> {
    /// The frame of a page of `part`, called `title`.
    pub fn new(visitor: &'a Visitor, part: Part, title: impl Into<String>) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self { title: title.into(), part, visitor, urls: assets::urls(), version }
    }

    /// The menu.
    pub fn parts(&self) -> Vec<Part> {
        Part::ALL.into_iter().filter(|part| part.is_for(self.visitor)).collect()
    }

    /// Whether buttons are shown.
    pub fn is_admin(&self) -> bool {
        self.visitor.is_admin()
    }

    /// When it is.
    pub const fn now(&self) -> Timestamp {
        self.visitor.now
    }
}

/// A page for `visitor`.
pub(super) fn page(visitor: &Visitor, template: &impl Template) -> Response {
    page_with(visitor, StatusCode::OK, template)
}

/// A page with a status of its own.
pub(super) fn page_with(visitor: &Visitor, status: StatusCode, template: &impl Template) -> Response {
    let mut response = html(status, template);
    if visitor.is_form {
        // A reload there would find nothing.
        response.headers_mut().insert("hx-push-url", HeaderValue::from_static("false"));
    }
    if let Some(token) = &visitor.new_form_cookie {
        set_cookie(&mut response, &form_cookie(token));
    }
    if visitor.flash.is_some() {
        let over = format!("{FLASH_COOKIE}=; Path=/console; HttpOnly; SameSite=Strict; Max-Age=0");
        set_cookie(&mut response, &over);
    }
    response
}

/// A rendered page.
pub(super) fn html(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Another page instead (RFC 9110 §15.4.4).
pub(super) fn redirect(target: &str) -> Response {
    let location = HeaderValue::from_str(target).unwrap_or(HeaderValue::from_static("/console"));
    (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response()
}

/// The page after a form that did what it should, which says so.
pub(super) fn done(visitor: &Visitor, target: &str, words: &str) -> Response {
    let mut response = redirect(target);
    set_cookie(&mut response, &flash_cookie(words, &visitor.csrf));
    response
}

/// What can't be shown or done.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    title: String,
    detail: String,
}

#[derive(Template)]
#[template(path = "console/failure.html")]
struct FailurePage<'a> {
    urls: &'static assets::Urls,
    theme: Theme,
    failure: &'a Failure,
}

impl Failure {
    /// A failure with a heading and what to do about it.
    pub fn new(status: StatusCode, title: &str, detail: String) -> Self {
        Self { status, title: title.to_owned(), detail }
    }

    /// There is nothing here.
    pub fn no_such_page() -> Self {
        let detail = "Nothing is kept under this address. It may be gone, or the address has a mistake.";
        Self::new(StatusCode::NOT_FOUND, "There is no such page", detail.into())
    }

    /// What the ledger could not do.
    pub fn of_ledger(error: &LedgerError, state: &HttpState) -> Self {
        Self::from(Problem::of_ledger(error, state.retry_after_s()))
    }

    fn of(status: StatusCode, detail: String) -> Self {
        let title = match status {
            StatusCode::NOT_FOUND => "It is not there",
            StatusCode::FORBIDDEN => "Your key may not do this",
            StatusCode::UNAUTHORIZED => "The console needs a key",
            StatusCode::SERVICE_UNAVAILABLE => "Not now",
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => "Somebody was faster",
            status if status.is_server_error() => "Something went wrong here",
            _ => "This can't be done",
        };
        Self::new(status, title, detail)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::of(problem.status, problem.detail)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let places = refusal.errors.iter().filter(|field| field.detail != refusal.detail);
        let places: Vec<_> = places.map(|field| format!("{}: {}", field.pointer, field.detail)).collect();
        let detail = [vec![refusal.detail.clone()], places].concat().join("; ");
        Self::of(status, detail)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // Whose theme is not known here: as the system likes it.
        let page = FailurePage { urls: assets::urls(), theme: Theme::Auto, failure: &self };
        html(self.status, &page)
    }
}

/// What every answer of the console carries, and refusals that a layer or the router made as pages.
pub(super) async fn finish(response: HttpResponse<Body>) -> HttpResponse<Body> {
    let status = response.status();
    let formed = response.headers().contains_key(CONTENT_TYPE)
        && response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let mut response = match status {
        StatusCode::NOT_FOUND if !formed => Failure::no_such_page().into_response(),
        _ if !formed && (status.is_client_error() || status.is_server_error()) => {
            let detail = match status {
                StatusCode::METHOD_NOT_ALLOWED => "This address only takes forms of the console.",
                StatusCode::PAYLOAD_TOO_LARGE => "The form is too large.",
                status if status.is_server_error() => "It is in the log. Try again in a moment.",
                _ => "The request can't be read.",
            };
            Failure::of(status, detail.into()).into_response()
        }
        _ => response,
    };
    let headers = response.headers_mut();
    let fixed = [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Assets say otherwise.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
