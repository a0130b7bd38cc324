//! What `posthaste dev` shows: a banner, each event's way, a progress line, a summary.
//!
//! Lines go to standard output, with colours where that is a terminal that wants them; the progress line goes to
//! standard error and is there only on a terminal.

use std::fmt::{self, Write as _};
use std::io::{Stdout, Write as _};
use std::path::Path;
use std::time::Duration;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use super::journal::{Counts, Line, Receiver, Summary};
use super::tally::PartnerCounts;
use super::{moved, sink};
use crate::cli::output;
use crate::domain::clock::Moment;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WAIT: Style = AnsiColor::Yellow.on_default();
const AGAIN: Style = AnsiColor::Blue.on_default();
const FAINT: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();
/// Tenants are told apart at a glance.
const TENANT_COLORS: [AnsiColor; 5] = [
    AnsiColor::Cyan,
    AnsiColor::Magenta,
    AnsiColor::BrightBlue,
    AnsiColor::BrightGreen,
    AnsiColor::BrightCyan,
];

/// What the banner tells.
pub(super) struct Banner<'a> {
    pub relay: &'a str,
    pub mock: &'a str,
    pub partner: &'a str,
    /// A partner that is no longer where it is looked for.
    pub moved: &'a str,
    pub database: &'a Path,
    /// Whether the database outlives the command.
    pub kept: bool,
    /// A command that posts an event.
    pub curl: &'a str,
    pub events: u64,
    pub rate: u32,
    pub throttle_every: u64,
    pub notes: &'a [String],
}

/// See the module's own words.
pub(super) struct Screen {
    out: AutoStream<Stdout>,
    bar: ProgressBar,
    began: Moment,
}

impl Screen {
    /// A screen whose times count from `began`.
    pub fn new(began: Moment) -> Self {
        Self { out: anstream::stdout(), bar: ProgressBar::hidden(), began }
    }

    /// Shows how far the sample events are, from now on.
    pub fn begin_progress(&mut self, events: u64) {
        let template =
            "  {spinner:.green} {bar:20.green/white.dim} {human_pos}/{human_len} at Svix  {wide_msg:.dim}";
        self.bar = ProgressBar::new(events);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
    }

    /// Brings the progress line up to date; `pause` is what is left of the pause that Svix asked for.
    pub fn progress(&self, counts: Counts, at_sink: u64, pause: Option<Duration>) {
        let (accepted, at_sink) = (HumanCount(counts.accepted), HumanCount(at_sink));
        let mut words = format!("{at_sink} at the sink, {accepted} accepted");
        if counts.throttled > 0 {
            let _ = write!(words, ", {} × 429", counts.throttled);
        }
        if let Some(pause) = pause {
            let _ = write!(words, ", pause {:.1} s", pause.as_secs_f64());
        }
        self.bar.set_message(words);
        self.bar.set_position(counts.delivered);
        self.bar.tick();
    }

    /// Takes the progress line away.
    pub fn end_progress(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    /// Shows lines, all at once.
    ///
    /// # Errors
    /// As with [`Self::print`].
    pub fn lines(&mut self, lines: &[(Moment, Line)]) -> anyhow::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for (at, line) in lines {
            let seconds = self.began.until(*at).as_secs_f64();
            let _ = writeln!(text, "{FAINT}{seconds:>7.3}{FAINT:#}  {}", Shown(line));
        }
        self.print(&text)
    }

    /// Shows how it went.
    ///
    /// # Errors
    /// As with [`Self::print`].
    pub fn summary(&mut self, summary: &Summary) -> anyhow::Result<()> {
        self.print(&summary_text(summary))
    }

    /// Shows what went wrong.
    ///
    /// # Errors
    /// As with [`Self::print`].
    pub fn trouble(&mut self, text: &str) -> anyhow::Result<()> {
        self.print(&format!("\n  {BAD}{text}{BAD:#}\n"))
    }

