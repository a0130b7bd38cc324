//! What was counted in a minute, as the ledger keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::buckets::{BOUNDS_US, bucket_of};
use super::meters::{OTHER, Reading, ResultClass, SVIX, Sums};
use crate::domain::clock::Timestamp;
use crate::ledger::StatRow;

/// The subject of the row that all of a minute is added up in.
pub const WHOLE: &str = "*";

/// What was counted of one subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// [`WHOLE`], `svix`, `other`, or an endpoint's id.
    pub subject: String,
    /// Empty for the whole.
    pub partner: String,
    /// Events that were recorded; of the whole alone.
    pub accepted: u64,
    /// Attempts.
    pub sums: Sums,
}

/// The sums of a row. Latencies go by their bucket's upper bound, so that other versions may have other buckets.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "is_zero")]
    accepted: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    dead: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    latency_us: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    results: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    latencies: BTreeMap<u64, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The rows of a minute: the whole, and each destination, of endpoints at most `limit`. The others are added up.
pub(super) fn of_minute(mut readings: Vec<Reading>, accepted: u64, limit: usize) -> Vec<Counted> {
    let mut whole = Counted { subject: WHOLE.into(), accepted, ..Counted::default() };
    readings.iter().for_each(|reading| whole.sums.add(&reading.sums));
    if whole.accepted == 0 && whole.sums.is_empty() {
        return Vec::new();
    }
    // Those that nobody should lose sight of first.
    readings.sort_by_cached_key(|reading| {
        let named = matches!(&*reading.endpoint, SVIX | OTHER);
        let attempts: u64 = reading.sums.results.iter().sum();
        (!named, std::cmp::Reverse((reading.sums.failed() + reading.sums.dead, attempts)))
    });
    let mut rest = Sums::default();
    for reading in readings.split_off(readings.len().min(limit + 2)) {
        rest.add(&reading.sums);
    }
    let counted = |reading: Reading| Counted {
        subject: reading.endpoint.to_string(),
        partner: reading.partner.to_string(),
        accepted: 0,
        sums: reading.sums,
    };
    let mut rows: Vec<_> = std::iter::once(whole).chain(readings.into_iter().map(counted)).collect();
    if !rest.is_empty() {
        match rows.iter_mut().find(|row| row.subject == OTHER) {
            Some(other) => other.sums.add(&rest),
            None => {
                rows.push(Counted { subject: OTHER.into(), partner: OTHER.into(), accepted: 0, sums: rest })
            }
        }
    }
    rows
}

impl Counted {
    /// As a row of the ledger.
    pub fn row(self, minute: Timestamp, run: i64) -> StatRow {
        let results =
            ResultClass::ALL.into_iter().map(|class| (class.as_str().to_owned(), self.sums.of(class)));
        let upper = |bucket: usize| BOUNDS_US.get(bucket).copied().unwrap_or(u64::MAX);
        let latencies = self.sums.latencies.counts.iter().enumerate();
        let stored = Stored {
            accepted: self.accepted,
            dead: self.sums.dead,
            latency_us: self.sums.latencies.sum_us,
            results: results.filter(|(_, count)| *count > 0).collect(),
            latencies: latencies
                .filter(|(_, count)| **count > 0)
                .map(|(bucket, count)| (upper(bucket), *count))
                .collect(),
        };
        let sums = serde_json::to_string(&stored).unwrap_or_default();
        StatRow { minute, subject: self.subject, run, partner: self.partner, sums }
    }

    /// Reads what [`Self::row`] wrote; `None` where it can't be read.
    pub fn read(row: StatRow) -> Option<Self> {
        let stored: Stored = serde_json::from_str(&row.sums).ok()?;
        let mut sums = Sums { dead: stored.dead, ..Sums::default() };
        sums.latencies.sum_us = stored.latency_us;
        for (class, count) in stored.results {
            // A class of a newer version is none that we can tell of.
            if let Some(class) = ResultClass::parse(&class) {
                sums.results[class as usize] += count;
            }
        }
        for (bound, count) in stored.latencies {
            sums.latencies.counts[bucket_of(bound)] += count;
        }
        Some(Self { subject: row.subject, partner: row.partner, accepted: stored.accepted, sums })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::tenant::Destination;
    use crate::stats::Meters;

    fn readings(attempts: &[(&str, ResultClass, u64)]) -> Vec<Reading> {
        let meters = Meters::new(10);
        for (endpoint, class, count) in attempts {
            let destination = match *endpoint {
                SVIX => Destination::Svix { app: "a".into() },
                id => Destination::Endpoint { id: id.into() },
            };
            for n in 0..*count {
                let latency = Duration::from_millis(n + 1);
                meters.with(&destination, |_| Some("p".into()), |meter| meter.attempted(*class, latency));
            }
        }
        meters.take()
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let readings = readings(&[
            ("ep_1", ResultClass::Success, 9),
            ("ep_1", ResultClass::Timeout, 2),
            (SVIX, ResultClass::Success, 1),
        ]);
        let rows = of_minute(readings, 7, 10);
        assert_eq!(rows.iter().map(|row| &*row.subject).collect::<Vec<_>>(), [WHOLE, SVIX, "ep_1"]);
        assert_eq!(
            (rows[0].accepted, rows[0].sums.of(ResultClass::Success), rows[0].sums.failed()),
            (7, 10, 2)
        );
        for row in rows {
            assert_eq!(Counted::read(row.clone().row(Timestamp::from_millis(60_000), 5)), Some(row));
        }
        assert!(of_minute(Vec::new(), 0, 10).is_empty(), "a quiet minute has no rows");
    }

    #[test]
    fn beyond_the_bound_those_that_fail_keep_their_rows() {
        let readings = readings(&[
            ("ep_busy", ResultClass::Success, 9),
            ("ep_idle", ResultClass::Success, 1),
            ("ep_sick", ResultClass::Lost, 1),
            (SVIX, ResultClass::Success, 1),
        ]);
        let rows = of_minute(readings, 0, 1);
        let names: Vec<_> =
            rows.iter().map(|row| (&*row.subject, row.sums.of(ResultClass::Success))).collect();
        assert_eq!(names, [(WHOLE, 11), (SVIX, 1), ("ep_sick", 0), ("ep_busy", 9), (OTHER, 1)]);
    }
}
