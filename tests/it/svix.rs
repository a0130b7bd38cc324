//! The way to Svix: throttles, conflicts, lost answers, refusals.

use std::time::Duration;

use posthaste::mock::{MockSvix, Trouble};
use serde_json::json;

use crate::ingest::batch;
use crate::support::{TOKEN, TestDatabase, TestRelay, config, mock_svix};

async fn a_throttle_holds_everybody_back_for_as_long_as_it_says(database: TestDatabase) {
    // holds: 25
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.max_in_flight = 8;
    let relay = TestRelay::start_with(config).await;
    svix.script([Trouble::Throttle { retry_after: Some("2".into()) }]);
    let event = |n: usize| json!({"id": n.to_string(), "type": "a", "tenant": format!("t{}", n % 10)});
    let events: Vec<_> = (0..200).map(event).collect();
    assert_eq!(relay.post(serde_json::to_vec(&events).expect("JSON")).await.status, 202);
    let progress = relay.finish().await;
    assert_eq!((progress.done["delivered"], svix.message_count()), (200, 200));
    let requests = svix.requests();
    let throttled = requests.iter().find(|request| request.status == Some(429)).expect("one 429");
    let closed_at = throttled.answered_at.expect("answered");
    // What was on its way when the answer was read may still come in; then nothing, for any tenant.
    let slack = Duration::from_millis(100);
    let early: Vec<_> = requests
        .iter()
        .filter(|request| request.received_at > closed_at + slack)
        .filter(|request| request.received_at < closed_at + Duration::from_secs(2) - Duration::from_millis(5))
        .collect();
    assert!(early.is_empty(), "{} requests in the closed time", early.len());
    let before = requests.iter().filter(|request| request.received_at <= closed_at + slack).count();
    assert!(before <= 8, "{before} requests before the gate closed: more than may be in flight");
    let tenants: std::collections::HashSet<_> = requests.iter().map(|request| request.app.clone()).collect();
    assert_eq!(tenants.len(), 10);
}

