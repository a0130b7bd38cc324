//! How SQLite means to run the hot statements, and what happens while a claim reads.

use bytes::Bytes;

use super::super::plan::{self, AcceptRequest, NewEvent};
use super::super::sql::BUSY_LANES;
use super::taken::{TAKEN, TAKEN_OF_ONE};
use super::write::{TAKE_OUT, TAKE_OUT_TOGETHER, sizes};
use super::*;
use crate::domain::clock::Moment;
use crate::domain::event::Event;
use crate::domain::tenant::{Destination, Lane, LaneId};
use crate::jobs::JobMetrics;
use crate::ledger::{BacklogLimits, ClaimedLane, Connections};

async fn plan_of(statement: &str) -> String {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("a database");
    for (_, _, schema) in MIGRATIONS {
        sqlx::raw_sql(*schema).execute(&mut connection).await.expect("the schema");
    }
    let explain = format!("EXPLAIN QUERY PLAN {statement}");
    let steps: Vec<(i64, i64, i64, String)> =
        sqlx::query_as(AssertSqlSafe(explain)).fetch_all(&mut connection).await.expect("a plan");
    steps.into_iter().map(|(.., step)| step + "\n").collect()
}

#[tokio::test]
async fn a_claim_reads_on_from_its_place_in_the_lane() {
    let plan = plan_of(WAITING).await;
    assert!(
        plan.contains("SEARCH queue USING PRIMARY KEY (lane=? AND retry=? AND (due_at,event)>(?,?))"),
        "{plan}"
    );
    assert!(!plan.contains("B-TREE") && !plan.contains("SCAN queue"), "{plan}");
}

#[tokio::test]
async fn what_a_claim_carries_is_found_by_number() {
    let plan = plan_of(EVENTS).await;
    assert!(plan.contains("SEARCH event USING INTEGER PRIMARY KEY"), "{plan}");
    assert!(!plan.contains("SCAN event"), "{plan}");
}

#[tokio::test]
async fn what_is_settled_is_found_by_its_key() {
    for (size, statement) in sizes().flat_map(|size| [(size, &TAKE_OUT), (size, &TAKE_OUT_TOGETHER)]) {
        let plan = plan_of(&statement.text(size)).await;
        let search = "SEARCH queue USING PRIMARY KEY (lane=? AND retry=? AND due_at=? AND event=?)";
        assert!(plan.contains(search) && !plan.contains("SCAN queue"), "{size}: {plan}");
    }
}

#[tokio::test]
async fn identities_that_are_taken_are_found_by_their_key() {
    for (size, statement) in sizes().flat_map(|size| [(size, &TAKEN), (size, &TAKEN_OF_ONE)]) {
        let plan = plan_of(&statement.text(size)).await;
        let search = "SEARCH event_key USING PRIMARY KEY (tenant=? AND source=? AND id=?)";
        assert!(plan.contains(search) && !plan.contains("SCAN event_key"), "{size}: {plan}");
    }
}

