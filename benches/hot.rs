//! What an event costs on its way, piece by piece: `cargo bench --bench hot`.
//!
//! The ledger's pieces run on a SQLite file in the build directory, and on Postgres too where
//! `POSTHASTE_TEST_POSTGRES_URL` names a server (a database of its own is made there, and dropped).

#[path = "hot/event.rs"]
mod event;
#[path = "hot/ledger.rs"]
mod ledger;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use http::HeaderMap;
use posthaste::domain::clock::{Moment, Timestamp};
use posthaste::domain::delivery::Class;
use posthaste::domain::event::{Fingerprint, Identity};
use posthaste::domain::gate::{GateLimits, Signal};
use posthaste::domain::key::idempotency_key;
use posthaste::domain::parse::{Incoming, ParseSettings, parse};
use posthaste::domain::partner::{EventTypeFilter, SignatureScheme, Subscription, Subscriptions};
use posthaste::domain::scheduler::{Remaining, Scheduler, SchedulerLimits};
use posthaste::domain::tenant::{Destination, Lane, LaneId};
use posthaste::send::signature::{EndpointSecret, sign};

use self::event::event;

/// Events in a batch.
const BATCH: usize = 100;

fn main() {
    divan::main();
}

fn id(number: usize) -> String {
    format!("evt_{number:032x}")
}

/// A batch as a producer sends it.
fn batch() -> String {
    let events: Vec<_> = (0..BATCH).map(|number| event(&id(number))).collect();
    format!("[{}]", events.join(","))
}

fn parse_settings() -> ParseSettings {
    ParseSettings {
        tenant_attributes: ["tenant", "project", "account"].map(str::to_owned).into(),
        default_tenant: None,
        require_id: false,
        max_batch_events: 1_000,
        max_event_bytes: 1 << 20,
    }
}

/// A body of 100 events of 500 bytes.
#[divan::bench]
fn parse_100(bencher: Bencher<'_, '_>) {
    let (settings, headers) = (parse_settings(), HeaderMap::new());
    let incoming = Incoming {
        body: Bytes::from(batch()),
        content_type: Some("application/json"),
        headers: &headers,
        tenant: None,
    };
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| parse(black_box(&incoming), &settings));
}

/// What tells a duplicate from a conflict, over data as machines write it and as people do.
#[divan::bench(args = ["compact", "indented"])]
fn fingerprint(bencher: Bencher<'_, '_>, form: &str) {
    let event: serde_json::Value = serde_json::from_str(&event(&id(1))).expect("JSON");
    let data = if form == "compact" { event["data"].to_string() } else { format!("{:#}", event["data"]) };
    bencher
        .counter(BytesCount::of_str(&data))
        .bench_local(|| Fingerprint::of("order.created", Some(black_box(&data))));
}

/// From tenant and type to the endpoints that want it, of which there are ten in 10,000.
#[divan::bench]
fn route_among_10_000_endpoints(bencher: Bencher<'_, '_>) {
    let endpoints: Vec<_> = (0..10_000)
        .map(|number: u32| {
            let event_type = if number < 10 { "order.*".to_owned() } else { format!("invoice.n{number}.*") };
            let filter = EventTypeFilter::parse(&event_type).expect("a filter");
            let tenant = if number.is_multiple_of(2) { None } else { Some("acme") };
            (Arc::<str>::from(format!("ep_{number}")), tenant, [filter])
        })
        .collect();
    let index = Subscriptions::new(endpoints.iter().map(|(id, tenant, event_types)| Subscription {
        id,
        tenant: *tenant,
        event_types,
    }));
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        let matching = index.matching(black_box("acme"), black_box("order.created"));
        matching.map(|id| Arc::new(Destination::Endpoint { id: id.clone() })).collect::<Vec<_>>()
    });
}

#[divan::bench]
fn idempotency_key_of_a_delivery(bencher: Bencher<'_, '_>) {
    let identity = Identity { tenant: "acme".into(), source: "/shop".into(), id: id(1).into() };
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| idempotency_key("production", black_box("svix:acme"), black_box(&identity)));
}

/// Standard Webhooks, one secret, 500 bytes.
#[divan::bench]
fn sign_500_bytes(bencher: Bencher<'_, '_>) {
    let secret =
        EndpointSecret::parse(&SignatureScheme::StandardWebhooks, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    let secrets = [secret.expect("a secret")];
    let identity = Identity { tenant: "acme".into(), source: "/shop".into(), id: id(1).into() };
    let key = idempotency_key("production", "ep_1", &identity);
    let body = event(&id(1));
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        sign(
            &SignatureScheme::StandardWebhooks,
            &secrets,
            &key,
            black_box(1_700_000_000),
            black_box(body.as_bytes()),
        )
    });
}

const LANES: i64 = 10_000;
const OPEN: GateLimits = GateLimits {
    max_in_flight: 64,
    unproven_in_flight: 64,
    failures_to_close: 10,
    failing_for: Duration::from_secs(30),
    first_wait: Duration::from_secs(5),
    max_wait: Duration::from_secs(300),
    adaptive: None,
};

/// One round over 10,000 lanes with work, each of another endpoint: pick, and finish with success.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn pick_and_finish_over_10_000_lanes(bencher: Bencher<'_, '_>) {
    let endpoint = |number| Arc::new(Destination::Endpoint { id: format!("ep_{number}").into() });
    let lanes: Vec<_> = (0..LANES)
        .map(|number| {
            Arc::new(Lane { id: LaneId(number), destination: endpoint(number), tenant: "acme".into() })
        })
        .collect();
    bencher.counter(ItemsCount::new(lanes.len())).with_inputs(|| with_work(&lanes)).bench_local_refs(
        |scheduler| {
            let now = Moment::after_start(Duration::from_millis(1));
            for _ in 0..LANES {
                let start = scheduler.next(now).expect("work");
                let _ = scheduler.finish(&lanes[start.item], start.permit, Signal::Success, now, 0.5);
            }
        },
    );
}

/// A scheduler in which every lane has a few deliveries buffered; a delivery is the index of its lane.
fn with_work(lanes: &[Arc<Lane>]) -> Scheduler<usize> {
    let limits = SchedulerLimits {
        max_in_flight: 512,
        max_in_flight_per_destination: 64,
        max_buffered: 4 * lanes.len(),
        max_claim: 256,
    };
    let mut scheduler = Scheduler::new(limits, OPEN, OPEN);
    let now = Timestamp::from_millis(1);
    for lane in lanes {
        scheduler.wake(lane, Class::Fresh, now, now);
    }
    let leased_until = Moment::after_start(Duration::from_secs(60));
    for claim in scheduler.claims(Moment::default()) {
        let index = usize::try_from(claim.lane.id.0).expect("small");
        scheduler.claimed(&claim, vec![index; claim.limit], leased_until, Remaining::Nothing, now);
    }
    scheduler
}
