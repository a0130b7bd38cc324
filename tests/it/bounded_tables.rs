//! No table only grows: each is pruned, or has a bound that is named here.

use std::collections::BTreeSet;

use axum::http::Method;
use posthaste::mock::MockPartner;
use serde_json::{Value, json};

use crate::support::partners::{add_endpoint, call, direct};
use crate::support::{HttpClient, TestDatabase, TestRelay, eventually, mock_svix};

on_both_databases! {
    every_table_is_pruned_or_has_a_bound,
    rows_of_pruned_events_and_removed_receivers_go,
    a_duplicate_of_a_pruned_event_leaves_no_row,
    an_unused_lane_goes_after_a_day_and_a_used_one_stays,
}

/// Tables whose rows go by themselves, and the test that shows it.
const PRUNED: &[(&str, &str)] = &[
    ("event", "retention: what_is_old_goes_and_its_identity_stays"),
    ("event_key", "retention: identities_go_after_their_time_and_not_before"),
    ("outcome", "retention: what_is_old_goes_and_its_identity_stays"),
    ("queue", "retention: what_waits_never_goes; the backlog's caps bound it"),
    ("request_key", "retention: other_old_rows_go_too"),
    ("attempt_log", "rows_of_pruned_events_and_removed_receivers_go"),
    ("earlier_outcome", "rows_of_pruned_events_and_removed_receivers_go"),
    ("repeat", "rows_of_pruned_events_and_removed_receivers_go"),
    ("steering", "rows_of_pruned_events_and_removed_receivers_go"),
    ("replay", "rows_of_pruned_events_and_removed_receivers_go"),
    ("replay_waiting", "rows_of_pruned_events_and_removed_receivers_go"),
    ("rejected", "rows_of_pruned_events_and_removed_receivers_go"),
    ("gate", "rows_of_pruned_events_and_removed_receivers_go"),
    ("partner_tokens", "rows_of_pruned_events_and_removed_receivers_go"),
    ("lane", "an_unused_lane_goes_after_a_day_and_a_used_one_stays"),
    ("stat", "stats: pruned with every write of a minute, after the days that it keeps"),
];

/// Tables that nothing prunes, and what bounds them.
const BOUNDED: &[(&str, &str)] = &[
    ("_sqlx_migrations", "one row for each migration of the program"),
    ("api_key", "an operator makes each row; a revoked key stays visible"),
    ("chore", "one row for each chore that the program knows"),
    ("console_session", "50 for each key, and every sign-in deletes the expired ones"),
    ("endpoint", "an administrator makes each row, and deletes it"),
    ("event_type", "an administrator makes each row, and deletes it"),
    ("fan_out", "every row moves into the queue; the backlog's caps count its deliveries"),
    ("ledger_clock", "one row"),
    ("node", "1,024 numbers"),
    ("node_epoch", "one row"),
    ("partner", "an administrator makes each row, and deletes it"),
    ("revision", "one row"),
    ("tenant", "an administrator makes each row, and deletes it"),
    ("tenant_limit", "an administrator makes each row, and deletes it"),
];

/// Tables that only the ledger in Postgres has.
const POSTGRES_ONLY: &[&str] = &["node_epoch"];

const DAY_MS: i64 = 86_400_000;

