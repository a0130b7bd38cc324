//! Deliveries of large requests, which join the queue after their commit, step by step.
//!
//! A request of ten thousand events for a hundred endpoints makes a million queue rows. Written in one transaction they
//! would keep everybody else waiting for seconds. So the commit of a large request writes its events, their identities,
//! and a few rows of `fan_out`, each of which names events and lanes: every one of these events goes to every one of these
//! lanes. A step moves some of these rows into the queue, in a transaction of its own, between the commits of others. Any
//! process may make the next step, also after a crash: a row is there until its deliveries are in the queue.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::AssertSqlSafe;

use super::plan::{Insert, NewEvent};
use super::reading::EventRow;
use super::sql::{Database, on};
use super::{Ledger, Outlet, Result, rows};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::Class;
use crate::domain::event::EventSeq;
use crate::domain::tenant::{Destination, Lane, LaneId};

/// Most queue rows that one step writes, and most that a request may add to its group's commit.
pub(super) const STEP_ROWS: usize = 2_000;
/// Most rows of `fan_out` that one step takes. Each step is a commit, so a request whose events all go to different lanes
/// needs steps that take many rows.
pub(super) const STEP_TAKES: usize = 100;

/// Whether the deliveries of a request with these events join the queue step by step.
pub(super) fn is_large(events: &[NewEvent]) -> bool {
    deliveries(events) > STEP_ROWS
}

/// How many rows a request adds to its group's commit, about: an event and its first delivery count as one.
pub(super) fn rows_in_commit(events: &[NewEvent]) -> usize {
    let deliveries = deliveries(events);
    events.len().max(if deliveries > STEP_ROWS { 0 } else { deliveries })
}

fn deliveries(events: &[NewEvent]) -> usize {
    events.iter().map(|new| new.lanes.len()).sum()
}

/// A row of `fan_out`: each of its events goes to each of its lanes.
#[derive(Debug)]
pub(super) struct FanOut<'a> {
    pub tenant: &'a Arc<str>,
    /// The smallest number among its events.
    pub event: i64,
    /// Tells the rows of one event with very many lanes apart.
    pub part: i64,
    /// The largest number among its events.
    pub last_event: i64,
    pub deliveries: i64,
    /// The numbers of its events, as a JSON array.
    pub events: String,
    /// The numbers of its lanes, as a JSON array.
    pub lanes: String,
}

/// The rows of `fan_out` for those of these events whose requests are large, each of at most [`STEP_ROWS`] deliveries.
pub(super) fn fan_outs<'a>(inserts: &[Insert<'a>]) -> Vec<FanOut<'a>> {
    let large = inserts.iter().filter(|insert| insert.fans_out && !insert.new.lanes.is_empty());
    let mut large: Vec<_> = large.collect();
    // Events for the same lanes share rows, also where events for other lanes stand between them. The sort is stable: in a
    // row the events keep their order.
    large.sort_by(|one, next| lane_ids(one).cmp(lane_ids(next)));
    let mut rows = Vec::new();
    for alike in large.chunk_by(|one, next| lane_ids(one).eq(lane_ids(next))) {
        let lanes: Vec<_> = lane_ids(alike[0]).collect();
        let lane_texts: Vec<_> = lanes.chunks(STEP_ROWS).map(|lanes| (lanes.len(), array(lanes))).collect();
        for events in alike.chunks((STEP_ROWS / lanes.len()).max(1)) {
            let numbers: Vec<_> = events.iter().map(|insert| insert.seq.0).collect();
            for (part, (lane_count, lanes)) in (0..).zip(&lane_texts) {
                rows.push(FanOut {
                    tenant: &events[0].new.event.identity.tenant,
                    event: numbers[0],
                    part,
                    last_event: numbers[numbers.len() - 1],
                    deliveries: rows::count(numbers.len() * lane_count),
                    events: array(&numbers),
                    lanes: lanes.clone(),
                });
            }
        }
    }
    rows
}

fn lane_ids(insert: &Insert<'_>) -> impl Iterator<Item = i64> {
    insert.new.lanes.iter().map(|lane| lane.id.0)
}

fn array(numbers: &[i64]) -> String {
    serde_json::json!(numbers).to_string()
}

/// Which rows of `fan_out` the next step takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next<'a> {
    /// The oldest of the tenants after this one, in alphabetical order: tenants take turns.
    AfterTenant(&'a str),
    /// Those of this tenant that may name this event.
    OfEvent(&'a str, EventSeq),
}

impl Next<'_> {
    /// The candidates among the rows, in order: the condition of a statement that picks them, with two parameters.
    pub fn candidates(&self) -> String {
        let condition = match self {
            Self::AfterTenant(_) => "tenant > $1 AND event > $2",
            Self::OfEvent(..) => "tenant = $1 AND event <= $2 AND last_event >= $2",
        };
        format!("{condition} ORDER BY tenant, event, part LIMIT {STEP_TAKES}")
    }

    pub const fn parameters(&self) -> (&str, i64) {
        match self {
            Self::AfterTenant(tenant) => (tenant, i64::MIN),
            Self::OfEvent(tenant, event) => (tenant, event.0),
        }
    }
}

