//! Deliveries that are done go out again: exactly those that were asked for, each once, behind what is fresh.

mod cli;
mod load;
mod nodes;
mod svix;

use std::collections::HashMap;
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerAnswer};
use serde_json::{Value, json};

use crate::support::partners::{JSON, MASTER_KEY, add_endpoint, call, direct};
use crate::support::{HttpClient, RelayProcess, TestDatabase, TestRelay, config, eventually, mock_svix};

on_both_databases! {
    what_was_delivered_goes_out_again_under_the_same_id,
    new_ids_make_another_message_of_it,
    a_retry_of_a_replayed_delivery_keeps_the_replays_id,
    the_dead_go_out_again_and_the_rest_stays,
    a_dry_run_counts_and_changes_nothing,
    what_was_unrouted_is_routed_anew,
    named_events_and_deliveries_alone,
    a_paused_replay_rests_and_a_canceled_one_ends,
    a_replay_that_no_receiver_takes_does_not_grow,
    a_key_of_a_tenant_replays_that_tenant_alone,
    wrong_wishes_are_refused,
    a_killed_relay_goes_on_and_puts_nothing_back_twice,
}

/// A relay without Svix, a partner `acme-eu` with one endpoint, and that endpoint's id.
async fn start(database: &TestDatabase) -> (TestRelay, MockPartner, String) {
    let svix = mock_svix().await;
    let mut config = direct(database, &svix);
    config.ingest.default_tenant = Some("acme".into());
    let (relay, partner) = (TestRelay::start_with(config).await, MockPartner::start().await);
    let (id, _) = add_endpoint(&relay, "acme-eu", endpoint(&partner)).await;
    (relay, partner, id)
}

/// One try, and none after that.
fn endpoint(partner: &MockPartner) -> Value {
    json!({ "url": partner.url("/hook"), "retry_schedule_ms": [] })
}

