//! What can be seen of a scheduler from outside: who waits in its memory, and whether who starts is allowed to.
//!
//! The waiting bound is checked exactly as `posthaste::domain::scheduler` states it. Lanes and destinations that begin
//! to wait stand behind those that wait already, so between two starts of a lane its destination may start at most the
//! weights of the lanes that waited there at the first of them; and between two starts of a destination that could
//! send all the while, at most a turn of each other destination that waited then.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use posthaste::domain::delivery::Class;

/// Of one lane.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub lane: usize,
    pub destination: usize,
    pub gate: usize,
    /// Share of the lane at its destination, and of its destination beside others.
    pub weight: u64,
    pub quantum: u64,
}

#[derive(Debug, Default)]
struct LaneWatch {
    buffered: [usize; 2],
    /// Fresh ones in a row while a retry waited: at least, and at most, since the scheduler may forget a lane that is
    /// idle, or remember it.
    fresh_in_a_row: (u32, u32),
    /// Starts of its destination when it last started or began to wait, and how many may follow before its own.
    base: u64,
    bound: u64,
    /// It has had nothing since it last started.
    emptied: bool,
    /// What is left of its turn can't be seen from here.
    unknown: bool,
}

#[derive(Debug, Default)]
struct DestinationWatch {
    /// Which lane's turn it is, and how much of it has been used.
    turn: Option<(Place, u64)>,
    lanes: usize,
    weights: u64,
    starts: u64,
    in_flight: usize,
    base: u64,
    bound: u64,
    /// It has been held back since.
    broken: bool,
    /// All it had was taken back, and it may have kept its place in the ring.
    ghost: bool,
    returned: u64,
    gate_epoch: u64,
    partner_epoch: u64,
}

#[derive(Debug, Default)]
pub struct Watch {
    lanes: HashMap<usize, LaneWatch>,
    destinations: HashMap<usize, DestinationWatch>,
    /// How often a gate, or a partner, had no room.
    pub gate_epochs: HashMap<usize, u64>,
    pub partner_epochs: HashMap<usize, u64>,
    per_destination: usize,
    starts: u64,
    quanta: u64,
    /// Turns of those who came back to a place in the ring that they had kept.
    returned: u64,
    pub buffered: usize,
    /// What left memory and was neither started nor taken back: its lease ran out.
    pub expired: u64,
    /// How often a bound was checked where somebody else could have passed, and how often a retry had its share.
    pub lane_bounds: u64,
    pub destination_bounds: u64,
    pub shares: u64,
    /// Turns that were longer than one and whole.
    pub turns: u64,
}

impl Watch {
    pub fn new(per_destination: usize) -> Self {
        Self { per_destination, ..Self::default() }
    }

    /// One more waits in memory.
    pub fn buffer(&mut self, place: Place, partner: Option<usize>, class: Class) {
        let epochs = self.epochs(place.gate, partner);
        let lane = self.lanes.entry(place.lane).or_default();
        let destination = self.destinations.entry(place.destination).or_default();
        self.buffered += 1;
        lane.buffered[class as usize] += 1;
        if lane.buffered.iter().sum::<usize>() > 1 {
            return;
        }
        (lane.base, lane.bound) = (destination.starts, destination.weights);
        destination.weights += place.weight;
        destination.lanes += 1;
        if destination.lanes == 1 {
            if std::mem::take(&mut destination.ghost) {
                self.returned += place.quantum;
            }
            destination.returned = self.returned;
            (destination.base, destination.bound) = (self.starts, self.quanta);
            (destination.gate_epoch, destination.partner_epoch) = epochs;
            destination.broken = destination.in_flight >= self.per_destination;
            self.quanta += place.quantum;
        }
    }

    /// One less does.
    fn unbuffer(&mut self, place: Place, class: Class) {
        let lane = self.lanes.get_mut(&place.lane).expect("it waits");
        let destination = self.destinations.get_mut(&place.destination).expect("it waits");
        self.buffered -= 1;
        lane.buffered[class as usize] -= 1;
        if lane.buffered == [0, 0] {
            lane.fresh_in_a_row.0 = 0;
            (lane.emptied, lane.unknown) = (true, true);
            destination.weights -= place.weight;
            destination.lanes -= 1;
            if destination.lanes == 0 {
                destination.ghost = true;
                self.quanta -= place.quantum;
            }
        }
    }

    fn epochs(&self, gate: usize, partner: Option<usize>) -> (u64, u64) {
        let of_partner = partner.and_then(|partner| self.partner_epochs.get(&partner));
        (self.gate_epochs.get(&gate).copied().unwrap_or(0), of_partner.copied().unwrap_or(0))
    }

