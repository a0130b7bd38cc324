//! What is not hot: tenants, API keys, gates, rejected messages.

use std::time::Duration;

use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::domain::gate::CloseReason;
use posthaste::domain::partner::RateLimit;
use posthaste::domain::tenant::Route;
use posthaste::ledger::{ApiKey, KeyInfo, Ledger, LedgerError, NewRejected, RejectedFilter, TenantRow};

use super::{close, lane};
use crate::support::{TestClock, TestDatabase};

on_both_databases! {
    tenants_are_set_and_an_application_belongs_to_one,
    a_tenants_limits_need_no_route,
    an_application_whose_lane_is_anothers_is_taken,
    api_keys_are_added_listed_and_revoked,
    closed_gates_are_remembered,
    an_open_gate_is_forgotten_but_no_throttle_before_its_time,
    rejected_messages_are_kept_byte_for_byte,
    what_a_broker_has_a_name_for_is_kept_once,
}

fn tenant(id: &str, route: Route) -> TenantRow {
    TenantRow::new(id, Some(route))
}

fn to_svix(id: &str, app: &str) -> TenantRow {
    tenant(id, Route::Svix { app: app.into() })
}

async fn tenants_are_set_and_an_application_belongs_to_one(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let tenants = ledger.database();
    let mut revision = tenants.revision().await.expect("an answer");
    for (row, new) in [
        (to_svix("acme", "app_1"), true),
        (to_svix("acme", "app_2"), false),
        (tenant("globex", Route::Direct), true),
        (tenant("Ünï 🦀 '\"", Route::Direct), true),
    ] {
        assert_eq!(tenants.put_tenant(&row).await.expect("set"), new, "{row:?}");
        let grown = tenants.revision().await.expect("an answer");
        assert!(grown > revision, "every node reads it again");
        revision = grown;
    }
    let taken = tenants.put_tenant(&to_svix("globex", "app_2")).await.expect_err("taken");
    assert!(matches!(taken, LedgerError::Taken(_)) && taken.to_string().contains("app_2"), "{taken}");
    assert_eq!(tenants.revision().await.expect("an answer"), revision);
    assert!(!tenants.put_tenant(&to_svix("globex", "app_1")).await.expect("it was given up"));
    let mut rows = tenants.tenants().await.expect("an answer");
    rows.sort_by(|one, other| one.id.cmp(&other.id));
    let expected =
        [to_svix("acme", "app_2"), to_svix("globex", "app_1"), tenant("Ünï 🦀 '\"", Route::Direct)];
    assert_eq!(rows, expected);
}

async fn a_tenants_limits_need_no_route(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let limit = RateLimit { per_second: 0.1, burst: 7 };
    let mut limited = TenantRow { weight: 100, ingest_limit: Some(limit), ..TenantRow::new("Ünï", None) };
    assert!(ledger.database().put_tenant(&limited).await.expect("set"));
    assert_eq!(ledger.database().tenant("Ünï").await.expect("an answer").as_ref(), Some(&limited));
    close(ledger).await;
    // What an older version has written has a route and nothing else.
    database.execute("INSERT INTO tenant (id, route) VALUES ('acme', 'direct')").await;
    let ledger = database.open(&clock).await;
    let mut rows = ledger.database().tenants().await.expect("an answer");
    rows.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(rows, [tenant("acme", Route::Direct), limited.clone()]);
    // A route comes and goes; limits that are not named go back to their defaults.
    limited.route = Some(Route::Svix { app: "uni".into() });
    assert!(!ledger.database().put_tenant(&limited).await.expect("set"));
    assert_eq!(ledger.database().tenant("Ünï").await.expect("an answer").as_ref(), Some(&limited));
    let bare = TenantRow::new("Ünï", None);
    assert!(!ledger.database().put_tenant(&bare).await.expect("set"));
    assert_eq!(ledger.database().tenant("Ünï").await.expect("an answer"), Some(bare));
    assert!(ledger.database().put_tenant(&to_svix("globex", "uni")).await.expect("it was given up"));
}

async fn an_application_whose_lane_is_anothers_is_taken(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    // By the default route a tenant's application has its name.
    lane(&ledger, "acme", "acme").await;
    let taken = ledger.database().put_tenant(&to_svix("globex", "acme")).await.expect_err("taken");
    assert!(matches!(taken, LedgerError::Taken(_)) && taken.to_string().contains("acme"), "{taken}");
    assert_eq!(ledger.database().tenants().await.expect("an answer"), []);
    assert!(ledger.database().put_tenant(&to_svix("acme", "acme")).await.expect("its own"));
}

