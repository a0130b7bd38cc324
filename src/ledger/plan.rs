//! What a group commit writes, decided before it is written.
//!
//! Requests that share a commit stay apart: [`plan`] works them out one after another, as if each had its own, and a
//! strict request that must be refused takes only its own rows with it. It decides against what is *known* to be
//! stored, at first nothing. Where the database then finds that some keys are taken, [`Plan::narrow`] takes those events
//! out of the plan, and the same transaction goes on without them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::fan_out;
use crate::domain::clock::Timestamp;
use crate::domain::event::{Event, EventSeq, Fingerprint, Identity};
use crate::domain::scheduler::Permit;
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
#[derive(Debug, Default, Clone)]
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

    fn request(&self, key: &RequestKey) -> Option<&[u8; 32]> {
        // Nearly always empty: no need to copy the key then.
        (!self.requests.is_empty())
            .then(|| self.requests.get(&(key.scope.clone(), key.key.clone())))
            .flatten()
    }
}

/// An event that is to be written.
#[derive(Debug)]
pub(super) struct Insert<'a> {
    pub seq: EventSeq,
    pub new: &'a NewEvent,
    /// Its place: which request, and which event of that.
    place: (usize, usize),
    /// Its request is large: its deliveries join the queue after the commit, step by step. See [`fan_out`].
    pub fans_out: bool,
}

/// A delivery that is to be written, in the order of the events.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    pub seq: EventSeq,
    pub lane: &'a Arc<Lane>,
    pub new: &'a NewEvent,
    /// Its place in flight, where it is handed over in memory after the commit. It is then claimed from the start.
    pub permit: Option<Permit>,
}

impl Waiting<'_> {
    pub const fn is_handed_over(&self) -> bool {
        self.permit.is_some()
    }
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
    requests: &'a [AcceptRequest],
    /// What the plan was made against.
    known: Known,
    /// When the events are recorded and their deliveries fall due.
    pub now: Timestamp,
    /// One for each request, in order.
    pub answers: Vec<Accepted>,
    /// In the order of their numbers.
    pub inserts: Vec<Insert<'a>>,
    /// Indexes into `inserts`, in the order of their identities: two nodes that insert the same identities take them
    /// in the same order, and can't wait for each other in a ring.
    by_identity: Vec<usize>,
    /// Deliveries that join the queue with the commit.
    pub deliveries: Vec<Waiting<'a>>,
    /// Deliveries that [`Self::narrow`] took out.
    pub withdrawn: Vec<Waiting<'a>>,
    pub request_keys: Vec<&'a RequestKey>,
    /// What came again: to be counted, not written here.
    pub repeats: Vec<Repeat<'a>>,
}

