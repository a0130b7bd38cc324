//! Svix is away for hours, in virtual time: the relay's clock is the test's, and stands still in between.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use posthaste::config::{Config, SvixConfig};
use posthaste::domain::clock::Clock as _;
use posthaste::mock::{MockSvix, ReceivedRequest, Trouble};
use serde_json::json;

use crate::chaos::{sized, tell};
use crate::support::partners::{MASTER_KEY, call};
use crate::support::{TOKEN, TestClock, TestDatabase, TestRelay, config, eventually, mock_svix};

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);
/// How far the clock goes at once; a minute is three of them.
const STEP: Duration = Duration::from_secs(20);
const STEPS_A_MINUTE: usize = 3;
/// Most that one tenant may have waiting, and all of them together.
const TENANT_CAP: usize = 400;

/// As the way to Svix is set up where nobody sets anything.
fn usual(database: &TestDatabase, svix: &MockSvix) -> Config {
    let mut config = config(database, svix);
    config.svix = SvixConfig {
        token: Some(TOKEN.to_owned().into()),
        server_url: Some(svix.url()),
        ..SvixConfig::default()
    };
    config.master_key = Some(MASTER_KEY.to_owned().into());
    config
}

/// Lets the dispatcher see what time it is: what is known of partners has changed.
async fn nudge(relay: &TestRelay, clock: &TestClock) {
    let name = clock.now().as_millis().to_string();
    call(relay, Method::PUT, "/v1/partners/nudge", json!({"name": name})).await;
}

/// Waits until nothing is sent, and the gate to Svix is closed for some time to come.
async fn is_closed(relay: &TestRelay) {
    let closed = async || {
        let dispatcher = relay.app().dispatcher()?;
        let gates = dispatcher.gates();
        let opens_in = gates.first()?.opens_in?;
        (dispatcher.in_flight() == 0 && !opens_in.is_zero()).then_some(())
    };
    eventually("the gate is closed", closed).await;
}

async fn post(relay: &TestRelay, tenant: &str, first: usize, count: usize) -> u16 {
    let event =
        |n: usize| json!({"id": format!("{tenant}-{n}"), "type": "a", "tenant": tenant, "data": {"n": n}});
    let events: Vec<_> = (first..first + count).map(event).collect();
    let answer = relay.post(json!(events).to_string()).await;
    assert!(answer.status == 202 || answer.header("retry-after").is_some(), "{}", answer.status);
    answer.status.as_u16()
}

async fn hours_without_svix_lose_and_double_nothing(database: TestDatabase) {
    // holds: 29
    // Each step is as long as its commits.
    let hours: u32 = sized(if database.is_postgres() { 2 } else { 6 }, 24);
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let steps = usize::try_from((HOUR * hours).as_secs() / STEP.as_secs()).expect("some");
    // The whale's, one of somebody's with each step, and a little more.
    let cap = TENANT_CAP + steps + 60;
    let mut config = usual(&database, &svix);
    config.ledger.tenant_backlog_max = TENANT_CAP as u64;
    config.ledger.backlog_max = cap as u64;
    let relay = TestRelay::start_at(config, clock.clone()).await;
    svix.set_trouble(Some(Trouble::Reset));
    assert_eq!(post(&relay, "whale", 0, TENANT_CAP).await, 202);
    is_closed(&relay).await;
    assert_eq!(post(&relay, "whale", TENANT_CAP, 1).await, 429, "its cap is reached");
    let burst = svix.requests().len();
    let mut asked = Vec::new();
    for step in 0..steps {
        clock.pass(STEP);
        let before = svix.request_count();
        // It goes on; and it wakes the dispatcher, which looks at the clock.
        assert_eq!(post(&relay, &format!("t{}", step % (hours as usize * 4)), step, 1).await, 202);
        is_closed(&relay).await;
        asked.push(svix.request_count() - before);
    }
    let accepted = TENANT_CAP + steps + fill(&relay).await;
    assert_eq!(accepted, cap, "taken in up to the cap");
    let first_minutes = 3 * STEPS_A_MINUTE;
    let most = asked[first_minutes..].windows(STEPS_A_MINUTE).map(|minute| minute.iter().sum::<u64>()).max();
    let asked: u64 = asked.iter().sum();
    assert!(most <= Some(1), "{most:?} probes in a minute");
    assert!(asked >= u64::from(hours) * 55, "it is asked all the same: {asked} times");
    let drained = drain(&relay, &svix, &clock, accepted).await;
    assert_eq!(post(&relay, "whale", TENANT_CAP, 1).await, 202, "there is room again");
    let progress = relay.finish().await;
    assert_eq!(progress.done.keys().collect::<Vec<_>>(), ["delivered"], "{progress:?}");
    assert_eq!(svix.message_count(), accepted as u64 + 1, "no event twice, and none lost");
    tell(
        &format!("Svix away for {hours} h (virtual)"),
        format!(
            "{burst} requests until the gate closed, then {asked} probes, {} a minute at most; {accepted} events taken in, \
             up to the cap; {drained}; 0 dead, 0 doubled",
            most.unwrap_or_default()
        ),
    );
}

