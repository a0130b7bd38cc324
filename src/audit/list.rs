//! One application's messages at Svix, held against its deliveries in the ledger.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{AuditError, AuditedDelivery, audited};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::event::Identity;
use crate::domain::retry::spread;
use crate::domain::tenant::Lane;
use crate::ledger::{LedgerError, SvixDelivery};
use crate::send::svix::SvixSender;
use crate::send::svix::audit::{ListError, MessagePage};

/// How far a message's time at Svix may be from its delivery's time in the ledger, before a list does not show it.
const SLACK_MS: i64 = 60_000;
/// No more deliveries than this are looked up one by one instead of listed.
const FEW: usize = 3;
/// With at least so many deliveries left, a look-up that finds a message at another time moves the list there.
const MOVE_MIN: usize = 20;
/// How often that may happen to one application in one window.
const MOVES_MAX: u32 = 3;
/// Messages that are remembered of one application.
const REMEMBERED_MAX: usize = 200_000;
/// The first pause after a throttle that names none; doubles with each further one in a row, at most so often.
const PAUSE: Duration = Duration::from_secs(1);
const DOUBLINGS_MAX: u32 = 6;

/// Why a part of an audit ends before its range does.
pub(super) enum Stop {
    /// Its time is over, or Svix asks for a pause of so long.
    Paused(Option<Duration>),
    /// Svix can't be asked, or the ledger can't be read.
    Failed(AuditError),
}

impl From<LedgerError> for Stop {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error.into())
    }
}

/// What needs an operator's look.
#[derive(Default)]
pub(super) struct Found {
    pub missing: Vec<AuditedDelivery>,
    pub unconfirmed: Vec<AuditedDelivery>,
}

/// An application's deliveries in one window.
pub(super) struct Application {
    pub name: String,
    /// Deliveries that are not known to be at Svix yet.
    pub left: Vec<(Arc<Lane>, SvixDelivery)>,
    /// Times that are still to be listed; `None` before that was planned.
    spans: Option<VecDeque<Span>>,
    moves: u32,
}

/// Times that are to be listed, from the newest message to the oldest.
struct Span {
    from: i64,
    to: i64,
    /// How many more requests it is worth: from there on look-ups are cheaper.
    requests_left: usize,
    /// Where the next page begins.
    iterator: Option<String>,
    /// The time of its newest message.
    newest: Option<i64>,
}

/// Where a delivery's message is expected in Svix's list: so long after the ledger's time of it.
#[derive(Clone, Copy)]
enum Expected {
    AtDelivery(i64),
    AtArrival(i64),
}

impl Expected {
    /// The reading of a message's time that is nearer to the ledger's.
    fn of(delivery: &SvixDelivery, created: i64) -> Self {
        let (from_delivery, from_arrival) = (created - delivery.at, created - delivery.received_at);
        if from_delivery.abs() <= from_arrival.abs() {
            Self::AtDelivery(from_delivery)
        } else {
            Self::AtArrival(from_arrival)
        }
    }

    fn times(self, delivery: &SvixDelivery) -> (i64, i64) {
        let (earliest, latest) = match self {
            Self::AtDelivery(offset) => (delivery.at - delivery.latency_ms + offset, delivery.at + offset),
            Self::AtArrival(offset) => (delivery.received_at + offset, delivery.received_at + offset),
        };
        (earliest.saturating_sub(SLACK_MS), latest.saturating_add(SLACK_MS))
    }
}

impl Application {
    pub(super) const fn new(name: String) -> Self {
        Self { name, left: Vec::new(), spans: None, moves: 0 }
    }

    /// Drops the deliveries whose message was listed.
    fn settle(&mut self, list: &List, found: &mut Found) {
        let name = &self.name;
        self.left.retain(|(lane, delivery)| {
            let is_there = delivery.remote_id.as_ref().is_some_and(|id| list.messages.contains_key(id));
            if is_there && delivery.dispatch_unconfirmed {
                found.unconfirmed.push(audited(delivery, lane, name));
            }
            !is_there
        });
    }

    /// Plans which times to list: those of the deliveries that are left, without those that were listed before.
    fn plan(&mut self, list: &List, expected: Expected) {
        let named = self.left.iter().filter(|(_, delivery)| delivery.remote_id.is_some());
        let mut times: Vec<_> = named.map(|(_, delivery)| expected.times(delivery)).collect();
        times.sort_unstable();
        let mut stretches: Vec<(i64, i64, usize)> = Vec::new();
        for (from, to) in times {
            match stretches.last_mut() {
                Some((_, last, count)) if from <= *last => (*last, *count) = ((*last).max(to), *count + 1),
                _ => stretches.push((from, to, 1)),
            }
        }
        let worth_it = stretches.into_iter().filter(|(.., count)| *count > FEW);
        let spans = worth_it.flat_map(|(from, to, count)| {
            let span =
                move |(from, to)| Span { from, to, requests_left: count, iterator: None, newest: None };
            list.uncovered(from, to).into_iter().map(span)
        });
        self.spans = Some(spans.collect());
    }
}