/// The rows of the table `candidate` that one step takes: the first one, and those after it while all of them together are
/// at most [`STEP_ROWS`] deliveries.
pub(super) fn picked_candidates() -> String {
    format!(
        "SELECT tenant, event, part FROM (
             SELECT tenant, event, part, deliveries,
                    SUM(deliveries) OVER (ORDER BY tenant, event, part) AS deliveries_so_far
             FROM candidate
         ) AS counted
         WHERE deliveries_so_far <= {STEP_ROWS} OR deliveries_so_far = deliveries"
    )
}

/// A row of `fan_out` that a step has taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub tenant: String,
    pub event: i64,
    pub part: i64,
    pub due_at: i64,
    /// The numbers of its lanes, as a JSON array.
    pub lanes: String,
}

impl From<(String, i64, i64, i64, String)> for Taken {
    fn from((tenant, event, part, due_at, lanes): (String, i64, i64, i64, String)) -> Self {
        Self { tenant, event, part, due_at, lanes }
    }
}

impl Taken {
    fn lane_ids(&self) -> Vec<i64> {
        serde_json::from_str(&self.lanes).unwrap_or_default()
    }
}

/// The numbers of all lanes of these rows, as a JSON array.
pub(super) fn lanes_of(taken: &[Taken]) -> String {
    let lanes: BTreeSet<_> = taken.iter().flat_map(Taken::lane_ids).collect();
    array(&Vec::from_iter(lanes))
}

/// What a step has put into the queue.
#[derive(Debug)]
pub(super) struct Step {
    /// The tenant after which the next step begins.
    pub tenant: Arc<str>,
    /// Each lane, and the first of its deliveries.
    pub lanes: Vec<StepLane>,
}

/// A lane, with due time and number of the first event that a step has put into it.
#[derive(Debug)]
pub(super) struct StepLane {
    pub lane: Arc<Lane>,
    pub due_at: Timestamp,
    pub event: i64,
}

impl Step {
    /// What `taken` has put into the queue; `None` where nothing was taken. `found`: number and destination of each lane.
    pub fn new(taken: &[Taken], found: Vec<(i64, String)>) -> Option<Self> {
        let last = taken.iter().max_by_key(|row| (&row.tenant, row.event, row.part))?;
        let mut firsts: HashMap<i64, &Taken> = HashMap::new();
        for row in taken {
            for lane in row.lane_ids() {
                let first = firsts.entry(lane).or_insert(row);
                if (row.due_at, row.event) < (first.due_at, first.event) {
                    *first = row;
                }
            }
        }
        let lane = |(id, destination): (i64, String)| {
            let first = firsts.get(&id)?;
            // A lane of a kind that this version does not know is left for one that does.
            let destination = Arc::new(Destination::parse(&destination)?);
            let lane = Arc::new(Lane { id: LaneId(id), destination, tenant: first.tenant.as_str().into() });
            Some(StepLane { lane, due_at: Timestamp::from_millis(first.due_at), event: first.event })
        };
        Some(Self {
            tenant: last.tenant.as_str().into(),
            lanes: found.into_iter().filter_map(lane).collect(),
        })
    }

    /// Lets this process's dispatcher look at its lanes.
    pub fn wake(&self, outlet: &dyn Outlet) {
        for StepLane { lane, due_at, .. } in &self.lanes {
            outlet.wake(lane, Class::Fresh, *due_at);
        }
    }
}

impl Ledger {
    /// Moves all of an event's deliveries into the queue, for what an operator wants to do with one of them. Returns whether
    /// there were any that were not there.
    pub(super) async fn queue_all_of(&self, tenant: &str, event: EventSeq) -> Result<bool> {
        let mut moved = false;
        while let Some(step) = self.shared.store.continue_fan_out(Next::OfEvent(tenant, event)).await? {
            moved = true;
            if let Some(outlet) = self.shared.outlet.get() {
                step.wake(&**outlet);
            }
        }
        Ok(moved)
    }
}

