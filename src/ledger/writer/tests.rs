//! What a commit takes together, and what waits for what.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::fan_out::Step;
use super::super::incarnation::Incarnation;
use super::super::plan::NewEvent;
use super::super::sql::Database;
use super::super::{BacklogLimits, Claimed, Held, RequestKey};
use super::*;
use crate::domain::event::{Event, EventSeq, Fingerprint, Identity};
use crate::domain::scheduler::{LaneClaim, Permit};
use crate::domain::tenant::{Destination, Lane};

/// Remembers how many events and settlements each commit had.
#[derive(Default)]
struct Groups(Mutex<Vec<(usize, usize)>>);

#[async_trait]
impl Store for Groups {
    async fn commit(&self, plan: &mut Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        self.0.lock().unwrap().push((plan.inserts.len(), settlements.len()));
        Ok(Committed::Done { stale: HashSet::new() })
    }

    async fn continue_fan_out(&self, _next: Next<'_>) -> Result<Option<Step>> {
        Ok(None)
    }

    async fn lookup(&self, _identities: &[&Identity], _keys: &[&RequestKey]) -> Result<Known> {
        Ok(Known::default())
    }

    async fn claim(&self, _claims: &[LaneClaim], _now: Timestamp) -> Result<Claimed> {
        Ok(Claimed { lanes: Vec::new(), damaged: Vec::new() })
    }

    async fn release(&self, _held: &[Held]) -> Result<()> {
        Ok(())
    }

    async fn claim_one(&self, _place: &Held) -> Result<Option<i64>> {
        Ok(None)
    }

    async fn heartbeat(&self, _after_trouble: bool) -> Result<()> {
        Ok(())
    }

    async fn announce(&self, _address: &str) -> Result<()> {
        Ok(())
    }

    async fn close(&self, _database: &Database) {}
}

#[derive(Debug)]
struct StandingClock;

impl Clock for StandingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000)
    }

    fn moment(&self) -> Moment {
        Moment::default()
    }

    fn random(&self) -> u128 {
        0
    }
}

/// A dispatcher with sends under way.
struct Sending;

impl Outlet for Sending {
    fn reserve(&self, _lane: &Arc<Lane>) -> Option<Permit> {
        None
    }

    fn deliver(&self, _delivery: Delivery, _permit: Permit) {}

    fn give_back(&self, _lane: &Arc<Lane>, _permit: Permit) {}

    fn is_sending(&self) -> bool {
        true
    }

    fn wake(&self, _lane: &Arc<Lane>, _class: Class, _due_at: Timestamp) {}
}

/// A writer into a store that remembers what it was told.
fn writer(settle_together: Duration) -> (Writer, Arc<Groups>) {
    let store = Arc::new(Groups::default());
    let limits = BacklogLimits { tenant: 1, total: 1 };
    let health = watch::channel(None).0;
    let writer = Writer {
        store: store.clone(),
        sequence: Sequence::new(0, None),
        backlog: Arc::new(Backlog::new(limits, HashMap::new())),
        outlet: Arc::default(),
        meter: Arc::default(),
        repeats: Arc::default(),
        unsettled_count: Arc::default(),
        bell: None,
        health: health.clone(),
        membership: Arc::new(Membership::new(Incarnation { node: 0, epoch: 1_025 }, health)),
        last_beat: Moment::default(),
        settle_together,
        clock_keeper: None,
        fan_out: FanOutTurn::default(),
        clock: Arc::new(StandingClock),
    };
    (writer, store)
}

fn settlement(event: i64) -> Settlement {
    let destination = Arc::new(Destination::Svix { app: "acme".into() });
    let lane = Lane { id: LaneId(1), destination, tenant: "acme".into() };
    Settlement {
        id: DeliveryId { event: EventSeq(event), lane: lane.id },
        lane: Arc::new(lane),
        class: Class::Fresh,
        due_at: Timestamp::from_millis(1_000),
        replay: ReplayNumber::default(),
        attempt: 1,
        at: Timestamp::from_millis(1_000),
        latency_ms: 1,
        failures: 0,
        status: Some(202),
        failure: None,
        next: NextState::Delivered { remote_id: None, dispatch_unconfirmed: false },
    }
}

/// A request of so many events with such bodies; nobody waits for its answer.
fn request(number: usize, events: usize, body: &Bytes) -> Command {
    let event = |n: usize| Event {
        identity: Identity { tenant: "acme".into(), source: "".into(), id: format!("{number}-{n}").into() },
        event_type: "t".into(),
        fingerprint: Fingerprint([0; 32]),
        body: body.clone(),
        data: None,
        trace: None,
    };
    let events = (0..events).map(|n| NewEvent { event: event(n), lanes: Vec::new() }).collect();
    let request = AcceptRequest { events, strict: true, request_key: None };
    Command::Accept { request, answer: oneshot::channel().0 }
}

/// Events in each commit, where so many requests of so many events with such bodies wait.
async fn groups(requests: usize, events: usize, body: usize) -> Vec<usize> {
    let (writer, store) = writer(Duration::ZERO);
    let (desk, inbox) = Desk::new();
    let body = Bytes::from(vec![b' '; body]);
    for number in 0..requests {
        let sent = desk.commands.send(request(number, events, &body)).await;
        sent.unwrap_or_else(|_| panic!("the queue is open"));
    }
    drop(desk);
    writer.run(inbox).await;
    store.0.lock().unwrap().iter().map(|(events, _)| *events).collect()
}

#[tokio::test]
async fn a_group_is_bounded_by_rows_and_by_bytes() {
    assert_eq!(groups(50, 100, 10).await, [2_000, 2_000, 1_000]);
    assert_eq!(groups(20, 2, 1 << 20).await, [8, 8, 8, 8, 8]);
    assert_eq!(groups(3, 5_000, 1).await, [5_000, 5_000, 5_000], "a request is not split");
}

/// What is written of two settlements, of which the first has been read before the second comes, and then the command.
async fn settled_beside(
    sending: bool,
    settle_together: Duration,
    then: Option<Command>,
) -> Vec<(usize, usize)> {
    let (writer, store) = writer(settle_together);
    if sending {
        assert!(writer.outlet.set(Box::new(Sending)).is_ok());
    }
    let (desk, inbox) = Desk::new();
    let writing = tokio::spawn(writer.run(inbox));
    for event in [1, 2] {
        desk.settlements.send(settlement(event)).await.expect("the queue is open");
        tokio::task::yield_now().await;
    }
    match then {
        Some(command) => desk.commands.send(command).await.unwrap_or_else(|_| panic!("the queue is open")),
        // Nobody comes.
        None => {
            while store.0.lock().unwrap().iter().map(|(_, settled)| settled).sum::<usize>() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    drop(desk);
    writing.await.expect("it ends");
    store.0.lock().unwrap().clone()
}

const LONG: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn settlements_wait_for_others_and_for_no_longer_than_the_next_request() {
    let one = request(0, 1, &Bytes::from_static(b"{}"));
    assert_eq!(settled_beside(true, LONG, Some(one)).await, [(1, 2)]);
    assert_eq!(settled_beside(true, LONG, Some(Command::Close)).await, [(0, 2)]);
    let alone = settled_beside(true, Duration::from_millis(20), None);
    let alone = tokio::time::timeout(Duration::from_secs(60), alone).await;
    let alone = alone.expect("nor for longer than they may");
    assert_eq!(alone.iter().map(|(_, settled)| settled).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_settlement_that_no_other_will_follow_does_not_wait() {
    assert_eq!(settled_beside(false, LONG, None).await, [(0, 1), (0, 1)]);
}
