//! The handle on a running mock Svix, and its builder.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use wiremock::MockServer;

use super::api::{Counts, Settings, State};
use super::front::Shared;
use super::input::{NewApplication, NewMessage};
use super::record::{MockEvent, ReceivedMessage, ReceivedRequest, Resent};
use super::store::Moment;
use super::trouble::Trouble;

const DEFAULT_RECORD_LIMIT: usize = 200_000;

/// A mock Svix. Clones are handles on the same one; it stops when the last is dropped.
///
/// It serves on a thread and a runtime of its own and tells the time by the system's clock,
/// whatever the test does to tokio's. See the [module](super) for an example and for what it doesn't do.
#[derive(Clone)]
pub struct MockSvix {
    server: Arc<MockServer>,
    shared: Arc<Shared>,
    token: Arc<str>,
}

impl MockSvix {
    /// Starts one on a free port of 127.0.0.1, without applications, that takes any token.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Sets one up.
    pub fn builder() -> MockSvixBuilder {
        MockSvixBuilder {
            listener: None,
            applications: Vec::new(),
            settings: Settings {
                token: None,
                create_applications: false,
                replay_by_key: true,
                record_limit: DEFAULT_RECORD_LIMIT,
            },
        }
    }

    /// The server URL for a Svix client: `http://127.0.0.1:{port}`, without a slash at its end.
    pub fn url(&self) -> String {
        self.server.uri()
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        *self.server.address()
    }

    /// A token that it takes: the one it was given, else any would do and this is `mock`.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Adds an application with this uid (which is also its name), unless it is there already.
    pub fn add_application(&self, uid: &str) {
        add_application(&mut self.shared.state(), uid);
    }

    /// Gives an application an endpoint of this name, for its messages to be sent to again.
    ///
    /// # Panics
    ///
    /// When there is no such application.
    pub fn add_endpoint(&self, app: &str, endpoint: &str) {
        let mut state = self.shared.state();
        let application = state.store.application(app).expect("the application exists");
        state.store.add_endpoint(application, endpoint.to_owned());
    }

    // ---- Trouble ----------------------------------------------------------------------------

    /// Adds these to the script. Each POST of a message takes the next entry; when none is left,
    /// all is well again, or the standing rules count.
    ///
    /// Rules are asked in this order, and the first that has something to say decides: the script
    /// of the application, the script, the standing trouble of the application, the standing
    /// trouble, every n-th.
    pub fn script(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.shared.state().rules.rules(None).script.extend(troubles);
    }

    /// Adds these to the script of one application, named as in the paths of the requests.
    pub fn script_for(&self, app: &str, troubles: impl IntoIterator<Item = Trouble>) {
        let mut state = self.shared.state();
        state.rules.rules(Some(app)).script.extend(troubles);
    }

    /// How many entries of the scripts haven't met their request yet.
    pub fn scripted(&self) -> usize {
        self.shared.state().rules.scripted()
    }

