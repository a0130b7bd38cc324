//! `[[sources]]`: queues and streams of brokers that events are read from.

mod cloud;

use std::collections::HashSet;
use std::path::PathBuf;

use figment::value::{Dict, Value};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::cloud::{PubsubConfig, SqsConfig};
use super::redact::{first, without_password};
use crate::domain::parse::why_not_a_name;

const BATCH_DEFAULT: usize = 200;
const BATCH_MAX: usize = 10_000;
const MAX_IN_FLIGHT_DEFAULT: usize = 1_000;
const MAX_IN_FLIGHT_MAX: usize = 100_000;
/// What a variable with a source's URL looks like: `POSTHASTE_SOURCES__ORDERS__URL`.
const URL_VARIABLE: (&str, &str) = ("POSTHASTE_SOURCES__", "__URL");

/// `[[sources]]`
#[derive(Debug, Clone, Serialize)]
pub struct SourceConfig {
    /// What it is called: in metrics, in `rejected`, and in the ids of events that have none, so it must not change.
    pub name: String,
    /// The one tenant that its events belong to, whatever they say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Most messages that are fetched, and recorded, together.
    pub batch: usize,
    /// Most messages that are fetched and not acknowledged yet; at least `batch`.
    pub max_in_flight: usize,
    /// The broker, and what is read there.
    #[serde(flatten)]
    pub broker: BrokerConfig,
}

/// A broker, and what is read there.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BrokerConfig {
    /// NATS `JetStream`.
    Nats(NatsConfig),
    /// A queue of `RabbitMQ`.
    Rabbitmq(RabbitmqConfig),
    /// A stream of Redis.
    Redis(RedisConfig),
    /// A queue of Amazon SQS.
    Sqs(SqsConfig),
    /// A subscription of Google Cloud Pub/Sub.
    Pubsub(PubsubConfig),
}

/// `kind = "nats"`: a durable pull consumer of a `JetStream` stream. The consumer is made where it is missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    /// `nats://user:password@host:4222` or `tls://…`; several servers of a cluster separated by commas.
    #[serde(default = "no_url", serialize_with = "shown_url")]
    pub url: SecretString,
    /// A `.creds` file, where the servers want one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// The stream.
    pub stream: String,
    /// The durable consumer, which all nodes share.
    #[serde(default = "ours")]
    pub consumer: String,
    /// Subjects of the stream that a consumer made here is for; all where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// After which time a consumer made here delivers again what was not acknowledged, in milliseconds.
    #[serde(default = "half_a_minute")]
    pub ack_wait_ms: u64,
}

/// `kind = "rabbitmq"`: a queue, which must be there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RabbitmqConfig {
    /// `amqp://user:password@host:5672/vhost` or `amqps://…`.
    #[serde(default = "no_url", serialize_with = "shown_url")]
    pub url: SecretString,
    /// The queue.
    pub queue: String,
}

/// `kind = "redis"`: a stream, read by a consumer group. The group is made where it is missing, to read all there is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://user:password@host:6379/0` or `rediss://…`.
    #[serde(default = "no_url", serialize_with = "shown_url")]
    pub url: SecretString,
    /// The stream's key.
    pub stream: String,
    /// The consumer group, which all nodes share.
    #[serde(default = "ours")]
    pub group: String,
    /// The consumer's name in the group, for people who look; nodes may share it.
    #[serde(default = "ours")]
    pub consumer: String,
    /// The field of an entry with the event, where there is no CloudEvent in binary mode.
    #[serde(default = "data_field")]
    pub field: String,
    /// After which time another node takes over what was not acknowledged, in milliseconds.
    #[serde(default = "half_a_minute")]
    pub claim_after_ms: u64,
}

impl BrokerConfig {
    /// The kind as it stands in the configuration, which is the name of its cargo feature too.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Nats(_) => "nats",
            Self::Rabbitmq(_) => "rabbitmq",
            Self::Redis(_) => "redis",
            Self::Sqs(_) => "sqs",
            Self::Pubsub(_) => "pubsub",
        }
    }

    /// Where the broker is, for those kinds that have a URL; empty where none is set.
    const fn url(&mut self) -> Option<&mut SecretString> {
        match self {
            Self::Nats(NatsConfig { url, .. })
            | Self::Rabbitmq(RabbitmqConfig { url, .. })
            | Self::Redis(RedisConfig { url, .. }) => Some(url),
            Self::Sqs(_) | Self::Pubsub(_) => None,
        }
    }

    /// What is wrong with it, by the name of the setting.
    fn fault(&self) -> Option<String> {
        let (url, schemes, names, wait): (_, &[&str], Vec<(&str, &str)>, _) = match self {
            Self::Nats(nats) => (
                &nats.url,
                &["nats://", "tls://"],
                vec![("stream", &nats.stream), ("consumer", &nats.consumer)],
                ("ack_wait_ms", nats.ack_wait_ms),
            ),
            Self::Rabbitmq(rabbit) => {
                (&rabbit.url, &["amqp://", "amqps://"], vec![("queue", &rabbit.queue)], ("", MIN_WAIT_MS))
            }
            Self::Redis(redis) => (
                &redis.url,
                &["redis://", "rediss://"],
                vec![
                    ("stream", &redis.stream),
                    ("group", &redis.group),
                    ("consumer", &redis.consumer),
                    ("field", &redis.field),
                ],
                ("claim_after_ms", redis.claim_after_ms),
            ),
            Self::Sqs(sqs) => return sqs.fault(),
            Self::Pubsub(pubsub) => return pubsub.fault(),
        };
        if url.expose_secret().is_empty() {
            return Some("url is missing, in the file and as a variable".into());
        }
        if !url
            .expose_secret()
            .split(',')
            .all(|url| schemes.iter().any(|scheme| url.trim().starts_with(scheme)))
        {
            return Some(format!("url must begin with {}", schemes.join(" or ")));
        }
        if wait.1 < MIN_WAIT_MS {
            return Some(format!("{} must be at least {MIN_WAIT_MS}", wait.0));
        }
        names.iter().find_map(|(name, text)| Some(format!("{name} {}", why_not_a_name(text)?)))
    }
}

