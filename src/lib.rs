//! Posthaste: a webhook relay.
pub mod domain;
