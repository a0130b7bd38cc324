//! Svix applications that Svix refuses or throttles while it takes requests for others.
//!
//! All of Svix is one receiver with one gate. An application gets a gate beside it where that is needed: it is refused
//! (401, 403) while the account is not, or it is throttled (429) while others pass. Nobody can know from a single 429 whose
//! limit was reached. So the account's gate closes first, and when it opens, other applications have their turn first:
//! where one of them passes, the limit is the throttled application's alone, and its next 429 closes only its own gate.
//! The gate goes with the application's next success.

use std::sync::Arc;

use super::{GateId, Permit, Scheduler};
use crate::domain::clock::Moment;
use crate::domain::gate::{Change, Signal};
use crate::domain::hash::{FastMap, FastSet};
use crate::domain::tenant::Destination;

/// What is known of single applications.
#[derive(Debug, Default)]
pub(super) struct Applications {
    /// Their gates, while they are closed or probing.
    gates: FastMap<Arc<Destination>, GateId>,
    /// Throttled since their last success, and nobody knows yet whose limit it was.
    suspects: FastSet<Arc<Destination>>,
    /// Throttled since their last success, while others passed.
    limited_alone: FastSet<Arc<Destination>>,
}

impl Applications {
    /// The application's own gate, where it has one.
    pub fn gate(&self, destination: &Destination) -> Option<&GateId> {
        if self.gates.is_empty() { None } else { self.gates.get(destination) }
    }

    /// Whether this application goes after others once the account's gate opens.
    pub fn is_suspect(&self, destination: &Destination) -> bool {
        self.suspects.contains(destination)
    }

    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Adds a gate that has closed elsewhere.
    pub fn add(&mut self, id: &GateId) {
        if let GateId::Application(text) = id
            && let Some(destination) = Destination::parse(text)
        {
            self.gates.insert(Arc::new(destination), id.clone());
        }
    }

    /// Forgets what is known of a destination without work, but for its gate.
    pub fn forget(&mut self, destination: &Destination) {
        self.suspects.remove(destination);
        self.limited_alone.remove(destination);
    }

    /// A request of this application has passed. `since_opening`: it began after the account's gate last closed.
    fn passed(&mut self, destination: &Arc<Destination>, since_opening: bool) {
        self.forget(destination);
        if since_opening {
            self.limited_alone.extend(self.suspects.drain());
        }
    }
}

impl<T> Scheduler<T> {
    /// A request to a Svix application has ended: what that does to the application's own gate, and what the account's gate
    /// is to make of it.
    pub(super) fn finish_application(
        &mut self,
        destination: &Arc<Destination>,
        permit: Permit,
        signal: Signal,
        now: Moment,
        chance: f64,
    ) -> (Option<(GateId, Change)>, Signal) {
        let (own, account) = match signal {
            Signal::Refused => (Some(Signal::Unauthorized), Signal::Alive),
            Signal::Throttled(_) if self.applications.limited_alone.contains(destination) => {
                (Some(signal), Signal::Alive)
            }
            Signal::Throttled(_) => {
                self.applications.suspects.insert(destination.clone());
                (None, signal)
            }
            Signal::Success => {
                let since_opening = self.gates.still_admits(&GateId::Svix, permit.gate);
                self.applications.passed(destination, since_opening);
                (Some(signal), signal)
            }
            Signal::Alive => (Some(signal), signal),
            // They tell nothing of the application.
            Signal::Failure | Signal::Unauthorized | Signal::NotSent => (None, signal),
        };
        let has_gate = self.applications.gates.contains_key(destination);
        let change = match own {
            Some(own @ (Signal::Unauthorized | Signal::Throttled(_))) => {
                self.close_application(destination, permit, own, now, chance)
            }
            _ if !has_gate => None,
            Some(own) => self.reopen_application(destination, permit, own, now),
            None => self.give_back_place(destination, permit, now),
        };
        (change, account)
    }

    fn close_application(
        &mut self,
        destination: &Arc<Destination>,
        permit: Permit,
        signal: Signal,
        now: Moment,
        chance: f64,
    ) -> Option<(GateId, Change)> {
        let id = self
            .applications
            .gates
            .entry(destination.clone())
            .or_insert_with(|| GateId::Application(destination.to_string().into()))
            .clone();
        // A request that began before the gate was there closes it as the first one would have.
        let ticket = match permit.application {
            Some(ticket) => ticket,
            None => self.gates.enter(&id, &self.policies, now)?,
        };
        let (change, freed) = self.gates.finish(&id, &self.policies, ticket, signal, now, chance);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
        Some((id, change))
    }

