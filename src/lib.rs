//! Posthaste: a webhook relay.
pub mod app;
pub mod cli;
pub mod config;
pub mod directory;
pub mod dispatcher;
pub mod domain;
pub mod http;
pub mod ingest;
pub mod ledger;
#[cfg(feature = "mock")]
pub mod mock;
pub mod send;
pub mod telemetry;
