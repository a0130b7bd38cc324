//! Compares what the ledger says Svix was given with what Svix has.
//!
//! The ledger is walked in the order of its events, a window of rows at a time. For each window, Svix's messages are listed
//! application by application over the times at which the window's deliveries were made; every page is fetched once, because
//! what a list has shown is remembered for the next window. So an audit costs about one request for 250 messages.
//!
//! A delivery that the lists lack is looked up by name before it counts as missing. Neither two clocks that differ nor a list
//! that ends too early reports a gap where there is none.

mod list;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use self::list::{Application, Found, List, Stop, Visit};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::DeliveryId;
use crate::domain::event::EventSeq;
use crate::domain::replay::EndState;
use crate::domain::sequence;
use crate::domain::tenant::{Destination, Lane, LaneId};
use crate::ledger::{Ledger, LedgerError, Selection, SvixDelivery, SvixWindow};
use crate::send::svix::SvixSender;
use crate::send::svix::audit::ListError;

/// Rows of the ledger in one window.
const WINDOW_ROWS: u32 = 20_000;
/// How long one part of an audit may take, about.
const PART_LIMIT: Duration = Duration::from_secs(15);
/// After an error of Svix's, the next part begins no sooner.
const AFTER_ERROR_S: u64 = 2;
/// Interrupted audits that are kept, and for how long.
const KEPT_MAX: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The events whose deliveries are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditRange {
    /// Events that came then or later.
    pub since: Timestamp,
    /// Events that came before; `None`, or a time that is not over yet: all that came.
    pub until: Option<Timestamp>,
    /// Events of this tenant alone.
    pub tenant: Option<String>,
    /// The cursor that the part before returned.
    pub after: Option<i64>,
}

/// A part of an audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditPart {
    /// Deliveries to Svix that were compared.
    pub checked: u64,
    /// Deliveries that Svix does not have.
    pub missing: Vec<AuditedDelivery>,
    /// Deliveries that Svix has stored and may never have sent: an attempt before the last one ended in an error or without an
    /// answer.
    pub unconfirmed: Vec<AuditedDelivery>,
    /// The `since` of the request, as a time: the next part wants it so.
    pub since: Timestamp,
    /// Where the next part begins; null where this was the last.
    pub next_cursor: Option<String>,
    /// How long to wait before the next part, in seconds, where Svix asked for it.
    pub retry_after_s: Option<u64>,
    /// Requests to Svix that this part made.
    pub requests: u64,
}

/// A delivery to Svix that an operator should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditedDelivery {
    /// `dlv_…`: to be replayed by.
    pub delivery: String,
    /// The event's tenant.
    pub tenant: String,
    /// The event's source.
    pub source: String,
    /// The event's id.
    pub id: String,
    /// The Svix application.
    pub app: String,
    /// When Svix said yes.
    pub delivered_at: Timestamp,
}

/// Why an audit can't go on.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Svix can't be asked.
    #[error(transparent)]
    Svix(#[from] ListError),
    /// The ledger can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Audits that were interrupted in the middle of a window. Only a cache: an audit that another node continues, or this one after
/// a restart, compares that window again from its beginning.
#[derive(Default)]
pub struct Audits {
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    range: AuditRange,
    progress: Progress,
    at: Moment,
}

impl Audits {
    fn take(&self, range: &AuditRange, now: Moment) -> Option<Progress> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.at.until(now) < KEPT_FOR);
        let index = kept.iter().position(|kept| kept.range == *range)?;
        Some(kept.swap_remove(index).progress)
    }

    fn keep(&self, range: AuditRange, progress: Progress, at: Moment) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push(Kept { range, progress, at });
    }
}

/// How far an audit has come.
struct Progress {
    /// Everything up to this event has been compared.
    after: i64,
    window: Option<Window>,
    lists: HashMap<String, List>,
    /// Svix asked for no request before this.
    not_before: Moment,
    /// Throttles since the last answer.
    throttles: u32,
}

/// A window of the ledger.
struct Window {
    rows: u64,
    /// Those that are still to be compared.
    applications: Vec<Application>,
    found: Found,
    /// When its last event came: those of later windows came later.
    last_arrival: i64,
    reached: i64,
    exhausted: bool,
}

/// Compares the ledger with Svix.
pub struct Audit<'a> {
    /// What was delivered.
    pub ledger: &'a Ledger,
    /// What Svix has.
    pub svix: &'a SvixSender,
    /// Audits that were interrupted.
    pub audits: &'a Audits,
    /// Bounds the time that a part takes.
    pub clock: Arc<dyn Clock>,
}

