//! `posthaste explain`, the command, names the true reason. And the other commands about events.

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{PartnerAnswer, Trouble};
use serde_json::{Value, json};

use super::{Place, event};
use crate::cli::{Running, run};
use crate::support::partners::{MASTER_KEY, add_endpoint, call, direct};
use crate::support::{
    HttpClient, RelayProcess, TestClock, TestDatabase, TestRelay, config, eventually, mock_svix,
};

on_both_databases! {
    a_limit_is_named,
    a_gate_is_named,
    a_breaker_is_named,
    a_backoff_is_named,
    others_turns_are_named,
    a_full_node_is_named,
    a_pause_and_a_disabled_endpoint_are_named,
    an_attempt_under_way_is_named,
    why_nobody_got_it_is_named,
    duplicates_and_conflicts_are_named,
}

/// What the command says of an event, once it says `expected`.
async fn explained(address: impl std::fmt::Display, tenant: &str, id: &str, expected: &str) -> String {
    let url = format!("http://{address}");
    let look = async || {
        let ended = run(&["explain", tenant, id], &[("POSTHASTE_URL", &url)]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.out.contains(expected).then_some(ended.out)
    };
    eventually(&format!("`{expected}` of {id}"), look).await
}

impl Place {
    async fn explains(&self, tenant: &str, id: &str, expected: &str) -> String {
        explained(self.relay.app().address(), tenant, id, expected).await
    }

    async fn set_partner(&self, mut settings: Value) {
        settings["name"] = "g".into();
        call(&self.relay, Method::PUT, "/v1/partners/globex", settings).await;
    }
}

/// The last line.
fn conclusion(told: &str) -> &str {
    told.lines().last().expect("a line")
}

async fn a_limit_is_named(database: TestDatabase) {
    // holds: 40
    let place = Place::start(&database, json!({})).await;
    place.set_partner(json!({"rate_limit": {"per_second": 0.02, "burst": 1}})).await;
    place.post(json!([event("acme", "1", "a"), event("acme", "2", "a"), event("acme", "3", "a")])).await;
    place.until("acme", "1", "delivered").await;
    let told = place.explains("acme", "3", "waits: limit until 2").await;
    assert!(told.contains("partner globex gets 0.02 a second, 1 at once"), "{told}");
    assert!(told.contains("one of its own goes before it"), "{told}");
    assert!(conclusion(&told).starts_with("It has not reached globex"), "{told}");
    place.relay.stop().await;
}

async fn a_gate_is_named(database: TestDatabase) {
    let place = Place::start(&database, json!({})).await;
    place.partner.set_answer(Some(PartnerAnswer::status(429).header("retry-after", "300")));
    place.post(event("acme", "1", "a")).await;
    let told = place.explains("acme", "1", "waits: gate until 2").await;
    assert!(
        told.contains("asked to slow down") && told.contains("attempt 1: http_429 (status 429)"),
        "{told}"
    );
    // What comes later waits for the same, without an attempt of its own.
    place.post(event("acme", "2", "a")).await;
    let told = place.explains("acme", "2", "waits: gate until 2").await;
    assert!(!told.contains("attempt"), "{told}");
    place.relay.stop().await;

    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    call(&relay, Method::PUT, "/v1/tenants/zeta", json!({"route": "svix"})).await;
    assert_eq!(relay.post(event("zeta", "1", "a").to_string()).await.status, 202);
    let told = explained(relay.app().address(), "zeta", "1", "waits: gate").await;
    assert!(told.contains("nothing is configured to reach Svix"), "{told}");
    relay.stop().await;
}

async fn a_breaker_is_named(database: TestDatabase) {
    // Svix first: its breaker opens after so many failures, whatever the time.
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.failures_to_close = 2;
    config.svix.probe_first_ms = 600_000;
    config.svix.probe_max_ms = 3_600_000;
    config.svix.retry_schedule_ms = vec![1, 1, 1, 1, 1];
    svix.set_trouble(Some(Trouble::Status(500)));
    let relay = TestRelay::start_with(config).await;
    assert_eq!(relay.post(event("acme", "1", "a").to_string()).await.status, 202);
    let told = explained(relay.app().address(), "acme", "1", "waits: breaker until 2").await;
    assert!(told.contains("Svix fails one request after another"), "{told}");
    relay.stop().await;

    // An endpoint's opens after ten failures over half a minute.
    let clock = TestClock::new();
    let svix = mock_svix().await;
    let mut config = direct(&database, &svix);
    config.ingest.default_tenant = None;
    let relay = TestRelay::start_at(config, clock.clone()).await;
    let partner = posthaste::mock::MockPartner::start().await;
    partner.set_answer(Some(PartnerAnswer::status(500)));
    let endpoint = json!({"url": partner.url("/"), "tenant": "zeta", "retry_schedule_ms": [3_600_000]});
    add_endpoint(&relay, "globex", endpoint).await;
    let many: Vec<_> = (0..10).map(|n| event("zeta", &format!("many{n}"), "a")).collect();
    assert_eq!(relay.post(json!(many).to_string()).await.status, 202);
    assert!(partner.wait_for(10, Duration::from_secs(20)).await);
    let settled = async || (relay.app().dispatcher()?.in_flight() == 0).then_some(());
    eventually("ten have failed", settled).await;
    clock.pass(Duration::from_secs(31));
    assert_eq!(relay.post(event("zeta", "last", "a").to_string()).await.status, 202);
    assert!(partner.wait_for(11, Duration::from_secs(20)).await);
    // What the partner was asked is not yet what the relay has heard.
    eventually("the last has failed", settled).await;
    assert_eq!(relay.post(event("zeta", "behind", "a").to_string()).await.status, 202);
    let told = explained(relay.app().address(), "zeta", "behind", "waits: breaker until 2").await;
    assert!(told.contains("the breaker is open"), "{told}");
    // Its own next attempt is in an hour, long after that: it waits for that.
    let told = explained(relay.app().address(), "zeta", "many3", "waits: backoff until 2").await;
    assert!(told.contains("http_500"), "{told}");
    relay.stop().await;
}

async fn a_backoff_is_named(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": [3_600_000]})).await;
    let words = PartnerAnswer { body: "no \u{1b}[2J room".into(), ..PartnerAnswer::status(503) };
    place.partner.set_answer(Some(words));
    place.post(event("acme", "1", "a")).await;
    let told = place.explains("acme", "1", "waits: backoff until 2").await;
    assert!(told.contains("attempt 1: http_503 (status 503)") && told.contains("again at 2"), "{told}");
    assert!(told.contains("no  [2J room"), "a receiver's words don't steer the terminal: {told:?}");
    let id = place.story("acme", "1").await["deliveries"][0]["id"].as_str().expect("an id").to_owned();
    assert!(conclusion(&told).contains(&format!("`posthaste retry {id}` sends it now")), "{told}");

    // And what it says to press works.
    place.partner.set_answer(None);
    let url = format!("http://{}", place.relay.app().address());
    let variables = [("POSTHASTE_URL", url.as_str())];
    let pressed = run(&["retry", &id], &variables).await;
    assert_eq!((pressed.code, pressed.err.as_str()), (Some(0), ""), "{}", pressed.out);
    place.until("acme", "1", "delivered").await;
    let told = place.explains("acme", "1", "delivered").await;
    assert!(
        told.contains("retry by administrator") && told.contains("attempt 2: delivered (status 204)"),
        "{told}"
    );
    assert_eq!(conclusion(&told), format!("It reached globex ({}).", place.endpoint));
    place.relay.finish().await;
}

async fn others_turns_are_named(database: TestDatabase) {
    // holds: 39
    let place = Place::start(&database, json!({"timeout_ms": 30_000})).await;
    place.set_partner(json!({"max_in_flight": 1})).await;
    place
        .partner
        .set_answer(Some(PartnerAnswer { delay: Duration::from_secs(60), ..PartnerAnswer::status(204) }));
    let whale: Vec<_> = (0..5).map(|n| event("whale", &n.to_string(), "a")).collect();
    place.post(json!(whale)).await;
    assert!(place.partner.wait_for(1, Duration::from_secs(20)).await);
    let told = place.explains("whale", "4", "waits: limit").await;
    assert!(told.contains("1 of 1 requests to"), "its own turn, but no room: {told}");
    place.post(event("acme", "1", "a")).await;
    let told = place.explains("acme", "1", "waits: fair_share").await;
    assert!(told.contains("1 other tenant has their turn first"), "{told}");
    place.relay.stop().await;
}

async fn a_full_node_is_named(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = direct(&database, &svix);
    config.dispatch.max_in_flight = 1;
    let relay = TestRelay::start_with(config).await;
    let partner = posthaste::mock::MockPartner::start().await;
    partner.set_answer(Some(PartnerAnswer { delay: Duration::from_secs(60), ..PartnerAnswer::status(204) }));
    for tenant in ["acme", "zeta"] {
        let endpoint = json!({"url": partner.url("/"), "tenant": tenant, "timeout_ms": 30_000});
        add_endpoint(&relay, tenant, endpoint).await;
    }
    assert_eq!(relay.post(event("acme", "1", "a").to_string()).await.status, 202);
    assert!(partner.wait_for(1, Duration::from_secs(20)).await);
    assert_eq!(relay.post(event("zeta", "1", "a").to_string()).await.status, 202);
    let told = explained(relay.app().address(), "zeta", "1", "waits: fair_share").await;
    assert!(told.contains("1 of 1 requests of this node are in flight"), "{told}");
    relay.stop().await;
}

async fn a_pause_and_a_disabled_endpoint_are_named(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": [3_600_000]})).await;
    place.partner.script([PartnerAnswer::status(500)]);
    place.post(event("acme", "1", "a")).await;
    place.explains("acme", "1", "waits: backoff").await;
    place.set_partner(json!({"paused": true})).await;
    let told = place.explains("acme", "1", "waits: paused").await;
    assert!(told.contains("partner globex is paused"), "{told}");
    let path = format!("/v1/endpoints/{}/disable", place.endpoint);
    call(&place.relay, Method::POST, &path, Value::Null).await;
    let told = place.explains("acme", "1", "waits: disabled until 2").await;
    assert!(told.contains("is disabled (operator)") && told.contains("posthaste endpoint enable"), "{told}");
    place.relay.stop().await;
}

async fn an_attempt_under_way_is_named(database: TestDatabase) {
    let place = Place::start(&database, json!({"timeout_ms": 30_000})).await;
    place
        .partner
        .set_answer(Some(PartnerAnswer { delay: Duration::from_secs(60), ..PartnerAnswer::status(204) }));
    place.post(event("acme", "1", "a")).await;
    assert!(place.partner.wait_for(1, Duration::from_secs(20)).await);
    let told = place.explains("acme", "1", "waits: in_flight until 2").await;
    assert!(told.contains("being sent by this node") && told.contains("since 2"), "{told}");
    place.relay.stop().await;
}

async fn why_nobody_got_it_is_named(database: TestDatabase) {
    let place = Place::start(&database, json!({"tenant": "acme", "event_types": ["order.*"]})).await;
    for (tenant, event_type) in [("acme", "bill.paid"), ("zeta", "order.paid")] {
        place.post(event(tenant, "1", event_type)).await;
    }
    let told = place.explains("acme", "1", "unrouted").await;
    assert!(
        conclusion(&told).contains("one endpoint, which does not subscribe to the type `bill.paid`"),
        "{told}"
    );
    let told = place.explains("zeta", "1", "unrouted").await;
    assert!(conclusion(&told).contains("no endpoint takes its events"), "{told}");
    let disable = format!("/v1/endpoints/{}/disable", place.endpoint);
    call(&place.relay, Method::POST, &disable, Value::Null).await;
    place.post(event("acme", "2", "order.paid")).await;
    let told = place.explains("acme", "2", "unrouted").await;
    assert!(
        conclusion(&told)
            .contains(&format!("endpoint {} wants the type `order.paid`, but is disabled", place.endpoint)),
        "{told}"
    );
    let enable = format!("/v1/endpoints/{}/enable", place.endpoint);
    call(&place.relay, Method::POST, &enable, Value::Null).await;
    let told = place.explains("acme", "2", "now it would go to").await;
    assert!(conclusion(&told).contains(&place.endpoint), "{told}");
    place.relay.finish().await;
}

async fn duplicates_and_conflicts_are_named(database: TestDatabase) {
    // holds: 12
    let place = Place::start(&database, json!({})).await;
    let original = event("acme", "1", "order.paid");
    place.post(original.clone()).await;
    place.until("acme", "1", "delivered").await;
    let told = place.explains("acme", "1", "delivered").await;
    assert!(!told.contains("duplicate") && !told.contains("conflict"), "{told}");
    for _ in 0..2 {
        place.post(original.clone()).await;
    }
    let told = place.explains("acme", "1", "duplicate: it came again 2 times").await;
    assert!(!told.contains("conflict"), "{told}");
    let mut other = original.clone();
    other["data"]["total"] = 2.into();
    assert_eq!(place.relay.post(other.to_string()).await.status, 409);
    let told = place.explains("acme", "1", "conflict: another event came under this id once").await;
    assert!(told.contains("refused, its data differed"), "{told}");
    // Together with the event itself in one batch, and with another type.
    let retyped = event("acme", "1", "order.lost");
    let lenient = [("prefer", "handling=lenient")];
    assert_eq!(place.relay.post_with(&lenient, json!([original, retyped]).to_string()).await.status, 207);
    let told = place.explains("acme", "1", "conflict: another event came under this id 2 times").await;
    assert!(told.contains("its type differed (order.lost)"), "{told}");
    assert!(told.contains("duplicate: it came again 3 times"), "{told}");
    // One that is refused with its batch was never stored: there is nothing to tell of.
    let batch = json!([event("acme", "2", "a"), event("acme", "2", "b")]);
    assert_eq!(place.relay.post(batch.to_string()).await.status, 409);
    let url = format!("http://{}", place.relay.app().address());
    let nothing = run(&["explain", "acme", "2"], &[("POSTHASTE_URL", &url)]).await;
    assert!(nothing.code == Some(1) && nothing.err.contains("there is no event `2`"), "{}", nothing.err);
    place.relay.finish().await;
    // What had gathered is written at the end.
    let counted = "SELECT CAST(duplicates * 10 + conflicts AS TEXT) FROM repeat";
    assert_eq!(database.text(counted).await, "32");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_sends_nothing_tells_what_the_ledger_knows() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let partner = posthaste::mock::MockPartner::start().await;
    let variables =
        [("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"), ("POSTHASTE_MASTER_KEY", MASTER_KEY)];
    let start =
        |role| RelayProcess::start(&database, &svix, &[&variables[..], &[("POSTHASTE_ROLE", role)]].concat());
    let (ingest, worker) = (start("ingest"), start("worker"));
    for name in ["gated", "limited"] {
        let url = partner.url(&format!("/{name}"));
        add_endpoint(&ingest, name, json!({"url": url, "tenant": name})).await;
        call(&ingest, Method::PUT, &format!("/v1/tenants/{name}"), json!({"route": "direct"})).await;
    }
    let limited = json!({"name": "limited", "rate_limit": {"per_second": 0.02, "burst": 1}});
    call(&ingest, Method::PUT, "/v1/partners/limited", limited).await;
    let known = async |relay: &HttpClient| {
        let partner = relay.get("/v1/partners/limited").await.json();
        let endpoints = relay.get("/v1/partners/limited/endpoints").await.json();
        (partner["rate_limit"].is_object() && endpoints["endpoints"][0].is_object()).then_some(())
    };
    eventually("the worker knows", async || known(&worker).await).await;
    partner.answer_first(Some(PartnerAnswer::status(429).header("retry-after", "300")));
    assert_eq!(ingest.post(event("gated", "1", "a").to_string()).await.status, 202);
    let told = explained(ingest.address(), "gated", "1", "waits: gate until 2").await;
    assert!(told.contains("asked to slow down"), "{told}");
    partner.answer_first(None);
    let events = json!([event("limited", "1", "a"), event("limited", "2", "a")]);
    assert_eq!(ingest.post(events.to_string()).await.status, 202);
    // The worker may hold it ahead of its time; what it has claimed is told as such.
    let url = format!("http://{}", ingest.address());
    let look = async || {
        let told = run(&["explain", "limited", "2"], &[("POSTHASTE_URL", &url)]).await.out;
        (told.contains("waits: limit until 2") || told.contains("by another node")).then_some(())
    };
    eventually("the limit, or the node that has it", look).await;
    drop((ingest, worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_followed_and_steered_from_the_command_line() {
    let database = TestDatabase::sqlite();
    let place = Place::start(&database, json!({"retry_schedule_ms": []})).await;
    let url = format!("http://{}", place.relay.app().address());
    let variables = [("POSTHASTE_URL", url.as_str())];
    let good = async |arguments: &[&str]| {
        let ended = run(arguments, &variables).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
        ended.out
    };
    place.post(event("acme", "before", "a")).await;
    let tail = Running::start(&["tail", "--tenant", "acme"], &variables);
    tail.says("before").await;
    place.partner.script([PartnerAnswer::status(500)]);
    place.post(event("acme", "fails", "order.paid")).await;
    place.post(event("zeta", "other", "a")).await;
    let dies =
        async || tail.out().lines().any(|line| line.contains("fails") && line.contains("dead")).then_some(());
    eventually("the tail tells of it", dies).await;
    place.until("zeta", "other", "delivered").await;

    let listed = good(&["events", "--state", "dead", "--since", "1h"]).await;
    assert!(
        listed.starts_with("RECORDED") && listed.contains("fails") && listed.lines().count() == 2,
        "{listed}"
    );
    let json: Value =
        serde_json::from_str(&good(&["events", "--format", "json", "--limit", "2"]).await).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(2));
    assert_eq!(good(&["events", "--until", "1h"]).await.lines().count(), 1, "only the head");
    let dead = good(&["dead", "--partner", "globex"]).await;
    assert!(dead.contains("retries_exhausted") && dead.contains("500"), "{dead}");
    let id = dead.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("an id").to_owned();
    assert!(
        good(&["deliveries", "--endpoint", &place.endpoint, "--state", "delivered"]).await.contains("before")
    );

    let refused = run(&["cancel", &id, "dlv_1_1"], &variables).await;
    assert_eq!((refused.code, refused.err.lines().count()), (Some(1), 2), "{}", refused.err);
    assert!(
        refused.err.contains("dead already") && refused.err.contains("there is no delivery"),
        "{}",
        refused.err
    );
    assert!(good(&["retry", &id]).await.contains(&id));
    let arrives = async || {
        tail.out().lines().any(|line| line.contains("fails") && line.contains("delivered")).then_some(())
    };
    eventually("the tail tells of that too", arrives).await;
    assert!(!tail.out().contains("other"), "{}", tail.out());
    tail.signal("INT");
    assert_eq!(tail.end().await.code, Some(0));
    let raw = good(&["explain", "acme", "fails", "--format", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&raw).expect("JSON")["state"], "delivered");
    let bad = run(&["events", "--since", "yesterday"], &variables).await;
    assert_eq!(bad.code, Some(2), "{}", bad.err);
    place.relay.finish().await;
}
