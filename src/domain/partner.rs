//! Partners and their endpoints as an administrator describes them: plain data, checked.
//!
//! Settings are read from JSON with every fault and its place ([`PartnerSettings::parse`], [`EndpointSettings::parse`],
//! [`EndpointSettings::patched`]). What is stored is read by the same rules, so that limits may be widened in later
//! versions and never narrowed.

mod event_types;
mod fields;
mod headers;
mod scheme;
mod subscriptions;

use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

pub use self::event_types::EventTypeFilter;
pub use self::fields::SettingFault;
use self::fields::{Checked, Fields, Members, wrong};
pub use self::headers::{
    CustomHeaders, HEADERS_MAX, HEADERS_MAX_BYTES, HeaderFault, REDACTED, check_header_name,
    check_header_value,
};
pub use self::scheme::SignatureScheme;
pub use self::subscriptions::{Subscription, Subscriptions};
use super::clock::Timestamp;
use super::object::JsonObject;
use super::parse::{pointer, why_not_a_name};
use super::retry::RetrySchedule;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// Requests in flight to a partner that sets no limit of its own.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 64;
/// Time for one attempt where an endpoint sets none.
pub const DEFAULT_TIMEOUT_MS: u64 = 15 * SECOND_MS;
/// Longest timeout that an endpoint may have.
pub const TIMEOUT_MAX_MS: u64 = 30 * SECOND_MS;
/// Waits after the first, second … failure where an endpoint sets none; then the delivery is dead. With the first
/// attempt, which is made at once, that is eight attempts in 27 and a half hours: Svix's schedule, and the beginning
/// of the one that Standard Webhooks 1.0 gives as an example.
pub const DEFAULT_RETRY_SCHEDULE_MS: [u64; 7] =
    [5 * SECOND_MS, 5 * MINUTE_MS, 30 * MINUTE_MS, 2 * HOUR_MS, 5 * HOUR_MS, 10 * HOUR_MS, 10 * HOUR_MS];

const NAME_MAX_BYTES: usize = 256;
const URL_MAX_BYTES: usize = 2_048;
const EVENT_TYPES_MAX: usize = 256;
const TRANSFORM_MAX_BYTES: usize = 64 << 10;
/// A lease (two minutes) outlives the longest attempt.
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=TIMEOUT_MAX_MS;
const RETRIES_MAX: usize = 32;
const RETRY_MAX_MS: u64 = 7 * 24 * HOUR_MS;
const MAX_IN_FLIGHT: std::ops::RangeInclusive<u32> = 1..=10_000;
const PER_SECOND: std::ops::RangeInclusive<f64> = 0.001..=100_000.0;
const BURST: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// How fast a partner may be sent to, or a tenant may put events in: a bucket of `burst` tokens that fills at
/// `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Requests or events a second, over time; 0.5 is one every two seconds.
    pub per_second: f64,
    /// Most at once after a pause. By default those of one second, at least one.
    pub burst: u32,
}

impl RateLimit {
    /// The least burst that can be held at this rate over several nodes: closer than a tenth of a second they can't
    /// agree through a database.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    pub fn least_burst(&self) -> u32 {
        ((self.per_second / 10.0).ceil() as u32).max(1)
    }

    /// A limit within what makes sense; without a `burst`, what one second brings, at least one.
    ///
    /// # Errors
    /// What is wrong, below `/per_second` or `/burst`.
    pub fn new(per_second: f64, burst: Option<u32>) -> Result<Self, SettingFault> {
        let fault = |pointer: &str, detail| SettingFault { pointer: pointer.into(), detail };
        if !PER_SECOND.contains(&per_second) {
            let (least, most) = (PER_SECOND.start(), PER_SECOND.end());
            return Err(fault("/per_second", format!("`per_second` must be from {least} to {most}")));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
        let burst = burst.unwrap_or_else(|| (per_second.ceil() as u32).max(1));
        if !BURST.contains(&burst) {
            return Err(fault("/burst", format!("`burst` must be {}", whole_number(&BURST))));
        }
        Ok(Self { per_second, burst })
    }
}

