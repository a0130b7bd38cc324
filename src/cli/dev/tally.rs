//! What should have come to the partner, and what came, as the partner sees it.

use std::collections::HashMap;

use super::journal::{Line, Receiver};
use super::sample::Sample;
use super::sink;
use crate::domain::clock::Moment;
use crate::domain::event::Identity;
use crate::domain::key::idempotency_key;
use crate::mock::PartnerRequest;

/// The counts at the partner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PartnerCounts {
    /// Accepted sample events that the partner is subscribed to.
    pub expected: u64,
    /// Sample events that it took.
    pub delivered: u64,
    /// Requests, the refused and the failed among them.
    pub requests: u64,
    /// Requests whose signature is good.
    pub verified: u64,
    /// Requests that it failed on purpose.
    pub failed: u64,
    /// Expected events that it did not take.
    pub lost: u64,
    /// Requests that it took beyond the first of a `webhook-id`.
    pub doubled: u64,
}

impl PartnerCounts {
    /// Requests whose signature is not good.
    pub const fn refused(&self) -> u64 {
        self.requests - self.verified
    }

    /// Whether everything came once and was signed.
    pub const fn is_good(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.refused() == 0
    }
}

#[derive(Debug)]
struct Awaited {
    sample: Sample,
    posted_at: Moment,
    /// The relay has said that it is in the ledger.
    acknowledged: bool,
}

/// See the module's own words.
#[derive(Debug, Default)]
pub(super) struct Tally {
    environment: String,
    endpoint: String,
    /// Sample events by their `webhook-id`, which the partner can tell in advance.
    awaited: HashMap<String, Awaited>,
    /// How often each `webhook-id` was taken.
    taken: HashMap<String, u64>,
    counts: PartnerCounts,
}

impl Tally {
    /// An empty tally of what comes to `endpoint`.
    pub fn new(environment: &str, endpoint: &str) -> Self {
        Self { environment: environment.to_owned(), endpoint: endpoint.to_owned(), ..Self::default() }
    }

    fn webhook_id(&self, sample: &Sample) -> String {
        let identity = Identity {
            tenant: sample.tenant.into(),
            source: sample.source.into(),
            id: sample.id.as_str().into(),
        };
        idempotency_key(&self.environment, &self.endpoint, &identity)
    }

    /// Before `sample` is posted for the first time.
    pub fn posting(&mut self, sample: &Sample, now: Moment) {
        if sink::wants(sample.event_type) {
            let awaited = Awaited { sample: sample.clone(), posted_at: now, acknowledged: false };
            self.awaited.insert(self.webhook_id(sample), awaited);
        }
    }

    /// The relay has said that `sample` is in the ledger.
    pub fn accepted(&mut self, sample: &Sample) {
        let id = self.webhook_id(sample);
        if let Some(awaited) = self.awaited.get_mut(&id)
            && !std::mem::replace(&mut awaited.acknowledged, true)
        {
            self.counts.expected += 1;
        }
    }

    /// What came.
    pub fn arrived(&mut self, request: &PartnerRequest, verified: bool, now: Moment) -> Line {
        let id = request.header("webhook-id");
        let awaited = self.awaited.get(id);
        let (tenant, name) = match awaited {
            Some(Awaited { sample, .. }) => (sample.tenant.to_owned(), sample.id.clone()),
            None => (sink::PARTNER.to_owned(), id.to_owned()),
        };
        self.counts.requests += 1;
        if !verified {
            return Line::Forged { tenant, id: name };
        }
        self.counts.verified += 1;
        if !(200..300).contains(&request.status) {
            self.counts.failed += 1;
            return Line::FailedOnPurpose { tenant, id: name, status: request.status };
        }
        let times = self.taken.entry(id.to_owned()).or_default();
        *times += 1;
        self.counts.doubled += u64::from(*times > 1);
        match awaited {
            Some(Awaited { sample, posted_at, .. }) => {
                self.counts.delivered += u64::from(*times == 1);
                let (sample, took) = (sample.clone(), posted_at.until(now));
                Line::Delivered { sample, to: Receiver::Sink, took }
            }
            None => foreign(request, name),
        }
    }