async fn post(relay: &HttpClient, ids: impl IntoIterator<Item = String>) {
    let events: Vec<_> = ids
        .into_iter()
        .map(|id| json!({ "id": id, "type": "order.created", "tenant": "acme", "data": { "total": 1 } }))
        .collect();
    let answer = relay.post(json!(events).to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
}

async fn ask(relay: &HttpClient, body: Value) -> Value {
    call(relay, Method::POST, "/v1/replays", body).await.json()
}

/// Starts a replay and waits for its end.
async fn replay(relay: &HttpClient, filter: Value) -> Value {
    let started = ask(relay, json!({ "filter": filter, "pace": 1_000 })).await;
    ended(relay, started["id"].as_str().expect("an id")).await
}

async fn ended(relay: &HttpClient, id: &str) -> Value {
    eventually("the replay ends", async || {
        let replay = relay.get(&format!("/v1/replays/{id}")).await.json();
        matches!(replay["state"].as_str(), Some("completed" | "canceled")).then_some(replay)
    })
    .await
}

/// How often each `webhook-id` has come, by the event's id in the body.
fn arrivals(partner: &MockPartner) -> HashMap<String, Vec<String>> {
    let mut arrivals: HashMap<String, Vec<String>> = HashMap::new();
    for request in partner.requests() {
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        let id = request.headers["webhook-id"].to_str().expect("ASCII").to_owned();
        arrivals.entry(body["id"].as_str().expect("an id").to_owned()).or_default().push(id);
    }
    arrivals
}

async fn what_was_delivered_goes_out_again_under_the_same_id(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    post(&relay, (0..50).map(|n| format!("e{n}"))).await;
    relay.settled().await;
    let replay =
        replay(&relay, json!({ "partner": "acme-eu", "states": ["delivered"], "since": "1h" })).await;
    assert_eq!(replay["state"], "completed", "{replay}");
    for (name, count) in [("total", 50), ("queued", 50), ("delivered", 50), ("failed", 0), ("waiting", 0)] {
        assert_eq!(replay[name], count, "{name}: {replay}");
    }
    assert_eq!(replay["started_by"], "administrator");
    let progress = relay.settled().await;
    assert_eq!((progress.created, progress.done), (50, HashMap::from([("delivered".to_owned(), 50)])));
    let arrivals = arrivals(&partner);
    assert_eq!(arrivals.len(), 50);
    for (event, ids) in arrivals {
        assert_eq!(ids.len(), 2, "{event}");
        assert_eq!(ids[0], ids[1], "{event}: a receiver that has it can tell");
    }
    // A second one finds them again, and how they ended before is kept.
    let again =
        self::replay(&relay, json!({ "tenant": "acme", "type": "order.*", "states": ["delivered"] })).await;
    assert_eq!(again["delivered"], 50, "{again}");
    let numbers = database.text("SELECT CAST(COUNT(*) AS TEXT) FROM earlier_outcome WHERE number = 2").await;
    assert_eq!(numbers, "50");
    relay.finish().await;
}

async fn new_ids_make_another_message_of_it(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    post(&relay, ["e".to_owned()]).await;
    relay.settled().await;
    // Fails once: both attempts of the replay carry one id.
    partner.script([PartnerAnswer::status(500)]);
    let config = json!({ "retry_schedule_ms": [10] });
    let id = relay.get("/v1/partners/acme-eu/endpoints").await.json()["endpoints"][0]["id"].clone();
    call(&relay, Method::PATCH, &format!("/v1/endpoints/{}", id.as_str().expect("an id")), config).await;
    let started = ask(&relay, json!({ "filter": { "states": ["delivered"] }, "new_ids": true })).await;
    let replay = ended(&relay, started["id"].as_str().expect("an id")).await;
    // Depending on when it was looked at.
    let tried = replay["failed"].as_i64().zip(replay["delivered"].as_i64()).expect("numbers");
    assert_eq!(tried.0 + tried.1, 1, "{replay}");
    relay.settled().await;
    let ids = arrivals(&partner).remove("e").expect("it came");
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!(ids[1], format!("{}_r1", ids[0]));
    assert_eq!(ids[2], ids[1], "two attempts of one delivery never carry different keys");
    relay.finish().await;
}

async fn a_retry_of_a_replayed_delivery_keeps_the_replays_id(database: TestDatabase) {
    // holds: 56
    let (relay, partner, endpoint) = start(&database).await;
    post(&relay, ["e".to_owned()]).await;
    relay.settled().await;
    let delivery = database.text("SELECT 'dlv_' || event || '_' || lane FROM outcome").await;
    let act = async |action: &str| {
        let path = format!("/v1/deliveries/{delivery}/{action}");
        let answer = relay.send(Method::POST, &path, &JSON, "").await;
        assert_eq!(answer.status, 200, "{action}: {}", answer.json());
    };
    let replay_with = async |new_ids: bool| {
        let body = json!({ "filter": { "deliveries": [delivery] }, "new_ids": new_ids });
        ended(&relay, ask(&relay, body).await["id"].as_str().expect("an id")).await;
    };
    let arrived = async |expected: &[&str]| {
        let count = expected.len();
        assert!(partner.wait_for(count as u64, Duration::from_secs(20)).await, "attempt {count} arrives");
        let ids = arrivals(&partner).remove("e").expect("it came");
        let expected: Vec<_> = expected.iter().map(|suffix| format!("{}{suffix}", ids[0])).collect();
        assert_eq!(ids, expected, "a retry goes out under the key of the replay that it retries");
    };
    let mut expected = vec![""];
    // Of what was replayed and delivered, after the first replay, after one under the old id, and after a third.
    for (new_ids, suffix) in [(true, "_r1"), (false, ""), (true, "_r3")] {
        replay_with(new_ids).await;
        relay.settled().await;
        for _ in 0..2 {
            act("retry").await;
            relay.settled().await;
        }
        expected.extend([suffix; 3]);
        arrived(&expected).await;
    }
    // Of what was replayed and waits for its next attempt, and of what was canceled then.
    let schedule = json!({ "retry_schedule_ms": [3_600_000, 3_600_000, 3_600_000] });
    call(&relay, Method::PATCH, &format!("/v1/endpoints/{endpoint}"), schedule).await;
    partner.set_answer(Some(PartnerAnswer::status(500)));
    replay_with(true).await;
    let failures = async |count: i64| {
        let failed = "SELECT CAST(COUNT(*) AS TEXT) FROM attempt_log";
        let look = async || (database.text(failed).await == count.to_string()).then_some(());
        eventually("its failure is recorded", look).await;
    };
    failures(1).await;
    act("retry").await;
    failures(2).await;
    act("cancel").await;
    partner.set_answer(None);
    act("retry").await;
    relay.settled().await;
    expected.extend(["_r4"; 3]);
    arrived(&expected).await;
    relay.finish().await;
}

async fn the_dead_go_out_again_and_the_rest_stays(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    post(&relay, (0..20).map(|n| format!("good{n}"))).await;
    relay.settled().await;
    partner.set_answer(Some(PartnerAnswer::status(500)));
    // Fewer than what closes the gate.
    post(&relay, (0..8).map(|n| format!("bad{n}"))).await;
    let progress = relay.settled().await;
    assert_eq!(progress.done.get("dead"), Some(&8), "{progress:?}");
    partner.set_answer(None);
    let replay = replay(&relay, json!({ "endpoint": null, "partner": "acme-eu" })).await;
    assert_eq!((&replay["total"], &replay["delivered"]), (&json!(8), &json!(8)), "{replay}");
    let progress = relay.settled().await;
    assert_eq!(progress.done, HashMap::from([("delivered".to_owned(), 28)]));
    for (event, ids) in arrivals(&partner) {
        assert_eq!(ids.len(), if event.starts_with("bad") { 2 } else { 1 }, "{event}");
    }
    // What the receiver said the first time is still there to be read.
    let log = relay.app().ledger().database().attempt_log("acme", "bad0").await.expect("an answer");
    assert_eq!(log.len(), 1);
    relay.finish().await;
}

async fn a_dry_run_counts_and_changes_nothing(database: TestDatabase) {
    let (relay, partner, endpoint) = start(&database).await;
    post(&relay, (0..30).map(|n| format!("e{n}"))).await;
    relay.settled().await;
    let count = async |filter: Value| ask(&relay, json!({ "filter": filter, "dry_run": true })).await;
    let counted = count(json!({ "states": ["delivered", "dead", "unrouted"] })).await;
    assert_eq!((&counted["total"], &counted["complete"]), (&json!(30), &json!(true)), "{counted}");
    let expected = json!([{
        "state": "delivered", "destination": endpoint, "partner": "acme-eu", "deliveries": 30
    }]);
    assert_eq!(counted["counts"], expected);
    for (filter, expected) in [
        (json!({ "states": ["delivered"], "type": "order" }), 0),
        (json!({ "states": ["delivered"], "type": "order.*" }), 30),
        (json!({ "states": ["delivered"], "type": "order.created", "tenant": "acme" }), 30),
        (json!({ "states": ["delivered"], "tenant": "other" }), 0),
        (json!({ "states": ["delivered"], "until": "1h" }), 0),
        (json!({ "states": ["delivered"], "since": "1h", "endpoint": endpoint }), 30),
        (json!({ "states": ["canceled"] }), 0),
        (json!({}), 0),
    ] {
        let counted = count(filter.clone()).await;
        assert_eq!(counted["total"], expected, "{filter}: {counted}");
    }
    assert_eq!(relay.get("/v1/replays").await.json()["replays"], json!([]));
    assert_eq!(partner.requests().len(), 30);
    relay.finish().await;
}

async fn what_was_unrouted_is_routed_anew(database: TestDatabase) {
    let svix = mock_svix().await;
    let (relay, partner) =
        (TestRelay::start_with(direct(&database, &svix)).await, MockPartner::start().await);
    post(&relay, (0..10).map(|n| format!("e{n}"))).await;
    assert_eq!(relay.progress().await.unrouted, 10);
    let nowhere = replay(&relay, json!({ "states": ["unrouted"] })).await;
    assert_eq!((&nowhere["unroutable"], &nowhere["queued"]), (&json!(10), &json!(0)), "{nowhere}");
    add_endpoint(&relay, "acme-eu", endpoint(&partner)).await;
    add_endpoint(&relay, "acme-us", endpoint(&partner)).await;
    let routed = replay(&relay, json!({ "states": ["unrouted", "dead"] })).await;
    assert_eq!((&routed["total"], &routed["delivered"]), (&json!(10), &json!(20)), "{routed}");
    let progress = relay.settled().await;
    assert_eq!((progress.unrouted, progress.created), (0, 20));
    assert!(
        arrivals(&partner).values().all(|ids| ids.len() == 2 && ids[0] != ids[1]),
        "one for each endpoint"
    );
    let again = replay(&relay, json!({ "states": ["unrouted"] })).await;
    assert_eq!(again["total"], 0);
    relay.finish().await;
}

async fn named_events_and_deliveries_alone(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    add_endpoint(&relay, "acme-us", json!({ "url": partner.url("/other") })).await;
    post(&relay, (0..10).map(|n| format!("e{n}"))).await;
    relay.settled().await;
    let events = json!([{ "id": "e3" }, { "id": "e5", "source": "" }]);
    let named = replay(&relay, json!({ "tenant": "acme", "events": events })).await;
    assert_eq!((&named["total"], &named["delivered"]), (&json!(4), &json!(4)), "{named}");
    let by_partner =
        replay(&relay, json!({ "tenant": "acme", "partner": "acme-us", "events": [{ "id": "e7" }] })).await;
    assert_eq!(by_partner["delivered"], 1, "{by_partner}");
    let id = "SELECT 'dlv_' || outcome.event || '_' || outcome.lane FROM outcome JOIN event ON seq = event ORDER BY event, lane LIMIT 1";
    let delivery = database.text(id).await;
    let one = replay(&relay, json!({ "deliveries": [delivery] })).await;
    assert_eq!(one["delivered"], 1, "{one}");
    let counts: HashMap<_, _> =
        arrivals(&partner).into_iter().map(|(event, ids)| (event, ids.len())).collect();
    let expected = |event: &str| match event {
        "e3" | "e5" => 4,
        "e7" | "e0" => 3,
        _ => 2,
    };
    assert!(counts.iter().all(|(event, count)| *count == expected(event)), "{counts:?}");
    let unknown = json!({ "filter": { "tenant": "acme", "events": [{ "id": "nobody" }] } });
    let refused = relay.send(Method::POST, "/v1/replays", &JSON, unknown.to_string()).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (422, "invalid_field"));
    relay.finish().await;
}