/// What was listed of an application.
#[derive(Default)]
pub(super) struct List {
    /// When each message was created, by Svix's own id.
    messages: HashMap<String, i64>,
    /// Times that were listed, in order and apart.
    covered: Vec<(i64, i64)>,
    /// Svix does not know the application.
    unknown: bool,
}

impl List {
    /// Takes over a page of a span; whether there may be more of it.
    fn take(&mut self, span: &mut Span, page: MessagePage) -> bool {
        span.requests_left = span.requests_left.saturating_sub(1);
        let time = |message: Option<&(String, Timestamp)>| message.map(|(_, created)| created.as_millis());
        let (Some(newest), Some(oldest)) = (time(page.messages.first()), time(page.messages.last())) else {
            return false;
        };
        let newest = *span.newest.get_or_insert(newest);
        let is_last = page.next.is_none() || oldest < span.from;
        self.messages.extend(page.messages.into_iter().map(|(id, created)| (id, created.as_millis())));
        // What is newer than its newest message may still be stored.
        self.cover(if is_last { span.from } else { oldest + 1 }, newest.min(span.to));
        span.iterator = page.next;
        !is_last && span.requests_left > 0
    }

    fn cover(&mut self, from: i64, to: i64) {
        if from > to {
            return;
        }
        self.covered.push((from, to));
        self.covered.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::with_capacity(self.covered.len());
        for (from, to) in self.covered.drain(..) {
            match merged.last_mut() {
                Some((_, last)) if from <= last.saturating_add(1) => *last = (*last).max(to),
                _ => merged.push((from, to)),
            }
        }
        self.covered = merged;
    }

    /// The stretches between two times that were not listed.
    fn uncovered(&self, from: i64, to: i64) -> Vec<(i64, i64)> {
        let (mut from, mut stretches) = (from, Vec::new());
        for (first, last) in &self.covered {
            if *first > to {
                break;
            }
            if *first > from {
                stretches.push((from, *first));
            }
            from = from.max(*last);
        }
        if from < to {
            stretches.push((from, to));
        }
        stretches
    }

    fn covers(&self, time: i64) -> bool {
        self.covered.iter().any(|(from, to)| (*from..=*to).contains(&time))
    }

    fn forget_before(&mut self, time: i64) {
        self.messages.retain(|_, created| *created >= time);
        self.covered.retain(|(_, to)| *to >= time);
        for (from, _) in &mut self.covered {
            *from = (*from).max(time);
        }
    }
}

/// Forgets what was listed of times that no later window needs: before its first event came, less the slack.
pub(super) fn forget_old(lists: &mut HashMap<String, List>, first_arrival: i64) {
    let before = first_arrival.saturating_sub(SLACK_MS);
    lists.values_mut().for_each(|list| list.forget_before(before));
    lists.retain(|_, list| !list.messages.is_empty());
}

/// Asks Svix on behalf of one part of an audit.
pub(super) struct Visit<'a> {
    pub svix: &'a SvixSender,
    pub clock: &'a dyn Clock,
    pub deadline: Moment,
    pub not_before: &'a mut Moment,
    pub throttles: &'a mut u32,
    pub requests: &'a mut u64,
}

