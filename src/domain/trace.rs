//! The trace that an event belongs to (W3C Trace Context, Level 1).

use std::fmt;
use std::sync::Arc;

/// Longest `tracestate` that is kept, in bytes: what vendors must at least pass on (§3.3.1.5).
const STATE_LIMIT_BYTES: usize = 512;
/// The flag that says that the caller may have recorded the trace (§3.2.2.5.1).
const SAMPLED: u8 = 1;

/// Which trace, and which span of it is the parent of what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    flags: u8,
    /// What vendors pass along, as it came.
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// A span of a trace that is recorded.
    pub const fn root(trace_id: u128, span_id: u64) -> Self {
        Self { trace_id, span_id, flags: SAMPLED, state: None }
    }

    /// Reads a `traceparent`, and what `tracestate` stands beside it. `None` for what is none: then there is no trace, and
    /// nothing is wrong with the event (§3.2.2, "MUST ignore").
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let text = traceparent.trim();
        let mut parts = text.splitn(5, '-');
        let mut next = |length: usize| parts.next().filter(|part| part.len() == length && is_lower_hex(part));
        let (version, trace_id, span_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let more = parts.next().is_some();
        // Later versions may say more, this one not.
        if version == "ff" || (version == "00" && more) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()? & SAMPLED;
        let state = tracestate.map(str::trim).filter(|state| is_state(state)).map(Arc::from);
        Some(Self { trace_id, span_id, flags, state })
    }

    /// Whether the caller may have recorded it.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same trace with another span as the parent of what comes next.
    pub fn with_span(&self, span_id: u64) -> Self {
        Self { span_id, ..self.clone() }
    }

    /// What vendors pass along.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The `traceparent`.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn read(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some((parent, state)) => Self::parse(parent, Some(state)),
            None => Self::parse(text, None),
        }
    }
}

/// As the ledger keeps it: the `traceparent`, and after a space the `tracestate`.
impl fmt::Display for TraceContext {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.traceparent())?;
        self.state.as_ref().map_or(Ok(()), |state| write!(out, " {state}"))
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether it can stand in a header again, and is worth it.
fn is_state(state: &str) -> bool {
    let visible = |byte: u8| matches!(byte, b' '..=b'~' | b'\t');
    !state.is_empty() && state.len() <= STATE_LIMIT_BYTES && state.bytes().all(visible)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_was_read_is_written_the_same() {
        let context = TraceContext::parse(PARENT, Some("congo=t61rcWkgMzE,rojo=1")).unwrap();
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(
            (context.trace_id >> 96, context.span_id, context.is_sampled()),
            (0x4bf9_2f35, 0xf0_67aa_0ba9_02b7, true)
        );
        assert_eq!(TraceContext::read(&context.to_string()).as_ref(), Some(&context));
        let child = context.with_span(7);
        assert_eq!((child.trace_id, child.state()), (context.trace_id, Some("congo=t61rcWkgMzE,rojo=1")));
        let plain = TraceContext::parse(PARENT, None).unwrap();
        assert_eq!((TraceContext::read(&plain.to_string()), plain.state()), (Some(plain.clone()), None));
    }

    #[rstest]
    #[case::empty("")]
    #[case::zero_trace("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
    #[case::zero_span("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01")]
    #[case::upper_case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01")]
    #[case::forbidden_version("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
    #[case::too_long("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more")]
    #[case::too_short("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01")]
    #[case::signed("00-4bf92f3577b34da6a3ce929d0e0e4736-+0f067aa0ba902b7-01")]
    #[case::no_ascii("00-4bf92f3577b34da6a3ce929d0e0e473ü-00f067aa0ba902b7-01")]
    fn what_is_no_traceparent_is_passed_over(#[case] text: &str) {
        assert_eq!(TraceContext::parse(text, None), None);
    }

    #[rstest]
    #[case::later_version("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", true)]
    #[case::unsampled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", false)]
    #[case::other_flags("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", true)]
    fn what_may_be_more_is_read(#[case] text: &str, #[case] sampled: bool) {
        let context = TraceContext::parse(text, Some("a=ü")).unwrap();
        assert_eq!((context.is_sampled(), context.state()), (sampled, None));
    }
}
