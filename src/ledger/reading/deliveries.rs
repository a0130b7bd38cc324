//! Deliveries by filter.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;

use super::one::{DONE_COLUMNS, DoneTuple, delivery, done_row};
use super::waiting::{DEPTH, Standing, WaitingTuple, waiting_columns, waiting_row};
use super::{DeliveryRow, EVENT_COLUMNS, EventFilter, EventRow, EventTuple, Part, STEPS, Times, event_row};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryId;
use crate::domain::event::EventSeq;
use crate::domain::tenant::LaneId;
use crate::ledger::sql::{Database, on};
use crate::ledger::{Ledger, Result, rows};

/// Most lanes that one page of what waits looks at, and most events that one page of everything does.
const LANES: i64 = 1_000;
const EVENTS: u32 = 500;

/// How a delivery stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It waits, or is under way.
    Pending,
    /// It arrived.
    Delivered,
    /// It was given up: a person has to look.
    Dead,
    /// It is not wanted any more.
    Canceled,
}

impl DeliveryState {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Dead, Self::Canceled];

    /// The state's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Canceled => "canceled",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Which deliveries.
#[derive(Debug, Clone, Default)]
pub struct DeliveryFilter {
    /// That stand so.
    pub state: Option<DeliveryState>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// To one of these, as [`crate::domain::tenant::Destination`] is written.
    pub destinations: Option<Vec<String>>,
    /// Of events recorded then or later.
    pub since: Option<Timestamp>,
    /// Of events recorded before; a time that is not over yet bounds nothing.
    pub until: Option<Timestamp>,
}

impl DeliveryFilter {
    fn takes_destination(&self, destination: &str) -> bool {
        self.destinations.as_ref().is_none_or(|wanted| wanted.iter().any(|wanted| wanted == destination))
    }
}

/// Where a list of deliveries goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryCursor {
    /// Below this one: newest first.
    Below(DeliveryId),
    /// Behind this place in the queue: lane by lane, what falls due first.
    Behind(LaneId, i64, i64, i64),
}

impl DeliveryCursor {
    /// Whether it is one of a list of deliveries in this state.
    pub fn fits(self, state: Option<DeliveryState>) -> bool {
        matches!(self, Self::Behind(..)) == (state == Some(DeliveryState::Pending))
    }

    /// As text.
    pub fn to_text(self) -> String {
        match self {
            Self::Below(id) => id.to_string(),
            Self::Behind(lane, retry, due_at, event) => format!("{}/{retry}/{due_at}/{event}", lane.0),
        }
    }

    /// Reads what [`Self::to_text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(id) = DeliveryId::parse(text) {
            return Some(Self::Below(id));
        }
        let numbers: Option<Vec<i64>> = text.split('/').map(|part| part.parse().ok()).collect();
        match numbers?[..] {
            [lane, retry, due_at, event] => Some(Self::Behind(LaneId(lane), retry, due_at, event)),
            _ => None,
        }
    }
}

/// lane, destination
type LaneTuple = (i64, String);
type Deliveries = Part<DeliveryRow, DeliveryCursor>;

