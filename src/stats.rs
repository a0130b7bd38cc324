//! How much came in and went out, minute by minute: of everything, of Svix, of each partner and endpoint.
//!
//! Attempts are counted in memory ([`Meters`]) without a lock. Once a minute each node writes what it has counted into the
//! ledger, where it stays for [`Window::LONGEST`]: figures outlive a restart and add up over nodes. A [`StatsReport`] is made
//! of these rows and of what this node has counted since; other nodes' figures are up to a minute old.

mod buckets;
mod meters;
mod report;
mod rows;
mod window;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::buckets::{Latencies, LiveLatencies};
pub use self::meters::{Meter, Meters, OTHER, Reading, ResultClass, SVIX, Sums};
pub use self::report::{
    EndpointStats, Figures, GateStats, PartnerStats, Series, StatsQuery, StatsReport, WholeStats,
};
use self::rows::Counted;
pub use self::window::Window;
use crate::directory::Directory;
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Delivery, NextState, Outcome, Settlement};
use crate::domain::tenant::Destination;
use crate::jobs::Job;
use crate::ledger::{Ledger, LedgerError, StatRow};

const MINUTE_MS: i64 = 60_000;
/// How often to look whether a minute is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most endpoints with a row of their own in a minute: those that fail first, then the busiest. The rest is added up.
const ROWS_PER_MINUTE: usize = 1_000;
/// Most rows that wait for a ledger that takes none; the oldest are dropped.
const UNWRITTEN_LIMIT: usize = 20_000;
/// What waits is counted at most this often, and not for more than a part of the time.
const COUNT_EVERY: Duration = Duration::from_secs(2);
const COUNT_SHARE: u32 = 20;

/// Counts, keeps and tells. Cheap to clone.
#[derive(Clone)]
pub struct Stats {
    shared: Arc<Shared>,
}

struct Shared {
    meters: Meters,
    accepted: AtomicU64,
    /// When the minute began that is being counted.
    minute: AtomicI64,
    /// Held while what was counted changes hands.
    unwritten: Mutex<Unwritten>,
    backlog: tokio::sync::Mutex<Option<BacklogCount>>,
    /// Tells this run's rows from others'.
    run: i64,
    ledger: Ledger,
    directory: Directory,
    clock: Arc<dyn Clock>,
}

/// What was counted in minutes that are over, and is not in the ledger yet.
#[derive(Debug, Default)]
struct Unwritten {
    /// Oldest first.
    rows: Vec<StatRow>,
    /// What was taken of `accepted`.
    accepted: u64,
}

/// What waits for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// How many deliveries.
    pub deliveries: u64,
    /// When the oldest event among them was recorded.
    pub oldest: Timestamp,
    /// When the first of them falls or fell due.
    pub first_due: Timestamp,
}

impl Backlog {
    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.deliveries += other.deliveries;
        self.oldest = self.oldest.min(other.oldest);
        self.first_due = self.first_due.min(other.first_due);
    }
}

/// What waits, by destination.
pub type Backlogs = HashMap<Destination, Backlog>;

struct BacklogCount {
    at: Moment,
    took: Duration,
    backlogs: Arc<Backlogs>,
}

