//! Our own events of what operators should know: deliveries that were given up, gates that have closed.
//!
//! They are events like any other, for those endpoints that have named their types. Bounded in rate: of each destination
//! at most one of a kind in [`QUIET`], and what happens meanwhile is gathered into the next. What becomes of our own
//! events is never announced, or the announcements of an endpoint that is down would never end. They are a notice and no
//! record: what was gathered when a process is killed is not announced. The ledger and the metrics have it all.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, OPERATIONAL_PREFIX};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{DeadReason, Delivery};
use crate::domain::gate::CloseReason;
use crate::domain::scheduler::GateId;
use crate::ingest::Ingest;
use crate::jobs::Job;
use crate::ledger::LedgerError;

/// Deliveries were given up.
const DEAD: &str = "posthaste.delivery.dead";
/// A gate has closed.
const GATE_CLOSED: &str = "posthaste.gate.closed";
/// The shortest time between two of a kind about one destination.
const QUIET: Duration = Duration::from_secs(60);
/// How often to look what there is to announce.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most destinations that are gathered apart; what happens at others meanwhile is not announced.
const DESTINATIONS_LIMIT: usize = 1_000;
/// Events that an announcement names.
const EVENTS_NAMED: usize = 10;

/// Gathers and announces. Cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    shared: Arc<Shared>,
}

struct Shared {
    ingest: Ingest,
    directory: Directory,
    destinations: Mutex<HashMap<GateId, News>>,
    clock: Arc<dyn Clock>,
}

/// What happened at a destination.
#[derive(Debug, Default)]
struct News {
    dead: Dead,
    /// When the last announcement of deaths was.
    dead_announced: Option<Moment>,
    /// Its gate is closed.
    is_closed: bool,
    /// … and that is still to be announced.
    closing: Option<Closing>,
    closing_announced: Option<Moment>,
}

#[derive(Debug, Default, Clone)]
struct Dead {
    count: u64,
    reasons: BTreeMap<&'static str, u64>,
    /// Tenant and id of the first of them.
    events: Vec<(Arc<str>, Arc<str>)>,
    since: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Closing {
    reason: CloseReason,
    wait: Duration,
    at: Timestamp,
}

impl News {
    /// The gate is open again. However short a closing was, it is announced where nothing but the next look was awaited; one
    /// that waited for its minute is past by then, and worth nobody's attention.
    fn opened(&mut self, now: Moment) {
        self.is_closed = false;
        if !is_due(self.closing_announced, now) {
            self.closing = None;
        }
    }
}

/// Whether enough time has passed since the last announcement.
fn is_due(last: Option<Moment>, now: Moment) -> bool {
    last.is_none_or(|last| last + QUIET <= now)
}

impl Announcer {
    /// An announcer of nothing yet.
    pub fn new(ingest: Ingest) -> Self {
        let (_, directory, clock) = ingest.surroundings();
        Self { shared: Arc::new(Shared { ingest, directory, destinations: Mutex::default(), clock }) }
    }

    /// A delivery is given up.
    pub fn died(&self, delivery: &Delivery, reason: DeadReason) {
        let shared = &self.shared;
        if delivery.event_type.starts_with(OPERATIONAL_PREFIX) || !shared.is_wanted(DEAD) {
            return;
        }
        let mut destinations = shared.destinations();
        let Some(news) = news(&mut destinations, &GateId::of(&delivery.lane.destination)) else { return };
        news.dead.count += 1;
        *news.dead.reasons.entry(reason.as_str()).or_default() += 1;
        news.dead.since.get_or_insert_with(|| shared.clock.now());
        if news.dead.events.len() < EVENTS_NAMED {
            news.dead.events.push((delivery.identity.tenant.clone(), delivery.identity.id.clone()));
        }
    }

    /// A gate has closed, or stays closed for longer: that is announced once.
    pub fn gate_closed(&self, gate: &GateId, reason: CloseReason, wait: Duration) {
        let shared = &self.shared;
        let mut destinations = shared.destinations();
        let Some(news) = news(&mut destinations, gate) else { return };
        if !std::mem::replace(&mut news.is_closed, true) && shared.is_wanted(GATE_CLOSED) {
            news.closing = Some(Closing { reason, wait, at: shared.clock.now() });
        }
    }

    /// A gate is open again: its next closing is another.
    pub fn gate_opened(&self, gate: &GateId) {
        let now = self.shared.clock.moment();
        if let Some(news) = self.shared.destinations().get_mut(gate) {
            news.opened(now);
        }
    }

