//! The relaying process: parse, group commit, answer, POST, settle.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use posthaste::app::SystemClock;
use posthaste::domain::clock::Clock;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{Connection as _, SqliteConnection};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::Args;
use crate::store::{Place, Store};

/// Most commands in one commit.
const GROUP: usize = 2_000;
/// How often the WAL is checkpointed on the side, as with Posthaste.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);

/// An event as it is recorded.
pub struct Event {
    /// Its number, given by the writer.
    pub seq: i64,
    /// Milliseconds since the Unix epoch.
    pub received_at: i64,
    /// Its attributes.
    pub tenant: Box<str>,
    pub source: Box<str>,
    pub id: Box<str>,
    pub event_type: Box<str>,
    /// All of it as it came.
    pub body: Bytes,
}

/// An event that was sent.
pub struct Settled {
    /// Its number.
    pub seq: i64,
    /// Where it stands in the queue.
    pub due_at: i64,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
    pub latency_ms: i64,
    pub status: i64,
}

enum Command {
    Accept { events: Vec<Event>, answer: oneshot::Sender<()> },
    Settle(Settled),
}

/// An event on its way out.
struct Outgoing {
    seq: i64,
    due_at: i64,
    id: Box<str>,
    body: Bytes,
}

struct Relay {
    commands: mpsc::UnboundedSender<Command>,
    written: Notify,
    clock: SystemClock,
}

/// Relays until its input ends.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let place = place_of(args)?;
    let (commands, queue) = mpsc::unbounded_channel();
    let relay = Arc::new(Relay { commands, written: Notify::new(), clock: SystemClock::new() });
    let client = client();
    let senders = (0..args.in_flight.max(1)).map(|_| {
        let (sender, outgoing) = mpsc::unbounded_channel();
        tokio::spawn(send(outgoing, client.clone(), uri(args), relay.clone()));
        sender
    });
    let senders: Vec<_> = senders.collect();
    if place.sqlite_path().is_some() {
        tokio::spawn(checkpoint_on_the_side(place_of(args)?, relay.clone()));
    }
    let store = Store::open(&place).await?;
    tokio::spawn(write(queue, store, senders, relay.clone()));
    let router = Router::new()
        .route("/notifications", post(accept))
        .route("/health/ready", get(async || StatusCode::OK))
        .with_state(relay);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        // Answers are small and complete.
        let _ = stream.set_nodelay(true);
    });
    end_with_input();
    axum::serve(listener, router).await?;
    Ok(())
}

fn place_of(args: &Args) -> anyhow::Result<Place> {
    let url = args.database.clone().context("a part is told its database")?;
    Ok(Place { url, schema: args.schema.clone(), cache_kib: args.cache_kib })
}

fn uri(args: &Args) -> String {
    format!("http://{}/", args.sink)
}

/// The process that started us is gone once our input ends.
fn end_with_input() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// A client as Posthaste's senders have it.
fn client() -> Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

/// One event to the sink; what it answered, 0 where it did not.
async fn post_event(client: &Client<HttpConnector, Full<Bytes>>, uri: &str, id: &str, body: Bytes) -> i64 {
    let request = Request::post(uri)
        .header("content-type", "application/json")
        .header("event-id", id)
        .body(Full::from(body));
    let Ok(request) = request else { return 0 };
    let Ok(answer) = client.request(request).await else { return 0 };
    let status = answer.status();
    match answer.into_body().collect().await {
        Ok(_) => i64::from(status.as_u16()),
        Err(_) => 0,
    }
}

