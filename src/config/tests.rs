use rstest::rstest;

use super::*;
use crate::domain::event::Relay;
use crate::ledger::Pooler;

/// 32 bytes in base64 in which the word can be seen.
const CANARY_KEY: &str = "canarycanarycanarycanarycanarycanarycanary4=";

fn from_env(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(None, owned.collect::<Vec<_>>())
}

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), text).expect("written");
    Config::load(Some(file.path()), [])
}

#[test]
fn variables_take_the_kind_of_their_default() {
    let loaded = from_env(&[
        ("POSTHASTE_DATABASE_URL", "postgres://u:p@h/d"),
        ("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0"),
        ("POSTHASTE_HTTP__INGEST_PATHS", "/a, /b"),
        ("POSTHASTE_SVIX__TOKEN", "12345"),
        ("POSTHASTE_SVIX__CREATE_APPLICATIONS", "false"),
        ("POSTHASTE_SVIX__RETRY_SCHEDULE_MS", "1,20"),
        ("POSTHASTE_INGEST__RELAY", "data"),
        ("POSTHASTE_API_KEY", "not a setting"),
        ("POSTHASTE_LEDGER__POOLER", "transaction"),
        ("POSTHASTE_TEST_POSTGRES_URL", "not a setting either"),
        ("PATH", "/bin"),
    ])
    .expect("good");
    let config = loaded.config;
    assert_eq!(config.http.ingest_paths, ["/a", "/b"]);
    assert_eq!(config.svix.token.expect("set").expose_secret(), "12345");
    assert!(!config.svix.create_applications);
    assert_eq!(config.svix.retry_schedule_ms, [1, 20]);
    assert_eq!(config.ingest.relay, Relay::Data);
    assert_eq!(config.ledger.pooler, Pooler::Transaction);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn unknown_variables_warn_and_unknown_keys_in_the_file_fail_with_the_place() {
    let loaded = from_env(&[("POSTHASTE_SVIX__TOKN", "x")]).expect("good");
    assert_eq!(loaded.warnings, ["POSTHASTE_SVIX__TOKN is not a setting of this version and does nothing"]);
    let error = from_file("[svix]\ntokn = 'x'\n").expect_err("unknown key").to_string();
    assert!(error.contains("tokn") && error.contains("svix") && !error.contains('\n'), "{error}");
}

#[rstest]
#[case(&[("POSTHASTE_SVIX__MAX_IN_FLIGHT", "many")], "POSTHASTE_SVIX__MAX_IN_FLIGHT: `many` is not a whole number")]
#[case(&[("POSTHASTE_HTTP__LISTEN", "nowhere")], "socket address")]
#[case(&[("POSTHASTE_DATABASE_URL", "mysql://x")], "database_url")]
#[case(&[("POSTHASTE_HTTP__INGEST_PATHS", "events")], "`events`")]
#[case(&[("POSTHASTE_DISPATCH__LEASE_MS", "10")], "lease_ms")]
#[case(&[("POSTHASTE_DISPATCH__MAX_CLAIM", "0")], "dispatch.max_claim must be at least 1")]
#[case(&[("POSTHASTE_SVIX__SERVER_URL", "ftp://x")], "svix.server_url")]
#[case(&[("POSTHASTE_INGEST__RELAY", "half")], "relay")]
#[case(&[("POSTHASTE_LEDGER__POOLER", "session")], "ledger.pooler")]
#[case(&[("POSTHASTE_LEDGER__POOLER", "transaction")], "database_url names a SQLite file")]
#[case(&[("POSTHASTE_LEDGER__LISTEN_URL", "sqlite:a")], "ledger.listen_url must begin with postgres://")]
#[case(&[("POSTHASTE_LEDGER__READ_TIMEOUT_MS", "0")], "ledger.read_timeout_ms must be at least 1")]
fn bad_values_are_one_clear_line(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
    let error = from_env(variables).expect_err("bad value").to_string();
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
}

#[test]
fn secrets_are_not_shown_and_what_is_shown_can_be_read_again() {
    // holds: 46
    let loaded = from_env(&[
        ("POSTHASTE_DATABASE_URL", "postgres://user:hunter2@db:5432/posthaste"),
        ("POSTHASTE_LEDGER__LISTEN_URL", "postgres://user:hunter2@db/posthaste"),
        ("POSTHASTE_LEDGER__REPLICA_URL", "postgres://user:hunter2@replica/posthaste"),
        ("POSTHASTE_SVIX__TOKEN", "sk_canary.eu"),
        ("POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY", "canary-key"),
        ("POSTHASTE_MASTER_KEY", CANARY_KEY),
        ("POSTHASTE_MASTER_KEY_PREVIOUS", &format!("{CANARY_KEY},{CANARY_KEY}")),
    ])
    .expect("good");
    assert_eq!(loaded.config.master_key_previous.len(), 2);
    let shown = loaded.config.show().expect("shown");
    assert!(!shown.contains("canary") && !shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("master_key = \"[redacted]\""), "{shown}");
    assert!(shown.contains("master_key_previous = [\"[redacted]\", \"[redacted]\"]"), "{shown}");
    assert!(shown.contains("postgres://user:[redacted]@db:5432/posthaste"), "{shown}");
    assert!(!format!("{:?}", loaded.config).contains("canary"));
    from_file(&Config::default().show().expect("shown")).expect("read again");
}

#[rstest]
#[case::short(&[("POSTHASTE_MASTER_KEY", "canary4=")], "master_key must be 32 bytes in base64, this is 5")]
#[case::empty(&[("POSTHASTE_MASTER_KEY", "")], "master_key must be 32 bytes in base64, this is 0")]
#[case::words(&[("POSTHASTE_MASTER_KEY", "a canary")], "master_key is not base64")]
#[case::previous(&[("POSTHASTE_MASTER_KEY_PREVIOUS", concat!("canarycanarycanarycanarycanarycanarycanary4=", ",canary"))], "master_key_previous[1]")]
fn master_keys_are_32_bytes(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
    let error = from_env(variables).expect_err("no key").to_string();
    assert!(error.contains(expected) && !error.contains("canary"), "{error}");
}

#[rstest]
#[case::text(&format!("master_key_previous = '{CANARY_KEY}, {CANARY_KEY}'"), 2)]
#[case::list(&format!("master_key_previous = ['{CANARY_KEY}']"), 1)]
fn previous_master_keys_are_a_list_or_a_text(#[case] file: &str, #[case] count: usize) {
    assert_eq!(from_file(file).expect("good").config.master_key_previous.len(), count);
}

#[rstest]
#[case::no_quotes("master_key = canary", "line 1, column")]
#[case::no_end("svix = 1\nmaster_key = 'canary", "line 2, column")]
#[case::number("master_key = 13371337", "master_key")]
#[case::list("master_key_previous = [['canary']]", "master_key_previous")]
#[case::token("[svix]\ntoken = 13371337", "svix.token")]
fn a_bad_file_does_not_give_its_secrets_away(#[case] file: &str, #[case] place: &str) {
    // holds: 46
    let error = from_file(file).expect_err("bad").to_string();
    assert!(error.contains(place) && !error.contains('\n'), "{error}");
    assert!(!error.contains("canary") && !error.contains("1337"), "{error}");
}
