//! `posthaste dev`: the relay, a mock Svix, a mock partner and a producer in one process, for whoever wants to see events flow.

mod earlier;
mod journal;
mod moved;
mod producer;
mod sample;
mod screen;
mod sink;
mod tally;

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::earlier::look_back;
use self::journal::{Journal, Summary};
use self::producer::{Producer, lock};
use self::sample::Samples;
use self::screen::{Banner, Screen, banner_text};
use self::sink::Sink;
use super::client::{Client, url_of};
use super::output::OutputClosed;
use crate::app::{App, SystemClock};
use crate::config::{Config, HttpConfig, LogConfig, Role};
use crate::dispatcher::Dispatcher;
use crate::domain::clock::{Clock, Moment};
use crate::mock::{MockPartner, MockSvix, Trouble};
use crate::telemetry;

const MOCK_TOKEN: &str = "testsk_mock";
const DEFAULT_TENANT: &str = "demo";
/// Where the mock partner is.
const LOOPBACK: &str = "127.0.0.0/8";
const DATABASE: &str = "posthaste.db";
/// How often the screen is brought up to date.
const FRAME: Duration = Duration::from_millis(50);
/// A run meets about as many pauses of a second, however many events it has.
const PAUSES: u64 = 8;
/// Fewest messages between two pauses.
const THROTTLE_EVERY_MIN: u64 = 25;
/// The mock remembers as many messages beyond the sample events.
const FOREIGN_MESSAGES_MAX: u64 = 50_000;
/// After the last event was posted and the last message came, how long to wait for the next.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the relay may be busy after the last message before the summary.
const QUIET_WITHIN: Duration = Duration::from_secs(3);
/// Time for the producer to get the answer that it waits for.
const PRODUCER_STOP: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// How many sample events to send
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    events: u64,
    /// Sample events per second; 0: as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 200)]
    rate: u32,
    /// No line for each event: only the progress and the summary
    #[arg(long)]
    quiet: bool,
    /// Folder for the ledger, made where it is missing, and kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End after the summary: exit code 0 where every event is exactly one message and came once to the partner, else 1
    #[arg(long)]
    exit: bool,
}

pub(super) async fn run(args: DevArgs, mut config: Config) -> anyhow::Result<ExitCode> {
    if config.log.level == LogConfig::default().level {
        // The events are on the screen already; what the partner that has moved never gets is in the console.
        config.log.level = "warn,posthaste::dispatcher::attempt=off".into();
    }
    telemetry::init(&config.log).map_err(anyhow::Error::msg)?;
    let played = play(&args, config).await;
    telemetry::flush();
    played
}

async fn play(args: &DevArgs, config: Config) -> anyhow::Result<ExitCode> {
    let asked_to_stop = tokio::spawn(super::stop_signal());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut stage = Stage::set(args, config, clock).await?;
    let shown = stage.play(args, asked_to_stop).await;
    stage.clear(shown).await
}

/// Where the ledger is kept.
enum Folder {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Folder {
    fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        match given {
            None => {
                let folder = tempfile::Builder::new().prefix("posthaste-dev-").tempdir();
                Ok(Self::Temporary(folder.context("can't make a temporary folder")?))
            }
            Some(given) => {
                let shown = given.display();
                std::fs::create_dir_all(given).with_context(|| format!("can't make the folder {shown}"))?;
                Ok(Self::Given(given.to_owned()))
            }
        }
    }

    fn database(&self) -> PathBuf {
        match self {
            Self::Temporary(folder) => folder.path().join(DATABASE),
            Self::Given(folder) => folder.join(DATABASE),
        }
    }
}

/// Everything that plays a part, in the order in which it ends.
struct Stage {
    screen: Screen,
    banner: String,
    curl: String,
    journal: Arc<Mutex<Journal>>,
    stop_producer: CancellationToken,
    producer: JoinHandle<anyhow::Result<()>>,
    app: App,
    mock: MockSvix,
    /// Answers as long as it is here.
    moved: MockPartner,
    followers: [JoinHandle<()>; 2],
    folder: Folder,
    summary: Option<Summary>,
    clock: Arc<dyn Clock>,
}

