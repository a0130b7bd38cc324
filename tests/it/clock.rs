//! A wall clock that is wrong, on one node: nothing is forgotten, delayed or hidden by it, and the node says so.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::Method;
use posthaste::app::SystemClock;
use posthaste::domain::clock::Clock as _;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer, Trouble};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::audit::{json_of, posthaste};
use crate::support::partners::{JSON, MASTER_KEY, add_endpoint, call};
use crate::support::{
    HttpClient, RelayProcess, TestClock, TestDatabase, TestRelay, bounded, config, eventually, metrics,
    mock_svix,
};

on_both_databases! {
    a_clock_100_days_ahead_forgets_nothing,
    a_clock_that_was_400_days_ahead_delays_nothing,
    what_a_clock_400_days_ahead_has_recorded_is_found,
    a_clock_that_is_behind_at_the_start_delays_nothing_that_was_due,
    a_wrong_clock_is_reported_by_readiness_a_metric_and_one_line,
    nothing_is_pruned_by_age_while_the_clock_is_in_doubt,
    no_endpoint_is_disabled_by_a_clock_that_is_ahead,
}

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// How long a clock is wrong for while pruning goes on.
const WRONG_FOR: Duration = Duration::from_secs(6);
const PRUNING: (&str, &str) = ("POSTHASTE_RETENTION__PRUNE_EVERY_MS", "200");
/// The wait after each failure.
const RETRIES: (&str, &str) = ("POSTHASTE_SVIX__RETRY_SCHEDULE_MS", "6000,6000,6000");
const INGEST: (&str, &str) = ("POSTHASTE_ROLE", "ingest");
const WORKER: (&str, &str) = ("POSTHASTE_ROLE", "worker");

/// The wall clock of a relay, wrong by as much as a test says.
struct WallClock {
    file: PathBuf,
    _directory: TempDir,
}

impl WallClock {
    fn wrong_by(millis: i64) -> Self {
        let directory = TempDir::new().expect("a directory");
        let clock = Self { file: directory.path().join("offset"), _directory: directory };
        clock.set(millis);
        clock
    }

    fn set(&self, millis: i64) {
        // A file that is empty for a moment would be a right clock.
        let next = self.file.with_extension("next");
        std::fs::write(&next, millis.to_string()).expect("written");
        std::fs::rename(next, &self.file).expect("in place");
    }

    fn start(&self, database: &TestDatabase, svix: &MockSvix, more: &[(&str, &str)]) -> RelayProcess {
        start(&self.file.display().to_string(), database, svix, more)
    }
}

/// A relay whose wall clock is wrong by so many milliseconds, or as a file says.
fn start(offset: &str, database: &TestDatabase, svix: &MockSvix, more: &[(&str, &str)]) -> RelayProcess {
    let mut variables = vec![("POSTHASTE_TEST_CLOCK_OFFSET", offset)];
    variables.extend(more);
    RelayProcess::start(database, svix, &variables)
}

