//! Endpoints in the ledger, in the words both databases share. What is secret arrives here sealed, and leaves sealed.

use super::partners::Put;
use super::sql::{Database, change, on};
use super::{LedgerError, Result};
use crate::domain::clock::Timestamp;
use crate::domain::partner::{DisableReason, EndpointState};

/// The member of [`StoredSettings::json`] that holds the sealed URL; absent where the URL has no path, and in what earlier
/// versions stored.
pub const SEALED_URL: &str = "sealed_url";

/// An endpoint's settings as they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSettings {
    /// What `EndpointSettings` serializes to: the values of its headers are not in it, and its URL is masked. The whole
    /// URL is beside it, sealed, as the member [`SEALED_URL`].
    pub json: String,
    /// Its headers, sealed; `None` where it has none.
    pub headers: Option<String>,
}

impl StoredSettings {
    fn sealed_url(&self) -> Option<String> {
        let settings: serde_json::Value = serde_json::from_str(&self.json).ok()?;
        settings.get(SEALED_URL)?.as_str().map(str::to_owned)
    }
}

/// An endpoint that is to be added.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// Its id, `ep_…`: part of every idempotency key, never used for another.
    pub id: String,
    /// Whose it is.
    pub partner: String,
    /// What an administrator set.
    pub settings: StoredSettings,
    /// Its secret, sealed.
    pub secret: String,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its id, `ep_…`.
    pub id: String,
    /// Whose it is.
    pub partner: String,
    /// What an administrator set.
    pub settings: StoredSettings,
    /// Its secret, sealed.
    pub secret: String,
    /// The secret before, sealed, and until when it signs too.
    pub previous_secret: Option<(String, Timestamp)>,
    /// Whether it gets events.
    pub state: EndpointState,
    /// The first failure after the last success.
    pub failing_since: Option<Timestamp>,
    /// When it answered its ownership challenge.
    pub proven_at: Option<Timestamp>,
    /// Grows with every change of settings, secret or state. What sending finds out (failing, proven) is no change.
    pub version: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What tells whether an endpoint was read as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointMark {
    /// Its id, `ep_…`.
    pub id: String,
    /// Grows with every change of settings, secret or state.
    pub version: i64,
    /// The first failure after the last success.
    pub failing_since: Option<Timestamp>,
    /// When it answered its ownership challenge.
    pub proven_at: Option<Timestamp>,
}

/// Which of an endpoint's sealed columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedColumn {
    /// The secret.
    Secret,
    /// The secret before.
    PreviousSecret,
    /// The headers.
    Headers,
    /// The URL, within the settings.
    Url,
}

/// A sealed text, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The endpoint.
    pub endpoint: String,
    /// The column.
    pub column: SealedColumn,
    /// The text.
    pub text: String,
}

type Tuple = (
    String,
    String,
    String,
    Option<String>,
    String,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    i64,
    i64,
);

/// The columns of [`Tuple`], and a clause.
macro_rules! select {
    ($clause:literal) => {
        concat!(
            "SELECT id, partner, settings, headers, secret, previous_secret, previous_until, disabled_reason, ",
            "disabled_at, failing_since, proven_at, version, created_at FROM endpoint ",
            $clause
        )
    };
}

fn row(tuple: Tuple) -> EndpointRow {
    let (
        id,
        partner,
        json,
        headers,
        secret,
        previous,
        previous_until,
        reason,
        disabled_at,
        failing,
        proven,
        ..,
    ) = tuple;
    let at = |millis: Option<i64>| millis.map(Timestamp::from_millis);
    let state = reason.map_or(EndpointState::Active, |reason| EndpointState::Disabled {
        // A reason of a newer version: it is disabled all the same.
        reason: DisableReason::parse(&reason).unwrap_or(DisableReason::Operator),
        at: at(disabled_at).unwrap_or_default(),
    });
    EndpointRow {
        id,
        partner,
        settings: StoredSettings { json, headers },
        secret,
        previous_secret: previous.zip(at(previous_until)),
        state,
        failing_since: at(failing),
        proven_at: at(proven),
        version: tuple.11,
        created_at: Timestamp::from_millis(tuple.12),
    }
}

