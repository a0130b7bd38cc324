//! Configuration: a TOML file, then the environment on top of it.
//!
//! Every setting has its default here and nowhere else. Each is also a variable: `POSTHASTE_` and the key in upper
//! case, `__` between levels, lists comma-separated (`POSTHASTE_HTTP__INGEST_PATHS=/notifications,/events`).

mod direct;
mod ingest;
mod ledger;
mod pubsub_push;
mod redact;
mod retention;
mod role;
mod sources;
mod traces;
mod variables;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use figment::providers::{Format as _, Serialized, Toml};
use figment::value::Value;
use figment::{Figment, Profile};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

pub use self::direct::DirectConfig;
pub use self::ingest::{IngestConfig, UnknownEventTypes};
pub use self::ledger::LedgerConfig;
pub use self::pubsub_push::PubsubPushConfig;
use self::redact::{all_redacted, listed, one_line, redacted, without_password};
pub use self::retention::RetentionConfig;
pub use self::role::Role;
pub use self::sources::{
    BrokerConfig, NatsConfig, PubsubConfig, RabbitmqConfig, RedisConfig, SourceConfig, SqsConfig,
};
pub use self::traces::{ExportSettings, OtelVariables, TracesConfig};
use self::variables::Variable;
use crate::domain::tenant::DefaultRoute;
use crate::ledger::LedgerOptions;
use crate::provisioning::{SeedEventType, SeedPartner, Seeds};
use crate::secrets::MasterKey;

/// Everything that can be set. Fields and defaults are the documentation: see each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:PATH`, created when missing, or `postgres://…`.
    pub database_url: String,
    /// Name of this installation: part of every idempotency key, so that staging and production never meet.
    pub environment: String,
    /// What this node does of the work: `all`, `ingest` or `worker`; on SQLite always `all`.
    pub role: Role,
    /// What seals partners' secrets: 32 random bytes in base64. On SQLite `<database>.key` is made where it is missing.
    #[serde(serialize_with = "redacted")]
    pub master_key: Option<SecretString>,
    /// Master keys that were in force before, so that what they have sealed still opens.
    #[serde(serialize_with = "all_redacted", deserialize_with = "listed")]
    pub master_key_previous: Vec<SecretString>,
    /// The server.
    pub http: HttpConfig,
    /// What is taken in, and how.
    pub ingest: IngestConfig,
    /// The way to Svix.
    pub svix: SvixConfig,
    /// The way to partners' own URLs.
    pub direct: DirectConfig,
    /// What waits, and how long.
    pub ledger: LedgerConfig,
    /// How long what is done is kept.
    pub retention: RetentionConfig,
    /// What is under way.
    pub dispatch: DispatchConfig,
    /// The program's own words.
    pub log: LogConfig,
    /// What `/metrics` tells.
    pub metrics: MetricsConfig,
    /// Which spans are recorded, and where they go.
    pub traces: TracesConfig,
    /// Queues and streams of brokers that events are read from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceConfig>,
    /// Partners and their endpoints that are made, or set to this, at every start; see [`crate::provisioning::Seeds`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partners: Vec<SeedPartner>,
    /// Event types that are made, or set to this, at every start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<SeedEventType>,
}

/// `[http]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port to listen on. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Paths that take events.
    pub ingest_paths: Vec<String>,
    /// An admin key that is always good; required to listen beyond loopback before any key was made.
    #[serde(serialize_with = "redacted")]
    pub bootstrap_admin_key: Option<SecretString>,
    /// Longest request body, before and after decompression, in bytes.
    pub body_limit_bytes: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// Time for a request's head, in milliseconds.
    pub header_timeout_ms: u64,
    /// Time for a request's body, and for some of an answer to be taken, in milliseconds.
    pub body_timeout_ms: u64,
    /// Time from the wish to stop until the process is gone, in milliseconds.
    pub shutdown_timeout_ms: u64,
}

/// `[svix]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SvixConfig {
    /// API token. With one, tenants without a route of their own go to Svix.
    #[serde(serialize_with = "redacted")]
    pub token: Option<SecretString>,
    /// Base URL; by default the token's suffix picks the region.
    pub server_url: Option<String>,
    /// Create an application that Svix does not know.
    pub create_applications: bool,
    /// Most requests to Svix in flight.
    pub max_in_flight: u32,
    /// Requests in flight below which failures and slow answers do not narrow the way to Svix.
    pub min_in_flight: u32,
    /// Time for one request, in milliseconds.
    pub timeout_ms: u64,
    /// Waits after the first, second … failure of a delivery, in milliseconds, each ±20 %; then it is dead.
    pub retry_schedule_ms: Vec<u64>,
    /// Longest `Retry-After` that is honoured, in milliseconds.
    pub retry_after_max_ms: u64,
    /// Failures in a row, over all tenants, that close the way to Svix.
    pub failures_to_close: u32,
    /// First wait behind a closed gate where Svix named none, in milliseconds; doubles up to `probe_max_ms`.
    pub probe_first_ms: u64,
    /// Longest wait between two probes, in milliseconds.
    pub probe_max_ms: u64,
}

