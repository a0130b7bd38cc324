//! The relay ends itself the hard way at one named place after another, and what was acknowledged arrives, once.
//!
//! A place that is not reached fails its test.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::PartnerAnswer;
use serde_json::{Value, json};

use super::kill::{Figures, PER_BATCH, Scene, random};
use super::upgrade::{OldLedger, migrate, versions};
use super::{sized, tell};
use crate::support::partners::call;
use crate::support::{RelayProcess, TestDatabase};

const VARIABLE: &str = "POSTHASTE_FAILPOINT";
/// Batches in a round.
const BATCHES: usize = 8;
/// Longest that a place takes to be reached.
const PATIENCE: Duration = Duration::from_secs(30);
const KILL: i32 = 9;

on_both_databases! {
    before_the_commit_of_events,
    after_the_commit_of_events_and_before_their_answer,
    after_the_answer_is_handed_over,
    between_claim_and_send,
    before_a_send,
    while_requests_are_under_way,
    between_send_and_settlement,
    before_the_commit_of_settlements,
    after_the_commit_of_settlements,
    while_it_drains,
    when_it_has_drained,
    before_the_commit_of_a_step_of_a_replay,
    after_the_commit_of_a_step_of_a_replay,
    between_two_migrations,
}

async fn before_the_commit_of_events(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "accept_uncommitted", 4, 0).await;
}

async fn after_the_commit_of_events_and_before_their_answer(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "accept_committed", 4, 0).await;
}

async fn after_the_answer_is_handed_over(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "answered", BATCHES as u64, 0).await;
}

async fn between_claim_and_send(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "claimed", 2, 0).await;
}

async fn before_a_send(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "sending", 300, 0).await;
}

/// At some moment after a send has begun: before its request is written, after that, or before its answer is read.
async fn while_requests_are_under_way(database: TestDatabase) {
    // holds: 20, 21, 36
    post_until_it_ends(database, "sending", 300, 3_000).await;
}

async fn between_send_and_settlement(database: TestDatabase) {
    // holds: 20, 21, 36
    post_until_it_ends(database, "sent", 300, 0).await;
}

async fn before_the_commit_of_settlements(database: TestDatabase) {
    // holds: 20, 21, 36
    post_until_it_ends(database, "settle_uncommitted", 4, 0).await;
}

async fn after_the_commit_of_settlements(database: TestDatabase) {
    // holds: 20
    post_until_it_ends(database, "settle_committed", 4, 0).await;
}

/// The WAL is being moved into the file by another connection than the writer's.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_checkpoint_runs_on_the_side() {
    // holds: 20
    let test = post_until_it_ends(TestDatabase::sqlite(), "checkpointing", 2, 2_000);
    crate::support::bounded(test).await;
}

async fn while_it_drains(database: TestDatabase) {
    // holds: 20, 51
    stop_until_it_ends(database, "draining", 2_000).await;
}

async fn when_it_has_drained(database: TestDatabase) {
    // holds: 20
    stop_until_it_ends(database, "drained", 0).await;
}

async fn before_the_commit_of_a_step_of_a_replay(database: TestDatabase) {
    // holds: 20
    replay_until_it_ends(database, "replay_uncommitted").await;
}

async fn after_the_commit_of_a_step_of_a_replay(database: TestDatabase) {
    // holds: 20
    replay_until_it_ends(database, "replay_committed").await;
}

/// Producers post until a place ends the relay, at some pass up to the `most`th and up to `after_us` later.
async fn post_until_it_ends(database: TestDatabase, place: &str, most: u64, after_us: u64) {
    let (rounds, mut random) = (sized(2, 20), random());
    let kind = kind(&database);
    let mut scene = Scene::new(database).await;
    // Receivers that take a moment: more waits than may be in flight, and has to be claimed.
    let slow = PartnerAnswer { delay: Duration::from_millis(20), ..PartnerAnswer::status(204) };
    scene.partner.set_answer(Some(slow));
    for round in 0..rounds {
        scene.svix.set_replay_by_key(round % 2 == 0);
        scene.add(BATCHES);
        let armed = format!("{place}:{}:{}", random.between(1, most), random.between(0, after_us));
        match start(&scene, &armed) {
            Ok(mut relay) => {
                scene.produce(&relay).await;
                assert_reached(&mut relay, &armed).await;
            }
            // What was left of the round before was enough.
            Err(status) => assert_eq!(status.signal(), Some(KILL), "{armed}: {status}"),
        }
    }
    report(place, kind, rounds, scene.reconcile().await);
}

/// The relay is asked to stop while producers post, and ends at a place on the way.
async fn stop_until_it_ends(database: TestDatabase, place: &str, after_us: u64) {
    let (rounds, mut random) = (sized(2, 20), random());
    let kind = kind(&database);
    let mut scene = Scene::new(database).await;
    for _ in 0..rounds {
        scene.add(BATCHES);
        let armed = format!("{place}:1:{}", random.between(0, after_us));
        let mut relay = start(&scene, &armed).expect("nothing ends it before it is asked to stop");
        let client = (*relay).clone();
        let asking = async {
            tokio::time::sleep(Duration::from_millis(random.between(20, 200))).await;
            relay.signal("TERM");
            assert_reached(&mut relay, &armed).await;
        };
        tokio::join!(scene.produce(&client), asking);
    }
    report(place, kind, rounds, scene.reconcile().await);
}

