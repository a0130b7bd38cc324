//! The relay is killed while the deliveries of a large request join the queue.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use serde_json::json;

use super::kill::Scene;
use crate::ingest::batch;
use crate::support::partners::add_endpoint;
use crate::support::{RelayProcess, TestDatabase};

on_both_databases! {
    killed_before_the_commit_of_a_step_of_a_fan_out,
    killed_after_the_commit_of_a_step_of_a_fan_out,
}

const VARIABLE: &str = "POSTHASTE_FAILPOINT";
/// Endpoints beside the scene's own, and events: 6,050 deliveries with those to Svix, which take four steps.
const ENDPOINTS: usize = 119;
const EVENTS: usize = 50;
const DELIVERIES: usize = EVENTS * (ENDPOINTS + 2);
const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

async fn killed_before_the_commit_of_a_step_of_a_fan_out(database: TestDatabase) {
    // holds: 20
    kill_and_continue(database, "fan_out_uncommitted:2").await;
}

async fn killed_after_the_commit_of_a_step_of_a_fan_out(database: TestDatabase) {
    // holds: 20
    kill_and_continue(database, "fan_out_committed:2").await;
}

async fn kill_and_continue(database: TestDatabase, place: &str) {
    let scene = Scene::new(database).await;
    let relay = scene.start(&[]);
    for n in 0..ENDPOINTS {
        add_endpoint(&relay, "partner", json!({ "url": scene.partner.url(&format!("/hook-{n}")) })).await;
    }
    relay.kill();
    let mut relay = RelayProcess::launch(&mut scene.command(&[(VARIABLE, place)])).expect("it listens");
    // It may end before it has answered: what is committed is a duplicate below.
    if let Ok(answer) = relay.try_post(batch(0, EVENTS)).await {
        assert_eq!(answer.status, 202, "{}", answer.json());
    }
    let ended = relay.exit_status(PATIENCE).await;
    assert_eq!(ended.and_then(|status| status.signal()), Some(KILL), "{place} was not reached: {ended:?}");
    let left = scene.count("SELECT COUNT(*) FROM fan_out").await;
    assert!(left > 0, "it was killed in the middle");
    let relay = scene.start(&[]);
    assert_eq!(relay.post(batch(0, EVENTS)).await.status, 202);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let delivered = scene.count("SELECT COUNT(*) FROM outcome WHERE state = 'delivered'").await;
        if delivered == DELIVERIES {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{delivered} of {DELIVERIES} are delivered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for table in ["queue", "fan_out"] {
        assert_eq!(scene.count(&format!("SELECT COUNT(*) FROM {table}")).await, 0, "{table}");
    }
    let requests = scene.partner.requests();
    let arrived: HashSet<_> =
        requests.iter().map(|request| (&*request.path, request.header("webhook-id"))).collect();
    assert_eq!(arrived.len(), EVENTS * (ENDPOINTS + 1), "each event at each endpoint, under one id");
    relay.kill();
}
