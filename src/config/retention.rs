//! `[retention]`

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long what is done is kept. 0 keeps it for ever. What waits is always kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Days that an event is kept, with how its deliveries ended, after the last of them was done.
    pub events_days: u32,
    /// Days that an event's identity is remembered, so that it is known when it comes again; never shorter than
    /// `events_days`.
    pub dedup_days: u32,
    /// Days that failed attempts are kept; never longer than their event.
    pub attempts_days: u32,
    /// Days that rejected messages are kept.
    pub rejected_days: u32,
    /// How often it is looked for what may go, in milliseconds; 0: never by itself.
    pub prune_every_ms: u64,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            events_days: 30,
            dedup_days: 90,
            attempts_days: 30,
            rejected_days: 90,
            prune_every_ms: 3_600_000,
        }
    }
}

impl RetentionConfig {
    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        crate::retention::too_short(self.events_days, self.dedup_days)
            .then(|| "retention.dedup_days must not be shorter than retention.events_days".to_owned())
    }

    /// How often it is looked for what may go; `None` for never.
    pub const fn every(&self) -> Option<Duration> {
        if self.prune_every_ms == 0 { None } else { Some(Duration::from_millis(self.prune_every_ms)) }
    }
}