impl Ledger {
    /// Deliveries by filter, at most `limit`: newest first; those that wait lane by lane, and in each what falls due
    /// first.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<DeliveryCursor>,
        limit: u32,
    ) -> Result<Deliveries> {
        let below = match cursor {
            Some(DeliveryCursor::Below(id)) => id,
            _ => DeliveryId { event: EventSeq(i64::MAX), lane: LaneId(i64::MAX) },
        };
        match filter.state {
            Some(DeliveryState::Pending) => self.waiting_deliveries(filter, cursor, limit).await,
            Some(state) => {
                let times = self.times(filter.since, filter.until).await?;
                self.shared.database.done_deliveries(filter, times, state, below, limit).await
            }
            None => self.all_deliveries(filter, below, limit).await,
        }
    }

    async fn all_deliveries(
        &self,
        filter: &DeliveryFilter,
        below: DeliveryId,
        limit: u32,
    ) -> Result<Deliveries> {
        let events = EventFilter {
            tenant: filter.tenant.clone(),
            since: filter.since,
            until: filter.until,
            ..EventFilter::default()
        };
        let before = EventSeq(below.event.0.saturating_add(1));
        let page = limit.saturating_add(1).min(EVENTS);
        let walked = self.events(&events, Some(before), page).await?;
        let mut listed = Vec::new();
        for event in &walked.rows {
            let mut rows = self.deliveries_of(event).await?;
            rows.retain(|row| row.id < below && filter.takes_destination(&row.destination));
            for row in rows.into_iter().rev() {
                if listed.len() == limit as usize {
                    let next = listed.last().map(|row: &DeliveryRow| DeliveryCursor::Below(row.id));
                    return Ok(Part { rows: listed, next });
                }
                listed.push(row);
            }
        }
        let next = walked.next.map(|seq| DeliveryCursor::Below(DeliveryId { event: seq, lane: LaneId(0) }));
        Ok(Part { rows: listed, next })
    }

    async fn waiting_deliveries(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<DeliveryCursor>,
        limit: u32,
    ) -> Result<Deliveries> {
        let database = &self.shared.database;
        let times = self.times(filter.since, filter.until).await?;
        let (first, mut place) = match cursor {
            Some(DeliveryCursor::Behind(lane, retry, due_at, event)) => (lane, (retry, due_at, event)),
            _ => (LaneId(0), START),
        };
        let lanes = database.lanes_from(filter, first).await?;
        let more = rows::count(lanes.len()) == LANES;
        let (mut listed, mut looked_at) = (Vec::new(), 0);
        let mut last = first;
        for (lane, destination) in lanes {
            if lane != first.0 {
                place = START;
            }
            last = LaneId(lane);
            loop {
                let room = limit as usize - listed.len();
                if room == 0 || looked_at >= DEPTH {
                    let (retry, due_at, event) = place;
                    let next = Some(DeliveryCursor::Behind(last, retry, due_at, event));
                    return Ok(Part { rows: listed, next });
                }
                let mut found = database.queue_behind(last, place, rows::count(room)).await?;
                self.note_claims(&mut found).await;
                let end = found.len() < room;
                looked_at += rows::count(found.len());
                if let Some((id, waiting)) = found.last() {
                    place = (rows::class_column(waiting.class), waiting.due_at.as_millis(), id.event.0);
                }
                let seqs: Vec<_> = found.iter().map(|(id, _)| id.event.0).collect();
                let events = database.events_numbered(&seqs).await?;
                for (id, waiting) in found {
                    let event = events.get(&id.event).filter(|event| times.contain(event.received_at));
                    let Some(event) = event else { continue };
                    listed.push(delivery(event, id, (destination.clone(), Standing::Waiting(waiting))));
                }
                if end {
                    break;
                }
            }
        }
        let (retry, due_at, event) = END;
        let next = more.then_some(DeliveryCursor::Behind(last, retry, due_at, event));
        Ok(Part { rows: listed, next })
    }
}

/// Before and behind all of a lane's queue: retry, `due_at`, event.
const START: (i64, i64, i64) = (-1, 0, 0);
const END: (i64, i64, i64) = (i64::MAX, 0, 0);

impl Database {
    async fn done_deliveries(
        &self,
        filter: &DeliveryFilter,
        times: Times,
        state: DeliveryState,
        below: DeliveryId,
        limit: u32,
    ) -> Result<Deliveries> {
        let (floor, newest) = times.numbers;
        let mut below = if below.event.0 < newest { below } else { super::delivery_id(newest, 0) };
        let mut rows = Vec::new();
        for step in STEPS {
            let lowest = self.lowest_done(step, floor, below, state).await?;
            let from = lowest.unwrap_or(floor);
            let room = i64::from(limit) - rows::count(rows.len());
            let done = self.done_between(filter, state, from, below, room).await?;
            let full = rows::count(done.len()) >= room;
            let last = done.last().map(|(id, ..)| *id);
            let seqs: Vec<_> = done.iter().map(|(id, ..)| id.event.0).collect();
            let events = self.events_numbered(&seqs).await?;
            for (id, destination, done) in done {
                if let Some(event) = events.get(&id.event).filter(|event| times.contain(event.received_at)) {
                    rows.push(delivery(event, id, (destination, Standing::Done(done))));
                }
            }
            if full && let Some(last) = last {
                return Ok(Part { rows, next: Some(DeliveryCursor::Below(last)) });
            }
            if lowest.is_none() {
                return Ok(Part { rows, next: None });
            }
            below = super::delivery_id(from, 0);
        }
        Ok(Part { rows, next: Some(DeliveryCursor::Below(below)) })
    }

