//! Partners' rates, kept over all nodes and restarts: tokens are taken out of a budget that lies in the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::silence::in_time;
use super::sql::{Database, on};
use super::{Ledger, Result};
use crate::domain::clock::Timestamp;
use crate::domain::partner::RateLimit;
use crate::domain::scheduler::{TokenGrant, TokenWish};
use crate::domain::token_budget::{Budget, Pace};

/// partner, millionths, at
type Row = (String, i64, i64);

/// What the budgets held, what they hold now.
struct Reserved {
    grants: Vec<TokenGrant>,
    /// By partner: rows are always locked in this order, or two nodes could wait for each other.
    budgets: BTreeMap<Arc<str>, Budget>,
}

/// Takes tokens out of the budgets that were read; a partner without a row has a full one.
fn reserve(wishes: &[TokenWish], rows: Vec<Row>, now: Timestamp) -> Reserved {
    let known = rows.into_iter().map(|(partner, millionths, at)| {
        (Arc::from(partner), Budget { millionths, at: Timestamp::from_millis(at) })
    });
    let mut budgets: BTreeMap<Arc<str>, Budget> = known.collect();
    let grant = |wish: &TokenWish| {
        let pace = Pace::of(wish.limit);
        let budget = budgets.entry(wish.partner.clone()).or_insert_with(|| Budget::full(&pace, now));
        let count = budget.reserve(&pace, wish.count, now);
        TokenGrant { wish: wish.clone(), count, until_next: budget.until_next(&pace) }
    };
    let grants = wishes.iter().map(grant).collect();
    Reserved { grants, budgets }
}

impl Ledger {
    /// How long until the next token of a partner's rate; `None` where there is one now. Takes nothing.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn until_next_token(&self, partner: &str, limit: RateLimit) -> Result<Option<Duration>> {
        let now = self.now().await?;
        let row: Option<(i64, i64)> = on!(&self.shared.database, reads, pool => {
            sqlx::query_as("SELECT millionths, at FROM partner_tokens WHERE partner = $1")
                .bind(partner)
                .fetch_optional(pool)
                .await?
        });
        let Some((millionths, at)) = row else { return Ok(None) };
        let pace = Pace::of(limit);
        let mut budget = Budget { millionths, at: Timestamp::from_millis(at) };
        // A copy: what is taken from it is taken from nobody.
        let there_is_one = budget.reserve(&pace, 1, now) > 0;
        Ok((!there_is_one).then(|| budget.until_next(&pace)))
    }

    /// Reserves tokens of partners' rates: one answer for each wish, in order. Durable before it returns, so that a
    /// restart does not spend them again.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: some may have been reserved all the same, and are forfeited;
    /// [`super::LedgerError::NumberLost`]: none are.
    pub async fn reserve_tokens(&self, wishes: &[TokenWish]) -> Result<Vec<TokenGrant>> {
        in_time(self.take_tokens(wishes)).await
    }

    async fn take_tokens(&self, wishes: &[TokenWish]) -> Result<Vec<TokenGrant>> {
        let mut partners: Vec<String> = wishes.iter().map(|wish| wish.partner.to_string()).collect();
        partners.sort_unstable();
        partners.dedup();
        match &self.shared.database {
            Database::Sqlite { writes, .. } => {
                let mut transaction = writes.begin_with("BEGIN IMMEDIATE").await?;
                let mut rows = Vec::with_capacity(partners.len());
                for partner in &partners {
                    let row = sqlx::query_as(
                        "SELECT partner, millionths, at FROM partner_tokens WHERE partner = $1",
                    );
                    rows.extend(row.bind(partner).fetch_optional(&mut *transaction).await?);
                }
                let Reserved { grants, budgets } = reserve(wishes, rows, self.shared.clock.now());
                for (partner, budget) in budgets {
                    sqlx::query(
                        "INSERT INTO partner_tokens (partner, millionths, at) VALUES ($1, $2, $3)
                         ON CONFLICT (partner) DO UPDATE SET millionths = excluded.millionths, at = excluded.at",
                    )
                    .bind(&*partner)
                    .bind(budget.millionths)
                    .bind(budget.at.as_millis())
                    .execute(&mut *transaction)
                    .await?;
                }
                transaction.commit().await?;
                Ok(grants)
            }
            Database::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                let mut rows = read_locked(&mut transaction, &partners).await?;
                if rows.len() < partners.len() {
                    // Nothing but a row can be locked. A full one: it holds what no row means. Its time lies in the
                    // past, so that the first reservation finds it filled to its capacity.
                    sqlx::query(
                        "INSERT INTO partner_tokens (partner, millionths, at)
                         SELECT partner, 0, 0 FROM UNNEST($1::text[]) AS t (partner)
                         ON CONFLICT (partner) DO NOTHING",
                    )
                    .bind(&partners)
                    .execute(&mut *transaction)
                    .await?;
                    rows = read_locked(&mut transaction, &partners).await?;
                }
                // After the locks: no node's clock, and never older than what another node has written.
                let incarnation = self.shared.membership.current();
                let (now, holds_number): (i64, bool) = sqlx::query_as(
                    "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint,
                            EXISTS (SELECT 1 FROM node WHERE number = $1 AND epoch = $2)",
                )
                .bind(incarnation.node)
                .bind(incarnation.epoch_text())
                .fetch_one(&mut *transaction)
                .await?;
                if !holds_number {
                    return Err(self.shared.membership.lose(incarnation));
                }
                let Reserved { grants, budgets } = reserve(wishes, rows, Timestamp::from_millis(now));
                sqlx::query(
                    "UPDATE partner_tokens SET millionths = input.millionths, at = input.at
                     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) AS input (partner, millionths, at)
                     WHERE partner_tokens.partner = input.partner",
                )
                .bind(budgets.keys().map(|partner| &**partner).collect::<Vec<_>>())
                .bind(budgets.values().map(|budget| budget.millionths).collect::<Vec<_>>())
                .bind(budgets.values().map(|budget| budget.at.as_millis()).collect::<Vec<_>>())
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
                Ok(grants)
            }
        }
    }
}

async fn read_locked(connection: &mut sqlx::PgConnection, partners: &[String]) -> Result<Vec<Row>> {
    Ok(sqlx::query_as(
        "SELECT partner, millionths, at FROM partner_tokens WHERE partner = ANY($1) ORDER BY partner FOR UPDATE",
    )
    .bind(partners)
    .fetch_all(connection)
    .await?)
}
