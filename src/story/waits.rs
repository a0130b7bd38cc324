//! Why a delivery waits, and until when.
//!
//! Of several things that hold it, the one that holds longest is told: a gate that opens in an hour, not the retry that
//! would be due in a minute. What the scheduler of this node knows is asked for; what it can't know (there is none here,
//! or another node has the delivery) is what the ledger knows: when it is due, who has claimed it, closed gates, and
//! partners' budgets.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Result, Stories, destination};
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::gate::CloseReason;
use crate::domain::partner::RateLimit;
use crate::domain::scheduler::{GateId, Places, Standing as Scheduled};
use crate::domain::tenant::{Destination, Lane};
use crate::ledger::{AttemptRow, ClosedGate, DeliveryRow, Waiting};
use crate::send::direct::Endpoints as _;

/// What a delivery waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// The time of its next attempt.
    Backoff,
    /// The receiver asked to slow down, refuses our credentials, or nothing is configured to reach it.
    Gate,
    /// The receiver fails, and is left alone but for a probe now and then.
    Breaker,
    /// Its endpoint is disabled or deleted: it will be given up when its turn comes.
    Disabled,
    /// Somebody has paused its partner.
    Paused,
    /// The partner's rate, or as many requests in flight as there may be.
    Limit,
    /// The turn of others, who share a receiver or this node with it.
    FairShare,
    /// The end of the attempt that is under way, or about to begin.
    InFlight,
    /// Nothing but its turn: it is due, and goes out in a moment.
    Queued,
}

impl WaitReason {
    /// The reason's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backoff => "backoff",
            Self::Gate => "gate",
            Self::Breaker => "breaker",
            Self::Disabled => "disabled",
            Self::Paused => "paused",
            Self::Limit => "limit",
            Self::FairShare => "fair_share",
            Self::InFlight => "in_flight",
            Self::Queued => "queued",
        }
    }
}

/// Why a delivery waits.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WaitsFor {
    /// What holds it longest.
    pub reason: WaitReason,
    /// Until when, as far as that can be known.
    pub until: Option<Timestamp>,
    /// The same in words.
    pub detail: String,
    /// How many deliveries of its tenant for this receiver go before it, ten thousand at most; null where that is not
    /// what it waits for.
    pub ahead: Option<u64>,
    /// How many others (tenants of this receiver, or receivers on this node) have their turn before it.
    pub others_ahead: Option<usize>,
}

impl WaitsFor {
    fn new(reason: WaitReason, until: Option<Timestamp>, detail: impl Into<String>) -> Self {
        Self { reason, until, detail: detail.into(), ahead: None, others_ahead: None }
    }
}

/// A closed gate, and until when.
struct Closed {
    reason: CloseReason,
    /// `None`: it lets one request through to try, or has no end.
    until: Option<Timestamp>,
}

impl Closed {
    /// Whether it holds back what falls due then for longer than that.
    fn holds_longer(&self, due_at: Timestamp, now: Timestamp) -> bool {
        let is_due = due_at <= now;
        is_due || self.until.map_or(self.reason == CloseReason::NotConfigured, |until| due_at < until)
    }
}