/// Lets minutes pass until Svix has something again; how many. Postgres remembers by its own clock for how long the gate
/// is closed.
async fn comes_back(relay: &TestRelay, svix: &MockSvix, clock: &TestClock) -> u32 {
    for minutes in 1..400 {
        clock.pass(MINUTE);
        nudge(relay, clock).await;
        if svix.wait_for_messages(1, Duration::from_millis(100)).await.is_ok() {
            return minutes;
        }
    }
    panic!("nothing is sent although Svix is back");
}

/// Posts until the relay takes no more; how many it has taken.
async fn fill(relay: &TestRelay) -> usize {
    for n in 0..1_000 {
        match post(relay, "last", n, 1).await {
            202 => {}
            status => {
                assert_eq!(status, 503, "the cap over all tenants");
                return n;
            }
        }
    }
    panic!("no cap");
}

/// Lets Svix come back, slow enough that what is in flight at once can be seen; checks the way back, and tells of it.
async fn drain(relay: &TestRelay, svix: &MockSvix, clock: &Arc<TestClock>, accepted: usize) -> String {
    let before = svix.requests().len();
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(20))));
    comes_back(relay, svix, clock).await;
    relay.settled().await;
    svix.set_trouble(None);
    let mut requests = svix.requests().split_off(before);
    assert_eq!(requests.len(), accepted, "each is sent once");
    requests.sort_by_key(|request| request.received_at);
    let in_flight: Vec<_> = (0..requests.len()).map(|place| in_flight(&requests, place)).collect();
    for (place, (answered, now)) in in_flight.iter().enumerate() {
        assert!(*now <= 1 + answered, "request {place}: {now} in flight after {answered} answers");
    }
    let when = |wide: usize| in_flight.iter().position(|(_, now)| *now >= wide);
    let peak = in_flight.iter().map(|(_, now)| *now).max().unwrap_or_default();
    assert!(peak >= 8, "it grows wide in the end: {peak}");
    format!(
        "drained by ramp: one in flight, two from the {}th request on, eight from the {}th, {peak} at most",
        when(2).unwrap_or_default() + 1,
        when(8).unwrap_or_default() + 1
    )
}

