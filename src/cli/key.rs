//! `posthaste key create|list|revoke`
//!
//! Through the running server where there is one; otherwise straight into the ledger.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use secrecy::ExposeSecret as _;

use super::client::Client;
use super::output::{complain, say};
use super::{Format, Server};
use crate::app::SystemClock;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::http::{Scope, new_key};
use crate::ledger::{KeyInfo, Ledger, is_sqlite, lock_holder};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key and print it, this once
    Create {
        /// What it is for
        #[arg(long)]
        name: String,
        /// What it may do; may be given more than once
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<ScopeArg>,
        /// The one tenant it is good for
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        server: Server,
    },
    /// List all keys, without their secrets
    List {
        /// How to print them
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        #[command(flatten)]
        server: Server,
    },
    /// Revoke a key
    Revoke {
        /// The part of the key between `ph_` and the next `_`
        id: String,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ScopeArg {
    /// Send events
    Ingest,
    /// Read
    Read,
    /// Everything
    Admin,
}

impl ScopeArg {
    const fn scope(self) -> Scope {
        match self {
            Self::Ingest => Scope::Ingest,
            Self::Read => Scope::Read,
            Self::Admin => Scope::Admin,
        }
    }
}

/// Where the keys are kept.
enum Keys {
    Server(Box<Client>),
    Ledger(Ledger, Arc<dyn Clock>),
}

#[derive(serde::Deserialize)]
struct Created {
    key: String,
}

#[derive(serde::Deserialize)]
struct Listed {
    keys: Vec<KeyInfo>,
}

pub(super) async fn run(command: KeyCommand, config: Config) -> anyhow::Result<ExitCode> {
    let server = match &command {
        KeyCommand::Create { server, .. }
        | KeyCommand::List { server, .. }
        | KeyCommand::Revoke { server, .. } => server,
    };
    let keys = Keys::open(server, &config).await?;
    let done = keys.carry_out(command).await;
    if let Keys::Ledger(ledger, _) = &keys {
        ledger.close().await;
    }
    done.map(|()| ExitCode::SUCCESS)
}

impl Keys {
    async fn open(server: &Server, config: &Config) -> anyhow::Result<Self> {
        let running = is_sqlite(&config.database_url) && lock_holder(&config.database_url).is_some();
        if server.url.is_some() || running {
            return Ok(Self::Server(Box::new(Client::new(server, config)?)));
        }
        let ledger = Ledger::open(&config.ledger_options(), Arc::new(SystemClock::new())).await?;
        let clock: Arc<dyn Clock> = ledger.clock();
        Ok(Self::Ledger(ledger, clock))
    }

    async fn carry_out(&self, command: KeyCommand) -> anyhow::Result<()> {
        match command {
            KeyCommand::Create { name, scopes, tenant, .. } => {
                let scopes: Vec<_> = scopes.into_iter().map(ScopeArg::scope).collect();
                say(self.create(&name, &scopes, tenant.as_deref()).await?)?;
                complain("this is the only time it is shown");
            }
            KeyCommand::List { format, .. } => print_keys(&self.list().await?, format)?,
            KeyCommand::Revoke { id, .. } => {
                self.revoke(&id).await?;
                complain(format_args!("revoked {id}"));
            }
        }
        Ok(())
    }

    async fn create(&self, name: &str, scopes: &[Scope], tenant: Option<&str>) -> anyhow::Result<String> {
        match self {
            Self::Server(client) => {
                let names: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
                let body = serde_json::json!({ "name": name, "scopes": names, "tenant": tenant });
                let answer = client.post("/v1/keys", &[], Bytes::from(body.to_string())).await?;
                Ok(answer.read::<Created>()?.key)
            }
            Self::Ledger(ledger, clock) => {
                let (key, text) = new_key(name, scopes, tenant, clock);
                ledger.database().add_api_key(&key).await?;
                Ok(text.expose_secret().to_owned())
            }
        }
    }

    async fn list(&self) -> anyhow::Result<Vec<KeyInfo>> {
        match self {
            Self::Server(client) => Ok(client.get("/v1/keys").await?.read::<Listed>()?.keys),
            Self::Ledger(ledger, _) => {
                Ok(ledger.database().all_api_keys().await?.into_iter().map(|key| key.info).collect())
            }
        }
    }

    async fn revoke(&self, id: &str) -> anyhow::Result<()> {
        match self {
            Self::Server(client) => {
                anyhow::ensure!(
                    id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                    "there is no key `{id}`"
                );
                let answer = client.delete(&format!("/v1/keys/{id}")).await?;
                anyhow::ensure!(answer.status.is_success(), "{}", answer.complaint());
            }
            Self::Ledger(ledger, clock) => {
                let revoked = ledger.database().revoke_api_key(id, clock.now()).await?;
                anyhow::ensure!(revoked, "there is no good key `{id}`");
            }
        }
        Ok(())
    }
}

fn print_keys(keys: &[KeyInfo], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return say(serde_json::to_string_pretty(keys).context("keys can't be printed")?);
    }
    say(format_args!("{:<18} {:<20} {:<20} {:<8} NAME", "ID", "SCOPES", "TENANT", "STATE"))?;
    for key in keys {
        let state = if key.revoked_at.is_some() { "revoked" } else { "good" };
        let tenant = key.tenant.as_deref().unwrap_or("all");
        let (id, scopes, name) = (&key.id, key.scopes.join(","), &key.name);
        say(format_args!("{id:<18} {scopes:<20} {tenant:<20} {state:<8} {name}"))?;
    }
    Ok(())
}
