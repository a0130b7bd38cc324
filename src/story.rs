//! What became of events: lists, one event's whole story, why a delivery waits, and what an operator does about it.
//!
//! The API, the command line and the console show what is said here and work nothing out themselves. Reading decides
//! nothing and changes nothing.

mod views;
mod waits;
mod words;

use std::sync::Arc;

pub use self::views::{
    AttemptRecord, DeliveryPage, DeliveryStory, DeliverySummary, DestinationKind, DestinationView,
    Difference, EventPage, EventSummary, Repeats, SteeringRecord, Story,
};
pub use self::waits::{WaitReason, WaitsFor};
use crate::directory::Directory;
use crate::dispatcher::Dispatcher;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::DeliveryId;
use crate::domain::event::EventSeq;
use crate::domain::sequence;
use crate::domain::tenant::{DefaultRoute, Destination};
use crate::ledger::{
    DeliveryCursor, DeliveryFilter, DeliveryRow, EventFilter, EventRow, EventState, Ledger, LedgerError,
    Standing, Steered,
};
use crate::send::direct::Endpoints as _;

/// Most deliveries of one event that are told with their attempts.
const DELIVERIES_TOLD: usize = 200;

/// Tells the stories. Cheap to clone.
#[derive(Clone)]
pub struct Stories {
    /// The ledger.
    pub ledger: Ledger,
    /// Who is who.
    pub directory: Directory,
    /// What this node sends; `None` where it sends nothing.
    pub dispatcher: Option<Dispatcher>,
    /// Where tenants go that have no route of their own.
    pub default_route: DefaultRoute,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What is known of an event.
#[derive(Debug, Clone)]
pub enum Found {
    /// Its story.
    Story(Box<Story>),
    /// It was recorded then, and what it carried is no longer kept: it only counts as known.
    Pruned(Timestamp),
    /// Nothing, but the tenant has more sources than were asked: its own has to be named.
    SourceNeeded,
    /// Nothing.
    Nothing,
}

/// Who wants something done.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The name of an API key: it goes on record.
    pub name: String,
    /// The only tenant whose deliveries they may touch; all where `None`.
    pub tenant: Option<String>,
}

/// What became of an operator's wish.
#[derive(Debug, Clone)]
pub enum Wish {
    /// It is so; how the delivery stands now.
    Granted(Box<DeliveryStory>),
    /// Why not, in a short stable code and in words.
    Refused(&'static str, String),
    /// There is no such delivery.
    Nothing,
}

type Result<T> = std::result::Result<T, LedgerError>;

impl Stories {
    /// Events by filter, newest first; `cursor` is the one of the page before.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn events(&self, filter: &EventFilter, cursor: Option<i64>, limit: u32) -> Result<EventPage> {
        let part = self.ledger.events(filter, cursor.map(EventSeq), limit).await?;
        let events = part.rows.iter().map(EventSummary::new).collect();
        Ok(EventPage { events, next_cursor: part.next.map(|seq| seq.0.to_string()) })
    }