    /// Shows text as it is.
    ///
    /// # Errors
    /// [`output::OutputClosed`] where nobody sees it any more; the system's own word where it can't be written.
    pub fn print(&mut self, text: &str) -> anyhow::Result<()> {
        let out = &mut self.out;
        let written = self.bar.suspend(|| out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        written.map_err(output::closed)
    }
}

/// What there is to know before anything happens.
pub(super) fn banner_text(banner: &Banner<'_>) -> String {
    let mut text = format!(
        "\n  {STRONG}Posthaste{STRONG:#}  the relay, a mock Svix and a mock partner on this machine: no account, no network\n\n"
    );
    // Writing to a String can't fail.
    let mut row = |name: &str, value: &dyn fmt::Display, remark: &str| {
        let _ = writeln!(text, "  {name:<7} {GOOD}{value}{GOOD:#}  {FAINT}{remark}{FAINT:#}");
    };
    row("relay", &banner.relay, "takes events; this one is real");
    let console = format!("{}/console", banner.relay);
    row("console", &console, "for your browser: who fails, where an event is, and what to press");
    let every = format!("a mock; every {}th message is answered 429", HumanCount(banner.throttle_every));
    row("Svix", &banner.mock, &every);
    let fails = format!("a mock; verifies signatures; every {}th request is answered 503", sink::FAIL_EVERY);
    row("partner", &banner.partner, &fails);
    let gone = format!("a mock that has moved: what it gets fails until its URL ends in {}", moved::NEW_PATH);
    row(moved::PARTNER, &banner.moved, &gone);
    let fate = if banner.kept { "kept" } else { "gone at the end; --dir keeps it" };
    row("ledger", &banner.database.display(), fate);
    for note in banner.notes {
        let _ = writeln!(text, "\n  {WAIT}{note}{WAIT:#}");
    }
    let _ = writeln!(text, "\n  Send an event yourself, from another terminal:\n\n{}\n", banner.curl);
    let pace = match (banner.events, banner.rate) {
        (0, _) => "No sample events: it waits for yours.".into(),
        (events, 0) => format!("{} sample events follow, as fast as it goes.", HumanCount(events)),
        (events, rate) => format!("{} sample events follow, {rate} a second.", HumanCount(events)),
    };
    let _ = writeln!(text, "  {pace} Ctrl-C ends it.\n");
    text
}

fn summary_text(summary: &Summary) -> String {
    let Summary { counts, messages, lost, doubled, honoured, elapsed, partner } = *summary;
    let (lost_in_all, doubled_in_all) = (lost + partner.lost, doubled + partner.doubled);
    let (sent, accepted) = (HumanCount(counts.sent), HumanCount(counts.accepted));
    let style = if summary.is_good() { GOOD.bold() } else { BAD };
    let equal = match counts.sent == counts.accepted {
        true => format!("sent = accepted = {sent}"),
        false => format!("sent {sent} ≠ accepted {accepted}"),
    };
    let mut text = format!("\n  {style}{equal}, {lost_in_all} lost, {doubled_in_all} doubled{style:#}\n\n");
    let mut row = |name: &str, value: String, remark: String| {
        let _ = writeln!(text, "  {name:<11}{value:>9}  {FAINT}{remark}{FAINT:#}");
    };
    let rate = accepted_per_second(counts.accepted, elapsed);
    row("sent", sent.to_string(), format!("events, in {}", counted(counts.requests, "request")));
    row("accepted", accepted.to_string(), "in the ledger before the answer".into());
    row("duplicates", HumanCount(counts.duplicates).to_string(), "sent again on purpose, recognised".into());
    row(
        "delivered",
        HumanCount(counts.delivered).to_string(),
        format!("as {} at Svix", counted(messages, "message")),
    );
    row("lost", lost.to_string(), "accepted − distinct messages".into());
    row("doubled", doubled.to_string(), "messages − distinct messages".into());
    row("throttled", counts.throttled.to_string(), format!("answers 429 from Svix, {honoured} waited out"));
    row("elapsed", format!("{:.1} s", elapsed.as_secs_f64()), format!("{rate} events a second"));
    text += &partner_text(&partner);
    text
}

/// How it went at the partner.
fn partner_text(partner: &PartnerCounts) -> String {
    let mut text = format!("\n  {STRONG}At the partner{STRONG:#}\n\n");
    let mut row = |name: &str, count: u64, remark: String| {
        let count = HumanCount(count).to_string();
        let _ = writeln!(text, "  {name:<11}{count:>9}  {FAINT}{remark}{FAINT:#}");
    };
    let sent = counted(partner.requests, "request");
    row("expected", partner.expected, "accepted, and of a type that it wants".into());
    row("delivered", partner.delivered, format!("answered 2xx, in {sent}"));
    row(
        "verified",
        partner.verified,
        format!("signatures, by Svix's library; {} refused", partner.refused()),
    );
    row("failed", partner.failed, "answered 503 on purpose".into());
    row("lost", partner.lost, "expected, and never delivered".into());
    row("doubled", partner.doubled, "delivered again under the same webhook-id".into());
    text
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

#[expect(clippy::cast_precision_loss, reason = "a figure for the eye")]
fn accepted_per_second(accepted: u64, elapsed: Duration) -> String {
    match elapsed.as_secs_f64() {
        0.0 => "–".into(),
        seconds => format!("{:.0}", accepted as f64 / seconds),
    }
}

/// A line as it is shown.
struct Shown<'a>(&'a Line);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Line::Delivered { sample, to, took } => {
                event(f, sample.tenant, sample.event_type, &sample.id)?;
                write!(f, "{GOOD}accepted → {to}{GOOD:#} {FAINT}{}{FAINT:#}", Took(*took))
            }
            Line::Foreign { tenant, event_type, id, to } => {
                event(f, tenant, event_type, id)?;
                write!(f, "{STRONG}accepted → {to}{STRONG:#}")
            }
            Line::Duplicate { sample } => {
                event(f, sample.tenant, sample.event_type, &sample.id)?;
                write!(f, "{AGAIN}duplicate{AGAIN:#}")
            }
            Line::Application { app } => {
                let color = tenant_style(app);
                write!(f, "{color}{app:<8}{color:#} {FAINT}new at Svix: application created{FAINT:#}")
            }
            Line::Throttled { tenant, id, retry_after } => {
                let color = tenant_style(tenant);
                write!(f, "{color}{tenant:<8}{color:#} {WAIT}429 from Svix for {id}: ")?;
                match retry_after {
                    Some(seconds) => write!(f, "all wait {seconds} s{WAIT:#}"),
                    None => write!(f, "all wait{WAIT:#}"),
                }
            }
            Line::Conflict { tenant, id } => {
                let color = tenant_style(tenant);
                write!(
                    f,
                    "{color}{tenant:<8}{color:#} {WAIT}409 from Svix for {id}: it has it already{WAIT:#}"
                )
            }
            Line::Failed { tenant, id, status } => {
                let color = tenant_style(tenant);
                write!(f, "{color}{tenant:<8}{color:#} {BAD}")?;
                match status {
                    Some(status) => write!(f, "{status} from Svix for {id}{BAD:#}"),
                    None => write!(f, "no answer from Svix for {id}{BAD:#}"),
                }
            }
            Line::FailedOnPurpose { tenant, id, status } => {
                let color = tenant_style(tenant);
                write!(f, "{color}{tenant:<8}{color:#} {WAIT}{status} from sink for {id}, on purpose{WAIT:#}")
            }
            Line::Forged { tenant, id } => {
                let color = tenant_style(tenant);
                write!(f, "{color}{tenant:<8}{color:#} {BAD}the signature of {id} is not good{BAD:#}")
            }
            Line::Note(text) => write!(f, "{WAIT}{text}{WAIT:#}"),
            Line::LeftOut(count) => write!(f, "{WAIT}… {} lines left out{WAIT:#}", HumanCount(*count)),
        }
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Svix => "Svix",
            Self::Sink => sink::PARTNER,
        })
    }
}

