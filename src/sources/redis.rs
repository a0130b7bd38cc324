//! Redis Streams: a consumer group, which nodes share.
//!
//! What a consumer was given and did not acknowledge stays with it, so whatever has lain for too long is claimed from
//! whoever has it: a node that died, or this one before it was restarted.

use std::time::Duration;

use futures_util::FutureExt as _;
use redis::aio::MultiplexedConnection;
use redis::streams::{
    StreamAutoClaimOptions, StreamAutoClaimReply, StreamClaimOptions, StreamId, StreamInfoGroupsReply,
    StreamReadOptions, StreamReadReply,
};
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client, RedisResult, Value};
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tokio::time::{Interval, MissedTickBehavior};

use super::{Connector, FETCH_WAIT, Message, Source, SourceError};
use crate::config::RedisConfig;

/// Time for the server's answer, beside the time that it is asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Where a search for what others have left begins, and what it ends with.
const START: &str = "0-0";
/// What the server says of a group that is there already.
const GROUP_EXISTS: &str = "BUSYGROUP";

/// Reaches a stream.
pub(super) struct Redis {
    config: RedisConfig,
}

impl Redis {
    pub(super) fn new(config: &RedisConfig) -> Self {
        Self { config: config.clone() }
    }
}

impl Connector for Redis {
    type Source = RedisSource;

    async fn connect(&self) -> Result<RedisSource, SourceError> {
        // The error would quote the URL, password and all.
        let client = Client::open(self.config.url.expose_secret())
            .map_err(|_| SourceError::new("url can't be read"))?;
        let connect = async |wait: Duration| {
            // The client's own 500 ms would end every read that waits for a message.
            let config = AsyncConnectionConfig::new().set_response_timeout(Some(wait + ANSWER_TIMEOUT));
            client.get_multiplexed_async_connection_with_config(&config).await.map_err(SourceError::new)
        };
        // A read that waits keeps everything behind it on its connection waiting.
        let (reads, mut writes) = (connect(FETCH_WAIT).await?, connect(Duration::ZERO).await?);
        let RedisConfig { stream, group, .. } = &self.config;
        let made: RedisResult<()> = writes.xgroup_create_mkstream(stream, group, START).await;
        match made {
            Err(error) if error.code() != Some(GROUP_EXISTS) => return Err(SourceError::new(error)),
            _ => {}
        }
        let claim_after = Duration::from_millis(self.config.claim_after_ms);
        let mut claim_every = tokio::time::interval(claim_after / 2);
        claim_every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let claims = Claims { every: claim_every, from: None };
        let read = Mutex::new(Read { connection: reads, claims });
        Ok(RedisSource { config: self.config.clone(), claim_after, read, writes })
    }
}

/// A group that is read.
pub(super) struct RedisSource {
    config: RedisConfig,
    /// How long a message may lie with a consumer.
    claim_after: Duration,
    read: Mutex<Read>,
    writes: MultiplexedConnection,
}

struct Read {
    connection: MultiplexedConnection,
    claims: Claims,
}

/// The search for what others have left.
struct Claims {
    every: Interval,
    /// How far it has come; `None` between two of them.
    from: Option<String>,
}

impl RedisSource {
    /// Up to `most` of the messages that have lain with a consumer for too long, now and then.
    async fn claim(&self, read: &mut Read, most: usize) -> Result<Vec<StreamId>, SourceError> {
        let Read { connection, claims } = read;
        if claims.from.is_none() && claims.every.tick().now_or_never().is_some() {
            claims.from = Some(START.to_owned());
        }
        let Some(from) = claims.from.take() else { return Ok(Vec::new()) };
        let RedisConfig { stream, group, consumer, .. } = &self.config;
        let options = StreamAutoClaimOptions::default().count(most);
        let idle = self.config.claim_after_ms;
        let found: RedisResult<StreamAutoClaimReply> =
            connection.xautoclaim_options(stream, group, consumer, idle, from, options).await;
        let found = found.map_err(SourceError::new)?;
        claims.from = Some(found.next_stream_id).filter(|next| next != START);
        Ok(found.claimed)
    }

