//! Whether somebody fresh waits for what a replay would take.

use super::{GateId, Scheduler};
use crate::domain::tenant::Destination;

impl<T> Scheduler<T> {
    /// Whether deliveries wait for what another one to `destination` would take: a place in flight, a place or a token
    /// of its partner's, a place behind its gate; or fresh ones wait for the destination itself.
    pub fn is_pressed(&self, destination: &Destination) -> bool {
        let full = self.in_flight >= self.limits.max_in_flight && !self.ring.is_empty();
        if full || self.gates.is_awaited(&GateId::of(destination)) {
            return true;
        }
        if self.partner_of(destination).is_some_and(|partner| self.partners.is_awaited(&partner)) {
            return true;
        }
        let Some(state) = self.destinations.get(destination) else { return false };
        state.ring.iter().filter_map(|lane| self.lanes.get(lane)).any(|lane| lane.has_fresh())
    }
}
