//! NATS `JetStream`: a durable pull consumer, which nodes share.
//!
//! One pull is open at a time, for as many messages as there is room. What it brings is read as it comes; it may be
//! read over several fetches.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::consumer::pull::{Batch, Config as PullConfig};
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, ConnectOptions, Event, ServerAddr, Subject};
use bytes::Bytes;
use futures_util::StreamExt as _;
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Connector, FETCH_WAIT, Message, Source, SourceError};
use crate::config::NatsConfig;
use crate::domain::parse::header_value;

/// What the server shows of us.
const CLIENT_NAME: &str = "posthaste";
/// How long further messages are waited for once there is one: they come right behind it.
const LINGER: Duration = Duration::from_millis(1);

/// Reaches a stream.
pub(super) struct Nats {
    config: NatsConfig,
}

impl Nats {
    pub(super) fn new(config: &NatsConfig) -> Self {
        Self { config: config.clone() }
    }
}

impl Connector for Nats {
    type Source = NatsSource;

    async fn connect(&self) -> Result<NatsSource, SourceError> {
        let lost = CancellationToken::new();
        let client = self.client(&lost).await?;
        let context = jetstream::new(client.clone());
        let stream = context
            .get_stream(&self.config.stream)
            .await
            .map_err(|error| SourceError::new(format!("stream {}: {error}", self.config.stream)))?;
        let wanted = PullConfig {
            durable_name: Some(self.config.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_millis(self.config.ack_wait_ms),
            filter_subjects: self.config.subjects.clone(),
            // Bounded by each node's own max_in_flight.
            max_ack_pending: -1,
            ..PullConfig::default()
        };
        let consumer = stream
            .get_or_create_consumer(&self.config.consumer, wanted)
            .await
            .map_err(|error| SourceError::new(format!("consumer {}: {error}", self.config.consumer)))?;
        let there = &consumer.cached_info().config;
        if there.ack_policy != AckPolicy::Explicit {
            let detail =
                "must be acknowledged explicitly (ack_policy), or what was not recorded would be lost";
            return Err(SourceError::new(format!("consumer {} {detail}", self.config.consumer)));
        }
        // What a server says that has its default.
        let ack_wait = if there.ack_wait.is_zero() { Duration::from_secs(30) } else { there.ack_wait };
        Ok(NatsSource { client, consumer, pull: Mutex::new(None), extend_every: ack_wait / 3, lost })
    }
}

impl Nats {
    /// A client that is given up when its connection is lost: whoever waits between two tries is the runner.
    async fn client(&self, lost: &CancellationToken) -> Result<Client, SourceError> {
        let mut options = ConnectOptions::new().name(CLIENT_NAME).max_reconnects(1).event_callback({
            let lost = lost.clone();
            move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    lost.cancel();
                }
                std::future::ready(())
            }
        });
        if let Some(file) = &self.config.credentials_file {
            options = options
                .credentials_file(file)
                .await
                .map_err(|error| SourceError::new(format!("credentials_file {}: {error}", file.display())))?;
        }
        let urls = self.config.url.expose_secret().split(',').map(|url| url.trim().parse());
        // The error would quote the URL, password and all.
        let servers: Result<Vec<ServerAddr>, std::io::Error> = urls.collect();
        let servers = servers.map_err(|_| SourceError::new("url can't be read"))?;
        options.connect(servers).await.map_err(SourceError::new)
    }
}

/// A consumer that is read.
pub(super) struct NatsSource {
    client: Client,
    consumer: Consumer<PullConfig>,
    /// The pull that is open.
    pull: Mutex<Option<Batch>>,
    extend_every: Duration,
    /// Set when the connection is lost.
    lost: CancellationToken,
}

impl NatsSource {
    /// Sends each message's fate to where it wants to hear of it.
    async fn tell(&self, replies: impl Iterator<Item = Subject>, fate: AckKind) -> Result<(), SourceError> {
        let fate = Bytes::from(fate);
        for reply in replies {
            self.client.publish(reply, fate.clone()).await.map_err(SourceError::new)?;
        }
        self.client.flush().await.map_err(SourceError::new)
    }

