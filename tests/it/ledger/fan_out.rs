//! Requests whose events go to very many lanes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste::domain::delivery::DeliveryId;
use posthaste::domain::event::EventSeq;
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{
    Accepted, BacklogLimits, EventState, ItemVerdict, Ledger, LedgerOptions, NewEvent, Standing, Steered,
};

use super::{accept, claim, close, lane, open_with_lane};
use crate::support::{TestClock, TestDatabase, bounded, event, eventually};

on_both_databases! {
    load_of_a_large_fan_out_delays_no_other_tenant,
    a_restart_continues_a_fan_out,
    a_large_fan_out_leaves_others_their_turn,
    an_event_with_very_many_lanes_reaches_all,
    events_that_all_go_to_different_lanes_are_queued_together,
    a_large_request_that_comes_again_is_queued_once,
    deliveries_that_are_not_queued_yet_are_pending,
}

/// The largest request that the default limits allow, for a tenant with many endpoints.
const EVENTS: usize = 10_000;
const LANES: usize = 120;
/// Longest that another tenant may wait for an answer.
const DELAY_LIMIT: Duration = Duration::from_millis(500);
/// How often the other tenant posts an event.
const POST_EVERY: Duration = Duration::from_millis(10);

fn roomy(database: &TestDatabase) -> LedgerOptions {
    LedgerOptions { backlog: BacklogLimits { tenant: 2_000_000, total: 10_000_000 }, ..database.options() }
}

/// So many lanes of tenant `acme`.
async fn lanes(ledger: &Ledger, count: usize) -> Vec<Arc<Lane>> {
    let mut lanes = Vec::with_capacity(count);
    for n in 0..count {
        lanes.push(lane(ledger, &format!("app{n}"), "acme").await);
    }
    lanes
}

/// So many events, each for all of these lanes.
fn events(prefix: &str, count: usize, lanes: &[Arc<Lane>]) -> Vec<NewEvent> {
    let one = |n| NewEvent { lanes: lanes.to_vec(), ..event(format!("{prefix}{n}")).build() };
    (0..count).map(one).collect()
}

async fn count(database: &TestDatabase, rows: &str) -> usize {
    let sql = format!("SELECT CAST(COUNT(*) AS TEXT) FROM {rows}");
    database.text(&sql).await.parse().expect("a count")
}

/// Another tenant, who posts one event after another.
struct Neighbour {
    ledger: Ledger,
    lane: Arc<Lane>,
    posted: usize,
    slowest: Duration,
}

impl Neighbour {
    async fn of(ledger: &Ledger) -> Self {
        let lane = lane(ledger, "globex", "globex").await;
        let mut neighbour = Self { ledger: ledger.clone(), lane, posted: 0, slowest: Duration::ZERO };
        neighbour.post().await;
        neighbour
    }

    /// Posts while a large request of new events is accepted, which must be stored; how long that took.
    async fn post_beside(&mut self, request: Vec<NewEvent>) -> Duration {
        let (ledger, events, began) = (self.ledger.clone(), request.len(), Instant::now());
        let large = tokio::spawn(async move { ledger.accept(request, true, None).await });
        while !large.is_finished() {
            self.post().await;
        }
        let accepted = began.elapsed();
        let answer = large.await.expect("no panic").expect("accepted at the first try");
        assert_eq!(answer, Accepted::Stored(vec![ItemVerdict::Accepted; events]));
        self.assert_not_delayed();
        accepted
    }

    async fn post(&mut self) {
        let began = Instant::now();
        let own = event(format!("own{}", self.posted)).to(&self.lane).build();
        accept(&self.ledger, vec![own]).await;
        self.slowest = self.slowest.max(began.elapsed());
        self.posted += 1;
        tokio::time::sleep(POST_EVERY).await;
    }

    fn assert_not_delayed(&self) {
        let Self { posted, slowest, .. } = self;
        assert!(*slowest <= DELAY_LIMIT, "the slowest of {posted} posts took {slowest:?}");
    }
}

