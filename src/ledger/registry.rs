//! Tenants and API keys in the ledger, in the words both databases share.

use super::sql::{Database, on};
use super::{LedgerError, Result};
use crate::domain::clock::Timestamp;
use crate::domain::partner::RateLimit;
use crate::domain::tenant::{DEFAULT_WEIGHT, Destination, Route};
use crate::retention::TenantRetention;

/// A tenant of which something was set.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantRow {
    /// The tenant.
    pub id: String,
    /// Where its events go; the default route where `None`.
    pub route: Option<Route>,
    /// How the payload is reshaped on its way to Svix, as JSON text.
    pub transform: Option<String>,
    /// Its share beside others at the same destination.
    pub weight: u32,
    /// Events that it may put in on one node; the configured default where `None`.
    pub ingest_limit: Option<RateLimit>,
    /// How long what its events leave behind is kept, where that is not as configured.
    pub retention: TenantRetention,
}

impl TenantRow {
    /// A tenant of which nothing but its route is set.
    pub fn new(id: impl Into<String>, route: Option<Route>) -> Self {
        Self {
            id: id.into(),
            route,
            transform: None,
            weight: DEFAULT_WEIGHT,
            ingest_limit: None,
            retention: TenantRetention::default(),
        }
    }
}

/// An API key as the server checks it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// What is told of it.
    pub info: KeyInfo,
    /// SHA-256 of its secret part.
    pub hash: Vec<u8>,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct KeyInfo {
    /// The public part of the key.
    pub id: String,
    /// What it is for, in the words of whoever made it.
    pub name: String,
    /// `ingest`, `read`, `admin`.
    pub scopes: Vec<String>,
    /// The one tenant it is good for; all where absent.
    pub tenant: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: i64,
    /// Milliseconds since the Unix epoch; absent while it is good.
    pub revoked_at: Option<i64>,
}

type TenantTuple =
    (String, Option<String>, Option<String>, Option<String>, Option<i64>, Option<String>, Option<String>);
type KeyRow = (String, String, Vec<u8>, String, Option<String>, i64, Option<i64>);

/// Routes and limits lie apart; a tenant may have either.
macro_rules! tenants {
    ($where:literal) => {
        concat!(
            "SELECT COALESCE(tenant.id, tenant_limit.tenant), route, svix_app, transform, weight, ingest_limit, retention
             FROM tenant FULL JOIN tenant_limit ON tenant_limit.tenant = tenant.id ",
            $where
        )
    };
}

fn tenant((id, route, app, transform, weight, limit, retention): TenantTuple) -> TenantRow {
    let route = route.map(|route| match (route.as_str(), app) {
        ("svix", Some(app)) => Route::Svix { app },
        _ => Route::Direct,
    });
    let weight = weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(DEFAULT_WEIGHT);
    // Checked when it was saved; what a newer version has written is passed over.
    let ingest_limit = limit.and_then(|limit| serde_json::from_str(&limit).ok());
    let retention = retention.and_then(|retention| serde_json::from_str(&retention).ok());
    let retention = retention.unwrap_or_default();
    TenantRow { id, route, transform, weight, ingest_limit, retention }
}

impl Database {
    /// Tenants of which something was set.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn tenants(&self) -> Result<Vec<TenantRow>> {
        let rows: Vec<TenantTuple> = on!(self, hot_reads, pool => {
            sqlx::query_as(tenants!("")).fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(tenant).collect())
    }

