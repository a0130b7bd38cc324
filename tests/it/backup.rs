//! `posthaste backup` and `posthaste restore`, and the ways that Postgres has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use posthaste::mock::{MockPartner, MockSvix, Trouble};
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use crate::chaos::disk::room::Room;
use crate::support::partners::{add_endpoint, direct, verify};
use crate::support::postgres::PostgresServer;
use crate::support::{
    HttpClient, RelayProcess, TestDatabase, TestRelay, bounded, config, eventually, mock_svix,
};

/// Longest that a backup of a small ledger may take beside full ingest.
const BACKUP_LIMIT: Duration = Duration::from_secs(30);
/// Largest that the write-ahead log may be a few seconds after a backup: SQLite cuts it back to 60 MiB.
const WAL_AFTER_BYTES: u64 = 80 << 20;

/// A schedule that no event of a test comes to the end of.
const MANY_TRIES: &str =
    "99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99,99";

/// Runs the program on a ledger.
fn posthaste(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command.args(arguments).env("POSTHASTE_DATABASE_URL", url).output().expect("it runs")
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    format!("{}{complaint}", String::from_utf8_lossy(&output.stdout))
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(output));
    text(output)
}

/// It ended with an error that says all of this.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let said = text(output);
    assert!(!output.status.success(), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
}