async fn a_paused_replay_rests_and_a_canceled_one_ends(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    for part in 0..4 {
        post(&relay, (0..100).map(|n| format!("e{part}-{n}"))).await;
    }
    relay.settled().await;
    let started = ask(&relay, json!({ "filter": { "states": ["delivered"] }, "pace": 20 })).await;
    let path = format!("/v1/replays/{}", started["id"].as_str().expect("an id"));
    eventually("it has begun", async || (partner.requests().len() > 400).then_some(())).await;
    let paused = call(&relay, Method::POST, &format!("{path}/pause"), json!(null)).await.json();
    assert_eq!(paused["state"], "paused");
    relay.settled().await;
    let rested = relay.get(&path).await.json()["queued"].clone();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(relay.get(&path).await.json()["queued"], rested, "nothing is put back meanwhile");
    call(&relay, Method::POST, &format!("{path}/resume"), json!(null)).await;
    eventually("it goes on", async || (relay.get(&path).await.json()["queued"] != rested).then_some(()))
        .await;
    let canceled = call(&relay, Method::POST, &format!("{path}/cancel"), json!(null)).await.json();
    assert_eq!(canceled["state"], "canceled");
    assert!(canceled["ended_at"].is_string());
    let queued = canceled["queued"].as_i64().expect("a number");
    assert!((1..400).contains(&queued), "{canceled}");
    let refused = relay.send(Method::POST, &format!("{path}/resume"), &JSON, "").await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (409, "replay_ended"));
    let progress = relay.settled().await;
    assert_eq!(progress.done, HashMap::from([("delivered".to_owned(), 400)]), "what was put back goes out");
    relay.finish().await;
}

