//! What was sent and what became of it, as seen from outside the relay: its answers, and the mock Svix.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::sample::{Batch, Sample};
use super::tally::{PartnerCounts, Tally};
use crate::domain::clock::Moment;
use crate::mock::{MockEvent, PartnerRequest, ReceivedMessage, ReceivedRequest};

/// Most lines that wait to be shown; a screen that stands still must not fill the memory.
const LINES_MAX: usize = 10_000;

/// Who gets events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiver {
    /// The mock Svix.
    Svix,
    /// The mock partner.
    Sink,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// A sample event has arrived, this long after it was posted.
    Delivered { sample: Sample, to: Receiver, took: Duration },
    /// An event from somebody else has arrived.
    Foreign { tenant: String, event_type: String, id: String, to: Receiver },
    /// The relay knew this event already.
    Duplicate { sample: Sample },
    /// Svix did not know the tenant's application, and the relay made it.
    Application { app: String },
    /// Svix asked for a pause, with this `Retry-After`.
    Throttled { tenant: String, id: String, retry_after: Option<String> },
    /// Svix answered that it has this message already.
    Conflict { tenant: String, id: String },
    /// Svix answered something else, or not at all.
    Failed { tenant: String, id: String, status: Option<u16> },
    /// The partner answered so on purpose.
    FailedOnPurpose { tenant: String, id: String, status: u16 },
    /// What came to the partner is not signed as it should be.
    Forged { tenant: String, id: String },
    /// Something to know.
    Note(String),
    /// This many lines were left out, because nobody could see them.
    LeftOut(u64),
}

/// What the relay said of one event, as far as one who sends wants to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Accepted,
    Duplicate,
}

#[derive(Debug)]
struct Entry {
    sample: Sample,
    posted_at: Moment,
    /// The relay has said that it is in the ledger.
    acknowledged: bool,
    /// Messages that the mock told of.
    messages: u32,
}

/// The counts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Sample events that were posted, each counted once.
    pub sent: u64,
    /// Requests that they were posted with.
    pub requests: u64,
    /// Sample events of which the relay has said that they are in the ledger.
    pub accepted: u64,
    /// Repeated sample events that the relay has recognised.
    pub duplicates: u64,
    /// Sample events that are a message at Svix.
    pub delivered: u64,
    /// Events of others that are a message at Svix.
    pub foreign: u64,
    /// Times that Svix asked for a pause.
    pub throttled: u64,
}

/// How it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub counts: Counts,
    /// Messages of sample events that the mock holds.
    pub messages: u64,
    /// Accepted events without a message.
    pub lost: u64,
    /// Messages beyond the first of an event.
    pub doubled: u64,
    /// Requests for a pause that were kept to.
    pub honoured: u64,
    /// From the first request to the last message.
    pub elapsed: Duration,
    /// How it went at the partner.
    pub partner: PartnerCounts,
}

impl Summary {
    /// Whether every event that was sent is exactly one message, and came once, signed, to the partner that wants it.
    pub fn is_good(&self) -> bool {
        let at_svix = self.counts.sent == self.counts.accepted && self.lost == 0 && self.doubled == 0;
        at_svix && self.partner.is_good()
    }
}

/// See the module's own words.
#[derive(Debug)]
pub(super) struct Journal {
    entries: HashMap<String, Entry>,
    partner: Tally,
    counts: Counts,
    /// `None`: nobody wants to see them.
    lines: Option<Vec<(Moment, Line)>>,
    left_out: u64,
    first_post: Option<Moment>,
    last_message: Option<Moment>,
}

impl Journal {
    /// An empty journal; `with_lines` where somebody wants to see each event's way.
    pub fn new(with_lines: bool) -> Self {
        Self {
            entries: HashMap::new(),
            partner: Tally::default(),
            counts: Counts::default(),
            lines: with_lines.then(Vec::new),
            left_out: 0,
            first_post: None,
            last_message: None,
        }
    }

    /// Before `batch` is posted, for the first time or again.
    pub fn posting(&mut self, batch: &Batch, now: Moment) {
        self.first_post.get_or_insert(now);
        self.counts.requests += 1;
        for sample in &batch.events {
            if !self.entries.contains_key(&sample.id) {
                self.counts.sent += 1;
                self.partner.posting(sample, now);
                let entry =
                    Entry { sample: sample.clone(), posted_at: now, acknowledged: false, messages: 0 };
                self.entries.insert(sample.id.clone(), entry);
            }
        }
    }

    /// The relay's verdicts on a batch, in its order.
    pub fn answered(&mut self, batch: &Batch, verdicts: &[Verdict], now: Moment) {
        for (sample, verdict) in batch.events.iter().zip(verdicts) {
            let Some(entry) = self.entries.get_mut(&sample.id) else { continue };
            // A first `duplicate` is good news as well: the answer to an earlier request was lost.
            if !std::mem::replace(&mut entry.acknowledged, true) {
                self.counts.accepted += 1;
                self.partner.accepted(sample);
            } else if *verdict == Verdict::Duplicate {
                self.counts.duplicates += 1;
                self.tell(now, Line::Duplicate { sample: sample.clone() });
            }
        }
    }

