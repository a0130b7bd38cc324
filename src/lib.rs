//! Posthaste: a webhook relay.
pub mod domain;
#[cfg(feature = "mock")]
pub mod mock;
