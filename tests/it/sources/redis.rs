//! A stream of a Redis server.

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamInfoGroup, StreamInfoGroupsReply};
use redis::{AsyncCommands as _, Client};

use super::{Outgoing, Queue};
use crate::support::brokers::Broker;

const STREAM: &str = "orders";
const GROUP: &str = "posthaste";

pub struct RedisQueue {
    broker: Broker,
}

impl RedisQueue {
    /// The server may have been away since: a client for each use.
    async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.broker.url()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("a connection")
    }

    async fn group(&self) -> Option<StreamInfoGroup> {
        let groups: StreamInfoGroupsReply = self.connection().await.xinfo_groups(STREAM).await.ok()?;
        groups.groups.into_iter().find(|group| group.name == GROUP)
    }

    async fn published(&self) -> u64 {
        self.connection().await.xlen(STREAM).await.expect("a length")
    }
}

impl Queue for RedisQueue {
    async fn start() -> Self {
        Self { broker: Broker::redis().await }
    }

    fn broker(&mut self) -> &mut Broker {
        &mut self.broker
    }

    fn settings(&self) -> String {
        let claim_after = Self::REDELIVERY_MS;
        let url = self.broker.url();
        format!("kind = 'redis'\nurl = '{url}'\nstream = '{STREAM}'\nclaim_after_ms = {claim_after}")
    }

    async fn publish(&self, messages: &[Outgoing]) {
        let mut pipeline = redis::pipe();
        for message in messages {
            let mut fields: Vec<(&str, &[u8])> = vec![("data", &message.body)];
            fields.extend(message.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
            pipeline.xadd(STREAM, "*", &fields).ignore();
        }
        let () = pipeline.query_async(&mut self.connection().await).await.expect("stored");
    }

    async fn waiting(&self) -> u64 {
        match self.group().await {
            Some(group) => group.lag.expect("the server tells") as u64,
            None => self.published().await,
        }
    }

    async fn left(&self) -> u64 {
        match self.group().await {
            Some(group) => (group.lag.expect("the server tells") + group.pending) as u64,
            None => self.published().await,
        }
    }

    async fn deliver_again(&self, _: &[Outgoing]) {
        let connection = &mut self.connection().await;
        let mut set = redis::cmd("XGROUP");
        set.arg("SETID").arg(STREAM).arg(GROUP).arg("0").arg("ENTRIESREAD").arg(0);
        let () = set.query_async(connection).await.expect("set back");
    }
}

suite!(RedisQueue);
