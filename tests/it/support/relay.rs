//! The whole relay: in this process, or as a process of its own that can be killed.

use std::io::{BufRead as _, BufReader};
use std::ops::Deref;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthaste::app::{App, SystemClock};
use posthaste::config::Config;
use posthaste::domain::clock::Clock;
use posthaste::ledger::Progress;
use posthaste::mock::MockSvix;
use secrecy::SecretString;

use super::{HttpClient, TestDatabase};

/// Time for a relay to have sent all it holds.
const PATIENCE: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "sk_test";

/// A mock Svix that takes our token and creates applications by itself.
pub async fn mock_svix() -> MockSvix {
    MockSvix::builder().token(TOKEN).create_applications(true).start().await
}

/// A relay in this process, on a free port.
pub struct TestRelay {
    app: Option<App>,
    client: HttpClient,
}

impl Deref for TestRelay {
    type Target = HttpClient;

    fn deref(&self) -> &HttpClient {
        &self.client
    }
}

/// Settings for tests: short waits, and a free port.
pub fn config(database: &TestDatabase, svix: &MockSvix) -> Config {
    let mut config = Config { database_url: database.url().to_owned(), ..Config::default() };
    config.http.listen = ([127, 0, 0, 1], 0).into();
    config.svix.token = Some(SecretString::from(TOKEN));
    config.svix.server_url = Some(svix.url());
    config.svix.retry_schedule_ms = vec![50, 100, 200, 400, 800];
    config.svix.probe_first_ms = 100;
    config.svix.probe_max_ms = 500;
    config.ingest.default_tenant = Some("acme".into());
    config
}

impl TestRelay {
    /// Starts with the settings for tests.
    pub async fn start(database: &TestDatabase, svix: &MockSvix) -> Self {
        Self::start_with(config(database, svix)).await
    }

    pub async fn start_with(config: Config) -> Self {
        Self::start_at(config, Arc::new(SystemClock::new())).await
    }

    /// Starts with a clock of the test's own.
    pub async fn start_at(config: Config, clock: Arc<dyn Clock>) -> Self {
        let app = App::start(&config, clock).await.expect("the relay starts");
        Self { client: HttpClient::new(format!("http://{}", app.address())), app: Some(app) }
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().expect("running")
    }

    /// How events and deliveries stand.
    pub async fn progress(&self) -> Progress {
        self.app().ledger().database().progress().await.expect("the ledger answers")
    }

    /// Waits until every delivery is done; how they ended.
    pub async fn settled(&self) -> Progress {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let progress = self.progress().await;
            if progress.pending == 0 {
                let done: i64 = progress.done.values().sum();
                assert_eq!(progress.created, done, "every delivery is accounted for");
                return progress;
            }
            assert!(tokio::time::Instant::now() < deadline, "still waiting: {progress:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every delivery is done, and ends in good order.
    pub async fn finish(self) -> Progress {
        let progress = self.settled().await;
        self.stop().await;
        progress
    }

    /// Ends in good order, whatever waits.
    pub async fn stop(mut self) {
        self.app.take().expect("running").stop().await;
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        // A test that forgets to look at the end would pass with events left over.
        assert!(
            self.app.is_none() || std::thread::panicking(),
            "a test must end its relay: finish() or stop()"
        );
    }
}

/// A relay as a process of its own.
pub struct RelayProcess {
    child: Child,
    client: HttpClient,
    address: String,
    /// Its lines on stderr so far.
    log: Arc<Mutex<Vec<String>>>,
}

/// A relay that ended before it listened.
#[derive(Debug)]
pub struct EndedEarly {
    pub status: ExitStatus,
    /// Its lines on stderr.
    pub said: Vec<String>,
}

impl Deref for RelayProcess {
    type Target = HttpClient;

    fn deref(&self) -> &HttpClient {
        &self.client
    }
}

impl RelayProcess {
    /// Starts `posthaste serve` and waits until it listens.
    pub fn start(database: &TestDatabase, svix: &MockSvix, variables: &[(&str, &str)]) -> Self {
        Self::started(&mut Self::command(database, svix, variables))
    }

    /// The same by another command, which becomes `posthaste` with the arguments that it gets.
    pub fn start_by(
        command: Command,
        database: &TestDatabase,
        svix: &MockSvix,
        variables: &[(&str, &str)],
    ) -> Self {
        Self::started(&mut Self::prepared(command, database, svix, variables))
    }

    fn started(command: &mut Command) -> Self {
        let started = Self::launch(command);
        started.unwrap_or_else(|ended| panic!("the relay ended early ({}): {:#?}", ended.status, ended.said))
    }

    /// What starts `posthaste serve`.
    pub fn command(database: &TestDatabase, svix: &MockSvix, variables: &[(&str, &str)]) -> Command {
        Self::prepared(Command::new(env!("CARGO_BIN_EXE_posthaste")), database, svix, variables)
    }

    fn prepared(
        mut command: Command,
        database: &TestDatabase,
        svix: &MockSvix,
        variables: &[(&str, &str)],
    ) -> Command {
        command
            .arg("serve")
            .env("POSTHASTE_DATABASE_URL", database.url())
            .env("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")
            .env("POSTHASTE_SVIX__TOKEN", TOKEN)
            .env("POSTHASTE_SVIX__SERVER_URL", svix.url())
            .env("POSTHASTE_SVIX__RETRY_SCHEDULE_MS", "50,100,200,400,800")
            .env("POSTHASTE_INGEST__DEFAULT_TENANT", "acme")
            .envs(variables.iter().copied());
        command
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// It ended before: how, and what it said.
    pub fn launch(command: &mut Command) -> Result<Self, EndedEarly> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the relay starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut seen = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let status = child.wait().expect("gone");
                return Err(EndedEarly { status, said: seen });
            };
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split_whitespace().next().expect("an address").to_owned();
            }
            seen.push(line);
        };
        let log = Arc::new(Mutex::new(seen));
        let kept = log.clone();
        // Goes on reading, or a full pipe would stop the relay.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line))
        });
        Ok(Self { client: HttpClient::new(format!("http://{address}")), address, child, log })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many of its log lines so far contain `text`.
    pub fn log_lines_with(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Its number among the system's processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it the hard way, in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// Sends a signal by name, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for its end; the exit code, or `None` where it is still there after `patience`.
    pub async fn ended(&mut self, patience: Duration) -> Option<i32> {
        self.exit_status(patience).await.map(|status| status.code().unwrap_or(-1))
    }

    /// Waits for its end; how it ended, or `None` where it is still there after `patience`.
    pub async fn exit_status(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // Already gone where the test ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
