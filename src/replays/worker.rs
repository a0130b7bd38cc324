//! Who works on replays: a loop beside the dispatcher, on every node that sends.
//!
//! It feeds the queue by drops: as fast as the pace says, never more than what its receivers take in about a second, and
//! nothing while others wait for what it would take.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Replays;
use crate::dispatcher::Dispatcher;
use crate::domain::clock::Moment;
use crate::domain::event::EventSeq;
use crate::domain::replay::{EndState, Pacer, most_waiting, step_rows};
use crate::domain::tenant::{Lane, LaneId};
use crate::jobs::Job;
use crate::ledger::{Candidate, LedgerError, ReplayStep, ReplayWork};

/// How often the queue is fed.
const FEED_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked at what became of what was put back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often replays are looked for, and leases renewed.
const TAKE_EVERY: Duration = Duration::from_secs(2);
/// How long a node that says nothing more keeps a replay.
const LEASE: Duration = Duration::from_secs(10);
/// Rows that are looked at in one statement, and how many statements in a turn find nothing.
const WINDOW_ROWS: u32 = 1_000;
const EMPTY_WINDOWS: usize = 5;

/// A replay that this node works on.
struct Active {
    work: ReplayWork,
    pacer: Pacer,
    /// Picked, not yet put back.
    picked: VecDeque<Candidate>,
    /// How far has been picked, and whether that is all.
    reached: (i64, i64),
    all_picked: bool,
    /// Put back and untried, as far as is known.
    waiting: usize,
    looked_at: Moment,
    waits_for: Option<&'static str>,
}

impl Active {
    fn new(work: ReplayWork, now: Moment) -> Self {
        Self {
            pacer: Pacer::new(work.pace, now),
            picked: VecDeque::new(),
            reached: work.cursor,
            all_picked: work.exhausted,
            // Not known before the first look.
            waiting: usize::MAX,
            looked_at: Moment::default(),
            waits_for: None,
            work,
        }
    }
}

/// What a step came to.
enum Fed {
    /// Goes on.
    On,
    /// This node has nothing to do with it any more.
    Left,
}

