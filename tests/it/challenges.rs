//! Ownership challenges: side by side, each endpoint by its own schedule.

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::MockPartner;
use serde_json::json;

use crate::support::partners::{call, direct};
use crate::support::sink::Sink;
use crate::support::{TestDatabase, TestRelay, eventually, mock_svix};

const ENDPOINTS: &str = "/v1/partners/crm/endpoints";

/// A relay with a partner whose endpoints must prove themselves.
async fn relay_with_verified_partner(database: &TestDatabase) -> TestRelay {
    let relay = TestRelay::start_with(direct(database, &mock_svix().await)).await;
    let partner = json!({"name": "CRM", "verify_endpoints": true});
    call(&relay, Method::PUT, "/v1/partners/crm", partner).await;
    relay
}

async fn a_good_endpoint_does_not_wait_behind_hanging_ones(database: TestDatabase) {
    let relay = relay_with_verified_partner(&database).await;
    let (hanging, good) = (Sink::start().await, MockPartner::start().await);
    for nth in 0..4 {
        let endpoint = json!({"url": hanging.url(&format!("/hang/{nth}")), "timeout_ms": 30_000});
        call(&relay, Method::POST, ENDPOINTS, endpoint).await;
    }
    assert!(hanging.wait_for("/hang", 1, Duration::from_secs(10)).await, "the first is challenged");
    call(&relay, Method::POST, ENDPOINTS, json!({"url": good.url("/")})).await;
    // Each of the four hangs for 30 s.
    assert!(good.wait_for(1, Duration::from_secs(15)).await, "the good one is challenged meanwhile");
    assert_eq!(hanging.count("/hang"), 4, "the four are challenged side by side");
    relay.stop().await;
}

async fn unrelated_changes_send_no_challenge(database: TestDatabase) {
    let relay = relay_with_verified_partner(&database).await;
    let (wrong, good) = (MockPartner::start().await, MockPartner::start().await);
    wrong.set_answers_challenges(false);
    let made = call(&relay, Method::POST, ENDPOINTS, json!({"url": wrong.url("/")})).await.json();
    assert!(wrong.wait_for(1, Duration::from_secs(10)).await, "it is challenged");
    for nth in 0..40 {
        let name = json!({"name": format!("Other {nth}")});
        call(&relay, Method::PUT, "/v1/partners/other", name).await;
        // So that no two changes are noticed as one.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Also seen after the changes, so whatever they caused has begun before.
    call(&relay, Method::POST, ENDPOINTS, json!({"url": good.url("/")})).await;
    assert!(good.wait_for(1, Duration::from_secs(10)).await, "the new one is challenged");
    assert_eq!(wrong.request_count(), 1, "no change concerned it");
    // Saving the endpoint itself sends the next challenge now.
    wrong.set_answers_challenges(true);
    let path = format!("/v1/endpoints/{}", made["id"].as_str().expect("an id"));
    call(&relay, Method::PATCH, &path, json!({"timeout_ms": 14_000})).await;
    assert!(wrong.wait_for(2, Duration::from_secs(10)).await, "it is challenged again");
    eventually("it is proven", async || {
        let view = relay.get(&path).await.json();
        (!view["proven_at"].is_null()).then_some(())
    })
    .await;
    relay.stop().await;
}

on_both_databases!(a_good_endpoint_does_not_wait_behind_hanging_ones, unrelated_changes_send_no_challenge,);
