//! What pages show and what their buttons do.

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerAnswer};

use crate::support::partners::MASTER_KEY;
use crate::support::visitor::{Visitor, text};
use crate::support::{TestDatabase, TestRelay, config, mock_svix};

/// A relay that may send to loopback.
async fn relay(database: &TestDatabase) -> TestRelay {
    let svix = mock_svix().await;
    let mut config = config(database, &svix);
    config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
    config.master_key = Some(MASTER_KEY.to_owned().into());
    TestRelay::start_with(config).await
}

async fn a_partner_is_made_and_changed(database: TestDatabase) {
    let relay = relay(&database).await;
    let visitor = Visitor::new(&relay);
    assert!(visitor.page("/console/partners").await.contains("No partner yet"));
    let bad = [("id", "crm"), ("name", ""), ("per_second", "fast"), ("burst", "5")];
    let again = visitor.submit("/console/partners", "/console/partners/new", &bad).await;
    assert_eq!(again.status, 422);
    let page = text(&again);
    assert!(page.contains("`fast` is not a number") && page.contains("value=\"fast\""), "{page}");
    let good = [("id", "crm"), ("name", "CRM & Söhne"), ("per_second", "2.5"), ("burst", "5")];
    let made = visitor.submit("/console/partners", "/console/partners/new", &good).await;
    assert_eq!(made.header("location"), Some("/console/partners/crm"), "{}", text(&made));
    let page = visitor.page("/console/partners/crm").await;
    assert!(
        page.contains("is made. Now give it an endpoint.") && page.contains("2.5 per second, 5 at once"),
        "{page}"
    );
    assert!(!visitor.page("/console/partners/crm").await.contains("is made"), "said once");
    let twice = visitor.submit("/console/partners", "/console/partners/new", &good).await;
    assert!(text(&twice).contains("there is a partner `crm` already"));
    // Who has seen an older version changes nothing.
    let form = visitor.page("/console/partners/crm/edit").await;
    let version = form.split("name=\"version\" value=\"").nth(1).and_then(|rest| rest.split("\">").next());
    let version = version.expect("a version").replace("&#34;", "\"");
    assert_eq!(visitor.submit("/console/partners", "/console/partners/crm/pause", &[]).await.status, 303);
    assert!(visitor.page("/console/partners/crm").await.contains("<span class=\"state warn\">paused</span>"));
    let late = [("name", "Late"), ("version", version.as_str())];
    let refused = visitor.submit("/console/partners", "/console/partners/crm/edit", &late).await;
    assert_eq!(refused.status, 422);
    assert!(text(&refused).contains("somebody has changed it meanwhile"), "{}", text(&refused));
    let shown = relay.get("/v1/partners/crm").await.json();
    assert_eq!((&shown["name"], &shown["paused"]), (&"CRM & Söhne".into(), &true.into()), "{shown}");
    assert_eq!(shown["rate_limit"]["per_second"], 2.5, "pausing keeps what was set: {shown}");
    assert_eq!(visitor.submit("/console/partners", "/console/partners/crm/delete", &[]).await.status, 303);
    assert_eq!(visitor.get("/console/partners/crm").await.status, 404);
    relay.finish().await;
}