    /// The gate goes: what waited behind it waits for the account's alone.
    fn reopen_application(
        &mut self,
        destination: &Arc<Destination>,
        permit: Permit,
        signal: Signal,
        now: Moment,
    ) -> Option<(GateId, Change)> {
        // A request from before the closing tells nothing.
        let ticket = permit.application?;
        let id = self.applications.gates.get(destination)?.clone();
        if !self.gates.still_admits(&id, ticket) {
            return self.give_back_place(destination, permit, now);
        }
        let (change, freed) = self.gates.finish(&id, &self.policies, ticket, signal, now, 0.0);
        self.applications.gates.remove(destination);
        let left = self.gates.forget(&id);
        self.ring.extend(freed.parked.into_iter().chain(left.parked));
        self.hungry.extend(freed.waiting.into_iter().chain(left.waiting));
        (change == Change::Opened).then_some((id, change))
    }

    fn give_back_place(
        &mut self,
        destination: &Arc<Destination>,
        permit: Permit,
        now: Moment,
    ) -> Option<(GateId, Change)> {
        let ticket = permit.application?;
        let id = self.applications.gates.get(destination)?.clone();
        let (_, freed) = self.gates.finish(&id, &self.policies, ticket, Signal::NotSent, now, 0.0);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
        None
    }

