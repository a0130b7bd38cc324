//! Replays: deliveries that are done go out again, paced, behind what is fresh.
//!
//! A replay is a row of the ledger. Whichever node sends works on it, one at a time; what it has done is in the ledger
//! with every step, so it goes on after a crash where it was.

mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use utoipa::ToSchema;

use crate::directory::Directory;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::DeliveryId;
use crate::domain::object;
use crate::domain::partner::EventTypeFilter;
use crate::domain::replay::{DEFAULT_PACE, EndState, PACES};
use crate::domain::sequence;
use crate::domain::tenant::DefaultRoute;
use crate::domain::time_text::parse_time;
use crate::ledger::{Ledger, LedgerError, NewReplay, ReplayRow, Selection};

/// Most events or deliveries that may be named.
pub const LISTED_MAX: usize = 10_000;
/// Rows looked at in one statement while counting.
const COUNT_WINDOW: u32 = 20_000;
/// How long a count may take, and how many rows it may look at, before it says how far it came.
const COUNT_PATIENCE: Duration = Duration::from_secs(3);
const COUNT_ROWS_MAX: u64 = 2_000_000;

/// Which deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayFilter {
    /// Events of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Events of this type, or these: `order.created`, `order.*`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Deliveries to this partner's endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Deliveries to this endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Deliveries that ended so; `unrouted` are events that had nowhere to go, routed anew. By default the dead, and
    /// every one where events or deliveries are named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<EndState>,
    /// Events that came then or later: a time (RFC 3339), or how long ago (`90m`, `24h`, `7d`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Events that came before; by default all that came before the replay began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// These events of `tenant` alone, at most 10,000.
    #[serde(deserialize_with = "object::list", skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventName>,
    /// These deliveries alone (`dlv_…`), at most 10,000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<String>,
}

/// An event of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventName {
    /// Its id.
    pub id: String,
    /// Its source; of every source where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A wish for a replay.
#[derive(Debug, Clone, Default)]
pub struct ReplayWish {
    /// Which deliveries.
    pub filter: ReplayFilter,
    /// Deliveries a second; 100 where absent.
    pub pace: Option<u32>,
    /// Partners are to take them for other messages: a `webhook-id` of its own for each.
    pub new_ids: bool,
}

/// What a replay would put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReplayPreview {
    /// Deliveries (and unrouted events) in all, as far as was counted.
    pub total: u64,
    /// Everything was counted. Where it is false, there are at least so many.
    pub complete: bool,
    /// When the last events came that were counted; null where all were.
    pub counted_until: Option<Timestamp>,
    /// By state and destination, the most first.
    pub counts: Vec<ReplayCount>,
    /// Named events and deliveries that there are none of.
    pub unknown: Vec<String>,
}

/// A part of a preview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReplayCount {
    /// How they have ended.
    pub state: EndState,
    /// Where they went: `svix:APP` or an endpoint's id; null for unrouted events.
    pub destination: Option<String>,
    /// Whose endpoint that is.
    pub partner: Option<String>,
    /// How many.
    pub deliveries: u64,
}

/// A replay.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Replay {
    /// `rpl_…`
    pub id: String,
    /// `running`, `paused`, `completed`, `canceled`.
    pub state: String,
    /// Which deliveries, with its times as they were understood.
    pub filter: ReplayFilter,
    /// Deliveries a second.
    pub pace: i64,
    /// Partners get them under new ids.
    pub new_ids: bool,
    /// Who wanted it: the name of a key.
    pub started_by: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was completed or canceled.
    pub ended_at: Option<Timestamp>,
    /// Deliveries in all, as counted when it began; null where that was too many to count.
    pub total: Option<i64>,
    /// Put back into the queue so far.
    pub queued: i64,
    /// Of these: not tried yet.
    pub waiting: i64,
    /// Of these: delivered, when it was looked at after the first attempt.
    pub delivered: i64,
    /// Of these: the first attempt failed. They go on by the retry schedule, or are dead, and are not followed any more.
    pub failed: i64,
    /// Of these: not wanted any more.
    pub canceled: i64,
    /// Unrouted events that no route wants today either.
    pub unroutable: i64,
    /// What holds it up, if anything does.
    pub waits_for: Option<String>,
}

