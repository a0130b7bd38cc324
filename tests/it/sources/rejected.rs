//! `/v1/rejected` and `posthaste rejected`: what could never be accepted is listed, shown, replayed and dropped.

use axum::http::Method;
use posthaste::config::UnknownEventTypes;
use posthaste::mock::MockSvix;
use serde_json::{Value, json};

use super::nats::NatsQueue;
use super::{Outgoing, Queue, source_config};
use crate::support::{TestDatabase, TestRelay, bounded, eventually, mock_svix};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A relay that knows no event types and takes no others.
async fn strict_relay(queue: &impl Queue, database: &TestDatabase, svix: &MockSvix, more: &str) -> TestRelay {
    let mut config = source_config(queue, database, svix, more);
    config.ingest.unknown_event_types = UnknownEventTypes::Refuse;
    TestRelay::start_with(config).await
}

async fn rejected(relay: &TestRelay, query: &str) -> Vec<Value> {
    let page = relay.get(&format!("/v1/rejected{query}")).await.json();
    page["rejected"].as_array().expect("a list").clone()
}

async fn replay(relay: &TestRelay, row: &Value) -> crate::support::Answer {
    relay.send(Method::POST, &format!("/v1/rejected/{}/replay", row["id"]), &[], "").await
}

async fn declare(relay: &TestRelay, event_type: &str) {
    let put = relay.send(Method::PUT, &format!("/v1/event-types/{event_type}"), &JSON, "{}").await;
    assert_eq!(put.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fix_it_is_the_event_that_it_would_have_been() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = NatsQueue::start().await;
        let relay = strict_relay(&queue, &database, &svix, "tenant = 'globex'").await;
        // No ids: they are derived from the message and the place in it.
        let array = r#"[{"type":"a","data":{"n":0}},{"type":"b","tenant":"acme","data":{"n":1}}]"#;
        let binary = Outgoing::new("", r#"{"n":2}"#)
            .header("ce-specversion", "1.0")
            .header("ce-type", "a")
            .header("ce-subject", "K%C3%B6ln");
        queue.publish(&[Outgoing::new("", array), binary]).await;
        eventually("three are kept", async || (rejected(&relay, "").await.len() == 3).then_some(())).await;
        let rows = rejected(&relay, "?origin=nats:orders").await;
        assert_eq!(rows.len(), 3);
        let refused = replay(&relay, &rows[0]).await;
        assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (422, "still_invalid"));
        assert_eq!(rejected(&relay, "").await.len(), 3, "it stays");
        declare(&relay, "a").await;
        declare(&relay, "b").await;
        let mut ids = Vec::new();
        for row in &rows {
            let replayed = replay(&relay, row).await;
            assert_eq!((replayed.status.as_u16(), replayed.statuses()), (200, vec!["accepted".to_owned()]));
            let result = &replayed.json()["results"][0];
            assert_eq!(result["tenant"], "globex", "the source's, whatever the event says");
            ids.push(result["id"].as_str().expect("an id").to_owned());
            assert_eq!(replay(&relay, row).await.status, 404, "it is gone");
        }
        assert_eq!(rejected(&relay, "").await, Vec::<Value>::new());
        relay.finish().await;
        assert_eq!(svix.message_count(), 3);
        assert!(svix.messages().iter().all(|message| message.app == "globex"));
        assert!(svix.messages().iter().any(|message| message.payload.contains("\"subject\":\"Köln\"")));
        // Delivered again, they are found to be those events.
        queue.deliver_again(&[]).await;
        let relay = strict_relay(&queue, &database, &svix, "tenant = 'globex'").await;
        eventually("all are duplicates", async || {
            let labels = "verdict=\"duplicate\"";
            (super::metric(&relay, "posthaste_ingest_events_total", labels).await == 3.0).then_some(())
        })
        .await;
        relay.finish().await;
        assert_eq!(svix.message_count(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_come_in_pages() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = TestRelay::start(&database, &svix).await;
        for n in 0..5 {
            // The data is `{"no":"type"}`.
            let push = json!({
                "message": {"data": "eyJubyI6InR5cGUifQ==", "messageId": n.to_string(), "attributes": {"n": n.to_string()}},
                "subscription": "projects/p/subscriptions/s",
            });
            // Twice: what is delivered again is kept once.
            for _ in 0..2 {
                assert_eq!(relay.post(push.to_string()).await.status, 204);
            }
        }
        let all = rejected(&relay, "").await;
        assert_eq!(all.len(), 5);
        let first = relay.get("/v1/rejected?limit=3&origin=pubsub_push").await.json();
        let cursor = first["next_cursor"].as_str().expect("another page");
        let second = relay.get(&format!("/v1/rejected?limit=3&cursor={cursor}")).await.json();
        assert_eq!(second["next_cursor"], Value::Null);
        let both: Vec<_> = [&first, &second].iter().flat_map(|page| page["rejected"].as_array().unwrap()).collect();
        assert_eq!(both, all.iter().collect::<Vec<_>>(), "newest first, each once");
        assert_eq!(rejected(&relay, "?origin=nats:orders").await.len(), 0);
        let newest = all[0]["received_at"].as_i64().expect("a time");
        assert_eq!(rejected(&relay, &format!("?since={}", newest + 60_000)).await.len(), 0);
        assert_eq!(rejected(&relay, "?since=0").await.len(), 5);
        for bad in ["?limit=0", "?since=yesterday", "?cursor=!", "?cursor=YQ", "?of=x"] {
            let answer = relay.get(&format!("/v1/rejected{bad}")).await;
            assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad_query"), "{bad}");
        }
        let path = format!("/v1/rejected/{}", all[0]["id"]);
        let whole = relay.get(&path).await.json();
        assert_eq!((&whole["body"], &whole["body_base64"]), (&json!(r#"{"no":"type"}"#), &json!("eyJubyI6InR5cGUifQ==")));
        assert_eq!(whole["attributes"], json!({"n": "4"}));
        assert_eq!(relay.send(Method::DELETE, &path, &[], "").await.status, 204);
        assert_eq!(relay.send(Method::DELETE, &path, &[], "").await.status, 404);
        assert_eq!(relay.get("/v1/rejected/none").await.status, 404);
        // What was rejected may be anybody's.
        let key = json!({"name": "acme's", "scopes": ["read"], "tenant": "acme"}).to_string();
        let key = relay.send(Method::POST, "/v1/keys", &JSON, key).await.json();
        let headers = [("x-api-key", key["key"].as_str().expect("a key"))];
        assert_eq!(relay.send(Method::GET, "/v1/rejected", &headers, "").await.status, 403);
        relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_stays_until_it_is_dropped() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = NatsQueue::start().await;
        let relay = super::relay(&queue, &database, &svix, "").await;
        let with = |n: u8| Outgoing::new("", format!(r#"{{"id":"one","type":"t","data":{{"n":{n}}}}}"#));
        queue.publish(&[with(1), with(2), with(1)]).await;
        let row = eventually("it is kept", async || rejected(&relay, "").await.first().cloned()).await;
        let again = replay(&relay, &row).await;
        assert_eq!((again.status.as_u16(), again.problem().as_str()), (409, "conflict"));
        assert_eq!(rejected(&relay, "").await, [row]);
        relay.finish().await;
        assert_eq!(svix.message_count(), 1);
    })
    .await;
}
