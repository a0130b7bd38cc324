//! `posthaste send`: posts events from a file.

mod file;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use bytes::Bytes;
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use self::file::{Bounds, Chunk, Place};
use super::Server;
use super::client::{Answer, Client};
use super::output::{complain, say};
use crate::app::SystemClock;
use crate::config::Config;
use crate::domain::clock::Clock as _;
use crate::domain::key::prefixed_hex;
use crate::domain::retry::spread;

/// Most bytes of events in a request; the relay's own limit is 16 MiB by default.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Batches that are read ahead.
const READ_AHEAD: usize = 4;
/// How often a batch is posted that can't be taken now.
const TRIES_MAX: u32 = 10;
/// First wait before another try where the relay names none; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Longest wait that the relay may ask for.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = "\
A file of one JSON value a line is read line by line; anything else (an array, an object over several lines) is read \
into memory. The bytes of each event stay as they are.

A batch in which an event is invalid or in conflict with a stored one is refused whole, and nothing after it is sent; \
with --lenient the good ones are stored and it goes on. Every request carries an Idempotency-Key made from its content \
and place, so that the same file, sent again within a day with the same --batch, doubles nothing, not even events \
without an id.")]
pub(super) struct SendArgs {
    /// File of events: a JSON object, an array, or one object a line; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    server: Server,
    /// Path that takes events [default: the first of http.ingest_paths]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Most events in a request
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Tenant of events that name none (X-Tenant)
    #[arg(long)]
    tenant: Option<String>,
    /// Store the good events of a batch although others are bad
    #[arg(long)]
    lenient: bool,
}

pub(super) async fn run(args: SendArgs, config: Config) -> anyhow::Result<ExitCode> {
    let path = args.path.clone().or_else(|| config.http.ingest_paths.first().cloned()).unwrap_or_default();
    anyhow::ensure!(path.starts_with('/'), "--path must begin with `/`, not `{path}`");
    let client = Client::new(&args.server, &config)?;
    let (name, input, bytes) = open(&args.file)?;
    let bar = progress_bar(bytes);
    let bounds = Bounds { events: usize::try_from(args.batch)?, bytes: BATCH_BYTES_MAX };
    let chunks = read_ahead(name, input, bounds)?;
    let clock = SystemClock::new();
    let mut sending = Sending { client, path, args, bar, clock, totals: Totals::default(), batches: 0 };
    let ended = tokio::select! {
        ended = sending.all(chunks) => Some(ended),
        asked = super::stop_signal() => {
            asked?;
            None
        }
    };
    sending.bar.finish_and_clear();
    say(sending.totals)?;
    let Some(ended) = ended else {
        complain("interrupted; what was under way may be stored, and sending the file again doubles nothing");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    ended?;
    Ok(if sending.totals.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Chunks = mpsc::Receiver<anyhow::Result<Chunk>>;

/// The file's name for people, its content, and its length where that is known.
fn open(path: &Path) -> anyhow::Result<(String, Box<dyn BufRead + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok(("standard input".to_owned(), Box::new(BufReader::new(io::stdin())), None));
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("can't open {name}"))?;
    let metadata = file.metadata().with_context(|| format!("can't open {name}"))?;
    anyhow::ensure!(!metadata.is_dir(), "{name} is a folder");
    let bytes = metadata.is_file().then_some(metadata.len());
    Ok((name, Box::new(BufReader::with_capacity(1 << 16, file)), bytes))
}

/// Reads in a thread of its own: a read may take for ever, and must not hold up the end of the program.
fn read_ahead(name: String, input: Box<dyn BufRead + Send>, bounds: Bounds) -> anyhow::Result<Chunks> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let taken = file::split(input, bounds, |chunk| sender.blocking_send(Ok(chunk)).is_ok());
        if let Err(error) = taken {
            let error = anyhow::anyhow!("{name} {error}");
            // Nobody waits for it where another error came first.
            let _ = sender.blocking_send(Err(error));
        }
    };
    std::thread::Builder::new().name("reader".into()).spawn(read).context("can't start a thread")?;
    Ok(receiver)
}

fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{spinner:.green} {bar:24.green/white.dim} {bytes}/{total_bytes}  {wide_msg:.dim}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner:.green} {bytes}  {wide_msg:.dim}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("━╸─")),
        Err(_) => bar,
    }
}

/// What became of the events so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    conflicts: u64,
    invalid: u64,
    /// Good ones in a batch that was refused for others, or that the relay could not take.
    not_stored: u64,
}

impl Totals {
    const fn is_good(&self) -> bool {
        self.conflicts == 0 && self.invalid == 0 && self.not_stored == 0
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted = HumanCount;
        write!(
            f,
            "{} sent: {} accepted, {} duplicates, {} conflicts, {} invalid",
            counted(self.sent),
            counted(self.accepted),
            counted(self.duplicates),
            counted(self.conflicts),
            counted(self.invalid)
        )?;
        match self.not_stored {
            0 => Ok(()),
            not_stored => write!(f, ", {} not stored", counted(not_stored)),
        }
    }
}

#[derive(serde::Deserialize)]
struct Taken {
    results: Vec<Item>,
}

#[derive(serde::Deserialize)]
struct Item {
    status: Status,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Accepted,
    Duplicate,
    Conflict,
    Invalid,
}

struct Sending {
    client: Client,
    path: String,
    args: SendArgs,
    bar: ProgressBar,
    clock: SystemClock,
    totals: Totals,
    batches: u64,
}

