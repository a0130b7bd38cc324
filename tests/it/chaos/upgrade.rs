//! Ledgers of earlier schemas open with today's program, whole or not at all; those of later ones are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use axum::http::Method;
use posthaste::domain::event::Fingerprint;
use sha2::{Digest as _, Sha256};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use super::tell;
use crate::support::partners::MASTER_KEY;
use crate::support::{RelayProcess, TestDatabase, eventually, mock_svix};

on_both_databases! {
    a_ledger_of_every_earlier_schema_opens_whole_and_delivers,
    a_ledger_of_a_later_schema_is_refused_and_left_alone,
}

/// What stands in `api_key` is the hash of the secret part.
const KEY: &str = "ph_old_secret";
const FIRST_MIGRATION: i64 = 1;
const HOUR_MS: u128 = 3_600_000;

fn folder(is_postgres: bool) -> PathBuf {
    let kind = if is_postgres { "postgres" } else { "sqlite" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind)
}

/// The numbers of all schemas, in order.
pub fn versions() -> Vec<i64> {
    let files = std::fs::read_dir(folder(false)).expect("migrations");
    let version = |name: &str| name.split_once('_').and_then(|(version, _)| version.parse().ok());
    let mut versions: Vec<i64> = files
        .map(|file| version(&file.expect("a file").file_name().to_string_lossy()).expect("NUMBER_name.sql"))
        .collect();
    versions.sort_unstable();
    versions
}

/// Today's schema.
fn latest() -> i64 {
    *versions().last().expect("some")
}

/// Brings a database to a schema, from the files themselves.
async fn migrate_to(database: &TestDatabase, version: i64) {
    let migrator = Migrator::new(folder(database.is_postgres())).await.expect("migrations");
    let migrated = if database.is_postgres() {
        let mut connection = PgConnection::connect(database.url()).await.expect("a connection");
        migrator.run_direct(Some(version), &mut connection, false).await
    } else {
        let url = format!("{}?mode=rwc", database.url());
        let mut connection = SqliteConnection::connect(&url).await.expect("a connection");
        let wal = AssertSqlSafe("PRAGMA journal_mode = WAL");
        sqlx::raw_sql(wal).execute(&mut connection).await.expect("a WAL");
        migrator.run_direct(Some(version), &mut connection, false).await
    };
    migrated.expect("the schema");
}

fn command(database: &TestDatabase, name: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command.arg(name).env("POSTHASTE_DATABASE_URL", database.url()).envs(variables.iter().copied());
    command.stdin(Stdio::null());
    command
}

/// Runs `posthaste migrate`.
pub fn migrate(database: &TestDatabase, variables: &[(&str, &str)]) -> Output {
    command(database, "migrate", variables).output().expect("it runs")
}

/// A ledger that lived at an earlier schema, and all that it holds.
pub struct OldLedger {
    rows: Dump,
}

/// Rows as text, and the columns that they have, by table.
#[derive(Debug, PartialEq, Eq)]
struct Dump {
    columns: BTreeMap<String, Vec<String>>,
    rows: BTreeSet<String>,
}

/// How an event stood then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stood {
    Fresh,
    Failed,
    /// Failed, and due only tomorrow.
    Later,
    Done(&'static str),
    Unrouted,
}

/// The events that the first schema held, from 1 on.
fn events() -> impl Iterator<Item = (i64, Stood)> {
    let stood = |n| match n {
        1..=10 => Stood::Fresh,
        11..=15 => Stood::Failed,
        16 => Stood::Later,
        17..=22 => Stood::Done("delivered"),
        23..=24 => Stood::Done("dead"),
        25 => Stood::Done("canceled"),
        _ => Stood::Unrouted,
    };
    (1..=26).map(move |n| (n, stood(n)))
}

