//! All tests that go through the public API, in one binary: a module for each subject.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests are their own composition root")]

#[macro_use]
mod support;
mod access;
mod admin;
mod announcements;
mod audit;
mod backup;
mod bounded_tables;
mod brokers;
mod challenges;
mod chaos;
mod cli;
mod clock;
mod console;
mod direct;
mod dispatcher;
mod endpoints;
mod fairness;
mod hidden_urls;
mod http2;
mod ingest;
mod ledger;
mod limits;
mod logs;
mod metrics;
mod neighbours;
mod nodes;
mod outcomes;
mod partners_storage;
mod push;
mod replays;
mod retention;
mod retries;
mod shutdown;
mod simulation;
#[cfg(feature = "full")]
mod sources;
mod stats;
mod story;
mod svix;
mod traces;

/// Loud, since what is not compiled can't fail.
#[cfg(not(feature = "full"))]
#[test]
fn every_kind_of_source_is_tested() {
    panic!("sources are tested with `--features full`, as ./scripts/test does");
}