/// The shortest time after which a message may be delivered again: time to extend it in.
const MIN_WAIT_MS: u64 = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Nats,
    Rabbitmq,
    Redis,
    Sqs,
    Pubsub,
}

/// What every kind has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    kind: Kind,
    name: String,
    tenant: Option<String>,
    #[serde(default = "batch")]
    batch: usize,
    #[serde(default = "max_in_flight")]
    max_in_flight: usize,
}

impl<'de> Deserialize<'de> for SourceConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Taken apart by hand: serde can't refuse unknown keys where one table is read as two structs.
        let mut broker = Dict::deserialize(deserializer)?;
        let name = broker.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
        let common = ["name", "tenant", "batch", "max_in_flight", "kind"];
        let common = common.into_iter().filter_map(|key| broker.remove_entry(key)).collect();
        let Common { kind, name, tenant, batch, max_in_flight } = part(&name, common)?;
        let broker = match kind {
            Kind::Nats => BrokerConfig::Nats(part(&name, broker)?),
            Kind::Rabbitmq => BrokerConfig::Rabbitmq(part(&name, broker)?),
            Kind::Redis => BrokerConfig::Redis(part(&name, broker)?),
            Kind::Sqs => BrokerConfig::Sqs(part(&name, broker)?),
            Kind::Pubsub => BrokerConfig::Pubsub(part(&name, broker)?),
        };
        Ok(Self { name, tenant, batch, max_in_flight, broker })
    }
}

/// A part of a source's settings.
fn part<T: DeserializeOwned, E: serde::de::Error>(name: &str, part: Dict) -> Result<T, E> {
    let read = Value::from(part).deserialize();
    read.map_err(|error| E::custom(format!("source `{name}`: {}", first(error))))
}

/// The source that a variable names the URL of, as its name stands there; `None` for other variables.
pub(super) fn url_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix(URL_VARIABLE.0)?.strip_suffix(URL_VARIABLE.1)?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Sets the URL of the source that is called `name` as a variable spells it; whether there is one.
pub(super) fn set_url(sources: &mut [SourceConfig], name: &str, url: String) -> bool {
    let spelled = |source: &SourceConfig| {
        source
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .eq(name.chars())
    };
    let source = sources.iter_mut().find(|source| spelled(source));
    match source.and_then(|source| source.broker.url()) {
        Some(place) => {
            *place = url.into();
            true
        }
        None => false,
    }
}

/// Looks whether the sources can be read like this.
///
/// # Errors
/// What is wrong, in one line with its place.
pub(super) fn check(sources: &[SourceConfig]) -> Result<(), String> {
    let mut names = HashSet::new();
    for source in sources {
        let name = &source.name;
        let spelled = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fault = if name.is_empty() || name.len() > 64 || !name.chars().all(spelled) {
            Some("its name must have 1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`".to_owned())
        } else if !names.insert(name) {
            Some("another source has this name".to_owned())
        } else if !(1..=BATCH_MAX).contains(&source.batch) {
            Some(format!("batch must be from 1 to {BATCH_MAX}"))
        } else if !(source.batch..=MAX_IN_FLIGHT_MAX).contains(&source.max_in_flight) {
            Some(format!("max_in_flight must be from batch, {}, to {MAX_IN_FLIGHT_MAX}", source.batch))
        } else if let Some(why) = source.tenant.as_deref().and_then(why_not_a_name) {
            Some(format!("tenant {why}"))
        } else {
            source.broker.fault()
        };
        if let Some(fault) = fault {
            return Err(format!("source `{name}`: {fault}"));
        }
        crate::sources::check_compiled(source)?;
    }
    Ok(())
}