impl OldLedger {
    /// Written by the first schema, brought to `version`, and used there too.
    pub async fn at(database: &TestDatabase, version: i64) -> Self {
        migrate_to(database, FIRST_MIGRATION).await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
        let writer = Writer { is_postgres: database.is_postgres(), received_at: now - HOUR_MS, version: 1 };
        database.execute(&writer.first_rows()).await;
        let all = events().map(|(n, stood)| writer.event("old", n, stood)).collect::<String>();
        database.execute(&all).await;
        migrate_to(database, version).await;
        let writer = Writer { version, ..writer };
        let later = [(101, Stood::Fresh), (102, Stood::Failed)];
        let later = later.iter().map(|(n, stood)| writer.event("used", *n, *stood)).collect::<String>();
        database.execute(&format!("{later}{}", writer.later_rows())).await;
        Self { rows: dump(database, None).await }
    }

    /// Every migration has happened as a whole, or not at all.
    pub async fn assert_whole(&self, database: &TestDatabase) {
        let last = "SELECT CAST(MAX(version) AS TEXT) FROM _sqlx_migrations WHERE success";
        let version = database.text(last).await.parse().expect("a number");
        assert_eq!(
            schema(database).await,
            pristine(database, version).await,
            "it is that of version {version}"
        );
        assert_eq!(dump(database, Some(&self.rows)).await, self.rows, "every row is there");
    }

    /// Today's schema, and every row as it was.
    pub async fn assert_kept(&self, database: &TestDatabase) {
        let version = "SELECT CAST(MAX(version) AS TEXT) FROM _sqlx_migrations";
        assert_eq!(database.text(version).await, latest().to_string());
        self.assert_whole(database).await;
    }

    /// Today's relay delivers what waited, knows what was, and lets in who was let in; how much went out.
    pub async fn deliver(&self, database: &TestDatabase) -> usize {
        let svix = mock_svix().await;
        let relay = RelayProcess::start(database, &svix, &[("POSTHASTE_MASTER_KEY", MASTER_KEY)]);
        let waiting = |stood: Stood| matches!(stood, Stood::Fresh | Stood::Failed);
        let old = events().filter(|(_, stood)| waiting(*stood)).map(|(n, _)| format!("old-{n}"));
        let expected: BTreeSet<_> = old.chain(["used-101".into(), "used-102".into()]).collect();
        let before = self.rows.rows.iter().filter(|row| row.starts_with("outcome ")).count();
        let done = (before + expected.len()).to_string();
        eventually("what waited is delivered", async || {
            let count = "SELECT CAST(COUNT(*) AS TEXT) FROM outcome";
            (database.text(count).await == done).then_some(())
        })
        .await;
        let messages = svix.messages();
        let sent: BTreeSet<_> = messages.iter().filter_map(|message| message.event_id.clone()).collect();
        assert_eq!((sent, messages.len()), (expected.clone(), expected.len()));
        for message in &messages {
            assert_eq!(message.payload, text(message.event_id.as_deref().expect("an id")), "its bytes");
            assert_eq!(message.app, "acme-app", "the route of then");
        }
        let later = "SELECT CAST(COUNT(*) AS TEXT) FROM queue";
        assert_eq!(database.text(later).await, "1", "what is due tomorrow waits on");
        let refused = relay.post(format!("[{}]", text("old-1"))).await;
        assert_eq!(refused.status, 401, "there is a key");
        let bearer = [("authorization", "Bearer ph_old_secret"), ("content-type", "application/json")];
        let batch = format!("[{},{}]", text("old-1"), text("old-20"));
        let again = relay.send(Method::POST, "/notifications", &bearer, batch).await;
        assert_eq!(again.statuses(), ["duplicate", "duplicate"], "what was delivered then is known");
        relay.kill();
        expected.len()
    }
}