async fn api_keys_are_added_listed_and_revoked(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let key = |id: &str, name: &str, scopes: &[&str], tenant: Option<&str>| ApiKey {
        info: KeyInfo {
            id: id.into(),
            name: name.into(),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            tenant: tenant.map(Into::into),
            created_at: clock.now().as_millis(),
            revoked_at: None,
        },
        hash: id.bytes().cycle().take(32).collect(),
    };
    let first = key("k1", "billing 🦀", &["ingest"], Some("acme"));
    clock.move_wall(1);
    let second = key("k0", "ops", &["ingest", "read", "admin"], None);
    let keys = ledger.database();
    assert!(keys.api_keys().await.expect("an answer").is_empty());
    let mut revision = keys.revision().await.expect("an answer");
    let mut has_grown = async || {
        let before = std::mem::replace(&mut revision, keys.revision().await.expect("an answer"));
        revision > before
    };
    for key in [&first, &second] {
        keys.add_api_key(key).await.expect("added");
        assert!(has_grown().await);
    }
    keys.add_api_key(&first).await.expect_err("there is one of that id");
    assert!(!has_grown().await);
    let good = keys.api_keys().await.expect("an answer");
    assert_eq!(good.iter().map(|key| &key.info).collect::<Vec<_>>(), [&first.info, &second.info]);
    assert_eq!(good[1].hash, second.hash);
    let now = Timestamp::from_millis(clock.now().as_millis() + 5);
    assert!(keys.revoke_api_key("k1", now).await.expect("an answer"));
    assert!(has_grown().await);
    assert!(!keys.revoke_api_key("k1", now).await.expect("an answer"), "it was revoked");
    assert!(!keys.revoke_api_key("nobody", now).await.expect("an answer"));
    let good = keys.api_keys().await.expect("an answer");
    assert_eq!(good.iter().map(|key| &key.info).collect::<Vec<_>>(), [&second.info]);
    let all = keys.all_api_keys().await.expect("an answer");
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].info.id.as_str(), all[0].info.revoked_at), ("k1", Some(now.as_millis())));
}

/// Gate and reason of each that is closed, whether this node wrote it, and for how many seconds, rounded up.
async fn closed_gates(ledger: &Ledger) -> Vec<(String, String, bool, u64)> {
    let closed = ledger.closed_gates().await.expect("an answer");
    let mut gates: Vec<_> = closed
        .into_iter()
        .map(|closed| {
            (closed.gate, closed.reason, closed.own, closed.remaining.as_millis().div_ceil(1_000) as u64)
        })
        .collect();
    gates.sort();
    gates
}

async fn closed_gates_are_remembered(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let close_gate = async |gate: &str, reason, wait_s| {
        ledger.save_gate(gate, reason, Duration::from_secs(wait_s)).await.expect("saved");
    };
    close_gate("svix", CloseReason::Throttled, 1_000).await;
    close_gate("ep_1", CloseReason::Failing, 5_000).await;
    close_gate("ep_2", CloseReason::Failing, 0).await;
    // Its own word may also become shorter.
    close_gate("svix", CloseReason::Unauthorized, 500).await;
    let gate = |gate: &str, reason: &str, own, wait_s| (gate.to_owned(), reason.to_owned(), own, wait_s);
    let expected = [gate("ep_1", "failing", true, 5_000), gate("svix", "unauthorized", true, 500)];
    assert_eq!(closed_gates(&ledger).await, expected);
    close(ledger).await;
    // After a restart they are those of an earlier epoch.
    let expected = [gate("ep_1", "failing", false, 5_000), gate("svix", "unauthorized", false, 500)];
    assert_eq!(closed_gates(&database.open(&clock).await).await, expected);
}

