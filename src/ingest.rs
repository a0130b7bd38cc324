//! The doorway of the ledger: parse, authorise, route, record, and a verdict for each event.
//!
//! HTTP and every source go through here, so that an event means the same whichever way it came.

mod limits;
mod messages;
mod routed;
mod spans;

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use self::limits::Counts;
pub use self::limits::{OverLimit, TenantLimits};
pub use self::messages::{Letter, Letters, MessageOrigin};
pub use self::routed::Routed;
use crate::config::UnknownEventTypes;
use crate::directory::{Directory, OPERATIONAL_PREFIX, OPERATIONAL_TENANT};
use crate::domain::clock::Clock;
use crate::domain::event::{Event, Fingerprint, Identity};
use crate::domain::key::derived_event_id;
use crate::domain::parse::{
    self, Batch, Draft, Incoming, Invalid, Item, MessageIdentity, ParseError, ParseSettings, Shape,
    why_not_a_name,
};
use crate::domain::tenant::{DefaultRoute, Destination, Lane};
use crate::ledger::{Accepted, ItemVerdict, Ledger, LedgerError, NewEvent, NewRejected, RequestKey};
use crate::stats::Stats;
use crate::telemetry::{FROM_HTTP, FROM_PUSH, FROM_REJECTED, SourceMetrics, Watch};
use crate::traces::Tracer;

/// What became of one event of a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct ItemResult {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its id: the producer's, or the one made for it. Absent where an invalid event has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<Arc<str>>,
    /// Its tenant. Absent where an invalid event names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tenant: Option<Arc<str>>,
    /// What became of it.
    pub status: Status,
    /// Where it goes.
    #[serde(skip)]
    pub routed: Routed,
    /// Why, where it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// JSON Pointer to what is wrong with it, within the event.
    #[serde(skip)]
    pub pointer: String,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// New, and stored.
    Accepted,
    /// Stored before, with the same type and data.
    Duplicate,
    /// Its identity is taken by an event with another type or data.
    Conflict,
    /// It can never be an event.
    Invalid,
}

/// The verdicts on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// What the body was.
    pub shape: Shape,
    /// Whether the good events are stored. False only for a strict request with a bad one: then nothing is.
    pub stored: bool,
    /// One for each event, in order.
    pub results: Vec<ItemResult>,
}

impl Receipt {
    /// How many events have this status.
    pub fn count(&self, status: Status) -> usize {
        self.results.iter().filter(|result| result.status == status).count()
    }
}

/// Why a request as a whole is refused. Nothing of it is stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The body can't be read.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// An event belongs to a tenant that the caller may not speak for.
    #[error("event {index} belongs to tenant `{tenant}`, and this key is for `{bound}` alone")]
    ForeignTenant {
        /// The event's place in the request.
        index: usize,
        /// Its tenant.
        tenant: String,
        /// The caller's.
        bound: String,
    },
    /// A Pub/Sub push that does not show where it comes from.
    #[error("a Pub/Sub push must show where it comes from: see [ingest.pubsub_push]")]
    UnverifiedPush,
    /// The header names what can be no tenant, whether an event needs it or not. Never for a Pub/Sub push, whose events are
    /// kept with what is wrong with them.
    #[error("the header X-Tenant {0}")]
    BadTenantHeader(&'static str),
    /// The request's `Idempotency-Key` was used with another body.
    #[error("this Idempotency-Key was used with another body within the last day")]
    KeyReused,
    /// A tenant has put in more than it may.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// The ledger can't take it now.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What is known of who sends a Pub/Sub push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pusher {
    /// As much as of other producers.
    #[default]
    Unchecked,
    /// It is the subscription: whatever it sends is a push.
    Verified,
    /// It should have shown something that it has not.
    Unverified,
}

/// How a request wants to be handled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Handling<'a> {
    /// One bad event refuses all. Never for a Pub/Sub push.
    pub strict: bool,
    /// The `Idempotency-Key` header.
    pub request_key: Option<&'a str>,
    /// The one tenant that the caller may speak for.
    pub bound_tenant: Option<&'a str>,
    /// What is known of who sends it, where it is a Pub/Sub push.
    pub pusher: Pusher,
}

