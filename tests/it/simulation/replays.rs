//! Replays: deliveries that are done go back into the queue, by whichever node holds the replay's lease.
//!
//! The worker takes replays, keeps how far it has come in memory, and moves the cursor step by step, as
//! `posthaste::replays` does. A step names the place that it goes on from: where another node has moved the cursor
//! meanwhile, nothing of it happens.

use std::collections::{BTreeMap, BTreeSet};

use posthaste::domain::clock::Timestamp;
use posthaste::domain::delivery::Class;
use posthaste::domain::replay::{Pacer, most_waiting, step_rows};

use super::flaws::Flaw;
use super::ledger::{Ledger, State};
use super::node::{NodeEvent, moment};
use super::numbers::{Incarnation, Refusal};
use super::traffic::CLOCK_ERROR;
use super::world::{MS, SECOND, World};

/// How long a worker that says nothing keeps a replay, and how often it takes and renews.
const LEASE_US: u64 = 10 * SECOND;
const TAKE_EVERY_US: u64 = 2 * SECOND;
const FEED_EVERY_US: u64 = 50 * MS;
const MOST_DELIVERIES: usize = 120;
const MOST_REPLAYS: usize = 8;

/// A replay in the ledger.
#[derive(Debug)]
pub struct Replay {
    /// The deliveries to put back, each with how often it had been replayed when this replay began.
    candidates: Vec<(usize, u32)>,
    pace: u32,
    /// All candidates before this place have been put back.
    cursor: usize,
    worker: Option<Incarnation>,
    worker_until: u64,
    put_back: BTreeSet<usize>,
    /// Put back and not settled since.
    untried: BTreeSet<usize>,
}

impl Replay {
    pub fn is_running(&self) -> bool {
        self.cursor < self.candidates.len()
    }
}

/// A step of a replay: candidates `from..to` go back.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    replay: usize,
    from: usize,
    to: usize,
}

/// A replay that a node works on.
#[derive(Debug)]
pub struct Active {
    cursor: usize,
    pacer: Pacer,
}

/// What a node knows of replays.
#[derive(Debug, Default)]
pub struct Worker {
    active: BTreeMap<usize, Active>,
    taken_at: Option<u64>,
}

impl Worker {
    pub fn is_active(&self) -> bool {
        !self.active.is_empty()
    }
}

impl Ledger {
    fn begin_replay(&mut self, candidates: Vec<(usize, u32)>, pace: u32) {
        self.replays.push(Replay {
            candidates,
            pace,
            cursor: 0,
            worker: None,
            worker_until: 0,
            put_back: BTreeSet::new(),
            untried: BTreeSet::new(),
        });
    }

    /// Takes the running replays that nobody works on, and renews the worker's own: which, and where they go on.
    fn take_replays(
        &mut self,
        by: Incarnation,
        now: u64,
        is_own: impl Fn(Incarnation) -> bool,
    ) -> Vec<(usize, usize)> {
        let mut taken = Vec::new();
        for (id, replay) in self.replays.iter_mut().enumerate().filter(|(_, replay)| replay.is_running()) {
            if replay.worker.is_some_and(&is_own) || replay.worker_until <= now {
                (replay.worker, replay.worker_until) = (Some(by), now + LEASE_US);
                taken.push((id, replay.cursor));
            }
        }
        taken
    }

    /// The replays of a worker that ends in good order.
    pub fn give_back_replays(&mut self, by: Incarnation) {
        for replay in self.replays.iter_mut().filter(|replay| replay.worker == Some(by)) {
            (replay.worker, replay.worker_until) = (None, 0);
        }
    }

