//! Endpoints as they are set and told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::domain::clock::Timestamp;
use crate::domain::partner::{EndpointSettings, EndpointState, REDACTED, SignatureScheme};
use crate::ledger::EndpointRow;

/// An endpoint as it is set.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what EndpointSettings::parse reads")]
pub(crate) struct EndpointBody {
    /// Where events go: https, unless its address is in an allowed network.
    #[schema(min_length = 1, max_length = 2_048, pattern = "^[Hh][Tt][Tt][Pp][Ss]?://")]
    url: String,
    /// The one tenant whose events it gets; every tenant's where absent.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// Exact types, `order.*`, or `*`; all where absent.
    #[schema(min_items = 1, max_items = 256)]
    event_types: Option<Vec<String>>,
    /// Headers of the partner's own, at most 32.
    headers: Option<BTreeMap<String, String>>,
    /// How the payload is reshaped: `omit`, `rename`, `set`, `map`.
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
    /// Time for one attempt, in milliseconds; 15000 where absent.
    #[schema(minimum = 100, maximum = 30_000)]
    timeout_ms: Option<u64>,
    /// Waits after the first, second … failure, in milliseconds, each ±20 %; then the delivery is dead. At most seven days
    /// each.
    #[schema(max_items = 32)]
    retry_schedule_ms: Option<Vec<u64>>,
    /// How deliveries are signed; by Standard Webhooks where absent.
    signature: Option<SignatureView>,
}

/// Changes to an endpoint: a JSON merge patch (RFC 7396). `null` brings the default back. `headers` are merged by
/// name; lists, `transform` and `signature` are each one value, and replaced whole.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what EndpointSettings::patched reads")]
pub(crate) struct EndpointPatch {
    /// Where events go.
    #[schema(min_length = 1, max_length = 2_048, pattern = "^[Hh][Tt][Tt][Pp][Ss]?://")]
    url: Option<String>,
    /// The one tenant whose events it gets.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    tenant: Option<String>,
    /// Exact types, `order.*`, or `*`.
    #[schema(min_items = 1, max_items = 256)]
    event_types: Option<Vec<String>>,
    /// `null` takes a header out; `[redacted]` leaves it as it is.
    headers: Option<BTreeMap<String, Option<String>>>,
    /// How the payload is reshaped.
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
    /// Time for one attempt, in milliseconds.
    #[schema(minimum = 100, maximum = 30_000)]
    timeout_ms: Option<u64>,
    /// Waits after the first, second … failure, in milliseconds.
    #[schema(max_items = 32)]
    retry_schedule_ms: Option<Vec<u64>>,
    /// How deliveries are signed.
    signature: Option<SignatureView>,
}

/// How deliveries are signed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "scheme", rename_all = "snake_case")]
#[expect(dead_code, reason = "describes what SignatureScheme reads and writes")]
pub(crate) enum SignatureView {
    /// Standard Webhooks 1.0.
    Standard,
    /// Lower-case hex HMAC-SHA256 of the body, in a header of the partner's choosing.
    #[serde(rename = "hex_hmac_sha256")]
    HexHmacSha256 {
        /// The header.
        header: String,
        /// What stands before the digits, e.g. `sha256=`.
        prefix: Option<String>,
    },
}

/// Whether it gets events.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StateView {
    /// It does.
    Active,
    /// It does not, until somebody enables it.
    Disabled,
}

/// An endpoint as it is told.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndpointView {
    /// Its id.
    id: String,
    /// Whose it is.
    partner: String,
    /// Where events go, in its normal form. A path or query is shown as `[redacted]`; a patch that says so keeps it.
    url: String,
    /// The one tenant whose events it gets; every tenant's where null.
    tenant: Option<String>,
    /// What it gets.
    event_types: Vec<String>,
    /// Its own headers; their values are not shown.
    headers: BTreeMap<String, String>,
    /// How the payload is reshaped.
    #[schema(value_type = Option<Object>)]
    transform: Option<Box<RawValue>>,
    /// Time for one attempt, in milliseconds.
    timeout_ms: u64,
    /// Waits after the first, second … failure, in milliseconds.
    retry_schedule_ms: Vec<u64>,
    /// How deliveries are signed.
    #[schema(value_type = SignatureView)]
    signature: SignatureScheme,
    /// Whether it gets events.
    state: StateView,
    /// Why it does not: `operator`, `gone` (it answered 410), `failing` (nothing but failures for days).
    disabled_reason: Option<String>,
    /// Since when it does not, in milliseconds since the Unix epoch.
    disabled_at: Option<i64>,
    /// The first failure after the last success, in milliseconds since the Unix epoch.
    failing_since: Option<i64>,
    /// When it answered its ownership challenge, in milliseconds since the Unix epoch.
    proven_at: Option<i64>,
    /// Until when the secret before signs too, in milliseconds since the Unix epoch.
    previous_secret_until: Option<i64>,
    /// When it was made, in milliseconds since the Unix epoch.
    created_at: i64,
}

/// An endpoint that was made, with its secret: the only time it is told.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewEndpointView {
    /// What the partner verifies signatures with.
    pub secret: String,
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: EndpointView,
}

/// A page of endpoints.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndpointsView {
    /// By id.
    pub endpoints: Vec<EndpointView>,
    /// Where the next page begins; null on the last.
    pub next_cursor: Option<String>,
}

/// How a secret is rotated.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RotateBody {
    /// How long the old secret signs too, in milliseconds; by default a day, at most 30.
    #[schema(maximum = 2_592_000_000_u64)]
    pub grace_ms: Option<u64>,
    /// The new secret; one is made where it is absent.
    pub secret: Option<String>,
}

/// A secret that was made: the only time it is told.
#[derive(Serialize, ToSchema)]
pub(crate) struct RotatedView {
    /// The endpoint.
    pub id: String,
    /// What the partner verifies signatures with from now on.
    pub secret: String,
    /// Until when the old one signs too, in milliseconds since the Unix epoch.
    pub previous_secret_until: i64,
}

impl EndpointView {
    /// `row` as it is told, with the settings that it stands for.
    pub(super) fn new(row: &EndpointRow, settings: EndpointSettings, now: Timestamp) -> Self {
        let (state, disabled_reason, disabled_at) = match row.state {
            EndpointState::Active => (StateView::Active, None, None),
            EndpointState::Disabled { reason, at } => {
                (StateView::Disabled, Some(reason.as_str().to_owned()), Some(at.as_millis()))
            }
        };
        let headers = settings.headers.iter().map(|(name, _)| (name.to_string(), REDACTED.to_owned()));
        let previous = row.previous_secret.as_ref().map(|(_, until)| *until).filter(|until| *until > now);
        Self {
            id: row.id.clone(),
            partner: row.partner.clone(),
            headers: headers.collect(),
            url: settings.masked_url(),
            tenant: settings.tenant,
            event_types: settings.event_types.iter().map(ToString::to_string).collect(),
            transform: settings.transform,
            timeout_ms: settings.timeout_ms,
            retry_schedule_ms: settings.retry_schedule_ms,
            signature: settings.signature,
            state,
            disabled_reason,
            disabled_at,
            failing_since: row.failing_since.map(Timestamp::as_millis),
            proven_at: row.proven_at.map(Timestamp::as_millis),
            previous_secret_until: previous.map(Timestamp::as_millis),
            created_at: row.created_at.as_millis(),
        }
    }
}
