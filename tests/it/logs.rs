//! Log lines: written by a thread of their own, never in the way of the work.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use posthaste::mock::MockSvix;

use crate::ingest::batch;
use crate::support::{HttpClient, RelayProcess, TestDatabase, eventually, mock_svix};

/// A relay whose lines on stderr are read until it listens, and then no more.
async fn with_stalled_log(
    database: &TestDatabase,
    svix: &MockSvix,
) -> (Child, BufReader<ChildStderr>, HttpClient) {
    let mut command = RelayProcess::command(database, svix, &[("POSTHASTE_LOG__LEVEL", "trace")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the relay starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let address = loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("a line") > 0, "it listens");
        if let Some((_, rest)) = line.split_once(" address=") {
            break rest.split_whitespace().next().expect("an address").to_owned();
        }
    };
    (child, lines, HttpClient::new(format!("http://{address}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_of_the_log_stops_nothing() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let (mut child, unread, client) = with_stalled_log(&database, &svix).await;
    // The pipe and the queue fill; what comes then is dropped and counted.
    let (mut dropped, mut posted) = (0, 0);
    let filling = async {
        while dropped == 0 {
            assert_eq!(client.post(batch(posted, 50)).await.status, 202);
            assert_eq!(client.get("/health/live").await.status, 200);
            posted += 50;
            let page = String::from_utf8(client.get("/metrics").await.body.to_vec()).expect("text");
            let line = page.lines().find_map(|line| line.strip_prefix("posthaste_log_dropped_lines_total "));
            dropped = line.expect("the metric").parse::<u64>().expect("a number");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), filling).await;
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.expect("kill runs").success());
    let mut status = None;
    if waited.is_ok() {
        let ended = async || child.try_wait().expect("a child");
        status = Some(eventually("it ends although nobody reads", ended).await);
    }
    let _ = child.kill();
    drop(unread);
    assert!(waited.is_ok(), "the relay has stopped with the reader of its log");
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_are_written_before_the_end() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    for _ in 0..5 {
        let mut relay = RelayProcess::start(&database, &svix, &[]);
        relay.signal("TERM");
        assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0));
        eventually("the last line", async || (relay.log_lines_with("stopped") > 0).then_some(())).await;
    }
}
