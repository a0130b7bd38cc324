//! Events and deliveries as they are told.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Result, Stories, destination};
use crate::domain::clock::Timestamp;
use crate::domain::tenant::{Destination, LaneId};
use crate::ledger::{
    AttemptRow, DeliveryRow, DeliveryState, Done, EventRow, EventState, RepeatRow, Standing, SteeringRow,
};
use crate::send::direct::Endpoints as _;

use super::waits::WaitsFor;

/// An event in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventSummary {
    /// Whose it is.
    pub tenant: String,
    /// Its source; empty where it has none.
    pub source: String,
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it was recorded.
    pub received_at: Timestamp,
    /// How it stands, over all its deliveries.
    pub state: EventState,
    /// How many receivers it had when it was recorded.
    pub destinations: i64,
}

/// A page of events.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventPage {
    /// Newest first. A page may be short, or empty, although there is another one.
    pub events: Vec<EventSummary>,
    /// Where the next page begins; null on the last.
    pub next_cursor: Option<String>,
}

/// One event's whole story.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Story {
    /// The event.
    #[serde(flatten)]
    pub event: EventSummary,
    /// How many bytes it has, as it came.
    pub size_bytes: i64,
    /// How often it came again.
    pub repeats: Repeats,
    /// Further sources of the tenant that have an event of this id.
    pub other_sources: Vec<String>,
    /// Why it went nowhere, as far as can be known now; null where it went somewhere.
    pub unrouted: Option<String>,
    /// Its deliveries. Of very many, two hundred: those that have not arrived before those that have.
    pub deliveries: Vec<DeliveryStory>,
    /// How many further deliveries it has that are not told here.
    pub left_out: usize,
    /// Whether it reached them, why not, and what can be done, in words.
    pub conclusion: String,
}

/// What differed where another event came under the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The type, whatever its data.
    Type,
    /// The data; the type was the same.
    Data,
}

/// How often an event came again.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Repeats {
    /// Times that it came as it is, and was passed over.
    pub duplicates: i64,
    /// The last time.
    pub last_duplicate_at: Option<Timestamp>,
    /// Times that another event came under its tenant, source and id, and was refused.
    pub conflicts: i64,
    /// The last time.
    pub last_conflict_at: Option<Timestamp>,
    /// What differed that last time.
    pub conflict_differs_in: Option<Difference>,
    /// The type of the event that was refused last.
    pub conflict_type: Option<String>,
}

/// What kind of receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DestinationKind {
    /// An application at Svix.
    Svix,
    /// A partner's endpoint.
    Endpoint,
}

/// Where a delivery goes.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DestinationView {
    /// What kind of receiver it is.
    pub kind: DestinationKind,
    /// The application at Svix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svix_app: Option<String>,
    /// The endpoint's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whose endpoint it is; absent where it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// The host of the endpoint's URL; absent where it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A delivery in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeliverySummary {
    /// Its id.
    pub id: String,
    /// Whose event it is.
    pub tenant: String,
    /// The event's source; empty where it has none.
    pub source: String,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When the event was recorded.
    pub received_at: Timestamp,
    /// Where it goes.
    pub destination: DestinationView,
    /// How it stands.
    pub state: DeliveryState,
    /// Failures that counted.
    pub failures: i64,
    /// Where it waits: when it falls, or fell, due.
    pub due_at: Option<Timestamp>,
    /// Where it is done: when that was.
    pub done_at: Option<Timestamp>,
    /// Where it is done: the last status answered, where there was an answer.
    pub status: Option<i64>,
    /// Where it is dead or canceled: why.
    pub reason: Option<String>,
    /// It is stored at Svix after an attempt without an answer: whether it was sent on from there is not known.
    pub dispatch_unconfirmed: bool,
}

/// A page of deliveries.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeliveryPage {
    /// Newest first; where those that wait are asked for, lane by lane, and in each what falls due first. A page may be
    /// short, or empty, although there is another one.
    pub deliveries: Vec<DeliverySummary>,
    /// Where the next page begins; null on the last.
    pub next_cursor: Option<String>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AttemptRecord {
    /// Its number, from 1; of many attempts only the last hundred are told.
    pub n: usize,
    /// When it ended.
    pub at: Timestamp,
    /// How long it took.
    pub latency_ms: i64,
    /// The status answered; null where there was no answer.
    pub status: Option<i64>,
    /// `delivered`, or what went wrong in a word: `http_500`, `timeout` …
    pub code: String,
    /// The first KiB of the receiver's answer, or what went wrong. Of a delivery to Svix that arrived, the message's id
    /// there.
    pub detail: String,
    /// When it was to be tried again; null where it was not.
    pub retry_at: Option<Timestamp>,
}

/// What an operator did to a delivery.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SteeringRecord {
    /// When.
    pub at: Timestamp,
    /// `retry`, `cancel` or `replay`.
    pub action: String,
    /// Who wanted it: the name of an API key; null where that is not known.
    pub by: Option<String>,
    /// The state that a retry or a replay took back; null where it waited.
    pub was: Option<String>,
}

/// One delivery's story.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeliveryStory {
    /// The delivery.
    #[serde(flatten)]
    pub delivery: DeliverySummary,
    /// Its attempts, oldest first, the one that delivered included.
    pub attempts: Vec<AttemptRecord>,
    /// What operators did to it, oldest first.
    pub steering: Vec<SteeringRecord>,
    /// What it waits for; null where it is done.
    pub waits_for: Option<WaitsFor>,
}

