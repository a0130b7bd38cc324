//! Partners and event types in the ledger, in the words both databases share.
//!
//! Every change takes the next revision number first: it is the version of what was changed (never used twice, not even
//! by what is deleted and made again, so that an ETag means one text), it keeps changes apart, and it tells every node
//! to read again.

use super::sql::{Database, change, on};
use super::{LedgerError, Result};
use crate::domain::clock::Timestamp;
use crate::domain::partner::{PartnerSettings, SettingFault};

/// What became of a change that may name the version it expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// New, with this version.
    Created(i64),
    /// Known before, now with this version.
    Updated(i64),
    /// It has another version than was expected, or is not there: nothing was changed.
    VersionConflict,
}

/// A partner.
#[derive(Debug, Clone, PartialEq)]
pub struct PartnerRow {
    /// Its id.
    pub id: String,
    /// What an administrator set.
    pub settings: PartnerSettings,
    /// Grows with every change.
    pub version: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An event type, with its settings as the JSON text they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTypeRow {
    /// Its name.
    pub name: String,
    /// JSON: `description`, `schema`, `example`.
    pub settings: String,
    /// Grows with every change.
    pub version: i64,
    /// The version that Svix was told; 0 where none was.
    pub synced: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

type PartnerTuple = (String, String, i64, i64);
type EventTypeTuple = (String, String, i64, i64, i64);

/// Settings in the ledger that this version can't read: they were written by another.
pub(super) fn unreadable(what: &str, id: &str, faults: &[SettingFault]) -> LedgerError {
    let why = faults.first().map_or_else(String::new, |fault| format!("{}: {}", fault.pointer, fault.detail));
    LedgerError::Unavailable(format!("the settings of {what} {id} can't be read: {why}"))
}

fn partner((id, settings, version, created_at): PartnerTuple) -> Result<PartnerRow> {
    let settings = PartnerSettings::parse(&settings).map_err(|faults| unreadable("partner", &id, &faults))?;
    Ok(PartnerRow { id, settings, version, created_at: Timestamp::from_millis(created_at) })
}

fn event_type((name, settings, version, synced, created_at): EventTypeTuple) -> EventTypeRow {
    EventTypeRow { name, settings, version, synced, created_at: Timestamp::from_millis(created_at) }
}

/// The statements of a PUT.
struct PutText {
    /// The version of `$1`.
    known: &'static str,
    /// Id, settings, version and time.
    upsert: &'static str,
}

const PUT_PARTNER: PutText = PutText {
    known: "SELECT version FROM partner WHERE id = $1",
    upsert: "INSERT INTO partner (id, settings, version, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, version = excluded.version",
};
const PUT_EVENT_TYPE: PutText = PutText {
    known: "SELECT version FROM event_type WHERE name = $1",
    upsert: "INSERT INTO event_type (name, settings, version, created_at, synced) VALUES ($1, $2, $3, $4, 0)
             ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, version = excluded.version",
};

impl Database {
    /// Makes a partner or changes it. With `if_match`, only where it has that version.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn put_partner(
        &self,
        id: &str,
        settings: &PartnerSettings,
        if_match: Option<i64>,
        now: Timestamp,
    ) -> Result<Put> {
        let settings =
            serde_json::to_string(settings).map_err(|error| LedgerError::Refused(error.to_string()))?;
        self.put(&PUT_PARTNER, id, &settings, if_match, now).await
    }

    /// The partner of this id.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn partner(&self, id: &str) -> Result<Option<PartnerRow>> {
        let row: Option<PartnerTuple> = on!(self, reads, pool => {
            sqlx::query_as("SELECT id, settings, version, created_at FROM partner WHERE id = $1")
                .bind(id)
                .fetch_optional(pool)
                .await?
        });
        row.map(partner).transpose()
    }