/// An event as it came.
fn text(id: &str) -> String {
    format!(r#"{{"id":"{id}","type":"order.created","data":{{"total":1.10}}}}"#)
}

/// Writes rows as the program of a schema did.
struct Writer {
    is_postgres: bool,
    received_at: u128,
    version: i64,
}

impl Writer {
    fn bytes(&self, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.is_postgres { format!(r"'\x{hex}'::bytea") } else { format!("X'{hex}'") }
    }

    fn first_rows(&self) -> String {
        let secret = self.bytes(&Sha256::digest(KEY.strip_prefix("ph_old_").expect("a secret")));
        let request = self.bytes(&[7; 32]);
        let (at, body) = (self.received_at, self.bytes(b"\xff not JSON"));
        format!(
            "INSERT INTO tenant (id, route, svix_app) VALUES ('acme', 'svix', 'acme-app');
             INSERT INTO lane (destination, tenant) VALUES ('svix:acme-app', 'acme');
             INSERT INTO api_key (id, name, hash, scopes, tenant, created_at)
             VALUES ('old', 'platform', {secret}, 'ingest,read,admin', NULL, {at});
             INSERT INTO request_key (scope, key, fingerprint, created_at) VALUES ('', 'k', {request}, {at});
             INSERT INTO rejected (received_at, origin, reason, attributes, body)
             VALUES ({at}, 'pubsub_push', 'bad_json', '{{}}', {body});
             INSERT INTO gate (id, reason, closed_until) VALUES ('svix', 'throttled', {at});
             INSERT INTO node (number, epoch, seen_at) VALUES (0, 'old', 1);"
        )
    }

    fn event(&self, prefix: &str, n: i64, stood: Stood) -> String {
        let id = format!("{prefix}-{n}");
        let (at, body) = (self.received_at, text(&id));
        let data = r#"{"total":1.10}"#;
        let start = body.find(data).expect("its data");
        let print = self.bytes(&Fingerprint::of("order.created", Some(data)).0);
        let (routed, body, end) =
            (i64::from(stood != Stood::Unrouted), self.bytes(body.as_bytes()), start + data.len());
        let lane = "(SELECT id FROM lane WHERE tenant = 'acme')";
        let rows = format!(
            "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, data_end)
             VALUES ({n}, 'acme', '', '{id}', 'order.created', {at}, {routed}, {body}, {start}, {end});
             INSERT INTO event_key (tenant, source, id, fingerprint, event) VALUES ('acme', '', '{id}', {print}, {n});"
        );
        let failed = i64::from(matches!(stood, Stood::Failed | Stood::Later | Stood::Done("dead")));
        let due_at = if stood == Stood::Later { at + 25 * HOUR_MS } else { at };
        let mut columns = "lane, due_at, event, attempt, failures, uncertain".to_owned();
        let mut values = format!("{lane}, {due_at}, {n}, {failed}, {failed}, {failed}");
        if self.is_postgres {
            columns += ", lease_until";
            values += ", 0";
        }
        if self.version >= 3 {
            columns += ", retry";
            values += &format!(", {failed}");
        }
        let attempt = format!(
            "INSERT INTO attempt_log (event, lane, attempt, at, latency_ms, status, code, detail, retry_at)
             VALUES ({n}, {lane}, 1, {at}, 12, 500, 'http_500', 'oops', {due_at});"
        );
        let attempt = if failed == 1 { attempt } else { String::new() };
        let ended = match stood {
            Stood::Unrouted => String::new(),
            Stood::Done(state) => format!(
                "INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id,
                                      dispatch_unconfirmed, reason)
                 VALUES ({n}, {lane}, '{state}', {at}, 1, {failed}, 12, 202, 'msg_{n}', 0, NULL);"
            ),
            _ => format!("INSERT INTO queue ({columns}) VALUES ({values});"),
        };
        [rows, attempt, ended].concat()
    }

    /// Rows of tables that the first schema did not have, as far as this one does.
    fn later_rows(&self) -> String {
        let sums = r#"{"accepted":1}"#;
        let hash = self.bytes(&[9; 32]);
        let rows = [
            (2, "INSERT INTO partner VALUES ('p', '{\"name\":\"P\"}', 1, 1)".to_owned()),
            (2, "INSERT INTO event_type VALUES ('order.created', '{}', 1, 1, 0)".to_owned()),
            (3, "INSERT INTO partner_tokens VALUES ('p', 1000000, 1)".to_owned()),
            (4, "UPDATE gate SET node = 3".to_owned()),
            (
                5,
                "INSERT INTO tenant_limit (tenant, weight, ingest_limit) VALUES ('acme', 3, NULL)".to_owned(),
            ),
            (6, "UPDATE rejected SET content_type = 'text/plain', tenant = 'acme', item = 2".to_owned()),
            (7, "INSERT INTO repeat VALUES (1, 2, 3, 4, 5, 'order.created')".to_owned()),
            (8, format!("INSERT INTO stat VALUES (60000, '*', 1, '', '{sums}')")),
            (9, "UPDATE queue SET replay = 0".to_owned()),
            (10, format!("INSERT INTO console_session VALUES ({hash}, 'old', {hash}, 1, 2)")),
        ];
        rows.iter().filter(|(since, _)| *since <= self.version).map(|(_, sql)| format!("{sql};")).collect()
    }
}