    /// The lowest event of the next `step` outcomes; `None` where there are fewer.
    async fn lowest_done(
        &self,
        step: i64,
        floor: i64,
        below: DeliveryId,
        state: DeliveryState,
    ) -> Result<Option<i64>> {
        let dead = if state == DeliveryState::Dead { "state = 'dead' AND" } else { "" };
        let sql = format!(
            "SELECT event FROM outcome WHERE {dead} event <= $1 AND event >= $2 ORDER BY event DESC LIMIT 1 OFFSET $3"
        );
        let row: Option<(i64,)> = on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(below.event.0)
                .bind(floor)
                .bind(step - 1)
                .fetch_optional(pool)
                .await?
        });
        Ok(row.map(|(event,)| event))
    }

    async fn done_between(
        &self,
        filter: &DeliveryFilter,
        state: DeliveryState,
        from: i64,
        below: DeliveryId,
        limit: i64,
    ) -> Result<Vec<(DeliveryId, String, super::Done)>> {
        let texts = texts(self);
        let state = state.as_str();
        // The state as a literal, or the index of dead deliveries would not serve.
        let sql = format!(
            "SELECT {DONE_COLUMNS} FROM outcome JOIN lane ON lane.id = outcome.lane
             WHERE outcome.state = '{state}' AND outcome.event >= $1
               AND (outcome.event, outcome.lane) < ($2, $3)
               AND ($4 IS NULL OR lane.destination IN ({texts}))
               AND ($5 IS NULL OR lane.tenant = $5)
             ORDER BY outcome.event DESC, outcome.lane DESC LIMIT $6"
        );
        let rows: Vec<DoneTuple> = on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(from)
                .bind(below.event.0)
                .bind(below.lane.0)
                .bind(filter.destinations.as_ref().map(|texts| serde_json::json!(texts).to_string()))
                .bind(&filter.tenant)
                .bind(limit)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(done_row).collect())
    }

    /// Lanes that may have work, by number from `first` on: those that the filter names, or all that are busy.
    async fn lanes_from(&self, filter: &DeliveryFilter, first: LaneId) -> Result<Vec<LaneTuple>> {
        if filter.tenant.is_none() && filter.destinations.is_none() {
            return Ok(on!(self, lists, pool => {
                sqlx::query_as(BUSY_FROM).bind(first.0).bind(LANES).fetch_all(pool).await?
            }));
        }
        let texts = texts(self);
        let sql = format!(
            "SELECT id, destination FROM lane WHERE id >= $1 AND ($3 IS NULL OR tenant = $3)
             AND ($4 IS NULL OR destination IN ({texts})) ORDER BY id LIMIT $2"
        );
        Ok(on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(first.0)
                .bind(LANES)
                .bind(&filter.tenant)
                .bind(filter.destinations.as_ref().map(|texts| serde_json::json!(texts).to_string()))
                .fetch_all(pool)
                .await?
        }))
    }

    async fn queue_behind(
        &self,
        lane: LaneId,
        (retry, due_at, event): (i64, i64, i64),
        limit: i64,
    ) -> Result<Vec<(DeliveryId, super::Waiting)>> {
        let columns = waiting_columns(self);
        let sql = format!(
            "SELECT {columns} FROM queue WHERE lane = $1 AND (retry, due_at, event) > ($2, $3, $4)
             ORDER BY retry, due_at, event LIMIT $5"
        );
        let rows: Vec<WaitingTuple> = on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(lane.0)
                .bind(retry)
                .bind(due_at)
                .bind(event)
                .bind(limit)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(waiting_row).collect())
    }

    async fn events_numbered(&self, seqs: &[i64]) -> Result<HashMap<EventSeq, EventRow>> {
        let mut events = HashMap::with_capacity(seqs.len());
        if seqs.is_empty() {
            return Ok(events);
        }
        let numbers = match self {
            Self::Sqlite { .. } => "SELECT value FROM json_each($1)",
            Self::Postgres(_) => {
                "SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST($1 AS JSON))"
            }
        };
        let sql = format!("SELECT {EVENT_COLUMNS} FROM event WHERE seq IN ({numbers})");
        let rows: Vec<EventTuple> = on!(self, lists, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(serde_json::json!(seqs).to_string())
                .fetch_all(pool)
                .await?
        });
        events.extend(rows.into_iter().map(event_row).map(|event| (event.seq, event)));
        Ok(events)
    }
}

/// A loose index scan, as the dispatcher's.
const BUSY_FROM: &str = "WITH RECURSIVE busy (lane) AS (
         SELECT (SELECT MIN(lane) FROM queue WHERE lane >= $1)
         UNION ALL
         SELECT (SELECT MIN(queue.lane) FROM queue WHERE queue.lane > busy.lane)
         FROM busy WHERE busy.lane IS NOT NULL
     )
     SELECT lane.id, lane.destination
     FROM (SELECT busy.lane FROM busy WHERE busy.lane IS NOT NULL LIMIT $2) AS some_lanes
     JOIN lane ON lane.id = some_lanes.lane ORDER BY lane.id";

/// The texts of the JSON array that is the fourth parameter.
const fn texts(database: &Database) -> &'static str {
    match database {
        Database::Sqlite { .. } => "SELECT value FROM json_each($4)",
        Database::Postgres(_) => "SELECT value FROM json_array_elements_text(CAST($4 AS JSON))",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::Class;

    #[test]
    fn a_cursor_is_read_back() {
        let below = DeliveryCursor::Below(super::super::delivery_id(7, 3));
        let behind = DeliveryCursor::Behind(LaneId(4), 1, 1_700_000_000_000, 9);
        for cursor in [below, behind] {
            assert_eq!(DeliveryCursor::parse(&cursor.to_text()), Some(cursor));
        }
        for other in ["", "1/2/3", "1/2/3/4/5", "a/b/c/d", "dlv_1"] {
            assert_eq!(DeliveryCursor::parse(other), None, "{other}");
        }
        assert_eq!(rows::class_column(Class::Fresh), START.0 + 1, "a lane's queue begins behind its start");
    }
}
