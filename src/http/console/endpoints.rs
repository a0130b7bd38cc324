//! Endpoints: one of them, what is set of it, and its buttons.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Console;
use super::api::{At as Address, BadField, Refusal, at};
use super::fields::{Faults, exact, listed, wait, waits, waits_text};
use super::page::{Failure, Frame, Part, done, page, page_with};
use super::session::{Fields, Form, Visitor};
use super::words::{At, When, pretty};
use crate::domain::partner::{DEFAULT_RETRY_SCHEDULE_MS, DEFAULT_TIMEOUT_MS};

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Endpoint {
    pub id: String,
    pub partner: String,
    pub url: String,
    pub tenant: Option<String>,
    pub event_types: Vec<String>,
    headers: BTreeMap<String, String>,
    transform: Option<Box<RawValue>>,
    timeout_ms: u64,
    retry_schedule_ms: Vec<u64>,
    signature: Signature,
    state: String,
    disabled_reason: Option<String>,
    disabled_at: Option<At>,
    failing_since: Option<At>,
    proven_at: Option<At>,
    previous_secret_until: Option<At>,
    created_at: At,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Signature {
    scheme: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    header: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    prefix: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Endpoints {
    pub endpoints: Vec<Endpoint>,
    pub next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NewSecret {
    id: String,
    secret: String,
}

/// What came back from a test.
#[derive(Debug, Deserialize)]
struct TestResult {
    status: Option<u16>,
    latency_ms: u64,
    body_excerpt: String,
    error: Option<String>,
}

impl Endpoint {
    pub fn is_active(&self) -> bool {
        self.state == "active"
    }

    /// Why it is disabled, in words.
    pub fn why_disabled(&self) -> &str {
        match self.disabled_reason.as_deref() {
            Some("operator") => "by an operator",
            Some("gone") => "it answered 410 Gone",
            Some("failing") => "nothing but failures for five days",
            _ => "",
        }
    }

    pub fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    pub fn types(&self) -> String {
        self.event_types.join(", ")
    }

    fn transform(&self) -> String {
        self.transform.as_ref().map(|transform| pretty(transform.get())).unwrap_or_default()
    }

    fn timeout(&self) -> String {
        exact(self.timeout_ms)
    }

    fn schedule(&self) -> String {
        waits_text(&self.retry_schedule_ms)
    }

    fn signed(&self) -> String {
        match self.signature.scheme.as_str() {
            "standard" => "Standard Webhooks".into(),
            _ => format!("HMAC-SHA256 in hex, as {}: {}…", self.signature.header, self.signature.prefix),
        }
    }
}

#[derive(Template)]
#[template(path = "console/endpoint.html")]
struct EndpointPage<'a> {
    frame: Frame<'a>,
    endpoint: Endpoint,
    tested: Option<TestResult>,
    /// Shown this once.
    secret: Option<String>,
}

impl EndpointPage<'_> {
    fn when(&self, at: &At) -> When {
        When::new(at.0, self.frame.now())
    }
}

fn place(id: &str) -> Address {
    at(&["v1", "endpoints", id])
}

fn link(id: &str) -> String {
    at(&["console", "endpoints", id]).to_link()
}

async fn show(
    console: &Console,
    visitor: &Visitor,
    id: &str,
    tested: Option<TestResult>,
    secret: Option<String>,
) -> Result<Response, Failure> {
    let endpoint: Endpoint = visitor.api(console).get(&place(id)).await?;
    let frame = Frame::new(visitor, Part::Partners, format!("Endpoint {id}"));
    Ok(page(visitor, &EndpointPage { frame, endpoint, tested, secret }))
}

/// `GET /console/endpoints/{id}`.
pub(super) async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    show(&console, &visitor, &id, None, None).await
}

/// `POST /console/endpoints/{id}/test`.
pub(super) async fn test(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let visitor = form.visitor;
    let tested = visitor.api(&console).ask(Method::POST, &at(&["v1", "endpoints", &id, "test"])).await?;
    show(&console, &visitor, &id, Some(tested), None).await
}

/// `POST /console/endpoints/{id}/rotate`.
pub(super) async fn rotate(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    #[derive(Serialize)]
    struct Rotation {
        #[serde(skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
    }
    let Form { visitor, fields } = form;
    let grace = fields.text("grace");
    let rotation = Rotation { grace_ms: wait(grace) };
    if !grace.is_empty() && rotation.grace_ms.is_none() {
        let detail = format!("`{grace}` is not a time such as 1 d, 2 h or 30 min.");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "This can't be done", detail));
    }
    let at = at(&["v1", "endpoints", &id, "secret", "rotate"]);
    let rotated: NewSecret = visitor.api(&console).change(Method::POST, &at, Some(&rotation), "").await?;
    show(&console, &visitor, &id, None, Some(rotated.secret)).await
}

