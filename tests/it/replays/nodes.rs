//! Several nodes: one works on a replay, and another goes on with it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_with_a_replay_and_puts_nothing_back_twice() {
    crate::support::bounded(from_node_to_node(TestDatabase::postgres().await)).await;
}

async fn from_node_to_node(database: TestDatabase) {
    const EVENTS: usize = 300;
    let (first, partner, _) = start(&database).await;
    for part in 0..3 {
        post(&first, (0..100).map(|n| format!("e{part}-{n}"))).await;
    }
    first.settled().await;
    let svix = mock_svix().await;
    let second = TestRelay::start_with(direct(&database, &svix)).await;
    let started = ask(&first, json!({ "filter": { "states": ["delivered"] }, "pace": 100 })).await;
    let path = format!("/v1/replays/{}", started["id"].as_str().expect("an id"));
    eventually("it is under way", async || (partner.requests().len() > EVENTS + 50).then_some(())).await;
    let workers = "SELECT CAST(COUNT(DISTINCT worker) AS TEXT) FROM replay WHERE worker >= 0";
    assert_eq!(database.text(workers).await, "1");
    first.stop().await;
    let replay = eventually("the other one completes it", async || {
        let replay = second.get(&path).await.json();
        (replay["state"] == "completed").then_some(replay)
    })
    .await;
    assert_eq!((&replay["queued"], &replay["delivered"]), (&json!(EVENTS), &json!(EVENTS)), "{replay}");
    let arrivals = arrivals(&partner);
    assert!(arrivals.values().all(|ids| ids.len() == 2), "each went out once more");
    second.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_for_longer_than_its_lease_puts_nothing_back_twice() {
    crate::support::bounded(stopped_and_continued(TestDatabase::postgres().await)).await;
}

async fn stopped_and_continued(database: TestDatabase) {
    // holds: 56
    const EVENTS: usize = 400;
    // As if the lease of whoever works on it had run out.
    const END_LEASE: &str = "UPDATE replay SET worker_until = 0";
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    let settings = [
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_MASTER_KEY", MASTER_KEY),
        ("POSTHASTE_SVIX__TOKEN", ""),
        ("POSTHASTE_SVIX__TIMEOUT_MS", "1000"),
        ("POSTHASTE_DISPATCH__LEASE_MS", "5000"),
    ];
    let first = RelayProcess::start(&database, &svix, &settings);
    call(&first, Method::PUT, "/v1/tenants/acme", json!({ "route": "direct" })).await;
    add_endpoint(&first, "acme-eu", json!({ "url": partner.url("/hook") })).await;
    for part in 0..4 {
        post(&first, (0..100).map(|n| format!("e{part}-{n}"))).await;
    }
    let delivered = "SELECT CAST(COUNT(*) AS TEXT) FROM outcome WHERE state = 'delivered'";
    let all = EVENTS.to_string();
    eventually("all is recorded", async || (database.text(delivered).await == all).then_some(())).await;
    let queued = async || {
        let queued = database.text("SELECT CAST(queued AS TEXT) FROM replay").await;
        queued.parse::<usize>().expect("a number")
    };
    let started = ask(&first, json!({ "filter": { "states": ["delivered"] }, "pace": 60 })).await;
    let path = format!("/v1/replays/{}", started["id"].as_str().expect("an id"));
    eventually("it is under way", async || (queued().await >= 30).then_some(())).await;
    first.signal("STOP");
    database.execute(END_LEASE).await;
    let second = RelayProcess::start(&database, &svix, &settings);
    eventually("another goes on with it", async || (queued().await >= 200).then_some(())).await;
    second.kill();
    database.execute(END_LEASE).await;
    first.signal("CONT");
    let replay = eventually("the first completes it", async || {
        let replay = first.get(&path).await.json();
        (replay["state"] == "completed").then_some(replay)
    })
    .await;
    assert_eq!((&replay["queued"], &replay["waiting"]), (&json!(EVENTS), &json!(0)), "{replay}");
    let twice = "SELECT CAST(COUNT(*) AS TEXT) FROM earlier_outcome WHERE number > 1";
    assert_eq!(database.text(twice).await, "0", "nothing was put back twice");
    first.kill();
}
