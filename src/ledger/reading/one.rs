//! One event with all there is of it.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;

use super::waiting::{Done, Standing};
use super::{DeliveryRow, EVENT_COLUMNS, EventRow, EventTuple, delivery_id, event_row};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryId;
use crate::domain::event::EventSeq;
use crate::domain::tenant::LaneId;
use crate::ledger::rows::count;
use crate::ledger::sql::{Database, on};
use crate::ledger::{Ledger, Result};

/// Most sources of a tenant that are asked for an id where none is named.
const SOURCES: i64 = 1_000;
/// Most attempts of a delivery that are told: the last ones.
const ATTEMPTS: i64 = 100;
/// How often the parts of an event are read where a delivery moved between two of them.
const TRIES: usize = 3;

/// An attempt that did not deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// The number of its claim.
    pub attempt: i64,
    /// When it ended.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub latency_ms: i64,
    /// The status answered, where there was an answer.
    pub status: Option<i64>,
    /// What went wrong, in a word.
    pub code: String,
    /// The beginning of the receiver's answer, or what went wrong.
    pub detail: String,
    /// When it was to be tried again.
    pub retry_at: Option<Timestamp>,
}

/// What an operator did to a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeringRow {
    /// When.
    pub at: Timestamp,
    /// `retry`, `cancel` or `replay`.
    pub action: String,
    /// Who wanted it: the name of a key. `None` of what was done before that was written down.
    pub by: Option<String>,
    /// The outcome that a retry or a replay took back.
    pub was: Option<Done>,
}

/// How often an event came again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepeatRow {
    /// Times it came as it is.
    pub duplicates: i64,
    /// The last time.
    pub last_duplicate_at: Option<Timestamp>,
    /// Times another one came under its identity.
    pub conflicts: i64,
    /// The last time.
    pub last_conflict_at: Option<Timestamp>,
    /// The type of the last of those.
    pub conflict_type: Option<String>,
}

/// An event beside its deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDetail {
    /// The event.
    pub event: EventRow,
    /// How many bytes its body has.
    pub body_bytes: i64,
    /// How often it came again.
    pub repeats: RepeatRow,
}

/// attempt, at, latency_ms, status, code, detail, retry_at
type AttemptTuple = (i64, i64, i64, Option<i64>, String, String, Option<i64>);
/// duplicates, last_duplicate_at, conflicts, last_conflict_at, conflict_type
type RepeatTuple = (i64, Option<i64>, i64, Option<i64>, Option<String>);
/// lane, at, action, and the outcome before: state, at, latency_ms, status, remote_id, reason
type SteeringTuple = (
    i64,
    i64,
    String,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<String>,
);
/// event, lane, destination, state, at, attempts, failures, latency_ms, status, remote_id, dispatch_unconfirmed, reason
pub(super) type DoneTuple =
    (i64, i64, String, String, i64, i64, i64, i64, Option<i64>, Option<String>, i64, Option<String>);

/// The columns of [`DoneTuple`], of `outcome` and `lane`.
pub(super) const DONE_COLUMNS: &str =
    "outcome.event, outcome.lane, lane.destination, outcome.state, outcome.at,
    outcome.attempts, outcome.failures, outcome.latency_ms, outcome.status, outcome.remote_id,
    outcome.dispatch_unconfirmed, outcome.reason";

pub(super) fn done_row(tuple: DoneTuple) -> (DeliveryId, String, Done) {
    let (event, lane, destination, state, at, attempt, failures, latency_ms, ..) = tuple;
    let done = Done {
        state,
        at: Timestamp::from_millis(at),
        attempt,
        failures,
        latency_ms,
        status: tuple.8,
        remote_id: tuple.9,
        dispatch_unconfirmed: tuple.10 != 0,
        reason: tuple.11,
    };
    (delivery_id(event, lane), destination, done)
}

