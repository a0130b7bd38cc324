//! Seeds: partners, endpoints and event types that the configuration file names.
//!
//! ```toml
//! [[partners]]
//! id = "globex"
//! name = "Globex"
//! max_in_flight = 8
//!
//! [[partners.endpoints]]
//! name = "orders"                     # tells this endpoint from the partner's others, for ever
//! url = "https://hooks.globex.example/orders"
//! event_types = ["order.*"]
//! secret = "whsec_…"                  # only at its making; one is made where it is absent (rotate to see it)
//!
//! [[event_types]]
//! name = "order.created"
//! description = "An order was placed"
//! ```
//!
//! They are applied at every start: what is missing is made, what differs is set to what the file says, whole. Nothing
//! is ever deleted, enabled or disabled: what is taken out of the file stays as it is. An endpoint's id is made of its
//! partner's id and its name, so that every start and every node mean the same one; another name is another endpoint.

use std::collections::HashSet;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{EventTypeSettings, open_settings, seal_secret, seal_settings, secret, seeded_endpoint_id, vet};
use crate::domain::clock::Clock;
use crate::domain::partner::{EndpointSettings, PartnerSettings, SettingFault};
use crate::domain::tenant::svix_name_is_valid;
use crate::ledger::{Database, LedgerError, NewEndpoint};
use crate::secrets::Vault;
use crate::send::address_guard::DialPolicy;

/// A partner in the configuration: its id, its endpoints, and the settings that the API takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeedPartner {
    /// Its id.
    pub id: String,
    /// Its endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SeedEndpoint>,
    /// The rest: see `PUT /v1/partners/{partner}`.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// An endpoint in the configuration: its name, and the settings that the API takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeedEndpoint {
    /// What tells it from the partner's other endpoints, for ever.
    pub name: String,
    /// Its first secret; one is made where it is absent.
    #[serde(default, skip_serializing)]
    pub secret: Option<SecretString>,
    /// Header values may be secret: not shown.
    #[serde(default, skip_serializing)]
    pub headers: Option<SecretHeaders>,
    /// The rest: see `POST /v1/partners/{partner}/endpoints`.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// Headers that are not shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretHeaders(Map<String, Value>);

impl std::fmt::Debug for SecretHeaders {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SecretHeaders([redacted])")
    }
}

/// An event type in the configuration: its name, and the settings that the API takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeedEventType {
    /// Its name.
    pub name: String,
    /// The rest: see `PUT /v1/event-types/{name}`.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// All seeds, checked.
#[derive(Debug, Default)]
pub struct Seeds {
    partners: Vec<(String, PartnerSettings)>,
    endpoints: Vec<ReadyEndpoint>,
    event_types: Vec<(String, EventTypeSettings)>,
}

#[derive(Debug)]
struct ReadyEndpoint {
    id: String,
    partner: String,
    settings: EndpointSettings,
    secret: Option<SecretString>,
}

impl Seeds {
    /// Checks what the configuration names, by the same rules as the API.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line with its place.
    pub fn check(
        partners: &[SeedPartner],
        event_types: &[SeedEventType],
        policy: &DialPolicy,
    ) -> Result<Self, String> {
        let mut seeds = Self::default();
        let mut ids = HashSet::new();
        for (index, partner) in partners.iter().enumerate() {
            let place = format!("partners[{index}]");
            good_name(&format!("{place}.id"), &partner.id)?;
            if !ids.insert(partner.id.as_str()) {
                return Err(format!("{place}.id: `{}` is there twice", partner.id));
            }
            let settings =
                PartnerSettings::parse(&text(&partner.settings)).map_err(|found| first(&place, &found))?;
            seeds.partners.push((partner.id.clone(), settings));
            let mut names = HashSet::new();
            for (number, endpoint) in partner.endpoints.iter().enumerate() {
                let place = format!("{place}.endpoints[{number}]");
                good_name(&format!("{place}.name"), &endpoint.name)?;
                if !names.insert(endpoint.name.as_str()) {
                    return Err(format!("{place}.name: `{}` is there twice", endpoint.name));
                }
                seeds.endpoints.push(ready(&partner.id, endpoint, &place, policy)?);
            }
        }
        for (index, event_type) in event_types.iter().enumerate() {
            let place = format!("event_types[{index}]");
            good_name(&format!("{place}.name"), &event_type.name)?;
            let settings = EventTypeSettings::parse(&text(&event_type.settings))
                .map_err(|found| first(&place, &found))?;
            seeds.event_types.push((event_type.name.clone(), settings));
        }
        Ok(seeds)
    }

