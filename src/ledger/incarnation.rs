//! Which incarnation of a node this process is: the number that its event numbers carry, and the epoch that fences what
//! it writes.
//!
//! A node number is given to another node once its holder has been silent for too long. An epoch is never given out
//! twice, so a node whose number was taken holds neither its leases nor its claims on work under the old epoch. Guarded
//! writes compare the epoch in the ledger with their own and change nothing where they differ.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::LedgerError;

/// A node number and the epoch under which this process holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Incarnation {
    pub node: i64,
    pub epoch: i64,
}

impl Incarnation {
    /// The epoch as it stands in the `node` table.
    pub fn epoch_text(self) -> String {
        self.epoch.to_string()
    }
}

/// The incarnation of this process, and whether it was lost.
#[derive(Debug)]
pub(super) struct Membership {
    state: Mutex<State>,
    /// Why writes fail; `None` while they work. Shared with the writer.
    health: watch::Sender<Option<String>>,
    lost: Notify,
    excluded: CancellationToken,
}

#[derive(Debug)]
struct State {
    current: Incarnation,
    is_lost: bool,
}

impl Membership {
    pub fn new(current: Incarnation, health: watch::Sender<Option<String>>) -> Self {
        let state = Mutex::new(State { current, is_lost: false });
        Self { state, health, lost: Notify::new(), excluded: CancellationToken::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The incarnation as which this process works now.
    pub fn current(&self) -> Incarnation {
        self.state().current
    }

    /// Whether the number was lost and no other one was taken since.
    pub fn is_lost(&self) -> bool {
        self.state().is_lost
    }

    /// Reports that a guarded write of `incarnation` found its number in other hands: from now on the ledger is in
    /// trouble, until the writer has taken another number. Returns the error for the caller of that write.
    pub fn lose(&self, incarnation: Incarnation) -> LedgerError {
        let error = LedgerError::NumberLost(incarnation.node);
        let mut state = self.state();
        if state.current == incarnation && !state.is_lost {
            state.is_lost = true;
            tracing::warn!(node = incarnation.node, epoch = incarnation.epoch, "{error}");
            self.health.send_replace(Some(error.to_string()));
            self.lost.notify_one();
        }
        error
    }

    /// Waits until a write finds that the number is lost.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Goes on as `incarnation`.
    pub fn replace(&self, incarnation: Incarnation) {
        *self.state() = State { current: incarnation, is_lost: false };
    }

    /// Reports that no other number can be had: the process has to end.
    pub fn exclude(&self) {
        self.excluded.cancel();
    }

    /// Waits until no other number can be had.
    pub async fn excluded(&self) {
        self.excluded.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_shows_as_trouble_and_one_of_an_earlier_incarnation_does_not() {
        let (health, trouble) = watch::channel(None);
        let (first, second) = (Incarnation { node: 3, epoch: 1_025 }, Incarnation { node: 4, epoch: 1_027 });
        let membership = Membership::new(first, health.clone());
        assert!(matches!(membership.lose(first), LedgerError::NumberLost(3)));
        assert!(membership.is_lost() && trouble.borrow().is_some());
        membership.replace(second);
        health.send_replace(None);
        // A write that began before has its answer now.
        assert!(matches!(membership.lose(first), LedgerError::NumberLost(3)));
        assert!(!membership.is_lost() && trouble.borrow().is_none());
        assert_eq!(membership.current(), second);
    }
}
