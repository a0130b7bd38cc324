//! Posthaste: a webhook relay.

#[cfg(feature = "mock")]
pub mod mock;
