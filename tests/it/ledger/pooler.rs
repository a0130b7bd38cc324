//! A pooler in transaction mode stands between the ledger and Postgres.

use std::time::Duration;

use axum::http::Method;
use posthaste::domain::gate::CloseReason;
use posthaste::ledger::{Connections, Ledger, LedgerError, LedgerOptions, Notice, Pooler};
use posthaste::mock::MockPartner;
use serde_json::json;
use sqlx::{PgConnection, Row as _};

use super::{accept, claim, close, delivered, fill, lane, settle, settlement};
use crate::support::partners::{add_endpoint, call, direct};
use crate::support::pgbouncer::Pgbouncer;
use crate::support::{TestClock, TestDatabase, TestRelay, bounded, event, eventually, mock_svix};

/// Sessions that the pooler opens: far fewer than a node has connections to it.
const SESSIONS: usize = 4;

/// A database, and a pooler in front of it.
async fn pooled() -> (TestDatabase, Pgbouncer) {
    let database = TestDatabase::postgres().await;
    let pooler = Pgbouncer::start(&database, SESSIONS).await;
    (database, pooler)
}

fn through(pooler: &Pgbouncer, database: &TestDatabase) -> LedgerOptions {
    let connections = Connections { pooler: Pooler::Transaction, ..Connections::default() };
    LedgerOptions { url: pooler.url(), connections, ..database.options() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_is_not_configured_is_named_at_start() {
    bounded(async {
        let (database, pooler) = pooled().await;
        let options = LedgerOptions { url: pooler.url(), ..database.options() };
        for _ in 0..3 {
            let error = database.open_with(&options, &TestClock::new()).await.err().expect("refused");
            assert!(matches!(error, LedgerError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains("ledger.pooler = \"transaction\""), "{error}");
        }
        database.open(&TestClock::new()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_accept_claim_settle_and_restart_behind_a_pooler() {
    bounded(async {
        let (database, pooler) = pooled().await;
        let (clock, options) = (TestClock::new(), through(&pooler, &database));
        let (one, two) =
            tokio::join!(database.open_with(&options, &clock), database.open_with(&options, &clock));
        let (one, two) = (one.expect("a node"), two.expect("another node"));
        let acme = lane(&one, "acme", "acme").await;
        let same = lane(&two, "acme", "acme").await;
        assert_eq!(acme.id, same.id);
        let filling = async { tokio::join!(fill(&one, &acme, "one-", 300), fill(&two, &same, "two-", 300)) };
        filling.await;
        work(&one, &clock, "acme").await;
        work(&two, &clock, "acme").await;
        close(one).await;
        close(two).await;
        let again = database.open_with(&options, &clock).await.expect("it opens again");
        let progress = again.database().progress().await.expect("an account");
        assert_eq!((progress.events, progress.pending), (600, 0));
        assert_eq!(progress.done.get("delivered"), Some(&600));
        assert_eq!(again.trouble(), None);
    })
    .await;
}

/// Claims and delivers half of what waits.
async fn work(ledger: &Ledger, clock: &TestClock, app: &str) {
    let lane = lane(ledger, app, "acme").await;
    let deliveries = claim(ledger, &lane, 300).await.deliveries;
    assert_eq!(deliveries.len(), 300);
    settle(ledger, deliveries.iter().map(|delivery| settlement(delivery, delivered(), clock))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_delivers_and_replays_behind_a_pooler() {
    bounded(async {
        let (database, pooler) = pooled().await;
        let svix = mock_svix().await;
        let mut config = direct(&database, &svix);
        config.database_url = pooler.url();
        config.ledger.pooler = Pooler::Transaction;
        let relay = TestRelay::start_with(config.clone()).await;
        let partner = MockPartner::start().await;
        add_endpoint(&relay, "crm", json!({ "url": partner.url("/hook") })).await;
        let second = TestRelay::start_with(config).await;
        let events: Vec<_> =
            (0..200).map(|n| json!({ "id": format!("e{n}"), "type": "order.created" })).collect();
        for (relay, events) in [(&relay, &events[..150]), (&second, &events[100..])] {
            assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
        }
        assert_eq!(relay.settled().await.done.get("delivered"), Some(&200));
        let filter = json!({ "states": ["delivered"], "since": "1h" });
        let started =
            call(&relay, Method::POST, "/v1/replays", json!({ "filter": filter, "pace": 1_000 })).await;
        let path = format!("/v1/replays/{}", started.json()["id"].as_str().expect("an id"));
        let replay = eventually("the replay ends", async || {
            let replay = second.get(&path).await.json();
            (replay["state"] == "completed").then_some(replay)
        })
        .await;
        assert_eq!(replay["queued"], 200, "{replay}");
        let listed = second.get("/v1/events?type=order.*&limit=50").await.json();
        assert_eq!(listed["events"].as_array().map(Vec::len), Some(50), "{listed}");
        second.stop().await;
        relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_ours_is_left_in_a_session_for_another_client() {
    const SETTINGS: &str = "SELECT concat_ws(' ', current_setting('enable_seqscan'), current_setting('jit'),
        current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'),
        current_setting('synchronous_commit'))";
    const LEFT: &str = "SELECT concat_ws(' ', (SELECT COUNT(*) FROM pg_prepared_statements),
        (SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))";
    bounded(async {
        let (database, pooler) = pooled().await;
        let untouched = database.text(SETTINGS).await;
        let clock = TestClock::new();
        let ledger = database.open_with(&through(&pooler, &database), &clock).await.expect("it opens");
        let acme = lane(&ledger, "acme", "acme").await;
        fill(&ledger, &acme, "e", 300).await;
        work(&ledger, &clock, "acme").await;
        ledger.save_gate("svix", CloseReason::Failing, Duration::from_secs(60)).await.expect("saved");
        ledger.events(&Default::default(), None, 10).await.expect("a page");
        close(ledger).await;
        // As many transactions as the pooler has sessions: each is looked at once.
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            let mut client = pooler.client().await.expect("a client");
            sqlx::raw_sql("BEGIN").execute(&mut client).await.expect("begun");
            assert_eq!(asked(&mut client, SETTINGS).await, untouched);
            assert_eq!(asked(&mut client, LEFT).await, "0 0", "prepared statements, advisory locks");
            clients.push(client);
        }
    })
    .await;
}

/// One text, asked for without a prepared statement.
async fn asked(client: &mut PgConnection, sql: &'static str) -> String {
    sqlx::raw_sql(sql).fetch_one(client).await.expect("a row").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn other_nodes_are_heard_past_the_pooler() {
    const LISTENERS: &str = "SELECT COUNT(*)::text FROM pg_stat_activity
                             WHERE application_name = 'posthaste listener' AND datname = current_database()";
    bounded(async {
        let (database, pooler) = pooled().await;
        let options = through(&pooler, &database);
        let polling = database.open_with(&options, &TestClock::new()).await.expect("it opens");
        let _unheard = polling.notices();
        let connections =
            Connections { listen_url: Some(database.url().into()), ..options.connections.clone() };
        let options = LedgerOptions { connections, ..options };
        let listening = database.open_with(&options, &TestClock::new()).await.expect("it opens");
        let mut notices = listening.notices();
        eventually("it listens", async || (database.text(LISTENERS).await == "1").then_some(())).await;
        while notices.recv().await.expect("a notice") != Notice::Look {}
        assert_eq!(database.text(LISTENERS).await, "1", "the other one has no session to listen on");
        let acme = lane(&polling, "acme", "acme").await;
        accept(&polling, vec![event("e").to(&acme).build()]).await;
        while notices.recv().await.expect("a notice") != Notice::Lanes(vec![acme.id]) {}
    })
    .await;
}
