//! How long what is done is kept, and the chore that takes away what may go.
//!
//! Small steps, each a short transaction, with a pause as a multiple of what it took: whatever else the ledger has to do
//! goes first. What waits is never taken: an event goes with all its outcomes, and only where it has as many as
//! deliveries.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::config::RetentionConfig;
use crate::directory::Directory;
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::sequence;
use crate::jobs::Job;
use crate::ledger::{Chore, Doomed, LaneUse, Ledger, LedgerError, OF_EVENTS};

/// The chores: each job's name in the ledger, and how long there is between two runs at least. The walks through all identities
/// and through all lanes are long.
const CHORES: [(Job, &str, Duration); 3] = [
    (Job::Prune, "prune", Duration::ZERO),
    (Job::Identities, "prune_keys", Duration::from_secs(86_400)),
    (Job::UnusedLanes, "prune_lanes", Duration::from_secs(86_400)),
];
/// How long lanes stay unused before they are deleted.
const LANES_UNUSED_FOR: Duration = Duration::from_secs(86_400);
/// Lanes that are looked at in one walk over what is done, and rows of that in one statement.
const LANES_AT_ONCE: u32 = 100_000;
const USES_AT_ONCE: u32 = 5_000;
/// Gates and rate budgets of receivers that are gone stay for so long after their last use.
const RECEIVERS_FOR: Duration = Duration::from_secs(86_400);
/// How long a node that says nothing more keeps the chore.
const LEASE: Duration = Duration::from_secs(60);
/// How long a request key is remembered.
const REQUEST_KEYS_FOR: Duration = Duration::from_secs(86_400);
/// Replays that have ended are kept for so long.
const REPLAYS_FOR: Duration = Duration::from_secs(90 * 86_400);
/// Events looked at in one statement, and taken away in one transaction.
const WINDOW: u32 = 500;
const STEP_EVENTS: usize = 50;
/// Other rows looked at in one statement.
const STEP_ROWS: u32 = 500;
/// After a step it rests for so many times what it took, and for no less than [`REST`].
const REST_FACTOR: u32 = 4;
const REST: Duration = Duration::from_millis(10);
/// How long a part of a wish may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most days that anything is kept, where it is not for ever: a century.
pub const DAYS_MAX: u32 = 36_500;

/// Whether identities would be forgotten before their events; 0 is for ever.
pub const fn too_short(events_days: u32, dedup_days: u32) -> bool {
    dedup_days != 0 && (events_days == 0 || dedup_days < events_days)
}

/// What a tenant keeps, where it is not what all keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantRetention {
    /// Days that an event is kept after its last delivery was done; 0 is for ever, absent is as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 36_500)]
    pub events_days: Option<u32>,
    /// Days that an event's identity is remembered; 0 is for ever, absent is as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 36_500)]
    pub dedup_days: Option<u32>,
}

/// What is to be taken away.
#[derive(Debug, Clone, Default)]
pub struct PruneWish {
    /// Only count it.
    pub dry_run: bool,
    /// Events whose deliveries were all done before, however long they are to be kept.
    pub before: Option<Timestamp>,
    /// Events of this tenant alone.
    pub tenant: Option<String>,
}

/// What was taken away, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Events with all that belongs to them.
    pub events: u64,
    /// Identities of events.
    pub identities: u64,
    /// Failed attempts of events that stay.
    pub attempts: u64,
    /// `Idempotency-Key`s of requests.
    pub request_keys: u64,
    /// Rejected messages.
    pub rejected: u64,
    /// Replays that have ended.
    pub replays: u64,
    /// What was left of pruned events and removed receivers.
    #[serde(default)]
    pub leftovers: u64,
}

impl Pruned {
    /// The sum of both.
    pub const fn plus(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            identities: self.identities + other.identities,
            attempts: self.attempts + other.attempts,
            request_keys: self.request_keys + other.request_keys,
            rejected: self.rejected + other.rejected,
            replays: self.replays + other.replays,
            leftovers: self.leftovers + other.leftovers,
        }
    }
}

/// What is looked at next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Events behind this number.
    Events(i64),
    /// Failed attempts behind this event, lane and number.
    Attempts(i64, i64, i64),
    /// Keys of requests behind this scope and key.
    RequestKeys(String, String),
    /// Rejected messages.
    Rejected,
    /// Replays.
    Replays,
    /// Gates and rate budgets of receivers that are gone.
    Receivers,
    /// Rows of events that are gone, in the table of this place in [`OF_EVENTS`], behind this event.
    Orphans(usize, i64),
    /// Identities behind this tenant, source and id.
    Identities(String, String, String),
    /// Nothing.
    Done,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Events(i64::MIN)
    }
}

