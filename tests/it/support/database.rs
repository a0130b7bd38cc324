//! A fresh database for one test, gone at its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::{Clock, Timestamp};
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{BacklogLimits, Connections, Ledger, LedgerError, LedgerOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

use super::TestClock;

/// Where the Postgres server for tests is named; the second where the first is not set.
const SERVER_VARIABLES: [&str; 2] = ["POSTHASTE_TEST_POSTGRES_URL", "DATABASE_URL"];

/// The SQLite file's name.
const FILE: &str = "ledger.db";

/// A SQLite file in a directory of its own, or a database of its own on a Postgres server.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Gone with its directory.
    Directory(#[expect(dead_code, reason = "held for its end")] TempDir),
    /// The server's URL and the database's name on it.
    Server(String, String),
    /// Whoever made it takes it away.
    Elsewhere,
}

impl TestDatabase {
    /// A SQLite file that does not exist yet.
    pub fn sqlite() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let url = format!("sqlite:{}", directory.path().join(FILE).display());
        Self { url, place: Place::Directory(directory) }
    }

    /// An empty Postgres database.
    pub async fn postgres() -> Self {
        let server = server_url();
        let mut connection = PgConnection::connect(&server).await.expect("the Postgres server for tests");
        let (name,): (String,) =
            sqlx::query_as("SELECT 'posthaste_test_' || replace(gen_random_uuid()::text, '-', '')")
                .fetch_one(&mut connection)
                .await
                .expect("a name");
        let create = format!("CREATE DATABASE {name}");
        sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.expect("a database");
        Self { url: with_database(&server, &name), place: Place::Server(server, name) }
    }

    /// A database of the test's own, which it takes away itself.
    pub fn at(url: String) -> Self {
        Self { url, place: Place::Elsewhere }
    }

    /// A SQLite file in a directory of the test's own.
    pub fn sqlite_in(directory: &Path) -> Self {
        Self::at(format!("sqlite:{}", directory.join(FILE).display()))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    /// The SQLite file.
    pub fn file(&self) -> PathBuf {
        self.url.strip_prefix("sqlite:").expect("Postgres is not a file").into()
    }

    /// Long leases and room for everything.
    pub fn options(&self) -> LedgerOptions {
        LedgerOptions {
            url: self.url.clone(),
            lease: Duration::from_secs(60),
            backlog: BacklogLimits { tenant: 1_000_000, total: 1_000_000 },
            recent_bytes: 1 << 20,
            connections: Connections::default(),
        }
    }

    /// Opens the ledger with [`Self::options`].
    pub async fn open(&self, clock: &Arc<TestClock>) -> Ledger {
        self.open_with(&self.options(), clock).await.expect("the ledger opens")
    }

    pub async fn open_with(
        &self,
        options: &LedgerOptions,
        clock: &Arc<TestClock>,
    ) -> Result<Ledger, LedgerError> {
        Ledger::open(options, clock.clone() as Arc<dyn Clock>).await
    }

    /// Lets `time` pass on the clock that leases run on: ours for SQLite, the database's for Postgres.
    pub async fn let_leases_age(&self, time: Duration, clock: &TestClock) {
        if self.is_postgres() {
            let by = time.as_millis();
            self.execute(&format!("UPDATE queue SET lease_until = lease_until - {by} WHERE lease_until > 0"))
                .await;
        } else {
            clock.move_monotonic(time);
        }
    }

    /// Lets so many deliveries wait in a lane, written past the ledger because that is quick: events of the lane's
    /// tenant, with ids from `deep-1` on and type `deep`.
    pub async fn wait_in(&self, lane: &Lane, count: i64, due_at: Timestamp) {
        let body = r#"'{"id":"deep-' || i || '","type":"deep","data":{"total":1.10}}'"#;
        let (numbers, body, lease_column, lease) = if self.is_postgres() {
            let numbers = format!("generate_series(1, {count}) AS n (i)");
            (numbers, format!("convert_to({body}, 'UTF8')"), ", lease_until", ", 0")
        } else {
            let numbers = format!(
                "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
            );
            (numbers, format!("CAST({body} AS BLOB)"), "", "")
        };
        let (id, tenant, due_at) = (lane.id.0, &lane.tenant, due_at.as_millis());
        self.execute(&format!(
            "BEGIN;
             CREATE TABLE first AS SELECT COALESCE(MAX(seq), 0) AS seq FROM event;
             INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body)
             SELECT first.seq + i, '{tenant}', '', 'deep-' || i, 'deep', {due_at}, 1, {body} FROM first, {numbers};
             INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain{lease_column})
             SELECT {id}, 0, {due_at}, first.seq + i, 0, 0, 0{lease} FROM first, {numbers};
             DROP TABLE first;
             COMMIT;"
        ))
        .await;
        self.execute("ANALYZE").await;
    }

    /// Runs statements past the ledger.
    pub async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        let done = if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.url).await.expect("a connection");
            sqlx::raw_sql(sql).execute(&mut connection).await.map(|_| ())
        } else {
            let mut connection = SqliteConnection::connect(&self.url).await.expect("a connection");
            sqlx::raw_sql(sql).execute(&mut connection).await.map(|_| ())
        };
        done.expect("the statement runs");
    }

    /// Keeps everybody from writing to a SQLite file, as another process with a long transaction would.
    pub async fn lock(&self) -> Lock {
        let mut connection = SqliteConnection::connect(&self.url).await.expect("a connection");
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.expect("locked");
        Lock(connection)
    }

    /// Reads one text past the ledger; what is no text must be cast to it.
    pub async fn text(&self, sql: &str) -> String {
        let sql = AssertSqlSafe(sql.to_owned());
        let (text,): (String,) = if self.is_postgres() {
            let mut connection = PgConnection::connect(&self.url).await.expect("a connection");
            sqlx::query_as(sql).fetch_one(&mut connection).await.expect("a row")
        } else {
            let mut connection = SqliteConnection::connect(&self.url).await.expect("a connection");
            sqlx::query_as(sql).fetch_one(&mut connection).await.expect("a row")
        };
        text
    }
}

