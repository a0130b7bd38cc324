//! Google Cloud Pub/Sub: a subscription, by streaming pull.
//!
//! The client library keeps the stream open and extends the deadlines of what it has handed over for as long as that is
//! not settled; so [`Source::extend`] has nothing to do. It tries again by itself, for ever and without a word, so the
//! subscription is looked up every now and then to tell whether it can be reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use google_cloud_auth::credentials::{Credentials, anonymous};
use google_cloud_pubsub::client::{Subscriber, SubscriptionAdmin};
use google_cloud_pubsub::model::Message as PubsubMessage;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownToken};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Connector, FETCH_WAIT, Message, Source, SourceError};
use crate::config::PubsubConfig;

/// Names an emulator, as Google's own tools have it.
const EMULATOR_VARIABLE: &str = "PUBSUB_EMULATOR_HOST";
/// How long further messages are waited for once there is one: they come right behind it.
const LINGER: Duration = Duration::from_millis(1);
/// Time for the subscription to be looked up.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a message may be held: longer than any outage that somebody looks at.
const MAX_LEASE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Least room for messages that nobody has fetched yet: some are handed over by the hundred, whatever was asked for.
const ROOM_MIN: usize = 1_000;

/// Reaches a subscription.
pub(super) struct Pubsub {
    config: PubsubConfig,
    max_in_flight: i64,
}

impl Pubsub {
    pub(super) fn new(config: &PubsubConfig, max_in_flight: usize) -> Self {
        Self { config: config.clone(), max_in_flight: i64::try_from(max_in_flight).unwrap_or(i64::MAX) }
    }

    /// Where requests go, if not to Google.
    fn endpoint(&self) -> Option<String> {
        let emulator = || std::env::var(EMULATOR_VARIABLE).ok().filter(|host| !host.is_empty());
        self.config.endpoint_url.clone().or_else(|| emulator().map(|host| format!("http://{host}")))
    }
}

impl Connector for Pubsub {
    type Source = PubsubSource;

    async fn connect(&self) -> Result<PubsubSource, SourceError> {
        // The client takes the process's, and panics where there is none; `main` has installed this one already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (mut reads, mut asks) = (Subscriber::builder(), SubscriptionAdmin::builder());
        if let Some(endpoint) = self.endpoint() {
            if endpoint.starts_with("http://") {
                let nobody: Credentials = anonymous::Builder::new().build();
                (reads, asks) = (reads.with_credentials(nobody.clone()), asks.with_credentials(nobody));
            }
            (reads, asks) = (reads.with_endpoint(&endpoint), asks.with_endpoint(&endpoint));
        }
        let asks = asks.build().await.map_err(SourceError::new)?;
        let reads = reads.build().await.map_err(SourceError::new)?;
        let subscription = &self.config.subscription;
        let looked_up = AtomicBool::new(look_up(&asks, subscription).await?);
        let stream = reads
            .subscribe(subscription)
            .set_max_lease(MAX_LEASE)
            .set_max_lease_extension(Duration::from_millis(self.config.ack_deadline_ms))
            .set_max_outstanding_messages(self.max_in_flight)
            .build();
        let closing = stream.shutdown_token();
        // Room for all that may be handed over: what is not read has nobody who extends its deadline.
        let room = usize::try_from(self.max_in_flight).unwrap_or(ROOM_MIN).max(ROOM_MIN);
        let (sender, messages) = mpsc::channel(room);
        let stop = CancellationToken::new();
        tokio::spawn(forward(stream, sender, stop.clone()));
        Ok(PubsubSource {
            asks,
            subscription: subscription.clone(),
            messages: Mutex::new(messages),
            looked_up,
            lost: CancellationToken::new(),
            closing,
            stop: stop.clone(),
            _stop: stop.drop_guard(),
        })
    }
}

/// What a stream brings: a message, or why there will be no more.
type Brought = Result<(PubsubMessage, Handler), SourceError>;