async fn a_replay_that_no_receiver_takes_does_not_grow(database: TestDatabase) {
    let (relay, partner, _) = start(&database).await;
    for part in 0..5 {
        post(&relay, (0..100).map(|n| format!("e{part}-{n}"))).await;
    }
    relay.settled().await;
    call(&relay, Method::PUT, "/v1/partners/acme-eu", json!({ "name": "acme-eu", "paused": true })).await;
    let started = ask(&relay, json!({ "filter": { "states": ["delivered"] }, "pace": 50 })).await;
    let path = format!("/v1/replays/{}", started["id"].as_str().expect("an id"));
    let waiting = eventually("it is held up", async || {
        let replay = relay.get(&path).await.json();
        replay["waits_for"].is_string().then_some(replay)
    })
    .await;
    assert!(waiting["queued"].as_i64().expect("a number") <= 50, "{waiting}");
    assert_eq!(partner.requests().len(), 500);
    call(&relay, Method::PUT, "/v1/partners/acme-eu", json!({ "name": "acme-eu" })).await;
    eventually("it goes on", async || {
        let replay = relay.get(&path).await.json();
        (replay["delivered"].as_i64() > Some(60) && replay["waits_for"].is_null()).then_some(())
    })
    .await;
    call(&relay, Method::POST, &format!("{path}/cancel"), json!(null)).await;
    relay.finish().await;
}