/// Keys of refused requests, which the transaction has written before it was known that they are refused.
#[derive(Debug, Default)]
pub(super) struct Refused<'a> {
    pub inserts: Vec<Insert<'a>>,
    pub request_keys: Vec<&'a RequestKey>,
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

    /// What is known to be stored, to plan the same requests again with.
    pub fn into_known(self) -> Known {
        self.known
    }

    /// Takes out what can't be written since these keys are `taken`: their events, and all of a request that is refused for
    /// them. Returns the keys that the transaction has to delete again.
    ///
    /// Returns `None` where that makes room for events that are not in this plan: it has to be made again.
    pub fn narrow(&mut self, taken: Known) -> Option<Refused<'a>> {
        if self.leave_out_duplicates(&taken) {
            self.known.merge(taken);
            return Some(Refused::default());
        }
        self.known.merge(taken);
        let Judged { answers, fresh, request_keys, repeats } = judge_all(self.requests, &self.known);
        let mut left = fresh.iter().peekable();
        let stays = |insert: &Insert<'a>| left.next_if(|fresh| std::ptr::eq(fresh.new, insert.new)).is_some();
        let stay: Vec<_> = self.inserts.iter().map(stays).collect();
        // Both are in the same order.
        let mut left_keys = request_keys.iter().peekable();
        let mut refused = Refused::default();
        for key in &self.request_keys {
            let stays = left_keys.next_if(|left| std::ptr::eq(**left, *key)).is_some();
            if !stays && self.known.request(key).is_none() {
                refused.request_keys.push(key);
            }
        }
        if left.next().is_some() || left_keys.next().is_some() {
            return None;
        }
        self.request_keys = request_keys;
        let mut left_out = Vec::new();
        self.keep(&stay, |insert| left_out.push(insert));
        // A key that is not known was free: this transaction has written it.
        left_out.retain(|insert| !self.known.events.contains_key(&insert.new.event.identity));
        refused.inserts = left_out;
        (self.answers, self.repeats) = (answers, repeats);
        Some(refused)
    }

    /// Where all that is taken are events that came again as they are, makes them duplicates: nothing else changes. Returns
    /// whether that is so.
    fn leave_out_duplicates(&mut self, taken: &Known) -> bool {
        let mut stay = vec![true; self.inserts.len()];
        for (identity, stored) in &taken.events {
            let order = |index: &usize| self.inserts[*index].new.event.identity.cmp(identity);
            let Ok(found) = self.by_identity.binary_search_by(order) else { return false };
            let index = self.by_identity[found];
            if self.inserts[index].new.event.fingerprint != *stored {
                return false;
            }
            stay[index] = false;
        }
        if !taken.requests.is_empty() {
            return false;
        }
        for (insert, _) in self.inserts.iter().zip(&stay).filter(|(_, stays)| !**stays) {
            let (request, item) = insert.place;
            if let Accepted::Stored(verdicts) = &mut self.answers[request] {
                verdicts[item] = ItemVerdict::Duplicate;
            }
            self.repeats.push(Repeat { event: &insert.new.event, conflict: false });
        }
        self.keep(&stay, |_| {});
        true
    }

    /// Keeps those inserts that `stay`, with their deliveries, and hands the others to `leave`.
    fn keep(&mut self, stay: &[bool], mut leave: impl FnMut(Insert<'a>)) {
        let mut places = Vec::with_capacity(stay.len());
        let mut kept = 0;
        for stays in stay {
            places.push(stays.then_some(kept));
            kept += usize::from(*stays);
        }
        self.by_identity = self.by_identity.iter().filter_map(|index| places[*index]).collect();
        let mut gone = Vec::new();
        let mut inserts = Vec::with_capacity(kept);
        for (insert, stays) in std::mem::take(&mut self.inserts).into_iter().zip(stay) {
            if *stays {
                inserts.push(insert);
            } else {
                gone.push(insert.seq);
                leave(insert);
            }
        }
        self.inserts = inserts;
        // Numbers grow along the plan.
        let is_gone = |waiting: &mut Waiting<'_>| gone.binary_search(&waiting.seq).is_ok();
        self.withdrawn.extend(self.deliveries.extract_if(.., is_gone));
    }
}

/// Works out `requests` one after another against what is known.
pub(super) fn plan(
    requests: &[AcceptRequest],
    known: Known,
    now: Timestamp,
    mut next_seq: impl FnMut() -> EventSeq,
) -> Plan<'_> {
    let Judged { answers, fresh, request_keys, repeats } = judge_all(requests, &known);
    let insert = |Fresh { new, place, fans_out }| Insert { seq: next_seq(), new, place, fans_out };
    let inserts: Vec<_> = fresh.into_iter().map(insert).collect();
    let by_identity = by_identity(&inserts);
    let mut deliveries = Vec::new();
    for Insert { seq, new, .. } in inserts.iter().filter(|insert| !insert.fans_out) {
        let lanes = new.lanes.iter();
        deliveries.extend(lanes.map(|lane| Waiting { seq: *seq, lane, new, permit: None }));
    }
    let withdrawn = Vec::new();
    Plan { requests, known, now, answers, inserts, by_identity, deliveries, withdrawn, request_keys, repeats }
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

/// An event that is new.
struct Fresh<'a> {
    new: &'a NewEvent,
    place: (usize, usize),
    fans_out: bool,
}

/// What becomes of all requests.
#[derive(Default)]
struct Judged<'a> {
    answers: Vec<Accepted>,
    /// In the order they came.
    fresh: Vec<Fresh<'a>>,
    /// In the order of their scopes and keys.
    request_keys: Vec<&'a RequestKey>,
    repeats: Vec<Repeat<'a>>,
}

