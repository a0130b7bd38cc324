//! Which deliveries a replay picks: read in windows of a bounded number of rows, in the order of their events.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use crate::domain::partner::EventTypeFilter;
use crate::domain::replay::EndState;
use crate::ledger::Result;
use crate::ledger::sql::{Database, on};

/// What a replay picks, worked out when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Events of this tenant.
    pub tenant: Option<String>,
    /// Events of these types.
    pub event_type: Option<EventTypeFilter>,
    /// Deliveries to these.
    pub destinations: Option<Vec<String>>,
    /// Deliveries that have ended so.
    pub states: Vec<EndState>,
    /// Events that came then or later, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Events that came before.
    pub until_ms: i64,
    /// No number of an event is smaller, or larger.
    pub first_event: i64,
    /// See `first_event`.
    pub last_event: i64,
    /// These deliveries alone, by event and lane in order; lane 0 is every one of that event.
    pub listed: Option<Vec<(i64, i64)>>,
}

/// A place in the order of events and their lanes.
pub type Cursor = (i64, i64);

/// A delivery that may be replayed, or an event that may be routed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The event's number.
    pub event: i64,
    /// The delivery's lane; 0 for an unrouted event.
    pub lane: i64,
    /// How it has ended.
    pub state: EndState,
    /// The event's tenant.
    pub tenant: String,
    /// The event's type.
    pub event_type: String,
}

/// A part of what a replay picks.
#[derive(Debug)]
pub struct Window {
    /// In order.
    pub candidates: Vec<Candidate>,
    /// All up to here has been looked at.
    pub reached: Cursor,
    /// Nothing lies behind.
    pub exhausted: bool,
    /// Rows looked at.
    pub examined: u64,
}

/// Listed deliveries in one statement.
const LISTED_AT_ONCE: usize = 200;

type CandidateRow = (i64, i64, String, String, String);

impl Selection {
    fn wants_unrouted(&self) -> bool {
        self.states.contains(&EndState::Unrouted)
    }

    fn outcome_states(&self) -> Vec<EndState> {
        self.states.iter().copied().filter(|state| *state != EndState::Unrouted).collect()
    }

    /// `AND …` for what is known of the event, with its texts as parameters behind those that `texts` has.
    fn of_event(&self, sql: &mut String, texts: &mut Vec<String>) {
        let (since, until) = (self.since_ms, self.until_ms);
        let _ = write!(sql, " AND event.received_at >= {since} AND event.received_at < {until}");
        if let Some(tenant) = &self.tenant {
            texts.push(tenant.clone());
            let _ = write!(sql, " AND event.tenant = ${}", texts.len());
        }
        match &self.event_type {
            None | Some(EventTypeFilter::Any) => {}
            Some(EventTypeFilter::Exact(exact)) => {
                texts.push(exact.clone());
                let _ = write!(sql, " AND event.type = ${}", texts.len());
            }
            Some(EventTypeFilter::Prefix(prefix)) => {
                let length = prefix.chars().count() + 1;
                texts.push(format!("{prefix}."));
                let _ = write!(sql, " AND substr(event.type, 1, {length}) = ${}", texts.len());
            }
        }
    }

    /// The statement that finds deliveries among outcomes, and its parameters.
    pub(super) fn among_outcomes(&self, bounds: &str, columns: &str) -> Option<(String, Vec<String>)> {
        let states = self.outcome_states();
        if states.is_empty() {
            return None;
        }
        let mut texts = Vec::new();
        let mut sql = format!(
            "SELECT {columns} FROM outcome JOIN event ON event.seq = outcome.event JOIN lane ON lane.id = outcome.lane
             WHERE {bounds} AND outcome.state IN ({})",
            quoted(&states)
        );
        self.of_event(&mut sql, &mut texts);
        if let Some(destinations) = &self.destinations {
            let first = texts.len();
            texts.extend(destinations.iter().cloned());
            let places: Vec<_> = (first + 1..=texts.len()).map(|n| format!("${n}")).collect();
            let places = if places.is_empty() { "NULL".to_owned() } else { places.join(",") };
            let _ = write!(sql, " AND lane.destination IN ({places})");
        }
        Some((sql, texts))
    }