/// All rows; of `like`, only its tables and columns. Without what a process writes of itself.
async fn dump(database: &TestDatabase, like: Option<&Dump>) -> Dump {
    let tables = if database.is_postgres() {
        "SELECT string_agg(table_name || '.' || column_name, ',' ORDER BY table_name, ordinal_position)
         FROM information_schema.columns WHERE table_schema = current_schema()"
    } else {
        "SELECT string_agg(name, ',') FROM (SELECT tables.name || '.' || columns.name AS name FROM sqlite_master AS tables,
             pragma_table_info(tables.name) AS columns
         WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%' ORDER BY tables.name, columns.cid)"
    };
    let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for column in database.text(tables).await.split(',') {
        let (table, column) = column.split_once('.').expect("both");
        columns.entry(table.to_owned()).or_default().push(column.to_owned());
    }
    if let Some(like) = like {
        columns.clone_from(&like.columns);
    }
    columns.retain(|table, _| {
        !["_sqlx_migrations", "ledger_clock", "node", "node_epoch"].contains(&table.as_str())
    });
    let text = |column: &String| match database.is_postgres() {
        true => format!("COALESCE(quote_literal({column}::text), 'NULL')"),
        false => format!("quote({column})"),
    };
    let of_table = |(table, columns): (&String, &Vec<String>)| {
        let row = columns.iter().map(text).collect::<Vec<_>>().join(" || ',' || ");
        format!("SELECT '{table} ' || {row} AS line FROM {table}")
    };
    let lines = columns.iter().map(of_table).collect::<Vec<_>>().join(" UNION ALL ");
    let all = format!("SELECT COALESCE(string_agg(line, '\n'), '') FROM ({lines}) AS lines");
    let rows = database.text(&all).await.lines().map(str::to_owned).collect();
    Dump { columns, rows }
}

/// The schema of a ledger that was never at another; made once for each.
async fn pristine(like: &TestDatabase, version: i64) -> String {
    static KNOWN: Mutex<BTreeMap<i64, String>> = Mutex::new(BTreeMap::new());
    if let Some(known) = KNOWN.lock().unwrap().get(&version) {
        return known.clone();
    }
    let database = another(like).await;
    migrate_to(&database, version).await;
    let schema = schema(&database).await;
    // A test is a process, and has one kind of database.
    KNOWN.lock().unwrap().insert(version, schema.clone());
    schema
}

/// Tables, columns and indexes, as text.
async fn schema(database: &TestDatabase) -> String {
    let parts: &[&str] = if database.is_postgres() {
        &[
            "SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default,
                                         collation_name), '\n' ORDER BY table_name, column_name)
             FROM information_schema.columns WHERE table_schema = current_schema()",
            "SELECT string_agg(indexdef, '\n' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = current_schema()",
        ]
    } else {
        &["SELECT string_agg(line, '\n') FROM (SELECT type || ' ' || name || ' ' || COALESCE(sql, '') AS line
           FROM sqlite_master ORDER BY line)"]
    };
    let mut texts = Vec::new();
    for sql in parts {
        texts.push(database.text(sql).await);
    }
    texts.join("\n")
}

