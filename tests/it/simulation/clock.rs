//! The ledger's clock as each node runs it: the real [`Watch`] decides which jumps are adopted.
//!
//! Several nodes share Postgres, whose clock is right; a single node keeps a SQLite file, and the ledger's clock is its own.

use posthaste::domain::clock::Timestamp;
use posthaste::domain::clock_watch::{Reading, TOLERATED_MS, Watch};

use super::flaws::Flaw;
use super::ledger::Ledger;
use super::node::{Node, moment};
use super::world::World;

/// How wrong the middle of a round trip to the database may be.
pub const READING_ERROR_MS: u64 = 400;

/// A node's idea of the ledger's time.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeClock {
    watch: Watch,
    /// The ledger's time as this node takes it, less the true time.
    offset_ms: i64,
    /// The ledger's time has gone back while the process ran: its scheduler keeps alarms that lie far in the future.
    pub set_back: bool,
}

/// What the ledger remembers of its clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks {
    confirmed_at: Option<Timestamp>,
    last_at: Timestamp,
}

impl Ledger {
    /// The ledger's time goes back on SQLite: what lies in the future keeps its distance.
    fn set_back(&mut self, now: Timestamp, back_ms: i64) {
        for row in self.waiting_behind(now) {
            let due_at = self.rows[row].due_at - back_ms;
            self.move_to(row, due_at);
        }
    }
}

impl World {
    /// Whether nodes share the ledger, on Postgres.
    pub fn is_shared(&self) -> bool {
        self.nodes.len() > 1
    }

    /// The ledger's clock, as a node takes it to be.
    pub fn ledger_time(&self, node: usize) -> Timestamp {
        let Node { wall_offset_ms, clock, .. } = &self.nodes[node];
        self.wall(if self.has(Flaw::LocalDueTimes) { *wall_offset_ms } else { clock.offset_ms })
    }

    /// The clock that a node's deliveries go by: Postgres's, or its own.
    pub fn right_time(&self, node: usize) -> Timestamp {
        if self.is_shared() { self.wall(0) } else { self.ledger_time(node) }
    }

    fn read_clocks(&mut self, node: usize) -> Reading {
        let wall = self.wall(self.nodes[node].wall_offset_ms);
        let error = i64::try_from(self.random.between(0, 2 * READING_ERROR_MS)).expect("small");
        let error = error - i64::try_from(READING_ERROR_MS).expect("small");
        Reading { source: if self.is_shared() { self.wall(error) } else { wall }, wall }
    }

    /// A node starts: as `ledger::clock` does it.
    pub fn start_clock(&mut self, node: usize) {
        let reading = self.read_clocks(node);
        let Marks { confirmed_at, last_at } = self.ledger.clock;
        let watch = Watch::start(self.is_shared(), reading, confirmed_at, moment(self.now));
        let offset_ms = reading.source.as_millis() - self.wall(0).as_millis();
        self.nodes[node].clock = NodeClock { watch, offset_ms, set_back: false };
        let back_ms = last_at.as_millis() - reading.source.as_millis();
        if back_ms > 0 && !self.is_shared() {
            self.ledger.set_back(reading.source, back_ms);
        }
        self.mark_clock(node, reading.source);
    }

    /// A heartbeat has reached the ledger: the clocks are compared.
    pub fn beat_clock(&mut self, node: usize) {
        let reading = self.read_clocks(node);
        let before = self.ledger_time(node);
        let by_ms = self.nodes[node].clock.watch.beat(before, reading, moment(self.now));
        let now = Timestamp::from_millis(before.as_millis() + by_ms);
        if by_ms < -TOLERATED_MS && !self.is_shared() {
            self.note(|| format!("the clock of node {node} goes back by {by_ms} ms"));
            self.ledger.set_back(now, -by_ms);
            self.nodes[node].clock.set_back = true;
        }
        self.nodes[node].clock.offset_ms += by_ms;
        self.mark_clock(node, now);
    }

    fn mark_clock(&mut self, node: usize, now: Timestamp) {
        let marks = &mut self.ledger.clock;
        marks.last_at = now;
        if self.nodes[node].clock.watch.is_confirmed() {
            marks.confirmed_at = Some(now);
        }
    }
}
