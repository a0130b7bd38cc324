//! Straight to partners: who gets what, signed, reshaped, retried, disabled.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerAnswer, PartnerRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::partners::{JSON, OTHER_MASTER_KEY, add_endpoint, call, direct, verify};
use crate::support::{RelayProcess, TestDatabase, TestRelay, mock_svix};

fn event(id: usize, tenant: &str, event_type: &str) -> Value {
    json!({"id": format!("evt_{id}"), "tenant": tenant, "type": event_type, "data": {"n": id, "card": "4111"}})
}

async fn every_endpoint_gets_its_set_signed_and_reshaped(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    let transform = |name: &str| json!({"omit": ["/data/card"], "set": {"/for": name}});
    let wanted: [(&str, &str, Option<&str>, &[&str]); 5] = [
        ("crm", "/all", None, &["*"]),
        ("crm", "/orders", None, &["order.*"]),
        ("erp", "/paid", Some("acme"), &["order.paid", "invoice.paid"]),
        ("erp", "/globex", Some("globex"), &["*"]),
        ("bi", "/users", None, &["user.*", "order.created"]),
    ];
    let mut secrets = HashMap::new();
    for (name, path, tenant, types) in wanted {
        let settings = json!({
            "url": partner.url(path), "tenant": tenant, "event_types": types, "transform": transform(path),
        });
        secrets.insert(path, add_endpoint(&relay, name, settings).await.1);
    }
    let types = [
        "order.created",
        "order.paid",
        "order.shipped",
        "invoice.sent",
        "invoice.paid",
        "user.created",
        "user.deleted",
        "ping",
    ];
    let tenants = ["acme", "globex", "initech"];
    let events: Vec<_> = (0..1_000).map(|n| event(n, tenants[n % 3], types[n % 8])).collect();
    for chunk in events.chunks(100) {
        assert_eq!(relay.post(json!(chunk).to_string()).await.status, 202);
    }
    let progress = relay.finish().await;
    assert_eq!(progress.done.keys().collect::<Vec<_>>(), ["delivered"]);
    for (_, path, tenant, filters) in wanted {
        let takes = |event_type: &str| {
            filters.iter().any(|filter| match filter.strip_suffix(".*") {
                Some(prefix) => event_type.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
                None => *filter == "*" || *filter == event_type,
            })
        };
        let expected: HashSet<String> = events
            .iter()
            .filter(|event| tenant.is_none_or(|tenant| event["tenant"] == tenant))
            .filter(|event| takes(event["type"].as_str().expect("a type")))
            .map(|event| event["id"].as_str().expect("an id").to_owned())
            .collect();
        let got = partner.requests_to(path);
        let ids: HashSet<String> = got.iter().map(|request| reshaped(request, path)).collect();
        assert_eq!((got.len(), &ids), (expected.len(), &expected), "{path}");
        got.iter().for_each(|request| verify(request, &secrets[path]));
    }
}

/// The event's id, after a look at what the transform has made of it.
fn reshaped(request: &PartnerRequest, path: &str) -> String {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(body["for"], path);
    assert!(body["data"].get("card").is_none() && body["data"]["n"].is_number(), "{body}");
    body["id"].as_str().expect("an id").to_owned()
}

async fn two_failures_then_success_are_three_attempts_of_one_webhook(database: TestDatabase) {
    // holds: 31, 36
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    // More than a second also where the jitter takes a fifth off: timestamps are in seconds.
    let settings = json!({"url": partner.url("/"), "retry_schedule_ms": [1_300, 1_300]});
    let (_, secret) = add_endpoint(&relay, "crm", settings).await;
    partner.script([500, 302].map(PartnerAnswer::status));
    relay.post(event(1, "acme", "order.created").to_string()).await;
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 1);
    let requests = partner.requests();
    assert_eq!(requests.len(), 3);
    let distinct =
        |name: &str| requests.iter().map(|request| request.header(name)).collect::<HashSet<_>>().len();
    assert_eq!((distinct("webhook-id"), distinct("webhook-timestamp")), (1, 3));
    requests.iter().for_each(|request| verify(request, &secret));
}