/// Why a replay can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The wish is wrong.
    #[error("{detail}")]
    Invalid {
        /// JSON Pointer to what is wrong.
        pointer: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// There is no such replay.
    #[error("there is no replay `{0}`")]
    Unknown(String),
    /// It is in another state.
    #[error("the replay is {0}")]
    Ended(String),
    /// The ledger can't say.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

fn invalid(pointer: &'static str, detail: impl Into<String>) -> ReplayError {
    ReplayError::Invalid { pointer, detail: detail.into() }
}

/// Replays of a ledger. Cheap to clone.
#[derive(Clone)]
pub struct Replays {
    ledger: Ledger,
    directory: Directory,
    default_route: DefaultRoute,
    /// There may be something to do.
    changed: Arc<Notify>,
    clock: Arc<dyn Clock>,
}

/// A wish, worked out.
struct Picked {
    filter: ReplayFilter,
    selection: Selection,
    unknown: Vec<String>,
}

impl Replays {
    /// Replays of `ledger`.
    pub fn new(
        ledger: Ledger,
        directory: Directory,
        default_route: DefaultRoute,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { ledger, directory, default_route, changed: Arc::default(), clock }
    }

    /// Counts what a replay would put back, for at most a few seconds.
    ///
    /// # Errors
    /// [`ReplayError::Invalid`], [`ReplayError::Ledger`].
    pub async fn preview(&self, filter: &ReplayFilter) -> Result<ReplayPreview, ReplayError> {
        let picked = self.pick(filter).await?;
        self.count(&picked).await
    }

    /// Starts a replay.
    ///
    /// # Errors
    /// [`ReplayError::Invalid`], [`ReplayError::Ledger`].
    pub async fn start(&self, wish: &ReplayWish, started_by: &str) -> Result<Replay, ReplayError> {
        let pace = wish.pace.unwrap_or(DEFAULT_PACE);
        if !PACES.contains(&pace) {
            let detail = format!("`pace` must be a whole number from {} to {}", PACES.start(), PACES.end());
            return Err(invalid("/pace", detail));
        }
        let picked = self.pick(&wish.filter).await?;
        if let Some(unknown) = picked.unknown.first() {
            let pointer = if wish.filter.deliveries.is_empty() { "/events" } else { "/deliveries" };
            let detail = format!("{} of these there are none of, `{unknown}` for one", picked.unknown.len());
            return Err(invalid(pointer, detail));
        }
        let preview = self.count(&picked).await?;
        let now = self.clock.now();
        let random = self.clock.random() as u64;
        let new = NewReplay {
            id: format!("rpl_{:012x}{random:016x}", now.as_millis()),
            tenant: picked.filter.tenant.clone(),
            filter: serde_json::to_string(&picked.filter)
                .map_err(|error| LedgerError::Refused(error.to_string()))?,
            selection: picked.selection,
            pace,
            new_ids: wish.new_ids,
            started_by: started_by.to_owned(),
            total: preview.complete.then_some(preview.total),
        };
        self.ledger.database().add_replay(&new, now).await?;
        self.changed.notify_one();
        tracing::info!(replay = new.id, started_by, pace, total = preview.total, "a replay begins");
        self.get(&new.id).await?.ok_or(ReplayError::Unknown(new.id))
    }

    /// A replay; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub async fn get(&self, id: &str) -> Result<Option<Replay>, ReplayError> {
        Ok(self.ledger.database().replay(id).await?.map(Replay::new))
    }

    /// Replays, newest first: of one tenant or of all, those before the one with the id `before`.
    ///
    /// # Errors
    /// [`ReplayError::Ledger`].
    pub async fn list(
        &self,
        tenant: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Replay>, ReplayError> {
        let rows = self.ledger.database().replays(tenant, before, limit).await?;
        Ok(rows.into_iter().map(Replay::new).collect())
    }

    /// Ends a replay: nothing more is put back. What was put back already goes out.
    ///
    /// # Errors
    /// [`ReplayError::Ended`], [`ReplayError::Unknown`], [`ReplayError::Ledger`].
    pub async fn cancel(&self, id: &str) -> Result<Replay, ReplayError> {
        self.set_state(id, &["running", "paused"], "canceled").await
    }

    /// Lets a replay rest. What was put back already goes out.
    ///
    /// # Errors
    /// [`ReplayError::Ended`], [`ReplayError::Unknown`], [`ReplayError::Ledger`].
    pub async fn pause(&self, id: &str) -> Result<Replay, ReplayError> {
        self.set_state(id, &["running"], "paused").await
    }

    /// Lets a replay go on.
    ///
    /// # Errors
    /// [`ReplayError::Ended`], [`ReplayError::Unknown`], [`ReplayError::Ledger`].
    pub async fn resume(&self, id: &str) -> Result<Replay, ReplayError> {
        self.set_state(id, &["paused"], "running").await
    }

    async fn set_state(&self, id: &str, from: &[&str], to: &str) -> Result<Replay, ReplayError> {
        let changed = self.ledger.database().set_replay_state(id, from, to, self.clock.now()).await?;
        let replay = self.get(id).await?.ok_or_else(|| ReplayError::Unknown(id.to_owned()))?;
        // Asked for twice is asked for.
        if !changed && replay.state != to {
            return Err(ReplayError::Ended(replay.state));
        }
        self.changed.notify_one();
        Ok(replay)
    }

    /// Works a filter out: names become numbers, spans become times, defaults become plain.
    async fn pick(&self, filter: &ReplayFilter) -> Result<Picked, ReplayError> {
        let now = self.clock.now();
        let mut filter = filter.clone();
        let named = !filter.events.is_empty() || !filter.deliveries.is_empty();
        if filter.states.is_empty() {
            filter.states = if named { EndState::ALL.to_vec() } else { vec![EndState::Dead] };
        }
        filter.states.sort_unstable();
        filter.states.dedup();
        let event_type = filter.event_type.as_deref().map(EventTypeFilter::parse).transpose();
        let event_type = event_type.map_err(|why| invalid("/type", why))?;
        let time = |pointer, text: &Option<String>| {
            text.as_deref().map(|text| parse_time(text, now)).transpose().map_err(|why| invalid(pointer, why))
        };
        let (since, until) = (time("/since", &filter.since)?, time("/until", &filter.until)?);
        // The millisecond that runs may still bring events.
        if since.is_some_and(|since| since >= until.unwrap_or(now + Duration::from_millis(1))) {
            return Err(invalid("/since", "`since` must be before `until`"));
        }
        filter.since = since.map(Timestamp::to_rfc3339);
        filter.until = until.map(Timestamp::to_rfc3339);
        let destinations = self.destinations(&filter)?;
        if destinations.is_some() && filter.states == [EndState::Unrouted] {
            return Err(invalid(
                "/states",
                "an unrouted event has no partner and no endpoint to be named by",
            ));
        }
        let (listed, unknown) = self.listed(&filter).await?;
        let largest = self.ledger.database().largest_event().await?;
        let (until_ms, last_event) = self.ledger.window_end(until).await?;
        let selection = Selection {
            tenant: filter.tenant.clone(),
            event_type,
            destinations,
            states: filter.states.clone(),
            since_ms: since.map_or(i64::MIN, Timestamp::as_millis),
            until_ms,
            first_event: since.map_or(0, |since| sequence::floor(since).0),
            last_event: largest.min(last_event),
            listed,
        };
        Ok(Picked { filter, selection, unknown })
    }

    /// The destinations that a filter names; `None` where it names none.
    fn destinations(&self, filter: &ReplayFilter) -> Result<Option<Vec<String>>, ReplayError> {
        let snapshot = self.directory.snapshot();
        let policies = snapshot.policies();
        if let Some(partner) = &filter.partner
            && !policies.partners.contains_key(partner.as_str())
        {
            return Err(invalid("/partner", format!("there is no partner `{partner}`")));
        }
        if let Some(endpoint) = &filter.endpoint {
            let owner = policies.endpoints.get(endpoint.as_str()).map(|policy| &policy.partner);
            let Some(owner) = owner else {
                return Err(invalid("/endpoint", format!("there is no endpoint `{endpoint}`")));
            };
            if filter.partner.as_deref().is_some_and(|partner| *partner != **owner) {
                return Err(invalid("/endpoint", format!("`{endpoint}` is an endpoint of `{owner}`")));
            }
            return Ok(Some(vec![endpoint.clone()]));
        }
        let Some(partner) = &filter.partner else { return Ok(None) };
        let of_partner = policies.endpoints.iter().filter(|(_, policy)| *policy.partner == **partner);
        let mut ids: Vec<_> = of_partner.map(|(id, _)| id.to_string()).collect();
        ids.sort_unstable();
        Ok(Some(ids))
    }

    /// The deliveries that a filter names, by event and lane; and those names that are nobody's.
    async fn listed(
        &self,
        filter: &ReplayFilter,
    ) -> Result<(Option<Vec<(i64, i64)>>, Vec<String>), ReplayError> {
        let ReplayFilter { tenant, events, deliveries, .. } = filter;
        if events.is_empty() && deliveries.is_empty() {
            return Ok((None, Vec::new()));
        }
        if events.len() > LISTED_MAX || deliveries.len() > LISTED_MAX {
            let pointer = if events.len() > LISTED_MAX { "/events" } else { "/deliveries" };
            return Err(invalid(pointer, format!("at most {LISTED_MAX} may be named")));
        }
        if !events.is_empty() && !deliveries.is_empty() {
            return Err(invalid("/deliveries", "name events or deliveries, not both"));
        }
        let (mut listed, mut unknown) = (Vec::new(), Vec::new());
        for text in deliveries {
            match DeliveryId::parse(text) {
                Some(DeliveryId { event, lane }) => listed.push((event.0, lane.0)),
                None => return Err(invalid("/deliveries", format!("`{text}` is no delivery's id"))),
            }
        }
        for EventName { id, source } in events {
            let tenant =
                tenant.as_deref().ok_or_else(|| invalid("/tenant", "events are named by tenant and id"))?;
            let numbers = self.ledger.database().event_numbers(tenant, source.as_deref(), id).await?;
            if numbers.is_empty() {
                unknown.push(id.clone());
            }
            listed.extend(numbers.into_iter().map(|number| (number, 0)));
        }
        listed.sort_unstable();
        listed.dedup();
        Ok((Some(listed), unknown))
    }

    async fn count(&self, picked: &Picked) -> Result<ReplayPreview, ReplayError> {
        let began = self.clock.moment();
        let (mut counts, mut examined) = (HashMap::new(), 0);
        let mut cursor = (picked.selection.first_event.saturating_sub(1), i64::MAX);
        let complete = loop {
            let database = self.ledger.database();
            let window =
                database.count_replay_window(&picked.selection, cursor, COUNT_WINDOW, &mut counts).await?;
            cursor = window.reached;
            examined += window.examined;
            if window.exhausted {
                break true;
            }
            if examined >= COUNT_ROWS_MAX || began.until(self.clock.moment()) >= COUNT_PATIENCE {
                break false;
            }
        };
        let snapshot = self.directory.snapshot();
        let partner = |destination: &str| {
            snapshot.policies().endpoints.get(destination).map(|policy| policy.partner.to_string())
        };
        let count = |((state, destination), deliveries): ((EndState, String), u64)| ReplayCount {
            state,
            partner: partner(&destination),
            destination: Some(destination).filter(|destination| !destination.is_empty()),
            deliveries,
        };
        let mut counts: Vec<_> = counts.into_iter().map(count).filter(|count| count.deliveries > 0).collect();
        counts.sort_unstable_by(|one, other| {
            let name = |count: &ReplayCount| (count.state, count.destination.clone());
            other.deliveries.cmp(&one.deliveries).then_with(|| name(one).cmp(&name(other)))
        });
        Ok(ReplayPreview {
            total: counts.iter().map(|count| count.deliveries).sum(),
            complete,
            counted_until: (!complete).then(|| sequence::given_at(crate::domain::event::EventSeq(cursor.0))),
            counts,
            unknown: picked.unknown.clone(),
        })
    }
}

impl Replay {
    fn new(row: ReplayRow) -> Self {
        Self {
            waiting: row.queued - row.delivered - row.failed - row.canceled,
            id: row.id,
            state: row.state,
            // Written by this or an older version; a newer one's is shown as far as it can be read.
            filter: serde_json::from_str(&row.filter).unwrap_or_default(),
            pace: row.pace,
            new_ids: row.new_ids,
            started_by: row.started_by,
            created_at: row.created_at,
            ended_at: row.ended_at,
            total: row.total,
            queued: row.queued,
            delivered: row.delivered,
            failed: row.failed,
            canceled: row.canceled,
            unroutable: row.unroutable,
            waits_for: row.waits_for,
        }
    }
}
