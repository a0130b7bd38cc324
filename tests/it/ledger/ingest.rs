//! Events come in: each once, whole requests or nothing.

use posthaste::domain::event::{Fingerprint, Identity};
use posthaste::ledger::ItemVerdict::{Accepted as New, Conflict, Duplicate};
use posthaste::ledger::{Accepted, RequestKey};

use super::{accept, claim, ids, lane, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase, event, side_by_side};

on_both_databases! {
    the_same_batch_again_is_all_duplicates,
    another_payload_is_a_conflict_and_the_first_bytes_stay,
    a_strict_request_with_a_conflict_stores_nothing,
    requests_that_share_a_commit_stay_apart,
    refusals_that_hang_on_one_another_refuse_nobody_else,
    a_thousand_concurrent_duplicates_are_one_row,
    a_request_key_goes_with_one_body,
    an_event_goes_to_many_lanes_or_to_none,
    large_bodies_come_back_byte_for_byte,
    odd_text_comes_back_as_it_was,
}

async fn the_same_batch_again_is_all_duplicates(database: TestDatabase) {
    // holds: 2
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let batch = || (0..100).map(|n| event(format!("e{n}")).to(&lane).build()).collect::<Vec<_>>();
    assert_eq!(accept(&ledger, batch()).await, [New; 100]);
    assert_eq!(accept(&ledger, batch()).await, [Duplicate; 100]);
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.created, progress.pending), (100, 100, 100));
    assert_eq!(ledger.waiting(), 100);
}

async fn another_payload_is_a_conflict_and_the_first_bytes_stay(database: TestDatabase) {
    // holds: 3
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let first = event("e").data(r#"{"total":1.10}"#).to(&lane).build();
    let bytes = first.event.body.to_vec();
    assert_eq!(accept(&ledger, vec![first]).await, [New]);
    let again = vec![
        event("e").data(r#"{ "total" : 1.10 }"#).to(&lane).build(),
        event("e").data(r#"{"total":1.1}"#).to(&lane).build(),
        event("e").of_type("order.deleted").to(&lane).build(),
        event("e").source("shop").to(&lane).build(),
        event("e").tenant("globex").build(),
        event("E").to(&lane).build(),
    ];
    let verdicts = ledger.accept(again, false, None).await.expect("an answer");
    assert_eq!(verdicts, Accepted::Stored(vec![Duplicate, Conflict, Conflict, New, New, New]));
    let body = ledger.database().body("acme", "", "e").await.expect("an answer");
    assert_eq!(body, Some(bytes.clone()));
    let claimed = claim(&ledger, &lane, 10).await.deliveries;
    assert_eq!(ids(&claimed), ["e", "e", "E"]);
    assert_eq!(claimed[0].body, bytes);
    let data = claimed[0].data.clone().expect("it has data");
    assert_eq!(&claimed[0].body[data], br#"{"total":1.10}"#);
}

async fn a_strict_request_with_a_conflict_stores_nothing(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    accept(&ledger, vec![event("stored").to(&lane).build()]).await;
    let batch = || {
        let conflict = event("stored").data("2").to(&lane).build();
        vec![
            event("a").to(&lane).build(),
            conflict,
            event("b").to(&lane).build(),
            event("a").to(&lane).build(),
        ]
    };
    let refused = ledger.accept(batch(), true, None).await.expect("an answer");
    assert_eq!(refused, Accepted::Refused(vec![New, Conflict, New, Duplicate]));
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.created, progress.pending), (1, 1, 1));
    assert_eq!(ledger.database().body("acme", "", "a").await.expect("an answer"), None);
    // The same leniently: what is good is stored.
    let stored = ledger.accept(batch(), false, None).await.expect("an answer");
    assert_eq!(stored, Accepted::Stored(vec![New, Conflict, New, Duplicate]));
    assert_eq!(ids(&claim(&ledger, &lane, 10).await.deliveries), ["stored", "a", "b"]);
    // Two of one request that conflict with each other.
    let both = vec![event("c").to(&lane).build(), event("c").data("2").to(&lane).build()];
    let refused = ledger.accept(both, true, None).await.expect("an answer");
    assert_eq!(refused, Accepted::Refused(vec![New, Conflict]));
    assert_eq!(ledger.database().body("acme", "", "c").await.expect("an answer"), None);
}

async fn requests_that_share_a_commit_stay_apart(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    accept(&ledger, vec![event("stored").to(&lane).build()]).await;
    let requests = (0..150).map(|n| {
        let (ledger, lane) = (ledger.clone(), lane.clone());
        async move {
            let own = event(format!("own{n}")).to(&lane).build();
            let conflict = event("stored").data("2").to(&lane).build();
            let twin = event(format!("twin{}", n / 3)).to(&lane).build();
            let (events, strict) = match n % 3 {
                0 => (vec![own, conflict], true),
                1 => (vec![own, twin], true),
                _ => (vec![own, conflict, twin], false),
            };
            ledger.accept(events, strict, None).await.expect("an answer")
        }
    });
    let answers = side_by_side(requests).await;
    for (n, answer) in answers.iter().enumerate() {
        match (n % 3, answer) {
            (0, Accepted::Refused(verdicts)) => assert_eq!(verdicts, &[New, Conflict]),
            (1, Accepted::Stored(verdicts)) => assert_eq!(verdicts[0], New),
            (2, Accepted::Stored(verdicts)) => assert_eq!(verdicts[..2], [New, Conflict]),
            _ => panic!("request {n}: {answer:?}"),
        }
    }
    for (strict, lenient) in (0..50).map(|n| (&answers[3 * n + 1], &answers[3 * n + 2])) {
        let (Accepted::Stored(strict), Accepted::Stored(lenient)) = (strict, lenient) else { unreachable!() };
        let mut twins = [strict[1], lenient[2]];
        twins.sort_by_key(|verdict| *verdict != New);
        assert_eq!(twins, [New, Duplicate], "one of two is the first");
    }
    for n in 0..150 {
        let body = ledger.database().body("acme", "", &format!("own{n}")).await.expect("an answer");
        assert_eq!(body.is_some(), n % 3 != 0, "own{n}");
    }
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.created), (151, 151));
}

