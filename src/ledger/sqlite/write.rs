//! What a commit writes: one statement for many rows.

use std::sync::{Arc, OnceLock};

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type};

use super::taken::insert_keys;
use crate::domain::delivery::{NextState, Settlement};
use crate::ledger::fan_out::fan_outs;
use crate::ledger::plan::Plan;
use crate::ledger::rows::{self, AttemptColumns, OutcomeColumns, WaitingColumns};
use crate::ledger::{LedgerError, Result};

/// One statement for many rows: `head (?, …), (?, …) … tail`.
pub(super) struct Rows {
    head: &'static str,
    /// One row, with a `?` for each value that differs.
    row: &'static str,
    tail: &'static str,
    /// The text for each of the sizes, those of [`LARGE`] first, once it was needed.
    texts: [OnceLock<Arc<str>>; LARGE.len() + FEW],
}

/// Takes rows out of the queue, by their key.
pub(super) static TAKE_OUT: Rows =
    Rows::new("DELETE FROM queue WHERE (lane, retry, due_at, event) IN (VALUES", "(?,?,?,?)", ")");
/// Takes rows of one lane and moment out of the queue: a third of the time of [`TAKE_OUT`], where SQLite first gathers what
/// to take out, twice. Events of a commit fall due in one moment, so nearly all go this way.
pub(super) static TAKE_OUT_TOGETHER: Rows =
    Rows::new("DELETE FROM queue WHERE lane = ? AND retry = ? AND due_at = ? AND event IN (", "?", ")");
/// From so many rows on a statement of their own is worth its round trip.
const TOGETHER: usize = 8;
/// Puts back into the queue what has been tried.
static PUT_BACK: Rows = Rows::new(
    "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain, replay) VALUES",
    "(?,?,?,?,?,?,?,?)",
    "",
);
/// Puts fresh deliveries into the queue.
static PUT_IN: Rows = Rows::new(
    "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain) VALUES",
    "(?,0,?,?,0,0,0)",
    "",
);
static FAN_OUT: Rows = Rows::new(
    "INSERT INTO fan_out (tenant, event, part, last_event, due_at, deliveries, events, lanes) VALUES",
    "(?,?,?,?,?,?,?,?)",
    "",
);
static EVENTS: Rows = Rows::new(
    "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, data_end) VALUES",
    "(?,?,?,?,?,?,?,?,?,?)",
    "",
);
/// The same where some belong to traces: most belong to none, and pay for none.
static TRACED_EVENTS: Rows = Rows::new(
    "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, data_end, \
     trace) VALUES",
    "(?,?,?,?,?,?,?,?,?,?,?)",
    "",
);
/// Nearly all outcomes: delivered at the first attempt, with less to bind than [`OUTCOMES`].
static DELIVERED: Rows = Rows::new(
    "INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id, \
     dispatch_unconfirmed) VALUES",
    "(?,?,'delivered',?,1,0,?,?,?,0)",
    "",
);
static OUTCOMES: Rows = Rows::new(
    "INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id, \
     dispatch_unconfirmed, reason) VALUES",
    "(?,?,?,?,?,?,?,?,?,?,?)",
    "",
);
static ATTEMPTS: Rows = Rows::new(
    "INSERT INTO attempt_log (event, lane, attempt, at, latency_ms, status, code, detail, retry_at) VALUES",
    "(?,?,?,?,?,?,?,?,?)",
    " ON CONFLICT DO NOTHING",
);
/// Rows in one statement, each of which is a round trip to the connection's thread. Fixed sizes, so that its cache knows the
/// text: up to [`FEW`] rows are one statement, and most commits of a node that takes events one by one have no more of a kind;
/// above, powers of two.
const LARGE: [usize; 4] = [512, 256, 128, 64];
const FEW: usize = 32;

/// Most rows in one statement.
pub(super) const LARGEST: usize = LARGE[0];

/// The size of the smallest statement that has so many rows, of [`LARGEST`] at most.
pub(super) fn size_for(rows: usize) -> usize {
    if rows <= FEW {
        return rows;
    }
    LARGE.into_iter().rev().find(|size| rows <= *size).unwrap_or(LARGEST)
}

/// All sizes.
#[cfg(test)]
pub(super) fn sizes() -> impl Iterator<Item = usize> {
    LARGE.into_iter().chain(1..=FEW)
}

/// As many rows as go into one statement, and the rest.
pub(super) fn next_chunk<T>(rows: &[T]) -> Option<(&[T], &[T])> {
    let size = LARGE.into_iter().find(|size| *size <= rows.len()).unwrap_or(rows.len().min(FEW));
    (size > 0).then(|| rows.split_at(size))
}

