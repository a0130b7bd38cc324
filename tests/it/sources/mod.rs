//! What every kind of source must do, against its real broker: one suite, and a file a kind for how its queue is
//! filled and looked at.

#[macro_use]
mod conformance;
mod nats;
mod pubsub;
mod pubsub_way;
mod rabbitmq;
mod redis;
mod rejected;
mod speed;
mod sqs;
mod watching;

use std::io::Write as _;

use posthaste::config::Config;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::support::brokers::Broker;
use crate::support::{TestDatabase, TestRelay, config, eventually, metrics};
use posthaste::mock::MockSvix;

/// The source's name in every test.
pub const SOURCE: &str = "orders";

/// A message as a producer sends it.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    pub body: Vec<u8>,
    pub headers: Vec<(String, String)>,
    /// What its producer calls it, for brokers that do not name messages themselves.
    pub id: String,
}

impl Outgoing {
    /// A message with these bytes, which its producer calls `id`.
    pub fn new(id: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), headers: Vec::new(), id: id.into() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A queue, as its producers and its operator see it.
pub trait Queue: Sized + Send + Sync {
    /// Longest that a message may wait until it is delivered again, as [`Self::settings`] has it, in milliseconds.
    const REDELIVERY_MS: u64 = 6_000;

    /// Whether the broker keeps to handing a message to nobody else while it is being worked on.
    const HANDS_OUT_ONCE: bool = true;

    /// An empty queue of a broker of its own.
    async fn start() -> Self;

    fn broker(&mut self) -> &mut Broker;

    /// What of the source's settings is its kind's, as TOML, `kind` among them.
    fn settings(&self) -> String;

    /// Publishes messages in order; returns when the broker has them for good.
    async fn publish(&self, messages: &[Outgoing]);

    /// How many messages are there that nobody was given; where the broker does not tell, those not acknowledged.
    async fn waiting(&self) -> u64;

    /// How many messages are there that are not acknowledged, as far as the broker tells while they are read.
    async fn left(&self) -> u64;

    /// Has everything that was ever published delivered again, under the same names; `messages` is all of it. Nobody
    /// reads meanwhile.
    async fn deliver_again(&self, messages: &[Outgoing]);

    /// Bytes that are no event and that this broker carries.
    fn poison() -> Vec<u8> {
        b"\xff\x00 not JSON".to_vec()
    }
}

/// `[[sources]]` with one source.
pub fn source_toml(queue: &impl Queue, more: &str) -> String {
    format!("[[sources]]\nname = '{SOURCE}'\n{}\n{more}\n", queue.settings())
}

/// A configuration file with one source.
pub fn source_file(queue: &impl Queue, more: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(source_toml(queue, more).as_bytes()).expect("written");
    file
}

/// The settings for tests, with one source.
pub fn source_config(queue: &impl Queue, database: &TestDatabase, svix: &MockSvix, more: &str) -> Config {
    let file = source_file(queue, more);
    let sources = Config::load(Some(file.path()), []).expect("good").config.sources;
    Config { sources, ..config(database, svix) }
}

/// A relay in this process that reads one source.
pub async fn relay(queue: &impl Queue, database: &TestDatabase, svix: &MockSvix, more: &str) -> TestRelay {
    TestRelay::start_with(source_config(queue, database, svix, more)).await
}

/// The number in an event's data.
pub fn number(payload: &Value) -> u64 {
    payload["data"]["n"].as_u64().expect("a number")
}

/// An event with a number, and with an id of its own or none.
pub fn event(n: usize, with_id: bool) -> Outgoing {
    let mut event = json!({"type": "order.created", "tenant": "acme", "data": {"n": n, "total": 1.5}});
    if with_id {
        event["id"] = json!(format!("order-{n}"));
    }
    Outgoing::new(format!("message-{n}"), event.to_string())
}

/// Events with these numbers, every second one without an id.
pub fn events(numbers: std::ops::Range<usize>) -> Vec<Outgoing> {
    numbers.map(|n| event(n, n % 2 == 0)).collect()
}

/// The source's line of a metric, as a number.
pub async fn metric(relay: &TestRelay, name: &str, labels: &str) -> f64 {
    let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
    metrics::sum(&text, name, &[&format!("source=\"{SOURCE}\""), labels]).unwrap_or_default()
}

/// Waits until everything is acknowledged.
pub async fn drained(queue: &impl Queue) {
    eventually("all is acknowledged", async || (queue.left().await == 0).then_some(())).await;
}

/// How readiness shows the source.
pub async fn shown(relay: &TestRelay) -> Value {
    let answer = relay.get("/health/ready").await;
    answer.json()["sources"][0].clone()
}
