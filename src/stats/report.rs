//! What operators are told: figures of a window, from the ledger's minutes and from what was counted since.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use utoipa::ToSchema;

use super::meters::{OTHER, SVIX};
use super::rows::{self, WHOLE};
use super::window::Window;
use super::{Backlogs, Stats};
use crate::directory::KnownEndpoint;
use crate::dispatcher::{Dispatcher, GateStatus};
use crate::domain::clock::Timestamp;
use crate::domain::gate::CloseReason;
use crate::domain::scheduler::GateId;
use crate::domain::tenant::Destination;
use crate::ledger::{LedgerError, StatRow};

mod gather;

use self::gather::{Gathered, Wanted};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct StatsQuery {
    /// How far back.
    pub window: Window,
    /// One partner alone, with series of each of its endpoints.
    pub partner: Option<String>,
    /// The one tenant that the asker may know of: of endpoints only those are told that get nobody else's events, and
    /// nothing of what tenants share.
    pub tenant: Option<String>,
}

/// Figures of a window.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StatsReport {
    /// When the first point of every series begins (RFC 3339).
    pub from: String,
    /// Now (RFC 3339).
    pub until: String,
    /// Seconds between two points of a series.
    pub step_s: u64,
    /// Everything together; null for a key that is bound to a tenant.
    pub whole: Option<WholeStats>,
    /// What went to Svix; null where there is none, and for a key that is bound to a tenant.
    pub svix: Option<EndpointStats>,
    /// Each partner, by id.
    pub partners: Vec<PartnerStats>,
    /// Endpoints that were too many to be told apart; null where there were none.
    pub other: Option<Figures>,
}

/// Figures of everything together.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WholeStats {
    /// Events that were recorded.
    pub accepted: u64,
    /// Events recorded a second.
    pub accepted_per_s: f64,
    /// Deliveries made a second.
    pub delivered_per_s: f64,
    /// Deliveries that wait.
    pub backlog: u64,
    /// Seconds since the oldest event that waits was recorded; null where none waits.
    pub oldest_age_s: Option<f64>,
    /// Requests in flight on this node.
    pub in_flight: u64,
    /// Events recorded, by step.
    pub accepted_series: Vec<u64>,
    /// Its attempts.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures of a partner.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PartnerStats {
    /// The partner's id.
    pub partner: String,
    /// Nothing is sent to it for now.
    pub paused: bool,
    /// Deliveries that wait.
    pub backlog: u64,
    /// Seconds since the oldest event that waits was recorded; null where none waits.
    pub oldest_age_s: Option<f64>,
    /// All of its endpoints together.
    #[serde(flatten)]
    pub figures: Figures,
    /// Each of them, by id. Their series are empty unless this one partner was asked for.
    pub endpoints: Vec<EndpointStats>,
}

/// Figures of an endpoint, or of Svix.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EndpointStats {
    /// The endpoint's id; `svix` for Svix.
    pub endpoint: String,
    /// The host of its URL.
    pub host: Option<String>,
    /// The one tenant whose events it gets; null for every tenant's.
    pub tenant: Option<String>,
    /// `active`, `disabled`, `unproven` (it has not answered its challenge), `unreadable` (its secret does not open) or
    /// `deleted`.
    pub state: &'static str,
    /// Why it is disabled.
    pub disabled_reason: Option<&'static str>,
    /// The first failure after its last success (RFC 3339).
    pub failing_since: Option<String>,
    /// The gate before it, on this node; null where nothing was sent yet.
    pub gate: Option<GateStats>,
    /// Deliveries that wait.
    pub backlog: u64,
    /// Seconds since the oldest event that waits was recorded; null where none waits.
    pub oldest_age_s: Option<f64>,
    /// Its attempts.
    #[serde(flatten)]
    pub figures: Figures,
}

/// How a gate stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct GateStats {
    /// `open`, `closed` or `probing`.
    pub state: &'static str,
    /// Why it is not open.
    pub reason: Option<&'static str>,
    /// Until it opens or lets a probe through.
    pub opens_in_ms: Option<u64>,
    /// Requests that it lets through at once.
    pub max_in_flight: u32,
    /// Requests in flight.
    pub in_flight: u32,
}

/// Attempts in the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Figures {
    /// Attempts that delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that were told to slow down: they count neither way.
    pub throttled: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Failed attempts among those that failed or delivered, 0 to 1; null where there were none.
    pub error_rate: Option<f64>,
    /// Half of the attempts took no longer, in milliseconds; good to 10 %. Null where there were none.
    pub p50_ms: Option<f64>,
    /// Nine in ten.
    pub p90_ms: Option<f64>,
    /// Ninety-nine in a hundred.
    pub p99_ms: Option<f64>,
    /// Attempts by what came of them: `2xx`, `3xx`, `4xx`, `429`, `5xx`, `timeout`, `dns`, `connect`, `tls`, `lost`,
    /// `blocked`, `unsent`. Without those that there were none of.
    pub results: BTreeMap<&'static str, u64>,
    /// The same by step.
    pub series: Series,
}