    async fn pull(&self, most: usize) -> Result<Vec<Message<Subject>>, SourceError> {
        let mut open = self.pull.lock().await;
        let mut pull = match open.take() {
            Some(pull) => pull,
            None => {
                let pull = self.consumer.batch().max_messages(most).expires(FETCH_WAIT);
                pull.messages().await.map_err(SourceError::new)?
            }
        };
        let mut messages = Vec::new();
        while messages.len() < most {
            let next = match messages.is_empty() {
                true => Ok(pull.next().await),
                false => tokio::time::timeout(LINGER, pull.next()).await,
            };
            match next {
                Ok(Some(message)) => messages.push(message_of(message.map_err(SourceError::new)?)?),
                Ok(None) => return Ok(messages),
                Err(_) => break,
            }
        }
        *open = Some(pull);
        Ok(messages)
    }
}

impl Source for NatsSource {
    type Handle = Subject;

    async fn fetch(&self, most: usize) -> Result<Vec<Message<Subject>>, SourceError> {
        if self.client.connection_state() != State::Connected {
            return Err(SourceError::new("the connection is lost"));
        }
        let pulled = self.lost.run_until_cancelled(self.pull(most)).await;
        pulled.unwrap_or_else(|| Err(SourceError::new("the connection is lost")))
    }

    async fn ack(&self, handles: Vec<Subject>) -> Result<(), SourceError> {
        self.tell(handles.into_iter(), AckKind::Ack).await
    }

    async fn nack(&self, handles: Vec<Subject>) -> Result<(), SourceError> {
        // Not before the pull that may still be open has ended, or its reader, who is about to go, would get them.
        self.tell(handles.into_iter(), AckKind::Nak(Some(2 * FETCH_WAIT))).await
    }

    async fn extend(&self, handles: &[Subject]) -> Result<(), SourceError> {
        self.tell(handles.iter().cloned(), AckKind::Progress).await
    }

    fn extend_every(&self) -> Option<Duration> {
        Some(self.extend_every)
    }

    async fn lag(&self) -> Result<Option<u64>, SourceError> {
        let info = self.consumer.get_info().await.map_err(SourceError::new)?;
        Ok(Some(info.num_pending))
    }

    async fn close(&self) {
        // The server ends it soon; what it has brought since the last fetch would have to time out.
        let Some(mut pull) = self.pull.lock().await.take() else { return };
        let mut unread = Vec::new();
        while let Some(Ok(message)) = pull.next().await {
            unread.extend(message.message.reply);
        }
        if let Err(error) = self.nack(unread).await {
            tracing::debug!(%error, "messages could not be given back: they will come again");
        }
    }
}

fn message_of(message: jetstream::Message) -> Result<Message<Subject>, SourceError> {
    // The time tells a stream from another one of its name that was there before, and counted from 1 too.
    let info = message.info().map_err(SourceError::new)?;
    let identity = vec![
        info.stream.to_owned(),
        info.stream_sequence.to_string(),
        info.published.unix_timestamp_nanos().to_string(),
    ];
    let async_nats::Message { payload, headers, reply, .. } = message.message;
    let handle = reply.ok_or_else(|| SourceError::new("a message that can't be acknowledged"))?;
    let mut attributes = Vec::new();
    for (name, values) in headers.iter().flat_map(async_nats::HeaderMap::iter) {
        for value in values {
            let (name, value) = (name.to_string(), value.as_str().to_owned());
            // Written as over HTTP (CloudEvents' binding for NATS); what can't be read so is left as it is.
            let is_event = name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ce-"));
            let value = if is_event { header_value(&value).unwrap_or(value) } else { value };
            attributes.push((name, value));
        }
    }
    Ok(Message { body: payload, attributes, content_type: None, identity: Some(identity), handle })
}
