//! Latencies, counted in buckets that are good to about 10 %, from 0.1 ms to 100 s.
//!
//! Bounds are fixed, so that the counts of minutes, endpoints and nodes add up, and round, so that some of them can
//! stand in a Prometheus histogram as they are.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bounds of a decade, in hundredths: none is more than 1.22 times the one before.
const DECADE: [u64; 14] = [100, 120, 140, 170, 200, 225, 250, 300, 350, 420, 500, 600, 720, 850];
const DECADES: usize = 6;
const BOUND_COUNT: usize = DECADE.len() * DECADES + 1;
/// How many buckets there are: the last has no upper bound.
pub const BUCKETS: usize = BOUND_COUNT + 1;

/// Upper bounds, inclusive, in microseconds: 0.1 ms to 100 s.
pub const BOUNDS_US: [u64; BOUND_COUNT] = bounds();

const fn bounds() -> [u64; BOUND_COUNT] {
    let mut bounds = [0; BOUND_COUNT];
    let (mut at, mut scale) = (0, 1);
    while at < BOUND_COUNT {
        bounds[at] = DECADE[at % DECADE.len()] * scale;
        at += 1;
        if at.is_multiple_of(DECADE.len()) {
            scale *= 10;
        }
    }
    bounds
}

/// The bucket of a latency.
pub fn bucket_of(micros: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < micros)
}

/// The latency that a bucket stands for, in milliseconds: the geometric middle, which is never more than 10.2 % off.
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn middle_ms(bucket: usize) -> f64 {
    let upper = BOUNDS_US.get(bucket).or(BOUNDS_US.last()).copied().unwrap_or_default() as f64;
    let lower = match bucket {
        0 => upper / 2.0,
        _ => BOUNDS_US.get(bucket - 1).copied().unwrap_or_default() as f64,
    };
    (lower * upper).sqrt() / 1_000.0
}

/// How many latencies fell into each bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies {
    /// By bucket.
    pub counts: [u64; BUCKETS],
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum_us: 0 }
    }
}

impl Latencies {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The latency below which this share of all lies, in milliseconds; `None` where there are none.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is between 1 and a count"
    )]
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|in_bucket| {
            seen += in_bucket;
            seen >= rank
        })?;
        (count > 0).then(|| middle_ms(bucket))
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
    }

    /// What has come since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since
            .counts
            .iter_mut()
            .zip(&earlier.counts)
            .for_each(|(count, had)| *count = count.saturating_sub(*had));
        since.sum_us = self.sum_us.saturating_sub(earlier.sum_us);
        since
    }

    /// As a Prometheus histogram has them: the sum in seconds, the count, and the upper bounds 1, 2.5 and 5 of every
    /// decade from 0.5 ms on, in seconds, each with the count of its bucket alone.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    pub fn in_seconds(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let is_shown = |place: usize| place >= 10 && matches!(DECADE[place % DECADE.len()], 100 | 250 | 500);
        let (mut buckets, mut count) = (Vec::new(), 0);
        for (place, bound) in BOUNDS_US.iter().enumerate() {
            count += self.counts[place];
            if is_shown(place) {
                buckets.push((*bound as f64 / 1e6, std::mem::take(&mut count)));
            }
        }
        buckets.push((f64::INFINITY, count + self.counts[BUCKETS - 1]));
        (self.sum_us as f64 / 1e6, self.count(), buckets)
    }
}

/// The same while they are counted.
#[derive(Debug)]
pub struct LiveLatencies {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for LiveLatencies {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], sum_us: AtomicU64::new(0) }
    }
}

impl LiveLatencies {
    /// Counts one.
    pub fn record(&self, latency: std::time::Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket_of(micros)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Latencies {
        let mut read = Latencies { sum_us: self.sum_us.load(Ordering::Relaxed), ..Latencies::default() };
        read.counts
            .iter_mut()
            .zip(&self.counts)
            .for_each(|(count, live)| *count = live.load(Ordering::Relaxed));
        read
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quantile_is_at_most_ten_percent_off() {
        for micros in (101..100_000_000).step_by(3_333) {
            let live = LiveLatencies::default();
            live.record(Duration::from_micros(micros));
            let told = live.read().quantile_ms(0.5).expect("one") * 1_000.0;
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let off = (told / micros as f64 - 1.0).abs();
            assert!(off < 0.105, "{micros} µs is told as {told}");
        }
    }

    #[test]
    fn quantiles_go_by_rank_and_sums_add_up() {
        let live = LiveLatencies::default();
        assert_eq!(live.read().quantile_ms(0.5), None);
        for millis in 1..=100 {
            live.record(Duration::from_millis(millis));
        }
        let all = live.read();
        let near = |share: f64, expected: f64| {
            let told = all.quantile_ms(share).expect("some");
            assert!((told / expected - 1.0).abs() < 0.11, "{told} for {expected}");
        };
        near(0.5, 50.0);
        near(0.9, 90.0);
        near(0.99, 99.0);
        live.record(Duration::from_secs(500));
        let last = live.read().since(&all);
        assert_eq!((last.count(), last.sum_us, last.counts[BUCKETS - 1]), (1, 500_000_000, 1));
        let mut sum = all.clone();
        sum.add(&last);
        assert_eq!(sum, live.read());
        let (seconds, count, buckets) = sum.in_seconds();
        assert_eq!((count, buckets.iter().map(|(_, count)| count).sum::<u64>()), (101, 101));
        assert!((seconds - 505.05).abs() < 1e-6);
        let bounds: Vec<_> = buckets.iter().map(|(bound, _)| *bound).collect();
        assert_eq!(bounds[..5], [0.0005, 0.001, 0.0025, 0.005, 0.01]);
        assert_eq!(bounds[bounds.len() - 3..], [50.0, 100.0, f64::INFINITY]);
    }
}