    /// What the mock told.
    pub fn happened(&mut self, event: &MockEvent, now: Moment) {
        let of = |request: &ReceivedRequest| {
            (request.app.clone(), request.event_id.clone().unwrap_or_else(|| "?".into()))
        };
        let line = match event {
            MockEvent::Stored(message) => self.stored(message, now),
            MockEvent::ApplicationCreated { app } => Line::Application { app: app.clone() },
            MockEvent::Throttled(request) => {
                self.counts.throttled += 1;
                let (tenant, id) = of(request);
                Line::Throttled { tenant, id, retry_after: request.retry_after.clone() }
            }
            MockEvent::Conflict(request) => {
                let (tenant, id) = of(request);
                Line::Conflict { tenant, id }
            }
            // 404: the application is about to be made, which is told when it is.
            MockEvent::Failed(request) if request.status == Some(404) => return,
            MockEvent::Failed(request) => {
                let (tenant, id) = of(request);
                Line::Failed { tenant, id, status: request.status }
            }
            MockEvent::Replayed(_) => return,
        };
        self.tell(now, line);
    }

    fn stored(&mut self, message: &ReceivedMessage, now: Moment) -> Line {
        self.last_message = Some(now);
        let name = self.name_of(message);
        match name.and_then(|name| self.entries.get_mut(&name)) {
            Some(entry) => {
                entry.messages += 1;
                self.counts.delivered += u64::from(entry.messages == 1);
                let took = entry.posted_at.until(now);
                Line::Delivered { sample: entry.sample.clone(), to: Receiver::Svix, took }
            }
            None => {
                self.counts.foreign += 1;
                let id = message.event_id.clone().unwrap_or_else(|| message.id.clone());
                let (tenant, event_type) = (message.app.clone(), message.event_type.clone());
                Line::Foreign { tenant, event_type, id, to: Receiver::Svix }
            }
        }
    }

    /// What came to the partner, and whether its signature is good.
    pub fn arrived(&mut self, request: &PartnerRequest, verified: bool, now: Moment) {
        self.last_message = Some(now);
        let line = self.partner.arrived(request, verified, now);
        self.tell(now, line);
    }

    /// From now on, what is posted is expected at the partner.
    pub fn expect_at(&mut self, partner: Tally) {
        self.partner = partner;
    }

    /// What is expected at the partner, and what came.
    pub const fn partner(&self) -> &Tally {
        &self.partner
    }

    /// After `missed` things that the mock told went by: `messages` are all that it holds.
    pub fn catch_up(&mut self, missed: u64, messages: &[Arc<ReceivedMessage>], now: Moment) {
        for name in messages.iter().filter_map(|message| self.name_of(message)).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&name)
                && entry.messages == 0
            {
                entry.messages = 1;
                self.counts.delivered += 1;
            }
        }
        self.last_message = Some(now);
        self.left_out += missed;
    }

    /// The sample event that a message carries, if it is one: by its `eventId`, or by the id in the payload in case
    /// it came under another `eventId`.
    fn name_of(&self, message: &ReceivedMessage) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Named {
            #[serde(alias = "eventId")]
            id: String,
        }
        let by_payload = || serde_json::from_str::<Named>(&message.payload).ok().map(|named| named.id);
        let known = |id: &String| self.entries.contains_key(id);
        message.event_id.clone().filter(known).or_else(|| by_payload().filter(known))
    }

    /// Something that is not an event's way.
    pub fn note(&mut self, now: Moment, text: String) {
        self.tell(now, Line::Note(text));
    }

    fn tell(&mut self, now: Moment, line: Line) {
        let Some(lines) = &mut self.lines else { return };
        if lines.len() < LINES_MAX {
            lines.push((now, line));
        } else {
            self.left_out += 1;
        }
    }

    /// The lines since the last call.
    pub fn take_lines(&mut self, now: Moment) -> Vec<(Moment, Line)> {
        let left_out = std::mem::take(&mut self.left_out);
        let Some(lines) = &mut self.lines else { return Vec::new() };
        if left_out > 0 {
            lines.push((now, Line::LeftOut(left_out)));
        }
        std::mem::take(lines)
    }

    /// The counts so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// When the last message came.
    pub const fn last_message(&self) -> Option<Moment> {
        self.last_message
    }

    /// How it went, by what the mock holds, not by what it told on the way.
    pub fn summary(&self, messages: &[Arc<ReceivedMessage>], requests: &[Arc<ReceivedRequest>]) -> Summary {
        let mut stored: HashMap<String, u64> = HashMap::new();
        for name in messages.iter().filter_map(|message| self.name_of(message)) {
            *stored.entry(name).or_default() += 1;
        }
        let messages: u64 = stored.values().sum();
        let acknowledged = self.entries.iter().filter(|(_, entry)| entry.acknowledged);
        let lost = acknowledged.filter(|(id, _)| !stored.contains_key(*id)).count();
        let elapsed = self.first_post.zip(self.last_message).map(|(first, last)| first.until(last));
        Summary {
            counts: Counts { delivered: stored.len() as u64, ..self.counts },
            messages,
            lost: lost as u64,
            doubled: messages - stored.len() as u64,
            honoured: honoured(requests),
            elapsed: elapsed.unwrap_or_default(),
            partner: self.partner.counts(),
        }
    }
}

