//! Partners' rates are kept in the ledger: over all nodes, and over restarts.

use std::time::{Duration, Instant};

use posthaste::domain::partner::RateLimit;
use posthaste::domain::scheduler::{TokenGrant, TokenWish};
use posthaste::ledger::Ledger;

use super::close;
use crate::support::{TestClock, TestDatabase, side_by_side};

on_both_databases! {
    a_budget_is_spent_once_whoever_asks,
    each_wish_is_answered_in_order_from_its_own_budget,
    a_budget_fills_again_at_its_rate,
}

/// So slow that nothing comes back during a test.
const SLOW: RateLimit = RateLimit { per_second: 0.001, burst: 10 };
/// What of [`SLOW`] is there at once: a token that is used late must not be too many. The last comes a second later.
const AT_ONCE: u32 = 9;

fn wish(partner: &str, limit: RateLimit, count: u32) -> TokenWish {
    TokenWish { partner: partner.into(), limit, count }
}

async fn reserve(ledger: &Ledger, wish: TokenWish) -> TokenGrant {
    ledger.reserve_tokens(&[wish]).await.expect("an answer").remove(0)
}

async fn a_budget_is_spent_once_whoever_asks(database: TestDatabase) {
    // holds: 40
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    // Postgres is shared by nodes; a SQLite file has one owner, who asks from many places.
    let other = if database.is_postgres() { database.open(&clock).await } else { ledger.clone() };
    let asking = (0..40).map(|n| {
        let ledger = if n % 2 == 0 { ledger.clone() } else { other.clone() };
        async move { reserve(&ledger, wish("crm", SLOW, 1)).await.count }
    });
    let spent = side_by_side(asking).await.into_iter().sum::<u32>();
    assert!((AT_ONCE..=SLOW.burst).contains(&spent), "{spent}");
    if database.is_postgres() {
        close(other).await;
    }
    close(ledger).await;
    let ledger = database.open(&clock).await;
    let again = reserve(&ledger, wish("crm", SLOW, 5)).await.count;
    assert!(spent + again <= SLOW.burst, "a restart brings nothing back: {spent} and {again}");
    assert_eq!(reserve(&ledger, wish("erp", SLOW, 5)).await.count, 5, "another partner has its own");
}

async fn each_wish_is_answered_in_order_from_its_own_budget(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let wishes: Vec<_> = ["z", "a", "m", "a"]
        .iter()
        .zip([4, 6, 100, 6])
        .map(|(name, count)| wish(name, SLOW, count))
        .collect();
    let grants = ledger.reserve_tokens(&wishes).await.expect("an answer");
    assert_eq!(grants.iter().map(|grant| grant.wish.clone()).collect::<Vec<_>>(), wishes);
    assert_eq!(grants.iter().map(|grant| grant.count).collect::<Vec<_>>(), [4, 6, AT_ONCE, AT_ONCE - 6]);
    assert_eq!(ledger.reserve_tokens(&[]).await.expect("an answer"), []);
}

async fn a_budget_fills_again_at_its_rate(database: TestDatabase) {
    // holds: 40
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let limit = RateLimit { per_second: 100.0, burst: 20 };
    let began = Instant::now();
    let mut taken = 0;
    for _ in 0..50 {
        taken += reserve(&ledger, wish("crm", limit, 1_000)).await.count;
        // Postgres has a clock of its own, which goes on by itself.
        tokio::time::sleep(Duration::from_millis(20)).await;
        clock.pass(Duration::from_millis(20));
    }
    let seconds = if database.is_postgres() { began.elapsed().as_secs_f64() } else { 1.0 };
    let most = 20.0 + 100.0 * seconds;
    assert!(f64::from(taken) <= most && taken >= 90, "{taken} in {seconds} s");
}