impl Ledger {
    /// The numbers of the events with this id, by source: of that one alone where one is named, else of every source of
    /// the tenant's. The second is false where it has more than a thousand: the rest were not asked.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn find_event(
        &self,
        tenant: &str,
        source: Option<&str>,
        id: &str,
    ) -> Result<(Vec<(String, EventSeq)>, bool)> {
        self.shared.database.find_event(tenant, source, id).await
    }

    /// An event beside its deliveries; `None` where its payload is no longer kept.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn event_detail(&self, seq: EventSeq) -> Result<Option<EventDetail>> {
        let database = &self.shared.database;
        let Some((event, body_bytes)) = database.event(seq).await? else { return Ok(None) };
        let repeats = database.repeats(seq).await?;
        Ok(Some(EventDetail { event, body_bytes, repeats }))
    }

    /// All deliveries of an event, by lane.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn deliveries_of(&self, event: &EventRow) -> Result<Vec<DeliveryRow>> {
        let database = &self.shared.database;
        let mut deliveries = Vec::new();
        for _ in 0..TRIES {
            let done = database.done_of(event.seq).await?;
            let created = usize::try_from(event.destinations).unwrap_or_default();
            let expected = created.saturating_sub(done.len());
            let waiting = self.waiting_of(event, expected).await?;
            let mut rows: HashMap<_, _> = HashMap::new();
            for (id, waiting) in waiting {
                let destination = self.lane_by_id(id.lane).await?.map(|lane| lane.destination.to_string());
                rows.insert(id, (destination.unwrap_or_default(), Standing::Waiting(waiting)));
            }
            // Read before: what has waited since was put back.
            for (id, destination, done) in done {
                rows.entry(id).or_insert((destination, Standing::Done(done)));
            }
            deliveries = rows.into_iter().map(|(id, row)| delivery(event, id, row)).collect();
            if deliveries.len() >= created {
                break;
            }
        }
        deliveries.sort_by_key(|delivery| delivery.id);
        Ok(deliveries)
    }

    /// One delivery and its event; `None` where there is none of this name.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<(EventRow, DeliveryRow)>> {
        let database = &self.shared.database;
        let Some((event, _)) = database.event(id.event).await? else { return Ok(None) };
        let Some(lane) = self.lane_by_id(id.lane).await? else { return Ok(None) };
        for _ in 0..TRIES {
            let standing = match database.done_delivery(id).await? {
                Some(done) => Some(Standing::Done(done)),
                None => self.waiting_delivery(&event, id.lane).await?.map(Standing::Waiting),
            };
            if let Some(standing) = standing {
                let row = delivery(&event, id, (lane.destination.to_string(), standing));
                return Ok(Some((event, row)));
            }
        }
        Ok(None)
    }

    /// The last attempts of a delivery that did not deliver, oldest first.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn attempts_of(&self, id: DeliveryId) -> Result<Vec<AttemptRow>> {
        let rows: Vec<AttemptTuple> = on!(&self.shared.database, reads, pool => {
            sqlx::query_as(
                "SELECT attempt, at, latency_ms, status, code, detail, retry_at FROM attempt_log
                 WHERE event = $1 AND lane = $2 ORDER BY attempt DESC LIMIT $3",
            )
            .bind(id.event.0)
            .bind(id.lane.0)
            .bind(ATTEMPTS)
            .fetch_all(pool)
            .await?
        });
        let row = |(attempt, at, latency_ms, status, code, detail, retry_at): AttemptTuple| AttemptRow {
            attempt,
            at: Timestamp::from_millis(at),
            latency_ms,
            status,
            code,
            detail,
            retry_at: retry_at.map(Timestamp::from_millis),
        };
        Ok(rows.into_iter().rev().map(row).collect())
    }

    /// What operators did to an event's deliveries, oldest first.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn steering_of(&self, event: EventSeq) -> Result<Vec<(LaneId, SteeringRow)>> {
        let rows: Vec<SteeringTuple> = on!(&self.shared.database, reads, pool => {
            sqlx::query_as(
                "SELECT lane, at, action, was_state, was_at, was_latency_ms, was_status, was_remote_id, was_reason,
                        steered_by
                 FROM steering WHERE event = $1
                 UNION ALL SELECT lane, replayed_at, 'replay', state, at, latency_ms, status, remote_id, reason,
                        (SELECT started_by FROM replay WHERE replay.id = earlier_outcome.replay)
                 FROM earlier_outcome WHERE event = $1
                 ORDER BY 2 LIMIT 1000",
            )
            .bind(event.0)
            .fetch_all(pool)
            .await?
        });
        let row =
            |(lane, at, action, state, was_at, latency, status, remote_id, reason, by): SteeringTuple| {
                let was = state.map(|state| Done {
                    state,
                    at: Timestamp::from_millis(was_at.unwrap_or_default()),
                    attempt: 0,
                    failures: 0,
                    latency_ms: latency.unwrap_or_default(),
                    status,
                    remote_id,
                    dispatch_unconfirmed: false,
                    reason,
                });
                (LaneId(lane), SteeringRow { at: Timestamp::from_millis(at), action, by, was })
            };
        Ok(rows.into_iter().map(row).collect())
    }
}

pub(super) fn delivery(event: &EventRow, id: DeliveryId, row: (String, Standing)) -> DeliveryRow {
    let (destination, standing) = row;
    DeliveryRow {
        id,
        destination,
        event: event.identity.clone(),
        event_type: event.event_type.clone(),
        received_at: event.received_at,
        standing,
    }
}