async fn gone_disables_at_once_and_tells(database: TestDatabase) {
    // holds: 31
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let (partner, operator) = (MockPartner::start().await, MockPartner::start().await);
    let (id, _) = add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    let own = json!({"url": operator.url("/"), "event_types": ["posthaste.endpoint.disabled"]});
    add_endpoint(&relay, "operations", own).await;
    partner.set_answer(Some(PartnerAnswer::status(410)));
    relay.post(json!([event(1, "acme", "a"), event(2, "acme", "a")]).to_string()).await;
    assert!(operator.wait_for(1, Duration::from_secs(10)).await, "the operator is told");
    let told: Value = serde_json::from_slice(&operator.requests()[0].body).expect("JSON");
    assert_eq!(
        (&told["type"], &told["data"]["reason"]),
        (&json!("posthaste.endpoint.disabled"), &json!("gone"))
    );
    assert_eq!(told["data"]["endpoint"], id.as_str());
    relay.settled().await;
    let mut reasons = Vec::new();
    for id in ["evt_1", "evt_2"] {
        let outcomes = relay.app().ledger().database().outcomes("acme", id).await.expect("read");
        reasons.push(outcomes[0].reason.clone().expect("dead"));
    }
    // The second was in flight beside the first, or was not sent any more.
    assert!(reasons.contains(&"gone".to_owned()), "{reasons:?}");
    assert!(reasons.iter().all(|reason| ["gone", "endpoint_disabled"].contains(&&**reason)), "{reasons:?}");
    // Nothing is routed there any more, until somebody enables it.
    relay.post(event(3, "acme", "a").to_string()).await;
    let progress = relay.settled().await;
    assert_eq!(progress.unrouted, 1);
    partner.set_answer(None);
    call(&relay, Method::POST, &format!("/v1/endpoints/{id}/enable"), json!({})).await;
    relay.post(event(4, "acme", "a").to_string()).await;
    relay.finish().await;
    assert_eq!(partner.requests().last().map(|request| request.status), Some(204));
}

async fn a_throttle_is_the_endpoints_own(database: TestDatabase) {
    // holds: 31
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    for path in ["/slow", "/fast"] {
        add_endpoint(&relay, "crm", json!({"url": partner.url(path), "retry_schedule_ms": []})).await;
    }
    partner.script([PartnerAnswer::status(429).header("Retry-After", "1")]);
    relay.post(event(1, "acme", "a").to_string()).await;
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 2, "a throttle costs no failure");
    let requests = partner.requests();
    let throttled = requests.iter().find(|request| request.status == 429).expect("one");
    let again = requests.iter().rfind(|request| request.path == throttled.path).expect("again");
    let wait = again.received_at - throttled.received_at;
    assert!(wait >= Duration::from_millis(990), "{wait:?}");
    let other = requests.iter().find(|request| request.path != throttled.path).expect("the other");
    assert!(other.received_at - requests[0].received_at < Duration::from_millis(500), "nobody else waits");
}