impl Visit<'_> {
    /// Compares an application's deliveries in a window. After a [`Stop`] it goes on where it was.
    pub(super) async fn compare(
        &mut self,
        application: &mut Application,
        list: &mut List,
        found: &mut Found,
    ) -> Result<(), Stop> {
        if application.spans.is_none() {
            list.unknown = false;
            application.settle(list, found);
            application.plan(list, Expected::AtDelivery(0));
        }
        loop {
            self.list(application, list, found).await?;
            let Some(expected) = self.look_up(application, list, found).await? else { return Ok(()) };
            application.moves += 1;
            application.plan(list, expected);
        }
    }

    /// Lists the times that were planned, until they are done or no delivery is left.
    async fn list(
        &mut self,
        application: &mut Application,
        list: &mut List,
        found: &mut Found,
    ) -> Result<(), Stop> {
        let svix = self.svix;
        while !application.left.is_empty()
            && let Some(span) = application.spans.as_mut().and_then(VecDeque::front_mut)
        {
            let (name, before) = (&application.name, Timestamp::from_millis(span.to.saturating_add(1)));
            let iterator = span.iterator.as_deref();
            let page = self.ask(|| svix.list_messages(name, before, iterator)).await?;
            list.unknown = page.is_none();
            let more = list.take(span, page.unwrap_or_default());
            if let Some(spans) = &mut application.spans {
                if list.unknown {
                    spans.clear();
                } else if !more {
                    spans.pop_front();
                }
            }
            application.settle(list, found);
            if list.messages.len() > REMEMBERED_MAX {
                list.forget_before(i64::MAX);
            }
        }
        Ok(())
    }

    /// Looks up the deliveries that no list has shown. Returns early where one shows that the others are better listed, and
    /// where to expect them.
    async fn look_up(
        &mut self,
        application: &mut Application,
        list: &List,
        found: &mut Found,
    ) -> Result<Option<Expected>, Stop> {
        while let Some((lane, delivery)) = application.left.last() {
            let created = match list.unknown {
                true => None,
                false => self.find(&application.name, lane, delivery).await?,
            };
            let audited = audited(delivery, lane, &application.name);
            match created {
                None => found.missing.push(audited),
                Some(_) if delivery.dispatch_unconfirmed => found.unconfirmed.push(audited),
                Some(_) => {}
            }
            let expected = created.map(|created| (created, Expected::of(delivery, created)));
            application.left.pop();
            if let Some((created, expected)) = expected
                && application.left.len() >= MOVE_MIN
                && application.moves < MOVES_MAX
                && !list.covers(created)
            {
                return Ok(Some(expected));
            }
        }
        Ok(None)
    }

    /// When Svix created the message of a delivery; `None` where it does not have it.
    async fn find(&mut self, app: &str, lane: &Lane, delivery: &SvixDelivery) -> Result<Option<i64>, Stop> {
        let identity = Identity {
            tenant: lane.tenant.clone(),
            source: delivery.source.as_str().into(),
            id: delivery.id.as_str().into(),
        };
        let svix = self.svix;
        let names = match &delivery.remote_id {
            Some(remote_id) => vec![remote_id.clone()],
            None => svix.names_of(&lane.destination, &identity),
        };
        for name in names {
            if let Some(created) = self.ask(|| svix.find_message(app, &name)).await? {
                return Ok(Some(created.as_millis()));
            }
        }
        Ok(None)
    }

    /// Asks Svix. A throttle is waited for as a gate waits: as long as Svix asks, and longer with each throttle in a row.
    async fn ask<T, F>(&mut self, request: impl Fn() -> F) -> Result<T, Stop>
    where
        F: Future<Output = Result<T, ListError>>,
    {
        loop {
            let now = self.clock.moment();
            let wait = now.until(*self.not_before);
            if now + wait >= self.deadline {
                return Err(Stop::Paused(Some(wait).filter(|wait| !wait.is_zero())));
            }
            tokio::time::sleep(wait).await;
            *self.requests += 1;
            match request().await {
                Ok(answer) => {
                    *self.throttles = 0;
                    return Ok(answer);
                }
                Err(ListError::Throttled(asked)) => {
                    let own = PAUSE * (1 << (*self.throttles).min(DOUBLINGS_MAX));
                    let own = spread(own, self.clock.chance());
                    let wait =
                        asked.map_or(own, |asked| if *self.throttles > 0 { asked.max(own) } else { asked });
                    *self.throttles += 1;
                    *self.not_before = self.clock.moment() + wait.min(self.svix.retry_after_max());
                }
                Err(error) => return Err(Stop::Failed(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_listed_is_not_listed_again() {
        let mut list = List::default();
        assert_eq!(list.uncovered(10, 100), [(10, 100)]);
        list.cover(40, 60);
        list.cover(70, 80);
        assert_eq!(list.uncovered(10, 100), [(10, 40), (60, 70), (80, 100)]);
        assert_eq!(list.uncovered(45, 55), []);
        list.cover(50, 75);
        assert_eq!(list.covered, [(40, 80)]);
        assert_eq!(list.uncovered(60, 90), [(80, 90)]);
        assert!(list.covers(40) && list.covers(80) && !list.covers(81));
        list.messages.extend([("old".to_owned(), 59), ("new".to_owned(), 60)]);
        list.forget_before(60);
        assert_eq!((list.covered.as_slice(), list.messages.len()), (&[(60, 80)][..], 1));
    }
}
