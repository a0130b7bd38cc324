//! What is counted of attempts while they happen: one meter for each destination, without a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::buckets::{Latencies, LiveLatencies};
use crate::domain::delivery::{DeadReason, Failure, Outcome};
use crate::domain::tenant::Destination;

/// Most endpoints that are counted apart; what is sent to further ones is counted together.
pub const METERS_LIMIT: usize = 10_000;
/// What Svix is called beside endpoints, and beside partners.
pub const SVIX: &str = "svix";
/// What endpoints that are counted together are called.
pub const OTHER: &str = "other";

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResultClass {
    /// Delivered. Svix's 409 for a message that it has is one, too.
    Success,
    /// A redirect: they are not followed.
    Redirect,
    /// Refused.
    ClientError,
    /// Asked to slow down: 429, or 503 with `Retry-After`. Costs an event nothing.
    Throttled,
    /// The receiver's own trouble.
    ServerError,
    /// No answer in time.
    Timeout,
    /// The name has no address.
    Dns,
    /// No connection.
    Connect,
    /// No TLS.
    Tls,
    /// The connection broke before the answer.
    Lost,
    /// The address guard said no.
    Blocked,
    /// Nothing went out: a transform that can't be applied, an endpoint that is disabled or can't be read.
    Unsent,
}

impl ResultClass {
    /// How many there are.
    pub const COUNT: usize = 12;
    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::Throttled,
        Self::ServerError,
        Self::Timeout,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Lost,
        Self::Blocked,
        Self::Unsent,
    ];

    /// The class as it stands in metrics, answers and the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::Throttled => "429",
            Self::ServerError => "5xx",
            Self::Timeout => "timeout",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Lost => "lost",
            Self::Blocked => "blocked",
            Self::Unsent => "unsent",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }

    /// Whether it counts as a failed attempt.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Success | Self::Throttled)
    }

    /// The class of what came of an attempt; `None` where there was none: the gate had closed, or the endpoint was gone.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Delivered { .. } => Some(Self::Success),
            Outcome::Throttled { .. } => Some(Self::Throttled),
            Outcome::Rejected(DeadReason::TransformFailed | DeadReason::EndpointDisabled, _) => {
                Some(Self::Unsent)
            }
            Outcome::Unauthorized(failure)
            | Outcome::Refused(failure)
            | Outcome::Failed(failure)
            | Outcome::Rejected(_, failure) => Some(Self::of_failure(failure)),
            Outcome::Canceled(_) | Outcome::NotSent => None,
        }
    }

    fn of_failure(failure: &Failure) -> Self {
        match (failure.status, failure.code.as_str()) {
            (Some(429), _) => Self::Throttled,
            (Some(500..), _) => Self::ServerError,
            (Some(400..), _) => Self::ClientError,
            (Some(300..), _) => Self::Redirect,
            // A yes that was none.
            (Some(_), _) => Self::Lost,
            (None, "timeout") => Self::Timeout,
            (None, "connection_lost" | "answer_invalid" | "answer_too_large") => Self::Lost,
            (None, "dns_failed") => Self::Dns,
            (None, code) if code.starts_with("connect") => Self::Connect,
            (None, code) if code.starts_with("tls") => Self::Tls,
            (None, "endpoint_unreadable" | "not_configured" | "not_signed" | "bad_request") => Self::Unsent,
            (None, _) => Self::Blocked,
        }
    }
}

/// Sums of what was counted of one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    /// Attempts by [`ResultClass`].
    pub results: [u64; ResultClass::COUNT],
    /// How long attempts took that went out.
    pub latencies: Latencies,
    /// Deliveries that were given up.
    pub dead: u64,
}

impl Sums {
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.dead == 0 && self.results.iter().all(|count| *count == 0)
    }

    /// Attempts that came to this.
    pub const fn of(&self, class: ResultClass) -> u64 {
        self.results[class as usize]
    }

    /// Failed attempts.
    pub fn failed(&self) -> u64 {
        ResultClass::ALL.into_iter().filter(|class| class.is_failure()).map(|class| self.of(class)).sum()
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.results.iter_mut().zip(&other.results).for_each(|(count, more)| *count += more);
        self.latencies.add(&other.latencies);
        self.dead += other.dead;
    }

    /// What has come since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self { latencies: self.latencies.since(&earlier.latencies), ..self.clone() };
        since
            .results
            .iter_mut()
            .zip(&earlier.results)
            .for_each(|(count, had)| *count = count.saturating_sub(*had));
        since.dead = self.dead.saturating_sub(earlier.dead);
        since
    }
}

/// Counts what is sent to one destination. What it has counted only grows.
#[derive(Debug)]
pub struct Meter {
    partner: Arc<str>,
    endpoint: Arc<str>,
    /// Has series of its own among the metrics.
    shown: bool,
    results: [AtomicU64; ResultClass::COUNT],
    latencies: LiveLatencies,
    dead: AtomicU64,
    /// What was told of it to [`Meters::take`].
    told: Mutex<Sums>,
}

