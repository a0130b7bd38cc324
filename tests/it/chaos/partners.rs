//! Partners that misbehave, through a real relay: what each costs, what it is called, and that nobody else feels it.
//!
//! Each test has a relay process of its own, with few places in flight, a partner that behaves, and one that doesn't. Both
//! get the same events. What fails must fail with its code, within its time, be retried under the same `webhook-id` with a
//! fresh timestamp, and arrive once the partner has mended its ways.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::mock::{MockPartner, MockSvix};
use rstest::rstest;
use serde_json::{Value, json};

use crate::cli;
use crate::support::partners::{add_endpoint, call};
use crate::support::rude::{Authority, Call, End, Manner, Rude, Shows};
use crate::support::{RelayProcess, TestDatabase, bounded, eventually, mock_svix};

/// Events that each partner gets.
const EVENTS: usize = 8;
/// The rude endpoint's timeout, in milliseconds.
const TIMEOUT_MS: u64 = 1_000;
/// What an attempt may take beyond its bound on a busy machine, in milliseconds.
const SLACK_MS: u64 = 700;
/// What the body of a failure may take after the head, in milliseconds.
const BODY_MS: u64 = 2_000;
/// Waits between attempts; ±20 % of it is still more than a second, in which timestamps are told.
const RETRY_MS: u64 = 1_500;
/// How far the relay's memory may grow while a partner misbehaves, in KiB.
const GROWTH_LIMIT_KIB: u64 = 24 << 10;
/// What a partner may get rid of, through the buffers of both kernels, of an answer that is not read.
const SENT_LIMIT_BYTES: u64 = 32 << 20;

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
struct Place {
    relay: RelayProcess,
    fine: MockPartner,
    endpoint: String,
    _svix: MockSvix,
    _database: TestDatabase,
}

/// What became of the rude partner's deliveries.
#[derive(Debug)]
struct Told {
    /// The longest attempt.
    slot_ms: u64,
    /// How late the partner that behaves got its last.
    other_ms: u128,
    growth_kib: u64,
    /// The attempts of each event: code and the receiver's words.
    attempts: Vec<Vec<(String, String)>>,
}

impl Place {
    /// `url`: of the rude endpoint.
    async fn start(url: &str, ca_file: &Path) -> Self {
        Self::start_with(url, ca_file, TIMEOUT_MS).await
    }

