//! How fast tenants may put events in.

use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, TestDatabase, TestRelay, config, mock_svix};

on_both_databases!(a_tenant_over_its_limit_comes_again_and_others_go_on, only_what_is_recorded_costs);

/// So many events of a tenant, with ids that begin with `name`.
fn events(tenant: &str, name: &str, count: usize) -> Vec<Value> {
    (0..count).map(|n| json!({"id": format!("{name}{n}"), "type": "a", "tenant": tenant})).collect()
}

async fn post(relay: &TestRelay, events: Vec<Value>) -> Answer {
    relay.post(json!(events).to_string()).await
}

async fn put_tenant(relay: &TestRelay, tenant: &str, settings: Value) {
    let headers = [("content-type", "application/json")];
    let path = format!("/v1/tenants/{tenant}");
    let answer = relay.send(Method::PUT, &path, &headers, settings.to_string()).await;
    assert!(answer.status.is_success(), "{}", answer.json());
}

/// What a refusal asks to wait, after a look at its form.
fn refused(answer: &Answer) -> u64 {
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (429, "tenant_ingest_limit"));
    assert!(answer.json()["detail"].as_str().expect("words").contains("tenant `acme`"), "{}", answer.json());
    answer.header("retry-after").expect("a time").parse().expect("whole seconds")
}

async fn a_tenant_over_its_limit_comes_again_and_others_go_on(database: TestDatabase) {
    // holds: 7
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let limit = json!({"ingest_limit": {"per_second": 0.5, "burst": 10}});
    put_tenant(&relay, "acme", limit.clone()).await;
    assert_eq!(post(&relay, events("acme", "first", 10)).await.status, 202);
    // Two tokens take four seconds: time enough for what comes until then.
    let answer = post(&relay, events("acme", "second", 2)).await;
    let wait = refused(&answer);
    let refused_at = tokio::time::Instant::now();
    assert!((1..=4).contains(&wait), "{wait} s");
    let lenient = [("prefer", "handling=lenient")];
    let mixed = [events("globex", "mixed", 1), events("acme", "mixed", 2)].concat();
    refused(&relay.post_with(&lenient, json!(mixed).to_string()).await);
    let push = json!({
        // [{"id":"p1","type":"a"},{"id":"p2","type":"a"}], of the default tenant
        "message": {"data": "W3siaWQiOiJwMSIsInR5cGUiOiJhIn0seyJpZCI6InAyIiwidHlwZSI6ImEifV0=", "messageId": "7"},
        "subscription": "projects/p/subscriptions/s",
    });
    refused(&relay.post(push.to_string()).await);
    assert_eq!(post(&relay, events("globex", "other", 500)).await.status, 202, "others are not held up");
    assert_eq!(relay.progress().await.events, 510, "nothing of a refused request is stored");
    // As long as it said, and no longer.
    tokio::time::sleep_until(refused_at + Duration::from_secs(wait)).await;
    let again = post(&relay, events("acme", "second", 2)).await;
    assert_eq!(again.statuses(), ["accepted", "accepted"]);
    refused(&post(&relay, events("acme", "second", 2)).await); // a duplicate is work like another event
    // A change holds at once, and a batch larger than the burst is taken and waited for.
    put_tenant(&relay, "acme", json!({"ingest_limit": {"per_second": 100_000, "burst": 1}})).await;
    assert_eq!(post(&relay, events("acme", "third", 100)).await.status, 202);
    put_tenant(&relay, "acme", json!({})).await;
    assert_eq!(post(&relay, events("acme", "free", 100)).await.status, 202);
    put_tenant(&relay, "acme", limit).await;
    assert_eq!(post(&relay, events("acme", "large", 60)).await.status, 202);
    let debt = refused(&post(&relay, events("acme", "after", 1)).await);
    assert!((60..=102).contains(&debt), "{debt} s for 50 events of debt and one more");
    let progress = relay.finish().await;
    assert_eq!((progress.events, svix.message_count()), (772, 772));
}

async fn only_what_is_recorded_costs(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.token = Some("sk_wrong".to_owned().into());
    config.ledger.tenant_backlog_max = 3;
    config.ingest.tenant_per_second = Some(0.001);
    config.ingest.tenant_burst = Some(6);
    let relay = TestRelay::start_with(config).await;
    let invalid = [events("acme", "a", 5), vec![json!({"id": "no type"})]].concat();
    for _ in 0..3 {
        assert_eq!(post(&relay, invalid.clone()).await.problem(), "invalid_events");
    }
    assert_eq!(post(&relay, events("acme", "a", 3)).await.status, 202);
    for _ in 0..3 {
        let full = post(&relay, events("acme", "b", 3)).await;
        assert_eq!(full.problem(), "tenant_backlog_full", "three tokens are left");
    }
    refused(&post(&relay, events("acme", "b", 4)).await);
    relay.stop().await;
}