async fn post(relay: &HttpClient, id: &str) -> String {
    let event = json!({ "id": id, "type": "order.created", "data": { "id": id } });
    let answer = relay.post(event.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    answer.statuses().remove(0)
}

async fn arrived(svix: &MockSvix, id: &str) {
    eventually(&format!("{id} is at Svix"), async || svix.message("acme", id).map(drop)).await;
}

async fn count(database: &TestDatabase, table: &str) -> i64 {
    database.text(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {table}")).await.parse().expect("a number")
}

/// Waits until so many deliveries are done, as the ledger has it.
async fn done(database: &TestDatabase, deliveries: i64) {
    let look = async || (count(database, "outcome").await == deliveries).then_some(());
    eventually("the deliveries are settled", look).await;
}

async fn clock_of(relay: &HttpClient) -> Value {
    relay.get("/health/ready").await.json()["clock"].clone()
}

async fn state_becomes(relay: &HttpClient, state: &str) {
    let look = async || (clock_of(relay).await["state"] == state).then_some(());
    eventually(&format!("the clock is {state}"), look).await;
}

async fn all_is_remembered(relay: &HttpClient, database: &TestDatabase, events: usize) {
    let expected = i64::try_from(events).expect("few");
    let kept = (count(database, "event").await, count(database, "event_key").await);
    assert_eq!(kept, (expected, expected), "events and identities");
    for n in 0..events {
        assert_eq!(post(relay, &format!("e{n}")).await, "duplicate");
    }
}

async fn a_clock_100_days_ahead_forgets_nothing(database: TestDatabase) {
    // holds: 53
    const EVENTS: usize = 5;
    let (svix, clock) = (mock_svix().await, WallClock::wrong_by(0));
    let relay = clock.start(&database, &svix, &[PRUNING]);
    for n in 0..EVENTS {
        post(&relay, &format!("e{n}")).await;
    }
    done(&database, 5).await;

    let ahead = (100 * DAY_MS).to_string();
    if database.is_postgres() {
        // Another node, which only takes events.
        let _other = start(&ahead, &database, &svix, &[PRUNING, INGEST]);
        tokio::time::sleep(WRONG_FOR).await;
        all_is_remembered(&relay, &database, EVENTS).await;
    }

    // While it runs.
    clock.set(100 * DAY_MS);
    tokio::time::sleep(WRONG_FOR).await;
    all_is_remembered(&relay, &database, EVENTS).await;

    // From its start.
    relay.kill();
    let relay = clock.start(&database, &svix, &[PRUNING]);
    tokio::time::sleep(WRONG_FOR).await;
    all_is_remembered(&relay, &database, EVENTS).await;
    let expected = if database.is_postgres() { "skewed" } else { "unconfirmed" };
    assert_eq!(clock_of(&relay).await["state"], expected);
    assert_eq!(svix.message_count(), 5, "nothing was sent again");

    // It is put right.
    clock.set(0);
    state_becomes(&relay, "trusted").await;
    all_is_remembered(&relay, &database, EVENTS).await;
}

async fn a_clock_that_was_400_days_ahead_delays_nothing(database: TestDatabase) {
    // holds: 53, 54
    let svix = mock_svix().await;
    let relay = start(&(400 * DAY_MS).to_string(), &database, &svix, &[RETRIES]);
    svix.script([Trouble::Status(500)]);
    post(&relay, "waits").await;
    let failed = async || (count(&database, "attempt_log").await == 1).then_some(());
    eventually("the first attempt has failed", failed).await;
    relay.kill();

    // The clock is right again.
    let relay = start("0", &database, &svix, &[RETRIES]);
    post(&relay, "fresh").await;
    svix.wait_for_messages(1, Duration::from_secs(2)).await.expect("a fresh event is sent immediately");
    arrived(&svix, "fresh").await;
    arrived(&svix, "waits").await;
}

async fn what_a_clock_400_days_ahead_has_recorded_is_found(database: TestDatabase) {
    // holds: 54
    const IDS: [&str; 4] = ["e0", "e1", "e2", "fresh"];
    let svix = mock_svix().await;
    let relay = start(&(400 * DAY_MS).to_string(), &database, &svix, &[]);
    for id in &IDS[..3] {
        post(&relay, id).await;
    }
    done(&database, 3).await;
    relay.kill();

    // The clock is right again.
    let relay = start("0", &database, &svix, &[]);
    post(&relay, IDS[3]).await;
    done(&database, 4).await;
    let soon = SystemClock::new().now().as_millis() + HOUR_MS;
    let since = soon - 2 * HOUR_MS;
    for query in [format!("until={soon}"), format!("since={since}&until={soon}"), format!("since={since}")] {
        for list in ["events", "deliveries?state=delivered", "deliveries"] {
            let separator = if list.contains('?') { '&' } else { '?' };
            let listed = relay.get(&format!("/v1/{list}{separator}{query}")).await.json();
            let name = if list == "events" { "events" } else { "deliveries" };
            assert_eq!(listed[name].as_array().map(Vec::len), Some(4), "{list} {query}: {listed}");
        }
    }
    let preview = json!({ "filter": { "since": "1h", "states": ["delivered"] }, "dry_run": true });
    let preview = call(&relay, Method::POST, "/v1/replays", preview).await.json();
    assert_eq!(preview["total"], 4, "{preview}");

    // Svix has lost everything.
    for id in IDS {
        assert!(svix.remove_message("acme", id), "{id} was there");
    }
    let (code, text) = posthaste(&relay, &["audit", "svix", "--since", "1h", "--format", "json"]).await;
    let report = json_of(&text);
    assert_eq!((code, &report["checked"]), (3, &json!(4)), "{text}");
    assert_eq!(report["missing"].as_array().map(Vec::len), Some(4), "{text}");
}

async fn a_clock_that_is_behind_at_the_start_delays_nothing_that_was_due(database: TestDatabase) {
    // holds: 53
    let svix = mock_svix().await;
    for (n, behind_ms) in [HOUR_MS, 100 * DAY_MS].into_iter().enumerate() {
        let (id, fresh) = (format!("waits-{n}"), format!("fresh-{n}"));
        let relay = start("0", &database, &svix, &[RETRIES]);
        svix.script([Trouble::Status(500)]);
        post(&relay, &id).await;
        let tried = async || (!svix.requests_for(&id).is_empty()).then_some(());
        eventually("it was tried", tried).await;
        let failed = i64::try_from(n + 1).expect("few");
        let failed = async || (count(&database, "attempt_log").await == failed).then_some(());
        eventually("the first attempt has failed", failed).await;
        relay.kill();

        let relay = start(&(-behind_ms).to_string(), &database, &svix, &[RETRIES]);
        post(&relay, &fresh).await;
        arrived(&svix, &fresh).await;
        arrived(&svix, &id).await;
        done(&database, 2 * i64::try_from(n + 1).expect("few")).await;
        relay.kill();
    }
}

async fn a_wrong_clock_is_reported_by_readiness_a_metric_and_one_line(database: TestDatabase) {
    // holds: 53
    let (svix, clock) = (mock_svix().await, WallClock::wrong_by(0));
    let relay = clock.start(&database, &svix, &[]);
    assert_eq!(clock_of(&relay).await["state"], "trusted");
    for wrong_ms in [HOUR_MS, -HOUR_MS] {
        clock.set(wrong_ms);
        state_becomes(&relay, "skewed").await;
        let ready = relay.get("/health/ready").await;
        assert_eq!(ready.status, 200, "it is shown, and not fatal");
        let skew_ms = ready.json()["clock"]["skew_ms"].as_i64().expect("a number");
        assert!((skew_ms - wrong_ms).abs() < 5_000, "{skew_ms}");
        let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
        let skewed = metrics::sum(&text, "posthaste_clock_state", &["state=\"skewed\""]);
        assert_eq!(skewed, Some(1.0), "{text}");
        let skew_s = metrics::sum(&text, "posthaste_clock_skew_seconds", &[]).expect("a number");
        assert!((skew_s * 1_000.0 - wrong_ms as f64).abs() < 5_000.0, "{skew_s}");
        clock.set(0);
        state_becomes(&relay, "trusted").await;
    }
    assert_eq!(
        relay.log_lines_with("this machine's clock differs from the ledger's"),
        2,
        "one line each time"
    );
    assert_eq!(relay.log_lines_with("the clock is trusted again"), 2);
}

async fn nothing_is_pruned_by_age_while_the_clock_is_in_doubt(database: TestDatabase) {
    let (svix, clock) = (mock_svix().await, TestClock::watched());
    let relay = TestRelay::start_at(config(&database, &svix), clock.clone()).await;
    post(&relay, "e0").await;
    relay.settled().await;
    if !database.is_postgres() {
        assert_eq!(call(&relay, Method::POST, "/v1/prune", json!({})).await.json()["events"], 0);
        clock.move_wall(100 * DAY_MS);
        clock.move_monotonic(Duration::from_secs(11));
        // A heartbeat goes with it.
        post(&relay, "e0").await;
    }
    let prune = async |body: Value| relay.send(Method::POST, "/v1/prune", &JSON, body.to_string()).await;
    for body in [json!({}), json!({ "before": "7d" })] {
        let refused = prune(body).await;
        assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (409, "clock_in_doubt"));
    }
    // A time means the same by every clock, and a count takes nothing away.
    for body in [json!({ "before": "2025-01-01T00:00:00Z" }), json!({ "dry_run": true })] {
        let answer = prune(body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["events"]), (200, &json!(0)));
    }
    assert_eq!(count(&database, "event").await, 1);
    relay.finish().await;
}

