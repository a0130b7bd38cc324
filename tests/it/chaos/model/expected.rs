//! The model: what a ledger is meant to do, without a database.

use std::collections::BTreeMap;

use posthaste::domain::delivery::Class;
use posthaste::ledger::{Accepted, ItemVerdict};

use super::steps::{Fate, Item, LANES};

/// The waits after the first and the second failure, in milliseconds; then it is dead.
pub const RETRY_AFTER_MS: [i64; 2] = [5_000, 300_000];
/// How often leases must age until they are over.
pub const AGES: u32 = 3;

/// An event's number in the case, and the lane's.
pub type Key = (usize, usize);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    Waiting(Waiting),
    Done { state: &'static str, attempts: i64, failures: i64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// In the order in which events came.
    pub order: usize,
    pub due_ms: i64,
    pub class: Class,
    pub failures: u32,
    /// The number of the last claim, and of the last one that was settled.
    pub number: i64,
    pub settled: i64,
    /// How often the last claim's lease has aged; `None` where it was settled or given back.
    pub lease: Option<u32>,
}

/// What a claim yields for one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub key: Key,
    pub number: i64,
    pub failures: u32,
    pub due_ms: i64,
}

#[derive(Debug, Default)]
pub struct Model {
    pub events: BTreeMap<usize, Item>,
    /// The bodies that they came with.
    keys: BTreeMap<usize, Vec<Item>>,
    pub deliveries: BTreeMap<Key, Delivery>,
    pub now_ms: i64,
}

impl Model {
    /// A ledger that holds nothing, at this time.
    pub fn at(now_ms: i64) -> Self {
        Self { now_ms, ..Self::default() }
    }

    pub fn accept(&mut self, items: &[Item], strict: bool, key: Option<usize>) -> Accepted {
        if let Some(body) = key.and_then(|key| self.keys.get(&key))
            && body != items
        {
            return Accepted::KeyReused;
        }
        let mut events = self.events.clone();
        let mut verdicts = Vec::new();
        let mut fresh = Vec::new();
        for item in items {
            verdicts.push(match events.get(&item.id) {
                None => {
                    events.insert(item.id, *item);
                    fresh.push(*item);
                    ItemVerdict::Accepted
                }
                Some(known) if known.other_data == item.other_data => ItemVerdict::Duplicate,
                Some(_) => ItemVerdict::Conflict,
            });
        }
        if strict && verdicts.contains(&ItemVerdict::Conflict) {
            return Accepted::Refused(verdicts);
        }
        for item in fresh {
            for lane in (0..LANES).filter(|lane| item.lanes[*lane]) {
                let waiting = Waiting {
                    order: self.events.len(),
                    due_ms: self.now_ms,
                    class: Class::Fresh,
                    failures: 0,
                    number: 0,
                    settled: 0,
                    lease: None,
                };
                self.deliveries.insert((item.id, lane), Delivery::Waiting(waiting));
            }
            self.events.insert(item.id, item);
        }
        if let Some(key) = key {
            self.keys.entry(key).or_insert_with(|| items.to_vec());
        }
        Accepted::Stored(verdicts)
    }

    /// What may be claimed, in order; and when the next falls due, where something waits for its time.
    pub fn claimable(&self, lane: usize, class: Class) -> (Vec<Claimed>, Option<i64>) {
        let in_queue = self.deliveries.iter().filter_map(|(key, delivery)| match delivery {
            Delivery::Waiting(waiting) if key.1 == lane && waiting.class == class => Some((*key, waiting)),
            _ => None,
        });
        let mut in_queue: Vec<_> = in_queue.collect();
        in_queue.sort_by_key(|(_, waiting)| (waiting.due_ms, waiting.order));
        let later = in_queue.iter().map(|(_, waiting)| waiting.due_ms).find(|due_ms| *due_ms > self.now_ms);
        let is_free = |waiting: &Waiting| waiting.lease.is_none_or(|aged| aged >= AGES);
        let free =
            in_queue.into_iter().filter(|(_, waiting)| waiting.due_ms <= self.now_ms && is_free(waiting));
        let claimed = free.map(|(key, waiting)| Claimed {
            key,
            number: waiting.number + 1,
            failures: waiting.failures,
            due_ms: waiting.due_ms,
        });
        (claimed.collect(), later)
    }

    /// Notes a claim; whether it takes the place of one whose lease is over.
    pub fn claim(&mut self, claimed: &Claimed) -> bool {
        let Some(Delivery::Waiting(waiting)) = self.deliveries.get_mut(&claimed.key) else { return false };
        let again = waiting.lease.is_some();
        (waiting.number, waiting.lease) = (claimed.number, Some(0));
        again
    }

    /// What becomes of a claim; whether it still held.
    pub fn settle(&mut self, claimed: &Claimed, fate: Fate) -> bool {
        let now_ms = self.now_ms;
        let Some(delivery) = self.deliveries.get_mut(&claimed.key) else { return false };
        let Delivery::Waiting(waiting) = delivery else { return false };
        if waiting.number != claimed.number || waiting.lease.is_none() {
            return false;
        }
        let (attempts, failures) = (claimed.number, i64::from(waiting.failures));
        waiting.lease = None;
        match fate {
            Fate::NotSent => {}
            Fate::Throttled => waiting.settled = claimed.number,
            Fate::Failed => match RETRY_AFTER_MS.get(waiting.failures as usize) {
                Some(wait_ms) => {
                    waiting.failures += 1;
                    (waiting.due_ms, waiting.class) = (now_ms + wait_ms, Class::Retry);
                    waiting.settled = claimed.number;
                }
                None => *delivery = Delivery::Done { state: "dead", attempts, failures: failures + 1 },
            },
            Fate::Delivered => *delivery = Delivery::Done { state: "delivered", attempts, failures },
            Fate::Rejected => *delivery = Delivery::Done { state: "dead", attempts, failures: failures + 1 },
            Fate::Canceled => *delivery = Delivery::Done { state: "canceled", attempts, failures },
        }
        true
    }

    pub fn release(&mut self, claimed: &Claimed) {
        if let Some(Delivery::Waiting(waiting)) = self.deliveries.get_mut(&claimed.key)
            && waiting.number == claimed.number
        {
            waiting.lease = None;
        }
    }

    pub fn age(&mut self) {
        for waiting in self.waiting() {
            waiting.lease = waiting.lease.map(|aged| aged + 1);
        }
    }

    /// Where leases live in the memory of the process they end with it, and so does the count of unsettled claims.
    pub fn forget_leases(&mut self) {
        for waiting in self.waiting() {
            (waiting.lease, waiting.number) = (None, waiting.settled);
        }
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.deliveries.values_mut().filter_map(|delivery| match delivery {
            Delivery::Waiting(waiting) => Some(waiting),
            Delivery::Done { .. } => None,
        })
    }

    /// Deliveries created, and how many of them wait (claimed ones among them) and are done, by state.
    pub fn account(&self) -> (i64, BTreeMap<&'static str, i64>) {
        let mut states = BTreeMap::new();
        for delivery in self.deliveries.values() {
            let state = match delivery {
                Delivery::Waiting(_) => "waiting",
                Delivery::Done { state, .. } => state,
            };
            *states.entry(state).or_default() += 1;
        }
        let created = self.events.values().flat_map(|item| item.lanes).filter(|to| *to).count();
        (i64::try_from(created).expect("few"), states)
    }
}