/// Takes events in. Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    ledger: Ledger,
    directory: Directory,
    rules: Arc<IngestRules>,
    http: Arc<SourceMetrics>,
    pushes: Arc<SourceMetrics>,
    /// What was rejected before and is taken in again.
    replays: Arc<SourceMetrics>,
    stats: Stats,
    tracer: Tracer,
    clock: Arc<dyn Clock>,
}

/// What is taken in, and how.
#[derive(Debug)]
pub struct IngestRules {
    /// How bodies are read.
    pub parse: ParseSettings,
    /// Where tenants go that have no route of their own.
    pub default_route: DefaultRoute,
    /// What happens to events of a type that nobody has declared.
    pub unknown_types: UnknownEventTypes,
    /// How fast tenants may put events in.
    pub limits: TenantLimits,
}

/// The events of a request that may be recorded, each with its place.
type Drafts = Vec<(usize, Draft)>;

impl Ingest {
    /// The ledger, the directory and the clock that it was made with, for those who act beside it.
    pub fn surroundings(&self) -> (Ledger, Directory, Arc<dyn Clock>) {
        (self.ledger.clone(), self.directory.clone(), self.clock.clone())
    }

    /// A doorway into `ledger`.
    pub fn new(
        ledger: Ledger,
        directory: Directory,
        rules: IngestRules,
        watch: &Watch,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let from = |source| watch.metrics.of_source(source, false);
        let (stats, tracer) = (watch.stats.clone(), watch.tracer.clone());
        let (http, pushes, replays) = (from(FROM_HTTP), from(FROM_PUSH), from(FROM_REJECTED));
        Self { ledger, directory, rules: Arc::new(rules), http, pushes, replays, stats, tracer, clock }
    }

    /// Counts the verdicts on a request's events. Of a request of which nothing is `stored` only what was wrong.
    fn count_verdicts(&self, from: &SourceMetrics, results: &[ItemResult], stored: bool) {
        from.judged(results, stored);
        if stored {
            let accepted = results.iter().filter(|result| result.status == Status::Accepted).count();
            self.stats.accepted(accepted as u64);
        }
    }

    /// Reads a body and records its events; returns after the commit.
    ///
    /// # Errors
    /// [`IngestError`]: nothing is stored.
    pub async fn take(&self, incoming: Incoming<'_>, handling: Handling<'_>) -> Result<Receipt, IngestError> {
        let receipt = self.record(incoming, handling).await?;
        let from = if receipt.shape == Shape::PubSubPush { &self.pushes } else { &self.http };
        self.count_verdicts(from, &receipt.results, receipt.stored);
        Ok(receipt)
    }

    async fn record(&self, incoming: Incoming<'_>, handling: Handling<'_>) -> Result<Receipt, IngestError> {
        let request_key = handling.request_key.map(|key| RequestKey {
            // A key is its sender's: two tenants may use the same.
            scope: handling.bound_tenant.or(incoming.tenant).unwrap_or_default().to_owned(),
            key: key.to_owned(),
            fingerprint: Sha256::digest(&incoming.body).into(),
        });
        let batch = self.read_request(&incoming, handling.pusher)?;
        let pushed = batch.shape == Shape::PubSubPush;
        let strict = handling.strict && !pushed;
        let receipt = |stored, results| Receipt { shape: batch.shape, stored, results };
        let refuses =
            |results: &[ItemResult]| strict && results.iter().any(|result| result.status == Status::Invalid);
        let (mut results, mut drafts, raw) = self.screen(batch.items, handling.bound_tenant, pushed)?;
        if refuses(&results) {
            return Ok(receipt(false, results));
        }
        let mut spans = self.begin_spans(&mut drafts);
        // Before the ledger is asked for anything.
        let taken = self.admit(&drafts)?;
        let recorded = async {
            let events = self.prepare(drafts, &mut results, request_key.as_ref()).await?;
            if refuses(&results) {
                return Ok(None);
            }
            let (indexes, events): (Vec<_>, Vec<_>) = events.into_iter().unzip();
            let commits = spans.commit();
            let accepted = self.ledger.accept(events, strict, request_key).await?;
            drop(commits);
            Ok(Some((indexes, accepted)))
        };
        let recorded = recorded.await.inspect_err(|_: &LedgerError| self.rules.limits.refund(&taken))?;
        let Some((indexes, accepted)) = recorded else { return Ok(receipt(false, results)) };
        let (stored, verdicts) = match accepted {
            Accepted::Stored(verdicts) => (true, verdicts),
            Accepted::Refused(verdicts) => (false, verdicts),
            Accepted::KeyReused => return Err(IngestError::KeyReused),
        };
        note_verdicts(&mut results, indexes, verdicts);
        spans.end(&results);
        if pushed {
            self.keep_rejected(&results, &raw, batch.attributes.as_deref(), batch.identity).await?;
        }
        Ok(receipt(stored, results))
    }