async fn no_endpoint_is_disabled_by_a_clock_that_is_ahead(database: TestDatabase) {
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    partner.set_answer(Some(PartnerAnswer::status(500)));
    let variables =
        [("POSTHASTE_MASTER_KEY", MASTER_KEY), ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8")];
    let failed_attempts = async |at_least: i64| {
        let look = async || (count(&database, "attempt_log").await >= at_least).then_some(());
        eventually("an attempt has failed", look).await;
    };
    let event = |id: &str| json!({ "id": id, "type": "t", "data": {} }).to_string();

    let relay = start("0", &database, &svix, &variables);
    let settings = json!({ "url": partner.url("/hook"), "retry_schedule_ms": [600_000] });
    let (endpoint, _) = add_endpoint(&relay, "acme-eu", settings).await;
    assert_eq!(relay.post(event("e0")).await.status, 202);
    failed_attempts(1).await;
    let noted = async || {
        let noted = relay.get(&format!("/v1/endpoints/{endpoint}")).await.json();
        (!noted["failing_since"].is_null()).then_some(())
    };
    eventually("it is noted that it fails", noted).await;
    relay.kill();

    let relay = start(&(100 * DAY_MS).to_string(), &database, &svix, &variables);
    assert_eq!(relay.post(event("e1")).await.status, 202);
    failed_attempts(2).await;
    // What a failure means is written before its settlement.
    let endpoint = relay.get(&format!("/v1/endpoints/{endpoint}")).await.json();
    assert_eq!(endpoint["disabled_reason"], Value::Null, "{endpoint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_node_whose_clock_is_ahead_or_behind_delays_no_send() {
    // holds: 53
    bounded(async {
        let database = TestDatabase::postgres().await;
        let svix = mock_svix().await;
        let _worker = start("0", &database, &svix, &[WORKER]);
        for (n, wrong_ms) in [20_000_i64, -20_000].into_iter().enumerate() {
            let ingest = start(&wrong_ms.to_string(), &database, &svix, &[INGEST]);
            post(&ingest, &format!("e{n}")).await;
            let sent = svix.wait_for_messages(n as u64 + 1, Duration::from_secs(2)).await;
            sent.unwrap_or_else(|_| panic!("not sent within 2 s where the clock is {wrong_ms} ms off"));
        }
    })
    .await;
}