async fn accept(State(relay): State<Arc<Relay>>, body: Bytes) -> (StatusCode, String) {
    let Ok(events) = parse(&body) else { return (StatusCode::BAD_REQUEST, String::new()) };
    let count = events.len();
    let (answer, committed) = oneshot::channel();
    let sent = relay.commands.send(Command::Accept { events, answer });
    if sent.is_err() || committed.await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    (StatusCode::ACCEPTED, format!(r#"{{"accepted":{count}}}"#))
}

/// What is read of an event.
#[derive(Deserialize)]
struct Attributes<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    #[serde(borrow, rename = "data")]
    _data: &'a RawValue,
}

/// The events of an array, or the one that stands alone, each read once and kept as it came.
fn parse(body: &Bytes) -> anyhow::Result<Vec<Event>> {
    let text = std::str::from_utf8(body)?.trim();
    let Some(mut rest) = text.strip_prefix('[') else {
        let (event, behind) = leading_event(body, text)?;
        anyhow::ensure!(behind.is_empty(), "something behind the event");
        return Ok(vec![event]);
    };
    let mut events = Vec::new();
    loop {
        let (event, behind) = leading_event(body, rest.trim_start())?;
        events.push(event);
        match behind.trim_start().split_at_checked(1) {
            Some((",", behind)) => rest = behind,
            Some(("]", _)) => return Ok(events),
            _ => anyhow::bail!("no end of the array"),
        }
    }
}

/// The event that `text`, a part of `body`, begins with, and what stands behind it.
fn leading_event<'a>(body: &Bytes, text: &'a str) -> anyhow::Result<(Event, &'a str)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Attributes<'_>>();
    let attributes = stream.next().context("no event")??;
    let (event, behind) = text.split_at(stream.byte_offset());
    let event = Event {
        seq: 0,
        received_at: 0,
        tenant: attributes.tenant.into(),
        source: attributes.source.into(),
        id: attributes.id.into(),
        event_type: attributes.event_type.into(),
        body: body.slice_ref(event.as_bytes()),
    };
    Ok((event, behind))
}

/// Commits together what waits; then answers, and hands events to the senders.
async fn write(
    mut queue: mpsc::UnboundedReceiver<Command>,
    mut store: Store,
    senders: Vec<mpsc::UnboundedSender<Outgoing>>,
    relay: Arc<Relay>,
) -> anyhow::Result<()> {
    let mut commands = Vec::new();
    // Numbers grow with time, from one start to the next.
    let mut seq = relay.clock.now().as_millis() << 20;
    while queue.recv_many(&mut commands, GROUP).await > 0 {
        let (mut events, mut answers, mut settled) = (Vec::new(), Vec::new(), Vec::new());
        let now = relay.clock.now().as_millis();
        for command in commands.drain(..) {
            match command {
                Command::Accept { events: more, answer } => {
                    events.extend(more);
                    answers.push(answer);
                }
                Command::Settle(one) => settled.push(one),
            }
        }
        for event in &mut events {
            seq += 1;
            event.seq = seq;
            event.received_at = now;
        }
        if let Err(error) = store.commit(&events, &settled).await {
            eprintln!("the commit failed: {error}");
            std::process::exit(1);
        }
        relay.written.notify_one();
        for answer in answers {
            // Whoever does not wait any more has gone.
            let _ = answer.send(());
        }
        let outgoing = events.into_iter().map(|event| Outgoing {
            seq: event.seq,
            due_at: event.received_at,
            id: event.id,
            body: event.body,
        });
        for (outgoing, sender) in outgoing.zip(senders.iter().cycle()) {
            sender.send(outgoing)?;
        }
    }
    Ok(())
}

/// One of the requests under way.
async fn send(
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
    client: Client<HttpConnector, Full<Bytes>>,
    uri: String,
    relay: Arc<Relay>,
) {
    while let Some(Outgoing { seq, due_at, id, body }) = outgoing.recv().await {
        let began = relay.clock.moment();
        let status = post_event(&client, &uri, &id, body).await;
        let latency = began.until(relay.clock.moment());
        let latency_ms = i64::try_from(latency.as_millis()).unwrap_or(i64::MAX);
        let at = relay.clock.now().as_millis();
        let settled = Settled { seq, due_at, at, latency_ms, status };
        if relay.commands.send(Command::Settle(settled)).is_err() {
            return;
        }
    }
}

/// Keeps checkpoints out of commits.
async fn checkpoint_on_the_side(place: Place, relay: Arc<Relay>) -> anyhow::Result<()> {
    let options = place.sqlite_options().context("a file")?;
    let mut connection = SqliteConnection::connect_with(&options).await?;
    loop {
        relay.written.notified().await;
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut connection).await?;
    }
}
