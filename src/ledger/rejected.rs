//! What could never be accepted: kept, shown, taken in again after a fix, or dropped.

use super::Result;
use super::sql::{Database, on};
use crate::domain::clock::Timestamp;

/// What could never be accepted, on its way into the ledger.
#[derive(Debug, Clone, Default)]
pub struct NewRejected {
    /// How it came: `pubsub_push`, or a source's kind and name as `nats:orders`.
    pub origin: String,
    /// Why it can't be accepted.
    pub reason: String,
    /// The message's attributes, as a JSON object.
    pub attributes: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Its content type, where that is not among the attributes.
    pub content_type: Option<String>,
    /// The one tenant that its events would belong to.
    pub tenant: Option<String>,
    /// What the message is called, as JSON.
    pub identity: Option<String>,
    /// The event's place in the message, from 0.
    pub item: usize,
    /// What is kept once, however often it comes; `None` keeps it every time.
    pub message_key: Option<String>,
}

/// What could never be accepted, as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The ledger's number.
    pub id: i64,
    /// When it came.
    pub received_at: Timestamp,
    /// How it came.
    pub origin: String,
    /// Why it can't be accepted.
    pub reason: String,
    /// The message's attributes, as a JSON object.
    pub attributes: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Its content type, where that is not among the attributes.
    pub content_type: Option<String>,
    /// The one tenant that its events would belong to.
    pub tenant: Option<String>,
    /// What the message is called, as JSON.
    pub identity: Option<String>,
    /// The event's place in the message, from 0.
    pub item: usize,
}

/// Which of the rejected, newest first.
#[derive(Debug, Clone, Default)]
pub struct RejectedFilter {
    /// Those that came this way.
    pub origin: Option<String>,
    /// Those that came then or later.
    pub since: Option<Timestamp>,
    /// Those with a smaller number.
    pub before: Option<i64>,
}

/// A rejected message without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedRow {
    /// The ledger's number.
    pub id: i64,
    /// When it came.
    pub received_at: Timestamp,
    /// How it came.
    pub origin: String,
    /// Why it can't be accepted.
    pub reason: String,
    /// How many bytes it has.
    pub body_bytes: i64,
}

type RejectedTuple =
    (i64, i64, String, String, String, Vec<u8>, Option<String>, Option<String>, Option<String>, i64);

impl Database {
    /// Keeps what can never be accepted; durable before it returns. What was kept before, by its key, is not kept
    /// again. Returns how many are new.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: it must not be acknowledged.
    pub async fn reject(&self, rejected: &[NewRejected], now: Timestamp) -> Result<u64> {
        on!(self, hot_writes, pool => {
            let mut kept = 0;
            let mut transaction = pool.begin().await?;
            for message in rejected {
                let done = sqlx::query(
                    "INSERT INTO rejected (received_at, origin, reason, attributes, body, content_type, tenant,
                                           identity, item, message_key)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (message_key) DO NOTHING",
                )
                .bind(now.as_millis())
                .bind(&message.origin)
                .bind(without_nul(&message.reason))
                .bind(without_nul(&message.attributes))
                .bind(&message.body)
                .bind(message.content_type.as_deref().map(without_nul))
                .bind(&message.tenant)
                .bind(&message.identity)
                .bind(i64::try_from(message.item).unwrap_or(i64::MAX))
                .bind(&message.message_key)
                .execute(&mut *transaction)
                .await?;
                kept += done.rows_affected();
            }
            transaction.commit().await?;
            Ok(kept)
        })
    }

    /// What was rejected, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn rejected(&self, filter: &RejectedFilter, limit: u32) -> Result<Vec<RejectedRow>> {
        let rows: Vec<(i64, i64, String, String, i64)> = on!(self, lists, pool => {
            sqlx::query_as(
                "SELECT id, received_at, origin, reason, CAST(LENGTH(body) AS BIGINT) FROM rejected
                 WHERE id < $1 AND received_at >= $2 AND ($3 IS NULL OR origin = $3)
                 ORDER BY id DESC LIMIT $4",
            )
            .bind(filter.before.unwrap_or(i64::MAX))
            .bind(filter.since.map_or(i64::MIN, Timestamp::as_millis))
            .bind(&filter.origin)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        let row = |(id, received_at, origin, reason, body_bytes)| RejectedRow {
            id,
            received_at: Timestamp::from_millis(received_at),
            origin,
            reason,
            body_bytes,
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// One rejected message, whole; `None` where there is none of this number.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn rejected_message(&self, id: i64) -> Result<Option<Rejected>> {
        let row: Option<RejectedTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT id, received_at, origin, reason, attributes, body, content_type, tenant, identity, item
                 FROM rejected WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(pool)
            .await?
        });
        Ok(row.map(
            |(id, received_at, origin, reason, attributes, body, content_type, tenant, identity, item)| {
                Rejected {
                    id,
                    received_at: Timestamp::from_millis(received_at),
                    origin,
                    reason,
                    attributes,
                    body,
                    content_type,
                    tenant,
                    identity,
                    item: usize::try_from(item).unwrap_or_default(),
                }
            },
        ))
    }

    /// Drops a rejected message; whether it was there.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn delete_rejected(&self, id: i64) -> Result<bool> {
        on!(self, writes, pool => {
            let done = sqlx::query("DELETE FROM rejected WHERE id = $1").bind(id).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }
}

/// Text as Postgres can store it: what can't be kept would be delivered for ever.
fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}
