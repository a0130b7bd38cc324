//! Tenants and API keys in the ledger, in the words both databases share.

use super::sql::{Database, on};
use super::{LedgerError, Result};
use crate::domain::clock::Timestamp;
use crate::domain::tenant::{Destination, Route};

/// A tenant that has a route of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    /// The tenant.
    pub id: String,
    /// Where its events go.
    pub route: Route,
    /// How the payload is reshaped on its way to Svix, as JSON text.
    pub transform: Option<String>,
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

type TenantTuple = (String, String, Option<String>, Option<String>);
type KeyRow = (String, String, Vec<u8>, String, Option<String>, i64, Option<i64>);

fn tenant((id, route, app, transform): TenantTuple) -> TenantRow {
    let route = match (route.as_str(), app) {
        ("svix", Some(app)) => Route::Svix { app },
        _ => Route::Direct,
    };
    TenantRow { id, route, transform }
}

impl Database {
    /// Tenants with a route of their own.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn tenants(&self) -> Result<Vec<TenantRow>> {
        let rows: Vec<TenantTuple> = on!(self, reads, pool => {
            sqlx::query_as("SELECT id, route, svix_app, transform FROM tenant").fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(tenant).collect())
    }

    /// The tenant, where it has a route of its own.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn tenant(&self, id: &str) -> Result<Option<TenantRow>> {
        let row: Option<TenantTuple> = on!(self, reads, pool => {
            sqlx::query_as("SELECT id, route, svix_app, transform FROM tenant WHERE id = $1")
                .bind(id)
                .fetch_optional(pool)
                .await?
        });
        Ok(row.map(tenant))
    }

    /// Sets a tenant's route and transform; whether the tenant is new here.
    ///
    /// # Errors
    /// [`LedgerError::Taken`] where the Svix application belongs to another tenant.
    pub async fn put_tenant(&self, tenant: &TenantRow) -> Result<bool> {
        let (route, app) = match &tenant.route {
            Route::Svix { app } => ("svix", Some(app.as_str())),
            Route::Direct => ("direct", None),
        };
        if let Some(app) = app {
            let destination = Destination::Svix { app: app.to_owned() }.to_string();
            let others = self.lane_tenants(&destination).await?;
            if let Some(other) = others.iter().find(|other| **other != tenant.id) {
                return Err(taken(app, other));
            }
        }
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query("UPDATE revision SET number = number + 1").execute(&mut *transaction).await?;
            let known: Option<(String,)> = sqlx::query_as("SELECT id FROM tenant WHERE id = $1")
                .bind(&tenant.id)
                .fetch_optional(&mut *transaction)
                .await?;
            let written = sqlx::query(
                "INSERT INTO tenant (id, route, svix_app, transform) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (id) DO UPDATE SET route = excluded.route, svix_app = excluded.svix_app,
                     transform = excluded.transform",
            )
            .bind(&tenant.id)
            .bind(route)
            .bind(app)
            .bind(&tenant.transform)
            .execute(&mut *transaction)
            .await;
            if let Err(error) = written {
                let unique = error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
                return Err(if unique { taken(app.unwrap_or_default(), "another tenant") } else { error.into() });
            }
            transaction.commit().await?;
            Ok(known.is_none())
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
        let rows: Vec<KeyRow> = on!(self, reads, pool => {
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