async fn load_of_a_large_fan_out_delays_no_other_tenant(database: TestDatabase) {
    let ledger = database.open_with(&roomy(&database), &TestClock::new()).await.expect("it opens");
    let lanes = lanes(&ledger, LANES).await;
    let mut neighbour = Neighbour::of(&ledger).await;
    let request = events("large", EVENTS, &lanes);
    let began = Instant::now();
    let accepted = neighbour.post_beside(request).await;
    assert_eq!(ledger.waiting(), (EVENTS * LANES + neighbour.posted) as u64, "all of it is counted");
    while count(&database, "fan_out").await > 0 {
        neighbour.post().await;
    }
    let queued = began.elapsed();
    neighbour.assert_not_delayed();
    let complete =
        format!("(SELECT event FROM queue GROUP BY event HAVING COUNT(DISTINCT lane) = {LANES}) AS events");
    assert_eq!(count(&database, &complete).await, EVENTS);
    assert_eq!(count(&database, "queue").await, EVENTS * LANES + neighbour.posted, "each once");
    let Neighbour { posted, slowest, .. } = neighbour;
    println!(
        "accepted after {accepted:?}, queued after {queued:?}; the slowest of {posted} posts took {slowest:?}"
    );
}

/// A request whose deliveries take 25 steps.
fn of_25_steps(lanes: &[Arc<Lane>]) -> Vec<NewEvent> {
    events("large", 400, lanes)
}

async fn all_queued(database: &TestDatabase) {
    let queued = async || (count(database, "fan_out").await == 0).then_some(());
    eventually("all deliveries are in the queue", queued).await;
}

async fn a_restart_continues_a_fan_out(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let lanes = lanes(&ledger, LANES).await;
    accept(&ledger, of_25_steps(&lanes)).await;
    assert_eq!(ledger.waiting(), 48_000);
    close(ledger).await;
    assert!(count(&database, "fan_out").await > 0, "a ledger that is closed does not wait for all steps");
    let ledger = database.open(&clock).await;
    assert_eq!(ledger.waiting(), 48_000, "the restart counts what is not queued yet");
    all_queued(&database).await;
    assert_eq!((count(&database, "queue").await, ledger.waiting()), (48_000, 48_000));
    for lane in [&lanes[0], &lanes[LANES - 1]] {
        let claimed = claim(&ledger, lane, 1_000).await.deliveries;
        assert_eq!(claimed.len(), 400);
        assert!(claimed.is_sorted_by_key(|delivery| delivery.id.event), "in the order they came");
    }
}

async fn a_large_fan_out_leaves_others_their_turn(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let acme = lanes(&ledger, LANES).await;
    let mut globex = Vec::new();
    for n in 0..LANES {
        globex.push(lane(&ledger, &format!("globex{n}"), "globex").await);
    }
    accept(&ledger, events("whale", 4_000, &acme)).await;
    let mut small = events("small", 40, &globex);
    for new in &mut small {
        new.event.identity.tenant = "globex".into();
    }
    accept(&ledger, small).await;
    let small_is_queued =
        async || (count(&database, "fan_out WHERE tenant = 'globex'").await == 0).then_some(());
    eventually("the small one is queued", small_is_queued).await;
    assert!(count(&database, "fan_out WHERE tenant = 'acme'").await > 0, "long before the large one");
}

async fn an_event_with_very_many_lanes_reaches_all(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let lanes = lanes(&ledger, 2_500).await;
    accept(&ledger, events("wide", 2, &lanes)).await;
    all_queued(&database).await;
    assert_eq!(count(&database, "queue").await, 5_000);
    assert_eq!(
        count(&database, "(SELECT lane FROM queue GROUP BY lane HAVING COUNT(*) = 2) AS lanes").await,
        2_500
    );
}

async fn events_that_all_go_to_different_lanes_are_queued_together(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let lanes = lanes(&ledger, 2_500).await;
    let one_each = lanes
        .iter()
        .enumerate()
        .flat_map(|(n, lane)| events(&format!("e{n}-"), 1, std::slice::from_ref(lane)));
    accept(&ledger, one_each.collect()).await;
    all_queued(&database).await;
    let first = claim(&ledger, &lanes[0], 10).await.deliveries;
    let last = claim(&ledger, &lanes[2_499], 10).await.deliveries;
    assert_eq!((super::ids(&first), super::ids(&last)), (vec!["e0-0"], vec!["e2499-0"]));
    assert_eq!(count(&database, "(SELECT lane FROM queue GROUP BY lane) AS lanes").await, 2_500);
    assert_eq!(count(&database, "queue").await, 2_500);
}

