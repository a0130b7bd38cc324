//! The part of Svix's API that the mock speaks, checked in the order in which the server checks.

use std::collections::VecDeque;
use std::sync::Arc;

use wiremock::Request;

use super::event_types::{EventTypes, ListQuery};
use super::input::{self, NewApplication, NewMessage};
use super::record::{MockEvent, ReceivedMessage, ReceivedRequest, Resent};
use super::reply::{Answer, Reply, answerable};
use super::store::{self, Fingerprint, Keys, Moment, Store};
use super::trouble::{Rulebook, Trouble};

/// What can be set before the start, and some of it after.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) token: Option<String>,
    pub(super) create_applications: bool,
    pub(super) replay_by_key: bool,
    pub(super) record_limit: usize,
}

/// How many messages were stored, and how many POSTs and GETs of messages were seen, ever.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) requests: u64,
    pub(super) looks: u64,
}

/// The whole state of a mock Svix.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) event_types: EventTypes,
    pub(super) keys: Keys,
    pub(super) rules: Rulebook,
    pub(super) requests: VecDeque<Arc<ReceivedRequest>>,
    /// `Retry-After` of the next GETs of messages that are answered 429.
    pub(super) throttled_looks: VecDeque<Option<String>>,
    /// What was sent to endpoints again.
    pub(super) resent: Vec<Resent>,
    pub(super) counts: Counts,
    /// What happened since the last look.
    pub(super) outbox: Vec<MockEvent>,
}

