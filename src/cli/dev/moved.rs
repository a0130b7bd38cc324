//! A mock partner that has moved: what it gets at the old address fails, until somebody mends the endpoint's URL.

use serde_json::json;

use super::sink::subscribe;
use crate::cli::client::Client;
use crate::mock::{MockPartner, PartnerAnswer};

/// The partner's id.
pub(super) const PARTNER: &str = "crm";
/// Where it was, and where it is.
const OLD_PATH: &str = "/crm/v1";
pub(super) const NEW_PATH: &str = "/crm/v2";
/// What it gets: few events, so that what is dead can be counted.
const TYPE: &str = "user.signed_up";
/// Dead within seconds.
const RETRY_SCHEDULE_MS: [u64; 2] = [500, 1_000];

/// A partner that answers 404 at its old address, and says where it is now.
pub(super) async fn start() -> MockPartner {
    let partner = MockPartner::start().await;
    let hint = format!("webhooks have moved to {}", partner.url(NEW_PATH));
    let body = json!({ "error": "no such address", "hint": hint }).to_string();
    partner.answer_at(OLD_PATH, Some(PartnerAnswer { body, ..PartnerAnswer::status(404) }));
    partner
}

/// Where the relay believes it to be.
pub(super) fn url(partner: &MockPartner) -> String {
    partner.url(OLD_PATH)
}

/// Makes the relay know the partner at its old address.
pub(super) async fn subscribe_at_old_address(client: &Client, partner: &MockPartner) -> anyhow::Result<()> {
    let settings = json!({
        "url": url(partner),
        "event_types": [TYPE],
        "retry_schedule_ms": RETRY_SCHEDULE_MS,
    });
    subscribe(client, PARTNER, "A CRM that has moved", settings).await.map(drop)
}
