//! What the simulation finds when a fix is taken out of the model.
//!
//! Each test takes out one fix, runs seeds until an invariant fails, and runs the same seed with the fix: that run must pass.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::World;

/// A fix that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Claims and replays are fenced by the node's number, which is handed out again, and a node that loses its number
    /// goes on.
    ReusedNumber,
    /// A replay's step moves the cursor from wherever it is.
    UnfencedCursor,
    /// Sends begin although settlements can't be written.
    SendsWhatItCannotSettle,
    /// Due times are the recording node's wall clock.
    LocalDueTimes,
}

/// Why the run of this seed fails with `flaw`; `None` where it passes.
fn failure_of(seed: u64, flaw: Option<Flaw>) -> Option<String> {
    let mut world = World::new(seed, false, flaw);
    let panic = catch_unwind(AssertUnwindSafe(|| world.run())).err()?;
    let message = panic.downcast_ref::<String>().cloned();
    Some(message.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

/// Runs seeds with `flaw` until one breaks the invariant that says `expected`.
fn finds(flaw: Flaw, mut seeds: Range<u64>, expected: &str) {
    let breaks = |seed| failure_of(seed, Some(flaw)).filter(|message| message.contains(expected));
    let found = seeds.find_map(|seed| breaks(seed).map(|message| (seed, message)));
    let (seed, message) = found.unwrap_or_else(|| panic!("no seed finds {flaw:?}"));
    println!("{flaw:?}: found by seed {seed}: {message}");
    assert_eq!(failure_of(seed, None), None, "seed {seed} passes with the fix");
}

#[test]
fn a_reused_node_number_is_found() {
    // holds: 55
    finds(Flaw::ReusedNumber, 0..20, "after its node number was lost");
}

#[test]
fn an_unfenced_replay_cursor_is_found() {
    // holds: 56
    // About one seed in 200 has a takeover at the right moment: the range keeps this short.
    finds(Flaw::UnfencedCursor, 420..500, "put back twice");
}

#[test]
fn sends_that_cannot_be_settled_are_found() {
    // holds: 57
    finds(Flaw::SendsWhatItCannotSettle, 0..20, "while settlements are refused");
}

#[test]
fn due_times_by_a_wrong_clock_are_found() {
    // holds: 53
    finds(Flaw::LocalDueTimes, 0..20, "due too late");
}
