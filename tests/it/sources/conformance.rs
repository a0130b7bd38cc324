//! The suite.

use std::collections::HashMap;
use std::time::Duration;

use posthaste::mock::MockSvix;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Outgoing, Queue, drained, event, events, metric, number, relay, shown, source_file};
use crate::support::{RelayProcess, TestDatabase, bounded, eventually, mock_svix};

/// Messages of the test with kills.
const MESSAGES: usize = 5_000;
const CHUNK: usize = 100;
/// Time for what a test publishes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Lists the suite's tests for one kind of queue: `suite!(NatsQueue)`. Another kind of queue may stand in where things
/// must come `again`, and all may be done `only_if` there is a broker.
#[macro_export]
macro_rules! suite {
    (@only_if $is_there:expr; $($name:ident: $queue:ty,)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            if $is_there {
                $crate::sources::conformance::$name::<$queue>().await;
            }
        }
    )+};
    ($queue:ty) => {
        suite!($queue, again: $queue, only_if: true);
    };
    ($queue:ty, again: $again:ty) => {
        suite!($queue, again: $again, only_if: true);
    };
    ($queue:ty, only_if: $is_there:expr) => {
        suite!($queue, again: $queue, only_if: $is_there);
    };
    ($queue:ty, again: $again:ty, only_if: $is_there:expr) => {
        suite! {
            @only_if $is_there;
            kill_and_restart_lose_and_double_nothing: $queue,
            poison_is_kept_and_the_rest_arrives: $queue,
            nothing_is_acknowledged_while_the_ledger_is_away: $queue,
            what_comes_again_is_a_duplicate: $again,
            two_relays_share_a_queue: $queue,
            a_broker_that_is_away_is_shown_and_waited_for: $queue,
            a_tenant_over_its_limit_waits_alone: $queue,
        }
    };
}

/// How often each number has arrived.
fn arrived(svix: &MockSvix) -> HashMap<u64, usize> {
    let mut copies = HashMap::new();
    for message in svix.messages() {
        *copies.entry(number(&message.payload_json())).or_default() += 1;
    }
    copies
}

/// 5,000 messages, every second one without an event id; the relay is killed twice and the broker once in the middle.
pub async fn kill_and_restart_lose_and_double_nothing<Q: Queue>() {
    let test = async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let mut queue = Q::start().await;
        let file = source_file(&queue, "batch = 50\nmax_in_flight = 400");
        let variables = [("POSTHASTE_CONFIG", file.path().to_str().expect("UTF-8"))];
        let start = || RelayProcess::start(&database, &svix, &variables);
        let mut running = start();
        let all = events(0..MESSAGES);
        for (number, chunk) in all.chunks(CHUNK).enumerate() {
            queue.publish(chunk).await;
            match number {
                12 | 37 => {
                    running.kill();
                    running = start();
                }
                25 if queue.broker().persists() => queue.broker().restart().await,
                _ => {}
            }
        }
        svix.wait_for_messages(MESSAGES as u64, PATIENCE).await.expect("all arrive");
        // What was not acknowledged when a relay was killed comes again first.
        drained(&queue).await;
        running.signal("TERM");
        assert_eq!(running.ended(Duration::from_secs(30)).await, Some(0));
        assert_eq!(queue.left().await, 0, "not even what was on its way");
        let copies = arrived(&svix);
        let doubled = copies.values().filter(|count| **count > 1).count();
        assert_eq!((copies.len(), doubled), (MESSAGES, 0), "lost and doubled");
    };
    tokio::time::timeout(PATIENCE * 2, test).await.expect("the test took too long");
}