async fn a_paused_partner_waits_and_a_limited_one_is_limited(database: TestDatabase) {
    // holds: 40 (one node)
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    let set = async |settings: Value| call(&relay, Method::PUT, "/v1/partners/crm", settings).await;
    set(json!({"name": "CRM", "paused": true})).await;
    let events: Vec<_> = (0..20).map(|n| event(n, "acme", "a")).collect();
    relay.post(json!(events).to_string()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((partner.request_count(), relay.progress().await.pending), (0, 20));
    set(json!({"name": "CRM", "rate_limit": {"per_second": 10, "burst": 5}})).await;
    assert!(partner.wait_for(20, Duration::from_secs(10)).await);
    let requests = partner.requests();
    let took = requests[19].received_at - requests[0].received_at;
    // 5 at once, 15 more at 10 a second.
    assert!(took >= Duration::from_millis(1_400) && took < Duration::from_secs(4), "{took:?}");
    relay.finish().await;
}

async fn an_endpoint_that_must_prove_itself_gets_nothing_before(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    partner.set_answers_challenges(false);
    let settings = json!({"name": "CRM", "verify_endpoints": true});
    call(&relay, Method::PUT, "/v1/partners/crm", settings).await;
    let endpoint = json!({"url": partner.url("/")});
    let made = call(&relay, Method::POST, "/v1/partners/crm/endpoints", endpoint).await.json();
    assert!(partner.wait_for(1, Duration::from_secs(10)).await, "it is asked");
    relay.post(event(1, "acme", "a").to_string()).await;
    assert_eq!(relay.settled().await.unrouted, 1);
    partner.set_answers_challenges(true);
    // Saving the endpoint sends the next challenge immediately.
    let path = format!("/v1/endpoints/{}", made["id"].as_str().expect("an id"));
    call(&relay, Method::PATCH, &path, json!({"timeout_ms": 14_000})).await;
    assert!(partner.wait_for(2, Duration::from_secs(10)).await, "it is asked again");
    let mut id = 2;
    while partner.request_count() < 3 {
        assert!(id < 200, "it gets events once it has proved itself");
        relay.post(event(id, "acme", "a").to_string()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        id += 1;
    }
    relay.finish().await;
}

on_both_databases!(
    every_endpoint_gets_its_set_signed_and_reshaped,
    two_failures_then_success_are_three_attempts_of_one_webhook,
    gone_disables_at_once_and_tells,
    a_throttle_is_the_endpoints_own,
    a_paused_partner_waits_and_a_limited_one_is_limited,
    an_endpoint_that_must_prove_itself_gets_nothing_before,
);

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_does_not_open_nothing_is_lost() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let partner = MockPartner::start().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let settings = json!({
        "url": partner.url("/"), "retry_schedule_ms": [500, 500],
        "event_types": ["a", "b.*"], "headers": {"X-Token": "canary"},
    });
    add_endpoint(&relay, "crm", settings).await;
    partner.script([PartnerAnswer::status(500)]);
    relay.post(event(1, "acme", "a").to_string()).await;
    assert!(partner.wait_for(1, Duration::from_secs(10)).await);
    relay.stop().await;
    let mut other_key = direct(&database, &svix);
    other_key.master_key = Some(OTHER_MASTER_KEY.to_owned().into());
    let relay = TestRelay::start_with(other_key).await;
    // What it wants is not sealed: new events are its too.
    relay
        .post(json!([event(2, "acme", "b.c"), event(3, "globex", "a"), event(4, "acme", "c")]).to_string())
        .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let progress = relay.progress().await;
    assert_eq!((progress.pending, progress.done.len(), partner.request_count()), (3, 0, 1));
    assert_eq!(progress.unrouted, 1);
    relay.stop().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let progress = relay.finish().await;
    assert_eq!(progress.done["delivered"], 3);
    let ids = partner.requests().into_iter().filter(|request| request.status == 204).map(|request| {
        assert_eq!(request.header("x-token"), "canary");
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        body["id"].as_str().expect("an id").to_owned()
    });
    assert_eq!(ids.collect::<HashSet<_>>(), HashSet::from(["evt_1", "evt_2", "evt_3"].map(str::to_owned)));
}

/// A partner that answers every connection with `head` and then says nothing, or goes on for ever.
async fn rude_partner(head: &'static str, endless: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(head.as_bytes()).await;
                while endless && stream.write_all(b"400\r\n").await.is_ok() {
                    let chunk = [b'x'; 0x400];
                    if stream.write_all(&chunk).await.is_err() || stream.write_all(b"\r\n").await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_partner_and_an_endless_body_hold_nobody_up() {
    // holds: 32, 33
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    let hanging = rude_partner("", false).await;
    let endless = rude_partner("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).await;
    let settings = json!({"url": hanging, "timeout_ms": 500, "retry_schedule_ms": []});
    add_endpoint(&relay, "hanging", settings).await;
    add_endpoint(&relay, "endless", json!({"url": endless, "retry_schedule_ms": []})).await;
    // Says 200 and leaves its body out: the head has told, although the endpoint's time runs out.
    let halting = rude_partner("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false).await;
    let settings = json!({"url": halting, "timeout_ms": 100, "retry_schedule_ms": []});
    add_endpoint(&relay, "halting", settings).await;
    add_endpoint(&relay, "fine", json!({"url": partner.url("/")})).await;
    let began = std::time::Instant::now();
    let events: Vec<_> = (0..50).map(|n| event(n, "acme", "a")).collect();
    relay.post(json!(events).to_string()).await;
    assert!(partner.wait_for(50, Duration::from_secs(10)).await);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1_500), "the others took {took:?}");
    let progress = relay.finish().await;
    // The endless one and the halting one said 200; the hanging one said nothing.
    assert_eq!((progress.done["delivered"], progress.done["dead"]), (150, 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_when_saved_and_when_dialled() {
    // holds: 42
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let sentinel = MockPartner::start().await;
    let mut closed = direct(&database, &svix);
    closed.direct.allowed_networks = Vec::new();
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    add_endpoint(&relay, "crm", json!({"url": sentinel.url("/"), "retry_schedule_ms": []})).await;
    relay.stop().await;
    // The network is allowed no longer: what was saved is not dialled either.
    let relay = TestRelay::start_with(closed).await;
    relay.post(event(1, "acme", "a").to_string()).await;
    let progress = relay.settled().await;
    assert_eq!(progress.done["dead"], 1);
    let log = relay.app().ledger().database().attempt_log("acme", "evt_1").await.expect("read");
    assert!(
        log[0].1.contains("refused") || log[0].1.contains("forbidden") || log[0].1.contains("not_https"),
        "{log:?}"
    );
    let url = json!({"url": "https://127.0.0.1/"});
    let saved = relay.send(Method::POST, "/v1/partners/crm/endpoints", &JSON, url.to_string()).await;
    assert_eq!(saved.status, 422, "{}", saved.json());
    assert_eq!(sentinel.request_count(), 0);
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_partners_200_it_sends_the_same_webhook_once_more() {
    // holds: 36
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let partner = MockPartner::start().await;
    let variables = [("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8")];
    let relay = RelayProcess::start(&database, &svix, &variables);
    add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    // The partner has it, and the answer is still on its way when the relay dies.
    let late = PartnerAnswer { delay: Duration::from_secs(5), ..PartnerAnswer::status(200) };
    partner.script([late]);
    assert_eq!(relay.post(event(1, "quiet", "a").to_string()).await.status, 202);
    assert!(partner.wait_for(1, Duration::from_secs(10)).await);
    relay.kill();
    let relay = RelayProcess::start(&database, &svix, &variables);
    assert!(partner.wait_for(2, Duration::from_secs(20)).await, "it is sent again");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let requests = partner.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_event_says_what_came_back_and_rotation_signs_with_both() {
    // holds: 44
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let partner = MockPartner::start().await;
    let (id, old) = add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    let rotated = call(&relay, Method::POST, &format!("/v1/endpoints/{id}/secret/rotate"), json!({})).await;
    let new = rotated.json()["secret"].as_str().expect("a secret").to_owned();
    assert_ne!(old, new);
    partner.script([PartnerAnswer { body: "teapot".into(), ..PartnerAnswer::status(418) }]);
    let test =
        async || call(&relay, Method::POST, &format!("/v1/endpoints/{id}/test"), json!({})).await.json();
    let failed = test().await;
    assert_eq!((&failed["status"], &failed["body_excerpt"]), (&json!(418), &json!("teapot")));
    assert!(!failed["error"].is_null());
    let fine = test().await;
    assert_eq!((&fine["status"], &fine["error"]), (&json!(204), &Value::Null));
    for request in partner.requests() {
        verify(&request, &old);
        verify(&request, &new);
    }
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_way_to_svix_is_reshaped_too() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    let route = json!({"route": "svix", "transform": {"omit": ["/data/card"]}});
    call(&relay, Method::PUT, "/v1/tenants/acme", route).await;
    relay.post(event(1, "acme", "a").to_string()).await;
    relay.post(event(2, "globex", "a").to_string()).await;
    relay.finish().await;
    assert!(!svix.message("acme", "evt_1").expect("there").payload.contains("4111"));
    assert!(svix.message("globex", "evt_2").expect("there").payload.contains("4111"));
}

#[tokio::test(flavor = "multi_thread")]
async fn posthastes_own_types_are_nobody_elses() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    let answer = relay.post(event(1, "acme", "posthaste.endpoint.disabled").to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid_events"));
    relay.finish().await;
}