    /// Lets other applications go before those that were throttled last.
    pub(super) fn put_suspects_last(&self, freed: &mut super::gates::Freed) {
        if !self.applications.has_suspects() {
            return;
        }
        freed.parked.sort_by_key(|destination| self.applications.is_suspect(destination));
        freed.waiting.sort_by_key(|(lane, _)| {
            self.lanes.get(lane).is_some_and(|state| self.applications.is_suspect(&state.lane.destination))
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Class, GateLimits, Remaining, SchedulerLimits, Start};
    use super::*;
    use crate::domain::clock::Timestamp;
    use crate::domain::gate::CloseReason;
    use crate::domain::tenant::{Lane, LaneId};

    const LIMITS: SchedulerLimits = SchedulerLimits {
        max_in_flight: 8,
        max_in_flight_per_destination: 8,
        max_buffered: 64,
        max_claim: 8,
    };
    const GATE: GateLimits = GateLimits {
        max_in_flight: 8,
        unproven_in_flight: 8,
        failures_to_close: 3,
        failing_for: Duration::ZERO,
        first_wait: Duration::from_secs(1),
        max_wait: Duration::from_secs(60),
        adaptive: None,
    };
    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn lane(id: i64) -> Arc<Lane> {
        let destination = Arc::new(Destination::Svix { app: format!("app{id}") });
        Arc::new(Lane { id: LaneId(id), destination, tenant: format!("t{id}").into() })
    }

    fn at(ms: u64) -> Moment {
        Moment::after_start(Duration::from_millis(ms))
    }

    /// Two lanes of two applications, each with so much work that it never ends.
    struct Scene {
        scheduler: Scheduler<i64>,
        lanes: [Arc<Lane>; 2],
    }

    impl Scene {
        fn new() -> Self {
            let mut scheduler = Scheduler::new(LIMITS, GATE, GATE);
            let lanes = [lane(0), lane(1)];
            for lane in &lanes {
                scheduler.wake(lane, Class::Fresh, NOW, NOW);
            }
            Self { scheduler, lanes }
        }

        /// What may start now.
        fn start(&mut self, now: Moment) -> Vec<Start<i64>> {
            self.scheduler.tick(NOW, now);
            for claim in self.scheduler.claims(now) {
                let items = vec![claim.lane.id.0; claim.limit];
                self.scheduler.claimed(&claim, items, at(1_000_000), Remaining::Due, NOW);
            }
            std::iter::from_fn(|| self.scheduler.next(now)).collect()
        }

        fn finish(&mut self, start: &Start<i64>, signal: Signal, now: Moment) -> Vec<(GateId, Change)> {
            let lane = self.lanes[usize::try_from(start.item).expect("0 or 1")].clone();
            let changes = self.scheduler.finish(&lane, start.permit, signal, now, 0.5);
            for (gate, change) in &changes {
                if matches!(change, Change::Closed { .. }) {
                    self.scheduler.recall(gate);
                }
            }
            changes
        }
    }

    fn of(starts: &[Start<i64>], item: i64) -> Vec<&Start<i64>> {
        starts.iter().filter(|start| start.item == item).collect()
    }

    #[test]
    fn a_refused_application_is_probed_alone_while_others_go_on() {
        let mut scene = Scene::new();
        let starts = scene.start(at(0));
        let own = GateId::Application("svix:app0".into());
        let mut closings = 0;
        for start in of(&starts, 0) {
            let changes = scene.finish(start, Signal::Refused, at(10));
            closings += changes.len();
            assert!(changes.iter().all(|(gate, _)| *gate == own), "{changes:?}");
        }
        assert_eq!(closings, 1, "the others were under way before it closed");
        for start in of(&starts, 1) {
            assert_eq!(scene.finish(start, Signal::Success, at(10)), []);
        }
        let starts = scene.start(at(20));
        assert_eq!((of(&starts, 0).len(), of(&starts, 1).len()), (0, 8));
        for start in &starts {
            let _ = scene.finish(start, Signal::Success, at(30));
        }
        let starts = scene.start(at(1_100));
        assert_eq!(of(&starts, 0).len(), 1, "one is tried");
        let changes = scene.finish(of(&starts, 0)[0], Signal::Refused, at(1_100));
        assert!(
            matches!(&changes[..], [(gate, Change::Closed { until, .. })] if *gate == own && *until == at(3_100))
        );
        for start in of(&starts, 1) {
            let _ = scene.finish(start, Signal::Success, at(1_100));
        }
        let starts = scene.start(at(3_200));
        assert_eq!(of(&starts, 0).len(), 1);
        assert_eq!(scene.finish(of(&starts, 0)[0], Signal::Success, at(3_200)), [(own, Change::Opened)]);
        for start in of(&starts, 1) {
            let _ = scene.finish(start, Signal::Success, at(3_200));
        }
        let starts = scene.start(at(3_300));
        assert!(of(&starts, 0).len() > 1, "its gate is gone");
    }

    #[test]
    fn a_throttle_is_an_applications_own_once_others_have_passed() {
        let mut scene = Scene::new();
        let starts = scene.start(at(0));
        let throttled = Signal::Throttled(Some(Duration::from_secs(1)));
        let changes = scene.finish(of(&starts, 0)[0], throttled, at(0));
        let closed =
            |gate: GateId, until| vec![(gate, Change::Closed { until, reason: CloseReason::Throttled })];
        assert_eq!(changes, closed(GateId::Svix, at(1_000)), "nobody knows whose limit it is");
        for start in of(&starts, 0).into_iter().skip(1).chain(of(&starts, 1)) {
            let _ = scene.finish(start, Signal::NotSent, at(0));
        }
        assert!(scene.start(at(999)).is_empty());
        let starts = scene.start(at(1_000));
        let order: Vec<_> = starts.iter().map(|start| start.item).collect();
        assert_eq!(order, [1], "the other application goes first, one at a time");
        let changes = scene.finish(&starts[0], Signal::Success, at(1_010));
        assert_eq!(changes, [(GateId::Svix, Change::Opened)]);
        let mut now = 1_010;
        let again = loop {
            let starts = scene.start(at(now));
            if let Some(start) = starts.iter().find(|start| start.item == 0) {
                let changes = scene.finish(start, throttled, at(now));
                let rest = starts.iter().filter(|start| start.item == 1);
                rest.for_each(|start| _ = scene.finish(start, Signal::Success, at(now)));
                break changes;
            }
            starts.iter().for_each(|start| _ = scene.finish(start, Signal::Success, at(now)));
            now += 10;
        };
        let own = GateId::Application("svix:app0".into());
        assert_eq!(again, closed(own, at(now + 1_000)), "the limit is its own");
        let starts = scene.start(at(now + 10));
        assert!(of(&starts, 0).is_empty() && !of(&starts, 1).is_empty());
    }
}