impl Stats {
    /// Statistics that have counted nothing, with series of their own for so many endpoints among the metrics.
    pub fn new(ledger: Ledger, directory: Directory, series_limit: usize, clock: Arc<dyn Clock>) -> Self {
        let minute = minute_of(clock.now()).as_millis();
        let shared = Shared {
            meters: Meters::new(series_limit),
            accepted: AtomicU64::new(0),
            minute: AtomicI64::new(minute),
            unwritten: Mutex::default(),
            backlog: tokio::sync::Mutex::default(),
            // Sixty-three bits of chance: positive, so that it reads well.
            run: i64::from_be_bytes(clock.random().to_be_bytes()[..8].try_into().unwrap_or_default())
                & i64::MAX,
            ledger,
            directory,
            clock,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Counts events that were recorded.
    pub fn accepted(&self, events: u64) {
        self.shared.accepted.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts an attempt and how long it took.
    pub fn attempted(&self, delivery: &Delivery, outcome: &Outcome, latency: Duration) {
        let Some(class) = ResultClass::of(outcome) else { return };
        self.with_meter(&delivery.lane.destination, |meter| meter.attempted(class, latency));
    }

    /// Counts a delivery that is given up.
    pub fn settled(&self, delivery: &Delivery, settlement: &Settlement) {
        if matches!(settlement.next, NextState::Dead { .. }) {
            self.with_meter(&delivery.lane.destination, Meter::died);
        }
    }

    fn with_meter(&self, destination: &Destination, work: impl FnOnce(&Meter)) {
        let partner = |id: &str| self.shared.directory.snapshot().partner_of(id);
        self.shared.meters.with(destination, partner, work);
    }

    /// What this process has counted since its start.
    pub fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// Writes every minute into the ledger and drops what is too old, until `stop` is cancelled; then what was counted
    /// of the last one.
    pub async fn keep(&self, stop: CancellationToken) {
        let jobs = self.shared.ledger.jobs();
        jobs.started(Job::Statistics, Some(Duration::from_secs(120)));
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            if self.end_minute(self.shared.clock.now()) {
                jobs.ran(Job::Statistics, &self.write_and_prune().await);
            }
        }
        self.end_minute(Timestamp::from_millis(i64::MAX));
        jobs.ran(Job::Statistics, &self.write().await);
    }

    async fn write_and_prune(&self) -> Result<(), LedgerError> {
        self.write().await?;
        if !self.shared.ledger.clock().status().may_prune {
            return Ok(());
        }
        let minute = self.shared.minute.load(Ordering::Relaxed);
        let before = Timestamp::from_millis(minute - Window::LONGEST.length_ms());
        self.shared.ledger.database().prune_stats(before).await.map(drop)
    }

    /// Takes what was counted as a minute's, where that is over at `now`. Whether it was.
    fn end_minute(&self, now: Timestamp) -> bool {
        let (minute, next) = (self.shared.minute.load(Ordering::Relaxed), minute_of(now).as_millis());
        // A clock that goes back counts on in the minute where it was.
        if next <= minute {
            return false;
        }
        let mut unwritten = self.shared.unwritten();
        let accepted = self.shared.accepted.load(Ordering::Relaxed);
        let since = accepted - std::mem::replace(&mut unwritten.accepted, accepted);
        let taken = self.shared.meters.take();
        self.shared.minute.store(next, Ordering::Relaxed);
        let row = |counted: Counted| counted.row(Timestamp::from_millis(minute), self.shared.run);
        unwritten.rows.extend(rows::of_minute(taken, since, ROWS_PER_MINUTE).into_iter().map(row));
        let excess = unwritten.rows.len().saturating_sub(UNWRITTEN_LIMIT);
        if excess > 0 {
            unwritten.rows.drain(..excess);
        }
        drop(unwritten);
        let snapshot = self.shared.directory.snapshot();
        self.shared.meters.retain(|id| snapshot.partner_of(id).is_some());
        true
    }

    /// Writes what is over. What can't be written now waits for the next time.
    async fn write(&self) -> Result<(), LedgerError> {
        let rows = self.shared.unwritten().rows.clone();
        if !rows.is_empty() {
            self.shared.ledger.database().add_stats(&rows).await?;
            // Nobody else takes rows away.
            self.shared.unwritten().rows.drain(..rows.len());
        }
        Ok(())
    }

    /// What waits, by destination, as it stood a moment ago.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn backlogs(&self) -> Result<Arc<Backlogs>, LedgerError> {
        let mut last = self.shared.backlog.lock().await;
        let began = self.shared.clock.moment();
        if let Some(last) = &*last
            && last.at.until(began) < COUNT_EVERY.max(last.took * COUNT_SHARE)
        {
            return Ok(last.backlogs.clone());
        }
        let mut backlogs = Backlogs::new();
        for row in self.shared.ledger.database().waiting().await? {
            let Some(destination) = Destination::parse(&row.destination) else { continue };
            let (deliveries, oldest) = (row.count.max(0).unsigned_abs(), row.oldest);
            let first_due = row.first_due;
            let known = backlogs.entry(destination).or_insert(Backlog { deliveries: 0, oldest, first_due });
            known.add(Backlog { deliveries, oldest, first_due });
        }
        let (backlogs, at) = (Arc::new(backlogs), self.shared.clock.moment());
        *last = Some(BacklogCount { at, took: began.until(at), backlogs: backlogs.clone() });
        Ok(backlogs)
    }
}

impl Shared {
    fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the minute began that `time` lies in.
fn minute_of(time: Timestamp) -> Timestamp {
    Timestamp::from_millis(time.as_millis().div_euclid(MINUTE_MS) * MINUTE_MS)
}