async fn a_key_of_a_tenant_replays_that_tenant_alone(database: TestDatabase) {
    let (relay, _partner, _) = start(&database).await;
    post(&relay, ["e".to_owned()]).await;
    relay.settled().await;
    let all = call(&relay, Method::POST, "/v1/keys", json!({ "name": "root", "scopes": ["admin"] })).await;
    let root = format!("Bearer {}", all.json()["key"].as_str().expect("a key"));
    let bound = json!({ "name": "acme's", "scopes": ["admin"], "tenant": "other" }).to_string();
    let headers =
        |key: &str| [("content-type", "application/json".to_owned()), ("authorization", key.to_owned())];
    let send = async |key: &str, method: Method, path: &str, body: Value| {
        let headers = headers(key);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        relay.send(method, path, &headers, body.to_string()).await
    };
    let made =
        send(&root, Method::POST, "/v1/keys", serde_json::from_str(&bound).expect("JSON")).await.json();
    let other = format!("Bearer {}", made["key"].as_str().expect("a key"));
    let everything = json!({ "filter": { "states": ["delivered"] } });
    let mine = send(&other, Method::POST, "/v1/replays", everything.clone()).await.json();
    assert_eq!((&mine["filter"]["tenant"], &mine["total"]), (&json!("other"), &json!(0)), "{mine}");
    assert_eq!(mine["started_by"], "acme's");
    let foreign = json!({ "filter": { "tenant": "acme" } });
    assert_eq!(send(&other, Method::POST, "/v1/replays", foreign).await.status, 403);
    let theirs = send(&root, Method::POST, "/v1/replays", everything).await.json();
    let path = format!("/v1/replays/{}", theirs["id"].as_str().expect("an id"));
    assert_eq!(send(&other, Method::GET, &path, json!(null)).await.status, 404);
    assert_eq!(send(&other, Method::POST, &format!("{path}/cancel"), json!(null)).await.status, 404);
    let listed = send(&other, Method::GET, "/v1/replays", json!(null)).await.json();
    assert_eq!(listed["replays"].as_array().map(Vec::len), Some(1), "{listed}");
    relay.finish().await;
}