/// A replay goes on behind each end, and puts nothing back twice.
async fn replay_until_it_ends(database: TestDatabase, place: &str) {
    let (rounds, mut random) = (sized(2, 20), random());
    let kind = kind(&database);
    let mut scene = Scene::new(database).await;
    // A step has twenty deliveries: enough steps for all rounds.
    scene.add(BATCHES * rounds);
    let relay = scene.start(&[]);
    scene.produce(&relay).await;
    let events = BATCHES * rounds * PER_BATCH;
    scene.delivered(events).await;
    let filter = json!({ "partner": "partner", "states": ["delivered"] });
    let wish = json!({ "filter": filter, "pace": 1_000 });
    relay.kill();
    let path = {
        // Begun by a relay that ends at once, so that the first round finds it.
        let relay = scene.start(&[(VARIABLE, &format!("{place}:1"))]);
        let started = call(&relay, Method::POST, "/v1/replays", wish).await.json();
        let mut relay = relay;
        assert_reached(&mut relay, place).await;
        format!("/v1/replays/{}", started["id"].as_str().expect("an id"))
    };
    for _ in 1..rounds {
        let armed = format!("{place}:{}", random.between(1, 10));
        let_its_claim_end(&scene).await;
        if let Ok(mut relay) = start(&scene, &armed) {
            assert_reached(&mut relay, &armed).await;
        }
    }
    let_its_claim_end(&scene).await;
    let relay = scene.start(&[]);
    let replay: Value = loop {
        let replay = relay.get(&path).await.json();
        if replay["state"] == "completed" {
            break replay;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&replay["queued"], &replay["waiting"]), (&json!(events), &json!(0)), "{replay}");
    assert_eq!(scene.count("SELECT COUNT(*) FROM earlier_outcome").await, events, "each was put back");
    assert_eq!(
        scene.count("SELECT COUNT(*) FROM earlier_outcome WHERE number > 1").await,
        0,
        "and none twice"
    );
    relay.kill();
    let figures = scene.reconcile().await;
    let (svix, partner) = figures.second_sends;
    assert!(partner >= events && svix <= 64, "the partner's alone were replayed: {figures:?}");
    report(place, kind, rounds, figures);
}

/// What a dead node works on is free at once, and not only in ten seconds.
async fn let_its_claim_end(scene: &Scene) {
    scene.database.execute("UPDATE replay SET worker_until = 0").await;
}

/// The schema is brought up to date by one process after another, each ended behind its migration.
async fn between_two_migrations(database: TestDatabase) {
    // holds: 20, 22
    let old = OldLedger::at(&database, 1).await;
    let mut ends = 0;
    for nth in 2..=versions().len() {
        let status = migrate(&database, &[(VARIABLE, &format!("migrated:{nth}"))]).status;
        assert_eq!(status.signal(), Some(KILL), "migrated:{nth}: {status}");
        ends += 1;
    }
    assert!(migrate(&database, &[]).status.success(), "the next one finds nothing to do");
    old.assert_kept(&database).await;
    let delivered = old.deliver(&database).await;
    tell(
        "migrated",
        format!("{}: {ends} ends, all rows kept, {delivered} deliveries went out", kind(&database)),
    );
}

/// Anywhere in a statement of a migration, further in every round until one gets through.
#[tokio::test(flavor = "multi_thread")]
async fn within_a_migration() {
    // holds: 20, 22
    let test = async {
        let database = TestDatabase::sqlite();
        let old = OldLedger::at(&database, 1).await;
        let (mut random, mut ends, mut nth) = (random(), 0, 1);
        let step = sized(50, 6);
        loop {
            let status = migrate(&database, &[(VARIABLE, &format!("migrating:{nth}"))]).status;
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(KILL), "migrating:{nth}: {status}");
            ends += 1;
            nth += random.between(1, step);
            assert_eq!(database.text("PRAGMA integrity_check").await, "ok");
            old.assert_whole(&database).await;
        }
        assert!(ends >= 3, "{ends} ends");
        old.assert_kept(&database).await;
        let delivered = old.deliver(&database).await;
        tell("migrating", format!("SQLite: {ends} ends, all rows kept, {delivered} deliveries went out"));
    };
    crate::support::bounded(test).await;
}

/// A relay that a place will end; the status where that was before it listened.
fn start(scene: &Scene, armed: &str) -> Result<RelayProcess, ExitStatus> {
    let started = RelayProcess::launch(&mut scene.command(&[(VARIABLE, armed)]));
    started.map_err(|ended| ended.status)
}

async fn assert_reached(relay: &mut RelayProcess, armed: &str) {
    let ended = relay.exit_status(PATIENCE).await;
    assert_eq!(ended.and_then(|status| status.signal()), Some(KILL), "{armed} was not reached: {ended:?}");
}

fn kind(database: &TestDatabase) -> &'static str {
    if database.is_postgres() { "Postgres" } else { "SQLite" }
}

fn report(place: &str, kind: &str, rounds: usize, figures: Figures) {
    let Figures { events, second_sends: (svix, partner) } = figures;
    tell(
        place,
        format!(
            "{kind}: {rounds} ends, {events} events acknowledged, 0 lost, 0 under two keys; at Svix 0 doubled ({svix} \
             second sends), at the partner {partner} second sends under the same id"
        ),
    );
}