    /// Announces until `stop` is cancelled; then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let (ledger, ..) = self.shared.ingest.surroundings();
        ledger.jobs().started(Job::Announcements, Some(2 * LOOK_EVERY));
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            ledger.jobs().ran(Job::Announcements, &self.announce(false).await);
        }
        ledger.jobs().ran(Job::Announcements, &self.announce(true).await);
    }

    /// Announces what is due. An announcement that fails is lost: what it tells is in the log and the metrics, too.
    async fn announce(&self, all: bool) -> Result<(), LedgerError> {
        let now = self.shared.clock.moment();
        let mut announced = Ok(());
        for (_, event_type, data) in self.shared.take_due(now, all) {
            announced = announced.and(self.shared.ingest.raise(event_type, &data).await);
        }
        announced
    }
}

/// The news of a destination, made where there is room.
fn news<'a>(destinations: &'a mut HashMap<GateId, News>, gate: &GateId) -> Option<&'a mut News> {
    if !destinations.contains_key(gate) {
        if destinations.len() >= DESTINATIONS_LIMIT {
            return None;
        }
        destinations.insert(gate.clone(), News::default());
    }
    destinations.get_mut(gate)
}

impl Shared {
    fn destinations(&self) -> MutexGuard<'_, HashMap<GateId, News>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody has named this type.
    fn is_wanted(&self, event_type: &str) -> bool {
        !self.directory.snapshot().operational_destinations(event_type).is_empty()
    }

    /// What it is time to announce, and forgets destinations about which there is nothing to remember.
    fn take_due(&self, now: Moment, all: bool) -> Vec<(GateId, &'static str, Value)> {
        let is_due = |last| all || is_due(last, now);
        let mut due = Vec::new();
        let mut destinations = self.destinations();
        for (gate, news) in &mut *destinations {
            if news.dead.count > 0 && is_due(news.dead_announced) {
                let dead = std::mem::take(&mut news.dead);
                news.dead_announced = Some(now);
                due.push((gate.clone(), DEAD, self.dead_data(gate, &dead)));
            }
            if is_due(news.closing_announced)
                && let Some(closing) = news.closing.take()
            {
                news.closing_announced = Some(now);
                due.push((gate.clone(), GATE_CLOSED, self.closing_data(gate, &closing)));
            }
        }
        let snapshot = self.directory.snapshot();
        destinations.retain(|gate, news| {
            let exists = !matches!(gate, GateId::Endpoint(id) if snapshot.partner_of(id).is_none());
            let quiet = is_due(news.dead_announced) && is_due(news.closing_announced);
            !quiet || (exists && news.is_closed) || news.dead.count > 0
        });
        due
    }

    fn dead_data(&self, gate: &GateId, dead: &Dead) -> Value {
        let event = |(tenant, id): &(Arc<str>, Arc<str>)| json!({ "tenant": &**tenant, "id": &**id });
        let mut data = self.about(gate);
        data["count"] = dead.count.into();
        data["reasons"] = json!(dead.reasons);
        data["events"] = dead.events.iter().map(event).collect();
        data["since"] = dead.since.map(Timestamp::as_millis).into();
        data["at"] = self.clock.now().as_millis().into();
        data
    }

    fn closing_data(&self, gate: &GateId, closing: &Closing) -> Value {
        let mut data = self.about(gate);
        data["reason"] = closing.reason.as_str().into();
        data["wait_ms"] = u64::try_from(closing.wait.as_millis()).unwrap_or(u64::MAX).into();
        data["at"] = closing.at.as_millis().into();
        data
    }

    /// Which destination it is about.
    fn about(&self, gate: &GateId) -> Value {
        let endpoint = match gate {
            GateId::Svix | GateId::Application(_) => None,
            GateId::Endpoint(id) => Some(&**id),
        };
        let partner = endpoint.and_then(|id| self.directory.snapshot().partner_of(id));
        json!({ "destination": gate.as_str(), "endpoint": endpoint, "partner": partner.as_deref() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_is_told_however_short_it_was_but_not_once_it_is_past() {
        let now = Moment::default() + QUIET;
        let closing = || Closing {
            reason: CloseReason::Throttled,
            wait: Duration::from_secs(1),
            at: Timestamp::from_millis(0),
        };
        let told_before = |closing_announced| {
            let mut news =
                News { is_closed: true, closing: Some(closing()), closing_announced, ..News::default() };
            news.opened(now);
            assert!(!news.is_closed);
            news.closing.is_some()
        };
        assert!(told_before(None));
        assert!(told_before(Some(Moment::default())));
        assert!(!told_before(Some(now)));
    }
}
