//! Brokers' messages: several in one commit, each with its own outcome, and what can never be accepted kept.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::limits::Counts;
use super::{Ingest, IngestError, ItemResult, Status};
use crate::domain::event::Identity;
use crate::domain::parse::{IncomingMessage, Item, LazyIdentity, MessageIdentity, parse_message};
use crate::ledger::{Accepted, LedgerError, NewEvent, NewRejected, Rejected};
use crate::telemetry::SourceMetrics;

/// How long a tenant that has too much waiting is left alone.
const BACKLOG_WAIT: Duration = Duration::from_secs(1);

/// Where messages come from.
#[derive(Debug, Clone, Copy)]
pub struct MessageOrigin<'a> {
    /// What they are kept under where they can't be accepted: kind and name.
    pub origin: &'a str,
    /// The one tenant that all events belong to, whatever they say.
    pub tenant: Option<&'a str>,
    /// Where their events are counted.
    pub metrics: &'a SourceMetrics,
}

/// A broker's message as it came.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its bytes.
    pub body: Bytes,
    /// What stands beside them, in the order in which it came.
    pub attributes: Vec<(String, String)>,
    /// Its content type, where the broker has a place of its own for it.
    pub content_type: Option<String>,
    /// What it is called, by a name that is the same whenever it is delivered again and that no other message has;
    /// `None` where its broker has none. Then its events must have ids.
    pub identity: Option<MessageIdentity>,
}

/// What became of several messages.
#[derive(Debug, Default)]
pub struct Letters {
    /// For each message: `None` where all its events are recorded or kept as rejected, so that it may be
    /// acknowledged; else how long to wait before it is handed in again.
    pub later: Vec<Option<Duration>>,
    /// The verdicts on the events of those that are done.
    pub results: Vec<ItemResult>,
    /// How many events were kept as rejected; one that was kept before counts again.
    pub rejected: usize,
}

/// Which message an item is of, and its place there.
type Place = (usize, usize);

impl Ingest {
    /// Records the events of several messages in one commit; returns after it. Always lenient: what can never be
    /// accepted is kept as rejected. Messages whose tenant may put in no more now are left for later, whole, and do not
    /// keep others back.
    ///
    /// # Errors
    /// [`LedgerError`]: none of the messages may be acknowledged.
    pub async fn take_messages(
        &self,
        from: MessageOrigin<'_>,
        letters: &[Letter],
    ) -> Result<Letters, LedgerError> {
        let (mut items, mut places) = (Vec::new(), Vec::<Place>::new());
        for (number, letter) in letters.iter().enumerate() {
            let read = self.read(from, letter);
            places.extend((0..read.len()).map(|item| (number, item)));
            items.extend(read);
        }
        // Nobody is bound here, so none is refused as foreign; whatever else may be is not acknowledged.
        let screened = self.screen(items, None, true);
        let (mut results, mut drafts, raw) =
            screened.map_err(|error| LedgerError::Unavailable(error.to_string()))?;
        let mut spans = self.begin_spans(&mut drafts);
        let events = self.prepare(drafts, &mut results, None).await?;
        let mut waits: Vec<Option<Duration>> = vec![None; letters.len()];
        let number_of = |index: usize| places[index].0;
        self.hold_full_backlogs(&events, &mut waits, number_of)?;
        let taken = self.hold_over_limit(&events, &mut waits, number_of);
        let now = |index: &usize| waits[number_of(*index)].is_none();
        let (indexes, events): (Vec<_>, Vec<_>) = events.into_iter().filter(|(index, _)| now(index)).unzip();
        let commits = spans.commit();
        let accepted = self.ledger.accept(events, false, None).await;
        drop(commits);
        let accepted = accepted.inspect_err(|_| self.rules.limits.refund(&taken))?;
        if let Accepted::Stored(verdicts) | Accepted::Refused(verdicts) = accepted {
            super::note_verdicts(&mut results, indexes, verdicts);
        }
        spans.end(&results);
        let mut done = Vec::with_capacity(results.len());
        let mut rejected = Vec::new();
        for ((result, raw), (number, item)) in results.into_iter().zip(raw).zip(places) {
            if waits[number].is_none() {
                if result.is_bad() {
                    rejected.push(reject(from, &letters[number], item, &result, &raw));
                }
                done.push(result);
            }
        }
        self.keep(&rejected).await?;
        self.count_verdicts(from.metrics, &done, true);
        Ok(Letters { later: waits, results: done, rejected: rejected.len() })
    }

