//! What attempts mean for an endpoint as a whole: it is failing, it works again, it is to be disabled. And what is sent
//! to endpoints past the ledger: test events and ownership challenges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::announcements::Announcer;
use crate::directory::Directory;
use crate::dispatcher::Observer;
use crate::domain::challenge::{Challenges, Unanswered};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{DeadReason, Delivery, NextState, Outcome, Settlement};
use crate::domain::gate::CloseReason;
use crate::domain::key::prefixed_hex;
use crate::domain::partner::DisableReason;
use crate::domain::scheduler::GateId;
use crate::domain::tenant::Destination;
use crate::domain::transform::{Context, DEFAULT_OUTPUT_LIMIT_BYTES};
use crate::ingest::{Ingest, new_event_id};
use crate::jobs::Job;
use crate::ledger::{Ledger, LedgerError};
use crate::send::direct::{DirectSender, Endpoints as _, LiveEndpoint, Reply};
use crate::send::{EndpointTester, TestError, TestResult};
use crate::telemetry::Watch;

/// After so long of nothing but failures an endpoint is disabled.
const FAILING_LIMIT: Duration = Duration::from_secs(5 * 24 * 3_600);
/// How often the challenges' schedule is looked at where nothing is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The event that tells of a disabled endpoint.
const DISABLED: &str = "posthaste.endpoint.disabled";

/// Keeps endpoints. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Ledger,
    directory: Directory,
    ingest: Ingest,
    direct: Arc<DirectSender>,
    watch: Watch,
    announcer: Announcer,
    /// Since when each endpoint has been failing, as far as this process has seen; `None` where it works. Endpoints
    /// that are not in it stand as the ledger knows them.
    failing: Mutex<HashMap<Arc<str>, Option<Timestamp>>>,
    clock: Arc<dyn Clock>,
}

impl Keeper {
    /// A keeper of the endpoints that `ingest` knows of.
    pub fn new(ingest: Ingest, direct: Arc<DirectSender>, watch: &Watch) -> Self {
        let (ledger, directory, clock) = ingest.surroundings();
        let announcer = Announcer::new(ingest.clone());
        let (watch, failing) = (watch.clone(), Mutex::default());
        let shared = Shared { ledger, directory, ingest, direct, watch, announcer, failing, clock };
        Self { shared: Arc::new(shared) }
    }

    /// What announces what it hears of.
    pub fn announcer(&self) -> &Announcer {
        &self.shared.announcer
    }

