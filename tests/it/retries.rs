//! Many failures at once do not come back as one.

use std::collections::{BTreeMap, HashSet};

use axum::http::Method;
use posthaste::config::Config;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer};
use serde_json::{Value, json};

use crate::support::{TestDatabase, TestRelay, config, mock_svix};

on_both_databases!(ten_thousand_failures_come_back_apart);

const EVENTS: usize = 10_000;
const PARTNERS: usize = 10;
/// The part of all that 100 ms may hold.
const SHARE: f64 = 0.08;

fn direct(database: &TestDatabase, svix: &MockSvix) -> Config {
    let mut config = config(database, svix);
    config.svix.token = None;
    config.master_key = Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned().into());
    config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
    config
}

async fn call(relay: &TestRelay, method: Method, path: &str, body: Value) {
    let answer = relay.send(method, path, &[("content-type", "application/json")], body.to_string()).await;
    assert!(answer.status.is_success(), "{path}: {}", answer.json());
}

/// So many events, each for the partner whose turn it is.
fn events(name: &str, count: usize) -> String {
    let event =
        |n: usize| json!({"id": format!("{name}{n}"), "type": "a", "tenant": format!("t{}", n % PARTNERS)});
    Value::from_iter((0..count).map(event)).to_string()
}

/// The part of all that the fullest 100 ms hold, and how many such there are between the first and the last.
fn fullest(times_ms: impl Iterator<Item = u64>) -> (f64, u64) {
    let mut bins = BTreeMap::<u64, u32>::new();
    times_ms.for_each(|ms| *bins.entry(ms / 100).or_default() += 1);
    let all: u32 = bins.values().sum();
    let most = bins.values().max().expect("some");
    let (first, last) = (bins.keys().next().expect("some"), bins.keys().last().expect("some"));
    (f64::from(*most) / f64::from(all), last - first + 1)
}

async fn ten_thousand_failures_come_back_apart(database: TestDatabase) {
    // holds: 41
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    for n in 0..PARTNERS {
        call(&relay, Method::PUT, &format!("/v1/partners/p{n}"), json!({"name": "p"})).await;
        let endpoint = json!({"url": partner.url(&format!("/{n}")), "tenant": format!("t{n}")});
        call(&relay, Method::POST, &format!("/v1/partners/p{n}/endpoints"), endpoint).await;
    }
    // One success each: from then on they get as many in flight as there may be.
    assert_eq!(relay.post(events("proof", PARTNERS)).await.status, 202);
    relay.settled().await;
    partner.answer_first(Some(PartnerAnswer::status(500)));
    assert_eq!(relay.post(events("evt", EVENTS)).await.status, 202);
    let progress = relay.settled().await;
    assert_eq!(progress.done["delivered"], (EVENTS + PARTNERS) as i64);
    relay.finish().await;

    let list = if database.is_postgres() {
        "SELECT string_agg((retry_at - at) || ':' || retry_at, ',') FROM attempt_log"
    } else {
        "SELECT group_concat((retry_at - at) || ':' || retry_at, ',') FROM attempt_log"
    };
    let log = database.text(list).await;
    let number = |text: &str| text.parse::<u64>().expect("a time");
    let log: Vec<_> = log.split(',').map(|row| row.split_once(':').expect("two")).collect();
    assert_eq!(log.len(), EVENTS, "each failed once");
    let delays = || log.iter().map(|(delay, _)| number(delay));
    assert!(delays().all(|ms| (4_000..=6_000).contains(&ms)), "5 s and 20 % to either side");
    let mut seen = HashSet::new();
    let requests = partner.requests();
    let began = requests[0].received_at;
    let second = requests.iter().filter(|request| !seen.insert(request.header("webhook-id")));
    let second: Vec<_> = second.map(|request| (request.received_at - began).as_millis() as u64).collect();
    assert_eq!(second.len(), EVENTS);
    for (what, (share, bins)) in [
        ("had all failed in one moment", fullest(delays())),
        ("due", fullest(log.iter().map(|(_, due)| number(due)))),
        ("arrived", fullest(second.iter().copied())),
    ] {
        println!("first retries, {what}: the fullest of {bins} times 100 ms holds {:.2} %", 100.0 * share);
        assert!(share <= SHARE, "{what}: {share}");
    }
}
