//! What a group commit writes, decided before it is written.
//!
//! Requests that share a commit stay apart: [`plan`] works them out one after another, as if each had its own, and a
//! strict request that must be refused takes only its own rows with it. It decides against what is *known* to be
//! stored, at first nothing; where the database then finds a clash, the writer looks the identities up and plans again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::domain::clock::Timestamp;
use crate::domain::event::{Event, EventSeq, Fingerprint, Identity};
use crate::domain::tenant::Lane;

/// A well-formed event and the lanes its deliveries go to.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event.
    pub event: Event,
    /// Where it goes, worked out once. Empty: it is kept as unrouted.
    pub lanes: Vec<Arc<Lane>>,
}

/// An `Idempotency-Key` and the body it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// Whose key it is: the tenant the caller is bound to, or empty.
    pub scope: String,
    /// The header's value.
    pub key: String,
    /// SHA-256 of the request body.
    pub fingerprint: [u8; 32],
}

/// A request as the ledger sees it: all events well-formed.
#[derive(Debug)]
pub(super) struct AcceptRequest {
    pub events: Vec<NewEvent>,
    pub strict: bool,
    pub request_key: Option<RequestKey>,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Stored: a verdict for each event, in order.
    Stored(Vec<ItemVerdict>),
    /// A strict request with at least one conflict: nothing is stored. The verdicts say what each would have been.
    Refused(Vec<ItemVerdict>),
    /// The request's `Idempotency-Key` was used with another body: nothing is stored.
    KeyReused,
}

/// What became of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemVerdict {
    /// New, and stored.
    Accepted,
    /// Stored before, with the same type and data.
    Duplicate,
    /// The identity is taken by an event with another type or data.
    Conflict,
}

/// What the ledger is known to hold.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub events: HashMap<Identity, Fingerprint>,
    /// By scope and key.
    pub requests: HashMap<(String, String), [u8; 32]>,
}

impl Known {
    pub fn merge(&mut self, more: Self) {
        self.events.extend(more.events);
        self.requests.extend(more.requests);
    }
}

/// An event that is to be written.
#[derive(Debug)]
pub(super) struct Insert<'a> {
    pub seq: EventSeq,
    pub new: &'a NewEvent,
}

/// A delivery that is to be written, in the order of the events.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    pub seq: EventSeq,
    pub lane: &'a Arc<Lane>,
    pub new: &'a NewEvent,
    /// Handed over in memory after the commit, and so claimed from the start.
    pub handed_over: bool,
}

/// An event that came although its identity was taken.
#[derive(Debug)]
pub(super) struct Repeat<'a> {
    pub event: &'a Event,
    /// With another type or data.
    pub conflict: bool,
}

/// What a commit writes and what it answers.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// When the events are recorded and their deliveries fall due.
    pub now: Timestamp,
    /// One for each request, in order.
    pub answers: Vec<Accepted>,
    /// In the order of their numbers.
    pub inserts: Vec<Insert<'a>>,
    /// Indexes into `inserts`, in the order of their identities: two nodes that insert the same identities take them
    /// in the same order, and can't wait for each other in a ring.
    pub by_identity: Vec<usize>,
    pub deliveries: Vec<Waiting<'a>>,
    pub request_keys: Vec<&'a RequestKey>,
    /// What came again: to be counted, not written here.
    pub repeats: Vec<Repeat<'a>>,
}

impl<'a> Plan<'a> {
    /// The events to insert, in the order of their identities.
    pub fn sorted(&self) -> impl Iterator<Item = &Insert<'a>> {
        self.by_identity.iter().filter_map(|index| self.inserts.get(*index))
    }

    /// Whether any of the events belongs to a trace.
    pub fn is_traced(&self) -> bool {
        self.inserts.iter().any(|insert| insert.new.event.trace.is_some())
    }

    /// Whether a strict request is refused for its conflicts.
    pub fn refuses(&self) -> bool {
        self.answers.iter().any(|answer| matches!(answer, Accepted::Refused(_)))
    }

    pub fn writes_nothing(&self) -> bool {
        self.inserts.is_empty() && self.request_keys.is_empty()
    }
}