    /// Challenges endpoints that have to prove themselves, until `stop` is cancelled: several at a time, each by the
    /// schedule of [`Challenges`].
    pub async fn challenge(&self, stop: CancellationToken) {
        let mut changes = self.shared.directory.changes();
        let jobs = self.shared.ledger.jobs();
        jobs.started(Job::Challenges, Some(3 * LOOK_EVERY));
        let (mut challenges, mut under_way) = (Challenges::default(), JoinSet::new());
        loop {
            let unproven = self.shared.directory.snapshot().unproven();
            let now = self.shared.clock.moment();
            challenges.update(unproven.iter().map(|(id, (version, _))| (id, *version)), now);
            for (id, version) in challenges.start(now) {
                let endpoint = unproven.get(&id).map(|(_, endpoint)| endpoint.clone());
                under_way.spawn(self.clone().challenge_one(id, version, endpoint));
            }
            // An endpoint that does not answer is not the job's failure.
            jobs.ran(Job::Challenges, &Ok::<_, LedgerError>(()));
            let due = challenges.next_due().map(|due| self.shared.clock.moment().until(due));
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some(ended) = under_way.join_next() => {
                    let Ok((id, version, answered)) = ended else { continue };
                    let now = self.shared.clock.moment();
                    note(&mut challenges, &id, version, answered, now);
                }
                () = tokio::time::sleep(due.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One challenge; a panic in it counts as one that was not answered.
    async fn challenge_one(
        self,
        id: Arc<str>,
        version: i64,
        endpoint: Option<Arc<LiveEndpoint>>,
    ) -> (Arc<str>, i64, Result<(), String>) {
        let answered = match endpoint {
            Some(endpoint) => {
                // A task for itself, so that its panic ends only that.
                let task = tokio::spawn(async move { self.shared.challenge_one(&endpoint, version).await });
                let task = AbortOnDropHandle::new(task);
                task.await.unwrap_or_else(|_| Err("the challenge panicked; the log says where".into()))
            }
            None => Err("the endpoint is gone".into()),
        };
        (id, version, answered)
    }
}

/// Takes what came of a challenge into the schedule, and logs it.
fn note(challenges: &mut Challenges, id: &str, version: i64, answered: Result<(), String>, now: Moment) {
    let Err(error) = answered else { return challenges.answered(id, version) };
    match challenges.unanswered(id, version, now) {
        Some(Unanswered::Again(wait)) => {
            let wait_s = wait.as_secs();
            tracing::warn!(endpoint = %id, %error, wait_s, "the challenge was not answered");
        }
        Some(Unanswered::GivenUp) => {
            tracing::warn!(endpoint = %id, %error, "the challenge was not answered; save the endpoint to send another");
        }
        // Saved or deleted meanwhile.
        None => {}
    }
}

impl Shared {
    fn failing(&self) -> MutexGuard<'_, HashMap<Arc<str>, Option<Timestamp>>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the endpoint has been failing; `None` where it works.
    fn failing_since(&self, id: &Arc<str>) -> Option<Timestamp> {
        if let Some(known) = self.failing().get(id) {
            return *known;
        }
        self.directory.endpoint(id).and_then(|endpoint| endpoint.failing_since)
    }

    async fn succeeded(&self, id: &Arc<str>) -> Result<(), LedgerError> {
        self.failing().insert(id.clone(), None);
        self.ledger.database().set_failing_since(id, None).await.map(drop)
    }

    async fn failed(&self, id: &Arc<str>) -> Result<(), LedgerError> {
        let now = self.clock.now();
        match self.failing_since(id) {
            None => {
                self.failing().insert(id.clone(), Some(now));
                self.ledger.database().set_failing_since(id, Some(now)).await.map(drop)
            }
            // A clock that is in doubt may have jumped over the five days.
            Some(since) if now.since(since) >= FAILING_LIMIT && self.ledger.clock().status().may_prune => {
                self.disable(id, DisableReason::Failing, "nothing but failures for five days").await
            }
            Some(_) => Ok(()),
        }
    }

    async fn disable(&self, id: &Arc<str>, reason: DisableReason, detail: &str) -> Result<(), LedgerError> {
        let now = self.clock.now();
        let changed = self.ledger.database().set_endpoint_state(id, Some((reason, now))).await?;
        if !changed {
            return Ok(());
        }
        // Whoever enables it again begins with a clean slate.
        self.failing().insert(id.clone(), None);
        self.ledger.database().set_failing_since(id, None).await?;
        let partner = self.directory.endpoint(id).map(|endpoint| endpoint.partner.to_string());
        self.directory.reload().await?;
        tracing::error!(endpoint = %id, reason = reason.as_str(), detail, "endpoint disabled");
        let data = json!({
            "endpoint": &**id,
            "partner": partner,
            "reason": reason.as_str(),
            "detail": detail,
            "at": now.as_millis(),
        });
        self.ingest.raise(DISABLED, &data).await
    }

    /// One signed request past the ledger.
    async fn send(&self, endpoint: &LiveEndpoint, event_type: &str, data: &Value) -> TestResult {
        let (id, now) = (new_event_id(&*self.clock), self.clock.now());
        let event = json!({ "id": id, "type": event_type, "tenant": "posthaste", "data": data }).to_string();
        let began = self.clock.moment();
        let context = Context { id: &id, event_type, tenant: "posthaste", source: "", received_at: now };
        let shaped = match &endpoint.transform {
            Some(transform) => transform
                .apply(event.as_bytes(), &context, DEFAULT_OUTPUT_LIMIT_BYTES)
                .map(|shaped| Bytes::from(shaped.into_owned()))
                .map_err(|error| format!("{}: {error}", error.code())),
            None => Ok(Bytes::from(event)),
        };
        let reply = match shaped {
            Ok(payload) => {
                let reply = self.direct.post(endpoint, &id, payload).await;
                reply.map_err(|failure| format!("{}: {}", failure.code, failure.detail))
            }
            Err(error) => Err(error),
        };
        let latency = began.until(self.clock.moment());
        let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        match reply {
            Ok(Reply { status, excerpt, .. }) => TestResult {
                status: Some(status),
                latency_ms,
                body_excerpt: excerpt,
                error: (!(200..300).contains(&status)).then(|| format!("http_{status}")),
            },
            Err(error) => {
                TestResult { status: None, latency_ms, body_excerpt: String::new(), error: Some(error) }
            }
        }
    }

    /// Asks an endpoint to say a random word back: as the whole body, or as `challenge` in a JSON object.
    async fn challenge_one(&self, endpoint: &LiveEndpoint, version: i64) -> Result<(), String> {
        let word = prefixed_hex("", &self.clock.random().to_be_bytes());
        // Not reshaped: the endpoint must find the word.
        let plain = LiveEndpoint { transform: None, ..endpoint.clone() };
        let result = self.send(&plain, "posthaste.challenge", &json!({ "challenge": word })).await;
        if let Some(error) = result.error {
            return Err(error);
        }
        let said = serde_json::from_str::<Value>(&result.body_excerpt).ok();
        let said = said.as_ref().and_then(|body| body["challenge"].as_str());
        if said.unwrap_or(result.body_excerpt.trim()) != word {
            return Err("the answer does not say the challenge back".into());
        }
        // Its URL may have been changed since the challenge was sent: the new one is challenged next.
        let unproven = self.directory.snapshot().unproven();
        if unproven.get(&endpoint.id).is_none_or(|(current, _)| *current != version) {
            return Err("the endpoint was changed during its challenge".into());
        }
        let database = self.ledger.database();
        let proven = database.set_proven(&endpoint.id, self.clock.now()).await;
        proven.map_err(|error| error.to_string())?;
        tracing::info!(endpoint = %endpoint.id, "the endpoint has proved itself");
        self.directory.reload().await.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Observer for Keeper {
    async fn observe(&self, delivery: &Delivery, outcome: &Outcome) {
        let Destination::Endpoint { id } = &*delivery.lane.destination else { return };
        // What is rare is boxed: see `SvixSender::send`.
        let kept = match outcome {
            Outcome::Delivered { .. } if self.shared.failing_since(id).is_some() => {
                Box::pin(self.shared.succeeded(id)).await
            }
            Outcome::Rejected(DeadReason::Gone, failure) => {
                Box::pin(self.shared.disable(id, DisableReason::Gone, &failure.detail)).await
            }
            Outcome::Failed(_) => Box::pin(self.shared.failed(id)).await,
            _ => Ok(()),
        };
        if let Err(error) = kept {
            tracing::warn!(endpoint = %id, %error, "an endpoint's state could not be recorded");
        }
    }

    fn measure(&self, delivery: &Delivery, outcome: &Outcome, latency: Duration) {
        self.shared.watch.stats.attempted(delivery, outcome, latency);
    }

    fn settle(&self, delivery: &Delivery, settlement: &Settlement) {
        self.shared.watch.stats.settled(delivery, settlement);
        if let NextState::Dead { reason } = settlement.next {
            self.shared.announcer.died(delivery, reason);
        }
    }

    fn gate_closed(&self, gate: &GateId, reason: CloseReason, wait: Duration) {
        self.shared.watch.metrics.gate_closed(reason);
        self.shared.announcer.gate_closed(gate, reason, wait);
    }

    fn gate_opened(&self, gate: &GateId) {
        self.shared.announcer.gate_opened(gate);
    }
}

#[async_trait]
impl EndpointTester for Keeper {
    async fn test(&self, id: &str) -> Result<TestResult, TestError> {
        let endpoint = self.shared.directory.endpoint(id).ok_or(TestError::Unknown)?;
        let data = json!({ "message": "This is a test from Posthaste." });
        Ok(self.shared.send(&endpoint, "posthaste.test", &data).await)
    }
}
