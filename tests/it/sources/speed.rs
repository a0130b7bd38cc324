//! How fast a source is read, beside HTTP on the same machine and with as many events in a batch.

use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::NamedTempFile;

use super::nats::NatsQueue;
use super::{Outgoing, Queue, source_file};
use crate::support::{HttpClient, RelayProcess, TestDatabase, metrics, mock_svix, side_by_side};

const BATCH: usize = 100;
/// Enough for seconds, in either build.
const EVENTS: usize = if cfg!(debug_assertions) { 40_000 } else { 400_000 };
const PRODUCERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);
/// Tenants go nowhere: what is measured is the way in.
const NOWHERE: (&str, &str) = ("POSTHASTE_SVIX__TOKEN", "");

/// Some 500 bytes, with an id in the order of time.
fn event(n: usize) -> serde_json::Value {
    let text = "x".repeat(400);
    json!({"id": format!("evt_{n:012}"), "type": "order.created", "tenant": "acme", "data": {"n": n, "text": text}})
}

fn array(first: usize) -> String {
    json!((first..first + BATCH).map(event).collect::<Vec<_>>()).to_string()
}

/// How many events the relay has accepted so far.
async fn accepted(relay: &HttpClient) -> usize {
    let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
    let accepted = metrics::sum(&text, "posthaste_ingest_events_total", &["verdict=\"accepted\""]);
    accepted.unwrap_or_default() as usize
}

/// Events a second over HTTP.
async fn over_http() -> f64 {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[NOWHERE]);
    let bodies: Vec<_> = (0..EVENTS / BATCH).map(|number| array(number * BATCH)).collect();
    let producer = |part: Vec<String>| {
        let client = (*relay).clone();
        async move {
            for body in part {
                assert_eq!(client.post(body).await.status, 202);
            }
        }
    };
    let parts: Vec<_> =
        bodies.chunks(bodies.len().div_ceil(PRODUCERS)).map(|part| producer(part.to_vec())).collect();
    let began = Instant::now();
    side_by_side(parts).await;
    EVENTS as f64 / began.elapsed().as_secs_f64()
}

/// Events a second from a stream that holds them all already.
async fn from_nats(messages: impl Fn(usize) -> Vec<Outgoing>, settings: &str) -> f64 {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let queue = NatsQueue::start().await;
    for first in (0..EVENTS).step_by(10 * BATCH) {
        queue.publish(&messages(first)).await;
    }
    let file: NamedTempFile = source_file(&queue, settings);
    let config = ("POSTHASTE_CONFIG", file.path().to_str().expect("UTF-8"));
    let relay = RelayProcess::start(&database, &svix, &[NOWHERE, config]);
    // From the first ones on: how long a connection takes is not what is measured.
    let (mut start, mut done) = (None, 0);
    let deadline = Instant::now() + PATIENCE;
    while done < EVENTS {
        assert!(Instant::now() < deadline, "{done} of {EVENTS} in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
        done = accepted(&relay).await;
        if done > 0 {
            start.get_or_insert((Instant::now(), done));
        }
    }
    let (began, before) = start.expect("some were accepted");
    let rate = (EVENTS - before) as f64 / began.elapsed().as_secs_f64();
    super::drained(&queue).await;
    rate
}

/// At least half as fast, whether a message is one event or a batch of them.
#[tokio::test(flavor = "multi_thread")]
async fn load_from_nats_is_at_least_half_as_fast_as_over_http() {
    let single = |first: usize| {
        (first..first + 10 * BATCH).map(|n| Outgoing::new("", event(n).to_string())).collect::<Vec<_>>()
    };
    let arrays = |first: usize| {
        (0..10).map(|number| Outgoing::new("", array(first + number * BATCH))).collect::<Vec<_>>()
    };
    let http = over_http().await;
    let alone = from_nats(single, &format!("batch = {BATCH}\nmax_in_flight = {}", 16 * BATCH)).await;
    let together = from_nats(arrays, "batch = 1\nmax_in_flight = 16").await;
    println!(
        "{EVENTS} events, {BATCH} in a batch: HTTP {http:.0}/s; NATS, {BATCH} messages of one event {alone:.0}/s \
         ({:.0} %), one message of {BATCH} events {together:.0}/s ({:.0} %)",
        100.0 * alone / http,
        100.0 * together / http
    );
    assert!(alone >= http / 2.0, "{alone:.0} of {http:.0} a second, one event a message");
    assert!(together >= http / 2.0, "{together:.0} of {http:.0} a second, {BATCH} events a message");
}