    /// Makes a step: what went back; `None` where the step is not the worker's to make, and nothing has happened.
    fn replay_step(
        &mut self,
        step: Step,
        due_at: Timestamp,
        is_own: impl Fn(Incarnation) -> bool,
        fenced: bool,
    ) -> Option<Vec<usize>> {
        let Step { replay, from, to } = step;
        let known = &self.replays[replay];
        if !known.is_running() || !known.worker.is_some_and(is_own) || (fenced && known.cursor != from) {
            return None;
        }
        let rows: Vec<_> = known.candidates[from..to].iter().map(|(row, _)| *row).collect();
        let done: Vec<_> = rows
            .into_iter()
            .filter(|row| matches!(self.rows[*row].state, State::Delivered | State::Dead))
            .collect();
        for row in &done {
            self.put_back(*row, due_at);
            let replay = &mut self.replays[replay];
            assert!(replay.put_back.insert(*row), "{row} is put back twice by one replay: {step:?}");
            replay.untried.insert(*row);
        }
        self.replays[replay].cursor = to;
        Some(done)
    }

    /// Whatever a delivery came to, it has been tried.
    pub fn tried(&mut self, row: usize) {
        for replay in &mut self.replays {
            replay.untried.remove(&row);
        }
    }

    /// Every replay has put back all that it was to put back and that no other replay has put back instead.
    pub fn check_replays(&self) {
        for (id, replay) in self.replays.iter().enumerate() {
            assert!(!replay.is_running(), "replay {id} does not end: {replay:?}");
            for (row, replays) in &replay.candidates {
                let gone_back = replay.put_back.contains(row) || self.rows[*row].replays > *replays;
                assert!(gone_back, "replay {id} has passed over {row}");
            }
        }
    }
}

impl World {
    /// Somebody wants a part of what is done to be sent again.
    pub fn begin_replay(&mut self) {
        if self.ledger.rows.is_empty() || self.ledger.replays.len() >= MOST_REPLAYS {
            return;
        }
        let first = self.random.below(self.ledger.rows.len());
        let most = self.random.size(1, MOST_DELIVERIES);
        let rows = self.ledger.rows.iter().enumerate().skip(first);
        let done = rows.filter(|(_, row)| matches!(row.state, State::Delivered | State::Dead));
        let candidates: Vec<_> = done.take(most).map(|(id, row)| (id, row.replays)).collect();
        let pace = self.random.pick(&[1, 3, 10, 1_000]);
        self.note(|| format!("a replay of {} deliveries begins, {pace} a second", candidates.len()));
        self.ledger.begin_replay(candidates, pace);
    }

    /// One turn of the worker's loop, up to its next statement.
    pub fn feed(&mut self, node: usize) {
        if self.nodes[node].stopping {
            return;
        }
        let is_any = self.ledger.replays.iter().any(Replay::is_running);
        let worker = &mut self.nodes[node].worker;
        if !is_any && worker.active.is_empty() {
            if self.now < self.polls_until() {
                self.node_later(node, TAKE_EVERY_US, TAKE_EVERY_US, NodeEvent::Feed);
            }
            return;
        }
        let Some(by) = self.nodes[node].incarnation else {
            self.nodes[node].worker.active.clear();
            return self.node_later(node, TAKE_EVERY_US, TAKE_EVERY_US, NodeEvent::Feed);
        };
        let now = self.now;
        let worker = &mut self.nodes[node].worker;
        if worker.taken_at.is_none_or(|at| at + TAKE_EVERY_US <= now) {
            worker.taken_at = Some(now);
            return self.through_the_net(node, NodeEvent::TakeReplays { by });
        }
        match self.next_step(node) {
            Some(step) => self.through_the_net(node, NodeEvent::ReplayStep { by, step }),
            None => self.node_later(node, FEED_EVERY_US, FEED_EVERY_US, NodeEvent::Feed),
        }
    }

    /// What the worker puts back next, where anything may go now.
    fn next_step(&mut self, node: usize) -> Option<Step> {
        let now = moment(self.now);
        let active: Vec<_> = self.nodes[node].worker.active.keys().copied().collect();
        active.into_iter().find_map(|id| {
            let Replay { candidates, pace, untried, .. } = &self.ledger.replays[id];
            let Active { cursor, pacer } = self.nodes[node].worker.active.get_mut(&id)?;
            let room = most_waiting(*pace).saturating_sub(untried.len());
            let whole = step_rows(*pace);
            let left = candidates.len() - *cursor;
            let count = pacer.allowance(now).min(room).min(whole).min(left);
            if count == 0 || (count < whole.min(room) && count < left) {
                return None;
            }
            let step = Step { replay: id, from: *cursor, to: *cursor + count };
            let rows = candidates[step.from..step.to].iter().map(|(row, _)| *row);
            let lanes: BTreeSet<_> = rows.map(|row| self.ledger.rows[row].lane).collect();
            let scheduler = self.nodes[node].scheduler.as_ref().expect("up");
            let pressed =
                lanes.into_iter().any(|lane| scheduler.is_pressed(&self.lanes[lane].lane.destination));
            (!pressed).then_some(step)
        })
    }

