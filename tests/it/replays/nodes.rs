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
