//! Ending in good order.

use std::time::Duration;

use posthaste::mock::Trouble;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ingest::batch;
use crate::support::{RelayProcess, TestDatabase, mock_svix};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_in_time_although_a_body_is_half_sent() {
    // holds: 51
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(500))));
    assert_eq!(relay.post(batch(0, 20)).await.status, 202);
    let mut half = TcpStream::connect(relay.address()).await.expect("connected");
    let head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{\"id\":";
    half.write_all(head.as_bytes()).await.expect("written");
    relay.signal("TERM");
    let code = relay.ended(Duration::from_secs(30)).await;
    assert_eq!(code, Some(0));
    // What was in flight when the signal came was finished and recorded: nothing is sent again.
    let posts = svix.request_count();
    let relay = RelayProcess::start(&database, &svix, &[]);
    svix.wait_for_messages(20, Duration::from_secs(20)).await.expect("all arrive");
    assert_eq!(svix.request_count(), 20, "{posts} of them before the restart");
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_ends_it_is_not_ready_and_takes_nothing() {
    // holds: 51
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_secs(3))));
    assert_eq!(relay.post(batch(0, 1)).await.status, 202);
    svix.wait_for_requests(1, Duration::from_secs(5)).await.expect("in flight");
    relay.signal("TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ready = relay.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.json()["reasons"][0].as_str().expect("a reason").starts_with("draining"));
    let refused = relay.post(batch(1, 1)).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (503, "draining"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(relay.get("/health/live").await.status, 200);
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0));
    assert_eq!(svix.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_secs(10))));
    assert_eq!(relay.post(batch(0, 1)).await.status, 202);
    svix.wait_for_requests(1, Duration::from_secs(5)).await.expect("in flight");
    relay.signal("INT");
    assert_eq!(relay.ended(Duration::from_millis(500)).await, None, "it waits for what is in flight");
    relay.signal("INT");
    assert_eq!(relay.ended(Duration::from_secs(2)).await, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off() {
    // holds: 8
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let variables =
        [("POSTHASTE_HTTP__HEADER_TIMEOUT_MS", "500"), ("POSTHASTE_HTTP__BODY_TIMEOUT_MS", "700")];
    let relay = RelayProcess::start(&database, &svix, &variables);
    let mut silent = TcpStream::connect(relay.address()).await.expect("connected");
    silent.write_all(b"POST /notifications HTTP/1.1\r\nHost: ").await.expect("written");
    let mut slow = TcpStream::connect(relay.address()).await.expect("connected");
    let head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.expect("written");
    let mut answers = [String::new(), String::new()];
    let read = |mut stream: TcpStream| async move {
        let mut text = String::new();
        let reading = stream.read_to_string(&mut text);
        // A reset instead of an end is an end too.
        let _ = tokio::time::timeout(Duration::from_secs(5), reading).await.expect("cut off in time");
        text
    };
    (answers[0], answers[1]) = tokio::join!(read(silent), read(slow));
    assert!(answers[0].is_empty() || answers[0].starts_with("HTTP/1.1 408"), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 408"), "{}", answers[1]);
    assert_eq!(relay.post(batch(0, 1)).await.status, 202, "others are served");
    svix.wait_for_messages(1, Duration::from_secs(5)).await.expect("arrives");
}