/// How many have been answered by the time that this request came, and how many are in flight then.
fn in_flight(requests: &[Arc<ReceivedRequest>], place: usize) -> (usize, usize) {
    let now = requests[place].received_at;
    let done = |request: &&Arc<ReceivedRequest>| request.answered_at.is_some_and(|at| at <= now);
    let answered = requests[..place].iter().filter(done).count();
    (answered, place + 1 - answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_alone_outlives_days_without_svix() {
    // holds: 29
    let (database, days) = (TestDatabase::sqlite(), 3);
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let relay = TestRelay::start_at(usual(&database, &svix), clock.clone()).await;
    svix.set_trouble(Some(Trouble::Reset));
    assert_eq!(post(&relay, "acme", 0, 1).await, 202);
    // Longer than its whole schedule: there is nothing else whose failures would close the gate.
    let mut probed = 0;
    for _ in 0..days * 24 * 4 {
        let before = svix.request_count();
        clock.pass(HOUR / 4);
        nudge(&relay, &clock).await;
        // While it waits for its own next attempt, none comes.
        let asked = svix.wait_for_requests(before + 1, Duration::from_millis(60)).await;
        probed += usize::from(asked.is_ok());
        assert_eq!(relay.progress().await.pending, 1, "it is not given up");
    }
    let tried = svix.request_count();
    assert!(probed > 30, "{probed}: once the gate is closed, it is a probe again and again");
    svix.set_trouble(None);
    let minutes = comes_back(&relay, &svix, &clock).await;
    assert!(minutes <= 10, "{minutes} minutes until it is sent");
    let progress = relay.finish().await;
    assert_eq!((progress.done["delivered"], svix.message_count()), (1, 1));
    tell(
        &format!("one event, Svix away for {days} days (virtual)"),
        format!(
            "tried {tried} times, never given up; Svix has it {minutes} min (virtual) after its return, as one message"
        ),
    );
}

/// Sends one event into `trouble`, lets it grow so old, and lets it be tried again; how often it was posted.
async fn posts_at_age(
    relay: &TestRelay,
    svix: &MockSvix,
    clock: &TestClock,
    id: usize,
    trouble: Trouble,
    age: Duration,
) -> usize {
    svix.script([trouble]);
    assert_eq!(post(relay, "acme", id, 1).await, 202);
    let failed = async || {
        let log =
            relay.app().ledger().database().attempt_log("acme", &format!("acme-{id}")).await.expect("read");
        (!log.is_empty()).then_some(())
    };
    eventually("the first attempt has failed", failed).await;
    clock.pass(age);
    nudge(relay, clock).await;
    relay.settled().await;
    svix.requests_for(&format!("acme-{id}")).len()
}

async fn what_is_older_than_eleven_hours_is_looked_up_before_it_is_posted(database: TestDatabase) {
    // holds: 27
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let mut config = usual(&database, &svix);
    config.svix.retry_schedule_ms = vec![60_000; 10];
    let relay = TestRelay::start_at(config, clock.clone()).await;
    let ledger = relay.app().ledger().database();
    let (young, old) = (11 * HOUR - MINUTE, 11 * HOUR + MINUTE);

    // Stored, and the answer lost. While Svix knows the key, the same POST gets the same answer.
    let posts = posts_at_age(&relay, &svix, &clock, 0, Trouble::StoredNoAnswer, young).await;
    assert_eq!((posts, svix.requests_for("acme-0")[1].replayed), (2, true));

    // After that it is found, and not posted.
    let posts = posts_at_age(&relay, &svix, &clock, 1, Trouble::StoredNoAnswer, old).await;
    assert_eq!(posts, 1);
    let outcome = &ledger.outcomes("acme", "acme-1").await.expect("read")[0];
    assert_eq!((outcome.state.as_str(), outcome.dispatch_unconfirmed), ("delivered", true));
    let message = svix.message("acme", "acme-1").expect("stored");
    assert_eq!(outcome.remote_id.as_deref(), Some(message.id.as_str()));

    // Never stored: it is not found, and posted.
    let posts = posts_at_age(&relay, &svix, &clock, 2, Trouble::Reset, old).await;
    assert_eq!(posts, 2);

    // Svix has forgotten the key by now, and whoever posts without a look would only have its eventId to rely on.
    svix.forget_idempotency_keys();
    let posts = posts_at_age(&relay, &svix, &clock, 3, Trouble::StoredNoAnswer, 30 * HOUR).await;
    assert_eq!(posts, 1);
    relay.finish().await;
    assert_eq!(svix.message_count(), 4, "one each");
    tell(
        "a retry older than 11 h (virtual)",
        "stored: found by a look-up, not posted again; not stored: posted once more; at 10 h 59 min: posted under its key",
    );
}

on_both_databases!(
    hours_without_svix_lose_and_double_nothing,
    what_is_older_than_eleven_hours_is_looked_up_before_it_is_posted,
);