    /// Takes in what was rejected, as the event that it would have been: all of it or, where it still can't be
    /// accepted, nothing. A second time it is a duplicate.
    ///
    /// # Errors
    /// [`IngestError::OverLimit`] and [`IngestError::Ledger`]: nothing is stored.
    pub async fn replay(&self, rejected: &Rejected) -> Result<Vec<ItemResult>, IngestError> {
        let attributes = read_attributes(&rejected.attributes);
        let identity: Option<MessageIdentity> =
            rejected.identity.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let items = {
            let identity = identity.as_ref().map(LazyIdentity::known);
            let message = IncomingMessage {
                body: rejected.body.clone().into(),
                attributes: &attributes,
                content_type: rejected.content_type.as_deref(),
                identity: identity.as_ref(),
                first_index: rejected.item,
                tenant: rejected.tenant.as_deref(),
            };
            parse_message(&message, &self.rules.parse)
        };
        let (mut results, drafts, _) = self.screen(items, None, true)?;
        if results.iter().any(ItemResult::is_bad) {
            return Ok(results);
        }
        let taken = self.admit(&drafts)?;
        let recorded = async {
            let events = self.prepare(drafts, &mut results, None).await?;
            if results.iter().any(ItemResult::is_bad) {
                return Ok(None);
            }
            let (indexes, events): (Vec<_>, Vec<_>) = events.into_iter().unzip();
            Ok(Some((indexes, self.ledger.accept(events, true, None).await?)))
        };
        let recorded = recorded.await.inspect_err(|_: &LedgerError| self.rules.limits.refund(&taken))?;
        if let Some((indexes, Accepted::Stored(verdicts) | Accepted::Refused(verdicts))) = recorded {
            super::note_verdicts(&mut results, indexes, verdicts);
        }
        self.count_verdicts(&self.replays, &results, !results.iter().any(ItemResult::is_bad));
        Ok(results)
    }

    fn read(&self, from: MessageOrigin<'_>, letter: &Letter) -> Vec<Item> {
        let identity = letter.identity.as_ref().map(|name| LazyIdentity::of(name, &letter.body));
        let message = IncomingMessage {
            body: letter.body.clone(),
            attributes: &letter.attributes,
            content_type: letter.content_type.as_deref(),
            identity: identity.as_ref(),
            first_index: 0,
            tenant: from.tenant,
        };
        parse_message(&message, &self.rules.parse)
    }

    /// Leaves the messages for later whose tenants have no room for them among what waits.
    fn hold_full_backlogs(
        &self,
        events: &[(usize, NewEvent)],
        waits: &mut [Option<Duration>],
        number_of: impl Fn(usize) -> usize,
    ) -> Result<(), LedgerError> {
        // As many as there is room for are taken, or a batch larger than the room would never be.
        let mut rooms: HashMap<&str, u64> = HashMap::new();
        for of_message in events.chunk_by(|(one, _), (other, _)| number_of(*one) == number_of(*other)) {
            let mut fits = true;
            for (_, new) in of_message {
                let tenant = &*new.event.identity.tenant;
                let room = match rooms.entry(tenant) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(self.ledger.room_of(tenant)?),
                };
                let more = new.lanes.len() as u64;
                fits &= more <= *room;
                *room = room.saturating_sub(more);
            }
            if !fits {
                waits[number_of(of_message[0].0)] = Some(BACKLOG_WAIT);
            }
        }
        Ok(())
    }

    /// Takes tokens for the events of messages, and leaves those of tenants for later that have none.
    fn hold_over_limit(
        &self,
        events: &[(usize, NewEvent)],
        waits: &mut [Option<Duration>],
        number_of: impl Fn(usize) -> usize,
    ) -> Counts {
        loop {
            let now = events.iter().filter(|(index, _)| waits[number_of(*index)].is_none());
            let counts = self.count(now.map(|(_, event)| &event.event.identity.tenant));
            match self.admit_counts(&counts) {
                Ok(()) => return counts,
                // One tenant fewer each time round.
                Err(over) => hold(events, waits, &number_of, &over.tenant, over.wait),
            }
        }
    }

    pub(super) async fn keep(&self, rejected: &[NewRejected]) -> Result<(), LedgerError> {
        if let Some(first) = rejected.first() {
            let count = rejected.len();
            tracing::warn!(count, origin = %first.origin, reason = %first.reason, "kept what can never be accepted");
            self.ledger.database().reject(rejected, self.clock.now()).await?;
        }
        Ok(())
    }
}

