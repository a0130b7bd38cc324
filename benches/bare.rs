//! The limit that `posthaste bench` is measured against: the bare combined path, in its simplest honest form.
//!
//! Parse, one batched insert made durable (SQLite: WAL and `synchronous=FULL`), answer, POST each event, one batched
//! settlement through the same writer; the same crates, the same shapes of tables, nothing of Posthaste's promises
//! beyond that: no fingerprint, no duplicates told from conflicts, no routing, scheduling, limits, retries, signatures,
//! metrics. As with `posthaste bench`, what relays is a process of its own (this program, started again), and sink
//! and producers are in this one. Beside it, the bare client's rate against the same sink.
//!
//! ```text
//! cargo bench --bench bare -- --events 200000 --batch 100 --producers 32 --prefill 2000000
//! cargo bench --bench bare -- --database postgres://postgres@127.0.0.1:5432/postgres --format json
//! ```
//!
//! With `--serve SINK` it is a relay alone, for `posthaste bench --url URL --sink SINK`: then producers and sink are the very
//! same for both. It prints its URL and the relaying process's id, posts to the sink's message call, and runs until its input
//! ends.

#[path = "bare/event.rs"]
mod event;
#[path = "bare/load.rs"]
mod load;
#[path = "bare/prefill.rs"]
mod prefill;
#[path = "bare/relay.rs"]
mod relay;
#[path = "bare/report.rs"]
mod report;
#[path = "bare/store.rs"]
mod store;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use posthaste::app::SystemClock;
use posthaste::domain::clock::Clock;

use self::load::{Keys, Load, Sink};
use self::report::Run;
use self::store::Place;

/// How long the relay may take for all events.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests with which the bare client is measured, at most.
const CLIENT_REQUESTS: u64 = 200_000;

/// The bare combined path.
#[derive(Debug, Clone, Parser)]
#[command(name = "bare")]
struct Args {
    /// Events in all.
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// Events in a request.
    #[arg(long, default_value_t = 100)]
    batch: u64,
    /// Producers, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    producers: u64,
    /// Requests under way to the sink at once.
    #[arg(long, default_value_t = 64)]
    in_flight: u64,
    /// Events, with random ids, that are in the ledger before.
    #[arg(long, default_value_t = 0)]
    prefill: u64,
    /// In which order ids come.
    #[arg(long, value_enum, default_value_t = Keys::Random)]
    keys: Keys,
    /// `sqlite:PATH` of a file that is not there yet, or `postgres://…` (a schema of its own is made and dropped).
    /// By default a SQLite file in the build directory.
    #[arg(long)]
    database: Option<String>,
    /// SQLite's page cache; what it has by default is SQLite's own default, as with Posthaste.
    #[arg(long, default_value_t = 2_000)]
    cache_kib: u32,
    /// Runs, each with a ledger of its own; the medians are shown too.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Relay to this address, and nothing else, for a load from outside.
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<std::net::SocketAddr>,
    /// What this process is, where it was started by another.
    #[arg(long, value_enum, hide = true)]
    part: Option<Part>,
    /// The schema of such a process.
    #[arg(long, default_value = "", hide = true)]
    schema: String,
    /// Where such a process sends to.
    #[arg(long, default_value = "", hide = true)]
    sink: String,
    /// What `cargo bench` says to every program.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A process of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Takes events, records them, sends them on.
    Relay,
    /// Sends as fast as it can, and that is all.
    Client,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.part {
        Some(Part::Relay) => relay::run(&args).await,
        Some(Part::Client) => relay::run_client(&args).await,
        None => match args.serve {
            Some(sink) => serve(&args, sink).await,
            None => measure(&args).await,
        },
    }
}

