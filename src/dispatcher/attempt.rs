//! One attempt: sent, told to the gate, settled.

use super::Shared;
use super::panics::{Panicked, Place, catch_panic};
use crate::domain::clock::Moment;
use crate::domain::delivery::{self, Delivery, Failure, Outcome, Timing};
use crate::domain::gate::{Change, CloseReason, Signal};
use crate::domain::scheduler::{GateId, Permit};
use crate::failpoint::failpoint;

impl Shared {
    /// One attempt, from the last look at the gate to the hand-in of its settlement.
    pub(super) async fn attempt(&self, delivery: Delivery, permit: Permit) {
        let began = self.clock.moment();
        // A place that was reserved ahead of a commit did not keep the receiver waiting.
        let permit = permit.begun_at(began);
        let place = Place::new(self, &delivery.lane, permit);
        let admitted =
            self.ledger.can_settle() && self.scheduler().still_admits(&delivery.lane, permit, began);
        let outcome = if admitted {
            failpoint!("sending");
            self.send(&delivery).await
        } else {
            Outcome::NotSent
        };
        failpoint!("sent", admitted);
        let ended = self.clock.moment();
        // The gate first, and at once: nothing may start between the answer that closes it and its closing.
        let signal = Signal::of(&outcome, &delivery.lane.destination);
        for (gate, change) in place.finish(signal, ended, self.chance(&outcome)) {
            match change {
                Change::Closed { until, reason } => {
                    Box::pin(self.gate_closed(&gate, until, reason, &outcome)).await;
                }
                Change::Opened => Box::pin(self.gate_opened(&gate)).await,
                Change::None => {}
            }
        }
        let observing = async {
            self.observer.measure(&delivery, &outcome, began.until(ended));
            self.observer.observe(&delivery, &outcome).await;
        };
        if catch_panic(observing).await.is_err() {
            // The outcome is known all the same, and is recorded.
            tracing::error!(delivery = %delivery.id, "an observer panicked: this is a bug, please report it");
        }
        let timing =
            Timing { at: self.clock.now(), latency: began.until(ended), chance: self.chance(&outcome) };
        self.settle(delivery, permit, outcome, timing).await;
    }

    /// Sends a delivery within the timeout. A panic is a failure like any other: it is retried, and given up in the end.
    async fn send(&self, delivery: &Delivery) -> Outcome {
        let sending = async { self.sender.send(delivery).await };
        match catch_panic(tokio::time::timeout(self.options.attempt_timeout, sending)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                let detail = format!("not done within {} ms", self.options.attempt_timeout.as_millis());
                Outcome::Failed(Failure::transport("timeout", detail, true))
            }
            Err(Panicked) => {
                tracing::error!(delivery = %delivery.id, "a send panicked: this is a bug, please report it");
                Outcome::Failed(Failure::transport("internal_error", "the send panicked", true))
            }
        }
    }

    /// For the jitter of a wait, which a success does not need.
    fn chance(&self, outcome: &Outcome) -> f64 {
        if matches!(outcome, Outcome::Delivered { .. }) { 0.0 } else { self.clock.chance() }
    }

    async fn settle(&self, delivery: Delivery, permit: Permit, outcome: Outcome, timing: Timing) {
        if outcome == Outcome::NotSent {
            return self.release(std::slice::from_ref(&delivery)).await;
        }
        let counts = permit.failure_counts();
        let schedule = self.sender.retry_schedule(&delivery.lane.destination);
        let settlement = delivery::settle(&delivery, outcome, counts, &schedule, timing);
        tell(&delivery, &settlement);
        self.observer.settle(&delivery, &settlement);
        if let Err(error) = self.ledger.settle(settlement).await {
            // The lease ends and it is sent again, under the same key.
            tracing::warn!(delivery = %delivery.id, %error, "an attempt could not be recorded");
        }
    }

    pub(super) async fn release(&self, deliveries: &[Delivery]) {
        if let Err(error) = self.ledger.release(deliveries).await {
            tracing::debug!(%error, "claims were not given back; their leases will end");
        }
        let now = self.clock.now();
        let mut scheduler = self.scheduler();
        for delivery in deliveries {
            scheduler.wake(&delivery.lane, delivery.class, now, now);
        }
    }

    /// Tells the operator and the ledger, and gives back what waits behind the gate.
    async fn gate_closed(&self, gate: &GateId, until: Moment, reason: CloseReason, outcome: &Outcome) {
        let wait = self.clock.moment().until(until);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let detail = failure_of(outcome).map_or("", |failure| failure.detail.as_str());
        match reason {
            CloseReason::Throttled => {
                tracing::info!(gate = gate.as_str(), wait_ms, "gate closed: asked to slow down");
            }
            CloseReason::Unauthorized => {
                tracing::error!(gate = gate.as_str(), wait_ms, detail, "gate closed: credentials refused");
            }
            CloseReason::Failing | CloseReason::NotConfigured => {
                tracing::warn!(
                    gate = gate.as_str(),
                    wait_ms,
                    detail,
                    "gate closed: one failure after another"
                );
            }
        }
        self.observer.gate_closed(gate, reason, wait);
        let recalled = self.scheduler().recall(gate);
        // Before the release: others know of the gate when they hear of the work.
        if let Err(error) = self.ledger.save_gate(gate.as_str(), reason, wait).await {
            tracing::debug!(%error, "a closed gate could not be recorded");
        }
        if !recalled.is_empty() {
            self.release(&recalled).await;
        }
    }

    async fn gate_opened(&self, gate: &GateId) {
        tracing::info!(gate = gate.as_str(), "gate open again");
        self.observer.gate_opened(gate);
        if let Err(error) = self.ledger.gate_opened(gate.as_str()).await {
            tracing::debug!(%error, "an open gate could not be recorded");
        }
    }
}

fn failure_of(outcome: &Outcome) -> Option<&Failure> {
    match outcome {
        Outcome::Throttled { failure, .. }
        | Outcome::Unauthorized(failure)
        | Outcome::Refused(failure)
        | Outcome::Failed(failure)
        | Outcome::Canceled(failure)
        | Outcome::Rejected(_, failure) => Some(failure),
        Outcome::Delivered { .. } | Outcome::NotSent => None,
    }
}

/// A line for what an operator may have to act on; the rest at `debug`.
fn tell(delivery: &Delivery, settlement: &delivery::Settlement) {
    use delivery::NextState;

    let (tenant, event) = (&*delivery.identity.tenant, &*delivery.identity.id);
    let code = settlement.failure.as_ref().map_or("", |failure| failure.code.as_str());
    let detail = settlement.failure.as_ref().map_or("", |failure| failure.detail.as_str());
    match &settlement.next {
        NextState::Dead { reason } => {
            tracing::error!(tenant, event, reason = reason.as_str(), code, detail, "delivery is dead");
        }
        NextState::Pending { .. } => tracing::debug!(tenant, event, code, detail, "attempt failed"),
        NextState::Delivered { .. } => {
            tracing::debug!(tenant, event, latency_ms = settlement.latency_ms, "delivered");
        }
        NextState::Canceled { .. } | NextState::Released => {}
    }
}
