//! `audit svix`: what Svix has lost behind our back is found, and exactly that is sent again.

use std::collections::BTreeSet;

use axum::http::Method;
use posthaste::mock::{MockSvix, Trouble};
use serde_json::{Value, json};

use crate::support::partners::JSON;
use crate::support::{RelayProcess, TestDatabase, TestRelay, config, eventually, mock_svix};

on_both_databases! {
    what_was_deleted_behind_our_back_is_sent_again_and_nothing_else,
    a_throttled_audit_waits_and_finds_the_same,
    a_busy_application_is_listed_once,
    clocks_that_differ_are_found_out_by_a_few_look_ups,
    an_audit_goes_on_through_throttles_and_a_restart,
    a_tenant_that_is_not_on_svix_has_no_portal,
}

/// Posts events of a tenant, 100 in a request.
async fn post(relay: &crate::support::HttpClient, tenant: &str, count: usize) {
    let events: Vec<_> = (0..count)
        .map(|n| json!({ "id": format!("{tenant}-{n}"), "type": "order.created", "tenant": tenant, "data": { "n": n } }))
        .collect();
    for batch in events.chunks(100) {
        let answer = relay.post(json!(batch).to_string()).await;
        assert_eq!(answer.status, 202, "{}", answer.json());
    }
}

/// Deletes some of a tenant's messages; their events' ids.
fn lose(svix: &MockSvix, tenant: &str, numbers: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    let lost: BTreeSet<_> = numbers.into_iter().map(|n| format!("{tenant}-{n}")).collect();
    for id in &lost {
        assert!(svix.remove_message(tenant, id), "{id} was there");
    }
    lost
}