/// `(?,?),(?,?)` for so many rows of so many columns.
pub(super) fn placeholders(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![&*row; rows].join(",")
}

impl Rows {
    pub const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self { head, row, tail, texts: [const { OnceLock::new() }; LARGE.len() + FEW] }
    }

    /// The statement for so many rows.
    pub fn text(&self, rows: usize) -> Arc<str> {
        let text = || format!("{} {}{}", self.head, vec![self.row; rows].join(","), self.tail).into();
        let large = LARGE.iter().position(|size| *size == rows);
        let place = large.unwrap_or((LARGE.len() + rows).saturating_sub(1));
        self.texts.get(place).map_or_else(text, |known| known.get_or_init(text).clone())
    }

    /// Runs it over all rows, a chunk at a time; how many rows were changed.
    pub async fn write<T>(
        &self,
        connection: &mut SqliteConnection,
        rows: &[T],
        bind: impl Fn(&mut Values, &T) -> sqlx::Result<()>,
    ) -> Result<u64> {
        self.write_after(connection, |_| Ok(()), rows, bind).await
    }

    /// The same with values that stand before the rows.
    async fn write_after<T>(
        &self,
        connection: &mut SqliteConnection,
        bind_first: impl Fn(&mut Values) -> sqlx::Result<()>,
        rows: &[T],
        bind: impl Fn(&mut Values, &T) -> sqlx::Result<()>,
    ) -> Result<u64> {
        let mut changed = 0;
        let mut rest = rows;
        while let Some((chunk, left)) = next_chunk(rest) {
            let values = self.values(&bind_first, chunk, &bind)?;
            let query = sqlx::query_with(AssertSqlSafe(self.text(chunk.len())), values);
            changed += query.execute(&mut *connection).await?.rows_affected();
            rest = left;
        }
        Ok(changed)
    }

    /// Writes all rows, a chunk at a time. Returns those chunks of which not all rows were written.
    pub async fn write_new<'r, T>(
        &self,
        connection: &mut SqliteConnection,
        rows: &'r [T],
        bind: impl Fn(&mut Values, &T) -> sqlx::Result<()>,
    ) -> Result<Vec<&'r [T]>> {
        let mut short = Vec::new();
        let mut rest = rows;
        while let Some((chunk, left)) = next_chunk(rest) {
            let values = self.values(|_| Ok(()), chunk, &bind)?;
            let query = sqlx::query_with(AssertSqlSafe(self.text(chunk.len())), values);
            if query.execute(&mut *connection).await?.rows_affected() < chunk.len() as u64 {
                short.push(chunk);
            }
            rest = left;
        }
        Ok(short)
    }

    /// What is bound to the statement for these rows.
    pub fn values<T>(
        &self,
        bind_first: impl Fn(&mut Values) -> sqlx::Result<()>,
        rows: &[T],
        bind: impl Fn(&mut Values, &T) -> sqlx::Result<()>,
    ) -> sqlx::Result<SqliteArguments> {
        let mut values = Values::default();
        let count = self.head.matches('?').count() + rows.len() * self.row.matches('?').count();
        values.arguments.reserve(count, 0);
        bind_first(&mut values)?;
        for row in rows {
            bind(&mut values, row)?;
        }
        Ok(values.arguments)
    }
}

/// What is bound to a statement, in order.
#[derive(Default)]
pub(super) struct Values {
    arguments: SqliteArguments,
}

impl Values {
    pub fn add<'v>(&mut self, value: impl Encode<'v, Sqlite> + Type<Sqlite>) -> sqlx::Result<&mut Self> {
        self.arguments.add(value).map_err(sqlx::Error::Encode)?;
        Ok(self)
    }

    /// A text, shared with the connection's thread: a `&str` would be copied.
    pub fn text(&mut self, text: &Arc<str>) -> sqlx::Result<&mut Self> {
        self.add(text.clone())
    }
}

/// Writes a plan's rows without what is there already, which is taken out of the plan. Returns false where the plan has to be
/// made again.
pub(super) async fn insert_plan(connection: &mut SqliteConnection, plan: &mut Plan<'_>) -> Result<bool> {
    if !insert_keys(connection, plan).await? {
        return Ok(false);
    }
    let traced = plan.is_traced();
    let events = if traced { &TRACED_EVENTS } else { &EVENTS };
    let written = events.write(connection, &plan.inserts, |values, insert| {
        let event = &insert.new.event;
        let (start, end) = rows::range_columns(event.data.as_ref());
        values.add(insert.seq.0)?.text(&event.identity.tenant)?.text(&event.identity.source)?;
        values.text(&event.identity.id)?.text(&event.event_type)?.add(plan.now.as_millis())?;
        values.add(rows::count(insert.new.lanes.len()))?.add(&event.body[..])?.add(start)?.add(end)?;
        if traced {
            values.add(event.trace.as_ref().map(ToString::to_string))?;
        }
        Ok(())
    });
    written.await?;
    let written = PUT_IN.write(connection, &plan.deliveries, |values, waiting| {
        values.add(waiting.lane.id.0)?.add(plan.now.as_millis())?.add(waiting.seq.0).map(drop)
    });
    written.await?;
    let later = fan_outs(&plan.inserts);
    let written = FAN_OUT.write(connection, &later, |values, row| {
        values.text(row.tenant)?.add(row.event)?.add(row.part)?.add(row.last_event)?;
        values.add(plan.now.as_millis())?.add(row.deliveries)?.add(&*row.events)?.add(&*row.lanes).map(drop)
    });
    written.await?;
    Ok(true)
}