    async fn read_new(&self, read: &mut Read, most: usize) -> Result<Vec<StreamId>, SourceError> {
        let RedisConfig { stream, group, consumer, .. } = &self.config;
        let mut options = StreamReadOptions::default().group(group, consumer).count(most);
        // While the search goes on, it goes on at once.
        if read.claims.from.is_none() {
            options = options.block(usize::try_from(FETCH_WAIT.as_millis()).unwrap_or(usize::MAX));
        }
        let found: RedisResult<Option<StreamReadReply>> =
            read.connection.xread_options(&[stream], &[">"], &options).await;
        let found = found.map_err(SourceError::new)?.unwrap_or_default();
        Ok(found.keys.into_iter().flat_map(|key| key.ids).collect())
    }

    /// Has these messages count as given to this consumer so long ago.
    async fn hold(&self, ids: &[String], since: Duration) -> Result<(), SourceError> {
        let RedisConfig { stream, group, consumer, .. } = &self.config;
        let idle = usize::try_from(since.as_millis()).unwrap_or(usize::MAX);
        let options = StreamClaimOptions::default().idle(idle).with_justid();
        let held: RedisResult<Value> =
            self.writes.clone().xclaim_options(stream, group, consumer, 0, ids, options).await;
        held.map(drop).map_err(SourceError::new)
    }

    fn message_of(&self, entry: StreamId) -> Message<String> {
        let mut fields: Vec<(String, Vec<u8>)> =
            entry.map.into_iter().map(|(name, value)| (name, bytes_of(value))).collect();
        // The client does not keep their order.
        fields.sort_unstable();
        let body = fields.iter().position(|(name, _)| *name == self.config.field);
        let body = body.map(|at| fields.remove(at).1).unwrap_or_default();
        let text = |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
        Message {
            body: body.into(),
            attributes: fields.into_iter().map(text).collect(),
            content_type: None,
            identity: Some(vec![self.config.stream.clone(), entry.id.clone()]),
            handle: entry.id,
        }
    }
}

impl Source for RedisSource {
    type Handle = String;

    async fn fetch(&self, most: usize) -> Result<Vec<Message<String>>, SourceError> {
        let mut read = self.read.lock().await;
        let mut entries = self.claim(&mut read, most).await?;
        if entries.is_empty() {
            entries = self.read_new(&mut read, most).await?;
        }
        Ok(entries.into_iter().map(|entry| self.message_of(entry)).collect())
    }

    async fn ack(&self, handles: Vec<String>) -> Result<(), SourceError> {
        let RedisConfig { stream, group, .. } = &self.config;
        let acknowledged: RedisResult<usize> = self.writes.clone().xack(stream, group, &handles).await;
        acknowledged.map(drop).map_err(SourceError::new)
    }

    async fn nack(&self, handles: Vec<String>) -> Result<(), SourceError> {
        // There is no giving back; what has lain long enough may be claimed by anybody.
        self.hold(&handles, self.claim_after).await
    }

    async fn extend(&self, handles: &[String]) -> Result<(), SourceError> {
        self.hold(handles, Duration::ZERO).await
    }

    fn extend_every(&self) -> Option<Duration> {
        Some(self.claim_after / 3)
    }

    async fn lag(&self) -> Result<Option<u64>, SourceError> {
        let groups: RedisResult<StreamInfoGroupsReply> =
            self.writes.clone().xinfo_groups(&self.config.stream).await;
        let groups = groups.map_err(SourceError::new)?.groups;
        let ours = groups.into_iter().find(|group| group.name == self.config.group);
        Ok(ours.and_then(|group| group.lag).and_then(|lag| u64::try_from(lag).ok()))
    }
}

fn bytes_of(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        Value::Int(number) => number.to_string().into_bytes(),
        _ => Vec::new(),
    }
}