/// What a program printed as JSON, before anything that it said beside it.
pub fn json_of(text: &str) -> Value {
    serde_json::from_str(text.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs the program against a relay; its exit code and what it printed.
pub async fn posthaste(relay: &RelayProcess, arguments: &[&str]) -> (i32, String) {
    let url = format!("http://{}", relay.address());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_posthaste"));
    let output = command.args(arguments).env("POSTHASTE_URL", url).output().await.expect("it runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some(), "{complaint}");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned() + &*complaint)
}

fn ids(report: &Value, of: &str) -> BTreeSet<String> {
    let entries = report[of].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| entry["id"].as_str().expect("an id").to_owned()).collect()
}

async fn what_was_deleted_behind_our_back_is_sent_again_and_nothing_else(database: TestDatabase) {
    const EVENTS: usize = 1_200;
    let svix = mock_svix().await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    post(&relay, "acme", EVENTS).await;
    // Too few for a list: they are asked for by name.
    post(&relay, "small", 2).await;
    svix.wait_for_messages(EVENTS as u64 + 2, std::time::Duration::from_secs(60)).await.expect("they arrive");
    let delivered = "SELECT CAST(COUNT(*) AS TEXT) FROM outcome WHERE state = 'delivered'";
    eventually("all is recorded", async || {
        (database.text(delivered).await == (EVENTS + 2).to_string()).then_some(())
    })
    .await;
    let mut lost = lose(&svix, "acme", (0..EVENTS).step_by(31));
    lost.extend(lose(&svix, "small", [1]));
    let requests = svix.request_count();
    let (code, text) = posthaste(&relay, &["audit", "svix", "--since", "1h", "--format", "json"]).await;
    assert_eq!(code, 3, "{text}");
    let report = json_of(&text);
    assert_eq!(report["checked"], EVENTS + 2);
    assert_eq!(ids(&report, "missing"), lost);
    assert_eq!(svix.request_count(), requests, "it only looks");
    let fixed = posthaste(&relay, &["audit", "svix", "--since", "1h", "--fix", "--pace", "1000"]).await;
    assert_eq!(fixed.0, 0, "{}", fixed.1);
    // Exactly those, each once.
    let stored: Vec<_> = svix.requests().into_iter().skip(usize::try_from(requests).expect("few")).collect();
    assert_eq!(stored.len(), lost.len());
    let sent: BTreeSet<_> = stored.iter().filter_map(|request| request.event_id.clone()).collect();
    assert_eq!(sent, lost);
    assert!(svix.resent().is_empty());
    let (code, text) = posthaste(&relay, &["audit", "svix", "--since", "1h"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("0 missing at Svix"), "{text}");
    let (code, text) = posthaste(&relay, &["replay", "list"]).await;
    assert!(code == 0 && text.contains("completed") && text.contains("administrator"), "{text}");
    let nothing = posthaste(&relay, &["audit", "svix", "--since", "1h", "--tenant", "nobody"]).await;
    assert!(nothing.0 == 0 && nothing.1.contains("0 deliveries compared"), "{}", nothing.1);
    relay.kill();
}

async fn a_throttled_audit_waits_and_finds_the_same(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    post(&relay, "acme", 300).await;
    relay.settled().await;
    // holds: 26. Stored, and told as an error: perhaps never sent on.
    svix.script([Trouble::StoredThenStatus(500)]);
    post(&relay, "umbrella", 1).await;
    relay.settled().await;
    let lost = lose(&svix, "acme", [7, 99, 298]);
    svix.throttle_looks(3, Some("1"));
    let report = relay.get("/v1/audits/svix?since=1h").await;
    assert_eq!(report.status, 200, "{}", report.json());
    let report = report.json();
    assert_eq!(ids(&report, "missing"), lost, "{report}");
    assert_eq!(ids(&report, "unconfirmed"), BTreeSet::from(["umbrella-0".to_owned()]), "{report}");
    assert_eq!((&report["checked"], &report["next_cursor"]), (&json!(301), &json!(null)));
    // Longer than a request may take: it says so instead.
    svix.throttle_looks(1, Some("3600"));
    let later = relay.get("/v1/audits/svix?since=1h").await.json();
    assert_eq!((&later["retry_after_s"], &later["missing"]), (&json!(3_600), &json!([])), "{later}");
    let cursor = later["next_cursor"].as_str().expect("where it goes on");
    let rest = relay.get(&format!("/v1/audits/svix?since=1h&cursor={cursor}")).await.json();
    assert_eq!(ids(&rest, "missing"), lost);
    for query in ["", "?since=yesterday", "?since=1h&until=2h", "?since=1h&cursor=%21"] {
        assert_eq!(relay.get(&format!("/v1/audits/svix{query}")).await.problem(), "bad_query", "{query}");
    }
    relay.finish().await;
}

async fn a_tenant_that_is_not_on_svix_has_no_portal(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    let ask = async |tenant: &str, body: &str| {
        relay.send(Method::POST, &format!("/v1/tenants/{tenant}/portal"), &JSON, body.to_owned()).await
    };
    // The application is made: its owner may add endpoints before the first event.
    let link = ask("acme", "").await;
    assert_eq!(link.status, 200, "{}", link.json());
    assert!(link.json()["url"].as_str().expect("a link").starts_with("https://app.svix.com/login#key="));
    assert_eq!(link.json()["expiry_s"], 3_600);
    assert_eq!(ask("acme", r#"{"expiry_s":86400}"#).await.json()["expiry_s"], 86_400);
    assert_eq!(ask("acme", r#"{"expiry_s":1}"#).await.problem(), "invalid_field");
    assert_eq!(ask("acme", "{").await.problem(), "invalid_body");
    let direct = json!({ "route": "direct" }).to_string();
    assert!(relay.send(Method::PUT, "/v1/tenants/own", &JSON, direct).await.status.is_success());
    let refused = ask("own", "").await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (409, "not_on_svix"));
    relay.finish().await;
    let mut without = config(&database, &svix);
    without.svix.create_applications = false;
    let relay = TestRelay::start_with(without).await;
    let refused = relay.send(Method::POST, "/v1/tenants/stranger/portal", &JSON, "").await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (404, "unknown_application"));
    relay.finish().await;
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("this century")
}

/// Writes `count` deliveries of tenant `busy` to Svix into the ledger and to the mock, as if they had come within ten
/// minutes, four in the same millisecond; and at the mock 1,000 messages that another producer sent meanwhile. Svix's clock is
/// `ahead_ms` ahead.
async fn busy_application(database: &TestDatabase, svix: &MockSvix, count: usize, ahead_ms: i64) {
    const SPAN_MS: i64 = 600_000;
    const EPOCH_MS: i64 = 1_704_067_200_000;
    let began = now_ms() - 2 * SPAN_MS;
    let came_at = |n: usize| {
        let share = i64::try_from(n / 4 * 4).unwrap() * SPAN_MS / i64::try_from(count).unwrap();
        began + share
    };
    let micros = |millis: i64| u64::try_from(millis + ahead_ms).unwrap() * 1_000;
    let ours = (0..count).map(|n| (format!("busy-{n}"), micros(came_at(n) + 20)));
    let remote_ids = svix.add_messages("busy", ours);
    svix.add_messages("busy", (0..1_000).map(|n| (format!("other-{n}"), micros(came_at(n * count / 1_000)))));
    database.execute("INSERT INTO lane (destination, tenant) VALUES ('svix:busy', 'busy')").await;
    let lane = database.text("SELECT CAST(id AS TEXT) FROM lane WHERE tenant = 'busy'").await;
    let body = if database.is_postgres() { r"'\x7b7d'::bytea" } else { "X'7B7D'" };
    let rows: Vec<_> = remote_ids.iter().enumerate().collect();
    for chunk in rows.chunks(1_000) {
        let seq = |n: usize| ((came_at(n) - EPOCH_MS) << 22) + i64::try_from(n).unwrap();
        let event = |(n, _): &(usize, &String)| {
            format!("({}, 'busy', '', 'busy-{n}', 'test', {}, 1, {body})", seq(*n), came_at(*n))
        };
        let outcome = |(n, remote_id): &(usize, &String)| {
            let at = came_at(*n) + 40;
            format!("({}, {lane}, 'delivered', {at}, 1, 0, 30, 202, '{remote_id}', 0)", seq(*n))
        };
        let events: Vec<_> = chunk.iter().map(event).collect();
        let outcomes: Vec<_> = chunk.iter().map(outcome).collect();
        database
            .execute(&format!(
                "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body) VALUES {};
                 INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id,
                                      dispatch_unconfirmed) VALUES {}",
                events.join(","),
                outcomes.join(",")
            ))
            .await;
    }
    database.execute("ANALYZE").await;
}

/// Deliveries of a busy application, and how many of them Svix loses.
const BUSY: usize = 20_000;
const LOST: usize = 30;
/// One request for 250 messages, a fifth more, and two for each lost message.
const LOOKS_MAX: u64 = (BUSY as u64 / 250) * 12 / 10 + 2 * LOST as u64;

async fn a_busy_application_is_listed_once(database: TestDatabase) {
    // holds: 62
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    busy_application(&database, &svix, BUSY, 0).await;
    let lost = lose(&svix, "busy", (0..LOST).map(|n| n * BUSY / LOST));
    let (since, until) = (now_ms() - 3_600_000, now_ms());
    let time = |millis| posthaste::domain::clock::Timestamp::from_millis(millis).to_rfc3339();
    let range = format!("since={}&until={}", time(since), time(until));
    let (mut checked, mut missing, mut cursor) = (0, BTreeSet::new(), String::new());
    // A part takes some 15 seconds at most.
    for _ in 0..4 {
        let part = relay.get(&format!("/v1/audits/svix?{range}{cursor}")).await.json();
        checked += part["checked"].as_u64().unwrap_or_else(|| panic!("{part}"));
        missing.extend(ids(&part, "missing"));
        let Some(next) = part["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let looks = svix.look_count();
    println!("{checked} compared with {looks} requests, {} missing", missing.len());
    assert!(looks <= LOOKS_MAX, "{looks} requests, at most {LOOKS_MAX}");
    assert_eq!((checked, missing), (BUSY as u64, lost));
    relay.finish().await;
}

async fn clocks_that_differ_are_found_out_by_a_few_look_ups(database: TestDatabase) {
    const COUNT: usize = 2_000;
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    for ahead_ms in [-5_400_000, 1_000_000] {
        svix.clear();
        for table in ["event", "outcome", "lane"] {
            database.execute(&format!("DELETE FROM {table}")).await;
        }
        busy_application(&database, &svix, COUNT, ahead_ms).await;
        let lost = lose(&svix, "busy", [3, 700, COUNT - 1]);
        let part = relay.get("/v1/audits/svix?since=1h").await.json();
        assert_eq!((&part["checked"], ids(&part, "missing")), (&json!(COUNT), lost), "{part}");
        assert!(svix.look_count() <= 30, "{} requests", svix.look_count());
        assert_eq!(part["requests"], svix.look_count());
    }
    relay.finish().await;
}

async fn an_audit_goes_on_through_throttles_and_a_restart(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    busy_application(&database, &svix, BUSY, 0).await;
    let lost = lose(&svix, "busy", (0..LOST).map(|n| n * BUSY / LOST));
    let address = relay.address().to_owned();
    let audit = tokio::process::Command::new(env!("CARGO_BIN_EXE_posthaste"))
        .args(["audit", "svix", "--since", "1h", "--format", "json"])
        .env("POSTHASTE_URL", format!("http://{address}"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it runs");
    let audit = tokio::spawn(audit.wait_with_output());
    let looks = async |count: u64| {
        eventually("it looks", async || (svix.look_count() >= count).then_some(())).await;
    };
    for count in [10, 30] {
        looks(count).await;
        svix.throttle_looks(1, Some("1"));
    }
    // It waits for these three seconds, and the relay goes meanwhile.
    looks(50).await;
    svix.throttle_looks(1, Some("3"));
    eventually("it is throttled", async || (svix.throttled_looks() == 0).then_some(())).await;
    relay.kill();
    let relay = RelayProcess::start(&database, &svix, &[("POSTHASTE_HTTP__LISTEN", &address)]);
    let output = audit.await.expect("no panic").expect("it ends");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{complained}");
    let report = json_of(&said);
    assert_eq!(report["checked"], BUSY, "{complained}");
    assert_eq!(ids(&report, "missing"), lost);
    // What was listed before the restart is listed again, once.
    let most = 2 * LOOKS_MAX;
    assert!(svix.look_count() <= most, "{} requests, at most {most}", svix.look_count());
    relay.kill();
}
