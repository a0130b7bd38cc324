//! A subscription of the Pub/Sub emulator. Where none is installed, these tests say so and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Outgoing, Queue, pubsub_way};
use crate::support::HttpClient;
use crate::support::brokers::Broker;

const TOPIC: &str = "projects/posthaste/topics/orders";
/// A second subscription, which nobody reads.
const SHADOW: &str = "projects/posthaste/subscriptions/shadow";
const SUBSCRIPTION: &str = "projects/posthaste/subscriptions/orders";
/// The shortest time that Pub/Sub allows for an acknowledgement.
const ACK_DEADLINE: Duration = Duration::from_secs(10);

pub struct PubsubQueue {
    broker: Broker,
    /// What relays reach it under.
    url: String,
    /// How often it was counted what is left.
    counted: AtomicUsize,
}

impl PubsubQueue {
    async fn ask(&self, method: Method, path: &str, question: Value) -> Value {
        let client = HttpClient::new(self.broker.url());
        let json = [("content-type", "application/json")];
        let answer = client.send(method, &format!("/v1/{path}"), &json, question.to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }
}

impl Queue for PubsubQueue {
    async fn start() -> Self {
        let broker = Broker::pubsub().await.expect("looked for before");
        let url = pubsub_way::open(broker.address()).await;
        let queue = Self { broker, url, counted: AtomicUsize::new(0) };
        queue.ask(Method::PUT, TOPIC, json!({})).await;
        let subscription = json!({
            "topic": TOPIC,
            "ackDeadlineSeconds": ACK_DEADLINE.as_secs(),
            "retainAckedMessages": true,
            "messageRetentionDuration": "600s",
        });
        for name in [SUBSCRIPTION, SHADOW] {
            queue.ask(Method::PUT, name, subscription.clone()).await;
        }
        queue
    }

    fn broker(&mut self) -> &mut Broker {
        &mut self.broker
    }

    fn settings(&self) -> String {
        let (url, deadline) = (&self.url, ACK_DEADLINE.as_millis());
        format!(
            "kind = 'pubsub'\nsubscription = '{SUBSCRIPTION}'\nendpoint_url = '{url}'\nack_deadline_ms = {deadline}"
        )
    }

    async fn publish(&self, messages: &[Outgoing]) {
        let messages: Vec<_> = messages
            .iter()
            .map(|message| {
                let attributes: serde_json::Map<_, _> =
                    message.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
                json!({"data": STANDARD.encode(&message.body), "attributes": attributes})
            })
            .collect();
        self.ask(Method::POST, &format!("{TOPIC}:publish"), json!({"messages": messages})).await;
    }

    async fn waiting(&self) -> u64 {
        self.left().await
    }

    /// The emulator does not tell, but a snapshot holds what is not acknowledged, and the shadow can be set to it.
    async fn left(&self) -> u64 {
        let number = self.counted.fetch_add(1, Ordering::Relaxed);
        let snapshot = format!("projects/posthaste/snapshots/count-{number}");
        self.ask(Method::PUT, &snapshot, json!({"subscription": SUBSCRIPTION})).await;
        self.ask(Method::POST, &format!("{SHADOW}:seek"), json!({"snapshot": snapshot})).await;
        let mut left = 0;
        loop {
            let pull = json!({"maxMessages": 1_000, "returnImmediately": true});
            let pulled = self.ask(Method::POST, &format!("{SHADOW}:pull"), pull).await;
            match pulled["receivedMessages"].as_array().map_or(0, Vec::len) {
                0 => break,
                more => left += more as u64,
            }
        }
        self.ask(Method::DELETE, &snapshot, json!({})).await;
        left
    }

    async fn deliver_again(&self, _: &[Outgoing]) {
        let begin = json!({"time": "2020-01-01T00:00:00Z"});
        self.ask(Method::POST, &format!("{SUBSCRIPTION}:seek"), begin).await;
    }
}

fn is_there() -> bool {
    Broker::pubsub_is_there()
}

suite!(PubsubQueue, only_if: is_there());