/// Takes away what may go. Cheap to clone.
#[derive(Clone)]
pub struct Pruner {
    ledger: Ledger,
    directory: Directory,
    config: Arc<RetentionConfig>,
    clock: Arc<dyn Clock>,
}

/// What is kept, as it stands now.
struct Rules {
    now: Timestamp,
    config: Arc<RetentionConfig>,
    tenants: HashMap<String, TenantRetention>,
    wish: PruneWish,
    /// The chore that a step belongs to; `None` where an operator asks for it.
    chore: Option<Chore>,
}

fn days(days: u32) -> Option<Duration> {
    (days > 0).then(|| Duration::from_secs(u64::from(days) * 86_400))
}

impl Rules {
    fn before(&self, kept_for: Option<Duration>) -> Option<Timestamp> {
        let millis = i64::try_from(kept_for?.as_millis()).unwrap_or(i64::MAX);
        Some(Timestamp::from_millis(self.now.as_millis().saturating_sub(millis)))
    }

    /// Events of a tenant that were done before may go.
    fn events_before(&self, tenant: &str) -> Option<Timestamp> {
        if self.wish.tenant.as_deref().is_some_and(|wanted| wanted != tenant) {
            return None;
        }
        if self.wish.before.is_some() {
            return self.wish.before;
        }
        let own = self.tenants.get(tenant).and_then(|retention| retention.events_days);
        self.before(days(own.unwrap_or(self.config.events_days)))
    }

    /// Identities of a tenant's events that came before may go, once their event has.
    fn identities_before(&self, tenant: &str) -> Option<Timestamp> {
        let own = self.tenants.get(tenant).copied().unwrap_or_default();
        let events = own.events_days.unwrap_or(self.config.events_days);
        let dedup = own.dedup_days.unwrap_or(self.config.dedup_days);
        self.before(days(if too_short(events, dedup) { events } else { dedup }))
    }

    /// No event with this number or a larger one may go, whatever its own times say: they may have been written while the
    /// clock was behind, and a number never goes back.
    fn last_event(&self) -> i64 {
        let own = self.tenants.keys().filter_map(|tenant| self.events_before(tenant));
        let all = self.wish.before.or_else(|| self.before(days(self.config.events_days)));
        own.chain(all).max().map_or(i64::MIN, |latest| sequence::floor(latest).0)
    }
}

impl Pruner {
    /// Takes away from `ledger` what is kept for longer than `config` and its tenants say.
    pub fn new(ledger: Ledger, directory: Directory, config: RetentionConfig, clock: Arc<dyn Clock>) -> Self {
        Self { ledger, directory, config: Arc::new(config), clock }
    }

    /// Whether the ledger's clock can be trusted: no age is judged by another.
    pub fn may_prune(&self) -> bool {
        self.ledger.clock().status().may_prune
    }

    /// Works on a wish for some seconds: what came of it, and where it goes on.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: what was taken away before is gone.
    pub async fn part(&self, wish: &PruneWish, from: Phase) -> Result<(Pruned, Phase), LedgerError> {
        let began = self.clock.moment();
        let rules = self.rules(wish.clone(), None);
        let (mut pruned, mut phase) = (Pruned::default(), from);
        while phase != Phase::Done && began.until(self.clock.moment()) < PATIENCE {
            let (count, next) = self.step(&rules, phase).await?;
            (pruned, phase) = (pruned.plus(count), next);
        }
        Ok((pruned, phase))
    }