/// Every request conflicts with something stored and with all the others: in a group, each is judged anew once the one
/// before it is refused.
async fn refusals_that_hang_on_one_another_refuse_nobody_else(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let stored = (0..40).map(|n| event(format!("stored{n}")).to(&lane).build()).collect();
    accept(&ledger, stored).await;
    let request = |events: Vec<_>| {
        let ledger = ledger.clone();
        async move { ledger.accept(events, true, None).await }
    };
    // The first keeps the writer busy while the others gather.
    let large = (0..1_500).map(|n| event(format!("large{n}")).to(&lane).build()).collect();
    let mut requests = vec![request(large)];
    requests.extend((0..40).map(|n| {
        let shared = event("shared").data(n.to_string()).to(&lane).build();
        request(vec![shared, event(format!("stored{n}")).data("2").to(&lane).build()])
    }));
    requests.push(request(vec![event("good").to(&lane).build()]));
    let mut answers = side_by_side(requests).await;
    let good = answers.pop().expect("an answer").expect("stored, whatever the others are");
    assert_eq!(good, Accepted::Stored(vec![New]));
    for answer in answers.into_iter().skip(1) {
        assert!(matches!(answer.expect("an answer"), Accepted::Refused(_)));
    }
}

async fn a_thousand_concurrent_duplicates_are_one_row(database: TestDatabase) {
    // holds: 4
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let answers = side_by_side((0..1_000).map(|_| {
        let (ledger, event) = (ledger.clone(), event("one").to(&lane).build());
        async move { ledger.accept(vec![event], true, None).await.expect("no error") }
    }));
    let answers = answers.await;
    let count = |verdict| answers.iter().filter(|answer| **answer == Accepted::Stored(vec![verdict])).count();
    assert_eq!((count(New), count(Duplicate)), (1, 999));
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.pending), (1, 1));
    assert_eq!(ledger.waiting(), 1);
}