/// `[dispatch]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DispatchConfig {
    /// Most requests in flight, over all destinations.
    pub max_in_flight: usize,
    /// Most requests in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// Most claimed deliveries that wait in memory.
    pub max_buffered: usize,
    /// Most deliveries claimed for one lane at once.
    pub max_claim: usize,
    /// How long a claim holds, in milliseconds; at least four times `svix.timeout_ms`.
    pub lease_ms: u64,
}

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is told: `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,posthaste=debug`.
    pub level: String,
}

/// `[metrics]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Most endpoints with series of their own; further ones are told together, as `other`.
    pub endpoint_series_max: usize,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: "sqlite:posthaste.db".into(),
            environment: "default".into(),
            role: Role::All,
            master_key: None,
            master_key_previous: Vec::new(),
            http: HttpConfig::default(),
            ingest: IngestConfig::default(),
            svix: SvixConfig::default(),
            direct: DirectConfig::default(),
            ledger: LedgerConfig::default(),
            retention: RetentionConfig::default(),
            dispatch: DispatchConfig::default(),
            log: LogConfig::default(),
            metrics: MetricsConfig::default(),
            traces: TracesConfig::default(),
            sources: Vec::new(),
            partners: Vec::new(),
            event_types: Vec::new(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            ingest_paths: vec!["/notifications".into(), "/api/v1/events".into()],
            bootstrap_admin_key: None,
            body_limit_bytes: 16 << 20,
            max_connections: 4_096,
            header_timeout_ms: 15_000,
            body_timeout_ms: 30_000,
            shutdown_timeout_ms: 25_000,
        }
    }
}

impl Default for SvixConfig {
    fn default() -> Self {
        const SECOND: u64 = 1_000;
        const MINUTE: u64 = 60 * SECOND;
        const HOUR: u64 = 60 * MINUTE;
        Self {
            token: None,
            server_url: None,
            create_applications: true,
            max_in_flight: 128,
            min_in_flight: 4,
            timeout_ms: 15 * SECOND,
            retry_schedule_ms: vec![
                5 * SECOND,
                30 * SECOND,
                2 * MINUTE,
                10 * MINUTE,
                30 * MINUTE,
                HOUR,
                2 * HOUR,
                5 * HOUR,
                10 * HOUR,
                10 * HOUR,
            ],
            retry_after_max_ms: HOUR,
            failures_to_close: 10,
            probe_first_ms: SECOND,
            probe_max_ms: MINUTE,
        }
    }
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 512,
            max_in_flight_per_destination: 64,
            max_buffered: 2_048,
            max_claim: 512,
            lease_ms: 120_000,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { endpoint_series_max: 500 }
    }
}

