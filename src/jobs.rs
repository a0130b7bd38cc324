//! Background jobs: when each last succeeded, how far it lags, and how often it failed.
//!
//! Each job reports what its runs came to, here and nowhere else. A job that begins to fail is one line at `warn`, and one at
//! `info` when it works again, however often it tries meanwhile.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::clock::{Clock, Moment, Timestamp};

/// A background job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// Announces what operators should know as events.
    Announcements,
    /// Counts what waits, on a ledger that several nodes share.
    BacklogCount,
    /// Asks endpoints to prove themselves.
    Challenges,
    /// Moves SQLite's write-ahead log into its file.
    Checkpoint,
    /// Reads tenants, keys, partners and endpoints that other nodes have changed.
    Directory,
    /// Records how often events came again.
    Duplicates,
    /// Tells Svix of event types.
    EventTypes,
    /// Reads the gates that other nodes have closed.
    Gates,
    /// Forgets identities of events that are gone.
    Identities,
    /// Asks the ledger which lanes have work.
    Lanes,
    /// Hears what other nodes notify.
    Listen,
    /// Notifies other nodes.
    Notify,
    /// Prunes what was kept for long enough.
    Prune,
    /// Works on replays.
    Replays,
    /// Records statistics.
    Statistics,
    /// Deletes lanes that nothing uses.
    UnusedLanes,
}

impl Job {
    /// The name of the job in metrics and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Announcements => "announcements",
            Self::BacklogCount => "backlog_count",
            Self::Challenges => "challenges",
            Self::Checkpoint => "checkpoint",
            Self::Directory => "directory",
            Self::Duplicates => "duplicates",
            Self::EventTypes => "event_types",
            Self::Gates => "gates",
            Self::Identities => "identities",
            Self::Lanes => "lanes",
            Self::Listen => "listen",
            Self::Notify => "notify",
            Self::Prune => "prune",
            Self::Replays => "replays",
            Self::Statistics => "statistics",
            Self::UnusedLanes => "unused_lanes",
        }
    }
}

/// How one job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobReading {
    /// Which job.
    pub job: Job,
    /// When a run last succeeded; `None` where none has since the process began.
    pub succeeded_at: Option<Timestamp>,
    /// How long ago a run should have succeeded and did not; zero where the job is on time.
    pub lag: Duration,
    /// Runs that failed since the process began.
    pub errors: u64,
}

/// What is known of one job.
#[derive(Debug)]
struct State {
    /// How long there may be between two successes; `None` where the job only runs when there is work.
    every: Option<Duration>,
    succeeded_at: Option<Timestamp>,
    /// When it last succeeded or progressed, or began. Of a job that only runs when there is work: when it began to fail.
    since: Moment,
    errors: u64,
    is_failing: bool,
}

/// The jobs of one process. Each is known from its start or its first run on.
#[derive(Debug)]
pub struct JobMetrics {
    states: Mutex<BTreeMap<Job, State>>,
    clock: Arc<dyn Clock>,
}

impl JobMetrics {
    /// Metrics that know of no job.
    pub const fn new(clock: Arc<dyn Clock>) -> Self {
        Self { states: Mutex::new(BTreeMap::new()), clock }
    }

    /// A job begins that succeeds at least `every` so often; with `None` it only runs when there is work, and lags only
    /// while it fails.
    pub fn started(&self, job: Job, every: Option<Duration>) {
        let since = self.clock.moment();
        let state = State { every, succeeded_at: None, since, errors: 0, is_failing: false };
        self.states().entry(job).or_insert(state);
    }

    /// The job succeeds at least `every` so often from now on.
    pub fn expect(&self, job: Job, every: Option<Duration>) {
        self.started(job, every);
        if let Some(state) = self.states().get_mut(&job) {
            state.every = every;
        }
    }

    /// A part of a long run has succeeded. After a failure only a whole run counts.
    pub fn progressed(&self, job: Job) {
        let now = self.clock.moment();
        if let Some(state) = self.states().get_mut(&job).filter(|state| !state.is_failing) {
            state.since = now;
        }
    }

