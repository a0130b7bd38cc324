//! Posthaste: a webhook relay.
pub mod config;
pub mod dispatcher;
pub mod domain;
pub mod ledger;
#[cfg(feature = "mock")]
pub mod mock;
pub mod send;
pub mod telemetry;