    /// The counts so far; `lost` is what has not come yet.
    pub fn counts(&self) -> PartnerCounts {
        let missing =
            |(id, awaited): &(&String, &Awaited)| awaited.acknowledged && !self.taken.contains_key(*id);
        PartnerCounts { lost: self.awaited.iter().filter(missing).count() as u64, ..self.counts }
    }

    /// Whether all that is expected has come.
    pub const fn is_complete(&self) -> bool {
        self.counts.delivered >= self.counts.expected
    }

    /// Sample events that it took, so far.
    pub const fn delivered(&self) -> u64 {
        self.counts.delivered
    }
}

/// The line of an event that is no sample, as far as its payload tells what it is.
fn foreign(request: &PartnerRequest, webhook_id: String) -> Line {
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let text = |names: [&str; 2]| names.into_iter().find_map(|name| body[name].as_str()).map(str::to_owned);
    Line::Foreign {
        tenant: text(["tenant", "tenantId"]).unwrap_or_else(|| sink::PARTNER.to_owned()),
        event_type: text(["type", "eventType"]).unwrap_or_else(|| "?".to_owned()),
        id: text(["id", "eventId"]).unwrap_or(webhook_id),
        to: Receiver::Sink,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    fn sample(event_type: &'static str, id: &str) -> Sample {
        Sample { tenant: "acme", event_type, source: "/shop", id: id.into() }
    }

    #[expect(clippy::disallowed_methods, reason = "a request has to have come at some time")]
    fn request(webhook_id: &str, status: u16) -> PartnerRequest {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_str(webhook_id).expect("a header"));
        let body = br#"{"type":"order.created","id":"mine"}"#.to_vec();
        PartnerRequest { path: "/".into(), headers, body, received_at: Instant::now(), status }
    }

    #[test]
    fn what_is_expected_and_what_came_are_counted_apart() {
        let now = Moment::after_start(Duration::ZERO);
        let mut tally = Tally::new("test", "ep_1");
        let samples = [sample("order.paid", "1"), sample("order.paid", "2"), sample("invoice.sent", "3")];
        for sample in &samples {
            tally.posting(sample, now);
            tally.accepted(sample);
            tally.accepted(sample);
        }
        assert_eq!((tally.counts().expected, tally.counts().lost), (2, 2));
        let id = tally.webhook_id(&samples[0]);
        assert!(matches!(tally.arrived(&request(&id, 503), true, now), Line::FailedOnPurpose { .. }));
        assert!(matches!(tally.arrived(&request(&id, 204), true, now), Line::Delivered { .. }));
        assert!(!tally.is_complete());
        let good = PartnerCounts {
            expected: 2,
            delivered: 1,
            requests: 2,
            verified: 2,
            failed: 1,
            lost: 1,
            doubled: 0,
        };
        assert_eq!(tally.counts(), good);
        let second = tally.webhook_id(&samples[1]);
        assert!(matches!(tally.arrived(&request(&second, 204), false, now), Line::Forged { .. }));
        assert_eq!(
            (tally.counts().lost, tally.counts().refused()),
            (1, 1),
            "what is not signed has not come"
        );
        tally.arrived(&request(&second, 204), true, now);
        assert!(tally.is_complete() && tally.counts().lost == 0);
        tally.arrived(&request(&second, 200), true, now);
        assert_eq!(tally.counts().doubled, 1);
        let foreign = tally.arrived(&request("else", 204), true, now);
        assert!(matches!(&foreign, Line::Foreign { id, .. } if id == "mine"), "{foreign:?}");
        assert_eq!(tally.counts().delivered, 2);
    }
}