async fn an_endpoint_is_made_tried_and_changed(database: TestDatabase) {
    let (relay, partner) = (relay(&database).await, MockPartner::start().await);
    let visitor = Visitor::new(&relay);
    let json = [("content-type", "application/json")];
    relay.send(Method::PUT, "/v1/partners/crm", &json, r#"{"name":"CRM"}"#).await;
    let theirs = "/console/partners/crm/endpoints/new";
    let url = partner.url("/hooks");
    let mut fields = vec![
        ("url", url.as_str()),
        ("event_types", "order.*\ninvoice.paid"),
        ("headers", "X-Team: blue\nX-Token: geheim"),
        ("transform", r#"{"set": {"/version": 1.10}}"#),
        ("timeout", "2 s"),
        ("schedule", "1 s, 5 min"),
        ("scheme", "standard"),
    ];
    let bad: Vec<_> =
        fields.iter().map(|(name, value)| (*name, if *name == "timeout" { "soon" } else { value })).collect();
    let again = visitor.submit("/console/partners", theirs, &bad).await;
    assert_eq!(again.status, 422);
    assert!(text(&again).contains("`soon` is not a time"), "{}", text(&again));
    let made = visitor.submit("/console/partners", theirs, &fields).await;
    assert_eq!(made.status, 200, "{}", text(&made));
    let page = text(&made);
    assert!(page.contains("<code class=\"secret\">whsec_"), "{page}");
    let id = page
        .split("/console/endpoints/")
        .nth(1)
        .and_then(|rest| rest.split(['/', '"']).next())
        .expect("an id");
    let place = format!("/console/endpoints/{id}");
    assert!(!visitor.page(&place).await.contains("whsec_"), "shown once");
    assert!(!visitor.page(&place).await.contains("geheim"), "and this never");
    let told = relay.get(&format!("/v1/endpoints/{id}")).await;
    assert!(String::from_utf8_lossy(&told.body).contains("1.10"), "its digits are kept");
    partner.script([PartnerAnswer { body: "<b>no</b>".into(), ..PartnerAnswer::status(500) }]);
    let tested = visitor.submit(&place, &format!("{place}/test"), &[]).await;
    let page = text(&tested);
    assert!(page.contains("The test event was not taken") && page.contains("&#60;b&#62;no"), "{page}");
    assert_eq!(partner.requests().last().expect("sent").header("x-token"), "geheim");
    let tested = visitor.submit(&place, &format!("{place}/test"), &[]).await;
    assert!(text(&tested).contains("The test event was delivered"));
    let rotated = visitor.submit(&place, &format!("{place}/rotate"), &[("grace", "2 h")]).await;
    assert!(text(&rotated).contains("whsec_") && text(&rotated).contains("signs too, for the last time"));
    // A line taken out ends a header, one left alone keeps its value.
    let form = visitor.page(&format!("{place}/edit")).await;
    assert!(form.contains("x-team: [redacted]") && form.contains("order.*\ninvoice.paid"), "{form}");
    fields.retain(|(name, _)| *name != "headers" && *name != "event_types");
    fields.extend([("headers", "x-token: [redacted]"), ("event_types", "*")]);
    let saved = visitor.submit(&place, &format!("{place}/edit"), &fields).await;
    assert_eq!(saved.status, 303, "{}", text(&saved));
    assert!(visitor.page(&place).await.contains("The endpoint is saved."));
    visitor.submit(&place, &format!("{place}/test"), &[]).await;
    let last = partner.requests().pop().expect("sent");
    assert_eq!((last.header("x-token"), last.header("x-team")), ("geheim", ""));
    assert_eq!(visitor.submit(&place, &format!("{place}/disable"), &[]).await.status, 303);
    assert!(visitor.page(&place).await.contains("by an operator"));
    assert_eq!(visitor.submit(&place, &format!("{place}/enable"), &[]).await.status, 303);
    assert_eq!(visitor.submit(&place, &format!("{place}/delete"), &[]).await.status, 303);
    assert_eq!(visitor.get(&place).await.status, 404);
    relay.finish().await;
}

async fn a_tenants_route_is_set(database: TestDatabase) {
    let relay = relay(&database).await;
    let visitor = Visitor::new(&relay);
    let found = visitor.get("/console/tenants?tenant=M%C3%BCller+%26+S%C3%B6hne").await;
    assert_eq!(found.header("location"), Some("/console/tenants/M%C3%BCller%20%26%20S%C3%B6hne"));
    let page = visitor.page("/console/tenants/acme").await;
    assert!(page.contains("as the default has it"), "{page}");
    let bad = [("route", "direct"), ("svix_app", "x"), ("weight", "5")];
    let again = visitor.submit("/console/tenants/acme", "/console/tenants/acme", &bad).await;
    assert_eq!(again.status, 422);
    assert!(text(&again).contains("a direct route has no Svix application"), "{}", text(&again));
    let good = [("route", "svix"), ("svix_app", "acme-1"), ("weight", "5"), ("per_second", "10")];
    assert_eq!(visitor.submit("/console/tenants/acme", "/console/tenants/acme", &good).await.status, 303);
    let page = visitor.page("/console/tenants/acme").await;
    assert!(page.contains("Saved.") && page.contains("the Svix application acme-1"), "{page}");
    relay.finish().await;
}

on_both_databases!(
    a_partner_is_made_and_changed,
    an_endpoint_is_made_tried_and_changed,
    a_tenants_route_is_set,
);

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_shown_without_secrets() {
    let database = TestDatabase::sqlite();
    let relay = relay(&database).await;
    let page = Visitor::new(&relay).page("/console/settings").await;
    assert!(page.contains("allowed_networks") && page.contains("[redacted]"), "{page}");
    assert!(!page.contains(crate::support::TOKEN), "{page}");
    relay.finish().await;
}