/// Works out `requests` one after another against what is known.
pub(super) fn plan<'a>(
    requests: impl IntoIterator<Item = &'a AcceptRequest>,
    known: &Known,
    now: Timestamp,
    mut next_seq: impl FnMut() -> EventSeq,
) -> Plan<'a> {
    let mut plan = Plan {
        now,
        answers: Vec::new(),
        inserts: Vec::new(),
        by_identity: Vec::new(),
        deliveries: Vec::new(),
        request_keys: Vec::new(),
        repeats: Vec::new(),
    };
    let mut planned: HashMap<&Identity, Fingerprint> = HashMap::new();
    let mut planned_keys: HashMap<(&str, &str), &[u8; 32]> = HashMap::new();
    for request in requests {
        if let Some(key) = &request.request_key {
            let name = (key.scope.as_str(), key.key.as_str());
            let stored = known.requests.get(&(key.scope.clone(), key.key.clone()));
            match stored.or_else(|| planned_keys.get(&name).copied()) {
                Some(fingerprint) if *fingerprint != key.fingerprint => {
                    plan.answers.push(Accepted::KeyReused);
                    continue;
                }
                Some(_) => {}
                None => {
                    planned_keys.insert(name, &key.fingerprint);
                    plan.request_keys.push(key);
                }
            }
        }
        let (verdicts, fresh) = judge(request, known, &mut planned, &mut plan.repeats);
        if request.strict && verdicts.contains(&ItemVerdict::Conflict) {
            // Its key is not remembered either: nothing of it is.
            if let Some(key) = &request.request_key
                && plan.request_keys.last().is_some_and(|last| std::ptr::eq(*last, key))
            {
                plan.request_keys.pop();
                planned_keys.remove(&(key.scope.as_str(), key.key.as_str()));
            }
            for new in fresh {
                planned.remove(&new.event.identity);
            }
            plan.answers.push(Accepted::Refused(verdicts));
            continue;
        }
        for new in fresh {
            let seq = next_seq();
            plan.inserts.push(Insert { seq, new });
            let lanes = new.lanes.iter();
            plan.deliveries.extend(lanes.map(|lane| Waiting { seq, lane, new, handed_over: false }));
        }
        plan.answers.push(Accepted::Stored(verdicts));
    }
    plan.request_keys.sort_by_key(|key| (&key.scope, &key.key));
    plan.by_identity = by_identity(&plan.inserts);
    plan
}

/// What an insert is sorted by: all that most comparisons need in one place. Following each identity to its three texts
/// took several times as long as the rest of the sort.
struct SortKey<'a> {
    /// The place of its tenant and source among all of the plan.
    scope: usize,
    /// The beginning of its id, as numbers.
    head: [u64; 4],
    id: &'a str,
    index: usize,
}

/// Indexes into `inserts`, in the order of their identities.
fn by_identity(inserts: &[Insert<'_>]) -> Vec<usize> {
    let scopes = || inserts.iter().map(|insert| scope(&insert.new.event.identity));
    let mut known: Vec<_> = scopes().collect();
    // Events of a request mostly share one.
    known.dedup();
    known.sort_unstable();
    known.dedup();
    let mut last = known.first().map(|scope| (*scope, 0));
    let keys = inserts.iter().zip(scopes()).enumerate().map(|(index, (insert, scope))| {
        let place = match last {
            Some((known, place)) if known == scope => place,
            _ => known.binary_search(&scope).unwrap_or_default(),
        };
        last = Some((scope, place));
        let id = &*insert.new.event.identity.id;
        SortKey { scope: place, head: head(id), id, index }
    });
    let mut keys: Vec<_> = keys.collect();
    // Stable because that sort makes use of what is in order already: most producers' ids grow.
    keys.sort_by(|one, other| {
        let heads = || (one.scope, one.head).cmp(&(other.scope, other.head));
        heads().then_with(|| one.id.cmp(other.id))
    });
    keys.into_iter().map(|key| key.index).collect()
}

fn scope(identity: &Identity) -> (&str, &str) {
    (&identity.tenant, &identity.source)
}

/// The first 32 bytes of an id, so that they compare as the id does where they differ.
fn head(id: &str) -> [u64; 4] {
    let mut bytes = [0; 32];
    let length = id.len().min(bytes.len());
    bytes[..length].copy_from_slice(&id.as_bytes()[..length]);
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|n| u64::from_be_bytes(words[n]))
}

