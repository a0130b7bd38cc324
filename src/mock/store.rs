//! What the mock Svix knows: applications, messages and the answers kept under idempotency keys.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::input::{NewApplication, NewMessage};
use super::record::ReceivedMessage;
use super::reply::{self, Answer};

/// Svix forgets an idempotency key after this long.
const KEY_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) micros: u64,
}

impl Moment {
    #[allow(
        clippy::disallowed_methods,
        reason = "the mock stands for another machine, with a clock of its own"
    )]
    pub(super) fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let micros = since_1970.map_or(0, |elapsed| elapsed.as_micros());
        Self { instant: Instant::now(), micros: u64::try_from(micros).unwrap_or(u64::MAX) }
    }
}

#[derive(Debug)]
struct Application {
    id: String,
    data: NewApplication,
    created_at_micros: u64,
    by_event_id: HashMap<String, Arc<ReceivedMessage>>,
    by_id: HashMap<String, Arc<ReceivedMessage>>,
    endpoints: Vec<String>,
}

impl Application {
    fn label(&self) -> &str {
        self.data.uid.as_deref().unwrap_or(&self.id)
    }
}

/// Applications and their messages.
#[derive(Debug)]
pub(super) struct Store {
    applications: Vec<Application>,
    by_name: HashMap<String, usize>,
    messages: VecDeque<Arc<ReceivedMessage>>,
    limit: usize,
    minted: u64,
}

impl Store {
    /// A store that holds this many messages, and forgets the oldest then.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            applications: Vec::new(),
            by_name: HashMap::new(),
            messages: VecDeque::new(),
            limit,
            minted: 0,
        }
    }

    /// The application with this id or uid.
    pub(super) fn application(&self, id_or_uid: &str) -> Option<usize> {
        self.by_name.get(id_or_uid).copied()
    }

    pub(super) fn label(&self, application: usize) -> &str {
        self.applications[application].label()
    }

    /// Creates an application. Its uid, if any, must be free.
    pub(super) fn create_application(&mut self, data: NewApplication, now: Moment) -> usize {
        let index = self.applications.len();
        let id = self.mint("app_", now);
        self.by_name.insert(id.clone(), index);
        if let Some(uid) = &data.uid {
            self.by_name.insert(uid.clone(), index);
        }
        self.applications.push(Application {
            id,
            data,
            created_at_micros: now.micros,
            by_event_id: HashMap::new(),
            by_id: HashMap::new(),
            endpoints: Vec::new(),
        });
        index
    }

    /// The endpoints of an application, by name.
    pub(super) fn endpoints(&self, application: usize) -> &[String] {
        &self.applications[application].endpoints
    }

    pub(super) fn add_endpoint(&mut self, application: usize, endpoint: String) {
        self.applications[application].endpoints.push(endpoint);
    }

    /// Stores a message. `None`: its `eventId` is taken.
    pub(super) fn store(
        &mut self,
        application: usize,
        new: NewMessage,
        idempotency_key: Option<String>,
        now: Moment,
    ) -> Option<Arc<ReceivedMessage>> {
        let id = self.mint("msg_", now);
        let owner = &mut self.applications[application];
        let taken = |event_id| owner.by_event_id.contains_key(event_id);
        if new.event_id.as_ref().is_some_and(taken) {
            return None;
        }
        let message = Arc::new(ReceivedMessage {
            app: owner.label().to_owned(),
            id,
            event_id: new.event_id,
            event_type: new.event_type,
            payload: new.payload,
            channels: new.channels,
            tags: new.tags,
            idempotency_key,
            received_at: now.instant,
            application,
            created_at_micros: now.micros,
        });
        if let Some(event_id) = message.event_id.clone() {
            owner.by_event_id.insert(event_id, Arc::clone(&message));
        }
        let id = message.id.clone();
        owner.by_id.insert(id, Arc::clone(&message));
        self.messages.push_back(Arc::clone(&message));
        while self.messages.len() > self.limit {
            if let Some(oldest) = self.messages.pop_front() {
                self.forget(&oldest);
            }
        }
        Some(message)
    }

    /// The message of an application with this id or `eventId`.
    pub(super) fn message(&self, application: usize, id_or_event_id: &str) -> Option<&Arc<ReceivedMessage>> {
        let owner = &self.applications[application];
        let by_id = owner.by_id.get(id_or_event_id);
        by_id.or_else(|| owner.by_event_id.get(id_or_event_id))
    }

    /// Loses a message. The rest of the world isn't told.
    pub(super) fn remove(&mut self, application: &str, id_or_event_id: &str) -> bool {
        let found = self
            .application(application)
            .and_then(|application| self.message(application, id_or_event_id).cloned());
        let Some(message) = found else { return false };
        self.messages.retain(|other| !Arc::ptr_eq(other, &message));
        self.forget(&message);
        true
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Arc<ReceivedMessage>> {
        self.messages.iter()
    }

    /// Forgets every message. The applications stay.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        for application in &mut self.applications {
            application.by_event_id.clear();
            application.by_id.clear();
        }
    }

    fn forget(&mut self, message: &ReceivedMessage) {
        let owner = &mut self.applications[message.application];
        owner.by_id.remove(&message.id);
        if let Some(event_id) = &message.event_id {
            owner.by_event_id.remove(event_id);
        }
    }

    /// An id in Svix's form: the prefix and 27 characters of base 62 that sort by time.
    fn mint(&mut self, prefix: &str, now: Moment) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        self.minted += 1;
        let mut number = (u128::from(now.micros) << 64) | u128::from(self.minted);
        let mut digits = [b'0'; 27];
        for digit in digits.iter_mut().rev() {
            // The remainder is below 62.
            *digit = DIGITS[(number % 62) as usize];
            number /= 62;
        }
        let digits = digits.map(char::from);
        prefix.chars().chain(digits).collect()
    }

    /// The body that describes an application.
    pub(super) fn application_out(&self, application: usize) -> impl Serialize {
        let application = &self.applications[application];
        ApplicationOut {
            uid: application.data.uid.as_deref(),
            name: &application.data.name,
            rate_limit: application.data.throttle_rate,
            throttle_rate: application.data.throttle_rate,
            id: &application.id,
            created_at: reply::timestamp(application.created_at_micros),
            updated_at: reply::timestamp(application.created_at_micros),
            metadata: &application.data.metadata,
        }
    }
}

