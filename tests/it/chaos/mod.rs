//! What breaks: the relay killed, its disk full, its database gone, receivers and producers that misbehave.
//!
//! Each test is bounded and runs in the suite. Some have a long form besides, with more rounds, events or cases:
//! `scripts/chaos` sets [`LONG`] and gathers what they tell with [`tell`], the figures of `docs/RELIABILITY.md`.

use std::fmt::Display;

#[cfg(feature = "failpoints")]
mod clock;
pub mod disk;
#[cfg(feature = "failpoints")]
mod failpoints;
#[cfg(feature = "failpoints")]
mod fan_out;
mod kill;
mod model;
mod partners;
mod postgres;
mod power;
mod producers;
mod routes;
mod schema;
mod seeds;
mod svix;
mod upgrade;

/// Loud, since what is not compiled can't fail.
#[cfg(not(feature = "failpoints"))]
#[test]
fn every_failpoint_is_tested() {
    panic!("failpoints are tested with `--features full,failpoints`, as ./scripts/test does");
}

/// Set to anything: the long form.
const LONG: &str = "POSTHASTE_CHAOS_LONG";

/// One of two sizes: of the suite's run, and of the long form.
pub fn sized<T>(short: T, long: T) -> T {
    if std::env::var_os(LONG).is_some() { long } else { short }
}

/// A line of figures, for whoever gathers them.
fn tell(promise: &str, figures: impl Display) {
    println!("chaos: {promise}: {figures}");
}
