//! The command line's entry.

use std::process::ExitCode;

use clap::Parser as _;

/// What is received on one thread is recorded on another and sent on a third: the system's allocator (glibc's above all)
/// pays for that with a third of the throughput. NOTES.md has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    posthaste::cli::Cli::parse().run()
}
