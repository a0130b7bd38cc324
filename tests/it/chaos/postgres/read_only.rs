//! The server turns read-only, as one whose disk is nearly full is made to, and takes writes again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use posthaste::mock::{MockPartner, PartnerAnswer, Trouble};
use serde_json::json;

use super::body;
use crate::chaos::tell;
use crate::support::partners::{add_endpoint, direct};
use crate::support::postgres::PostgresServer;
use crate::support::proxy::Proxy;
use crate::support::{TOKEN, TestDatabase, TestRelay, bounded, eventually, mock_svix};

const EVENTS: usize = 200;
const SEND_TAKES: Duration = Duration::from_millis(50);
/// How long the server takes no writes: several leases.
const READ_ONLY_FOR: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_turns_read_only_lets_no_send_begin_that_could_not_be_settled() {
    bounded(run()).await;
}

async fn run() {
    let server = PostgresServer::start(&[]).await;
    let proxy = Proxy::start(server.socket()).await;
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    svix.set_trouble(Some(Trouble::Slow(SEND_TAKES)));
    partner.set_answer(Some(PartnerAnswer { delay: SEND_TAKES, ..PartnerAnswer::status(204) }));
    let mut config = direct(&TestDatabase::at(proxy.url()), &svix);
    config.svix.token = Some(TOKEN.to_owned().into());
    config.svix.timeout_ms = 250;
    config.dispatch.lease_ms = 1_000;
    config.dispatch.max_in_flight_per_destination = 4;
    let relay = TestRelay::start_with(config).await;
    add_endpoint(&relay, "crm", json!({ "url": partner.url("/hook"), "event_types": ["*"] })).await;
    let ids: Vec<_> = (0..EVENTS).map(|n| format!("e{n}")).collect();
    assert_eq!(relay.post(body(&ids, 100)).await.status, 202);
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    server.execute("SELECT pg_reload_conf()").await;
    eventually("the relay notices", async || (relay.get("/health/ready").await.status == 503).then_some(()))
        .await;
    tokio::time::sleep(4 * SEND_TAKES).await;
    let count = || svix.request_count() + partner.request_count();
    let (sent, until) = (count(), Instant::now() + READ_ONLY_FOR);
    while Instant::now() < until {
        assert_eq!(count(), sent, "a send began that could not be settled");
        assert_eq!(relay.post(body(&["never".into()], 10)).await.status, 503);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(sent < 2 * EVENTS as u64, "all was sent before: the test shows nothing");

    server.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    server.execute("SELECT pg_reload_conf()").await;
    let back = Instant::now();
    eventually("the relay is ready", async || (relay.get("/health/ready").await.status == 200).then_some(()))
        .await;
    let back_after = back.elapsed();
    let progress = relay.finish().await;
    assert_eq!(progress.done.get("delivered"), Some(&(2 * EVENTS as i64)));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in partner.requests() {
        *counts.entry(request.header("webhook-id").to_owned()).or_default() += 1;
    }
    for request in svix.requests() {
        *counts.entry(format!("svix {:?}", request.event_id)).or_default() += 1;
    }
    let again = counts.values().filter(|count| **count > 1).count();
    assert_eq!((counts.len(), again), (2 * EVENTS, 0), "each once");
    tell(
        "Postgres turns read-only",
        format!(
            "{sent} sends before, none in {} s while it took no writes, ready {} ms after it did; each of {} deliveries was \
             sent once",
            READ_ONLY_FOR.as_secs(),
            back_after.as_millis(),
            counts.len(),
        ),
    );
}
