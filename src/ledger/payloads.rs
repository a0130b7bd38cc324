//! What claimed deliveries carry: read from the database, or kept in memory since a moment ago.
//!
//! Most of what is claimed was recorded a moment before, by this very process. Kept until then, a claim reads only where
//! it stands in the queue, which is a few numbers; reading an event back costs several times that. What is kept is
//! bounded in bytes and in time, and nothing depends on it: whatever is not here is read.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::plan::Plan;
use super::{ClaimedLane, LedgerError, Result};
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::{Class, Delivery, DeliveryId, ReplayNumber};
use crate::domain::event::{EventSeq, Identity};
use crate::domain::hash::FastMap;
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::tenant::{Lane, LaneId};
use crate::domain::trace::TraceContext;

/// How long an event is kept that nobody claims: its lane may be blocked, or another node has claimed it.
const KEPT_FOR: Duration = Duration::from_secs(30);
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

impl Place {
    fn delivery(self, lane: &Arc<Lane>, class: Class, payload: Payload) -> Delivery {
        let Payload { source, id, event_type, received_at, body, data, trace } = payload;
        Delivery {
            id: DeliveryId { event: EventSeq(self.event), lane: lane.id },
            lane: lane.clone(),
            due_at: Timestamp::from_millis(self.due_at),
            attempt: self.attempt,
            failures: u32::try_from(self.failures).unwrap_or(u32::MAX),
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

/// What was claimed of one lane, without its payloads.
#[derive(Debug)]
pub(super) struct ClaimedPlaces {
    /// In the order they fall due.
    pub places: Vec<Place>,
    /// What is left in the ledger.
    pub remaining: Remaining,
}

/// The deliveries of `claimed`, one answer for each of `claims`. `read` is asked for the payloads that were not kept, by
/// their events' numbers: each once, in order.
pub(super) async fn deliveries(
    claims: &[LaneClaim],
    claimed: &[ClaimedPlaces],
    recent: &Recent,
    read: impl AsyncFnOnce(&[i64]) -> Result<HashMap<i64, Payload>>,
) -> Result<Vec<ClaimedLane>> {
    let places = claimed.iter().flat_map(|lane| &lane.places);
    let mut kept = recent.take(places.clone().map(|place| EventSeq(place.event))).into_iter();
    let unkept = places.zip(kept.as_slice()).filter(|(_, payload)| payload.is_none());
    let mut missing: Vec<_> = unkept.map(|(place, _)| place.event).collect();
    missing.sort_unstable();
    missing.dedup();
    let read = if missing.is_empty() { HashMap::new() } else { read(&missing).await? };
    let lanes = claims.iter().zip(claimed).map(|(claim, ClaimedPlaces { places, remaining })| {
        let with_payload = places.iter().map(|place| {
            let payload = kept.next().flatten().or_else(|| read.get(&place.event).cloned());
            let payload = payload.ok_or_else(|| {
                let words = "waits in the queue and is not in the ledger: the database is damaged";
                LedgerError::Unavailable(format!("event {} {words}", place.event))
            })?;
            Ok(place.delivery(&claim.lane, claim.class, payload))
        });
        Ok(ClaimedLane { deliveries: with_payload.collect::<Result<_>>()?, remaining: *remaining })
    });
    lanes.collect()
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
