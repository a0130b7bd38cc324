//! Slow and silent clients, and more of them than there are places.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Raw, head, quantile, serves, status};
use crate::chaos::{sized, tell};
use crate::ingest::batch;
use crate::support::{HttpClient, RelayProcess, TestDatabase, bounded, mock_svix, side_by_side};

const CLIENTS: usize = 500;
/// What a deadline may be missed by on a machine that has much to do.
const SLACK: Duration = Duration::from_millis(1_500);

/// Says `opening` at once and then a byte every quarter of a second, until it is cut off: when, and what it was told.
async fn drip(address: String, opening: String) -> (Duration, String) {
    let stream = TcpStream::connect(address).await.expect("connected");
    let (mut from, mut to) = stream.into_split();
    to.write_all(opening.as_bytes()).await.expect("written");
    let began = Instant::now();
    let dripping = async {
        while to.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        // A reset instead of an end is an end too.
        _ = from.read_to_end(&mut answer) => {}
        () = dripping => {}
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("it is never cut off"),
    }
    (began.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

/// A producer in good health that posts one event every 20 ms for so long: how long its answers took.
async fn producer(relay: HttpClient, first: usize, time: Duration) -> Vec<Duration> {
    let (until, mut times) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        let asked = Instant::now();
        let answer = relay.post(batch(first + times.len(), 1)).await;
        assert_eq!(answer.statuses(), ["accepted"]);
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times
}

/// When the earliest and the latest were cut off.
fn range(cuts: &[(Duration, String)]) -> (Duration, Duration) {
    let times = || cuts.iter().map(|(time, _)| *time);
    (times().min().expect("some"), times().max().expect("some"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_500_slow_clients_is_cut_off_in_time_and_others_do_not_notice() {
    // holds: 8
    bounded(async {
        // In the long form the deadlines are the defaults.
        let (heads_ms, bodies_ms) = sized((3_000_u64, 6_000_u64), (15_000, 30_000));
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let (heads, bodies) = (heads_ms.to_string(), bodies_ms.to_string());
        let variables =
            [("POSTHASTE_HTTP__HEADER_TIMEOUT_MS", &*heads), ("POSTHASTE_HTTP__BODY_TIMEOUT_MS", &*bodies)];
        let relay = RelayProcess::start(&database, &svix, &variables);
        let mut before = producer(relay.clone(), 0, Duration::from_secs(3)).await;
        let half_head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
        let openings = [half_head.to_owned(), format!("{}[", head(100_000))];
        let address = relay.address().to_owned();
        let slow = |n: usize| drip(address.clone(), openings[n % 2].clone());
        let (mut during, cuts) = tokio::join!(
            producer(relay.clone(), 10_000, Duration::from_millis(bodies_ms)),
            side_by_side((0..CLIENTS).map(slow)),
        );
        let (mut of_heads, mut of_bodies) = (Vec::new(), Vec::new());
        for (n, cut) in cuts.into_iter().enumerate() {
            if n % 2 == 0 { of_heads.push(cut) } else { of_bodies.push(cut) }
        }
        for (name, cuts, deadline_ms) in [("head", &of_heads, heads_ms), ("body", &of_bodies, bodies_ms)] {
            let ((first, last), deadline) = (range(cuts), Duration::from_millis(deadline_ms));
            let early = Duration::from_millis(300);
            assert!(first + early >= deadline && last <= deadline + SLACK, "{name}: {first:?} to {last:?}");
        }
        assert!(of_heads.iter().all(|(_, told)| told.is_empty() || status(told) == 408));
        assert!(of_bodies.iter().all(|(_, told)| status(told) == 408 && told.contains("body_timeout")));
        let (usual, then) = (quantile(&mut before, 0.99), quantile(&mut during, 0.99));
        assert!(then <= 2 * usual + Duration::from_millis(100), "p99 {usual:?} before, {then:?} during");
        tell(
            "slow clients",
            format!(
                "{CLIENTS} clients; heads cut after {:.1} s, bodies after {:.1} s; a healthy producer's p99 \
                 {:.1} ms before, {:.1} ms during",
                range(&of_heads).1.as_secs_f64(),
                range(&of_bodies).1.as_secs_f64(),
                usual.as_secs_f64() * 1e3,
                then.as_secs_f64() * 1e3,
            ),
        );
        serves(&relay, 100_000).await;
    })
    .await;
}

/// Every request of the API that may have a body, and the console's sign-in, which anybody may send.
fn with_bodies(document: &Value) -> Vec<String> {
    let paths = document["paths"].as_object().expect("paths");
    let mut found = vec!["POST /console/sign-in".to_owned()];
    for (path, methods) in paths {
        let path = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let path = path.collect::<Vec<_>>().join("/");
        for method in ["post", "put", "patch"].into_iter().filter(|method| methods.get(*method).is_some()) {
            found.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_its_time_on_every_path() {
    // holds: 8
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let variables = [("POSTHASTE_HTTP__BODY_TIMEOUT_MS", "1000")];
        let relay = RelayProcess::start(&database, &svix, &variables);
        let requests = with_bodies(&relay.get("/openapi.json").await.json());
        assert!(requests.len() > 20, "{requests:?}");
        let cuts = side_by_side(requests.iter().map(|request| {
            let opening = format!(
                "{request} HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\
                 Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{{"
            );
            drip(relay.address().to_owned(), opening)
        }))
        .await;
        for (request, (time, told)) in requests.iter().zip(&cuts) {
            let (time, status) = (time.as_secs_f64(), status(told));
            assert!(time <= 1.0 + SLACK.as_secs_f64(), "{request}: cut after {time:.1} s, {status}");
            assert!((400..500).contains(&status), "{request}: {told}");
        }
        tell(
            "slow bodies",
            format!("on {} paths cut after {:.1} s at most", cuts.len(), range(&cuts).1.as_secs_f64()),
        );
        serves(&relay, 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_the_answers_keeps_no_place() {
    // holds: 8
    const PLACES: usize = 8;
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let variables =
            [("POSTHASTE_HTTP__BODY_TIMEOUT_MS", "2000"), ("POSTHASTE_HTTP__MAX_CONNECTIONS", "8")];
        let relay = RelayProcess::start(&database, &svix, &variables);
        let mut greedy = Vec::new();
        for _ in 0..PLACES {
            let mut client = Raw::open(&relay).await;
            // More than all buffers on the way hold.
            client.say("GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50)).await;
            greedy.push(client);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        let full = tokio::time::timeout(Duration::from_millis(500), relay.try_post(batch(0, 1))).await;
        assert!(full.is_err(), "every place is taken: {full:?}");
        let answer = tokio::time::timeout(Duration::from_secs(10), relay.post(batch(1, 1))).await;
        assert_eq!(answer.expect("there is room again").status, 202);
        tell(
            "clients that never read",
            format!("{PLACES} of {PLACES} places free again after {:.1} s", asked.elapsed().as_secs_f64()),
        );
        drop(greedy);
        serves(&relay, 10).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_waits_for_one() {
    const PLACES: usize = 32;
    // holds: 8
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let variables =
            [("POSTHASTE_HTTP__MAX_CONNECTIONS", "32"), ("POSTHASTE_HTTP__HEADER_TIMEOUT_MS", "3000")];
        let relay = RelayProcess::start(&database, &svix, &variables);
        let mut silent = Vec::new();
        for _ in 0..PLACES {
            silent.push(Raw::open(&relay).await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut waiting = Raw::open(&relay).await;
        waiting.say("GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        assert!(waiting.closed(Duration::from_millis(500)).await.is_none(), "it waits, and is not refused");
        drop(silent.pop());
        let (told, time) = waiting.closed(Duration::from_secs(2)).await.expect("there is room");
        assert_eq!(status(&told), 200);
        assert!(time < Duration::from_millis(500), "{time:?}");
        // Hundreds more, who wait without being turned away: those who are silent lose their places, and whoever is
        // behind them gets one.
        let (mut crowd, arriving) = (Vec::new(), Instant::now());
        for _ in 0..600 {
            crowd.push(Raw::open(&relay).await);
        }
        let arrived = arriving.elapsed();
        assert!(arrived < Duration::from_secs(1), "some had to knock again: {arrived:?}");
        drop(silent);
        drop(crowd.split_off(PLACES));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asked = Instant::now();
        assert_eq!(relay.post(batch(0, 1)).await.status, 202);
        let recovered = asked.elapsed();
        let silence = Duration::from_secs(3);
        assert!(recovered > silence / 2 && recovered <= silence + SLACK, "{recovered:?}");
        drop(crowd);
        tell(
            "connection cap",
            format!(
                "{PLACES} places, 632 connections: room {:.0} ms after one left, {:.1} s where all are silent",
                time.as_secs_f64() * 1e3,
                recovered.as_secs_f64()
            ),
        );
        serves(&relay, 10).await;
    })
    .await;
}