async fn a_large_request_that_comes_again_is_queued_once(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let lanes = lanes(&ledger, LANES).await;
    let half = events("large", 200, &lanes);
    accept(&ledger, half).await;
    let verdicts = accept(&ledger, of_25_steps(&lanes)).await;
    assert_eq!(verdicts[..200], [ItemVerdict::Duplicate; 200]);
    assert_eq!(verdicts[200..], [ItemVerdict::Accepted; 200]);
    assert_eq!(accept(&ledger, of_25_steps(&lanes)).await, [ItemVerdict::Duplicate; 400]);
    all_queued(&database).await;
    assert_eq!((count(&database, "queue").await, ledger.waiting()), (48_000, 48_000));
}

/// Takes all deliveries out of the queue again, as if their requests were large and no step had been made.
async fn unqueue(database: &TestDatabase) {
    let sql = "INSERT INTO fan_out (tenant, event, part, last_event, due_at, deliveries, events, lanes)
               SELECT 'acme', event, 0, event, due_at, COUNT(*), '[' || CAST(event AS TEXT) || ']',
                      '[' || string_agg(CAST(lane AS TEXT), ',') || ']'
               FROM queue GROUP BY event, due_at;
               DELETE FROM queue;";
    database.execute(sql).await;
}

async fn deliveries_that_are_not_queued_yet_are_pending(database: TestDatabase) {
    let (ledger, first) = open_with_lane(&database, &TestClock::new()).await;
    let second = lane(&ledger, "second", "acme").await;
    // The first look of the writer is over once it has answered.
    accept(&ledger, Vec::new()).await;
    accept(&ledger, events("e", 2, &[first.clone(), second.clone()])).await;
    unqueue(&database).await;
    let (found, _) = ledger.find_event("acme", None, "e0").await.expect("an answer");
    let seq: EventSeq = found[0].1;
    let event = ledger.event_detail(seq).await.expect("an answer").expect("it is there").event;
    assert_eq!((event.state, event.destinations), (EventState::Pending, 2));
    let deliveries = ledger.deliveries_of(&event).await.expect("an answer");
    let lanes: Vec<_> = deliveries.iter().map(|row| row.id.lane).collect();
    assert_eq!(lanes, [first.id, second.id]);
    assert!(deliveries.iter().all(|row| matches!(row.standing, Standing::Waiting(_))));
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.created, progress.pending), (4, 4));
    let by_destination = ledger.database().waiting_by_destination().await.expect("an answer");
    assert_eq!(by_destination, [("svix:acme".to_owned(), 2), ("svix:second".to_owned(), 2)]);
    let waiting = ledger.database().waiting().await.expect("an answer");
    assert!(waiting.iter().all(|row| (row.count, row.oldest) == (2, event.received_at)), "{waiting:?}");
    let gone = ledger.database().done_events(0, i64::MAX, 10).await.expect("an answer");
    assert!(gone.iter().all(|event| event.done_at == i64::MAX), "retention keeps them");
    // An operator cancels one of them: the others go out.
    let id = DeliveryId { event: seq, lane: second.id };
    let (_, row) = ledger.delivery(id).await.expect("an answer").expect("it is pending");
    assert_eq!(ledger.cancel(&row, None, "operator").await.expect("an answer"), Steered::Done);
    let (_, row) = ledger.delivery(id).await.expect("an answer").expect("it is done");
    assert!(matches!(&row.standing, Standing::Done(done) if done.state == "canceled"), "{row:?}");
    assert_eq!(claim(&ledger, &first, 5).await.deliveries.len(), 1);
    assert_eq!(claim(&ledger, &second, 5).await.deliveries.len(), 0);
    assert_eq!(ledger.waiting(), 3);
}

/// A node leaves a fan-out behind; one that runs finds it without being asked.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_continues_a_fan_out_that_was_left() {
    let test = async {
        let database = TestDatabase::postgres().await;
        let clock = TestClock::new();
        let (staying, leaving) = (database.open(&clock).await, database.open(&clock).await);
        // Both have looked for what was left before them.
        accept(&staying, Vec::new()).await;
        let lanes = lanes(&leaving, LANES).await;
        accept(&leaving, of_25_steps(&lanes)).await;
        close(leaving).await;
        assert!(count(&database, "fan_out").await > 0);
        all_queued(&database).await;
        assert_eq!(count(&database, "queue").await, 48_000);
        close(staying).await;
    };
    bounded(test).await;
}
