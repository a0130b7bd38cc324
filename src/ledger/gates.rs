//! Closed gates, shared by all nodes and outliving each of them.
//!
//! Their times are on the ledger's clock (Postgres: the server's; SQLite: this process's), and go in and out as
//! durations: what the nodes' own clocks say does not matter.

use std::time::Duration;

use super::sql::{Database, on};
use super::{Ledger, Result};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::gate::CloseReason;

/// A gate that some node has closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedGate {
    /// Which gate, as [`crate::domain::scheduler::GateId::as_str`] has it.
    pub gate: String,
    /// Why, as [`CloseReason::as_str`] has it.
    pub reason: String,
    /// How long it stays closed from now on.
    pub remaining: Duration,
    /// When that ends, on the ledger's clock: only to tell one closing from the next.
    pub until: Timestamp,
    /// Whether this node has written it, under its present epoch.
    pub own: bool,
}

impl Ledger {
    /// Tells every node that a gate is closed for `wait` from now on, and remembers it for the next start. Where another
    /// node has closed it for longer, that stays.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn save_gate(&self, gate: &str, reason: CloseReason, wait: Duration) -> Result<()> {
        let shared = &self.shared;
        let until = shared.database.now(&*shared.clock).await? + wait;
        shared.database.save_gate(gate, reason, until, self.epoch()).await?;
        self.tell_gates();
        Ok(())
    }

    /// Tells every node that a gate which failures or refused credentials had closed lets requests through again. A
    /// throttle is not taken back: whoever asked for it meant all nodes.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn gate_opened(&self, gate: &str) -> Result<()> {
        let shared = &self.shared;
        let now = shared.database.now(&*shared.clock).await?;
        if shared.database.forget_gate(gate, now).await? {
            self.tell_gates();
        }
        Ok(())
    }

    /// Gates that are closed now, whoever closed them.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn closed_gates(&self) -> Result<Vec<ClosedGate>> {
        let shared = &self.shared;
        let now = shared.database.now(&*shared.clock).await?;
        let rows = shared.database.closed_gates(now).await?;
        let epoch = self.epoch();
        let gate = |(gate, reason, until, by): (String, String, i64, i64)| {
            let until = Timestamp::from_millis(until);
            ClosedGate { gate, reason, remaining: until.since(now), until, own: by == epoch }
        };
        Ok(rows.into_iter().map(gate).collect())
    }

    /// The ledger's clock.
    pub(super) async fn now(&self) -> Result<Timestamp> {
        self.shared.database.now(&*self.shared.clock).await
    }

    fn tell_gates(&self) {
        if let Some(notices) = &self.shared.notices {
            notices.bell().gates();
        }
    }
}

impl Database {
    /// The ledger's clock.
    pub(super) async fn now(&self, clock: &dyn Clock) -> Result<Timestamp> {
        match self {
            Self::Sqlite { .. } => Ok(clock.now()),
            Self::Postgres(pool) => {
                let millis = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint";
                let (now,): (i64,) = sqlx::query_as(millis).fetch_one(pool).await?;
                Ok(Timestamp::from_millis(now))
            }
        }
    }

    async fn save_gate(&self, gate: &str, reason: CloseReason, until: Timestamp, epoch: i64) -> Result<()> {
        on!(self, writes, pool => {
            sqlx::query(
                "INSERT INTO gate (id, reason, closed_until, node) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, closed_until = excluded.closed_until,
                                                node = excluded.node
                     WHERE gate.node = excluded.node OR gate.closed_until < excluded.closed_until",
            )
            .bind(gate)
            .bind(reason.as_str())
            .bind(until.as_millis())
            .bind(epoch)
            .execute(pool)
            .await?;
            Ok(())
        })
    }

    /// Whether there was something to forget.
    async fn forget_gate(&self, gate: &str, now: Timestamp) -> Result<bool> {
        on!(self, writes, pool => {
            let forgotten = sqlx::query("DELETE FROM gate WHERE id = $1 AND (reason <> $2 OR closed_until <= $3)")
                .bind(gate)
                .bind(CloseReason::Throttled.as_str())
                .bind(now.as_millis())
                .execute(pool)
                .await?;
            Ok(forgotten.rows_affected() > 0)
        })
    }

    async fn closed_gates(&self, now: Timestamp) -> Result<Vec<(String, String, i64, i64)>> {
        on!(self, reads, pool => {
            Ok(sqlx::query_as("SELECT id, reason, closed_until, node FROM gate WHERE closed_until > $1")
                .bind(now.as_millis())
                .fetch_all(pool)
                .await?)
        })
    }
}