/// Figures by step, each list with one entry a step; empty where there was nothing, or where none was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Series {
    /// Attempts that delivered.
    pub delivered: Vec<u64>,
    /// Attempts that failed.
    pub failed: Vec<u64>,
    /// See [`Figures::p50_ms`].
    pub p50_ms: Vec<Option<f64>>,
    /// See [`Figures::p99_ms`].
    pub p99_ms: Vec<Option<f64>>,
}

impl Stats {
    /// Figures of a window. Gates are those of `dispatcher`, which a node that only takes events has not.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn report(
        &self,
        query: &StatsQuery,
        dispatcher: Option<&Dispatcher>,
    ) -> Result<StatsReport, LedgerError> {
        let (now, snapshot) = (self.shared.clock.now(), self.shared.directory.snapshot());
        let known: HashMap<Arc<str>, KnownEndpoint<'_>> = snapshot
            .endpoints()
            .filter(|endpoint| query.partner.as_deref().is_none_or(|only| **endpoint.partner == *only))
            .filter(|endpoint| query.tenant.is_none() || endpoint.tenant == query.tenant.as_deref())
            .map(|endpoint| (endpoint.id.clone(), endpoint))
            .collect();
        let seen = |subject: &str| query.tenant.is_none() || known.contains_key(subject);
        let wanted = Wanted { window: query.window, partner: query.partner.as_deref(), seen: &seen };
        let mut gathered = self.gather(&wanted, now).await?;
        let gates = dispatcher.map(Dispatcher::gates).unwrap_or_default();
        let gates = gates.into_iter().map(|gate| (gate.gate.clone(), gate)).collect();
        let backlogs = self.backlogs().await?;
        let here = Here { gates, backlogs: &backlogs, now };
        let mut partners: BTreeMap<Arc<str>, PartnerStats> = BTreeMap::new();
        for (id, policy) in &snapshot.policies().partners {
            let asked = query.partner.as_deref().is_none_or(|only| **id == *only);
            // A tenant's key sees partners by the endpoints that are its own.
            if asked && query.tenant.is_none() {
                partners.insert(id.clone(), PartnerStats::new(id, policy.paused));
            }
        }
        let mut endpoints: Vec<_> = known.values().map(|endpoint| endpoint.id.clone()).collect();
        endpoints.extend(gathered.gone(&known));
        endpoints.sort();
        for id in endpoints {
            let (partner, figures) = gathered.endpoint(&id);
            let Some(partner) = known.get(&id).map(|known| known.partner.clone()).or(partner) else {
                continue;
            };
            let endpoint = here.endpoint(&id, known.get(&id), figures);
            let paused = snapshot.policies().partners.get(&partner).is_some_and(|policy| policy.paused);
            let of = partners.entry(partner.clone()).or_insert_with(|| PartnerStats::new(&partner, paused));
            of.add(endpoint);
        }
        for (id, partner) in &mut partners {
            partner.figures = gathered.partner(id);
        }
        let unbound = query.tenant.is_none() && query.partner.is_none();
        Ok(StatsReport {
            from: query.window.begins_at(now).to_rfc3339(),
            until: now.to_rfc3339(),
            step_s: query.window.step_ms().unsigned_abs() / 1_000,
            whole: query.tenant.is_none().then(|| self.whole(&mut gathered, &here, query.window, dispatcher)),
            svix: unbound.then(|| here.svix(gathered.endpoint(SVIX).1)).flatten(),
            partners: partners.into_values().collect(),
            other: unbound
                .then(|| gathered.endpoint(OTHER).1)
                .filter(|figures| *figures != Figures::default()),
        })
    }

    fn whole(
        &self,
        gathered: &mut Gathered<'_>,
        here: &Here<'_>,
        window: Window,
        dispatcher: Option<&Dispatcher>,
    ) -> WholeStats {
        let (accepted, accepted_series) = gathered.accepted();
        let (_, figures) = gathered.endpoint(WHOLE);
        let elapsed_ms = here.now.as_millis() - window.begins_at(here.now).as_millis();
        #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
        let per_s = |count: u64| rounded(count as f64 * 1_000.0 / elapsed_ms.max(1_000) as f64);
        WholeStats {
            accepted,
            accepted_per_s: per_s(accepted),
            delivered_per_s: per_s(figures.delivered),
            backlog: self.shared.ledger.waiting(),
            oldest_age_s: here.oldest_age_s(here.backlogs.keys()),
            in_flight: dispatcher.map_or(0, Dispatcher::in_flight) as u64,
            accepted_series,
            figures,
        }
    }

    /// Adds up what the ledger holds of the window and what this node has counted that is not there yet.
    async fn gather<'a>(&self, wanted: &Wanted<'a>, now: Timestamp) -> Result<Gathered<'a>, LedgerError> {
        let mut gathered = Gathered::new(wanted, now);
        let shared = &self.shared;
        // Together: what is taken meanwhile would be missing from both.
        let (mut own, live) = {
            let unwritten = shared.unwritten();
            let accepted = shared.accepted.load(Ordering::Relaxed) - unwritten.accepted;
            let live = rows::of_minute(shared.meters.since_taken(), accepted, super::ROWS_PER_MINUTE);
            (unwritten.rows.clone(), live)
        };
        own.sort_by_key(|row| row.minute);
        let key = |row: &StatRow| (row.minute, row.subject.clone());
        let own_keys: HashSet<_> = own.iter().map(key).collect();
        let mut own = own.into_iter().peekable();
        let since = wanted.window.begins_at(now);
        let database = shared.ledger.database();
        database
            .stats(since, wanted.partner, |row| {
                while let Some(older) = own.next_if(|older| older.minute <= row.minute) {
                    gathered.take_row(older);
                }
                // Written since.
                if row.run != shared.run || !own_keys.contains(&key(&row)) {
                    gathered.take_row(row);
                }
            })
            .await?;
        own.for_each(|row| gathered.take_row(row));
        let minute = Timestamp::from_millis(shared.minute.load(Ordering::Relaxed));
        live.into_iter().for_each(|counted| gathered.take(minute, counted));
        Ok(gathered)
    }
}

