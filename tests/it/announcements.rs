//! Our own events: bounded in rate, to those who have asked, and never about themselves.

use std::collections::HashSet;
use std::time::Duration;

use posthaste::mock::{MockPartner, PartnerAnswer, Trouble};
use serde_json::{Value, json};

use crate::support::partners::{MASTER_KEY, add_endpoint, direct};
use crate::support::{TestClock, TestDatabase, TestRelay, config, eventually, mock_svix};

const MINUTE: Duration = Duration::from_secs(60);

fn event(n: usize) -> Value {
    json!({"id": format!("evt_{n}"), "tenant": "acme", "type": "order.created", "data": {}})
}

/// What an operator's endpoint was told of this type.
fn told(operator: &MockPartner, event_type: &str) -> Vec<Value> {
    let requests = operator.requests().into_iter();
    let events = requests.map(|request| serde_json::from_slice::<Value>(&request.body).expect("JSON"));
    events.filter(|event| event["type"] == event_type).map(|event| event["data"].clone()).collect()
}

async fn a_flood_of_deaths_is_told_in_one_event_a_minute(database: TestDatabase) {
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let relay = TestRelay::start_at(direct(&database, &svix), clock.clone()).await;
    let (partner, operator) = (MockPartner::start().await, MockPartner::start().await);
    partner.set_answer(Some(PartnerAnswer::status(400)));
    let sick = json!({"url": partner.url("/"), "retry_schedule_ms": [], "event_types": ["order.*"]});
    let (id, _) = add_endpoint(&relay, "crm", sick).await;
    let own = json!({"url": operator.url("/"), "event_types": ["posthaste.delivery.dead"], "retry_schedule_ms": []});
    add_endpoint(&relay, "operations", own).await;
    let post = async |range: std::ops::Range<usize>| {
        for n in range {
            assert_eq!(relay.post(event(n).to_string()).await.status, 202);
        }
    };
    let count =
        |told: &[Value]| told.iter().map(|data| data["count"].as_u64().expect("a count")).sum::<u64>();
    post(0..1).await;
    let first = eventually("the first is told at once", async || {
        let told = told(&operator, "posthaste.delivery.dead");
        (told.len() == 1).then_some(told)
    })
    .await;
    assert_eq!((&first[0]["endpoint"], &first[0]["partner"]), (&json!(id), &json!("crm")));
    assert_eq!((&first[0]["count"], &first[0]["reasons"]), (&json!(1), &json!({"retries_exhausted": 1})));
    assert_eq!(first[0]["events"], json!([{"tenant": "acme", "id": "evt_0"}]));
    post(1..41).await;
    relay.settled().await;
    clock.pass(MINUTE);
    let both = eventually("the others are told together", async || {
        let told = told(&operator, "posthaste.delivery.dead");
        (count(&told) >= 41).then_some(told)
    })
    .await;
    assert_eq!((both.len(), count(&both)), (2, 41));
    assert_eq!(both[1]["events"].as_array().map(Vec::len), Some(10));
    // Now the operator's endpoint dies, too: that is not told, whoever asks.
    let watcher = MockPartner::start().await;
    let all = json!({"url": watcher.url("/"), "event_types": ["posthaste.*"]});
    add_endpoint(&relay, "watchers", all).await;
    operator.set_answer(Some(PartnerAnswer::status(500)));
    clock.pass(MINUTE);
    post(41..42).await;
    eventually("one more is told", async || {
        (told(&watcher, "posthaste.delivery.dead").len() == 1).then_some(())
    })
    .await;
    let dead = relay.settled().await.done["dead"];
    assert_eq!(dead, 43, "what was posted, and what the operator's endpoint refused");
    for _ in 0..3 {
        clock.pass(MINUTE);
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    let about: HashSet<_> = told(&watcher, "posthaste.delivery.dead")
        .iter()
        .map(|data| data["endpoint"].as_str().expect("one").to_owned())
        .collect();
    assert_eq!(about, HashSet::from([id]));
    assert_eq!(told(&watcher, "posthaste.delivery.dead").len(), 1);
    relay.finish().await;
}

async fn a_closing_is_told_once(database: TestDatabase) {
    let (svix, clock) = (mock_svix().await, TestClock::new());
    let mut config = config(&database, &svix);
    config.master_key = Some(MASTER_KEY.to_owned().into());
    config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
    let relay = TestRelay::start_at(config, clock.clone()).await;
    let operator = MockPartner::start().await;
    let own = json!({"url": operator.url("/"), "event_types": ["posthaste.gate.closed"]});
    add_endpoint(&relay, "operations", own).await;
    // Asked to slow down three times in a row: it stays closed.
    svix.script([Trouble::throttle(1), Trouble::throttle(1), Trouble::throttle(1)]);
    assert_eq!(relay.post(event(0).to_string()).await.status, 202);
    let pass_on = async || {
        clock.pass(Duration::from_secs(2));
        (relay.progress().await.pending == 0).then_some(())
    };
    eventually("Svix takes it in the end", pass_on).await;
    let told = eventually("the closing is told", async || {
        let told = told(&operator, "posthaste.gate.closed");
        (!told.is_empty()).then_some(told)
    })
    .await;
    assert_eq!((told.len(), &told[0]["destination"]), (1, &json!("svix")));
    assert_eq!((&told[0]["reason"], &told[0]["endpoint"]), (&json!("throttled"), &Value::Null));
    relay.finish().await;
}

on_both_databases!(a_flood_of_deaths_is_told_in_one_event_a_minute, a_closing_is_told_once);