/// No wait that anybody could wait for is longer.
const NO_END: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Stories {
    pub(super) async fn waits_for(
        &self,
        row: &DeliveryRow,
        waiting: &Waiting,
        last: Option<&AttemptRow>,
    ) -> Result<WaitsFor> {
        let now = self.clock.now();
        let receiver = destination(row);
        let Some(lane) = self.ledger.lane_by_id(row.id.lane).await? else {
            let words = "its destination is of a kind that this version does not know";
            return Ok(WaitsFor::new(WaitReason::Queued, None, words));
        };
        let scheduled =
            self.dispatcher.as_ref().map(|dispatcher| dispatcher.standing(&lane, waiting.class, row.id));
        let buffered = scheduled.as_ref().is_some_and(|(standing, _)| standing.buffered);
        if let Some(left) = waiting.claimed_for.filter(|_| !buffered) {
            return Ok(self.in_flight(left, scheduled.as_ref().map(|(standing, _)| standing), now));
        }
        if let Some(waits) = self.for_endpoint(&receiver, waiting, now) {
            return Ok(waits);
        }
        let snapshot = self.directory.snapshot();
        let policies = snapshot.policies();
        let partner = match &receiver {
            Destination::Endpoint { id } => policies.endpoints.get(id).map(|policy| policy.partner.clone()),
            Destination::Svix { .. } => None,
        };
        let policy = partner.as_ref().and_then(|partner| policies.partners.get(partner));
        if let (Some(partner), true) = (&partner, policy.is_some_and(|policy| policy.paused)) {
            let words = format!("partner {partner} is paused: it goes out once that ends");
            return Ok(WaitsFor::new(WaitReason::Paused, None, words));
        }
        let closed = self.closed_gate(&lane, scheduled.as_ref(), now).await?;
        if let Some(closed) = closed
            && closed.holds_longer(waiting.due_at, now)
        {
            return Ok(behind_gate(&lane, &closed));
        }
        if waiting.due_at > now {
            return Ok(backoff(waiting, last));
        }
        let ahead = self.ledger.place_in_line(row.id, waiting).await?;
        let limit = partner.zip(policy.and_then(|policy| policy.rate_limit));
        let mut waits = match &scheduled {
            Some((standing, moment)) => due(standing, limit, ahead, (now, *moment)),
            None => self.due_elsewhere(limit, ahead, now).await?,
        };
        waits.ahead = Some(ahead);
        Ok(waits)
    }

    /// Somebody has claimed it, for `left` at most.
    fn in_flight(&self, left: Duration, scheduled: Option<&Scheduled>, now: Timestamp) -> WaitsFor {
        let until = now + left;
        let since = now.as_millis()
            - i64::try_from(self.ledger.lease().saturating_sub(left).as_millis()).unwrap_or(0);
        let since = Timestamp::from_millis(since).to_rfc3339();
        let shared = self.ledger.database().is_shared();
        let place = match scheduled {
            _ if !shared => "by this node",
            Some(standing) if standing.of_destination.taken > 0 => "by this node or another",
            _ => "by another node",
        };
        let words = format!(
            "being sent {place} since {since}; should that node be gone, others take over at the end"
        );
        WaitsFor::new(WaitReason::InFlight, Some(until), words)
    }

    /// Its endpoint is not there for it.
    fn for_endpoint(&self, receiver: &Destination, waiting: &Waiting, now: Timestamp) -> Option<WaitsFor> {
        let Destination::Endpoint { id } = receiver else { return None };
        let words = self.unreachable(id)?;
        let until = Some(waiting.due_at).filter(|due_at| now < *due_at);
        let end = if self.directory.endpoint(id).is_some() { "given up" } else { "canceled" };
        let words = format!("{words}; this delivery will be {end} when its turn comes");
        Some(WaitsFor::new(WaitReason::Disabled, until, words))
    }

    /// The gate before the receiver, where it is closed: as this node's dispatcher has it, else as the ledger has.
    async fn closed_gate(
        &self,
        lane: &Lane,
        scheduled: Option<&(Scheduled, Moment)>,
        now: Timestamp,
    ) -> Result<Option<Closed>> {
        if let Some((standing, moment)) = scheduled {
            return Ok(standing.gate.map(|(reason, opens_at)| {
                let left = opens_at.map(|opens_at| moment.until(opens_at)).filter(|left| *left < NO_END);
                Closed { reason, until: left.map(|left| now + left) }
            }));
        }
        let id = GateId::of(&lane.destination);
        let gates = self.ledger.closed_gates().await?;
        let application = lane.destination.to_string();
        let is_before = |gate: &ClosedGate| gate.gate == id.as_str() || gate.gate == application;
        Ok(gates.into_iter().find(is_before).and_then(|gate| {
            let reason = CloseReason::parse(&gate.reason)?;
            Some(Closed { reason, until: Some(now + gate.remaining) })
        }))
    }

    /// It is due, and this node sends nothing: what the ledger knows.
    async fn due_elsewhere(
        &self,
        limit: Option<(Arc<str>, RateLimit)>,
        ahead: u64,
        now: Timestamp,
    ) -> Result<WaitsFor> {
        if let Some((partner, limit)) = limit
            && let Some(wait) = self.ledger.until_next_token(&partner, limit).await?
        {
            return Ok(at_rate(&partner, limit, ahead, now + wait));
        }
        let words = format!("due; {}a node that sends takes it when it is its turn", before(ahead));
        Ok(WaitsFor::new(WaitReason::Queued, None, words))
    }
}

