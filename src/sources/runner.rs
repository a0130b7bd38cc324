//! The one way in which every source is read.
//!
//! Fetch, hand to the doorway, acknowledge after the commit; several batches are under way at once. While the ledger
//! takes nothing, nothing is fetched, and what was fetched is held and its time extended. It is not given back then:
//! brokers count deliveries, and would put away for good what an outage had made them repeat too often.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::status::{SourceState, SourceStatus};
use super::{Connector, Message, Source, SourceError};
use crate::config::SourceConfig;
use crate::domain::parse::MessageIdentity;
use crate::ingest::{Ingest, Letter, MessageOrigin};
use crate::ledger::Ledger;
use crate::reconnect::Pauses;
use crate::telemetry::SourceMetrics;

/// Time for a connection, all of its handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the broker to take an acknowledgement.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the broker is asked how much waits.
const LAG_EVERY: Duration = Duration::from_secs(5);

/// Where messages go, and who is told of them.
pub(super) struct Doorway {
    pub(super) ingest: Ingest,
    pub(super) ledger: Ledger,
    pub(super) metrics: Arc<SourceMetrics>,
    pub(super) status: Arc<SourceStatus>,
}

/// Reads one source.
pub(super) struct Runner {
    doorway: Doorway,
    /// Kind and name: what rejected messages are kept under.
    origin: String,
    kind: &'static str,
    name: String,
    tenant: Option<String>,
    batch: usize,
    max_in_flight: usize,
    /// One for each message that may be under way.
    room: Arc<Semaphore>,
    /// Batches that the ledger would not take.
    held_up: AtomicUsize,
    /// Everything that is under way, on connections that are gone too.
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Messages under way: parted, so that they can be handed in while their time is extended.
struct Batch<H> {
    letters: Vec<Letter>,
    handles: Vec<H>,
    room: OwnedSemaphorePermit,
    /// When their time has last been extended: counted from the question that brought them on.
    extended_at: Instant,
}

/// What keeps messages from being handed in again at once.
enum Delay {
    /// The ledger takes nothing, for this reason. Nothing is fetched meanwhile.
    Ledger(String),
    /// Some tenants may put in no more for so long.
    Tenants(Duration),
}

impl Runner {
    pub(super) fn new(config: &SourceConfig, doorway: Doorway, stop: CancellationToken) -> Self {
        let kind = config.broker.kind();
        Self {
            doorway,
            origin: format!("{kind}:{}", config.name),
            kind,
            name: config.name.clone(),
            tenant: config.tenant.clone(),
            batch: config.batch,
            max_in_flight: config.max_in_flight,
            room: Arc::new(Semaphore::new(config.max_in_flight)),
            held_up: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Connects and reads, again and again, until the wish to stop; everything is settled when it returns.
    pub(super) async fn run<C: Connector>(self: Arc<Self>, connector: C) {
        let connector = Arc::new(connector);
        let read = || {
            let (runner, connector) = (self.clone(), connector.clone());
            async move { runner.reconnect(&*connector).await }
        };
        let tell =
            || self.note(SourceState::Down("the broker's client has panicked; the log says where".into()));
        anew_after_panics(read, tell, &self.stop).await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn reconnect<C: Connector>(self: &Arc<Self>, connector: &C) {
        let mut pauses = Pauses::new();
        let mut is_first = true;
        loop {
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect());
            let Some(connected) = self.stop.run_until_cancelled(connecting).await else { return };
            let timed_out = |_| Err(SourceError::new("no connection in time"));
            let error = match connected.unwrap_or_else(timed_out) {
                Ok(source) => {
                    if !std::mem::take(&mut is_first) {
                        self.doorway.metrics.reconnected();
                    }
                    self.note(SourceState::Up);
                    match self.read(Arc::new(source), &mut pauses).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.note(SourceState::Down(error.to_string()));
            if self.stop.run_until_cancelled(tokio::time::sleep(pauses.pause())).await.is_none() {
                return;
            }
        }
    }

    /// Reads until the wish to stop or the first error. What was fetched before an error settles by itself: what can't
    /// be acknowledged any more is delivered again.
    async fn read<S: Source>(
        self: &Arc<Self>,
        source: Arc<S>,
        pauses: &mut Pauses,
    ) -> Result<(), SourceError> {
        let end = CancellationToken::new();
        self.tasks.spawn(watch_lag(source.clone(), self.doorway.status.clone(), end.clone()));
        // It ends with a panic of the client's, too.
        let end = end.drop_guard();
        let read = self.fetch_all(&source, pauses).await;
        drop(end);
        self.doorway.status.set_lag(None);
        if read.is_ok() {
            // Nothing is fetched any more, here or on another connection.
            self.tasks.close();
            self.tasks.wait().await;
            let closed = tokio::time::timeout(SETTLE_TIMEOUT, source.close()).await;
            self.tell_of("acknowledged", closed.map(Ok));
        }
        read
    }

    async fn fetch_all<S: Source>(
        self: &Arc<Self>,
        source: &Arc<S>,
        pauses: &mut Pauses,
    ) -> Result<(), SourceError> {
        loop {
            let Some(()) = self.until_fetching_is_of_use().await else { return Ok(()) };
            let Some(mut room) = self.take_room().await else { return Ok(()) };
            let asked_at = Instant::now();
            let messages = source.fetch(room.num_permits()).await?;
            pauses.reset();
            let Some(held) = room.split(messages.len()) else {
                // More than was asked for is more than may be under way: the broker has them back.
                source.nack(messages.into_iter().map(|message| message.handle).collect()).await?;
                continue;
            };
            if messages.is_empty() {
                continue;
            }
            self.doorway.metrics.received(messages.len());
            let batch = self.batch_of(messages, held, asked_at);
            if self.stop.is_cancelled() {
                return source.nack(batch.handles).await;
            }
            let (runner, source) = (self.clone(), source.clone());
            self.tasks.spawn(async move { runner.settle(&*source, batch).await });
        }
    }

    /// Waits while the ledger takes nothing; `None` where that is no longer of interest.
    async fn until_fetching_is_of_use(&self) -> Option<()> {
        let mut pauses = Pauses::new();
        loop {
            let held_up = self.held_up.load(Ordering::Relaxed) > 0;
            match self.doorway.ledger.admits() {
                Ok(()) if !held_up => {
                    self.note(SourceState::Up);
                    return (!self.stop.is_cancelled()).then_some(());
                }
                Ok(()) => {}
                Err(error) => self.note(SourceState::Paused(error.to_string())),
            }
            self.stop.run_until_cancelled(tokio::time::sleep(pauses.pause())).await?;
        }
    }

    /// Room for a batch, or for what may be under way beside what is; at least for one.
    async fn take_room(&self) -> Option<OwnedSemaphorePermit> {
        let mut room = self.stop.run_until_cancelled(self.room.clone().acquire_owned()).await?.ok()?;
        let more = self.room.available_permits().min(self.batch.min(self.max_in_flight) - 1);
        if let Ok(more) = self.room.clone().try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX)) {
            room.merge(more);
        }
        Some(room)
    }

    fn batch_of<H>(
        &self,
        messages: Vec<Message<H>>,
        room: OwnedSemaphorePermit,
        extended_at: Instant,
    ) -> Batch<H> {
        let part = |message: Message<H>| {
            let names = message.identity.map(|names| [vec![self.name.clone()], names].concat());
            let letter = Letter {
                body: message.body,
                attributes: message.attributes,
                content_type: message.content_type,
                identity: names.map(|names| MessageIdentity::new(self.kind, names)),
            };
            (letter, message.handle)
        };
        let (letters, handles) = messages.into_iter().map(part).unzip();
        Batch { letters, handles, room, extended_at }
    }

    /// Hands a batch in until all of it is recorded and acknowledged; gives back what is not when it is time to stop.
    async fn settle<S: Source>(&self, source: &S, mut batch: Batch<S::Handle>) {
        let mut pauses = Pauses::new();
        loop {
            let origin = MessageOrigin {
                origin: &self.origin,
                tenant: self.tenant.as_deref(),
                metrics: &self.doorway.metrics,
            };
            let taking = self.doorway.ingest.take_messages(origin, &batch.letters);
            let extended_at = &mut batch.extended_at;
            let delay = match while_extending(source, &batch.handles, extended_at, taking).await {
                Ok(taken) => {
                    self.doorway.metrics.rejected(taken.rejected);
                    let wait = taken.later.iter().flatten().min().copied();
                    let done = batch.part(&taken.later);
                    self.acknowledge(source, done).await;
                    match wait {
                        None => return,
                        Some(wait) => Delay::Tenants(wait),
                    }
                }
                Err(error) => Delay::Ledger(error.to_string()),
            };
            let waited = match delay {
                Delay::Tenants(wait) => self.wait(source, &mut batch, wait).await,
                Delay::Ledger(reason) => {
                    self.note(SourceState::Paused(reason));
                    self.held_up.fetch_add(1, Ordering::Relaxed);
                    let waited = self.wait(source, &mut batch, pauses.pause()).await;
                    self.held_up.fetch_sub(1, Ordering::Relaxed);
                    waited
                }
            };
            if waited.is_none() {
                let given_back = source.nack(batch.handles);
                self.tell_of("given back", tokio::time::timeout(SETTLE_TIMEOUT, given_back).await);
                return;
            }
        }
    }

    /// Waits with messages in hand; `None` where it is time to stop.
    async fn wait<S: Source>(&self, source: &S, batch: &mut Batch<S::Handle>, pause: Duration) -> Option<()> {
        let waiting = self.stop.run_until_cancelled(tokio::time::sleep(pause));
        while_extending(source, &batch.handles, &mut batch.extended_at, waiting).await
    }

    async fn acknowledge<S: Source>(&self, source: &S, done: Vec<S::Handle>) {
        if done.is_empty() {
            return;
        }
        self.tell_of("acknowledged", tokio::time::timeout(SETTLE_TIMEOUT, source.ack(done)).await);
    }

    /// A broker that could not be told delivers again, and duplicates are found.
    fn tell_of(&self, what: &str, told: Result<Result<(), SourceError>, tokio::time::error::Elapsed>) {
        let reason = match told {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(source = %self.name, reason, "messages could not be {what}: they will come again");
    }

    /// Notes how the source stands; tells of it where that has changed.
    fn note(&self, state: SourceState) {
        if !self.doorway.status.set(state.clone()) {
            return;
        }
        let (source, kind) = (&self.name, self.kind);
        match &state {
            SourceState::Up => tracing::info!(%source, kind, "reading the source"),
            SourceState::Paused(reason) => tracing::warn!(%source, kind, reason, "the source is paused"),
            SourceState::Down(reason) => tracing::warn!(%source, kind, reason, "the source is down"),
            SourceState::Connecting => {}
        }
    }
}

impl<H> Batch<H> {
    /// Parts with the messages that are not left for later; their handles.
    fn part(&mut self, later: &[Option<Duration>]) -> Vec<H> {
        let (mut letters, mut handles, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let all = std::mem::take(&mut self.letters).into_iter().zip(std::mem::take(&mut self.handles));
        for ((letter, handle), later) in all.zip(later) {
            if later.is_some() {
                letters.push(letter);
                handles.push(handle);
            } else {
                done.push(handle);
            }
        }
        (self.letters, self.handles) = (letters, handles);
        drop(self.room.split(done.len()));
        done
    }
}

/// Runs what `start` makes until it ends by itself. Where it panics, `tell` is called, and it is started anew after a pause:
/// one source's client must not end the source without a word.
async fn anew_after_panics<F: Future<Output = ()> + Send + 'static>(
    start: impl Fn() -> F,
    tell: impl Fn(),
    stop: &CancellationToken,
) {
    let mut pauses = Pauses::new();
    loop {
        match tokio::spawn(start()).await {
            Err(error) if error.is_panic() => tell(),
            Ok(()) | Err(_) => return,
        }
        if stop.run_until_cancelled(tokio::time::sleep(pauses.pause())).await.is_none() {
            return;
        }
    }
}

/// Does `work`, and extends the time of messages meanwhile as often as their broker wants: counted over all that is done
/// with them, however short each part of it is.
async fn while_extending<S: Source, T>(
    source: &S,
    handles: &[S::Handle],
    extended_at: &mut Instant,
    work: impl Future<Output = T>,
) -> T {
    let Some(every) = source.extend_every() else { return work.await };
    let extending = async {
        loop {
            tokio::time::sleep_until(*extended_at + every).await;
            let asked_at = Instant::now();
            if let Err(error) = source.extend(handles).await {
                tracing::debug!(%error, "the time of messages could not be extended");
            }
            // Not before: a question that `work` cuts short is asked again.
            *extended_at = asked_at;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        () = extending => unreachable!("it never ends"),
    }
}

async fn watch_lag<S: Source>(source: Arc<S>, status: Arc<SourceStatus>, end: CancellationToken) {
    let watching = async {
        loop {
            if let Ok(lag) = source.lag().await {
                status.set_lag(lag);
            }
            tokio::time::sleep(LAG_EVERY).await;
        }
    };
    end.run_until_cancelled(watching).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that wants to be asked for more time every 200 ms; counts how often it is.
    #[derive(Default)]
    struct Impatient(AtomicUsize);

    impl Source for Impatient {
        type Handle = ();

        async fn fetch(&self, _: usize) -> Result<Vec<Message<()>>, SourceError> {
            Ok(Vec::new())
        }

        async fn ack(&self, _: Vec<()>) -> Result<(), SourceError> {
            Ok(())
        }

        async fn nack(&self, _: Vec<()>) -> Result<(), SourceError> {
            Ok(())
        }

        async fn extend(&self, _: &[()]) -> Result<(), SourceError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn extend_every(&self) -> Option<Duration> {
            Some(Duration::from_millis(200))
        }

        async fn lag(&self) -> Result<Option<u64>, SourceError> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn time_is_extended_however_short_the_steps_are() {
        let (source, mut extended_at) = (Impatient::default(), Instant::now());
        for _ in 0..40 {
            let step = tokio::time::sleep(Duration::from_millis(50));
            while_extending(&source, &[()], &mut extended_at, step).await;
        }
        let asked = source.0.load(Ordering::Relaxed);
        assert!(asked >= 4, "in two seconds it was asked {asked} times");
    }

    #[tokio::test]
    async fn a_panic_is_told_and_what_panicked_starts_anew() {
        let (started, told) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let start = || {
            let started = started.clone();
            async move { assert!(started.fetch_add(1, Ordering::Relaxed) >= 2, "not yet") }
        };
        let tell = || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        anew_after_panics(start, tell, &CancellationToken::new()).await;
        assert_eq!((started.load(Ordering::Relaxed), told.load(Ordering::Relaxed)), (3, 2));
    }

    #[tokio::test]
    async fn what_panics_while_it_is_to_stop_is_left_alone() {
        let (stop, told) = (CancellationToken::new(), AtomicUsize::new(0));
        stop.cancel();
        let tell = || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        anew_after_panics(|| async { panic!("always") }, tell, &stop).await;
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
