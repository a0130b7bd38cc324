//! Kill -9 in the middle of things: what was acknowledged arrives, once.

use std::collections::HashMap;
use std::time::Duration;

use crate::ingest::batch;
use crate::support::{RelayProcess, TestDatabase, mock_svix};

const EVENTS: usize = 5_000;
const PER_BATCH: usize = 50;
const ROUNDS: usize = 6;

/// 5,000 events, the relay killed six times on the way; half of the time Svix forgets keys, so that `eventId` must
/// hold alone.
async fn what_was_acknowledged_arrives_once(database: TestDatabase) {
    // holds: 19, 36
    let svix = mock_svix().await;
    let mut acknowledged = Vec::new();
    let mut pending: Vec<usize> = (0..EVENTS / PER_BATCH).rev().collect();
    for round in 0..ROUNDS {
        svix.set_replay_by_key(round % 2 == 0);
        let relay = RelayProcess::start(
            &database,
            &svix,
            &[("POSTHASTE_DISPATCH__LEASE_MS", "2000"), ("POSTHASTE_SVIX__TIMEOUT_MS", "500")],
        );
        // Killed from the side, at another moment in every round, with requests open and sends in flight.
        let kill_after = Duration::from_millis(150 + 90 * round as u64);
        let client = (*relay).clone();
        let sending = async {
            while let Some(number) = pending.pop() {
                match client.try_post(batch(number * PER_BATCH, PER_BATCH)).await {
                    Ok(answer) if answer.status == 202 => acknowledged.push(number),
                    // Unknown: it is sent again in the next round, as a platform would.
                    _ => {
                        pending.push(number);
                        break;
                    }
                }
            }
        };
        let _ = tokio::time::timeout(kill_after, sending).await;
        relay.kill();
        // What was cut off in the middle of an answer is sent again too.
        let known: std::collections::HashSet<_> = acknowledged.iter().chain(&pending).copied().collect();
        pending.extend((0..EVENTS / PER_BATCH).filter(|number| !known.contains(number)));
    }
    svix.set_replay_by_key(false);
    let relay = RelayProcess::start(&database, &svix, &[]);
    for number in &pending {
        assert_eq!(relay.post(batch(number * PER_BATCH, PER_BATCH)).await.status, 202);
    }
    svix.wait_for_messages(EVENTS as u64, Duration::from_secs(60)).await.expect("all arrive");
    // Time for a double to show.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut copies: HashMap<String, usize> = HashMap::new();
    for message in svix.messages() {
        *copies.entry(message.event_id.clone().expect("an id")).or_default() += 1;
    }
    let doubled = copies.values().filter(|count| **count > 1).count();
    assert_eq!((copies.len(), doubled), (EVENTS, 0), "lost and doubled");
    let mut keys: HashMap<String, String> = HashMap::new();
    for request in svix.requests() {
        let (Some(event_id), Some(key)) = (request.event_id.clone(), request.idempotency_key.clone()) else {
            continue;
        };
        let known = keys.entry(event_id).or_insert_with(|| key.clone());
        assert_eq!(*known, key, "no event goes out under two keys");
    }
    drop(relay);
}

on_both_databases!(what_was_acknowledged_arrives_once);
