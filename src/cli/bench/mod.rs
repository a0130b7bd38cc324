//! `posthaste bench`: how fast the relay is on this machine, and what the machine itself can do beside it.
//!
//! The relay is a process of its own, the load and the sink are here. Nothing is counted by the relay: what was
//! accepted is what was answered 202, what was delivered is what arrived.

mod events;
mod limits;
mod load;
mod place;
mod process;
mod profile;
mod report;
mod sink;
mod tally;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::events::{Ids, KeyOrder, SHORTEST_EVENT_BYTES, Shape};
use self::load::{Load, Posted};
use self::place::{Host, Place};
use self::profile::{BACKLOG, BACKLOG_TYPE, EVENT_TYPE, PREFIX, Profile};
use self::report::{Idle, Measured, Report, Round, Subject};
use self::sink::{Sink, Verify};
use self::tally::Tally;
use super::output::{complain, say};
use crate::app::SystemClock;
use crate::config::Config;
use crate::domain::clock::Clock;

/// How long nothing may arrive before what is missing is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// After the last arrival: for what comes twice, and for the relay to record it.
const AFTERMATH: Duration = Duration::from_millis(300);
/// After the start, before the relay counts as idle.
const CALM: Duration = Duration::from_secs(1);
/// How the ledger is filled before the measurement.
const FILL_BATCH: u64 = 500;
const FILL_PRODUCERS: u64 = 8;
/// Exit code of a run that was ended early.
const INTERRUPTED: u8 = 130;

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchFormat {
    /// The medians, for people.
    Text,
    /// Every round and the medians, for programs.
    Json,
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Who receives
    #[arg(long, value_enum, default_value = "svix")]
    profile: Profile,
    /// Events to post and deliver in each round
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    events: u64,
    /// Events in a request
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Events of its producer's last request that each request repeats: duplicates, beside those of `--batch`
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    duplicates: u64,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4_000))]
    producers: u64,
    /// Length of an event, which is sent on as it is
    #[arg(long, value_name = "BYTES", default_value_t = 500, value_parser = payload_bytes)]
    payload_bytes: usize,
    /// Tenants that the events belong to, in turn; on Svix each has an application
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    tenants: u64,
    /// Events per second, posted whether or not earlier ones were answered; 0: as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u64,
    /// Order of event ids
    #[arg(long, value_enum, default_value = "time")]
    ids: KeyOrder,
    /// Events posted and delivered before the measurement, with ids in the same order
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    prefill: u64,
    /// With the profile `backlog`: deliveries that wait for a paused partner
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=2_000_000))]
    backlog: u64,
    /// Rounds, each with a new relay and a ledger as it was before; the figures are medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// Signatures to verify; `all` costs the machine a part of what is measured
    #[arg(long, value_enum, default_value = "sample")]
    verify: Verify,
    /// Seconds to watch the relay do nothing, before the load
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=600))]
    idle_seconds: u64,
    /// Ledger to use, one for the bench alone; all rounds share it [default: a temporary SQLite file for each round]
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    database_url: Option<String>,
    /// Folder for temporary ledgers, on the disk that is meant [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A relay that runs already, instead of one of our own: it needs `--sink`
    #[arg(long, value_name = "URL", requires = "sink")]
    url: Option<String>,
    /// That relay's process, where it is on this machine: tells its CPU time and memory
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// API key with scope `admin` of that relay
    #[arg(long, env = "POSTHASTE_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Where the sink listens; a relay that runs already has `svix.server_url` or `direct.allowed_networks` for it [default: a free port]
    #[arg(long, value_name = "ADDRESS")]
    sink: Option<SocketAddr>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: BenchFormat,
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    let range = SHORTEST_EVENT_BYTES..=1 << 20;
    let bytes = text.parse().ok().filter(|bytes| range.contains(bytes));
    bytes.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
}

