//! How fast tenants may put events in.
//!
//! A bucket of tokens for each tenant that has a limit, one token an event, in the memory of this node. A request is
//! admitted whole or not at all: whoever is over the limit comes again after what `Retry-After` says, and only what
//! was admitted costs tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::clock::Moment;
use crate::domain::partner::RateLimit;
use crate::domain::rate_limit::TokenBucket;

/// Buckets at which full ones, which are as good as new ones, are first forgotten.
const SWEEP_FROM: usize = 1_024;
/// Most buckets. Where so many tenants are in the middle of their burst, all begin anew.
const BUCKETS_MAX: usize = 100_000;

/// A tenant has put in more than it may.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "tenant `{tenant}` may put in {} events a second and {} at once: nothing of this request was stored",
    .limit.per_second, .limit.burst
)]
pub struct OverLimit {
    /// The tenant.
    pub tenant: Arc<str>,
    /// What it may.
    pub limit: RateLimit,
    /// How long until this request would be admitted.
    pub wait: Duration,
}

impl OverLimit {
    /// The wait in whole seconds, rounded up: what `Retry-After` says.
    pub fn retry_after_s(&self) -> u32 {
        let whole = self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0);
        u32::try_from(whole).unwrap_or(u32::MAX).max(1)
    }
}

/// How many events of each tenant a request has.
pub type Counts = HashMap<Arc<str>, u32>;

/// The buckets of all tenants.
#[derive(Debug, Default)]
pub struct TenantLimits {
    /// For tenants that have none of their own.
    default: Option<RateLimit>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    by_tenant: HashMap<Arc<str>, TokenBucket>,
    /// How many there may be before full ones are looked for.
    sweep_at: usize,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { by_tenant: HashMap::new(), sweep_at: SWEEP_FROM }
    }
}

impl TenantLimits {
    /// Full buckets, with `default` for tenants that have no limit of their own.
    pub fn new(default: Option<RateLimit>) -> Self {
        Self { default, buckets: Mutex::default() }
    }

    /// The limit of tenants that have none of their own.
    pub const fn default_limit(&self) -> Option<RateLimit> {
        self.default
    }

    /// Takes a token for every event of a request, where each of its tenants may; otherwise none at all.
    ///
    /// `limit_of` tells a tenant's own limit.
    ///
    /// # Errors
    /// [`OverLimit`]: the tenant that has to wait longest.
    pub fn admit(
        &self,
        counts: &Counts,
        limit_of: impl Fn(&str) -> Option<RateLimit>,
        now: Moment,
    ) -> Result<(), OverLimit> {
        let mut buckets = self.buckets();
        let mut longest: Option<OverLimit> = None;
        for (tenant, count) in counts {
            let Some(limit) = limit_of(tenant).or(self.default) else {
                buckets.by_tenant.remove(tenant);
                continue;
            };
            let wait = buckets.of(tenant, limit, now).wait_for(*count, now);
            if wait > longest.as_ref().map_or(Duration::ZERO, |over| over.wait) {
                longest = Some(OverLimit { tenant: tenant.clone(), limit, wait });
            }
        }
        if let Some(over) = longest {
            return Err(over);
        }
        for (tenant, count) in counts {
            if let Some(bucket) = buckets.by_tenant.get_mut(tenant) {
                bucket.spend(*count);
            }
        }
        Ok(())
    }