/// `POST /console/endpoints/{id}/enable`.
pub(super) async fn enable(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::POST, &at(&["v1", "endpoints", &id, "enable"])).await?;
    Ok(done(&form.visitor, &link(&id), "The endpoint gets events again."))
}

/// `POST /console/endpoints/{id}/disable`.
pub(super) async fn disable(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::POST, &at(&["v1", "endpoints", &id, "disable"])).await?;
    Ok(done(&form.visitor, &link(&id), "The endpoint gets no further events until it is enabled."))
}

/// `POST /console/endpoints/{id}/delete`.
pub(super) async fn delete(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let visitor = form.visitor;
    let api = visitor.api(&console);
    let endpoint: Endpoint = api.get(&place(&id)).await?;
    api.press(Method::DELETE, &place(&id)).await?;
    let target = at(&["console", "partners", &endpoint.partner]).to_link();
    Ok(done(&visitor, &target, "The endpoint is deleted; what waited for it is not sent any more."))
}

/// What stands in the form's fields.
#[derive(Debug, Default)]
struct Filled {
    url: String,
    tenant: String,
    event_types: String,
    headers: String,
    transform: String,
    timeout: String,
    schedule: String,
    scheme: String,
    header: String,
    prefix: String,
    version: String,
}

#[derive(Template)]
#[template(path = "console/endpoint_form.html")]
struct EndpointForm<'a> {
    frame: Frame<'a>,
    partner: &'a str,
    /// `None` where it is to be made.
    id: Option<&'a str>,
    filled: Filled,
    faults: Faults,
}

#[derive(Debug, Serialize)]
struct Body {
    url: String,
    tenant: Option<String>,
    event_types: Option<Vec<String>>,
    headers: BTreeMap<String, Option<String>>,
    transform: Option<Box<RawValue>>,
    timeout_ms: Option<u64>,
    retry_schedule_ms: Option<Vec<u64>>,
    signature: Signature,
}

impl Filled {
    fn new() -> Self {
        Self {
            event_types: "*".into(),
            timeout: exact(DEFAULT_TIMEOUT_MS),
            schedule: waits_text(&DEFAULT_RETRY_SCHEDULE_MS),
            scheme: "standard".into(),
            ..Self::default()
        }
    }

    fn of(endpoint: &Endpoint, version: String) -> Self {
        let header = |(name, value): (&String, &String)| format!("{name}: {value}");
        Self {
            url: endpoint.url.clone(),
            tenant: endpoint.tenant.clone().unwrap_or_default(),
            event_types: endpoint.event_types.join("\n"),
            headers: endpoint.headers.iter().map(header).collect::<Vec<_>>().join("\n"),
            transform: endpoint.transform(),
            timeout: endpoint.timeout(),
            schedule: endpoint.schedule(),
            scheme: endpoint.signature.scheme.clone(),
            header: endpoint.signature.header.clone(),
            prefix: endpoint.signature.prefix.clone(),
            version,
        }
    }

    fn read(fields: &Fields) -> Self {
        let text = |name| fields.text(name).to_owned();
        Self {
            url: text("url"),
            tenant: text("tenant"),
            event_types: text("event_types"),
            headers: text("headers"),
            transform: text("transform"),
            timeout: text("timeout"),
            schedule: text("schedule"),
            scheme: text("scheme"),
            header: text("header"),
            prefix: text("prefix"),
            version: text("version"),
        }
    }

