//! A ledger that cases are tried on, one after another, each with a tenant of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::domain::delivery::{self, DeadReason, Delivery, Failure, Outcome, Timing};
use posthaste::domain::retry::RetrySchedule;
use posthaste::domain::scheduler::{LaneClaim, Remaining};
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{Accepted, Ledger, Progress, RequestKey};

use super::expected::{self, AGES, Claimed, Model, RETRY_AFTER_MS};
use super::steps::{Fate, Item, LANES, Step, counts};
use crate::support::{TestClock, TestDatabase, event, svix};

/// After so many cases the tables are emptied: what must hold is counted over all of them.
const CASES_TOGETHER: u32 = 100;
/// Leases are of 60 s; with three of these they are over, and with two they are not, although the database's own clock goes
/// on, too.
const AGE: Duration = Duration::from_secs(25);

pub struct Bench {
    database: TestDatabase,
    clock: Arc<TestClock>,
    ledger: Option<Ledger>,
    /// Whether the ledger must be opened anew, with empty tables.
    stale: bool,
    pub cases: u32,
    pub failures: u32,
    /// Steps made, by kind.
    pub steps: BTreeMap<&'static str, usize>,
}

impl Bench {
    pub async fn open(database: TestDatabase) -> Self {
        let clock = TestClock::new();
        let ledger = Some(database.open(&clock).await);
        Self { database, clock, ledger, stale: false, cases: 0, failures: 0, steps: counts() }
    }

    pub async fn close(mut self) {
        self.ledger.take().expect("open").close().await;
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("open")
    }

    async fn reopen(&mut self) {
        self.ledger.take().expect("open").close().await;
        self.ledger = Some(self.database.open(&self.clock).await);
    }

    async fn empty(&mut self) {
        self.ledger.take().expect("open").close().await;
        for table in ["queue", "outcome", "attempt_log", "event_key", "request_key", "event", "lane"] {
            self.database.execute(&format!("DELETE FROM {table}")).await;
        }
        self.ledger = Some(self.database.open(&self.clock).await);
        self.stale = false;
    }

    /// Tries steps; what went otherwise than the model says, where something did.
    pub async fn case(&mut self, steps: &[Step]) -> Result<(), String> {
        if self.stale || self.cases % CASES_TOGETHER == CASES_TOGETHER - 1 {
            self.empty().await;
        }
        self.cases += 1;
        let result = self.try_case(steps).await;
        if result.is_err() {
            // What is left of a case that failed is nobody else's trouble.
            (self.stale, self.failures) = (true, self.failures + 1);
        }
        result
    }

    async fn try_case(&mut self, steps: &[Step]) -> Result<(), String> {
        let tenant = format!("t{}", self.cases);
        let mut lanes = Vec::new();
        for app in 0..LANES {
            lanes.push(told(
                self.ledger().lane(&svix(&format!("{tenant}-{app}")), &tenant.as_str().into()).await,
            )?);
        }
        let base = self.progress().await?;
        let model = Model::at(self.clock.now().as_millis());
        let mut case = Case { bench: self, tenant, lanes, model, hand: Vec::new(), base };
        for (number, step) in steps.iter().enumerate() {
            let at = |reason| format!("step {number}, {step:?}: {reason}");
            case.step(step).await.map_err(at)?;
            case.compare().await.map_err(at)?;
        }
        case.look_at_the_end().await
    }

    async fn progress(&self) -> Result<Progress, String> {
        told(self.ledger().database().progress().await)
    }
}

/// One case under way.
struct Case<'b> {
    bench: &'b mut Bench,
    tenant: String,
    lanes: Vec<Arc<Lane>>,
    model: Model,
    /// Every claim that this process, or on a shared ledger another, was given.
    hand: Vec<(Delivery, Claimed)>,
    /// What there was before.
    base: Progress,
}