async fn a_throttle_costs_no_failure(database: TestDatabase) {
    // holds: 25
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    // One failure would be the end.
    config.svix.retry_schedule_ms = Vec::new();
    let relay = TestRelay::start_with(config).await;
    svix.script(["0.3", "garbage", "", "Thu, 01 Jan 1970 00:00:00 GMT"].map(|retry_after| {
        Trouble::Throttle { retry_after: (!retry_after.is_empty()).then(|| retry_after.to_owned()) }
    }));
    relay.post(r#"{"id":"1","type":"a"}"#).await;
    relay.settled().await;
    let outcomes = relay.app().ledger().database().outcomes("acme", "1").await.expect("read");
    assert_eq!((outcomes[0].state.as_str(), outcomes[0].failures, outcomes[0].attempts), ("delivered", 0, 5));
    let log = relay.app().ledger().database().attempt_log("acme", "1").await.expect("read");
    assert_eq!(log.iter().map(|(_, code, _)| code.as_str()).collect::<Vec<_>>(), ["http_429"; 4]);
    let requests = svix.requests();
    let gap = requests[1].received_at - requests[0].answered_at.expect("answered");
    assert!(gap >= Duration::from_millis(295), "{gap:?}");
    relay.finish().await;
}

async fn a_lost_answer_makes_no_second_message(database: TestDatabase) {
    // holds: 21, 24
    for replay_by_key in [true, false] {
        let svix = mock_svix().await;
        svix.set_replay_by_key(replay_by_key);
        let relay = TestRelay::start(&database, &svix).await;
        svix.script(vec![Trouble::StoredNoAnswer; 5]);
        let first = if replay_by_key { 0 } else { 100 };
        relay.post(batch(first, 20)).await;
        relay.finish().await;
        assert_eq!(svix.message_count(), 20, "replay by key: {replay_by_key}");
        let keys: std::collections::HashSet<_> =
            svix.requests().iter().map(|request| request.idempotency_key.clone()).collect();
        assert_eq!(keys.len(), 20, "each event has one key, on every attempt");
    }
}

on_both_databases!(
    a_throttle_holds_everybody_back_for_as_long_as_it_says,
    a_throttle_costs_no_failure,
    a_lost_answer_makes_no_second_message,
);

async fn start() -> (TestRelay, MockSvix, TestDatabase) {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    (TestRelay::start(&database, &svix).await, svix, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_after_an_error_is_delivered_and_flagged() {
    // holds: 26
    let (relay, svix, _database) = start().await;
    svix.script([Trouble::StoredThenStatus(500)]);
    relay.post(r#"{"id":"1","type":"a","data":{"b":1.10,"a":2}}"#).await;
    relay.settled().await;
    let outcomes = relay.app().ledger().database().outcomes("acme", "1").await.expect("read");
    assert_eq!((outcomes[0].state.as_str(), outcomes[0].failures), ("delivered", 1));
    assert!(outcomes[0].dispatch_unconfirmed);
    let message = svix.message("acme", "1").expect("stored");
    assert_eq!(outcomes[0].remote_id.as_deref(), Some(message.id.as_str()));
    relay.finish().await;
    assert_eq!(svix.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_from_two_sources_is_two_messages() {
    let (relay, svix, _database) = start().await;
    for source in ["/a", "/b", "/c"] {
        let body = format!(r#"{{"id":"1","type":"a","source":"{source}","data":{{"from":"{source}"}}}}"#);
        assert_eq!(relay.post(body).await.statuses(), ["accepted"]);
        relay.settled().await;
    }
    let progress = relay.finish().await;
    assert_eq!((progress.done["delivered"], svix.message_count()), (3, 3));
    let messages = svix.messages();
    let event_ids = messages.iter().filter_map(|message| message.event_id.as_deref());
    assert_eq!(
        event_ids.filter(|event_id| event_id.starts_with("ph1_")).count(),
        2,
        "the later ones go under their own keys"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_svix_does_not_take_go_under_their_key() {
    let (relay, svix, _database) = start().await;
    relay
        .post(r#"[{"id":"order/1 ü","type":"a"},{"id":"msg_1","type":"a"},{"id":"fine.1","type":"a"}]"#)
        .await;
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 3);
    let mut ids: Vec<_> = svix.messages().iter().filter_map(|message| message.event_id.clone()).collect();
    ids.sort();
    assert_eq!(ids[0], "fine.1");
    assert!(ids[1].starts_with("ph1_") && ids[2].starts_with("ph1_"), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_application_is_created_once() {
    let (database, svix) = (TestDatabase::sqlite(), MockSvix::builder().token(TOKEN).start().await);
    let relay = TestRelay::start(&database, &svix).await;
    relay.post(batch(0, 50)).await;
    let progress = relay.finish().await;
    assert_eq!((progress.done["delivered"], svix.message_count()), (50, 50));
    let not_found = svix.requests().iter().filter(|request| request.status == Some(404)).count();
    assert!(not_found <= 50, "{not_found} misses: no more than the first round");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_to_create_it_waits_for_the_application() {
    let (database, svix) = (TestDatabase::sqlite(), MockSvix::builder().token(TOKEN).start().await);
    let mut config = config(&database, &svix);
    config.svix.create_applications = false;
    config.svix.retry_schedule_ms = vec![100; 100];
    let relay = TestRelay::start_with(config).await;
    relay.post(r#"{"id":"1","type":"a"}"#).await;
    svix.wait_for_requests(2, Duration::from_secs(10)).await.expect("it is tried again");
    assert_eq!(relay.progress().await.pending, 1);
    svix.add_application("acme");
    relay.finish().await;
    assert_eq!(svix.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_svix_refuses_for_good_is_dead_in_its_own_words() {
    // holds: 30
    let (relay, svix, _database) = start().await;
    // The mock, like the real one, takes no such type.
    relay.post(r#"[{"id":"bad","type":"not a type"},{"id":"good","type":"a"}]"#).await;
    let progress = relay.settled().await;
    assert_eq!((progress.done["delivered"], progress.done["dead"]), (1, 1));
    let database = relay.app().ledger().database();
    let outcome = &database.outcomes("acme", "bad").await.expect("read")[0];
    assert_eq!((outcome.state.as_str(), outcome.reason.as_deref()), ("dead", Some("rejected")));
    let log = database.attempt_log("acme", "bad").await.expect("read");
    assert_eq!(log[0].1, "http_422");
    assert!(log[0].2.contains("event_type"), "{}", log[0].2);
    relay.finish().await;
    assert_eq!(svix.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_closes_the_gate_and_the_events_wait() {
    // holds: 30
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut wrong = config(&database, &svix);
    wrong.svix.token = Some("sk_wrong".to_owned().into());
    let relay = TestRelay::start_with(wrong).await;
    relay.post(batch(0, 100)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ready = relay.get("/health/ready").await;
    assert_eq!(ready.status, 200, "events are taken all the same");
    assert_eq!(ready.json()["gates"][0]["reason"], "unauthorized");
    let refused = svix.request_count();
    assert!(refused < 150, "{refused} requests with a token that is no good");
    assert_eq!(relay.progress().await.pending, 100);
    relay.stop().await;
    let relay = TestRelay::start(&database, &svix).await;
    let progress = relay.settled().await;
    assert_eq!((progress.done.get("dead"), progress.done["delivered"]), (None, 100));
    relay.finish().await;
    assert_eq!(svix.message_count(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_svix_is_down_it_is_only_probed_and_then_all_arrives() {
    // holds: 29
    let (relay, svix, _database) = start().await;
    svix.set_trouble(Some(Trouble::Status(503)));
    relay.post(batch(0, 300)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = svix.request_count();
    assert!(asked < 200, "{asked} requests to a server that is down");
    let more = relay.post(batch(300, 50)).await;
    assert_eq!(more.status, 202, "ingest goes on");
    svix.set_trouble(None);
    let progress = relay.finish().await;
    assert_eq!(progress.done.get("delivered"), Some(&350));
    assert_eq!(svix.message_count(), 350);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_and_slow_answers_are_retried() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.svix.timeout_ms = 300;
    let relay = TestRelay::start_with(config).await;
    svix.script([
        Trouble::Reset,
        Trouble::Garbage,
        Trouble::Slow(Duration::from_millis(800)),
        Trouble::Status(408),
        Trouble::StoredThenGarbage,
        Trouble::Status(500),
    ]);
    relay.post(batch(0, 10)).await;
    let progress = relay.settled().await;
    assert_eq!(progress.done.get("dead"), None);
    // A 200 without a message is not believed, whoever said it.
    assert_eq!(svix.message_count(), 10);
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_can_not_be_made_is_dead_in_the_end() {
    let (relay, svix, _database) = start().await;
    svix.set_trouble_for("globex", Some(Trouble::Status(500)));
    relay.post(r#"[{"id":"1","type":"a","tenant":"globex"}]"#).await;
    for id in 0..20 {
        relay.post(format!(r#"{{"id":"{id}","type":"a","tenant":"acme"}}"#)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let progress = relay.settled().await;
    assert_eq!((progress.done["dead"], progress.done["delivered"]), (1, 20));
    let outcome = &relay.app().ledger().database().outcomes("globex", "1").await.expect("read")[0];
    assert_eq!((outcome.reason.as_deref(), outcome.failures), (Some("retries_exhausted"), 6));
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_makes_no_second_message() {
    // holds: 28
    let (database, svix) =
        (TestDatabase::sqlite(), MockSvix::builder().create_applications(true).start().await);
    let with_token = |token: &str| {
        let mut config = config(&database, &svix);
        config.svix.token = Some(token.to_owned().into());
        config
    };
    svix.set_trouble(Some(Trouble::StoredThenStatus(500)));
    let relay = TestRelay::start_with(with_token("old")).await;
    relay.post(batch(0, 5)).await;
    svix.wait_for_messages(5, Duration::from_secs(10)).await.expect("stored");
    relay.stop().await;
    svix.set_trouble(None);
    let relay = TestRelay::start_with(with_token("new")).await;
    relay.finish().await;
    assert_eq!(svix.message_count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_gate_is_remembered_over_a_restart() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    svix.script([Trouble::Throttle { retry_after: Some("3".into()) }]);
    relay.post(r#"{"id":"1","type":"a"}"#).await;
    svix.wait_for_requests(1, Duration::from_secs(5)).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(200)).await;
    relay.stop().await;
    let relay = TestRelay::start(&database, &svix).await;
    relay.finish().await;
    let requests = svix.requests();
    let gap = requests[1].received_at - requests[0].answered_at.expect("answered");
    assert!(gap >= Duration::from_millis(2_900), "{gap:?}");
}