/// Why a configuration can't be used: one line, naming the place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A configuration, and what of the environment was not understood.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// A line for each unknown variable.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads `file`, where one is given, and then `variables` (name and value; others than ours are passed over).
    ///
    /// # Errors
    /// A file that can't be read, a key it should not have, a value of the wrong kind or out of bounds.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let defaults = Value::serialize(Self::default()).map_err(|error| ConfigError(one_line(&error)))?;
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.is_file() {
                return Err(ConfigError(format!("there is no configuration file {}", file.display())));
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        let mut warnings = Vec::new();
        let mut source_urls = Vec::new();
        let mut standard = OtelVariables::default();
        for (name, text) in variables {
            if let Some(source) = sources::url_of(&name) {
                source_urls.push((name.clone(), source, text));
                continue;
            }
            if name.starts_with("OTEL_") {
                warnings.extend(standard.take(&name, &text));
                continue;
            }
            match variables::read(&name, &text, &defaults)? {
                Variable::Foreign => {}
                Variable::Unknown => {
                    warnings.push(format!("{name} is not a setting of this version and does nothing"));
                }
                Variable::Setting(nested) => {
                    figment = figment.merge(Serialized::from(nested, Profile::Default));
                }
            }
        }
        let mut config: Self = figment.extract().map_err(|error| ConfigError(one_line(&error)))?;
        for (name, source, url) in source_urls {
            if !sources::set_url(&mut config.sources, &source, url) {
                warnings.push(format!("{name} names no source of the configuration and does nothing"));
            }
        }
        config.traces.standard = standard;
        config.check()?;
        Ok(Loaded { config, warnings })
    }

    /// The settings as TOML, secrets redacted.
    ///
    /// # Errors
    /// None that is known; the serializer's own word if there is one.
    pub fn show(&self) -> Result<String, ConfigError> {
        let mut shown = self.clone();
        shown.database_url = without_password(&self.database_url);
        for url in [&mut shown.ledger.listen_url, &mut shown.ledger.replica_url].into_iter().flatten() {
            *url = without_password(url);
        }
        toml::to_string(&shown).map_err(|error| ConfigError(error.to_string()))
    }

    /// How the ledger is opened.
    pub fn ledger_options(&self) -> LedgerOptions {
        self.ledger.options(&self.database_url, Duration::from_millis(self.dispatch.lease_ms))
    }

    /// Where tenants go that have no route of their own.
    pub fn default_route(&self) -> DefaultRoute {
        if self.svix.token.is_some() { DefaultRoute::Svix } else { DefaultRoute::Direct }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let url = &self.database_url;
        let schemes = ["sqlite:", "postgres://", "postgresql://"];
        let zero = [
            ("http.body_limit_bytes", self.http.body_limit_bytes),
            ("http.max_connections", self.http.max_connections),
            ("ingest.max_batch_events", self.ingest.max_batch_events),
            ("ingest.max_event_bytes", self.ingest.max_event_bytes),
            ("dispatch.max_in_flight", self.dispatch.max_in_flight),
            ("dispatch.max_in_flight_per_destination", self.dispatch.max_in_flight_per_destination),
            ("dispatch.max_buffered", self.dispatch.max_buffered),
            ("dispatch.max_claim", self.dispatch.max_claim),
            ("svix.max_in_flight", self.svix.max_in_flight as usize),
            ("svix.min_in_flight", self.svix.min_in_flight as usize),
            ("svix.failures_to_close", self.svix.failures_to_close as usize),
        ];
        let bad_path = self.http.ingest_paths.iter().find(|path| {
            !path.starts_with('/')
                || path.contains(['{', '}', '*', '?', '#', ' '])
                || path.starts_with("/v1/")
        });
        let retention = self.retention.problem();
        let problem = if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
            "database_url must begin with sqlite: or postgres://".into()
        } else if let Some(problem) = retention.or_else(|| self.ledger.problem(url)) {
            problem
        } else if self.environment.is_empty() {
            "environment must not be empty".into()
        } else if self.http.ingest_paths.is_empty() {
            "http.ingest_paths must name at least one path".into()
        } else if let Some(path) = bad_path {
            format!("http.ingest_paths: `{path}` is not a plain path outside of /v1/")
        } else if let Some((key, _)) = zero.iter().find(|(_, value)| *value == 0) {
            format!("{key} must be at least 1")
        } else if self.dispatch.lease_ms < 4 * self.svix.timeout_ms {
            "dispatch.lease_ms must be at least four times svix.timeout_ms: a lease outlives the longest send"
                .into()
        } else if self.svix.server_url.as_deref().is_some_and(|url| !is_http_url(url)) {
            "svix.server_url must be an http:// or https:// URL".into()
        } else if let Err(problem) = self.direct.dial_policy() {
            problem
        } else if let Err(problem) = self.traces.export() {
            problem
        } else if let Err(problem) = self.ingest.tenant_limit() {
            problem
        } else if let Err(problem) = self.ingest.pubsub_push.check() {
            problem
        } else {
            self.check_master_keys()?;
            sources::check(&self.sources).map_err(ConfigError)?;
            return self.seeds().map(drop).map_err(ConfigError);
        };
        Err(ConfigError(problem))
    }

    /// What is made, or set, at start.
    ///
    /// # Errors
    /// What is wrong with it, in one line with its place.
    pub fn seeds(&self) -> Result<Seeds, String> {
        Seeds::check(&self.partners, &self.event_types, &self.direct.dial_policy()?)
    }

    fn check_master_keys(&self) -> Result<(), ConfigError> {
        let current = self.master_key.iter().map(|key| ("master_key".to_owned(), key));
        let previous = self.master_key_previous.iter().enumerate();
        let previous = previous.map(|(index, key)| (format!("master_key_previous[{index}]"), key));
        for (setting, key) in current.chain(previous) {
            MasterKey::parse(key.expose_secret())
                .map_err(|error| ConfigError(format!("{setting} {error}")))?;
        }
        Ok(())
    }
}

fn is_http_url(url: &str) -> bool {
    let http = url.starts_with("http://") || url.starts_with("https://");
    http && url.parse::<axum::http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

#[cfg(test)]
mod tests;
