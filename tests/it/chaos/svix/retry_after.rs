//! Every form of `Retry-After`, on 429 and on 503.

use std::time::{Duration, Instant, SystemTime};

use posthaste::mock::{MockSvix, Trouble};
use serde_json::json;

use crate::chaos::tell;
use crate::support::{TestDatabase, TestRelay, config, mock_svix};

/// The longest that is honoured.
const CLAMP: Duration = Duration::from_millis(1_200);
/// What is waited where nothing is named, ±20 %.
const BACKOFF: Duration = Duration::from_millis(300);
/// What was on its way when the gate closed may still come in so much later.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// What was sent before is answered only then: no place comes free before the answer that closes the gate is read.
const SLOW: Duration = Duration::from_millis(200);
/// How much later than it may the first goes, at most.
const LATE: Duration = Duration::from_millis(400);
const TENANTS: usize = 10;
const EVENTS: usize = 20;
const IN_FLIGHT: usize = 8;

/// A header, and the shortest and longest wait that it may lead to.
struct Form {
    name: &'static str,
    header: Option<String>,
    least: Duration,
    most: Duration,
}

fn form(name: &'static str, header: &str, least: Duration, most: Duration) -> Form {
    Form { name, header: Some(header.to_owned()), least, most }
}

/// All forms; the date is two seconds from now, which is told in whole ones.
fn forms() -> Vec<Form> {
    let (now, none) = (SystemTime::now(), Duration::ZERO);
    let exactly = |name, header, wait| form(name, header, wait, wait);
    let backoff = |name, header| form(name, header, BACKOFF.mul_f64(0.8), BACKOFF.mul_f64(1.2));
    let date = httpdate::fmt_http_date(now + Duration::from_secs(2));
    vec![
        form("an HTTP-date", &date, Duration::from_secs(1).saturating_sub(LATE / 4), CLAMP),
        exactly("seconds", "1", Duration::from_secs(1)),
        exactly("a fraction", "0.4", Duration::from_millis(400)),
        exactly("none", "0", none),
        exactly("a date in the past", "Thu, 01 Jan 1970 00:00:00 GMT", none),
        exactly("a date far away", "Sat, 06 Nov 2094 08:49:37 GMT", CLAMP),
        exactly("a huge number", "99999999999999999999999999", CLAMP),
        backoff("garbage", "soon"),
        backoff("a negative number", "-5"),
        Form { name: "no header", header: None, ..backoff("", "") },
    ]
}

/// Throttles one request of a batch of all tenants; how long nobody sent, and how many were under way.
async fn throttle(
    relay: &TestRelay,
    svix: &MockSvix,
    round: usize,
    status: u16,
    form: &Form,
) -> (Duration, usize) {
    let before = svix.requests().len();
    let retry_after = form.header.clone();
    let throttled = Trouble::Answer { status, retry_after, body: "{}".into() };
    svix.script(std::iter::once(throttled).chain(vec![Trouble::Slow(SLOW); IN_FLIGHT - 1]));
    let event =
        |n: usize| json!({"id": format!("{round}-{n}"), "type": "a", "tenant": format!("t{}", n % TENANTS)});
    let events: Vec<_> = (0..EVENTS).map(event).collect();
    assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
    relay.settled().await;
    let requests = svix.requests().split_off(before);
    let throttled = requests.iter().find(|request| request.status == Some(status)).expect("one is throttled");
    let closed_at = throttled.answered_at.expect("answered");
    let after =
        |at: Instant| requests.iter().map(|request| request.received_at).filter(move |came| *came > at);
    let under_way =
        after(closed_at).filter(|came| *came <= closed_at + UNDER_WAY.min(form.least / 2)).count();
    let first = after(closed_at + UNDER_WAY.min(form.least / 2)).min().expect("one goes when it may");
    let tenants: std::collections::HashSet<_> = requests.iter().map(|request| request.app.clone()).collect();
    assert_eq!((tenants.len(), requests.len()), (TENANTS, EVENTS + 1), "everybody is served, and once");
    (first - closed_at, under_way)
}

async fn every_form_of_retry_after_holds_everybody_back_as_long_as_it_says(database: TestDatabase) {
    // holds: 25
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.max_in_flight = IN_FLIGHT.try_into().expect("a few");
    config.svix.retry_after_max_ms = CLAMP.as_millis().try_into().expect("a short time");
    config.svix.probe_first_ms = BACKOFF.as_millis().try_into().expect("a short time");
    config.svix.probe_max_ms = 10_000;
    // One failure would be the end.
    config.svix.retry_schedule_ms = Vec::new();
    let relay = TestRelay::start_with(config).await;
    let mut rounds = 0;
    for status in [429, 503] {
        // A 503 that names no time is a failure like any other.
        for number in 0..forms().len() - usize::from(status == 503) {
            let form = &forms()[number];
            let (waited, under_way) = throttle(&relay, &svix, rounds, status, form).await;
            rounds += 1;
            let (least, most) = (form.least.saturating_sub(Duration::from_millis(5)), form.most + LATE);
            assert!(waited >= least && waited <= most, "{status}, {}: {waited:?}", form.name);
            assert!(under_way < IN_FLIGHT, "{status}, {}: {under_way} were under way", form.name);
            tell(
                &format!("Retry-After on {status}: {}", form.name),
                format!(
                    "nothing for {} ms ({} to {} wanted)",
                    waited.as_millis(),
                    least.as_millis(),
                    form.most.as_millis()
                ),
            );
        }
    }
    let progress = relay.finish().await;
    assert_eq!(progress.done.keys().collect::<Vec<_>>(), ["delivered"], "not one failure was counted");
    assert_eq!(svix.message_count(), (rounds * EVENTS) as u64);
}

async fn a_503_without_it_is_a_failure(database: TestDatabase) {
    // holds: 25
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    svix.script([Trouble::Status(503)]);
    relay.post(r#"{"id":"1","type":"a"}"#).await;
    relay.settled().await;
    let outcomes = relay.app().ledger().database().outcomes("acme", "1").await.expect("read");
    assert_eq!((outcomes[0].state.as_str(), outcomes[0].failures, outcomes[0].attempts), ("delivered", 1, 2));
    relay.finish().await;
}

on_both_databases!(
    every_form_of_retry_after_holds_everybody_back_as_long_as_it_says,
    a_503_without_it_is_a_failure,
);
