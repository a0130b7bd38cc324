//! Tenants: where their events go, and what they may take.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Console;
use super::api::{BadField, Refusal, at};
use super::fields::{Faults, plain_number};
use super::page::{Failure, Frame, Part, done, page, page_with, redirect};
use super::session::{Fields, Form, Visitor};
use super::words::pretty;

#[derive(Debug, Deserialize)]
struct Tenant {
    tenant: String,
    route: String,
    svix_app: Option<String>,
    transform: Option<Box<RawValue>>,
    default: bool,
    weight: u32,
    ingest_limit: Option<Limit>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Limit {
    per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    svix_app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transform: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingest_limit: Option<Limit>,
}

#[derive(Template)]
#[template(path = "console/tenants.html")]
struct TenantsPage<'a> {
    frame: Frame<'a>,
}

#[derive(Deserialize)]
pub(super) struct Search {
    tenant: Option<String>,
}

/// `GET /console/tenants`: which one is asked for; who is bound to one sees that.
pub(super) async fn search(visitor: Visitor, Query(search): Query<Search>) -> Response {
    let asked = search.tenant.as_deref().map(str::trim).filter(|tenant| !tenant.is_empty());
    if let Some(tenant) = asked.or(visitor.caller.tenant.as_deref()) {
        return redirect(&at(&["console", "tenants", tenant]).to_link());
    }
    page(&visitor, &TenantsPage { frame: Frame::new(&visitor, Part::Tenants, "Tenants") })
}

/// What stands in the form's fields.
#[derive(Debug, Default)]
struct Filled {
    /// Empty for the default one.
    route: String,
    svix_app: String,
    transform: String,
    weight: String,
    per_second: String,
    burst: String,
}

#[derive(Template)]
#[template(path = "console/tenant.html")]
struct TenantPage<'a> {
    frame: Frame<'a>,
    tenant: String,
    goes_to: String,
    is_default: bool,
    filled: Filled,
    faults: Faults,
}

/// `GET /console/tenants/{tenant}`.
pub(super) async fn one(
    State(console): State<Console>,
    visitor: Visitor,
    Path(tenant): Path<String>,
) -> Result<Response, Failure> {
    show(&console, &visitor, tenant, None, Faults::default()).await
}

async fn show(
    console: &Console,
    visitor: &Visitor,
    name: String,
    typed: Option<Filled>,
    faults: Faults,
) -> Result<Response, Failure> {
    let tenant: Tenant = visitor.api(console).get(&at(&["v1", "tenants", &name])).await?;
    let goes_to = match &tenant.svix_app {
        Some(app) => format!("the Svix application {app}"),
        None => "partners' endpoints alone".into(),
    };
    let limit = tenant.ingest_limit.as_ref();
    let filled = typed.unwrap_or_else(|| Filled {
        route: if tenant.default { String::new() } else { tenant.route.clone() },
        svix_app: tenant.svix_app.clone().filter(|_| !tenant.default).unwrap_or_default(),
        transform: tenant.transform.as_ref().map(|transform| pretty(transform.get())).unwrap_or_default(),
        weight: tenant.weight.to_string(),
        per_second: limit.map(|limit| limit.per_second.to_string()).unwrap_or_default(),
        burst: limit.and_then(|limit| limit.burst).map(|burst| burst.to_string()).unwrap_or_default(),
    });
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let frame = Frame::new(visitor, Part::Tenants, format!("Tenant {}", tenant.tenant));
    let shown =
        TenantPage { frame, tenant: tenant.tenant, goes_to, is_default: tenant.default, filled, faults };
    Ok(page_with(visitor, status, &shown))
}

fn body(filled: &Filled) -> Result<Body, Vec<BadField>> {
    let mut faults = Vec::new();
    let weight = plain_number(&filled.weight, "/weight", &mut faults);
    let per_second = plain_number(&filled.per_second, "/ingest_limit/per_second", &mut faults);
    let burst = plain_number(&filled.burst, "/ingest_limit/burst", &mut faults);
    if burst.is_some() && per_second.is_none() {
        let detail = "a burst needs a rate per second".to_owned();
        faults.push(BadField { pointer: "/ingest_limit/per_second".into(), detail });
    }
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let transform = given(&filled.transform).map(RawValue::from_string).transpose();
    let transform = transform.unwrap_or_else(|error| {
        let detail = format!("the transform is not JSON: {error}");
        faults.push(BadField { pointer: "/transform".into(), detail });
        None
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Body {
        route: given(&filled.route),
        svix_app: given(&filled.svix_app),
        transform,
        weight,
        ingest_limit: per_second.map(|per_second| Limit { per_second, burst }),
    })
}

fn filled(fields: &Fields) -> Filled {
    let text = |name| fields.text(name).to_owned();
    Filled {
        route: text("route"),
        svix_app: text("svix_app"),
        transform: text("transform"),
        weight: text("weight"),
        per_second: text("per_second"),
        burst: text("burst"),
    }
}

/// `POST /console/tenants/{tenant}`.
pub(super) async fn save(
    State(console): State<Console>,
    Path(tenant): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let Form { visitor, fields } = form;
    let (filled, place) = (filled(&fields), at(&["v1", "tenants", &tenant]));
    let put: Result<Tenant, Vec<BadField>> = match body(&filled) {
        Err(faults) => Err(faults),
        Ok(body) => match visitor.api(&console).change(Method::PUT, &place, Some(&body), "").await {
            Ok(tenant) => Ok(tenant),
            Err(refusal) if Refusal::is_about_input(&refusal) => Err(refusal.into_fields()),
            Err(refusal) => return Err(refusal.into()),
        },
    };
    match put {
        Ok(_) => {
            let target = at(&["console", "tenants", &tenant]).to_link();
            Ok(done(&visitor, &target, "Saved. It holds for events from now on."))
        }
        Err(faults) => show(&console, &visitor, tenant, Some(filled), Faults::new(faults)).await,
    }
}
