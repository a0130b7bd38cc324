//! `posthaste explain|events|deliveries|dead|retry|cancel|tail`: what became of events, through a running relay.

pub(super) mod explain;
pub(super) mod steer;
pub(super) mod tail;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use serde_json::value::RawValue;

use super::admin::encoded;
use super::client::Client;
use super::output::say;
use super::{Format, Server};
use crate::app::SystemClock;
use crate::config::Config;
use crate::domain::clock::Clock as _;

/// Entries that a page of the API has at most.
const PAGE: usize = 200;

/// What each of these commands takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// How to print the answer
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    server: Server,
}

/// From when to when.
#[derive(Debug, Args)]
struct Times {
    /// Recorded then or later: RFC 3339, or how long ago, e.g. `90s`, `15m`, `2h`, `7d`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Recorded before, likewise
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
}

/// How many.
#[derive(Debug, Args)]
struct Amount {
    /// Most entries; 0 for all there are
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    limit: usize,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Of this type; `order.*`: of all types below it
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// pending, delivered, dead, canceled or unrouted
    #[arg(long)]
    state: Option<String>,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct DeliveriesArgs {
    /// pending, delivered, dead or canceled
    #[arg(long)]
    state: Option<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct DeadArgs {
    #[command(flatten)]
    which: Which,
}

/// Which deliveries.
#[derive(Debug, Args)]
struct Which {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// To this partner's endpoints
    #[arg(long)]
    partner: Option<String>,
    /// To this endpoint, `ep_…`, or this Svix application, `svix:UID`
    #[arg(long)]
    endpoint: Option<String>,
    #[command(flatten)]
    times: Times,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn events(args: EventsArgs, config: Config) -> anyhow::Result<ExitCode> {
    let EventsArgs { tenant, event_type, state, times, amount, common } = args;
    let query = query([
        ("tenant", tenant),
        ("type", event_type),
        ("state", state),
        ("since", times.since),
        ("until", times.until),
    ]);
    let columns: [Column; 6] = [
        ("RECORDED", 24, &["received_at"]),
        ("STATE", 9, &["state"]),
        ("TENANT", 16, &["tenant"]),
        ("TYPE", 24, &["type"]),
        ("SOURCE", 12, &["source"]),
        ("ID", 0, &["id"]),
    ];
    list(&common, &config, "events", &query, amount.limit, &columns).await
}

pub(super) async fn deliveries(args: DeliveriesArgs, config: Config) -> anyhow::Result<ExitCode> {
    let columns: [Column; 7] = [
        ("DELIVERY", 28, &["id"]),
        ("STATE", 9, &["state"]),
        ("TENANT", 16, &["tenant"]),
        ("TO", 28, &["destination", "endpoint", "svix_app"]),
        ("FAILED", 6, &["failures"]),
        ("DUE OR DONE", 24, &["due_at", "done_at"]),
        ("EVENT", 0, &["event_id"]),
    ];
    list_deliveries(args.which, args.state, &columns, &config).await
}

pub(super) async fn dead(args: DeadArgs, config: Config) -> anyhow::Result<ExitCode> {
    let columns: [Column; 7] = [
        ("DELIVERY", 28, &["id"]),
        ("DIED", 24, &["done_at"]),
        ("TENANT", 16, &["tenant"]),
        ("TO", 28, &["destination", "endpoint", "svix_app"]),
        ("STATUS", 6, &["status"]),
        ("REASON", 18, &["reason"]),
        ("EVENT", 0, &["event_id"]),
    ];
    list_deliveries(args.which, Some("dead".to_owned()), &columns, &config).await
}

async fn list_deliveries(
    which: Which,
    state: Option<String>,
    columns: &[Column],
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let Which { tenant, partner, endpoint, times, amount, common } = which;
    let query = query([
        ("state", state),
        ("tenant", tenant),
        ("partner", partner),
        ("endpoint", endpoint),
        ("since", times.since),
        ("until", times.until),
    ]);
    list(&common, config, "deliveries", &query, amount.limit, columns).await
}

/// A column of a table: its title, its width, and the members of an entry of which the first that is there is shown; one
/// that is an object is gone into.
type Column = (&'static str, usize, &'static [&'static str]);

/// Prints a list, page by page as it comes, newest first.
async fn list(
    common: &Common,
    config: &Config,
    name: &str,
    query: &str,
    limit: usize,
    columns: &[Column],
) -> anyhow::Result<ExitCode> {
    let client = Client::new(&common.server, config)?;
    let table = common.format == Format::Table;
    if table {
        say(line(columns, |(title, ..)| (*title).to_owned()))?;
    }
    let (mut entries, mut seen, mut cursor) = (Vec::new(), 0, None);
    loop {
        let wanted = if limit == 0 { PAGE } else { (limit - seen).min(PAGE) };
        let (page, next) = page(&client, name, query, wanted, cursor.as_deref()).await?;
        seen += page.len();
        for entry in page {
            if table {
                let entry: Value = serde_json::from_str(entry.get())?;
                say(line(columns, |(_, _, members)| cell(&entry, members)))?;
            } else {
                entries.push(entry);
            }
        }
        cursor = next;
        if cursor.is_none() || (limit > 0 && seen >= limit) {
            break;
        }
    }
    if !table {
        say(serde_json::to_string(&entries)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One page of a list, and the cursor of the next.
async fn page(
    client: &Client,
    name: &str,
    query: &str,
    limit: usize,
    cursor: Option<&str>,
) -> anyhow::Result<(Vec<Box<RawValue>>, Option<String>)> {
    let cursor = cursor.map_or(String::new(), |cursor| format!("&cursor={}", encoded(cursor)));
    let answer = client.get(&format!("/v1/{name}?limit={limit}{query}{cursor}")).await?;
    let mut page: BTreeMap<String, Box<RawValue>> = answer.read()?;
    let entries = page.remove(name).context("the server's answer can't be read")?;
    let next = page.remove("next_cursor").context("the server's answer can't be read")?;
    Ok((serde_json::from_str(entries.get())?, serde_json::from_str(next.get())?))
}

fn line(columns: &[Column], cell: impl Fn(&Column) -> String) -> String {
    let cells = columns.iter().map(|column| format!("{:<width$}", cell(column), width = column.1));
    cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

fn cell(entry: &Value, members: &[&str]) -> String {
    let found = members.iter().find_map(|name| match entry.get(*name)? {
        Value::Null => None,
        Value::Object(_) => Some(cell(&entry[*name], members)),
        Value::String(text) => Some(plain(text)),
        other => Some(other.to_string()),
    });
    found.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// Text for a terminal: what others wrote must not steer it.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// `&name=value` for each that is there.
fn query<const N: usize>(members: [(&str, Option<String>); N]) -> String {
    let there = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
    there.map(|(name, value)| format!("&{name}={}", encoded(&value))).collect()
}

/// A time as the API takes it: how long ago, or as it is.
fn time(text: &str) -> Result<String, String> {
    let now = SystemClock::new().now().as_millis();
    if let Some(ago) = duration(text) {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        return Ok(now.saturating_sub(ago).to_string());
    }
    chrono::DateTime::parse_from_rfc3339(text).map(|_| text.to_owned()).map_err(|_| {
        "a time is written as in `2026-01-31T12:00:00Z`, or as how long ago: `90s`, `15m`, `2h`, `7d`"
            .to_owned()
    })
}

/// `90s`, `15m`, `2h`, `7d`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(Duration::from_secs(count.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_and_cells_are_read_as_people_write_them() {
        assert_eq!(duration("15m"), Some(Duration::from_secs(900)));
        assert_eq!(
            (duration("7d"), duration("0s")),
            (Some(Duration::from_secs(604_800)), Some(Duration::ZERO))
        );
        for other in ["", "m", "-1m", "1.5h", "5", "9999999999999999999d"] {
            assert_eq!(duration(other), None, "{other}");
        }
        assert_eq!(time("2026-01-31T12:00:00Z").as_deref(), Ok("2026-01-31T12:00:00Z"));
        assert!(time("yesterday").is_err());
        let entry =
            json!({"destination": {"svix_app": "a\u{1b}[2J"}, "due_at": null, "done_at": "x", "n": 5});
        assert_eq!(cell(&entry, &["destination", "endpoint", "svix_app"]), "a [2J");
        assert_eq!((cell(&entry, &["due_at", "done_at"]), cell(&entry, &["n"])), ("x".into(), "5".into()));
        assert_eq!(cell(&entry, &["nothing"]), "-");
        assert_eq!(query([("a", Some("b c".into())), ("d", None)]), "&a=b%20c");
    }
}
