//! Which incarnation of a node holds which number, and whether a node may go on: it may not once its number is lost or
//! its writes are refused.

use std::collections::BTreeMap;

use super::flaws::Flaw;
use super::ledger::Ledger;
use super::node::{AFTER_ERROR_US, Node, NodeEvent};
use super::world::{SECOND, World};

/// How often a node proves that it is there; sooner while its writes are refused.
const BEAT_EVERY_US: u64 = 3 * SECOND;
/// A number that nobody has proved for so long is free.
const NUMBER_EXPIRY_US: u64 = 8 * SECOND;

/// One incarnation of a node: the epoch is never handed out again, the number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    pub number: usize,
    pub epoch: u64,
}

#[derive(Debug, Default)]
pub struct Numbers {
    last_epoch: u64,
    /// By number: the epoch that holds it, and when it was last seen.
    holders: BTreeMap<usize, (u64, u64)>,
}

impl Numbers {
    /// A new incarnation, with the lowest number that is free.
    pub fn take(&mut self, now: u64) -> Incarnation {
        let is_free = |number: &usize| {
            self.holders.get(number).is_none_or(|(_, seen_at)| seen_at + NUMBER_EXPIRY_US <= now)
        };
        let number = (0..).find(is_free).expect("numbers have no end here");
        self.assign(number, now)
    }

    fn assign(&mut self, number: usize, now: u64) -> Incarnation {
        self.last_epoch += 1;
        self.holders.insert(number, (self.last_epoch, now));
        Incarnation { number, epoch: self.last_epoch }
    }

    pub fn holds(&self, incarnation: Incarnation) -> bool {
        self.holders.get(&incarnation.number).is_some_and(|(epoch, _)| *epoch == incarnation.epoch)
    }

    fn beat(&mut self, incarnation: Incarnation, now: u64) {
        self.holders.insert(incarnation.number, (incarnation.epoch, now));
    }

    /// A process that is not simulated takes the number, whoever holds it, and is gone after a while.
    pub fn give_away(&mut self, number: usize, now: u64) {
        self.assign(number, now);
    }

    /// The number is free for the next.
    pub fn give_back(&mut self, incarnation: Incarnation) {
        if self.holds(incarnation) {
            self.holders.remove(&incarnation.number);
        }
    }
}

/// Why the ledger does not do what a node asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Down,
    /// It answers and can't write: its disk is full.
    Unwritable,
    /// The node's number belongs to another.
    NumberLost,
}

impl Ledger {
    /// Why a write of this node is refused.
    pub fn refuses(&self, node: usize, by: Incarnation) -> Option<Refusal> {
        self.cannot_write(node).or_else(|| (!self.numbers.holds(by)).then_some(Refusal::NumberLost))
    }

    /// Why nothing of this node can be written, whoever it is.
    fn cannot_write(&self, node: usize) -> Option<Refusal> {
        if self.down {
            return Some(Refusal::Down);
        }
        let full = self.unwritable.is_some_and(|only| only.is_none_or(|only| only == node));
        full.then_some(Refusal::Unwritable)
    }
}

impl World {
    /// Whether the node may begin anything: its settlements can be recorded, as far as it knows.
    pub fn may_send(&self, node: usize) -> bool {
        let Node { incarnation, refused, .. } = &self.nodes[node];
        incarnation.is_some() && (!refused || self.has(Flaw::SendsWhatItCannotSettle))
    }

    /// Why the ledger refuses a claim, a reservation or a look for replays, which it can do without room on its disk.
    pub fn refuses_claim(&self, by: Incarnation) -> Option<Refusal> {
        if self.ledger.down {
            return Some(Refusal::Down);
        }
        (!self.ledger.numbers.holds(by) && !self.has(Flaw::ReusedNumber)).then_some(Refusal::NumberLost)
    }

    /// Why a settlement is refused. Its claim is its fence: a node may settle what it sent before it lost its number.
    pub fn refuses_settlement(&self, node: usize) -> Option<Refusal> {
        let fenced_by = self.nodes[node].incarnation.filter(|_| self.has(Flaw::ReusedNumber));
        fenced_by.map_or_else(|| self.ledger.cannot_write(node), |by| self.ledger.refuses(node, by))
    }

    /// An answer of the ledger to `by` has reached the node. `holds`: whether the number was still the node's own.
    pub fn heard_of_number(&mut self, node: usize, by: Incarnation, holds: bool) {
        if holds || self.nodes[node].incarnation != Some(by) {
            return;
        }
        self.nodes[node].number_lost = true;
        if self.has(Flaw::ReusedNumber) {
            return;
        }
        self.note(|| format!("node {node} has lost {by:?}"));
        self.tally.numbers_lost += 1;
        self.nodes[node].incarnation = None;
        self.through_the_net(node, NodeEvent::Register);
    }

    /// The ledger has answered a write of `by`; `None`: of a node without a number.
    pub fn heard_of_write(&mut self, node: usize, by: Option<Incarnation>, refusal: Option<Refusal>) {
        match refusal {
            // What waits is written first, or a delivery whose settlement waits could be claimed and sent again.
            None => {
                if self.nodes[node].kept.is_empty() && std::mem::take(&mut self.nodes[node].refused) {
                    self.note(|| format!("node {node} can write again"));
                    self.notify(node);
                }
            }
            Some(Refusal::NumberLost) => {
                if let Some(by) = by {
                    self.heard_of_number(node, by, false);
                }
            }
            Some(Refusal::Down | Refusal::Unwritable) => {
                if !std::mem::replace(&mut self.nodes[node].refused, true) {
                    self.note(|| format!("node {node} can't write"));
                    self.tally.refusals += 1;
                }
            }
        }
    }

    /// The node has no number: it asks for one, under a new epoch.
    pub fn register(&mut self, node: usize) {
        if self.ledger.down || self.ledger.unwritable.is_some() {
            return self.node_later(node, AFTER_ERROR_US, AFTER_ERROR_US, NodeEvent::Register);
        }
        let incarnation = self.ledger.numbers.take(self.now);
        self.note(|| format!("node {node} is {incarnation:?}"));
        self.nodes[node].incarnation = Some(incarnation);
        self.nodes[node].number_lost = false;
        self.notify(node);
    }

    /// It is time for a sign of life.
    pub fn beat(&mut self, node: usize) {
        if let Some(by) = self.nodes[node].incarnation {
            self.through_the_net(node, NodeEvent::Beat { by });
        }
        let is_well = self.nodes[node].incarnation.is_some() && !self.nodes[node].refused;
        if !is_well || self.now < self.polls_until() {
            let pause = if is_well { BEAT_EVERY_US } else { AFTER_ERROR_US };
            self.node_later(node, pause, pause, NodeEvent::BeatDue);
        }
    }

    /// A sign of life reaches the ledger.
    pub fn beaten(&mut self, node: usize, by: Incarnation, alive: bool) {
        let refusal = self.ledger.refuses(node, by);
        if refusal.is_none() {
            self.ledger.numbers.beat(by, self.now);
        }
        if alive {
            self.heard_of_write(node, Some(by), refusal);
            if refusal.is_none() {
                self.beat_clock(node);
            }
        }
    }
}
