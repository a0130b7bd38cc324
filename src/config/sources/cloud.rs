//! `[[sources]]` of cloud providers: no URL with a password in it, credentials as the provider's own tools find them.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::MIN_WAIT_MS;
use crate::config::redact::redacted;

/// Longest that SQS hides a message.
const VISIBILITY_MAX_MS: u64 = 12 * 3_600_000;
/// What Pub/Sub allows for an acknowledgement.
const ACK_DEADLINE_MS: std::ops::RangeInclusive<u64> = 10_000..=600_000;

/// `kind = "sqs"`: a queue, standard or FIFO, which must be there. Credentials come from the environment
/// (`AWS_ACCESS_KEY_ID` …), the AWS profile, a web identity token, or the container's or machine's role, unless they are
/// given here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqsConfig {
    /// The queue's URL.
    pub queue_url: String,
    /// Its region; by default the one in `queue_url`, else that of the environment or the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where requests go, if not to AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<String>,
    /// An access key; goes with `secret_access_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "redacted")]
    pub secret_access_key: Option<SecretString>,
    /// After which time what was not deleted is delivered again, in milliseconds; SQS knows whole seconds.
    #[serde(default = "half_a_minute")]
    pub visibility_timeout_ms: u64,
}

/// `kind = "pubsub"`: a pull subscription, which must be there. Credentials are Google's application default ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PubsubConfig {
    /// `projects/PROJECT/subscriptions/NAME`.
    pub subscription: String,
    /// Where requests go, if not to Google. `http://` is an emulator, which is shown no credentials; the variable
    /// `PUBSUB_EMULATOR_HOST` names one where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<String>,
    /// After which time what a node that is gone had fetched is delivered again, in milliseconds.
    #[serde(default = "a_minute")]
    pub ack_deadline_ms: u64,
}

impl SqsConfig {
    /// The region of the queue, as far as the settings tell it.
    pub fn known_region(&self) -> Option<&str> {
        // https://sqs.eu-west-1.amazonaws.com/123456789012/name
        let of_queue = || {
            let (_, rest) = self.queue_url.split_once("://sqs.")?;
            let (region, rest) = rest.split_once('.')?;
            rest.starts_with("amazonaws.com").then_some(region)
        };
        self.region.as_deref().or_else(of_queue)
    }

    pub(super) fn fault(&self) -> Option<String> {
        if !is_http(&self.queue_url) {
            return Some("queue_url must be an https:// URL".into());
        }
        if !self.endpoint_url.as_deref().is_none_or(is_http) {
            return Some("endpoint_url must be an https:// or http:// URL".into());
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Some("access_key_id and secret_access_key go together".into());
        }
        let range = MIN_WAIT_MS..=VISIBILITY_MAX_MS;
        (!range.contains(&self.visibility_timeout_ms))
            .then(|| format!("visibility_timeout_ms must be from {MIN_WAIT_MS} to {VISIBILITY_MAX_MS}"))
    }
}

impl PubsubConfig {
    pub(super) fn fault(&self) -> Option<String> {
        let parts: Vec<_> = self.subscription.split('/').collect();
        let is_whole = matches!(parts[..], ["projects", project, "subscriptions", name]
            if !project.is_empty() && !name.is_empty());
        if !is_whole {
            return Some("subscription must be projects/PROJECT/subscriptions/NAME".into());
        }
        if !self.endpoint_url.as_deref().is_none_or(is_http) {
            return Some("endpoint_url must be an https:// or http:// URL".into());
        }
        (!ACK_DEADLINE_MS.contains(&self.ack_deadline_ms)).then(|| {
            let (from, to) = (ACK_DEADLINE_MS.start(), ACK_DEADLINE_MS.end());
            format!("ack_deadline_ms must be from {from} to {to}")
        })
    }
}