impl EventSummary {
    pub(super) fn new(row: &EventRow) -> Self {
        Self {
            tenant: row.identity.tenant.to_string(),
            source: row.identity.source.to_string(),
            id: row.identity.id.to_string(),
            event_type: row.event_type.clone(),
            received_at: row.received_at,
            state: row.state,
            destinations: row.destinations,
        }
    }
}

impl Repeats {
    pub(super) fn new(row: &RepeatRow, event_type: &str) -> Self {
        let differs =
            |posted: &String| if posted == event_type { Difference::Data } else { Difference::Type };
        Self {
            duplicates: row.duplicates,
            last_duplicate_at: row.last_duplicate_at,
            conflicts: row.conflicts,
            last_conflict_at: row.last_conflict_at,
            conflict_differs_in: row.conflict_type.as_ref().map(differs),
            conflict_type: row.conflict_type.clone(),
        }
    }
}

impl Stories {
    pub(super) fn summary(&self, row: &DeliveryRow) -> DeliverySummary {
        let mut summary = DeliverySummary {
            id: row.id.to_string(),
            tenant: row.event.tenant.to_string(),
            source: row.event.source.to_string(),
            event_id: row.event.id.to_string(),
            event_type: row.event_type.clone(),
            received_at: row.received_at,
            destination: self.destination_view(&destination(row)),
            state: DeliveryState::Pending,
            failures: 0,
            due_at: None,
            done_at: None,
            status: None,
            reason: None,
            dispatch_unconfirmed: false,
        };
        match &row.standing {
            Standing::Waiting(waiting) => {
                summary.failures = i64::from(waiting.failures);
                summary.due_at = Some(waiting.due_at);
            }
            Standing::Done(done) => {
                summary.state = DeliveryState::parse(&done.state).unwrap_or(DeliveryState::Canceled);
                summary.failures = done.failures;
                summary.done_at = Some(done.at);
                summary.status = done.status;
                summary.reason.clone_from(&done.reason);
                summary.dispatch_unconfirmed = done.dispatch_unconfirmed;
            }
        }
        summary
    }

    fn destination_view(&self, destination: &Destination) -> DestinationView {
        match destination {
            Destination::Svix { app } => DestinationView {
                kind: DestinationKind::Svix,
                svix_app: Some(app.clone()),
                endpoint: None,
                partner: None,
                host: None,
            },
            Destination::Endpoint { id } => {
                let live = self.directory.endpoint(id);
                let snapshot = self.directory.snapshot();
                let partner = snapshot.policies().endpoints.get(id).map(|policy| policy.partner.to_string());
                DestinationView {
                    kind: DestinationKind::Endpoint,
                    svix_app: None,
                    endpoint: Some(id.to_string()),
                    partner,
                    host: live.and_then(|live| live.url.authority().map(|host| host.host().to_owned())),
                }
            }
        }
    }

    pub(super) async fn delivery_story(
        &self,
        row: &DeliveryRow,
        steering: &[(LaneId, SteeringRow)],
    ) -> Result<DeliveryStory> {
        let failed = self.ledger.attempts_of(row.id).await?;
        // Its claim was settled since it was read: how it stands now.
        let reread = match &row.standing {
            Standing::Waiting(waiting)
                if waiting.is_settled_by(&failed, self.ledger.database().is_shared()) =>
            {
                self.ledger.delivery(row.id).await?.map(|(_, row)| row)
            }
            _ => None,
        };
        let row = reread.as_ref().unwrap_or(row);
        let own = || steering.iter().filter(|(lane, _)| *lane == row.id.lane).map(|(_, row)| row);
        let waits_for = match &row.standing {
            Standing::Waiting(waiting) => Some(self.waits_for(row, waiting, failed.last()).await?),
            Standing::Done(_) => None,
        };
        // What delivered once, and what delivered last.
        let taken_back = own().filter_map(|row| row.was.as_ref());
        let last = match &row.standing {
            Standing::Done(done) => Some(done),
            Standing::Waiting(_) => None,
        };
        let arrived =
            taken_back.chain(last).filter(|done| done.state == "delivered").map(AttemptRecord::arrived);
        let mut attempts: Vec<_> = failed.iter().map(AttemptRecord::failed).chain(arrived).collect();
        attempts.sort_by_key(|attempt| attempt.at);
        for (attempt, n) in attempts.iter_mut().zip(1..) {
            attempt.n = n;
        }
        let steering = own().map(|row| SteeringRecord {
            at: row.at,
            action: row.action.clone(),
            by: row.by.clone(),
            was: row.was.as_ref().map(|done| done.state.clone()),
        });
        Ok(DeliveryStory { delivery: self.summary(row), attempts, steering: steering.collect(), waits_for })
    }
}

impl AttemptRecord {
    fn failed(row: &AttemptRow) -> Self {
        Self {
            n: 0,
            at: row.at,
            latency_ms: row.latency_ms,
            status: row.status,
            code: row.code.clone(),
            detail: row.detail.clone(),
            retry_at: row.retry_at,
        }
    }

    fn arrived(done: &Done) -> Self {
        Self {
            n: 0,
            at: done.at,
            latency_ms: done.latency_ms,
            status: done.status,
            code: "delivered".to_owned(),
            detail: done.remote_id.clone().unwrap_or_default(),
            retry_at: None,
        }
    }
}