/// A relay over a new ledger, until its input ends.
async fn serve(args: &Args, sink: std::net::SocketAddr) -> anyhow::Result<()> {
    let place = Place::new(args.database.as_deref(), args.cache_kib, 0)?;
    place.create().await?;
    prefill::prefill(&place, args.prefill).await?;
    let mut relay = Process::start(args, Part::Relay, &place, &format!("{sink}/api/v1/app/acme/msg"))?;
    let address = relay.line().context("the relay did not start")?;
    println!("http://{address} {}", relay.child.id());
    // Waits for the end of its input on a thread of its own.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    drop(relay);
    place.remove().await
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    ensure!(args.events > 0 && args.batch > 0 && args.producers > 0, "nothing to do");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut runs = Vec::new();
    for number in 0..args.runs.max(1) {
        let place = Place::new(args.database.as_deref(), args.cache_kib, number)?;
        let measured = run(args, &place, &clock).await;
        place.remove().await?;
        let measured = measured?;
        if args.format == Format::Text {
            report::print_run(number + 1, &measured);
        }
        runs.push(measured);
    }
    match args.format {
        Format::Text => report::print_median(args, &runs),
        Format::Json => report::print_json(args, &runs),
    }
    Ok(())
}

/// One run over a new ledger.
async fn run(args: &Args, place: &Place, clock: &Arc<dyn Clock>) -> anyhow::Result<Run> {
    place.create().await?;
    prefill::prefill(place, args.prefill).await?;
    let client_per_second = client_rate(args, place, clock).await?;
    let sink = Sink::start(args.events, clock.clone()).await?;
    let mut relay = Process::start(args, Part::Relay, place, &sink.address)?;
    let address = relay.line().context("the relay did not start")?;
    let load =
        Load { address, events: args.events, batch: args.batch, producers: args.producers, keys: args.keys };
    let began = clock.moment();
    let accepted = load.run(clock).await?;
    let delivered = tokio::time::timeout(PATIENCE, sink.complete()).await;
    let delivered = delivered.with_context(|| format!("only {} events arrived", sink.arrived()))?;
    while load.settled().await? < args.events {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let settled = clock.moment();
    let rate = |until| per_second(args.events, began.until(until));
    Ok(Run {
        client_per_second,
        accepted_per_second: rate(accepted.ended),
        delivered_per_second: rate(delivered),
        settled_per_second: rate(settled),
        accept_p50_ms: accepted.quantile_ms(0.5),
        accept_p99_ms: accepted.quantile_ms(0.99),
        relay_cpu_us_per_event: relay.cpu().map(|cpu| cpu.as_secs_f64() * 1e6 / count(args.events)),
        doubled: sink.doubled(),
    })
}

/// POSTs per second of the client alone.
async fn client_rate(args: &Args, place: &Place, clock: &Arc<dyn Clock>) -> anyhow::Result<f64> {
    let events = args.events.min(CLIENT_REQUESTS);
    let sink = Sink::start(events, clock.clone()).await?;
    let args = Args { events, ..args.clone() };
    let mut client = Process::start(&args, Part::Client, place, &sink.address)?;
    client.line().context("the client did not start")?;
    let began = clock.moment();
    let ended = tokio::time::timeout(PATIENCE, sink.complete()).await.context("the client did not end")?;
    Ok(per_second(events, began.until(ended)))
}

fn per_second(events: u64, time: Duration) -> f64 {
    count(events) / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "events of a run fit a double")]
const fn count(events: u64) -> f64 {
    events as f64
}

/// This program, started again as one of its parts. Ends with its value.
struct Process {
    child: Child,
}

impl Process {
    fn start(args: &Args, part: Part, place: &Place, sink: &str) -> anyhow::Result<Self> {
        let program: PathBuf = std::env::current_exe().context("this program's own path")?;
        let mut command = Command::new(program);
        command.args(["--part", if part == Part::Relay { "relay" } else { "client" }]);
        command.args(["--database", &place.url, "--schema", &place.schema, "--sink", sink]);
        command.args(["--cache-kib", &args.cache_kib.to_string()]);
        command.args(["--in-flight", &args.in_flight.to_string(), "--events", &args.events.to_string()]);
        // The other end of its input is ours: it ends when we do, however that comes about.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    /// The one line that it says once it is ready.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take()?).read_line(&mut line).ok()?;
        let line = line.trim();
        (!line.is_empty()).then(|| line.to_owned())
    }

    /// CPU time so far; `None` where there is no `/proc`.
    fn cpu(&self) -> Option<Duration> {
        /// What `/proc` counts in: 100 a second on every Linux (`USER_HZ`).
        const TICK_MS: u64 = 10;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // Behind the name, which may hold anything; utime and stime are fields 14 and 15 (proc(5)).
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
        let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * TICK_MS))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