impl ItemResult {
    /// Whether it can never be accepted.
    pub(super) const fn is_bad(&self) -> bool {
        matches!(self.status, Status::Invalid | Status::Conflict)
    }
}

/// Leaves every message for later that has an event of `tenant`.
fn hold(
    events: &[(usize, NewEvent)],
    waits: &mut [Option<Duration>],
    number_of: &impl Fn(usize) -> usize,
    tenant: &str,
    wait: Duration,
) {
    let of_tenant = |identity: &Identity| *identity.tenant == *tenant;
    let numbers: HashSet<usize> = events
        .iter()
        .filter(|(_, new)| of_tenant(&new.event.identity))
        .map(|(index, _)| number_of(*index))
        .collect();
    for number in numbers {
        waits[number] = Some(wait);
    }
}

/// The event at `item` of a message, as it is kept.
fn reject(
    from: MessageOrigin<'_>,
    letter: &Letter,
    item: usize,
    result: &ItemResult,
    raw: &Bytes,
) -> NewRejected {
    let identity = letter.identity.clone().map(|identity| identity.sealed(&letter.body));
    NewRejected {
        origin: from.origin.to_owned(),
        reason: result.detail.clone().unwrap_or_default(),
        attributes: attributes_json(&letter.attributes),
        body: raw.to_vec(),
        content_type: letter.content_type.clone(),
        tenant: from.tenant.map(str::to_owned),
        message_key: identity.as_ref().map(|identity| identity.event_id(item)),
        identity: identity.and_then(|identity| serde_json::to_string(&identity).ok()),
        item,
    }
}

/// Attributes as a JSON object; a name that came more than once has a list.
fn attributes_json(attributes: &[(String, String)]) -> String {
    let mut object = Map::new();
    for (name, value) in attributes {
        let value = Value::from(value.as_str());
        match object.entry(name) {
            serde_json::map::Entry::Vacant(entry) => {
                entry.insert(value);
            }
            serde_json::map::Entry::Occupied(mut entry) => match entry.get_mut() {
                Value::Array(values) => values.push(value),
                first => *first = Value::Array(vec![first.take(), value]),
            },
        }
    }
    Value::Object(object).to_string()
}

/// The attributes in a JSON object that are text.
fn read_attributes(json: &str) -> Vec<(String, String)> {
    let object: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let mut attributes = Vec::new();
    for (name, value) in object {
        match value {
            Value::String(text) => attributes.push((name, text)),
            Value::Array(values) => {
                let texts = values.into_iter().filter_map(|value| value.as_str().map(str::to_owned));
                attributes.extend(texts.map(|text| (name.clone(), text)));
            }
            _ => {}
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_kept() {
        let pairs = [("a", "1"), ("b", "x\u{1}y"), ("c", "2"), ("c", "3")];
        let owned: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let json = attributes_json(&owned);
        assert_eq!(json, r#"{"a":"1","b":"x\u0001y","c":["2","3"]}"#);
        assert_eq!(read_attributes(&json), owned);
        assert_eq!(read_attributes("no JSON"), []);
        assert_eq!(read_attributes(r#"{"n":1}"#), []);
    }
}
