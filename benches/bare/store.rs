//! The ledger of the bare path: the shapes of Posthaste's hot tables, and one transaction for what waits.

use std::path::PathBuf;
use std::str::FromStr as _;

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Sqlite};

use crate::relay::{Event, Settled};

/// The one lane of all deliveries.
const LANE: i64 = 1;
/// Pages in the WAL at which a commit checkpoints by itself, as with Posthaste.
const AUTOCHECKPOINT_PAGES: u32 = 16_000;
/// Rows in one statement: large chunks of a few sizes, and what is left in one, so that texts are known after a while.
const CHUNKS: [usize; 2] = [256, 64];
const STATEMENTS: usize = 512;

const SQLITE_TABLES: &str = "
    CREATE TABLE event (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
        type TEXT NOT NULL, received_at INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
    CREATE TABLE event_key (tenant TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL, event INTEGER NOT NULL,
        PRIMARY KEY (tenant, source, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE queue (lane INTEGER NOT NULL, due_at INTEGER NOT NULL, event INTEGER NOT NULL,
        PRIMARY KEY (lane, due_at, event)) STRICT, WITHOUT ROWID;
    CREATE TABLE outcome (event INTEGER NOT NULL, lane INTEGER NOT NULL, at INTEGER NOT NULL,
        latency_ms INTEGER NOT NULL, status INTEGER NOT NULL, PRIMARY KEY (event, lane)) STRICT, WITHOUT ROWID;";
const POSTGRES_TABLES: &str = r#"
    CREATE TABLE event (seq BIGINT PRIMARY KEY, tenant TEXT NOT NULL, source TEXT NOT NULL, id TEXT NOT NULL,
        type TEXT NOT NULL, received_at BIGINT NOT NULL, body BYTEA NOT NULL);
    CREATE TABLE event_key (tenant TEXT COLLATE "C" NOT NULL, source TEXT COLLATE "C" NOT NULL,
        id TEXT COLLATE "C" NOT NULL, event BIGINT NOT NULL, PRIMARY KEY (tenant, source, id));
    CREATE TABLE queue (lane BIGINT NOT NULL, due_at BIGINT NOT NULL, event BIGINT NOT NULL,
        PRIMARY KEY (lane, due_at, event)) WITH (fillfactor = 50);
    CREATE TABLE outcome (event BIGINT NOT NULL, lane BIGINT NOT NULL, at BIGINT NOT NULL,
        latency_ms BIGINT NOT NULL, status BIGINT NOT NULL, PRIMARY KEY (event, lane));"#;

/// Where the ledger is.
#[derive(Debug)]
pub struct Place {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// Of Postgres.
    pub schema: String,
    /// Of SQLite.
    pub cache_kib: u32,
}

impl Place {
    /// A new place.
    pub fn new(database: Option<&str>, cache_kib: u32) -> anyhow::Result<Self> {
        let name = format!("posthaste_bare_{}", std::process::id());
        let url = match database {
            Some(url) => url.to_owned(),
            None => format!("sqlite:{}/{name}.db", env!("CARGO_TARGET_TMPDIR")),
        };
        let place = Self { url, schema: name, cache_kib };
        if let Some(path) = place.sqlite_path() {
            anyhow::ensure!(!path.exists(), "{} is there already", path.display());
        }
        Ok(place)
    }

    /// The file; `None` for Postgres.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        self.url.strip_prefix("sqlite:").map(PathBuf::from)
    }

    /// How its file is opened.
    pub fn sqlite_options(&self) -> Option<SqliteConnectOptions> {
        let options = SqliteConnectOptions::new()
            .filename(self.sqlite_path()?)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", AUTOCHECKPOINT_PAGES.to_string())
            .pragma("temp_store", "MEMORY")
            .pragma("cache_size", format!("-{}", self.cache_kib))
            .statement_cache_capacity(STATEMENTS);
        Some(options)
    }

    /// A connection to its schema.
    pub async fn postgres(&self) -> anyhow::Result<PgConnection> {
        let options =
            PgConnectOptions::from_str(&self.url).context("neither `sqlite:PATH` nor `postgres://…`")?;
        let options = options.options([("search_path", &self.schema)]);
        PgConnection::connect_with(&options).await.context("Postgres does not answer")
    }

    /// Makes the tables.
    pub async fn create(&self) -> anyhow::Result<()> {
        match self.sqlite_options() {
            Some(options) => {
                let mut connection = SqliteConnection::connect_with(&options).await?;
                sqlx::raw_sql(SQLITE_TABLES).execute(&mut connection).await?;
                connection.close().await?;
            }
            None => {
                let mut connection = self.postgres().await?;
                let schema = format!("CREATE SCHEMA {}", self.schema);
                sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut connection).await?;
                sqlx::raw_sql(POSTGRES_TABLES).execute(&mut connection).await?;
            }
        }
        Ok(())
    }

    /// Leaves nothing behind.
    pub async fn remove(&self) -> anyhow::Result<()> {
        match self.sqlite_path() {
            Some(path) => {
                for end in ["", "-wal", "-shm"] {
                    let mut file = path.clone().into_os_string();
                    file.push(end);
                    // Not every run leaves all three.
                    let _ = std::fs::remove_file(file);
                }
            }
            None => {
                let schema = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
                sqlx::raw_sql(AssertSqlSafe(schema)).execute(&mut self.postgres().await?).await?;
            }
        }
        Ok(())
    }
}

/// The writer's connection.
pub enum Store {
    /// To a file.
    Sqlite(SqliteConnection),
    /// To a server.
    Postgres(PgConnection),
}

impl Store {
    /// Opens the tables at a place.
    pub async fn open(place: &Place) -> anyhow::Result<Self> {
        Ok(match place.sqlite_options() {
            Some(options) => Self::Sqlite(SqliteConnection::connect_with(&options).await?),
            None => Self::Postgres(place.postgres().await?),
        })
    }

    /// Writes events and settlements in one transaction; durable once it returns.
    pub async fn commit(&mut self, events: &[Event], settled: &[Settled]) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(connection) => {
                let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                insert_sqlite(&mut transaction, events).await?;
                settle_sqlite(&mut transaction, settled).await?;
                transaction.commit().await
            }
            Self::Postgres(connection) => {
                let mut transaction = connection.begin().await?;
                insert_postgres(&mut transaction, events).await?;
                settle_postgres(&mut transaction, settled).await?;
                transaction.commit().await
            }
        }
    }
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Runs `head VALUES … tail` over all rows, a chunk at a time.
async fn write_rows<T>(
    connection: &mut SqliteConnection,
    (head, columns, tail): (&str, usize, &str),
    mut rows: &[T],
    bind: impl for<'q> Fn(Query<'q>, &T) -> Query<'q>,
) -> sqlx::Result<()> {
    while !rows.is_empty() {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len()).unwrap_or(rows.len());
        let (chunk, rest) = rows.split_at(size);
        let row = format!("({})", vec!["?"; columns].join(","));
        let sql = format!("{head} VALUES {}{tail}", vec![row; size].join(","));
        chunk.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind).execute(&mut *connection).await?;
        rows = rest;
    }
    Ok(())
}