impl Database {
    async fn find_event(
        &self,
        tenant: &str,
        source: Option<&str>,
        id: &str,
    ) -> Result<(Vec<(String, EventSeq)>, bool)> {
        // Without a source, a loose index scan: one look for each source that the tenant has.
        let sql = match source {
            Some(_) => {
                "SELECT source, event FROM event_key
                 WHERE tenant = $1 AND id = $2 AND source = $3 AND CAST($4 AS BIGINT) > 0"
            }
            None => {
                "WITH RECURSIVE sources (name, number) AS (
                     SELECT (SELECT MIN(source) FROM event_key WHERE tenant = $1 AND $3 IS NULL), 1
                     UNION ALL
                     SELECT (SELECT MIN(event_key.source) FROM event_key
                             WHERE event_key.tenant = $1 AND event_key.source > sources.name), sources.number + 1
                     FROM sources WHERE sources.name IS NOT NULL AND sources.number < $4
                 )
                 SELECT sources.name, (SELECT event_key.event FROM event_key WHERE event_key.tenant = $1
                                       AND event_key.source = sources.name AND event_key.id = $2)
                 FROM sources WHERE sources.name IS NOT NULL"
            }
        };
        let rows: Vec<(String, Option<i64>)> = on!(self, reads, pool => {
            sqlx::query_as(sql).bind(tenant).bind(id).bind(source).bind(SOURCES).fetch_all(pool).await?
        });
        let all = count(rows.len()) < SOURCES;
        let found = rows.into_iter().filter_map(|(source, event)| Some((source, EventSeq(event?))));
        Ok((found.collect(), all))
    }

    async fn event(&self, seq: EventSeq) -> Result<Option<(EventRow, i64)>> {
        let sql = format!("SELECT {EVENT_COLUMNS} FROM event WHERE seq = $1");
        let row: Option<EventTuple> = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql)).bind(seq.0).fetch_optional(pool).await?
        });
        let Some(row) = row else { return Ok(None) };
        let bytes: Option<(i64,)> = on!(self, reads, pool => {
            sqlx::query_as("SELECT CAST(octet_length(body) AS BIGINT) FROM event WHERE seq = $1")
                .bind(seq.0)
                .fetch_optional(pool)
                .await?
        });
        Ok(Some((event_row(row), bytes.map_or(0, |(bytes,)| bytes))))
    }

    async fn repeats(&self, seq: EventSeq) -> Result<RepeatRow> {
        let row: Option<RepeatTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT duplicates, last_duplicate_at, conflicts, last_conflict_at, conflict_type
                 FROM repeat WHERE event = $1",
            )
            .bind(seq.0)
            .fetch_optional(pool)
            .await?
        });
        let at = |millis: Option<i64>| millis.map(Timestamp::from_millis);
        Ok(row.map_or_else(
            RepeatRow::default,
            |(duplicates, duplicate_at, conflicts, conflict_at, conflict_type)| RepeatRow {
                duplicates,
                last_duplicate_at: at(duplicate_at),
                conflicts,
                last_conflict_at: at(conflict_at),
                conflict_type,
            },
        ))
    }

    async fn done_of(&self, seq: EventSeq) -> Result<Vec<(DeliveryId, String, Done)>> {
        let sql = format!(
            "SELECT {DONE_COLUMNS} FROM outcome JOIN lane ON lane.id = outcome.lane WHERE outcome.event = $1"
        );
        let rows: Vec<DoneTuple> = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql)).bind(seq.0).fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(done_row).collect())
    }

    async fn done_delivery(&self, id: DeliveryId) -> Result<Option<Done>> {
        let sql = format!(
            "SELECT {DONE_COLUMNS} FROM outcome JOIN lane ON lane.id = outcome.lane
             WHERE outcome.event = $1 AND outcome.lane = $2"
        );
        let row: Option<DoneTuple> = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql)).bind(id.event.0).bind(id.lane.0).fetch_optional(pool).await?
        });
        Ok(row.map(|row| done_row(row).2))
    }

    /// The body of an event, byte for byte; `None` where there is none of this number.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn body_of(&self, seq: EventSeq) -> Result<Option<Vec<u8>>> {
        let row: Option<(Vec<u8>,)> = on!(self, reads, pool => {
            sqlx::query_as("SELECT body FROM event WHERE seq = $1").bind(seq.0).fetch_optional(pool).await?
        });
        Ok(row.map(|(body,)| body))
    }
}