    pub fn has_fresh(&self, lane: usize) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| lane.buffered[Class::Fresh as usize] > 0)
    }

    /// A lane's turn is as long as its weight, where it has so much to send.
    fn check_turn(&mut self, place: Place) {
        let destination = self.destinations.get_mut(&place.destination).expect("it waits");
        let before = destination.turn.take();
        let same = before.filter(|(last, _)| last.lane == place.lane && !self.lanes[&place.lane].emptied);
        if let Some((last, used)) = before.filter(|(last, _)| last.lane != place.lane) {
            let lane = self.lanes.get_mut(&last.lane).expect("it has waited");
            if !lane.emptied && !std::mem::take(&mut lane.unknown) {
                assert_eq!(used, last.weight, "the turn of {last:?} ended");
                self.turns += u64::from(used > 1);
            }
        }
        self.lanes.get_mut(&place.lane).expect("it waits").emptied = false;
        let used = same.map_or(0, |(_, used)| used % place.weight);
        destination.turn = Some((place, used + 1));
    }

    /// The scheduler has picked a delivery that waited; `bounded` where its destination's turn is to be checked.
    pub fn start(&mut self, place: Place, partner: Option<usize>, class: Class, bounded: bool) {
        let epochs = self.epochs(place.gate, partner);
        self.check_turn(place);
        let lane = self.lanes.get_mut(&place.lane).expect("it waits");
        let destination = self.destinations.get_mut(&place.destination).expect("it waits");
        let passed = destination.starts - lane.base;
        assert!(passed <= lane.bound, "{place:?} was passed {passed} times, {} at most", lane.bound);
        self.lane_bounds += u64::from(lane.bound > 0);
        let unhindered =
            bounded && !destination.broken && (destination.gate_epoch, destination.partner_epoch) == epochs;
        if unhindered {
            let passed = self.starts - destination.base;
            let bound = destination.bound + self.returned - destination.returned;
            assert!(
                passed <= bound,
                "the destination of {place:?} was passed {passed} times, {bound} at most: {destination:?}"
            );
            self.destination_bounds += u64::from(bound > 0);
        }
        if lane.buffered.iter().all(|count| *count > 0) {
            let (least, most) = &mut lane.fresh_in_a_row;
            if class == Class::Fresh {
                assert!(*least < 3, "a retry waits behind more than three fresh ones: {place:?}");
                (*least, *most) = (*least + 1, *most + 1);
            } else {
                assert!(*most >= 3, "a retry goes before fresh ones: {place:?}");
                self.shares += 1;
                lane.fresh_in_a_row = (0, 0);
            }
        } else {
            lane.fresh_in_a_row = (0, 0);
        }
        destination.starts += 1;
        self.starts += 1;
        (lane.base, lane.bound) = (destination.starts, destination.weights - place.weight);
        (destination.base, destination.bound) = (self.starts, self.quanta - place.quantum);
        destination.returned = self.returned;
        (destination.gate_epoch, destination.partner_epoch) = epochs;
        destination.broken = false;
    }

    /// What has just left memory was picked: its destination has left the ring for it.
    pub fn picked(&mut self, place: Place) {
        self.expired -= 1;
        self.destinations.get_mut(&place.destination).expect("it waited").ghost = false;
        let lane = self.lanes.get_mut(&place.lane).expect("it waited");
        // Who has nothing more to send gives his turn up.
        lane.unknown &= !lane.emptied;
    }

    /// A request is in flight.
    pub fn enter(&mut self, destination: usize) {
        let destination = self.destinations.entry(destination).or_default();
        destination.in_flight += 1;
        destination.broken |= destination.in_flight >= self.per_destination;
        assert!(destination.in_flight <= self.per_destination, "in flight per destination: {destination:?}");
    }

    pub fn leave(&mut self, destination: usize) {
        self.destinations.get_mut(&destination).expect("it was sent to").in_flight -= 1;
    }
}

/// Tells the watch when a delivery leaves the scheduler's memory, in whatever way.
#[derive(Debug)]
pub struct Buffered {
    pub watch: Rc<RefCell<Watch>>,
    pub place: Place,
    pub class: Class,
}

impl Drop for Buffered {
    fn drop(&mut self) {
        if let Ok(mut watch) = self.watch.try_borrow_mut() {
            watch.unbuffer(self.place, self.class);
            watch.expired += 1;
        }
    }
}
