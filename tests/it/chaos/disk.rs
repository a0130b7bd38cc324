//! The disk: full, failing, and its log held up by a reader.

mod reader;
pub mod room;
mod unsettled;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use axum::http::Method;
use posthaste::mock::{MockSvix, Trouble};
use serde_json::json;

use self::room::Room;
use super::tell;
use crate::support::partners::JSON;
use crate::support::{
    Answer, HttpClient, RelayProcess, TestDatabase, bounded, eventually, metrics, mock_svix, side_by_side,
};

/// Events in a batch, and bytes of data in each: a batch is more than a page, and more than one.
const PER_BATCH: usize = 20;
const DATA_BYTES: usize = 2_000;
const CLIENTS: usize = 4;
/// A bound on how many batches are tried until there is no room.
const BATCHES_MAX: usize = 2_000;
/// Single events that must be refused one after another before there counts as no room at all: for longer than the relay
/// pauses between two of its own tries.
const REFUSED_IN_A_ROW: usize = 60;
/// How long the relay is looked at while there is none.
const FULL_FOR: Duration = Duration::from_secs(3);
/// Longest until a relay that has room again says so: its pauses are two seconds, half as much more at times.
const BACK_WITHIN: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_whole_batches_and_goes_on_when_there_is_room() {
    // holds: 12
    bounded(run("full disk", Room::of_a_small_disk())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_keeps_what_was_acknowledged() {
    // holds: 12, 13
    bounded(run("I/O error (a file that may not grow)", Room::of_a_small_file())).await;
}

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    /// Ids of events whose request was answered 202.
    acknowledged: BTreeSet<String>,
    /// Requests answered 503: their bodies.
    refused: Vec<String>,
}

impl Told {
    fn take(&mut self, body: String, answer: &Answer) -> bool {
        let is_taken = answer.status == 202;
        if is_taken {
            self.acknowledged.extend(ids(&body));
        } else {
            assert_refused(answer);
            self.refused.push(body);
        }
        is_taken
    }

    fn extend(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
    }
}

async fn run(what: &str, room: Room) {
    let svix = mock_svix().await;
    // Some are under way all the time, so that settlements meet the full disk, too.
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(40))));
    let database = TestDatabase::sqlite_in(room.directory());
    let relay = RelayProcess::start_by(room.command(), &database, &svix, &[]);
    let mut told = fill(&relay).await;
    assert!(!told.acknowledged.is_empty() && !told.refused.is_empty());
    stay_full(&relay, &mut told).await;
    assert_eq!(
        stored(&database).await,
        told.acknowledged,
        "what was acknowledged is there, and nothing else"
    );
    let (sent_before, pid) = (svix.message_count(), relay.pid());

    room.make(relay.pid());
    let freed = Instant::now();
    eventually("the relay is ready", async || (relay.get("/health/ready").await.status == 200).then_some(()))
        .await;
    let back_after = freed.elapsed();
    assert!(back_after < BACK_WITHIN, "{back_after:?}");
    svix.set_trouble(None);
    resend(&relay, &mut told).await;
    refuse_a_change(&relay).await;
    assert_eq!(relay.post(body(&["last".into()], 10)).await.status, 202, "a refused change locks nobody out");
    told.acknowledged.insert("last".into());

    all_done(&database, told.acknowledged.len()).await;
    assert_eq!(stored(&database).await, told.acknowledged);
    let again = assert_sent_once(&svix, &told.acknowledged);
    assert_eq!(relay.pid(), pid, "the same process all the time");
    end(relay, &database).await;
    tell(
        what,
        format!(
            "{} events acknowledged, all there and delivered once ({sent_before} before there was room, {again} sent \
             again under the same key); {} requests refused whole; ready {} ms after there was room; integrity_check ok",
            told.acknowledged.len(),
            told.refused.len(),
            back_after.as_millis(),
        ),
    );
}

