//! A Postgres server of the test's own, which it may kill, and a standby of it.
//!
//! It listens on a socket in its own directory alone; a [`Proxy`](super::proxy::Proxy) stands before it where a relay is to
//! reach it over a network.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::time::Instant;

/// Names the socket only.
const PORT: u16 = 5432;
/// Longest until it answers, and until it is gone.
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// It refuses to run as root: the first of these that there is.
const USERS: [&str; 2] = ["postgres", "nobody"];
const MISSING: &str = "no Postgres binaries here: ./scripts/test finds or installs them (Debian: postgresql)";

/// A server; gone, with its data, at the end.
pub struct PostgresServer {
    directory: PathBuf,
    /// Removed at the end; `None` where the directory is the test's.
    _own_directory: Option<TempDir>,
    process: Option<Child>,
    settings: Vec<(&'static str, String)>,
    /// The size that no file of it may exceed.
    file_limit_bytes: Option<u64>,
}

impl PostgresServer {
    /// A new server with these settings.
    pub async fn start(settings: &[(&'static str, &str)]) -> Self {
        let mut server = Self::in_a_directory(settings);
        server.make_data(&[]);
        server.start_again().await;
        server
    }

    /// The same in this directory, with WAL files of 1 MiB.
    pub async fn start_in(directory: &Path, settings: &[(&'static str, &str)]) -> Self {
        let mut server = Self::of(directory.to_owned(), None, settings);
        server.make_data(&["--wal-segsize=1"]);
        server.start_again().await;
        server
    }

    fn make_data(&self, arguments: &[&str]) {
        let init = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
        run(self.program("initdb").arg("--pgdata").arg(self.data()).args(init).args(arguments));
    }

    /// A copy that follows `primary` under the name `standby`.
    pub async fn standby_of(primary: &Self, settings: &[(&'static str, &str)]) -> Self {
        let mut server = Self::in_a_directory(settings);
        server.copy_from(primary, &["--write-recovery-conf"]);
        server.start_again().await;
        server
    }

    /// A server of its own, from a base backup of another one that runs.
    pub async fn copy_of(original: &Self) -> Self {
        let mut server = Self::in_a_directory(&[]);
        server.copy_from(original, &[]);
        server.start_again().await;
        server
    }

    fn copy_from(&self, original: &Self, arguments: &[&str]) {
        let from =
            format!("host={} user=postgres application_name=standby", original.socket_directory().display());
        let mut copy = self.program("pg_basebackup");
        run(copy
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--dbname"])
            .arg(from)
            .arg("--pgdata")
            .arg(self.data())
            .args(arguments));
    }

    /// Runs one of Postgres's programs, as the server's user.
    pub fn run(&self, program: &str, arguments: &[&str]) {
        run(self.program(program).args(arguments));
    }

    fn in_a_directory(settings: &[(&'static str, &str)]) -> Self {
        let directory = TempDir::with_prefix("posthaste-pg-").expect("a temporary directory");
        Self::of(directory.path().to_owned(), Some(directory), settings)
    }

    fn of(directory: PathBuf, own: Option<TempDir>, settings: &[(&'static str, &str)]) -> Self {
        if let Some((user, group)) = other_user() {
            chown(&directory, Some(user), Some(group)).expect("another owner");
        }
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { directory, _own_directory: own, process: None, settings, file_limit_bytes: None }
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{PORT}"))
    }

    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// For whoever goes past a proxy.
    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost:{PORT}/postgres?host={}", self.directory.display())
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts it again with this limit on the size of its files: what is beyond fails to be written.
    pub async fn restart_with_limited_files(&mut self, bytes: Option<u64>) {
        self.stop_at_once();
        self.file_limit_bytes = bytes;
        self.start_again().await;
    }

    /// A program of Postgres, as its user and with its words kept.
    fn program(&self, name: &str) -> Command {
        self.command(binaries().join(name))
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.env("LC_ALL", "C").current_dir(&self.directory);
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(variable);
        }
        command
    }

    /// Ends it the hard way, and what it was about to commit with it.
    pub fn kill(&mut self) {
        self.end_by(Signal::KILL);
    }

    /// Ends it at once, without a farewell to anybody: an immediate shutdown.
    pub fn stop_at_once(&mut self) {
        self.end_by(Signal::QUIT);
    }

    fn end_by(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        let id = Pid::from_child(&process);
        // It may have ended by itself.
        let _ = kill_process(id, signal);
        let until = std::time::Instant::now() + STOP_LIMIT;
        while process.try_wait().expect("a child").is_none() {
            if std::time::Instant::now() > until {
                let _ = process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it with the data that it has; returns when it answers.
    pub async fn start_again(&mut self) {
        let until = Instant::now() + START_LIMIT;
        loop {
            assert!(Instant::now() < until, "Postgres does not start: {}", self.log());
            if let Some(process) = &mut self.process {
                // Processes of one that was killed may be about to end: the next one refuses to start beside them.
                if process.try_wait().expect("a child").is_some() {
                    self.process = None;
                } else if self.try_query("SELECT 'up'").await.is_ok() {
                    return;
                }
            } else {
                self.launch();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn launch(&mut self) {
        let mut command = match self.file_limit_bytes {
            None => self.program("postgres"),
            Some(bytes) => {
                let mut command = self.command("prlimit");
                command.arg(format!("--fsize={bytes}:")).arg(binaries().join("postgres"));
                command
            }
        };
        command.arg("-D").arg(self.data());
        let socket = format!("unix_socket_directories={}", self.directory.display());
        for setting in ["listen_addresses=", &format!("port={PORT}"), &socket, "fsync=on"] {
            command.args(["-c", setting]);
        }
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        self.process = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// Asks for one text.
    pub async fn query(&self, sql: &str) -> String {
        self.try_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}: {}", self.log()))
    }

    pub async fn try_query(&self, sql: &str) -> sqlx::Result<String> {
        let mut connection = PgConnection::connect(&self.url()).await?;
        let (text,): (String,) =
            sqlx::query_as(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(text)
    }

    /// Runs a statement that answers nothing.
    pub async fn execute(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.expect("a connection");
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("it runs");
    }

    /// Makes a primary of a standby.
    pub async fn promote(&self) {
        assert_eq!(self.query("SELECT pg_promote()::text").await, "true");
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The end of what it said.
    fn log(&self) -> String {
        let text = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4_000)..]).into_owned()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop_at_once();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// Where the server's real binaries are, the newest of them.
fn binaries() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<_> = installed.map(|version| version.path().join("bin")).collect();
    installed.sort_by_key(|bin| {
        let version =
            bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse::<u32>().ok());
        std::cmp::Reverse(version)
    });
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path)
        .filter_map(|bin| Some(bin.join("postgres").canonicalize().ok()?.parent()?.to_owned()));
    let all = on_path.chain(installed).chain(configured);
    let is_whole =
        |bin: &PathBuf| ["postgres", "initdb", "pg_basebackup"].iter().all(|name| bin.join(name).exists());
    all.into_iter().find(is_whole).expect(MISSING)
}

/// Whom it runs as where we are root.
pub(super) fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let known = std::fs::read_to_string("/etc/passwd").expect("the list of users");
    let numbers = |user: &&str| {
        let line = known.lines().find(|line| line.split(':').next() == Some(*user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = USERS.iter().find_map(numbers);
    Some(found.expect("Postgres does not run as root, and there is no user postgres or nobody"))
}