/// The columns that say which event it is. They fit into 80 columns with what follows.
fn event(f: &mut fmt::Formatter<'_>, tenant: &str, event_type: &str, id: &str) -> fmt::Result {
    let color = tenant_style(tenant);
    write!(f, "{color}{tenant:<8}{color:#} {event_type:<18}  {FAINT}{id:<18}{FAINT:#}  ")
}

fn tenant_style(tenant: &str) -> Style {
    let sum: usize = tenant.bytes().map(usize::from).sum();
    TENANT_COLORS[sum % TENANT_COLORS.len()].on_default()
}

/// How long something took, in the unit that reads best.
struct Took(Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0..1_000 => write!(f, "{} ms", self.0.as_millis()),
            _ => write!(f, "{:.1} s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text without its colours.
    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn summary(sent: u64, accepted: u64, lost: u64) -> Summary {
        let counts = Counts { sent, accepted, requests: 3, duplicates: 2, throttled: 4, ..Counts::default() };
        Summary { counts, lost, honoured: 4, elapsed: Duration::from_millis(2_500), ..Summary::default() }
    }

    #[test]
    fn the_summary_says_in_one_line_whether_all_is_well() {
        let good = plain(&summary_text(&summary(1_000, 1_000, 0)));
        assert!(good.contains("sent = accepted = 1,000, 0 lost, 0 doubled\n"), "{good}");
        assert!(good.contains("2.5 s  400 events a second"), "{good}");
        let bad = plain(&summary_text(&summary(1_000, 990, 1)));
        assert!(bad.contains("sent 1,000 ≠ accepted 990, 1 lost, 0 doubled\n"), "{bad}");
        let partner = PartnerCounts { lost: 1, doubled: 2, ..PartnerCounts::default() };
        let at_partner = Summary { partner, ..summary(1_000, 1_000, 1) };
        assert!(!at_partner.is_good());
        let bad = plain(&summary_text(&at_partner));
        assert!(bad.contains("sent = accepted = 1,000, 2 lost, 2 doubled\n"), "{bad}");
    }

    #[test]
    fn an_events_line_fits_a_terminal_of_80_columns() {
        let sample = super::super::sample::Sample {
            tenant: "umbrella",
            event_type: "shipment.delivered",
            source: "/warehouse",
            id: "evt_mgx3k9x2_00042".into(),
        };
        for to in [Receiver::Svix, Receiver::Sink] {
            let line = Line::Delivered { sample: sample.clone(), to, took: Duration::from_millis(123) };
            let shown = plain(&format!("{:>7.3}  {}", 12.345, Shown(&line)));
            assert!(shown.chars().count() <= 80, "{} columns: {shown}", shown.chars().count());
        }
    }
}