impl Database {
    /// The elements of the columns `events` and `lanes` of `fan_out` as tables `element`, and an element as a number.
    const fn elements(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Sqlite { .. } => (
                "json_each(fan_out.events) AS element",
                "json_each(fan_out.lanes) AS element",
                "element.value",
            ),
            Self::Postgres(_) => (
                "json_array_elements_text(CAST(fan_out.events AS JSON)) AS element (value)",
                "json_array_elements_text(CAST(fan_out.lanes AS JSON)) AS element (value)",
                "CAST(element.value AS BIGINT)",
            ),
        }
    }

    /// The lanes of an event's deliveries that are not in the queue yet, and when each falls due.
    pub(super) async fn unqueued_lanes(&self, event: &EventRow) -> Result<Vec<(LaneId, Timestamp)>> {
        let (events, lanes, number) = self.elements();
        let sql = format!(
            "SELECT {number}, fan_out.due_at FROM fan_out, {lanes}
             WHERE fan_out.tenant = $1 AND fan_out.event <= $2 AND fan_out.last_event >= $2
               AND EXISTS (SELECT 1 FROM {events} WHERE {number} = $2)"
        );
        let rows: Vec<(i64, i64)> = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(&*event.identity.tenant)
                .bind(event.seq.0)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(|(lane, due_at)| (LaneId(lane), Timestamp::from_millis(due_at))).collect())
    }

    /// A table of all deliveries that wait, by lane: `lane`, `n`, `oldest` (event) and `first_due`.
    pub(super) fn waiting_by_lane(&self) -> String {
        let (_, lanes, number) = self.elements();
        let events = match self {
            Self::Sqlite { .. } => "json_array_length(fan_out.events)",
            Self::Postgres(_) => "json_array_length(CAST(fan_out.events AS JSON))",
        };
        format!(
            "(SELECT lane, CAST(SUM(n) AS BIGINT) AS n, MIN(oldest) AS oldest, MIN(first_due) AS first_due
              FROM (SELECT lane, COUNT(*) AS n, MIN(event) AS oldest, MIN(due_at) AS first_due
                    FROM queue GROUP BY lane
                    UNION ALL
                    SELECT {number}, {events}, fan_out.event, fan_out.due_at FROM fan_out, {lanes}) AS part
              GROUP BY lane)"
        )
    }
}

/// The lanes of a JSON array, with their destinations. One parameter.
pub(super) const fn lanes_named(is_shared: bool) -> &'static str {
    if is_shared {
        "SELECT id, destination FROM lane
         WHERE id IN (SELECT CAST(value AS BIGINT) FROM json_array_elements_text(CAST($1 AS JSON)))"
    } else {
        "SELECT id, destination FROM lane WHERE id IN (SELECT value FROM json_each($1))"
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::plan::{self, AcceptRequest, Known};
    use super::*;
    use crate::domain::event::{Event, Fingerprint, Identity};

    fn lanes(numbers: std::ops::Range<i64>) -> Vec<Arc<Lane>> {
        let lane = |id| {
            let destination = Arc::new(Destination::Svix { app: format!("app{id}") });
            Arc::new(Lane { id: LaneId(id), destination, tenant: "acme".into() })
        };
        numbers.map(lane).collect()
    }

    /// A request of one event for each of these sets of lanes.
    fn request(number: i64, lanes: &[Vec<Arc<Lane>>]) -> AcceptRequest {
        let event = |n: usize| Event {
            identity: Identity {
                tenant: "acme".into(),
                source: "".into(),
                id: format!("{number}-{n}").into(),
            },
            event_type: "t".into(),
            fingerprint: Fingerprint([0; 32]),
            body: Bytes::new(),
            data: None,
            trace: None,
        };
        let new = |(n, lanes): (usize, &Vec<Arc<Lane>>)| NewEvent { event: event(n), lanes: lanes.clone() };
        AcceptRequest { events: lanes.iter().enumerate().map(new).collect(), strict: true, request_key: None }
    }

    #[test]
    fn a_row_names_events_that_go_to_the_same_lanes_and_no_more_than_a_step_takes() {
        let (wide, narrow, none) = (lanes(0..5_000), lanes(1..900), Vec::new());
        let large = [narrow.clone(), narrow.clone(), narrow.clone(), none.clone(), wide, narrow.clone()];
        let requests = [request(1, &[narrow.clone(), none]), request(2, &large)];
        let mut seq = 0;
        let next = || {
            seq += 1;
            EventSeq(seq)
        };
        let plan = plan::plan(&requests, Known::default(), Timestamp::from_millis(1), next);
        assert_eq!(plan.deliveries.len(), narrow.len(), "those of the small request");
        let rows = fan_outs(&plan.inserts);
        let rows: Vec<_> = rows.iter().map(|row| (&*row.events, row.deliveries, row.part)).collect();
        assert_eq!(
            rows,
            [
                ("[7]", 2_000, 0),
                ("[7]", 2_000, 1),
                ("[7]", 1_000, 2),
                ("[3,4]", 2 * 899, 0),
                ("[5,8]", 2 * 899, 0),
            ]
        );
    }

    #[test]
    fn events_of_partners_that_take_turns_share_rows() {
        let events: Vec<_> = (0..10_000).map(|n| lanes(n % 10..n % 10 + 1)).collect();
        let mut seq = 0;
        let next = || {
            seq += 1;
            EventSeq(seq)
        };
        let requests = [request(1, &events)];
        let plan = plan::plan(&requests, Known::default(), Timestamp::from_millis(1), next);
        let rows = fan_outs(&plan.inserts);
        let rows: Vec<_> = rows.iter().map(|row| (row.event, row.last_event, row.deliveries)).collect();
        assert_eq!(rows, Vec::from_iter((1..=10).map(|first| (first, 9_990 + first, 1_000))));
    }
}
