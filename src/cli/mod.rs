//! The command line: one file a command.

mod admin;
mod backup;
mod bench;
mod client;
mod completion;
mod config;
#[cfg(feature = "mock")]
mod dev;
mod health;
mod key;
mod master_key;
mod migrate;
mod output;
mod send;
mod serve;
mod stats;
mod story;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::output::{OutputClosed, complain};
use crate::config::{Config, Loaded};

/// Exit code for a configuration that can't be used.
const BAD_CONFIG: u8 = 2;

/// A webhook relay: batches of events in, each once in a ledger, one message each out.
#[derive(Debug, Parser)]
#[command(name = "posthaste", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Configuration file (TOML); the environment overrides it
    #[arg(long, global = true, env = "POSTHASTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Which server to talk to.
#[derive(Debug, Args)]
struct Server {
    /// Base URL of the server [default: where the configuration says it listens]
    #[arg(long, env = "POSTHASTE_URL", value_name = "URL")]
    url: Option<String>,
    /// API key
    #[arg(long, env = "POSTHASTE_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay
    Serve(serve::ServeArgs),
    /// Run the relay on this machine against a mock Svix, with a stream of sample events: no account, no network
    #[cfg(feature = "mock")]
    Dev(dev::DevArgs),
    /// Measure the relay on this machine: a load, a sink, and what the machine itself can do beside them
    Bench(Box<bench::BenchArgs>),
    /// Post events from a file (a JSON object, an array, or one object a line), or `-` for standard input
    Send(send::SendArgs),
    /// One event's story: when it came, where it went, every attempt, what it waits for, and what can be done
    Explain(story::explain::ExplainArgs),
    /// List events, newest first
    Events(story::EventsArgs),
    /// List deliveries (one event for one receiver), newest first; those that wait by what falls due first
    Deliveries(story::DeliveriesArgs),
    /// List deliveries that were given up, newest first
    Dead(story::DeadArgs),
    /// Send deliveries again now, under the same idempotency keys; exit code 1 where one of them was refused
    Retry(story::steer::SteerArgs),
    /// Take deliveries that wait out of the queue, for good; exit code 1 where one of them was refused
    Cancel(story::steer::SteerArgs),
    /// Follow events and what becomes of them; Ctrl-C ends it
    Tail(story::tail::TailArgs),
    /// API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// The key that seals partners' secrets
    #[command(subcommand)]
    MasterKey(master_key::MasterKeyCommand),
    /// Tenants: where their events go, and what they may take (through a running relay)
    #[command(subcommand)]
    Tenant(admin::tenant::TenantCommand),
    /// Partners: receiver organisations without Svix (through a running relay)
    #[command(subcommand)]
    Partner(admin::partner::PartnerCommand),
    /// The URLs of partners (through a running relay)
    #[command(subcommand)]
    Endpoint(admin::endpoint::EndpointCommand),
    /// Event types (through a running relay)
    #[command(subcommand)]
    EventType(admin::event_type::EventTypeCommand),
    /// Transforms (through a running relay)
    #[command(subcommand)]
    Transform(admin::transform::TransformCommand),
    /// What came from a source or a push and could never be accepted (through a running relay)
    #[command(subcommand)]
    Rejected(admin::rejected::RejectedCommand),
    /// Let deliveries go out again, paced and behind what is fresh (through a running relay)
    Replay(Box<admin::replay::ReplayArgs>),
    /// Whether receivers have what they were given (through a running relay)
    #[command(subcommand)]
    Audit(Box<admin::audit::AuditCommand>),
    /// Take away what was kept for long enough (through a running relay)
    Prune(admin::prune::PruneArgs),
    /// Print a script with which a shell completes these commands
    Completion(completion::CompletionArgs),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Bring the ledger's schema to this version's, and end
    Migrate,
    /// Copy the ledger into a file, also beside a running relay (SQLite)
    Backup(backup::BackupArgs),
    /// Put a backup in the ledger's place (SQLite)
    Restore(backup::RestoreArgs),
    /// Ask a running relay whether it is ready, and what waits or is in its way; exit code 0 where it is ready
    Health(health::HealthArgs),
    /// Throughput, latency and errors by partner and endpoint (through a running relay)
    Stats(stats::StatsArgs),
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Cli {
    /// Runs the command; its failure is one line on standard error.
    pub fn run(self) -> ExitCode {
        // Whoever needs TLS finds the one provider there is; a second call changes nothing.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let loaded = match Config::load(self.global.config.as_deref(), std::env::vars()) {
            Ok(loaded) => loaded,
            Err(error) => {
                complain(error);
                return ExitCode::from(BAD_CONFIG);
            }
        };
        for warning in &loaded.warnings {
            complain(format_args!("warning: {warning}"));
        }
        match self.command.run(loaded) {
            Ok(code) => code,
            Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
            Err(error) => {
                complain(format_args!("{error:#}"));
                ExitCode::FAILURE
            }
        }
    }
}

impl Command {
    fn run(self, loaded: Loaded) -> anyhow::Result<ExitCode> {
        let config = loaded.config;
        match self {
            Self::Serve(args) => block_on(serve::run(args, config)),
            #[cfg(feature = "mock")]
            Self::Dev(args) => block_on(dev::run(args, config)),
            Self::Bench(args) => block_on(bench::run(*args, config)),
            Self::Send(args) => block_on(send::run(args, config)),
            Self::Explain(args) => block_on(story::explain::run(args, config)),
            Self::Events(args) => block_on(story::events(args, config)),
            Self::Deliveries(args) => block_on(story::deliveries(args, config)),
            Self::Dead(args) => block_on(story::dead(args, config)),
            Self::Retry(args) => block_on(story::steer::run(story::steer::Action::Retry, args, config)),
            Self::Cancel(args) => block_on(story::steer::run(story::steer::Action::Cancel, args, config)),
            Self::Tail(args) => block_on(story::tail::run(args, config)),
            Self::Key(command) => block_on(key::run(command, config)),
            Self::MasterKey(command) => block_on(master_key::run(command, config)),
            Self::Tenant(command) => block_on(admin::tenant::run(command, config)),
            Self::Partner(command) => block_on(admin::partner::run(command, config)),
            Self::Endpoint(command) => block_on(admin::endpoint::run(command, config)),
            Self::EventType(command) => block_on(admin::event_type::run(command, config)),
            Self::Transform(command) => block_on(admin::transform::run(command, config)),
            Self::Rejected(command) => block_on(admin::rejected::run(command, config)),
            Self::Replay(args) => block_on(admin::replay::run(*args, config)),
            Self::Audit(command) => block_on(admin::audit::run(*command, config)),
            Self::Prune(args) => block_on(admin::prune::run(args, config)),
            Self::Completion(args) => completion::run(&args),
            Self::Config(command) => config::run(&command, &config),
            Self::Migrate => block_on(migrate::run(config)),
            Self::Backup(args) => block_on(backup::back_up(args, config)),
            Self::Restore(args) => block_on(backup::restore(args, config)),
            Self::Health(args) => block_on(health::run(args, config)),
            Self::Stats(args) => block_on(stats::run(args, config)),
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A thread that is blocked, by a reader of our output that has stalled, holds up no end.
    runtime.shutdown_background();
    done
}

/// Waits for the wish to stop: Ctrl-C or SIGTERM. A second one ends the process at once.
async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        crate::telemetry::flush();
        complain("ended at once; nothing that was acknowledged is lost");
        std::process::exit(130);
    });
    Ok(())
}