impl Sending {
    async fn all(&mut self, mut chunks: Chunks) -> anyhow::Result<()> {
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(|error| match self.totals.sent {
                0 => anyhow::anyhow!("{error}; nothing was sent"),
                sent => anyhow::anyhow!("{error}; {} events before it were sent", HumanCount(sent)),
            })?;
            let events = chunk.places.len() as u64;
            self.totals.sent += events;
            // Until the relay has said otherwise.
            self.totals.not_stored += events;
            let answer = self.post(&chunk).await?;
            self.record(&chunk.places, &answer)?;
            self.bar.inc(chunk.body.len() as u64);
            self.bar.set_message(format!("{} accepted", HumanCount(self.totals.accepted)));
            self.batches += 1;
        }
        Ok(())
    }

    /// Posts a batch until the relay has an answer to it that will not change by waiting.
    async fn post(&self, chunk: &Chunk) -> anyhow::Result<Answer> {
        let key = request_key(self.batches, &chunk.body);
        let mut headers = vec![("idempotency-key", key.as_str())];
        if let Some(tenant) = &self.args.tenant {
            headers.push(("x-tenant", tenant));
        }
        if self.args.lenient {
            headers.push(("prefer", "handling=lenient"));
        }
        let body = Bytes::from(chunk.body.clone());
        let (mut pause, mut tries) = (PAUSE, 0);
        loop {
            tries += 1;
            let answer = self.client.post(&self.path, &headers, body.clone()).await;
            let (why, wait) = match answer {
                Ok(answer) if may_pass(answer.status) => (answer.complaint(), answer.wait(self.clock.now())),
                Ok(answer) => return Ok(answer),
                Err(error) => (format!("{error:#}"), None),
            };
            anyhow::ensure!(tries < TRIES_MAX, "given up after {tries} tries: {why}");
            if let Some(wait) = wait.filter(|wait| *wait > WAIT_MAX) {
                anyhow::bail!("given up, since the relay asks to wait for {} s: {why}", wait.as_secs());
            }
            let wait = wait.unwrap_or_else(|| spread(pause, self.clock.chance()));
            pause = (2 * pause).min(PAUSE_MAX);
            let seconds = wait.as_secs_f64();
            self.bar.suspend(|| {
                complain(format_args!(
                    "try {tries} of {TRIES_MAX} failed, the next in {seconds:.1} s: {why}"
                ));
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts what became of a batch, and names what is wrong with it.
    fn record(&mut self, places: &[Place], answer: &Answer) -> anyhow::Result<()> {
        let from = places.first().map(ToString::to_string).unwrap_or_default();
        if !answer.status.is_success() {
            let (status, bad) = (answer.status, self.bad_items(places, answer));
            let what = answer.complaint();
            anyhow::ensure!(
                bad > 0,
                "{} refused the batch that begins with {from}; nothing of it or after it is stored: {what}",
                self.client.base()
            );
            anyhow::bail!(
                "nothing of the batch that begins with {from}, or after it, is stored ({status}); \
                 --lenient stores the good ones"
            );
        }
        let taken: Taken = answer.read()?;
        anyhow::ensure!(taken.results.len() == places.len(), "the relay did not answer for each event");
        self.totals.not_stored -= places.len() as u64;
        for (item, place) in taken.results.into_iter().zip(places) {
            let name = match item.status {
                Status::Accepted => {
                    self.totals.accepted += 1;
                    continue;
                }
                Status::Duplicate => {
                    self.totals.duplicates += 1;
                    continue;
                }
                Status::Conflict => {
                    self.totals.conflicts += 1;
                    "conflict"
                }
                Status::Invalid => {
                    self.totals.invalid += 1;
                    "invalid"
                }
            };
            let detail = item.detail.unwrap_or_default();
            self.bar.suspend(|| complain(format_args!("{place}: {name}: {detail}")));
        }
        Ok(())
    }

    /// Names the events that a whole batch is refused for; says how many there are.
    fn bad_items(&mut self, places: &[Place], answer: &Answer) -> usize {
        #[derive(serde::Deserialize)]
        struct Problem {
            #[serde(default)]
            errors: Vec<Field>,
        }
        #[derive(serde::Deserialize)]
        struct Field {
            pointer: String,
            detail: String,
        }
        let conflict = match answer.status {
            StatusCode::BAD_REQUEST => false,
            StatusCode::CONFLICT => true,
            _ => return 0,
        };
        let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) else { return 0 };
        let mut bad = 0;
        for Field { pointer, detail } in problem.errors {
            let (index, field) = pointer
                .strip_prefix('/')
                .map_or(("", ""), |rest| rest.find('/').map_or((rest, ""), |at| rest.split_at(at)));
            let Some(place) = index.parse().ok().and_then(|index: usize| places.get(index)) else { continue };
            let name = if conflict { "conflict" } else { "invalid" };
            self.bar.suspend(|| match field {
                "" => complain(format_args!("{place}: {name}: {detail}")),
                field => complain(format_args!("{place}: {name}: {field}: {detail}")),
            });
            bad += 1;
        }
        let counted = if conflict { &mut self.totals.conflicts } else { &mut self.totals.invalid };
        *counted += bad as u64;
        self.totals.not_stored -= bad as u64;
        bad
    }
}

/// The same for the same batch at the same place, whenever it is sent.
fn request_key(index: u64, body: &str) -> String {
    let digest = Sha256::new().chain_update(index.to_be_bytes()).chain_update(body).finalize();
    prefixed_hex("send_", &digest[..16])
}

/// Whether the same request may be taken later.
fn may_pass(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_key_belongs_to_a_batch_at_its_place() {
        let key = request_key(0, "[{}]");
        assert_eq!(key, request_key(0, "[{}]"));
        assert_ne!(key, request_key(1, "[{}]"));
        assert_ne!(key, request_key(0, "[{ }]"));
        assert!(key.starts_with("send_") && key.len() == 37, "{key}");
    }

    #[test]
    fn the_last_line_counts_what_became_of_all() {
        let mut totals = Totals { sent: 1_200, accepted: 1_190, duplicates: 10, ..Totals::default() };
        assert_eq!(totals.to_string(), "1,200 sent: 1,190 accepted, 10 duplicates, 0 conflicts, 0 invalid");
        assert!(totals.is_good());
        totals.not_stored = 3;
        assert!(totals.to_string().ends_with("0 invalid, 3 not stored") && !totals.is_good());
    }
}
