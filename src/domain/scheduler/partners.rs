//! What all of a partner's endpoints share: places in flight, a rate, a pause.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::lane::Queue;
use super::policy::{PartnerPolicy, TokenGrant, TokenWish};
use super::standing::Places;
use crate::domain::clock::Moment;
use crate::domain::hash::FastMap;
use crate::domain::partner::RateLimit;
use crate::domain::tenant::Destination;
use crate::domain::token_budget::Pace;

/// How far ahead a rate-limited partner's deliveries are claimed: what waits in memory holds a lease.
const CLAIM_AHEAD_S: f64 = 2.0;
/// Before the ledger is asked for tokens again that failed to answer.
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// The partners that something is known of. Destinations without one are never held back here.
#[derive(Debug, Default)]
pub(super) struct Partners {
    states: FastMap<Arc<str>, PartnerState>,
    /// When a partner that lacks tokens may ask for them.
    openings: BinaryHeap<Reverse<(Moment, Arc<str>)>>,
    /// Partners that lack tokens and may ask now.
    lacking: Vec<Arc<str>>,
}

#[derive(Debug)]
struct PartnerState {
    policy: PartnerPolicy,
    tokens: Tokens,
    in_flight: usize,
    /// Deliveries to it that are buffered or promised to a claim.
    held: usize,
    /// Destinations with something to send.
    parked: VecDeque<Arc<Destination>>,
    /// Queues to be claimed from once that is of use.
    waiting: VecDeque<Queue>,
}

/// See [`Partners::standing`].
#[derive(Debug)]
pub(super) struct PartnerStanding {
    pub paused: bool,
    /// None is asked for before.
    pub lacks_tokens: Option<Moment>,
    pub in_flight: Places,
}

/// Tokens that are reserved in the ledger for this process.
#[derive(Debug, Default)]
struct Tokens {
    /// How many, and until when they are good.
    batches: VecDeque<(Moment, u32)>,
    /// A reservation is wished for or under way.
    asking: bool,
    /// No reservation before.
    not_before: Moment,
}

impl Tokens {
    fn count(&mut self, now: Moment) -> u32 {
        while self.batches.front().is_some_and(|(good_until, count)| *good_until <= now || *count == 0) {
            self.batches.pop_front();
        }
        self.batches.iter().map(|(_, count)| count).sum()
    }

    /// How many are good, without forgetting those that are not.
    fn good(&self, now: Moment) -> u32 {
        self.batches.iter().filter(|(good_until, _)| now < *good_until).map(|(_, count)| count).sum()
    }

    /// Takes one; until when it is good.
    fn take(&mut self, now: Moment) -> Option<Moment> {
        self.count(now);
        let (good_until, count) = self.batches.front_mut()?;
        *count -= 1;
        Some(*good_until)
    }
}

/// A partner whose limits hold deliveries back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The partner.
    pub partner: Arc<str>,
    /// Which of them.
    pub limit: HeldBy,
}

/// What holds a partner's deliveries back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// It is paused.
    Pause,
    /// As many requests are in flight as it may have.
    InFlight,
    /// Its rate.
    Rate,
}

impl HeldBy {
    /// The limit as it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::InFlight => "in_flight",
            Self::Rate => "rate",
        }
    }
}

impl PartnerState {
    fn has_room(&self) -> bool {
        !self.policy.paused && self.in_flight < self.policy.max_in_flight
    }

    /// Lets as many parked destinations ask again as there are places and tokens.
    fn unpark(&mut self, now: Moment) -> impl Iterator<Item = Arc<Destination>> {
        let places = if self.has_room() { self.policy.max_in_flight - self.in_flight } else { 0 };
        let tokens = self.policy.rate_limit.map_or(usize::MAX, |_| self.tokens.count(now) as usize);
        let count = places.min(tokens).min(self.parked.len());
        self.parked.drain(..count)
    }
}

impl Partners {
    /// Takes new limits over; partners that are gone are forgotten once nothing of theirs is under way.
    pub fn set_policies(&mut self, policies: &HashMap<Arc<str>, PartnerPolicy>) {
        self.states.retain(|name, state| {
            policies.contains_key(name)
                || state.in_flight > 0
                || state.held > 0
                || !state.parked.is_empty()
                || !state.waiting.is_empty()
        });
        for (name, policy) in policies {
            let state = self.states.entry(name.clone()).or_insert_with(|| PartnerState {
                policy: *policy,
                tokens: Tokens::default(),
                in_flight: 0,
                held: 0,
                parked: VecDeque::new(),
                waiting: VecDeque::new(),
            });
            if state.policy.rate_limit != policy.rate_limit {
                // Reserved under the old limit: forfeited.
                state.tokens.batches.clear();
            }
            state.policy = *policy;
        }
    }