    /// The statement that finds events without a destination, and its parameters.
    fn among_unrouted(&self, bounds: &str, columns: &str) -> Option<(String, Vec<String>)> {
        if !self.wants_unrouted() || self.destinations.is_some() {
            return None;
        }
        let mut texts = Vec::new();
        let mut sql = format!("SELECT {columns} FROM event WHERE event.destinations = 0 AND {bounds}");
        self.of_event(&mut sql, &mut texts);
        Some((sql, texts))
    }
}

/// The states' names as SQL has texts. They are ours, and have nothing to escape.
fn quoted(states: &[EndState]) -> String {
    states.iter().map(|state| format!("'{}'", state.as_str())).collect::<Vec<_>>().join(",")
}

/// Where a window ends, and where to look in it.
pub(super) struct Extent {
    pub outcomes: String,
    unrouted: String,
    pub reached: Cursor,
    pub exhausted: bool,
    examined: u64,
}

impl Database {
    /// What a replay picks behind `after`, in a window of about `rows` rows.
    pub async fn replay_window(&self, selection: &Selection, after: Cursor, rows: u32) -> Result<Window> {
        let extent = self.extent(selection, after, rows).await?;
        let mut candidates = Vec::new();
        let columns = "outcome.event, outcome.lane, outcome.state, event.tenant, event.type";
        if let Some((sql, texts)) = selection.among_outcomes(&extent.outcomes, columns) {
            candidates.extend(self.candidates(sql, &texts).await?);
        }
        let columns = "event.seq, CAST(0 AS BIGINT), 'unrouted', event.tenant, event.type";
        if let Some((sql, texts)) = selection.among_unrouted(&extent.unrouted, columns) {
            candidates.extend(self.candidates(sql, &texts).await?);
        }
        // Of a listed event, some may have been picked before.
        candidates.retain(|candidate| (candidate.event, candidate.lane) > after);
        candidates.sort_unstable_by_key(|candidate| (candidate.event, candidate.lane));
        let Extent { reached, exhausted, examined, .. } = extent;
        Ok(Window { candidates, reached, exhausted, examined })
    }

    /// How many deliveries a window has, by state and destination (empty for unrouted events).
    pub async fn count_replay_window(
        &self,
        selection: &Selection,
        after: Cursor,
        rows: u32,
        counts: &mut HashMap<(EndState, String), u64>,
    ) -> Result<Window> {
        let extent = self.extent(selection, after, rows).await?;
        let columns = "outcome.state, lane.destination, COUNT(*)";
        let counted = selection.among_outcomes(&extent.outcomes, columns);
        let counted = counted.map(|(sql, texts)| (sql + " GROUP BY outcome.state, lane.destination", texts));
        let unrouted = selection.among_unrouted(&extent.unrouted, "'unrouted', '', COUNT(*)");
        for (sql, texts) in counted.into_iter().chain(unrouted) {
            let found: Vec<(String, String, i64)> = on!(self, chore_reads, pool => {
                let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
                for text in &texts {
                    query = query.bind(text);
                }
                query.fetch_all(pool).await?
            });
            for (state, destination, count) in found {
                if let Some(state) = EndState::parse(&state) {
                    *counts.entry((state, destination)).or_default() += count.max(0).unsigned_abs();
                }
            }
        }
        let Extent { reached, exhausted, examined, .. } = extent;
        Ok(Window { candidates: Vec::new(), reached, exhausted, examined })
    }