    /// Makes what is missing and sets what differs; how many rows were written.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], or [`LedgerError::Refused`] where there is something to seal and no master key.
    pub async fn apply(
        &self,
        database: &Database,
        vault: &Vault,
        clock: &dyn Clock,
    ) -> Result<usize, LedgerError> {
        let mut written = 0;
        for (id, settings) in &self.partners {
            if database.partner(id).await?.is_none_or(|row| row.settings != *settings) {
                database.put_partner(id, settings, None, clock.now()).await?;
                written += 1;
            }
        }
        for endpoint in &self.endpoints {
            written += usize::from(endpoint.apply(database, vault, clock).await?);
        }
        for (name, settings) in &self.event_types {
            let settings = settings.to_json()?;
            if database.event_type(name).await?.is_none_or(|row| row.settings != settings) {
                database.put_event_type(name, &settings, None, clock.now()).await?;
                written += 1;
            }
        }
        Ok(written)
    }
}

impl ReadyEndpoint {
    /// Makes the endpoint or sets what it is; whether anything was written.
    async fn apply(
        &self,
        database: &Database,
        vault: &Vault,
        clock: &dyn Clock,
    ) -> Result<bool, LedgerError> {
        if let Some(row) = database.endpoint(&self.id).await? {
            if same(&open_settings(vault, &row)?, &self.settings)? {
                return Ok(false);
            }
            let stored = seal_settings(vault, &self.id, &self.settings, clock)?;
            database.update_endpoint(&self.id, &stored, None).await?;
            return Ok(true);
        }
        let given = self.secret.as_ref().map(|secret| secret.expose_secret());
        let secret = secret(given, &self.settings.signature, clock)
            .map_err(|fault| LedgerError::Refused(fault.to_string()))?;
        let endpoint = NewEndpoint {
            id: self.id.clone(),
            partner: self.partner.clone(),
            settings: seal_settings(vault, &self.id, &self.settings, clock)?,
            secret: seal_secret(vault, &self.id, &secret, clock)?,
        };
        match database.add_endpoint(&endpoint, clock.now()).await {
            // Another node was quicker, with the same file.
            Ok(_) | Err(LedgerError::Taken(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Whether two settings are the same, headers and all.
fn same(one: &EndpointSettings, other: &EndpointSettings) -> Result<bool, LedgerError> {
    let text = |settings: &EndpointSettings| {
        serde_json::to_string(settings).map_err(|error| LedgerError::Refused(error.to_string()))
    };
    let headers = |settings: &EndpointSettings| settings.headers.exposed();
    let same_headers = headers(one).expose_secret() == headers(other).expose_secret();
    Ok(same_headers && one.url == other.url && text(one)? == text(other)?)
}

fn ready(
    partner: &str,
    endpoint: &SeedEndpoint,
    place: &str,
    policy: &DialPolicy,
) -> Result<ReadyEndpoint, String> {
    let mut members = endpoint.settings.clone();
    if let Some(headers) = &endpoint.headers {
        members.insert("headers".into(), Value::Object(headers.0.clone()));
    }
    let settings = EndpointSettings::parse(&text(&members))
        .and_then(|settings| vet(settings, policy))
        .map_err(|found| first(place, &found))?;
    if let Some(secret) = &endpoint.secret {
        crate::send::signature::EndpointSecret::parse(&settings.signature, secret.expose_secret())
            .map_err(|error| format!("{place}.secret: {error}"))?;
    }
    Ok(ReadyEndpoint {
        id: seeded_endpoint_id(partner, &endpoint.name),
        partner: partner.to_owned(),
        settings,
        secret: endpoint.secret.clone(),
    })
}

fn text(members: &Map<String, Value>) -> String {
    Value::Object(members.clone()).to_string()
}

fn good_name(place: &str, name: &str) -> Result<(), String> {
    if svix_name_is_valid(name) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!("{place}: must be 1 to 256 of a-z, A-Z, 0-9, `-`, `_`, `.`, and no dot at its beginning"))
}

fn first(place: &str, found: &[SettingFault]) -> String {
    let fault = found.first();
    let pointer = fault.map_or("", |fault| fault.pointer.as_str()).replace('/', ".");
    format!("{place}{pointer}: {}", fault.map_or("is wrong", |fault| fault.detail.as_str()))
}
