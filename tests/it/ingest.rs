//! `POST /notifications`: shapes, verdicts, refusals, bytes.

use std::fmt::Write as _;

use axum::http::Method;
use posthaste::ledger::{Rejected, RejectedFilter};
use posthaste::mock::MockSvix;
use serde_json::{Value, json};

use crate::support::{TestDatabase, TestRelay, config, mock_svix};

async fn relay() -> (TestRelay, MockSvix, TestDatabase) {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    (TestRelay::start(&database, &svix).await, svix, database)
}

/// `count` events with ids from `first` on, as a JSON array.
pub fn batch(first: usize, count: usize) -> String {
    let mut text = String::from("[");
    for id in first..first + count {
        let comma = if id == first { "" } else { "," };
        write!(text, r#"{comma}{{"id":"evt_{id}","type":"order.created","data":{{"n":{id}}}}}"#)
            .expect("a String");
    }
    text.push(']');
    text
}

async fn one_batch_three_times(database: TestDatabase) {
    // holds: 1, 2
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let (first, second) = tokio::join!(relay.post(batch(0, 100)), relay.post(batch(0, 100)));
    let third = relay.post(batch(0, 100)).await;
    for answer in [&first, &second, &third] {
        assert_eq!(answer.status, 202);
    }
    let (first, second) = (first.json(), second.json());
    let sum = |name: &str| first[name].as_u64().expect("a number") + second[name].as_u64().expect("a number");
    assert_eq!((sum("accepted"), sum("duplicates")), (100, 100));
    assert_eq!(
        (third.json()["accepted"].as_u64(), third.json()["duplicates"].as_u64()),
        (Some(0), Some(100))
    );
    assert!(third.statuses().iter().all(|status| status == "duplicate"));
    let progress = relay.finish().await;
    assert_eq!((progress.events, progress.done["delivered"]), (100, 100));
    assert_eq!(svix.message_count(), 100);
}

async fn payload_bytes_survive(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let events = [
        r#"{ "type":"a", "id":"digits",  "data" : {"price":1.10,"big":12345678901234567890,"tiny":1e-400,"neg":-0.0} }"#,
        r#"{"id":"order","type":"a","z":1,"a":2,"data":{"z":1,"a":2,"m":3}}"#,
        r#"{"id":"unicode","type":"a","data":{"s":"\ud83d\ude00 😀 \u00e9 é \ud800 \/ \u2028","ключ":"значение"}}"#,
        r#"{"id":"twice","type":"a","data":{"k":1,"k":2,"k":{"k":3}}}"#,
        "{\"id\":\"space\",\"type\":\"a\",\"data\":{\"a\" :\t[ 1 ,\r\n 2 ] } }",
    ];
    let answer = relay.post(format!("[{}]", events.join(" , "))).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    relay.finish().await;
    let messages = svix.messages();
    for event in events {
        assert!(messages.iter().any(|message| message.payload == event), "{event}");
    }
}

on_both_databases!(one_batch_three_times, payload_bytes_survive);

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_is_understood() {
    let (relay, svix, _database) = relay().await;
    let json = "application/json";
    let envelope = json!({
        "message": {"data": "eyJldmVudFR5cGUiOiJwdXNoZWQiLCJkYXRhIjp7Im4iOjF9fQ==", "messageId": "77"},
        "subscription": "projects/p/subscriptions/s",
    });
    let binary = [
        ("ce-id", "bin"),
        ("ce-type", "binary"),
        ("ce-source", "/shop"),
        ("ce-specversion", "1.0"),
        ("ce-tenant", "globex"),
        ("content-type", json),
    ];
    let shapes: [(&[(&str, &str)], String); 7] = [
        (&[("content-type", json)], r#"{"id":"c1","type":"cloud","fooBar":1,"data":{}}"#.into()),
        (&[("content-type", "application/cloudevents+json")], r#"{"id":"c2","type":"cloud"}"#.into()),
        (&[("content-type", "application/cloudevents-batch+json")], r#"[{"id":"c3","type":"cloud"}]"#.into()),
        (&[("content-type", "Application/JSON; charset=UTF-8")], r#"{"eventType":"short","data":{}}"#.into()),
        (&[("content-type", json)], r#"{"eventType":"short","payload":{},"eventId":"s2"}"#.into()),
        (&binary, r#"{"n":1.10}"#.into()),
        (&[("content-type", json)], envelope.to_string()),
    ];
    for (headers, body) in &shapes {
        let answer = relay.send(Method::POST, "/api/v1/events", headers, body.clone()).await;
        assert_eq!(answer.status, 202, "{body}: {}", answer.json());
        assert_eq!(answer.json()["accepted"], 1, "{body}");
    }
    // A redelivery of the push is a duplicate, although its event names no id.
    let again = relay.post(envelope.to_string()).await;
    assert_eq!(again.statuses(), ["duplicate"]);
    relay.finish().await;
    assert_eq!(svix.message_count(), 7);
    let message = svix.message("globex", "bin").expect("binary mode");
    assert!(message.payload.contains(r#""data":{"n":1.10}"#), "{}", message.payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_data_is_relayed_where_that_is_wanted() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.ingest.relay = posthaste::domain::event::Relay::Data;
    let relay = TestRelay::start_with(config).await;
    relay.post(r#"[{"id":"1","type":"a","data": {"n":1.10} },{"id":"2","type":"a"}]"#).await;
    relay.finish().await;
    assert_eq!(svix.message("acme", "1").expect("there").payload, r#"{"n":1.10}"#);
    assert_eq!(svix.message("acme", "2").expect("there").payload, r#"{"id":"2","type":"a"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_comes_from_attribute_header_or_default() {
    let (relay, svix, _database) = relay().await;
    let event = |attributes: &str| format!(r#"{{"type":"a"{attributes}}}"#);
    let cases = [
        (event(r#","tenant":"t1","project":"p1""#), Some("h1"), "t1"),
        (event(r#","project":"p1","account":"a1""#), Some("h1"), "p1"),
        (event(r#","account":"a1""#), Some("h1"), "a1"),
        (event(""), Some("h1"), "h1"),
        (event(""), None, "acme"),
    ];
    for (body, header, tenant) in cases {
        let headers: Vec<_> = header.iter().map(|header| ("x-tenant", *header)).collect();
        let answer = relay.post_with(&headers, body.clone()).await;
        assert_eq!(answer.json()["results"][0]["tenant"], tenant, "{body}");
        let id = answer.json()["results"][0]["id"].as_str().expect("an id").to_owned();
        assert!(id.starts_with("evt_") && id.len() == 36, "{id}");
    }
    relay.finish().await;
    assert_eq!(svix.message_count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_stores_nothing_and_lenient_the_good_ones() {
    // holds: 3
    let (relay, svix, _database) = relay().await;
    assert_eq!(relay.post(r#"{"id":"1","type":"a","data":{"n":1}}"#).await.status, 202);
    let invalid = r#"[{"id":"2","type":"a"},{"id":"3"},{"id":"1","type":"a","data":{"n":1}}]"#;
    let answer = relay.post(invalid).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid_events"));
    assert_eq!(answer.json()["errors"][0]["pointer"], "/1/type");
    let conflict = r#"[{"id":"2","type":"a"},{"id":"1","type":"a","data":{"n":1.0}}]"#;
    let answer = relay.post(conflict).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (409, "conflict"));
    assert_eq!(answer.json()["errors"][0]["pointer"], "/1/id");
    assert_eq!(relay.progress().await.events, 1, "nothing of either batch is stored");
    let single = relay.post(r#"{"id":"1","type":"b"}"#).await;
    assert_eq!(single.json()["errors"][0]["pointer"], "/id");
    let lenient = [("prefer", "handling=lenient")];
    let mixed =
        r#"[{"id":"2","type":"a"},{"id":"3"},{"id":"1","type":"a","data":{"n":2}},{"id":"2","type":"a"}]"#;
    let answer = relay.post_with(&lenient, mixed).await;
    assert_eq!(answer.status, 207);
    assert_eq!(answer.header("preference-applied"), Some("handling=lenient"));
    assert_eq!(answer.statuses(), ["accepted", "invalid", "conflict", "duplicate"]);
    let all_good = relay.post_with(&lenient, r#"[{"id":"4","type":"a"}]"#).await;
    assert_eq!(all_good.status, 202);
    let progress = relay.finish().await;
    assert_eq!(progress.events, 3);
    assert_eq!(svix.message("acme", "1").expect("there").payload, r#"{"id":"1","type":"a","data":{"n":1}}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_key_makes_a_resend_the_same_events() {
    let (relay, svix, _database) = relay().await;
    let key = [("idempotency-key", "upload-7")];
    let body = r#"[{"type":"a","data":{"n":1}},{"type":"a","data":{"n":1}}]"#;
    let first = relay.post_with(&key, body).await;
    let again = relay.post_with(&key, body).await;
    assert_eq!(first.statuses(), ["accepted", "accepted"], "same content, but two events");
    assert_eq!(again.statuses(), ["duplicate", "duplicate"]);
    assert_eq!(first.json()["results"][1]["id"], again.json()["results"][1]["id"]);
    let other = relay.post_with(&key, r#"{"type":"a"}"#).await;
    assert_eq!((other.status.as_u16(), other.problem().as_str()), (422, "idempotency_key_reused"));
    // Another tenant's key of the same name is another key.
    let foreign = relay.post_with(&[("idempotency-key", "upload-7"), ("x-tenant", "globex")], body).await;
    assert_eq!(foreign.statuses(), ["accepted", "accepted"]);
    relay.finish().await;
    assert_eq!(svix.message_count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_header_that_names_none_spoils_the_request() {
    let (relay, svix, _database) = relay().await;
    let long = "x".repeat(257);
    let bodies = ["[]", r#"{"type":"a"}"#, r#"{"type":"a","tenant":"acme"}"#];
    for (tenant, why) in [(long.as_str(), "is longer than 256 bytes"), ("", "must not be empty")] {
        for body in bodies {
            let headers = [("x-tenant", tenant), ("prefer", "handling=lenient")];
            let answer = relay.post_with(&headers, body).await;
            assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad_header"), "{body}");
            assert_eq!(answer.json()["detail"], format!("the header X-Tenant {why}"), "{body}");
        }
    }
    for body in bodies {
        assert_eq!(relay.post_with(&[("x-tenant", &long[..256])], body).await.status, 202, "{body}");
    }
    relay.finish().await;
    assert_eq!(svix.message_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_is_refused_with_its_reason() {
    // holds: 5
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.http.body_limit_bytes = 10_000;
    config.ingest.max_batch_events = 50;
    config.ingest.require_id = true;
    let relay = TestRelay::start_with(config).await;
    let json = "application/json";
    let deep = format!(r#"{{"id":"1","type":"a","data":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"id":"1","type":"a","data":"{}"}}"#, "x".repeat(10_000));
    let cases: Vec<(u16, &str, &str, Vec<u8>)> = vec![
        (400, "malformed", json, b"[{".to_vec()),
        (400, "malformed", json, b"".to_vec()),
        (400, "malformed", json, b"42".to_vec()),
        (400, "malformed", json, b"{\"id\":\"\xff\"}".to_vec()),
        (400, "too_deep", json, deep.into_bytes()),
        (400, "invalid_events", json, br#"{"type":"a"}"#.to_vec()),
        (400, "malformed", "application/cloudevents-batch+json", br#"{"id":"1","type":"a"}"#.to_vec()),
        (413, "body_too_large", json, large.into_bytes()),
        (413, "too_many_events", json, batch(0, 51).into_bytes()),
        (415, "unsupported_type", "text/plain", batch(0, 1).into_bytes()),
        (415, "unsupported_type", "application/x-www-form-urlencoded", b"a=b".to_vec()),
    ];
    for (status, code, kind, body) in cases {
        let answer = relay.post_with(&[("content-type", kind)], body.clone()).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (status, code), "{shown}");
    }
    let encoded = relay.post_with(&[("content-encoding", "br")], batch(0, 1)).await;
    assert_eq!((encoded.status.as_u16(), encoded.problem().as_str()), (415, "unsupported_encoding"));
    assert_eq!(relay.get("/notifications").await.status, 405);
    assert_eq!(relay.get("/nothing").await.problem(), "not_found");
    assert_eq!(relay.finish().await.events, 0);
    assert_eq!(svix.request_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_batch_is_no_mistake() {
    let (relay, _svix, _database) = relay().await;
    let answer = relay.post("[]").await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json(), json!({"accepted": 0, "duplicates": 0, "results": []}));
    relay.finish().await;
}

/// Every rejected message, newest first.
pub async fn rejected_messages(relay: &TestRelay) -> Vec<Rejected> {
    let database = relay.app().ledger().database();
    let mut messages = Vec::new();
    for row in database.rejected(&RejectedFilter::default(), 100).await.expect("read") {
        messages.push(database.rejected_message(row.id).await.expect("read").expect("there"));
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_can_never_be_accepted_is_kept_and_acknowledged() {
    // holds: 49
    let (relay, svix, _database) = relay().await;
    let push = |data: &str, id: &str| {
        json!({
            "message": {"data": data, "messageId": id, "attributes": {"origin": "test"}},
            "subscription": "projects/p/subscriptions/s",
        })
        .to_string()
    };
    // [{"id":"good","type":"a"},{"id":"bad"}]
    let mixed = relay.post(push("W3siaWQiOiJnb29kIiwidHlwZSI6ImEifSx7ImlkIjoiYmFkIn1d", "1")).await;
    assert_eq!(mixed.status, 204);
    let broken = relay.post(push("bm90IGpzb24=", "2")).await;
    assert_eq!(broken.status, 204);
    let rejected = rejected_messages(&relay).await;
    let bodies: Vec<_> = rejected.iter().map(|row| String::from_utf8_lossy(&row.body).into_owned()).collect();
    assert_eq!(bodies, ["not json", r#"{"id":"bad"}"#]);
    for row in &rejected {
        assert_eq!(row.origin, "pubsub_push");
        assert!(!row.reason.is_empty());
        let attributes: Value = serde_json::from_str(&row.attributes).expect("JSON");
        assert_eq!(attributes["origin"], "test");
    }
    relay.finish().await;
    assert_eq!(svix.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backlog_turns_its_tenant_away_and_then_everybody() {
    // holds: 7
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.ledger.tenant_backlog_max = 3;
    config.ledger.backlog_max = 5;
    config.svix.token = Some("sk_wrong".to_owned().into());
    let relay = TestRelay::start_with(config).await;
    let three = |tenant: &str| {
        (0..3).map(|n| json!({"id": n.to_string(), "type": "a", "tenant": tenant})).collect::<Value>()
    };
    assert_eq!(relay.post(three("acme").to_string()).await.status, 202);
    let again = relay.post(r#"{"id":"9","type":"a","tenant":"acme"}"#).await;
    assert_eq!((again.status.as_u16(), again.problem().as_str()), (429, "tenant_backlog_full"));
    assert!(again.header("retry-after").is_some());
    assert_eq!(relay.post(three("globex").to_string()).await.status, 202, "others are not shut out");
    let full = relay.post(r#"{"id":"9","type":"a","tenant":"initech"}"#).await;
    assert_eq!((full.status.as_u16(), full.problem().as_str()), (503, "backlog_full"));
    let retry_after: u32 = full.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=5).contains(&retry_after));
    assert_eq!(relay.get("/health/ready").await.status, 503);
    relay.stop().await;
    // With the right token all of it goes out, and the door is open again.
    let relay = TestRelay::start(&database, &svix).await;
    relay.settled().await;
    assert_eq!(relay.post(r#"{"id":"9","type":"a","tenant":"acme"}"#).await.status, 202);
    relay.finish().await;
    assert_eq!(svix.message_count(), 7);
}