#[tokio::test]
async fn busy_lanes_are_found_one_by_one() {
    let plan = plan_of(BUSY_LANES).await;
    for search in ["(lane>?)", "(lane=? AND retry=?)"] {
        assert!(plan.contains(&format!("SEARCH queue USING PRIMARY KEY {search}")), "{plan}");
    }
    assert!(!plan.contains("SCAN queue"), "{plan}");
    // Not all lanes for every page of them.
    assert!(!plan.contains("MATERIALIZE"), "{plan}");
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

/// A ledger, and the directory it lies in.
async fn opened() -> (Opened<SqliteStore>, tempfile::TempDir) {
    let directory = tempfile::TempDir::new().expect("a directory");
    let options = LedgerOptions {
        url: format!("sqlite:{}", directory.path().join("ledger.db").display()),
        lease: Duration::from_secs(60),
        backlog: BacklogLimits { tenant: 100, total: 100 },
        recent_bytes: 0,
        connections: Connections::default(),
    };
    let clock: Arc<dyn Clock> = Arc::new(StandingClock);
    let (health, jobs) = (watch::channel(None).0, Arc::new(JobMetrics::new(clock.clone())));
    (open(&options, &clock, &health, &jobs).await.expect("it opens"), directory)
}

/// A store with a lane, and the directory it lies in.
async fn store() -> (SqliteStore, Arc<Lane>, tempfile::TempDir) {
    let (opened, directory) = opened().await;
    let destination = Arc::new(Destination::Svix { app: "acme".into() });
    let lane = Lane { id: LaneId(1), destination, tenant: "acme".into() };
    (opened.store, Arc::new(lane), directory)
}

/// Records an event with this number, due at the same number of milliseconds.
async fn record(store: &SqliteStore, lane: &Arc<Lane>, number: i64) {
    let event = Event {
        identity: Identity { tenant: "acme".into(), source: "".into(), id: number.to_string().into() },
        event_type: "t".into(),
        fingerprint: Fingerprint([0; 32]),
        body: Bytes::from_static(b"{}"),
        data: None,
        trace: None,
    };
    let events = vec![NewEvent { event, lanes: vec![lane.clone()] }];
    let requests = [AcceptRequest { events, strict: true, request_key: None }];
    let mut plan =
        plan::plan(&requests, Known::default(), Timestamp::from_millis(number), || EventSeq(number));
    let committed = store.commit(&mut plan, &[]).await.expect("committed");
    assert!(matches!(committed, Committed::Done { .. }));
}

fn numbers(claimed: &ClaimedLane) -> Vec<i64> {
    claimed.deliveries.iter().map(|delivery| delivery.id.event.0).collect()
}

/// Claims, with `meanwhile` between reading and taking.
async fn claim_and(
    store: &SqliteStore,
    claim: &LaneClaim,
    meanwhile: impl Future<Output = ()>,
) -> ClaimedLane {
    let limit = 10;
    store.claims().reading = Some(Meanwhile::default());
    let queue = (claim.lane.id, claim.class);
    let from = store.claims().cursors.get(&queue).copied();
    let rows = store.read(queue, from, limit).await.expect("rows");
    meanwhile.await;
    let claimed = store.take(claim, rows, limit, from, store.clock.now());
    store.claims().reading = None;
    let (claims, claimed) = (std::slice::from_ref(claim), [claimed]);
    let (mut loaded, _) = payloads::load(claims, &claimed, &store.recent, store).await.expect("deliveries");
    loaded.lanes.remove(0)
}

#[tokio::test]
async fn what_appears_while_a_claim_reads_is_not_passed_over() {
    let (store, lane, _directory) = store().await;
    for number in 11..=30 {
        record(&store, &lane, number).await;
    }
    let claim = LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 3 };
    let first = claim_and(&store, &claim, record(&store, &lane, 5)).await;
    assert_eq!((numbers(&first), first.remaining), (vec![11, 12, 13], Remaining::Due));
    let second =
        store.claim(std::slice::from_ref(&claim), store.clock.now()).await.expect("claimed").lanes.remove(0);
    assert_eq!(numbers(&second), [5, 14, 15]);
    let released = async {
        store.release(&[Held::from(&first.deliveries[1])]).await.expect("released");
    };
    let third = claim_and(&store, &claim, released).await;
    let fourth = store.claim(&[claim], store.clock.now()).await.expect("claimed").lanes.remove(0);
    assert_eq!((numbers(&third), numbers(&fourth)), (vec![16, 17, 18], vec![12, 19, 20]));
}

#[tokio::test]
async fn what_is_settled_while_a_claim_reads_is_not_claimed() {
    let (store, lane, _directory) = store().await;
    for number in 1..=4 {
        record(&store, &lane, number).await;
    }
    let claim = LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 4 };
    let held =
        store.claim(std::slice::from_ref(&claim), store.clock.now()).await.expect("claimed").lanes.remove(0);
    assert_eq!(numbers(&held), [1, 2, 3, 4]);
    let settlement = |index: usize, next: NextState| {
        let delivery = &held.deliveries[index];
        Settlement {
            id: delivery.id,
            lane: lane.clone(),
            class: delivery.class,
            replay: delivery.replay,
            due_at: delivery.due_at,
            attempt: delivery.attempt,
            at: store.clock.now(),
            latency_ms: 1,
            failures: 0,
            status: None,
            failure: None,
            next,
        }
    };
    let pending = |due_at| NextState::Pending { due_at, failures: 0, uncertain: false };
    let settlements = [
        settlement(0, NextState::Delivered { remote_id: None, dispatch_unconfirmed: false }),
        // One stands where it stood, the other further back.
        settlement(1, pending(held.deliveries[1].due_at)),
        settlement(2, pending(Timestamp::from_millis(900))),
    ];
    let settled = async {
        let mut nothing = plan::plan(&[], Known::default(), store.clock.now(), || EventSeq(0));
        store.commit(&mut nothing, &settlements).await.expect("committed");
    };
    let meanwhile = claim_and(&store, &claim, settled).await;
    assert_eq!((numbers(&meanwhile), meanwhile.remaining), (vec![], Remaining::Due));
    let after = store.claim(&[claim], store.clock.now()).await.expect("claimed").lanes.remove(0);
    assert_eq!((numbers(&after), after.remaining), (vec![2, 3], Remaining::Nothing));
    assert!(after.deliveries.iter().all(|delivery| delivery.attempt == 2));
}

/// One commit of so many events with such bodies, numbered from `first` on.
async fn commit_many(
    store: &SqliteStore,
    lane: &Arc<Lane>,
    first: i64,
    count: i64,
    body: usize,
) -> Result<Committed> {
    let event = |number: i64| Event {
        identity: Identity { tenant: "acme".into(), source: "".into(), id: number.to_string().into() },
        event_type: "t".into(),
        fingerprint: Fingerprint([0; 32]),
        body: vec![b' '; body].into(),
        data: None,
        trace: None,
    };
    let new = |number| NewEvent { event: event(number), lanes: vec![lane.clone()] };
    let events = (first..first + count).map(new).collect();
    let requests = [AcceptRequest { events, strict: true, request_key: None }];
    let mut next = first - 1;
    let numbers = || {
        next += 1;
        EventSeq(next)
    };
    let mut plan = plan::plan(&requests, Known::default(), Timestamp::from_millis(first), numbers);
    store.commit(&mut plan, &[]).await
}

