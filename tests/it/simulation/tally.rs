//! What a simulation has seen.

/// What a simulation has seen, so that nobody believes in one that shows nothing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub steps: u64,
    pub created: u64,
    pub sends: u64,
    /// Sends of a delivery that its receiver had taken already.
    pub duplicates: u64,
    pub fenced: u64,
    pub crashes: u64,
    pub outages: u64,
    pub closings: u64,
    pub recalled: u64,
    pub too_late: u64,
    pub limited: u64,
    pub dead: u64,
    pub canceled: u64,
    pub expired: u64,
    pub lane_bounds: u64,
    pub destination_bounds: u64,
    pub shares: u64,
    pub turns: u64,
    pub stalls: u64,
    /// Wall clocks that jumped.
    pub clocks: u64,
    pub numbers_lost: u64,
    /// How often a node found that its writes are refused.
    pub refusals: u64,
    /// Deliveries that replays put back, and steps of replays that were not the worker's to make.
    pub put_back: u64,
    pub steps_refused: u64,
    /// Of all that was sent, in order.
    pub digest: u64,
}

impl Tally {
    fn parts(&mut self) -> [(&'static str, &mut u64); 24] {
        [
            ("steps", &mut self.steps),
            ("created", &mut self.created),
            ("sends", &mut self.sends),
            ("duplicates", &mut self.duplicates),
            ("fenced", &mut self.fenced),
            ("crashes", &mut self.crashes),
            ("outages", &mut self.outages),
            ("closings", &mut self.closings),
            ("recalled", &mut self.recalled),
            ("too late", &mut self.too_late),
            ("limited", &mut self.limited),
            ("dead", &mut self.dead),
            ("canceled", &mut self.canceled),
            ("expired", &mut self.expired),
            ("lane bounds", &mut self.lane_bounds),
            ("destination bounds", &mut self.destination_bounds),
            ("shares", &mut self.shares),
            ("turns", &mut self.turns),
            ("stalls", &mut self.stalls),
            ("clocks", &mut self.clocks),
            ("numbers lost", &mut self.numbers_lost),
            ("refusals", &mut self.refusals),
            ("put back", &mut self.put_back),
            ("steps refused", &mut self.steps_refused),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        for ((_, sum), (_, more)) in self.parts().into_iter().zip(other.parts()) {
            *sum += *more;
        }
    }

    /// A simulation that does not meet what it is about shows nothing.
    pub fn check_enough(&mut self) {
        for (name, count) in self.parts() {
            // A step is refused after a stall, a takeover and the end of whoever took over.
            let least = if name == "steps refused" { 5 } else { 20 };
            assert!(*count >= least, "{name}: {count}");
        }
    }
}
