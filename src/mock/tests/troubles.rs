//! Troubles, the rules that bring them, and what watchers are told of them.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;

use super::{MESSAGES, Raw, SECOND, acme, body};
use crate::mock::{MockEvent, MockSvix, TooFew, Trouble};

#[tokio::test]
async fn scripted_troubles_strike_in_order() {
    let (mock, raw) = acme().await;
    mock.script([
        Trouble::Throttle { retry_after: Some("0.25".to_owned()) },
        Trouble::Pass,
        Trouble::Status(503),
        Trouble::Answer {
            status: 401,
            retry_after: Some("Fri, 31 Dec 1999 23:59:59 GMT".to_owned()),
            body: "no".to_owned(),
        },
        Trouble::Garbage,
        Trouble::Throttle { retry_after: None },
    ]);
    let mut seen = Vec::new();
    for i in 0..7 {
        let answer = raw.post(MESSAGES, None, &body(&format!("evt_{i}"))).await;
        seen.push((answer.status.as_u16(), answer.retry_after, answer.body));
    }
    let statuses: Vec<_> = seen.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [429, 202, 503, 401, 200, 429, 202]);
    assert_eq!(seen[0].1.as_deref(), Some("0.25"));
    assert_eq!(seen[3].1.as_deref(), Some("Fri, 31 Dec 1999 23:59:59 GMT"));
    assert_eq!(seen[3].2, "no");
    assert_eq!(seen[5].1, None);
    assert_eq!((mock.message_count(), mock.scripted()), (2, 0));
    let requests = mock.requests();
    assert_eq!(requests[0].event_id.as_deref(), Some("evt_0"));
    assert_eq!(requests[0].retry_after.as_deref(), Some("0.25"));
}

#[tokio::test]
async fn standing_rules_give_way_to_scripts() {
    let (mock, raw) = acme().await;
    mock.add_application("calm");
    let post = async |app: &str| {
        let path = format!("/api/v1/app/{app}/msg");
        let answer = raw.post(&path, None, r#"{"eventType":"a","payload":{}}"#);
        answer.await.status.as_u16()
    };
    mock.set_trouble(Some(Trouble::Status(500)));
    mock.set_trouble_for("calm", Some(Trouble::Pass));
    mock.script_for("acme", [Trouble::Status(502)]);
    mock.script([Trouble::Status(503)]);
    assert_eq!(post("acme").await, 502);
    assert_eq!(post("calm").await, 503);
    assert_eq!(post("calm").await, 202);
    assert_eq!(post("acme").await, 500);
    mock.clear_troubles();

    mock.every_nth(3, Trouble::throttle(1));
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(post("acme").await);
    }
    assert_eq!(statuses, [202, 202, 429, 202, 202, 429]);
    mock.every_nth(0, Trouble::Pass);
    mock.script([Trouble::Status(100), Trouble::Status(9999)]);
    assert_eq!((post("acme").await, post("acme").await), (500, 500));
}

#[tokio::test]
async fn answers_get_lost_on_both_sides_of_the_commit() {
    let (mock, raw) = acme().await;
    let post = async |key| raw.send(Method::POST, MESSAGES, Some(key), &body(key)).await;
    mock.script([Trouble::Reset]);
    assert!(post("k0").await.is_err());
    assert_eq!(mock.message_count(), 0);

    mock.script([Trouble::StoredNoAnswer]);
    assert!(post("k1").await.is_err());
    assert_eq!(mock.message_count(), 1);
    assert_eq!(post("k1").await.unwrap().status, 202, "kept under the key");

    mock.script([Trouble::StoredThenStatus(500)]);
    assert_eq!(post("k2").await.unwrap().status, 500);
    assert_eq!(mock.message_count(), 2);
    assert_eq!(post("k2").await.unwrap().status, 409, "not kept");

    mock.script([Trouble::StoredThenGarbage]);
    let broken = post("k3").await.unwrap();
    assert_eq!(broken.status, 202);
    assert!(serde_json::from_str::<Value>(&broken.body).is_err());
    assert_eq!(mock.message_count(), 3);

    let requests = mock.requests();
    assert_eq!((requests[0].status, requests[0].answered_at), (None, None));
    assert_eq!(requests[1].status, None);
    assert!(requests[1].stored.is_some() && requests[2].replayed);
    assert_eq!(requests[3].trouble, Trouble::StoredThenStatus(500));
}

#[tokio::test]
async fn a_slow_answer_holds_up_nobody_else() {
    let (mock, raw) = acme().await;
    let delay = Duration::from_millis(600);
    mock.script([Trouble::Slow(delay)]);
    let start = Instant::now();
    let first = body("evt_1");
    let slow = raw.post(MESSAGES, None, &first);
    let others = async {
        mock.wait_for_messages(1, SECOND).await.unwrap();
        raw.post(MESSAGES, None, &body("evt_2")).await;
        start.elapsed()
    };
    let (answer, quick) = tokio::join!(slow, others);
    assert_eq!(answer.status, 202);
    assert!(quick < delay && start.elapsed() >= delay);
    let slow = &mock.requests()[0];
    assert!(slow.answered_at.unwrap() >= slow.received_at + delay);
}

#[tokio::test]
async fn watchers_are_told() {
    let mock = MockSvix::builder().create_applications(true).start().await;
    let raw = Raw::new(&mock);
    let mut events = mock.subscribe();
    mock.script([Trouble::Pass, Trouble::StoredThenStatus(500), Trouble::Pass]);
    for (key, event_id) in [("a", "a"), ("b", "b"), ("a", "a"), ("c", "a")] {
        raw.post(MESSAGES, Some(key), &body(event_id)).await;
    }
    mock.script([Trouble::throttle(1)]);
    raw.post(MESSAGES, None, &body("d")).await;
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(match event {
            MockEvent::ApplicationCreated { app } => format!("app {app}"),
            MockEvent::Stored(message) => format!("stored {}", message.event_id.as_ref().unwrap()),
            MockEvent::Replayed(request) => format!("replayed {}", request.app),
            MockEvent::Conflict(_) => "conflict".to_owned(),
            MockEvent::Throttled(request) => format!("throttled {:?}", request.retry_after),
            MockEvent::Failed(request) => format!("failed {:?}", request.status),
        });
    }
    assert_eq!(
        seen,
        [
            "app acme",
            "stored a",
            "stored b",
            "failed Some(500)",
            "replayed acme",
            "conflict",
            r#"throttled Some("1")"#,
        ]
    );

    mock.wait_for_requests(5, SECOND).await.unwrap();
    let wait = Duration::from_millis(20);
    let too_few = TooFew { what: "messages", wanted: 3, got: 2, timeout: wait };
    assert_eq!(mock.wait_for_messages(3, wait).await, Err(too_few));
    mock.clear();
    assert_eq!((mock.message_count(), mock.request_count()), (0, 0));
    assert!(mock.messages().is_empty() && mock.requests().is_empty());
    let answer = raw.post(MESSAGES, Some("a"), &body("a")).await;
    assert_eq!(answer.status, 202);
    assert_eq!(mock.message_count(), 1);
}
