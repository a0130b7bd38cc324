//! A model of the ledger: what the databases do with queues, leases and budgets, without a database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use posthaste::domain::clock::Timestamp;
use posthaste::domain::delivery::{Class, NextState, Settlement};
use posthaste::domain::gate::CloseReason;
use posthaste::domain::scheduler::{GateId, Remaining, TokenGrant, TokenWish};
use posthaste::domain::token_budget::{Budget, Pace};

use super::clock::Marks;
use super::numbers::Numbers;
use super::replays::Replay;
use super::world::LEASE_US;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Waiting,
    Delivered,
    Dead,
    Canceled,
}

/// A delivery.
#[derive(Debug)]
pub struct Row {
    pub lane: usize,
    pub class: Class,
    pub due_at: i64,
    /// When it was due at its last claim: time may have gone back since.
    pub claimed_due_at: i64,
    /// The fence.
    pub attempt: i64,
    pub failures: u32,
    pub uncertain: bool,
    /// When its claim ends, on the ledger's clock; 0 where it is not claimed.
    pub lease_until: u64,
    pub state: State,
    /// The receiver has answered 2xx.
    pub accepted: bool,
    /// The node, and its epoch, that was told of it and that nobody has claimed it from since.
    pub told: Option<(usize, u32)>,
    /// The last claim that was sent, and the last that was settled.
    pub sent: i64,
    pub settled: i64,
    /// How often it has been put back by replays.
    pub replays: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    pub created: usize,
    pub pending: usize,
    pub claimed: usize,
    pub delivered: usize,
    pub dead: usize,
    pub canceled: usize,
}

impl Account {
    pub fn check(&self) {
        let all = self.pending + self.claimed + self.delivered + self.dead + self.canceled;
        assert_eq!(self.created, all, "created = pending + claimed + delivered + dead + canceled: {self:?}");
    }

    pub const fn waiting(&self) -> usize {
        self.pending + self.claimed
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub rows: Vec<Row>,
    /// By lane and class: due time and row.
    queues: Vec<[BTreeSet<(i64, usize)>; 2]>,
    /// Lanes with anything in their queues.
    busy: BTreeSet<usize>,
    budgets: BTreeMap<Arc<str>, Budget>,
    /// Closed gates: until when, and why.
    pub gates: BTreeMap<GateId, (u64, CloseReason)>,
    pub down: bool,
    /// Writes of one node are refused, or of all: the disk is full.
    pub unwritable: Option<Option<usize>>,
    pub numbers: Numbers,
    pub clock: Marks,
    pub replays: Vec<Replay>,
    pub account: Account,
}

impl Ledger {
    pub fn add_lane(&mut self) {
        self.queues.push(Default::default());
    }

    /// A new delivery, claimed where it is handed over.
    pub fn insert(&mut self, lane: usize, due_at: i64, handed_over_at: Option<u64>) -> usize {
        let id = self.rows.len();
        self.rows.push(Row {
            lane,
            class: Class::Fresh,
            due_at,
            claimed_due_at: due_at,
            attempt: i64::from(handed_over_at.is_some()),
            failures: 0,
            uncertain: false,
            lease_until: handed_over_at.map_or(0, |at| at + LEASE_US),
            state: State::Waiting,
            accepted: false,
            told: None,
            sent: 0,
            settled: 0,
            replays: 0,
        });
        self.account.created += 1;
        *if handed_over_at.is_some() { &mut self.account.claimed } else { &mut self.account.pending } += 1;
        self.enqueue(id);
        id
    }

    fn enqueue(&mut self, id: usize) {
        let Row { lane, class, due_at, .. } = self.rows[id];
        self.queues[lane][class as usize].insert((due_at, id));
        self.busy.insert(lane);
    }

    fn dequeue(&mut self, id: usize) {
        let Row { lane, class, due_at, .. } = self.rows[id];
        assert!(self.queues[lane][class as usize].remove(&(due_at, id)), "{id} was not in its queue");
        if self.queues[lane].iter().all(BTreeSet::is_empty) {
            self.busy.remove(&lane);
        }
    }

    /// Claims rows that are due on the claimer's clock and free on the ledger's.
    pub fn claim(
        &mut self,
        lane: usize,
        class: Class,
        limit: usize,
        now: u64,
        wall: Timestamp,
    ) -> (Vec<usize>, Remaining) {
        let wall = wall.as_millis();
        let queue = &self.queues[lane][class as usize];
        let due = queue.iter().take_while(|(due_at, _)| *due_at <= wall).map(|(_, id)| *id);
        let free = due.filter(|id| self.rows[*id].lease_until <= now);
        let claimed: Vec<_> = free.take(limit).collect();
        let remaining = match queue.range((wall + 1, 0)..).next() {
            _ if claimed.len() == limit => Remaining::Due,
            Some((due_at, _)) => Remaining::Later(Timestamp::from_millis(*due_at)),
            None => Remaining::Nothing,
        };
        for id in &claimed {
            let row = &mut self.rows[*id];
            if row.lease_until == 0 {
                self.account.pending -= 1;
                self.account.claimed += 1;
            }
            row.attempt += 1;
            row.claimed_due_at = row.due_at;
            row.told = None;
            row.lease_until = now + LEASE_US;
        }
        (claimed, remaining)
    }

    /// Whether a fresh delivery waits in the lane that this node was told of.
    pub fn has_older(&self, lane: usize, node: (usize, u32), wall: Timestamp) -> bool {
        let due = self.queues[lane][0].iter().take_while(|(due_at, _)| *due_at <= wall.as_millis());
        due.take(20).any(|(_, id)| self.rows[*id].told == Some(node))
    }

