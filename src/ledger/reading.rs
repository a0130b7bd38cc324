//! What the ledger tells of events and deliveries, for people: lists by filter, and one event with all there is.
//!
//! No index serves these lists alone: on a table that takes tens of thousands of rows a second each one would cost
//! every event. Numbers are in the order of time, so a list walks back along them and filters on its way. It looks at
//! no more than fifty thousand rows ([`STEPS`]) and then answers what it has, with where to go on. What is dead has an index of its
//! own, which only dead deliveries pay for.

mod deliveries;
mod one;
mod waiting;

use sqlx::AssertSqlSafe;

pub use self::deliveries::{DeliveryCursor, DeliveryFilter, DeliveryState};
pub use self::one::{AttemptRow, EventDetail, RepeatRow, SteeringRow};
pub use self::waiting::{Done, Standing, Waiting};
use super::sql::{Database, on};
use super::{Ledger, Result};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryId;
use crate::domain::event::{EventSeq, Identity};
use crate::domain::partner::EventTypeFilter;
use crate::domain::sequence;
use crate::domain::tenant::LaneId;

/// Rows that a page looks at, step by step: most answers are found in the first.
const STEPS: [i64; 4] = [1_000, 4_000, 15_000, 30_000];

/// How an event stands, over all its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// At least one delivery waits, and none is dead.
    Pending,
    /// Every delivery arrived.
    Delivered,
    /// At least one delivery was given up.
    Dead,
    /// At least one delivery was canceled; none waits and none is dead.
    Canceled,
    /// It had nowhere to go.
    Unrouted,
}

impl EventState {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Delivered, Self::Dead, Self::Canceled, Self::Unrouted];

    /// The state's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Canceled => "canceled",
            Self::Unrouted => "unrouted",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of this tenant.
    pub tenant: Option<String>,
    /// Of this type, or of all below it.
    pub event_type: Option<EventTypeFilter>,
    /// That stand so.
    pub state: Option<EventState>,
    /// Recorded then or later.
    pub since: Option<Timestamp>,
    /// Recorded before; a time that is not over yet bounds nothing.
    pub until: Option<Timestamp>,
}

/// An event in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// The ledger's number.
    pub seq: EventSeq,
    /// Tenant, source and id.
    pub identity: Identity,
    /// Its type.
    pub event_type: String,
    /// When it was recorded.
    pub received_at: Timestamp,
    /// How it stands.
    pub state: EventState,
    /// Deliveries made when it was recorded.
    pub destinations: i64,
}

/// seq, tenant, source, id, type, received_at, destinations, state
type EventTuple = (i64, String, String, String, String, i64, i64, String);

/// The columns of [`EventTuple`], of the table `event`.
const EVENT_COLUMNS: &str = "event.seq, event.tenant, event.source, event.id, event.type, event.received_at,
    event.destinations,
    CASE WHEN event.destinations = 0
              AND NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.event = event.seq) THEN 'unrouted'
         WHEN EXISTS (SELECT 1 FROM outcome WHERE outcome.event = event.seq AND outcome.state = 'dead') THEN 'dead'
         WHEN event.destinations > (SELECT COUNT(*) FROM outcome WHERE outcome.event = event.seq) THEN 'pending'
         WHEN EXISTS (SELECT 1 FROM outcome WHERE outcome.event = event.seq AND outcome.state = 'canceled')
              THEN 'canceled'
         ELSE 'delivered' END";

fn event_row(
    (seq, tenant, source, id, event_type, received_at, destinations, state): EventTuple,
) -> EventRow {
    EventRow {
        seq: EventSeq(seq),
        identity: Identity { tenant: tenant.into(), source: source.into(), id: id.into() },
        event_type,
        received_at: Timestamp::from_millis(received_at),
        state: EventState::parse(&state).unwrap_or(EventState::Pending),
        destinations,
    }
}

/// A part of a list, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<T, C> {
    /// Newest first. May be short, or empty, although there is more.
    pub rows: Vec<T>,
    /// `None`: this was all.
    pub next: Option<C>,
}

/// What a filter's times come to.
#[derive(Debug, Clone, Copy)]
struct Times {
    since: Timestamp,
    /// Events recorded then or later are not asked for.
    end: Timestamp,
    /// No number of an event that is asked for is smaller, and every one is smaller than the second.
    numbers: (i64, i64),
}

impl Times {
    fn contain(&self, at: Timestamp) -> bool {
        self.since <= at && at < self.end
    }
}

/// A type as two columns: exactly this one, or all that begin so.
fn type_columns(filter: Option<&EventTypeFilter>) -> (Option<String>, Option<String>) {
    match filter {
        None | Some(EventTypeFilter::Any) => (None, None),
        Some(EventTypeFilter::Exact(name)) => (Some(name.to_string()), None),
        Some(EventTypeFilter::Prefix(path)) => (None, Some(format!("{path}."))),
    }
}

