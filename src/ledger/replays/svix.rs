//! What the ledger says Svix was given.

use sqlx::AssertSqlSafe;

use super::select::{Cursor, Selection};
use crate::ledger::Result;
use crate::ledger::sql::{Database, on};

/// A delivery that Svix has taken, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvixDelivery {
    /// The event's number.
    pub event: i64,
    /// The delivery's lane.
    pub lane: i64,
    /// When the event came, in milliseconds since the Unix epoch.
    pub received_at: i64,
    /// When Svix said yes.
    pub at: i64,
    /// How long Svix took for that, in milliseconds.
    pub latency_ms: i64,
    /// Svix's own id of it, where it told one.
    pub remote_id: Option<String>,
    /// Stored at Svix after an uncertain attempt.
    pub dispatch_unconfirmed: bool,
    /// The event's source.
    pub source: String,
    /// The event's id.
    pub id: String,
}

/// A part of what Svix was given.
#[derive(Debug)]
pub struct SvixWindow {
    /// In order.
    pub deliveries: Vec<SvixDelivery>,
    /// All up to here has been looked at.
    pub reached: Cursor,
    /// Nothing lies behind.
    pub exhausted: bool,
}

type SvixTuple = (i64, i64, i64, i64, i64, Option<String>, i64, String, String);

impl Database {
    /// What a selection has behind `after` of what Svix was given, in a window of about `rows` rows.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn svix_window(&self, selection: &Selection, after: Cursor, rows: u32) -> Result<SvixWindow> {
        let extent = self.extent(selection, after, rows).await?;
        let columns = "outcome.event, outcome.lane, event.received_at, outcome.at, outcome.latency_ms,
                       outcome.remote_id, outcome.dispatch_unconfirmed, event.source, event.id";
        let bounds = format!("{} AND substr(lane.destination, 1, 5) = 'svix:'", extent.outcomes);
        let Some((sql, texts)) = selection.among_outcomes(&bounds, columns) else {
            return Ok(SvixWindow { deliveries: Vec::new(), reached: extent.reached, exhausted: true });
        };
        let found: Vec<SvixTuple> = on!(self, chore_reads, pool => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
            for text in &texts {
                query = query.bind(text);
            }
            query.fetch_all(pool).await?
        });
        let delivery = |row: SvixTuple| {
            let (event, lane, received_at, at, latency_ms, remote_id, unconfirmed, source, id) = row;
            let dispatch_unconfirmed = unconfirmed != 0;
            SvixDelivery {
                event,
                lane,
                received_at,
                at,
                latency_ms,
                remote_id,
                dispatch_unconfirmed,
                source,
                id,
            }
        };
        Ok(SvixWindow {
            deliveries: found.into_iter().map(delivery).collect(),
            reached: extent.reached,
            exhausted: extent.exhausted,
        })
    }
}
