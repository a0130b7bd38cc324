//! What may be done to a ledger.

use std::collections::BTreeMap;

use posthaste::domain::delivery::Class;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// How many events a case has at most, and lanes they may go to.
pub const EVENTS: usize = 8;
pub const LANES: usize = 2;
/// How many `Idempotency-Key`s.
const KEYS: usize = 3;

/// One step. Which of what there is it is about is said by number, since that is not known before.
#[derive(Debug, Clone)]
pub enum Step {
    Accept {
        items: Vec<Item>,
        strict: bool,
        key: Option<usize>,
    },
    Claim {
        lane: usize,
        class: Class,
        limit: usize,
    },
    /// Of any claim that was ever made, whether it still holds or not.
    Settle {
        claim: Index,
        fate: Fate,
    },
    Release {
        claim: Index,
    },
    /// Seconds on the wall clock.
    Pass(u64),
    /// A part of a lease's time goes by.
    Age,
    /// The process ends with claims in hand, and another begins.
    Reopen,
}

/// An event as it comes: its id, with one of two data, for some lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub id: usize,
    pub other_data: bool,
    pub lanes: [bool; LANES],
}

/// What becomes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    Failed,
    Throttled,
    Rejected,
    Canceled,
    NotSent,
}

impl Step {
    /// For counting, so that no kind goes untried.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Accept { key: Some(_), .. } => "accept with a key",
            Self::Accept { strict: true, .. } => "accept strictly",
            Self::Accept { .. } => "accept leniently",
            Self::Claim { .. } => "claim",
            Self::Settle { fate, .. } => match fate {
                Fate::Delivered => "settle as delivered",
                Fate::Failed => "settle as failed",
                Fate::Throttled => "settle as throttled",
                Fate::Rejected => "settle as rejected",
                Fate::Canceled => "settle as canceled",
                Fate::NotSent => "settle as not sent",
            },
            Self::Release { .. } => "release",
            Self::Pass(_) => "let time pass",
            Self::Age => "let leases age",
            Self::Reopen => "reopen",
        }
    }
}

/// Every kind there is, and a few that say what came of a step: none tried yet.
pub fn counts() -> BTreeMap<&'static str, usize> {
    let kinds = [
        "accept with a key",
        "accept strictly",
        "accept leniently",
        "claim",
        "settle as delivered",
        "settle as failed",
        "settle as throttled",
        "settle as rejected",
        "settle as canceled",
        "settle as not sent",
        "release",
        "let time pass",
        "let leases age",
        "reopen",
        "(stale)",
        "(refused)",
        "(key reused)",
        "(claimed again after its lease)",
    ];
    kinds.into_iter().map(|kind| (kind, 0)).collect()
}

pub fn step() -> impl Strategy<Value = Step> {
    let class = || prop_oneof![3 => Just(Class::Fresh), 2 => Just(Class::Retry)];
    prop_oneof![
        6 => (vec(item(), 1..=4), any::<bool>(), option::weighted(0.3, 0..KEYS))
            .prop_map(|(items, strict, key)| Step::Accept { items, strict, key }),
        7 => (0..LANES, class(), 1..=5_usize).prop_map(|(lane, class, limit)| Step::Claim { lane, class, limit }),
        8 => (any::<Index>(), fate()).prop_map(|(claim, fate)| Step::Settle { claim, fate }),
        2 => any::<Index>().prop_map(|claim| Step::Release { claim }),
        3 => select(vec![1, 5, 300]).prop_map(Step::Pass),
        3 => Just(Step::Age),
        1 => Just(Step::Reopen),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let lanes = select(vec![[true, false], [false, true], [true, true], [true, true], [false, false]]);
    (0..EVENTS, proptest::bool::weighted(0.15), lanes).prop_map(|(id, other_data, lanes)| Item {
        id,
        other_data,
        lanes,
    })
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Delivered),
        4 => Just(Fate::Failed),
        2 => Just(Fate::Throttled),
        1 => Just(Fate::Rejected),
        1 => Just(Fate::Canceled),
        2 => Just(Fate::NotSent),
    ]
}
