//! What stands on both sides of the relay: producers that POST batches, and a sink that counts.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use posthaste::domain::clock::{Clock, Moment};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::event::event;

/// The header in which the sink finds an event's id.
pub const EVENT_ID: &str = "event-id";

/// In which order ids come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Keys {
    /// As version 4 UUIDs do.
    Random,
    /// As version 7 UUIDs do.
    Ordered,
}

impl Keys {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Ordered => "ordered",
        }
    }

    /// An id that ends in the event's number.
    fn id(self, number: u64, clock: &dyn Clock) -> String {
        match self {
            Self::Random => format!("evt_{:032x}-{number}", clock.random()),
            Self::Ordered => format!("evt_{number:032x}-{number}"),
        }
    }
}

/// A client as Posthaste's senders have it.
pub fn client() -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Who POSTs.
pub struct Load {
    /// Of the relay.
    pub address: String,
    /// Events in all.
    pub events: u64,
    /// Events in a request.
    pub batch: u64,
    /// Producers, each with one request at a time.
    pub producers: u64,
    /// In which order ids come.
    pub keys: Keys,
}

/// What became of the requests.
pub struct Accepted {
    /// The last 202.
    pub ended: Moment,
    /// How long each request took, shortest first.
    latencies_us: Vec<u32>,
}

impl Accepted {
    /// How long requests took, as a quantile in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a list of a run's requests"
    )]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let index = (self.latencies_us.len() as f64 * quantile) as usize;
        let us = self.latencies_us.get(index.min(self.latencies_us.len().saturating_sub(1)));
        f64::from(us.copied().unwrap_or_default()) / 1_000.0
    }
}

impl Load {
    /// POSTs all events; fails with the first answer that is no 202.
    pub async fn run(&self, clock: &Arc<dyn Clock>) -> anyhow::Result<Accepted> {
        let next = Arc::new(AtomicU64::new(0));
        let client = client();
        let mut producers = JoinSet::new();
        for _ in 0..self.producers {
            let (next, clock, client) = (next.clone(), clock.clone(), client.clone());
            let (uri, events, batch, keys) = (self.uri("/notifications"), self.events, self.batch, self.keys);
            producers.spawn(async move {
                let mut latencies_us = Vec::new();
                loop {
                    let first = next.fetch_add(batch, Ordering::Relaxed);
                    if first >= events {
                        return anyhow::Ok(latencies_us);
                    }
                    let ids = (first..events.min(first + batch)).map(|number| keys.id(number, &*clock));
                    let body: Vec<_> = ids.map(|id| event(&id)).collect();
                    let request = Request::post(&uri)
                        .header("content-type", "application/json")
                        .body(Full::from(format!("[{}]", body.join(","))))?;
                    let began = clock.moment();
                    let answer = client.request(request).await?;
                    let status = answer.status();
                    answer.into_body().collect().await?;
                    latencies_us.push(u32::try_from(began.until(clock.moment()).as_micros())?);
                    ensure!(status == StatusCode::ACCEPTED, "the relay answered {status}");
                }
            });
        }
        let mut latencies_us = Vec::new();
        while let Some(producer) = producers.join_next().await {
            latencies_us.extend(producer??);
        }
        let ended = clock.moment();
        latencies_us.sort_unstable();
        Ok(Accepted { ended, latencies_us })
    }

    /// How many events the relay has settled.
    pub async fn settled(&self) -> anyhow::Result<u64> {
        let request =
            Request::builder().method(Method::GET).uri(self.uri("/settled")).body(Full::default())?;
        let body = client().request(request).await?.into_body().collect().await?.to_bytes();
        Ok(std::str::from_utf8(&body)?.parse()?)
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A receiver that says yes to everything and counts.
pub struct Sink {
    /// Where it listens.
    pub address: String,
    tally: Arc<Tally>,
    complete: watch::Receiver<Option<Moment>>,
    server: JoinHandle<()>,
}

struct Tally {
    /// A bit for each event.
    seen: Vec<AtomicU64>,
    events: u64,
    arrived: AtomicU64,
    doubled: AtomicU64,
    complete: watch::Sender<Option<Moment>>,
    clock: Arc<dyn Clock>,
}

impl Tally {
    fn note(&self, number: u64) {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.seen.get(word));
        let bit = 1 << (number % 64);
        let is_new = word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0);
        if !is_new {
            self.doubled.fetch_add(1, Ordering::Relaxed);
        } else if self.arrived.fetch_add(1, Ordering::Relaxed) + 1 == self.events {
            self.complete.send_replace(Some(self.clock.moment()));
        }
    }
}

impl Sink {
    /// Listens, and waits for so many events, numbered from 0.
    pub async fn start(events: u64, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (sender, complete) = watch::channel(None);
        let words = usize::try_from(events / 64 + 1)?;
        let tally = Arc::new(Tally {
            seen: std::iter::repeat_with(AtomicU64::default).take(words).collect(),
            events,
            arrived: AtomicU64::default(),
            doubled: AtomicU64::default(),
            complete: sender,
            clock,
        });
        let server = tokio::spawn(serve(listener, tally.clone()));
        Ok(Self { address, tally, complete, server })
    }

    /// When the last event came.
    pub async fn complete(&self) -> Moment {
        let mut complete = self.complete.clone();
        let moment = complete.wait_for(Option::is_some).await;
        moment.ok().and_then(|moment| *moment).unwrap_or_default()
    }

    /// How many different events have come.
    pub fn arrived(&self) -> u64 {
        self.tally.arrived.load(Ordering::Relaxed)
    }

    /// How many have come again, or were never sent by us.
    pub fn doubled(&self) -> u64 {
        self.tally.doubled.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, tally: Arc<Tally>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Answers are small and complete.
        let _ = stream.set_nodelay(true);
        let tally = tally.clone();
        connections.spawn(async move {
            let service = service_fn(|request| receive(request, &tally));
            // A connection that breaks is missed in the count.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn receive(request: Request<Incoming>, tally: &Tally) -> Result<Response<Empty<Bytes>>, Infallible> {
    let number = number_of(&request);
    let mut response = Response::new(Empty::new());
    match (number, request.into_body().collect().await) {
        (Ok(number), Ok(_)) => tally.note(number),
        _ => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

/// The number that an event's id ends in.
fn number_of(request: &Request<Incoming>) -> anyhow::Result<u64> {
    let id = request.headers().get(EVENT_ID).context("no id")?.to_str()?;
    Ok(id.rsplit_once('-').context("not our id")?.1.parse()?)
}
