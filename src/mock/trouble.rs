//! What may go wrong, and the rules that say when it does.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use wiremock::Request;

/// What the mock does to one POST of a message instead of answering it as Svix would.
///
/// A trouble strikes before anything else is looked at: the token, the application and the body.
/// See [`MockSvix::script`](super::MockSvix::script) for the ways to ask for one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// No trouble: this request is handled as usual, whatever the other rules say.
    Pass,
    /// Answers 429. Nothing is stored.
    Throttle {
        /// The `Retry-After` header, sent as given: seconds, an HTTP-date or nonsense. `None`
        /// leaves it out. What no header can carry (control characters) is left out as well.
        retry_after: Option<String>,
    },
    /// Answers this status with a body in Svix's shape. Nothing is stored.
    ///
    /// A number that can't be the status of an answer (below 200 or above 999) becomes 500.
    Status(u16),
    /// Answers exactly this. Nothing is stored.
    Answer {
        /// The status; a number that can't be one becomes 500.
        status: u16,
        /// The `Retry-After` header, as in [`Trouble::Throttle`].
        retry_after: Option<String>,
        /// The body, sent as `application/json` whatever it is.
        body: String,
    },
    /// Answers 200 with an HTML page, as a proxy or a captive portal would. Nothing is stored.
    Garbage,
    /// Closes the connection without an answer. Nothing is stored.
    Reset,
    /// Handles the request as usual, then closes the connection without an answer. The answer is
    /// kept under the idempotency key, as it is when the network fails after the server did not.
    StoredNoAnswer,
    /// Handles the request as usual, then answers this status. Nothing is kept under the
    /// idempotency key: a self-hosted Svix that can't queue what it has committed does this.
    StoredThenStatus(u16),
    /// Handles the request as usual and answers with that status, but the JSON of the body breaks
    /// off in the middle. The whole answer is kept under the idempotency key.
    StoredThenGarbage,
    /// Handles the request at once and answers as usual, but only after this long.
    Slow(Duration),
}

impl Trouble {
    /// A 429 that asks to wait this many seconds.
    pub fn throttle(retry_after_seconds: u64) -> Self {
        Self::Throttle { retry_after: Some(retry_after_seconds.to_string()) }
    }
}

/// Every rule in force, the most particular first.
#[derive(Debug, Default)]
pub(super) struct Rulebook {
    everywhere: Rules,
    by_application: HashMap<String, Rules>,
    by_event: HashMap<String, Trouble>,
    every_nth: Option<EveryNth>,
}

#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) script: VecDeque<Trouble>,
    pub(super) standing: Option<Trouble>,
}

#[derive(Debug)]
struct EveryNth {
    n: u64,
    seen: u64,
    trouble: Trouble,
}

impl Rulebook {
    /// The rules of one application (as it is named in the path), or of all of them.
    pub(super) fn rules(&mut self, application: Option<&str>) -> &mut Rules {
        match application {
            None => &mut self.everywhere,
            Some(name) => self.by_application.entry(name.to_owned()).or_default(),
        }
    }

    pub(super) fn set_for_event(&mut self, event_id: &str, trouble: Option<Trouble>) {
        match trouble {
            Some(trouble) => self.by_event.insert(event_id.to_owned(), trouble),
            None => self.by_event.remove(event_id),
        };
    }

    fn of_event(&self, request: &Request) -> Option<Trouble> {
        if self.by_event.is_empty() {
            return None;
        }
        let body: serde_json::Value = serde_json::from_slice(&request.body).ok()?;
        self.by_event.get(body.get("eventId")?.as_str()?).cloned()
    }

    pub(super) fn set_every_nth(&mut self, n: u64, trouble: Trouble) {
        self.every_nth = (n > 0).then_some(EveryNth { n, seen: 0, trouble });
    }

    /// How many entries of the scripts wait for their request.
    pub(super) fn scripted(&self) -> usize {
        let particular: usize = self.by_application.values().map(|r| r.script.len()).sum();
        self.everywhere.script.len() + particular
    }

    /// What the next POST for this application meets. Consumes a script entry, if there is one.
    pub(super) fn next(&mut self, application: &str, request: &Request) -> Trouble {
        if let Some(trouble) = self.of_event(request) {
            return trouble;
        }
        let due = self.every_nth.as_mut().and_then(EveryNth::next);
        let mut particular = self.by_application.get_mut(application);
        particular
            .as_mut()
            .and_then(|rules| rules.script.pop_front())
            .or_else(|| self.everywhere.script.pop_front())
            .or_else(|| particular.and_then(|rules| rules.standing.clone()))
            .or_else(|| self.everywhere.standing.clone())
            .or(due)
            .unwrap_or(Trouble::Pass)
    }
}

impl EveryNth {
    fn next(&mut self) -> Option<Trouble> {
        self.seen += 1;
        self.seen.is_multiple_of(self.n).then(|| self.trouble.clone())
    }
}
