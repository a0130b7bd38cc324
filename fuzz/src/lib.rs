//! What holds for whatever anybody sends: a `check` for each target, which panics where it does not.
//!
//! `fuzz_targets/` hands them what libFuzzer makes up, and the test suite hands them the inputs in `seeds/`, so that the
//! checks compile and hold in every run. An input is readable text wherever its subject is.

pub mod address;
pub mod ingest;
mod json;
pub mod retry_after;
pub mod signature;
pub mod transform;
