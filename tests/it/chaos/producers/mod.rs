//! Producers that misbehave, against a relay in a process of its own: slow ones, too many, too much, and what is no HTTP.
//!
//! What they do is refused with a reason or cut off, in bounded time and memory, and the relay goes on: after each abuse
//! it takes a good batch and is ready. That sources stop pulling while the ledger is down is shown in `sources`.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ingest::batch;
use crate::support::RelayProcess;

mod bodies;
mod ending;
mod overload;
mod slow;
mod wire;

/// The head of a request that announces so many bytes of events.
fn head(content_length: usize) -> String {
    format!(
        "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {content_length}\r\n\r\n"
    )
}

/// A connection over which exactly that goes which a test wants.
struct Raw(TcpStream);

impl Raw {
    async fn open(relay: &RelayProcess) -> Self {
        Self::at(relay.address()).await
    }

    async fn at(address: &str) -> Self {
        Self(TcpStream::connect(address).await.expect("connected"))
    }

    /// Sends, as far as the relay takes it.
    async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        // One who is cut off in the middle learns of it by reading.
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// All that comes until the relay closes the connection, and how long that took; `None` where it does not.
    async fn closed(&mut self, patience: Duration) -> Option<(String, Duration)> {
        let began = Instant::now();
        let mut bytes = Vec::new();
        // A reset instead of an end is an end too.
        let _ = tokio::time::timeout(patience, self.0.read_to_end(&mut bytes)).await.ok()?;
        Some((String::from_utf8_lossy(&bytes).into_owned(), began.elapsed()))
    }
}

/// The status of an answer, 0 where there is none.
fn status(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or_default()
}

/// Fails where the relay does not take three good events, with ids that begin at `first`, or is not ready.
async fn serves(relay: &RelayProcess, first: usize) {
    let answer = relay.post(batch(first, 3)).await;
    assert_eq!(answer.statuses(), ["accepted"; 3], "{}", answer.status);
    let ready = relay.get("/health/ready").await;
    assert_eq!(ready.status, 200, "{}", ready.json());
}

/// How much a relay's memory has grown at most, since this was made.
struct Memory {
    pid: u32,
    before_kib: u64,
}

impl Memory {
    fn watch(relay: &RelayProcess) -> Self {
        let pid = relay.pid();
        // The peak is forgotten (proc(5)): it counts from now on.
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("our own process");
        Self { pid, before_kib: Self::kib(pid, "VmRSS:") }
    }

    /// In MiB, by the peak.
    fn grown_mib(&self) -> f64 {
        Self::kib(self.pid, "VmHWM:").saturating_sub(self.before_kib) as f64 / 1_024.0
    }

    fn kib(pid: u32, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// The `share` of sorted times below which the rest lies, e.g. 0.99.
fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().checked_sub(1).expect("some times");
    times[(last as f64 * share).round() as usize]
}
