//! Kill -9 at random moments, again and again: what was acknowledged arrives, and nothing arrives as two.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer, Trouble};
use serde_json::{Value, json};

use super::{sized, tell};
use crate::ingest::batch;
use crate::simulation::random::Random;
use crate::support::partners::{MASTER_KEY, add_endpoint};
use crate::support::{HttpClient, RelayProcess, TestDatabase, eventually, mock_svix};

/// Events in a batch.
pub const PER_BATCH: usize = 50;
/// Where a seed that failed is given again.
const SEED: &str = "POSTHASTE_CHAOS_SEED";
/// Longest that what is left takes at the end.
const PATIENCE: Duration = Duration::from_secs(90);
const LONG_PATIENCE: Duration = Duration::from_secs(900);

/// A seed of this run's own, or the one that is to be run again; printed, for a run that fails.
pub fn random() -> Random {
    let named = std::env::var(SEED).ok().map(|text| text.parse().expect("a whole number"));
    let seed = named.unwrap_or_else(rand::random::<u32>);
    println!("{SEED}={seed}");
    Random::new(seed.into())
}

/// A relay that is killed again and again, what it sends to, and what it has acknowledged.
pub struct Scene {
    pub database: TestDatabase,
    pub svix: MockSvix,
    pub partner: MockPartner,
    /// Batches without an answer, by number; they are posted again, as a platform would.
    pending: Mutex<Vec<usize>>,
    /// Batches with a 202. None of these is posted again.
    acknowledged: Mutex<Vec<usize>>,
    batches: usize,
}

/// What it came to.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub events: usize,
    /// Requests for what a receiver had been sent before: at Svix, and at the partner.
    pub second_sends: (usize, usize),
}

impl Scene {
    /// One tenant, whose events go to Svix and to a partner's endpoint both.
    pub async fn new(database: TestDatabase) -> Self {
        let (svix, partner) = (mock_svix().await, MockPartner::start().await);
        let (pending, acknowledged) = (Mutex::default(), Mutex::default());
        let scene = Self { database, svix, partner, pending, acknowledged, batches: 0 };
        let relay = scene.start(&[]);
        add_endpoint(&relay, "partner", json!({ "url": scene.partner.url("/hook") })).await;
        relay.kill();
        scene
    }

    /// Starts the relay, which is up before anything ends it.
    pub fn start(&self, variables: &[(&str, &str)]) -> RelayProcess {
        let started = RelayProcess::launch(&mut self.command(variables));
        started.unwrap_or_else(|ended| panic!("the relay ended early: {ended:?}"))
    }

    /// What starts it.
    pub fn command(&self, variables: &[(&str, &str)]) -> std::process::Command {
        RelayProcess::command(&self.database, &self.svix, &[&SETTINGS, variables].concat())
    }

    /// So many further batches wait to be posted.
    pub fn add(&mut self, batches: usize) {
        self.pending.lock().unwrap().extend(self.batches..self.batches + batches);
        self.batches += batches;
    }

    /// Several producers post what waits, until nothing is left or the relay is gone.
    pub async fn produce(&self, relay: &HttpClient) {
        let one = || self.produce_alone(relay);
        tokio::join!(one(), one(), one(), one());
    }

