//! A full disk: nothing is sent that could not be settled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use posthaste::mock::{MockPartner, PartnerAnswer, Trouble};
use serde_json::json;

use super::room::Room;
use super::{Told, all_done, body, end};
use crate::chaos::tell;
use crate::support::partners::{MASTER_KEY, add_endpoint};
use crate::support::{RelayProcess, TestDatabase, bounded, eventually, mock_svix};

const EVENTS: usize = 200;
/// Short, so that several leases end while the disk is full.
const SETTINGS: [(&str, &str); 6] = [
    ("POSTHASTE_MASTER_KEY", MASTER_KEY),
    ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
    ("POSTHASTE_SVIX__TIMEOUT_MS", "250"),
    ("POSTHASTE_DISPATCH__LEASE_MS", "1000"),
    ("POSTHASTE_DISPATCH__MAX_IN_FLIGHT", "8"),
    ("POSTHASTE_DISPATCH__MAX_IN_FLIGHT_PER_DESTINATION", "4"),
];
/// How long one send takes.
const SEND_TAKES: Duration = Duration::from_millis(50);
/// How long nothing may be sent: several leases.
const FULL_FOR: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_lets_no_send_begin_that_could_not_be_settled() {
    bounded(run("full disk, sends", Room::of_a_small_disk())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_lets_no_send_begin_that_could_not_be_settled() {
    bounded(run("I/O error, sends", Room::of_a_small_file())).await;
}

/// Requests for each event, of both destinations.
fn requests(svix: &posthaste::mock::MockSvix, partner: &MockPartner) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in svix.requests() {
        if let Some(event) = &request.event_id {
            *counts.entry(format!("svix {event}")).or_default() += 1;
        }
    }
    for request in partner.requests() {
        *counts.entry(format!("endpoint {}", request.header("webhook-id"))).or_default() += 1;
    }
    counts
}

async fn run(what: &str, room: Room) {
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    svix.set_trouble(Some(Trouble::Slow(SEND_TAKES)));
    partner.set_answer(Some(PartnerAnswer { delay: SEND_TAKES, ..PartnerAnswer::status(204) }));
    let database = TestDatabase::sqlite_in(room.directory());
    let relay = RelayProcess::start_by(room.command(), &database, &svix, &SETTINGS);
    add_endpoint(&relay, "crm", json!({ "url": partner.url("/hook"), "event_types": ["*"] })).await;
    let mut told = Told::default();
    for batch in 0..EVENTS / 20 {
        let ids: Vec<_> = (0..20).map(|item| format!("e{batch}-{item}")).collect();
        let body = body(&ids, 100);
        let answer = relay.post(body.clone()).await;
        assert!(told.take(body, &answer), "there is room");
    }
    room.fill();
    // Until there is no room for an event, and the relay knows.
    let mut fillers = 0;
    while relay.get("/health/ready").await.status == 200 {
        fillers += 1;
        assert!(fillers < 2_000, "there is always room");
        let body = body(&[format!("filler-{fillers}")], 20_000);
        let answer = relay.post(body.clone()).await;
        told.take(body, &answer);
    }
    let count = || requests(&svix, &partner).values().sum::<usize>();
    // Those in flight end.
    tokio::time::sleep(4 * SEND_TAKES).await;
    let (sent, until) = (count(), Instant::now() + FULL_FOR);
    let (mut most, mut took_writes) = (sent, false);
    while Instant::now() < until {
        most = most.max(count());
        took_writes |= relay.get("/health/ready").await.status == 200;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    // Within a limited file small settlements find room again and again: then sends go on, and each is settled.
    assert!(took_writes || most == sent, "{} sends began that could not be settled", most - sent);
    assert!(!(took_writes && room.is_disk()), "the disk is not full: the test shows nothing");
    let waiting = 2 * told.acknowledged.len() - sent;
    assert!(waiting > 0, "all was sent before the disk was full: the test shows nothing");

    room.make(relay.pid());
    eventually("the relay is ready", async || (relay.get("/health/ready").await.status == 200).then_some(()))
        .await;
    all_done(&database, 2 * told.acknowledged.len()).await;
    let counts = requests(&svix, &partner);
    let again = counts.values().filter(|count| **count > 1).count();
    assert_eq!((counts.len(), again), (2 * told.acknowledged.len(), 0), "each once");
    end(relay, &database).await;
    tell(
        what,
        format!(
            "{sent} sends before the disk was full, none in {} s while it was, {waiting} afterwards; each of {} deliveries \
             was sent once",
            FULL_FOR.as_secs(),
            counts.len(),
        ),
    );
}