/// The answers to `requests`, judged one after another against what is known, and what is new in them.
fn judge_all<'a>(requests: &'a [AcceptRequest], known: &Known) -> Judged<'a> {
    let mut judged = Judged::default();
    let mut planned: HashMap<&Identity, Fingerprint> = HashMap::new();
    let mut planned_keys: HashMap<(&str, &str), &[u8; 32]> = HashMap::new();
    for (number, request) in requests.iter().enumerate() {
        if let Some(key) = &request.request_key {
            let name = (key.scope.as_str(), key.key.as_str());
            match known.request(key).or_else(|| planned_keys.get(&name).copied()) {
                Some(fingerprint) if *fingerprint != key.fingerprint => {
                    judged.answers.push(Accepted::KeyReused);
                    continue;
                }
                Some(_) => {}
                None => {
                    planned_keys.insert(name, &key.fingerprint);
                    judged.request_keys.push(key);
                }
            }
        }
        let (verdicts, fresh) = judge(request, known, &mut planned, &mut judged.repeats);
        if request.strict && verdicts.contains(&ItemVerdict::Conflict) {
            // Its key is not remembered either: nothing of it is.
            if let Some(key) = &request.request_key
                && judged.request_keys.last().is_some_and(|last| std::ptr::eq(*last, key))
            {
                judged.request_keys.pop();
                planned_keys.remove(&(key.scope.as_str(), key.key.as_str()));
            }
            for (_, new) in fresh {
                planned.remove(&new.event.identity);
            }
            judged.answers.push(Accepted::Refused(verdicts));
            continue;
        }
        let fans_out = fan_out::is_large(&request.events);
        let fresh = fresh.into_iter();
        judged.fresh.extend(fresh.map(|(item, new)| Fresh { new, place: (number, item), fans_out }));
        judged.answers.push(Accepted::Stored(verdicts));
    }
    judged.request_keys.sort_by_key(|key| (&key.scope, &key.key));
    judged
}

