//! The end of a relay while bodies are half sent.

use std::time::{Duration, Instant};

use posthaste::mock::Trouble;

use super::{Raw, head, status};
use crate::chaos::tell;
use crate::ingest::batch;
use crate::support::{RelayProcess, TestDatabase, mock_svix};

const HALF_SENT: usize = 50;

on_both_databases!(half_sent_bodies_hold_nobody_up, a_second_ctrl_c_is_at_once_with_half_sent_bodies_open);

/// Clients who have sent a head and the beginning of a body, each of an event of its own.
async fn half_sent(relay: &RelayProcess) -> Vec<Raw> {
    let mut clients = Vec::new();
    for n in 0..HALF_SENT {
        let mut client = Raw::open(relay).await;
        client.say(format!("{}{{\"id\":\"half_{n}\",\"type\":\"half\"", head(100))).await;
        clients.push(client);
    }
    // Each is in the middle of its body by then.
    tokio::time::sleep(Duration::from_millis(200)).await;
    clients
}

/// Fails where not exactly the 100 events that were acknowledged are there after a restart.
async fn nothing_else_is_there(database: &TestDatabase, svix: &posthaste::mock::MockSvix) {
    let relay = RelayProcess::start(database, svix, &[]);
    svix.wait_for_messages(100, Duration::from_secs(30)).await.expect("what was acknowledged is there");
    let again = relay.post(batch(0, 100)).await;
    assert!(again.statuses().iter().all(|verdict| verdict == "duplicate"), "{}", again.json());
    assert_eq!(database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await, "100");
    assert_eq!(svix.message_count(), 100);
}

async fn half_sent_bodies_hold_nobody_up(database: TestDatabase) {
    // holds: 51
    let svix = mock_svix().await;
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(300))));
    let mut clients = half_sent(&relay).await;
    assert_eq!(relay.post(batch(0, 100)).await.status, 202);
    relay.signal("TERM");
    let told = Instant::now();
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0));
    let took = told.elapsed();
    for client in &mut clients {
        let (answer, _) = client.closed(Duration::from_secs(1)).await.expect("its connection is gone");
        assert_ne!(status(&answer), 202, "nobody is told that half an event was taken");
    }
    svix.set_trouble(None);
    nothing_else_is_there(&database, &svix).await;
    tell(
        "SIGTERM",
        format!("{HALF_SENT} half-sent bodies: gone after {:.1} s, exit code 0", took.as_secs_f64()),
    );
}

async fn a_second_ctrl_c_is_at_once_with_half_sent_bodies_open(database: TestDatabase) {
    // holds: 51
    let svix = mock_svix().await;
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_secs(10))));
    let clients = half_sent(&relay).await;
    assert_eq!(relay.post(batch(0, 100)).await.status, 202);
    svix.wait_for_requests(1, Duration::from_secs(5)).await.expect("in flight");
    relay.signal("INT");
    assert_eq!(relay.ended(Duration::from_millis(500)).await, None, "it waits for what is in flight");
    relay.signal("INT");
    let told = Instant::now();
    assert_eq!(relay.ended(Duration::from_secs(2)).await, Some(130));
    let took = told.elapsed();
    drop(clients);
    svix.set_trouble(None);
    nothing_else_is_there(&database, &svix).await;
    let millis = took.as_millis();
    tell("Ctrl-C twice", format!("{HALF_SENT} half-sent bodies: gone {millis} ms after the second"));
}