    /// The events of a request. A subscription's is a push, also where it has no envelope or can't be read.
    fn read_request(&self, incoming: &Incoming<'_>, pusher: Pusher) -> Result<Batch, IngestError> {
        let parsed = parse::parse(incoming, &self.rules.parse);
        let is_push = parsed.as_ref().is_ok_and(|batch| batch.shape == Shape::PubSubPush);
        match pusher {
            Pusher::Unverified if is_push => Err(IngestError::UnverifiedPush),
            Pusher::Verified if !is_push => Ok(parse::parse_unwrapped(incoming, &self.rules.parse)),
            _ if is_push => Ok(parsed?),
            _ => match incoming.tenant.and_then(why_not_a_name) {
                Some(why) => Err(IngestError::BadTenantHeader(why)),
                None => Ok(parsed?),
            },
        }
    }

    /// Verdicts so far, in order; what may be recorded; and of a push every item's bytes. Asks nobody.
    fn screen(
        &self,
        items: Vec<Item>,
        bound_tenant: Option<&str>,
        pushed: bool,
    ) -> Result<(Vec<ItemResult>, Drafts, Vec<bytes::Bytes>), IngestError> {
        let (mut results, mut drafts) = (Vec::with_capacity(items.len()), Drafts::with_capacity(items.len()));
        let mut raw = Vec::with_capacity(if pushed { items.len() } else { 0 });
        for (index, item) in items.into_iter().enumerate() {
            if pushed {
                raw.push(item.raw);
            }
            let draft = match item.result {
                Ok(draft) => draft,
                Err(invalid) => {
                    results.push(refused(index, invalid));
                    continue;
                }
            };
            if let Some(bound) = bound_tenant.filter(|bound| **bound != *draft.tenant) {
                let (tenant, bound) = (draft.tenant.to_string(), bound.to_owned());
                let foreign = IngestError::ForeignTenant { index, tenant, bound };
                if !pushed {
                    return Err(foreign);
                }
                // A refusal would only make it come again.
                let (pointer, detail, tenant) =
                    (String::new(), foreign.to_string(), draft.tenant.to_string());
                let id = draft.id.map(|id| id.to_string());
                results.push(refused(index, Invalid { pointer, detail, id, tenant: Some(tenant) }));
                continue;
            }
            if let Some(detail) = self.unwanted_type(&draft.event_type) {
                let tenant = Some(draft.tenant.to_string());
                let id = draft.id.map(|id| id.to_string());
                let invalid = Invalid { pointer: "/type".into(), detail, id, tenant };
                results.push(refused(index, invalid));
                continue;
            }
            let (status, detail, pointer) = (Status::Accepted, None, String::new());
            let (id, tenant, routed) = (draft.id.clone(), Some(draft.tenant.clone()), Routed::Unknown);
            results.push(ItemResult { index, id, tenant, status, routed, detail, pointer });
            drafts.push((index, draft));
        }
        Ok((results, drafts, raw))
    }

    /// Takes tokens for events, where their tenants may put in so many; what was taken.
    fn admit(&self, drafts: &Drafts) -> Result<Counts, OverLimit> {
        let counts = self.count(drafts.iter().map(|(_, draft)| &draft.tenant));
        self.admit_counts(&counts)?;
        Ok(counts)
    }

