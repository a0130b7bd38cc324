//! What claimed deliveries carry: read from the database, or kept in memory since a moment ago.
//!
//! Most of what is claimed was recorded a moment before, by this very process. Kept until then, a claim reads only where
//! it stands in the queue, which is a few numbers; reading an event back costs several times that. What is kept is
//! bounded in bytes and in time, and nothing depends on it: whatever is not here is read.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::damaged::Damaged;
use super::plan::Plan;
use super::{ClaimedLane, Held, Result};
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::{Class, DeadReason, Delivery, DeliveryId, ReplayNumber};
use crate::domain::event::{EventSeq, Identity};
use crate::domain::hash::FastMap;
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::tenant::{Lane, LaneId};
use crate::domain::trace::TraceContext;

/// How long an event is kept that nobody claims: its lane may be blocked, or another node has claimed it.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Bytes of bodies that one claim reads from the database at most; one body beyond that where the first is large.
const CLAIM_BYTES: usize = 32 << 20;
/// What an event takes in memory beside its texts, about.
const OVERHEAD_BYTES: usize = 256;

/// What a delivery needs of its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payload {
    pub source: Arc<str>,
    pub id: Arc<str>,
    pub event_type: Arc<str>,
    pub received_at: i64,
    pub body: Bytes,
    pub data: Option<Range<usize>>,
    pub trace: Option<Arc<TraceContext>>,
}

/// Where a claimed delivery stands in the queue, and the number of its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub due_at: i64,
    pub event: i64,
    pub attempt: i64,
    pub failures: i64,
    pub uncertain: i64,
    pub replay: i64,
}

impl Payload {
    /// Whether its parts fit together.
    fn is_sound(&self) -> bool {
        self.data.as_ref().is_none_or(|data| data.start <= data.end && data.end <= self.body.len())
    }
}

impl Place {
    /// The claim of this place in one of a lane's queues.
    pub fn held(&self, claim: &LaneClaim) -> Held {
        Held {
            id: DeliveryId { event: EventSeq(self.event), lane: claim.lane.id },
            class: claim.class,
            due_at: Timestamp::from_millis(self.due_at),
            attempt: self.attempt,
        }
    }

    fn damaged(&self, claim: &LaneClaim, reason: DeadReason) -> Damaged {
        Damaged {
            lane: claim.lane.clone(),
            held: self.held(claim),
            replay: ReplayNumber::from_column(self.replay),
            failures: self.failures(),
            reason,
        }
    }

    fn failures(&self) -> u32 {
        u32::try_from(self.failures).unwrap_or(u32::MAX)
    }

    fn delivery(self, lane: &Arc<Lane>, class: Class, payload: Payload) -> Delivery {
        let Payload { source, id, event_type, received_at, body, data, trace } = payload;
        Delivery {
            id: DeliveryId { event: EventSeq(self.event), lane: lane.id },
            lane: lane.clone(),
            due_at: Timestamp::from_millis(self.due_at),
            attempt: self.attempt,
            failures: self.failures(),
            uncertain: self.uncertain != 0,
            class,
            replay: ReplayNumber::from_column(self.replay),
            identity: Identity { tenant: lane.tenant.clone(), source, id },
            event_type,
            received_at: Timestamp::from_millis(received_at),
            body,
            data,
            trace,
        }
    }
}

/// What a store has claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    /// One answer for each claim.
    pub lanes: Vec<ClaimedLane>,
    /// Claimed rows that can't be sent.
    pub damaged: Vec<Damaged>,
}

/// What the database holds of an event that was asked for. An event that is missing is not among the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// All of it.
    Payload(Payload),
    /// It was not read, because its body has so many bytes.
    Large(usize),
    /// Its row makes no sense.
    Unreadable,
}

/// Where payloads are read that were not kept.
#[async_trait]
pub(super) trait PayloadReader: Sync {
    /// What these events carry, by number, but for bodies of more than `limit_bytes`.
    async fn payloads(&self, events: &[i64], limit_bytes: usize) -> Result<HashMap<i64, Stored>>;
}