    /// A standing trouble for every POST of a message, until it is set again. `None` ends it.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        self.shared.state().rules.rules(None).standing = trouble;
    }

    /// A standing trouble for one application, named as in the paths of the requests. `None` ends
    /// it; [`Trouble::Pass`] exempts the application from what stands for all.
    pub fn set_trouble_for(&self, app: &str, trouble: Option<Trouble>) {
        self.shared.state().rules.rules(Some(app)).standing = trouble;
    }

    /// A standing trouble for every POST of the message with this `eventId`, before all other rules. `None` ends it.
    pub fn set_trouble_for_event(&self, event_id: &str, trouble: Option<Trouble>) {
        self.shared.state().rules.set_for_event(event_id, trouble);
    }

    /// Lets every n-th POST of a message from now on meet this trouble. 0 ends it.
    pub fn every_nth(&self, n: u64, trouble: Trouble) {
        self.shared.state().rules.set_every_nth(n, trouble);
    }

    /// Answers 429 to the next so many GETs of messages, with this `Retry-After`.
    pub fn throttle_looks(&self, count: usize, retry_after: Option<&str>) {
        let mut state = self.shared.state();
        let retry_after = retry_after.map(str::to_owned);
        state.throttled_looks = std::iter::repeat_n(retry_after, count).collect();
    }

    /// How many of the GETs that [`Self::throttle_looks`] was told of have not come yet.
    pub fn throttled_looks(&self) -> usize {
        self.shared.state().throttled_looks.len()
    }

    /// Drops the scripts and all standing rules.
    pub fn clear_troubles(&self) {
        self.shared.state().rules = Default::default();
    }

    // ---- Idempotency keys -------------------------------------------------------------------

    /// Whether a POST that repeats an `idempotency-key` (with the same token and URL) gets the
    /// answer of the first. On at the start; only answers of 2xx are kept, for 12 hours.
    pub fn set_replay_by_key(&self, on: bool) {
        self.shared.state().settings.replay_by_key = on;
    }

    /// Forgets all idempotency keys, as Svix does after 12 hours. The event ids stay taken.
    pub fn forget_idempotency_keys(&self) {
        self.shared.state().keys.clear();
    }

    // ---- Records ----------------------------------------------------------------------------

    /// The messages that are stored, in the order in which they came.
    pub fn messages(&self) -> Vec<Arc<ReceivedMessage>> {
        self.shared.state().store.messages().cloned().collect()
    }

    /// The message of an application with this id or `eventId`.
    pub fn message(&self, app: &str, id_or_event_id: &str) -> Option<Arc<ReceivedMessage>> {
        let state = self.shared.state();
        let application = state.store.application(app)?;
        state.store.message(application, id_or_event_id).cloned()
    }

    /// Stores messages of an application as if they had come at these times (in microseconds since the Unix epoch), each
    /// under its `eventId`; Svix's own id of each, in order. The application is made where it is missing.
    ///
    /// # Panics
    ///
    /// When an `eventId` is taken.
    pub fn add_messages(&self, app: &str, messages: impl IntoIterator<Item = (String, u64)>) -> Vec<String> {
        let mut state = self.shared.state();
        add_application(&mut state, app);
        let application = state.store.application(app).expect("the application was just made");
        let mut store = |(event_id, micros)| {
            let new = NewMessage::empty(event_id);
            let stored = state.store.store(application, new, None, Moment { micros, ..Moment::now() });
            stored.expect("the eventId is free").id.clone()
        };
        messages.into_iter().map(&mut store).collect()
    }

    /// The names of the event types that it knows, in order, without those in the archive.
    pub fn event_types(&self) -> Vec<String> {
        self.shared.state().event_types.names()
    }

    /// How many messages were stored since the start or the last [`MockSvix::clear`], including
    /// those that were removed or forgotten since.
    pub fn message_count(&self) -> u64 {
        self.shared.state().counts.messages
    }

    /// Every POST of a message, also those that were refused, in the order in which they came.
    pub fn requests(&self) -> Vec<Arc<ReceivedRequest>> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// Every POST of a message with this `eventId`, to whatever application.
    pub fn requests_for(&self, event_id: &str) -> Vec<Arc<ReceivedRequest>> {
        let state = self.shared.state();
        let of_event = |request: &&Arc<_>| has_event_id(request, event_id);
        state.requests.iter().filter(of_event).cloned().collect()
    }

    /// What was sent to endpoints again, in the order in which it was asked for.
    pub fn resent(&self) -> Vec<Resent> {
        self.shared.state().resent.clone()
    }

    /// How many POSTs of messages came since the start or the last [`MockSvix::clear`].
    pub fn request_count(&self) -> u64 {
        self.shared.state().counts.requests
    }

    /// How many GETs of messages came since the start or the last [`MockSvix::clear`]: lists and single messages.
    pub fn look_count(&self) -> u64 {
        self.shared.state().counts.looks
    }

    /// Waits until [`MockSvix::message_count`] has reached `n`. The timeout is on tokio's clock.
    ///
    /// # Errors
    ///
    /// When it has not within `timeout`.
    pub async fn wait_for_messages(&self, n: u64, timeout: Duration) -> Result<(), TooFew> {
        self.wait_for("messages", n, timeout, |counts| counts.messages).await
    }

    /// Waits until [`MockSvix::request_count`] has reached `n`. The timeout is on tokio's clock.
    ///
    /// # Errors
    ///
    /// When it has not within `timeout`.
    pub async fn wait_for_requests(&self, n: u64, timeout: Duration) -> Result<(), TooFew> {
        self.wait_for("requests", n, timeout, |counts| counts.requests).await
    }

    /// What happens from now on. A receiver that is more than 4,096 events late misses the oldest
    /// and is told so ([`broadcast::error::RecvError::Lagged`]).
    pub fn subscribe(&self) -> broadcast::Receiver<MockEvent> {
        self.shared.events()
    }

    /// Loses a message, named by its id or `eventId`, and says whether it was there. What is kept
    /// under its idempotency key stays.
    pub fn remove_message(&self, app: &str, id_or_event_id: &str) -> bool {
        self.shared.state().store.remove(app, id_or_event_id)
    }

    /// Forgets messages, requests, idempotency keys and counts. The applications and the rules of
    /// trouble stay.
    pub fn clear(&self) {
        let mut state = self.shared.state();
        state.store.clear();
        state.keys.clear();
        state.requests.clear();
        state.resent.clear();
        self.shared.reset_counts(&mut state);
    }

    async fn wait_for(
        &self,
        what: &'static str,
        wanted: u64,
        timeout: Duration,
        count: fn(&Counts) -> u64,
    ) -> Result<(), TooFew> {
        let mut counts = self.shared.counts();
        let reached = counts.wait_for(|counts| count(counts) >= wanted);
        match tokio::time::timeout(timeout, reached).await {
            // The sender lives as long as this handle.
            Ok(_) => Ok(()),
            Err(_) => Err(TooFew { what, wanted, got: count(&self.shared.state().counts), timeout }),
        }
    }
}