async fn every_table_is_pruned_or_has_a_bound(database: TestDatabase) {
    let svix = mock_svix().await;
    TestRelay::start_with(direct(&database, &svix)).await.stop().await;
    let tables = if database.is_postgres() {
        "SELECT string_agg(table_name, ',') FROM information_schema.tables WHERE table_schema = 'public'"
    } else {
        "SELECT group_concat(name, ',') FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    };
    let tables = database.text(tables).await;
    let tables: BTreeSet<_> = tables.split(',').collect();
    let listed: BTreeSet<_> = PRUNED.iter().chain(BOUNDED).map(|(table, _)| *table).collect();
    assert_eq!(listed.len(), PRUNED.len() + BOUNDED.len(), "a table is in one list");
    let missing: Vec<_> = tables.difference(&listed).collect();
    assert!(missing.is_empty(), "prune these tables, or say what bounds them: {missing:?}");
    let is_expected = |table: &str| database.is_postgres() || !POSTGRES_ONLY.contains(&table);
    let gone: Vec<_> = listed.difference(&tables).filter(|table| is_expected(table)).collect();
    assert!(gone.is_empty(), "there is no such table: {gone:?}");
}

async fn post(relay: &HttpClient, tenant: &str, id: &str) -> String {
    let event = json!({ "id": id, "type": "t", "tenant": tenant, "data": {} });
    let answer = relay.post(event.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    answer.statuses().remove(0)
}

async fn prune(relay: &HttpClient) -> Value {
    call(relay, Method::POST, "/v1/prune", json!({})).await.json()
}

async fn count(database: &TestDatabase, rows: &str) -> i64 {
    database.text(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {rows}")).await.parse().expect("a number")
}

/// A relay whose tenants are direct, with an endpoint for all of them at the partner `acme-eu`.
async fn start(database: &TestDatabase, prune_every_ms: u64) -> (TestRelay, MockPartner) {
    let svix = mock_svix().await;
    let mut config = direct(database, &svix);
    config.retention.prune_every_ms = prune_every_ms;
    let (relay, partner) = (TestRelay::start_with(config).await, MockPartner::start().await);
    add_endpoint(&relay, "acme-eu", json!({ "url": partner.url("/hook") })).await;
    (relay, partner)
}

async fn rows_of_pruned_events_and_removed_receivers_go(database: TestDatabase) {
    let (relay, _partner) = start(&database, 0).await;
    post(&relay, "acme", "kept").await;
    relay.settled().await;
    let kept = database.text("SELECT CAST(seq AS TEXT) FROM event").await;
    // Each row once for an event that is there, and once for one that is not.
    for event in ["1", &kept] {
        for row in [
            "attempt_log (event, lane, attempt, at, latency_ms, code, detail) VALUES (EVENT, 1, 1, AGO, 1, 'c', 'd')",
            "repeat (event, duplicates, conflicts) VALUES (EVENT, 1, 0)",
            "steering (event, lane, at, action) VALUES (EVENT, 1, AGO, 'retry')",
            "earlier_outcome (event, lane, number, replay, replayed_at, state, at, attempts, failures, latency_ms,
                              dispatch_unconfirmed) VALUES (EVENT, 1, 1, 'rpl_gone', AGO, 'dead', AGO, 1, 1, 1, 0)",
        ] {
            // In 2100: only its event's end takes it away.
            let row = row.replace("EVENT", event).replace("AGO", "4102444800000");
            database.execute(&format!("INSERT INTO {row}")).await;
        }
    }
    // More than a step takes away.
    let many = (2..3_002).map(|event| format!("({event}, 1, 0)")).collect::<Vec<_>>().join(",");
    database.execute(&format!("INSERT INTO repeat (event, duplicates, conflicts) VALUES {many}")).await;
    // What waited in a replay that is not kept any more, and in one that runs.
    let waiting = "INSERT INTO replay_waiting (replay, event, lane, due_at) VALUES";
    database.execute(&format!("{waiting} ('rpl_gone', 1, 1, 1), ('rpl_gone', 2, 1, 1)")).await;
    let ended = "INSERT INTO replay (id, filter, selection, pace, new_ids, state, started_by, created_at, ended_at,
        cursor_event, cursor_lane, exhausted, queued, delivered, failed, canceled, unroutable, worker, worker_until)
        VALUES ('rpl_old', '{}', '{}', 1, 0, 'completed', 'x', 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, -1, 0)";
    database.execute(ended).await;
    let rejected = "INSERT INTO rejected (received_at, origin, reason, attributes, body, item)
        VALUES (1, 'pubsub_push', 'r', '{}', BODY, 0)";
    let body = if database.is_postgres() { r"'\x00'::bytea" } else { "X'00'" };
    database.execute(&rejected.replace("BODY", body)).await;
    // In 2100.
    let far = 4_102_444_800_000_i64;
    let gates = format!(
        "INSERT INTO gate (id, reason, closed_until, node) VALUES ('ep_gone', 'failing', 1, 0),
        ('ep_closed', 'throttled', {far}, 0)"
    );
    database.execute(&gates).await;
    let tokens =
        "INSERT INTO partner_tokens (partner, millionths, at) VALUES ('gone', 0, 1), ('acme-eu', 0, 1)";
    database.execute(tokens).await;
    prune(&relay).await;
    let mut left = Vec::new();
    for table in ["attempt_log", "repeat", "steering", "earlier_outcome", "gate", "partner_tokens"] {
        left.push((table, count(&database, table).await));
    }
    for table in ["replay_waiting", "replay", "rejected"] {
        assert_eq!(count(&database, table).await, 0, "{table}");
    }
    assert!(left.iter().all(|(_, rows)| *rows == 1), "{left:?}");
    assert_eq!(database.text("SELECT id FROM gate").await, "ep_closed");
    assert_eq!(database.text("SELECT partner FROM partner_tokens").await, "acme-eu");
    assert_eq!(database.text("SELECT CAST(event AS TEXT) FROM repeat").await, kept);
    relay.finish().await;
}

async fn a_duplicate_of_a_pruned_event_leaves_no_row(database: TestDatabase) {
    let (relay, _partner) = start(&database, 0).await;
    for id in ["gone", "kept"] {
        post(&relay, "acme", id).await;
    }
    relay.settled().await;
    database.execute("DELETE FROM outcome WHERE event = (SELECT seq FROM event WHERE id = 'gone')").await;
    database.execute("DELETE FROM event WHERE id = 'gone'").await;
    for id in ["gone", "kept"] {
        assert_eq!(post(&relay, "acme", id).await, "duplicate");
    }
    // They are written in one statement.
    eventually("the repeat is counted", async || (count(&database, "repeat").await > 0).then_some(())).await;
    let kept = "repeat WHERE event = (SELECT seq FROM event WHERE id = 'kept')";
    assert_eq!((count(&database, kept).await, count(&database, "repeat").await), (1, 1));
    relay.finish().await;
}

async fn an_unused_lane_goes_after_a_day_and_a_used_one_stays(database: TestDatabase) {
    let (relay, partner) = start(&database, 50).await;
    for tenant in ["kept", "wide", "gone", "back", "last"] {
        post(&relay, tenant, "a").await;
    }
    relay.settled().await;
    database
        .execute("DELETE FROM outcome WHERE event IN (SELECT seq FROM event WHERE tenant <> 'kept')")
        .await;
    database.execute("DELETE FROM event WHERE tenant <> 'kept'").await;
    // Of a large request, not in the queue yet. No step can move it: its events can't be read.
    let fan_out = "INSERT INTO fan_out (tenant, event, part, last_event, due_at, deliveries, events, lanes)
        SELECT 'wide', 1, 0, 1, 0, 0, 'x', '[' || id || ']' FROM lane WHERE tenant = 'wide'";
    database.execute(fan_out).await;
    let marked = "lane WHERE unused_since IS NOT NULL";
    let again = "UPDATE chore SET done_at = 0 WHERE name = 'prune_lanes'";
    // Again and again: the end of a run that began before would overwrite it.
    eventually("unused lanes are marked", async || {
        database.execute(again).await;
        (count(&database, marked).await == 3).then_some(())
    })
    .await;
    database.execute(again).await;
    // One is used again, by a process that remembers it from before.
    assert_eq!(post(&relay, "back", "b").await, "accepted");
    relay.settled().await;
    let older = format!("UPDATE lane SET unused_since = unused_since - {}", 2 * DAY_MS);
    database.execute(&older).await;
    let names = if database.is_postgres() {
        "SELECT string_agg(tenant, ',' ORDER BY id) FROM lane"
    } else {
        "SELECT group_concat(tenant, ',') FROM (SELECT tenant FROM lane ORDER BY id)"
    };
    // The last number stays, or SQLite would give it to the next lane.
    eventually("the unused one is gone", async || {
        database.execute(again).await;
        (database.text(names).await == "kept,wide,back,last").then_some(())
    })
    .await;
    eventually("the used one is no longer marked", async || {
        (count(&database, "lane WHERE tenant = 'back' AND unused_since IS NULL").await == 1).then_some(())
    })
    .await;
    assert_eq!(relay.app().ledger().waiting(), 0);
    // It comes back under another number, and works.
    database.execute("DELETE FROM fan_out").await;
    relay.stop().await;
    let (relay, _other) = start(&database, 0).await;
    assert_eq!(post(&relay, "gone", "c").await, "accepted");
    relay.settled().await;
    assert_eq!(partner.requests().len(), 7, "five, one, and one");
    relay.finish().await;
}

/// The pruner of another node reads which identities are old; meanwhile one of them goes, and is recorded again.
#[tokio::test]
async fn an_identity_that_was_recorded_again_is_not_forgotten() {
    for database in [TestDatabase::sqlite(), TestDatabase::postgres().await] {
        let clock = crate::support::TestClock::new();
        let ledger = database.open(&clock).await;
        let lane = ledger.lane(&crate::support::svix("acme"), &"acme".into()).await.expect("a lane");
        let accept = async || {
            let event = crate::support::event("a").to(&lane).build();
            match ledger.accept(vec![event], true, None).await.expect("an answer") {
                posthaste::ledger::Accepted::Stored(verdicts) => verdicts[0],
                other => panic!("{other:?}"),
            }
        };
        use posthaste::ledger::ItemVerdict::{Accepted, Duplicate};
        assert_eq!(accept().await, Accepted);
        database.execute("DELETE FROM event").await;
        let (found, _) = ledger.database().old_identities(("", "", ""), 10).await.expect("an answer");
        assert_eq!(found.len(), 1);
        assert_eq!(ledger.database().prune_identities(&found, None).await.expect("an answer"), 1);
        assert_eq!(accept().await, Accepted, "forgotten, so it is new");
        assert_eq!(ledger.database().prune_identities(&found, None).await.expect("an answer"), 0);
        assert_eq!(accept().await, Duplicate, "recorded again, so it is known");
        ledger.close().await;
    }
}
