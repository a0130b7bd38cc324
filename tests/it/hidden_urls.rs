//! The path and query of an endpoint's URL may be a secret: sealed in the ledger, shown nowhere.

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::MockPartner;
use serde_json::json;

use crate::support::partners::{add_endpoint, call, direct};
use crate::support::{TestDatabase, TestRelay, mock_svix};

async fn a_urls_path_is_sealed_and_shown_nowhere(database: TestDatabase) {
    let relay = TestRelay::start_with(direct(&database, &mock_svix().await)).await;
    let partner = MockPartner::start().await;
    let url = partner.url("/services/canary?key=canary");
    let (id, _) = add_endpoint(&relay, "crm", json!({ "url": url })).await;
    let path = format!("/v1/endpoints/{id}");
    let shown = relay.get(&path).await.json();
    assert_eq!(shown["url"], partner.url("/[redacted]"));
    // What was shown can be given back.
    let patch = json!({"url": shown["url"], "timeout_ms": 14_000});
    assert_eq!(call(&relay, Method::PATCH, &path, patch).await.json()["url"], shown["url"]);
    let masked = json!({"url": partner.url("/[redacted]")});
    let refused = relay
        .send(
            Method::POST,
            "/v1/partners/crm/endpoints",
            &[("content-type", "application/json")],
            masked.to_string(),
        )
        .await;
    assert_eq!(refused.status, 422, "a new endpoint needs the whole URL");

    relay.post(json!({"id": "evt_1", "tenant": "acme", "type": "a", "data": {}}).to_string()).await;
    assert!(partner.wait_for(1, Duration::from_secs(10)).await);
    assert_eq!(partner.requests()[0].path, "/services/canary");
    relay.settled().await;
    for path in [&*path, "/v1/partners/crm/endpoints", "/v1/events", "/v1/deliveries", "/v1/stats"] {
        let answer = relay.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("canary"), "{path}");
    }
    let rows = relay.app().ledger().database().all_endpoints().await.expect("read");
    assert!(!rows[0].settings.json.contains("canary"), "{}", rows[0].settings.json);
    relay.finish().await;
}

on_both_databases!(a_urls_path_is_sealed_and_shown_nowhere,);