    /// Deliveries that fall due later than `now`.
    pub fn waiting_behind(&self, now: Timestamp) -> Vec<usize> {
        let queues = self.queues.iter().flatten();
        queues.flat_map(|queue| queue.range((now.as_millis() + 1, 0)..)).map(|(_, id)| *id).collect()
    }

    /// Moves a delivery that waits to another place in its queue.
    pub fn move_to(&mut self, id: usize, due_at: i64) {
        self.dequeue(id);
        self.rows[id].due_at = due_at;
        self.enqueue(id);
    }

    /// Whoever held a claim in memory is gone.
    pub fn forget_claims(&mut self) {
        for row in self.rows.iter_mut().filter(|row| row.lease_until > 0) {
            row.lease_until = 0;
            self.account.claimed -= 1;
            self.account.pending += 1;
        }
    }

    /// Gives a claim back, as far as it still holds.
    pub fn release(&mut self, id: usize, attempt: i64) {
        let row = &mut self.rows[id];
        if row.state == State::Waiting && row.attempt == attempt && row.lease_until > 0 {
            row.lease_until = 0;
            self.account.claimed -= 1;
            self.account.pending += 1;
        }
    }

    /// Puts a delivery that is done back into its lane, behind what is fresh.
    pub fn put_back(&mut self, id: usize, due_at: Timestamp) {
        let row = &mut self.rows[id];
        *match row.state {
            State::Delivered => &mut self.account.delivered,
            State::Dead => &mut self.account.dead,
            State::Waiting | State::Canceled => unreachable!("a replay takes what is delivered or dead"),
        } -= 1;
        self.account.pending += 1;
        (row.state, row.class, row.due_at) = (State::Waiting, Class::Retry, due_at.as_millis());
        (row.failures, row.uncertain, row.accepted) = (0, false, false);
        row.replays += 1;
        self.enqueue(id);
    }

    /// Whether the settlement's claim still held; otherwise nothing is changed.
    pub fn settle(&mut self, settlement: &Settlement) -> bool {
        let id = usize::try_from(settlement.id.event.0).expect("positive");
        let row = &self.rows[id];
        let ours = row.attempt == settlement.attempt
            && row.class == settlement.class
            && row.claimed_due_at == settlement.due_at.as_millis();
        if row.state != State::Waiting || !ours || row.lease_until == 0 {
            let has_passed = row.attempt > settlement.attempt || row.settled >= settlement.attempt;
            assert!(has_passed || row.lease_until == 0, "a claim that holds can't be settled: {row:?}");
            return false;
        }
        self.dequeue(id);
        self.tried(id);
        self.account.claimed -= 1;
        let row = &mut self.rows[id];
        row.lease_until = 0;
        row.settled = settlement.attempt;
        match &settlement.next {
            NextState::Delivered { .. } => {
                assert!(row.accepted, "{id} is delivered, and nobody took it");
                row.state = State::Delivered;
                self.account.delivered += 1;
            }
            NextState::Dead { .. } => {
                row.state = State::Dead;
                self.account.dead += 1;
            }
            NextState::Canceled { .. } => {
                row.state = State::Canceled;
                self.account.canceled += 1;
            }
            NextState::Pending { due_at, failures, uncertain } => {
                row.due_at = due_at.as_millis();
                (row.failures, row.uncertain) = (*failures, *uncertain);
                row.class = settlement.class_with(*failures);
                self.account.pending += 1;
                self.enqueue(id);
            }
            NextState::Released => unreachable!("it is released, not settled"),
        }
        true
    }

    /// Lanes with work, and when the first of each class falls due.
    pub fn busy_lanes(&self) -> impl Iterator<Item = (usize, [Option<i64>; 2])> {
        let first = |queue: &BTreeSet<(i64, usize)>| queue.first().map(|(due_at, _)| *due_at);
        self.busy.iter().map(move |lane| (*lane, self.queues[*lane].each_ref().map(first)))
    }

    pub fn waiting_in(&self, lane: usize) -> usize {
        self.queues[lane].iter().map(BTreeSet::len).sum()
    }

    /// As `ledger::tokens` does it.
    pub fn reserve_tokens(&mut self, wishes: &[TokenWish], now: Timestamp) -> Vec<TokenGrant> {
        let grant = |wish: &TokenWish| {
            let pace = Pace::of(wish.limit);
            let full = || Budget::full(&pace, now);
            let budget = self.budgets.entry(wish.partner.clone()).or_insert_with(full);
            let count = budget.reserve(&pace, wish.count, now);
            TokenGrant { wish: wish.clone(), count, until_next: budget.until_next(&pace) }
        };
        wishes.iter().map(grant).collect()
    }

    /// Counts everything anew.
    pub fn recount(&self) {
        let mut account = Account { created: self.rows.len(), ..Account::default() };
        for (id, row) in self.rows.iter().enumerate() {
            let queued = self.queues[row.lane][row.class as usize].contains(&(row.due_at, id));
            assert_eq!(queued, row.state == State::Waiting, "{id} is in its queue while it waits: {row:?}");
            *match row.state {
                State::Waiting if row.lease_until > 0 => &mut account.claimed,
                State::Waiting => &mut account.pending,
                State::Delivered => &mut account.delivered,
                State::Dead => &mut account.dead,
                State::Canceled => &mut account.canceled,
            } += 1;
        }
        let queued: usize = (0..self.queues.len()).map(|lane| self.waiting_in(lane)).sum();
        assert_eq!((account, queued), (self.account, account.waiting()), "the recount differs");
    }
}
