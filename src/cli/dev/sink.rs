//! The sink: a mock partner with an endpoint of its own, which verifies every signature with Svix's library and fails
//! now and then.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use svix::webhooks::Webhook;

use super::journal::Journal;
use super::producer::lock;
use super::tally::Tally;
use crate::cli::client::Client;
use crate::domain::clock::Clock;
use crate::mock::{MockPartner, PartnerAnswer};

/// The partner's id.
pub(super) const PARTNER: &str = "sink";
/// Every so many requests one is answered 503.
pub(super) const FAIL_EVERY: u64 = 50;
const FAIL_STATUS: u16 = 503;
const PATH: &str = "/hooks";
/// What the endpoint gets: everything of a family, and one type of another.
const FAMILY: &str = "order";
const TYPE: &str = "shipment.delivered";
/// Failures are over within seconds.
const RETRY_SCHEDULE_MS: [u64; 6] = [200, 400, 800, 1_600, 3_200, 3_200];
/// How long to wait for a request before looking again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The partner, subscribed.
pub(super) struct Sink {
    partner: MockPartner,
    webhook: Webhook,
    endpoint: String,
}

#[derive(serde::Deserialize)]
struct Known {
    id: String,
}

#[derive(serde::Deserialize)]
struct Listed {
    endpoints: Vec<Known>,
}

/// An endpoint that was made, or has a new secret.
#[derive(serde::Deserialize)]
pub(super) struct Subscribed {
    id: String,
    secret: String,
}

/// A partner that fails now and then.
pub(super) async fn start() -> MockPartner {
    let partner = MockPartner::start().await;
    partner.every_nth(FAIL_EVERY, PartnerAnswer::status(FAIL_STATUS));
    partner
}

/// Where the partner is.
pub(super) fn url(partner: &MockPartner) -> String {
    partner.url(PATH)
}

/// Whether the endpoint gets events of this type.
pub(super) fn wants(event_type: &str) -> bool {
    event_type == TYPE || event_type.strip_prefix(FAMILY).is_some_and(|rest| rest.starts_with('.'))
}

impl Sink {
    /// Makes the relay know the partner and its endpoint. One that an earlier run has left is used again, with a new
    /// secret and at its new place, so that what waits for it still arrives.
    pub async fn subscribe(client: &Client, partner: MockPartner) -> anyhow::Result<Self> {
        let settings = json!({
            "url": url(&partner),
            "event_types": [format!("{FAMILY}.*"), TYPE],
            // With the whole event as the payload, and with its data alone.
            "transform": { "omit": ["/data/customer", "/customer"] },
            "retry_schedule_ms": RETRY_SCHEDULE_MS,
        });
        let subscribed = subscribe(client, PARTNER, "A sink of posthaste dev", settings).await?;
        let webhook = Webhook::new(&subscribed.secret).context("the endpoint's secret is none")?;
        Ok(Self { partner, webhook, endpoint: subscribed.id })
    }

    /// A tally of what should come.
    pub fn tally(&self, environment: &str) -> Tally {
        Tally::new(environment, &self.endpoint)
    }

    /// Verifies what comes and writes it down.
    pub async fn follow(self, journal: Arc<Mutex<Journal>>, clock: Arc<dyn Clock>) {
        let mut seen = 0;
        loop {
            if !self.partner.wait_for(seen + 1, LOOK_AGAIN).await {
                continue;
            }
            let (count, requests) = self.partner.requests_after(seen);
            seen = count;
            for request in &requests {
                let verified = self.webhook.verify(&request.body, &request.headers).is_ok();
                lock(&journal).arrived(request, verified, clock.moment());
            }
        }
    }
}

/// Makes a partner with one endpoint; one that an earlier run has left is used again.
pub(super) async fn subscribe(
    client: &Client,
    partner: &str,
    name: &str,
    settings: Value,
) -> anyhow::Result<Subscribed> {
    let call = Calls { client, partner };
    let at = format!("/v1/partners/{partner}");
    let _: Value = call.send(Method::PUT, &at, Some(json!({ "name": name }))).await?;
    let endpoints = format!("{at}/endpoints");
    let known: Listed = call.send(Method::GET, &endpoints, None).await?;
    match known.endpoints.into_iter().next() {
        None => call.send(Method::POST, &endpoints, Some(settings)).await,
        Some(Known { id }) => {
            // First the secret: whatever comes to the new place is signed with it.
            let rotate = format!("/v1/endpoints/{id}/secret/rotate");
            let rotated = call.send(Method::POST, &rotate, None).await?;
            let endpoint = format!("/v1/endpoints/{id}");
            let _: Value = call.send(Method::PATCH, &endpoint, Some(settings)).await?;
            let enable = format!("{endpoint}/enable");
            let _: Value = call.send(Method::POST, &enable, None).await?;
            Ok(rotated)
        }
    }
}

/// Calls to the admin API for one partner.
struct Calls<'a> {
    client: &'a Client,
    partner: &'a str,
}

impl Calls<'_> {
    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        let answer = self.client.call(method, path, body).await;
        answer.with_context(|| format!("the partner `{}` can't be set up", self.partner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_wants_a_family_and_a_type() {
        let wanted = ["order.created", "order.paid", "shipment.delivered"];
        assert!(wanted.into_iter().all(wants));
        let others = ["order", "orders.paid", "shipment.sent", "shipment.delivered.late"];
        assert!(!others.into_iter().any(wants));
    }
}
