//! Log lines, written by a thread of their own: a reader of standard error that stalls stops that thread and no other.
//!
//! The queue before it is bounded and lossy. Lines that find it full are dropped and counted for the metrics.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Most lines that wait to be written.
const QUEUE_LINES: usize = 8_192;
/// Longest that [`flush`] waits. The library gives up after 1.1 s.
const FLUSH_LIMIT: Duration = Duration::from_millis(1_500);

/// One log for each process, as there is one standard error.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Starts the thread; what it returns takes lines and never blocks.
pub fn start() -> NonBlocking {
    let queue =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE_LINES).lossy(true).thread_name("log");
    let (lines, guard) = queue.finish(std::io::stderr());
    let _ = DROPPED.set(lines.error_counter());
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    lines
}

/// Panics are written as lines, too: the standard hook would block the thread that panics.
pub fn take_panics(lines: &NonBlocking) {
    let lines = lines.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let mut text = format!("thread '{}' {panic}\n", thread.name().unwrap_or("<unnamed>"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text += &format!("{backtrace}\n");
        }
        let _ = lines.clone().write_all(text.as_bytes());
        // Its panic ends the process.
        if thread.name() == Some("main") {
            flush();
        }
    }));
}

/// Log lines of this process that were dropped.
pub fn dropped() -> u64 {
    DROPPED.get().map_or(0, |count| count.dropped_lines() as u64)
}

/// Writes the lines that wait, within a bound, and ends the thread. For the end of the process.
pub fn flush() {
    let guard = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(guard) = guard else { return };
    // On a thread that nobody waits for: the guard itself prints where the queue stays full, and that may block.
    let (done, ended) = mpsc::sync_channel(1);
    let flushing = std::thread::Builder::new().name("log-flush".to_owned()).spawn(move || {
        drop(guard);
        let _ = done.send(());
    });
    if flushing.is_ok() {
        let _ = ended.recv_timeout(FLUSH_LIMIT);
    }
}