/// What was claimed of one lane, without its payloads.
#[derive(Debug)]
pub(super) struct ClaimedPlaces {
    /// In the order they fall due.
    pub places: Vec<Place>,
    /// What is left in the ledger.
    pub remaining: Remaining,
}

/// The deliveries of `claimed`, one answer for each of `claims`; and claims to take back, because their bodies would have been
/// too much at once.
///
/// `reader` is asked for the payloads that were not kept, by their events' numbers in order.
pub(super) async fn load(
    claims: &[LaneClaim],
    claimed: &[ClaimedPlaces],
    recent: &Recent,
    reader: &impl PayloadReader,
) -> Result<(Claimed, Vec<Held>)> {
    let places = claimed.iter().flat_map(|lane| &lane.places);
    let mut kept = recent.take(places.clone().map(|place| EventSeq(place.event))).into_iter();
    let unkept = places.zip(kept.as_slice()).filter(|(_, payload)| payload.is_none());
    let mut missing: Vec<_> = unkept.map(|(place, _)| place.event).collect();
    missing.sort_unstable();
    missing.dedup();
    let mut stored = HashMap::new();
    if !missing.is_empty() {
        stored = reader.payloads(&missing, CLAIM_BYTES / missing.len()).await?;
        let large = large_that_fit(claimed, &stored);
        if !large.is_empty() {
            stored.extend(reader.payloads(&large, usize::MAX).await?);
        }
    }
    let (mut lanes, mut damaged, mut unread) = (Vec::with_capacity(claims.len()), Vec::new(), Vec::new());
    for (claim, ClaimedPlaces { places, remaining }) in claims.iter().zip(claimed) {
        let (mut deliveries, mut is_cut) = (Vec::with_capacity(places.len()), false);
        for place in places {
            let found = kept.next().flatten().map(Stored::Payload);
            let found = found.or_else(|| stored.get(&place.event).cloned());
            is_cut |= matches!(found, Some(Stored::Large(_)));
            match found {
                // In order: no delivery overtakes one that is taken back.
                _ if is_cut => unread.push(place.held(claim)),
                Some(Stored::Payload(payload)) if payload.is_sound() => {
                    deliveries.push(place.delivery(&claim.lane, claim.class, payload));
                }
                None => damaged.push(place.damaged(claim, DeadReason::EventMissing)),
                Some(_) => damaged.push(place.damaged(claim, DeadReason::EventUnreadable)),
            }
        }
        lanes.push(ClaimedLane { deliveries, remaining: if is_cut { Remaining::Due } else { *remaining } });
    }
    Ok((Claimed { lanes, damaged }, unread))
}

/// Every claim of these places.
pub(super) fn all_held(claims: &[LaneClaim], claimed: &[ClaimedPlaces]) -> Vec<Held> {
    let held = |(claim, lane): (_, &ClaimedPlaces)| {
        lane.places.iter().map(|place| place.held(claim)).collect::<Vec<_>>()
    };
    claims.iter().zip(claimed).flat_map(held).collect()
}

/// Of the events whose bodies were left out, those that fit beside what was read, in order: lanes take turns. At least one,
/// so that the largest body goes out, too.
fn large_that_fit(claimed: &[ClaimedPlaces], stored: &HashMap<i64, Stored>) -> Vec<i64> {
    let body_bytes = |stored: &Stored| match stored {
        Stored::Payload(payload) => payload.body.len(),
        Stored::Large(_) | Stored::Unreadable => 0,
    };
    let mut room = CLAIM_BYTES.saturating_sub(stored.values().map(body_bytes).sum());
    let large = |event: &i64| match stored.get(event) {
        Some(Stored::Large(bytes)) => Some(*bytes),
        _ => None,
    };
    let ranked = claimed.iter().flat_map(|lane| (0..).zip(lane.places.iter().map(|place| place.event)));
    let mut ranked: Vec<(usize, i64)> = ranked.filter(|(_, event)| large(event).is_some()).collect();
    ranked.sort_unstable();
    let mut fit = Vec::new();
    for (_, event) in ranked {
        if fit.contains(&event) {
            continue;
        }
        let bytes = large(&event).unwrap_or_default();
        if bytes > room && !fit.is_empty() {
            break;
        }
        room = room.saturating_sub(bytes);
        fit.push(event);
    }
    fit.sort_unstable();
    fit
}

