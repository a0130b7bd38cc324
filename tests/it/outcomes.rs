//! Whose fault an answer is: a refused event, application or account at Svix, and endpoints that are gone.

use std::time::{Duration, Instant};

use posthaste::config::Config;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer, Trouble};
use serde_json::{Value, json};

use crate::support::partners::{add_endpoint, direct};
use crate::support::{TestDatabase, TestRelay, config, eventually, mock_svix};

on_both_databases! {
    a_refused_event_holds_nobody_up,
    a_refused_application_holds_no_other_up,
    a_throttled_application_holds_no_other_up,
    a_retry_after_of_zero_is_no_hot_loop,
    no_status_kills_a_backlog,
    nothing_is_sent_to_an_endpoint_after_its_first_410,
}

/// Tries again soon, and often.
fn patient(database: &TestDatabase, svix: &MockSvix) -> Config {
    let mut config = config(database, svix);
    config.svix.retry_schedule_ms = vec![200; 200];
    config.svix.probe_first_ms = 200;
    config.svix.probe_max_ms = 1_000;
    config
}

fn events(tenant: &str, count: usize) -> String {
    let event = |n: usize| json!({"id": format!("{tenant}-{n}"), "type": "a", "tenant": tenant});
    Value::from_iter((0..count).map(event)).to_string()
}

fn stored(svix: &MockSvix, app: &str) -> usize {
    svix.messages().iter().filter(|message| message.app == app).count()
}

fn requests(svix: &MockSvix, app: &str) -> usize {
    svix.requests().iter().filter(|request| request.app == app).count()
}

async fn gate_state(relay: &TestRelay, name: &str) -> Option<(String, Value)> {
    let ready = relay.get("/health/ready").await.json();
    let gates = ready["gates"].as_array().expect("gates").clone();
    let gate = gates.into_iter().find(|gate| gate["gate"] == name)?;
    Some((gate["state"].as_str().expect("a state").to_owned(), gate["reason"].clone()))
}

async fn a_refused_event_holds_nobody_up(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(patient(&database, &svix)).await;
    svix.set_trouble_for_event("acme-0", Some(Trouble::Status(403)));
    relay.post(events("acme", 1)).await;
    let refused = async || (svix.request_count() > 0).then_some(());
    eventually("it is refused", refused).await;
    // The first of these is the one that is refused.
    relay.post(events("acme", 50)).await;
    relay.post(events("globex", 50)).await;
    let all_but_one = async || (svix.message_count() == 99).then_some(());
    eventually("all others are at Svix", all_but_one).await;
    let log = relay.app().ledger().database().attempt_log("acme", "acme-0").await.expect("read");
    assert!(!log.is_empty() && log.iter().all(|(_, code, _)| code == "http_403"), "{log:?}");
    svix.set_trouble_for_event("acme-0", None);
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 100);
}

async fn a_refused_application_holds_no_other_up(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(patient(&database, &svix)).await;
    for status in [401, 403] {
        let (refused, other) = (format!("acme{status}"), format!("globex{status}"));
        svix.set_trouble_for(&refused, Some(Trouble::Status(status)));
        let began = Instant::now();
        relay.post(events(&refused, 200)).await;
        relay.post(events(&other, 200)).await;
        let delivered = async || (stored(&svix, &other) == 200).then_some(());
        eventually("the other application has its messages", delivered).await;
        let gate = format!("svix:{refused}");
        let closed = async || gate_state(&relay, &gate).await;
        let (_, reason) = eventually("the application's gate is closed", closed).await;
        assert_eq!(reason, "unauthorized");
        assert_eq!(gate_state(&relay, "svix").await.expect("Svix's gate").0, "open");
        // What was in flight when the first refusal came, and then one request for each opening.
        let openings = usize::try_from(began.elapsed().as_millis() / 150).expect("few");
        let sent = requests(&svix, &refused);
        assert!(sent <= 64 + openings, "{sent} requests");
        svix.set_trouble_for(&refused, None);
        relay.settled().await;
        assert_eq!(stored(&svix, &refused), 200);
        assert_eq!(gate_state(&relay, &gate).await, None, "its gate is gone");
    }
    relay.finish().await;
}

async fn a_throttled_application_holds_no_other_up(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = patient(&database, &svix);
    config.svix.max_in_flight = 8;
    let relay = TestRelay::start_with(config).await;
    svix.set_trouble_for("acme", Some(Trouble::Throttle { retry_after: Some("1".into()) }));
    relay.post(events("acme", 300)).await;
    relay.post(events("globex", 2_000)).await;
    let delivered = async || (stored(&svix, "globex") == 2_000).then_some(());
    eventually("the other application has its messages", delivered).await;
    let closed = async || gate_state(&relay, "svix:acme").await.filter(|(_, reason)| reason == "throttled");
    eventually("the throttled application has a gate of its own", closed).await;
    // From now on its throttles are nobody else's.
    for round in 0..5 {
        let began = Instant::now();
        let id = format!("later-{round}");
        relay.post(json!([{"id": id, "type": "a", "tenant": "globex"}]).to_string()).await;
        eventually("it is delivered", async || svix.message("globex", &id).map(drop)).await;
        assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    svix.set_trouble_for("acme", None);
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 2_305);
}

async fn a_retry_after_of_zero_is_no_hot_loop(database: TestDatabase) {
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.probe_max_ms = 10_000;
    let relay = TestRelay::start_with(config).await;
    for (nth, header) in ["0", "0.001", "Thu, 01 Jan 1970 00:00:00 GMT"].into_iter().enumerate() {
        svix.clear();
        svix.set_trouble(Some(Trouble::Throttle { retry_after: Some(header.into()) }));
        relay.post(json!([{"id": nth.to_string(), "type": "a"}]).to_string()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let sent = svix.request_count();
        // 250 ms, doubling, 20 % to either side: at 0, 0.2, 0.6, 1.4 s at the earliest.
        assert!((2..=6).contains(&sent), "{header}: {sent} requests in 3 s");
        svix.set_trouble(None);
        relay.settled().await;
    }
    relay.finish().await;
}

async fn no_status_kills_a_backlog(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(patient(&database, &svix)).await;
    for status in [302, 308, 402, 405, 418, 421, 431, 451] {
        svix.clear();
        svix.set_trouble(Some(Trouble::Status(status)));
        relay.post(events(&format!("t{status}"), 50)).await;
        let tried = async || (svix.request_count() >= 15).then_some(());
        eventually("some were refused", tried).await;
        let progress = relay.progress().await;
        assert_eq!(progress.done.get("dead"), None, "{status}");
        assert_eq!(progress.pending, 50, "{status}");
        svix.set_trouble(None);
        relay.settled().await;
        assert_eq!(svix.message_count(), 50, "{status}");
    }
    relay.finish().await;
}

async fn nothing_is_sent_to_an_endpoint_after_its_first_410(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    add_endpoint(&relay, "shop", json!({"url": partner.url("/hook"), "tenant": "acme"})).await;
    partner.set_answer(Some(PartnerAnswer::status(410)));
    relay.post(events("acme", 200)).await;
    let progress = relay.finish().await;
    assert_eq!(progress.done, [("dead".to_owned(), 200)].into());
    // A new endpoint has four requests in flight at most.
    let sent = partner.request_count();
    assert!((1..=4).contains(&sent), "{sent} requests");
}
