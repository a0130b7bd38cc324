//! A relay process between a partner that behaves and one that doesn't, and what becomes of their events.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::mock::{MockPartner, MockSvix};
use serde_json::{Value, json};

use crate::chaos::tell;
use crate::cli;
use crate::support::partners::{add_endpoint, call};
use crate::support::rude::{Call, Rude};
use crate::support::{RelayProcess, TestDatabase, eventually, mock_svix};

/// Events that each partner gets.
pub const EVENTS: usize = 8;
/// The rude endpoint's timeout, in milliseconds.
pub const TIMEOUT_MS: u64 = 1_000;
/// What an attempt may take beyond its bound on a busy machine, in milliseconds.
const SLACK_MS: u64 = 700;
/// What the body of a failure may take after the head, in milliseconds.
pub const BODY_MS: u64 = 2_000;
/// Waits between attempts; ±20 % of it is still more than a second, in which timestamps are told.
const RETRY_MS: u64 = 1_500;
/// How far the relay's memory may grow while a partner misbehaves, in KiB.
const GROWTH_LIMIT_KIB: u64 = 24 << 10;
/// What a partner may get rid of, through the buffers of both kernels, of an answer that is not read.
pub const SENT_LIMIT_BYTES: u64 = 32 << 20;

/// How much memory a process holds, watched for its peak.
struct Memory {
    base_kib: u64,
    peak_kib: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

impl Memory {
    fn watch(pid: u32) -> Self {
        let base_kib = resident_kib(pid);
        assert!(base_kib > 0, "the system tells no process's memory");
        let (peak_kib, stop) = (Arc::new(AtomicU64::new(base_kib)), Arc::new(AtomicBool::new(false)));
        let (peak, stopped) = (Arc::clone(&peak_kib), Arc::clone(&stop));
        let watcher = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                peak.fetch_max(resident_kib(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { base_kib, peak_kib, stop, watcher: Some(watcher) }
    }

    fn growth_kib(&self) -> u64 {
        self.peak_kib.load(Ordering::Relaxed) - self.base_kib
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// A relay, a partner that behaves, and room for one that does not.
pub struct Place {
    pub relay: RelayProcess,
    fine: MockPartner,
    pub endpoint: String,
    _svix: MockSvix,
    _database: TestDatabase,
}

/// What became of the rude partner's deliveries.
#[derive(Debug)]
pub struct Told {
    /// The longest attempt.
    slot_ms: u64,
    /// How late the partner that behaves got its last.
    other_ms: u128,
    growth_kib: u64,
    /// The attempts of each event: code and the receiver's words.
    pub attempts: Vec<Vec<(String, String)>>,
}

impl Place {
    /// `url`: of the rude endpoint.
    pub async fn start(url: &str, ca_file: &Path) -> Self {
        Self::start_with(url, ca_file, TIMEOUT_MS).await
    }

    pub async fn start_with(url: &str, ca_file: &Path, timeout_ms: u64) -> Self {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(
            &database,
            &svix,
            &[
                ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
                ("POSTHASTE_DIRECT__CA_FILES", &ca_file.display().to_string()),
                // Fewer than both partners may have: whoever holds one too long holds up the other.
                ("POSTHASTE_DISPATCH__MAX_IN_FLIGHT", "6"),
            ],
        );
        call(&relay, Method::PUT, "/v1/tenants/acme", json!({"route": "direct"})).await;
        let fine = MockPartner::start().await;
        add_endpoint(&relay, "fine", json!({"url": fine.url("/")})).await;
        let settings = json!({
            "url": url, "event_types": ["rude"], "timeout_ms": timeout_ms,
            "retry_schedule_ms": vec![RETRY_MS; 10],
        });
        let (endpoint, _) = add_endpoint(&relay, "rude", settings).await;
        let place = Self { relay, fine, endpoint, _svix: svix, _database: database };
        // What is only fetched or built once is no growth.
        place.post("calm").await;
        assert!(place.fine.wait_for(EVENTS as u64, Duration::from_secs(20)).await);
        place.explained("calm_0").await;
        place
    }

    async fn post(&self, event_type: &str) {
        let event =
            |n: usize| json!({"id": format!("{event_type}_{n}"), "type": event_type, "data": {"n": n}});
        let events: Vec<_> = (0..EVENTS).map(event).collect();
        assert_eq!(self.relay.post(json!(events).to_string()).await.status, 202);
    }

    pub async fn explained(&self, id: &str) -> String {
        let url = format!("http://{}", self.relay.address());
        let ended = cli::run(&["explain", "acme", id], &[("POSTHASTE_URL", &url)]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.out
    }

    /// The deliveries to the rude endpoint, in the order of their events.
    async fn deliveries(&self) -> Vec<Value> {
        let mut deliveries = Vec::new();
        for n in 0..EVENTS {
            let story = self.relay.get(&format!("/v1/events/acme/rude_{n}")).await.json();
            let of_event = story["deliveries"].as_array().expect("deliveries").clone();
            let of_rude = |delivery: &Value| delivery["destination"]["endpoint"] == self.endpoint.as_str();
            deliveries.push(of_event.into_iter().find(of_rude).expect("one to the rude endpoint"));
        }
        deliveries
    }

    /// Sends both partners their events; waits until each delivery to the rude one has had so many attempts.
    pub async fn suffer(&self, attempts: usize, once_failed: impl AsyncFn()) -> Told {
        let memory = Memory::watch(self.relay.pid());
        let began = Instant::now();
        self.post("rude").await;
        let had = async |count: usize| {
            let enough = |delivery: &Value| attempts_of(delivery).len() >= count;
            let wait = async || Some(self.deliveries().await).filter(|all| all.iter().all(enough));
            eventually(&format!("{count} attempts of each"), wait).await
        };
        had(attempts).await;
        once_failed().await;
        let delivered = |delivery: &Value| delivery["state"] == "delivered";
        let look = async || Some(self.deliveries().await).filter(|all| all.iter().all(delivered));
        let deliveries = eventually("all are delivered in the end", look).await;
        assert!(self.fine.wait_for(2 * EVENTS as u64, Duration::from_secs(20)).await);
        let last = self.fine.requests().last().expect("one").received_at;
        let all: Vec<_> = deliveries.iter().flat_map(attempts_of).collect();
        let text = |attempt: &Value, name: &str| attempt[name].as_str().expect("a text").to_owned();
        let words = |attempt: &Value| (text(attempt, "code"), text(attempt, "detail"));
        let latency = |attempt: &Value| attempt["latency_ms"].as_u64().expect("a number");
        Told {
            slot_ms: all.iter().map(latency).max().expect("some"),
            other_ms: last.duration_since(began).as_millis(),
            growth_kib: memory.growth_kib(),
            attempts: deliveries.iter().map(|one| attempts_of(one).iter().map(words).collect()).collect(),
        }
    }
}

fn attempts_of(delivery: &Value) -> Vec<Value> {
    delivery["attempts"].as_array().expect("attempts").clone()
}

impl Told {
    /// Checks that each delivery failed so often with this code, and then arrived; tells the figures.
    pub fn check(&self, fault: &str, code: &str, failures: usize, longest_ms: u64) {
        for attempts in &self.attempts {
            let codes: Vec<_> = attempts.iter().map(|(code, _)| code.as_str()).collect();
            let (last, before) = codes.split_last().expect("attempts");
            assert_eq!(*last, "delivered", "{attempts:?}");
            assert!(before.len() >= failures, "{attempts:?}");
            assert!(before.iter().all(|other| *other == code), "{attempts:?}");
        }
        let attempts: usize = self.attempts.iter().map(Vec::len).sum();
        tell(
            &format!("a partner that {fault}"),
            format!(
                "{EVENTS} events, {attempts} attempts, the first as {code}; a slot held {} ms at most; another partner had its \
                 last after {} ms; memory grew {} KiB",
                self.slot_ms, self.other_ms, self.growth_kib
            ),
        );
        assert!(self.slot_ms <= longest_ms + SLACK_MS, "{} ms", self.slot_ms);
        assert!(self.other_ms < u128::from(TIMEOUT_MS), "the other partner waited {} ms", self.other_ms);
        assert!(self.growth_kib <= GROWTH_LIMIT_KIB, "{} KiB", self.growth_kib);
    }
}

/// Checks that each event came under one id and with a new timestamp each time, and that no connection is left.
pub async fn check_calls(rude: &Rude, longest_ms: u64) {
    let over = async || rude.calls().iter().all(|call| call.held.is_some()).then_some(());
    eventually("every connection is closed", over).await;
    let mut by_id = HashMap::<String, Vec<Call>>::new();
    // Where TLS did not stand, nothing was asked.
    for call in rude.calls().into_iter().filter(|call| !call.webhook_id.is_empty()) {
        let held = call.held.expect("closed");
        assert!(held <= Duration::from_millis(longest_ms + SLACK_MS), "{call:?}");
        by_id.entry(call.webhook_id.clone()).or_default().push(call);
    }
    assert_eq!(by_id.len(), EVENTS, "each event has one webhook-id, whatever its attempts");
    for calls in by_id.values() {
        assert!(calls.windows(2).all(|pair| pair[0].timestamp < pair[1].timestamp), "{calls:?}");
        assert_eq!(calls.iter().filter(|call| call.well).count(), 1, "{calls:?}");
    }
}

/// What the running case is called: the words of its name.
pub fn case_name() -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let (_, case) = name.rsplit_once("case_").unwrap_or(("", name));
    case.trim_start_matches(|digit: char| digit.is_ascii_digit() || digit == '_').replace('_', " ")
}
