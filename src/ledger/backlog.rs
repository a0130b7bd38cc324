//! How many deliveries wait, and how many may.
//!
//! Kept in memory: the ledger is counted when it is opened, and what this process adds and settles is counted as it
//! happens. So on SQLite the figure is exact; on Postgres the ledger is counted again from time to time, for what other
//! nodes did meanwhile, and the figure is as old as the last count for their part.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::plan::NewEvent;
use super::{Ledger, LedgerError, Result, Shared};
use crate::jobs::Job;

/// The shortest time between two counts of the ledger.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// A count may take at most one part in this many of the time.
const COUNT_SHARE: u32 = 50;

/// How many deliveries may wait.
#[derive(Debug, Clone, Copy)]
pub struct BacklogLimits {
    /// Of one tenant.
    pub tenant: u64,
    /// Of all.
    pub total: u64,
}

#[derive(Debug)]
pub(super) struct Backlog {
    limits: BacklogLimits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: i64,
    tenants: HashMap<Arc<str>, i64>,
    /// What has changed since the count that is under way began.
    since: Option<HashMap<Arc<str>, i64>>,
}

impl Counts {
    fn add(&mut self, tenant: &Arc<str>, change: i64) {
        self.total += change;
        let waiting = self.tenants.entry(tenant.clone()).or_default();
        *waiting += change;
        if *waiting == 0 {
            self.tenants.remove(tenant);
        }
        if let Some(since) = &mut self.since {
            *since.entry(tenant.clone()).or_default() += change;
        }
    }
}

impl Backlog {
    /// A backlog with so many waiting, by tenant.
    pub fn new(limits: BacklogLimits, waiting: HashMap<Arc<str>, i64>) -> Self {
        let counts = Counts { total: waiting.values().sum(), tenants: waiting, since: None };
        Self { limits, counts: Mutex::new(counts) }
    }

    /// Whether a request's deliveries may be added.
    pub fn admit(&self, events: &[NewEvent]) -> Result<()> {
        self.admits_any()?;
        let mut added: HashMap<&Arc<str>, u64> = HashMap::new();
        for of_tenant in events.chunk_by(|one, next| tenant(one) == tenant(next)) {
            let more: usize = of_tenant.iter().map(|new| new.lanes.len()).sum();
            *added.entry(tenant(&of_tenant[0])).or_default() += more as u64;
        }
        let counts = self.counts();
        for (tenant, more) in added {
            let waiting = counts.tenants.get(tenant).map_or(0, |waiting| waiting.max(&0).unsigned_abs());
            if more > 0 && waiting + more > self.limits.tenant {
                return Err(LedgerError::BacklogFull {
                    scope: format!("tenant {tenant}"),
                    tenant: true,
                    waiting,
                    limit: self.limits.tenant,
                });
            }
        }
        Ok(())
    }

    /// How many deliveries of a tenant may be added.
    pub fn room_of(&self, tenant: &str) -> Result<u64> {
        self.admits_any()?;
        let waiting = self.counts().tenants.get(tenant).map_or(0, |waiting| waiting.max(&0).unsigned_abs());
        Ok(self.limits.tenant.saturating_sub(waiting))
    }

    /// Whether there is room at all.
    pub fn admits_any(&self) -> Result<()> {
        let waiting = self.total();
        if waiting < self.limits.total {
            return Ok(());
        }
        Err(LedgerError::BacklogFull {
            scope: "the ledger".into(),
            tenant: false,
            waiting,
            limit: self.limits.total,
        })
    }

    pub fn total(&self) -> u64 {
        self.counts().total.max(0).unsigned_abs()
    }

    pub const fn limit(&self) -> u64 {
        self.limits.total
    }

    pub fn add(&self, tenant: &Arc<str>, change: i64) {
        self.counts().add(tenant, change);
    }

    /// One `change` for each of these tenants.
    pub fn add_each<'t>(&self, tenants: impl Iterator<Item = &'t Arc<str>>, change: i64) {
        let mut tenants = tenants.peekable();
        let mut counts = self.counts();
        while let Some(tenant) = tenants.next() {
            let mut sum = change;
            // They come in runs.
            while tenants.next_if(|next| *next == tenant).is_some() {
                sum += change;
            }
            counts.add(tenant, sum);
        }
    }

    fn begin_count(&self) {
        self.counts().since = Some(HashMap::new());
    }

    /// Takes a count of the ledger that began with [`Self::begin_count`], and what has happened since.
    ///
    /// A change committed while the count ran may be in both. The next count mends that; it is a cap, not a ledger.
    fn end_count(&self, counted: Option<HashMap<Arc<str>, i64>>) {
        let mut counts = self.counts();
        let since = counts.since.take().unwrap_or_default();
        let Some(counted) = counted else { return };
        counts.total = counted.values().sum();
        counts.tenants = counted;
        for (tenant, change) in since {
            counts.add(&tenant, change);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a ledger that others write too, again and again, until it is gone.
pub(super) fn keep_counting(ledger: &Ledger) {
    if !ledger.shared.database.is_shared() {
        return;
    }
    let weak: Weak<Shared> = Arc::downgrade(&ledger.shared);
    tokio::spawn(async move {
        let mut took = Duration::ZERO;
        loop {
            // A large ledger is counted more rarely.
            let every = (took * COUNT_SHARE).max(COUNT_EVERY);
            let Some(shared) = weak.upgrade() else { return };
            shared.jobs.expect(Job::BacklogCount, Some(2 * every));
            drop(shared);
            tokio::time::sleep(every).await;
            let Some(shared) = weak.upgrade() else { return };
            let began = shared.clock.moment();
            shared.backlog.begin_count();
            let counted = shared.database.count_waiting().await;
            shared.jobs.ran(Job::BacklogCount, &counted);
            shared.backlog.end_count(counted.ok());
            took = began.until(shared.clock.moment());
        }
    });
}

fn tenant(new: &NewEvent) -> &Arc<str> {
    &new.event.identity.tenant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_keeps_what_happened_meanwhile() {
        let backlog = Backlog::new(BacklogLimits { tenant: 10, total: 20 }, HashMap::new());
        let acme: Arc<str> = "acme".into();
        backlog.begin_count();
        backlog.add(&acme, 3);
        backlog.end_count(Some(HashMap::from([(acme.clone(), 4)])));
        assert_eq!(backlog.total(), 7);
        backlog.add(&acme, -7);
        assert!(backlog.counts().tenants.is_empty(), "memory follows what waits");
    }
}
