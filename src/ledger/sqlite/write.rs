//! What a commit writes: one statement for many rows.

use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use crate::domain::delivery::{Class, NextState, Settlement};
use crate::ledger::plan::Plan;
use crate::ledger::rows::{self, AttemptColumns, OutcomeColumns, WaitingColumns};
use crate::ledger::{LedgerError, Result};

/// Takes rows out of the queue, by their key: head, columns and tail for [`write_rows`].
pub(super) const TAKE_OUT: (&str, usize, &str) =
    ("DELETE FROM queue WHERE (lane, retry, due_at, event) IN (VALUES", 4, ")");
/// Puts rows into the queue.
const PUT_IN: (&str, usize, &str) =
    ("INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain) VALUES", 7, "");
/// Rows in one statement. A few fixed sizes, so that SQLite's statement cache knows the text; powers of two, so that any
/// count takes few statements: each is a round trip to the connection's thread.
pub(super) const CHUNKS: [usize; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// The largest fixed chunk that `rows` fills, and the rest.
pub(super) fn next_chunk<T>(rows: &[T]) -> Option<(&[T], &[T])> {
    CHUNKS.iter().find(|size| **size <= rows.len()).map(|size| rows.split_at(*size))
}

/// `(?,?),(?,?)` for so many rows of so many columns.
pub(super) fn placeholders(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![row; rows].join(",")
}

/// The text of `head VALUES … tail` for so many rows.
pub(super) fn statement((head, columns, tail): (&str, usize, &str), rows: usize) -> String {
    format!("{head} {}{tail}", placeholders(rows, columns))
}

/// Runs `head VALUES … tail` over all rows, a chunk at a time; how many rows were changed.
pub(super) async fn write_rows<T>(
    connection: &mut SqliteConnection,
    (head, columns, tail): (&str, usize, &str),
    rows: &[T],
    bind: impl for<'q> Fn(Query<'q>, &T) -> Query<'q>,
) -> Result<u64> {
    let mut changed = 0;
    let mut rest = rows;
    while let Some((chunk, left)) = next_chunk(rest) {
        let sql = statement((head, columns, tail), chunk.len());
        let query = chunk.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
        changed += query.execute(&mut *connection).await?.rows_affected();
        rest = left;
    }
    Ok(changed)
}

/// Writes a plan's rows; false where some of its keys are taken.
pub(super) async fn insert_plan(connection: &mut SqliteConnection, plan: &Plan<'_>) -> Result<bool> {
    let keys: Vec<_> = plan.sorted().collect();
    let head = "INSERT INTO event_key (tenant, source, id, fingerprint, event) VALUES";
    let written = write_rows(connection, (head, 5, " ON CONFLICT DO NOTHING"), &keys, |query, insert| {
        let identity = &insert.new.event.identity;
        let query = query.bind(&*identity.tenant).bind(&*identity.source).bind(&*identity.id);
        query.bind(&insert.new.event.fingerprint.0[..]).bind(insert.seq.0)
    });
    if written.await? < keys.len() as u64 {
        return Ok(false);
    }
    let head = "INSERT INTO request_key (scope, key, fingerprint, created_at) VALUES";
    let written =
        write_rows(connection, (head, 4, " ON CONFLICT DO NOTHING"), &plan.request_keys, |query, key| {
            query.bind(&*key.scope).bind(&*key.key).bind(&key.fingerprint[..]).bind(plan.now.as_millis())
        });
    if written.await? < plan.request_keys.len() as u64 {
        return Ok(false);
    }
    let head = "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, \
                data_end) VALUES";
    write_rows(connection, (head, 10, ""), &plan.inserts, |query, insert| {
        let event = &insert.new.event;
        let (start, end) = rows::range_columns(event.data.as_ref());
        let query = query.bind(insert.seq.0).bind(&*event.identity.tenant).bind(&*event.identity.source);
        let query = query.bind(&*event.identity.id).bind(&*event.event_type).bind(plan.now.as_millis());
        query.bind(rows::count(insert.new.lanes.len())).bind(&event.body[..]).bind(start).bind(end)
    })
    .await?;
    write_rows(connection, PUT_IN, &plan.deliveries, |query, waiting| {
        let query = query.bind(waiting.lane.id.0).bind(rows::class_column(Class::Fresh));
        let query = query.bind(plan.now.as_millis()).bind(waiting.seq.0);
        query.bind(0_i64).bind(0_i64).bind(0_i64)
    })
    .await?;
    Ok(true)
}

/// Takes settled deliveries out of the queue and writes what they lead to.
pub(super) async fn settle_rows(connection: &mut SqliteConnection, settlements: &[Settlement]) -> Result<()> {
    let moved: Vec<_> =
        settlements.iter().filter(|settlement| settlement.next != NextState::Released).collect();
    let gone = write_rows(connection, TAKE_OUT, &moved, |query, settlement| {
        let query = query.bind(settlement.id.lane.0).bind(rows::class_column(settlement.class));
        query.bind(settlement.due_at.as_millis()).bind(settlement.id.event.0)
    })
    .await?;
    if gone != moved.len() as u64 {
        // Nobody else writes this file: a claimed row can't be gone.
        let missing = moved.len() as u64 - gone;
        return Err(LedgerError::Unavailable(format!("{missing} claimed deliveries are not in the queue")));
    }
    let waiting: Vec<_> = moved.iter().filter_map(|settlement| WaitingColumns::of(settlement)).collect();
    write_rows(connection, PUT_IN, &waiting, |query, row| {
        let query = query.bind(row.lane).bind(row.retry).bind(row.due_at).bind(row.event);
        query.bind(row.attempt).bind(row.failures).bind(row.uncertain)
    })
    .await?;
    let done: Vec<_> = moved.iter().filter_map(|settlement| OutcomeColumns::of(settlement)).collect();
    let head = "INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id, \
                dispatch_unconfirmed, reason) VALUES";
    write_rows(connection, (head, 11, ""), &done, |query, row| {
        let query = query.bind(row.event).bind(row.lane).bind(row.state).bind(row.at).bind(row.attempts);
        let query =
            query.bind(row.failures).bind(row.latency_ms).bind(row.status).bind(row.remote_id.as_deref());
        query.bind(row.dispatch_unconfirmed).bind(row.reason)
    })
    .await?;
    let failed: Vec<_> = moved.iter().filter_map(|settlement| AttemptColumns::of(settlement)).collect();
    let head = "INSERT INTO attempt_log (event, lane, attempt, at, latency_ms, status, code, detail, retry_at) VALUES";
    write_rows(connection, (head, 9, " ON CONFLICT DO NOTHING"), &failed, |query, row| {
        let query = query.bind(row.event).bind(row.lane).bind(row.attempt).bind(row.at).bind(row.latency_ms);
        query.bind(row.status).bind(row.code).bind(row.detail).bind(row.retry_at)
    })
    .await?;
    Ok(())
}