impl Replays {
    /// Works on replays, until `stop` is cancelled.
    pub async fn run(&self, dispatcher: Dispatcher, stop: CancellationToken) {
        let mut active: HashMap<String, Active> = HashMap::new();
        let mut taken_at: Option<Moment> = None;
        let jobs = self.ledger.jobs();
        jobs.started(Job::Replays, Some(3 * TAKE_EVERY));
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            let now = self.clock.moment();
            if taken_at.is_none_or(|at| at.until(now) >= TAKE_EVERY) {
                taken_at = Some(now);
                let taken = self.take(&mut active, now).await;
                jobs.ran(Job::Replays, &taken);
                if taken.is_err() {
                    // What is not ours for certain is left alone.
                    active.clear();
                }
            }
            let mut left = Vec::new();
            for (id, replay) in &mut active {
                let fed = self.feed(replay, &dispatcher).await;
                if fed.is_err() {
                    jobs.ran(Job::Replays, &fed);
                }
                if !matches!(fed, Ok(Fed::On)) {
                    left.push(id.clone());
                }
            }
            for id in left {
                active.remove(&id);
            }
            let wait = if active.is_empty() { TAKE_EVERY } else { FEED_EVERY };
            tokio::select! {
                // Somebody has started one, or stopped one.
                () = &mut changed => taken_at = None,
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        if !active.is_empty()
            && let Err(error) = self.ledger.release_replays().await
        {
            tracing::debug!(%error, "replays were not given back; their leases will end");
        }
    }

    /// Takes replays that nobody works on, and forgets those that are no longer this node's.
    async fn take(&self, active: &mut HashMap<String, Active>, now: Moment) -> Result<(), LedgerError> {
        let ours = self.ledger.take_replays(LEASE).await?;
        active.retain(|id, _| ours.contains(id));
        for id in ours {
            if !active.contains_key(&id)
                && let Some(work) = self.ledger.database().replay_work(&id).await?
            {
                active.insert(id, Active::new(work, now));
            }
        }
        Ok(())
    }

    async fn feed(&self, replay: &mut Active, dispatcher: &Dispatcher) -> Result<Fed, LedgerError> {
        let now = self.clock.moment();
        if replay.looked_at.until(now) >= LOOK_EVERY || replay.waiting == usize::MAX {
            replay.looked_at = now;
            self.look(replay).await?;
        }
        if replay.work.exhausted {
            if replay.waiting > 0 {
                return Ok(Fed::On);
            }
            let done = self.clock.now();
            let id = &replay.work.id;
            if self.ledger.complete_replay(id, done).await? {
                tracing::info!(replay = id, "the replay is complete");
            }
            return Ok(Fed::Left);
        }
        let room = most_waiting(replay.work.pace).saturating_sub(replay.waiting);
        let mut count = replay.pacer.allowance(now).min(room);
        if room == 0 {
            self.held_up(replay, Some("receivers: what was put back has not been tried yet")).await?;
        }
        let whole = step_rows(replay.work.pace);
        // What does not make a whole step waits for the next turn.
        let least = whole.min(room).max(1);
        while count >= least && !replay.work.exhausted {
            if replay.picked.is_empty() && !replay.all_picked {
                self.pick_more(replay).await?;
            }
            let part = count.min(whole).min(replay.picked.len());
            if part == 0 && !replay.all_picked {
                return Ok(Fed::On);
            }
            let step: Vec<_> = replay.picked.range(..part).cloned().collect();
            if let Some(reason) = self.obstacle(&step, dispatcher).await? {
                self.held_up(replay, Some(reason)).await?;
                return Ok(Fed::On);
            }
            match self.step(replay, &step).await? {
                None => return Ok(Fed::Left),
                Some(put_back) => {
                    replay.pacer.spend(part);
                    replay.waiting += put_back;
                    count -= part;
                }
            }
        }
        Ok(Fed::On)
    }

    /// What became of what was put back.
    async fn look(&self, replay: &mut Active) -> Result<(), LedgerError> {
        let untried = self.ledger.database().untried(&replay.work.id).await?;
        let counted = match untried.news {
            0 => 0,
            _ => self.ledger.count_tried(&replay.work.id).await?,
        };
        let left = (untried.waiting + untried.news).saturating_sub(counted);
        replay.waiting = usize::try_from(left).unwrap_or(usize::MAX - 1);
        Ok(())
    }

    async fn pick_more(&self, replay: &mut Active) -> Result<(), LedgerError> {
        for _ in 0..EMPTY_WINDOWS {
            let window = self
                .ledger
                .database()
                .replay_window(&replay.work.selection, replay.reached, WINDOW_ROWS)
                .await?;
            replay.reached = window.reached;
            replay.all_picked = window.exhausted;
            replay.picked.extend(window.candidates);
            if !replay.picked.is_empty() || replay.all_picked {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Why these deliveries should not be put back now.
    async fn obstacle(
        &self,
        step: &[Candidate],
        dispatcher: &Dispatcher,
    ) -> Result<Option<&'static str>, LedgerError> {
        let mut lanes: Vec<i64> = step.iter().map(|delivery| delivery.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        for lane in lanes {
            let Some(lane) = self.ledger.lane_by_id(LaneId(lane)).await? else { continue };
            if dispatcher.is_pressed(&lane.destination) {
                return Ok(Some("fresh deliveries that go first, or a closed gate"));
            }
        }
        for delivery in step {
            let room = match self.ledger.room_of(&delivery.tenant) {
                Ok(room) => room,
                Err(LedgerError::BacklogFull { .. }) => 0,
                Err(error) => return Err(error),
            };
            if room < step.len() as u64 {
                return Ok(Some("room in the backlog"));
            }
        }
        Ok(None)
    }

    /// Puts deliveries back; how many. `None` where this node no longer works on the replay.
    async fn step(&self, replay: &mut Active, step: &[Candidate]) -> Result<Option<usize>, LedgerError> {
        let is_last = step.len() == replay.picked.len();
        let exhausted = is_last && replay.all_picked;
        let cursor = match step.last() {
            // Behind the last one picked lies what has been looked at in vain.
            Some(_) if is_last => replay.reached,
            Some(last) => (last.event, last.lane),
            None => replay.reached,
        };
        let (unrouted, deliveries): (Vec<_>, Vec<_>) =
            step.iter().cloned().partition(|candidate| candidate.state == EndState::Unrouted);
        let mut routed = Vec::with_capacity(unrouted.len());
        for event in unrouted {
            routed.push((event.event, self.route(&event).await?));
        }
        let put_back = ReplayStep { deliveries: &deliveries, routed: &routed, cursor, exhausted };
        let Some(count) = self.ledger.replay_step(&replay.work, &put_back).await? else { return Ok(None) };
        replay.picked.drain(..step.len());
        replay.work.cursor = cursor;
        replay.work.exhausted = exhausted;
        replay.waits_for = None;
        Ok(Some(count))
    }

    /// Where an event goes by today's routes.
    async fn route(&self, event: &Candidate) -> Result<Vec<Arc<Lane>>, LedgerError> {
        let snapshot = self.directory.snapshot();
        let route = match snapshot.route(&event.tenant, self.default_route) {
            Ok(route) => route,
            Err(error) => {
                tracing::warn!(event = %EventSeq(event.event).0, %error, "an event can't be routed");
                return Ok(Vec::new());
            }
        };
        let tenant: Arc<str> = event.tenant.as_str().into();
        let mut lanes = Vec::new();
        for destination in snapshot.destinations(&route, &event.tenant, &event.event_type) {
            lanes.push(self.ledger.lane(&destination, &tenant).await?);
        }
        Ok(lanes)
    }

    async fn held_up(&self, replay: &mut Active, reason: Option<&'static str>) -> Result<(), LedgerError> {
        if replay.waits_for == reason {
            return Ok(());
        }
        replay.waits_for = reason;
        self.ledger.note_replay(&replay.work.id, reason).await
    }
}
