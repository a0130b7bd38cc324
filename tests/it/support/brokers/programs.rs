//! Where the brokers' programs are, how they are started, and how one knows that they answer.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for a broker's word on a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Nats,
    Redis,
    RabbitMq,
    Moto,
    PubSub,
}

impl Program {
    /// The variable that names it, and where it is otherwise: a name on the `PATH`, or a path.
    const fn places(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Nats => ("POSTHASTE_TEST_NATS", &["nats-server", "/usr/sbin/nats-server"]),
            Self::Redis => ("POSTHASTE_TEST_REDIS", &["redis-server", "/usr/bin/redis-server"]),
            // Not what Debian has on the PATH: that one refuses other users than root and its own.
            Self::RabbitMq => ("POSTHASTE_TEST_RABBITMQ", &["/usr/lib/rabbitmq/bin/rabbitmq-server"]),
            Self::Moto => ("POSTHASTE_TEST_MOTO", &["moto_server"]),
            Self::PubSub => (
                "POSTHASTE_TEST_PUBSUB_EMULATOR",
                &[
                    "cloud-pubsub-emulator",
                    "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin/cloud-pubsub-emulator",
                ],
            ),
        }
    }

    pub fn is_installed(self) -> bool {
        self.find().is_some()
    }

    /// What to do where it is missing.
    pub fn about(self) -> String {
        let (variable, places) = self.places();
        format!("run ./scripts/test, which looks for {} everywhere, or name it in {variable}", places[0])
    }

    fn find(self) -> Option<PathBuf> {
        let (variable, places) = self.places();
        if let Some(named) = std::env::var_os(variable).filter(|named| !named.is_empty()) {
            // `none` is what scripts/test says where it found none.
            return Some(PathBuf::from(named)).filter(|named| named.as_os_str() != "none");
        }
        places.iter().find_map(|place| on_path(place))
    }

    fn path(self) -> PathBuf {
        self.find().unwrap_or_else(|| panic!("no {self:?} to test with: {}", self.about()))
    }

    pub fn url(self, address: SocketAddr) -> String {
        match self {
            Self::Nats => format!("nats://{address}"),
            Self::Redis => format!("redis://{address}"),
            Self::RabbitMq => format!("amqp://guest:guest@{address}/%2f"),
            Self::Moto | Self::PubSub => format!("http://{address}"),
        }
    }

    pub const fn persists(self) -> bool {
        matches!(self, Self::Nats | Self::Redis | Self::RabbitMq)
    }

    /// What is started, in this order; the last one is the broker.
    pub fn commands(self, address: SocketAddr, directory: &Path) -> Vec<Command> {
        let port = address.port().to_string();
        let mut command = Command::new(self.path());
        match self {
            Self::Nats => {
                command.args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"]).arg(directory);
            }
            Self::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--dir"]).arg(directory);
                command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
            }
            Self::RabbitMq => return rabbitmq(command, &port, directory),
            Self::Moto => {
                command.args(["-H", "127.0.0.1", "-p", &port]).env("PYTHONUNBUFFERED", "1");
            }
            Self::PubSub => {
                command.arg("--host=127.0.0.1").arg(format!("--port={port}"));
            }
        }
        vec![command]
    }

    /// Whether it says what it says when it is ready.
    pub async fn answers(self, address: SocketAddr) -> bool {
        let http = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let (question, answer) = match self {
            Self::Nats => ("", "INFO "),
            Self::Redis => ("PING\r\n", "+PONG"),
            // The protocol's header; the answer is a method frame on channel 0.
            Self::RabbitMq => ("AMQP\0\0\u{9}\u{1}", "\u{1}\0\0"),
            Self::Moto | Self::PubSub => (http, "HTTP/1.1 200"),
        };
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(question.as_bytes()).await?;
            let mut heard = vec![0; answer.len()];
            stream.read_exact(&mut heard).await?;
            Ok::<_, std::io::Error>(heard == answer.as_bytes())
        };
        matches!(tokio::time::timeout(ANSWER_LIMIT, exchange).await, Ok(Ok(true)))
    }
}

/// A node with a port mapper of its own: the shared one would outlive the test.
fn rabbitmq(mut command: Command, port: &str, directory: &Path) -> Vec<Command> {
    let mapper_port = beside();
    let mut mapper = Command::new(on_path("epmd").expect("epmd, which comes with Erlang"));
    mapper.args(["-address", "127.0.0.1", "-port", &mapper_port]);
    let plugins = directory.join("enabled_plugins");
    std::fs::write(&plugins, "[].\n").expect("written");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RABBITMQ_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", directory) // for its cookie
        .env("ERL_EPMD_PORT", &mapper_port)
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", directory.join("none"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins)
        .env("RABBITMQ_NODENAME", "posthaste@localhost")
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port)
        .env("RABBITMQ_DIST_PORT", beside())
        .env("RABBITMQ_MNESIA_BASE", directory.join("data"))
        .env("RABBITMQ_LOG_BASE", directory.join("log"))
        .env("RABBITMQ_LOGS", "-")
        // With it the script becomes the node; without it a shell stays between us and what we want to end.
        .env("RABBITMQ_ALLOW_INPUT", "1")
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-noinput -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        );
    vec![mapper, command]
}

/// A further port; nobody needs to find it again after a restart.
fn beside() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port().to_string()
}

/// A program by its path, or by its name and the `PATH`.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An absolute path replaces what it is joined to.
    std::env::split_paths(&path).map(|place| place.join(program)).find(|found| found.is_file())
}