impl Audit<'_> {
    /// Compares a part of a range: as much as a few seconds allow.
    ///
    /// # Errors
    /// [`AuditError`]. The same part can be asked for again.
    pub async fn part(&self, range: &AuditRange) -> Result<AuditPart, AuditError> {
        let began = self.clock.moment();
        let selection = selection(range, self.ledger.window_end(range.until).await?);
        let first = range.after.unwrap_or_else(|| selection.first_event.saturating_sub(1));
        let mut progress = self.audits.take(range, began).unwrap_or_else(|| Progress {
            after: first,
            window: None,
            lists: HashMap::new(),
            not_before: began,
            throttles: 0,
        });
        let mut part = AuditPart { since: range.since, ..AuditPart::default() };
        let ended = self.advance(&selection, &mut progress, &mut part, began + PART_LIMIT).await;
        let Err(stop) = ended else { return Ok(part) };
        let (wait, error) = match stop {
            Stop::Paused(wait) => (wait.map(seconds), None),
            // What was found before stands.
            Stop::Failed(_) if progress.after != first => (Some(AFTER_ERROR_S), None),
            Stop::Failed(error) => (None, Some(error)),
        };
        part.next_cursor = Some(progress.after.to_string());
        part.retry_after_s = wait;
        // The cursor that the caller will ask with.
        let after = if error.is_some() { range.after } else { Some(progress.after) };
        self.audits.keep(AuditRange { after, ..range.clone() }, progress, self.clock.moment());
        error.map_or(Ok(part), Err)
    }

    /// Compares windows until the range ends, the time is over, or something fails.
    async fn advance(
        &self,
        selection: &Selection,
        progress: &mut Progress,
        part: &mut AuditPart,
        deadline: Moment,
    ) -> Result<(), Stop> {
        loop {
            let window = match progress.window.take() {
                Some(window) => window,
                None => {
                    let after = (progress.after, i64::MAX);
                    let read = self.ledger.database().svix_window(selection, after, WINDOW_ROWS).await?;
                    self.window(read).await?
                }
            };
            let window = progress.window.insert(window);
            let mut visit = Visit {
                svix: self.svix,
                clock: &*self.clock,
                deadline,
                not_before: &mut progress.not_before,
                throttles: &mut progress.throttles,
                requests: &mut part.requests,
            };
            while let Some(application) = window.applications.last_mut() {
                let list = progress.lists.entry(application.name.clone()).or_default();
                visit.compare(application, list, &mut window.found).await?;
                window.applications.pop();
            }
            let Some(window) = progress.window.take() else { return Ok(()) };
            part.checked += window.rows;
            part.missing.extend(window.found.missing);
            part.unconfirmed.extend(window.found.unconfirmed);
            progress.after = window.reached;
            list::forget_old(&mut progress.lists, window.last_arrival);
            if window.exhausted {
                return Ok(());
            }
            if self.clock.moment() >= deadline {
                return Err(Stop::Paused(None));
            }
        }
    }

    /// A window's deliveries by application. A lane of a kind that this version does not know is left out.
    async fn window(&self, read: SvixWindow) -> Result<Window, LedgerError> {
        let rows = read.deliveries.len() as u64;
        let last = read.deliveries.iter().max_by_key(|delivery| delivery.event);
        let last_arrival = last.map_or(i64::MIN, |delivery| delivery.received_at);
        let mut by_name: HashMap<String, Application> = HashMap::new();
        for delivery in read.deliveries {
            let Some(lane) = self.ledger.lane_by_id(LaneId(delivery.lane)).await? else { continue };
            let Destination::Svix { app } = &*lane.destination else { continue };
            let name = app.to_string();
            let application = by_name.entry(name.clone()).or_insert_with(|| Application::new(name));
            application.left.push((lane, delivery));
        }
        let mut applications: Vec<_> = by_name.into_values().collect();
        applications.sort_unstable_by(|one, other| other.name.cmp(&one.name));
        let (reached, exhausted) = (read.reached.0, read.exhausted);
        Ok(Window { rows, applications, found: Found::default(), last_arrival, reached, exhausted })
    }
}

fn selection(range: &AuditRange, (until_ms, last_event): (i64, i64)) -> Selection {
    Selection {
        tenant: range.tenant.clone(),
        event_type: None,
        destinations: None,
        states: vec![EndState::Delivered],
        since_ms: range.since.as_millis(),
        until_ms,
        first_event: sequence::floor(range.since).0,
        last_event,
        listed: None,
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)
}

fn audited(delivery: &SvixDelivery, lane: &Lane, app: &str) -> AuditedDelivery {
    let id = DeliveryId { event: EventSeq(delivery.event), lane: lane.id };
    AuditedDelivery {
        delivery: id.to_string(),
        tenant: lane.tenant.to_string(),
        source: delivery.source.clone(),
        id: delivery.id.clone(),
        app: app.to_owned(),
        delivered_at: Timestamp::from_millis(delivery.at),
    }
}
