//! A pgbouncer in transaction mode, in front of the Postgres server for tests.
//!
//! It listens on a socket in its own directory alone.

use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use super::TestDatabase;
use super::postgres::other_user;

/// Names the socket only.
const PORT: u16 = 6432;
const START_LIMIT: Duration = Duration::from_secs(20);
/// The variable that names the program, and where it is otherwise.
const VARIABLE: &str = "POSTHASTE_TEST_PGBOUNCER";
const PLACES: [&str; 3] = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];

/// A pooler; gone at the end.
pub struct Pgbouncer {
    directory: TempDir,
    process: Child,
    database: String,
}

impl Pgbouncer {
    /// A pooler in transaction mode that opens at most `sessions` sessions to the server of `database`.
    pub async fn start(database: &TestDatabase, sessions: usize) -> Self {
        let directory = TempDir::with_prefix("posthaste-pgbouncer-").expect("a temporary directory");
        let server = PgConnectOptions::from_str(database.url()).expect("a URL");
        let (host, port, user) = (server.get_host(), server.get_port(), server.get_username());
        let socket_directory = directory.path().display();
        let password =
            password_of(database.url()).map_or_else(String::new, |word| format!(" password={word}"));
        let settings = format!(
            "[databases]\n* = host={host} port={port} user={user}{password}\n[pgbouncer]\nlisten_port = {PORT}\n\
             unix_socket_dir = {socket_directory}\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = {sessions}\nmax_client_conn = 500\nignore_startup_parameters = extra_float_digits\n"
        );
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("written");
        let log = File::create(directory.path().join("log")).expect("a log file");
        let mut command = Command::new(program());
        command.arg(&file).stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        // It refuses to run as root, as Postgres does.
        if let Some((user, group)) = other_user() {
            chown(directory.path(), Some(user), Some(group)).expect("another owner");
            command.uid(user).gid(group);
        }
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let database = server.get_database().expect("a database").to_owned();
        let mut pooler = Self { directory, process, database };
        pooler.wait_until_it_answers().await;
        pooler
    }

    /// The test's database, through the pooler.
    pub fn url(&self) -> String {
        let directory = self.directory.path().display();
        format!("postgres://postgres@localhost:{PORT}/{}?host={directory}&sslmode=disable", self.database)
    }

    /// A client of the pooler that is not Posthaste.
    pub async fn client(&self) -> sqlx::Result<PgConnection> {
        let options = PgConnectOptions::from_str(&self.url())?.extra_float_digits(None);
        PgConnection::connect_with(&options).await
    }

    async fn wait_until_it_answers(&mut self) {
        let until = Instant::now() + START_LIMIT;
        while self.client().await.is_err() {
            let ended = self.process.try_wait().expect("a child");
            assert!(ended.is_none() && Instant::now() < until, "pgbouncer does not start: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.split_once('@')?.0.split_once(':').map(|(_, password)| password)
}

fn program() -> PathBuf {
    let named = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()).map(PathBuf::from);
    let found = named.or_else(|| PLACES.iter().map(PathBuf::from).find(|place| place.is_file()));
    found.unwrap_or_else(|| {
        panic!("no pgbouncer to test with: run ./scripts/test, which installs it, or name it in {VARIABLE}")
    })
}