impl Database {
    /// Adds an endpoint; its version, or `None` where there is no such partner.
    ///
    /// # Errors
    /// [`LedgerError::Taken`] where the id is in use, [`LedgerError::Unavailable`].
    pub async fn add_endpoint(&self, endpoint: &NewEndpoint, now: Timestamp) -> Result<Option<i64>> {
        let added: Option<Option<i64>> = change!(self, |transaction, version| {
            let known: Option<(String,)> = sqlx::query_as("SELECT id FROM partner WHERE id = $1")
                .bind(&endpoint.partner)
                .fetch_optional(&mut *transaction)
                .await?;
            if known.is_none() {
                (false, Some(None))
            } else {
                let inserted = sqlx::query(
                    "INSERT INTO endpoint (id, partner, settings, headers, secret, version, created_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
                )
                .bind(&endpoint.id)
                .bind(&endpoint.partner)
                .bind(&endpoint.settings.json)
                .bind(&endpoint.settings.headers)
                .bind(&endpoint.secret)
                .bind(version)
                .bind(now.as_millis())
                .execute(&mut *transaction)
                .await?
                .rows_affected();
                (inserted == 1, (inserted == 1).then_some(Some(version)))
            }
        });
        added.ok_or_else(|| LedgerError::Taken(format!("there is an endpoint `{}` already", endpoint.id)))
    }

