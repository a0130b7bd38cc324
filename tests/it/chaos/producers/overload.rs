//! More than it can take: what it takes does not suffer, and the rest is told at once when to come again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::mock::Trouble;
use serde_json::json;

use super::{quantile, serves};
use crate::chaos::{sized, tell};
use crate::ingest::batch;
use crate::support::partners::{MASTER_KEY, add_endpoint};
use crate::support::sink::Sink;
use crate::support::{Answer, HttpClient, RelayProcess, TestDatabase, mock_svix, side_by_side};

/// How much more than it can take.
const TIMES: usize = 3;
/// What must be left of what it takes when it is offered that much.
const LEFT: f64 = 0.9;
/// Ids that each producer has for itself.
const EACH: usize = 1_000_000;

on_both_databases!(
    a_load_of_three_times_what_leaves_costs_no_goodput,
    a_load_of_three_times_a_tenants_limit_costs_no_goodput
);

/// What became of what was offered.
#[derive(Default)]
struct Tally {
    accepted: usize,
    /// Refusals, by status and code.
    refused: BTreeMap<(u16, String), usize>,
    times: Vec<Duration>,
    refusal_times: Vec<Duration>,
}

impl Tally {
    fn count(&mut self, answer: &Answer, events: usize, time: Duration) {
        if answer.status == 202 {
            self.accepted += events;
            self.times.push(time);
            return;
        }
        let wait: u32 = answer.header("retry-after").expect("when to come again").parse().expect("seconds");
        assert!((1..=60).contains(&wait), "{wait}");
        let status = answer.status.as_u16();
        assert!(status == 429 || status == 503, "{status}: {}", answer.json());
        *self.refused.entry((status, answer.problem())).or_default() += events;
        self.refusal_times.push(time);
    }

    fn add(mut self, other: Self) -> Self {
        self.accepted += other.accepted;
        for (kind, count) in other.refused {
            *self.refused.entry(kind).or_default() += count;
        }
        self.times.extend(other.times);
        self.refusal_times.extend(other.refusal_times);
        self
    }
}

/// Posts batches of `events`, one every `pace` where the one before was answered, for so long.
async fn produce(
    client: HttpClient,
    first: usize,
    events: usize,
    pace: Option<Duration>,
    time: Duration,
) -> Tally {
    let (mut tally, mut next, until) = (Tally::default(), first, Instant::now() + time);
    // Not all at the same moment.
    let mut ticks = pace.map(|pace| {
        let begin = tokio::time::Instant::now() + pace.mul_f64((first / EACH) as f64 * 0.618 % 1.0);
        tokio::time::interval_at(begin, pace)
    });
    while Instant::now() < until {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let asked = Instant::now();
        let answer = client.post(batch(next, events)).await;
        tally.count(&answer, events, asked.elapsed());
        next += events;
    }
    tally
}

/// The same by so many producers side by side, each with ids of its own that begin at `first`.
async fn offer(
    relay: &RelayProcess,
    first: usize,
    producers: usize,
    events: usize,
    pace: Option<Duration>,
    time: Duration,
) -> Tally {
    let all = (0..producers).map(|n| produce((**relay).clone(), first + n * EACH, events, pace, time));
    side_by_side(all).await.into_iter().fold(Tally::default(), Tally::add)
}

/// Fails where goodput suffers or the rest is not told at once; says how it went.
fn compare(name: &str, capacity: usize, mut over: Tally, time: Duration) {
    let goodput = over.accepted as f64 / capacity as f64;
    let told =
        if over.refusal_times.is_empty() { Duration::ZERO } else { quantile(&mut over.refusal_times, 0.99) };
    let taken = quantile(&mut over.times, 0.99);
    let second = time.as_secs_f64();
    tell(
        name,
        format!(
            "{:.0} events/s taken, {:.0} of {TIMES} times the load: {:.1} %; refused {:?}, told within {:.1} ms (p99); \
             taken within {:.1} ms (p99)",
            capacity as f64 / second,
            over.accepted as f64 / second,
            goodput * 100.0,
            over.refused,
            told.as_secs_f64() * 1e3,
            taken.as_secs_f64() * 1e3,
        ),
    );
    assert!(goodput >= LEFT, "{name}: {:.1} % of {capacity}", goodput * 100.0);
    assert!(told < Duration::from_secs(1), "{name}: refusals take {told:?}");
}