impl fmt::Debug for MockSvix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MockSvix");
        out.field("url", &self.url()).finish_non_exhaustive()
    }
}

/// Fewer came than were waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {timeout:?} for {wanted} {what}, got {got}")]
#[non_exhaustive]
pub struct TooFew {
    /// `messages` or `requests`.
    pub what: &'static str,
    /// How many were waited for.
    pub wanted: u64,
    /// How many there were in the end.
    pub got: u64,
    /// How long the wait was.
    pub timeout: Duration,
}

/// Sets up a [`MockSvix`].
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct MockSvixBuilder {
    listener: Option<TcpListener>,
    applications: Vec<String>,
    settings: Settings,
}

impl MockSvixBuilder {
    /// Refuses every other token with 401. Without this any token will do, and none as well.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.settings.token = Some(token.into());
        self
    }

    /// Adds an application with this uid, which is also its name.
    pub fn application(mut self, uid: impl Into<String>) -> Self {
        self.applications.push(uid.into());
        self
    }

    /// Whether a message for an unknown application creates it. Off by default, as with Svix,
    /// where such a message is 404 unless it brings the application along.
    pub fn create_applications(mut self, on: bool) -> Self {
        self.settings.create_applications = on;
        self
    }

    /// The same as [`MockSvix::set_replay_by_key`], from the start.
    pub fn replay_by_key(mut self, on: bool) -> Self {
        self.settings.replay_by_key = on;
        self
    }

    /// How many messages, requests and idempotency keys (each) are remembered: 200,000 by default,
    /// which takes some 400 MB when payloads have 500 bytes. A message that is forgotten is gone
    /// for the API as well: its `eventId` is free again, as at the end of Svix's retention.
    pub fn record_limit(mut self, count: usize) -> Self {
        self.settings.record_limit = count;
        self
    }

    /// Listens on this address instead of a free port of 127.0.0.1. Port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// When the address can't be bound.
    pub fn listen(mut self, address: SocketAddr) -> io::Result<Self> {
        self.listener = Some(TcpListener::bind(address)?);
        Ok(self)
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When no port of 127.0.0.1 is free.
    pub async fn start(self) -> MockSvix {
        let mut server = MockServer::builder().disable_request_recording();
        if let Some(listener) = self.listener {
            server = server.listener(listener);
        }
        let token = self.settings.token.as_deref().unwrap_or("mock").into();
        let mut state = State::new(self.settings);
        for uid in &self.applications {
            add_application(&mut state, uid);
        }
        let shared = Shared::new(state);
        let server = Arc::new(server.start().await);
        shared.serve_on(&server).await;
        MockSvix { server, shared, token }
    }
}

fn add_application(state: &mut State, uid: &str) {
    if state.store.application(uid).is_none() {
        let application = NewApplication::named(uid);
        state.store.create_application(application, Moment::now());
    }
}

fn has_event_id(request: &ReceivedRequest, event_id: &str) -> bool {
    request.event_id.as_deref() == Some(event_id)
}