    /// A run of a job has ended.
    pub fn ran<T, E: Display>(&self, job: Job, result: &Result<T, E>) {
        let (at, moment) = (self.clock.now(), self.clock.moment());
        let mut states = self.states();
        let state = states.entry(job).or_insert(State {
            every: None,
            succeeded_at: None,
            since: moment,
            errors: 0,
            is_failing: false,
        });
        let was_failing = std::mem::replace(&mut state.is_failing, result.is_err());
        match result {
            Ok(_) => {
                state.succeeded_at = Some(at);
                state.since = moment;
            }
            Err(_) => {
                state.errors += 1;
                if state.every.is_none() && !was_failing {
                    state.since = moment;
                }
            }
        }
        drop(states);
        match result {
            Err(error) if !was_failing => {
                tracing::warn!(job = job.as_str(), %error, "a background job fails; it is tried again");
            }
            Err(error) => tracing::debug!(job = job.as_str(), %error, "a background job fails again"),
            Ok(_) if was_failing => tracing::info!(job = job.as_str(), "a background job works again"),
            Ok(_) => {}
        }
    }

    /// How every job stands.
    pub fn read(&self) -> Vec<JobReading> {
        let now = self.clock.moment();
        let reading = |(job, state): (&Job, &State)| {
            let idle = state.every.is_none() && !state.is_failing;
            let lag = state.since.until(now).saturating_sub(state.every.unwrap_or_default());
            JobReading {
                job: *job,
                succeeded_at: state.succeeded_at,
                lag: if idle { Duration::ZERO } else { lag },
                errors: state.errors,
            }
        };
        self.states().iter().map(reading).collect()
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<Job, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct SettableClock(AtomicU64);

    impl Clock for SettableClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(1_000 * i64::try_from(self.0.load(Ordering::Relaxed)).expect("small"))
        }

        fn moment(&self) -> Moment {
            Moment::after_start(Duration::from_secs(self.0.load(Ordering::Relaxed)))
        }

        fn random(&self) -> u128 {
            0
        }
    }

    const GOOD: Result<(), &str> = Ok(());
    const BAD: Result<(), &str> = Err("no");

    #[test]
    fn a_job_lags_from_when_it_should_have_succeeded() {
        let clock = Arc::new(SettableClock::default());
        let jobs = JobMetrics::new(clock.clone());
        jobs.started(Job::Prune, Some(Duration::from_secs(60)));
        let at = |second: u64| {
            clock.0.store(second, Ordering::Relaxed);
            let reading = jobs.read()[0];
            (reading.succeeded_at.map(Timestamp::as_millis), reading.lag.as_secs(), reading.errors)
        };
        assert_eq!(at(50), (None, 0, 0));
        assert_eq!(at(70), (None, 10, 0));
        jobs.ran(Job::Prune, &GOOD);
        assert_eq!(at(130), (Some(70_000), 0, 0));
        jobs.ran(Job::Prune, &BAD);
        jobs.ran(Job::Prune, &BAD);
        assert_eq!(at(140), (Some(70_000), 10, 2));
        jobs.progressed(Job::Prune);
        assert_eq!(at(150), (Some(70_000), 20, 2));
        jobs.ran(Job::Prune, &GOOD);
        at(200);
        jobs.progressed(Job::Prune);
        assert_eq!(at(260), (Some(150_000), 0, 2));
    }

    #[test]
    fn a_job_without_work_does_not_lag_and_one_that_fails_does() {
        let clock = Arc::new(SettableClock::default());
        let jobs = JobMetrics::new(clock.clone());
        jobs.ran(Job::Notify, &GOOD);
        clock.0.store(3_600, Ordering::Relaxed);
        assert_eq!(jobs.read()[0].lag, Duration::ZERO);
        jobs.ran(Job::Notify, &BAD);
        clock.0.store(3_630, Ordering::Relaxed);
        jobs.ran(Job::Notify, &BAD);
        assert_eq!(jobs.read()[0].lag, Duration::from_secs(30));
    }
}
