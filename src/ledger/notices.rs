//! What nodes that share a ledger tell one another, by `LISTEN` and `NOTIFY`: that there is work, that a gate has closed
//! or opened, that somebody has changed something.
//!
//! A notice only makes the others look sooner. Every one may be lost: what it tells of is in the ledger, and the ledger
//! is looked at from time to time anyway. A notice is sent after the commit and on the side, because `NOTIFY` inside a
//! transaction takes one lock for the whole database at its commit.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, broadcast};
use tokio_util::task::AbortOnDropHandle;

use super::incarnation::Membership;
use super::postgres::Sessions;
use crate::domain::tenant::LaneId;
use crate::jobs::{Job, JobMetrics};
use crate::reconnect::Pauses;

const CHANNEL: &str = "posthaste";
/// The connection that listens, as the server's operator sees it.
const LISTENER: &str = "posthaste listener";
/// Postgres takes payloads of less than 8,000 bytes.
const PAYLOAD_LIMIT_BYTES: usize = 7_900;
/// Lanes that are gathered by number; beyond them everybody looks at all.
const LANES_LIMIT: usize = 2_000;
/// Notices that wait for a reader; one that is slower is told to look at everything.
const UNREAD_LIMIT: usize = 1_024;
/// How often a silent connection is asked whether it is still there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What another node has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// These lanes have work that is due.
    Lanes(Vec<LaneId>),
    /// Some lanes have work, or notices may have been missed: look which.
    Look,
    /// A gate has closed or opened.
    Gates,
    /// Tenants, keys, partners, endpoints or event types have changed.
    Revision,
}

/// This node's voice and ear. Only a ledger that is shared has them.
pub(super) struct Notices {
    membership: Arc<Membership>,
    bell: Arc<Bell>,
    /// `None` where there is no session to listen on.
    connect: Option<PgConnectOptions>,
    heard: broadcast::Sender<Notice>,
    /// Begins with the first who wants to hear: the command line has no use for a connection of its own.
    listener: OnceLock<AbortOnDropHandle<()>>,
    ringer: AbortOnDropHandle<()>,
    jobs: Arc<JobMetrics>,
}

impl Notices {
    /// Notifies by `pool`, and listens on a connection of its own, made with `connect`. Without one, nothing is heard:
    /// the ledger is polled anyway.
    pub fn new(
        membership: Arc<Membership>,
        pool: Sessions,
        connect: Option<PgConnectOptions>,
        jobs: &Arc<JobMetrics>,
    ) -> Self {
        let bell = Arc::new(Bell::default());
        let ringer = tokio::spawn(ring(bell.clone(), membership.clone(), pool, jobs.clone()));
        Self {
            membership,
            bell,
            connect: connect.map(|connect| connect.application_name(LISTENER)),
            heard: broadcast::Sender::new(UNREAD_LIMIT),
            listener: OnceLock::new(),
            ringer: AbortOnDropHandle::new(ringer),
            jobs: jobs.clone(),
        }
    }

    /// Where notices to others are handed in.
    pub const fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Says and hears nothing more: the ledger is being closed.
    pub fn stop(&self) {
        self.ringer.abort();
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }

    /// What others tell from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Notice> {
        let receiver = self.heard.subscribe();
        if let Some(connect) = &self.connect {
            self.listener.get_or_init(|| {
                let (connect, membership) = (connect.clone(), self.membership.clone());
                let listening = listen(connect, membership, self.heard.clone(), self.jobs.clone());
                AbortOnDropHandle::new(tokio::spawn(listening))
            });
        }
        receiver
    }
}

/// Gathers what is to be told while a notice is under way: the first goes at once, the rest together.
#[derive(Debug, Default)]
pub(super) struct Bell {
    gathered: Mutex<Gathered>,
    rung: Notify,
}

impl Bell {
    /// Lanes have work that is due.
    pub fn lanes(&self, lanes: impl IntoIterator<Item = LaneId>) {
        let mut lanes = lanes.into_iter().peekable();
        if lanes.peek().is_none() {
            return;
        }
        self.gathered().add_lanes(lanes);
        self.rung.notify_one();
    }