    /// Looks again and again for what may go, until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(every) = self.config.every() else { return };
        let look_every = every.min(LEASE);
        let jobs = self.ledger.jobs();
        for (job, ..) in CHORES {
            jobs.started(job, Some(2 * look_every));
        }
        while stop.run_until_cancelled(tokio::time::sleep(look_every)).await.is_some() {
            for (job, chore, at_least) in CHORES {
                jobs.ran(job, &self.do_chore(job, chore, every.max(at_least), &stop).await);
            }
        }
    }

    async fn do_chore(
        &self,
        job: Job,
        chore: &'static str,
        every: Duration,
        stop: &CancellationToken,
    ) -> Result<(), LedgerError> {
        if !self.may_prune() {
            return Ok(());
        }
        if let Some(chore) = self.ledger.take_chore(chore, every, LEASE).await? {
            match job {
                Job::UnusedLanes => self.lanes(chore, stop).await?,
                _ => self.all(job, chore, stop).await?,
            }
        }
        Ok(())
    }

    /// Deletes lanes that have had no delivery for long enough: of tenants that sent nothing since, and to endpoints that are
    /// gone. No table says which lanes its deliveries belong to without a walk over it.
    async fn lanes(&self, chore: Chore, stop: &CancellationToken) -> Result<(), LedgerError> {
        let database = self.ledger.database();
        let (mut after, mut renewed, mut gone) = (i64::MIN, self.clock.moment(), 0);
        loop {
            let mut waiting = HashSet::new();
            let mut from = Some((String::new(), i64::MIN, i64::MIN));
            while let Some(place) = from {
                let (lanes, next) = database.fan_out_lanes(&place, STEP_ROWS).await?;
                waiting.extend(lanes);
                from = next;
            }
            let idle = database.idle_lanes(after, LANES_AT_ONCE).await?;
            let is_last = idle.len() < LANES_AT_ONCE as usize;
            let to = if is_last { i64::MAX } else { idle.last().copied().unwrap_or(i64::MAX) };
            let mut unused: HashSet<i64> = idle.into_iter().filter(|lane| !waiting.contains(lane)).collect();
            for table in LaneUse::ALL {
                let mut from = Some((i64::MIN, i64::MIN));
                while let Some(place) = from.filter(|_| !unused.is_empty()) {
                    let began = self.clock.moment();
                    from = database.without_used_lanes(&mut unused, table, place, USES_AT_ONCE).await?;
                    self.ledger.jobs().progressed(Job::UnusedLanes);
                    if !self.rest(&chore, began, &mut renewed, stop).await? {
                        return Ok(());
                    }
                }
            }
            let rules = self.rules(PruneWish::default(), Some(chore));
            let before = rules.before(Some(LANES_UNUSED_FOR)).unwrap_or_default();
            gone +=
                database.note_unused_lanes((after, to), &unused, (rules.now, before), Some(&chore)).await?;
            after = to;
            if is_last {
                break;
            }
        }
        self.ledger.chore_done(&chore).await?;
        if gone > 0 {
            tracing::info!(lanes = gone, "deleted lanes that were unused for a day");
        }
        Ok(())
    }

    /// Pauses after a step that began at `began`, and renews the lease on the chore now and then. Returns whether to go on.
    async fn rest(
        &self,
        chore: &Chore,
        began: Moment,
        renewed: &mut Moment,
        stop: &CancellationToken,
    ) -> Result<bool, LedgerError> {
        let now = self.clock.moment();
        let rest = (began.until(now) * REST_FACTOR).max(REST);
        if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() || !self.may_prune() {
            return Ok(false);
        }
        if renewed.until(now) > LEASE / 3 {
            *renewed = now;
            return self.ledger.keep_chore(chore, LEASE).await;
        }
        Ok(true)
    }

    /// Takes away all that may go, from a phase on.
    async fn all(&self, job: Job, chore: Chore, stop: &CancellationToken) -> Result<(), LedgerError> {
        let rules = self.rules(PruneWish::default(), Some(chore));
        let (mut pruned, mut renewed) = (Pruned::default(), self.clock.moment());
        let keys = job == Job::Identities;
        let mut phase = match keys {
            true => Phase::Identities(String::new(), String::new(), String::new()),
            false => Phase::default(),
        };
        while phase != Phase::Done && (keys || !matches!(phase, Phase::Identities(..))) {
            let began = self.clock.moment();
            if !self.may_prune() {
                return Ok(());
            }
            let (count, next) = self.step(&rules, phase).await?;
            (pruned, phase) = (pruned.plus(count), next);
            // A walk through many rows takes hours.
            self.ledger.jobs().progressed(job);
            if !self.rest(&chore, began, &mut renewed, stop).await? {
                return Ok(());
            }
        }
        self.ledger.chore_done(&chore).await?;
        if pruned != Pruned::default() {
            let Pruned { events, identities, attempts, request_keys, rejected, replays, leftovers } = pruned;
            tracing::info!(
                events,
                identities,
                attempts,
                request_keys,
                rejected,
                replays,
                leftovers,
                "what was kept for long enough is gone"
            );
        }
        Ok(())
    }

    fn rules(&self, wish: PruneWish, chore: Option<Chore>) -> Rules {
        let tenants = self.directory.snapshot().retention().clone();
        Rules { now: self.clock.now(), config: self.config.clone(), tenants, wish, chore }
    }

    /// One small step of a phase.
    async fn step(&self, rules: &Rules, phase: Phase) -> Result<(Pruned, Phase), LedgerError> {
        let none = Pruned::default();
        let (dry_run, chore) = (rules.wish.dry_run, rules.chore.as_ref());
        let database = self.ledger.database();
        // What was asked for is events alone.
        let narrow = rules.wish.before.is_some() || rules.wish.tenant.is_some();
        match phase {
            Phase::Events(after) => self.events(rules, after, narrow).await,
            Phase::Attempts(..) if rules.before(days(rules.config.attempts_days)).is_none() => {
                Ok((none, Phase::RequestKeys(String::new(), String::new())))
            }
            Phase::Attempts(event, lane, attempt) => {
                let before = rules.before(days(rules.config.attempts_days)).unwrap_or_default();
                let last = sequence::floor(before).0;
                let at = (event, lane, attempt);
                let (attempts, next) =
                    database.prune_attempts(at, last, before, STEP_ROWS, dry_run, chore).await?;
                let next = next.map_or_else(
                    || Phase::RequestKeys(String::new(), String::new()),
                    |(event, lane, attempt)| Phase::Attempts(event, lane, attempt),
                );
                Ok((Pruned { attempts, ..none }, next))
            }
            Phase::RequestKeys(scope, key) => {
                let before = rules.before(Some(REQUEST_KEYS_FOR)).unwrap_or_default();
                let (request_keys, next) =
                    database.prune_request_keys((&scope, &key), before, STEP_ROWS, dry_run, chore).await?;
                let next = next.map_or(Phase::Rejected, |(scope, key)| Phase::RequestKeys(scope, key));
                Ok((Pruned { request_keys, ..none }, next))
            }
            Phase::Rejected => {
                let Some(before) = rules.before(days(rules.config.rejected_days)) else {
                    return Ok((none, Phase::Replays));
                };
                let rejected = database.prune_rejected(before, dry_run, chore).await?;
                let again = rejected > 0 && !dry_run;
                Ok((Pruned { rejected, ..none }, if again { Phase::Rejected } else { Phase::Replays }))
            }
            Phase::Replays => {
                let before = rules.before(Some(REPLAYS_FOR)).unwrap_or_default();
                let (replays, more) = database.prune_replays(before, dry_run, chore).await?;
                Ok((Pruned { replays, ..none }, if more { Phase::Replays } else { Phase::Receivers }))
            }
            Phase::Receivers => {
                let before = rules.before(Some(RECEIVERS_FOR)).unwrap_or_default();
                let (leftovers, more) = database.prune_receivers(before, dry_run, chore).await?;
                let next = if more { Phase::Receivers } else { Phase::Orphans(0, i64::MIN) };
                Ok((Pruned { leftovers, ..none }, next))
            }
            Phase::Orphans(place, after) => {
                let Some(table) = OF_EVENTS.get(place) else {
                    return Ok((none, Phase::Identities(String::new(), String::new(), String::new())));
                };
                let (leftovers, next) =
                    database.prune_orphans(table, after, STEP_ROWS, dry_run, chore).await?;
                let next =
                    next.map_or(Phase::Orphans(place + 1, i64::MIN), |after| Phase::Orphans(place, after));
                Ok((Pruned { leftovers, ..none }, next))
            }
            Phase::Identities(tenant, source, id) => {
                let (found, next) = database.old_identities((&tenant, &source, &id), STEP_ROWS).await?;
                let may_go = |tenant: &str, event: i64| {
                    let before = rules.identities_before(tenant);
                    before.is_some_and(|before| event < sequence::floor(before).0)
                };
                let doomed: Vec<_> = found
                    .into_iter()
                    .filter(|identity| identity.orphan && may_go(&identity.tenant, identity.event))
                    .collect();
                let identities = match dry_run {
                    true => doomed.len() as u64,
                    false => database.prune_identities(&doomed, chore).await?,
                };
                let next =
                    next.map_or(Phase::Done, |(tenant, source, id)| Phase::Identities(tenant, source, id));
                Ok((Pruned { identities, ..none }, next))
            }
            Phase::Done => Ok((none, Phase::Done)),
        }
    }

    async fn events(&self, rules: &Rules, after: i64, narrow: bool) -> Result<(Pruned, Phase), LedgerError> {
        let database = self.ledger.database();
        let found = database.done_events(after, rules.last_event(), WINDOW).await?;
        let reached = found.last().map(|event| event.seq);
        let exhausted = found.len() < WINDOW as usize;
        let may_go = |event: &Doomed| {
            let before = rules.events_before(&event.tenant);
            before.is_some_and(|before| event.done_at < before.as_millis())
        };
        let doomed: Vec<_> = found.into_iter().filter(may_go).collect();
        let mut events = 0;
        if rules.wish.dry_run {
            events = doomed.len() as u64;
        } else {
            for part in doomed.chunks(STEP_EVENTS) {
                events += database.prune_events(part, rules.chore.as_ref()).await?;
            }
        }
        let next = match reached.filter(|_| !exhausted) {
            Some(reached) => Phase::Events(reached),
            None if narrow => Phase::Done,
            None => Phase::Attempts(i64::MIN, i64::MIN, i64::MIN),
        };
        Ok((Pruned { events, ..Pruned::default() }, next))
    }
}
