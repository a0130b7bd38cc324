//! A wall clock that jumps while the relay runs: nothing is delayed, sent twice or forgotten.

use std::time::Duration;

use posthaste::mock::PartnerAnswer;
use tempfile::NamedTempFile;

use super::kill::{CLOCK_OFFSET, HUNDRED_DAYS_MS, PER_BATCH, Scene};
use super::{sized, tell};
use crate::ingest::batch;
use crate::support::{RelayProcess, TestDatabase, bounded, eventually};

/// One jump a second, ahead and behind in turns; the clock is right for the first second, whose events must stay.
const JUMP_EVERY: Duration = Duration::from_secs(1);
const BATCHES_PER_JUMP: usize = 8;

/// One node's wall clock jumps by 100 days every second; on Postgres beside a node whose clock is right.
async fn a_clock_that_jumps_every_second_changes_nothing(database: TestDatabase) {
    // holds: 53
    let jumps = sized(5, 60);
    let (place, is_shared) =
        (if database.is_postgres() { "Postgres" } else { "SQLite" }, database.is_postgres());
    let offset = NamedTempFile::new().expect("a file");
    let mut scene = Scene::new(database).await;
    let wrong = scene.start(&[(CLOCK_OFFSET, offset.path().to_str().expect("a path"))]);
    let right = is_shared.then(|| scene.start(&[]));
    for jump in 0..jumps {
        let millis = match jump {
            0 => 0,
            _ if jump % 2 == 1 => HUNDRED_DAYS_MS,
            _ => -HUNDRED_DAYS_MS,
        };
        std::fs::write(offset.path(), millis.to_string()).expect("written");
        scene.add(BATCHES_PER_JUMP);
        let posting = async {
            match &right {
                Some(right) => _ = tokio::join!(scene.produce(&wrong), scene.produce(right)),
                None => scene.produce(&wrong).await,
            }
        };
        // The clock stays as it is for the whole second.
        tokio::join!(posting, tokio::time::sleep(JUMP_EVERY));
    }
    let events = jumps * BATCHES_PER_JUMP * PER_BATCH;
    scene.delivered(events).await;
    for relay in [Some(&wrong), right.as_ref()].into_iter().flatten() {
        let again = relay.post(batch(0, PER_BATCH)).await;
        assert_eq!(again.status, 202);
        assert!(again.statuses().iter().all(|status| status == "duplicate"), "{}", again.json());
    }
    wrong.kill();
    right.into_iter().for_each(RelayProcess::kill);
    let figures = scene.reconcile().await;
    assert_eq!(figures.second_sends, (0, 0), "nothing is sent a second time");
    tell(
        "a clock that jumps",
        format!("{place}: {jumps} jumps, {events} events, each sent once, none forgotten"),
    );
}

/// On SQLite, whose clock is the process's. A relay starts with a clock that is 100 days ahead, the clock is put right while requests are in flight, and the relay is
/// killed before it has their answers: they are sent again by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_while_the_clock_is_put_right_outlive_a_kill() {
    // holds: 19, 53
    bounded(put_right_and_killed(TestDatabase::sqlite())).await;
}

async fn put_right_and_killed(database: TestDatabase) {
    let offset = NamedTempFile::new().expect("a file");
    let mut scene = Scene::new(database).await;
    let slow = PartnerAnswer { delay: Duration::from_secs(60), ..PartnerAnswer::status(204) };
    scene.partner.set_answer(Some(slow));
    std::fs::write(offset.path(), HUNDRED_DAYS_MS.to_string()).expect("written");
    // The requests outlast the heartbeat that compares the clocks.
    let lease = ("POSTHASTE_DISPATCH__LEASE_MS", "60000");
    let relay = scene.start(&[(CLOCK_OFFSET, offset.path().to_str().expect("a path")), lease]);
    scene.add(1);
    scene.produce(&relay).await;
    let in_flight = async || (scene.partner.request_count() > 0).then_some(());
    eventually("a request is in flight", in_flight).await;
    std::fs::write(offset.path(), "0").expect("written");
    let is_trusted =
        async || (relay.get("/health/ready").await.json()["clock"]["state"] == "trusted").then_some(());
    eventually("the clock is trusted", is_trusted).await;
    relay.kill();
    let figures = scene.reconcile().await;
    assert!(figures.second_sends.1 > 0, "the requests were cut off: {figures:?}");
}

on_both_databases!(a_clock_that_jumps_every_second_changes_nothing);