    async fn start_with(url: &str, ca_file: &Path, timeout_ms: u64) -> Self {
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

    async fn explained(&self, id: &str) -> String {
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
    async fn suffer(&self, attempts: usize, once_failed: impl AsyncFn()) -> Told {
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
    fn check(&self, fault: &str, code: &str, failures: usize, longest_ms: u64) {
        for attempts in &self.attempts {
            let codes: Vec<_> = attempts.iter().map(|(code, _)| code.as_str()).collect();
            let (last, before) = codes.split_last().expect("attempts");
            assert_eq!(*last, "delivered", "{attempts:?}");
            assert!(before.len() >= failures, "{attempts:?}");
            assert!(before.iter().all(|other| *other == code), "{attempts:?}");
        }
        let attempts: usize = self.attempts.iter().map(Vec::len).sum();
        super::tell(
            &format!("a partner that {fault}"),
            format!(
                "{EVENTS} events, {attempts} attempts, failed as {code}; a slot held {} ms at most; another partner had its \
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
async fn check_calls(rude: &Rude, longest_ms: u64) {
    let over = async || rude.calls().iter().all(|call| call.held.is_some()).then_some(());
    eventually("every connection is closed", over).await;
    let mut by_id = HashMap::<String, Vec<Call>>::new();
    // Where TLS did not stand, nothing was asked.
    for call in rude.calls().into_iter().filter(|call| !call.webhook_id.is_empty()) {
        assert!(call.sent_bytes <= SENT_LIMIT_BYTES, "{call:?}");
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

/// `first` and then `again`, as often as fits in 16 KiB at once, for ever and at full speed.
fn flood(first: &str, again: &str) -> Manner {
    Manner::goes_on(first, again.repeat((16 << 10) / again.len()), Duration::ZERO)
}

fn drip(first: &str, again: &str) -> Manner {
    Manner::goes_on(first, again, Duration::from_millis(50))
}

/// 64 MiB of nothing in some 400 KiB of gzip (RFC 1952): one block with fixed codes (RFC 1951 §3.2.6), a zero and then the
/// longest match, over and over.
fn gzip_bomb(status: &str) -> Manner {
    let mut bits = vec![true, true, false];
    let mut code = |value: u32, width: u32| bits.extend((0..width).rev().map(|bit| value >> bit & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..(64 << 20) / 258 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    code(0, 7);
    let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    body.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit))));
    body.extend([0; 8]);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Manner::says([head.into_bytes(), body].concat(), End::Close)
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";
const CHUNK: &str = "10\r\n0123456789abcdef\r\n";

#[rstest]
#[case::hangs(Manner::says("", End::Hold), "timeout", TIMEOUT_MS)]
#[case::drips_its_head(drip("HTTP/1.1 200 OK\r\n", "X-Drip: 1\r\n"), "timeout", TIMEOUT_MS)]
#[case::floods_with_1xx(
    flood("", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"),
    "timeout",
    TIMEOUT_MS
)]
#[case::floods_with_headers(
    flood("HTTP/1.1 200 OK\r\n", "X-Flood: 0123456789012345678901234567890123456789\r\n"),
    "answer_too_large",
    TIMEOUT_MS
)]
#[case::sends_an_endless_header(flood("HTTP/1.1 200 OK\r\nX-Endless: ", "y"), "answer_too_large", TIMEOUT_MS)]
#[case::speaks_something_else(
    Manner::says("SSH-2.0-OpenSSH_9.9\r\n", End::Hold),
    "answer_invalid",
    TIMEOUT_MS
)]
#[case::resets_in_its_head(
    Manner::says("HTTP/1.1 200 OK\r\nContent-Len", End::Reset),
    "connection_lost",
    TIMEOUT_MS
)]
#[case::closes_in_its_head(
    Manner::says("HTTP/1.1 200 OK\r\nContent-Len", End::Close),
    "connection_lost",
    TIMEOUT_MS
)]
#[case::closes_without_a_word(Manner::says("", End::Close), "connection_lost", TIMEOUT_MS)]
#[case::fails_without_end(
    flood(&format!("HTTP/1.1 500 Internal Server Error\r\n{CHUNKED}"), CHUNK),
    "http_500",
    TIMEOUT_MS + BODY_MS
)]
#[case::fails_in_drips(
    drip(&format!("HTTP/1.1 500 Internal Server Error\r\n{CHUNKED}"), CHUNK),
    "http_500",
    TIMEOUT_MS + BODY_MS
)]
#[case::fails_with_a_gzip_bomb(gzip_bomb("500 Internal Server Error"), "http_500", TIMEOUT_MS + BODY_MS)]
#[tokio::test(flavor = "multi_thread")]
async fn fails_with_its_code_in_its_time_and_delays_nobody(
    #[case] manner: Manner,
    #[case] code: &str,
    #[case] longest_ms: u64,
) {
    // holds: 31, 32, 34, 35, 36
    bounded(async {
        let rude = Rude::start().await;
        let authority = Authority::new().file();
        let place = Place::start(&rude.url("http"), authority.path()).await;
        let bomb = manner.first.windows(4).any(|window| window == b"gzip");
        rude.behave(Some(manner), 2);
        let told = place.suffer(3, async || ()).await;
        told.check(&case_name(), code, 2, longest_ms);
        check_calls(&rude, longest_ms).await;
        if bomb {
            // As it came: of what is in it, nothing.
            let words = &told.attempts[0][0].1;
            assert!(words.starts_with("\u{1f}\u{fffd}\u{8}"), "{words:?}");
        }
        let explained = place.explained("rude_0").await;
        assert!(explained.contains(&format!("attempt 1: {code}")), "{explained}");
    })
    .await;
}

#[rstest]
#[case::endless(flood(&format!("HTTP/1.1 200 OK\r\n{CHUNKED}"), CHUNK))]
#[case::dripping(drip(&format!("HTTP/1.1 200 OK\r\n{CHUNKED}"), CHUNK))]
#[case::missing(Manner::says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", End::Hold))]
#[case::reset(Manner::says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", End::Reset))]
#[case::a_gzip_bomb(gzip_bomb("200 OK"))]
#[tokio::test(flavor = "multi_thread")]
async fn succeeds_on_its_head_whatever_its_body(#[case] manner: Manner) {
    // holds: 33, 34
    bounded(async {
        let rude = Rude::start().await;
        let authority = Authority::new().file();
        let place = Place::start(&rude.url("http"), authority.path()).await;
        rude.behave(Some(manner), usize::MAX);
        let told = place.suffer(1, async || ()).await;
        // The body of a success gets 100 ms.
        told.check(&case_name(), "delivered", 0, 100);
        assert!(told.attempts.iter().all(|attempts| attempts.len() == 1), "{:?}", told.attempts);
        let over = async || rude.calls().iter().all(|call| call.held.is_some()).then_some(());
        eventually("every connection is closed", over).await;
        let calls = rude.calls();
        assert_eq!(calls.len(), EVENTS);
        assert!(calls.iter().all(|call| call.sent_bytes <= SENT_LIMIT_BYTES), "{calls:?}");
    })
    .await;
}