    /// Deliveries by filter: newest first; those that wait lane by lane, and in each what falls due first.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<DeliveryCursor>,
        limit: u32,
    ) -> Result<DeliveryPage> {
        let part = self.ledger.deliveries(filter, cursor, limit).await?;
        let deliveries = part.rows.iter().map(|row| self.summary(row)).collect();
        Ok(DeliveryPage { deliveries, next_cursor: part.next.map(DeliveryCursor::to_text) })
    }

    /// The destinations of a partner's endpoints, for a [`DeliveryFilter`]; of one alone where it is named, which need
    /// not exist any more.
    pub fn destinations(&self, partner: Option<&str>, endpoint: Option<&str>) -> Option<Vec<String>> {
        let snapshot = self.directory.snapshot();
        let owner = |id: &str| snapshot.policies().endpoints.get(id).map(|policy| policy.partner.clone());
        match (partner, endpoint) {
            (None, None) => None,
            (None, Some(endpoint)) => Some(vec![endpoint.to_owned()]),
            (Some(partner), Some(endpoint)) => {
                let same = owner(endpoint).is_some_and(|owner| *owner == *partner);
                Some(if same { vec![endpoint.to_owned()] } else { Vec::new() })
            }
            (Some(partner), None) => {
                let endpoints = snapshot.policies().endpoints.iter();
                let own = endpoints.filter(|(_, policy)| *policy.partner == *partner);
                Some(own.map(|(id, _)| id.to_string()).collect())
            }
        }
    }

    /// One event's whole story. Where its id came from several sources and none is named, the newest one's, which names
    /// the others.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn story(&self, tenant: &str, source: Option<&str>, id: &str) -> Result<Found> {
        let (mut found, all) = self.ledger.find_event(tenant, source, id).await?;
        found.sort_by_key(|(_, seq)| *seq);
        let Some((_, seq)) = found.pop() else {
            return Ok(if all { Found::Nothing } else { Found::SourceNeeded });
        };
        let Some(detail) = self.ledger.event_detail(seq).await? else {
            return Ok(Found::Pruned(sequence::given_at(seq)));
        };
        let mut rows = self.ledger.deliveries_of(&detail.event).await?;
        let delivered = rows.iter().filter(|row| row.standing.is_delivered()).count();
        if rows.len() > DELIVERIES_TOLD {
            rows.sort_by_key(|row| row.standing.is_delivered());
        }
        let mut deliveries = Vec::with_capacity(rows.len());
        let steering = self.ledger.steering_of(seq).await?;
        for row in rows.iter().take(DELIVERIES_TOLD) {
            deliveries.push(self.delivery_story(row, &steering).await?);
        }
        let unrouted = (detail.event.state == EventState::Unrouted).then(|| self.why_unrouted(&detail.event));
        let mut story = Story {
            event: EventSummary::new(&detail.event),
            size_bytes: detail.body_bytes,
            repeats: Repeats::new(&detail.repeats, &detail.event.event_type),
            other_sources: found.into_iter().map(|(source, _)| source).collect(),
            unrouted,
            left_out: rows.len().saturating_sub(deliveries.len()),
            deliveries,
            conclusion: String::new(),
        };
        story.conclusion = words::conclusion(&story, delivered);
        Ok(Found::Story(Box::new(story)))
    }

    /// The bytes of an event as they came, of its newest source where none is named.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn payload(&self, tenant: &str, source: Option<&str>, id: &str) -> Result<Option<Vec<u8>>> {
        let (found, _) = self.ledger.find_event(tenant, source, id).await?;
        match found.into_iter().map(|(_, seq)| seq).max() {
            Some(seq) => self.ledger.database().body_of(seq).await,
            None => Ok(None),
        }
    }

    /// One delivery with its attempts and what it waits for, and whose it is.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryStory>> {
        let Some((event, row)) = self.ledger.delivery(id).await? else { return Ok(None) };
        let steering = self.ledger.steering_of(event.seq).await?;
        self.delivery_story(&row, &steering).await.map(Some)
    }

    /// Lets a delivery go out again now, under the same idempotency key, whatever became of it.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: it may still happen.
    pub async fn retry(&self, id: DeliveryId, operator: Operator) -> Result<Wish> {
        let stories = self.clone();
        finish(async move { stories.retry_now(id, &operator).await }).await
    }

    /// Takes a delivery that waits out of the queue, for good.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: it may still happen.
    pub async fn cancel(&self, id: DeliveryId, operator: Operator) -> Result<Wish> {
        let stories = self.clone();
        finish(async move { stories.cancel_now(id, &operator).await }).await
    }

    async fn retry_now(&self, id: DeliveryId, operator: &Operator) -> Result<Wish> {
        let Some(row) = self.own(id, operator.tenant.as_deref()).await? else { return Ok(Wish::Nothing) };
        if let (Destination::Endpoint { id }, Standing::Done(_)) = (&destination(&row), &row.standing)
            && let Some(words) = self.unreachable(id)
        {
            return Ok(Wish::Refused("endpoint_unavailable", words));
        }
        match self.ledger.retry(&row, &operator.name).await? {
            Steered::Done => self.granted(id).await,
            // That is what was asked for.
            Steered::InFlight(_) => self.granted(id).await,
            Steered::Changed => Ok(changed()),
        }
    }

    async fn cancel_now(&self, id: DeliveryId, operator: &Operator) -> Result<Wish> {
        let Some(row) = self.own(id, operator.tenant.as_deref()).await? else { return Ok(Wish::Nothing) };
        if let Standing::Done(done) = &row.standing {
            let words = format!("this delivery is {} already", done.state);
            return Ok(Wish::Refused("delivery_done", words));
        }
        // What this node has claimed and not begun to send is given up for it.
        let lane = self.ledger.lane_by_id(id.lane).await?;
        let held = match (&self.dispatcher, lane) {
            (Some(dispatcher), Some(lane)) => dispatcher.take_back(&lane, id),
            _ => None,
        };
        match self.ledger.cancel(&row, held.as_ref(), &operator.name).await? {
            Steered::Done => self.granted(id).await,
            Steered::InFlight(left) => {
                let left = left.map_or(String::new(), |left| {
                    format!("; the claim on it ends by itself in {} s", left.as_secs().max(1))
                });
                let words = format!("it is being sent, and can't be held back: see what comes of it{left}");
                Ok(Wish::Refused("in_flight", words))
            }
            Steered::Changed => Ok(changed()),
        }
    }

    /// The delivery, where it belongs to `tenant`: of others it is not even told that they exist.
    async fn own(&self, id: DeliveryId, tenant: Option<&str>) -> Result<Option<DeliveryRow>> {
        let found = self.ledger.delivery(id).await?.map(|(_, row)| row);
        Ok(found.filter(|row| tenant.is_none_or(|tenant| *row.event.tenant == *tenant)))
    }

    async fn granted(&self, id: DeliveryId) -> Result<Wish> {
        let delivery = self.delivery(id).await?;
        Ok(delivery.map_or(Wish::Nothing, |delivery| Wish::Granted(Box::new(delivery))))
    }

    /// Why nothing can go to this endpoint, and what to do about it.
    fn unreachable(&self, id: &str) -> Option<String> {
        match self.directory.endpoint(id) {
            Some(endpoint) => endpoint.disabled.as_ref().map(|reason| {
                let reason = reason.as_str();
                format!(
                    "endpoint {id} is disabled ({reason}): enable it first (posthaste endpoint enable {id})"
                )
            }),
            None if self.directory.is_unreadable(id) => None,
            None => Some(format!("endpoint {id} was deleted")),
        }
    }

    fn why_unrouted(&self, event: &EventRow) -> String {
        self.directory.snapshot().why_unrouted(&event.identity.tenant, &event.event_type, self.default_route)
    }
}

/// Carries a wish through although whoever has it may go away meanwhile: half of one would leave counts and claims wrong.
async fn finish(wish: impl Future<Output = Result<Wish>> + Send + 'static) -> Result<Wish> {
    let done = tokio::spawn(wish).await;
    done.map_err(|error| LedgerError::Unavailable(error.to_string()))?
}

fn changed() -> Wish {
    Wish::Refused("delivery_changed", "it changed while this was asked for: look at it again".to_owned())
}

/// Where a delivery goes; what this version can't read counts as an application.
fn destination(row: &DeliveryRow) -> Destination {
    Destination::parse(&row.destination).unwrap_or_else(|| Destination::Svix { app: row.destination.clone() })
}
