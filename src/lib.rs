//! Posthaste: a webhook relay.
pub mod domain;
pub mod ledger;
#[cfg(feature = "mock")]
pub mod mock;