    /// Some lane has work, of either class.
    pub fn look(&self) {
        let mut gathered = self.gathered();
        gathered.look = true;
        gathered.lanes.clear();
        drop(gathered);
        self.rung.notify_one();
    }

    /// A gate has closed or opened.
    pub fn gates(&self) {
        self.gathered().gates = true;
        self.rung.notify_one();
    }

    /// Tenants, keys, partners, endpoints or event types have changed.
    pub fn revision(&self) {
        self.gathered().revision = true;
        self.rung.notify_one();
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gathered {
    lanes: BTreeSet<LaneId>,
    /// More lanes than can be named.
    look: bool,
    gates: bool,
    revision: bool,
}

impl Gathered {
    fn add_lanes(&mut self, lanes: impl Iterator<Item = LaneId>) {
        for lane in lanes {
            if self.look {
                return;
            }
            self.lanes.insert(lane);
            if self.lanes.len() > LANES_LIMIT {
                self.look = true;
                self.lanes.clear();
            }
        }
    }

    /// `1025 gates revision lanes=7,12` or `1025 look`: the epoch of the node that reports, and what. A node ignores
    /// words that it does not know.
    fn payload(&self, epoch: i64) -> String {
        let mut text = epoch.to_string();
        for (told, word) in [(self.gates, " gates"), (self.revision, " revision")] {
            text.push_str(if told { word } else { "" });
        }
        let named = text.len();
        for (index, lane) in self.lanes.iter().enumerate() {
            // Writing to a String can't fail.
            let _ = write!(text, "{}{}", if index == 0 { " lanes=" } else { "," }, lane.0);
        }
        if self.look || text.len() > PAYLOAD_LIMIT_BYTES {
            text.truncate(named);
            text.push_str(" look");
        }
        text
    }
}

/// The epoch of the node that reports, and what it reports; `None` for what no node of ours has written.
fn parse(payload: &str) -> Option<(i64, Vec<Notice>)> {
    let mut words = payload.split_ascii_whitespace();
    let epoch = words.next()?.parse().ok()?;
    let notices = words.filter_map(|word| match word {
        "gates" => Some(Notice::Gates),
        "revision" => Some(Notice::Revision),
        "look" => Some(Notice::Look),
        _ => {
            let numbers = word.strip_prefix("lanes=")?.split(',');
            let lanes: Result<Vec<_>, _> = numbers.map(|number| number.parse().map(LaneId)).collect();
            lanes.ok().map(Notice::Lanes)
        }
    });
    Some((epoch, notices.collect()))
}

/// Notifies the others of what is gathered, again and again. Nodes that are not notified look from time to time.
async fn ring(bell: Arc<Bell>, membership: Arc<Membership>, pool: Sessions, jobs: Arc<JobMetrics>) {
    jobs.started(Job::Notify, None);
    loop {
        bell.rung.notified().await;
        let gathered = std::mem::take(&mut *bell.gathered());
        if gathered == Gathered::default() {
            continue;
        }
        let told = sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(gathered.payload(membership.current().epoch))
            .execute(&pool)
            .await;
        jobs.ran(Job::Notify, &told);
    }
}

/// Hears what others tell, on a connection that is made again whenever it breaks. Meanwhile the ledger is looked at from time
/// to time.
async fn listen(
    connect: PgConnectOptions,
    membership: Arc<Membership>,
    heard: broadcast::Sender<Notice>,
    jobs: Arc<JobMetrics>,
) {
    let mut pauses = Pauses::new();
    jobs.started(Job::Listen, Some(PING_EVERY + ANSWER_LIMIT));
    loop {
        let broken = match subscribe(&connect).await {
            Ok(mut listener) => {
                pauses.reset();
                jobs.ran(Job::Listen, &Ok::<_, sqlx::Error>(()));
                // What was told while nobody listened.
                for notice in [Notice::Gates, Notice::Revision, Notice::Look] {
                    let _ = heard.send(notice);
                }
                hear(&mut listener, &membership, &heard, &jobs).await
            }
            Err(error) => error,
        };
        jobs.ran(Job::Listen, &Err::<(), _>(broken));
        tokio::time::sleep(pauses.pause()).await;
    }
}

async fn subscribe(connect: &PgConnectOptions) -> sqlx::Result<PgListener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ANSWER_LIMIT)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_with(connect.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Passes on what is heard, until the connection breaks: why.
async fn hear(
    listener: &mut PgListener,
    membership: &Membership,
    heard: &broadcast::Sender<Notice>,
    jobs: &JobMetrics,
) -> sqlx::Error {
    loop {
        let Ok(received) = tokio::time::timeout(PING_EVERY, listener.try_recv()).await else {
            // A connection whose other end is gone without a word stays silent for ever, and so does a standby.
            let ping = sqlx::query_as("SELECT pg_is_in_recovery()").fetch_one(&mut *listener);
            match tokio::time::timeout(ANSWER_LIMIT, ping).await {
                Ok(Ok((false,))) => {
                    jobs.ran(Job::Listen, &Ok::<_, sqlx::Error>(()));
                    continue;
                }
                Ok(Ok((true,))) => {
                    return sqlx::Error::Configuration("the server has become a standby".into());
                }
                Ok(Err(error)) => return error,
                Err(_) => return sqlx::Error::PoolTimedOut,
            }
        };
        let notification = match received {
            Ok(Some(notification)) => {
                jobs.ran(Job::Listen, &Ok::<_, sqlx::Error>(()));
                notification
            }
            Ok(None) => return sqlx::Error::WorkerCrashed,
            Err(error) => return error,
        };
        match parse(notification.payload()) {
            Some((epoch, notices)) if epoch != membership.current().epoch => {
                for notice in notices {
                    // Nobody listens while the process ends.
                    let _ = heard.send(notice);
                }
            }
            Some(_) => {}
            None => tracing::debug!("a notice that no node has written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn gathered(lanes: impl IntoIterator<Item = i64>) -> Gathered {
        let mut gathered = Gathered::default();
        gathered.add_lanes(lanes.into_iter().map(LaneId));
        gathered
    }

    #[test]
    fn what_is_told_is_heard() {
        let told = Gathered { gates: true, revision: true, ..gathered([7, 12, 7]) };
        assert_eq!(told.payload(3), "3 gates revision lanes=7,12");
        let heard = vec![Notice::Gates, Notice::Revision, Notice::Lanes(vec![LaneId(7), LaneId(12)])];
        assert_eq!(parse(&told.payload(3)), Some((3, heard)));
    }

    #[rstest]
    #[case::many(0..=2_000)]
    #[case::long(i64::MAX - 500..=i64::MAX)]
    fn more_lanes_than_a_payload_holds_are_not_named(#[case] lanes: std::ops::RangeInclusive<i64>) {
        let told = Gathered { gates: true, ..gathered(lanes) };
        assert_eq!(told.payload(1_023), "1023 gates look");
        assert!(told.lanes.len() <= LANES_LIMIT);
    }

    #[test]
    fn as_many_lanes_as_fit_are_named() {
        let told = gathered(1_000_000..1_000_900);
        let payload = told.payload(0);
        assert!(payload.len() < 8_000 && payload.starts_with("0 lanes=1000000,"), "{}", payload.len());
    }

    #[rstest]
    #[case("", None)]
    #[case("look", None)]
    #[case("\u{0} gates", None)]
    #[case("99999999999999999999 gates", None)]
    #[case("5", Some((5, vec![])))]
    #[case("5 lanes=", Some((5, vec![])))]
    #[case("5 lanes=1,x gates", Some((5, vec![Notice::Gates])))]
    #[case("5 tomorrow=1 look", Some((5, vec![Notice::Look])))]
    fn what_is_not_understood_is_passed_over(
        #[case] payload: &str,
        #[case] expected: Option<(i64, Vec<Notice>)>,
    ) {
        assert_eq!(parse(payload), expected);
    }
}
