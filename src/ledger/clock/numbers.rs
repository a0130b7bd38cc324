//! Event numbers and time. A number is never older than its event's `received_at`; by how much it may be newer is the
//! ledger's *lead*, which is recorded before it grows.

use std::time::Duration;

use super::ClockKeeper;
use crate::domain::clock::{Clock as _, Timestamp};
use crate::domain::event::EventSeq;
use crate::domain::sequence::{self, Sequence};
use crate::ledger::sql::{Database, on};
use crate::ledger::{Ledger, Result};

/// A lead that every ledger may have: a full millisecond borrows from the next.
const ORDINARY_LEAD_MS: i64 = 5_000;
/// How much more than it has to be a lead is recorded as, so that it is recorded rarely.
const ROOM_MS: i64 = 60_000;
/// A sequence that is further ahead of the clock goes back.
const AHEAD_MAX_MS: i64 = 60_000;

impl ClockKeeper {
    /// Records that numbers may be ahead of their events by so much, where that is new.
    pub async fn note_lead(&mut self, lead_ms: i64) -> Result<()> {
        if lead_ms <= self.lead_ms.max(ORDINARY_LEAD_MS) {
            return Ok(());
        }
        let lead_ms = lead_ms.saturating_add(ROOM_MS);
        self.database.raise_lead(lead_ms).await?;
        self.lead_ms = lead_ms;
        Ok(())
    }

    /// Lets the sequence go back to the clock's time, where a wrong clock has left numbers ahead of it and this one is
    /// trusted.
    pub async fn leave_the_future(&self, sequence: &mut Sequence) -> Result<()> {
        let now = self.clock.now();
        let is_ahead = sequence.lead_ms(now) > AHEAD_MAX_MS;
        if is_ahead && self.clock.status().may_prune && !self.clock.unchecked {
            let (last, taken) = self.database.numbers_around(now).await?;
            sequence.go_back(last, taken);
        }
        Ok(())
    }
}

impl Ledger {
    /// Where a window of events ends: the time and the number that all of it lie before. One that reaches the present
    /// has no end: what a wrong clock has dated ahead belongs to it.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn window_end(&self, until: Option<Timestamp>) -> Result<(i64, i64)> {
        match until.filter(|until| *until < self.shared.clock.now()) {
            None => Ok((i64::MAX, i64::MAX)),
            Some(until) => Ok((until.as_millis(), self.shared.database.number_before(until).await?)),
        }
    }
}

impl Database {
    /// A number that is larger than that of any event recorded before `until`.
    pub(crate) async fn number_before(&self, until: Timestamp) -> Result<i64> {
        let lead_ms = self.lead_ms().await?.max(ORDINARY_LEAD_MS);
        Ok(sequence::floor(until + Duration::from_millis(lead_ms.unsigned_abs())).0)
    }

    /// How far a number may be ahead of its event's time.
    pub(in crate::ledger) async fn lead_ms(&self) -> Result<i64> {
        let (lead_ms,): (i64,) = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT lead_ms FROM ledger_clock").fetch_one(pool).await?
        });
        Ok(lead_ms)
    }

    async fn raise_lead(&self, lead_ms: i64) -> Result<()> {
        on!(self, hot_writes, pool => {
            sqlx::query("UPDATE ledger_clock SET lead_ms = $1 WHERE lead_ms < $1")
                .bind(lead_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// The last number of the time up to `now`; and the first and the last that are ahead of it.
    async fn numbers_around(
        &self,
        now: Timestamp,
    ) -> Result<(Option<EventSeq>, Option<(EventSeq, EventSeq)>)> {
        let ordinary = Duration::from_millis(ORDINARY_LEAD_MS.unsigned_abs());
        let (last, first_ahead, last_ahead): (Option<i64>, Option<i64>, Option<i64>) = on!(self, hot_reads, pool => {
            sqlx::query_as(
                "SELECT (SELECT MAX(seq) FROM event WHERE seq < $1), (SELECT MIN(seq) FROM event WHERE seq >= $1),
                        (SELECT MAX(seq) FROM event)",
            )
            .bind(sequence::floor(now + ordinary).0)
            .fetch_one(pool)
            .await?
        });
        let taken = first_ahead.zip(last_ahead).map(|(first, last)| (EventSeq(first), EventSeq(last)));
        Ok((last.map(EventSeq), taken))
    }
}
