//! Whether Svix has what the ledger says it was given.
//!
//! Svix's messages are listed application by application, which costs a request for hundreds of them. What a list does
//! not have is asked for by name before it counts as missing: so neither two clocks that differ nor a list that ends too
//! early makes a gap of what is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::DeliveryId;
use crate::domain::event::{EventSeq, Identity};
use crate::domain::replay::EndState;
use crate::domain::sequence;
use crate::domain::tenant::{Destination, Lane, LaneId};
use crate::ledger::{Ledger, LedgerError, Selection, SvixDelivery};
use crate::send::svix::SvixSender;
use crate::send::svix::audit::ListError;

/// Rows of the ledger that are compared at once.
const WINDOW_ROWS: u32 = 5_000;
/// How long a part of an audit may take, about.
const PATIENCE: Duration = Duration::from_secs(15);
/// With no more deliveries than this, they are asked for one by one.
const FEW: usize = 3;
/// Pages of a list, before what is left is asked for one by one.
const PAGES_MAX: usize = 40;
/// How far Svix's clock may be from ours before a list does not help.
const CLOCK_SLACK: Duration = Duration::from_secs(600);
/// Where Svix asks to slow down and does not say for how long.
const PAUSE: Duration = Duration::from_secs(1);

/// What is compared.
#[derive(Debug, Clone, Default)]
pub struct AuditRange {
    /// Events that came then or later.
    pub since: Timestamp,
    /// Events that came before; `None`, or a time that is not over yet: all that came.
    pub until: Option<Timestamp>,
    /// Events of this tenant alone.
    pub tenant: Option<String>,
    /// Where the part before ended.
    pub after: Option<i64>,
}

/// A part of an audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditPart {
    /// Deliveries to Svix that were compared.
    pub checked: u64,
    /// Those that Svix does not have.
    pub missing: Vec<AuditedDelivery>,
    /// Those that Svix has stored, and may never have sent: an attempt before the last one ended in an error or in
    /// silence.
    pub unconfirmed: Vec<AuditedDelivery>,
    /// The `since` of the request, as a time: the next part wants it so.
    pub since: Timestamp,
    /// Where the next part begins; null where this was the last.
    pub next_cursor: Option<String>,
    /// How long Svix wants to be left alone before that, in seconds.
    pub retry_after_s: Option<u64>,
}

/// A delivery to Svix that needs a look.
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
    /// The ledger can't say.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Compares the ledger with Svix.
pub struct Audit<'a> {
    /// What was delivered.
    pub ledger: &'a Ledger,
    /// What Svix has.
    pub svix: &'a SvixSender,
    /// How long it takes.
    pub clock: Arc<dyn Clock>,
}

/// Svix wants to be left alone for so long; what was found before that stands.
struct Throttled(Duration);