    /// How many events each tenant has; none where nobody is limited.
    fn count<'a>(&self, tenants: impl Iterator<Item = &'a Arc<str>>) -> Counts {
        let mut counts = Counts::new();
        if self.rules.limits.default_limit().is_none() && !self.directory.snapshot().limits_ingest() {
            return counts;
        }
        for tenant in tenants {
            *counts.entry(tenant.clone()).or_default() += 1;
        }
        counts
    }

    fn admit_counts(&self, counts: &Counts) -> Result<(), OverLimit> {
        if counts.is_empty() {
            return Ok(());
        }
        let snapshot = self.directory.snapshot();
        self.rules.limits.admit(counts, |tenant| snapshot.ingest_limit(tenant), self.clock.moment())
    }

    /// The events to record, each with its place; `results` gets their ids, and who has nowhere to go.
    async fn prepare(
        &self,
        drafts: Drafts,
        results: &mut [ItemResult],
        request_key: Option<&RequestKey>,
    ) -> Result<Vec<(usize, NewEvent)>, LedgerError> {
        let mut lanes = Lanes { ingest: self, known: HashMap::new() };
        let mut events = Vec::with_capacity(drafts.len());
        for (index, draft) in drafts {
            let event = draft.into_event(|| self.make_id(request_key, index));
            let result = &mut results[index];
            result.id.get_or_insert_with(|| event.identity.id.clone());
            match lanes.of(&event.identity.tenant, &event.event_type).await? {
                Ok(lanes) => {
                    result.routed = Routed::of(&lanes);
                    events.push((index, NewEvent { event, lanes }));
                }
                Err(detail) => (result.status, result.detail) = (Status::Invalid, Some(detail)),
            }
        }
        Ok(events)
    }

    /// Why events of this type are not taken.
    fn unwanted_type(&self, event_type: &str) -> Option<String> {
        if event_type.starts_with(OPERATIONAL_PREFIX) {
            return Some(format!("types that begin with `{OPERATIONAL_PREFIX}` are Posthaste's own"));
        }
        let refuse = self.rules.unknown_types == UnknownEventTypes::Refuse;
        let unknown = refuse && !self.directory.snapshot().knows_event_type(event_type);
        unknown
            .then(|| format!("the event type `{event_type}` is not known: PUT /v1/event-types/{event_type}"))
    }

    async fn lanes(
        &self,
        destinations: &[Arc<Destination>],
        tenant: &Arc<str>,
    ) -> Result<Vec<Arc<Lane>>, LedgerError> {
        let mut lanes = Vec::with_capacity(destinations.len());
        for destination in destinations {
            lanes.push(self.ledger.lane(destination, tenant).await?);
        }
        Ok(lanes)
    }

    /// Records an event of our own, for those endpoints that have named its type.
    ///
    /// # Errors
    /// [`LedgerError`]: it is not recorded.
    pub async fn raise(&self, event_type: &str, data: &serde_json::Value) -> Result<(), LedgerError> {
        let id = new_event_id(&*self.clock);
        let tenant: Arc<str> = OPERATIONAL_TENANT.into();
        let data = data.to_string();
        let fingerprint = Fingerprint::of(event_type, Some(&data));
        let head =
            serde_json::json!({ "id": id, "type": event_type, "tenant": OPERATIONAL_TENANT }).to_string();
        // The data last, where its place is known.
        let head = format!("{},\"data\":", &head[..head.len() - 1]);
        let range = head.len()..head.len() + data.len();
        let event = Event {
            identity: Identity { tenant: tenant.clone(), source: Arc::default(), id: id.into() },
            event_type: event_type.into(),
            fingerprint,
            body: format!("{head}{data}}}").into(),
            data: Some(range),
            trace: None,
        };
        let destinations = self.directory.snapshot().operational_destinations(event_type);
        let lanes = self.lanes(&destinations, &tenant).await?;
        self.ledger.accept(vec![NewEvent { event, lanes }], false, None).await.map(drop)
    }

    /// An id for an event that has none: derived where the request has a key, so that a resend finds the same one.
    fn make_id(&self, request_key: Option<&RequestKey>, index: usize) -> String {
        match request_key {
            Some(key) => derived_event_id("idempotency-key", &[&key.scope, &key.key], index),
            None => new_event_id(&*self.clock),
        }
    }

    /// Keeps what can never be accepted: it is acknowledged, or Pub/Sub would send it for ever.
    async fn keep_rejected(
        &self,
        results: &[ItemResult],
        raw: &[bytes::Bytes],
        attributes: Option<&[u8]>,
        identity: Option<MessageIdentity>,
    ) -> Result<(), LedgerError> {
        let attributes = attributes.map_or_else(|| "{}".into(), String::from_utf8_lossy);
        let name = identity.as_ref().and_then(|identity| serde_json::to_string(identity).ok());
        let rejected =
            results.iter().zip(raw).filter(|(result, _)| result.is_bad()).map(|(result, body)| NewRejected {
                origin: "pubsub_push".into(),
                reason: result.detail.clone().unwrap_or_default(),
                attributes: attributes.to_string(),
                body: body.to_vec(),
                identity: name.clone(),
                item: result.index,
                message_key: identity.as_ref().map(|identity| identity.event_id(result.index)),
                ..NewRejected::default()
            });
        self.keep(&rejected.collect::<Vec<_>>()).await
    }
}

