//! What partners that behave badly cost the others.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::partners::{add_endpoint, call};
use crate::support::{HttpClient, RelayProcess, TestDatabase, mock_svix};

/// Fewest and most rounds of each kind, in turn. Their quietest ones are compared: whatever else the machine does only
/// ever adds, while what a partner costs others is there in every round. Where it does much else, more rounds are
/// needed to see a quiet one of each kind.
const ROUNDS: RangeInclusive<usize> = 3..=15;
/// Events to the healthy partner in one round, and the time between two.
const EVENTS: usize = 240;
const EVERY: Duration = Duration::from_millis(5);
/// With every so many of them each neighbour gets one event too.
const NEIGHBOURS_EVERY: usize = 4;
const RUDE_TIMEOUT: Duration = Duration::from_millis(500);
/// A tick of a kernel that looks 250 times a second whose turn it is: with more to do than there are cores, a wait of a
/// millisecond or two is one tick longer or not by chance.
const ALLOWANCE: Duration = Duration::from_millis(4);

/// How a partner is rude.
#[derive(Debug, Clone, Copy)]
enum Rude {
    /// Takes the request and says nothing.
    Silent,
    /// Answers 200 and a body that comes a little at a time, for ever.
    Trickling,
    /// Answers 200 and at once more body than anybody should read, without an end.
    Flooding,
}

const RUDE: [(&str, Rude); 3] =
    [("silent", Rude::Silent), ("trickling", Rude::Trickling), ("flooding", Rude::Flooding)];

async fn be_rude(mut stream: TcpStream, how: Rude) -> std::io::Result<()> {
    let mut request = [0; 4_096];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = |count: usize| format!("400\r\n{}\r\n", "x".repeat(0x400)).repeat(count);
    match how {
        Rude::Silent => {}
        Rude::Trickling => {
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(b"1\r\nx\r\n").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // Four times what is read. Writing on for ever would measure the partner's own use of the cores.
        Rude::Flooding => stream.write_all((head.to_owned() + chunks(64).as_str()).as_bytes()).await?,
    }
    // Until the relay closes.
    stream.read(&mut request).await.map(drop)
}

/// A rude partner: its URL, and how often it was called.
struct RudePartner {
    name: &'static str,
    url: String,
    calls: Arc<AtomicUsize>,
}

/// One of each, on a thread of their own, so that they share no runtime with those who measure.
async fn rude_partners() -> Vec<RudePartner> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut partners = Vec::new();
            for (name, how) in RUDE {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
                let url = format!("http://{}/", listener.local_addr().expect("an address"));
                let calls = Arc::new(AtomicUsize::new(0));
                partners.push(RudePartner { name, url, calls: calls.clone() });
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        calls.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(be_rude(stream, how));
                    }
                });
            }
            tell.send(partners).unwrap_or_else(|_| panic!("somebody waits"));
            std::future::pending::<()>().await;
        });
    });
    told.await.expect("told")
}

/// The 99th percentile from the moment that an event is due to be posted until the healthy partner has it, over one
/// round in which others get events of the type `beside` too. Nobody waits for an answer before the next post.
async fn p99(client: &HttpClient, healthy: &MockPartner, round: &str, beside: Option<&str>) -> Duration {
    let post = |id: &str, tenant: &str, event_type: &str| {
        let event = json!({"id": id, "type": event_type, "tenant": tenant, "data": {}}).to_string();
        let client = client.clone();
        async move { assert_eq!(client.post(event).await.status, 202) }
    };
    let mut began = HashMap::new();
    let mut posts = JoinSet::new();
    let before = healthy.request_count();
    let mut ticks = tokio::time::interval(EVERY);
    for n in 0..EVENTS {
        let id = format!("{round}-{n}");
        let due = ticks.tick().await;
        if let Some(beside) = beside.filter(|_| n.is_multiple_of(NEIGHBOURS_EVERY)) {
            posts.spawn(post(&id, "neighbour", beside));
        }
        posts.spawn(post(&id, "acme", "healthy"));
        began.insert(id, due.into_std());
    }
    posts.join_all().await;
    assert!(healthy.wait_for(before + EVENTS as u64, Duration::from_secs(30)).await, "all arrive");
    let (_, arrived) = healthy.requests_after(before);
    let wait = |request: &PartnerRequest| {
        let event: Value = serde_json::from_slice(&request.body).expect("JSON");
        request.received_at.saturating_duration_since(began[event["id"].as_str().expect("an id")])
    };
    let mut waits: Vec<_> = arrived.iter().map(wait).collect();
    waits.sort();
    waits[waits.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn load_beside_rude_partners_is_as_quick_as_beside_polite_ones() {
    // holds: 38
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let variables = [("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"), ("POSTHASTE_SVIX__TOKEN", "")];
    let relay = RelayProcess::start(&database, &svix, &variables);
    let (healthy, polite) = (MockPartner::start().await, MockPartner::start().await);
    add_endpoint(&relay, "healthy", json!({"url": healthy.url("/"), "event_types": ["healthy"]})).await;
    let rude_partners = rude_partners().await;
    for RudePartner { name, url, .. } in &rude_partners {
        let settings = json!({"url": url, "event_types": ["rude"], "timeout_ms": RUDE_TIMEOUT.as_millis()});
        add_endpoint(&relay, name, settings).await;
        let settings = json!({"url": polite.url("/"), "event_types": ["polite"]});
        add_endpoint(&relay, &format!("polite-{name}"), settings).await;
    }
    let pause = async |paused: bool| {
        for (name, _) in RUDE {
            let partner = json!({"name": name, "paused": paused});
            call(&relay, Method::PUT, &format!("/v1/partners/{name}"), partner).await;
        }
    };
    p99(&relay, &healthy, "warm-up", Some("polite")).await;
    let mut figures: [Vec<Duration>; 3] = Default::default();
    let mut held = false;
    while figures[0].len() < *ROUNDS.start() || (!held && figures[0].len() < *ROUNDS.end()) {
        let round = figures[0].len();
        figures[0].push(p99(&relay, &healthy, &format!("alone-{round}"), None).await);
        figures[1].push(p99(&relay, &healthy, &format!("polite-{round}"), Some("polite")).await);
        pause(false).await;
        figures[2].push(p99(&relay, &healthy, &format!("rude-{round}"), Some("rude")).await);
        pause(true).await;
        // What is under way to them ends.
        tokio::time::sleep(RUDE_TIMEOUT + Duration::from_millis(100)).await;
        let [_, polite, rude] = figures.each_ref().map(|figures| *figures.iter().min().expect("a round"));
        held = rude <= polite.mul_f64(1.2) + ALLOWANCE;
    }
    let rounds = figures[0].len();
    for (kind, figures) in ["alone", "beside polite partners", "beside rude ones"].iter().zip(&mut figures) {
        figures.sort();
        println!("p99 {kind}: lowest {:?}, median {:?} of {rounds} rounds", figures[0], figures[rounds / 2]);
    }
    for partner in &rude_partners {
        let calls = partner.calls.load(Ordering::Relaxed);
        println!("{}: {calls} calls", partner.name);
        assert!(calls >= 4 * rounds, "{} was called {calls} times in {rounds} rounds", partner.name);
    }
    assert!(held, "others wait longer beside rude partners than beside polite ones: {figures:?}");
    relay.kill();
}