/// What came of handling a POST as usual.
#[derive(Debug, Default)]
struct Outcome {
    stored: Option<String>,
    replayed: bool,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store: Store::new(settings.record_limit),
            event_types: EventTypes::default(),
            keys: Keys::new(settings.record_limit),
            settings,
            rules: Rulebook::default(),
            requests: VecDeque::new(),
            throttled_looks: VecDeque::new(),
            resent: Vec::new(),
            counts: Counts::default(),
            outbox: Vec::new(),
        }
    }

    /// Handles one request.
    pub(super) fn handle(&mut self, request: &Request, now: Moment) -> Reply {
        let path: Vec<&str> = normal_path(request).split('/').skip(1).collect();
        if let ("GET", ["api", "v1", "app", _, "msg", ..]) = (request.method.as_str(), path.as_slice()) {
            self.counts.looks += 1;
        }
        let answer = match (request.method.as_str(), path.as_slice()) {
            (_, path) if path.contains(&"") => Err(Answer::no_such_route()),
            ("POST", ["api", "v1", "app", app, "msg"]) => {
                return self.post_message(app, request, now);
            }
            ("GET", ["api", "v1", "app", _, "msg", ..]) if !self.throttled_looks.is_empty() => {
                let retry_after = self.throttled_looks.pop_front().flatten();
                Err(Answer::of_status(429).retry_after(retry_after.as_deref()))
            }
            ("GET", ["api", "v1", "app", app, "msg"]) => self.list_messages(app, request),
            ("GET", ["api", "v1", "app", app, "msg", id, "endpoint"]) => {
                self.message_endpoints(app, id, request)
            }
            ("POST", ["api", "v1", "app", app, "msg", id, "endpoint", endpoint, "resend"]) => {
                Ok(self.resend([app, id, endpoint], request, now))
            }
            ("POST", ["api", "v1", "auth", "app-portal-access", app]) => {
                Ok(self.portal_access(app, request, now))
            }
            ("GET", ["api", "v1", "app", app, "msg", id]) => self.get_message(app, id, request),
            ("POST", ["api", "v1", "app"]) => Ok(self.post_application(request, now)),
            ("GET", ["api", "v1", "app"]) => self.list_applications(request),
            ("GET", ["api", "v1", "app", app]) => self.get_application(app, request),
            (method, ["api", "v1", "event-type", name @ ..]) => self.event_types(method, name, request, now),
            _ => Err(Answer::no_such_route()),
        };
        Reply::Send(answer.unwrap_or_else(|refusal| refusal))
    }

    fn post_message(&mut self, app: &str, request: &Request, now: Moment) -> Reply {
        let trouble = self.rules.next(app, request);
        let mut outcome = Outcome::default();
        let mut usual = |keep| self.store_message(app, request, now, keep, &mut outcome);
        let reply = match &trouble {
            Trouble::Pass => Reply::Send(usual(true)),
            Trouble::Slow(delay) => Reply::Send(usual(true).after(*delay)),
            Trouble::Throttle { retry_after } => {
                Reply::Send(Answer::of_status(429).retry_after(retry_after.as_deref()))
            }
            Trouble::Status(status) => Reply::Send(Answer::of_status(*status)),
            Trouble::Answer { status, retry_after, body } => {
                let answer = Answer::new(answerable(*status), "application/json", body.as_str());
                Reply::Send(answer.retry_after(retry_after.as_deref()))
            }
            Trouble::Garbage => {
                let page = "<!doctype html><title>Sign in</title>";
                Reply::Send(Answer::new(200, "text/html", page))
            }
            Trouble::Reset => Reply::Close,
            Trouble::StoredNoAnswer => {
                usual(true);
                Reply::Close
            }
            Trouble::StoredThenStatus(status) => {
                usual(false);
                Reply::Send(Answer::of_status(*status))
            }
            Trouble::StoredThenGarbage => {
                let mut answer = usual(true);
                answer.body.truncate(answer.body.len() / 2);
                Reply::Send(answer)
            }
        };
        self.record(app, request, now, trouble, outcome, &reply);
        reply
    }

    /// Creates a message or answers from the idempotency key; `keep` says whether an answer is
    /// kept under it.
    fn store_message(
        &mut self,
        app: &str,
        request: &Request,
        now: Moment,
        keep: bool,
        outcome: &mut Outcome,
    ) -> Answer {
        let (answer, replayed) = self.once(request, now, keep, |state| {
            let (answer, message) = state.create_message(app, request, now)?;
            outcome.stored = Some(message.id.clone());
            state.counts.messages += 1;
            state.outbox.push(MockEvent::Stored(message));
            Ok(answer)
        });
        outcome.replayed = replayed;
        answer
    }

    fn create_message(
        &mut self,
        app: &str,
        request: &Request,
        now: Moment,
    ) -> Result<(Answer, Arc<ReceivedMessage>), Answer> {
        let with_content = flag(request, "with_content", true)?;
        self.authorize(request)?;
        let mut new = input::message(&request.body)?;
        input::application_in_path(app)?;
        let application = match self.store.application(app) {
            Some(application) => application,
            None => self.application_for(app, &mut new, now)?,
        };
        let key = header(request, "idempotency-key").map(str::to_owned);
        let message = self
            .store
            .store(application, new, key, now)
            .ok_or_else(|| Answer::conflict("A conflict has occurred"))?;
        let answer = Answer::json(202, &store::message_out(&message, with_content));
        Ok((answer, message))
    }

    /// Creates the application that a message needs, if it may be.
    fn application_for(&mut self, app: &str, new: &mut NewMessage, now: Moment) -> Result<usize, Answer> {
        let application = match new.application.take() {
            Some(application) => {
                input::same_application(app, &application)?;
                application
            }
            None if self.settings.create_applications && !app.starts_with("app_") => {
                NewApplication::named(app)
            }
            None => return Err(Answer::not_found("Application not found")),
        };
        Ok(self.add_application(application, now))
    }

    pub(super) fn add_application(&mut self, application: NewApplication, now: Moment) -> usize {
        let application = self.store.create_application(application, now);
        let app = self.store.label(application).to_owned();
        self.outbox.push(MockEvent::ApplicationCreated { app });
        application
    }

    fn get_message(&self, app: &str, id: &str, request: &Request) -> Result<Answer, Answer> {
        let with_content = flag(request, "with_content", true)?;
        self.authorize(request)?;
        let not_found = || Answer::not_found("Entity not found");
        let application = self.store.application(app).ok_or_else(not_found)?;
        let message = self.store.message(application, id).ok_or_else(not_found)?;
        let body = store::message_out(message, with_content);
        Ok(Answer::json(200, &body))
    }

    fn post_application(&mut self, request: &Request, now: Moment) -> Answer {
        let create = |state: &mut Self| state.create_application(request, now);
        self.once(request, now, true, create).0
    }

    fn create_application(&mut self, request: &Request, now: Moment) -> Result<Answer, Answer> {
        let get_if_exists = flag(request, "get_if_exists", false)?;
        self.authorize(request)?;
        let new = input::application(&request.body)?;
        let existing = new.uid.as_deref().and_then(|uid| self.store.application(uid));
        let (status, application) = match existing {
            Some(existing) if get_if_exists => (200, existing),
            Some(_) => {
                let detail = "An application with that id or uid already exists";
                return Err(Answer::conflict(detail));
            }
            None => (201, self.add_application(new, now)),
        };
        let body = self.store.application_out(application);
        Ok(Answer::json(status, &body))
    }

    /// The list of applications, or the refusal that stands for all messages: a refused account is refused everywhere.
    fn list_applications(&mut self, request: &Request) -> Result<Answer, Answer> {
        if let Some(Trouble::Status(status @ (401 | 403))) = self.rules.rules(None).standing {
            return Err(Answer::of_status(status));
        }
        self.authorize(request)?;
        Ok(Answer::json(
            200,
            &serde_json::json!({"data": [], "done": true, "iterator": null, "prevIterator": null}),
        ))
    }

    fn get_application(&self, app: &str, request: &Request) -> Result<Answer, Answer> {
        self.authorize(request)?;
        let application = self.store.application(app).ok_or_else(|| Answer::not_found("Entity not found"))?;
        Ok(Answer::json(200, &self.store.application_out(application)))
    }

    fn event_types(
        &mut self,
        method: &str,
        name: &[&str],
        request: &Request,
        now: Moment,
    ) -> Result<Answer, Answer> {
        match (method, name) {
            ("POST", []) => Ok(self
                .once(request, now, true, |state| {
                    state.authorize(request)?;
                    state.event_types.create(&request.body, now)
                })
                .0),
            ("GET", []) => {
                let query = ListQuery {
                    limit: parameter(request, "limit").and_then(|limit| limit.parse().ok()),
                    after: parameter(request, "iterator"),
                    include_archived: flag(request, "include_archived", false)?,
                    with_content: flag(request, "with_content", false)?,
                };
                self.authorize(request)?;
                Ok(self.event_types.list(&query))
            }
            ("GET", [name]) => {
                self.authorize(request)?;
                self.event_types.get(name)
            }
            ("PUT", [name]) => {
                self.authorize(request)?;
                self.event_types.put(name, &request.body, now)
            }
            ("DELETE", [name]) => {
                let expunge = flag(request, "expunge", false)?;
                self.authorize(request)?;
                self.event_types.delete(name, expunge)
            }
            _ => Err(Answer::no_such_route()),
        }
    }

    pub(super) fn authorize(&self, request: &Request) -> Result<(), Answer> {
        let Some(token) = &self.settings.token else {
            return Ok(());
        };
        let given = header(request, "authorization").and_then(|value| value.split_once(' '));
        match given {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && given.trim() == token => Ok(()),
            _ => Err(Answer::of_status(401)),
        }
    }

    /// Does a POST once per idempotency key, and tells whether this was a repetition. Only answers
    /// that say yes are kept. The token is part of the key, so it isn't checked again.
    pub(super) fn once(
        &mut self,
        request: &Request,
        now: Moment,
        keep: bool,
        act: impl FnOnce(&mut Self) -> Result<Answer, Answer>,
    ) -> (Answer, bool) {
        let key = self.key_of(request);
        if let Some(kept) = key.and_then(|key| self.keys.get(&key, now)) {
            return (kept.clone(), true);
        }
        let answer = match act(self) {
            Ok(answer) => answer,
            Err(refusal) => return (refusal, false),
        };
        if let Some(key) = key
            && keep
        {
            self.keys.keep(key, answer.clone(), now);
        }
        (answer, false)
    }

    fn key_of(&self, request: &Request) -> Option<Fingerprint> {
        let key = header(request, "idempotency-key")?;
        let authorization = header(request, "authorization")?;
        let query = request.url.query().unwrap_or_default();
        let url = format!("{}?{query}", normal_path(request));
        let replay = self.settings.replay_by_key;
        replay.then(|| store::fingerprint(authorization, key, &url))
    }

    fn record(
        &mut self,
        app: &str,
        request: &Request,
        now: Moment,
        trouble: Trouble,
        outcome: Outcome,
        reply: &Reply,
    ) {
        let answer = match reply {
            Reply::Send(answer) => Some(answer),
            Reply::Close => None,
        };
        let delay = answer.and_then(|answer| answer.delay).unwrap_or_default();
        let record = Arc::new(ReceivedRequest {
            app: app.to_owned(),
            event_id: input::event_id(&request.body),
            idempotency_key: header(request, "idempotency-key").map(str::to_owned),
            received_at: now.instant,
            status: answer.map(|answer| answer.status),
            answered_at: answer.and_then(|_| Moment::now().instant.checked_add(delay)),
            retry_after: answer.and_then(|answer| answer.retry_after.clone()),
            stored: outcome.stored,
            replayed: outcome.replayed,
            trouble,
        });
        self.counts.requests += 1;
        self.outbox.extend(MockEvent::of_request(&record));
        self.requests.push_back(record);
        while self.requests.len() > self.settings.record_limit {
            self.requests.pop_front();
        }
    }
}

/// The path without the slashes at its end: the server takes it with them and without.
fn normal_path(request: &Request) -> &str {
    request.url.path().trim_end_matches('/')
}

pub(super) fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.get(name)?.to_str().ok()
}

pub(super) fn parameter(request: &Request, name: &str) -> Option<String> {
    request.url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

pub(super) fn flag(request: &Request, name: &str, default: bool) -> Result<bool, Answer> {
    match parameter(request, name).as_deref() {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => {
            let detail = format!(
                "Failed to deserialize query string: {name}: provided string was not `true` or `false`"
            );
            Err(Answer::error(400, "generic_error", &detail))
        }
    }
}