    /// What the API is asked for; `known` are the headers that there were.
    fn body(&self, known: &BTreeMap<String, String>) -> Result<Body, Vec<BadField>> {
        let mut faults = Vec::new();
        let mut fault =
            |pointer: &str, detail: String| faults.push(BadField { pointer: pointer.into(), detail });
        let mut headers: BTreeMap<String, Option<String>> = BTreeMap::new();
        for line in self.headers.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(':') {
                Some((name, value)) => {
                    headers.insert(name.trim().to_owned(), Some(value.trim().to_owned()));
                }
                None => fault("/headers", format!("`{line}` is not a header such as X-Name: value")),
            }
        }
        let kept = |name: &String| headers.keys().any(|other| other.eq_ignore_ascii_case(name));
        let gone: Vec<_> = known.keys().filter(|name| !kept(name)).cloned().collect();
        headers.extend(gone.into_iter().map(|name| (name, None)));
        let transform = match self.transform.as_str() {
            "" => None,
            text => match RawValue::from_string(text.to_owned()) {
                Ok(raw) => Some(raw),
                Err(error) => {
                    fault("/transform", format!("the transform is not JSON: {error}"));
                    None
                }
            },
        };
        let timeout_ms = wait(&self.timeout);
        if timeout_ms.is_none() && !self.timeout.is_empty() {
            fault("/timeout_ms", format!("`{}` is not a time such as 15 s or 500 ms", self.timeout));
        }
        let schedule = waits(&self.schedule, "/retry_schedule_ms", &mut faults);
        let signature = match self.scheme.as_str() {
            "hex_hmac_sha256" => Signature {
                scheme: self.scheme.clone(),
                header: self.header.clone(),
                prefix: self.prefix.clone(),
            },
            _ => Signature { scheme: "standard".into(), header: String::new(), prefix: String::new() },
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        let event_types = listed(&self.event_types);
        Ok(Body {
            url: self.url.clone(),
            tenant: Some(self.tenant.clone()).filter(|tenant| !tenant.is_empty()),
            event_types: Some(event_types).filter(|types| !types.is_empty()),
            headers,
            transform,
            timeout_ms,
            retry_schedule_ms: Some(schedule).filter(|waits| !waits.is_empty()),
            signature,
        })
    }
}

fn show_form(visitor: &Visitor, partner: &str, id: Option<&str>, filled: Filled, faults: Faults) -> Response {
    let title = if id.is_none() { "New endpoint" } else { "Edit endpoint" };
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let frame = Frame::new(visitor, Part::Partners, title);
    page_with(visitor, status, &EndpointForm { frame, partner, id, filled, faults })
}

/// `GET /console/partners/{partner}/endpoints/new`.
pub(super) async fn new(
    State(console): State<Console>,
    visitor: Visitor,
    Path(partner): Path<String>,
) -> Result<Response, Failure> {
    let _: super::partners::Partner = visitor.api(&console).get(&at(&["v1", "partners", &partner])).await?;
    Ok(show_form(&visitor, &partner, None, Filled::new(), Faults::default()))
}

/// `POST /console/partners/{partner}/endpoints/new`.
pub(super) async fn create(
    State(console): State<Console>,
    Path(partner): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let filled = Filled::read(&fields);
    let theirs = at(&["v1", "partners", &partner, "endpoints"]);
    let again = |filled, faults| Ok(show_form(&visitor, &partner, None, filled, Faults::new(faults)));
    let made: Result<NewSecret, Refusal> = match filled.body(&BTreeMap::new()) {
        Ok(body) => visitor.api(&console).change(Method::POST, &theirs, Some(&body), "").await,
        Err(faults) => return again(filled, faults),
    };
    match made {
        // Not after a redirect: a secret is in this answer or in none.
        Ok(NewSecret { id, secret }) => show(&console, &visitor, &id, None, Some(secret)).await,
        Err(refusal) if refusal.is_about_input() => again(filled, refusal.into_fields()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// `GET /console/endpoints/{id}/edit`.
pub(super) async fn edit(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let known = visitor.api(&console).versioned::<Endpoint>(&place(&id)).await?;
    let filled = Filled::of(&known.value, known.etag);
    Ok(show_form(&visitor, &known.value.partner, Some(&id), filled, Faults::default()))
}

/// `POST /console/endpoints/{id}/edit`.
pub(super) async fn save(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let (api, filled) = (visitor.api(&console), Filled::read(&fields));
    let known: Endpoint = api.get(&place(&id)).await?;
    let again =
        |filled, faults| Ok(show_form(&visitor, &known.partner, Some(&id), filled, Faults::new(faults)));
    let saved: Result<Endpoint, Refusal> = match filled.body(&known.headers) {
        Ok(body) => api.change(Method::PATCH, &place(&id), Some(&body), &filled.version).await,
        Err(faults) => return again(filled, faults),
    };
    match saved {
        Ok(_) => Ok(done(&visitor, &link(&id), "The endpoint is saved.")),
        Err(refusal) if refusal.is_about_input() => again(filled, refusal.into_fields()),
        Err(refusal) => Err(refusal.into()),
    }
}