async fn wrong_wishes_are_refused(database: TestDatabase) {
    let (relay, _partner, id) = start(&database).await;
    for (body, pointer) in [
        (json!({ "pace": 0 }), "/pace"),
        (json!({ "filter": { "since": "yesterday" } }), "/filter/since"),
        (json!({ "filter": { "since": "1h", "until": "2h" } }), "/filter/since"),
        (json!({ "filter": { "type": "a.*.b" } }), "/filter/type"),
        (json!({ "filter": { "partner": "nobody" } }), "/filter/partner"),
        (json!({ "filter": { "endpoint": "ep_nobody" } }), "/filter/endpoint"),
        (json!({ "filter": { "endpoint": id, "states": ["unrouted"] } }), "/filter/states"),
        (json!({ "filter": { "events": [{ "id": "e" }] } }), "/filter/tenant"),
        (json!({ "filter": { "deliveries": ["e"] } }), "/filter/deliveries"),
    ] {
        let refused = relay.send(Method::POST, "/v1/replays", &JSON, body.to_string()).await;
        assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (422, "invalid_field"), "{body}");
        assert_eq!(refused.json()["errors"][0]["pointer"], pointer);
    }
    let typo = relay.send(Method::POST, "/v1/replays", &JSON, json!({ "fitler": {} }).to_string()).await;
    assert_eq!(typo.problem(), "invalid_body");
    assert_eq!(relay.get("/v1/replays/rpl_nobody").await.problem(), "not_found");
    relay.finish().await;
}

async fn a_killed_relay_goes_on_and_puts_nothing_back_twice(database: TestDatabase) {
    const EVENTS: usize = 600;
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    let settings = [
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_MASTER_KEY", MASTER_KEY),
        ("POSTHASTE_SVIX__TOKEN", ""),
        // What was in flight is claimed again when its lease ends.
        ("POSTHASTE_SVIX__TIMEOUT_MS", "1000"),
        ("POSTHASTE_DISPATCH__LEASE_MS", "5000"),
    ];
    let relay = RelayProcess::start(&database, &svix, &settings);
    call(&relay, Method::PUT, "/v1/tenants/acme", json!({ "route": "direct" })).await;
    add_endpoint(&relay, "acme-eu", json!({ "url": partner.url("/hook") })).await;
    for part in 0..6 {
        post(&relay, (0..100).map(|n| format!("e{part}-{n}"))).await;
    }
    eventually("all is delivered", async || (partner.requests().len() >= EVENTS).then_some(())).await;
    let delivered = "SELECT CAST(COUNT(*) AS TEXT) FROM outcome WHERE state = 'delivered'";
    let all = EVENTS.to_string();
    eventually("all is recorded", async || (database.text(delivered).await == all).then_some(())).await;
    let started = ask(&relay, json!({ "filter": { "states": ["delivered"] }, "pace": 200 })).await;
    let path = format!("/v1/replays/{}", started["id"].as_str().expect("an id"));
    eventually("it is under way", async || (partner.requests().len() >= EVENTS + 100).then_some(())).await;
    relay.kill();
    // A lease of the dead one ends by itself where others share the ledger.
    let relay = RelayProcess::start(&database, &svix, &settings);
    let replay = loop {
        let replay = relay.get(&path).await.json();
        if replay["state"] == "completed" {
            break replay;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&replay["queued"], &replay["waiting"]), (&json!(EVENTS), &json!(0)), "{replay}");
    let twice = "SELECT CAST(COUNT(*) AS TEXT) FROM earlier_outcome WHERE number > 1";
    assert_eq!(database.text(twice).await, "0", "nothing was put back twice");
    eventually("all is recorded", async || (database.text(delivered).await == all).then_some(())).await;
    let arrivals = arrivals(&partner);
    assert_eq!(arrivals.len(), EVENTS);
    for (event, ids) in &arrivals {
        assert!(ids.len() >= 2 && ids.iter().all(|id| *id == ids[0]), "{event}: {ids:?}");
    }
    // Sent a third time is only what was in flight when it was killed.
    let extra: usize = arrivals.values().map(|ids| ids.len() - 2).sum();
    assert!(extra <= 64, "{extra} came once more than they should");
    relay.kill();
}
