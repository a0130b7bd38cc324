//! A mock partner: an endpoint that keeps what it gets and answers as it is told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tokio::sync::watch;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

/// Most requests that are kept; the oldest go first. They still count.
const RECORD_LIMIT: usize = 100_000;

/// What a [`MockPartner`] answers to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartnerAnswer {
    /// The status.
    pub status: u16,
    /// Headers, e.g. `Retry-After`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// How long it takes.
    pub delay: Duration,
}

impl PartnerAnswer {
    /// An empty answer with this status, at once.
    pub const fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new(), delay: Duration::ZERO }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct PartnerRequest {
    /// The path, which tells a partner's endpoints apart.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// When it had come in whole.
    pub received_at: Instant,
    /// The status it was answered.
    pub status: u16,
}

impl PartnerRequest {
    /// A header as text; empty where it is absent or none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<PartnerAnswer>,
    standing: Option<PartnerAnswer>,
    /// What requests to a path are answered, whatever else is said.
    at: HashMap<String, PartnerAnswer>,
    /// Every n-th request is answered with this.
    every_nth: Option<(u64, PartnerAnswer)>,
    /// The first request of every `webhook-id` is answered with this; the ids that have come.
    first: Option<(PartnerAnswer, HashSet<String>)>,
    /// Says challenges back.
    answers_challenges: bool,
    requests: VecDeque<PartnerRequest>,
}

/// A partner on loopback that answers 204 unless told otherwise. It stops with its last clone.
#[derive(Clone)]
pub struct MockPartner {
    server: Arc<MockServer>,
    state: Arc<Mutex<State>>,
    count: watch::Sender<u64>,
}

impl fmt::Debug for MockPartner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("MockPartner").field("address", self.server.address()).finish_non_exhaustive()
    }
}

impl MockPartner {
    /// Starts on a free port.
    pub async fn start() -> Self {
        let server = MockServer::builder().disable_request_recording().start().await;
        let state = Arc::new(Mutex::new(State { answers_challenges: true, ..State::default() }));
        let count = watch::Sender::new(0);
        let partner = Self { server: Arc::new(server), state, count };
        let answering = (partner.state.clone(), partner.count.clone());
        let mock = Mock::given(wiremock::matchers::any())
            .respond_with(move |request: &Request| answer(&answering.0, &answering.1, request));
        partner.server.register(mock).await;
        partner
    }

    /// The URL of `path`, e.g. `/orders`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server.uri())
    }

    /// What the next requests are answered, one each.
    pub fn script(&self, answers: impl IntoIterator<Item = PartnerAnswer>) {
        self.state().script.extend(answers);
    }

    /// What requests are answered for which the script has nothing; 204 for `None`.
    pub fn set_answer(&self, answer: Option<PartnerAnswer>) {
        self.state().standing = answer;
    }

    /// What requests to one path are answered from now on, whatever else was said; `None` ends that.
    pub fn answer_at(&self, path: &str, answer: Option<PartnerAnswer>) {
        let mut state = self.state();
        match answer {
            Some(answer) => state.at.insert(path.to_owned(), answer),
            None => state.at.remove(path),
        };
    }

    /// Answers every `nth` request (1 and up) otherwise; 0 ends that.
    pub fn every_nth(&self, nth: u64, answer: PartnerAnswer) {
        self.state().every_nth = (nth > 0).then_some((nth, answer));
    }

    /// Answers the first request of every `webhook-id` from now on with this, before the script is asked; `None` ends
    /// that.
    pub fn answer_first(&self, answer: Option<PartnerAnswer>) {
        self.state().first = answer.map(|answer| (answer, HashSet::new()));
    }

    /// Whether ownership challenges are said back; they are, to begin with.
    pub fn set_answers_challenges(&self, answers: bool) {
        self.state().answers_challenges = answers;
    }

    /// What has come, oldest first, as far as it is kept.
    pub fn requests(&self) -> Vec<PartnerRequest> {
        self.state().requests.iter().cloned().collect()
    }

    /// How many requests have come, and those after the first `count`, oldest first, as far as they are kept.
    pub fn requests_after(&self, count: u64) -> (u64, Vec<PartnerRequest>) {
        let state = self.state();
        // Counted under the same lock.
        let come = self.request_count();
        let wanted = usize::try_from(come.saturating_sub(count)).unwrap_or(usize::MAX);
        let skipped = state.requests.len().saturating_sub(wanted);
        (come, state.requests.iter().skip(skipped).cloned().collect())
    }

    /// What has come for one path, oldest first.
    pub fn requests_to(&self, path: &str) -> Vec<PartnerRequest> {
        self.state().requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// How many requests have come.
    pub fn request_count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Waits until `count` requests have come; false where that takes longer than `patience`.
    pub async fn wait_for(&self, count: u64, patience: Duration) -> bool {
        let mut counts = self.count.subscribe();
        let arrived = counts.wait_for(|there| *there >= count);
        tokio::time::timeout(patience, arrived).await.is_ok_and(|arrived| arrived.is_ok())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "a mock tells the time by the system's clock")]
fn answer(state: &Mutex<State>, count: &watch::Sender<u64>, request: &Request) -> ResponseTemplate {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let nth = *count.borrow() + 1;
    let challenge = state.answers_challenges.then(|| challenge(&request.body)).flatten();
    let answer = match challenge {
        Some(word) => PartnerAnswer { body: word, ..PartnerAnswer::status(200) },
        None => {
            let placed = state.at.get(request.url.path()).cloned();
            let first = placed.or_else(|| state.first_answer(request));
            let scripted = first.or_else(|| state.script.pop_front());
            let periodic = || state.every_nth.as_ref().filter(|(every, _)| nth.is_multiple_of(*every));
            let periodic = periodic().map(|(_, answer)| answer.clone());
            scripted.or(periodic).or_else(|| state.standing.clone()).unwrap_or(PartnerAnswer::status(204))
        }
    };
    if state.requests.len() == RECORD_LIMIT {
        state.requests.pop_front();
    }
    state.requests.push_back(PartnerRequest {
        path: request.url.path().to_owned(),
        headers: request.headers.clone(),
        body: request.body.clone(),
        received_at: Instant::now(),
        status: answer.status,
    });
    count.send_replace(nth);
    let mut template = ResponseTemplate::new(answer.status).set_delay(answer.delay);
    if !answer.body.is_empty() {
        template = template.set_body_string(answer.body);
    }
    answer
        .headers
        .iter()
        .fold(template, |template, (name, value)| template.insert_header(name.as_str(), value.as_str()))
}

impl State {
    /// The answer to the first request of a `webhook-id`, where it is one and has one.
    fn first_answer(&mut self, request: &Request) -> Option<PartnerAnswer> {
        let id = request.headers.get("webhook-id")?.to_str().ok()?;
        let (answer, seen) = self.first.as_mut()?;
        seen.insert(id.to_owned()).then(|| answer.clone())
    }
}

/// The word of an ownership challenge.
fn challenge(body: &[u8]) -> Option<String> {
    let event: serde_json::Value = serde_json::from_slice(body).ok()?;
    let asked = event["type"] == "posthaste.challenge";
    asked.then(|| event["data"]["challenge"].as_str().map(str::to_owned))?
}