impl Case<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        self.count(step.kind());
        match step {
            Step::Accept { items, strict, key } => self.accept(items, *strict, *key).await,
            Step::Claim { lane, class, limit } => {
                let wish = LaneClaim { lane: self.lanes[*lane].clone(), class: *class, limit: *limit };
                self.claim(*lane, wish).await
            }
            Step::Settle { claim, fate } if !self.hand.is_empty() => {
                let (delivery, claimed) = claim.get(&self.hand).clone();
                self.settle(&delivery, &claimed, *fate).await
            }
            Step::Release { claim } if !self.hand.is_empty() => {
                let (delivery, claimed) = claim.get(&self.hand).clone();
                self.model.release(&claimed);
                told(self.bench.ledger().release(&[delivery]).await)
            }
            Step::Settle { .. } | Step::Release { .. } => Ok(()),
            Step::Pass(seconds) => {
                self.pass(Duration::from_secs(*seconds));
                Ok(())
            }
            Step::Age => {
                self.age().await;
                Ok(())
            }
            Step::Reopen => {
                self.bench.reopen().await;
                if !self.bench.database.is_postgres() {
                    // The old process is gone, with all it knew.
                    self.model.forget_leases();
                    self.hand.clear();
                }
                Ok(())
            }
        }
    }

    fn count(&mut self, kind: &'static str) {
        *self.bench.steps.entry(kind).or_default() += 1;
    }

    fn pass(&mut self, time: Duration) {
        let millis = i64::try_from(time.as_millis()).expect("a short time");
        self.bench.clock.move_wall(millis);
        self.model.now_ms += millis;
    }

    async fn age(&mut self) {
        self.bench.database.let_leases_age(AGE, &self.bench.clock).await;
        self.model.age();
    }

    async fn accept(&mut self, items: &[Item], strict: bool, key: Option<usize>) -> Result<(), String> {
        // Each at a time of its own, so that order is order of time.
        self.pass(Duration::from_millis(1));
        let new = |item: &Item| {
            let data = if item.other_data { r#"{"total":2}"# } else { r#"{"total":1.10}"# };
            let builder = event(item.id.to_string()).tenant(&self.tenant).data(data);
            let lanes = (0..LANES).filter(|lane| item.lanes[*lane]).map(|lane| &self.lanes[lane]);
            lanes.fold(builder, |builder, lane| builder.to(lane)).build()
        };
        let events = items.iter().map(new).collect();
        let key_of = |key: usize| RequestKey {
            scope: self.tenant.clone(),
            key: key.to_string(),
            fingerprint: fingerprint(items),
        };
        let answer = told(self.bench.ledger().accept(events, strict, key.map(key_of)).await)?;
        let expected = self.model.accept(items, strict, key);
        match expected {
            Accepted::Refused(_) => self.count("(refused)"),
            Accepted::KeyReused => self.count("(key reused)"),
            Accepted::Stored(_) => {}
        }
        same("the answer", answer, expected)
    }

    async fn claim(&mut self, lane: usize, wish: LaneClaim) -> Result<(), String> {
        let (limit, class) = (wish.limit, wish.class);
        let (mut answer, _) = told(self.bench.ledger().claim(&[wish]).await)?;
        let answer = answer.remove(0);
        let (expected, later) = self.model.claimable(lane, class);
        let claimed: Vec<_> = answer.deliveries.iter().map(|delivery| claimed(lane, delivery)).collect();
        let count = claimed.len();
        // Where more is said to be due, it may come with the next claim; something comes now all the same.
        let full = expected.len().min(limit);
        if count < full && (answer.remaining != Remaining::Due || count == 0) {
            return Err(format!("claimed {claimed:?} of {expected:?}, remaining {:?}", answer.remaining));
        }
        same("what is claimed", &claimed[..], &expected[..count.min(expected.len())])?;
        if count < limit && answer.remaining != Remaining::Due {
            let remaining =
                later.map_or(Remaining::Nothing, |due| Remaining::Later(Timestamp::from_millis(due)));
            same("what remains", answer.remaining, remaining)?;
        }
        for (delivery, claimed) in answer.deliveries.into_iter().zip(claimed) {
            let item = self.model.events[&claimed.key.0];
            let data = delivery.data.clone().and_then(|range| delivery.body.get(range)).unwrap_or_default();
            let original: &[u8] = if item.other_data { br#"{"total":2}"# } else { br#"{"total":1.10}"# };
            same("the data that came first", data, original)?;
            if self.model.claim(&claimed) {
                self.count("(claimed again after its lease)");
            }
            self.hand.push((delivery, claimed));
        }
        Ok(())
    }

    async fn settle(&mut self, delivery: &Delivery, claimed: &Claimed, fate: Fate) -> Result<(), String> {
        let schedule = RETRY_AFTER_MS.map(|millis| Duration::from_millis(millis.unsigned_abs()));
        let timing = Timing { at: self.bench.clock.now(), latency: Duration::from_millis(3), chance: 0.5 };
        let settlement =
            delivery::settle(delivery, outcome(fate), true, &RetrySchedule::new(schedule.to_vec()), timing);
        told(self.bench.ledger().settle(settlement).await)?;
        // What the writer takes comes in order: with the answer to this, that is committed, too.
        same(
            "nothing",
            told(self.bench.ledger().accept(Vec::new(), true, None).await)?,
            Accepted::Stored(Vec::new()),
        )?;
        if !self.model.settle(claimed, fate) {
            self.count("(stale)");
        }
        Ok(())
    }

    /// Whether the ledger's account is the model's, and balanced.
    async fn compare(&self) -> Result<(), String> {
        let now = self.bench.progress().await?;
        same("created", now.created, now.pending + now.done.values().sum::<i64>())?;
        let (created, states) = self.model.account();
        let of = |state: &str| states.get(state).copied().unwrap_or_default();
        same("deliveries created", now.created - self.base.created, created)?;
        same("deliveries that wait", now.pending - self.base.pending, of("waiting"))?;
        for state in ["delivered", "dead", "canceled"] {
            let done = |progress: &Progress| progress.done.get(state).copied().unwrap_or_default();
            same(state, done(&now) - done(&self.base), of(state))?;
        }
        let waiting = i64::try_from(self.bench.ledger().waiting()).expect("few");
        same("the backlog", waiting, now.pending)?;
        same("the ledger's trouble", self.bench.ledger().trouble(), None)
    }

    /// At the end all that waits can be claimed, once its time has come, and what is done is as the model has it.
    async fn look_at_the_end(&mut self) -> Result<(), String> {
        for (id, _) in self.model.events.clone() {
            let rows = self.bench.ledger().database().outcomes(&self.tenant, &id.to_string()).await;
            let mut rows: Vec<_> =
                told(rows)?.into_iter().map(|row| (row.state, row.attempts, row.failures)).collect();
            let done = self.model.deliveries.iter().filter(|(key, _)| key.0 == id);
            let mut expected: Vec<_> = done
                .filter_map(|(_, delivery)| match delivery {
                    expected::Delivery::Done { state, attempts, failures } => {
                        Some(((*state).to_owned(), *attempts, *failures))
                    }
                    expected::Delivery::Waiting(_) => None,
                })
                .collect();
            rows.sort();
            expected.sort();
            same("outcomes", rows, expected)?;
        }
        for _ in 0..AGES {
            self.age().await;
        }
        self.pass(Duration::from_millis(RETRY_AFTER_MS[1].unsigned_abs()));
        for lane in 0..LANES {
            for class in delivery::Class::ALL {
                let wish = LaneClaim { lane: self.lanes[lane].clone(), class, limit: 50 };
                self.claim(lane, wish).await.map_err(|reason| format!("at the end: {reason}"))?;
            }
        }
        Ok(())
    }
}

fn claimed(lane: usize, delivery: &Delivery) -> Claimed {
    let id = delivery.identity.id.parse().expect("a number");
    Claimed {
        key: (id, lane),
        number: delivery.attempt,
        failures: delivery.failures,
        due_ms: delivery.due_at.as_millis(),
    }
}

fn outcome(fate: Fate) -> Outcome {
    let failure = |status| Failure::answered(status, "no");
    match fate {
        Fate::Delivered => Outcome::Delivered { status: 202, remote_id: None, dispatch_unconfirmed: false },
        Fate::Failed => Outcome::Failed(failure(500)),
        Fate::Throttled => Outcome::Throttled { failure: failure(429), retry_after: None },
        Fate::Rejected => Outcome::Rejected(DeadReason::Rejected, failure(400)),
        Fate::Canceled => Outcome::Canceled(failure(404)),
        Fate::NotSent => Outcome::NotSent,
    }
}

/// Different for different bodies.
fn fingerprint(items: &[Item]) -> [u8; 32] {
    let mut fingerprint = [0xff; 32];
    for (item, bytes) in items.iter().zip(fingerprint.as_chunks_mut::<4>().0) {
        *bytes = [
            u8::try_from(item.id).expect("few"),
            u8::from(item.other_data),
            u8::from(item.lanes[0]),
            u8::from(item.lanes[1]),
        ];
    }
    fingerprint
}

fn told<T>(result: posthaste::ledger::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, expected: T) -> Result<(), String> {
    if is == expected { Ok(()) } else { Err(format!("{what}: {is:?}, and the model says {expected:?}")) }
}
