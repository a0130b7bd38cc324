//! `posthaste bench`: small loads, but the real processes, and every figure it tells.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::command::{Ended, Running};
use super::run;
use crate::support::{TestDatabase, eventually};

/// A small load, with what the test adds.
const SMALL: &[&str] =
    &["bench", "--events", "300", "--producers", "4", "--idle-seconds", "1", "--format", "json"];

/// Its report, where all went well.
fn report_of(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.err, ended.out);
    serde_json::from_str(&ended.out).expect("JSON")
}

/// A port that nobody listens on.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// The relay that a bench has started, once it owns a ledger in `folder`.
async fn child_of(bench: &Running, folder: &Path) -> u32 {
    let owned = async || has_lock(folder).then_some(());
    eventually("a ledger", owned).await;
    let children = Command::new("pgrep").arg("-P").arg(bench.id().to_string()).output().expect("pgrep runs");
    String::from_utf8_lossy(&children.stdout).trim().parse().expect("one child")
}

fn has_lock(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|extension| extension == "lock") || path.is_dir() && has_lock(&path)
    })
}

/// Sends a signal; whether there was somebody to get it.
fn kill(process: u32, signal: &str) -> bool {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{signal}")).arg(process.to_string()).stderr(Stdio::null());
    kill.status().expect("kill runs").success()
}

async fn small(more: &[&str]) -> Value {
    report_of(
        &run(&[SMALL, more, if more.contains(&"--batch") { &[] } else { &["--batch", "25"] }].concat(), &[])
            .await,
    )
}

fn number(report: &Value, pointer: &str) -> f64 {
    let figure = report.pointer(pointer).and_then(Value::as_f64);
    figure.unwrap_or_else(|| panic!("no number at {pointer}: {report:#}"))
}

fn has_arrived_once(report: &Value) {
    assert_eq!(report["good"], true, "{report:#}");
    for round in report["rounds"].as_array().expect("rounds") {
        for nothing in ["lost", "doubled", "unexpected", "signatures_bad"] {
            assert_eq!(round[nothing], 0, "{nothing}: {report:#}");
        }
    }
}

/// Figures that every run has, whatever the ledger.
fn has_figures(report: &Value) {
    for pointer in [
        "/accept/events_per_s",
        "/accept/requests_per_s",
        "/accept/p50_ms",
        "/accept/p99_ms",
        "/delivered/per_s",
        "/delivered/p99_ms",
        "/limits/fsync_per_s",
        "/limits/fsync_p99_us",
        "/limits/bare_client_per_s",
        "/ratios/delivered_to_bare_client",
        "/ratios/accept_requests_to_fsync",
        "/ratios/accept_p99_to_fsync_p99",
    ] {
        let figure = number(&report["median"], pointer);
        assert!(figure > 0.0, "{pointer} is {figure}");
    }
    let median = &report["median"];
    let (p50, p99) = (number(median, "/accept/p50_ms"), number(median, "/accept/p99_ms"));
    assert!(p50 <= p99 && p99 < 60_000.0, "{p50} {p99}");
    assert!(number(median, "/delivered/p50_ms") <= number(median, "/delivered/p99_ms"));
    assert_eq!(number(median, "/accept/refusals"), 0.0);
}