/// How many of the pauses that the mock asked for were kept to: from a quarter of the time on (by then what was
/// under way has arrived) until its end, no POST came.
fn honoured(requests: &[Arc<ReceivedRequest>]) -> u64 {
    let asked = requests.iter().filter(|request| request.status == Some(429));
    let kept = asked.filter(|asked| {
        let seconds = asked.retry_after.as_deref().and_then(|seconds| seconds.parse().ok());
        let wait = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let Some((wait, answered_at)) = wait.zip(asked.answered_at) else {
            return true;
        };
        let (from, to) = (answered_at + wait / 4, answered_at + wait);
        let first = requests.partition_point(|request| request.received_at < from);
        requests.get(first).is_none_or(|request| request.received_at >= to)
    });
    kept.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::Client;
    use crate::mock::{MockSvix, Trouble};

    const AT: Moment = Moment::after_start(Duration::from_secs(1));

    fn batch(ids: &[&str]) -> Batch {
        let sample = |id: &&str| Sample { tenant: "acme", event_type: "a", id: (*id).to_owned(), source: "" };
        Batch { events: ids.iter().map(sample).collect(), body: String::new(), resend: false }
    }

    async fn post(mock: &MockSvix, event_id: &str, payload: &str) {
        let client = Client::at(mock.url(), Some(mock.token().to_owned())).expect("a client");
        let body = format!(r#"{{"eventType":"a","eventId":"{event_id}","payload":{payload}}}"#);
        client.post("/api/v1/app/acme/msg", &[], body.into()).await.expect("an answer");
    }

    #[test]
    fn a_repeated_event_is_a_duplicate_and_a_lost_answer_is_none() {
        let mut journal = Journal::new(true);
        let batch = batch(&["1", "2"]);
        journal.posting(&batch, AT);
        // The answer was lost, and so it is posted again.
        journal.posting(&batch, AT);
        journal.answered(&batch, &[Verdict::Duplicate, Verdict::Accepted], AT);
        let counts = journal.counts();
        assert_eq!((counts.sent, counts.accepted, counts.duplicates, counts.requests), (2, 2, 0, 2));
        journal.posting(&batch, AT);
        journal.answered(&batch, &[Verdict::Duplicate, Verdict::Duplicate], AT);
        let counts = journal.counts();
        assert_eq!((counts.sent, counts.accepted, counts.duplicates), (2, 2, 2));
        assert_eq!(journal.take_lines(AT).len(), 2);
    }

    #[tokio::test]
    async fn what_is_lost_or_doubled_is_seen() {
        let mock = MockSvix::builder().application("acme").start().await;
        let mut journal = Journal::new(false);
        let batch = batch(&["1", "2", "3"]);
        journal.posting(&batch, AT);
        journal.answered(&batch, &[Verdict::Accepted; 3], AT);
        post(&mock, "1", r#"{"id":"1"}"#).await;
        let summary = journal.summary(&mock.messages(), &mock.requests());
        assert_eq!((summary.lost, summary.doubled, summary.is_good()), (2, 0, false));
        post(&mock, "2", "{}").await;
        post(&mock, "3", "{}").await;
        post(&mock, "somebody-else", r#"{"id":"theirs"}"#).await;
        let summary = journal.summary(&mock.messages(), &mock.requests());
        assert_eq!((summary.lost, summary.doubled, summary.is_good()), (0, 0, true));
        assert_eq!((summary.counts.delivered, summary.messages), (3, 3));
        // The same event under another name.
        post(&mock, "another-name", r#"{"eventId":"1"}"#).await;
        let summary = journal.summary(&mock.messages(), &mock.requests());
        assert_eq!((summary.lost, summary.doubled, summary.is_good()), (0, 1, false));
    }

    #[tokio::test]
    async fn a_pause_is_kept_to_where_nothing_comes_in_it() {
        let mock = MockSvix::builder().application("acme").start().await;
        mock.script([Trouble::throttle(4)]);
        post(&mock, "1", "{}").await;
        post(&mock, "1", "{}").await;
        let requests = mock.requests();
        let asked_at = requests[0].answered_at.expect("answered");
        for (after_ms, expected) in [(100, 1), (3_000, 0), (3_999, 0), (4_000, 1)] {
            let mut next = ReceivedRequest::clone(&requests[1]);
            next.received_at = asked_at + Duration::from_millis(after_ms);
            assert_eq!(honoured(&[requests[0].clone(), Arc::new(next)]), expected, "{after_ms} ms");
        }
        assert_eq!(honoured(&requests[..1]), 1, "nothing came after it");
    }
}
