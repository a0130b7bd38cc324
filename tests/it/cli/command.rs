//! A command as a process of its own, whose every word is kept and whose every wait is bounded.

use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::eventually;

/// Longest that a command may run after nothing keeps it from its end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A running command. It is killed and waited for when this is dropped.
pub struct Running {
    child: Child,
    out: Heard,
    err: Heard,
    /// The folder that it runs in, so that nothing is left where the tests are.
    _folder: tempfile::TempDir,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// What a stream has said so far.
struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl Heard {
    fn listen(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let listener = stream.map(|mut stream| {
            let heard = bytes.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4_096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    heard.lock().expect("whole").extend_from_slice(&buffer[..count]);
                }
            })
        });
        Self { bytes, listener }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("whole")).into_owned()
    }

    /// All of it; to be called after the process has ended.
    fn all(&mut self) -> String {
        if let Some(listener) = self.listener.take() {
            listener.join().expect("listened");
        }
        self.text()
    }
}

impl Running {
    /// Starts `posthaste` with these arguments and settings, and no others.
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(command(arguments, variables), true)
    }

    /// Starts it where nobody reads its standard output.
    pub fn start_unread(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments, &[("POSTHASTE_HTTP__LISTEN", "127.0.0.1:0")]), false)
    }

    /// Starts it with `input` as its standard input.
    pub fn start_with_input(arguments: &[&str], input: &str) -> Self {
        let mut command = command(arguments, &[]);
        command.stdin(Stdio::piped());
        let mut running = Self::spawn(command, true);
        let mut stdin = running.child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("written");
        running
    }

    fn spawn(mut command: Command, read: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = command.current_dir(folder.path()).spawn().expect("it starts");
        let stdout = child.stdout.take().filter(|_| read);
        let (out, err) = (Heard::listen(stdout), Heard::listen(child.stderr.take()));
        Self { child, out, err, _folder: folder }
    }

    /// What it has said on standard output so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// Waits until it has said this on standard output.
    pub async fn says(&self, text: &str) {
        let heard = async || self.out().contains(text).then_some(());
        eventually(&format!("`{text}`"), heard).await;
    }

    /// Waits until it has said this on standard error.
    pub async fn complains(&self, text: &str) {
        let heard = async || self.err.text().contains(text).then_some(());
        eventually(&format!("`{text}`"), heard).await;
    }

    /// The text between `before` and the next white space on standard output.
    pub fn word_after(&self, before: &str) -> String {
        let out = self.out();
        let (_, rest) = out.split_once(before).unwrap_or_else(|| panic!("no `{before}` in {out}"));
        rest.split_whitespace().next().expect("a word").to_owned()
    }

    /// Sends a signal by name, e.g. `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// Its process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for its end.
    pub async fn end(self) -> Ended {
        self.end_within(END_LIMIT).await
    }

    /// Waits for its end, and fails the test where it takes longer than `limit`.
    pub async fn end_within(mut self, limit: Duration) -> Ended {
        let waiting = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("a child") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let status: Result<ExitStatus, _> = tokio::time::timeout(limit, waiting).await;
        let Ok(status) = status else {
            panic!("still running after {limit:?}: {}\n{}", self.out.text(), self.err.text());
        };
        Ended { code: status.code(), out: self.out.all(), err: self.err.all() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone where the test waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("POSTHASTE_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
