//! What became of events: lists, stories, and what operators do about them.

mod explain;
mod steering;

use axum::http::Method;
use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{self, Delivery, Outcome, Settlement, Timing};
use posthaste::domain::retry::RetrySchedule;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer};
use serde_json::{Value, json};

use crate::admin::Document;
use crate::support::partners::{add_endpoint, call, direct};
use crate::support::{Answer, TestClock, TestDatabase, TestRelay, eventually, mock_svix};

on_both_databases! {
    an_events_story_is_told_whole,
    events_and_deliveries_are_listed_by_filter,
    lists_are_walked_page_by_page,
}

/// A relay without Svix, a partner with an endpoint for every tenant, and the document that answers are held against.
pub struct Place {
    pub relay: TestRelay,
    pub partner: MockPartner,
    pub endpoint: String,
    document: Document,
    _svix: MockSvix,
}

impl Place {
    /// `endpoint`: its settings beside its URL.
    pub async fn start(database: &TestDatabase, mut endpoint: Value) -> Self {
        let svix = mock_svix().await;
        let relay = TestRelay::start_with(direct(database, &svix)).await;
        let partner = MockPartner::start().await;
        endpoint["url"] = partner.url("/hook").into();
        let (endpoint, _) = add_endpoint(&relay, "globex", endpoint).await;
        let document = Document::of(&relay).await;
        Self { relay, partner, endpoint, document, _svix: svix }
    }

    /// Calls and checks the answer against the document. `template` has `{…}` where `path` has values.
    pub async fn ask(&self, method: Method, template: &str, path: &str) -> Answer {
        let answer = self.relay.send(method.clone(), path, &[], "").await;
        self.document.check(&method, template, &answer);
        answer
    }