/// The body that describes a message, with its payload or without.
pub(super) fn message_out(message: &ReceivedMessage, with_content: bool) -> impl Serialize {
    MessageOut {
        event_id: message.event_id.as_deref(),
        event_type: &message.event_type,
        payload: reply::printed(if with_content { &message.payload } else { "{}" }),
        channels: message.channels.as_deref(),
        id: &message.id,
        timestamp: reply::timestamp(message.created_at_micros),
        tags: message.tags.as_deref(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageOut<'a> {
    event_id: Option<&'a str>,
    event_type: &'a str,
    payload: Box<RawValue>,
    channels: Option<&'a [String]>,
    id: &'a str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a [String]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApplicationOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<u16>,
    throttle_rate: Option<u16>,
    id: &'a str,
    created_at: String,
    updated_at: String,
    metadata: &'a std::collections::BTreeMap<String, String>,
}

/// A token, an idempotency key and a URL, hashed.
pub(super) type Fingerprint = [u8; 32];

/// Hashes what an idempotency key is scoped by.
pub(super) fn fingerprint(authorization: &str, key: &str, url: &str) -> Fingerprint {
    let mut hasher = Sha256::new();
    for part in [authorization, key, url] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The answers kept under idempotency keys.
#[derive(Debug)]
pub(super) struct Keys {
    answers: HashMap<Fingerprint, (Instant, Answer)>,
    order: VecDeque<Fingerprint>,
    limit: usize,
}

impl Keys {
    /// Room for this many answers; the oldest are forgotten then.
    pub(super) fn new(limit: usize) -> Self {
        Self { answers: HashMap::new(), order: VecDeque::new(), limit }
    }

    pub(super) fn get(&self, key: &Fingerprint, now: Moment) -> Option<&Answer> {
        let (kept_at, answer) = self.answers.get(key)?;
        (now.instant.duration_since(*kept_at) < KEY_LIFETIME).then_some(answer)
    }

    pub(super) fn keep(&mut self, key: Fingerprint, answer: Answer, now: Moment) {
        if self.answers.insert(key, (now.instant, answer)).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.answers.clear();
        self.order.clear();
    }
}
