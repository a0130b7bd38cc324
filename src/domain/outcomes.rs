//! What an answer means: whose fault it is, whether the receiver has processed the request, and what follows.
//!
//! [`RULES`] is the one table of this. The senders ask [`judge`], the gates ask [`rule`]; docs/outcomes.md is the table as
//! text, and a test compares the two.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::delivery::{DeadReason, Failure, Outcome};

/// Who has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// The Svix API.
    Svix,
    /// A partner's endpoint.
    Endpoint,
}

/// Whose fault an answer is that is no success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This event's alone: the receiver works.
    Event,
    /// The endpoint's, or the Svix application's: others at Svix are not concerned.
    Destination,
    /// The Svix account's, or Svix's own: all applications are concerned.
    Account,
}

/// Whether the receiver has processed the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// It has not.
    No,
    /// It may have.
    Unknown,
    /// It has.
    Yes,
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The delivery is done.
    Deliver,
    /// Svix is asked which message it has.
    LookUp,
    /// A failure: the delivery is retried by its schedule, and given up at the schedule's end.
    Retry,
    /// No failure: everything behind the gate waits, for as long as `Retry-After` says and no shorter than our own back-off.
    Wait,
    /// Svix is asked whether it takes our credentials at all. Where it does not, the account's gate closes and the delivery
    /// keeps its place; where it does, the application's gate closes and the delivery is retried by its schedule.
    CheckCredentials,
    /// The delivery is given up immediately.
    GiveUp(DeadReason),
}

/// One row: the answers that it is for, and what they mean.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Who has answered.
    pub receiver: Receiver,
    /// The statuses.
    pub statuses: &'static [RangeInclusive<u16>],
    /// What else the answer must be like.
    pub condition: Condition,
    /// Whose fault it is; `None` where it is nobody's.
    pub fault: Option<Fault>,
    /// Whether the receiver has processed the request.
    pub processed: Processed,
    /// What follows.
    pub then: Then,
}

/// What else an answer must be like for a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// It has a `Retry-After` header.
    RetryAfter,
    /// It names the message, or a look-up finds it.
    Message,
}

const fn row(
    receiver: Receiver,
    statuses: &'static [RangeInclusive<u16>],
    condition: Condition,
    fault: Option<Fault>,
    processed: Processed,
    then: Then,
) -> Rule {
    Rule { receiver, statuses, condition, fault, processed, then }
}

/// The table. The first row that fits an answer counts; the last row of a receiver fits every answer.
pub const RULES: &[Rule] = {
    use Condition::{Any, Message, RetryAfter};
    use Fault::{Account, Destination, Event};
    use Processed::{No, Unknown, Yes};
    use Receiver::{Endpoint, Svix};
    use Then::{CheckCredentials, Deliver, GiveUp, LookUp, Retry, Wait};
    &[
        row(Svix, &[200..=299], Message, None, Yes, Deliver),
        row(Svix, &[200..=299], Any, Some(Account), Unknown, Retry),
        row(Svix, &[400..=400, 413..=413, 422..=422], Any, Some(Event), No, GiveUp(DeadReason::Rejected)),
        row(Svix, &[401..=401, 403..=403], Any, Some(Account), No, CheckCredentials),
        row(Svix, &[404..=404], Any, Some(Destination), No, Retry),
        row(Svix, &[408..=408, 425..=425], Any, Some(Event), No, Retry),
        row(Svix, &[409..=409], Any, None, Unknown, LookUp),
        row(Svix, &[429..=429], Any, Some(Account), No, Wait),
        row(Svix, &[503..=503], RetryAfter, Some(Account), No, Wait),
        row(Svix, &[500..=599], Any, Some(Account), Unknown, Retry),
        row(Svix, &[0..=u16::MAX], Any, Some(Account), No, Retry),
        row(Endpoint, &[200..=299], Any, None, Yes, Deliver),
        row(Endpoint, &[410..=410], Any, Some(Destination), No, GiveUp(DeadReason::Gone)),
        row(Endpoint, &[429..=429], Any, Some(Destination), No, Wait),
        row(Endpoint, &[503..=503], RetryAfter, Some(Destination), No, Wait),
        row(Endpoint, &[500..=599], Any, Some(Destination), Unknown, Retry),
        row(Endpoint, &[0..=u16::MAX], Any, Some(Destination), No, Retry),
    ]
};

/// The row for an answer that brings no message along.
pub fn rule(receiver: Receiver, status: u16, has_retry_after: bool) -> &'static Rule {
    let fits = |rule: &&Rule| {
        let condition = match rule.condition {
            Condition::Any => true,
            Condition::RetryAfter => has_retry_after,
            Condition::Message => false,
        };
        rule.receiver == receiver && condition && rule.statuses.iter().any(|range| range.contains(&status))
    };
    RULES.iter().find(fits).unwrap_or(&RULES[RULES.len() - 1])
}

/// What an answer comes to that is no success. `retry_after`: `None` where there is no such header, else the wait that it
/// asks for, where that can be read.
pub fn judge(receiver: Receiver, failure: Failure, retry_after: Option<Option<Duration>>) -> Outcome {
    let status = failure.status.unwrap_or_default();
    match rule(receiver, status, retry_after.is_some()).then {
        Then::GiveUp(reason) => Outcome::Rejected(reason, failure),
        Then::Wait => Outcome::Throttled { failure, retry_after: retry_after.flatten() },
        Then::CheckCredentials => Outcome::Unauthorized(failure),
        Then::Deliver | Then::LookUp | Then::Retry => Outcome::Failed(failure),
    }
}