    async fn produce_alone(&self, relay: &HttpClient) {
        loop {
            let Some(number) = self.pending.lock().unwrap().pop() else { return };
            let answer = relay.try_post(batch(number * PER_BATCH, PER_BATCH)).await;
            match answer {
                Ok(answer) if answer.status == 202 => self.acknowledged.lock().unwrap().push(number),
                // Unknown: stored, or not.
                answer => {
                    self.pending.lock().unwrap().push(number);
                    let Ok(answer) = answer else { return };
                    assert_eq!(answer.status, 503, "{}", answer.json());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Lets the last relay finish what is left, and holds every 202 against ledger and receivers.
    pub async fn reconcile(self) -> Figures {
        let before: HashSet<String> = ids(&self.acknowledged.lock().unwrap()).collect();
        let known = self.recorded().await;
        let lost: Vec<_> = before.difference(&known).collect();
        assert!(lost.is_empty(), "acknowledged and not in the ledger: {lost:?}");
        self.svix.set_replay_by_key(false);
        self.svix.set_trouble(None);
        self.partner.set_answer(None);
        let relay = self.start(&[]);
        self.produce(&relay).await;
        assert_eq!(self.acknowledged.lock().unwrap().len(), self.batches, "all is acknowledged in the end");
        let events = self.batches * PER_BATCH;
        self.delivered(events).await;
        // Time for a double to show: the longest that a claim of a dead process holds.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        for (table, rows) in [("queue", 0), ("outcome", 2 * events), ("event", events), ("event_key", events)]
        {
            assert_eq!(self.count(&format!("SELECT COUNT(*) FROM {table}")).await, rows, "{table}");
        }
        let all: HashSet<String> = (0..events).map(|n| format!("evt_{n}")).collect();
        assert_eq!(self.recorded().await, all, "the ledger holds what was sent, and nothing else");
        let second_sends = (self.once_at_svix(&all), self.under_one_id_at_the_partner(&all));
        relay.kill();
        Figures { events, second_sends }
    }

    /// Waits until so many events are delivered to both.
    pub async fn delivered(&self, events: usize) {
        let deadline = tokio::time::Instant::now() + sized(PATIENCE, LONG_PATIENCE);
        loop {
            let delivered = self.count("SELECT COUNT(*) FROM outcome WHERE state = 'delivered'").await;
            if delivered == 2 * events {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{delivered} of {} are delivered", 2 * events);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every event as one message, under one key, with its own bytes; how many requests there were beyond those.
    fn once_at_svix(&self, all: &HashSet<String>) -> usize {
        let mut copies: HashMap<String, usize> = HashMap::new();
        for message in self.svix.messages() {
            let id = message.event_id.clone().expect("an id");
            assert_eq!(message.payload, event_text(&id), "the bytes that came in");
            *copies.entry(id).or_default() += 1;
        }
        let lost = all.iter().filter(|id| !copies.contains_key(*id)).count();
        let doubled = copies.values().filter(|count| **count > 1).count();
        assert_eq!((lost, doubled, copies.len()), (0, 0, all.len()), "lost and doubled at Svix");
        let requests = self.svix.requests();
        let mut keys: HashMap<&str, &str> = HashMap::new();
        for request in &requests {
            let event_id = request.event_id.as_deref().expect("an id");
            let key = request.idempotency_key.as_deref().expect("a key");
            assert_eq!(*keys.entry(event_id).or_insert(key), key, "no event goes out under two keys");
        }
        requests.len() - keys.len()
    }

    /// Every event at least once, always with the same id and bytes; how many requests there were beyond the first.
    fn under_one_id_at_the_partner(&self, all: &HashSet<String>) -> usize {
        let requests = self.partner.requests();
        let mut ids: HashMap<String, String> = HashMap::new();
        let mut events: HashMap<String, String> = HashMap::new();
        for request in &requests {
            let body: Value = serde_json::from_slice(&request.body).expect("JSON");
            let (event, id) = (body["id"].as_str().expect("an id").to_owned(), request.header("webhook-id"));
            assert_eq!(request.body, event_text(&event).as_bytes(), "the bytes that came in");
            assert_eq!(ids.entry(event.clone()).or_insert_with(|| id.to_owned()), id, "one id for {event}");
            assert_eq!(*events.entry(id.to_owned()).or_insert(event.clone()), event, "one event for {id}");
        }
        let lost = all.iter().filter(|id| !ids.contains_key(*id)).count();
        assert_eq!((lost, ids.len()), (0, all.len()), "lost at the partner");
        requests.len() - ids.len()
    }

    /// The ids of the events in the ledger.
    async fn recorded(&self) -> HashSet<String> {
        let ids = self.database.text("SELECT COALESCE(string_agg(id, ','), '') FROM event_key").await;
        ids.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
    }

    pub async fn count(&self, sql: &str) -> usize {
        let cast = sql.replace("COUNT(*)", "CAST(COUNT(*) AS TEXT)");
        self.database.text(&cast).await.parse().expect("a count")
    }
}

/// Milliseconds that a relay's wall clock is wrong, or the path of a file that holds them.
pub const CLOCK_OFFSET: &str = "POSTHASTE_TEST_CLOCK_OFFSET";
pub const HUNDRED_DAYS_MS: i64 = 100 * 86_400_000;

/// Short leases: what a dead process held is claimed again soon. Pruned often: a wrong clock forgets nothing.
const SETTINGS: [(&str, &str); 5] = [
    ("POSTHASTE_RETENTION__PRUNE_EVERY_MS", "50"),
    ("POSTHASTE_DISPATCH__LEASE_MS", "2000"),
    ("POSTHASTE_SVIX__TIMEOUT_MS", "500"),
    ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
    ("POSTHASTE_MASTER_KEY", MASTER_KEY),
];

fn ids(batches: &[usize]) -> impl Iterator<Item = String> {
    batches.iter().flat_map(|number| number * PER_BATCH..(number + 1) * PER_BATCH).map(|n| format!("evt_{n}"))
}

/// The event as [`batch`] writes it.
fn event_text(id: &str) -> String {
    let n = id.strip_prefix("evt_").expect("one of ours");
    batch(n.parse().expect("a number"), 1).trim_matches(['[', ']']).to_owned()
}

/// Killed in the middle of things, at another moment in every round, while producers post and both receivers are sent to;
/// half of the time Svix forgets keys, so that `eventId` must hold alone.
async fn what_was_acknowledged_arrives_once(database: TestDatabase) {
    // holds: 19, 36
    kill_again_and_again(database, "kill -9", sized((6, 100), (100, 1_000)), |_| 0).await;
}

/// The same, with a wall clock that is 100 days wrong at every second start, ahead and behind in turns.
async fn clocks_that_jump_by_100_days_lose_and_double_nothing(database: TestDatabase) {
    // holds: 19, 53
    let offset = |round: usize| match round % 4 {
        1 => HUNDRED_DAYS_MS,
        3 => -HUNDRED_DAYS_MS,
        _ => 0,
    };
    kill_again_and_again(database, "kill -9 with wrong clocks", sized((5, 40), (100, 1_000)), offset).await;
}

/// Starts, kills and starts again, with a clock that is wrong by the milliseconds that `offset` gives for a round.
async fn kill_again_and_again(
    database: TestDatabase,
    promise: &str,
    (rounds, batches): (usize, usize),
    offset: impl Fn(usize) -> i64,
) {
    let place = if database.is_postgres() { "Postgres" } else { "SQLite" };
    let mut random = random();
    let mut scene = Scene::new(database).await;
    for round in 0..rounds {
        scene.svix.set_replay_by_key(round % 2 == 0);
        // This round's share, evenly.
        scene.add(batches * (round + 1) / rounds - batches * round / rounds);
        let relay = scene.start(&[(CLOCK_OFFSET, &offset(round).to_string())]);
        let client = (*relay).clone();
        let after = Duration::from_millis(random.between(5, 600));
        let killing = async {
            tokio::time::sleep(after).await;
            relay.kill();
        };
        tokio::join!(scene.produce(&client), killing);
    }
    let Figures { events, second_sends: (svix, partner) } = scene.reconcile().await;
    tell(
        promise,
        format!(
            "{place}: {rounds} rounds, {events} events acknowledged, 0 lost, 0 under two keys; at Svix 0 doubled \
             ({svix} second sends), at the partner {partner} second sends, each under the same id"
        ),
    );
}

/// The receivers have the request, and the relay is killed before it can read their answer.
async fn killed_between_a_request_and_its_answer(database: TestDatabase) {
    // holds: 21, 36
    let rounds = sized(2, 20);
    let place = if database.is_postgres() { "Postgres" } else { "SQLite" };
    let mut scene = Scene::new(database).await;
    let late = Duration::from_millis(400);
    let mut cut_off = 0;
    for round in 0..rounds {
        scene.svix.set_replay_by_key(round % 2 == 0);
        scene.svix.set_trouble(Some(Trouble::Slow(late)));
        scene.partner.set_answer(Some(PartnerAnswer { delay: late, ..PartnerAnswer::status(204) }));
        scene.add(1);
        let stored = scene.svix.message_count();
        let arrived = scene.partner.request_count();
        let relay = scene.start(&[]);
        let client = (*relay).clone();
        let killing = async {
            let both = async || {
                let (svix, partner) = (scene.svix.message_count(), scene.partner.request_count());
                (svix > stored && partner > arrived).then_some(())
            };
            eventually("both have requests", both).await;
            relay.kill();
        };
        tokio::join!(scene.produce(&client), killing);
        cut_off += scene.svix.message_count() - stored;
    }
    let delivered = scene.count("SELECT COUNT(*) FROM outcome").await;
    let figures = scene.reconcile().await;
    let (svix, partner) = figures.second_sends;
    assert!(delivered < 2 * figures.events, "some answers were never read");
    assert!(svix > 0 && partner > 0, "they were sent again: {figures:?}");
    tell(
        "killed between request and answer",
        format!(
            "{place}: {rounds} rounds, {cut_off} messages stored at Svix before it; {svix} sent again there, 0 doubled; \
             {partner} sent again to the partner under the same id"
        ),
    );
}

on_both_databases!(
    what_was_acknowledged_arrives_once,
    clocks_that_jump_by_100_days_lose_and_double_nothing,
    killed_between_a_request_and_its_answer
);
