//! Sample events: what a shop's platform might send, the same at every run but for ids and times.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::domain::clock::Timestamp;

const SEED: u64 = 7;
const BATCH_EVENTS_MAX: usize = 20;
/// Every so many batches one is sent twice, as a producer does that has lost the answer.
const RESEND_EVERY: u64 = 12;
/// Every so many events one comes in the short form.
const SHORT_FORM_EVERY: u64 = 6;

const TENANTS: [&str; 5] = ["acme", "globex", "initech", "umbrella", "hooli"];
const CUSTOMERS: [&str; 8] = [
    "Ada Lovelace",
    "Jürgen Groß",
    "Zoë Martin",
    "Grace Hopper",
    "Søren Holm",
    "Łucja Nowak",
    "陳小明",
    "Chidi Okafor",
];
const ARTICLES: [&str; 6] =
    ["kettle", "desk lamp", "notebook A5", "rain jacket", "tea \"No. 7\"", "bicycle bell"];
const CARRIERS: [&str; 3] = ["DHL", "UPS", "PostNL"];
const CITIES: [&str; 5] = ["Lisbon", "Łódź", "Hamburg", "Lyon", "Cork"];

/// A kind of event: its type, where it comes from, and how often it happens next to the others.
struct Kind {
    event_type: &'static str,
    source: &'static str,
    weight: u32,
}

const KINDS: [Kind; 7] = [
    Kind { event_type: "order.created", source: "/shop/orders", weight: 6 },
    Kind { event_type: "order.paid", source: "/shop/orders", weight: 5 },
    Kind { event_type: "shipment.sent", source: "/warehouse", weight: 4 },
    Kind { event_type: "shipment.delivered", source: "/warehouse", weight: 3 },
    Kind { event_type: "invoice.sent", source: "/billing", weight: 3 },
    Kind { event_type: "invoice.paid", source: "/billing", weight: 2 },
    Kind { event_type: "user.signed_up", source: "/accounts", weight: 2 },
];

/// A sample event, as far as one follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sample {
    pub tenant: &'static str,
    pub event_type: &'static str,
    /// Where it comes from; empty where it does not say.
    pub source: &'static str,
    /// Its id: unlike that of any other event of any other run.
    pub id: String,
}

/// Sample events on their way.
#[derive(Debug)]
pub(super) struct Batch {
    pub events: Vec<Sample>,
    /// A JSON array of them.
    pub body: String,
    /// Whether it is sent a second time.
    pub resend: bool,
}

/// Makes sample events.
pub(super) struct Samples {
    random: StdRng,
    /// The part of the ids that tells this run from others.
    run: String,
    tenant_attribute: String,
    batch_events_max: usize,
    batches: u64,
    events: u64,
}

impl Samples {
    /// Sample events of the run that began at `began`, which name their tenant in `tenant_attribute`, at most
    /// `batch_events_max` in a batch.
    pub fn new(began: Timestamp, tenant_attribute: &str, batch_events_max: usize) -> Self {
        Self {
            random: StdRng::seed_from_u64(SEED),
            run: base36(began.as_millis().unsigned_abs()),
            tenant_attribute: tenant_attribute.to_owned(),
            batch_events_max: batch_events_max.clamp(1, BATCH_EVENTS_MAX),
            batches: 0,
            events: 0,
        }
    }