/// A receiver organisation.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PartnerSettings {
    /// What people call it.
    pub name: String,
    /// How fast it may be sent to; no limit where `None`.
    pub rate_limit: Option<RateLimit>,
    /// Most requests in flight to it; [`DEFAULT_MAX_IN_FLIGHT`] where `None`.
    pub max_in_flight: Option<u32>,
    /// Nothing is sent while this is set; deliveries wait.
    pub paused: bool,
    /// An endpoint gets no event before it has answered a challenge, which shows that its owner wants them.
    pub verify_endpoints: bool,
}

/// One URL of a partner, and what goes there in which form.
///
/// `Serialize` is what an administrator is shown: the values of [`Self::headers`] are redacted, and the URL is
/// [`Self::masked_url`]. To store it, seal [`CustomHeaders::exposed`] and the URL beside it and read all with
/// [`Self::from_stored`].
#[derive(Debug, Clone, Serialize)]
pub struct EndpointSettings {
    /// Where events go. `http` or `https` with a host and without credentials; the address guard has the last word. Its
    /// path and query may be a secret, as those of chat hooks are.
    #[serde(serialize_with = "masked")]
    pub url: String,
    /// The one tenant whose events it gets; every tenant's where `None`.
    pub tenant: Option<String>,
    /// It gets what any of these takes.
    pub event_types: Vec<EventTypeFilter>,
    /// Headers of the partner's own.
    pub headers: CustomHeaders,
    /// How the payload is reshaped, as its text, so that numbers keep their digits.
    pub transform: Option<Box<RawValue>>,
    /// Time for one attempt, in milliseconds.
    pub timeout_ms: u64,
    /// Waits after the first, second … failure of a delivery, in milliseconds, each ±20 %; then it is dead.
    pub retry_schedule_ms: Vec<u64>,
    /// How deliveries are signed.
    pub signature: SignatureScheme,
}

impl PartnerSettings {
    /// Reads settings: `name` is required, the rest has defaults.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn parse(json: &str) -> Result<Self, Vec<SettingFault>> {
        let mut fields = Fields::read(json)?;
        let mut settings = Self::default();
        fields.require("name");
        fields.set("name", &mut settings.name, None, "a text", name);
        fields.set(
            "rate_limit",
            &mut settings.rate_limit,
            Some(None),
            "an object of `per_second` and `burst`, both numbers",
            |JsonObject(text): JsonObject<RateLimitText>| text.check().map(Some),
        );
        let expected = whole_number(&MAX_IN_FLIGHT);
        fields.set("max_in_flight", &mut settings.max_in_flight, Some(None), &expected, |limit: u32| {
            if MAX_IN_FLIGHT.contains(&limit) {
                Ok(Some(limit))
            } else {
                wrong(format!("must be {}", whole_number(&MAX_IN_FLIGHT)))
            }
        });
        fields.set("paused", &mut settings.paused, Some(false), "true or false", Ok);
        fields.set("verify_endpoints", &mut settings.verify_endpoints, Some(false), "true or false", Ok);
        fields.finish().map(|()| settings)
    }
}