/// A ledger that takes no writes until it is released.
pub struct Lock(SqliteConnection);

impl Lock {
    pub async fn release(mut self) {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.0).await.expect("released");
    }
}

fn server_url() -> String {
    let named = SERVER_VARIABLES.iter().find_map(|name| std::env::var(name).ok());
    let url = named.unwrap_or_else(|| {
        panic!("no Postgres to test on: run ./scripts/test, which starts one, or set {}", SERVER_VARIABLES[0])
    });
    if url.contains("sslmode=") {
        return url;
    }
    // Not what is tested here, and sqlx 0.9.0 leaves Nagle's algorithm on: behind TLS each larger statement waits
    // 40 ms for an acknowledgement (launchbadge/sqlx#4335).
    format!("{url}{}sslmode=disable", if url.contains('?') { '&' } else { '?' })
}

/// `server` with another database in its path.
fn with_database(server: &str, name: &str) -> String {
    let (address, parameters) = server.split_once('?').map_or((server, None), |(a, p)| (a, Some(p)));
    let host_at = address.find("://").map_or(0, |at| at + 3);
    let path_at = address[host_at..].find('/').map_or(address.len(), |at| host_at + at);
    let parameters = parameters.map_or_else(String::new, |parameters| format!("?{parameters}"));
    format!("{}/{name}{parameters}", &address[..path_at])
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Server(server, name) = &self.place else { return };
        let (server, drop) = (server.clone(), format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        // A thread and a runtime of its own: the test's may be gone, and can't be waited for here.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server).await?;
                sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
        // A panic here would hide the test's own.
        if !matches!(dropping.join(), Ok(Ok(()))) {
            eprintln!("the database {name} could not be dropped");
        }
    }
}
