//! Endpoints over time and over several nodes: given up after days of failure, changed on one node and seen by another.

use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::app::SystemClock;
use posthaste::mock::{MockPartner, PartnerAnswer};
use posthaste::provisioning::seal_secret;
use posthaste::secrets::{MasterKey, Vault};
use posthaste::send::signature::EndpointSecret;
use serde_json::{Value, json};

use crate::support::partners::{MASTER_KEY, add_endpoint, call, direct};
use crate::support::{TestClock, TestDatabase, TestRelay, eventually, mock_svix};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

async fn post(relay: &TestRelay, id: &str, event_type: &str) {
    let event = json!({"id": id, "tenant": "acme", "type": event_type, "data": {}});
    assert_eq!(relay.post(event.to_string()).await.status, 202);
}

async fn five_days_of_nothing_but_failure_disable_an_endpoint(database: TestDatabase) {
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let relay = TestRelay::start_at(direct(&database, &svix), clock.clone()).await;
    let (partner, operator) = (MockPartner::start().await, MockPartner::start().await);
    let (id, _) =
        add_endpoint(&relay, "crm", json!({"url": partner.url("/"), "retry_schedule_ms": []})).await;
    let own = json!({"url": operator.url("/"), "event_types": ["posthaste.endpoint.disabled"]});
    add_endpoint(&relay, "operations", own).await;
    let path = format!("/v1/endpoints/{id}");
    let attempt = async |id: &str, status: u16| {
        partner.set_answer(Some(PartnerAnswer::status(status)));
        post(&relay, id, "a").await;
        relay.settled().await;
        relay.get(&path).await.json()
    };
    let began = attempt("evt_1", 500).await["failing_since"].clone();
    assert!(began.is_i64(), "{began}");
    clock.pass(4 * DAY);
    // A success in between, and the days count from the next failure.
    assert_eq!(attempt("evt_2", 204).await["failing_since"], Value::Null);
    clock.pass(HOUR);
    let since = attempt("evt_3", 500).await["failing_since"].clone();
    assert_eq!(since.as_i64(), began.as_i64().map(|began| began + (4 * DAY + HOUR).as_millis() as i64));
    clock.pass(5 * DAY - HOUR);
    assert_eq!(attempt("evt_4", 503).await["state"], "active");
    assert_eq!(operator.request_count(), 0);
    clock.pass(HOUR);
    let given_up = attempt("evt_5", 500).await;
    assert_eq!((&given_up["state"], &given_up["disabled_reason"]), (&json!("disabled"), &json!("failing")));
    assert!(operator.wait_for(1, Duration::from_secs(10)).await, "the operator is told");
    let told: Value = serde_json::from_slice(&operator.requests()[0].body).expect("JSON");
    assert_eq!(told["type"], "posthaste.endpoint.disabled");
    let data = &told["data"];
    assert_eq!(
        (&data["endpoint"], &data["partner"], &data["reason"]),
        (&json!(id), &json!("crm"), &json!("failing"))
    );
    let tried = partner.request_count();
    post(&relay, "evt_6", "a").await;
    assert_eq!(relay.settled().await.unrouted, 1, "nothing new is routed to it");
    // Enabled again it has another five days.
    call(&relay, Method::POST, &format!("{path}/enable"), json!({})).await;
    assert_eq!(attempt("evt_7", 500).await["state"], "active");
    assert_eq!((partner.request_count(), operator.request_count()), (tried + 1, 1));
    relay.finish().await;
}

on_both_databases!(five_days_of_nothing_but_failure_disable_an_endpoint);

/// As many endpoints of others as this, each with its own tenant, type, sealed headers and secret.
async fn fill(database: &TestDatabase, count: usize) {
    let vault = Vault::new(Some(MasterKey::parse(MASTER_KEY).expect("a key")), Vec::new());
    let clock = SystemClock::new();
    let rows: Vec<_> = (0..count)
        .map(|n| {
            let id = format!("ep_other{n}");
            let secret = seal_secret(&vault, &id, &EndpointSecret::generate(&clock), &clock).expect("sealed");
            let settings = json!({
                "url": "http://127.0.0.1:9/", "tenant": format!("tenant{n}"),
                "event_types": [format!("order.n{n}"), "invoice.*"],
                "transform": {"omit": ["/data/card"]},
            });
            format!("('{id}', 'others', '{settings}', '{secret}', 1, 0)")
        })
        .collect();
    let rows = rows.join(",");
    database
        .execute(&format!(
            "UPDATE revision SET number = number + 1;
             INSERT INTO partner (id, settings, version, created_at) VALUES ('others', '{{\"name\": \"Others\"}}', 1, 0);
             INSERT INTO endpoint (id, partner, settings, secret, version, created_at) VALUES {rows}"
        ))
        .await;
}

/// How long it takes until this node routes events of this type, or no longer does.
async fn until_routed(node: &TestRelay, event_type: &str, wanted: bool) -> Duration {
    let began = Instant::now();
    let mut tries = 0;
    eventually("the change is seen", async || {
        let before = node.progress().await.unrouted;
        let asked = began.elapsed();
        tries += 1;
        post(node, &format!("evt_{event_type}_{wanted}_{tries}"), event_type).await;
        let routed = node.progress().await.unrouted == before;
        (routed == wanted).then_some(asked)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_on_one_node_is_seen_by_another_within_a_second_among_ten_thousand_endpoints() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    // Makes the tables.
    TestRelay::start_with(direct(&database, &svix)).await.stop().await;
    fill(&database, 10_000).await;
    let began = Instant::now();
    let one = TestRelay::start_with(direct(&database, &svix)).await;
    println!("a node with 10,000 endpoints has started in {:?}", began.elapsed());
    let other = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    call(&one, Method::PUT, "/v1/partners/crm", json!({"name": "CRM"})).await;
    let began = Instant::now();
    let settings = json!({"url": partner.url("/"), "event_types": ["watched"]});
    let made = call(&one, Method::POST, "/v1/partners/crm/endpoints", settings).await.json();
    println!("made, and read again by its own node, in {:?}", began.elapsed());
    let path = format!("/v1/endpoints/{}", made["id"].as_str().expect("an id"));
    let mut waits = vec![("made", until_routed(&other, "watched", true).await)];
    call(&one, Method::PATCH, &path, json!({"event_types": ["other"]})).await;
    waits.push(("changed", until_routed(&other, "watched", false).await));
    waits.push(("changed", until_routed(&other, "other", true).await));
    call(&one, Method::POST, &format!("{path}/disable"), json!({})).await;
    waits.push(("disabled", until_routed(&other, "other", false).await));
    call(&one, Method::POST, &format!("{path}/enable"), json!({})).await;
    waits.push(("enabled", until_routed(&other, "other", true).await));
    call(&one, Method::DELETE, &path, json!({})).await;
    waits.push(("deleted", until_routed(&other, "other", false).await));
    println!("seen by the other node: {waits:?}");
    for (change, wait) in &waits {
        assert!(*wait < Duration::from_secs(1), "{change}: {wait:?}");
    }
    one.stop().await;
    other.finish().await;
}
