//! What an operator asks of the dispatcher, and may take from it.

use super::Dispatcher;
use crate::domain::clock::Moment;
use crate::domain::delivery::{Class, Delivery, DeliveryId};
use crate::domain::scheduler::Standing;
use crate::domain::tenant::Lane;

impl Dispatcher {
    /// How things stand on this node for a delivery of `lane`, and at what moment.
    pub fn standing(&self, lane: &Lane, class: Class, id: DeliveryId) -> (Standing, Moment) {
        let now = self.shared.clock.moment();
        (self.shared.scheduler().standing(lane, class, now, |delivery| delivery.id == id), now)
    }

    /// Takes a delivery back that this node has claimed and not begun to send. Its claim is the caller's from then on.
    pub fn take_back(&self, lane: &Lane, id: DeliveryId) -> Option<Delivery> {
        let taken = self.shared.scheduler().take_back(lane, |delivery| delivery.id == id);
        self.shared.changed.notify_one();
        taken
    }
}