impl EndpointSettings {
    /// Reads the settings of a new endpoint: `url` is required, the rest has defaults.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn parse(json: &str) -> Result<Self, Vec<SettingFault>> {
        Self::default().read(json, true)
    }

    /// These settings with changes: a member that is given replaces the one that was, whole; `null` brings the
    /// default back. A header whose value is [`REDACTED`] keeps the value it has, and so does a URL that is
    /// [`Self::masked_url`].
    ///
    /// # Errors
    /// Everything that is wrong, each with its place in `json`.
    pub fn patched(&self, json: &str) -> Result<Self, Vec<SettingFault>> {
        self.clone().read(json, false)
    }

    /// Reads what `Serialize` wrote, with the headers and the URL that were sealed beside it. Without such a URL the one
    /// in `json` is the whole one.
    ///
    /// # Errors
    /// What is wrong, where it is something else.
    pub fn from_stored(
        json: &str,
        headers: CustomHeaders,
        url: Option<String>,
    ) -> Result<Self, Vec<SettingFault>> {
        Self { headers, url: url.unwrap_or_default(), ..Self::default() }.read(json, true)
    }

    /// The URL with [`REDACTED`] in place of its path and query; whole where it has neither.
    pub fn masked_url(&self) -> String {
        masked_url(&self.url)
    }

    /// When a delivery that failed is tried again.
    pub fn retry_schedule(&self) -> RetrySchedule {
        RetrySchedule::new(self.retry_schedule_ms.iter().map(|delay| Duration::from_millis(*delay)).collect())
    }

    /// The defaults, with a URL that is none.
    fn default() -> Self {
        Self {
            url: String::new(),
            tenant: None,
            event_types: vec![EventTypeFilter::Any],
            headers: CustomHeaders::default(),
            transform: None,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            retry_schedule_ms: DEFAULT_RETRY_SCHEDULE_MS.into(),
            signature: SignatureScheme::default(),
        }
    }

    fn read(mut self, json: &str, is_new: bool) -> Result<Self, Vec<SettingFault>> {
        let mut fields = Fields::read(json)?;
        let default = Self::default();
        if is_new {
            fields.require("url");
        }
        let known = self.url.clone();
        fields.set("url", &mut self.url, None, "a text", |text: String| {
            if !known.is_empty() && text == masked_url(&known) { Ok(known) } else { url(text) }
        });
        fields.set("tenant", &mut self.tenant, Some(None), "a text or null", |text| name(text).map(Some));
        let expected = "a list of texts such as `order.created`, `order.*` or `*`";
        fields.set("event_types", &mut self.event_types, Some(default.event_types), expected, event_types);
        let known = self.headers.clone();
        let expected = "an object of header names and values";
        fields.set("headers", &mut self.headers, Some(default.headers), expected, |members: Members<'_>| {
            CustomHeaders::from_members(&members, &known).map_err(header_faults)
        });
        fields.set("transform", &mut self.transform, Some(None), "an object", transform);
        let expected = whole_number(&TIMEOUT_MS);
        fields.set("timeout_ms", &mut self.timeout_ms, Some(default.timeout_ms), &expected, timeout);
        let expected = "a list of whole numbers, milliseconds";
        let schedule = Some(default.retry_schedule_ms);
        fields.set("retry_schedule_ms", &mut self.retry_schedule_ms, schedule, expected, retry_schedule);
        fields.set("signature", &mut self.signature, Some(default.signature), "an object", signature);
        if let Some(fault) = self.headers.collision(&self.signature) {
            fields.fault("signature", &format!("needs the {fault}: it can't be configured as well"));
        }
        fields.finish().map(|()| self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimitText {
    per_second: f64,
    burst: Option<u32>,
}

impl RateLimitText {
    fn check(&self) -> Checked<RateLimit> {
        let limit = RateLimit::new(self.per_second, self.burst).map_err(|fault| vec![fault])?;
        let least = limit.least_burst();
        if limit.burst < least {
            return at("/burst", format!("`burst` must be at least {least}, a tenth of `per_second`"));
        }
        Ok(limit)
    }
}

/// A fault inside of a value.
fn at<T>(pointer: impl Into<String>, detail: impl Into<String>) -> Checked<T> {
    Err(vec![SettingFault { pointer: pointer.into(), detail: detail.into() }])
}

fn whole_number<T: std::fmt::Display>(range: &std::ops::RangeInclusive<T>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

fn name(text: String) -> Checked<String> {
    const { assert!(NAME_MAX_BYTES == super::tenant::NAME_LIMIT_BYTES) };
    why_not_a_name(&text).map_or(Ok(text), wrong)
}

/// See [`EndpointSettings::masked_url`].
fn masked_url(url: &str) -> String {
    let host_at = url.find("://").map_or(0, |at| at + 3);
    let end = url[host_at..].find(['/', '?']).map_or(url.len(), |at| host_at + at);
    if matches!(&url[end..], "" | "/") { url.to_owned() } else { format!("{}/{REDACTED}", &url[..end]) }
}

fn masked<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&masked_url(url))
}

