//! RabbitMQ: a queue, read by a consumer that is given as many messages as there is room for.
//!
//! The broker waits for an acknowledgement as long as the channel lives (by default up to half an hour), and delivers
//! to others what was not acknowledged on a channel that is gone.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;

use super::{Connector, FETCH_WAIT, Message, Source, SourceError};
use crate::config::RabbitmqConfig;

/// What the broker shows of us.
const CLIENT_NAME: &str = "posthaste";
/// AMQP's code for a good end.
const REPLY_SUCCESS: u16 = 200;
/// How long further messages are waited for once there is one: they come right behind it.
const LINGER: Duration = Duration::from_millis(1);

/// Reaches a queue.
pub(super) struct Rabbitmq {
    config: RabbitmqConfig,
    /// Most messages that the broker hands over unacknowledged.
    prefetch: u16,
}

impl Rabbitmq {
    pub(super) fn new(config: &RabbitmqConfig, max_in_flight: usize) -> Self {
        Self { config: config.clone(), prefetch: u16::try_from(max_in_flight).unwrap_or(u16::MAX) }
    }
}

impl Connector for Rabbitmq {
    type Source = RabbitmqSource;

    async fn connect(&self) -> Result<RabbitmqSource, SourceError> {
        let properties = ConnectionProperties::default().with_connection_name(CLIENT_NAME.into());
        let url = self.config.url.expose_secret();
        // The error would quote the URL, password and all.
        let uri = url.parse().map_err(|_: String| SourceError::new("url can't be read"))?;
        let connection = Connection::connect_uri(uri, properties).await.map_err(SourceError::new)?;
        let (reads, asks) = (channel(&connection).await?, channel(&connection).await?);
        let queue = ShortString::from(self.config.queue.as_str());
        waiting_in(&asks, &queue).await?;
        reads.basic_qos(self.prefetch, BasicQosOptions::default()).await.map_err(SourceError::new)?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = reads.basic_consume(queue.clone(), ShortString::from(""), options, arguments);
        let consumer = Mutex::new(consumer.await.map_err(SourceError::new)?);
        Ok(RabbitmqSource { connection, reads, asks, consumer, queue })
    }
}

async fn channel(connection: &Connection) -> Result<Channel, SourceError> {
    connection.create_channel().await.map_err(SourceError::new)
}

/// How many messages are ready in a queue, which must be there.
async fn waiting_in(channel: &Channel, queue: &ShortString) -> Result<u64, SourceError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.clone(), options, FieldTable::default()).await;
    declared.map(|queue| u64::from(queue.message_count())).map_err(SourceError::new)
}

/// A queue that is read.
pub(super) struct RabbitmqSource {
    connection: Connection,
    reads: Channel,
    /// Apart, since a question that fails closes its channel.
    asks: Channel,
    consumer: Mutex<Consumer>,
    queue: ShortString,
}

impl RabbitmqSource {
    fn message_of(&self, delivery: Delivery) -> Message<u64> {
        let Delivery { delivery_tag: handle, properties, data, .. } = delivery;
        let text = |property: &Option<ShortString>| property.as_ref().map(ToString::to_string);
        let message_id = text(properties.message_id()).filter(|id| !id.is_empty());
        let app_id = text(properties.app_id()).unwrap_or_default();
        // Only its producer names a message; the broker itself does not.
        let identity = message_id.clone().map(|id| vec![self.queue.to_string(), app_id, id]);
        let mut attributes: Vec<(String, String)> =
            message_id.into_iter().map(|id| ("message_id".to_owned(), id)).collect();
        for (name, value) in properties.headers().iter().flat_map(|headers| headers.inner().iter()) {
            attributes.extend(text_of(value).map(|text| (name.to_string(), text)));
        }
        let content_type = text(properties.content_type()).filter(|found| !found.is_empty());
        Message { body: data.into(), attributes, content_type, identity, handle }
    }
}

impl Source for RabbitmqSource {
    type Handle = u64;

    async fn fetch(&self, most: usize) -> Result<Vec<Message<u64>>, SourceError> {
        let mut consumer = self.consumer.lock().await;
        let mut messages = Vec::new();
        while messages.len() < most {
            let patience = if messages.is_empty() { FETCH_WAIT } else { LINGER };
            match tokio::time::timeout(patience, consumer.next()).await {
                Ok(Some(Ok(delivery))) => messages.push(self.message_of(delivery)),
                Ok(Some(Err(error))) => return Err(SourceError::new(error)),
                Ok(None) => return Err(SourceError::new("the broker has ended the consumer")),
                Err(_) => break,
            }
        }
        Ok(messages)
    }

    async fn ack(&self, handles: Vec<u64>) -> Result<(), SourceError> {
        let acks = handles.into_iter().map(|tag| self.reads.basic_ack(tag, BasicAckOptions::default()));
        try_join_all(acks).await.map(drop).map_err(SourceError::new)
    }

    async fn nack(&self, handles: Vec<u64>) -> Result<(), SourceError> {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let nacks = handles.into_iter().map(|tag| self.reads.basic_nack(tag, options));
        try_join_all(nacks).await.map(drop).map_err(SourceError::new)
    }

    async fn extend(&self, _: &[u64]) -> Result<(), SourceError> {
        Ok(())
    }

    fn extend_every(&self) -> Option<Duration> {
        None
    }

    async fn lag(&self) -> Result<Option<u64>, SourceError> {
        waiting_in(&self.asks, &self.queue).await.map(Some)
    }

    async fn close(&self) {
        // What was handed over beyond what was fetched goes back with the connection.
        if let Err(error) = self.connection.close(REPLY_SUCCESS, ShortString::from("")).await {
            tracing::debug!(%error, "the connection could not be closed in good order");
        }
    }
}

/// A header's value as text; `None` for tables, lists and bytes that are none.
fn text_of(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::ShortString(value) => value.to_string(),
        AMQPValue::LongString(value) => String::from_utf8(value.as_bytes().to_vec()).ok()?,
        AMQPValue::ByteArray(value) => String::from_utf8(value.as_slice().to_vec()).ok()?,
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::Void => {
            return None;
        }
    })
}
