//! Making and changing what receives events: what the API and the configuration's seeds do alike.
//!
//! Settings are checked here beyond their form (where a URL leads, whether a transform is one), and what is secret is
//! sealed on its way into the ledger and opened on its way out.

mod event_types;
mod seeds;

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub use self::event_types::{EventTypeSettings, sync_with_svix};
pub use self::seeds::{SeedEndpoint, SeedEventType, SeedPartner, Seeds};
use crate::domain::clock::Clock;
use crate::domain::key::prefixed_hex;
use crate::domain::partner::{CustomHeaders, EndpointSettings, SettingFault};
use crate::domain::tenant::ENDPOINT_PREFIX;
use crate::domain::transform::Transform;
use crate::ledger::{EndpointRow, LedgerError, SEALED_URL, StoredSettings};
use crate::secrets::{Place, Purpose, Vault};
use crate::send::address_guard::{DialPolicy, vet_url};
use crate::send::signature::{EndpointSecret, SignatureScheme};

/// Where an endpoint's secret is sealed to, whether it is the current one or the one before.
pub const fn secret_place(endpoint: &str) -> Place<'_> {
    Place { purpose: Purpose::EndpointSecret, row: endpoint }
}

/// Where an endpoint's URL is sealed to.
pub const fn url_place(endpoint: &str) -> Place<'_> {
    Place { purpose: Purpose::EndpointUrl, row: endpoint }
}

/// Where an endpoint's headers are sealed to.
pub const fn headers_place(endpoint: &str) -> Place<'_> {
    Place { purpose: Purpose::EndpointHeaders, row: endpoint }
}

/// An id for a new endpoint.
pub fn new_endpoint_id(clock: &dyn Clock) -> String {
    prefixed_hex(ENDPOINT_PREFIX, &clock.random().to_be_bytes()[..12])
}

/// The id of the endpoint that the configuration names so: the same at every start and on every node.
pub fn seeded_endpoint_id(partner: &str, name: &str) -> String {
    let mut hash = Sha256::new();
    for part in ["seed", partner, name] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    prefixed_hex(ENDPOINT_PREFIX, &hash.finalize()[..12])
}

/// Settings whose URL may be dialled as far as its text tells, in its normal form, and whose transform is one.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn vet(
    mut settings: EndpointSettings,
    policy: &DialPolicy,
) -> Result<EndpointSettings, Vec<SettingFault>> {
    let mut faults = Vec::new();
    match vet_url(&settings.url, policy) {
        Ok(url) => url.as_str().clone_into(&mut settings.url),
        Err(refusal) => faults.push(SettingFault { pointer: "/url".into(), detail: refusal.sentence }),
    }
    if let Some(transform) = &settings.transform
        && let Err(fault) = vet_transform(transform.get())
    {
        faults.push(fault);
    }
    if faults.is_empty() { Ok(settings) } else { Err(faults) }
}

/// Whether a text is a transform.
///
/// # Errors
/// What is wrong, with its place below `/transform`.
pub fn vet_transform(text: &str) -> Result<Transform, SettingFault> {
    Transform::parse(text).map_err(|invalid| SettingFault {
        pointer: format!("/transform{}", invalid.pointer),
        detail: invalid.detail,
    })
}

/// The secret that was given for `scheme`, or a new one.
///
/// # Errors
/// What is wrong with the given one, below `/secret`; never the text itself.
pub fn secret(
    given: Option<&str>,
    scheme: &SignatureScheme,
    clock: &dyn Clock,
) -> Result<EndpointSecret, SettingFault> {
    given.map_or_else(
        || Ok(EndpointSecret::generate(clock)),
        |text| {
            EndpointSecret::parse(scheme, text)
                .map_err(|error| SettingFault { pointer: "/secret".into(), detail: error.to_string() })
        },
    )
}