/// The verdicts on one request, and which of its events are new, with their places in it: they are `planned` from then on.
fn judge<'a>(
    request: &'a AcceptRequest,
    known: &Known,
    planned: &mut HashMap<&'a Identity, Fingerprint>,
    repeats: &mut Vec<Repeat<'a>>,
) -> (Vec<ItemVerdict>, Vec<(usize, &'a NewEvent)>) {
    let mut verdicts = Vec::with_capacity(request.events.len());
    let mut fresh = Vec::with_capacity(request.events.len());
    for (item, new) in request.events.iter().enumerate() {
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
                fresh.push((item, new));
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

    fn planned(requests: &[AcceptRequest], known: Known) -> Plan<'_> {
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
        let plan = planned(&requests, Known::default());
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
        let plan = planned(&requests, known);
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
        let plan = planned(&requests, Known::default());
        assert!(matches!(plan.answers[0], Accepted::Refused(_)));
        assert_eq!(plan.answers[1], Accepted::Stored(vec![ItemVerdict::Accepted]));
        assert_eq!(plan.answers[2], Accepted::Stored(vec![ItemVerdict::Duplicate]));
        assert_eq!(plan.answers[3], Accepted::KeyReused);
        assert_eq!(plan.request_keys.len(), 1);
        assert_eq!(plan.request_keys[0].fingerprint, [2; 32]);
    }

    /// What the ledger holds: these ids with this data.
    fn stored(ids: &[&str], data: &str) -> Known {
        let mut known = Known::default();
        for id in ids {
            let event = event(id, data).event;
            known.events.insert(event.identity, event.fingerprint);
        }
        known
    }

    #[test]
    fn a_plan_is_narrowed_to_what_it_would_have_been() {
        use ItemVerdict::{Accepted as New, Conflict, Duplicate};
        let requests = [
            request(true, vec![event("b", "1"), event("a", "1"), event("c", "1")]),
            request(true, vec![event("e", "1"), event("d", "1")]),
            request(false, vec![event("d", "2"), event("f", "1"), event("a", "1")]),
        ];
        let mut plan = planned(&requests, Known::default());
        let mut taken = stored(&["a"], "1");
        taken.merge(stored(&["d"], "2"));
        let refused = plan.narrow(taken.clone()).expect("the rest stays as it is");
        let again = planned(&requests, taken);
        assert_eq!(plan.answers, again.answers);
        assert_eq!(
            plan.answers,
            [
                Accepted::Stored(vec![New, Duplicate, New]),
                Accepted::Refused(vec![New, Conflict]),
                Accepted::Stored(vec![Duplicate, New, Duplicate]),
            ]
        );
        assert_eq!((ids(&plan), ids(&again)), (vec!["b", "c", "f"], vec!["b", "c", "f"]));
        let sorted: Vec<_> = plan.sorted().map(|insert| &*insert.new.event.identity.id).collect();
        assert_eq!(sorted, ["b", "c", "f"]);
        let seqs: Vec<_> = plan.inserts.iter().map(|insert| insert.seq.0).collect();
        assert_eq!(seqs, [1, 3, 6], "numbers stay as they were written");
        let deleted: Vec<_> = refused.inserts.iter().map(|insert| &*insert.new.event.identity.id).collect();
        assert_eq!(deleted, ["e"], "its key was written, and its request is refused");
        assert_eq!(plan.repeats.len(), again.repeats.len());
    }

    #[test]
    fn events_that_come_again_as_they_are_become_duplicates() {
        let requests = [
            request(true, vec![event("b", "1"), event("a", "1"), event("a", "1")]),
            request(false, vec![event("c", "1"), event("a", "2"), event("b", "1")]),
        ];
        let mut plan = planned(&requests, Known::default());
        let taken = stored(&["a", "c"], "1");
        let refused = plan.narrow(taken.clone()).expect("the rest stays as it is");
        let again = planned(&requests, taken);
        assert_eq!((&plan.answers, ids(&plan)), (&again.answers, ids(&again)));
        assert_eq!(ids(&plan), ["b"]);
        assert_eq!((refused.inserts.len(), plan.repeats.len()), (0, again.repeats.len()));
        assert_eq!(plan.sorted().count(), 1);
    }

    #[test]
    fn a_plan_that_would_get_other_events_is_made_again() {
        let requests = [
            request(true, vec![event("a", "1"), event("b", "1")]),
            // Once the first request is refused, this one is the first that has `b`.
            request(false, vec![event("b", "1")]),
        ];
        let mut plan = planned(&requests, Known::default());
        assert!(plan.narrow(stored(&["a"], "2")).is_none());
        let plan = planned(&requests, plan.into_known());
        assert_eq!(plan.answers[1], Accepted::Stored(vec![ItemVerdict::Accepted]));
        assert_eq!(ids(&plan), ["b"]);
    }

    #[test]
    fn a_request_key_that_is_taken_takes_its_request_out() {
        let keyed = |key: &str, body: u8, id: &str| AcceptRequest {
            events: vec![event(id, "1")],
            strict: true,
            request_key: Some(RequestKey { scope: String::new(), key: key.into(), fingerprint: [body; 32] }),
        };
        let requests = [keyed("reused", 1, "a"), keyed("resent", 1, "b"), keyed("new", 1, "c")];
        let mut plan = planned(&requests, Known::default());
        let mut taken = Known::default();
        taken.requests.insert((String::new(), "reused".into()), [2; 32]);
        taken.requests.insert((String::new(), "resent".into()), [1; 32]);
        let refused = plan.narrow(taken).expect("the rest stays as it is");
        assert_eq!(plan.answers[0], Accepted::KeyReused);
        assert_eq!(ids(&plan), ["b", "c"]);
        assert_eq!(plan.request_keys.iter().map(|key| &*key.key).collect::<Vec<_>>(), ["new"]);
        assert_eq!((refused.inserts.len(), refused.request_keys.len()), (1, 0));
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
        let plan = planned(&requests, Known::default());
        let sorted: Vec<_> = plan.sorted().map(|insert| &insert.new.event.identity).collect();
        assert_eq!(sorted.len(), 45);
        assert!(sorted.is_sorted(), "{sorted:?}");
    }

    #[test]
    fn identities_are_sorted_for_the_insert() {
        let requests = [request(false, vec![event("b", "1"), event("c", "1"), event("a", "1")])];
        let plan = planned(&requests, Known::default());
        let sorted: Vec<_> = plan.sorted().map(|insert| &*insert.new.event.identity.id).collect();
        assert_eq!(sorted, ["a", "b", "c"]);
        assert_eq!(plan.inserts.iter().map(|insert| insert.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