impl Audit<'_> {
    /// Compares a part of a range: as much as a few seconds allow.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn part(&self, range: &AuditRange) -> Result<AuditPart, AuditError> {
        let began = self.clock.moment();
        let (until_ms, last_event) = self.ledger.window_end(range.until).await?;
        let selection = Selection {
            tenant: range.tenant.clone(),
            event_type: None,
            destinations: None,
            states: vec![EndState::Delivered],
            since_ms: range.since.as_millis(),
            until_ms,
            first_event: sequence::floor(range.since).0,
            last_event,
            listed: None,
        };
        let mut part = AuditPart { since: range.since, ..AuditPart::default() };
        let mut after = range.after.unwrap_or(selection.first_event.saturating_sub(1));
        loop {
            let window =
                self.ledger.database().svix_window(&selection, (after, i64::MAX), WINDOW_ROWS).await?;
            let before = (part.missing.len(), part.unconfirmed.len());
            match self.compare(&window.deliveries, &mut part, began).await? {
                Ok(()) => {}
                Err(Throttled(wait)) => {
                    // The window is compared again, from its beginning.
                    part.missing.truncate(before.0);
                    part.unconfirmed.truncate(before.1);
                    part.next_cursor = Some(after.to_string());
                    part.retry_after_s =
                        Some(wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX));
                    return Ok(part);
                }
            }
            part.checked += window.deliveries.len() as u64;
            after = window.reached.0;
            if window.exhausted {
                return Ok(part);
            }
            if began.until(self.clock.moment()) >= PATIENCE {
                part.next_cursor = Some(after.to_string());
                return Ok(part);
            }
        }
    }

    async fn compare(
        &self,
        deliveries: &[SvixDelivery],
        part: &mut AuditPart,
        began: Moment,
    ) -> Result<Result<(), Throttled>, AuditError> {
        let mut by_lane: HashMap<i64, Vec<&SvixDelivery>> = HashMap::new();
        for delivery in deliveries {
            by_lane.entry(delivery.lane).or_default().push(delivery);
        }
        let mut lanes: Vec<_> = by_lane.into_iter().collect();
        lanes.sort_unstable_by_key(|(lane, _)| *lane);
        for (lane, deliveries) in lanes {
            let Some(lane) = self.ledger.lane_by_id(LaneId(lane)).await? else { continue };
            let Destination::Svix { app } = &*lane.destination else { continue };
            let listed = match self.listed(app, &deliveries, began).await? {
                Ok(listed) => listed,
                Err(throttled) => return Ok(Err(throttled)),
            };
            for delivery in deliveries {
                let (is_there, unconfirmed) = match delivery.is_in(&listed) {
                    true => (true, delivery.dispatch_unconfirmed),
                    false => match self.ask(app, &lane, delivery, began).await? {
                        Ok(is_there) => (is_there, delivery.dispatch_unconfirmed),
                        Err(throttled) => return Ok(Err(throttled)),
                    },
                };
                if !is_there {
                    part.missing.push(audited(delivery, &lane, app));
                } else if unconfirmed {
                    part.unconfirmed.push(audited(delivery, &lane, app));
                }
            }
        }
        Ok(Ok(()))
    }

    /// What Svix lists around the time of these deliveries, by its own ids; nothing where that is not worth a list.
    async fn listed(
        &self,
        app: &str,
        deliveries: &[&SvixDelivery],
        began: Moment,
    ) -> Result<Result<HashSet<String>, Throttled>, AuditError> {
        let mut listed = HashSet::new();
        if deliveries.len() <= FEW {
            return Ok(Ok(listed));
        }
        let (first, last) = deliveries.iter().fold((i64::MAX, i64::MIN), |(first, last), delivery| {
            (first.min(delivery.received_at), last.max(delivery.at))
        });
        let slack = i64::try_from(CLOCK_SLACK.as_millis()).unwrap_or(i64::MAX);
        let after = Timestamp::from_millis(first.saturating_sub(slack));
        let before = Timestamp::from_millis(last.saturating_add(slack));
        let mut iterator: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let page =
                self.patiently(began, || self.svix.list_messages(app, after, before, iterator.as_deref()));
            let page = match page.await? {
                Ok(page) => page,
                Err(throttled) => return Ok(Err(throttled)),
            };
            listed.extend(page.ids);
            match page.next {
                Some(next) => iterator = Some(next),
                None => break,
            }
        }
        Ok(Ok(listed))
    }

    /// Whether Svix has the message of a delivery.
    async fn ask(
        &self,
        app: &str,
        lane: &Lane,
        delivery: &SvixDelivery,
        began: Moment,
    ) -> Result<Result<bool, Throttled>, AuditError> {
        let identity = Identity {
            tenant: lane.tenant.clone(),
            source: delivery.source.as_str().into(),
            id: delivery.id.as_str().into(),
        };
        let names = match &delivery.remote_id {
            Some(remote_id) => vec![remote_id.clone()],
            None => self.svix.names_of(&lane.destination, &identity),
        };
        for name in names {
            match self.patiently(began, || self.svix.has_message(app, &name)).await? {
                Ok(true) => return Ok(Ok(true)),
                Ok(false) => {}
                Err(throttled) => return Ok(Err(throttled)),
            }
        }
        Ok(Ok(false))
    }

    /// Asks Svix, waits where it asks to, and gives up where that would take too long for this part.
    async fn patiently<T, F>(
        &self,
        began: Moment,
        ask: impl Fn() -> F,
    ) -> Result<Result<T, Throttled>, AuditError>
    where
        F: Future<Output = Result<T, ListError>>,
    {
        loop {
            match ask().await {
                Ok(answer) => return Ok(Ok(answer)),
                Err(ListError::Throttled(wait)) => {
                    let wait = wait.unwrap_or(PAUSE);
                    if began.until(self.clock.moment()) + wait > PATIENCE {
                        return Ok(Err(Throttled(wait)));
                    }
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
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