    pub async fn get(&self, template: &str, path: &str) -> Value {
        let answer = self.ask(Method::GET, template, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    pub async fn events(&self, query: &str) -> Value {
        self.get("/v1/events", &format!("/v1/events?{query}")).await
    }

    pub async fn deliveries(&self, query: &str) -> Value {
        self.get("/v1/deliveries", &format!("/v1/deliveries?{query}")).await
    }

    pub async fn story(&self, tenant: &str, id: &str) -> Value {
        self.get("/v1/events/{tenant}/{id}", &format!("/v1/events/{tenant}/{id}")).await
    }

    /// Waits until the event stands so; its story then.
    pub async fn until(&self, tenant: &str, id: &str, state: &str) -> Value {
        let look = async || {
            let story = self.story(tenant, id).await;
            (story["state"] == state).then_some(story)
        };
        eventually(&format!("{id} is {state}"), look).await
    }

    pub async fn post(&self, events: Value) {
        let answer = self.relay.post(events.to_string()).await;
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
    }

    pub async fn act(&self, delivery: &str, action: &str) -> Answer {
        let template = format!("/v1/deliveries/{{id}}/{action}");
        self.ask(Method::POST, &template, &format!("/v1/deliveries/{delivery}/{action}")).await
    }
}

/// What is recorded when an attempt on `delivery` comes to `outcome` now.
fn settlement(delivery: &Delivery, outcome: Outcome, clock: &TestClock) -> Settlement {
    let schedule = RetrySchedule::new(Vec::new());
    let timing = Timing { at: clock.now(), latency: std::time::Duration::ZERO, chance: 0.5 };
    delivery::settle(delivery, outcome, true, &schedule, timing)
}

pub fn event(tenant: &str, id: &str, event_type: &str) -> Value {
    json!({"id": id, "type": event_type, "tenant": tenant, "data": {"total": 1}})
}

fn ids(list: &Value, name: &str, member: &str) -> Vec<String> {
    let entries = list[name].as_array().expect("a list");
    entries.iter().map(|entry| entry[member].as_str().expect("a text").to_owned()).collect()
}

async fn an_events_story_is_told_whole(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": [1, 3_600_000]})).await;
    let long = "é".repeat(600);
    let refusal = PartnerAnswer { body: long.clone(), ..PartnerAnswer::status(500) };
    place.partner.script([PartnerAnswer::status(418), refusal, PartnerAnswer::status(201)]);
    // Any character may stand in an id.
    let id = "a/b ü?%";
    let path = "a%2Fb%20%C3%BC%3F%25";
    let text = event("acme", id, "order.paid").to_string();
    assert_eq!(place.relay.post(text.clone()).await.status, 202);
    let waits = async || {
        let story = place.story("acme", path).await;
        (story["deliveries"][0]["attempts"].as_array()?.len() == 2).then_some(story)
    };
    let story = eventually("two attempts", waits).await;
    assert_eq!((&story["id"], &story["tenant"], &story["source"]), (&json!(id), &json!("acme"), &json!("")));
    assert_eq!((&story["state"], &story["type"]), (&json!("pending"), &json!("order.paid")));
    assert_eq!(story["size_bytes"], text.len());
    let delivery = &story["deliveries"][0];
    let destination =
        json!({"kind": "endpoint", "endpoint": place.endpoint, "partner": "globex", "host": "127.0.0.1"});
    assert_eq!(delivery["destination"], destination);
    let attempts = delivery["attempts"].as_array().expect("attempts");
    assert_eq!((&attempts[0]["status"], &attempts[0]["code"]), (&json!(418), &json!("http_418")));
    assert_eq!(
        (&attempts[1]["n"], &attempts[1]["detail"]),
        (&json!(2), &json!("é".repeat(512))),
        "the first KiB"
    );
    assert_eq!(delivery["waits_for"]["reason"], "backoff");
    assert_eq!(delivery["waits_for"]["until"], delivery["due_at"]);
    assert_eq!(delivery["waits_for"]["until"], attempts[1]["retry_at"]);
    let id_of = delivery["id"].as_str().expect("an id").to_owned();
    let alone = place.get("/v1/deliveries/{id}", &format!("/v1/deliveries/{id_of}")).await;
    assert_eq!(alone["attempts"], delivery["attempts"]);

    // Now, and not in an hour.
    let again = place.act(&id_of, "retry").await;
    assert_eq!(again.status, 200, "{}", again.json());
    let story = place.until("acme", path, "delivered").await;
    let attempts = story["deliveries"][0]["attempts"].as_array().expect("attempts");
    assert_eq!(
        (attempts.len(), &attempts[2]["code"], &attempts[2]["status"]),
        (3, &json!("delivered"), &json!(201))
    );
    assert!(attempts[2]["at"].as_str() >= attempts[1]["at"].as_str() && attempts[2]["latency_ms"].is_u64());
    assert_eq!(story["deliveries"][0]["steering"][0]["action"], "retry");
    let conclusion = story["conclusion"].as_str().expect("a conclusion");
    assert_eq!(conclusion, format!("It reached globex ({}).", place.endpoint));
    let keys: Vec<_> =
        place.partner.requests().iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");

    let payload = place.relay.get(&format!("/v1/events/acme/{path}/payload")).await;
    assert_eq!(
        (&payload.body[..], payload.header("content-type")),
        (text.as_bytes(), Some("application/json"))
    );
    for nothing in ["nothing", "%00", "a"] {
        let path = format!("/v1/events/acme/{nothing}");
        assert_eq!(place.ask(Method::GET, "/v1/events/{tenant}/{id}", &path).await.status, 404, "{nothing}");
    }
    for nothing in ["dlv_1_1", "dlv_x", "%00", "dlv_9999999999999999999_1"] {
        let path = format!("/v1/deliveries/{nothing}");
        assert_eq!(place.ask(Method::GET, "/v1/deliveries/{id}", &path).await.status, 404, "{nothing}");
    }
    place.relay.finish().await;
}

async fn events_and_deliveries_are_listed_by_filter(database: TestDatabase) {
    let place = Place::start(
        &database,
        json!({"retry_schedule_ms": [], "tenant": "acme", "event_types": ["order.*", "bill.sent"]}),
    )
    .await;
    let (other, _) =
        add_endpoint(&place.relay, "hooli", json!({"url": place.partner.url("/other"), "tenant": "zeta"}))
            .await;
    place.post(event("acme", "good", "order.paid")).await;
    place.until("acme", "good", "delivered").await;
    place.partner.script([PartnerAnswer::status(400)]);
    place.post(event("acme", "bad", "order.line.added")).await;
    let story = place.until("acme", "bad", "dead").await;
    let words = story["conclusion"].as_str().expect("words");
    let dead = story["deliveries"][0]["id"].as_str().expect("an id");
    assert!(
        words.contains("retries_exhausted") && words.contains(&format!("posthaste retry {dead}")),
        "{words}"
    );
    call(&place.relay, Method::PUT, "/v1/partners/hooli", json!({"name": "h", "paused": true})).await;
    place.post(event("zeta", "held", "bill.sent")).await;
    place.post(event("acme", "nowhere", "bill.paid")).await;
    place.post(event("nobody", "lost", "bill.sent")).await;

    let listed = async |query: &str| ids(&place.events(query).await, "events", "id");
    assert_eq!(listed("").await, ["lost", "nowhere", "held", "bad", "good"]);
    assert_eq!(listed("tenant=acme").await, ["nowhere", "bad", "good"]);
    assert_eq!(listed("type=bill.sent").await, ["lost", "held"]);
    assert_eq!(listed("type=order.*").await, ["bad", "good"]);
    assert_eq!(listed("type=order").await, Vec::<String>::new());
    for (state, expected) in [
        ("unrouted", vec!["lost", "nowhere"]),
        ("pending", vec!["held"]),
        ("dead", vec!["bad"]),
        ("delivered", vec!["good"]),
        ("canceled", vec![]),
    ] {
        assert_eq!(listed(&format!("state={state}")).await, expected, "{state}");
    }
    assert_eq!(listed("state=dead&tenant=zeta").await, Vec::<String>::new());
    let held = place.story("zeta", "held").await;
    let at = held["received_at"].as_str().expect("a time");
    assert!(listed(&format!("since={at}")).await.contains(&"held".to_owned()));
    assert!(!listed(&format!("until={at}")).await.contains(&"held".to_owned()));
    assert_eq!(listed("since=2000-01-01T00:00:00Z&until=946684800001").await, Vec::<String>::new());

    let deliveries = async |query: &str| ids(&place.deliveries(query).await, "deliveries", "event_id");
    assert_eq!(deliveries("").await, ["held", "bad", "good"]);
    assert_eq!(deliveries("state=pending").await, ["held"]);
    assert_eq!(deliveries("state=dead").await, ["bad"]);
    assert_eq!(deliveries("state=delivered&partner=globex").await, ["good"]);
    assert_eq!(deliveries("partner=hooli").await, ["held"]);
    assert_eq!(deliveries(&format!("endpoint={other}&state=pending&tenant=zeta")).await, ["held"]);
    assert_eq!(deliveries(&format!("endpoint={other}&partner=globex")).await, Vec::<String>::new());
    assert_eq!(deliveries("endpoint=ep_none&state=pending").await, Vec::<String>::new());
    assert_eq!(deliveries("state=pending&until=2000-01-01T00:00:00Z").await, Vec::<String>::new());
    for bad in
        ["state=lost", "since=yesterday", "limit=0", "type=*.a", "cursor=%20", "cursor=eA", "colour=red"]
    {
        let answer = place.ask(Method::GET, "/v1/events", &format!("/v1/events?{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    for bad in ["state=unrouted", "cursor=eA", "partner=%00", "endpoint=a%0Ab"] {
        let answer = place.ask(Method::GET, "/v1/deliveries", &format!("/v1/deliveries?{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    call(&place.relay, Method::PUT, "/v1/partners/hooli", json!({"name": "h"})).await;
    place.relay.finish().await;
}

async fn lists_are_walked_page_by_page(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": [3_600_000]})).await;
    add_endpoint(&place.relay, "hooli", json!({"url": place.partner.url("/other")})).await;
    place.partner.set_answer(Some(PartnerAnswer::status(500)));
    let events: Vec<_> =
        (0..23).map(|n| event(if n % 3 == 0 { "acme" } else { "zeta" }, &n.to_string(), "a")).collect();
    place.post(json!(events)).await;
    assert!(place.partner.wait_for(46, std::time::Duration::from_secs(20)).await);
    let walk = async |what: &str, query: &str, member: &str| {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/v1/{what}?limit=5{query}{cursor}");
            let page = place.get(&format!("/v1/{what}"), &path).await;
            assert!(page[what].as_array().expect("a list").len() <= 5);
            seen.extend(ids(&page, what, member));
            pages += 1;
            let Some(next) = page["next_cursor"].as_str() else { return (seen, pages) };
            cursor = format!("&cursor={next}");
        }
    };
    let newest_first: Vec<_> = (0..23).rev().map(|n| n.to_string()).collect();
    let (seen, pages) = walk("events", "", "id").await;
    assert_eq!((seen, pages), (newest_first, 5));
    let (seen, _) = walk("events", "&tenant=acme&state=pending", "id").await;
    assert_eq!(seen, ["21", "18", "15", "12", "9", "6", "3", "0"]);
    for query in ["", "&state=pending"] {
        let (mut seen, _) = walk("deliveries", query, "id").await;
        assert_eq!(seen.len(), 46, "{query}");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 46, "{query}: none twice");
    }
    let (seen, _) = walk("deliveries", "&state=pending&partner=hooli&tenant=zeta", "event_id").await;
    assert_eq!(seen.len(), 15);
    place.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_one_tenant_sees_and_touches_only_its_own() {
    // holds: 47
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = direct(&database, &svix);
    config.http.bootstrap_admin_key = Some("root".into());
    let relay = TestRelay::start_with(config).await;
    let root = ("x-api-key", "root");
    let send = async |key: (&str, &str), method: Method, path: &str, body: Value| {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        relay.send(method, path, &[key, ("content-type", "application/json")], text).await
    };
    let partner = MockPartner::start().await;
    send(root, Method::PUT, "/v1/partners/p", json!({"name": "p", "paused": true})).await;
    send(root, Method::POST, "/v1/partners/p/endpoints", json!({"url": partner.url("/")})).await;
    for tenant in ["acme", "zeta"] {
        assert_eq!(relay.post_with(&[root], event(tenant, "1", "a").to_string()).await.status, 202);
    }
    let key = async |scopes: Value| {
        let body = json!({"name": "k", "scopes": scopes, "tenant": "acme"});
        let made = send(root, Method::POST, "/v1/keys", body).await.json();
        made["key"].as_str().expect("a key").to_owned()
    };
    let (reader, admin) = (key(json!(["read"])).await, key(json!(["admin"])).await);
    let (reader, admin) = (("x-api-key", reader.as_str()), ("x-api-key", admin.as_str()));
    let get = async |key, path: &str| send(key, Method::GET, path, Value::Null).await;
    let post = async |key, path: String| send(key, Method::POST, &path, Value::Null).await.status.as_u16();
    for (path, name) in [
        ("/v1/events", "events"),
        ("/v1/deliveries", "deliveries"),
        ("/v1/deliveries?state=pending", "deliveries"),
    ] {
        let seen = ids(&get(reader, path).await.json(), name, "tenant");
        assert_eq!(seen, ["acme"], "{path}");
    }
    assert_eq!(get(reader, "/v1/events?tenant=zeta").await.problem(), "foreign_tenant");
    assert_eq!(get(reader, "/v1/events/zeta/1").await.problem(), "foreign_tenant");
    assert_eq!(get(reader, "/v1/events/zeta/1/payload").await.problem(), "foreign_tenant");
    let delivery = async |tenant: &str| {
        let story = get(root, &format!("/v1/events/{tenant}/1")).await.json();
        story["deliveries"][0]["id"].as_str().expect("an id").to_owned()
    };
    let (own, foreign) = (delivery("acme").await, delivery("zeta").await);
    assert_eq!(get(reader, &format!("/v1/deliveries/{own}")).await.status, 200);
    assert_eq!(get(reader, &format!("/v1/deliveries/{foreign}")).await.status, 404);
    for action in ["retry", "cancel"] {
        assert_eq!(post(reader, format!("/v1/deliveries/{own}/{action}")).await, 403, "{action}");
        assert_eq!(post(admin, format!("/v1/deliveries/{foreign}/{action}")).await, 404, "{action}");
        assert_eq!(post(admin, format!("/v1/deliveries/{own}/{action}")).await, 200, "{action}");
    }
    relay.stop().await;
    let left = "SELECT CAST(COUNT(*) AS TEXT) FROM queue";
    assert_eq!(database.text(left).await, "1");
}
