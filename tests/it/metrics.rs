//! What `/metrics` tells.

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::Trouble;
use serde_json::json;

use crate::ingest::batch;
use crate::support::{TestDatabase, TestRelay, config, eventually, metrics, mock_svix};

/// The value of a series, named as it stands in the text.
async fn value(relay: &TestRelay, series: &str) -> Option<f64> {
    let answer = relay.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.map(|line| line[series.len()..].trim().parse().expect("a number"))
}

/// How many events with these labels were taken in.
async fn events(relay: &TestRelay, labels: &[&str]) -> Option<f64> {
    let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
    metrics::sum(&text, "posthaste_ingest_events_total", labels)
}

const WINDOW: &str = r#"posthaste_gate_window_requests{gate="svix"}"#;
const CLOSED: &str = r#"posthaste_gate_state{gate="svix",state="closed"}"#;
const OPEN: &str = r#"posthaste_gate_state{gate="svix",state="open"}"#;

async fn a_throttle_shows_and_so_does_the_way_back(database: TestDatabase) {
    // holds: 25
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    assert_eq!((value(&relay, OPEN).await, value(&relay, WINDOW).await), (Some(1.0), Some(4.0)));
    relay.post(batch(0, 200)).await;
    relay.settled().await;
    let wide = value(&relay, WINDOW).await.expect("a window");
    assert!(wide > 4.0, "200 successes have widened it: {wide}");
    svix.script([Trouble::throttle(2)]);
    relay.post(batch(200, 1)).await;
    eventually("the gate shows as closed", async || (value(&relay, CLOSED).await == Some(1.0)).then_some(()))
        .await;
    assert_eq!((value(&relay, WINDOW).await, value(&relay, OPEN).await), (Some(1.0), Some(0.0)));
    assert_eq!(value(&relay, r#"posthaste_dispatch_gates{state="closed"}"#).await, Some(1.0));
    assert!(value(&relay, "posthaste_backlog_deliveries").await >= Some(1.0));
    relay.settled().await;
    let first = value(&relay, WINDOW).await.expect("a window");
    assert!((1.0..=3.0).contains(&first), "{first} after one success");
    relay.post(batch(201, 20)).await;
    relay.settled().await;
    let grown = value(&relay, WINDOW).await.expect("a window");
    assert!(grown > first && grown <= wide, "{first}, {grown}, {wide}");
    assert_eq!((value(&relay, OPEN).await, value(&relay, CLOSED).await), (Some(1.0), Some(0.0)));
    relay.finish().await;
}

async fn verdicts_refusals_and_commits_are_counted(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.ingest.tenant_per_second = Some(0.001);
    config.ingest.tenant_burst = Some(20);
    let relay = TestRelay::start_with(config).await;
    relay.post(batch(0, 10)).await;
    relay.post(batch(5, 10)).await;
    assert_eq!(relay.post(r#"[{"id":"x","type":"a"},{"id":"no type"}]"#).await.status, 400);
    assert_eq!(relay.post(batch(0, 1)).await.status, 429);
    assert_eq!(relay.post("no json").await.status, 400);
    let verdict = async |name: &str| events(&relay, &[&format!("verdict=\"{name}\"")]).await;
    assert_eq!((verdict("accepted").await, verdict("duplicate").await), (Some(15.0), Some(5.0)));
    assert_eq!((verdict("invalid").await, verdict("conflict").await), (Some(1.0), None));
    let from_http = ["source=\"http\"", "route=\"svix\""];
    assert_eq!(events(&relay, &from_http).await, Some(20.0), "what is invalid goes nowhere");
    for (code, count) in [("tenant_ingest_limit", 1.0), ("malformed", 1.0), ("invalid_events", 1.0)] {
        let series = format!(r#"posthaste_ingest_refused_requests_total{{code="{code}"}}"#);
        assert_eq!(value(&relay, &series).await, Some(count), "{code}");
    }
    relay.settled().await;
    let (commits, committed) =
        ("posthaste_ledger_commit_seconds_count", "posthaste_ledger_commit_events_sum");
    assert!(value(&relay, commits).await >= Some(2.0));
    assert_eq!(value(&relay, committed).await, Some(15.0));
    assert_eq!(value(&relay, "posthaste_dispatch_in_flight_requests").await, Some(0.0));
    // Beside it another relay, which counts for itself.
    let (elsewhere, other) = (TestDatabase::sqlite(), mock_svix().await);
    let beside = TestRelay::start(&elsewhere, &other).await;
    assert_eq!(events(&beside, &["verdict=\"accepted\""]).await, None);
    beside.finish().await;
    relay.finish().await;
}

on_both_databases!(
    a_throttle_shows_and_so_does_the_way_back,
    verdicts_refusals_and_commits_are_counted,
    a_background_job_that_fails_shows,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_svix_halves_what_is_in_flight() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    relay.post(batch(0, 200)).await;
    relay.settled().await;
    let wide = value(&relay, WINDOW).await.expect("a window");
    assert!(wide >= 16.0, "{wide}");
    svix.script([Trouble::Status(503)]);
    relay.post(batch(200, 1)).await;
    relay.settled().await;
    let halved = value(&relay, WINDOW).await.expect("a window");
    assert!((wide / 2.0).floor() <= halved && halved <= wide / 2.0 + 1.0, "{wide}, {halved}");
    assert_eq!(value(&relay, OPEN).await, Some(1.0));
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_those_who_may_read() {
    // holds: 47
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.http.bootstrap_admin_key = Some("root".into());
    let relay = TestRelay::start_with(config).await;
    let root = ("x-api-key", "root");
    let make = async |key: serde_json::Value| {
        let headers = [root, ("content-type", "application/json")];
        let made = relay.send(Method::POST, "/v1/keys", &headers, key.to_string()).await;
        made.json()["key"].as_str().expect("a key").to_owned()
    };
    let reader = make(json!({"name": "prometheus", "scopes": ["read"]})).await;
    let sender = make(json!({"name": "shop", "scopes": ["ingest"]})).await;
    let bound = make(json!({"name": "acme", "scopes": ["read"], "tenant": "acme"})).await;
    for (key, status) in [(Some(reader), 200), (Some(sender), 403), (Some(bound), 403), (None, 401)] {
        let headers: Vec<_> = key.iter().map(|key| ("x-api-key", key.as_str())).collect();
        let answer = relay.send(Method::GET, "/metrics", &headers, "").await;
        assert_eq!(answer.status, status);
        if status == 200 {
            assert_eq!(
                answer.header("content-type"),
                Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
            );
        }
    }
    tokio::time::timeout(Duration::from_secs(60), relay.finish()).await.expect("in time");
}

/// One value of the job that prunes.
async fn prune_job(relay: &TestRelay, metric: &str) -> f64 {
    let series = format!(r#"posthaste_job_{metric}{{name="prune"}}"#);
    value(relay, &series).await.unwrap_or_else(|| panic!("no {series}"))
}

async fn a_background_job_that_fails_shows(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.retention.prune_every_ms = 100;
    let relay = TestRelay::start_with(config).await;
    let succeeds = async || (prune_job(&relay, "last_success_timestamp_seconds").await > 0.0).then_some(());
    eventually("it succeeds", succeeds).await;
    assert_eq!(prune_job(&relay, "errors_total").await, 0.0);
    database.execute("ALTER TABLE request_key RENAME TO hidden").await;
    eventually("it fails", async || (prune_job(&relay, "errors_total").await >= 2.0).then_some(())).await;
    eventually("and lags", async || (prune_job(&relay, "lag_seconds").await > 0.5).then_some(())).await;
    let (failed_at, errors) =
        (prune_job(&relay, "last_success_timestamp_seconds").await, prune_job(&relay, "errors_total").await);
    database.execute("ALTER TABLE hidden RENAME TO request_key").await;
    let succeeds_again =
        async || (prune_job(&relay, "last_success_timestamp_seconds").await > failed_at).then_some(());
    eventually("it succeeds again", succeeds_again).await;
    assert!(prune_job(&relay, "errors_total").await >= errors, "a counter never falls");
    // Every other job of this node is there from the start.
    let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
    for job in ["statistics", "replays", "duplicates", "announcements"] {
        let series = format!(r#"posthaste_job_lag_seconds{{name="{job}"}}"#);
        assert!(text.contains(&series), "no {series} in {text}");
    }
    relay.finish().await;
}
