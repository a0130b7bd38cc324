//! What the ledger tells: however much there is, a page costs the same.

use posthaste::domain::clock::Clock as _;
use posthaste::ledger::{DeliveryFilter, DeliveryState, EventFilter, EventState, Standing};

use super::{claim, delivered, failed, fill, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase};

on_both_databases! {
    a_page_looks_at_a_bounded_part_and_goes_on,
    what_waits_is_found_wherever_it_stands,
    dead_deliveries_are_found_among_many,
    an_id_is_found_in_every_source,
}

async fn a_page_looks_at_a_bounded_part_and_goes_on(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "first", 1).await;
    let first = claim(&ledger, &lane, 1).await.deliveries;
    settle(&ledger, [settlement(&first[0], delivered(), &clock)]).await;
    database.wait_in(&lane, 60_000, clock.now()).await;
    let filter = EventFilter { state: Some(EventState::Delivered), ..EventFilter::default() };
    let page = ledger.events(&filter, None, 10).await.expect("a page");
    assert!(page.rows.is_empty() && page.next.is_some(), "short, and there is more");
    let page = ledger.events(&filter, page.next, 10).await.expect("a page");
    assert_eq!((page.rows.len(), page.next), (1, None));
    assert_eq!(&*page.rows[0].identity.id, "first0");
    // In the midst of it all, one event is found at once.
    let (found, all) = ledger.find_event("acme", None, "first0").await.expect("an answer");
    assert!(all);
    assert_eq!(found.len(), 1);
    let all = ledger.events(&EventFilter::default(), None, 200).await.expect("a page");
    assert_eq!(&*all.rows[0].identity.id, "deep-60000");
    let middle = &all.rows[100];
    let waiting = ledger.deliveries_of(middle).await.expect("an answer");
    assert!(
        matches!(waiting[..], [ref only] if matches!(only.standing, Standing::Waiting(_))),
        "{waiting:?}"
    );
}

async fn what_waits_is_found_wherever_it_stands(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 3).await;
    let claimed = claim(&ledger, &lane, 1).await.deliveries;
    settle(&ledger, [settlement(&claimed[0], failed(), &clock)]).await;
    database
        .execute("UPDATE queue SET due_at = due_at + 7 WHERE event = (SELECT MAX(event) FROM queue)")
        .await;
    let listed = ledger.events(&EventFilter::default(), None, 10).await.expect("a page").rows;
    assert_eq!(listed.len(), 3);
    for event in &listed {
        assert_eq!(event.state, EventState::Pending);
        let deliveries = ledger.deliveries_of(event).await.expect("an answer");
        let [only] = &deliveries[..] else { panic!("one: {deliveries:?}") };
        let (_, alone) = ledger.delivery(only.id).await.expect("an answer").expect("it is there");
        assert_eq!(alone, *only);
    }
    let filter = DeliveryFilter { state: Some(DeliveryState::Pending), ..DeliveryFilter::default() };
    let page = ledger.deliveries(&filter, None, 10).await.expect("a page");
    assert_eq!((page.rows.len(), page.next), (3, None));
}

async fn dead_deliveries_are_found_among_many(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 40).await;
    let claimed = claim(&ledger, &lane, 40).await.deliveries;
    let settlements = claimed.iter().zip(0..).map(|(delivery, n)| {
        let mut settlement = settlement(delivery, if n % 10 == 3 { failed() } else { delivered() }, &clock);
        if n % 10 == 3 {
            let reason = posthaste::domain::delivery::DeadReason::RetriesExhausted;
            settlement.next = posthaste::domain::delivery::NextState::Dead { reason };
        }
        settlement
    });
    settle(&ledger, settlements).await;
    let filter = DeliveryFilter { state: Some(DeliveryState::Dead), ..DeliveryFilter::default() };
    let first = ledger.deliveries(&filter, None, 3).await.expect("a page");
    let second = ledger.deliveries(&filter, first.next, 3).await.expect("a page");
    let ids: Vec<_> = first.rows.iter().chain(&second.rows).map(|row| &*row.event.id).collect();
    assert_eq!((ids, second.next), (vec!["e33", "e23", "e13", "e3"], None));
    let filter = EventFilter { state: Some(EventState::Dead), ..EventFilter::default() };
    let events = ledger.events(&filter, None, 10).await.expect("a page");
    assert_eq!((events.rows.len(), events.next), (4, None));
}

async fn an_id_is_found_in_every_source(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    let sources = ["", "a", "b/c", "ü"];
    for source in sources {
        let events = ["x", "y"].map(|id| crate::support::event(id).source(source).to(&lane).build());
        super::accept(&ledger, events.into()).await;
    }
    let find = async |source, id| {
        let (mut found, all) = ledger.find_event("acme", source, id).await.expect("an answer");
        assert!(all);
        found.sort();
        found.into_iter().map(|(source, _)| source).collect::<Vec<_>>()
    };
    assert_eq!(find(None, "x").await, sources);
    assert_eq!(
        (find(Some("b/c"), "y").await, find(Some(""), "y").await),
        (vec!["b/c".to_owned()], vec![String::new()])
    );
    assert_eq!((find(None, "z").await, find(Some("nowhere"), "x").await), (vec![], vec![]));
    assert_eq!(ledger.find_event("other", None, "x").await.expect("an answer"), (vec![], true));
    // Of a tenant with very many, the rest has to be named.
    let many: Vec<_> = (0..1_100)
        .map(|n| crate::support::event("x").tenant("many").source(&format!("{n:04}")).build())
        .collect();
    super::accept(&ledger, many).await;
    let (found, all) = ledger.find_event("many", None, "x").await.expect("an answer");
    assert_eq!((found.len(), all), (1_000, false));
    let (found, all) = ledger.find_event("many", Some("1099"), "x").await.expect("an answer");
    assert_eq!((found.len(), all), (1, true));
}