fn url(text: String) -> Checked<String> {
    if text.len() > URL_MAX_BYTES {
        return wrong(format!("is longer than {URL_MAX_BYTES} bytes"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("must be ASCII without spaces: percent-encode the path, write the host in punycode");
    }
    if text.ends_with(&format!("/{REDACTED}")) {
        return wrong("is shown without its path: give the whole URL");
    }
    if text.contains('#') {
        return wrong("must have no fragment: it would not be sent");
    }
    let Ok(uri) = text.parse::<Uri>() else { return wrong("is not a URL") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return wrong("must begin with https:// (or http://) and a host");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return wrong("must have no user or password: use `headers`");
    }
    Ok(text)
}

fn event_types(texts: Vec<String>) -> Checked<Vec<EventTypeFilter>> {
    if texts.is_empty() || texts.len() > EVENT_TYPES_MAX {
        return wrong(format!("must name 1 to {EVENT_TYPES_MAX} types; `*` takes all"));
    }
    let (mut filters, mut faults) = (Vec::with_capacity(texts.len()), Vec::new());
    for (index, text) in texts.iter().enumerate() {
        match EventTypeFilter::parse(text) {
            Ok(filter) => filters.push(filter),
            Err(detail) => faults.push(SettingFault { pointer: format!("/{index}"), detail }),
        }
    }
    if faults.is_empty() { Ok(filters) } else { Err(faults) }
}

fn header_faults(faults: Vec<HeaderFault>) -> Vec<SettingFault> {
    let place = |fault: &HeaderFault| fault.name.as_deref().map(pointer).unwrap_or_default();
    let detail = |fault: &HeaderFault| match fault.name {
        Some(_) => fault.to_string(),
        None => fault.reason.clone(),
    };
    faults.iter().map(|fault| SettingFault { pointer: place(fault), detail: detail(fault) }).collect()
}

fn transform(raw: Box<RawValue>) -> Checked<Option<Box<RawValue>>> {
    if !raw.get().starts_with('{') {
        return wrong("must be an object");
    }
    if raw.get().len() > TRANSFORM_MAX_BYTES {
        return wrong(format!("is longer than {TRANSFORM_MAX_BYTES} bytes"));
    }
    Ok(Some(raw))
}

fn timeout(millis: u64) -> Checked<u64> {
    if TIMEOUT_MS.contains(&millis) {
        Ok(millis)
    } else {
        wrong(format!("must be {}", whole_number(&TIMEOUT_MS)))
    }
}

fn retry_schedule(delays: Vec<u64>) -> Checked<Vec<u64>> {
    if delays.len() > RETRIES_MAX {
        return wrong(format!("has more than {RETRIES_MAX} entries"));
    }
    match delays.iter().position(|delay| *delay > RETRY_MAX_MS) {
        None => Ok(delays),
        Some(index) => {
            at(format!("/{index}"), format!("a wait must be at most {RETRY_MAX_MS} ms, seven days"))
        }
    }
}

fn signature(raw: &RawValue) -> Checked<SignatureScheme> {
    let read: Result<JsonObject<_>, _> = serde_json::from_str(raw.get());
    read.map(|JsonObject(scheme)| scheme).or_else(|error| {
        let text = error.to_string();
        // The position would be one in this member, not in what was given.
        let why = text.split(" at line ").next().unwrap_or_default();
        wrong(format!("is not a scheme: {why}"))
    })
}

/// Why an endpoint gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisableReason {
    /// An operator wanted it so.
    Operator,
    /// It answered 410 Gone (RFC 9110 §15.5.11).
    Gone,
    /// Nothing but failures for days.
    Failing,
}

impl DisableReason {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Gone, Self::Failing];

    /// The reason's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Gone => "gone",
            Self::Failing => "failing",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Operator, Self::Gone, Self::Failing].into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Whether an endpoint gets events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointState {
    /// It does.
    #[default]
    Active,
    /// It does not, until somebody enables it.
    Disabled {
        /// Why.
        reason: DisableReason,
        /// Since when.
        at: Timestamp,
    },
}

/// A move that the state of an endpoint does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalMove {
    /// What is active can't be enabled.
    #[error("the endpoint is active already")]
    AlreadyActive,
    /// What is disabled can't be disabled: the first reason stays.
    #[error("the endpoint is disabled already ({})", .0.as_str())]
    AlreadyDisabled(DisableReason),
}

impl EndpointState {
    /// Active to disabled.
    ///
    /// # Errors
    /// It is disabled already.
    pub const fn disable(self, reason: DisableReason, at: Timestamp) -> Result<Self, IllegalMove> {
        match self {
            Self::Active => Ok(Self::Disabled { reason, at }),
            Self::Disabled { reason, .. } => Err(IllegalMove::AlreadyDisabled(reason)),
        }
    }

    /// Disabled to active.
    ///
    /// # Errors
    /// It is active already.
    pub const fn enable(self) -> Result<Self, IllegalMove> {
        match self {
            Self::Active => Err(IllegalMove::AlreadyActive),
            Self::Disabled { .. } => Ok(Self::Active),
        }
    }

    /// Whether it gets events.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active)
    }
}

#[cfg(test)]
mod tests;
