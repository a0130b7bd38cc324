//! Events that come again among new ones.

use std::time::{Duration, Instant};

use posthaste::ledger::ItemVerdict::{Accepted as New, Duplicate};

use super::{accept, close, open_with_lane};
use crate::support::{TestClock, TestDatabase, event, eventually};

on_both_databases! {
    load_of_duplicates_costs_a_tenth_at_most,
}

const BATCH: usize = 500;
const ROUNDS: usize = 100;
/// One event in so many came before; none where it is `None`.
const KINDS: [Option<usize>; 3] = [None, Some(100), Some(10)];
/// What duplicates may cost: the rate with 1 % and with 10 % of them over the rate without. A rollback of every group kept
/// 0.5 to 0.7.
const RATES_KEPT: [f64; 2] = [0.9, 0.8];
/// How often it is measured at most: one measurement in which the machine does nothing else shows it.
const MEASUREMENTS: usize = 3;

/// The time that a quarter of the batches stayed below, in seconds: what else the machine does only makes some slower.
fn lower_quartile(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 4].as_secs_f64()
}

async fn load_of_duplicates_costs_a_tenth_at_most(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let batch = |name: &str, every: Option<usize>, again: &str| {
        let one = |n: usize| {
            let repeats = every.is_some_and(|every| n.is_multiple_of(every));
            let id = if repeats { format!("{again}-{n}") } else { format!("{name}-{n}") };
            event(id).to(&lane).build()
        };
        (0..BATCH).map(one).collect::<Vec<_>>()
    };
    // Ids in no order, as most producers have them.
    let name =
        |round: usize, kind: usize| format!("{:08x}-{kind}", (round as u32).wrapping_mul(2_654_435_761));
    accept(&ledger, batch(&name(0, 0), None, "")).await;
    let (mut stored, mut kept) = (BATCH, false);
    let mut rounds = 1..;
    for _ in 0..MEASUREMENTS {
        if kept {
            break;
        }
        let mut times = [const { Vec::new() }; KINDS.len()];
        for round in rounds.by_ref().take(ROUNDS) {
            for (kind, every) in KINDS.into_iter().enumerate() {
                // What came again was new in the round before, in its batch without duplicates.
                let new = batch(&name(round, kind), every, &name(round - 1, 0));
                let began = Instant::now();
                let verdicts = accept(&ledger, new).await;
                times[kind].push(began.elapsed());
                let repeated = verdicts.iter().filter(|verdict| **verdict == Duplicate).count();
                assert_eq!(repeated, every.map_or(0, |every| BATCH / every));
                stored += verdicts.iter().filter(|verdict| **verdict == New).count();
            }
        }
        let [none, few, many] = times.map(|mut times| BATCH as f64 / lower_quartile(&mut times));
        println!("{none:.0} events/s without duplicates, {few:.0} with 1 %, {many:.0} with 10 %");
        kept = few >= RATES_KEPT[0] * none && many >= RATES_KEPT[1] * none;
    }
    close(ledger).await;
    if database.is_postgres() {
        // Every key that was ever written stands: what a rollback or a delete takes away again counts as inserted.
        let written = "SELECT CAST(n_tup_ins AS TEXT) FROM pg_stat_user_tables WHERE relname = 'event_key'";
        let written = eventually("the server has counted", async || {
            let written: usize = database.text(written).await.parse().expect("a number");
            (written >= stored).then_some(written)
        });
        assert_eq!(written.await, stored, "keys written");
    }
    assert!(kept, "duplicates cost more than they may in each of {MEASUREMENTS} measurements");
}