/// Enters the ledger's verdicts on the events at `indexes`.
fn note_verdicts(results: &mut [ItemResult], indexes: Vec<usize>, verdicts: Vec<ItemVerdict>) {
    for (index, verdict) in indexes.into_iter().zip(verdicts) {
        let result = &mut results[index];
        result.status = match verdict {
            ItemVerdict::Accepted => Status::Accepted,
            ItemVerdict::Duplicate => Status::Duplicate,
            ItemVerdict::Conflict => Status::Conflict,
        };
        if verdict == ItemVerdict::Conflict {
            result.pointer = "/id".into();
            result.detail = Some("an event with this id, but another type or data, is stored already".into());
        }
    }
}

/// The lanes an event goes to, or why there are none to be had.
type LanesFound = Result<Vec<Arc<Lane>>, String>;

/// The lanes of each tenant and event type in a request, asked for once.
struct Lanes<'a> {
    ingest: &'a Ingest,
    known: HashMap<(Arc<str>, Arc<str>), LanesFound>,
}

impl Lanes<'_> {
    /// The lanes that such events go to now, or why there are none to be had.
    async fn of(&mut self, tenant: &Arc<str>, event_type: &Arc<str>) -> Result<LanesFound, LedgerError> {
        let name = (tenant.clone(), event_type.clone());
        if let Some(lanes) = self.known.get(&name) {
            return Ok(lanes.clone());
        }
        let snapshot = self.ingest.directory.snapshot();
        let lanes = match snapshot.route(tenant, self.ingest.rules.default_route) {
            Err(taken) => Err(taken.to_string()),
            Ok(route) => {
                let destinations = snapshot.destinations(&route, tenant, event_type);
                Ok(self.ingest.lanes(&destinations, tenant).await?)
            }
        };
        self.known.insert(name, lanes.clone());
        Ok(lanes)
    }
}

fn refused(index: usize, invalid: Invalid) -> ItemResult {
    ItemResult {
        index,
        id: invalid.id.map(Into::into),
        tenant: invalid.tenant.map(Into::into),
        status: Status::Invalid,
        routed: Routed::Unknown,
        detail: Some(invalid.detail),
        pointer: invalid.pointer,
    }
}

/// `evt_` and a UUIDv7 (RFC 9562 §5.7): unique, and in the order of time.
pub fn new_event_id(clock: &dyn Clock) -> String {
    let millis = clock.now().as_millis().max(0).unsigned_abs();
    let random = clock.random().to_be_bytes();
    let mut ten = [0; 10];
    ten.copy_from_slice(&random[..10]);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &ten).into_uuid();
    format!("evt_{}", id.simple())
}