/// The table as it stands in docs/outcomes.md.
pub fn as_markdown() -> String {
    let mut text =
        String::from("| receiver | answer | whose fault | processed | then |\n|---|---|---|---|---|\n");
    for rule in RULES {
        text.push_str(&rule.as_markdown());
    }
    text
}

impl Rule {
    fn as_markdown(&self) -> String {
        let range = |range: &RangeInclusive<u16>| match (*range.start(), *range.end()) {
            (0, u16::MAX) => "any other status".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first} to {last}"),
        };
        let statuses = self.statuses.iter().map(range).collect::<Vec<_>>().join(", ");
        let condition = match self.condition {
            Condition::Any => "",
            Condition::RetryAfter => " with `Retry-After`",
            Condition::Message => " that names the message, or whose message a look-up finds",
        };
        let receiver = match self.receiver {
            Receiver::Svix => "Svix",
            Receiver::Endpoint => "endpoint",
        };
        let fault = match (self.fault, self.receiver) {
            (None, _) => "nobody's",
            (Some(Fault::Event), _) => "the event's",
            (Some(Fault::Destination), Receiver::Svix) => "the application's",
            (Some(Fault::Destination), Receiver::Endpoint) => "the endpoint's",
            (Some(Fault::Account), _) => "the account's, or Svix's own",
        };
        let processed = match self.processed {
            Processed::No => "no",
            Processed::Unknown => "unknown",
            Processed::Yes => "yes",
        };
        format!("| {receiver} | {statuses}{condition} | {fault} | {processed} | {} |\n", self.then.as_text())
    }
}

impl Then {
    fn as_text(self) -> String {
        match self {
            Self::Deliver => "delivered".into(),
            Self::LookUp => "a look-up tells which message Svix has".into(),
            Self::Retry => "a failure: retried by the schedule, dead at its end (`retries_exhausted`)".into(),
            Self::Wait => "no failure: the gate closes for `Retry-After`, and at least for our own back-off".into(),
            Self::CheckCredentials => {
                "a second request tells whether Svix takes our credentials at all. If not, the account's gate closes, and \
                 it is no failure. If so, the application's gate closes, and the event is retried by the schedule"
                    .into()
            }
            Self::GiveUp(reason) => format!("dead immediately (`{}`)", reason.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::moved(302)]
    #[case::moved_for_good(308)]
    #[case::payment_required(402)]
    #[case::method_not_allowed(405)]
    #[case::misdirected(421)]
    #[case::headers_too_large(431)]
    #[case::legal_reasons(451)]
    fn what_is_not_the_events_fault_is_retried(#[case] status: u16) {
        for receiver in [Receiver::Svix, Receiver::Endpoint] {
            let outcome = judge(receiver, Failure::answered(status, ""), None);
            assert!(matches!(outcome, Outcome::Failed(_)), "{receiver:?} {outcome:?}");
            assert_ne!(rule(receiver, status, false).fault, Some(Fault::Event));
        }
    }

    #[rstest]
    #[case(400)]
    #[case(413)]
    #[case(422)]
    fn what_is_the_events_fault_is_given_up_at_svix_alone(#[case] status: u16) {
        let failure = || Failure::answered(status, "");
        assert!(matches!(judge(Receiver::Svix, failure(), None), Outcome::Rejected(DeadReason::Rejected, _)));
        assert!(matches!(judge(Receiver::Endpoint, failure(), None), Outcome::Failed(_)));
    }

    #[test]
    fn every_status_has_a_row_and_may_have_arrived_where_that_is_unknown() {
        for receiver in [Receiver::Svix, Receiver::Endpoint] {
            for status in 0..1_000 {
                let rule = rule(receiver, status, false);
                assert_eq!(rule.receiver, receiver);
                if status >= 300 && status != 409 {
                    let may_have_arrived = Failure::answered(status, "").may_have_arrived;
                    let expected = (500..600).contains(&status);
                    assert_eq!(rule.processed == Processed::Unknown, expected, "{receiver:?} {status}");
                    assert!(may_have_arrived || !expected, "{receiver:?} {status}");
                }
            }
        }
    }

    #[test]
    fn a_wait_is_taken_over_where_the_answer_names_one() {
        let second = Duration::from_secs(1);
        for receiver in [Receiver::Svix, Receiver::Endpoint] {
            for (status, header, waits) in
                [(429, None, true), (503, None, false), (503, Some(Some(second)), true)]
            {
                let outcome = judge(receiver, Failure::answered(status, ""), header);
                let expected = waits.then(|| header.flatten());
                match outcome {
                    Outcome::Throttled { retry_after, .. } => assert_eq!(Some(retry_after), expected),
                    _ => assert!(!waits, "{receiver:?} {status}"),
                }
            }
        }
    }

    #[test]
    fn the_documentation_has_this_table() {
        let documented = include_str!("../../docs/outcomes.md");
        assert!(documented.contains(&as_markdown()), "docs/outcomes.md should have:\n{}", as_markdown());
    }
}