async fn another(like: &TestDatabase) -> TestDatabase {
    if like.is_postgres() { TestDatabase::postgres().await } else { TestDatabase::sqlite() }
}

async fn a_ledger_of_every_earlier_schema_opens_whole_and_delivers(database: TestDatabase) {
    let mut delivered = 0;
    for version in versions() {
        let database = another(&database).await;
        let old = OldLedger::at(&database, version).await;
        let migrated = migrate(&database, &[]);
        assert!(migrated.status.success(), "{version}: {}", String::from_utf8_lossy(&migrated.stderr));
        old.assert_kept(&database).await;
        delivered += old.deliver(&database).await;
    }
    let place = if database.is_postgres() { "Postgres" } else { "SQLite" };
    tell(
        "upgrade",
        format!("{place}: from schemas 1 to {}, every row kept, {delivered} deliveries went out", latest()),
    );
}

async fn a_ledger_of_a_later_schema_is_refused_and_left_alone(database: TestDatabase) {
    migrate_to(&database, latest()).await;
    let (ours, theirs) = (latest(), latest() + 2);
    for version in [ours + 1, theirs] {
        database
            .execute(&format!(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 SELECT {version}, 'future', TRUE, checksum, 0 FROM _sqlx_migrations WHERE version = 1"
            ))
            .await;
    }
    database.execute("CREATE TABLE future (id BIGINT)").await;
    let all = async || {
        let rows = "SELECT CAST(COUNT(*) AS TEXT) FROM _sqlx_migrations";
        (schema(&database).await, dump(&database, None).await, database.text(rows).await)
    };
    let before = all().await;
    for name in ["serve", "migrate"] {
        let mut run = command(&database, name, &[("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")]);
        let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let waiting = tokio::task::spawn_blocking(|| child.wait_with_output());
        let ended = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it ends");
        let ended = ended.expect("waited").expect("its words");
        let words = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success(), "{name}: {words}");
        assert!(words.contains(&format!("schema is at {theirs}")), "{name}: {words}");
        assert!(words.contains(&format!("knows up to {ours}")), "{name}: {words}");
    }
    assert_eq!(all().await, before, "nothing has changed");
}

/// A migration is under way in the server, in the middle of its statements, when the relay that wanted it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn killed_within_a_migration_on_postgres() {
    // holds: 22
    // From which schema, and the table that a later statement of the next migration needs.
    let places = [(1, "tenant"), (6, "lane"), (7, "event"), (8, "tenant_limit")];
    for (version, table) in places {
        let database = TestDatabase::postgres().await;
        let old = OldLedger::at(&database, version).await;
        let mut holder = PgConnection::connect(database.url()).await.expect("a connection");
        let lock = AssertSqlSafe(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        sqlx::raw_sql(lock).execute(&mut holder).await.expect("locked");
        let mut child = command(&database, "migrate", &[]).stderr(Stdio::null()).spawn().expect("it runs");
        let waiting = "SELECT CAST(COUNT(*) AS TEXT) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = 'posthaste'
                         AND wait_event_type = 'Lock'";
        eventually("it waits for the table", async || (database.text(waiting).await == "1").then_some(()))
            .await;
        child.kill().expect("killed");
        child.wait().expect("gone");
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("released");
        let successor = tokio::task::spawn_blocking({
            let mut command = command(&database, "migrate", &[]);
            move || command.output()
        });
        let migrated = tokio::time::timeout(Duration::from_secs(20), successor).await.expect("it ends");
        let migrated = migrated.expect("waited").expect("it runs");
        assert!(migrated.status.success(), "{table}: {}", String::from_utf8_lossy(&migrated.stderr));
        old.assert_kept(&database).await;
        old.deliver(&database).await;
    }
    tell("killed within a migration", format!("Postgres: {} places, every row kept", places.len()));
}
