//! Figures: they count what was sent, outlive restarts, add up over nodes, and tell nobody of what is not theirs.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::ledger::StatRow;
use posthaste::mock::{MockPartner, PartnerAnswer};
use serde_json::{Value, json};

use crate::support::partners::{add_endpoint, call, direct};
use crate::support::{TestClock, TestDatabase, TestRelay, config, eventually, mock_svix};

const MINUTE: Duration = Duration::from_secs(60);

async fn post(relay: &TestRelay, first: usize, count: usize, tenant: &str) {
    let event = |n: usize| json!({"id": format!("evt_{n}"), "tenant": tenant, "type": "a", "data": {}});
    let events: Vec<_> = (first..first + count).map(event).collect();
    assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
}

async fn stats(relay: &TestRelay, query: &str) -> Value {
    let answer = relay.get(&format!("/v1/stats{query}")).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

/// How many rows of figures the ledger holds.
async fn rows(relay: &TestRelay) -> Vec<StatRow> {
    let mut rows = Vec::new();
    let database = relay.app().ledger().database();
    database.stats(Timestamp::from_millis(0), None, |row| rows.push(row)).await.expect("read");
    rows
}

/// Lets the minute end that is being counted, and waits until it is in the ledger.
async fn end_minute(relay: &TestRelay, clock: &TestClock) {
    let before = rows(relay).await.len();
    clock.pass(MINUTE);
    eventually("the minute is written", async || (rows(relay).await.len() > before).then_some(())).await;
}

/// One event, and nothing of what came before.
fn check_alone(told: &Value) {
    let whole = &told["whole"];
    assert_eq!(
        (&whole["accepted"], &whole["delivered"], &whole["failed"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

fn sum(series: &Value) -> i64 {
    series.as_array().expect("a series").iter().map(|point| point.as_i64().expect("a number")).sum()
}

async fn figures_outlive_a_restart_and_the_minute_under_way_counts(database: TestDatabase) {
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let partner = MockPartner::start().await;
    let relay = TestRelay::start_at(direct(&database, &svix), clock.clone()).await;
    let (id, _) =
        add_endpoint(&relay, "crm", json!({"url": partner.url("/"), "retry_schedule_ms": []})).await;
    post(&relay, 0, 10, "acme").await;
    relay.settled().await;
    end_minute(&relay, &clock).await;
    partner.set_answer(Some(PartnerAnswer::status(500)));
    post(&relay, 10, 5, "acme").await;
    relay.settled().await;
    let check = async |relay: &TestRelay, accepted: i64, delivered: i64| {
        let told = stats(relay, "?partner=crm").await;
        let crm = &told["partners"][0];
        assert_eq!((&crm["partner"], &crm["endpoints"][0]["endpoint"]), (&json!("crm"), &json!(id)));
        for figures in [crm, &crm["endpoints"][0], &told["whole"]] {
            assert_eq!(figures["delivered"], delivered, "{told}");
            assert_eq!((&figures["failed"], &figures["dead"]), (&json!(5), &json!(5)), "{told}");
            assert_eq!(figures["results"], json!({"2xx": delivered, "5xx": 5}));
            let rate = 5.0 / (delivered as f64 + 5.0);
            assert!((figures["error_rate"].as_f64().expect("a rate") - rate).abs() < 1e-3, "{told}");
            let series = &figures["series"];
            assert_eq!((sum(&series["delivered"]), sum(&series["failed"])), (delivered, 5));
            assert_eq!(series["p99_ms"].as_array().map(Vec::len), Some(60));
        }
        assert_eq!(told["whole"]["accepted"], accepted);
        assert_eq!(sum(&told["whole"]["accepted_series"]), accepted);
        assert_eq!(told["step_s"], 60);
        assert_eq!((&told["svix"], &crm["backlog"]), (&Value::Null, &json!(0)));
    };
    check(&relay, 15, 10).await;
    relay.stop().await;
    // The minute that was under way was written at the end; the same minute goes on.
    let relay = TestRelay::start_at(direct(&database, &svix), clock.clone()).await;
    check(&relay, 15, 10).await;
    partner.set_answer(Some(PartnerAnswer::status(204)));
    post(&relay, 15, 3, "acme").await;
    relay.settled().await;
    check(&relay, 18, 13).await;
    end_minute(&relay, &clock).await;
    check(&relay, 18, 13).await;
    // Each second of the hour that follows is looked at by minutes: it ends.
    let unasked = stats(&relay, "").await;
    assert_eq!(unasked["partners"][0]["endpoints"][0]["series"]["delivered"], json!([]), "only if asked for");
    let all = stats(&relay, "?window=48h").await;
    assert_eq!((&all["whole"]["delivered"], &all["step_s"]), (&json!(13), &json!(1_800)));
    clock.pass(49 * 60 * MINUTE);
    eventually("old minutes are dropped", async || rows(&relay).await.is_empty().then_some(())).await;
    post(&relay, 90, 1, "acme").await;
    relay.settled().await;
    check_alone(&stats(&relay, "").await);
    relay.finish().await;
}

async fn what_waits_and_what_stands_in_its_way_is_told(database: TestDatabase) {
    let svix = mock_svix().await;
    let partner = MockPartner::start().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let (id, _) = add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    call(&relay, Method::PUT, "/v1/partners/crm", json!({"name": "crm", "paused": true})).await;
    post(&relay, 0, 7, "acme").await;
    call(&relay, Method::POST, &format!("/v1/endpoints/{id}/disable"), json!({})).await;
    let crm = eventually("all are counted", async || {
        let told = stats(&relay, "?window=5m").await;
        let crm = told["partners"][0].clone();
        (crm["backlog"] == 7 && told["whole"]["backlog"] == 7).then_some(crm)
    })
    .await;
    let endpoint = &crm["endpoints"][0];
    assert_eq!((&crm["paused"], &endpoint["backlog"]), (&json!(true), &json!(7)));
    assert!(crm["oldest_age_s"].as_f64().is_some_and(|age| (0.0..600.0).contains(&age)), "{crm}");
    assert_eq!((&endpoint["state"], &endpoint["disabled_reason"]), (&json!("disabled"), &json!("operator")));
    assert_eq!(endpoint["host"], "127.0.0.1");
    assert_eq!((&endpoint["p50_ms"], &endpoint["error_rate"]), (&Value::Null, &Value::Null));
    relay.stop().await;
}

async fn a_tenants_key_is_told_of_its_own_endpoints_alone(database: TestDatabase) {
    // holds: 47
    let svix = mock_svix().await;
    let mut config = direct(&database, &svix);
    config.http.bootstrap_admin_key = Some("root".into());
    let relay = TestRelay::start_with(config).await;
    let root = [("x-api-key", "root"), ("content-type", "application/json")];
    let send = async |method: Method, path: &str, body: Value| {
        let answer = relay.send(method, path, &root, body.to_string()).await;
        assert!(answer.status.is_success(), "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    };
    let partner = MockPartner::start().await;
    let mut own = Value::Null;
    for (name, tenant) in [("crm", Some("acme")), ("crm", None), ("erp", Some("globex"))] {
        send(Method::PUT, &format!("/v1/partners/{name}"), json!({"name": name})).await;
        let settings = json!({"url": partner.url("/"), "tenant": tenant});
        let made = send(Method::POST, &format!("/v1/partners/{name}/endpoints"), settings).await;
        if tenant == Some("acme") {
            own = made["id"].clone();
        }
    }
    let key = json!({"name": "acme", "scopes": ["read"], "tenant": "acme"});
    let bound = send(Method::POST, "/v1/keys", key).await["key"].as_str().expect("a key").to_owned();
    let key = json!({"name": "shop", "scopes": ["ingest"]});
    let ingest = send(Method::POST, "/v1/keys", key).await["key"].as_str().expect("a key").to_owned();
    for tenant in ["acme", "globex"] {
        send(Method::POST, "/notifications", json!({"id": "1", "type": "a", "tenant": tenant})).await;
    }
    relay.settled().await;
    let ask = async |key: &str, query: &str| {
        relay.send(Method::GET, &format!("/v1/stats{query}"), &[("x-api-key", key)], "").await
    };
    let all = ask("root", "").await.json();
    assert_eq!((&all["whole"]["delivered"], all["partners"].as_array().map(Vec::len)), (&json!(4), Some(2)));
    let told = ask(&bound, "").await.json();
    assert_eq!((&told["whole"], &told["svix"], &told["other"]), (&Value::Null, &Value::Null, &Value::Null));
    let partners = told["partners"].as_array().expect("partners");
    assert_eq!(partners.len(), 1);
    assert_eq!((&partners[0]["partner"], &partners[0]["delivered"]), (&json!("crm"), &json!(1)));
    let endpoints = partners[0]["endpoints"].as_array().expect("endpoints");
    assert_eq!(endpoints.iter().map(|endpoint| &endpoint["endpoint"]).collect::<Vec<_>>(), [&own]);
    for (key, query, status) in [
        (&*bound, "?partner=erp", 404),
        (&*ingest, "", 403),
        ("nobody's", "", 401),
        ("root", "?partner=nobody", 404),
        ("root", "?window=49h", 400),
        ("root", "?widow=1h", 400),
    ] {
        assert_eq!(ask(key, query).await.status, status, "{query}");
    }
    relay.stop().await;
}

on_both_databases!(
    figures_outlive_a_restart_and_the_minute_under_way_counts,
    what_waits_and_what_stands_in_its_way_is_told,
    a_tenants_key_is_told_of_its_own_endpoints_alone,
);

#[tokio::test(flavor = "multi_thread")]
async fn nodes_add_up() {
    let database = TestDatabase::postgres().await;
    let (svix, clock) = (mock_svix().await, TestClock::new());
    // Two runs that draw other numbers.
    let other_clock = TestClock::new();
    other_clock.random();
    let one = TestRelay::start_at(config(&database, &svix), clock.clone()).await;
    let two = TestRelay::start_at(config(&database, &svix), Arc::clone(&other_clock) as _).await;
    post(&one, 0, 4, "acme").await;
    post(&two, 4, 5, "acme").await;
    one.settled().await;
    end_minute(&one, &clock).await;
    end_minute(&two, &other_clock).await;
    for relay in [&one, &two] {
        let told = stats(relay, "?window=10m").await;
        assert_eq!(
            (&told["whole"]["accepted"], &told["whole"]["delivered"]),
            (&json!(9), &json!(9)),
            "{told}"
        );
        assert_eq!((&told["svix"]["delivered"], &told["svix"]["gate"]["state"]), (&json!(9), &json!("open")));
    }
    one.stop().await;
    two.stop().await;
}
