//! `posthaste tail`: events and what becomes of them, as it happens.
//!
//! It asks again and again for the events since the oldest one that it still waits for. So it needs nothing of the
//! server but the list, survives its restart, and sees what other nodes took in.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Common, Format, page, plain, query};
use crate::cli::client::Client;
use crate::cli::output::{complain, say_aside};
use crate::cli::stop_signal;
use crate::config::Config;

/// How often it asks.
const EVERY: Duration = Duration::from_secs(1);
/// How far back it looks behind the newest event, for those of other nodes whose clocks are behind.
const OVERLAP_MS: i64 = 5_000;
/// How long it waits for what becomes of an event.
const PATIENCE_MS: i64 = 600_000;
/// Most events that it remembers, and most pages that it asks for at once.
const REMEMBERED: usize = 5_000;
const PAGES: usize = 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct TailArgs {
    /// Only of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only of this type; `order.*`: of all types below it
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only what comes to stand so: pending, delivered, dead, canceled or unrouted
    #[arg(long)]
    state: Option<String>,
    /// How many of the last events to begin with
    #[arg(long, short = 'n', default_value_t = 10, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(0..=200))]
    lines: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Deserialize)]
struct Entry {
    tenant: String,
    source: String,
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    received_at: String,
    state: String,
}

/// Tenant, source and id.
type Name = (String, String, String);

impl Entry {
    fn name(&self) -> Name {
        (self.tenant.clone(), self.source.clone(), self.id.clone())
    }

    fn received_ms(&self) -> i64 {
        let time = chrono::DateTime::parse_from_rfc3339(&self.received_at);
        time.map_or(0, |time| time.timestamp_millis())
    }
}

/// What has been seen.
#[derive(Debug, Default)]
struct Seen {
    states: HashMap<Name, String>,
    /// By when they came; ties by name.
    times: BTreeMap<(i64, Name), ()>,
    newest_ms: i64,
}

impl Seen {
    /// Notes an event as it stands; whether that is news.
    fn note(&mut self, entry: &Entry) -> bool {
        let (name, at) = (entry.name(), entry.received_ms());
        self.newest_ms = self.newest_ms.max(at);
        self.times.insert((at, name.clone()), ());
        self.states.insert(name, entry.state.clone()).is_none_or(|before| before != entry.state)
    }

    /// From when on to ask: the oldest that is waited for, and a little before the newest.
    fn since_ms(&mut self) -> i64 {
        while self.times.len() > REMEMBERED {
            if let Some(((_, name), ())) = self.times.pop_first() {
                self.states.remove(&name);
            }
        }
        let patience = self.newest_ms - PATIENCE_MS;
        let waits = |name: &Name| self.states.get(name).is_some_and(|state| state == "pending");
        let pending = self.times.keys().filter(|(at, name)| *at >= patience && waits(name));
        let oldest = pending.map(|(at, _)| *at).next().unwrap_or(i64::MAX);
        oldest.min(self.newest_ms - OVERLAP_MS)
    }
}

pub(in crate::cli) async fn run(args: TailArgs, config: Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.common.server, &config)?;
    let filter = query([("tenant", args.tenant.clone()), ("type", args.event_type.clone())]);
    tokio::select! {
        followed = follow(&args, &client, &filter) => followed.map(|()| ExitCode::SUCCESS),
        stopped = stop_signal() => stopped.map(|()| ExitCode::SUCCESS),
    }
}

async fn follow(args: &TailArgs, client: &Client, filter: &str) -> anyhow::Result<()> {
    let mut seen = Seen::default();
    // Where there is none yet, whatever comes is new.
    let (first, _) = page(client, "events", filter, usize::try_from(args.lines)?.max(1), None).await?;
    for raw in first.iter().rev() {
        let entry: Entry = serde_json::from_str(raw.get())?;
        seen.note(&entry);
        if args.lines > 0 {
            tell(args, &entry, raw).await?;
        }
    }
    let mut away = false;
    loop {
        tokio::time::sleep(EVERY).await;
        match news(client, filter, seen.since_ms()).await {
            Ok(entries) => {
                away = false;
                for raw in entries.iter().rev() {
                    let entry: Entry = serde_json::from_str(raw.get())?;
                    if seen.note(&entry) {
                        tell(args, &entry, raw).await?;
                    }
                }
            }
            // Said once: it may be starting again.
            Err(error) if !away => {
                complain(format_args!("{error:#}; trying on"));
                away = true;
            }
            Err(_) => {}
        }
    }
}

/// All events since then, newest first.
async fn news(client: &Client, filter: &str, since_ms: i64) -> anyhow::Result<Vec<Box<RawValue>>> {
    let query = format!("{filter}&since={since_ms}");
    let (mut entries, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES {
        let (more, next) = page(client, "events", &query, super::PAGE, cursor.as_deref()).await?;
        entries.extend(more);
        cursor = next;
        if cursor.is_none() {
            return Ok(entries);
        }
    }
    complain("more comes than can be followed: older ones are left out; name a tenant or a type");
    Ok(entries)
}

async fn tell(args: &TailArgs, entry: &Entry, raw: &RawValue) -> anyhow::Result<()> {
    if args.state.as_ref().is_some_and(|state| *state != entry.state) {
        return Ok(());
    }
    if args.common.format == Format::Json {
        return say_aside(raw.get().to_owned()).await;
    }
    let Entry { tenant, id, event_type, received_at, state, .. } = entry;
    let [tenant, event_type, id] = [tenant, event_type, id].map(|text| plain(text));
    say_aside(format!("{received_at}  {state:<9}  {tenant:<16} {event_type:<24} {id}")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, second: u32, state: &str) -> Entry {
        Entry {
            tenant: "acme".into(),
            source: String::new(),
            id: id.into(),
            event_type: "a".into(),
            received_at: format!("2026-01-01T00:{:02}:{:02}.000Z", second / 60, second % 60),
            state: state.into(),
        }
    }

    #[test]
    fn an_event_is_news_when_it_comes_and_when_it_changes() {
        let mut seen = Seen::default();
        assert!(seen.note(&entry("1", 0, "pending")));
        assert!(!seen.note(&entry("1", 0, "pending")));
        assert!(seen.note(&entry("2", 60, "delivered")));
        let start = entry("1", 0, "pending").received_ms();
        assert_eq!(seen.since_ms(), start, "the oldest that is waited for");
        assert!(seen.note(&entry("1", 0, "delivered")));
        assert_eq!(seen.since_ms(), start + 60_000 - OVERLAP_MS);
        assert!(seen.note(&entry("3", 0, "pending")));
        assert!(seen.note(&entry("4", 1_200, "delivered")));
        assert_eq!(seen.since_ms(), start + 1_200_000 - OVERLAP_MS, "not for ever");
    }
}
