//! What was kept for long enough goes, what waits never does.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerAnswer};
use serde_json::{Value, json};

use crate::support::partners::{JSON, add_endpoint, call, direct};
use crate::support::{HttpClient, TestDatabase, TestRelay, eventually, mock_svix};

on_both_databases! {
    what_is_old_goes_and_its_identity_stays,
    an_event_whose_number_lies_in_the_future_is_kept,
    identities_go_after_their_time_and_not_before,
    what_waits_never_goes,
    a_tenant_keeps_what_it_was_given,
    other_old_rows_go_too,
    it_happens_by_itself,
}

const DAY_MS: i64 = 86_400_000;

async fn start(database: &TestDatabase, days: [u32; 2], every_ms: u64) -> (TestRelay, MockPartner) {
    let svix = mock_svix().await;
    let mut config = direct(database, &svix);
    config.retention.events_days = days[0];
    config.retention.dedup_days = days[1];
    config.retention.prune_every_ms = every_ms;
    let (relay, partner) = (TestRelay::start_with(config).await, MockPartner::start().await);
    let settings = json!({ "url": partner.url("/hook"), "retry_schedule_ms": [600_000] });
    add_endpoint(&relay, "acme-eu", settings).await;
    (relay, partner)
}

async fn post(relay: &HttpClient, tenant: &str, id: &str) -> String {
    let event = json!({ "id": id, "type": "t", "tenant": tenant, "data": { "id": id } });
    let answer = relay.post(event.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    answer.statuses().remove(0)
}

/// Makes all that is recorded so many days older, with the numbers that tell of it.
async fn age(database: &TestDatabase, days: i64) {
    let (by_ms, by_number) = (days * DAY_MS, (days * DAY_MS) << 22);
    for statement in [
        format!("UPDATE event SET seq = seq - {by_number}, received_at = received_at - {by_ms}"),
        format!("UPDATE event_key SET event = event - {by_number}"),
        format!("UPDATE outcome SET event = event - {by_number}, at = at - {by_ms}"),
        format!("UPDATE attempt_log SET event = event - {by_number}, at = at - {by_ms}"),
        format!("UPDATE queue SET event = event - {by_number}"),
        format!("UPDATE request_key SET created_at = created_at - {by_ms}"),
        format!("UPDATE rejected SET received_at = received_at - {by_ms}"),
    ] {
        database.execute(&statement).await;
    }
}

async fn prune(relay: &HttpClient, body: Value) -> Value {
    call(relay, Method::POST, "/v1/prune", body).await.json()
}

async fn count(database: &TestDatabase, table: &str) -> i64 {
    database.text(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {table}")).await.parse().expect("a number")
}

async fn what_is_old_goes_and_its_identity_stays(database: TestDatabase) {
    let (relay, _partner) = start(&database, [30, 90], 0).await;
    for n in 0..120 {
        post(&relay, "acme", &format!("old{n}")).await;
    }
    relay.settled().await;
    age(&database, 31).await;
    post(&relay, "acme", "new").await;
    relay.settled().await;
    let counted = prune(&relay, json!({ "dry_run": true })).await;
    assert_eq!((&counted["events"], &counted["identities"]), (&json!(120), &json!(0)), "{counted}");
    assert_eq!(count(&database, "event").await, 121, "a dry run takes nothing away");
    let gone = prune(&relay, json!({})).await;
    assert_eq!((&gone["events"], &gone["next_cursor"]), (&json!(120), &json!(null)), "{gone}");
    for (table, left) in [("event", 1), ("outcome", 1), ("event_key", 121)] {
        assert_eq!(count(&database, table).await, left, "{table}");
    }
    let progress = relay.settled().await;
    assert_eq!((progress.events, progress.created), (1, 1));
    // Its payload is gone; that it has been here is not forgotten.
    assert_eq!(post(&relay, "acme", "old7").await, "duplicate");
    let other = json!({ "id": "old7", "type": "t", "tenant": "acme", "data": "other" });
    assert_eq!(relay.post(other.to_string()).await.status, 409);
    relay.finish().await;
}

async fn an_event_whose_number_lies_in_the_future_is_kept(database: TestDatabase) {
    // holds: 54
    let (relay, _partner) = start(&database, [30, 90], 0).await;
    post(&relay, "acme", "old").await;
    relay.settled().await;
    age(&database, 31).await;
    // Its own times may have been written by a clock that was behind, after one that was 400 days ahead.
    let ahead = (431 * DAY_MS) << 22;
    for statement in [
        format!("UPDATE event SET seq = seq + {ahead}"),
        format!("UPDATE event_key SET event = event + {ahead}"),
        format!("UPDATE outcome SET event = event + {ahead}"),
    ] {
        database.execute(&statement).await;
    }
    post(&relay, "acme", "new").await;
    relay.settled().await;
    assert_eq!(prune(&relay, json!({})).await["events"], 0);
    assert_eq!((count(&database, "event").await, count(&database, "event_key").await), (2, 2));
    relay.stop().await;
}

async fn identities_go_after_their_time_and_not_before(database: TestDatabase) {
    let (relay, _partner) = start(&database, [30, 90], 0).await;
    post(&relay, "acme", "a").await;
    relay.settled().await;
    age(&database, 89).await;
    assert_eq!(prune(&relay, json!({})).await["identities"], 0);
    assert_eq!(count(&database, "event").await, 0);
    age(&database, 2).await;
    let gone = prune(&relay, json!({})).await;
    assert_eq!(gone["identities"], 1, "{gone}");
    assert_eq!(post(&relay, "acme", "a").await, "accepted");
    relay.finish().await;
}

async fn what_waits_never_goes(database: TestDatabase) {
    let (relay, partner) = start(&database, [30, 90], 0).await;
    partner.set_answer(Some(PartnerAnswer::status(500)));
    post(&relay, "acme", "waits").await;
    eventually("it has failed once", async || (count(&database, "attempt_log").await == 1).then_some(()))
        .await;
    relay.stop().await;
    age(&database, 400).await;
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    for body in [json!({}), json!({ "before": "0s" }), json!({ "before": "0s", "tenant": "acme" })] {
        let gone = prune(&relay, body.clone()).await;
        assert_eq!(gone["events"], 0, "{body}: {gone}");
    }
    assert_eq!((count(&database, "event").await, count(&database, "queue").await), (1, 1));
    assert_eq!(count(&database, "event_key").await, 1, "nor its identity");
    // It is done in the end, and then its time begins.
    partner.set_answer(None);
    database.execute("UPDATE queue SET due_at = 0").await;
    relay.stop().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let progress = relay.settled().await;
    assert_eq!(progress.done, HashMap::from([("delivered".to_owned(), 1)]));
    assert_eq!(prune(&relay, json!({})).await["events"], 0);
    let gone = prune(&relay, json!({ "before": "0s" })).await;
    assert_eq!(gone["events"], 1, "{gone}");
    let future = json!({ "before": "2100-01-01T00:00:00Z" }).to_string();
    assert_eq!(relay.send(Method::POST, "/v1/prune", &JSON, future).await.problem(), "invalid_field");
    relay.finish().await;
}

async fn a_tenant_keeps_what_it_was_given(database: TestDatabase) {
    let (relay, _partner) = start(&database, [30, 90], 0).await;
    let set = async |tenant: &str, retention: Value| {
        let body = json!({ "retention": retention }).to_string();
        relay.send(Method::PUT, &format!("/v1/tenants/{tenant}"), &JSON, body).await
    };
    assert!(set("short", json!({ "events_days": 1, "dedup_days": 2 })).await.status.is_success());
    let long = set("long", json!({ "events_days": 0, "dedup_days": 0 })).await;
    assert_eq!(long.json()["retention"], json!({ "events_days": 0, "dedup_days": 0 }));
    let wrong = set("wrong", json!({ "events_days": 9, "dedup_days": 8 })).await;
    assert_eq!(wrong.problem(), "invalid_field");
    for tenant in ["short", "long", "plain"] {
        post(&relay, tenant, "a").await;
    }
    relay.settled().await;
    let left = async || {
        let tenants = ["short", "long", "plain"].map(|tenant| format!("event WHERE tenant = '{tenant}'"));
        let mut left = Vec::new();
        for tenant in tenants {
            left.push(count(&database, &tenant).await);
        }
        left
    };
    age(&database, 3).await;
    let gone = prune(&relay, json!({})).await;
    assert_eq!((&gone["events"], &gone["identities"]), (&json!(1), &json!(1)), "{gone}");
    assert_eq!(left().await, [0, 1, 1]);
    age(&database, 400).await;
    let gone = prune(&relay, json!({})).await;
    assert_eq!((&gone["events"], &gone["identities"]), (&json!(1), &json!(1)), "{gone}");
    assert_eq!(left().await, [0, 1, 0]);
    // Said so by name, it goes all the same.
    let gone = prune(&relay, json!({ "tenant": "long", "before": "1h" })).await;
    assert_eq!((&gone["events"], &gone["identities"]), (&json!(1), &json!(0)), "{gone}");
    relay.finish().await;
}

async fn other_old_rows_go_too(database: TestDatabase) {
    let (relay, partner) = start(&database, [0, 0], 0).await;
    partner.script([PartnerAnswer::status(429)]);
    let event = json!({ "id": "a", "type": "t", "tenant": "acme", "data": 1 }).to_string();
    let keyed = relay.post_with(&[("idempotency-key", "k")], event).await;
    assert_eq!(keyed.status, 202);
    relay.settled().await;
    assert_eq!((count(&database, "request_key").await, count(&database, "attempt_log").await), (1, 1));
    let none = prune(&relay, json!({})).await;
    assert_eq!((&none["request_keys"], &none["attempts"]), (&json!(0), &json!(0)), "{none}");
    age(&database, 2).await;
    assert_eq!(prune(&relay, json!({})).await["request_keys"], 1);
    age(&database, 30).await;
    let gone = prune(&relay, json!({})).await;
    assert_eq!((&gone["attempts"], &gone["events"]), (&json!(1), &json!(0)), "{gone}");
    assert_eq!((count(&database, "event").await, count(&database, "attempt_log").await), (1, 0));
    relay.finish().await;
}

async fn it_happens_by_itself(database: TestDatabase) {
    let (relay, _partner) = start(&database, [30, 90], 100).await;
    for n in 0..60 {
        post(&relay, "acme", &format!("old{n}")).await;
    }
    relay.settled().await;
    age(&database, 31).await;
    eventually("what is old is gone", async || (count(&database, "event").await == 0).then_some(())).await;
    assert_eq!(count(&database, "event_key").await, 60);
    tokio::time::sleep(Duration::from_millis(50)).await;
    relay.finish().await;
}