/// A URL without its password.
fn shown_url<S: Serializer>(url: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    let urls: Vec<_> = url.expose_secret().split(',').map(without_password).collect();
    serializer.serialize_str(&urls.join(","))
}

fn no_url() -> SecretString {
    SecretString::from("")
}

fn ours() -> String {
    "posthaste".into()
}

fn data_field() -> String {
    "data".into()
}

const fn half_a_minute() -> u64 {
    30_000
}

const fn batch() -> usize {
    BATCH_DEFAULT
}

const fn max_in_flight() -> usize {
    MAX_IN_FLIGHT_DEFAULT
}

#[cfg(all(test, feature = "nats", feature = "redis"))]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::{Config, ConfigError, Loaded};

    const ORDERS: &str = "[[sources]]\nname = 'shop-orders'\nkind = 'nats'\nstream = 'ORDERS'\n";
    const URL: &str = "url = 'nats://relay:canary@127.0.0.1:4222'\n";

    fn load(file: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let place = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(place.path(), file).expect("written");
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(place.path()), owned.collect::<Vec<_>>())
    }

    #[test]
    fn a_source_has_defaults_and_its_password_is_not_shown() {
        // holds: 46
        let redis =
            "[[sources]]\nname = 'r'\nkind = 'redis'\nurl = 'redis://:canary@h/0'\nstream = 's'\nbatch = 7\n";
        let config = load(&format!("{ORDERS}{URL}{redis}"), &[]).expect("good").config;
        let [orders, other] = &config.sources[..] else { panic!("two sources") };
        assert_eq!(
            (orders.batch, orders.max_in_flight, other.batch),
            (BATCH_DEFAULT, MAX_IN_FLIGHT_DEFAULT, 7)
        );
        let BrokerConfig::Nats(nats) = &orders.broker else { panic!("another kind") };
        assert_eq!((nats.consumer.as_str(), nats.ack_wait_ms), ("posthaste", 30_000));
        let shown = config.show().expect("shown");
        assert!(!shown.contains("canary") && !format!("{config:?}").contains("canary"), "{shown}");
        assert!(shown.contains("nats://relay:[redacted]@127.0.0.1:4222"), "{shown}");
        load(&shown, &[]).expect("read again");
    }

    #[test]
    fn a_url_comes_from_a_variable_too() {
        let url = "nats://relay:secret@h:4222";
        let variables =
            [("POSTHASTE_SOURCES__SHOP_ORDERS__URL", url), ("POSTHASTE_SOURCES__OTHER__URL", "x")];
        let loaded = load(ORDERS, &variables).expect("good");
        let BrokerConfig::Nats(nats) = &loaded.config.sources[0].broker else { panic!("another kind") };
        assert_eq!(nats.url.expose_secret(), url);
        assert_eq!(
            loaded.warnings,
            ["POSTHASTE_SOURCES__OTHER__URL names no source of the configuration and does nothing"]
        );
    }

    #[rstest]
    #[case::unknown_key("subject = 'x'\n", "source `shop-orders`: unknown field: found `subject`")]
    #[case::of_another_kind("queue = 'x'\n", "source `shop-orders`: unknown field: found `queue`")]
    #[case::kind_of_value("batch = 'many'\n", "batch: invalid type: found string \"many\", expected usize")]
    #[case::no_batch("batch = 0\n", "batch must be from 1")]
    #[case::narrow("batch = 20\nmax_in_flight = 10\n", "max_in_flight must be from batch, 20,")]
    #[case::tenant("tenant = ''\n", "tenant must not be empty")]
    #[case::wait("ack_wait_ms = 5\n", "ack_wait_ms must be at least")]
    fn what_is_wrong_is_told_with_its_place(#[case] line: &str, #[case] expected: &str) {
        let error = load(&format!("{ORDERS}{URL}{line}"), &[]).expect_err("bad").to_string();
        assert!(error.contains(expected) && !error.contains('\n') && !error.contains("canary"), "{error}");
    }

    #[rstest]
    #[case::no_url(ORDERS.to_owned(), "url is missing")]
    #[case::scheme(format!("{ORDERS}url = 'http://canary'\n"), "nats:// or tls://")]
    #[case::number(format!("{ORDERS}url = 13371337\n"), "url: invalid type: found another kind of value")]
    #[case::twice(format!("{ORDERS}{URL}{ORDERS}{URL}"), "another source has this name")]
    #[case::kind(ORDERS.replace("nats", "kafka"), "kind: unknown variant: found `kafka`")]
    #[case::no_kind(ORDERS.replace("kind = 'nats'\n", ""), "kind")]
    #[case::no_name(ORDERS.replace("name = 'shop-orders'\n", ""), "missing field `name`")]
    #[case::bad_name(format!("{}{URL}", ORDERS.replace("shop-orders", "a b")), "its name must have")]
    fn bad_sources_are_refused(#[case] file: String, #[case] expected: &str) {
        let error = load(&file, &[]).expect_err("bad").to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        assert!(!error.contains("canary") && !error.contains("1337"), "{error}");
    }
}