#[tokio::test]
async fn only_what_can_be_done_again_does_not_wait_for_the_disk() {
    const FULL: i64 = 2;
    const NORMAL: i64 = 1;
    let (opened, _directory) = opened().await;
    let Database::Sqlite { writes, redoable, .. } = opened.database else { panic!("a SQLite file") };
    let level = async |pool: &SqlitePool| {
        let (level,): (i64,) = sqlx::query_as("PRAGMA synchronous").fetch_one(pool).await.expect("a level");
        level
    };
    assert_eq!((level(&writes).await, level(&redoable).await), (FULL, NORMAL));
}

#[tokio::test]
async fn nothing_runs_on_a_transaction_that_ended_for_want_of_room() {
    // holds: 12
    let (mut store, lane, _directory) = store().await;
    record(&store, &lane, 1).await;
    let (pages,): (i64,) = sqlx::query_as("PRAGMA page_count").fetch_one(&store.reads).await.expect("pages");
    let roomy = store.options.clone();
    store.options = roomy.clone().pragma("max_page_count", (pages + 8).to_string());
    *store.writer.lock().await = None;
    let rows = async || {
        let sql = "SELECT (SELECT COUNT(*) FROM event) + (SELECT COUNT(*) FROM event_key) + (SELECT COUNT(*) FROM queue)";
        let (rows,): (i64,) = sqlx::query_as(sql).fetch_one(&store.reads).await.expect("a number");
        rows
    };
    for _ in 0..3 {
        let error = commit_many(&store, &lane, 10, 40, 4_000).await.expect_err("there is no room");
        assert!(error.to_string().contains("full"), "{error}");
        assert!(store.writer.lock().await.is_none(), "the connection is given up with its transaction");
        assert_eq!(rows().await, 3, "none of its rows was written after all");
        let error = store.heartbeat(true).await.expect_err("no room for events");
        assert!(error.to_string().contains("full"), "{error}");
    }
    // Its own row still finds a place: that alone would say that all is well.
    store.heartbeat(false).await.expect("written");
    store.options = roomy;
    *store.writer.lock().await = None;
    store.heartbeat(true).await.expect("there is room");
    let done = commit_many(&store, &lane, 10, 40, 4_000).await.expect("committed");
    assert!(matches!(done, Committed::Done { .. }), "nobody had its keys");
    assert_eq!(rows().await, 3 * 41);
    let claim = LaneClaim { lane, class: Class::Fresh, limit: 100 };
    let claimed =
        store.claim(&[claim], Timestamp::from_millis(10_000)).await.expect("claimed").lanes.remove(0);
    assert_eq!(claimed.deliveries.len(), 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_overlap_are_paused_before_the_wal_outgrows_its_bound() {
    const BOUND_BYTES: u64 = 2 << 20;
    let (opened, _directory) = opened().await;
    let Database::Sqlite { reads, writes, turn, .. } = &opened.database else { panic!("a file") };
    let written = Arc::new(tokio::sync::Notify::new());
    let mut checkpointer = Checkpointer::new(
        &opened.store.options,
        opened.store.wal.clone(),
        written.clone(),
        reads.clone(),
        turn.clone(),
        Arc::new(JobMetrics::new(Arc::new(StandingClock))),
    );
    checkpointer.pause_reads_from_bytes = BOUND_BYTES;
    let checkpointing = tokio::spawn(checkpointer.run());
    // Two readers whose snapshots overlap: without a pause, the WAL would never be free of both.
    let reader = || {
        let reads = reads.clone();
        tokio::spawn(async move {
            loop {
                let _admitted = reads.admitted().await;
                let mut snapshot = reads.pool().begin().await.expect("a connection");
                sqlx::query("SELECT COUNT(*) FROM node").execute(&mut *snapshot).await.expect("a snapshot");
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        })
    };
    let first = reader();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let readers = [first, reader()];
    let (mut largest, mut cut) = (0, 0);
    for n in 0..400 {
        {
            let _turn = turn.lock().await;
            sqlx::query(
                "INSERT OR REPLACE INTO node (number, epoch, seen_at) VALUES ($1, hex(zeroblob(30000)), 0)",
            )
            .bind(n % 8)
            .execute(writes)
            .await
            .expect("written");
        }
        written.notify_one();
        let bytes = opened.store.wal_bytes().unwrap_or_default();
        cut += u64::from(bytes < largest);
        largest = largest.max(bytes);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    checkpointing.abort();
    // 400 writes of more than 60 kB each are 24 MB.
    assert!(cut > 0 && largest < 4 * BOUND_BYTES, "{largest} bytes at most, cut {cut} times");
}
