//! How sources stand, for whoever asks.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::SourceConfig;

/// All sources, in the order of the configuration. Cheap to clone.
pub type Statuses = Arc<[Arc<SourceStatus>]>;

/// How a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It has not been reached yet.
    Connecting,
    /// It is read.
    Up,
    /// It is there, and nothing is fetched for this reason.
    Paused(String),
    /// It can't be reached or read, for this reason.
    Down(String),
}

impl SourceState {
    /// The state as answers and metrics show it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Paused(_) => "paused",
            Self::Down(_) => "down",
        }
    }

    /// Why it is not read.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Paused(reason) | Self::Down(reason) => Some(reason),
            Self::Connecting | Self::Up => None,
        }
    }
}

/// One source.
#[derive(Debug)]
pub struct SourceStatus {
    /// Its name in the configuration.
    pub name: String,
    /// `nats`, `redis` …
    pub kind: &'static str,
    state: Mutex<SourceState>,
    /// Negative where nobody knows.
    lag: AtomicI64,
}

impl SourceStatus {
    fn new(config: &SourceConfig) -> Self {
        let state = Mutex::new(SourceState::Connecting);
        Self { name: config.name.clone(), kind: config.broker.kind(), state, lag: AtomicI64::new(-1) }
    }

    /// How it stands.
    pub fn state(&self) -> SourceState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Messages that wait at the broker, when it was last asked; `None` where it does not say.
    pub fn lag(&self) -> Option<u64> {
        u64::try_from(self.lag.load(Ordering::Relaxed)).ok()
    }

    /// Sets how it stands; whether that is another state than before, reasons apart.
    pub(super) fn set(&self, state: SourceState) -> bool {
        let mut now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = now.as_str() != state.as_str();
        *now = state;
        changed
    }

    pub(super) fn set_lag(&self, lag: Option<u64>) {
        self.lag.store(lag.and_then(|lag| i64::try_from(lag).ok()).unwrap_or(-1), Ordering::Relaxed);
    }

    /// The statuses of sources that have not been reached yet.
    pub(super) fn all(configs: &[SourceConfig]) -> Statuses {
        configs.iter().map(|config| Arc::new(Self::new(config))).collect()
    }
}