fn is_http(url: &str) -> bool {
    let scheme = url::Url::parse(url).map(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    scheme.unwrap_or(false)
}

const fn half_a_minute() -> u64 {
    30_000
}

const fn a_minute() -> u64 {
    60_000
}

#[cfg(all(test, feature = "sqs", feature = "pubsub"))]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::{BrokerConfig, Config};

    const SQS: &str = "kind = 'sqs'\nqueue_url = 'https://sqs.eu-west-1.amazonaws.com/1/orders'\n";
    const PUBSUB: &str = "kind = 'pubsub'\nsubscription = 'projects/p/subscriptions/s'\n";

    fn load(source: &str) -> Result<BrokerConfig, String> {
        let place = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(place.path(), format!("[[sources]]\nname = 'orders'\n{source}")).expect("written");
        let loaded = Config::load(Some(place.path()), []).map_err(|error| error.to_string())?;
        let shown = loaded.config.show().expect("shown");
        std::fs::write(place.path(), shown).expect("written");
        let again = Config::load(Some(place.path()), []).expect("read again");
        Ok(again.config.sources[0].broker.clone())
    }

    #[rstest]
    #[case("", Some("eu-west-1"))]
    #[case("region = 'us-east-2'\n", Some("us-east-2"))]
    fn a_region_is_known_by_setting_or_url(#[case] line: &str, #[case] expected: Option<&str>) {
        let Ok(BrokerConfig::Sqs(sqs)) = load(&format!("{SQS}{line}")) else { panic!("another kind") };
        assert_eq!((sqs.known_region(), sqs.visibility_timeout_ms), (expected, 30_000));
    }

    #[test]
    fn a_url_elsewhere_tells_no_region() {
        let config = SqsConfig {
            queue_url: "http://127.0.0.1:5000/1/orders".into(),
            region: None,
            endpoint_url: None,
            access_key_id: None,
            secret_access_key: None,
            visibility_timeout_ms: 1_000,
        };
        assert_eq!((config.known_region(), config.fault()), (None, None));
    }

    #[rstest]
    #[case(format!("{SQS}visibility_timeout_ms = 5\n"), "visibility_timeout_ms must be from")]
    #[case(format!("{SQS}endpoint_url = 'x'\n"), "endpoint_url must be")]
    #[case(format!("{SQS}access_key_id = 'x'\n"), "go together")]
    #[case(format!("{SQS}secret_access_key = 13371337\n"), "secret_access_key: invalid type: found another kind")]
    #[case(SQS.replace("https:", "sqs:"), "queue_url must be")]
    #[case(format!("{PUBSUB}ack_deadline_ms = 9999\n"), "ack_deadline_ms must be from 10000 to 600000")]
    #[case(PUBSUB.replace("projects/p/", ""), "subscription must be projects/")]
    #[case(format!("{PUBSUB}endpoint_url = '127.0.0.1:8085'\n"), "endpoint_url must be")]
    #[case(format!("{PUBSUB}topic = 'x'\n"), "unknown field: found `topic`")]
    fn what_is_wrong_is_told_with_its_place(#[case] source: String, #[case] expected: &str) {
        let error = load(&source).expect_err("bad");
        assert!(error.contains(expected) && error.contains("source `orders`"), "{error}");
        assert!(!error.contains("1337"), "{error}");
    }

    #[test]
    fn a_secret_is_not_shown() {
        // holds: 46
        let keys = "access_key_id = 'AKIA'\nsecret_access_key = 'canary'\n";
        let Ok(sqs) = load(&format!("{SQS}{keys}")) else { panic!("another kind") };
        let BrokerConfig::Sqs(sqs) = sqs else { panic!("another kind") };
        // Read again from what was shown.
        assert_eq!(sqs.secret_access_key.expect("one").expose_secret(), "[redacted]");
    }

    #[test]
    fn a_subscription_has_defaults() {
        let Ok(BrokerConfig::Pubsub(pubsub)) = load(PUBSUB) else { panic!("another kind") };
        assert_eq!((pubsub.ack_deadline_ms, pubsub.endpoint_url), (60_000, None));
    }
}