async fn an_open_gate_is_forgotten_but_no_throttle_before_its_time(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    for (gate, reason) in [
        ("svix", CloseReason::Throttled),
        ("ep_1", CloseReason::Failing),
        ("ep_2", CloseReason::Unauthorized),
    ] {
        ledger.save_gate(gate, reason, Duration::from_secs(60)).await.expect("saved");
    }
    for gate in ["svix", "ep_1", "ep_2", "ep_3"] {
        ledger.gate_opened(gate).await.expect("recorded");
    }
    let expected = [("svix".to_owned(), "throttled".to_owned(), true, 60)];
    assert_eq!(closed_gates(&ledger).await, expected);
    database.execute("UPDATE gate SET closed_until = 1").await;
    ledger.gate_opened("svix").await.expect("recorded");
    assert_eq!(database.text("SELECT CAST(count(*) AS TEXT) FROM gate").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longer_of_two_nodes_closings_stands_by_the_databases_clock() {
    // holds: 52
    let database = TestDatabase::postgres().await;
    let (clock, ahead) = (TestClock::new(), TestClock::new());
    ahead.move_wall(3_600_000);
    let (one, two) = (database.open(&clock).await, database.open(&ahead).await);
    let close_gate = async |ledger: &Ledger, reason, wait_s| {
        ledger.save_gate("svix", reason, Duration::from_secs(wait_s)).await.expect("saved");
    };
    close_gate(&one, CloseReason::Throttled, 60).await;
    close_gate(&two, CloseReason::Failing, 30).await;
    let gate = |reason: &str, own, wait_s| [("svix".to_owned(), reason.to_owned(), own, wait_s)];
    assert_eq!(closed_gates(&one).await, gate("throttled", true, 60));
    assert_eq!(closed_gates(&two).await, gate("throttled", false, 60));
    close_gate(&two, CloseReason::Failing, 90).await;
    assert_eq!(closed_gates(&one).await, gate("failing", false, 90));
    assert_eq!(closed_gates(&two).await, gate("failing", true, 90));
}

async fn rejected_messages_are_kept_byte_for_byte(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let message = |reason: &str, attributes: &str, body: &[u8]| NewRejected {
        origin: "pubsub_push".into(),
        reason: reason.into(),
        attributes: attributes.into(),
        body: body.into(),
        ..NewRejected::default()
    };
    let first = message("not JSON: 'x' \u{202e}🦀", r#"{"ünï":"\u0000"}"#, &every_byte);
    let second = message("no type", "{}", b"");
    ledger.database().reject(&[first.clone(), second], clock.now()).await.expect("kept");
    clock.move_wall(7);
    ledger.database().reject(&[message("third", "{}", b"\0")], clock.now()).await.expect("kept");
    ledger.database().reject(&[], clock.now()).await.expect("nothing to keep");
    let list = async |filter: RejectedFilter, limit| {
        ledger.database().rejected(&filter, limit).await.expect("an answer")
    };
    let kept = list(RejectedFilter::default(), 10).await;
    let reasons: Vec<_> = kept.iter().map(|message| message.reason.as_str()).collect();
    assert_eq!(reasons, ["third", "no type", first.reason.as_str()], "newest first");
    assert_eq!((kept[0].body_bytes, kept[0].received_at), (1, clock.now()));
    let whole = ledger.database().rejected_message(kept[2].id).await.expect("an answer").expect("there");
    assert_eq!((&whole.attributes, whole.origin.as_str()), (&first.attributes, "pubsub_push"));
    assert!(whole.body == every_byte, "the bytes have changed");
    assert_eq!(list(RejectedFilter::default(), 2).await, kept[..2]);
    assert_eq!(list(RejectedFilter { before: Some(kept[0].id), ..Default::default() }, 10).await, kept[1..]);
    assert_eq!(list(RejectedFilter { since: Some(clock.now()), ..Default::default() }, 10).await, kept[..1]);
    let of = |origin: &str| RejectedFilter { origin: Some(origin.into()), ..Default::default() };
    assert_eq!(list(of("pubsub_push"), 10).await.len(), 3);
    assert_eq!(list(of("nats:orders"), 10).await, []);
    assert!(ledger.database().delete_rejected(kept[0].id).await.expect("an answer"));
    assert!(!ledger.database().delete_rejected(kept[0].id).await.expect("an answer"), "gone already");
    assert_eq!(ledger.database().rejected_message(kept[0].id).await.expect("an answer"), None);
}

async fn what_a_broker_has_a_name_for_is_kept_once(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let named = |key: Option<&str>, reason: &str| NewRejected {
        origin: "nats:orders".into(),
        reason: reason.into(),
        attributes: "{}".into(),
        identity: Some(r#"["nats","orders","1"]"#.into()),
        item: 3,
        tenant: Some("acme".into()),
        content_type: Some("text/\0plain".into()),
        message_key: key.map(str::to_owned),
        ..NewRejected::default()
    };
    let keep =
        async |rejected: &[NewRejected]| ledger.database().reject(rejected, clock.now()).await.expect("kept");
    assert_eq!(keep(&[named(Some("a"), "first"), named(None, "name\0less")]).await, 2);
    assert_eq!(
        keep(&[named(Some("a"), "again"), named(None, "nameless"), named(Some("b"), "other")]).await,
        2
    );
    let kept = ledger.database().rejected(&RejectedFilter::default(), 10).await.expect("an answer");
    let reasons: Vec<_> = kept.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(reasons, ["other", "nameless", "nameless", "first"]);
    let first = ledger.database().rejected_message(kept[3].id).await.expect("an answer").expect("there");
    assert_eq!((first.item, first.tenant.as_deref()), (3, Some("acme")));
    assert_eq!(first.content_type.as_deref(), Some("text/plain"));
    assert_eq!(first.identity.as_deref(), Some(r#"["nats","orders","1"]"#));
}
