//! A ledger that has seen events before, made fast and looking as if they had come one after another.

use anyhow::Context as _;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode, SqliteSynchronous};

use crate::event::event;
use crate::store::{LANE, Place};

/// Events put in at once, in the order of their ids. Many rounds, so that the index's pages are as full as random ids
/// leave them: filled in one, they would all be full, and each would split at its first new row.
const ROUND: i64 = 100_000;

const SQLITE_ROUND: [&str; 3] = [
    "INSERT INTO event (seq, tenant, source, id, type, received_at, body)
     WITH RECURSIVE number (seq) AS (SELECT $1 UNION ALL SELECT seq + 1 FROM number WHERE seq + 1 < $2)
     SELECT seq, 'acme', '/shop', 'evt_' || lower(hex(randomblob(16))) || '-' || seq, 'order.created',
            1700000000000 + seq, $3 FROM number",
    "INSERT INTO event_key (tenant, source, id, event)
     SELECT tenant, source, id, seq FROM event WHERE seq >= $1 AND seq < $2 ORDER BY id",
    "INSERT INTO outcome (event, lane, at, latency_ms, status)
     SELECT seq, $3, received_at, 1, 200 FROM event WHERE seq >= $1 AND seq < $2 ORDER BY seq",
];
const POSTGRES_ROUND: [&str; 3] = [
    "INSERT INTO event (seq, tenant, source, id, type, received_at, body)
     SELECT seq, 'acme', '/shop', 'evt_' || replace(gen_random_uuid()::text, '-', '') || '-' || seq,
            'order.created', 1700000000000 + seq, $3 FROM generate_series($1, $2 - 1) AS seq",
    r#"INSERT INTO event_key (tenant, source, id, event)
     SELECT tenant, source, id, seq FROM event WHERE seq >= $1 AND seq < $2 ORDER BY id COLLATE "C""#,
    "INSERT INTO outcome (event, lane, at, latency_ms, status)
     SELECT seq, $3, received_at, 1, 200 FROM event WHERE seq >= $1 AND seq < $2 ORDER BY seq",
];

/// Puts so many delivered events with random ids in.
pub async fn prefill(place: &Place, events: u64) -> anyhow::Result<()> {
    let events = i64::try_from(events)?;
    if events == 0 {
        return Ok(());
    }
    let body = event("evt_00000000000000000000000000000000-0000000");
    match place.sqlite_options() {
        Some(options) => {
            // Not durable until the end: nobody is told of these.
            let options = options.journal_mode(SqliteJournalMode::Off).synchronous(SqliteSynchronous::Off);
            let mut connection =
                SqliteConnection::connect_with(&options.pragma("cache_size", "-1000000")).await?;
            for (from, to) in rounds(events) {
                let mut transaction = connection.begin().await?;
                let [insert, keys, outcomes] = SQLITE_ROUND;
                sqlx::query(insert)
                    .bind(from)
                    .bind(to)
                    .bind(body.as_bytes())
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(keys).bind(from).bind(to).execute(&mut *transaction).await?;
                sqlx::query(outcomes).bind(from).bind(to).bind(LANE).execute(&mut *transaction).await?;
                transaction.commit().await?;
            }
            connection.close().await?;
            let path = place.sqlite_path().context("a file")?;
            std::fs::File::options().write(true).open(path)?.sync_all()?;
        }
        None => {
            let mut connection = place.postgres().await?;
            for (from, to) in rounds(events) {
                let [insert, keys, outcomes] = POSTGRES_ROUND;
                sqlx::query(insert)
                    .bind(from)
                    .bind(to)
                    .bind(body.as_bytes())
                    .execute(&mut connection)
                    .await?;
                sqlx::query(keys).bind(from).bind(to).execute(&mut connection).await?;
                sqlx::query(outcomes).bind(from).bind(to).bind(LANE).execute(&mut connection).await?;
            }
            sqlx::raw_sql("VACUUM ANALYZE; CHECKPOINT").execute(&mut connection).await?;
        }
    }
    Ok(())
}

/// From and to, the latter excluded.
fn rounds(events: i64) -> impl Iterator<Item = (i64, i64)> {
    let starts = std::iter::successors(Some(1), |from| Some(from + ROUND));
    starts.take_while(move |from| *from <= events).map(move |from| (from, (from + ROUND).min(events + 1)))
}
