//! The limit that `posthaste bench` is measured against: the bare combined path, in its simplest honest form.
//!
//! Parse, one batched insert made durable (SQLite: WAL and `synchronous=FULL`), answer, POST each event, one batched
//! settlement through the same writer; the same crates, the same shapes of tables, nothing of Posthaste's promises
//! beyond that: no fingerprint, no duplicates told from conflicts, no routing, scheduling, limits, retries, signatures,
//! metrics. It relays in a process of its own (this program, started again), over a new ledger.
//!
//! The load, the receiver and the client alone are those of `posthaste bench`, which is called with `--url`, `--sink` and
//! `--pid`, and with what stands behind the second `--`: what is measured is measured alike.
//!
//! ```text
//! cargo bench --bench bare -- -- --events 200000 --ids random --prefill 2000000
//! cargo bench --bench bare -- --database postgres://postgres@127.0.0.1:5432/postgres -- --format json
//! ```

#[path = "bare/relay.rs"]
mod relay;
#[path = "bare/store.rs"]
mod store;

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;
use clap::Parser;

use self::store::Place;

/// The bare combined path.
#[derive(Debug, Parser)]
#[command(name = "bare")]
struct Args {
    /// Requests under way to the sink at once.
    #[arg(long, default_value_t = 64)]
    in_flight: u64,
    /// `sqlite:PATH` of a file that is not there yet, or `postgres://…` (a schema of its own is made and dropped).
    /// By default a SQLite file in the build directory.
    #[arg(long)]
    database: Option<String>,
    /// SQLite's page cache; what it has by default is SQLite's own default, as with Posthaste.
    #[arg(long, default_value_t = 2_000)]
    cache_kib: u32,
    /// The program whose `bench` it is.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_posthaste"))]
    posthaste: PathBuf,
    /// Options of `posthaste bench`.
    #[arg(last = true)]
    options: Vec<String>,
    /// It is the relaying process, started by another.
    #[arg(long, hide = true)]
    relay: bool,
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

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.relay {
        relay::run(&args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = Place::new(args.database.as_deref(), args.cache_kib)?;
    place.create().await?;
    let measured = measure(&args, &place);
    place.remove().await?;
    measured
}

/// Starts a relay, and lets `posthaste bench` measure it.
fn measure(args: &Args, place: &Place) -> anyhow::Result<ExitCode> {
    // A free one, and still free in a moment.
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut relay = Relay::start(args, place, sink)?;
    let address = relay.address().context("the relay did not start")?;
    let mut bench = Command::new(&args.posthaste);
    bench.args(["bench", "--url", &format!("http://{address}"), "--sink", &sink.to_string()]);
    bench.args(["--pid", &relay.child.id().to_string()]);
    bench.args(args.options.iter().filter(|option| *option != "--bench"));
    let status = bench.status().with_context(|| format!("can't start {}", args.posthaste.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The relaying process. Ends with its value.
struct Relay {
    child: Child,
}

impl Relay {
    fn start(args: &Args, place: &Place, sink: SocketAddr) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's own path")?;
        let mut command = Command::new(program);
        command.args(["--relay", "--database", &place.url, "--schema", &place.schema]);
        command.args(["--sink", &format!("{sink}/api/v1/app/bare/msg")]);
        command.args(["--cache-kib", &args.cache_kib.to_string()]);
        command.args(["--in-flight", &args.in_flight.to_string()]);
        // The other end of its input is ours: it ends when we do, however that comes about.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    /// Where it listens: the one line that it says once it is ready.
    fn address(&mut self) -> Option<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take()?).read_line(&mut line).ok()?;
        let line = line.trim();
        (!line.is_empty()).then(|| line.to_owned())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