/// What is known of a process of our own.
fn has_figures_of_the_process(report: &Value) {
    let median = &report["median"];
    let started = number(median, "/start_to_first_202_ms");
    assert!(started > 1.0 && started < 60_000.0, "{started}");
    if !cfg!(target_os = "linux") {
        assert!(median["relay"]["cpu_s"].is_null() && median["idle"]["rss_bytes"].is_null(), "{median:#}");
        return;
    }
    let (cpu, per_event) = (number(median, "/relay/cpu_s"), number(median, "/relay/cpu_us_per_event"));
    assert!(cpu > 0.0 && cpu < 600.0, "{cpu}");
    let events = number(report, "/subject/events");
    assert!((per_event - cpu * 1e6 / events).abs() < 1.0, "{per_event}");
    let (idle, peak) = (number(median, "/idle/rss_bytes"), number(median, "/relay/peak_rss_bytes"));
    let mib = f64::from(1 << 20);
    assert!(idle > mib && peak >= idle && peak < 4_096.0 * mib, "{idle} {peak}");
    let watched = number(median, "/idle/cpu_percent_of_a_core");
    assert!((0.0..100.0).contains(&watched), "{watched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_to_svix_are_counted_and_compared_with_the_machine() {
    let report = small(&["--rounds", "2", "--tenants", "3", "--ids", "random", "--duplicates", "2"]).await;
    has_arrived_once(&report);
    has_figures(&report);
    has_figures_of_the_process(&report);
    let expected = serde_json::json!({
        "profile": "svix", "ledger": "sqlite", "key_order": "random", "events": 300, "batch": 25, "duplicates": 2,
        "producers": 4, "payload_bytes": 500, "tenants": 3, "rate": 0, "prefilled_events": 0, "backlog_deliveries": 0,
        "deliveries_per_event": 1,
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&report["subject"][name], value, "{name}");
    }
    assert_eq!(report["rounds"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["median"]["events_before"], 1, "the one that asked whether it is there");
    // 500 bytes of an event are in the file, and went through the WAL.
    assert!(number(&report["median"], "/relay/ledger_growth_bytes_per_event") > 500.0);
    if cfg!(target_os = "linux") {
        assert!(number(&report["median"], "/relay/written_bytes_per_event") >= 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_a_request_at_a_rate_on_a_ledger_that_is_not_empty() {
    let report =
        small(&["--batch", "1", "--rate", "200", "--prefill", "1000", "--payload-bytes", "900"]).await;
    has_arrived_once(&report);
    has_figures(&report);
    // 300 events at 200 a second; the last one goes after 1.495 s.
    let rate = number(&report["median"], "/accept/events_per_s");
    assert!(rate < 201.0, "{rate}");
    assert_eq!(report["subject"]["prefilled_events"], 1_000);
    assert_eq!(report["median"]["events_before"], 1_002, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_requests_to_partners_are_verified() {
    // holds: 44
    for (profile, copies) in [("direct", 1), ("fanout10", 10)] {
        let report = small(&["--profile", profile, "--verify", "all"]).await;
        has_arrived_once(&report);
        has_figures(&report);
        has_figures_of_the_process(&report);
        assert_eq!(report["subject"]["deliveries_per_event"], copies);
        assert_eq!(report["median"]["signatures_verified"], 300 * copies, "{report:#}");
    }
    let sample = small(&["--profile", "direct"]).await;
    let verified = sample["median"]["signatures_verified"].as_u64().expect("a number");
    assert!((2..=4).contains(&verified), "a hundredth of 300: {verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_backlog_for_a_partner_who_is_paused() {
    // holds: 38
    let report = small(&["--profile", "backlog", "--backlog", "2000"]).await;
    has_arrived_once(&report);
    has_figures(&report);
    has_figures_of_the_process(&report);
    assert_eq!(report["subject"]["backlog_deliveries"], 2_000);
    assert_eq!(report["median"]["events_before"], 2_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_rounds_share_the_ledger_and_one_in_use_is_refused() {
    let database = TestDatabase::postgres().await;
    let arguments = ["--database-url", database.url(), "--rounds", "2"];
    let report = small(&arguments).await;
    has_arrived_once(&report);
    has_figures(&report);
    has_figures_of_the_process(&report);
    assert_eq!(report["subject"]["ledger"], "postgres");
    let before: Vec<_> =
        report["rounds"].as_array().expect("rounds").iter().map(|round| &round["events_before"]).collect();
    assert_eq!(before, [1, 302]);
    assert!(report["median"]["relay"]["written_bytes_per_event"].is_null(), "the server writes");
    assert_eq!(database.text("SELECT CAST(count(*) AS TEXT) FROM event").await, "602");

    database
        .text("INSERT INTO partner (id, settings, version, created_at) VALUES ('crm', '{\"name\":\"x\"}', 1, 1) RETURNING id")
        .await;
    let refused = run(&[SMALL, &arguments].concat(), &[]).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.err.contains("in use") && refused.err.contains("`crm`"), "{}", refused.err);
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_runs_already_is_measured_from_outside() {
    let (database, sink) = (TestDatabase::sqlite(), free_address());
    let svix = format!("http://{sink}");
    let relay = Running::start(
        &["serve"],
        &[
            ("POSTHASTE_DATABASE_URL", database.url()),
            ("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0"),
            ("POSTHASTE_SVIX__TOKEN", "testsk_x"),
            ("POSTHASTE_SVIX__SERVER_URL", &svix),
        ],
    );
    relay.complains("listening").await;
    let path = format!("{}.lock", database.file().display());
    let written = async || std::fs::read_to_string(&path).ok().filter(|text| !text.trim().is_empty());
    let url = format!("http://{}", eventually("its address", written).await.trim());
    let report = small(&["--url", &url, "--sink", &sink]).await;
    has_arrived_once(&report);
    has_figures(&report);
    for absent in ["/relay/cpu_s", "/relay/peak_rss_bytes", "/idle/rss_bytes", "/start_to_first_202_ms"] {
        assert_eq!(report["median"].pointer(absent), Some(&Value::Null), "{absent}");
    }
    let pid = relay.id().to_string();
    let watched = small(&["--url", &url, "--sink", &sink, "--pid", &pid]).await;
    has_arrived_once(&watched);
    for told in ["/relay/cpu_s", "/relay/peak_rss_bytes", "/idle/rss_bytes"] {
        assert!(watched["median"].pointer(told).is_some_and(Value::is_number), "{told}");
    }
    // No process has this number: it is above what Linux gives.
    let nobody = ["bench", "--url", &url, "--sink", &sink, "--pid", "4194305"];
    let refused = run(&nobody, &[]).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.err.contains("4194305"), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_done_is_refused_with_its_reason() {
    let (closed, sink) = (format!("http://{}", free_address()), free_address());
    let nowhere = run(&["bench", "--url", &closed, "--sink", &sink], &[]).await;
    assert_eq!((nowhere.code, nowhere.out.as_str()), (Some(1), ""));
    assert!(nowhere.err.contains("is the relay running?"), "{}", nowhere.err);
    for (arguments, named) in [
        (vec!["bench", "--events", "0"], "--events"),
        (vec!["bench", "--payload-bytes", "10"], "--payload-bytes"),
        (vec!["bench", "--profile", "kafka"], "kafka"),
        (vec!["bench", "--url", &closed], "--sink"),
        (vec!["bench", "--url", &closed, "--sink", &sink, "--database-url", "sqlite:x.db"], "--database-url"),
    ] {
        let refused = run(&arguments, &[]).await;
        assert_eq!((refused.code, refused.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(refused.err.contains(named), "{}", refused.err);
    }
    let folder = run(&["bench", "--dir", "/nowhere/at/all"], &[]).await;
    assert_eq!(folder.code, Some(1));
    assert!(folder.err.contains("/nowhere/at/all") && folder.err.lines().count() == 1, "{}", folder.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_ends_it_and_says_how() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_str().expect("UTF-8");
    let running = Running::start(&[SMALL, &["--dir", place, "--rate", "10"]].concat(), &[]);
    let relay = child_of(&running, folder.path()).await;
    kill(relay, "KILL");
    let ended = running.end().await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("the relay ended in the middle (signal: 9"), "{}", ended.err);
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0, "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_early_it_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_str().expect("UTF-8");
    let running = Running::start(&[SMALL, &["--dir", place, "--rate", "10"]].concat(), &[]);
    let relay = child_of(&running, folder.path()).await;
    running.signal("INT");
    let ended = running.end().await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(130), ""));
    assert!(ended.err.contains("ended early"), "{}", ended.err);
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0, "nothing is left");
    assert!(!kill(relay, "0"), "the relay is gone");
}