async fn post(relay: &HttpClient, prefix: &str, count: usize) -> Vec<String> {
    let ids: Vec<_> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
    let events: Vec<_> =
        ids.iter().map(|id| json!({ "id": id, "type": "t", "data": { "id": id } })).collect();
    let answer = relay.post(json!(events).to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    ids
}

async fn scalar(file: &Path, sql: &'static str) -> String {
    let url = format!("sqlite:{}?mode=ro&immutable=1", file.display());
    let mut connection = SqliteConnection::connect(&url).await.expect("the backup opens");
    let (value,): (String,) = sqlx::query_as(sql).fetch_one(&mut connection).await.expect("a value");
    value
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// The idempotency keys under which each event was posted.
fn keys(svix: &MockSvix) -> BTreeMap<String, BTreeSet<String>> {
    let mut keys: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for request in svix.requests() {
        let key = request.idempotency_key.clone().expect("a key");
        keys.entry(request.event_id.clone().expect("an id")).or_default().insert(key);
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_beside_full_ingest_ends_and_delivers_what_was_acknowledged() {
    // holds: 18, 63
    bounded(backup_beside_full_ingest()).await;
}

async fn backup_beside_full_ingest() {
    let (svix, database) = (mock_svix().await, TestDatabase::sqlite());
    svix.set_trouble(Some(Trouble::Status(500)));
    // No event is given up meanwhile.
    let schedule = [("POSTHASTE_SVIX__RETRY_SCHEDULE_MS", MANY_TRIES)];
    let relay = Arc::new(RelayProcess::start(&database, &svix, &schedule));
    // Nobody's, with a secret that has to open again.
    add_endpoint(&relay, "acme-eu", json!({ "url": "https://hooks.example.com/", "tenant": "nobody" })).await;
    let mut acknowledged = BTreeSet::new();
    for batch in 0..40 {
        acknowledged.extend(post(&relay, &format!("before-{batch}"), 100).await);
    }
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (relay, stop, written) = (relay.clone(), stop.clone(), written.clone());
            tokio::spawn(async move {
                for batch in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    post(&relay, &format!("beside-{client}-{batch}"), 100).await;
                    written.fetch_add(100, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("it is under load", async || (written.load(Ordering::Relaxed) > 2_000).then_some(())).await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("ledger.backup");
    let (url, target) = (database.url().to_owned(), file.to_str().expect("a name").to_owned());
    let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
    let output =
        tokio::task::spawn_blocking(move || posthaste(&url, &["backup", &target])).await.expect("done");
    let (took, beside) = (began.elapsed(), written.load(Ordering::Relaxed) - before);
    let said = succeeded(&output);
    let wal = database.file().with_extension("db-wal");
    let wal_bytes = || std::fs::metadata(&wal).map_or(0, |wal| wal.len());
    let wal_during = wal_bytes();
    eventually("it is written on", async || {
        (written.load(Ordering::Relaxed) > before + beside + 2_000).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("all were acknowledged");
    }
    println!(
        "backup of {} KiB beside {beside} events: {took:?}; WAL {} KiB at its end, {} KiB later; {said}",
        std::fs::metadata(&file).expect("the backup").len() >> 10,
        wal_during >> 10,
        wal_bytes() >> 10
    );
    assert!(beside > 0 && took < BACKUP_LIMIT, "{beside} events, {took:?}");
    assert!(wal_bytes() < WAL_AFTER_BYTES, "{}", wal_bytes());
    assert!(said.contains(".key"), "it says what else has to be kept: {said}");
    assert_eq!(names(directory.path()), BTreeSet::from(["ledger.backup".to_owned()]));
    assert_eq!(scalar(&file, "PRAGMA integrity_check").await, "ok");
    let found = scalar(&file, "SELECT json_group_array(id) FROM event WHERE id LIKE 'before-%'").await;
    let found: BTreeSet<String> = serde_json::from_str(&found).expect("a list");
    assert_eq!(found, acknowledged);
    Arc::into_inner(relay).expect("the clients are gone").kill();
    restored_under_the_same_keys(&database, &svix, &file, &acknowledged).await;
}

/// The original is lost; the copy sends what was acknowledged under the same keys.
async fn restored_under_the_same_keys(
    database: &TestDatabase,
    svix: &MockSvix,
    file: &Path,
    acknowledged: &BTreeSet<String>,
) {
    let restored = TestDatabase::sqlite_in(file.parent().expect("a directory"));
    let target = file.to_str().expect("a name");
    refused(&posthaste(restored.url(), &["restore", target]), &["ledger.db.key", "--without-key"]);
    let key = |database: &TestDatabase| database.file().with_extension("db.key");
    std::fs::copy(key(database), key(&restored)).expect("the key is kept elsewhere");
    let restore = posthaste(restored.url(), &["restore", target]);
    assert!(succeeded(&restore).contains("restored"), "{}", text(&restore));
    let sent_before = keys(svix);
    svix.set_trouble(None);
    svix.clear();
    let relay = RelayProcess::start(&restored, svix, &[("POSTHASTE_SVIX__RETRY_SCHEDULE_MS", MANY_TRIES)]);
    eventually("what was acknowledged is at Svix", async || {
        let stored: BTreeSet<_> =
            svix.messages().iter().filter_map(|message| message.event_id.clone()).collect();
        acknowledged.is_subset(&stored).then_some(())
    })
    .await;
    for (id, again) in keys(svix).into_iter().filter(|(id, _)| acknowledged.contains(id)) {
        assert_eq!(again.len(), 1, "{id}");
        assert!(sent_before.get(&id).is_none_or(|before| *before == again), "{id}: another key");
    }
    relay.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_no_half_backup() {
    let svix = mock_svix().await;
    let database = TestDatabase::sqlite();
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    let data = "x".repeat(20_000);
    for batch in 0..5 {
        let events: Vec<_> =
            (0..100).map(|n| json!({ "id": format!("{batch}-{n}"), "type": "t", "data": data })).collect();
        assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
    }
    relay.settled().await;
    let room = Room::of_a_small_disk();
    let file = room.directory().join("ledger.backup");
    let mut backup = room.command();
    let output = run(backup.arg("backup").arg(&file).env("POSTHASTE_DATABASE_URL", database.url()));
    refused(&output, &["full"]);
    assert_eq!(names(room.directory()), BTreeSet::new());
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_and_a_restore_refuse_what_would_lose_something() {
    let (svix, database) = (mock_svix().await, TestDatabase::sqlite());
    let directory = TempDir::new().expect("a directory");
    let file = |name: &str| -> PathBuf { directory.path().join(name) };
    let (backup, broken) = (file("backup"), file("broken"));
    let name = |path: &PathBuf| path.to_str().expect("a name").to_owned();
    let url = database.url().to_owned();
    refused(&posthaste(&url, &["backup", &name(&backup)]), &["no ledger"]);
    let relay = RelayProcess::start(&database, &svix, &[]);
    post(&relay, "first", 10).await;
    succeeded(&posthaste(&url, &["backup", &name(&backup)]));
    refused(&posthaste(&url, &["backup", &name(&backup)]), &["exists", "--overwrite"]);
    succeeded(&posthaste(&url, &["backup", &name(&backup), "--overwrite"]));
    refused(&posthaste(&url, &["restore", &name(&backup), "--replace"]), &["another process owns"]);
    post(&relay, "second", 10).await;
    relay.kill();
    refused(&posthaste(&url, &["restore", &name(&backup)]), &["exists", "--replace"]);
    // Damaged, cut short, of something else, and of a newer version.
    let bytes = std::fs::read(&backup).expect("the backup");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2..bytes.len() / 2 + 6_000].fill(0xff);
    for wrong in [&damaged[..], &bytes[..bytes.len() / 2], b"not a database"] {
        std::fs::write(&broken, wrong).expect("written");
        let restore = posthaste(&url, &["restore", &name(&broken), "--replace"]);
        refused(&restore, &["broken", "nothing was changed"]);
    }
    std::fs::write(&broken, &bytes).expect("written");
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'later', 1, x'00', 0)";
    TestDatabase::at(format!("sqlite:{}", broken.display())).execute(newer).await;
    refused(&posthaste(&url, &["restore", &name(&broken), "--replace"]), &["newer version", "9999"]);
    // All that was refused has changed nothing.
    let relay = RelayProcess::start(&database, &svix, &[]);
    assert_eq!(database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await, "20");
    relay.kill();
    let said = succeeded(&posthaste(&url, &["restore", &name(&backup), "--replace"]));
    assert!(said.contains("ledger.db.replaced"), "it says where the old one is: {said}");
    let relay = RelayProcess::start(&database, &svix, &[]);
    assert_eq!(database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await, "10");
    relay.kill();
    let old = database.file().with_extension("db.replaced");
    let old = TestDatabase::at(format!("sqlite:{}", old.display()));
    assert_eq!(old.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await, "20");
}

/// A copy of a Postgres database, made while a relay writes it, takes up the work of the original.
async fn takes_up_the_work(
    url: &str,
    svix: &MockSvix,
    acknowledged: &[String],
    partner: &MockPartner,
    secret: &str,
) {
    let copy = TestDatabase::at(url.to_owned());
    let before = keys(svix);
    svix.set_trouble(None);
    svix.clear();
    let mut settings = direct(&copy, svix);
    settings.svix.token = Some(crate::support::TOKEN.into());
    let relay = TestRelay::start_with(settings).await;
    relay.settled().await;
    let stored: BTreeSet<_> = svix.messages().iter().filter_map(|message| message.event_id.clone()).collect();
    for id in acknowledged {
        assert!(stored.contains(id), "{id}");
        let (before, again) = (before.get(id), &keys(svix)[id]);
        assert!(
            before.is_none_or(|before| before == again) && again.len() == 1,
            "{id}: {before:?}, {again:?}"
        );
    }
    // Its secrets open.
    let answer = relay.post(json!({ "id": "d", "type": "t", "tenant": "own", "data": {} }).to_string()).await;
    assert_eq!(answer.status, 202);
    relay.settled().await;
    verify(partner.requests().last().expect("a request"), secret);
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_dumps_and_base_backups_take_up_the_work() {
    bounded(async {
        let server = PostgresServer::start(&[("wal_level", "replica")]).await;
        let (svix, partner) = (mock_svix().await, MockPartner::start().await);
        // Nothing is delivered before the copies are made.
        svix.set_trouble(Some(Trouble::Status(500)));
        let database = TestDatabase::at(server.url());
        let mut settings = direct(&database, &svix);
        settings.svix.token = Some(crate::support::TOKEN.into());
        settings.svix.retry_schedule_ms = vec![200; 500];
        // What is under way in the copy is sent when its lease ends.
        (settings.dispatch.lease_ms, settings.svix.timeout_ms) = (2_000, 500);
        let relay = TestRelay::start_with(settings).await;
        let own = json!({ "route": "direct" }).to_string();
        let json = crate::support::partners::JSON;
        let put = relay.send(axum::http::Method::PUT, "/v1/tenants/own", &json, own).await;
        assert!(put.status.is_success());
        let hook = json!({ "url": partner.url("/hook"), "tenant": "own" });
        let (_, secret) = add_endpoint(&relay, "acme-eu", hook).await;
        let acknowledged = post(&relay, "before", 50).await;
        eventually("some were tried", async || (svix.request_count() > 5).then_some(())).await;
        let dump = server.socket_directory().join("ledger.dump");
        server.run("pg_dump", &["--format=custom", "--file", dump.to_str().expect("a name"), &server.url()]);
        server.run(
            "createdb",
            &[
                "--host",
                server.socket_directory().to_str().expect("a name"),
                "--username=postgres",
                "restored",
            ],
        );
        let restored = server.url().replace("/postgres?", "/restored?");
        server.run(
            "pg_restore",
            &["--exit-on-error", "--no-owner", "--dbname", &restored, dump.to_str().expect("a name")],
        );
        let copy = PostgresServer::copy_of(&server).await;
        relay.stop().await;
        takes_up_the_work(&restored, &svix, &acknowledged, &partner, &secret).await;
        takes_up_the_work(&copy.url(), &svix, &acknowledged, &partner, &secret).await;
    })
    .await;
}
