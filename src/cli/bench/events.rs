//! The events of a load: ids that tell which one it is without being remembered, and bodies of a given length.

use clap::ValueEnum;

/// In which order event ids come, as an index sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyOrder {
    /// In the order of time, as UUIDv7 are.
    Time,
    /// In no order, as UUIDv4 are.
    Random,
}

/// What every id begins with.
const PREFIX: &[u8] = b"evt_";
const DIGITS: usize = 32;
const ID_BYTES: usize = PREFIX.len() + DIGITS;
/// How far into a request the id is looked for: behind `{"id":"`, or behind Svix's `eventType`.
const ID_WITHIN_BYTES: usize = 128;
/// Tells the two halves of an id apart.
const HIGH_HALF: u64 = 0x9e37_79b9_7f4a_7c15;

/// Ids of one load: `evt_` and 32 hexadecimal digits, the last 16 of which are the event's number in disguise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids {
    order: KeyOrder,
    /// Unlike that of any other load.
    salt: u64,
}

impl Ids {
    pub const fn new(order: KeyOrder, salt: u64) -> Self {
        Self { order, salt }
    }

    /// The id of event number `index`, made at `millis` since the Unix epoch.
    fn write(self, index: u64, millis: u64, out: &mut Vec<u8>) {
        let low = mix(index ^ self.salt);
        let high = match self.order {
            KeyOrder::Random => mix(low ^ HIGH_HALF),
            // Time, the version's digit, and 12 bits at random: the shape of RFC 9562 §5.7.
            KeyOrder::Time => (millis << 16) | 0x7000 | (mix(low ^ HIGH_HALF) >> 52),
        };
        out.extend_from_slice(PREFIX);
        for half in [high, low] {
            let digits = half.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            out.extend(digits.map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
    }

    /// The number of the event that a request is about; one that no load has where the event is of another load, and
    /// `None` where there is no id.
    pub fn find(self, request: &[u8]) -> Option<u64> {
        let head = &request[..request.len().min(ID_WITHIN_BYTES)];
        let at = head.windows(PREFIX.len()).position(|window| window == PREFIX)?;
        let digits = request.get(at + ID_BYTES - 16..at + ID_BYTES)?;
        let low = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some(unmix(low) ^ self.salt)
    }
}

/// The finalizer of SplitMix64: a number for a number, all of them, in no visible order.
const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Its inverse.
const fn unmix(number: u64) -> u64 {
    let number = (number ^ (number >> 31) ^ (number >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let number = (number ^ (number >> 27) ^ (number >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    number ^ (number >> 30) ^ (number >> 60)
}

/// How the events of a load look.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub event_type: &'static str,
    /// Events are dealt out to `PREFIX-0`, `PREFIX-1` … in turn.
    pub tenants: Vec<String>,
    /// Length of one event, in bytes.
    pub bytes: usize,
}

/// Longest event without its filling, for the bound of `--payload-bytes`.
pub(super) const SHORTEST_EVENT_BYTES: usize = 200;

impl Shape {
    /// The body of a request with `count` events from number `first`.
    #[cfg(test)]
    pub fn body(&self, ids: Ids, first: u64, count: u64, millis: u64) -> Vec<u8> {
        self.body_of(ids, &[(first, count, millis)])
    }

    /// The body of a request with these parts, each with its first number, its count and its time: an object for one event, an
    /// array for more.
    pub fn body_of(&self, ids: Ids, parts: &[(u64, u64, u64)]) -> Vec<u8> {
        let count: u64 = parts.iter().map(|(_, count, _)| count).sum();
        let mut body = Vec::with_capacity(usize::try_from(count).unwrap_or(0) * (self.bytes + 1) + 1);
        for (first, part, millis) in parts {
            for index in *first..first + part {
                if count > 1 {
                    body.push(if body.is_empty() { b'[' } else { b',' });
                }
                self.write(ids, index, *millis, &mut body);
            }
        }
        if count > 1 {
            body.push(b']');
        }
        body
    }

    /// One event: an order with as many lines as fit, and a remark up to the length.
    fn write(&self, ids: Ids, index: u64, millis: u64, out: &mut Vec<u8>) {
        const LINE: &[u8] = br#"{"sku":"KTL-0042","name":"kettle","quantity":2,"price":12.50},"#;
        const END: &[u8] = br#"],"remark":""}}"#;
        let begin = out.len();
        let place = usize::try_from(index % self.tenants.len() as u64).unwrap_or(0);
        out.extend_from_slice(br#"{"id":""#);
        ids.write(index, millis, out);
        out.extend_from_slice(br#"","type":""#);
        out.extend_from_slice(self.event_type.as_bytes());
        out.extend_from_slice(br#"","tenant":""#);
        out.extend_from_slice(self.tenants[place].as_bytes());
        out.extend_from_slice(br#"","data":{"total":1.10,"lines":["#);
        let room = |out: &Vec<u8>| self.bytes.saturating_sub(out.len() - begin + END.len());
        let mut lines = 0;
        while room(out) >= LINE.len() {
            out.extend_from_slice(LINE);
            lines += 1;
        }
        if lines > 0 {
            out.pop();
        }
        let filling = room(out);
        out.extend_from_slice(&END[..END.len() - 3]);
        out.resize(out.len() + filling, b'.');
        out.extend_from_slice(&END[END.len() - 3..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(bytes: usize) -> Shape {
        Shape { event_type: "bench.event", tenants: vec!["bench-0".into(), "bench-1".into()], bytes }
    }

    #[test]
    fn events_have_their_length_and_tell_their_number() {
        for order in [KeyOrder::Time, KeyOrder::Random] {
            let ids = Ids::new(order, 0x1234_5678_9abc_def0);
            for bytes in [SHORTEST_EVENT_BYTES, 201, 261, 262, 500, 5_000] {
                let body = shape(bytes).body(ids, 41, 1, 1_700_000_000_000);
                assert_eq!(body.len(), bytes);
                let event: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                assert_eq!(event["tenant"], "bench-1");
                assert_eq!(ids.find(&body), Some(41));
                let svix = [br#"{"eventType":"bench.event","eventId":"#, &body[6..]].concat();
                assert_eq!(ids.find(&svix), Some(41));
            }
            let batch = shape(500).body(ids, 0, 3, 1_700_000_000_000);
            let batch: Vec<serde_json::Value> = serde_json::from_slice(&batch).expect("JSON");
            assert_eq!(batch.len(), 3);
        }
    }

    #[test]
    fn ids_of_other_loads_are_no_numbers_of_this_one() {
        let (ours, theirs) = (Ids::new(KeyOrder::Random, 1), Ids::new(KeyOrder::Random, u64::MAX / 3));
        let most = (0..1_000).filter_map(|index| ours.find(&shape(300).body(theirs, index, 1, 0))).min();
        assert!(most.is_some_and(|index| index > 10_000_000));
        assert_eq!(ours.find(br#"{"id":"probe-1"}"#), None);
        assert_eq!(ours.find(br#"{"id":"evt_12"}"#), None);
    }

    #[test]
    fn time_orders_one_kind_of_ids_and_not_the_other() {
        let in_order = |order| {
            let ids = Ids::new(order, 7);
            let made: Vec<_> = (0..100).map(|index| shape(200).body(ids, index, 1, 1_000 + index)).collect();
            made.windows(2).filter(|pair| pair[0][7..43] < pair[1][7..43]).count()
        };
        assert_eq!(in_order(KeyOrder::Time), 99);
        assert!((25..75).contains(&in_order(KeyOrder::Random)));
    }
}