    /// How things stand with a partner; `None` where nothing is known of it.
    pub fn standing(&self, partner: &Arc<str>, now: Moment) -> Option<PartnerStanding> {
        let state = self.states.get(partner)?;
        let lacks = state.policy.rate_limit.is_some() && state.tokens.good(now) == 0;
        Some(PartnerStanding {
            paused: state.policy.paused,
            lacks_tokens: lacks.then_some(state.tokens.not_before),
            in_flight: Places { taken: state.in_flight, most: state.policy.max_in_flight },
        })
    }

    fn of(&mut self, partner: Option<&Arc<str>>) -> Option<&mut PartnerState> {
        self.states.get_mut(partner?)
    }

    /// Whether destinations wait for it.
    pub fn is_awaited(&self, partner: &Arc<str>) -> bool {
        self.states.get(partner).is_some_and(|state| !state.parked.is_empty())
    }

    /// Whether a request may go to this partner now.
    pub fn admits(&mut self, partner: Option<&Arc<str>>, now: Moment) -> bool {
        let Some(state) = self.of(partner) else { return true };
        state.has_room() && (state.policy.rate_limit.is_none() || state.tokens.count(now) > 0)
    }

    /// A request goes out: takes a place and a token. Until when it may start, where that is bounded.
    pub fn enter(&mut self, partner: Option<&Arc<str>>, now: Moment) -> Option<Moment> {
        let state = self.of(partner)?;
        state.in_flight += 1;
        state.policy.rate_limit.and_then(|_| state.tokens.take(now))
    }

    /// A request has ended. Who may ask again for the free place. The token of one that was not sent is forfeited: it
    /// could only be used too late.
    pub fn leave(&mut self, partner: Option<&Arc<str>>) -> Option<Arc<Destination>> {
        let state = self.of(partner)?;
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.policy.paused { None } else { state.parked.pop_front() }
    }

    /// A place is free, and whoever was roused for it did not take it.
    pub fn pass_on(&mut self, partner: Option<&Arc<str>>, now: Moment) -> Option<Arc<Destination>> {
        if self.admits(partner, now) {
            return self.of(partner)?.parked.pop_front();
        }
        self.ask(partner?, now);
        None
    }

    /// More may be claimed ahead, and the queue that was roused for it can't be claimed from.
    pub fn pass_on_claim(&mut self, partner: Option<&Arc<str>>) -> Option<Queue> {
        if self.claimable(partner) > 0 { self.of(partner)?.waiting.pop_front() } else { None }
    }

    /// Holds a destination back until its partner has room.
    pub fn park(&mut self, partner: &Arc<str>, destination: Arc<Destination>, now: Moment) {
        let Some(state) = self.states.get_mut(partner) else { return };
        state.parked.push_back(destination);
        self.ask(partner, now);
    }

    /// Asks for tokens where they are what is lacking.
    fn ask(&mut self, partner: &Arc<str>, now: Moment) {
        let Some(state) = self.states.get_mut(partner) else { return };
        let lacks = state.policy.rate_limit.is_some() && state.tokens.count(now) == 0;
        if !lacks || !state.has_room() || state.tokens.asking || state.parked.is_empty() {
            return;
        }
        state.tokens.asking = true;
        if state.tokens.not_before <= now {
            self.lacking.push(partner.clone());
        } else {
            self.openings.push(Reverse((state.tokens.not_before, partner.clone())));
        }
    }

    /// Partners with something to send that may not go out now.
    pub fn held(&mut self, now: Moment) -> Vec<Held> {
        let mut held = Vec::new();
        for (name, state) in &mut self.states {
            if state.parked.is_empty() && state.waiting.is_empty() {
                continue;
            }
            let limit = if state.policy.paused {
                HeldBy::Pause
            } else if !state.has_room() {
                HeldBy::InFlight
            } else if state.policy.rate_limit.is_some() && state.tokens.count(now) == 0 {
                HeldBy::Rate
            } else {
                continue;
            };
            held.push(Held { partner: name.clone(), limit });
        }
        held
    }

    /// Whether there is something to reserve.
    pub const fn lack_tokens(&self) -> bool {
        !self.lacking.is_empty()
    }

    /// What to reserve in the ledger now. Each wish must be answered with [`Self::granted`] or [`Self::not_granted`].
    pub fn wishes(&mut self) -> Vec<TokenWish> {
        let mut wishes = Vec::new();
        for partner in std::mem::take(&mut self.lacking) {
            let Some(state) = self.states.get_mut(&partner) else { continue };
            let Some(limit) = state.policy.rate_limit else {
                state.tokens.asking = false;
                continue;
            };
            let count = u32::try_from(state.held.max(1)).unwrap_or(u32::MAX);
            wishes.push(TokenWish { partner, limit, count });
        }
        wishes
    }