impl Stage {
    /// Starts the mocks, the relay and the producer, and tells where they are.
    async fn set(args: &DevArgs, mut config: Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let folder = Folder::new(args.dir.as_deref())?;
        let throttle_every = (args.events / PAUSES).max(THROTTLE_EVERY_MIN);
        let remembered = usize::try_from(args.events + FOREIGN_MESSAGES_MAX)?;
        let mock = MockSvix::builder().token(MOCK_TOKEN).record_limit(remembered).start().await;
        mock.every_nth(throttle_every, Trouble::throttle(1));
        let partner = sink::start().await;
        let partner_url = sink::url(&partner);
        let moved = moved::start().await;
        let mut notes = Vec::new();
        derive(&mut config, &mock.url(), &folder.database())?;
        notes.extend(find_port(&mut config));
        notes.extend(look_back(&mut config, &folder.database(), &clock).await?);

        let journal = Arc::new(Mutex::new(Journal::new(!args.quiet)));
        let follower = tokio::spawn(follow(mock.clone(), journal.clone(), clock.clone()));
        let app = App::start(&config, clock.clone()).await?;
        let relay = url_of(app.address());
        let key = config.http.bootstrap_admin_key.as_ref().map(|key| key.expose_secret().to_owned());
        let path = config.http.ingest_paths.first().cloned().unwrap_or_default();
        let client = Client::at(relay.clone(), key.clone())?;
        let sink = Sink::subscribe(&client, partner).await?;
        moved::subscribe_at_old_address(&client, &moved).await?;
        lock(&journal).expect_at(sink.tally(&config.environment));
        let followers = [follower, tokio::spawn(sink.follow(journal.clone(), clock.clone()))];
        let curl = curl(&format!("{relay}{path}"), key.as_deref());
        let banner = banner_text(&Banner {
            relay: &relay,
            mock: &mock.url(),
            partner: &partner_url,
            moved: &moved::url(&moved),
            database: &folder.database(),
            kept: matches!(folder, Folder::Given(_)),
            curl: &curl,
            events: args.events,
            rate: args.rate,
            throttle_every,
            notes: &notes,
        });
        let attribute = config.ingest.tenant_attributes.first().map_or("tenant", String::as_str);
        let producer = Producer {
            client,
            path,
            samples: Samples::new(clock.now(), attribute, config.ingest.max_batch_events),
            events: args.events,
            rate: args.rate,
            journal: journal.clone(),
            clock: clock.clone(),
        };
        let stop_producer = CancellationToken::new();
        let producer = tokio::spawn(producer.run(stop_producer.clone()));
        let screen = Screen::new(clock.moment());
        Ok(Self {
            screen,
            banner,
            curl,
            journal,
            stop_producer,
            producer,
            app,
            mock,
            moved,
            followers,
            folder,
            summary: None,
            clock,
        })
    }

    /// Shows what happens until somebody has seen enough.
    async fn play(
        &mut self,
        args: &DevArgs,
        mut asked_to_stop: JoinHandle<anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let mut frames = tokio::time::interval(FRAME);
        frames.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut produced_at = None;
        self.screen.print(&self.banner)?;
        if args.events > 0 {
            self.screen.begin_progress(args.events);
        }
        loop {
            tokio::select! {
                asked = &mut asked_to_stop => return asked?,
                _ = frames.tick() => {}
            }
            self.show()?;
            if self.summary.is_some() {
                continue;
            }
            if produced_at.is_none() && self.producer.is_finished() {
                produced_at = Some(self.clock.moment());
                if let Err(error) = (&mut self.producer).await? {
                    self.screen.trouble(&format!("No more sample events: {error:#}"))?;
                }
            }
            let Some(produced_at) = produced_at else { continue };
            if args.events > 0 && self.has_settled(produced_at) {
                self.sum_up(args)?;
                if args.exit {
                    return Ok(());
                }
            }
        }
    }

    /// Shows the lines since the last time, and the progress.
    fn show(&mut self) -> anyhow::Result<()> {
        let now = self.clock.moment();
        let (lines, counts, at_sink) = {
            let mut journal = lock(&self.journal);
            (journal.take_lines(now), journal.counts(), journal.partner().delivered())
        };
        self.screen.lines(&lines)?;
        if self.summary.is_none() {
            let gates = self.app.dispatcher().map(Dispatcher::gates).unwrap_or_default();
            let pause = gates.iter().find_map(|gate| gate.opens_in);
            self.screen.progress(counts, at_sink, pause);
        }
        Ok(())
    }

    /// Whether all that was accepted has arrived and nothing more is on its way, or hope is lost.
    fn has_settled(&self, produced_at: Moment) -> bool {
        let (counts, last_message, partner_is_complete) = {
            let journal = lock(&self.journal);
            (journal.counts(), journal.last_message(), journal.partner().is_complete())
        };
        let idle = last_message.map_or(produced_at, |last| last.max(produced_at)).until(self.clock.moment());
        let at_rest = self.app.ledger().waiting() == 0 || idle > QUIET_WITHIN;
        (counts.delivered >= counts.accepted && partner_is_complete && at_rest) || idle > PATIENCE
    }