impl Ledger {
    /// Events by filter, newest first, at most `limit`, from the one before number `before`.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn events(
        &self,
        filter: &EventFilter,
        before: Option<EventSeq>,
        limit: u32,
    ) -> Result<Part<EventRow, EventSeq>> {
        let times = self.times(filter.since, filter.until).await?;
        self.shared.database.events(filter, times, before, limit).await
    }

    /// What a filter's times come to now.
    async fn times(&self, since: Option<Timestamp>, until: Option<Timestamp>) -> Result<Times> {
        let (end, last) = self.window_end(until).await?;
        Ok(Times {
            since: since.unwrap_or(Timestamp::from_millis(i64::MIN)),
            end: Timestamp::from_millis(end),
            numbers: (since.map_or(0, |since| sequence::floor(since).0), last),
        })
    }
}

impl Database {
    async fn events(
        &self,
        filter: &EventFilter,
        times: Times,
        before: Option<EventSeq>,
        limit: u32,
    ) -> Result<Part<EventRow, EventSeq>> {
        let (floor, newest) = times.numbers;
        let mut ceiling = before.map_or(newest, |before| before.0.min(newest));
        let mut rows = Vec::new();
        let dead = filter.state == Some(EventState::Dead);
        for step in STEPS {
            let lowest = self.lowest_of(step, floor, ceiling, dead).await?;
            let from = lowest.unwrap_or(floor);
            let room = i64::from(limit) - super::rows::count(rows.len());
            rows.extend(self.events_between(filter, times, from, ceiling, room).await?);
            if rows.len() >= limit as usize {
                return Ok(Part { next: rows.last().map(|row| row.seq), rows });
            }
            if lowest.is_none() {
                return Ok(Part { rows, next: None });
            }
            ceiling = from;
        }
        Ok(Part { rows, next: Some(EventSeq(ceiling)) })
    }

    /// The lowest number of the next `step` rows below `ceiling`; `None` where there are fewer.
    async fn lowest_of(&self, step: i64, floor: i64, ceiling: i64, dead: bool) -> Result<Option<i64>> {
        let sql = if dead {
            "SELECT event FROM outcome WHERE state = 'dead' AND event < $1 AND event >= $2
             ORDER BY event DESC LIMIT 1 OFFSET $3"
        } else {
            "SELECT seq FROM event WHERE seq < $1 AND seq >= $2 ORDER BY seq DESC LIMIT 1 OFFSET $3"
        };
        let row: Option<(i64,)> = on!(self, lists, pool => {
            sqlx::query_as(sql).bind(ceiling).bind(floor).bind(step - 1).fetch_optional(pool).await?
        });
        Ok(row.map(|(seq,)| seq))
    }

    async fn events_between(
        &self,
        filter: &EventFilter,
        times: Times,
        from: i64,
        ceiling: i64,
        limit: i64,
    ) -> Result<Vec<EventRow>> {
        let dead = filter.state == Some(EventState::Dead);
        let among_dead = if dead {
            "AND seq IN (SELECT event FROM outcome WHERE state = 'dead' AND event < $1 AND event >= $2)"
        } else {
            ""
        };
        let sql = format!(
            "SELECT * FROM (
                 SELECT {EVENT_COLUMNS} AS state FROM event
                 WHERE seq < $1 AND seq >= $2 {among_dead}
                   AND ($3 IS NULL OR tenant = $3) AND ($4 IS NULL OR type = $4)
                   AND ($5 IS NULL OR substr(type, 1, length(CAST($5 AS TEXT))) = $5)
                   AND received_at >= $6 AND received_at < $7
             ) AS listed
             WHERE $8 IS NULL OR state = $8 ORDER BY seq DESC LIMIT $9"
        );
        let (exact, prefix) = type_columns(filter.event_type.as_ref());
        let rows: Vec<EventTuple> = on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(ceiling)
                .bind(from)
                .bind(&filter.tenant)
                .bind(exact)
                .bind(prefix)
                .bind(times.since.as_millis())
                .bind(times.end.as_millis())
                .bind(filter.state.map(EventState::as_str))
                .bind(limit)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(event_row).collect())
    }
}

/// A delivery of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Which.
    pub id: DeliveryId,
    /// Where it goes, as [`crate::domain::tenant::Destination`] is written.
    pub destination: String,
    /// Tenant, source and id of its event.
    pub event: Identity,
    /// The event's type.
    pub event_type: String,
    /// When the event was recorded.
    pub received_at: Timestamp,
    /// How it stands.
    pub standing: Standing,
}

const fn delivery_id(event: i64, lane: i64) -> DeliveryId {
    DeliveryId { event: EventSeq(event), lane: LaneId(lane) }
}
