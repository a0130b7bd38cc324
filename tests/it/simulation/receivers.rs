//! Who is sent to, and how they answer.

use std::time::Duration;

use posthaste::domain::delivery::{DeadReason, Failure, Outcome};

use super::random::Random;
use super::world::{ATTEMPT_TIMEOUT_US, MS, SECOND};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mood {
    Healthy,
    Slow,
    /// Never answers.
    Hanging,
    /// Fails so often.
    Flaky(f64),
    /// Asks for less so often.
    Throttling(f64),
    /// Does not accept our credentials.
    Refusing,
    /// Answers 500, always.
    Failing,
    /// Answers 410.
    Gone,
}

impl Mood {
    pub fn draw(random: &mut Random, may_be_gone: bool) -> Self {
        match random.below(if may_be_gone { 14 } else { 13 }) {
            0..=4 => Self::Healthy,
            5 | 6 => Self::Slow,
            7 => Self::Hanging,
            8 | 9 => Self::Flaky(random.chance()),
            10 => Self::Throttling(random.chance() / 2.0),
            11 => Self::Refusing,
            12 => Self::Failing,
            _ => Self::Gone,
        }
    }

    /// How long an answer takes, whether the receiver has taken the event, and what the sender makes of it.
    pub fn answer(self, random: &mut Random) -> (u64, bool, Outcome) {
        let soon = random.between(MS, 40 * MS);
        let delivered = || Outcome::Delivered { status: 200, remote_id: None, dispatch_unconfirmed: false };
        match self {
            Self::Healthy if random.happens(0.005) => {
                let refused = Failure::answered(400, "");
                (soon, false, Outcome::Rejected(DeadReason::Rejected, refused))
            }
            Self::Healthy => (soon, true, delivered()),
            Self::Slow => (random.between(SECOND / 2, 5 * SECOND), true, delivered()),
            Self::Hanging => {
                let arrived = random.happens(0.5);
                (ATTEMPT_TIMEOUT_US, arrived, Outcome::Failed(Failure::transport("timeout", "", true)))
            }
            Self::Flaky(often) if random.happens(often) => {
                let arrived = random.happens(0.5);
                (soon, arrived, Outcome::Failed(Failure::answered(500, "")))
            }
            Self::Throttling(often) if random.happens(often) => {
                let named = random.happens(0.8);
                let retry_after =
                    named.then(|| Duration::from_micros(random.between(SECOND / 10, 4 * SECOND)));
                (soon, false, Outcome::Throttled { failure: Failure::answered(429, ""), retry_after })
            }
            Self::Flaky(_) | Self::Throttling(_) => (soon, true, delivered()),
            Self::Refusing => (soon, false, Outcome::Unauthorized(Failure::answered(401, ""))),
            Self::Failing => (soon, false, Outcome::Failed(Failure::answered(500, ""))),
            Self::Gone => (soon, false, Outcome::Rejected(DeadReason::Gone, Failure::answered(410, ""))),
        }
    }
}
