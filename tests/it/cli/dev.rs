//! `posthaste dev`: what a newcomer sees first.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::command::Running;
use crate::support::HttpClient;

/// Longest that a stop in good order may take.
const STOP_LIMIT: Duration = Duration::from_secs(10);

fn dev(arguments: &[&str]) -> Running {
    Running::start(&[&["dev"], arguments].concat(), &[("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")])
}

/// The figure in a line of the summary.
fn figure_of(out: &str, name: &str) -> u64 {
    let lines = out.lines().filter_map(|line| line.trim_start().strip_prefix(name));
    let mut figures = lines.filter_map(|rest| rest.split_whitespace().next()?.replace(',', "").parse().ok());
    figures.next().unwrap_or_else(|| panic!("no {name} in {out}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_events_go_through_throttles_and_arrive_once() {
    // holds: 25
    let ended = dev(&["--events", "300", "--rate", "0", "--exit"]).end().await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    assert!(ended.out.contains("sent = accepted = 300, 0 lost, 0 doubled\n"), "{}", ended.out);
    let figure = |name| figure_of(&ended.out, name);
    assert_eq!((figure("sent"), figure("accepted"), figure("delivered")), (300, 300, 300));
    assert_eq!((figure("lost"), figure("doubled")), (0, 0));
    let lines = |what: &str| ended.out.lines().filter(|line| line.contains(what)).count() as u64;
    assert_eq!(lines("accepted → Svix"), 300);
    assert!(figure("duplicates") > 0 && lines("  duplicate") == figure("duplicates") + 1, "{}", ended.out);
    assert!(figure("throttled") > 1 && lines("429 from Svix for") == figure("throttled"), "{}", ended.out);
    let honoured = format!("{} waited out", figure("throttled"));
    assert!(ended.out.contains(&honoured), "{}", ended.out);
    assert!(!ended.out.contains('\x1b'), "no colours in a pipe");
    let (_, at_partner) = ended.out.split_once("At the partner\n").expect("told");
    let partner = |name| figure_of(at_partner, name);
    let expected = partner("expected");
    assert!((100..300).contains(&expected) && partner("delivered") == expected, "{}", ended.out);
    assert_eq!((partner("lost"), partner("doubled")), (0, 0));
    assert!(partner("failed") > 1 && partner("failed") == lines("503 from sink for"), "{}", ended.out);
    assert_eq!(partner("verified"), expected + partner("failed"), "failed ones are signed, and come again");
    assert!(at_partner.contains("by Svix's library; 0 refused"), "{}", ended.out);
    assert_eq!(lines("accepted → sink"), expected);
    assert!(ended.out.contains("  partner http://127.0.0.1:"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stays_up_for_events_of_ones_own_until_it_is_asked_to_end() {
    let running = dev(&["--events", "20", "--rate", "0"]);
    running.says("It stays up for events of your own").await;
    let relay = HttpClient::new(running.word_after("  relay "));
    let answer =
        relay.post(r#"{"eventType":"order.created","eventId":"mine-1","data":{"total":12.50}}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    assert_eq!(answer.json()["results"][0]["tenant"], "demo", "a bare event has a tenant");
    running.says("mine-1").await;
    running.signal("INT");
    let ended = running.end_within(STOP_LIMIT).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert!(ended.out.contains("sent = accepted = 20, 0 lost, 0 doubled\n"), "{}", ended.out);
    assert!(ended.out.ends_with("Everything is stopped; the ledger is gone.\n"), "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_in_the_middle_it_goes_on_the_next_time() {
    let folder = tempfile::tempdir().expect("a folder");
    // What means something in a URL must not in a folder's name.
    let place = folder.path().join("made here?100%#");
    let place = place.to_str().expect("UTF-8");
    let running = dev(&["--events", "5000", "--rate", "400", "--dir", place]);
    running.says("429 from Svix").await;
    running.signal("TERM");
    let ended = running.end_within(STOP_LIMIT).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    assert!(ended.out.contains("Ended early: "), "{}", ended.out);
    let waiting =
        ended.out.split(" delivered, ").nth(1).and_then(|rest| rest.split(' ').next()).expect("told");
    let waiting: usize = waiting.parse().expect("a number");
    assert!(waiting > 0, "the gate was closed: {}", ended.out);

    let ended = dev(&["--events", "10", "--exit", "--dir", place]).end().await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    assert!(ended.out.contains(&format!("{waiting} events of an earlier run wait")), "{}", ended.out);
    assert!(ended.out.contains("sent = accepted = 10, 0 lost, 0 doubled\n"), "{}", ended.out);
    let delivered = ended.out.lines().filter(|line| line.contains("accepted → Svix")).count();
    assert_eq!(delivered, waiting + 10, "{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    // Ended like that it can't take a temporary folder away.
    let folder = tempfile::tempdir().expect("a folder");
    let mut running = dev(&["--events", "0", "--dir", folder.path().to_str().expect("UTF-8")]);
    running.says("Ctrl-C ends it.").await;
    // A body that never comes keeps the server for a while.
    let address = running.word_after("http://");
    let mut half = TcpStream::connect(&address).await.expect("connected");
    let head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    half.write_all(head.as_bytes()).await.expect("written");
    tokio::time::sleep(Duration::from_millis(200)).await;
    running.signal("INT");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(running.is_running(), "it waits for the body");
    running.signal("INT");
    let ended = running.end_within(Duration::from_secs(2)).await;
    assert_eq!(ended.code, Some(130), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_reads_it_ends_cleanly() {
    let ended = Running::start_unread(&["dev", "--rate", "0"]).end_within(STOP_LIMIT).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_leaves_the_summary() {
    let ended = dev(&["--events", "30", "--rate", "0", "--exit", "--quiet"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.out.contains("relay ") && ended.out.contains("sent = accepted = 30, "), "{}", ended.out);
    assert!(!ended.out.contains("evt_"), "{}", ended.out);
}