/// The verdicts on one request, and which of its events are new: they are `planned` from then on.
fn judge<'a>(
    request: &'a AcceptRequest,
    known: &Known,
    planned: &mut HashMap<&'a Identity, Fingerprint>,
    repeats: &mut Vec<Repeat<'a>>,
) -> (Vec<ItemVerdict>, Vec<&'a NewEvent>) {
    let mut verdicts = Vec::with_capacity(request.events.len());
    let mut fresh = Vec::with_capacity(request.events.len());
    for new in &request.events {
        let event = &new.event;
        let stored = match known.events.get(&event.identity) {
            Some(stored) => Some(*stored),
            None => match planned.entry(&event.identity) {
                Entry::Occupied(planned) => Some(*planned.get()),
                Entry::Vacant(free) => {
                    free.insert(event.fingerprint);
                    None
                }
            },
        };
        verdicts.push(match stored {
            Some(fingerprint) => {
                let conflict = fingerprint != event.fingerprint;
                repeats.push(Repeat { event, conflict });
                if conflict { ItemVerdict::Conflict } else { ItemVerdict::Duplicate }
            }
            None => {
                fresh.push(new);
                ItemVerdict::Accepted
            }
        });
    }
    (verdicts, fresh)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn event(id: &str, data: &str) -> NewEvent {
        NewEvent {
            event: Event {
                identity: Identity { tenant: "acme".into(), source: "".into(), id: id.into() },
                event_type: "t".into(),
                fingerprint: Fingerprint::of("t", Some(data)),
                body: Bytes::from_static(b"{}"),
                data: None,
                trace: None,
            },
            lanes: Vec::new(),
        }
    }

    fn request(strict: bool, events: Vec<NewEvent>) -> AcceptRequest {
        AcceptRequest { events, strict, request_key: None }
    }

    fn planned<'a>(requests: &'a [AcceptRequest], known: &Known) -> Plan<'a> {
        let mut seq = 0;
        plan(requests, known, Timestamp::from_millis(1), || {
            seq += 1;
            EventSeq(seq)
        })
    }

    fn ids<'a>(plan: &Plan<'a>) -> Vec<&'a str> {
        plan.inserts.iter().map(|insert| &*insert.new.event.identity.id).collect()
    }

    #[test]
    fn a_refused_request_takes_only_its_own_rows_with_it() {
        use ItemVerdict::{Accepted as New, Conflict, Duplicate};
        let requests = [
            request(true, vec![event("a", "1"), event("a", "2")]),
            // `a` is new here, since the request before stored nothing.
            request(true, vec![event("a", "2"), event("b", "1"), event("b", "1")]),
            request(false, vec![event("b", "2"), event("c", "1")]),
        ];
        let plan = planned(&requests, &Known::default());
        assert_eq!(
            plan.answers,
            [
                Accepted::Refused(vec![New, Conflict]),
                Accepted::Stored(vec![New, New, Duplicate]),
                Accepted::Stored(vec![Conflict, New]),
            ]
        );
        assert_eq!(ids(&plan), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_known_is_not_inserted_again() {
        let requests = [request(false, vec![event("z", "1"), event("y", "1"), event("x", "1")])];
        let mut known = Known::default();
        known.events.insert(event("y", "1").event.identity, Fingerprint::of("t", Some("1")));
        known.events.insert(event("x", "1").event.identity, Fingerprint::of("t", Some("other")));
        let plan = planned(&requests, &known);
        use ItemVerdict::{Accepted as New, Conflict, Duplicate};
        assert_eq!(plan.answers, [Accepted::Stored(vec![New, Duplicate, Conflict])]);
        assert_eq!(ids(&plan), ["z"]);
    }

    #[test]
    fn a_reused_request_key_refuses_and_a_refused_request_leaves_none() {
        let keyed = |body: u8, events| AcceptRequest {
            events,
            strict: true,
            request_key: Some(RequestKey { scope: String::new(), key: "k".into(), fingerprint: [body; 32] }),
        };
        let requests = [
            keyed(1, vec![event("a", "1"), event("a", "2")]),
            keyed(2, vec![event("b", "1")]),
            keyed(2, vec![event("b", "1")]),
            keyed(3, vec![event("c", "1")]),
        ];
        let plan = planned(&requests, &Known::default());
        assert!(matches!(plan.answers[0], Accepted::Refused(_)));
        assert_eq!(plan.answers[1], Accepted::Stored(vec![ItemVerdict::Accepted]));
        assert_eq!(plan.answers[2], Accepted::Stored(vec![ItemVerdict::Duplicate]));
        assert_eq!(plan.answers[3], Accepted::KeyReused);
        assert_eq!(plan.request_keys.len(), 1);
        assert_eq!(plan.request_keys[0].fingerprint, [2; 32]);
    }

    #[test]
    fn the_order_is_that_of_identities_whatever_they_are_made_of() {
        let long = "x".repeat(32);
        let ids = ["", "a", "a\0", "ab", "b", "\u{ff}", &long, &format!("{long}a"), &format!("{long}\0")];
        let mut events = Vec::new();
        for (number, id) in ids.iter().cycle().take(5 * ids.len()).enumerate() {
            let mut new = event(id, "1");
            let scope = number / ids.len();
            new.event.identity.tenant = ["acme", "acm", "zoo", "acme", "b"][scope].into();
            new.event.identity.source = ["s", "", "", "r", "s"][scope].into();
            events.push(new);
        }
        let requests = [request(false, events)];
        let plan = planned(&requests, &Known::default());
        let sorted: Vec<_> = plan.sorted().map(|insert| &insert.new.event.identity).collect();
        assert_eq!(sorted.len(), 45);
        assert!(sorted.is_sorted(), "{sorted:?}");
    }

    #[test]
    fn identities_are_sorted_for_the_insert() {
        let requests = [request(false, vec![event("b", "1"), event("c", "1"), event("a", "1")])];
        let plan = planned(&requests, &Known::default());
        let sorted: Vec<_> = plan.sorted().map(|insert| &*insert.new.event.identity.id).collect();
        assert_eq!(sorted, ["a", "b", "c"]);
        assert_eq!(plan.inserts.iter().map(|insert| insert.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
