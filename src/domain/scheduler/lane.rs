//! A lane's state in memory: what is claimed and not yet sent, of each class, and whose turn it is.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::Class;
use crate::domain::tenant::{Lane, LaneId};

/// One of a lane's two queues.
pub(super) type Queue = (LaneId, Class);

/// While both classes wait, so many fresh deliveries go out for each retry.
pub(super) const FRESH_PER_RETRY: u32 = 3;

/// What is known of one of a lane's queues.
#[derive(Debug)]
pub(super) struct QueueState<T> {
    /// Claimed, not yet sent, each with the end of its lease.
    pub buffer: VecDeque<(Moment, T)>,
    /// Places promised to the claim under way.
    pub promised: usize,
    /// The ledger has work here that is due.
    pub due: bool,
    /// Waits to be claimed from: among the hungry, behind its gate or with its partner.
    pub asked: bool,
    pub claiming: bool,
    /// The earliest alarm set.
    pub alarm: Option<Timestamp>,
    /// It is asked for again once no more than this is buffered.
    pub low: usize,
}

impl<T> QueueState<T> {
    const fn new() -> Self {
        Self {
            buffer: VecDeque::new(),
            promised: 0,
            due: false,
            asked: false,
            claiming: false,
            alarm: None,
            low: 0,
        }
    }

    /// Places in the buffer that are its own.
    pub fn held(&self) -> usize {
        self.buffer.len() + self.promised
    }

    fn is_idle(&self) -> bool {
        self.buffer.is_empty() && !self.due && !self.asked && !self.claiming && self.alarm.is_none()
    }
}

#[derive(Debug)]
pub(super) struct LaneState<T> {
    pub lane: Arc<Lane>,
    /// In the order of [`Class::ALL`].
    queues: [QueueState<T>; 2],
    pub in_flight: usize,
    /// In its destination's ring.
    pub queued: bool,
    /// What it may still send before its neighbours have their turn.
    pub credit: u32,
    /// Fresh deliveries sent since a retry began to wait beside them.
    fresh_in_a_row: u32,
}

impl<T> LaneState<T> {
    pub fn new(lane: Arc<Lane>) -> Self {
        let queues = [QueueState::new(), QueueState::new()];
        Self { lane, queues, in_flight: 0, queued: false, credit: 0, fresh_in_a_row: 0 }
    }

    pub fn queue(&mut self, class: Class) -> &mut QueueState<T> {
        let [fresh, retry] = &mut self.queues;
        match class {
            Class::Fresh => fresh,
            Class::Retry => retry,
        }
    }

    /// What is claimed and waits, of one class.
    pub fn buffered(&self, class: Class) -> &VecDeque<(Moment, T)> {
        let [fresh, retry] = &self.queues;
        match class {
            Class::Fresh => &fresh.buffer,
            Class::Retry => &retry.buffer,
        }
    }

    pub fn has_buffered(&self) -> bool {
        self.queues.iter().any(|queue| !queue.buffer.is_empty())
    }

    /// Whether fresh work is on its way already, so that a newer one may not pass.
    pub fn has_fresh(&self) -> bool {
        let [fresh, _] = &self.queues;
        fresh.due || fresh.claiming || !fresh.buffer.is_empty()
    }

    /// Takes the delivery that is next: fresh before retries, and after every [`FRESH_PER_RETRY`] a retry.
    pub fn pop(&mut self) -> Option<(Class, T)> {
        let [fresh, retry] = &self.queues;
        let both = !fresh.buffer.is_empty() && !retry.buffer.is_empty();
        let class = match (both, fresh.buffer.is_empty()) {
            (true, _) if self.fresh_in_a_row >= FRESH_PER_RETRY => Class::Retry,
            (true, _) | (false, false) => Class::Fresh,
            (false, true) => Class::Retry,
        };
        self.fresh_in_a_row = if both && class == Class::Fresh { self.fresh_in_a_row + 1 } else { 0 };
        self.queue(class).buffer.pop_front().map(|(_, item)| (class, item))
    }

    /// Takes deliveries out whose lease has run out.
    pub fn take_expired(&mut self, now: Moment) -> Vec<T> {
        let mut expired = Vec::new();
        for queue in &mut self.queues {
            while queue.buffer.front().is_some_and(|(leased_until, _)| *leased_until <= now) {
                expired.extend(queue.buffer.pop_front().map(|(_, item)| item));
                queue.due = true;
            }
        }
        expired
    }

    /// Takes everything out; the ledger has it again.
    pub fn empty(&mut self) -> Vec<T> {
        let mut taken = Vec::new();
        for queue in self.queues.iter_mut().filter(|queue| !queue.buffer.is_empty()) {
            queue.due = true;
            taken.extend(queue.buffer.drain(..).map(|(_, item)| item));
        }
        taken
    }

    /// Whether there is nothing to remember of it.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queues.iter().all(QueueState::is_idle)
    }
}
