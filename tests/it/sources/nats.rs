//! A stream of a NATS server with JetStream.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, consumer, stream};
use posthaste::config::{BrokerConfig, Role};

use super::{Outgoing, Queue, drained, events, metric, relay, shown, source_config};
use crate::support::brokers::Broker;
use crate::support::{TestDatabase, TestRelay, bounded, eventually, mock_svix};

const PATIENCE: Duration = Duration::from_secs(30);

const STREAM: &str = "ORDERS";
const SUBJECT: &str = "orders.created";
const CONSUMER: &str = "posthaste";

pub struct NatsQueue {
    broker: Broker,
}

impl NatsQueue {
    /// The server may have been away since: a client for each use.
    async fn context(&self) -> Context {
        jetstream::new(async_nats::connect(self.broker.url()).await.expect("a connection"))
    }

    async fn info(&self) -> Option<consumer::Info> {
        self.context()
            .await
            .get_consumer_from_stream(CONSUMER, STREAM)
            .await
            .ok()
            .map(|consumer: consumer::Consumer<consumer::pull::Config>| consumer.cached_info().clone())
    }

    async fn published(&self) -> u64 {
        self.context().await.get_stream(STREAM).await.expect("the stream").cached_info().state.messages
    }
}

impl Queue for NatsQueue {
    async fn start() -> Self {
        let queue = Self { broker: Broker::nats().await };
        let config = stream::Config {
            name: STREAM.into(),
            subjects: vec!["orders.>".into()],
            storage: stream::StorageType::File,
            ..stream::Config::default()
        };
        queue.context().await.create_stream(config).await.expect("a stream");
        queue
    }

    fn broker(&mut self) -> &mut Broker {
        &mut self.broker
    }

    fn settings(&self) -> String {
        let ack_wait = Self::REDELIVERY_MS;
        format!("kind = 'nats'\nurl = '{}'\nstream = '{STREAM}'\nack_wait_ms = {ack_wait}", self.broker.url())
    }

    async fn publish(&self, messages: &[Outgoing]) {
        let context = self.context().await;
        let mut acks = Vec::new();
        for message in messages {
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &message.headers {
                headers.append(name.as_str(), value.as_str());
            }
            let body = message.body.clone().into();
            acks.push(context.publish_with_headers(SUBJECT, headers, body).await.expect("sent"));
        }
        for ack in acks {
            ack.await.expect("stored");
        }
    }

    async fn waiting(&self) -> u64 {
        match self.info().await {
            Some(info) => info.num_pending,
            None => self.published().await,
        }
    }

    async fn left(&self) -> u64 {
        match self.info().await {
            Some(info) => info.num_pending + info.num_ack_pending as u64,
            None => self.published().await,
        }
    }

    async fn deliver_again(&self, _: &[Outgoing]) {
        let stream = self.context().await.get_stream(STREAM).await.expect("the stream");
        stream.delete_consumer(CONSUMER).await.expect("deleted: the next one begins at the beginning");
    }
}

suite!(NatsQueue);
on_both_databases!(a_ledger_that_fails_is_waited_for, a_worker_reads_nothing);

/// Statements fail at once, instead of waiting for a lock as in the suite.
async fn a_ledger_that_fails_is_waited_for(database: TestDatabase) {
    let svix = mock_svix().await;
    let queue = NatsQueue::start().await;
    let relay = relay(&queue, &database, &svix, "batch = 10\nmax_in_flight = 40").await;
    queue.publish(&events(0..10)).await;
    svix.wait_for_messages(10, PATIENCE).await.expect("it is read");
    relay.settled().await;
    drained(&queue).await;
    database.execute("ALTER TABLE queue RENAME TO hidden").await;
    queue.publish(&events(10..210)).await;
    eventually("it is paused", async || (shown(&relay).await["state"] == "paused").then_some(())).await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert_eq!(queue.left().await, 200, "none is acknowledged");
        assert!(queue.waiting().await >= 160, "no more than that are fetched");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    database.execute("ALTER TABLE hidden RENAME TO queue").await;
    svix.wait_for_messages(210, PATIENCE).await.expect("nothing is lost");
    drained(&queue).await;
    assert_eq!(metric(&relay, "posthaste_source_messages_total", "").await, 210.0, "none came twice");
    relay.finish().await;
    assert_eq!(svix.message_count(), 210);
}

/// Roles exist on Postgres alone; on SQLite a node does everything, and reads.
async fn a_worker_reads_nothing(database: TestDatabase) {
    let svix = mock_svix().await;
    let queue = NatsQueue::start().await;
    let mut config = source_config(&queue, &database, &svix, "");
    config.role = if database.is_postgres() { Role::Worker } else { Role::All };
    let reads = config.role.takes_events();
    let worker = TestRelay::start_with(config).await;
    let sources = worker.get("/health/ready").await.json()["sources"].as_array().expect("a list").len();
    assert_eq!(sources, usize::from(reads));
    queue.publish(&events(0..10)).await;
    if !reads {
        let mut config = source_config(&queue, &database, &svix, "");
        config.role = Role::Ingest;
        let ingest = TestRelay::start_with(config).await;
        drained(&queue).await;
        ingest.stop().await;
    }
    svix.wait_for_messages(10, PATIENCE).await.expect("all arrive");
    worker.finish().await;
}

/// What is held when it is time to stop is there for others at once, not after a minute.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_given_back_at_the_end() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let queue = NatsQueue::start().await;
        let mut config = source_config(&queue, &database, &svix, "");
        let Some(BrokerConfig::Nats(nats)) = config.sources.first_mut().map(|source| &mut source.broker)
        else {
            panic!("another kind");
        };
        nats.ack_wait_ms = 60_000;
        config.ingest.tenant_per_second = Some(0.001);
        let first = TestRelay::start_with(config.clone()).await;
        queue.publish(&events(0..1)).await;
        svix.wait_for_messages(1, PATIENCE).await.expect("its burst");
        queue.publish(&events(1..20)).await;
        eventually("they are held", async || (queue.waiting().await == 0).then_some(())).await;
        eventually("the first is acknowledged", async || (queue.left().await == 19).then_some(())).await;
        let stopping = Instant::now();
        first.stop().await;
        assert!(stopping.elapsed() < Duration::from_secs(5), "nobody waits for the limit");
        assert_eq!(queue.left().await, 19);
        config.ingest.tenant_per_second = None;
        let second = TestRelay::start_with(config).await;
        svix.wait_for_messages(20, Duration::from_secs(20)).await.expect("at once");
        drained(&queue).await;
        second.finish().await;
        assert_eq!(svix.message_count(), 20);
    })
    .await;
}
