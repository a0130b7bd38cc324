//! What all of a partner's endpoints share: places in flight, a rate, a pause.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::policy::PartnerPolicy;
use crate::domain::clock::Moment;
use crate::domain::rate_limit::TokenBucket;
use crate::domain::tenant::{Destination, LaneId};

/// How far ahead a rate-limited partner's deliveries are claimed: what waits in memory holds a lease.
const CLAIM_AHEAD_S: f64 = 5.0;

/// The partners that something is known of. Destinations without one are never held back here.
#[derive(Debug, Default)]
pub(super) struct Partners {
    states: HashMap<Arc<str>, PartnerState>,
    /// When a parked partner's next token is there.
    openings: BinaryHeap<Reverse<(Moment, Arc<str>)>>,
}

#[derive(Debug)]
struct PartnerState {
    policy: PartnerPolicy,
    bucket: Option<TokenBucket>,
    in_flight: usize,
    /// Destinations with something to send.
    parked: VecDeque<Arc<Destination>>,
    /// Lanes to be claimed from once that is of use.
    waiting: VecDeque<LaneId>,
    /// An opening is in the heap.
    alarmed: bool,
}

impl Partners {
    /// Takes new limits over; partners that are gone are forgotten once nothing of theirs is under way.
    pub fn set_policies(&mut self, policies: &HashMap<Arc<str>, PartnerPolicy>, now: Moment) {
        self.states.retain(|name, state| {
            policies.contains_key(name)
                || state.in_flight > 0
                || !state.parked.is_empty()
                || !state.waiting.is_empty()
        });
        for (name, policy) in policies {
            let state = self.states.entry(name.clone()).or_insert_with(|| PartnerState {
                policy: *policy,
                bucket: None,
                in_flight: 0,
                parked: VecDeque::new(),
                waiting: VecDeque::new(),
                alarmed: false,
            });
            state.policy = *policy;
            match (&mut state.bucket, policy.rate_limit) {
                (Some(bucket), Some(limit)) if bucket.limit() != limit => bucket.set_limit(limit, now),
                (None, Some(limit)) => state.bucket = Some(TokenBucket::new(limit, now)),
                (_, None) => state.bucket = None,
                _ => {}
            }
        }
    }

    /// Whether a request may go to this partner now.
    pub fn admits(&mut self, partner: Option<&Arc<str>>, now: Moment) -> bool {
        let Some(state) = partner.and_then(|name| self.states.get_mut(name)) else { return true };
        !state.policy.paused
            && state.in_flight < state.policy.max_in_flight
            && state.bucket.as_mut().is_none_or(|bucket| bucket.available(now) > 0)
    }

    /// A request goes out: takes a place and a token.
    pub fn enter(&mut self, partner: Option<&Arc<str>>, now: Moment) {
        if let Some(state) = partner.and_then(|name| self.states.get_mut(name)) {
            state.in_flight += 1;
            if let Some(bucket) = &mut state.bucket {
                bucket.take(now);
            }
        }
    }

    /// A request has ended; `unsent` gives its token back. Who may ask again for the free place.
    pub fn leave(&mut self, partner: Option<&Arc<str>>, unsent: bool) -> Option<Arc<Destination>> {
        let state = partner.and_then(|name| self.states.get_mut(name))?;
        state.in_flight = state.in_flight.saturating_sub(1);
        if unsent && let Some(bucket) = &mut state.bucket {
            bucket.put_back();
        }
        if state.policy.paused { None } else { state.parked.pop_front() }
    }

    /// Holds a destination back until its partner has room.
    pub fn park(&mut self, partner: Option<&Arc<str>>, destination: Arc<Destination>, now: Moment) {
        let Some(name) = partner else { return };
        let Some(state) = self.states.get_mut(name) else { return };
        state.parked.push_back(destination);
        if state.policy.paused || state.alarmed {
            return;
        }
        if let Some(bucket) = state.bucket.as_mut().filter(|bucket| bucket.limit().per_second > 0.0)
            && bucket.available(now) == 0
        {
            state.alarmed = true;
            self.openings.push(Reverse((bucket.next_at(now), name.clone())));
        }
    }

    /// How many deliveries are worth claiming now.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds' worth")]
    pub fn claimable(&mut self, partner: Option<&Arc<str>>, now: Moment) -> usize {
        let Some(state) = partner.and_then(|name| self.states.get_mut(name)) else { return usize::MAX };
        if state.policy.paused {
            return 0;
        }
        let ahead = |bucket: &mut TokenBucket| {
            bucket.available(now) + ((bucket.limit().per_second * CLAIM_AHEAD_S) as usize).max(1)
        };
        state.bucket.as_mut().map_or(usize::MAX, ahead)
    }

    /// Holds a lane's claim back until its partner is paused no longer.
    pub fn wait(&mut self, partner: Option<&Arc<str>>, lane: LaneId) {
        if let Some(state) = partner.and_then(|name| self.states.get_mut(name)) {
            state.waiting.push_back(lane);
        }
    }

    /// Everybody who was held back: the limits have changed.
    pub fn unpark_all(&mut self) -> Vec<Arc<Destination>> {
        self.states.values_mut().flat_map(|state| state.parked.drain(..)).collect()
    }

    /// Every lane that was held back.
    pub fn unwait_all(&mut self) -> Vec<LaneId> {
        self.states.values_mut().flat_map(|state| state.waiting.drain(..)).collect()
    }

    /// Partners whose next token is there: as many of their destinations as there are tokens may ask again.
    pub fn tick(&mut self, now: Moment) -> (Vec<Arc<Destination>>, Vec<LaneId>) {
        let (mut parked, mut waiting) = (Vec::new(), Vec::new());
        while self.openings.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, name))) = self.openings.pop() else { break };
            let Some(state) = self.states.get_mut(&name) else { continue };
            state.alarmed = false;
            if state.policy.paused {
                continue;
            }
            let tokens = state.bucket.as_mut().map_or(usize::MAX, |bucket| bucket.available(now));
            let count = tokens.min(state.parked.len());
            parked.extend(state.parked.drain(..count));
            waiting.extend(state.waiting.drain(..));
            // Those who are still parked are not forgotten where nobody asks for the next token.
            if !state.parked.is_empty()
                && let Some(bucket) = &mut state.bucket
            {
                state.alarmed = true;
                self.openings.push(Reverse((bucket.next_at(now), name)));
            }
        }
        (parked, waiting)
    }

    /// When the next token is there.
    pub fn next_opening(&self) -> Option<Moment> {
        self.openings.peek().map(|Reverse((at, _))| *at)
    }
}