/// Batches until there is no room for one, then events until there is none for one.
async fn fill(relay: &RelayProcess) -> Told {
    let clients = (0..CLIENTS).map(|client| {
        let relay: HttpClient = (**relay).clone();
        async move {
            let mut told = Told::default();
            for batch in 0..BATCHES_MAX {
                let ids: Vec<_> = (0..PER_BATCH).map(|item| format!("{client}-{batch}-{item}")).collect();
                let body = body(&ids, DATA_BYTES);
                let answer = relay.post(body.clone()).await;
                if !told.take(body, &answer) {
                    return told;
                }
            }
            panic!("there is always room");
        }
    });
    let mut told = Told::default();
    side_by_side(clients).await.into_iter().for_each(|of_client| told.extend(of_client));
    let (mut single, mut refused) = (0, 0);
    while refused < REFUSED_IN_A_ROW {
        single += 1;
        assert!(single < BATCHES_MAX, "there is always room");
        let body = body(&[format!("single-{single}")], DATA_BYTES);
        let answer = relay.post(body.clone()).await;
        refused = if told.take(body, &answer) { 0 } else { refused + 1 };
        // Time for the settlements of what is under way to take what room is left.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    told
}

/// While there is no room, everything that would need some is refused, and says so.
async fn stay_full(relay: &RelayProcess, told: &mut Told) {
    let until = Instant::now() + FULL_FOR;
    let mut number = 0;
    while Instant::now() < until {
        let ready = relay.get("/health/ready").await;
        assert_eq!((ready.status.as_u16(), &ready.json()["status"]), (503, &json!("not_ready")));
        let ids: Vec<_> = (0..PER_BATCH).map(|item| format!("full-{number}-{item}")).collect();
        let body = body(&ids, DATA_BYTES);
        // A lenient batch, too, is stored whole or not at all where nothing is wrong with its events.
        let lenient: &[(&str, &str)] = if number % 2 == 0 { &[] } else { &[("prefer", "handling=lenient")] };
        let answer = relay.post_with(lenient, body.clone()).await;
        assert!(!told.take(body, &answer), "there is no room");
        number += 1;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(relay.get("/health/live").await.status, 200);
    let text = String::from_utf8_lossy(&relay.get("/metrics").await.body).into_owned();
    assert_eq!(metrics::sum(&text, "posthaste_ledger_state", &["state=\"down\""]), Some(1.0));
    assert_refused(&put_large(relay).await);
}

/// All that was refused comes again, and is new: nothing of it was kept.
async fn resend(relay: &RelayProcess, told: &mut Told) {
    for body in &told.refused {
        let answer = relay.post(body.clone()).await;
        assert_eq!(answer.status, 202, "{}", answer.json());
        assert!(answer.statuses().iter().all(|status| status == "accepted"), "{}", answer.json());
        told.acknowledged.extend(ids(body));
    }
}

/// What is rolled back after the trouble holds no lock: the connection that met it is not used again.
async fn refuse_a_change(relay: &RelayProcess) {
    assert_eq!(put_large(relay).await.status, 201);
    assert_eq!(put_tenant(relay, "first", "theirs").await.status, 201);
    let taken = put_tenant(relay, "second", "theirs").await;
    assert_eq!((taken.status.as_u16(), taken.problem().as_str()), (409, "taken"));
}

/// A change that is rare, and takes more room than may be left in pages that there are.
async fn put_large(relay: &RelayProcess) -> Answer {
    let body = json!({ "example": { "padding": "x".repeat(50 * DATA_BYTES) } }).to_string();
    relay.send(Method::PUT, "/v1/event-types/large", &JSON, body).await
}

async fn put_tenant(relay: &RelayProcess, tenant: &str, app: &str) -> Answer {
    let body = json!({ "route": "svix", "svix_app": app }).to_string();
    relay.send(Method::PUT, &format!("/v1/tenants/{tenant}"), &JSON, body).await
}

async fn all_done(database: &TestDatabase, events: usize) {
    let done = format!("{events} delivered, 0 waiting");
    let sql = "SELECT (SELECT COUNT(*) FROM outcome WHERE state = 'delivered') || ' delivered, ' ||
                      (SELECT COUNT(*) FROM queue) || ' waiting'";
    let mut last = String::new();
    let until = Instant::now() + Duration::from_secs(40);
    while last != done {
        assert!(Instant::now() < until, "{last}, and not {done}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = database.text(sql).await;
    }
}

/// Ids of the events that are stored, read past the ledger; each with its key and, until it is done, its delivery.
async fn stored(database: &TestDatabase) -> BTreeSet<String> {
    let list = |table: &str| {
        format!("SELECT COALESCE(group_concat(id, ' '), '') FROM (SELECT id FROM {table} ORDER BY id)")
    };
    let events = database.text(&list("event")).await;
    assert_eq!(events, database.text(&list("event_key")).await, "an event and its key come together");
    let deliveries = "SELECT CAST((SELECT COUNT(*) FROM queue) + (SELECT COUNT(*) FROM outcome) AS TEXT)";
    let events: BTreeSet<_> = events.split(' ').filter(|id| !id.is_empty()).map(str::to_owned).collect();
    assert_eq!(database.text(deliveries).await, events.len().to_string(), "and with its delivery");
    events
}

/// Every event is one message, and went out under one key; how many were sent more than once.
pub(super) fn assert_sent_once(svix: &MockSvix, acknowledged: &BTreeSet<String>) -> usize {
    let messages = svix.messages();
    let sent: BTreeSet<_> = messages.iter().filter_map(|message| message.event_id.clone()).collect();
    assert_eq!((messages.len(), &sent), (acknowledged.len(), acknowledged));
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in svix.requests() {
        if let (Some(event), Some(key)) = (&request.event_id, &request.idempotency_key) {
            keys.entry(event.clone()).or_default().push(key.clone());
        }
    }
    assert!(keys.values().all(|keys| keys.iter().all(|key| *key == keys[0])), "one event, one key");
    keys.values().filter(|keys| keys.len() > 1).count()
}

/// Ends the relay in good order, and looks whether its file is sound.
async fn end(mut relay: RelayProcess, database: &TestDatabase) {
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0));
    assert_eq!(database.text("PRAGMA integrity_check").await, "ok");
}

pub(super) fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (503, "ledger_unavailable"));
    let seconds: u32 = answer.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=5).contains(&seconds), "{seconds}");
}

pub(super) fn body(ids: &[String], data_bytes: usize) -> String {
    let padding = "x".repeat(data_bytes);
    let events =
        ids.iter().map(|id| json!({ "id": id, "type": "order.created", "data": { "padding": padding } }));
    serde_json::Value::from_iter(events).to_string()
}

fn ids(body: &str) -> Vec<String> {
    let events: Vec<serde_json::Value> = serde_json::from_str(body).expect("our own");
    events.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
}