async fn insert_sqlite(connection: &mut SqliteConnection, events: &[Event]) -> sqlx::Result<()> {
    let keys = ("INSERT INTO event_key (tenant, source, id, event)", 4, "");
    let mut by_key: Vec<_> = events.iter().collect();
    by_key.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    write_rows(connection, keys, &by_key, |query, event| {
        query.bind(&*event.tenant).bind(&*event.source).bind(&*event.id).bind(event.seq)
    })
    .await?;
    let rows = ("INSERT INTO event (seq, tenant, source, id, type, received_at, body)", 7, "");
    write_rows(connection, rows, events, |query, event| {
        let query = query.bind(event.seq).bind(&*event.tenant).bind(&*event.source).bind(&*event.id);
        query.bind(&*event.event_type).bind(event.received_at).bind(&event.body[..])
    })
    .await?;
    write_rows(connection, ("INSERT INTO queue (lane, due_at, event)", 3, ""), events, |query, event| {
        query.bind(LANE).bind(event.received_at).bind(event.seq)
    })
    .await
}

async fn settle_sqlite(connection: &mut SqliteConnection, settled: &[Settled]) -> sqlx::Result<()> {
    let take_out = ("DELETE FROM queue WHERE (lane, due_at, event) IN (", 3, ")");
    write_rows(connection, take_out, settled, |query, one| query.bind(LANE).bind(one.due_at).bind(one.seq))
        .await?;
    let outcomes = ("INSERT INTO outcome (event, lane, at, latency_ms, status)", 5, "");
    write_rows(connection, outcomes, settled, |query, one| {
        query.bind(one.seq).bind(LANE).bind(one.at).bind(one.latency_ms).bind(one.status)
    })
    .await
}

async fn insert_postgres(connection: &mut PgConnection, events: &[Event]) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
    let received_at: Vec<_> = events.iter().map(|event| event.received_at).collect();
    let tenants: Vec<_> = events.iter().map(|event| &*event.tenant).collect();
    let sources: Vec<_> = events.iter().map(|event| &*event.source).collect();
    let ids: Vec<_> = events.iter().map(|event| &*event.id).collect();
    sqlx::query(
        "INSERT INTO event_key (tenant, source, id, event)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[])",
    )
    .bind(&tenants)
    .bind(&sources)
    .bind(&ids)
    .bind(&seqs)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO event (seq, tenant, source, id, type, received_at, body)
         SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bytea[])",
    )
    .bind(&seqs)
    .bind(&tenants)
    .bind(&sources)
    .bind(&ids)
    .bind(events.iter().map(|event| &*event.event_type).collect::<Vec<_>>())
    .bind(&received_at)
    .bind(events.iter().map(|event| &event.body[..]).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO queue (lane, due_at, event)
         SELECT $1, due_at, event FROM UNNEST($2::bigint[], $3::bigint[]) AS t (due_at, event)",
    )
    .bind(LANE)
    .bind(&received_at)
    .bind(&seqs)
    .execute(connection)
    .await?;
    Ok(())
}

async fn settle_postgres(connection: &mut PgConnection, settled: &[Settled]) -> sqlx::Result<()> {
    if settled.is_empty() {
        return Ok(());
    }
    let seqs: Vec<_> = settled.iter().map(|one| one.seq).collect();
    sqlx::query(
        "DELETE FROM queue USING UNNEST($2::bigint[], $3::bigint[]) AS t (due_at, event)
         WHERE queue.lane = $1 AND queue.due_at = t.due_at AND queue.event = t.event",
    )
    .bind(LANE)
    .bind(settled.iter().map(|one| one.due_at).collect::<Vec<_>>())
    .bind(&seqs)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO outcome (event, lane, at, latency_ms, status)
         SELECT event, $1, at, latency_ms, status
         FROM UNNEST($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS t (event, at, latency_ms, status)",
    )
    .bind(LANE)
    .bind(&seqs)
    .bind(settled.iter().map(|one| one.at).collect::<Vec<_>>())
    .bind(settled.iter().map(|one| one.latency_ms).collect::<Vec<_>>())
    .bind(settled.iter().map(|one| one.status).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