async fn a_request_key_goes_with_one_body(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    let key = |scope: &str, body: u8| {
        Some(RequestKey { scope: scope.into(), key: "key".into(), fingerprint: [body; 32] })
    };
    let one = |id: &str, data: &str| vec![event(id).data(data).to(&lane).build()];
    accept(&ledger, one("stored", "1")).await;
    // A refused request leaves no key behind: mended, it may come again under the same one.
    let refused = ledger.accept(one("stored", "2"), true, key("acme", 1)).await.expect("an answer");
    assert_eq!(refused, Accepted::Refused(vec![Conflict]));
    let mended = ledger.accept(one("a", "1"), true, key("acme", 2)).await.expect("an answer");
    assert_eq!(mended, Accepted::Stored(vec![New]));
    let resent = ledger.accept(one("a", "1"), true, key("acme", 2)).await.expect("an answer");
    assert_eq!(resent, Accepted::Stored(vec![Duplicate]));
    let reused = ledger.accept(one("b", "1"), false, key("acme", 3)).await.expect("an answer");
    assert_eq!(reused, Accepted::KeyReused);
    let other_scope = ledger.accept(one("c", "1"), true, key("", 3)).await.expect("an answer");
    assert_eq!(other_scope, Accepted::Stored(vec![New]));
    assert_eq!(ledger.database().body("acme", "", "b").await.expect("an answer"), None);
    super::close(ledger).await;
    let ledger = database.open(&clock).await;
    let reused = ledger.accept(one("b", "1"), true, key("acme", 3)).await.expect("an answer");
    assert_eq!(reused, Accepted::KeyReused);
}

async fn an_event_goes_to_many_lanes_or_to_none(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let (one, two) = (lane(&ledger, "one", "acme").await, lane(&ledger, "two", "acme").await);
    accept(&ledger, vec![event("both").to(&one).to(&two).build(), event("none").build()]).await;
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.unrouted, progress.created), (2, 1, 2));
    let (first, second) = (claim(&ledger, &one, 5).await, claim(&ledger, &two, 5).await);
    let (first, second) = (&first.deliveries[0], &second.deliveries[0]);
    assert_eq!((first.id.event, first.id.lane, second.id.lane), (second.id.event, one.id, two.id));
    settle(&ledger, [settlement(first, super::delivered(), &clock)]).await;
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done.get("delivered")), (1, Some(&1)));
    assert_eq!(ledger.waiting(), 1);
}

async fn large_bodies_come_back_byte_for_byte(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    let text = |n: usize| format!("\"{}\"", "päck ".repeat(175_000 + n));
    let requests = (0..8).map(|n| {
        let (ledger, event) = (ledger.clone(), event(n.to_string()).data(text(n)).to(&lane).build());
        async move {
            assert!(event.event.body.len() > 1 << 20);
            accept(&ledger, vec![event]).await
        }
    });
    assert_eq!(side_by_side(requests).await.concat(), [New; 8]);
    let claimed = claim(&ledger, &lane, 8).await.deliveries;
    assert_eq!(claimed.len(), 8);
    for delivery in claimed {
        let n = delivery.identity.id.parse().expect("a number");
        let data = delivery.data.clone().expect("it has data");
        assert!(delivery.body[data] == *text(n).as_bytes(), "body {n} has changed");
    }
}

async fn odd_text_comes_back_as_it_was(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let odd = [
        "\u{1}\u{7f}\t\r\n",
        "'; DROP TABLE event; --",
        "%_\\\"`$1?{},",
        "Ünïcödé e\u{301} ≠ é",
        "\u{202e}rtl\u{200b}\u{feff}",
        "🦀\u{10ffff}\u{ffff}\u{fffd}",
        " leading and trailing ",
    ];
    for text in odd {
        let lane = lane(&ledger, text, text).await;
        let new = event(text).source(text).of_type(text).to(&lane).build();
        let identity = Identity { tenant: text.into(), source: text.into(), id: text.into() };
        let key = RequestKey { scope: text.into(), key: text.into(), fingerprint: [7; 32] };
        let body = new.event.body.clone();
        for verdict in [New, Duplicate] {
            let answer = ledger.accept(vec![new.clone()], true, Some(key.clone())).await.expect("an answer");
            assert_eq!(answer, Accepted::Stored(vec![verdict]), "{text:?}");
        }
        let stored = ledger.database().body(text, text, text).await.expect("an answer");
        assert_eq!(stored.as_deref(), Some(&*body), "{text:?}");
        let claimed = claim(&ledger, &lane, 2).await.deliveries;
        assert_eq!(claimed.len(), 1);
        assert_eq!((&claimed[0].identity, &*claimed[0].event_type), (&identity, text));
        let fingerprint = Fingerprint::of(&claimed[0].event_type, Some(r#"{"total":1.10}"#));
        assert_eq!(fingerprint, new.event.fingerprint);
    }
    let busy = ledger.busy_lanes(None, 100).await.expect("an answer");
    let names: Vec<_> = busy.iter().map(|busy| &*busy.lane.tenant).collect();
    assert_eq!(names, odd);
}