/// How things stand, for what is told beside the figures.
struct Here<'a> {
    gates: HashMap<GateId, GateStatus>,
    backlogs: &'a Backlogs,
    now: Timestamp,
}

impl Here<'_> {
    fn endpoint(&self, id: &Arc<str>, known: Option<&KnownEndpoint<'_>>, figures: Figures) -> EndpointStats {
        let destination = Destination::Endpoint { id: id.clone() };
        let live = known.and_then(|known| known.live);
        let state = match (known, live) {
            (None, _) => "deleted",
            (Some(known), _) if !known.is_active => "disabled",
            (Some(_), None) => "unreadable",
            (Some(_), Some(live)) if live.unproven => "unproven",
            _ => "active",
        };
        EndpointStats {
            endpoint: id.to_string(),
            host: live.and_then(|live| live.url.host()).map(str::to_owned),
            tenant: known.and_then(|known| known.tenant).map(str::to_owned),
            state,
            disabled_reason: live.and_then(|live| live.disabled).map(|reason| reason.as_str()),
            failing_since: live.and_then(|live| live.failing_since).map(Timestamp::to_rfc3339),
            gate: self.gates.get(&GateId::Endpoint(id.clone())).map(GateStats::new),
            backlog: self.backlogs.get(&destination).map_or(0, |backlog| backlog.deliveries),
            oldest_age_s: self.oldest_age_s(std::iter::once(&destination)),
            figures,
        }
    }

    /// Svix, where anything was ever sent to it or waits for it.
    fn svix(&self, figures: Figures) -> Option<EndpointStats> {
        let applications =
            || self.backlogs.keys().filter(|destination| matches!(destination, Destination::Svix { .. }));
        let gate = self.gates.get(&GateId::Svix).map(GateStats::new);
        let configured =
            gate.as_ref().is_some_and(|gate| gate.reason != Some(CloseReason::NotConfigured.as_str()));
        let backlog = applications().filter_map(|destination| self.backlogs.get(destination));
        let backlog = backlog.map(|backlog| backlog.deliveries).sum();
        (configured || backlog > 0 || figures != Figures::default()).then(|| EndpointStats {
            endpoint: SVIX.into(),
            host: None,
            tenant: None,
            state: "active",
            disabled_reason: None,
            failing_since: None,
            gate,
            backlog,
            oldest_age_s: self.oldest_age_s(applications()),
            figures,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    fn oldest_age_s<'d>(&self, destinations: impl Iterator<Item = &'d Destination>) -> Option<f64> {
        let oldest = destinations.filter_map(|destination| self.backlogs.get(destination));
        let oldest = oldest.map(|backlog| backlog.oldest).min()?;
        Some(self.now.since(oldest).as_millis() as f64 / 1_000.0)
    }
}

impl PartnerStats {
    fn new(partner: &str, paused: bool) -> Self {
        Self {
            partner: partner.to_owned(),
            paused,
            backlog: 0,
            oldest_age_s: None,
            figures: Figures::default(),
            endpoints: Vec::new(),
        }
    }

    fn add(&mut self, endpoint: EndpointStats) {
        self.backlog += endpoint.backlog;
        let oldest = self.oldest_age_s.into_iter().chain(endpoint.oldest_age_s);
        self.oldest_age_s = oldest.reduce(f64::max);
        self.endpoints.push(endpoint);
    }
}

impl GateStats {
    fn new(gate: &GateStatus) -> Self {
        Self {
            state: gate.state(),
            reason: gate.reason.map(CloseReason::as_str),
            opens_in_ms: gate.opens_in.and_then(|wait| u64::try_from(wait.as_millis()).ok()),
            max_in_flight: gate.width,
            in_flight: gate.in_flight,
        }
    }
}

/// To two decimals: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
