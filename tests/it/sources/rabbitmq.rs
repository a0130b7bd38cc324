//! A durable queue of a RabbitMQ node.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::{Outgoing, Queue};
use crate::support::brokers::Broker;
use crate::support::eventually;

/// A name that stands in no other place of the broker's data.
const QUEUE: &str = "orders-of-this-test";

pub struct RabbitmqQueue {
    broker: Broker,
}

impl RabbitmqQueue {
    /// The node may have been away since: a connection for each use, which is to be held as long as its channel.
    async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await;
        let connection = connection.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    async fn declare(&self) -> u64 {
        let (_connection, channel) = self.channel().await;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await;
        u64::from(queue.expect("a queue").message_count())
    }
}

impl Queue for RabbitmqQueue {
    async fn start() -> Self {
        let queue = Self { broker: Broker::rabbitmq().await };
        queue.declare().await;
        // The node answers before that is written, and would have forgotten the queue if it were killed until then.
        eventually("the queue is on disk", async || queue.broker.has_recorded(QUEUE).then_some(())).await;
        queue
    }

    fn broker(&mut self) -> &mut Broker {
        &mut self.broker
    }

    fn settings(&self) -> String {
        format!("kind = 'rabbitmq'\nurl = '{}'\nqueue = '{QUEUE}'", self.broker.url())
    }

    async fn publish(&self, messages: &[Outgoing]) {
        let (_connection, channel) = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut confirms = Vec::new();
        for message in messages {
            let mut headers = FieldTable::default();
            for (name, value) in &message.headers {
                headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
            }
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(message.id.as_str().into())
                .with_headers(headers);
            // What no queue takes comes back.
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = channel.basic_publish("".into(), QUEUE.into(), options, &message.body, properties);
            confirms.push(sent.await.expect("sent"));
        }
        for confirm in confirms {
            let answer = confirm.await.expect("an answer");
            assert!(matches!(answer, Confirmation::Ack(None)), "not stored: {answer:?}");
        }
    }

    async fn waiting(&self) -> u64 {
        self.declare().await
    }

    async fn left(&self) -> u64 {
        // What is handed over and not acknowledged is not told; it is here again once its reader has gone.
        self.declare().await
    }

    async fn deliver_again(&self, messages: &[Outgoing]) {
        self.publish(messages).await;
    }
}

suite!(RabbitmqQueue);
