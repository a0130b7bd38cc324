//! The ledger's clock: the one time that is stored, compared and judged by.
//!
//! On Postgres it is the database's clock, read with every heartbeat. On SQLite it is the process's wall clock as it was
//! at the start. Between readings the monotonic clock drives both, so that a wall clock which jumps moves nothing.
//! [`clock_watch`](crate::domain::clock_watch) decides what a reading means; this module reads, adopts and reports.

mod numbers;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sql::{Database, on};
use super::{Ledger, Result, Store};
use crate::domain::clock::{Clock, Moment, Timestamp};
pub use crate::domain::clock_watch::{ClockState, ClockStatus};
use crate::domain::clock_watch::{Reading, TOLERATED_MS, Watch};
use crate::domain::sequence::Sequence;

/// A reading of the database's clock that took longer says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);

/// The ledger's clock. Its monotonic part and its chance are the process's.
#[derive(Debug)]
pub struct LedgerClock {
    local: Arc<dyn Clock>,
    /// See [`Clock::drives_ledger`].
    unchecked: bool,
    /// The ledger's time less the monotonic time, in milliseconds.
    offset_ms: AtomicI64,
    watch: Mutex<Watch>,
    /// [`Clock::suspended`] as far as it is counted in the offset, in milliseconds.
    suspended_ms: AtomicI64,
}

impl Clock for LedgerClock {
    fn now(&self) -> Timestamp {
        if self.unchecked { self.local.now() } else { self.at(self.local.moment()) }
    }

    fn moment(&self) -> Moment {
        self.local.moment()
    }

    fn random(&self) -> u128 {
        self.local.random()
    }

    fn drives_ledger(&self) -> bool {
        self.unchecked
    }
}

fn as_millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn millis(moment: Moment) -> i64 {
    as_millis(moment.since_start())
}

impl LedgerClock {
    /// A clock that shows the process's time until [`Self::start`].
    pub(super) fn new(local: Arc<dyn Clock>) -> Self {
        let clock = Self {
            unchecked: local.drives_ledger(),
            offset_ms: AtomicI64::new(0),
            watch: Mutex::default(),
            suspended_ms: AtomicI64::new(as_millis(local.suspended())),
            local,
        };
        clock.set(clock.local.now(), clock.local.moment());
        clock
    }

    fn at(&self, moment: Moment) -> Timestamp {
        Timestamp::from_millis(millis(moment).saturating_add(self.offset_ms.load(Ordering::Relaxed)))
    }

    fn set(&self, now: Timestamp, moment: Moment) {
        self.offset_ms.store(now.as_millis().saturating_sub(millis(moment)), Ordering::Relaxed);
    }

