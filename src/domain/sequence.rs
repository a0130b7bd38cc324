//! The ledger's 64-bit, time-ordered numbers: 41 bits of milliseconds, 10 of node, 12 of sequence.
//!
//! Time-ordered numbers keep the big tables append-only; the node number, which the database hands out, keeps
//! two nodes apart.

use super::clock::Timestamp;
use super::event::EventSeq;

/// 2024-01-01T00:00:00Z: what the milliseconds count from. 41 bits last until 2093.
const EPOCH_MS: i64 = 1_704_067_200_000;
const NODE_BITS: u32 = 10;
const COUNTER_BITS: u32 = 12;
const COUNTER_MASK: i64 = (1 << COUNTER_BITS) - 1;

/// How many node numbers there are.
pub const NODES: i64 = 1 << NODE_BITS;

/// The smallest number that an event of this time may have: a number is never older than its event, but may be newer
/// where it was borrowed from the future.
pub const fn floor(at: Timestamp) -> EventSeq {
    let millis = at.as_millis().saturating_sub(EPOCH_MS);
    let most = i64::MAX >> (NODE_BITS + COUNTER_BITS);
    let millis = if millis < 0 {
        0
    } else if millis > most {
        most
    } else {
        millis
    };
    EventSeq(millis << (NODE_BITS + COUNTER_BITS))
}

/// When a number was given, about: see [`floor`].
pub const fn given_at(seq: EventSeq) -> Timestamp {
    Timestamp::from_millis(millis_of(seq).saturating_add(EPOCH_MS))
}

const fn millis_of(seq: EventSeq) -> i64 {
    seq.0 >> (NODE_BITS + COUNTER_BITS)
}

/// Hands out ever larger numbers for one node.
#[derive(Debug)]
pub struct Sequence {
    node: i64,
    /// Milliseconds since [`EPOCH_MS`] of the last number.
    millis: i64,
    counter: i64,
    /// The first and the last millisecond of numbers that a wrong clock has given ahead of time: none between them is
    /// given again.
    taken: Option<(i64, i64)>,
}

impl Sequence {
    /// A sequence for `node` (0 to 1023) whose numbers are all larger than `after`, the largest one in use.
    pub fn new(node: i64, after: Option<EventSeq>) -> Self {
        debug_assert!((0..NODES).contains(&node), "node number out of range");
        let millis = after.map_or(0, |seq| millis_of(seq) + 1);
        Self { node, millis, counter: 0, taken: None }
    }

    /// Goes back to numbers of the right time, after a wrong clock has given some ahead of it: the next number lies
    /// behind `last`, and outside of `taken`, the first and the last number given ahead of time.
    pub fn go_back(&mut self, last: Option<EventSeq>, taken: Option<(EventSeq, EventSeq)>) {
        self.millis = last.map_or(0, millis_of);
        // Full: the next number begins a millisecond.
        self.counter = COUNTER_MASK;
        self.taken = taken.map(|(first, last)| (millis_of(first), millis_of(last)));
    }

    /// How far the last number is ahead of `now`, in milliseconds.
    pub fn lead_ms(&self, now: Timestamp) -> i64 {
        self.millis.saturating_sub(now.as_millis().saturating_sub(EPOCH_MS)).max(0)
    }

    /// The next number. Grows even where `now` stands still or goes back: then it borrows from the future.
    pub fn next(&mut self, now: Timestamp) -> EventSeq {
        let millis = now.as_millis().saturating_sub(EPOCH_MS).max(0);
        if millis > self.millis {
            self.begin(millis);
        } else if self.counter == COUNTER_MASK {
            self.begin(self.millis + 1);
        } else {
            self.counter += 1;
        }
        EventSeq((self.millis << (NODE_BITS + COUNTER_BITS)) | (self.node << COUNTER_BITS) | self.counter)
    }

    /// Begins a millisecond, or the first one behind those that are taken.
    fn begin(&mut self, millis: i64) {
        self.counter = 0;
        self.millis = match self.taken {
            Some((first, last)) if (first..=last).contains(&millis) => last + 1,
            _ => millis,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_through_full_milliseconds_and_clock_jumps() {
        let mut sequence = Sequence::new(7, None);
        let start = Timestamp::from_millis(EPOCH_MS + 1_000);
        let mut last = EventSeq(0);
        for step in 0..20_000 {
            // Every thousandth reading jumps back by half a second.
            let now = if step % 1_000 == 0 { Timestamp::from_millis(EPOCH_MS + 500) } else { start };
            let next = sequence.next(now);
            assert!(next > last, "step {step}: {next:?} after {last:?}");
            last = next;
        }
    }

    #[test]
    fn numbers_tell_their_time() {
        let at = Timestamp::from_millis(EPOCH_MS + 86_400_000);
        let first = Sequence::new(0, None).next(at);
        assert_eq!((floor(at), given_at(first)), (first, at));
        assert!(floor(Timestamp::from_millis(at.as_millis() + 1)) > Sequence::new(1_023, None).next(at));
        assert_eq!(floor(Timestamp::from_millis(i64::MIN)), EventSeq(0));
        assert!(floor(Timestamp::from_millis(i64::MAX)).0 > 0);
    }

    #[test]
    fn numbers_given_ahead_of_time_are_left_behind_and_never_given_again() {
        let at = |millis: i64| Timestamp::from_millis(EPOCH_MS + millis);
        let mut wrong = Sequence::new(3, None);
        let ahead: Vec<_> = (0..10).map(|n| wrong.next(at(1_000_000 + n))).collect();
        let mut sequence = Sequence::new(3, ahead.last().copied());
        assert_eq!(sequence.lead_ms(at(500)), 1_000_010 - 500);

        let last = Sequence::new(3, None).next(at(400));
        sequence.go_back(Some(last), Some((ahead[0], ahead[9])));
        let next = sequence.next(at(500));
        assert!(next > last && next < ahead[0] && given_at(next) == at(500), "{next:?}");
        assert_eq!(sequence.lead_ms(at(500)), 0);
        // The clock has not passed the last number yet.
        sequence.go_back(Some(next), Some((ahead[0], ahead[9])));
        assert_eq!(given_at(sequence.next(at(300))), at(501));
        // Time arrives where numbers were given ahead of it.
        let met: Vec<_> = (0..8_000).map(|n| sequence.next(at(1_000_000 + n / 1_000))).collect();
        assert!(met.is_sorted() && met.iter().all(|seq| *seq > ahead[9]), "{:?}", met[0]);
    }

    #[test]
    fn two_nodes_never_meet_and_a_restart_goes_on_above() {
        let now = Timestamp::from_millis(EPOCH_MS + 5);
        let (mut one, mut two) = (Sequence::new(1, None), Sequence::new(2, None));
        let ones: Vec<_> = (0..5_000).map(|_| one.next(now)).collect();
        assert!((0..5_000).map(|_| two.next(now)).all(|seq| !ones.contains(&seq)));
        let mut again = Sequence::new(1, ones.last().copied());
        assert!(again.next(now) > ones[ones.len() - 1]);
    }
}