/// Events leave at 160 a second, and 200 may wait.
async fn a_load_of_three_times_what_leaves_costs_no_goodput(database: TestDatabase) {
    // holds: 7
    const PER_SECOND: u32 = 160;
    let (svix, time) = (mock_svix().await, sized(Duration::from_secs(4), Duration::from_secs(30)));
    let variables = [
        ("POSTHASTE_SVIX__MAX_IN_FLIGHT", "16"),
        ("POSTHASTE_SVIX__MIN_IN_FLIGHT", "16"),
        ("POSTHASTE_LEDGER__BACKLOG_MAX", "200"),
    ];
    let relay = RelayProcess::start(&database, &svix, &variables);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(100))));
    let producers = 8_u32;
    let pace = Duration::from_secs(1) * producers / PER_SECOND;
    // Filled first: what fits into an empty backlog is no goodput.
    let fill = offer(&relay, 0, 8, 1, None, Duration::from_secs(1)).await;
    assert!(!fill.refused.is_empty(), "it is full");
    let capacity = offer(&relay, 100_000_000, producers as usize, 1, Some(pace), time).await;
    let over = offer(&relay, 200_000_000, TIMES * producers as usize, 1, Some(pace), time).await;
    assert!(over.refused.keys().all(|kind| *kind == (503, "backlog_full".to_owned())), "{:?}", over.refused);
    assert!(!over.refused.is_empty(), "it is no overload");
    let name =
        format!("overload: backlog full, {}", if database.is_postgres() { "Postgres" } else { "SQLite" });
    compare(&name, capacity.accepted, over, time);
    svix.set_trouble(None);
    crate::support::eventually("the backlog is sent", async || {
        let ready = relay.get("/health/ready").await;
        (ready.json()["waiting"] == 0).then_some(())
    })
    .await;
    serves(&relay, 900_000_000).await;
}

/// A tenant may put in 200 events a second.
async fn a_load_of_three_times_a_tenants_limit_costs_no_goodput(database: TestDatabase) {
    // holds: 7
    let (svix, time) = (mock_svix().await, sized(Duration::from_secs(4), Duration::from_secs(30)));
    let variables =
        [("POSTHASTE_INGEST__TENANT_PER_SECOND", "200"), ("POSTHASTE_INGEST__TENANT_BURST", "40")];
    let relay = RelayProcess::start(&database, &svix, &variables);
    let pace = Duration::from_millis(400);
    let capacity = offer(&relay, 0, 8, 10, Some(pace), time).await;
    let over = offer(&relay, 100_000_000, TIMES * 8, 10, Some(pace), time).await;
    let expected = (429, "tenant_ingest_limit".to_owned());
    assert!(over.refused.keys().all(|kind| *kind == expected), "{:?}", over.refused);
    assert!(over.refused[&expected] > over.accepted / 2, "it is no overload: {:?}", over.refused);
    let name =
        format!("overload: tenant's limit, {}", if database.is_postgres() { "Postgres" } else { "SQLite" });
    compare(&name, capacity.accepted, over, time);
    tokio::time::sleep(Duration::from_secs(1)).await;
    serves(&relay, 900_000_000).await;
}

/// Everything that the machine has: producers that post as fast as they are answered, and three times as many of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_three_times_the_producers_costs_no_goodput() {
    // holds: 7
    const PRODUCERS: usize = 128;
    const EVENTS: usize = 50;
    let (database, svix, sink) = (TestDatabase::sqlite(), mock_svix().await, Sink::start().await);
    let variables = [
        ("POSTHASTE_MASTER_KEY", MASTER_KEY),
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        // More is taken than leaves: it is not to be the backlog that ends this.
        ("POSTHASTE_LEDGER__TENANT_BACKLOG_MAX", "10000000"),
    ];
    let relay = RelayProcess::start(&database, &svix, &variables);
    let direct = relay
        .send(
            Method::PUT,
            "/v1/tenants/acme",
            &crate::support::partners::JSON,
            json!({"route": "direct"}).to_string(),
        )
        .await;
    assert_eq!(direct.status, 201);
    add_endpoint(&relay, "crm", json!({"url": sink.url("/")})).await;
    let time = sized(Duration::from_secs(2), Duration::from_secs(15));
    // By turns, so that what else the machine does meets both.
    let (mut capacity, mut over) = (0, Tally::default());
    offer(&relay, 0, PRODUCERS, EVENTS, None, Duration::from_secs(1)).await;
    for turn in 1..=3 {
        let first = turn * 1_000_000_000;
        capacity += offer(&relay, first, PRODUCERS, EVENTS, None, time).await.accepted;
        over = over.add(offer(&relay, first + 500_000_000, TIMES * PRODUCERS, EVENTS, None, time).await);
    }
    let slowest = over.times.iter().max().copied().unwrap_or_default();
    assert!(slowest < Duration::from_secs(10), "{slowest:?}: no producer is forgotten");
    compare("overload: 128 producers as fast as they are answered, then 384", capacity, over, 3 * time);
    serves(&relay, 900_000_000_000).await;
}