impl Meter {
    fn new(partner: Arc<str>, endpoint: Arc<str>, shown: bool) -> Self {
        Self {
            partner,
            endpoint,
            shown,
            results: [const { AtomicU64::new(0) }; ResultClass::COUNT],
            latencies: LiveLatencies::default(),
            dead: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// Whose endpoint it is; [`SVIX`] for Svix.
    pub fn partner(&self) -> &Arc<str> {
        &self.partner
    }

    /// The endpoint's id; [`SVIX`] for Svix.
    pub fn endpoint(&self) -> &Arc<str> {
        &self.endpoint
    }

    /// Counts an attempt and how long it took.
    pub fn attempted(&self, class: ResultClass, latency: Duration) {
        self.results[class as usize].fetch_add(1, Ordering::Relaxed);
        if class != ResultClass::Unsent {
            self.latencies.record(latency);
        }
    }

    /// Counts a delivery that was given up.
    pub fn died(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted since the start.
    pub fn read(&self) -> Sums {
        let mut sums = Sums {
            latencies: self.latencies.read(),
            dead: self.dead.load(Ordering::Relaxed),
            ..Sums::default()
        };
        sums.results
            .iter_mut()
            .zip(&self.results)
            .for_each(|(sum, live)| *sum = live.load(Ordering::Relaxed));
        sums
    }

    /// What was counted since the last [`Self::take`].
    fn since_told(&self) -> Sums {
        self.read().since(&self.told())
    }

    fn take(&self) -> Sums {
        let now = self.read();
        let mut told = self.told();
        let since = now.since(&told);
        *told = now;
        since
    }

    fn told(&self) -> MutexGuard<'_, Sums> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a destination's meter has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whose endpoint it is.
    pub partner: Arc<str>,
    /// The endpoint's id.
    pub endpoint: Arc<str>,
    /// The sums.
    pub sums: Sums,
}

impl Reading {
    fn new(meter: &Meter, sums: Sums) -> Self {
        Self { partner: meter.partner.clone(), endpoint: meter.endpoint.clone(), sums }
    }
}

/// Every destination's meter. Bounded, however many endpoints there are.
#[derive(Debug)]
pub struct Meters {
    svix: Arc<Meter>,
    /// For endpoints beyond [`METERS_LIMIT`], and for those that are gone.
    other: Arc<Meter>,
    endpoints: RwLock<HashMap<Arc<str>, Arc<Meter>>>,
    /// What endpoints had counted that had no series of their own and are gone: what is told of the others only grows.
    gone: Mutex<Sums>,
    /// Most endpoints with series of their own.
    shown_limit: usize,
}

impl Meters {
    /// Meters that have counted nothing.
    pub fn new(shown_limit: usize) -> Self {
        let meter = |name: &str| Arc::new(Meter::new(name.into(), name.into(), true));
        Self {
            svix: meter(SVIX),
            other: meter(OTHER),
            endpoints: RwLock::default(),
            gone: Mutex::default(),
            shown_limit,
        }
    }

    /// Lets `work` count on a destination's meter. `partner` is asked for whose an endpoint is where it is new; one that
    /// nobody knows is counted with the others.
    pub fn with(
        &self,
        destination: &Destination,
        partner: impl FnOnce(&str) -> Option<Arc<str>>,
        work: impl FnOnce(&Meter),
    ) {
        let Destination::Endpoint { id } = destination else { return work(&self.svix) };
        {
            let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(meter) = endpoints.get(id) {
                return work(meter);
            }
        }
        work(&self.make(id, partner(id)));
    }

    fn make(&self, id: &Arc<str>, partner: Option<Arc<str>>) -> Arc<Meter> {
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = endpoints.get(id) {
            return meter.clone();
        }
        let Some(partner) = partner.filter(|_| endpoints.len() < METERS_LIMIT) else {
            return self.other.clone();
        };
        let shown = endpoints.values().filter(|meter| meter.shown).count() < self.shown_limit;
        let meter = Arc::new(Meter::new(partner, id.clone(), shown));
        endpoints.insert(id.clone(), meter.clone());
        meter
    }

    fn all(&self) -> Vec<Arc<Meter>> {
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        [&self.svix, &self.other].into_iter().chain(endpoints.values()).cloned().collect()
    }

    /// What was counted since the last [`Self::take`], of those where there was anything.
    pub fn since_taken(&self) -> Vec<Reading> {
        let readings = self.all().into_iter().map(|meter| Reading::new(&meter, meter.since_told()));
        readings.filter(|reading| !reading.sums.is_empty()).collect()
    }

    /// The same, and begins anew.
    pub fn take(&self) -> Vec<Reading> {
        let readings = self.all().into_iter().map(|meter| Reading::new(&meter, meter.take()));
        readings.filter(|reading| !reading.sums.is_empty()).collect()
    }

    /// Forgets endpoints that are gone. To be called right after [`Self::take`].
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        let mut endpoints = self.endpoints.write().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|id, meter| {
            let keep = exists(id);
            if !keep && !meter.shown {
                self.gone.lock().unwrap_or_else(PoisonError::into_inner).add(&meter.read());
            }
            keep
        });
    }

    /// What was counted since the start, for the metrics: of Svix, of the endpoints with series of their own, and of all
    /// others together.
    pub fn shown(&self) -> Vec<Reading> {
        let mut shown = Vec::new();
        // Nobody is forgotten in between.
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        let mut other = self.other.read();
        other.add(&self.gone.lock().unwrap_or_else(PoisonError::into_inner));
        shown.push(Reading::new(&self.svix, self.svix.read()));
        for meter in endpoints.values() {
            let sums = meter.read();
            if meter.shown {
                shown.push(Reading::new(meter, sums));
            } else {
                other.add(&sums);
            }
        }
        drop(endpoints);
        shown.push(Reading::new(&self.other, other));
        shown.sort_by(|one, next| (&one.partner, &one.endpoint).cmp(&(&next.partner, &next.endpoint)));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: usize) -> Destination {
        Destination::Endpoint { id: format!("ep_{n}").into() }
    }

    fn count(meters: &Meters, n: usize) {
        let partner = |_: &str| Some("p".into());
        meters.with(&endpoint(n), partner, |meter| {
            meter.attempted(ResultClass::Success, Duration::from_millis(3));
        });
    }

    fn told(meters: &Meters) -> Vec<(String, u64)> {
        let shown = meters.shown().into_iter();
        shown.map(|reading| (reading.endpoint.to_string(), reading.sums.of(ResultClass::Success))).collect()
    }

    #[test]
    fn series_are_bounded_and_what_is_told_of_the_others_only_grows() {
        let meters = Meters::new(2);
        for n in [1, 2, 3, 3, 4] {
            count(&meters, n);
        }
        let series = |own: [(&str, u64); 2], other| {
            let own = own.map(|(name, count)| (name.to_owned(), count));
            let mut all = vec![("other".to_owned(), other)];
            all.extend(own);
            all.push(("svix".to_owned(), 0));
            all
        };
        assert_eq!(told(&meters), series([("ep_1", 1), ("ep_2", 1)], 3));
        // One of the others is gone, and one that was shown: another takes its place from its beginning on.
        meters.take();
        meters.retain(|id| id != "ep_3" && id != "ep_1");
        count(&meters, 5);
        count(&meters, 4);
        assert_eq!(told(&meters), series([("ep_2", 1), ("ep_5", 1)], 4));
        let since: HashMap<_, _> =
            meters.take().into_iter().map(|reading| (reading.endpoint, reading.sums.results[0])).collect();
        assert_eq!(since, HashMap::from([("ep_4".into(), 1), ("ep_5".into(), 1)]));
        assert!(meters.take().is_empty());
    }

    #[test]
    fn beyond_the_bound_endpoints_are_counted_together() {
        let meters = Meters::new(1);
        for n in 0..METERS_LIMIT + 50 {
            count(&meters, n);
        }
        meters.with(&endpoint(99_999), |_| None, |meter| meter.died());
        assert_eq!(meters.endpoints.read().unwrap().len(), METERS_LIMIT);
        let taken = meters.take();
        assert_eq!(taken.len(), METERS_LIMIT + 1);
        let other = taken.iter().find(|reading| &*reading.endpoint == OTHER).expect("the others");
        assert_eq!((other.sums.of(ResultClass::Success), other.sums.dead), (50, 1));
    }

    #[test]
    fn outcomes_have_classes() {
        let failed = |code: &str| Outcome::Failed(Failure::transport(code, "", false));
        let answered = |status| Outcome::Failed(Failure::answered(status, ""));
        let throttled = Outcome::Throttled { failure: Failure::answered(503, ""), retry_after: None };
        for (outcome, class) in [
            (answered(302), Some("3xx")),
            (answered(404), Some("4xx")),
            (answered(500), Some("5xx")),
            (throttled, Some("429")),
            (failed("timeout"), Some("timeout")),
            (failed("dns_failed"), Some("dns")),
            (failed("connect_refused"), Some("connect")),
            (failed("connect_timeout"), Some("connect")),
            (failed("connection_reset"), Some("connect")),
            (failed("connection_lost"), Some("lost")),
            (failed("answer_invalid"), Some("lost")),
            (failed("tls_failed"), Some("tls")),
            (failed("tls_wrong_name"), Some("tls")),
            (failed("address_private"), Some("blocked")),
            (Outcome::Rejected(DeadReason::Gone, Failure::answered(410, "")), Some("4xx")),
            (Outcome::Unauthorized(Failure::transport("not_configured", "", false)), Some("unsent")),
            (Outcome::NotSent, None),
        ] {
            assert_eq!(ResultClass::of(&outcome).map(ResultClass::as_str), class, "{outcome:?}");
        }
        for (place, class) in ResultClass::ALL.into_iter().enumerate() {
            assert_eq!((class as usize, ResultClass::parse(class.as_str())), (place, Some(class)));
        }
    }
}