/// Payloads of events that were recorded a moment ago and wait to be claimed.
#[derive(Debug)]
pub(super) struct Recent {
    limit_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first: numbers grow with time.
    events: BTreeMap<EventSeq, KeptEvent>,
    bytes: usize,
    /// Of `bytes`, what each lane's events take.
    of_lane: FastMap<LaneId, usize>,
}

#[derive(Debug)]
struct KeptEvent {
    payload: Payload,
    /// Deliveries of it that nobody has claimed.
    unclaimed: usize,
    bytes: usize,
    /// The lane it counts for: its first.
    lane: LaneId,
    at: Moment,
}

impl Recent {
    /// Keeps at most about so many bytes; none with 0.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, kept: Mutex::default() }
    }

    /// Keeps what was just recorded and waits to be claimed, as far as there is room.
    ///
    /// When it is full it keeps what it has, the oldest of a lane being what is claimed next; and a lane may take no more
    /// than is then free, so that one that is blocked leaves room for others.
    pub fn keep(&self, plan: &Plan<'_>, now: Moment) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget_older(now);
        for deliveries in plan.deliveries.chunk_by(|one, next| one.seq == next.seq) {
            let mut waiting = deliveries.iter().filter(|waiting| !waiting.is_handed_over());
            let Some(first) = waiting.next() else { continue };
            let event = &first.new.event;
            let texts = event.identity.source.len() + event.identity.id.len() + event.event_type.len();
            let bytes = OVERHEAD_BYTES + texts + event.body.len();
            let lane = first.lane.id;
            let of_lane = kept.of_lane.get(&lane).copied().unwrap_or_default();
            if of_lane + bytes > self.limit_bytes.saturating_sub(kept.bytes + bytes) {
                continue;
            }
            let payload = Payload {
                source: event.identity.source.clone(),
                id: event.identity.id.clone(),
                event_type: event.event_type.clone(),
                received_at: plan.now.as_millis(),
                // A copy: it must not hold the request that it came with.
                body: Bytes::copy_from_slice(&event.body),
                data: event.data.clone(),
                trace: event.trace.clone(),
            };
            kept.bytes += bytes;
            *kept.of_lane.entry(lane).or_default() += bytes;
            let unclaimed = 1 + waiting.count();
            kept.events.insert(first.seq, KeptEvent { payload, unclaimed, bytes, lane, at: now });
        }
    }

    /// The payload of each of these events, claimed for one delivery; `None` for those that are not here.
    fn take(&self, events: impl Iterator<Item = EventSeq>) -> Vec<Option<Payload>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        events.map(|event| kept.take(event)).collect()
    }
}

impl Kept {
    fn take(&mut self, event: EventSeq) -> Option<Payload> {
        let kept = self.events.get_mut(&event)?;
        kept.unclaimed -= 1;
        if kept.unclaimed > 0 {
            return Some(kept.payload.clone());
        }
        let kept = self.events.remove(&event)?;
        self.gone(kept.lane, kept.bytes);
        Some(kept.payload)
    }

    fn forget_older(&mut self, now: Moment) {
        while let Some(oldest) = self.events.first_entry()
            && oldest.get().at + KEPT_FOR <= now
        {
            let KeptEvent { lane, bytes, .. } = oldest.remove();
            self.gone(lane, bytes);
        }
    }