    /// Adds the time for which the machine was suspended: nothing has jumped there.
    fn wake_up(&self) {
        let suspended_ms = as_millis(self.local.suspended());
        let slept_ms = suspended_ms.saturating_sub(self.suspended_ms.load(Ordering::Relaxed));
        if slept_ms > TOLERATED_MS {
            self.suspended_ms.store(suspended_ms, Ordering::Relaxed);
            self.offset_ms.fetch_add(slept_ms, Ordering::Relaxed);
        }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the clock can be trusted.
    pub fn status(&self) -> ClockStatus {
        self.watch().status(self.local.moment())
    }

    /// The time to follow and the process's wall clock, read together; `None` where the answer took too long.
    async fn read(&self, database: &Database) -> Result<Option<(Reading, Moment)>> {
        let asked_at = self.local.moment();
        let source = match database {
            Database::Sqlite { .. } => None,
            Database::Postgres(_) => Some(database.now(&*self.local).await?),
        };
        let (moment, wall) = (self.local.moment(), self.local.now());
        let took = asked_at.until(moment);
        // The answer was true about the middle of the way.
        let source = source.map_or(wall, |source| source + took / 2);
        Ok((took < ROUND_TRIP_MAX).then_some((Reading { source, wall }, moment)))
    }

    /// Begins with the database's clock, or the process's where that is the ledger's, and compares it with the last
    /// heartbeat. What waits keeps its distance where time has gone back since.
    pub(super) async fn start(&self, database: &Database, store: &dyn Store) -> Result<()> {
        if self.unchecked {
            return Ok(());
        }
        let (confirmed_at, last_at) = database.clock_marks().await?;
        let (reading, moment) = match self.read(database).await? {
            Some(read) => read,
            // A slow answer is better than a wrong clock; the next heartbeat reads again.
            None => {
                let source = database.now(&*self.local).await?;
                (Reading { source, wall: self.local.now() }, self.local.moment())
            }
        };
        *self.watch() = Watch::start(database.is_shared(), reading, confirmed_at, moment);
        self.set(reading.source, moment);
        let back_ms = last_at.as_millis().saturating_sub(reading.source.as_millis());
        if back_ms > 0 && !database.is_shared() {
            store.set_back(reading.source, back_ms).await?;
        }
        self.report(ClockState::Trusted);
        let confirmed = self.watch().is_confirmed();
        database.mark_clock(reading.source, confirmed).await
    }

    /// Reads the clocks again: adopts what has to be adopted, reports what has changed.
    pub(super) async fn beat(&self, database: &Database, store: &dyn Store) -> Result<()> {
        if self.unchecked {
            return Ok(());
        }
        self.wake_up();
        let Some((reading, moment)) = self.read(database).await? else { return Ok(()) };
        let mut watch = *self.watch();
        let before = watch.status(moment).state;
        let ledger = self.at(moment);
        let by_ms = watch.beat(ledger, reading, moment);
        let now = Timestamp::from_millis(ledger.as_millis().saturating_add(by_ms));
        if by_ms < -TOLERATED_MS && !database.is_shared() {
            store.set_back(now, by_ms.saturating_neg()).await?;
        }
        // First whether it can be trusted: nobody forgets by a time that is not.
        *self.watch() = watch;
        self.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
        self.report(before);
        database.mark_clock(now, watch.is_confirmed()).await
    }

    /// One line where the state is not what it was.
    fn report(&self, before: ClockState) {
        let ClockStatus { state, skew_ms, .. } = self.status();
        if state == before {
            return;
        }
        match state {
            ClockState::Trusted => tracing::info!("the clock is trusted again: retention goes on"),
            ClockState::Skewed => tracing::warn!(
                skew_ms,
                "this machine's clock differs from the ledger's: the ledger's time is used, and nothing is pruned \
                 meanwhile; set the machine's clock right (NTP)"
            ),
            ClockState::Unconfirmed => tracing::warn!(
                skew_ms,
                "the clock does not follow on the ledger's last heartbeat: nothing is pruned until it has run evenly for \
                 an hour; check the machine's clock (NTP)"
            ),
        }
    }
}

/// What the writer does about the clock with every heartbeat.
pub(super) struct ClockKeeper {
    pub clock: Arc<LedgerClock>,
    pub database: Database,
    /// The largest lead that the ledger is known to have recorded.
    pub lead_ms: i64,
}

impl ClockKeeper {
    /// Reads the clocks, and leaves numbers behind that a wrong clock has given ahead of time.
    pub async fn beat(&self, store: &dyn Store, sequence: &mut Sequence) {
        let done = async {
            self.clock.beat(&self.database, store).await?;
            self.leave_the_future(sequence).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "the clock could not be compared; the next heartbeat tries again");
        }
    }
}

impl Ledger {
    /// The ledger's clock: everything that is stored or judged goes by it.
    pub fn clock(&self) -> Arc<LedgerClock> {
        self.shared.ledger_clock.clone()
    }
}

impl Database {
    /// The last heartbeat of a clock that was not in doubt, and the last one.
    async fn clock_marks(&self) -> Result<(Option<Timestamp>, Timestamp)> {
        let (confirmed_at, last_at): (Option<i64>, i64) = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT confirmed_at, last_at FROM ledger_clock").fetch_one(pool).await?
        });
        Ok((confirmed_at.map(Timestamp::from_millis), Timestamp::from_millis(last_at)))
    }

    /// Writes a heartbeat of the clock.
    async fn mark_clock(&self, now: Timestamp, confirmed: bool) -> Result<()> {
        on!(self, hot_writes, pool => {
            sqlx::query(
                "UPDATE ledger_clock SET last_at = $1, confirmed_at = CASE WHEN $2 = 1 THEN $1 ELSE confirmed_at END",
            )
            .bind(now.as_millis())
            .bind(i64::from(confirmed))
            .execute(pool)
            .await?;
        });
        Ok(())
    }
}
