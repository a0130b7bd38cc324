//! A whale's backlog, a slow receiver, a hanging one, a limited one: none of it is anybody else's trouble.
//!
//! The relay is a process of its own and the receivers are on a thread of their own, so that what is measured is the
//! relay, as far as the machine's cores allow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::domain::tenant::{Destination, Lane, LaneId};
use serde_json::{Value, json};

use crate::support::sink::Sink;
use crate::support::{HttpClient, RelayProcess, TestClock, TestDatabase, mock_svix, side_by_side};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const SETTINGS: [(&str, &str); 2] = [
    ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
    ("POSTHASTE_MASTER_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
];
const SMALL_TENANTS: usize = 20;
const EVENTS_EACH: usize = 50;

on_both_databases! {
    load_small_tenants_do_not_wait_behind_a_whale,
    load_small_tenants_do_not_wait_behind_a_slow_receiver,
}

/// Makes a partner, or sets it to these settings.
async fn set_partner(relay: &HttpClient, partner: &str, mut settings: Value) {
    settings["name"] = partner.into();
    let made = relay.send(Method::PUT, &format!("/v1/partners/{partner}"), &JSON, settings.to_string()).await;
    assert!(made.status.is_success(), "{}", made.json());
}

/// Makes a partner with these settings and an endpoint for one tenant, which goes nowhere else.
async fn subscribe(relay: &HttpClient, partner: &str, settings: Value, tenant: &str, url: String) {
    let route = json!({"route": "direct"}).to_string();
    let routed = relay.send(Method::PUT, &format!("/v1/tenants/{tenant}"), &JSON, route).await;
    assert!(routed.status.is_success(), "{}", routed.json());
    set_partner(relay, partner, settings).await;
    let endpoint = json!({"url": url, "tenant": tenant, "timeout_ms": 10_000});
    let path = format!("/v1/partners/{partner}/endpoints");
    let added = relay.send(Method::POST, &path, &JSON, endpoint.to_string()).await;
    assert_eq!(added.status, 201, "{}", added.json());
}

async fn subscribe_small_tenants(relay: &HttpClient, sink: &Sink) {
    for n in 0..SMALL_TENANTS {
        let name = format!("small{n}");
        subscribe(relay, &name, json!({}), &name, sink.url(&format!("/small/{n}"))).await;
    }
}

fn event(tenant: &str, id: &str) -> Value {
    json!({"id": id, "type": "order.created", "tenant": tenant, "data": {"total": 1}})
}

/// Lets `count` deliveries of `tenant` wait for its only endpoint. No relay may run meanwhile.
async fn backlog(database: &TestDatabase, tenant: &str, count: i64) {
    let clock = TestClock::new();
    let id = database.text(&format!("SELECT CAST(id AS TEXT) FROM lane WHERE tenant = '{tenant}'")).await;
    let id = LaneId(id.parse().expect("a number"));
    let destination = Arc::new(Destination::Svix { app: "unused".into() });
    let lane = Lane { id, destination, tenant: tenant.into() };
    database.wait_in(&lane, count, posthaste::domain::clock::Clock::now(&*clock)).await;
}

/// Every small tenant posts its events in five batches; the worst 99th percentile of any of them, from the answer to
/// the arrival.
async fn worst_p99(relay: &HttpClient, sink: &Sink, round: &str) -> Duration {
    const BATCHES: usize = 5;
    let before = sink.count("/small");
    let posting = (0..SMALL_TENANTS).map(|tenant| {
        let (relay, name) = (relay.clone(), format!("small{tenant}"));
        let round = round.to_owned();
        async move {
            let mut answered = HashMap::new();
            for batch in 0..BATCHES {
                let ids: Vec<_> =
                    (0..EVENTS_EACH / BATCHES).map(|n| format!("{round}-{name}-{batch}-{n}")).collect();
                let events: Vec<_> = ids.iter().map(|id| event(&name, id)).collect();
                assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
                let now = Instant::now();
                answered.extend(ids.into_iter().map(|id| (id, now)));
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            answered
        }
    });
    let answered = side_by_side(posting).await;
    let all = before + SMALL_TENANTS * EVENTS_EACH;
    assert!(sink.wait_for("/small", all, Duration::from_secs(30)).await, "{} of {all}", sink.count("/small"));
    let arrived: HashMap<_, _> =
        sink.arrivals().into_iter().map(|arrival| (arrival.id, arrival.at)).collect();
    let p99 = |answered: &HashMap<String, Instant>| {
        let mut waits: Vec<_> =
            answered.iter().map(|(id, at)| arrived[id].saturating_duration_since(*at)).collect();
        waits.sort_unstable();
        waits[(waits.len() * 99).div_ceil(100) - 1]
    };
    answered.iter().map(p99).max().expect("tenants")
}

/// The median of three rounds: the machine does other things too.
async fn median_of_three(relay: &HttpClient, sink: &Sink, round: &str) -> Duration {
    let mut rounds = Vec::new();
    for n in 0..3 {
        rounds.push(worst_p99(relay, sink, &format!("{round}{n}")).await);
    }
    rounds.sort_unstable();
    rounds[1]
}

/// The small tenants' worst p99 without the whale and beside it, with its backlog at an endpoint at `path`.
async fn beside_a_whale(database: TestDatabase, path: &str, settings: Value, waiting: i64) {
    let (svix, sink) = (mock_svix().await, Sink::start().await);
    let relay = RelayProcess::start(&database, &svix, &SETTINGS);
    subscribe_small_tenants(&relay, &sink).await;
    subscribe(&relay, "whale", settings, "whale", sink.url(path)).await;
    // The whale's lane and everybody's connections are there.
    assert_eq!(relay.post(event("whale", "first").to_string()).await.status, 202);
    worst_p99(&relay, &sink, "warm").await;
    let alone = median_of_three(&relay, &sink, "alone").await;
    relay.kill();
    backlog(&database, "whale", waiting).await;
    let relay = RelayProcess::start(&database, &svix, &SETTINGS);
    let before = sink.count(path);
    assert!(sink.wait_for(path, before + 50, Duration::from_secs(20)).await, "the whale is under way");
    worst_p99(&relay, &sink, "warm2").await;
    let (from, began) = (sink.count(path), Instant::now());
    let beside = median_of_three(&relay, &sink, "beside").await;
    let whale = (sink.count(path) - from) as f64 / began.elapsed().as_secs_f64();
    println!(
        "p99 of the worst of {SMALL_TENANTS}: alone {alone:?}, beside {waiting} waiting {beside:?} (the whale got {whale:.0}/s)"
    );
    let allowed = alone.mul_f64(1.5).max(alone + Duration::from_millis(50));
    assert!(beside <= allowed, "{beside:?} beside the whale, {alone:?} without");
    assert!((sink.count(path) as i64) < waiting, "the whale still had work");
    relay.kill();
}

async fn load_small_tenants_do_not_wait_behind_a_whale(database: TestDatabase) {
    // holds: 39
    let capped = json!({"rate_limit": {"per_second": 2_000, "burst": 2_000}});
    beside_a_whale(database, "/whale", capped, 200_000).await;
}

async fn load_small_tenants_do_not_wait_behind_a_slow_receiver(database: TestDatabase) {
    // holds: 38, 39
    beside_a_whale(database, "/slow", json!({}), 20_000).await;
}

/// Deliveries a second to the small tenants' endpoints, from the first post to the last arrival.
async fn throughput(relay: &HttpClient, sink: &Sink, round: &str) -> f64 {
    const EACH: usize = 400;
    let before = sink.count("/small");
    let began = Instant::now();
    let posting = (0..SMALL_TENANTS).map(|tenant| {
        let (relay, name) = (relay.clone(), format!("small{tenant}"));
        let events: Vec<_> = (0..EACH).map(|n| event(&name, &format!("{round}-{n}"))).collect();
        async move { assert_eq!(relay.post(json!(events).to_string()).await.status, 202) }
    });
    side_by_side(posting).await;
    let all = SMALL_TENANTS * EACH;
    assert!(sink.wait_for("/small", before + all, Duration::from_secs(30)).await, "all arrive");
    all as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_healthy_partners_lose_nothing_to_a_limited_and_a_hanging_one() {
    // holds: 38, 40
    /// Pairs of rounds, and how many more where the machine's other work may have been what was measured.
    const PAIRS: (usize, usize) = (8, 24);
    let (database, svix, sink) = (TestDatabase::sqlite(), mock_svix().await, Sink::start().await);
    let relay = RelayProcess::start(&database, &svix, &SETTINGS);
    subscribe_small_tenants(&relay, &sink).await;
    let limited = json!({"rate_limit": {"per_second": 10, "burst": 10}});
    let paused = |mut settings: Value| {
        settings["paused"] = true.into();
        settings
    };
    for (partner, settings) in [("limited", limited.clone()), ("hang", json!({}))] {
        subscribe(&relay, partner, paused(settings), partner, sink.url(&format!("/{partner}"))).await;
        let events: Vec<_> = (0..2_000).map(|n| event(partner, &n.to_string())).collect();
        assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
    }
    for warm in ["warm0", "warm1"] {
        throughput(&relay, &sink, warm).await;
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // Each first in turn, so that a drift meets both alike.
    for round in 0..2 * PAIRS.1 {
        let trouble = matches!(round % 4, 1 | 2);
        for (partner, settings) in [("limited", limited.clone()), ("hang", json!({}))] {
            set_partner(&relay, partner, if trouble { settings } else { paused(settings) }).await;
        }
        // What is measured is the standing trouble, not its beginning.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = sink.count("/limited");
        let rate = throughput(&relay, &sink, &format!("round{round}")).await;
        if trouble {
            with.push(rate);
            let got = sink.wait_for("/limited", before + 1, Duration::from_secs(5)).await;
            assert!(got, "the limited one is at work");
        } else {
            without.push(rate);
        }
        let shown = with.iter().sum::<f64>() >= 0.95 * without.iter().sum::<f64>();
        if round + 1 >= 2 * PAIRS.0 && with.len() == without.len() && shown {
            break;
        }
    }
    let ratio = with.iter().sum::<f64>() / without.iter().sum::<f64>();
    println!(
        "to 20 healthy partners: {without:.0?}/s without, {with:.0?}/s beside a limited and a hanging one: {ratio:.3}"
    );
    assert!(sink.count("/hang") >= 4, "the hanging one was tried");
    assert!(ratio >= 0.95, "{with:?} beside, {without:?} without");
    relay.kill();
}

/// Where a limited partner's deliveries wait, and who sends them.
struct Limited {
    database: TestDatabase,
    sink: Sink,
    nodes: Vec<RelayProcess>,
}

const PER_SECOND: f64 = 10.0;
const BURST: f64 = 10.0;
const WAITING: usize = 1_500;
const MEASURED: Duration = Duration::from_secs(60);

impl Limited {
    async fn start(database: TestDatabase, nodes: usize, svix: &posthaste::mock::MockSvix) -> Self {
        let sink = Sink::start().await;
        let nodes: Vec<_> = (0..nodes).map(|_| RelayProcess::start(&database, svix, &SETTINGS)).collect();
        let limit = json!({"rate_limit": {"per_second": PER_SECOND, "burst": BURST as u32}});
        subscribe(&nodes[0], "limited", limit, "limited", sink.url("/limited")).await;
        // Every node knows of the endpoint.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let events: Vec<_> = (0..WAITING).map(|n| event("limited", &n.to_string())).collect();
        assert_eq!(nodes[0].post(json!(events).to_string()).await.status, 202);
        Self { database, sink, nodes }
    }

    fn restart_one(&mut self, svix: &posthaste::mock::MockSvix) {
        self.nodes.remove(0).kill();
        self.nodes.push(RelayProcess::start(&self.database, svix, &SETTINGS));
    }

    /// How many came in the minute since the first, after a look at every window.
    fn count(&self) -> usize {
        /// An arrival is seen a little after the send that the promise is about, or the one before it is.
        const JITTER_S: f64 = 0.1;
        let times: Vec<_> = self.sink.arrivals().iter().map(|arrival| arrival.at).collect();
        for (first, start) in times.iter().enumerate() {
            for (last, end) in times.iter().enumerate().skip(first) {
                let seconds = end.duration_since(*start).as_secs_f64() + JITTER_S;
                let most = BURST + PER_SECOND * seconds;
                assert!((last - first + 1) as f64 <= most, "{} in {seconds} s", last - first + 1);
            }
        }
        times.iter().filter(|at| at.duration_since(times[0]) <= MEASURED).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_partner_gets_its_rate_over_restarts_and_nodes() {
    // holds: 40
    let svix = mock_svix().await;
    let mut plain = Limited::start(TestDatabase::sqlite(), 1, &svix).await;
    let mut restarted = Limited::start(TestDatabase::sqlite(), 1, &svix).await;
    let mut nodes = Limited::start(TestDatabase::postgres().await, 2, &svix).await;
    let mut dying = Limited::start(TestDatabase::postgres().await, 2, &svix).await;
    tokio::time::sleep(MEASURED / 2).await;
    restarted.restart_one(&svix);
    dying.restart_one(&svix);
    tokio::time::sleep(MEASURED / 2 + Duration::from_secs(3)).await;
    let named = [
        ("one node", &mut plain),
        ("killed and started again", &mut restarted),
        ("two nodes", &mut nodes),
        ("two nodes, one killed and started again", &mut dying),
    ];
    let counts = named.map(|(name, limited)| (name, limited.count()));
    println!("a partner limited to 10/s got in 60 s: {counts:?}");
    for (name, count) in counts {
        assert!((570..=610).contains(&count), "{name}: {count}");
    }
    for limited in [plain, restarted, nodes, dying] {
        limited.nodes.into_iter().for_each(RelayProcess::kill);
    }
}
