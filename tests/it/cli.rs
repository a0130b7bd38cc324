//! The real binary, from its command line: configuration, keys, health, ownership.

mod admin;
mod bench;
mod command;
mod dev;
mod master_key;
mod send;

pub use self::command::Running;
use crate::support::{RelayProcess, TestDatabase, mock_svix};

/// Runs a command to its end.
pub async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> command::Ended {
    Running::start(arguments, variables).end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_one_line_and_exit_code_2() {
    // holds: 46
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("posthaste.toml");
    std::fs::write(&file, "[svix]\ntokn = 'x'\n").expect("written");
    let named = file.display().to_string();
    for (arguments, variables, expected) in [
        (vec!["serve"], vec![("POSTHASTE_SVIX__MAX_IN_FLIGHT", "many")], "POSTHASTE_SVIX__MAX_IN_FLIGHT"),
        (vec!["serve"], vec![("POSTHASTE_DATABASE_URL", "mysql://secret@host/db")], "database_url"),
        (vec!["dev", "--exit"], vec![("POSTHASTE_HTTP__LISTEN", "nowhere")], "socket address"),
        (vec!["config", "check", "--config", &named], vec![], "tokn"),
        (vec!["config", "check"], vec![("POSTHASTE_CONFIG", "/nowhere.toml")], "/nowhere.toml"),
    ] {
        let ended = run(&arguments, &variables).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.err.contains(expected) && ended.err.lines().count() == 1, "{}", ended.err);
        assert!(!ended.err.contains("secret"), "{}", ended.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn config_warns_of_unknown_variables_and_shows_no_secret() {
    // holds: 46
    let ended = run(&["config", "check"], &[("POSTHASTE_SVIX__TOKN", "x")]).await;
    assert_eq!((ended.code, ended.out.trim()), (Some(0), "the configuration is good"));
    assert!(ended.err.contains("warning: POSTHASTE_SVIX__TOKN"), "{}", ended.err);
    let secrets = [
        ("POSTHASTE_DATABASE_URL", "postgres://user:hunter2@host/db"),
        ("POSTHASTE_SVIX__TOKEN", "sk_canary.eu"),
        ("POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY", "canary-key"),
    ];
    let shown = run(&["config", "show"], &secrets).await;
    assert_eq!((shown.code, shown.err.as_str()), (Some(0), ""));
    assert!(shown.out.contains("token = \"[redacted]\"") && shown.out.contains("[http]"), "{}", shown.out);
    assert!(!shown.out.contains("canary") && !shown.out.contains("hunter2"), "{}", shown.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_reads_is_an_end_and_no_crash() {
    let ended = Running::start_unread(&["config", "show"]).end().await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

/// The key that `key create` prints.
async fn create_key(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let made = run(&[&["key", "create"], arguments].concat(), variables).await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    let key = made.out.trim().to_owned();
    assert!(key.starts_with("ph_") && !key.contains(char::is_whitespace), "{key}");
    key
}

fn id_of(key: &str) -> &str {
    key.split('_').nth(1).expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked_without_a_server_and_with_one() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let variables = [("POSTHASTE_DATABASE_URL", database.url())];
    let admin = create_key(&["--name", "root", "--scope", "admin"], &variables).await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    assert_eq!(relay.post("{}").await.status, 401, "the key counts from the start");

    // The lock says who owns the file, and the key list comes from there; without a key it is refused.
    let refused = run(&["key", "list"], &variables).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("401") && refused.err.lines().count() == 1, "{}", refused.err);
    let with_key = [variables[0], ("POSTHASTE_API_KEY", admin.as_str())];
    let arguments = ["--name", "shop", "--scope", "ingest", "--scope", "read", "--tenant", "acme"];
    let shop = create_key(&arguments, &with_key).await;
    let event = r#"{"id":"1","type":"a"}"#;
    assert_eq!(relay.post_with(&[("x-api-key", &shop)], event).await.status, 202);
    let listed = run(&["key", "list"], &with_key).await;
    let line = listed.out.lines().find(|line| line.contains("shop")).expect("listed");
    assert!(line.contains(id_of(&shop)) && line.contains("ingest,read") && line.contains("acme"), "{line}");
    let secret = shop.rsplit('_').next().expect("a secret");
    assert!(!listed.out.contains(secret) && listed.out.contains("root"), "{}", listed.out);

    let revoked = run(&["key", "revoke", id_of(&shop)], &with_key).await;
    assert_eq!(revoked.code, Some(0), "{}", revoked.err);
    assert_eq!(relay.post_with(&[("x-api-key", &shop)], event).await.status, 401);
    relay.kill();
    let again = run(&["key", "revoke", id_of(&shop)], &variables).await;
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains(id_of(&shop)) && again.err.lines().count() == 1, "{}", again.err);
    let listed = run(&["key", "list", "--format", "json"], &variables).await;
    let keys: Vec<serde_json::Value> = serde_json::from_str(&listed.out).expect("JSON");
    let revoked: Vec<_> = keys.iter().map(|key| !key["revoked_at"].is_null()).collect();
    assert_eq!(revoked, [false, true], "{}", listed.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_it_listens_on_loopback_alone() {
    let database = TestDatabase::sqlite();
    let variables = [("POSTHASTE_DATABASE_URL", database.url()), ("POSTHASTE_HTTP__LISTEN", "0.0.0.0:0")];
    let refused = run(&["serve"], &variables).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY"), "{}", refused.err);
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);

    let svix = mock_svix().await;
    let keyed = [("POSTHASTE_HTTP__LISTEN", "0.0.0.0:0"), ("POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY", "sesame")];
    let relay = RelayProcess::start(&database, &svix, &keyed);
    assert_eq!(relay.post("{}").await.status, 401);
    // The command line finds it although it listens everywhere.
    let listed = run(
        &["key", "list", "--format", "json"],
        &[("POSTHASTE_DATABASE_URL", database.url()), ("POSTHASTE_API_KEY", "sesame")],
    )
    .await;
    assert_eq!((listed.code, listed.out.trim()), (Some(0), "[]"), "{}", listed.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_an_exit_code() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let variables = [("POSTHASTE_DATABASE_URL", database.url()), ("POSTHASTE_HTTP__LISTEN", "127.0.0.1:1")];
    let nobody = run(&["health"], &variables).await;
    assert_eq!((nobody.code, nobody.out.as_str()), (Some(1), ""));
    assert!(
        nobody.err.contains("is the relay running?") && nobody.err.lines().count() == 1,
        "{}",
        nobody.err
    );
    let relay = RelayProcess::start(&database, &svix, &[]);
    // Found by the lock of its file, whatever the configuration says.
    let ready = run(&["health", "--format", "json"], &variables).await;
    assert_eq!(ready.code, Some(0), "{}", ready.err);
    assert!(ready.out.contains("\"status\":\"ready\""), "{}", ready.out);
    let told = run(&["health"], &variables).await;
    assert!(told.out.starts_with("ready (role all), 0 deliveries waiting\ngate svix: open"), "{}", told.out);
    let stats = run(&["stats", "--window", "10m"], &variables).await;
    assert_eq!(stats.code, Some(0), "{}", stats.err);
    assert!(stats.out.starts_with("last 10m: 0 accepted (0.0/s)"), "{}", stats.out);
    assert!(stats.out.contains("\nPARTNER") && stats.out.contains("\nsvix"), "{}", stats.out);
    let refused = run(&["stats", "--window", "9w"], &variables).await;
    assert!(refused.code == Some(1) && refused.err.contains("a window is"), "{}", refused.err);
    let stats = run(&["stats", "--format", "json"], &variables).await;
    assert!(stats.out.contains("\"accepted_per_s\""), "{}", stats.out);
    let url = format!("http://{}", relay.address());
    assert_eq!(run(&["health", "--url", &url], &[]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_makes_the_ledger_and_says_so() {
    let database = TestDatabase::sqlite();
    let variables = [("POSTHASTE_DATABASE_URL", database.url())];
    for _ in 0..2 {
        let done = run(&["migrate"], &variables).await;
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
        assert!(done.out.contains("schema"), "{}", done.out);
    }
    assert_eq!(database.text("SELECT CAST(count(*) AS TEXT) FROM event").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_belongs_to_one_process() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    let variables = [("POSTHASTE_DATABASE_URL", database.url()), ("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")];
    for command in ["serve", "migrate"] {
        let second = run(&[command], &variables).await;
        assert_eq!((second.code, second.out.as_str()), (Some(1), ""), "{command}");
        let tells = second.err.contains("another process owns") && second.err.contains(relay.address());
        assert!(tells && second.err.lines().count() == 1, "{}", second.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_can_not_be_shared_by_roles() {
    let (database, nowhere) = (TestDatabase::sqlite(), ("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0"));
    let url = ("POSTHASTE_DATABASE_URL", database.url());
    let worker = ("POSTHASTE_ROLE", "worker");
    for (arguments, variables, role) in [
        (vec!["serve", "--role", "ingest"], vec![url, nowhere], "ingest"),
        (vec!["serve", "--role", "ingest"], vec![url, nowhere, worker], "ingest"),
        (vec!["serve"], vec![url, nowhere, worker], "worker"),
        (vec!["config", "check"], vec![url, worker], "worker"),
    ] {
        let refused = run(&arguments, &variables).await;
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{arguments:?}");
        let tells = refused.err.contains(&format!("role {role} needs a ledger on Postgres"));
        assert!(tells && refused.err.lines().count() == 1, "{}", refused.err);
    }
    assert!(!database.file().exists(), "nothing was made");
    let unknown = run(&["serve"], &[url, nowhere, ("POSTHASTE_ROLE", "boss")]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("boss") && unknown.err.lines().count() == 1, "{}", unknown.err);
    // The command line has the last word.
    let all = Running::start(&["serve", "--role", "all"], &[url, nowhere, worker]);
    all.complains("listening").await;
    all.signal("TERM");
    assert_eq!(all.end().await.code, Some(0));
}