/// Not JSON, no type, an array with a bad event in it, and a conflict, among good ones.
pub async fn poison_is_kept_and_the_rest_arrives<Q: Queue>() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = Q::start().await;
        let relay = relay(&queue, &database, &svix, "").await;
        let array = r#"[{"id":"in-array","type":"t","data":{"n":100}},{"id":"typeless"},{"type":"t","data":{"n":101}}]"#;
        let binary = Outgoing::new("m-binary", r#"{"n":102}"#)
            .header("ce-specversion", "1.0")
            .header("ce-type", "order.paid")
            .header("ce-id", "binary-1");
        let mut messages = events(0..20);
        messages.insert(3, Outgoing::new("m-poison", Q::poison()).header("origin", "a test"));
        messages.insert(7, Outgoing::new("m-array", array));
        messages.insert(11, binary);
        queue.publish(&messages).await;
        svix.wait_for_messages(23, PATIENCE).await.expect("the good ones arrive");
        queue.publish(&[Outgoing::new("m-conflict", r#"{"id":"order-0","type":"t","tenant":"acme"}"#)]).await;
        queue.publish(&[event(20, true)]).await;
        svix.wait_for_messages(24, PATIENCE).await.expect("the queue goes on");
        let listed = eventually("three are kept", async || {
            let page = relay.get("/v1/rejected").await.json();
            (page["rejected"].as_array()?.len() == 3).then_some(page)
        })
        .await;
        let mut kept = Vec::new();
        for row in listed["rejected"].as_array().expect("a list") {
            let origin = row["origin"].as_str().expect("an origin");
            assert!(origin.ends_with(&format!(":{}", super::SOURCE)), "{origin}");
            let whole = relay.get(&format!("/v1/rejected/{}", row["id"])).await.json();
            kept.push((bytes(&whole), whole));
        }
        let find = |body: &[u8]| &kept.iter().find(|(found, _)| found == body).expect("kept").1;
        let poison = find(&Q::poison());
        assert_eq!(poison["attributes"]["origin"], "a test", "{poison}");
        assert!(!poison["reason"].as_str().expect("a reason").is_empty());
        assert!(find(br#"{"id":"typeless"}"#)["reason"].as_str().expect("text").contains("type"));
        let conflict = find(br#"{"id":"order-0","type":"t","tenant":"acme"}"#);
        assert!(conflict["reason"].as_str().expect("text").contains("stored already"), "{conflict}");
        drained(&queue).await;
        assert_eq!(metric(&relay, "posthaste_source_rejected_events_total", "").await, 3.0);
        assert_eq!(metric(&relay, "posthaste_ingest_events_total", "verdict=\"accepted\"").await, 24.0);
        assert_eq!(metric(&relay, "posthaste_ingest_events_total", "verdict=\"conflict\"").await, 1.0);
        relay.finish().await;
        assert!(svix.messages().iter().any(|message| message.event_id.as_deref() == Some("binary-1")));
        assert_eq!((arrived(&svix).len(), svix.message_count()), (24, 24));
    })
    .await;
}

/// The bytes of a rejected message as the API shows them.
fn bytes(rejected: &Value) -> Vec<u8> {
    use base64::Engine as _;
    let text = rejected["body_base64"].as_str().expect("bytes");
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

/// Another connection holds the ledger's file for twice as long as messages may go unacknowledged.
pub async fn nothing_is_acknowledged_while_the_ledger_is_away<Q: Queue>() {
    const COUNT: usize = 200;
    const IN_FLIGHT: u64 = 50;
    let away = Duration::from_millis(2 * Q::REDELIVERY_MS);
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = Q::start().await;
        let relay = relay(&queue, &database, &svix, "batch = 25\nmax_in_flight = 50").await;
        queue.publish(&events(0..10)).await;
        svix.wait_for_messages(10, PATIENCE).await.expect("it is read");
        let lock = database.lock().await;
        queue.publish(&events(10..10 + COUNT)).await;
        let until = Instant::now() + away;
        eventually("some are fetched", async || {
            let received = metric(&relay, "posthaste_source_messages_total", "").await;
            (received > 10.0).then_some(())
        })
        .await;
        let held = queue.waiting().await;
        assert!(held >= COUNT as u64 - IN_FLIGHT, "only so many may be under way: {held} wait");
        let mut least = held;
        while Instant::now() < until {
            // Whatever was acknowledged would make room for others.
            least = least.min(queue.waiting().await);
            assert!(least >= COUNT as u64 - IN_FLIGHT, "{least} wait: some were acknowledged");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        eventually("it is shown", async || (shown(&relay).await["state"] == "paused").then_some(())).await;
        assert_eq!(svix.message_count(), 10);
        lock.release().await;
        svix.wait_for_messages(10 + COUNT as u64, PATIENCE).await.expect("nothing is lost");
        drained(&queue).await;
        eventually("it is up", async || (shown(&relay).await["state"] == "up").then_some(())).await;
        let received = metric(&relay, "posthaste_source_messages_total", "").await;
        let twice = received - 10.0 - COUNT as f64;
        // Without more time all that are held would come again, each time that theirs is over.
        let bound = if Q::HANDS_OUT_ONCE { 1.0 } else { IN_FLIGHT as f64 };
        assert!((0.0..bound).contains(&twice), "their time was extended: {twice} were delivered twice");
        relay.finish().await;
        assert_eq!(arrived(&svix).len(), 10 + COUNT);
        assert_eq!(svix.message_count(), 10 + COUNT as u64, "none is doubled");
    })
    .await;
}

/// Everything is delivered twice, also the events that have no id of their own.
pub async fn what_comes_again_is_a_duplicate<Q: Queue>() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = Q::start().await;
        let first = relay(&queue, &database, &svix, "").await;
        let mut messages = events(0..40);
        messages
            .push(Outgoing::new("m-array", r#"[{"type":"t","data":{"n":40}},{"type":"t","data":{"n":41}}]"#));
        messages.push(Outgoing::new("m-bad", r#"{"no":"type"}"#));
        queue.publish(&messages).await;
        svix.wait_for_messages(42, PATIENCE).await.expect("all arrive");
        drained(&queue).await;
        first.finish().await;
        queue.deliver_again(&messages).await;
        let second = relay(&queue, &database, &svix, "").await;
        eventually("all are duplicates", async || {
            let duplicates = metric(&second, "posthaste_ingest_events_total", "verdict=\"duplicate\"").await;
            assert!(duplicates <= 42.0 || !Q::HANDS_OUT_ONCE, "{duplicates} of 42");
            (duplicates >= 42.0).then_some(())
        })
        .await;
        drained(&queue).await;
        let kept = second.get("/v1/rejected").await.json();
        assert_eq!(kept["rejected"].as_array().expect("a list").len(), 1, "kept once: {kept}");
        second.finish().await;
        assert_eq!((arrived(&svix).len(), svix.message_count()), (42, 42));
    })
    .await;
}

/// Two nodes, one ledger, one queue.
pub async fn two_relays_share_a_queue<Q: Queue>() {
    bounded(async {
        let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
        let queue = Q::start().await;
        let small = "batch = 10\nmax_in_flight = 20";
        let one = relay(&queue, &database, &svix, small).await;
        let other = relay(&queue, &database, &svix, small).await;
        queue.publish(&events(0..1_000)).await;
        svix.wait_for_messages(1_000, PATIENCE).await.expect("all arrive");
        drained(&queue).await;
        let mut received = Vec::new();
        for relay in [&one, &other] {
            received.push(metric(relay, "posthaste_source_messages_total", "").await);
        }
        assert!(received.iter().all(|count| *count > 0.0), "{received:?}");
        one.finish().await;
        other.finish().await;
        assert_eq!((arrived(&svix).len(), svix.message_count()), (1_000, 1_000));
    })
    .await;
}

/// The relay starts without its broker, is ready all the same, and reads once it is there.
pub async fn a_broker_that_is_away_is_shown_and_waited_for<Q: Queue>() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let mut queue = Q::start().await;
        if !queue.broker().persists() {
            // Its queue would be gone: that a lost connection is made anew is what the others show.
            return;
        }
        queue.broker().kill();
        let relay = relay(&queue, &database, &svix, "").await;
        let down = eventually("it is down", async || {
            let shown = shown(&relay).await;
            (shown["state"] == "down").then_some(shown)
        })
        .await;
        assert!(down["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{down}");
        assert_eq!(relay.get("/health/ready").await.status, 200, "events come over HTTP all the same");
        assert_eq!(metric(&relay, "posthaste_source_state", "state=\"down\"").await, 1.0);
        queue.broker().start().await;
        queue.publish(&events(0..10)).await;
        if let Err(missing) = svix.wait_for_messages(10, PATIENCE).await {
            panic!("{missing:?}, and the source is {}", shown(&relay).await);
        }
        let up = json!({"source": super::SOURCE, "state": "up"});
        eventually("it is up", async || {
            let shown = shown(&relay).await;
            (shown["source"] == up["source"] && shown["state"] == up["state"]).then_some(())
        })
        .await;
        queue.broker().restart().await;
        queue.publish(&events(10..20)).await;
        svix.wait_for_messages(20, PATIENCE).await.expect("it is read again");
        assert!(metric(&relay, "posthaste_source_reconnects_total", "").await >= 1.0);
        relay.finish().await;
        assert_eq!(arrived(&svix).len(), 20);
    })
    .await;
}

/// One tenant may put in one event in five seconds; what another one publishes behind it is not kept waiting.
pub async fn a_tenant_over_its_limit_waits_alone<Q: Queue>() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = Q::start().await;
        let relay = relay(&queue, &database, &svix, "batch = 5\nmax_in_flight = 20").await;
        let slow = json!({"ingest_limit": {"per_second": 0.2, "burst": 1}}).to_string();
        let json = [("content-type", "application/json")];
        let put = relay.send(axum::http::Method::PUT, "/v1/tenants/slow", &json, slow).await;
        assert_eq!(put.status, 201);
        let of = |tenant: &str, n: usize| {
            let event =
                json!({"id": format!("{tenant}-{n}"), "type": "t", "tenant": tenant, "data": {"n": n}});
            Outgoing::new(format!("{tenant}-{n}"), event.to_string())
        };
        queue.publish(&[of("slow", 0)]).await;
        svix.wait_for_messages(1, PATIENCE).await.expect("its burst");
        let spent = Instant::now();
        queue.publish(&[of("slow", 1), of("slow", 2)]).await;
        let quick: Vec<_> = (10..60).map(|n| of("quick", n)).collect();
        queue.publish(&quick).await;
        svix.wait_for_messages(51, PATIENCE).await.expect("the quick one's, and one of the slow one's");
        let slow = || svix.messages().iter().filter(|message| message.app == "slow").count();
        assert_eq!(slow(), 1, "the others overtake the slow one's");
        svix.wait_for_messages(53, PATIENCE).await.expect("the slow one's arrive too");
        assert!(spent.elapsed() > Duration::from_secs(4), "its limit holds");
        drained(&queue).await;
        relay.finish().await;
        assert_eq!(svix.message_count(), 53);
    })
    .await;
}