    /// Gives back what was taken for a request that could not be recorded for no fault of its sender.
    pub fn refund(&self, counts: &Counts) {
        let mut buckets = self.buckets();
        for (tenant, count) in counts {
            if let Some(bucket) = buckets.by_tenant.get_mut(tenant) {
                bucket.refund(*count);
            }
        }
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// The tenant's bucket, with its limit as it is now.
    fn of(&mut self, tenant: &Arc<str>, limit: RateLimit, now: Moment) -> &mut TokenBucket {
        if self.by_tenant.len() >= self.sweep_at && !self.by_tenant.contains_key(tenant) {
            self.sweep(now);
        }
        let bucket = self.by_tenant.entry(tenant.clone()).or_insert_with(|| TokenBucket::new(limit, now));
        if bucket.limit() != limit {
            // Anew: who is given more does not have to wait for the debt of before.
            *bucket = TokenBucket::new(limit, now);
        }
        bucket
    }

    /// Forgets full buckets. Looked for again only once there are twice as many as stay, so that it costs little.
    fn sweep(&mut self, now: Moment) {
        self.by_tenant.retain(|_, bucket| !bucket.is_full(now));
        if self.by_tenant.len() >= BUCKETS_MAX {
            self.by_tenant.clear();
        }
        self.sweep_at = (2 * self.by_tenant.len()).clamp(SWEEP_FROM, BUCKETS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::after_start(Duration::from_millis(ms))
    }

    fn limit(per_second: f64, burst: u32) -> RateLimit {
        RateLimit::new(per_second, Some(burst)).expect("a limit")
    }

    fn counts(pairs: &[(&str, u32)]) -> Counts {
        pairs.iter().map(|(tenant, count)| ((*tenant).into(), *count)).collect()
    }

    #[test]
    fn a_request_is_admitted_whole_or_costs_nothing() {
        // holds: 7
        let limits = TenantLimits::new(Some(limit(1.0, 10)));
        let free = |tenant: &str| (tenant == "vip").then(|| limit(1_000.0, 1_000));
        let admit = |pairs: &[(&str, u32)], ms| limits.admit(&counts(pairs), free, at(ms));
        assert_eq!(admit(&[("a", 8), ("b", 10)], 0), Ok(()));
        // `a` has two left; `b` none. The one that waits longest is named, and `a` and `vip` pay nothing for it.
        let refused = admit(&[("a", 2), ("b", 3), ("vip", 1_000)], 0).expect_err("over");
        assert_eq!(
            (&*refused.tenant, refused.wait, refused.retry_after_s()),
            ("b", Duration::from_secs(3), 3)
        );
        for _ in 0..100 {
            assert!(admit(&[("b", 3)], 0).is_err(), "asking again costs nothing");
        }
        assert_eq!(admit(&[("a", 2), ("vip", 1_000)], 0), Ok(()));
        assert_eq!(admit(&[("b", 3)], 2_999).expect_err("over").retry_after_s(), 1, "rounded up");
        assert_eq!(admit(&[("b", 3)], 3_000), Ok(()));
        limits.refund(&counts(&[("b", 3)]));
        assert_eq!(admit(&[("b", 3)], 3_000), Ok(()));
    }

    #[test]
    fn a_batch_larger_than_the_burst_is_taken_and_waited_for() {
        let limits = TenantLimits::new(Some(limit(10.0, 5)));
        let admit = |count, ms| limits.admit(&counts(&[("a", count)]), |_| None, at(ms));
        assert_eq!(admit(100, 0), Ok(()));
        assert_eq!(admit(1, 0).expect_err("debt").retry_after_s(), 10, "9.6 s");
        assert_eq!(admit(1, 9_600), Ok(()));
    }

    #[test]
    fn a_limit_that_changes_or_goes_holds_at_once() {
        let limits = TenantLimits::new(None);
        let all = counts(&[("a", 50)]);
        let with = |own: Option<RateLimit>| limits.admit(&all, |_| own, at(0)).is_ok();
        assert!(with(None) && with(None), "no limit");
        assert!(with(Some(limit(1.0, 50))) && !with(Some(limit(1.0, 50))));
        assert!(with(None), "it is gone, and so is the bucket");
        assert!(with(Some(limit(1.0, 50))));
    }

    #[test]
    fn idle_tenants_are_forgotten_and_busy_ones_are_not() {
        let limits = TenantLimits::new(Some(limit(1_000.0, 2)));
        let slow = |tenant: &str| (tenant == "slow").then(|| limit(0.001, 1));
        assert_eq!(limits.admit(&counts(&[("slow", 1)]), slow, at(0)), Ok(()));
        let mut most = 0;
        for n in 0..10_000_u64 {
            let tenant = format!("t{n}");
            assert_eq!(limits.admit(&counts(&[(&tenant, 1)]), slow, at(n)), Ok(()));
            most = most.max(limits.buckets().by_tenant.len());
        }
        assert!(most <= 2 * SWEEP_FROM, "{most} buckets");
        assert!(limits.admit(&counts(&[("slow", 1)]), slow, at(10_000)).is_err());
    }
}