#[rstest]
#[case::shows_an_expired_certificate(Shows::Expired, "tls_certificate_expired")]
#[case::shows_anothers_certificate(Shows::WrongName, "tls_wrong_name")]
#[case::vouches_for_itself(Shows::SelfSigned, "tls_unknown_issuer")]
#[case::has_an_unknown_voucher(Shows::OfAnotherAuthority, "tls_unknown_issuer")]
#[tokio::test(flavor = "multi_thread")]
async fn gets_nothing_before_its_certificate_is_good(#[case] shows: Shows, #[case] code: &str) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new());
        let file = authority.file();
        rude.show(authority.server(shows));
        let place = Place::start(&rude.url("https"), file.path()).await;
        let told = place.suffer(2, async || rude.show(authority.server(Shows::Good))).await;
        told.check(&case_name(), code, 2, TIMEOUT_MS);
        check_calls(&rude, TIMEOUT_MS).await;
        let explained = place.explained("rude_0").await;
        assert!(explained.contains(&format!("attempt 1: {code}")), "{explained}");
    })
    .await;
}

/// A ServerHello of TLS 1.1.
const OLD_HELLO: &[u8] = b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02\
    0123456789abcdef0123456789abcdef\x00\xc0\x13\x00";
/// The alert of a server that goes no higher than that: `protocol_version`.
const OLD_ALERT: &[u8] = b"\x15\x03\x02\x00\x02\x02\x46";

#[rstest]
#[case::speaks_tls_1_1(Manner::says(OLD_HELLO, End::Hold), "tls_protocol_version")]
#[case::goes_no_higher_than_tls_1_1(Manner::says(OLD_ALERT, End::Close), "tls_protocol_version")]
#[case::speaks_no_tls(Manner::says("HTTP/1.1 400 Bad Request\r\n\r\n", End::Close), "tls_failed")]
#[case::resets_in_the_handshake(Manner::says("", End::Reset), "connection_reset")]
#[case::hangs_in_the_handshake(Manner::says("", End::Hold), "timeout")]
#[tokio::test(flavor = "multi_thread")]
async fn gets_nothing_before_it_speaks_tls(#[case] manner: Manner, #[case] code: &str) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new());
        let file = authority.file();
        rude.behave(Some(manner), usize::MAX);
        let place = Place::start(&rude.url("https"), file.path()).await;
        let mend = async || {
            rude.behave(None, 0);
            rude.show(authority.server(Shows::Good));
        };
        let told = place.suffer(2, mend).await;
        told.check(&case_name(), code, 2, TIMEOUT_MS);
        check_calls(&rude, TIMEOUT_MS).await;
    })
    .await;
}

#[rstest]
#[case::has_no_address("http://nobody.invalid:9/", "dns_failed", 5_000)]
#[case::is_not_there("", "connect_refused", TIMEOUT_MS)]
#[tokio::test(flavor = "multi_thread")]
async fn that_can_not_be_reached_gets_all_at_its_new_url(
    #[case] url: &str,
    #[case] code: &str,
    #[case] longest_ms: u64,
) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new().file());
        // Bound, and nobody listens.
        let nobody = socket();
        let nobody_url = format!("http://{}/", nobody.local_addr().expect("an address"));
        let url = if url.is_empty() { &nobody_url } else { url };
        let place = Place::start_with(url, authority.path(), 10_000).await;
        let moved = async || {
            let path = format!("/v1/endpoints/{}", place.endpoint);
            call(&place.relay, Method::PATCH, &path, json!({"url": rude.url("http")})).await;
        };
        let told = place.suffer(2, moved).await;
        told.check(&case_name(), code, 2, longest_ms);
        check_calls(&rude, TIMEOUT_MS).await;
    })
    .await;
}

/// A port of this machine that is taken, and refuses every call.
fn socket() -> tokio::net::TcpSocket {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    socket
}

#[rstest]
#[case::points_at_another(None)]
#[case::points_at_the_metadata(Some("http://169.254.169.254/latest/meta-data/"))]
#[tokio::test(flavor = "multi_thread")]
async fn is_not_followed_where_it_points(#[case] location: Option<&str>) {
    // holds: 31, 42
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new().file());
        // Listens where it may be dialled, and must not be called. What calls is taken in before anybody accepts it.
        let sentinel = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        sentinel.set_nonblocking(true).expect("set");
        let inside = format!("http://{}/", sentinel.local_addr().expect("an address"));
        let location = location.unwrap_or(&inside);
        let head = |status: &str| {
            format!(
                "HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        };
        let place = Place::start(&rude.url("http"), authority.path()).await;
        rude.behave(Some(Manner::says(head("307 Temporary Redirect"), End::Close)), 2);
        let told = place.suffer(3, async || ()).await;
        told.check(&case_name(), "http_307", 2, TIMEOUT_MS);
        assert!(told.attempts[0][0].1.starts_with("redirects are not followed"), "{:?}", told.attempts[0]);
        assert!(sentinel.accept().is_err(), "it was followed");
    })
    .await;
}

/// What the running case is called: the words of its name.
fn case_name() -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let (_, case) = name.rsplit_once("case_").unwrap_or(("", name));
    case.trim_start_matches(|digit: char| digit.is_ascii_digit() || digit == '_').replace('_', " ")
}
