//! Events that brokers hold: fetched, recorded by the same doorway as over HTTP, and acknowledged after the commit.
//!
//! One file a broker, each behind the cargo feature of its name. What is common to them (how much is under way, when
//! to wait, what is acknowledged) is in [`runner`]; a broker's own file knows its client and nothing of events.

#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "pubsub")]
mod pubsub;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
mod runner;
#[cfg(feature = "sqs")]
mod sqs;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::runner::{Doorway, Runner};
pub use self::status::{SourceState, SourceStatus, Statuses};
use crate::config::{BrokerConfig, SourceConfig};
use crate::ingest::Ingest;
use crate::ledger::Ledger;
use crate::telemetry::Metrics;

/// Longest that a fetch waits for a first message. So long may a stop have to wait for a fetch, too.
pub const FETCH_WAIT: Duration = Duration::from_secs(1);

/// A message that a broker has handed over and waits to hear of.
#[derive(Debug)]
pub struct Message<H> {
    /// Its bytes.
    pub body: Bytes,
    /// Headers, properties, attributes or fields beside them, in the order in which they came.
    pub attributes: Vec<(String, String)>,
    /// Its content type, where the broker has a place of its own for it.
    pub content_type: Option<String>,
    /// What the broker calls it: the same whenever it delivers it again, and never another message's. `None` where it
    /// has no such name; events without an id are then refused.
    pub identity: Option<Vec<String>>,
    /// How the broker is told what became of it.
    pub handle: H,
}

/// What a broker could not do, in its own words. The connection is given up and made anew.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(String);

impl SourceError {
    /// What went wrong, and its causes.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// How a broker is reached.
pub trait Connector: Send + Sync + 'static {
    /// What comes of it.
    type Source: Source;

    /// A new connection, ready to fetch from.
    fn connect(&self) -> impl Future<Output = Result<Self::Source, SourceError>> + Send;
}

/// A connection to a broker, and the queue that is read on it. Given up at the first error of a fetch.
pub trait Source: Send + Sync + 'static {
    /// What names a message that was fetched on this connection.
    type Handle: Send + Sync + 'static;

    /// Up to `most` messages: at once where some are there, otherwise when the first comes; none after about
    /// [`FETCH_WAIT`]. Called by one task, and always awaited to its end, since what a dropped call had fetched would
    /// have to time out.
    fn fetch(
        &self,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Message<Self::Handle>>, SourceError>> + Send;

    /// These are done: their events are committed, or kept as rejected. A failure is not fatal: they are delivered
    /// again, and found to be duplicates.
    fn ack(&self, handles: Vec<Self::Handle>) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// These are given back: whoever is next may have them at once.
    fn nack(&self, handles: Vec<Self::Handle>) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// These are still being worked on: the broker's time to wait for them begins anew.
    fn extend(&self, handles: &[Self::Handle]) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// How often [`Self::extend`] has to be called, well under the time that the broker waits; `None` where it waits
    /// as long as the connection lives.
    fn extend_every(&self) -> Option<Duration>;

    /// How many messages are there that nobody has been given; `None` where the broker does not say.
    fn lag(&self) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send;

    /// Called last, once nothing is under way: what the client has still to tell the broker is told when it returns.
    fn close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// The sources of one relay.
#[derive(Debug)]
pub struct Sources {
    statuses: Statuses,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Sources {
    /// Starts reading every source that is configured.
    ///
    /// # Errors
    /// A kind that this binary was built without: one line.
    pub fn start(
        configs: &[SourceConfig],
        ingest: &Ingest,
        ledger: &Ledger,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let sources = Self {
            statuses: SourceStatus::all(configs),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        // Before any of them is read.
        configs.iter().try_for_each(check_compiled)?;
        for (config, status) in configs.iter().zip(sources.statuses.iter()) {
            let doorway = Doorway {
                ingest: ingest.clone(),
                ledger: ledger.clone(),
                metrics: metrics.of_source(&config.name, true),
                status: status.clone(),
            };
            sources.read(config, doorway);
        }
        sources.tasks.close();
        Ok(sources)
    }

    /// How they stand.
    pub fn statuses(&self) -> &Statuses {
        &self.statuses
    }

    /// Stops fetching; what is in the middle of a commit is finished and acknowledged, the rest is given back.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    fn read(&self, config: &SourceConfig, doorway: Doorway) {
        match &config.broker {
            #[cfg(feature = "nats")]
            BrokerConfig::Nats(broker) => self.run(nats::Nats::new(broker), config, doorway),
            #[cfg(feature = "rabbitmq")]
            BrokerConfig::Rabbitmq(broker) => {
                self.run(rabbitmq::Rabbitmq::new(broker, config.max_in_flight), config, doorway);
            }
            #[cfg(feature = "redis")]
            BrokerConfig::Redis(broker) => self.run(redis::Redis::new(broker), config, doorway),
            #[cfg(feature = "sqs")]
            BrokerConfig::Sqs(broker) => self.run(sqs::Sqs::new(broker), config, doorway),
            #[cfg(feature = "pubsub")]
            BrokerConfig::Pubsub(broker) => {
                self.run(pubsub::Pubsub::new(broker, config.max_in_flight), config, doorway);
            }
            #[allow(unreachable_patterns, reason = "with every feature there is nothing left")]
            _ => drop(doorway),
        }
    }

    #[cfg_attr(
        not(any(
            feature = "nats",
            feature = "rabbitmq",
            feature = "redis",
            feature = "sqs",
            feature = "pubsub"
        )),
        expect(dead_code, reason = "a binary without any kind of source runs none")
    )]
    fn run<C: Connector>(&self, connector: C, config: &SourceConfig, doorway: Doorway) {
        let runner = Arc::new(Runner::new(config, doorway, self.stop.clone()));
        self.tasks.spawn(async move { runner.run(connector).await });
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        // Also where the rest of the relay could not start.
        self.stop.cancel();
    }
}

/// Whether this binary can read such a source.
///
/// # Errors
/// One line that names the source and the feature.
pub fn check_compiled(config: &SourceConfig) -> Result<(), String> {
    let kind = config.broker.kind();
    let compiled = match &config.broker {
        BrokerConfig::Nats(_) => cfg!(feature = "nats"),
        BrokerConfig::Rabbitmq(_) => cfg!(feature = "rabbitmq"),
        BrokerConfig::Redis(_) => cfg!(feature = "redis"),
        BrokerConfig::Sqs(_) => cfg!(feature = "sqs"),
        BrokerConfig::Pubsub(_) => cfg!(feature = "pubsub"),
    };
    match compiled {
        true => Ok(()),
        false => Err(format!(
            "sources: `{}` is of kind {kind}, which this binary was built without: build it with `--features {kind}` \
             or `--features full`",
            config.name
        )),
    }
}