/// Reads a stream. Apart from fetches, which end when they have waited: a stream whose opening is given up each time
/// would never be open.
async fn forward(mut stream: MessageStream, to: mpsc::Sender<Brought>, stop: CancellationToken) {
    let reading = async {
        while let Some(next) = stream.next().await {
            let next = next.map_err(SourceError::new);
            let is_last = next.is_err();
            if to.send(next).await.is_err() || is_last {
                return;
            }
        }
    };
    stop.run_until_cancelled(reading).await;
}

/// Whether the subscription could be looked up; false where we may read it, but not that.
async fn look_up(asks: &SubscriptionAdmin, subscription: &str) -> Result<bool, SourceError> {
    let asking = asks.get_subscription().set_subscription(subscription).send();
    let asked = tokio::time::timeout(LOOK_UP_TIMEOUT, asking).await;
    match asked.map_err(|_| SourceError::new("no answer in time"))? {
        Ok(_) => Ok(true),
        Err(error) if error.status().is_some_and(|status| status.code.name() == "PERMISSION_DENIED") => {
            Ok(false)
        }
        Err(error) => Err(SourceError::new(error)),
    }
}

/// A subscription that is read.
pub(super) struct PubsubSource {
    asks: SubscriptionAdmin,
    subscription: String,
    messages: Mutex<mpsc::Receiver<Brought>>,
    /// Whether it can be looked up at all.
    looked_up: AtomicBool,
    /// Set when it could not be reached.
    lost: CancellationToken,
    closing: ShutdownToken,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl PubsubSource {
    async fn receive(&self, most: usize) -> Result<Vec<Message<Handler>>, SourceError> {
        let mut brought = self.messages.lock().await;
        let mut messages = Vec::new();
        while messages.len() < most {
            let patience = if messages.is_empty() { FETCH_WAIT } else { LINGER };
            match tokio::time::timeout(patience, brought.recv()).await {
                Ok(Some(Ok((message, handler)))) => messages.push(self.message_of(message, handler)),
                Ok(Some(Err(error))) => return Err(error),
                Ok(None) => return Err(SourceError::new("the stream has ended")),
                Err(_) => break,
            }
        }
        Ok(messages)
    }

    fn message_of(&self, message: PubsubMessage, handle: Handler) -> Message<Handler> {
        let mut attributes: Vec<_> = message.attributes.into_iter().collect();
        attributes.sort_unstable();
        let identity = vec![self.subscription.clone(), message.message_id];
        Message { body: message.data, attributes, content_type: None, identity: Some(identity), handle }
    }
}

impl Source for PubsubSource {
    type Handle = Handler;

    async fn fetch(&self, most: usize) -> Result<Vec<Message<Handler>>, SourceError> {
        if self.lost.is_cancelled() {
            return Err(SourceError::new("the subscription can't be reached"));
        }
        self.receive(most).await
    }

    async fn ack(&self, handles: Vec<Handler>) -> Result<(), SourceError> {
        handles.into_iter().for_each(Handler::ack);
        Ok(())
    }

    async fn nack(&self, handles: Vec<Handler>) -> Result<(), SourceError> {
        handles.into_iter().for_each(Handler::nack);
        Ok(())
    }

    async fn extend(&self, _: &[Handler]) -> Result<(), SourceError> {
        Ok(())
    }

    fn extend_every(&self) -> Option<Duration> {
        None
    }

    /// Pub/Sub tells nobody but Cloud Monitoring; whether it can be reached is found out instead.
    async fn lag(&self) -> Result<Option<u64>, SourceError> {
        if self.looked_up.load(Ordering::Relaxed) && look_up(&self.asks, &self.subscription).await.is_err() {
            self.lost.cancel();
        }
        Ok(None)
    }

    /// Acknowledgements are sent some time after they were given.
    async fn close(&self) {
        self.stop.cancel();
        // What nobody has fetched is given back, or the client library would wait for it.
        let mut brought = self.messages.lock().await;
        while brought.recv().await.is_some() {}
        drop(brought);
        self.closing.shutdown().await;
    }
}