    async fn candidates(&self, sql: String, texts: &[String]) -> Result<Vec<Candidate>> {
        let rows: Vec<CandidateRow> = on!(self, chore_reads, pool => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
            for text in texts {
                query = query.bind(text);
            }
            query.fetch_all(pool).await?
        });
        let candidate = |(event, lane, state, tenant, event_type): CandidateRow| {
            Some(Candidate { event, lane, state: EndState::parse(&state)?, tenant, event_type })
        };
        Ok(rows.into_iter().filter_map(candidate).collect())
    }

    pub(super) async fn extent(&self, selection: &Selection, after: Cursor, rows: u32) -> Result<Extent> {
        if let Some(listed) = &selection.listed {
            return Ok(extent_of_list(selection, listed, after));
        }
        // An event comes before its lanes: one that was looked at in part has nowhere else to go.
        let (event, lane) = after.max((selection.first_event.saturating_sub(1), i64::MAX));
        let last = selection.last_event;
        let mut edge = last;
        let (mut exhausted, mut examined) = (true, 0);
        let states = selection.outcome_states();
        let behind =
            format!("outcome.event >= {event} AND (outcome.event, outcome.lane) > ({event}, {lane})");
        if !states.is_empty() {
            // There is an index for the dead alone.
            let dead = if states == [EndState::Dead] { " AND state = 'dead'" } else { "" };
            let inner = format!(
                "SELECT event FROM outcome WHERE {behind} AND event <= {last}{dead} ORDER BY event, lane LIMIT {rows}"
            );
            let (found, last_seen) = self.edge(inner).await?;
            examined += found;
            if found >= u64::from(rows) {
                (edge, exhausted) = (edge.min(last_seen), false);
            }
        }
        let unrouted_from = event.saturating_add(1);
        if selection.wants_unrouted() && selection.destinations.is_none() {
            let inner = format!(
                "SELECT seq AS event FROM event
                 WHERE destinations = 0 AND seq >= {unrouted_from} AND seq <= {last} ORDER BY seq LIMIT {rows}"
            );
            let (found, last_seen) = self.edge(inner).await?;
            examined += found;
            if found >= u64::from(rows) {
                (edge, exhausted) = (edge.min(last_seen), false);
            }
        }
        Ok(Extent {
            outcomes: format!("{behind} AND outcome.event <= {edge}"),
            unrouted: format!("event.seq >= {unrouted_from} AND event.seq <= {edge}"),
            reached: (edge, i64::MAX),
            exhausted,
            examined,
        })
    }

    /// How many rows a statement finds, and the last event among them.
    async fn edge(&self, inner: String) -> Result<(u64, i64)> {
        let sql = format!("SELECT COUNT(*), COALESCE(MAX(event), 0) FROM ({inner}) AS part");
        let (count, last): (i64, i64) = on!(self, chore_reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_one(pool).await?
        });
        Ok((count.max(0).unsigned_abs(), last))
    }

    /// The numbers of the events with this id, of one source or of all.
    pub async fn event_numbers(&self, tenant: &str, source: Option<&str>, id: &str) -> Result<Vec<i64>> {
        // Source by source: the key has it before the id.
        let rows: Vec<(i64,)> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "WITH RECURSIVE sources (source) AS (
                     SELECT (SELECT MIN(source) FROM event_key WHERE tenant = $1)
                     UNION ALL
                     SELECT (SELECT MIN(event_key.source) FROM event_key
                             WHERE event_key.tenant = $1 AND event_key.source > sources.source)
                     FROM sources WHERE sources.source IS NOT NULL
                 )
                 SELECT event_key.event FROM sources
                 JOIN event_key ON event_key.tenant = $1 AND event_key.source = sources.source AND event_key.id = $2
                 WHERE sources.source IS NOT NULL AND ($3 IS NULL OR sources.source = $3)",
            )
            .bind(tenant)
            .bind(id)
            .bind(source)
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(event,)| event).collect())
    }
}

/// The next listed deliveries behind `after`.
fn extent_of_list(selection: &Selection, listed: &[(i64, i64)], after: Cursor) -> Extent {
    let place = |(event, lane): &(i64, i64)| (*event, if *lane == 0 { i64::MAX } else { *lane });
    let from = listed.partition_point(|entry| place(entry) <= after);
    let part = &listed[from..listed.len().min(from + LISTED_AT_ONCE)];
    // Of one kind: neither database finds "these events, or those deliveries" by its index.
    let kind = part.first().is_some_and(|(_, lane)| *lane == 0);
    let part = &part[..part.iter().position(|(_, lane)| (*lane == 0) != kind).unwrap_or(part.len())];
    let exhausted = from + part.len() == listed.len();
    let events: Vec<_> = part.iter().map(|(event, _)| event.to_string()).collect();
    let events = if events.is_empty() { "NULL".to_owned() } else { events.join(",") };
    let pairs: Vec<_> = part.iter().map(|(event, lane)| format!("({event},{lane})")).collect();
    let (outcomes, unrouted) = if kind || pairs.is_empty() {
        (format!("outcome.event IN ({events})"), format!("event.seq IN ({events})"))
    } else {
        (format!("(outcome.event, outcome.lane) IN (VALUES {})", pairs.join(",")), "1 = 0".to_owned())
    };
    let last = selection.last_event;
    Extent {
        outcomes: format!("{outcomes} AND outcome.event <= {last}"),
        unrouted: format!("{unrouted} AND event.seq <= {last}"),
        reached: part.last().map_or(after, place),
        exhausted,
        examined: part.len() as u64,
    }
}