    fn sum_up(&mut self, args: &DevArgs) -> anyhow::Result<()> {
        let summary = lock(&self.journal).summary(&self.mock.messages(), &self.mock.requests());
        self.screen.end_progress();
        self.screen.summary(&summary)?;
        self.summary = Some(summary);
        if !args.exit {
            let curl = &self.curl;
            self.screen
                .print(&format!("\n  It stays up for events of your own; Ctrl-C ends it.\n\n{curl}\n\n"))?;
        }
        Ok(())
    }

    /// Ends everybody in good order: first who sends, then the relay, then the mocks.
    async fn clear(mut self, shown: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
        self.screen.end_progress();
        self.stop_producer.cancel();
        if !self.producer.is_finished() {
            let _ = tokio::time::timeout(PRODUCER_STOP, &mut self.producer).await;
            self.producer.abort();
        }
        self.app.stop().await;
        self.followers.iter().for_each(JoinHandle::abort);
        let counts = lock(&self.journal).summary(&self.mock.messages(), &[]).counts;
        drop((self.mock, self.moved));
        if let Err(error) = shown {
            return if error.is::<OutputClosed>() { Ok(ExitCode::SUCCESS) } else { Err(error) };
        }
        // On a terminal, `^C` stands where the cursor is.
        let mut words = String::from("\n");
        if self.summary.is_none() {
            let (sent, accepted, delivered) = (counts.sent, counts.accepted, counts.delivered);
            let waiting = accepted.saturating_sub(delivered);
            words += &format!(
                "  Ended early: {sent} sent, {accepted} accepted, {delivered} delivered, {waiting} waiting.\n"
            );
        }
        words += &match &self.folder {
            Folder::Temporary(_) => "  Everything is stopped; the ledger is gone.\n".to_owned(),
            Folder::Given(folder) => {
                format!("  Everything is stopped; the ledger is in {}.\n", folder.display())
            }
        };
        self.screen.print(&words)?;
        let good = self.summary.is_none_or(|summary| summary.is_good());
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Writes down what the mock tells.
async fn follow(mock: MockSvix, journal: Arc<Mutex<Journal>>, clock: Arc<dyn Clock>) {
    let mut events = mock.subscribe();
    loop {
        match events.recv().await {
            Ok(event) => lock(&journal).happened(&event, clock.moment()),
            Err(RecvError::Lagged(missed)) => {
                let messages = mock.messages();
                lock(&journal).catch_up(missed, &messages, clock.moment());
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// The user's own configuration, with the ledger, Svix and the partners replaced.
fn derive(config: &mut Config, mock_url: &str, database: &Path) -> anyhow::Result<()> {
    let path = database.to_str().context("the folder's name must be UTF-8")?;
    // What has a meaning in a URL.
    let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    config.database_url = format!("sqlite:{path}");
    config.role = Role::All;
    config.svix.token = Some(SecretString::from(MOCK_TOKEN));
    config.svix.server_url = Some(mock_url.to_owned());
    config.svix.create_applications = true;
    // Sample events are not for real partners.
    config.partners = Default::default();
    config.direct.allowed_networks = vec![LOOPBACK.to_owned()];
    config.ingest.default_tenant.get_or_insert_with(|| DEFAULT_TENANT.to_owned());
    if config.ingest.tenant_attributes.is_empty() {
        config.ingest.tenant_attributes.push("tenant".to_owned());
    }
    Ok(())
}

/// Takes a free port where the default one is taken, and says so. An address that the user chose stays.
fn find_port(config: &mut Config) -> Option<String> {
    let default = HttpConfig::default().listen;
    if config.http.listen != default {
        return None;
    }
    let taken = TcpListener::bind(default).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    taken.then(|| {
        config.http.listen.set_port(0);
        format!("{default} is taken, so the relay has another port: other commands need its --url")
    })
}

/// A command that posts an event.
fn curl(url: &str, key: Option<&str>) -> String {
    let key = key.map(|key| format!(" -H 'Authorization: Bearer {key}'")).unwrap_or_default();
    let event = r#"{"eventType":"order.created","data":{"total":12.50}}"#;
    format!("curl {url}{key} -H 'Content-Type: application/json' -d '{event}'")
}
