//! What commands say. Nobody may be there to hear it (`posthaste … | head`): that is an end, not a crash.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::sync::mpsc;
use std::time::Duration;

/// Longest that a line on standard error is waited for: its reader may have stalled.
const COMPLAINT_LIMIT: Duration = Duration::from_secs(1);

/// Whoever read our standard output has gone.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct OutputClosed;

/// Prints a line on standard output.
///
/// # Errors
/// [`OutputClosed`] where nobody reads it any more; the system's own word where it can't be written.
pub(super) fn say(line: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").map_err(closed)
}

/// Prints a line on standard output, on a thread where a reader that has stalled holds up nothing else.
///
/// # Errors
/// As [`say`].
pub(super) async fn say_aside(line: String) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || say(line)).await?
}

/// Prints a line on standard error; waits for it, but not for a reader that has stalled.
pub(super) fn complain(line: impl Display) {
    let (line, (done, written)) = (format!("posthaste: {line}\n"), mpsc::sync_channel(1));
    let writing = std::thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = done.send(());
    });
    if writing.is_ok() {
        let _ = written.recv_timeout(COMPLAINT_LIMIT);
    }
}

/// An error of writing to standard output, told apart from those of other pipes and connections.
pub(super) fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("can't write to standard output"),
    }
}
