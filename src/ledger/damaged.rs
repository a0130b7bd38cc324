//! Rows that can't be sent, because the ledger has lost their event or can't read it.

use std::sync::Arc;

use super::{Held, Ledger, Result};
use crate::domain::delivery::{DeadReason, Failure, NextState, ReplayNumber, Settlement};
use crate::domain::tenant::Lane;

/// A claimed row that can't be sent: its event is missing, or can't be read.
#[derive(Debug, Clone)]
pub(super) struct Damaged {
    pub lane: Arc<Lane>,
    pub held: Held,
    pub replay: ReplayNumber,
    pub failures: u32,
    pub reason: DeadReason,
}

impl Ledger {
    /// Settles a claimed row that can't be sent as dead.
    pub(super) async fn give_up(&self, damaged: Damaged) -> Result<()> {
        let Damaged { lane, held, replay, failures, reason } = damaged;
        tracing::error!(
            delivery = %held.id,
            tenant = %lane.tenant,
            destination = %lane.destination,
            reason = reason.as_str(),
            "the ledger is damaged: a delivery is given up because its event can't be read; check the disk, and restore a \
             backup where the event is needed"
        );
        if let Some(meter) = self.shared.meter.get() {
            meter.unreadable(reason);
        }
        let failure = Failure::transport(reason.as_str(), "the ledger can't read the event", false);
        let settlement = Settlement {
            id: held.id,
            lane,
            class: held.class,
            due_at: held.due_at,
            replay,
            attempt: held.attempt,
            at: self.shared.clock.now(),
            latency_ms: 0,
            failures,
            status: None,
            failure: Some(failure),
            next: NextState::Dead { reason },
        };
        self.settle(settlement).await
    }
}