    /// Partners by id, from the one after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn partners(&self, after: Option<&str>, limit: u32) -> Result<Vec<PartnerRow>> {
        let rows: Vec<PartnerTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT id, settings, version, created_at FROM partner WHERE id > $1 ORDER BY id LIMIT $2",
            )
            .bind(after.unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        rows.into_iter().map(partner).collect()
    }

    /// Every partner: for the directory.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn all_partners(&self) -> Result<Vec<PartnerRow>> {
        let rows: Vec<PartnerTuple> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT id, settings, version, created_at FROM partner").fetch_all(pool).await?
        });
        rows.into_iter().map(partner).collect()
    }

    /// Deletes a partner; whether there was one. With `if_match`, only where it has that version.
    ///
    /// # Errors
    /// [`LedgerError::Taken`] while it has endpoints, [`LedgerError::Unavailable`].
    pub async fn delete_partner(&self, id: &str, if_match: Option<i64>) -> Result<bool> {
        let gone: std::result::Result<bool, i64> = change!(self, |transaction, _version| {
            let (endpoints,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM endpoint WHERE partner = $1")
                .bind(id)
                .fetch_one(&mut *transaction)
                .await?;
            if endpoints > 0 {
                (false, Err(endpoints))
            } else {
                let deleted = sqlx::query("DELETE FROM partner WHERE id = $1 AND ($2 = 0 OR version = $2)")
                    .bind(id)
                    .bind(if_match.unwrap_or(0))
                    .execute(&mut *transaction)
                    .await?
                    .rows_affected();
                (deleted == 1, Ok(deleted == 1))
            }
        });
        gone.map_err(|endpoints| {
            LedgerError::Taken(format!("partner `{id}` still has {endpoints} endpoints: delete them first"))
        })
    }

    /// Makes an event type or changes it. With `if_match`, only where it has that version.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn put_event_type(
        &self,
        name: &str,
        settings: &str,
        if_match: Option<i64>,
        now: Timestamp,
    ) -> Result<Put> {
        self.put(&PUT_EVENT_TYPE, name, settings, if_match, now).await
    }

    async fn put(
        &self,
        text: &PutText,
        id: &str,
        settings: &str,
        if_match: Option<i64>,
        now: Timestamp,
    ) -> Result<Put> {
        Ok(change!(self, |transaction, version| {
            let known: Option<(i64,)> =
                sqlx::query_as(text.known).bind(id).fetch_optional(&mut *transaction).await?;
            let known = known.map(|(version,)| version);
            if if_match.is_some() && if_match != known {
                (false, Put::VersionConflict)
            } else {
                sqlx::query(text.upsert)
                    .bind(id)
                    .bind(settings)
                    .bind(version)
                    .bind(now.as_millis())
                    .execute(&mut *transaction)
                    .await?;
                (true, if known.is_some() { Put::Updated(version) } else { Put::Created(version) })
            }
        }))
    }

    /// The event type of this name.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn event_type(&self, name: &str) -> Result<Option<EventTypeRow>> {
        let row: Option<EventTypeTuple> = on!(self, reads, pool => {
            sqlx::query_as("SELECT name, settings, version, synced, created_at FROM event_type WHERE name = $1")
                .bind(name)
                .fetch_optional(pool)
                .await?
        });
        Ok(row.map(event_type))
    }

    /// Event types by name, from the one after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn event_types(&self, after: Option<&str>, limit: u32) -> Result<Vec<EventTypeRow>> {
        let rows: Vec<EventTypeTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT name, settings, version, synced, created_at FROM event_type
                 WHERE name > $1 ORDER BY name LIMIT $2",
            )
            .bind(after.unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(event_type).collect())
    }

    /// The names of all event types.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn event_type_names(&self) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT name FROM event_type").fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// Event types that Svix was not told as they are now, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn unsynced_event_types(&self, limit: u32) -> Result<Vec<EventTypeRow>> {
        let rows: Vec<EventTypeTuple> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "SELECT name, settings, version, synced, created_at FROM event_type
                 WHERE synced < version ORDER BY version LIMIT $1",
            )
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(event_type).collect())
    }

    /// Notes that Svix was told `version` of an event type. The one change without a revision: no node keeps it in
    /// memory.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn mark_synced(&self, name: &str, version: i64) -> Result<()> {
        on!(self, writes, pool => {
            sqlx::query("UPDATE event_type SET synced = $2 WHERE name = $1 AND synced < $2")
                .bind(name)
                .bind(version)
                .execute(pool)
                .await?;
            Ok(())
        })
    }
}
