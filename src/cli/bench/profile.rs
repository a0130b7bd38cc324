//! What kind of receivers there are, and how the relay is told of them.

use std::time::Duration;

use anyhow::Context as _;
use axum::http::Method;
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::sink::Sink;
use crate::cli::client::Client;
use crate::config::Config;
use crate::ledger::is_sqlite;

/// The events that are measured.
pub(super) const EVENT_TYPE: &str = "bench.event";
/// Those that wait for a partner who is paused.
pub(super) const BACKLOG_TYPE: &str = "bench.backlog";
/// Their tenant, and that partner.
pub(super) const BACKLOG: &str = "bench-backlog";
/// Everything that a bench makes is called something with this.
pub(super) const PREFIX: &str = "bench-";
const FANOUT: usize = 10;
/// Seals the endpoints' secrets in a bench's ledger on Postgres, where one must be given. Nobody needs them.
const MASTER_KEY: &str = "cG9zdGhhc3RlIGJlbmNoIGlzIG5vIHJlYWwgbGVkZ2U=";

/// Presets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Profile {
    /// One message to Svix for each event.
    Svix,
    /// One signed request to one partner for each event.
    Direct,
    /// One signed request to each of ten partners for each event.
    Fanout10,
    /// As `svix`, while deliveries wait for a partner who is paused (--backlog).
    Backlog,
}

impl Profile {
    /// How many deliveries an event becomes.
    pub const fn copies(self) -> usize {
        match self {
            Self::Svix | Self::Direct | Self::Backlog => 1,
            Self::Fanout10 => FANOUT,
        }
    }

    pub const fn uses_svix(self) -> bool {
        matches!(self, Self::Svix | Self::Backlog)
    }

    /// What a relay of our own is told; the rest of the environment holds, too. `None` takes a variable away.
    pub fn settings(
        self,
        database_url: &str,
        sink: &Sink,
        config: &Config,
    ) -> Vec<(&'static str, Option<String>)> {
        let svix = self.uses_svix();
        let needs_key = !is_sqlite(database_url) && config.master_key.is_none();
        let mut settings = vec![
            ("POSTHASTE_CONFIG", None),
            ("POSTHASTE_ROLE", None),
            ("POSTHASTE_DATABASE_URL", Some(database_url.to_owned())),
            ("POSTHASTE_HTTP__INGEST_PATHS", Some(super::load::PATH.to_owned())),
            ("POSTHASTE_INGEST__TENANT_ATTRIBUTES", Some("tenant".to_owned())),
            ("POSTHASTE_INGEST__RELAY", Some("event".to_owned())),
            ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", Some("127.0.0.0/8".to_owned())),
            ("POSTHASTE_SVIX__TOKEN", svix.then(|| "testsk_bench".to_owned())),
            ("POSTHASTE_SVIX__SERVER_URL", svix.then(|| sink.url())),
        ];
        if std::env::var_os("POSTHASTE_LOG__LEVEL").is_none() {
            settings.push(("POSTHASTE_LOG__LEVEL", Some("warn".to_owned())));
        }
        if needs_key {
            settings.push(("POSTHASTE_MASTER_KEY", Some(MASTER_KEY.to_owned())));
        }
        settings
    }

    /// Makes the partners there are; the secret of each.
    pub async fn make_partners(self, client: &Client, sink: &Sink) -> anyhow::Result<Vec<String>> {
        let mut secrets = Vec::new();
        if self.uses_svix() {
            return Ok(secrets);
        }
        for copy in 0..self.copies() {
            let partner = format!("{PREFIX}{copy}");
            let endpoint = json!({ "url": sink.hook(copy), "event_types": [EVENT_TYPE] });
            secrets.push(make_partner(client, &partner, false, endpoint).await?);
        }
        Ok(secrets)
    }
}

/// Makes the partner who is paused, and its tenant.
pub(super) async fn make_backlog_partner(client: &Client, sink: &Sink) -> anyhow::Result<()> {
    let tenant = format!("/v1/tenants/{BACKLOG}");
    let _: Value = call(client, Method::PUT, &tenant, Some(json!({ "route": "direct" }))).await?;
    // What arrives there arrives in error: it is the place of no copy.
    let url = format!("{}backlog", sink.hook(0));
    let endpoint = json!({ "url": url, "event_types": [BACKLOG_TYPE], "tenant": BACKLOG });
    make_partner(client, BACKLOG, true, endpoint).await.map(drop)
}

/// Makes a partner with one endpoint, whatever it had before; the endpoint's secret.
async fn make_partner(client: &Client, id: &str, paused: bool, endpoint: Value) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Known {
        id: String,
    }
    #[derive(serde::Deserialize)]
    struct Listed {
        endpoints: Vec<Known>,
    }
    #[derive(serde::Deserialize)]
    struct Made {
        secret: String,
    }
    let at = format!("/v1/partners/{id}");
    let partner = json!({ "name": "A partner of posthaste bench", "paused": paused });
    let _: Value = call(client, Method::PUT, &at, Some(partner)).await?;
    let endpoints = format!("{at}/endpoints");
    let listed: Listed = call(client, Method::GET, &endpoints, None).await?;
    for known in listed.endpoints {
        let answer = client.delete(&format!("/v1/endpoints/{}", known.id)).await?;
        anyhow::ensure!(answer.status.is_success(), "an old endpoint stays: {}", answer.complaint());
    }
    let made: Made = call(client, Method::POST, &endpoints, Some(endpoint)).await?;
    Ok(made.secret)
}

/// How many deliveries wait in the relay; `None` where it does not tell.
pub(super) async fn waiting(client: &Client) -> Option<u64> {
    let asked = client.get("/health/ready");
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?.ok()?;
    serde_json::from_slice::<Value>(&answer.body).ok()?["waiting"].as_u64()
}

async fn call<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<T> {
    client.call(method, path, body).await.context("the partners of the bench can't be set up")
}
