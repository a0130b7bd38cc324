//! All tests that go through the public API, in one binary: a module for each subject.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests are their own composition root")]

#[macro_use]
mod support;
mod access;
mod admin;
mod cli;
mod direct;
mod ingest;
mod kill;
mod ledger;
mod partners_storage;
mod shutdown;
mod simulation;
mod svix;