    /// The next batch, of at most `left` events (at least one), that happen at `now`.
    pub fn next_batch(&mut self, left: u64, now: Timestamp) -> Batch {
        let size = self.random.random_range(1..=self.batch_events_max);
        let size = size.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1);
        self.batches += 1;
        let (mut events, mut body) = (Vec::with_capacity(size), String::from("["));
        for index in 0..size {
            if index > 0 {
                body.push(',');
            }
            events.push(self.next_event(now, &mut body));
        }
        body.push(']');
        Batch { events, body, resend: self.batches.is_multiple_of(RESEND_EVERY) }
    }

    fn next_event(&mut self, now: Timestamp, body: &mut String) -> Sample {
        self.events += 1;
        let kind = self.kind();
        let Kind { event_type, source, .. } = kind;
        let tenant = self.one_of(&TENANTS);
        let id = format!("evt_{}_{:05}", self.run, self.events);
        let data = self.data(event_type);
        let attribute = &self.tenant_attribute;
        // Writing to a String can't fail.
        let short = self.events.is_multiple_of(SHORT_FORM_EVERY);
        let _ = if short {
            write!(
                body,
                r#"{{"eventType":"{event_type}","eventId":"{id}","{attribute}":"{tenant}","data":{data}}}"#
            )
        } else {
            let time = now.to_rfc3339();
            write!(
                body,
                r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"{event_type}","time":"{time}","{attribute}":"{tenant}","data":{data}}}"#
            )
        };
        Sample { tenant, event_type, source: if short { "" } else { source }, id }
    }

    fn kind(&mut self) -> &'static Kind {
        let total = KINDS.iter().map(|kind| kind.weight).sum();
        let mut at = self.random.random_range(0..total);
        for kind in &KINDS {
            match at.checked_sub(kind.weight) {
                Some(rest) => at = rest,
                None => return kind,
            }
        }
        &KINDS[0]
    }

    /// What the event says, as JSON text. Amounts keep their cents: `12.50` is not `12.5` to who signs the text.
    fn data(&mut self, event_type: &str) -> String {
        let number = self.random.random_range(10_000..99_999_u32);
        let cents = self.random.random_range(500..40_000_u32);
        let amount = format!("{}.{:02}", cents / 100, cents % 100);
        let customer = self.one_of(&CUSTOMERS);
        match event_type {
            "order.created" => {
                let (article, quantity) =
                    (self.one_of(&ARTICLES).replace('"', "\\\""), self.random.random_range(1..5_u32));
                format!(
                    r#"{{"order":"o-{number}","customer":"{customer}","total":{amount},"currency":"EUR","lines":[{{"article":"{article}","quantity":{quantity}}}]}}"#
                )
            }
            "order.paid" => {
                format!(r#"{{"order":"o-{number}","amount":{amount},"currency":"EUR","method":"card"}}"#)
            }
            "shipment.sent" | "shipment.delivered" => {
                let (carrier, city) = (self.one_of(&CARRIERS), self.one_of(&CITIES));
                let parcel = self.random.random_range(10_u64.pow(19)..u64::MAX);
                format!(r#"{{"order":"o-{number}","carrier":"{carrier}","parcel":{parcel},"city":"{city}"}}"#)
            }
            "user.signed_up" => format!(r#"{{"user":"u-{number}","name":"{customer}","plan":"free"}}"#),
            _ => format!(r#"{{"invoice":"i-{number}","customer":"{customer}","total":{amount}}}"#),
        }
    }

    fn one_of(&mut self, choices: &[&'static str]) -> &'static str {
        choices[self.random.random_range(0..choices.len())]
    }
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break digits.iter().rev().map(|digit| char::from(*digit)).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;
    use http::HeaderMap;
    use rstest::rstest;

    use super::*;
    use crate::domain::parse::{Incoming, ParseSettings, parse};

    fn batches(run_ms: i64, events: u64) -> Vec<Batch> {
        let mut samples = Samples::new(Timestamp::from_millis(run_ms), "tenant", 100);
        let (mut made, mut batches) = (0, Vec::new());
        while made < events {
            let batch = samples.next_batch(events - made, Timestamp::from_millis(run_ms));
            made += batch.events.len() as u64;
            batches.push(batch);
        }
        batches
    }

    #[test]
    fn the_relay_reads_them_as_they_were_meant() {
        let settings = ParseSettings {
            tenant_attributes: vec!["tenant".into()],
            default_tenant: None,
            require_id: true,
            max_batch_events: 100,
            max_event_bytes: 1 << 20,
        };
        let (mut seen, mut types, mut tenants) = (HashSet::new(), HashSet::new(), HashSet::new());
        for batch in batches(1_760_000_000_000, 1_000) {
            assert!((1..=BATCH_EVENTS_MAX).contains(&batch.events.len()));
            let incoming = Incoming {
                body: Bytes::from(batch.body),
                content_type: Some("application/json"),
                headers: &HeaderMap::new(),
                tenant: None,
            };
            let items = parse(&incoming, &settings).expect("read").items;
            assert_eq!(items.len(), batch.events.len());
            for (item, sample) in items.into_iter().zip(batch.events) {
                let draft = item.result.expect("an event");
                assert_eq!((&*draft.tenant, &*draft.event_type), (sample.tenant, sample.event_type));
                assert_eq!(draft.id.as_deref(), Some(sample.id.as_str()));
                assert!(draft.data.is_some());
                assert!(seen.insert(sample.id), "an id came twice");
                types.insert(sample.event_type);
                tenants.insert(sample.tenant);
            }
        }
        assert_eq!((seen.len(), types.len(), tenants.len()), (1_000, KINDS.len(), TENANTS.len()));
    }

    #[test]
    fn runs_look_alike_and_share_no_id() {
        let (one, other) = (batches(1_760_000_000_000, 300), batches(1_760_000_000_001, 300));
        let shape = |batches: &[Batch]| {
            let events = batches.iter().flat_map(|batch| &batch.events);
            events.map(|event| (event.tenant, event.event_type)).collect::<Vec<_>>()
        };
        assert_eq!(shape(&one), shape(&other));
        let resent = |batches: &[Batch]| batches.iter().filter(|batch| batch.resend).count();
        assert_eq!(resent(&one), resent(&other));
        assert!(resent(&one) > 0);
        let ids = |batches: &[Batch]| {
            batches.iter().flat_map(|batch| &batch.events).map(|event| event.id.clone()).collect()
        };
        let (one, other): (HashSet<_>, HashSet<_>) = (ids(&one), ids(&other));
        assert!(one.is_disjoint(&other));
    }

    #[rstest]
    #[case(0, "1970-01-01T00:00:00.000Z")]
    #[case(-1, "1969-12-31T23:59:59.999Z")]
    #[case(951_827_696_789, "2000-02-29T12:34:56.789Z")]
    #[case(4_107_542_399_999, "2100-02-28T23:59:59.999Z")]
    #[case(1_767_225_600_000, "2026-01-01T00:00:00.000Z")]
    fn times(#[case] millis: i64, #[case] expected: &str) {
        assert_eq!(Timestamp::from_millis(millis).to_rfc3339(), expected);
    }
}
