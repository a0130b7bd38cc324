//! What commands say. Nobody may be there to hear it (`posthaste … | head`): that is an end, not a crash.

use std::fmt::Display;
use std::io::{self, Write as _};

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

/// Prints a line on standard error; if nobody can read it, so be it.
pub(super) fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "posthaste: {line}");
}

/// An error of writing to standard output, told apart from those of other pipes and connections.
pub(super) fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("can't write to standard output"),
    }
}