/// Seals an endpoint's secret.
///
/// # Errors
/// [`LedgerError::Refused`] where there is no master key.
pub fn seal_secret(
    vault: &Vault,
    endpoint: &str,
    secret: &EndpointSecret,
    clock: &dyn Clock,
) -> Result<String, LedgerError> {
    seal(vault, &secret_place(endpoint), secret.text(), clock)
}

/// Settings as they are kept.
///
/// # Errors
/// [`LedgerError::Refused`] where there are headers, or a path in the URL, and no master key.
pub fn seal_settings(
    vault: &Vault,
    endpoint: &str,
    settings: &EndpointSettings,
    clock: &dyn Clock,
) -> Result<StoredSettings, LedgerError> {
    let mut json =
        serde_json::to_string(settings).map_err(|error| LedgerError::Refused(error.to_string()))?;
    if settings.masked_url() != settings.url {
        let url = SecretString::from(settings.url.clone());
        let sealed = seal(vault, &url_place(endpoint), &url, clock)?;
        // Beside the masked one. A version that does not know it keeps its hands off the endpoint: it would send to the
        // masked URL.
        json.truncate(json.len() - 1);
        json += &format!(",\"{SEALED_URL}\":\"{sealed}\"}}");
    }
    let headers = if settings.headers.is_empty() {
        None
    } else {
        Some(seal(vault, &headers_place(endpoint), &settings.headers.exposed(), clock)?)
    };
    Ok(StoredSettings { json, headers })
}

/// Settings as they were set.
///
/// # Errors
/// [`LedgerError::Unavailable`] where the headers or the URL can't be opened, or a newer version wrote what this one can't read.
pub fn open_settings(vault: &Vault, row: &EndpointRow) -> Result<EndpointSettings, LedgerError> {
    use secrecy::ExposeSecret as _;

    let unreadable = |why: String| {
        LedgerError::Unavailable(format!("the settings of endpoint {} can't be read: {why}", row.id))
    };
    let headers = match &row.settings.headers {
        None => CustomHeaders::default(),
        Some(sealed) => {
            let place = headers_place(&row.id);
            let opened = vault.open(&place, sealed).map_err(|error| unreadable(error.to_string()))?;
            CustomHeaders::from_exposed(opened.expose_secret())
                .map_err(|_| unreadable("its headers are none".into()))?
        }
    };
    let (json, url) = match sealed_url(&row.settings.json) {
        None => (row.settings.json.clone(), None),
        Some((sealed, json)) => {
            let opened =
                vault.open(&url_place(&row.id), &sealed).map_err(|error| unreadable(error.to_string()))?;
            (json, Some(opened.expose_secret().to_owned()))
        }
    };
    EndpointSettings::from_stored(&json, headers, url).map_err(|faults| {
        unreadable(
            faults.first().map_or_else(String::new, |fault| format!("{}: {}", fault.pointer, fault.detail)),
        )
    })
}

fn seal(
    vault: &Vault,
    place: &Place<'_>,
    secret: &SecretString,
    clock: &dyn Clock,
) -> Result<String, LedgerError> {
    vault.seal(place, secret, clock).map_err(|error| LedgerError::Refused(error.to_string()))
}

/// The sealed URL in stored settings, and the settings without it.
fn sealed_url(json: &str) -> Option<(String, String)> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_str(json).ok()?;
    let sealed = serde_json::from_str(members.remove(SEALED_URL)?.get()).ok()?;
    Some((sealed, serde_json::to_string(&members).ok()?))
}

/// The settings of `row` with its URL sealed, where an earlier version stored it whole; `None` where there is nothing to
/// seal.
///
/// # Errors
/// As [`open_settings`] and [`seal_settings`].
pub fn with_sealed_url(
    vault: &Vault,
    row: &EndpointRow,
    clock: &dyn Clock,
) -> Result<Option<StoredSettings>, LedgerError> {
    if sealed_url(&row.settings.json).is_some() {
        return Ok(None);
    }
    let settings = open_settings(vault, row)?;
    if settings.masked_url() == settings.url {
        return Ok(None);
    }
    seal_settings(vault, &row.id, &settings, clock).map(Some)
}
