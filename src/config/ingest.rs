//! `[ingest]`: what is taken in, and how.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::PubsubPushConfig;
use crate::domain::event::Relay;
use crate::domain::partner::RateLimit;

/// `[ingest]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Event attributes that name the tenant; the first one present counts.
    pub tenant_attributes: Vec<String>,
    /// Tenant of events that name none, by attribute or `X-Tenant`.
    pub default_tenant: Option<String>,
    /// What goes out as the payload: `event` (the whole event as received) or `data`.
    pub relay: Relay,
    /// Refuse events without an id instead of making one.
    pub require_id: bool,
    /// Most events in one request.
    pub max_batch_events: usize,
    /// Longest event, in bytes (Svix takes 1 MiB).
    pub max_event_bytes: usize,
    /// Events of a type that nobody has declared: `accept` or `refuse`.
    pub unknown_event_types: UnknownEventTypes,
    /// Events a second that a tenant without a limit of its own may put in on one node; no limit where absent.
    #[serde(deserialize_with = "number")]
    pub tenant_per_second: Option<f64>,
    /// Events that such a tenant may put in at once; by default those of one second.
    #[serde(deserialize_with = "number")]
    pub tenant_burst: Option<u32>,
    /// How a Pub/Sub push shows where it comes from.
    pub pubsub_push: PubsubPushConfig,
}

/// What happens to events of a type that nobody has declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownEventTypes {
    /// They are events like others.
    Accept,
    /// They are invalid.
    Refuse,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            tenant_attributes: vec!["tenant".into(), "project".into(), "account".into()],
            default_tenant: None,
            relay: Relay::Event,
            require_id: false,
            max_batch_events: 10_000,
            max_event_bytes: 1 << 20,
            unknown_event_types: UnknownEventTypes::Accept,
            tenant_per_second: None,
            tenant_burst: None,
            pubsub_push: PubsubPushConfig::default(),
        }
    }
}

impl IngestConfig {
    /// How fast a tenant without a limit of its own may put events in.
    ///
    /// # Errors
    /// A rate or burst out of bounds, or a burst without a rate: one line, naming the key.
    pub fn tenant_limit(&self) -> Result<Option<RateLimit>, String> {
        let Some(per_second) = self.tenant_per_second else {
            return match self.tenant_burst {
                Some(_) => Err("ingest.tenant_burst needs ingest.tenant_per_second".into()),
                None => Ok(None),
            };
        };
        let limit = RateLimit::new(per_second, self.tenant_burst);
        limit
            .map(Some)
            .map_err(|fault| format!("ingest.tenant{}: {}", fault.pointer.replace('/', "_"), fault.detail))
    }
}

/// A number that may be absent. As a variable it comes as text, since its default does not tell its kind.
pub(super) fn number<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: Deserialize<'de> + FromStr,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given<N> {
        Number(N),
        Text(String),
    }
    Ok(match Option::<Given<N>>::deserialize(deserializer)? {
        None => None,
        Some(Given::Number(number)) => Some(number),
        Some(Given::Text(text)) => {
            let number = text.trim().parse();
            Some(number.map_err(|_| serde::de::Error::custom(format!("`{text}` is not such a number")))?)
        }
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use crate::config::Config;
    use crate::domain::partner::RateLimit;

    fn limit(variables: &[(&str, &str)]) -> Result<Option<RateLimit>, String> {
        let named = |(name, value): &(&str, &str)| (format!("POSTHASTE_INGEST__{name}"), (*value).to_owned());
        let loaded = Config::load(None, variables.iter().map(named)).map_err(|error| error.to_string())?;
        loaded.config.ingest.tenant_limit()
    }

    #[rstest]
    #[case::none(&[], None)]
    #[case::rate(&[("TENANT_PER_SECOND", "2.5")], Some((2.5, 3)))]
    #[case::whole(&[("TENANT_PER_SECOND", "100"), ("TENANT_BURST", "5")], Some((100.0, 5)))]
    fn a_tenants_default_limit_comes_from_variables(
        #[case] variables: &[(&str, &str)],
        #[case] expected: Option<(f64, u32)>,
    ) {
        let expected = expected.map(|(per_second, burst)| RateLimit { per_second, burst });
        assert_eq!(limit(variables), Ok(expected));
    }

    #[rstest]
    #[case::word(&[("TENANT_PER_SECOND", "fast")], "tenant_per_second")]
    #[case::zero(&[("TENANT_PER_SECOND", "0")], "ingest.tenant_per_second")]
    #[case::no_burst(&[("TENANT_PER_SECOND", "1"), ("TENANT_BURST", "0")], "ingest.tenant_burst")]
    #[case::burst_alone(&[("TENANT_BURST", "1")], "needs ingest.tenant_per_second")]
    fn bad_limits_are_named(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
        let error = limit(variables).expect_err("bad");
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_file_takes_numbers() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[ingest]\ntenant_per_second = 5\ntenant_burst = 7\n").expect("written");
        let config = Config::load(Some(file.path()), []).expect("good").config;
        let limit = RateLimit { per_second: 5.0, burst: 7 };
        assert_eq!(config.ingest.tenant_limit(), Ok(Some(limit)));
    }
}
