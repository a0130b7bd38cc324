//! Replays toward Svix: what it has it sends again itself, what it lost is posted.

use super::*;

on_both_databases! {
    what_svix_has_it_sends_again_and_what_it_lost_is_posted,
    a_message_under_its_key_is_found_there,
    a_retry_of_a_failed_replay_gives_svix_what_it_lost,
}

async fn what_svix_has_it_sends_again_and_what_it_lost_is_posted(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    post(&relay, (0..10).map(|n| format!("e{n}"))).await;
    relay.settled().await;
    for endpoint in ["ep_one", "ep_two"] {
        svix.add_endpoint("acme", endpoint);
    }
    for lost in ["e3", "e4"] {
        assert!(svix.remove_message("acme", lost));
    }
    let stored = svix.message_count();
    // The endpoint's second page, and a retry in the middle: nothing is doubled by it.
    let replay = replay(&relay, json!({ "tenant": "acme", "states": ["delivered"] })).await;
    assert_eq!(replay["delivered"], 10, "{replay}");
    // The first key's answer is still kept: posted under that, Svix would only have repeated itself.
    assert_eq!(svix.message_count(), stored + 2);
    for lost in ["e3", "e4"] {
        let message = svix.message("acme", lost).expect("it is back");
        let key = message.idempotency_key.as_deref().expect("a key");
        assert!(key.starts_with("ph1_") && key.ends_with("_r1"), "{key}");
    }
    let mut resent: Vec<_> = svix
        .resent()
        .into_iter()
        .map(|resent| (resent.event_id.unwrap_or_default(), resent.endpoint))
        .collect();
    resent.sort();
    let mut expected: Vec<_> = (0..10)
        .filter(|n| ![3, 4].contains(n))
        .flat_map(|n| ["ep_one", "ep_two"].map(|endpoint| (format!("e{n}"), endpoint.to_owned())))
        .collect();
    expected.sort();
    assert_eq!(resent, expected);
    let keys: std::collections::HashSet<_> =
        svix.resent().into_iter().filter_map(|resent| resent.idempotency_key).collect();
    assert_eq!(keys.len(), 16, "one for each");
    let again = self::replay(&relay, json!({ "tenant": "acme", "events": [{ "id": "e3" }] })).await;
    assert_eq!(again["delivered"], 1);
    assert_eq!(svix.resent().len(), 18, "a later replay is another one");
    relay.finish().await;
}

async fn a_message_under_its_key_is_found_there(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    // Two sources may use one id, and Svix takes it once.
    for source in ["one", "two"] {
        let event = json!({ "id": "e", "type": "t", "source": source, "data": { "from": source } });
        assert_eq!(relay.post(event.to_string()).await.status, 202);
        relay.settled().await;
    }
    svix.add_endpoint("acme", "ep_one");
    let stored = svix.messages();
    assert_eq!(stored.len(), 2);
    let second =
        stored.iter().find(|message| message.event_id.as_deref() != Some("e")).expect("under its key");
    let both = replay(&relay, json!({ "tenant": "acme", "events": [{ "id": "e" }] })).await;
    assert_eq!(both["delivered"], 2, "{both}");
    assert_eq!((svix.message_count(), svix.resent().len()), (2, 2));
    assert!(svix.remove_message("acme", &second.id));
    let lost = replay(&relay, json!({ "tenant": "acme", "events": [{ "id": "e", "source": "two" }] })).await;
    assert_eq!(lost["delivered"], 1, "{lost}");
    let back = svix.message("acme", second.event_id.as_deref().expect("the key")).expect("it is back");
    assert_eq!(back.payload, second.payload);
    relay.finish().await;
}

async fn a_retry_of_a_failed_replay_gives_svix_what_it_lost(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    post(&relay, ["e".to_owned()]).await;
    relay.settled().await;
    assert!(svix.remove_message("acme", "e"));
    // Svix refuses it for good this once.
    svix.script([posthaste::mock::Trouble::Status(422)]);
    let failed = replay(&relay, json!({ "tenant": "acme", "states": ["delivered"] })).await;
    assert_eq!((&failed["queued"], &failed["failed"]), (&json!(1), &json!(1)), "{failed}");
    let delivery =
        database.text("SELECT 'dlv_' || event || '_' || lane FROM outcome WHERE state = 'dead'").await;
    // Svix still has the answer that it gave to the first key.
    let path = format!("/v1/deliveries/{delivery}/retry");
    assert_eq!(relay.send(Method::POST, &path, &JSON, "").await.status, 200);
    let progress = relay.settled().await;
    assert_eq!(progress.done, HashMap::from([("delivered".to_owned(), 1)]));
    let message = svix.message("acme", "e").expect("what is delivered is at Svix");
    let key = message.idempotency_key.as_deref().expect("a key");
    assert!(key.starts_with("ph1_") && key.ends_with("_r1"), "{key}");
    relay.finish().await;
}