    /// A look for replays reaches the ledger.
    pub fn take_replays(&mut self, node: usize, by: Incarnation, alive: bool) {
        let by_number = self.has(Flaw::ReusedNumber);
        let is_own = |worker: Incarnation| if by_number { worker.number == by.number } else { worker == by };
        let refusal = self.refuses_claim(by);
        let taken = refusal.is_none().then(|| self.ledger.take_replays(by, self.now, is_own));
        if alive {
            self.heard_of_number(node, by, self.ledger.down || self.ledger.numbers.holds(by));
            self.through_the_net(node, NodeEvent::ReplaysTaken { taken });
        }
    }

    /// The answer: what is not the node's own for certain is left alone.
    pub fn replays_taken(&mut self, node: usize, taken: Option<Vec<(usize, usize)>>) {
        let now = moment(self.now);
        let taken = taken.unwrap_or_default();
        let worker = &mut self.nodes[node].worker;
        worker.active.retain(|id, _| taken.iter().any(|(taken, _)| taken == id));
        for (id, cursor) in taken {
            let pace = self.ledger.replays[id].pace;
            worker.active.entry(id).or_insert_with(|| Active { cursor, pacer: Pacer::new(pace, now) });
        }
        self.feed(node);
    }

    /// A step reaches the ledger: all of it happens, or nothing.
    pub fn replay_step(&mut self, node: usize, by: Incarnation, step: Step, alive: bool) {
        let by_number = self.has(Flaw::ReusedNumber);
        let is_own = |worker: Incarnation| if by_number { worker.number == by.number } else { worker == by };
        let refusal =
            self.ledger.refuses(node, by).filter(|refusal| *refusal != Refusal::NumberLost || !by_number);
        let due_at = self.ledger_time(node);
        self.check_due(node, due_at.as_millis(), CLOCK_ERROR);
        let fenced = !self.has(Flaw::UnfencedCursor);
        let done = match refusal {
            None => self.ledger.replay_step(step, due_at, is_own, fenced),
            Some(_) => None,
        };
        if let Some(done) = &done {
            self.tally.put_back += done.len() as u64;
            self.note(|| format!("node {node} puts back {done:?}: {step:?}"));
        } else if refusal.is_none() {
            self.tally.steps_refused += 1;
        }
        if alive {
            self.heard_of_write(node, Some(by), refusal);
            // Or its answer is lost: the worker does not know.
            let done = done.filter(|_| self.quiet || !self.random.happens(0.01));
            for row in done.iter().flatten() {
                let known = &mut self.ledger.rows[*row];
                known.told = Some((node, self.nodes[node].epoch));
                let lane = &self.lanes[known.lane].lane;
                let scheduler = self.nodes[node].scheduler.as_mut().expect("up");
                scheduler.wake(lane, Class::Retry, due_at, due_at);
            }
            self.notify(node);
            self.through_the_net(node, NodeEvent::ReplayStepped { step, made: done.is_some() });
        }
    }

    /// The answer: the worker goes on behind the step, or leaves the replay and reads it again.
    pub fn replay_stepped(&mut self, node: usize, step: Step, made: bool) {
        let worker = &mut self.nodes[node].worker;
        if made && let Some(active) = worker.active.get_mut(&step.replay) {
            active.cursor = step.to;
            active.pacer.spend(step.to - step.from);
            if active.cursor == self.ledger.replays[step.replay].candidates.len() {
                worker.active.remove(&step.replay);
            }
        } else {
            worker.active.remove(&step.replay);
        }
        self.feed(node);
    }
}
