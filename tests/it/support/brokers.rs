//! Brokers for tests: processes of our own, each on a free loopback port with its data in a directory of its own.
//!
//! None of them is the machine's, so a test may kill what it started. They stay in the test's process group: whoever
//! ends a test that hangs ends them too.

mod programs;

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use self::programs::Program;

/// Longest that a broker may take until it answers; RabbitMQ takes ten seconds on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How many ports are tried where another process is quicker.
const PORT_TRIES: usize = 20;
/// Below the ports that outgoing connections take, or one of those could have it while a broker is away.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A broker of this test's own; gone, with its data, at the end.
pub struct Broker {
    program: Program,
    port: u16,
    directory: TempDir,
    /// The broker, and before it what it needs.
    processes: Vec<Child>,
}

impl Broker {
    /// A NATS server with JetStream in files.
    pub async fn nats() -> Self {
        Self::first_start(Program::Nats).await
    }

    /// A Redis server that syncs its file at every write.
    pub async fn redis() -> Self {
        Self::first_start(Program::Redis).await
    }

    /// A RabbitMQ node: user and password `guest`.
    pub async fn rabbitmq() -> Self {
        Self::first_start(Program::RabbitMq).await
    }

    /// A mock SQS, which forgets everything when it ends.
    pub async fn sqs() -> Self {
        Self::first_start(Program::Moto).await
    }

    /// The Pub/Sub emulator, which forgets everything when it ends; `None` where none is installed.
    pub async fn pubsub() -> Option<Self> {
        match Self::pubsub_is_there() {
            true => Some(Self::first_start(Program::PubSub).await),
            false => None,
        }
    }

    /// Whether there is a Pub/Sub emulator; loud where there is none.
    pub fn pubsub_is_there() -> bool {
        let is_there = Program::PubSub.is_installed();
        if !is_there {
            eprintln!("NOT RUN: there is no Pub/Sub emulator here ({})", Program::PubSub.about());
        }
        is_there
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What a client connects to.
    pub fn url(&self) -> String {
        self.program.url(self.address())
    }

    /// Whether what it holds outlives it.
    pub fn persists(&self) -> bool {
        self.program.persists()
    }

    /// Ends it the hard way. Its data stays where it has any.
    pub fn kill(&mut self) {
        for mut child in self.processes.drain(..).rev() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait().expect("a child");
        }
    }

    /// Starts it again after [`Self::kill`], on the same port and with the same data; returns when it answers.
    pub async fn start(&mut self) {
        assert!(self.processes.is_empty(), "it runs");
        assert!(self.launch().await, "the broker did not come back: {}", self.log());
    }

    /// [`Self::kill`] and [`Self::start`].
    pub async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    async fn first_start(program: Program) -> Self {
        for _ in 0..PORT_TRIES {
            let directory = TempDir::with_prefix("posthaste-broker-").expect("a temporary directory");
            let mut broker = Self { program, port: free_port(), directory, processes: Vec::new() };
            if broker.launch().await {
                return broker;
            }
            let log = broker.log().to_ascii_lowercase();
            let taken = log.contains("in use") || log.contains("eaddrinuse");
            assert!(taken, "{program:?} did not start: {log}");
        }
        panic!("no free port was found in {PORT_TRIES} tries");
    }

    /// Whether it answers in the end; false where it ended instead.
    async fn launch(&mut self) -> bool {
        for command in self.program.commands(self.address(), self.directory.path()) {
            self.processes.push(spawn(command, &self.log_file()));
        }
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if self.program.answers(self.address()).await {
                return true;
            }
            if self.processes.iter_mut().any(|child| child.try_wait().expect("a child").is_some()) {
                self.kill();
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?} does not answer after {START_LIMIT:?}: {}", self.program, self.log());
    }

    /// Whether the RabbitMQ node has written a name into the tables that it starts from: they lie right in its own folder,
    /// beside those of messages, where a queue's name stands at once.
    pub fn has_recorded(&self, name: &str) -> bool {
        let of = |folder: std::path::PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = of(self.directory.path().join("data")).flat_map(|node| of(node.path()));
        // What goes away meanwhile is a temporary file of the broker's.
        files.filter_map(|file| std::fs::read(file.path()).ok()).any(|bytes| holds(&bytes, name.as_bytes()))
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.directory.path().join("output.log")
    }

    /// The end of what it said.
    fn log(&self) -> String {
        let text = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4_000)..]).into_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

fn spawn(mut command: Command, log: &Path) -> Child {
    let output = File::options().create(true).append(true).open(log).expect("a log file");
    command.stdin(Stdio::null()).stderr(output.try_clone().expect("a second handle")).stdout(output);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A port that nobody listens on. Where another process takes it first, the broker does not start, and the next is tried.
fn free_port() -> u16 {
    let span = u64::from(PORTS.end - PORTS.start);
    loop {
        let random = RandomState::new().hash_one(std::process::id()) % span;
        let port = PORTS.start + u16::try_from(random).expect("less than the span");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