    /// The endpoint of this id.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn endpoint(&self, id: &str) -> Result<Option<EndpointRow>> {
        let found: Option<Tuple> = on!(self, reads, pool => {
            sqlx::query_as(select!("WHERE id = $1")).bind(id).fetch_optional(pool).await?
        });
        Ok(found.map(row))
    }

    /// A partner's endpoints by id, from the one after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn endpoints_of(
        &self,
        partner: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EndpointRow>> {
        let found: Vec<Tuple> = on!(self, reads, pool => {
            sqlx::query_as(select!("WHERE partner = $1 AND id > $2 ORDER BY id LIMIT $3"))
                .bind(partner)
                .bind(after.unwrap_or_default())
                .bind(i64::from(limit))
                .fetch_all(pool)
                .await?
        });
        Ok(found.into_iter().map(row).collect())
    }

    /// Every endpoint there is, in one reading.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn all_endpoints(&self) -> Result<Vec<EndpointRow>> {
        let found: Vec<Tuple> = on!(self, hot_reads, pool => {
            sqlx::query_as(select!("ORDER BY id")).fetch_all(pool).await?
        });
        Ok(found.into_iter().map(row).collect())
    }

    /// Every endpoint that has changed after `version`, which is another's or a revision. What sending finds out is no
    /// change: see [`Self::endpoint_marks`].
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn endpoints_since(&self, version: i64) -> Result<Vec<EndpointRow>> {
        let found: Vec<Tuple> = on!(self, hot_reads, pool => {
            sqlx::query_as(select!("WHERE version > $1 ORDER BY id")).bind(version).fetch_all(pool).await?
        });
        Ok(found.into_iter().map(row).collect())
    }

    /// The mark of every endpoint there is.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn endpoint_marks(&self) -> Result<Vec<EndpointMark>> {
        let found: Vec<(String, i64, Option<i64>, Option<i64>)> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT id, version, failing_since, proven_at FROM endpoint").fetch_all(pool).await?
        });
        let at = |millis: Option<i64>| millis.map(Timestamp::from_millis);
        let mark = |(id, version, failing, proven)| EndpointMark {
            id,
            version,
            failing_since: at(failing),
            proven_at: at(proven),
        };
        Ok(found.into_iter().map(mark).collect())
    }

    /// Changes an endpoint's settings. With `if_match`, only where it has that version.
    ///
    /// Never [`Put::Created`]: what is not there is a [`Put::VersionConflict`].
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn update_endpoint(
        &self,
        id: &str,
        settings: &StoredSettings,
        if_match: Option<i64>,
    ) -> Result<Put> {
        Ok(change!(self, |transaction, version| {
            let changed = sqlx::query(
                "UPDATE endpoint SET settings = $2, headers = $3, version = $4
                 WHERE id = $1 AND ($5 = 0 OR version = $5)",
            )
            .bind(id)
            .bind(&settings.json)
            .bind(&settings.headers)
            .bind(version)
            .bind(if_match.unwrap_or(0))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            (changed == 1, if changed == 1 { Put::Updated(version) } else { Put::VersionConflict })
        }))
    }

    /// Deletes an endpoint; whether there was one. With `if_match`, only where it has that version.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn delete_endpoint(&self, id: &str, if_match: Option<i64>) -> Result<bool> {
        Ok(change!(self, |transaction, _version| {
            let deleted = sqlx::query("DELETE FROM endpoint WHERE id = $1 AND ($2 = 0 OR version = $2)")
                .bind(id)
                .bind(if_match.unwrap_or(0))
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            (deleted == 1, deleted == 1)
        }))
    }

    /// Gives an endpoint a new secret; the one it had signs too until `previous_until`. Its new version, or `None`
    /// where there is no such endpoint.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn rotate_secret(
        &self,
        id: &str,
        new_sealed: &str,
        previous_until: Timestamp,
    ) -> Result<Option<i64>> {
        Ok(change!(self, |transaction, version| {
            let changed = sqlx::query(
                "UPDATE endpoint SET previous_secret = secret, previous_until = $3, secret = $2, version = $4
                 WHERE id = $1",
            )
            .bind(id)
            .bind(new_sealed)
            .bind(previous_until.as_millis())
            .bind(version)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            (changed == 1, (changed == 1).then_some(version))
        }))
    }

    /// Disables an endpoint, or enables it (`None`), which also forgets its failures; whether that changed anything.
    /// What is disabled already keeps its first reason.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn set_endpoint_state(
        &self,
        id: &str,
        disabled: Option<(DisableReason, Timestamp)>,
    ) -> Result<bool> {
        let reason = disabled.map(|(reason, _)| reason.as_str());
        let at = disabled.map(|(_, at)| at.as_millis());
        Ok(change!(self, |transaction, version| {
            let changed = sqlx::query(
                "UPDATE endpoint SET disabled_reason = $2, disabled_at = $3, version = $4,
                     failing_since = CASE WHEN $2 IS NULL THEN NULL ELSE failing_since END
                 WHERE id = $1 AND (disabled_reason IS NULL) <> ($2 IS NULL)",
            )
            .bind(id)
            .bind(reason)
            .bind(at)
            .bind(version)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            (changed == 1, changed == 1)
        }))
    }

    /// Notes the first failure after a success, or (`None`) that it succeeds; whether that changed anything. A
    /// failure that is noted already keeps its time.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn set_failing_since(&self, id: &str, since: Option<Timestamp>) -> Result<bool> {
        // No revision: it is no setting, and a flapping endpoint must not make every node read everything again.
        on!(self, hot_writes, pool => {
            let changed = sqlx::query(
                "UPDATE endpoint SET failing_since = $2
                 WHERE id = $1 AND (failing_since IS NULL) <> ($2 IS NULL)",
            )
            .bind(id)
            .bind(since.map(Timestamp::as_millis))
            .execute(pool)
            .await?
            .rows_affected();
            Ok(changed == 1)
        })
    }

    /// Notes that an endpoint answered its ownership challenge; whether that changed anything.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn set_proven(&self, id: &str, at: Timestamp) -> Result<bool> {
        Ok(change!(self, |transaction, _version| {
            let changed =
                sqlx::query("UPDATE endpoint SET proven_at = $2 WHERE id = $1 AND proven_at IS NULL")
                    .bind(id)
                    .bind(at.as_millis())
                    .execute(&mut *transaction)
                    .await?
                    .rows_affected();
            (changed == 1, changed == 1)
        }))
    }

    /// How many deliveries wait for each destination that any wait for.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn waiting_by_destination(&self) -> Result<Vec<(String, i64)>> {
        let sql = format!(
            "SELECT lane.destination, CAST(SUM(waiting.n) AS BIGINT)
             FROM {} AS waiting JOIN lane ON lane.id = waiting.lane
             GROUP BY lane.destination ORDER BY lane.destination",
            self.waiting_by_lane()
        );
        on!(self, chore_reads, pool => Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await?))
    }

    /// Every sealed text there is: for a new master key.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn sealed_texts(&self) -> Result<Vec<Sealed>> {
        let mut found = Vec::new();
        for endpoint in self.all_endpoints().await? {
            let texts = [
                (SealedColumn::Secret, Some(endpoint.secret)),
                (SealedColumn::PreviousSecret, endpoint.previous_secret.map(|(text, _)| text)),
                (SealedColumn::Url, endpoint.settings.sealed_url()),
                (SealedColumn::Headers, endpoint.settings.headers),
            ];
            let of_one = texts.into_iter().filter_map(|(column, text)| {
                text.map(|text| Sealed { endpoint: endpoint.id.clone(), column, text })
            });
            found.extend(of_one);
        }
        Ok(found)
    }

    /// Puts `new` where `old` still stands; whether it did. The version stays: what is sealed is the same.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn reseal(&self, old: &Sealed, new: &str) -> Result<bool> {
        let text = match old.column {
            SealedColumn::Secret => "UPDATE endpoint SET secret = $2 WHERE id = $1 AND secret = $3",
            SealedColumn::PreviousSecret => {
                "UPDATE endpoint SET previous_secret = $2 WHERE id = $1 AND previous_secret = $3"
            }
            SealedColumn::Headers => "UPDATE endpoint SET headers = $2 WHERE id = $1 AND headers = $3",
            SealedColumn::Url => {
                "UPDATE endpoint SET settings = REPLACE(settings, $3, $2)
                 WHERE id = $1 AND REPLACE(settings, $3, $2) <> settings"
            }
        };
        Ok(change!(self, |transaction, _version| {
            let changed = sqlx::query(text)
                .bind(&old.endpoint)
                .bind(new)
                .bind(&old.text)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            (changed == 1, changed == 1)
        }))
    }
}
