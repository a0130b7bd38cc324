//! Partners: the list, one of them with its endpoints, and what is set of it.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Console;
use super::api::{BadField, Refusal, at};
use super::endpoints::{Endpoint, Endpoints};
use super::fields::{Faults, plain_number};
use super::page::{Cursor, Failure, Frame, Part, done, page, page_with};
use super::session::{Fields, Form, Visitor};

/// Most endpoints that a partner's page shows.
const ENDPOINTS_SHOWN: &str = "200";

#[derive(Debug, Deserialize)]
pub(super) struct Partner {
    pub id: String,
    pub name: String,
    rate_limit: Option<RateLimit>,
    max_in_flight: Option<u32>,
    pub paused: bool,
    verify_endpoints: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct RateLimit {
    per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Partners {
    partners: Vec<Partner>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct Body<'a> {
    name: &'a str,
    rate_limit: Option<RateLimit>,
    max_in_flight: Option<u32>,
    paused: bool,
    verify_endpoints: bool,
}

impl Partner {
    fn rate(&self) -> String {
        match &self.rate_limit {
            None => "no limit".into(),
            Some(RateLimit { per_second, burst }) => {
                let burst = burst.map(|burst| format!(", {burst} at once")).unwrap_or_default();
                format!("{per_second} per second{burst}")
            }
        }
    }

    fn in_flight(&self) -> String {
        self.max_in_flight.map_or_else(|| "64".into(), |most| most.to_string())
    }
}

#[derive(Template)]
#[template(path = "console/partners.html")]
struct PartnersPage<'a> {
    frame: Frame<'a>,
    partners: Vec<Partner>,
    next: Option<String>,
}

/// `GET /console/partners`.
pub(super) async fn list(
    State(console): State<Console>,
    visitor: Visitor,
    Query(query): Query<Cursor>,
) -> Result<Response, Failure> {
    let from = at(&["v1", "partners"]).with("cursor", query.cursor.as_deref().unwrap_or_default());
    let Partners { partners, next_cursor } = visitor.api(&console).get(&from).await?;
    let next = next_cursor.map(|cursor| at(&["console", "partners"]).with("cursor", &cursor).to_link());
    let frame = Frame::new(&visitor, Part::Partners, "Partners");
    Ok(page(&visitor, &PartnersPage { frame, partners, next }))
}

#[derive(Template)]
#[template(path = "console/partner.html")]
struct PartnerPage<'a> {
    frame: Frame<'a>,
    partner: Partner,
    endpoints: Vec<Endpoint>,
    more: bool,
}

/// `GET /console/partners/{partner}`.
pub(super) async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let api = visitor.api(&console);
    let partner: Partner = api.get(&at(&["v1", "partners", &id])).await?;
    let theirs = at(&["v1", "partners", &id, "endpoints"]).with("limit", ENDPOINTS_SHOWN);
    let Endpoints { endpoints, next_cursor } = api.get(&theirs).await?;
    let frame = Frame::new(&visitor, Part::Partners, partner.name.as_str());
    let shown = PartnerPage { frame, partner, endpoints, more: next_cursor.is_some() };
    Ok(page(&visitor, &shown))
}

/// What stands in the form's fields.
#[derive(Debug, Default)]
struct Filled {
    id: String,
    name: String,
    per_second: String,
    burst: String,
    max_in_flight: String,
    paused: bool,
    verify_endpoints: bool,
    version: String,
}

#[derive(Template)]
#[template(path = "console/partner_form.html")]
struct PartnerForm<'a> {
    frame: Frame<'a>,
    /// Whether it is to be made.
    new: bool,
    filled: Filled,
    faults: Faults,
}

impl PartnerForm<'_> {
    fn id(&self) -> &str {
        &self.filled.id
    }
}

fn show_form(visitor: &Visitor, new: bool, filled: Filled, faults: Faults) -> Response {
    let title = if new { "New partner".to_owned() } else { format!("Edit {}", filled.id) };
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let form = PartnerForm { frame: Frame::new(visitor, Part::Partners, title), new, filled, faults };
    page_with(visitor, status, &form)
}

/// `GET /console/partners/new`.
pub(super) async fn new(visitor: Visitor) -> Result<Response, Failure> {
    Ok(show_form(&visitor, true, Filled::default(), Faults::default()))
}

/// `GET /console/partners/{partner}/edit`.
pub(super) async fn edit(
    State(console): State<Console>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let answer = visitor.api(&console).versioned::<Partner>(&at(&["v1", "partners", &id])).await?;
    let partner = answer.value;
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let filled = Filled {
        id,
        name: partner.name,
        per_second: partner.rate_limit.as_ref().map(|rate| rate.per_second.to_string()).unwrap_or_default(),
        burst: number(partner.rate_limit.and_then(|rate| rate.burst)),
        max_in_flight: number(partner.max_in_flight),
        paused: partner.paused,
        verify_endpoints: partner.verify_endpoints,
        version: answer.etag,
    };
    Ok(show_form(&visitor, false, filled, Faults::default()))
}