    fn gone(&mut self, lane: LaneId, bytes: usize) {
        self.bytes -= bytes;
        if let Some(of_lane) = self.of_lane.get_mut(&lane) {
            *of_lane -= bytes;
            if *of_lane == 0 {
                self.of_lane.remove(&lane);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{self, AcceptRequest, Known, NewEvent};
    use super::*;
    use crate::domain::event::{Event, Fingerprint};
    use crate::domain::tenant::Destination;

    fn lane(id: i64) -> Arc<Lane> {
        let destination = Arc::new(Destination::Svix { app: format!("app{id}") });
        Arc::new(Lane { id: LaneId(id), destination, tenant: "acme".into() })
    }

    /// Keeps events with these numbers, each with a body of `size` and a delivery in each of `lanes`.
    fn keep(recent: &Recent, numbers: Range<i64>, lanes: &[i64], size: usize, now: Moment) {
        let event = |number: i64| Event {
            identity: Identity { tenant: "acme".into(), source: "".into(), id: number.to_string().into() },
            event_type: "t".into(),
            fingerprint: Fingerprint([0; 32]),
            body: vec![b'x'; size].into(),
            data: Some(1..2),
            trace: None,
        };
        let lanes: Vec<_> = lanes.iter().map(|id| lane(*id)).collect();
        let events = numbers.clone().map(|number| NewEvent { event: event(number), lanes: lanes.clone() });
        let requests = [AcceptRequest { events: events.collect(), strict: true, request_key: None }];
        let mut numbers = numbers.map(EventSeq);
        let next = || numbers.next().expect("a number for each");
        let plan = plan::plan(&requests, Known::default(), Timestamp::from_millis(7), next);
        recent.keep(&plan, now);
    }

    fn found(recent: &Recent, numbers: Range<i64>) -> Vec<i64> {
        let taken = recent.take(numbers.clone().map(EventSeq));
        numbers.zip(taken).filter_map(|(number, payload)| payload.map(|_| number)).collect()
    }

    fn bytes(recent: &Recent) -> (usize, usize) {
        let kept = recent.kept.lock().expect("it");
        (kept.bytes, kept.of_lane.values().sum())
    }

    #[test]
    fn an_event_is_kept_until_its_last_delivery_is_claimed() {
        let recent = Recent::new(1 << 20);
        keep(&recent, 1..3, &[1, 2], 10, Moment::default());
        assert_eq!(found(&recent, 1..4), [1, 2]);
        let payload = recent.take([EventSeq(1)].into_iter()).remove(0).expect("still there");
        assert_eq!((&*payload.id, &*payload.event_type, payload.received_at), ("1", "t", 7));
        assert_eq!((&payload.body[..], payload.data), (&b"xxxxxxxxxx"[..], Some(1..2)));
        assert_eq!(found(&recent, 1..4), [2]);
        assert!(found(&recent, 1..4).is_empty());
        assert_eq!(bytes(&recent), (0, 0));
    }

    #[test]
    fn a_lane_that_is_blocked_leaves_room_for_others() {
        let recent = Recent::new(100 * (OVERHEAD_BYTES + 1_000));
        keep(&recent, 0..1_000, &[1], 990, Moment::default());
        keep(&recent, 1_000..2_000, &[2], 990, Moment::default());
        let (total, of_lanes) = bytes(&recent);
        assert_eq!(total, of_lanes);
        // Half of it, and half of what is left.
        assert_eq!((found(&recent, 0..1_000).len(), found(&recent, 1_000..2_000).len()), (50, 25));
        assert_eq!(bytes(&recent), (0, 0));
    }

    #[test]
    fn what_nobody_claims_is_forgotten() {
        let recent = Recent::new(1 << 20);
        keep(&recent, 1..2, &[1], 10, Moment::default());
        let later = Moment::default() + Duration::from_secs(20);
        keep(&recent, 2..3, &[1], 10, later);
        keep(&recent, 3..4, &[1], 10, later + Duration::from_secs(15));
        assert_eq!(found(&recent, 1..4), [2, 3]);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let recent = Recent::new(0);
        keep(&recent, 1..9, &[1], 0, Moment::default());
        assert!(found(&recent, 1..9).is_empty());
    }
}