fn backoff(waiting: &Waiting, last: Option<&AttemptRow>) -> WaitsFor {
    let why = last.map_or(String::new(), |last| match last.status {
        Some(status) => format!(" after {} (status {status})", last.code),
        None => format!(" after {}", last.code),
    });
    let words = format!("the next attempt{why}; {} failed so far", waiting.failures);
    WaitsFor::new(WaitReason::Backoff, Some(waiting.due_at), words)
}

fn behind_gate(lane: &Lane, closed: &Closed) -> WaitsFor {
    let who = match &*lane.destination {
        Destination::Svix { .. } => "Svix".to_owned(),
        Destination::Endpoint { id } => format!("endpoint {id}"),
    };
    let (reason, words) = match (closed.reason, closed.until) {
        (CloseReason::Throttled, _) => (
            WaitReason::Gate,
            format!("{who} asked to slow down (429, or 503 with Retry-After): the gate is closed"),
        ),
        (CloseReason::Unauthorized, _) => {
            let words = "does not accept our credentials: mend them; one request is tried at the end";
            (WaitReason::Gate, format!("{who} {words}"))
        }
        (CloseReason::NotConfigured, _) => {
            (WaitReason::Gate, format!("nothing is configured to reach {who} with (a token, for one)"))
        }
        (CloseReason::Failing, Some(_)) => (
            WaitReason::Breaker,
            format!("{who} fails one request after another: the breaker is open, a probe follows"),
        ),
        (CloseReason::Failing, None) => (
            WaitReason::Breaker,
            format!("{who} fails one request after another: the breaker lets one probe through"),
        ),
    };
    WaitsFor::new(reason, closed.until, words)
}

/// `12 of its own go before it; `, or nothing.
fn before(ahead: u64) -> String {
    match ahead {
        0 => String::new(),
        1 => "one of its own goes before it; ".to_owned(),
        ahead => format!("{ahead} of its own go before it; "),
    }
}

fn at_rate(partner: &str, limit: RateLimit, ahead: u64, next: Timestamp) -> WaitsFor {
    #[expect(clippy::cast_precision_loss, reason = "ten thousand at most")]
    let turn = Duration::try_from_secs_f64(ahead as f64 / limit.per_second).unwrap_or(NO_END);
    let words = format!(
        "partner {partner} gets {} a second, {} at once at most: {}its turn comes about then",
        limit.per_second,
        limit.burst,
        before(ahead)
    );
    WaitsFor::new(WaitReason::Limit, Some(next + turn), words)
}

/// It is due, and nothing is closed: the scheduler's limits and turns.
fn due(
    standing: &Scheduled,
    limit: Option<(Arc<str>, RateLimit)>,
    ahead: u64,
    (now, moment): (Timestamp, Moment),
) -> WaitsFor {
    if let (Some(not_before), Some((partner, limit))) = (standing.lacks_tokens, limit) {
        return at_rate(&partner, limit, ahead, now + moment.until(not_before));
    }
    let full = |places: Places, what: String| places.full().then_some((places, what));
    let partner = || standing.partner.as_deref().unwrap_or_default().to_owned();
    let cap = full(standing.of_gate, "the receiver".to_owned())
        .or_else(|| full(standing.of_partner?, format!("partner {}", partner())))
        .or_else(|| full(standing.of_destination, "the receiver".to_owned()));
    match cap {
        Some((Places { taken, most }, what)) if standing.lanes_ahead > 0 => {
            let others = standing.lanes_ahead;
            let words = format!(
                "{taken} of {most} requests to {what} are in flight, and {others} other {} their turn first; {}then \
                 it is its own",
                if others == 1 { "tenant has" } else { "tenants have" },
                before(ahead)
            );
            WaitsFor { others_ahead: Some(others), ..WaitsFor::new(WaitReason::FairShare, None, words) }
        }
        Some((Places { taken, most }, what)) => {
            let words = format!(
                "{taken} of {most} requests to {what} are in flight: {}one has to end first",
                before(ahead)
            );
            WaitsFor::new(WaitReason::Limit, None, words)
        }
        None if standing.of_node.full() => {
            let (Places { taken, most }, others) = (standing.of_node, standing.destinations_ahead);
            let words = format!(
                "{taken} of {most} requests of this node are in flight, and {others} other receivers have their turn \
                 first; {}then it is its own",
                before(ahead)
            );
            WaitsFor { others_ahead: Some(others), ..WaitsFor::new(WaitReason::FairShare, None, words) }
        }
        None => {
            let words = format!("due; {}it goes out in a moment", before(ahead));
            WaitsFor::new(WaitReason::Queued, None, words)
        }
    }
}