fn filled(fields: &Fields, id: &str) -> Filled {
    Filled {
        id: id.to_owned(),
        name: fields.text("name").into(),
        per_second: fields.text("per_second").into(),
        burst: fields.text("burst").into(),
        max_in_flight: fields.text("max_in_flight").into(),
        paused: fields.is_set("paused"),
        verify_endpoints: fields.is_set("verify_endpoints"),
        version: fields.text("version").into(),
    }
}

fn body(filled: &Filled) -> Result<Body<'_>, Vec<BadField>> {
    let mut faults = Vec::new();
    let per_second = plain_number(&filled.per_second, "/rate_limit/per_second", &mut faults);
    let burst = plain_number(&filled.burst, "/rate_limit/burst", &mut faults);
    let max_in_flight = plain_number(&filled.max_in_flight, "/max_in_flight", &mut faults);
    if burst.is_some() && per_second.is_none() {
        let detail = "a burst needs a rate per second".to_owned();
        faults.push(BadField { pointer: "/rate_limit/per_second".into(), detail });
    }
    let rate_limit = per_second.map(|per_second| RateLimit { per_second, burst });
    let Filled { name, paused, verify_endpoints, .. } = filled;
    let (paused, verify_endpoints) = (*paused, *verify_endpoints);
    if faults.is_empty() {
        Ok(Body { name, rate_limit, max_in_flight, paused, verify_endpoints })
    } else {
        Err(faults)
    }
}

/// `POST /console/partners/new`.
pub(super) async fn create(State(console): State<Console>, form: Form) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let id = fields.text("id").to_owned();
    let filled = filled(&fields, &id);
    let place = at(&["v1", "partners", &id]);
    let again = |filled, faults| Ok(show_form(&visitor, true, filled, Faults::new(faults)));
    if id.is_empty() || id == ".." || id == "." {
        let detail = "a partner needs an id: letters, digits, `-`, `_`, `.`".to_owned();
        return again(filled, vec![BadField { pointer: "/partner".into(), detail }]);
    }
    let api = visitor.api(&console);
    // The API would change the one there is.
    if api.get::<Partner>(&place).await.is_ok() {
        let detail = format!("there is a partner `{id}` already");
        return again(filled, vec![BadField { pointer: "/partner".into(), detail }]);
    }
    let put = match body(&filled) {
        Ok(body) => api.change::<Partner>(Method::PUT, &place, Some(&body), "").await,
        Err(faults) => return again(filled, faults),
    };
    match put {
        Ok(partner) => {
            let words = format!("Partner {} is made. Now give it an endpoint.", partner.name);
            Ok(done(&visitor, &at(&["console", "partners", &id]).to_link(), &words))
        }
        Err(refusal) if refusal.is_about_input() => again(filled, refusal.into_fields()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// `POST /console/partners/{partner}/edit`.
pub(super) async fn save(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let filled = filled(&fields, &id);
    let again = |filled, faults| Ok(show_form(&visitor, false, filled, Faults::new(faults)));
    let place = at(&["v1", "partners", &id]);
    let api = visitor.api(&console);
    let put = match body(&filled) {
        Ok(body) => api.change::<Partner>(Method::PUT, &place, Some(&body), &filled.version).await,
        Err(faults) => return again(filled, faults),
    };
    match put {
        Ok(partner) => {
            let words = format!("{} is saved.", partner.name);
            Ok(done(&visitor, &at(&["console", "partners", &id]).to_link(), &words))
        }
        Err(refusal) if refusal.is_about_input() => again(filled, refusal.into_fields()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// `POST /console/partners/{partner}/pause`.
pub(super) async fn pause(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    set_paused(&console, &form.visitor, &id, true).await
}

/// `POST /console/partners/{partner}/resume`.
pub(super) async fn resume(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    set_paused(&console, &form.visitor, &id, false).await
}

async fn set_paused(
    console: &Console,
    visitor: &Visitor,
    id: &str,
    paused: bool,
) -> Result<Response, Failure> {
    let (api, place) = (visitor.api(console), at(&["v1", "partners", id]));
    let known = api.versioned::<Partner>(&place).await?;
    let Partner { name, rate_limit, max_in_flight, verify_endpoints, .. } = known.value;
    let body = Body { name: &name, rate_limit, max_in_flight, paused, verify_endpoints };
    let _: Partner = api.change(Method::PUT, &place, Some(&body), &known.etag).await?;
    let words = if paused {
        format!("{name} is paused: nothing is sent to it, what comes waits.")
    } else {
        format!("{name} gets its events again, what waited first.")
    };
    Ok(done(visitor, &at(&["console", "partners", id]).to_link(), &words))
}

/// `POST /console/partners/{partner}/delete`.
pub(super) async fn delete(
    State(console): State<Console>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    form.visitor.api(&console).press(Method::DELETE, &at(&["v1", "partners", &id])).await?;
    Ok(done(&form.visitor, Part::Partners.path(), &format!("Partner {id} is deleted.")))
}

impl Refusal {
    /// What is wrong, each with its place; all of it where no place is told.
    pub(super) fn into_fields(self) -> Vec<BadField> {
        if self.errors.is_empty() {
            let detail = match self.status {
                412 => "somebody has changed it meanwhile: open it anew to see how it is now".to_owned(),
                _ => self.detail,
            };
            return vec![BadField { pointer: String::new(), detail }];
        }
        self.errors
    }
}