/// Lane, class and moment: with the event a settled delivery's key in the queue.
fn queue_of(settlement: &Settlement) -> (i64, i64, i64) {
    (settlement.id.lane.0, rows::class_column(settlement.class), settlement.due_at.as_millis())
}

/// Takes settled deliveries out of the queue, in the order of their keys; how many were there.
async fn take_out(connection: &mut SqliteConnection, moved: &[&Settlement]) -> Result<u64> {
    let mut gone = 0;
    let mut apart = Vec::new();
    for together in moved.chunk_by(|one, next| queue_of(one) == queue_of(next)) {
        let [first, ..] = together else { continue };
        if together.len() < TOGETHER {
            apart.extend(together);
            continue;
        }
        let (lane, retry, due_at) = queue_of(first);
        let key = |values: &mut Values| values.add(lane)?.add(retry)?.add(due_at).map(drop);
        let event = |values: &mut Values, one: &&Settlement| values.add(one.id.event.0).map(drop);
        gone += TAKE_OUT_TOGETHER.write_after(connection, key, together, event).await?;
    }
    let taken = TAKE_OUT.write(connection, &apart, |values, settlement: &&Settlement| {
        let (lane, retry, due_at) = queue_of(settlement);
        values.add(lane)?.add(retry)?.add(due_at)?.add(settlement.id.event.0).map(drop)
    });
    Ok(gone + taken.await?)
}

/// Takes settled deliveries out of the queue and writes what they lead to.
pub(super) async fn settle_rows(
    connection: &mut SqliteConnection,
    settlements: &[&Settlement],
) -> Result<()> {
    let mut moved = settlements.to_vec();
    moved.retain(|settlement| settlement.next != NextState::Released);
    moved.sort_unstable_by_key(|settlement| (queue_of(settlement), settlement.id.event));
    let gone = take_out(connection, &moved).await?;
    if gone != moved.len() as u64 {
        // Nobody else writes this file: a claimed row can't be gone.
        let missing = moved.len() as u64 - gone;
        return Err(LedgerError::Unavailable(format!("{missing} claimed deliveries are not in the queue")));
    }
    let waiting: Vec<_> = moved.iter().filter_map(|settlement| WaitingColumns::of(settlement)).collect();
    let written = PUT_BACK.write(connection, &waiting, |values, row| {
        values.add(row.lane)?.add(row.retry)?.add(row.due_at)?.add(row.event)?;
        values.add(row.attempt)?.add(row.failures)?.add(row.uncertain)?.add(row.replay).map(drop)
    });
    written.await?;
    let done = moved.iter().filter_map(|settlement| OutcomeColumns::of(settlement));
    let (delivered, done): (Vec<_>, Vec<_>) = done.partition(OutcomeColumns::is_plainly_delivered);
    let written = DELIVERED.write(connection, &delivered, |values, row| {
        values.add(row.event)?.add(row.lane)?.add(row.at)?.add(row.latency_ms)?.add(row.status)?;
        values.add(row.remote_id.as_deref().map(Arc::<str>::from)).map(drop)
    });
    written.await?;
    let written = OUTCOMES.write(connection, &done, |values, row| {
        values.add(row.event)?.add(row.lane)?.add(row.state)?.add(row.at)?.add(row.attempts)?;
        values.add(row.failures)?.add(row.latency_ms)?.add(row.status)?.add(row.remote_id.as_deref())?;
        values.add(row.dispatch_unconfirmed)?.add(row.reason).map(drop)
    });
    written.await?;
    let failed: Vec<_> = moved.iter().filter_map(|settlement| AttemptColumns::of(settlement)).collect();
    let written = ATTEMPTS.write(connection, &failed, |values, row| {
        values.add(row.event)?.add(row.lane)?.add(row.attempt)?.add(row.at)?.add(row.latency_ms)?;
        values.add(row.status)?.add(row.code)?.add(row.detail)?.add(row.retry_at).map(drop)
    });
    written.await?;
    Ok(())
}
