//! The relay as a process of its own, and what the system says of it.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::load::PATH;
use crate::cli::client::Client;
use crate::domain::clock::{Clock, Moment};

/// Longest from the start to the first 202.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often to look whether it is there.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Longest that an end in good order may take.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// As many of its last lines are kept, for when it ends early.
const LAST_LINES: usize = 5;
/// Linux counts processor time for programs in hundredths of a second (`USER_HZ`), on all machines that we build for.
const TICKS_PER_S: f64 = 100.0;

/// A `posthaste serve`. It is killed and waited for when this is dropped.
pub(super) struct Relay {
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    started: Moment,
    url: String,
}

/// What a process has used so far. `None` where the system does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// User and system, seconds.
    pub cpu_s: Option<f64>,
    pub rss_bytes: Option<u64>,
    /// The most it ever was.
    pub peak_rss_bytes: Option<u64>,
    /// What it has made the system write to disks.
    pub written_bytes: Option<u64>,
}

impl Relay {
    /// Starts this very program with settings; whatever others the environment has hold, too.
    pub fn start(settings: &[(&str, Option<String>)], clock: &dyn Clock) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let program = std::env::current_exe().context("can't find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("serve").env("POSTHASTE_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        for (name, value) in settings {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A Ctrl-C is for us; we end it.
        command.process_group(0);
        let started = clock.moment();
        let mut child = command.spawn().context("can't start the relay")?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                    lines.push_back(line);
                    if lines.len() > LAST_LINES {
                        lines.pop_front();
                    }
                }
            });
        }
        Ok(Self { child, lines, started, url: format!("http://127.0.0.1:{port}") })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for the first 202 to an event of `tenant`; how long that was after the start.
    pub async fn first_202(
        &mut self,
        client: &Client,
        tenant: &str,
        clock: &dyn Clock,
    ) -> anyhow::Result<Duration> {
        let event = format!(
            r#"{{"id":"probe-{:x}","type":"bench.probe","tenant":"{tenant}","data":{{}}}}"#,
            clock.random()
        );
        let deadline = self.started + START_LIMIT;
        loop {
            let answer = client.post(PATH, &[], event.clone().into()).await;
            let now = clock.moment();
            match answer {
                Ok(answer) if answer.status.is_success() => return Ok(self.started.until(now)),
                Ok(answer) if !answer.status.is_server_error() => {
                    anyhow::bail!("the relay refused its first event: {}", answer.complaint())
                }
                _ => {}
            }
            self.check()?;
            anyhow::ensure!(now < deadline, "the relay took no event within {} s", START_LIMIT.as_secs());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// # Errors
    /// It has ended: how, and with what words.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<_> = lines.iter().map(String::as_str).collect();
        anyhow::bail!("the relay ended in the middle ({status}): {}", words.join(" | "))
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        Usage::of(self.child.id())
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// It can't be told, or does not end.
    pub async fn stop(mut self, clock: &dyn Clock) -> anyhow::Result<()> {
        let deadline = clock.moment() + STOP_LIMIT;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process")?, Signal::TERM).context("can't end the relay")?;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(clock.moment() < deadline, "the relay does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Gone already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Usage {
    /// What a process has used so far.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (stat, status, io) = (read("stat"), read("status"), read("io"));
        Self {
            cpu_s: cpu_s(&stat),
            rss_bytes: field(&status, "VmRSS:").map(|kib| kib << 10),
            peak_rss_bytes: field(&status, "VmHWM:").map(|kib| kib << 10),
            written_bytes: field(&io, "write_bytes:"),
        }
    }
}

/// `utime` and `stime` of `/proc/PID/stat` (proc(5)): the 14th and 15th field, where the second may hold anything.
#[expect(clippy::cast_precision_loss, reason = "ticks are far below 2^53")]
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_or_absent() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 100 0 0 0 1234 66 0 0 20 0 5 0 100 1 1";
        assert_eq!(cpu_s(stat), Some(13.0));
        assert_eq!(cpu_s(""), None);
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!((field(status, "VmHWM:"), field(status, "VmSwap:")), (Some(2_048), None));
    }
}
