//! The HTTP side: one wiremock server, two catch-all mocks, and the state behind a lock.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::{broadcast, watch};
use wiremock::{Match, Mock, MockServer, Request, ResponseTemplate};

use super::api::{Counts, State};
use super::record::MockEvent;
use super::reply::{Answer, Reply};
use super::store::Moment;

/// Who watches may be this many events late before it misses some.
const EVENT_BUFFER: usize = 4096;

/// A mounted mock keeps a copy of each request that it matched, recording disabled or not. After
/// this many requests the mocks are mounted anew, which drops the copies.
const REMOUNT_EVERY: u32 = 4096;

/// What the handle and the server have in common.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    events: broadcast::Sender<MockEvent>,
    counts: watch::Sender<Counts>,
    /// The answer on its way from the mock that decides to the mock that answers. wiremock holds
    /// a lock from the one to the other, so there is never more than one.
    decided: Mutex<Option<ResponseTemplate>>,
    served: AtomicU32,
    server: OnceLock<Weak<MockServer>>,
}

impl Shared {
    pub(super) fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            events: broadcast::Sender::new(EVENT_BUFFER),
            counts: watch::Sender::new(Counts::default()),
            decided: Mutex::new(None),
            served: AtomicU32::new(0),
            server: OnceLock::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn events(&self) -> broadcast::Receiver<MockEvent> {
        self.events.subscribe()
    }

    pub(super) fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// Sets all counts back.
    pub(super) fn reset_counts(&self, state: &mut State) {
        state.counts = Counts::default();
        self.counts.send_replace(state.counts);
    }

    /// Starts answering on this server.
    pub(super) async fn serve_on(self: &Arc<Self>, server: &Arc<MockServer>) {
        // Set once: there is one call, from the builder.
        let _ = self.server.set(Arc::downgrade(server));
        for mock in self.mocks() {
            server.register(mock).await;
        }
    }

    /// The first decides and matches only if the connection is to be closed; the second answers.
    fn mocks(self: &Arc<Self>) -> [Mock; 2] {
        let reset = |_: &Request| io::Error::from(io::ErrorKind::ConnectionReset);
        let answering = Arc::clone(self);
        [
            Mock::given(Decide(Arc::clone(self))).respond_with_err(reset).with_priority(1),
            Mock::given(wiremock::matchers::any())
                .respond_with(move |_: &Request| answering.take_decided())
                .with_priority(2),
        ]
    }

    fn decide(self: &Arc<Self>, request: &Request) -> bool {
        if self.served.fetch_add(1, Ordering::Relaxed) % REMOUNT_EVERY == REMOUNT_EVERY - 1 {
            self.remount();
        }
        let mut state = self.state();
        let reply = state.handle(request, Moment::now());
        for event in state.outbox.drain(..) {
            // Fails when nobody watches.
            let _ = self.events.send(event);
        }
        self.counts.send_replace(state.counts);
        drop(state);
        let decided = match reply {
            Reply::Send(answer) => Some(template(answer)),
            Reply::Close => None,
        };
        let close = decided.is_none();
        *self.decided() = decided;
        close
    }

    fn take_decided(&self) -> ResponseTemplate {
        let decided = self.decided().take();
        decided.unwrap_or_else(|| template(Answer::of_status(500)))
    }

    fn decided(&self) -> MutexGuard<'_, Option<ResponseTemplate>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts the mocks anew once this request is answered.
    ///
    /// This runs on the one thread that serves wiremock's requests, and so will the task. Nobody
    /// else takes wiremock's lock while requests are served, and serving one never waits while it
    /// holds it: the task goes through at one stroke, and no request finds the server bare.
    fn remount(self: &Arc<Self>) {
        let Some(server) = self.server.get().and_then(Weak::upgrade) else {
            return;
        };
        let mocks = self.mocks();
        tokio::spawn(async move {
            server.reset().await;
            for mock in mocks {
                server.register(mock).await;
            }
        });
    }
}

struct Decide(Arc<Shared>);

impl Match for Decide {
    fn matches(&self, request: &Request) -> bool {
        self.0.decide(request)
    }
}

fn template(answer: Answer) -> ResponseTemplate {
    let mut template = ResponseTemplate::new(answer.status).set_body_raw(answer.body, answer.media_type);
    if let Some(retry_after) = answer.retry_after {
        template = template.insert_header("retry-after", retry_after);
    }
    match answer.delay {
        Some(delay) => template.set_delay(delay),
        None => template,
    }
}