    /// Tokens have been reserved, by a request made at `asked_at`. Who may ask again.
    pub fn granted(&mut self, grant: &TokenGrant, asked_at: Moment, now: Moment) -> Vec<Arc<Destination>> {
        let Some(state) = self.states.get_mut(&grant.wish.partner) else { return Vec::new() };
        state.tokens.asking = false;
        if state.policy.rate_limit != Some(grant.wish.limit) {
            // The limit has changed meanwhile: what was reserved under the old one is forfeited.
            let unparked = state.unpark(now).collect();
            self.ask(&grant.wish.partner, now);
            return unparked;
        }
        let pace = Pace::of(grant.wish.limit);
        if grant.count > 0 {
            state.tokens.batches.push_back((asked_at + pace.validity(), grant.count));
        }
        let drained = grant.count < grant.wish.count;
        let wait = if drained { grant.until_next } else { Duration::ZERO };
        state.tokens.not_before = asked_at + pace.ask_again_in(wait, drained);
        let unparked = state.unpark(now).collect();
        self.ask(&grant.wish.partner, now);
        unparked
    }

    /// The ledger did not answer.
    pub fn not_granted(&mut self, wish: &TokenWish, now: Moment) {
        if let Some(state) = self.states.get_mut(&wish.partner) {
            state.tokens.asking = false;
            state.tokens.not_before = now + AFTER_ERROR;
        }
        self.ask(&wish.partner, now);
    }

    /// How many more deliveries are worth claiming now.
    pub fn claimable(&mut self, partner: Option<&Arc<str>>) -> usize {
        let Some(state) = self.of(partner) else { return usize::MAX };
        if state.policy.paused {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds' worth")]
        let ahead = |limit: RateLimit| ((limit.per_second * CLAIM_AHEAD_S) as usize).max(1);
        state.policy.rate_limit.map_or(usize::MAX, |limit| ahead(limit).saturating_sub(state.held))
    }

    /// What is under way to an endpoint turns out to be this partner's.
    pub fn adopt(&mut self, partner: &Arc<str>, in_flight: usize, held: usize) {
        if let Some(state) = self.states.get_mut(partner) {
            state.in_flight += in_flight;
            state.held += held;
        }
    }

    /// `count` more deliveries are buffered or promised.
    pub fn hold(&mut self, partner: Option<&Arc<str>>, count: usize) {
        if let Some(state) = self.of(partner) {
            state.held += count;
        }
    }

    /// `count` fewer are. Which queues may be claimed from for them.
    pub fn let_go(&mut self, partner: Option<&Arc<str>>, count: usize) -> Vec<Queue> {
        let Some(state) = self.of(partner) else { return Vec::new() };
        state.held = state.held.saturating_sub(count);
        if state.policy.paused {
            return Vec::new();
        }
        let count = count.min(state.waiting.len());
        state.waiting.drain(..count).collect()
    }

    /// Holds a queue's claim back until its partner is paused no longer, or has less ahead.
    pub fn wait(&mut self, partner: Option<&Arc<str>>, queue: Queue) {
        if let Some(state) = self.of(partner) {
            state.waiting.push_back(queue);
        }
    }

    /// Everybody who was held back: the limits have changed.
    pub fn unpark_all(&mut self) -> Vec<Arc<Destination>> {
        self.in_order().into_iter().flat_map(|state| state.parked.drain(..)).collect()
    }

    /// Every queue that was held back.
    pub fn unwait_all(&mut self) -> Vec<Queue> {
        self.in_order().into_iter().flat_map(|state| state.waiting.drain(..)).collect()
    }

    /// By name: the same calls must lead to the same decisions in every process.
    fn in_order(&mut self) -> Vec<&mut PartnerState> {
        let mut states: Vec<_> = self.states.iter_mut().collect();
        states.sort_unstable_by_key(|(name, _)| *name);
        states.into_iter().map(|(_, state)| state).collect()
    }

    /// Time has passed: partners that lack tokens and may ask for them now.
    pub fn tick(&mut self, now: Moment) {
        while self.openings.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, name))) = self.openings.pop() {
                self.lacking.push(name);
            }
        }
    }

    /// When the next partner that lacks tokens may ask for them.
    pub fn next_opening(&self) -> Option<Moment> {
        self.openings.peek().map(|Reverse((at, _))| *at)
    }
}