pub(super) async fn run(args: BenchArgs, config: Config) -> anyhow::Result<ExitCode> {
    let format = args.format;
    let report = tokio::select! {
        report = bench(args, config) => report?,
        stopped = super::stop_signal() => {
            stopped?;
            complain("ended early: no figures");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    match format {
        BenchFormat::Text => say(report.text().trim_end())?,
        BenchFormat::Json => say(report.json()?)?,
    }
    Ok(if report.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bench(args: BenchArgs, config: Config) -> anyhow::Result<Report> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let address = args.sink.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
    let sink = Sink::start(address, args.verify).await?;
    let place = Place::new(&args)?;
    let mut bench =
        Bench { events_in_ledger: place.events(&config, &clock).await?, args, config, sink, clock };
    bench.fill(&place).await?;
    let mut rounds = Vec::new();
    for number in 1..=bench.args.rounds {
        complain(format_args!("round {number} of {} ...", bench.args.rounds));
        rounds.push(bench.round(&place).await?);
    }
    Report::new(bench.subject(&place), &rounds)
}

/// What all rounds share.
struct Bench {
    args: BenchArgs,
    config: Config,
    sink: Sink,
    /// Before the next round; `None` where we can't know.
    events_in_ledger: Option<u64>,
    clock: Arc<dyn Clock>,
}

impl Bench {
    fn subject(&self, place: &Place) -> Subject {
        let args = &self.args;
        Subject {
            profile: args.profile,
            ledger: place.kind(),
            key_order: args.ids,
            prefilled_events: args.prefill,
            backlog_deliveries: self.backlog(),
            events: args.events,
            deliveries_per_event: args.profile.copies(),
            batch: args.batch,
            duplicates: args.duplicates,
            producers: args.producers,
            payload_bytes: args.payload_bytes,
            tenants: args.tenants,
            rate: args.rate,
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    fn backlog(&self) -> u64 {
        if self.args.profile == Profile::Backlog { self.args.backlog } else { 0 }
    }

    fn shape(&self) -> Shape {
        let tenants = (0..self.args.tenants).map(|number| format!("{PREFIX}{number}")).collect();
        Shape { event_type: EVENT_TYPE, tenants, bytes: self.args.payload_bytes }
    }

    fn tally(&self, events: u64, copies: usize) -> Arc<Tally> {
        let random = self.clock.random().to_be_bytes();
        let mut salt = [0; 8];
        salt.copy_from_slice(&random[..8]);
        let ids = Ids::new(self.args.ids, u64::from_be_bytes(salt));
        Arc::new(Tally::new(ids, events, copies, self.clock.clone()))
    }

    /// Puts in, once, what is to be in the ledger at the beginning of each round.
    async fn fill(&mut self, place: &Place) -> anyhow::Result<()> {
        let (prefill, backlog) = (self.args.prefill, self.backlog());
        if prefill + backlog == 0 {
            return Ok(());
        }
        complain(format_args!(
            "filling the ledger: {prefill} events delivered, {backlog} deliveries waiting ..."
        ));
        let url = place.to_fill();
        let mut host = Host::start(self, place, url.as_deref()).await?;
        if prefill > 0 {
            let secrets = self.args.profile.make_partners(&host.client, &self.sink).await?;
            let tally = self.tally(prefill, self.args.profile.copies());
            self.sink.expect(tally.clone(), &secrets)?;
            self.deliver(&mut host, &self.filling(self.shape()), &tally).await?;
            let lost = tally.arrivals().lost;
            anyhow::ensure!(lost == 0, "{lost} of the events to fill the ledger with did not arrive");
            self.sink.rest();
        }
        if backlog > 0 {
            profile::make_backlog_partner(&host.client, &self.sink).await?;
            let tenants = vec![BACKLOG.to_owned()];
            let shape = Shape { event_type: BACKLOG_TYPE, tenants, bytes: self.args.payload_bytes };
            let tally = self.tally(backlog, 1);
            self.post(&mut host, &self.filling(shape), &tally).await?;
            let waiting = profile::waiting(&host.client).await;
            let enough = waiting.is_none_or(|waiting| waiting >= backlog);
            anyhow::ensure!(enough, "only {} deliveries wait", waiting.unwrap_or_default());
        }
        host.stop(&*self.clock).await?;
        if let Some(events) = &mut self.events_in_ledger {
            // And the one that asked whether it is there.
            *events += prefill + backlog + 1;
        }
        Ok(())
    }

    const fn filling(&self, shape: Shape) -> Load {
        Load { shape, batch: FILL_BATCH, duplicates: 0, producers: FILL_PRODUCERS, rate: 0 }
    }

    async fn round(&mut self, place: &Place) -> anyhow::Result<Round> {
        let args = &self.args;
        let (folder, sink) = (place.folder(), self.sink.url());
        let limits = || limits::measure(folder.clone(), &sink, args.payload_bytes, &self.clock);
        let limits_before = limits().await?;
        let ledger = place.for_round().await?;
        // Nobody has it open, before and after: what it keeps is in the file.
        let size_before = ledger.bytes();
        let mut host = Host::start(self, place, ledger.url()).await?;
        let events_before = self.events_in_ledger.map(|events| events + u64::from(host.first_202.is_some()));
        let idle = self.idle(&mut host).await?;
        let secrets = args.profile.make_partners(&host.client, &self.sink).await?;
        let load = Load {
            shape: self.shape(),
            batch: args.batch,
            duplicates: args.duplicates,
            producers: args.producers,
            rate: args.rate,
        };
        let tally = self.tally(args.events, args.profile.copies());
        self.sink.expect(tally.clone(), &secrets)?;
        let before = host.usage();
        let posted = self.deliver(&mut host, &load, &tally).await?;
        let usage = before.zip(host.usage());
        let first_202 = host.first_202;
        host.stop(&*self.clock).await?;
        self.sink.rest();
        let limits = limits_before.better(limits().await?);
        let growth = ledger.bytes().zip(size_before).map(|(after, before)| after.saturating_sub(before));
        if place.is_kept() {
            self.events_in_ledger = events_before.map(|events| events + args.events);
        }
        let on_sqlite = place.kind() == "sqlite";
        Ok(Round::new(Measured {
            events_before,
            tally: &tally,
            posted: &posted,
            usage,
            on_sqlite,
            ledger_growth_bytes: growth,
            first_202,
            idle,
            limits,
        }))
    }

    /// Watches the relay do nothing.
    async fn idle(&self, host: &mut Host) -> anyhow::Result<Idle> {
        let watched = Duration::from_secs(self.args.idle_seconds);
        if host.usage().is_none() || watched.is_zero() {
            return Ok(Idle::default());
        }
        tokio::time::sleep(CALM).await;
        let (began, before) = (self.clock.moment(), host.usage().unwrap_or_default());
        tokio::time::sleep(watched).await;
        let (took, after) = (began.until(self.clock.moment()), host.usage().unwrap_or_default());
        host.check()?;
        let cpu = after.cpu_s.zip(before.cpu_s);
        let percent = cpu.map(|(after, before)| (after - before) * 100.0 / took.as_secs_f64());
        Ok(Idle { cpu_percent_of_a_core: percent.map(report::rounded), rss_bytes: after.rss_bytes })
    }

    /// Posts a load and waits until it has arrived, or nothing more does.
    async fn deliver(&self, host: &mut Host, load: &Load, tally: &Arc<Tally>) -> anyhow::Result<Posted> {
        let posted = self.post(host, load, tally).await?;
        let (mut seen, mut last) = (tally.unique(), self.clock.moment());
        while seen < tally.expected() {
            tokio::time::sleep(LOOK_AGAIN).await;
            host.check()?;
            let (now, unique) = (self.clock.moment(), tally.unique());
            if unique > seen {
                (seen, last) = (unique, now);
            } else if last.until(now) > PATIENCE {
                complain(format_args!("nothing has arrived for {} s", PATIENCE.as_secs()));
                break;
            }
        }
        tokio::time::sleep(AFTERMATH).await;
        Ok(posted)
    }

    async fn post(&self, host: &mut Host, load: &Load, tally: &Arc<Tally>) -> anyhow::Result<Posted> {
        let posted = load::run(load, &host.client, tally, &self.clock).await;
        if posted.is_err() {
            // Why it is gone says more than that it does not answer.
            tokio::time::sleep(AFTERMATH).await;
            host.check()?;
        }
        posted
    }
}