    /// The tenant, where something was set of it.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn tenant(&self, id: &str) -> Result<Option<TenantRow>> {
        let row: Option<TenantTuple> = on!(self, reads, pool => {
            sqlx::query_as(tenants!("WHERE tenant.id = $1 OR tenant_limit.tenant = $1"))
                .bind(id)
                .fetch_optional(pool)
                .await?
        });
        Ok(row.map(tenant))
    }

    /// Sets what a tenant is, whole; whether it is new here.
    ///
    /// # Errors
    /// [`LedgerError::Taken`] where the Svix application belongs to another tenant.
    pub async fn put_tenant(&self, tenant: &TenantRow) -> Result<bool> {
        let route = tenant.route.as_ref().map(|route| match route {
            Route::Svix { app } => ("svix", Some(app.as_str())),
            Route::Direct => ("direct", None),
        });
        let app = route.and_then(|(_, app)| app);
        if let Some(app) = app {
            let destination = Destination::Svix { app: app.to_owned() }.to_string();
            let others = self.lane_tenants(&destination).await?;
            if let Some(other) = others.iter().find(|other| **other != tenant.id) {
                return Err(taken(app, other));
            }
        }
        let limit = tenant.ingest_limit.as_ref().map(serde_json::to_string).transpose();
        let limit = limit.map_err(|error| LedgerError::Refused(error.to_string()))?;
        let retention = (tenant.retention != TenantRetention::default())
            .then(|| serde_json::to_string(&tenant.retention))
            .transpose()
            .map_err(|error| LedgerError::Refused(error.to_string()))?;
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            // First of all: it puts changes in a row, one after another.
            sqlx::query("UPDATE revision SET number = number + 1").execute(&mut *transaction).await?;
            let gone = sqlx::query("DELETE FROM tenant WHERE id = $1")
                .bind(&tenant.id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            let unlimited = sqlx::query("DELETE FROM tenant_limit WHERE tenant = $1")
                .bind(&tenant.id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            sqlx::query("INSERT INTO tenant_limit (tenant, weight, ingest_limit, retention) VALUES ($1, $2, $3, $4)")
                .bind(&tenant.id)
                .bind(i64::from(tenant.weight))
                .bind(&limit)
                .bind(&retention)
                .execute(&mut *transaction)
                .await?;
            if let Some((route, app)) = route {
                let written = sqlx::query(
                    "INSERT INTO tenant (id, route, svix_app, transform) VALUES ($1, $2, $3, $4)",
                )
                .bind(&tenant.id)
                .bind(route)
                .bind(app)
                .bind(&tenant.transform)
                .execute(&mut *transaction)
                .await;
                if let Err(error) = written {
                    let unique =
                        error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
                    return Err(if unique {
                        taken(app.unwrap_or_default(), "another tenant")
                    } else {
                        error.into()
                    });
                }
            }
            transaction.commit().await?;
            Ok(gone + unlimited == 0)
        })
    }

    /// Every API key that is good.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn api_keys(&self) -> Result<Vec<ApiKey>> {
        Ok(self.all_api_keys().await?.into_iter().filter(|key| key.info.revoked_at.is_none()).collect())
    }

    /// Every API key there ever was, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn all_api_keys(&self) -> Result<Vec<ApiKey>> {
        let rows: Vec<KeyRow> = on!(self, hot_reads, pool => {
            sqlx::query_as(
                "SELECT id, name, hash, scopes, tenant, created_at, revoked_at FROM api_key ORDER BY created_at, id",
            )
            .fetch_all(pool)
            .await?
        });
        let key = |(id, name, hash, scopes, tenant, created_at, revoked_at): KeyRow| ApiKey {
            info: KeyInfo {
                id,
                name,
                scopes: scopes.split(',').map(str::to_owned).collect(),
                tenant,
                created_at,
                revoked_at,
            },
            hash,
        };
        Ok(rows.into_iter().map(key).collect())
    }

    /// Adds an API key.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn add_api_key(&self, key: &ApiKey) -> Result<()> {
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query("UPDATE revision SET number = number + 1").execute(&mut *transaction).await?;
            sqlx::query(
                "INSERT INTO api_key (id, name, hash, scopes, tenant, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&key.info.id)
            .bind(&key.info.name)
            .bind(&key.hash)
            .bind(key.info.scopes.join(","))
            .bind(&key.info.tenant)
            .bind(key.info.created_at)
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(())
        })
    }

    /// Revokes an API key; whether there was one that was good.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn revoke_api_key(&self, id: &str, now: Timestamp) -> Result<bool> {
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query("UPDATE revision SET number = number + 1").execute(&mut *transaction).await?;
            let changed = sqlx::query("UPDATE api_key SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
                .bind(id)
                .bind(now.as_millis())
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            transaction.commit().await?;
            Ok(changed == 1)
        })
    }
}

fn taken(app: &str, by: &str) -> LedgerError {
    LedgerError::Taken(format!("the Svix application `{app}` belongs to {by}"))
}
