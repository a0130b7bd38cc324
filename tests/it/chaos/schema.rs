//! The API against its own document: requests made out of `/openapi.json`, good ones and broken ones, and every answer
//! held against what the document says of it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, MockSvix};
use serde_json::{Value, json};

use super::{sized, tell};
use crate::support::{RelayProcess, TestDatabase, eventually, mock_svix};

const KEY: &str = "ph_schema_0123456789abcdef0123456789abcdef";
/// Where schemathesis is; `scripts/test` provides it.
const PROGRAM: &str = "POSTHASTE_TEST_SCHEMATHESIS";

/// What any refusal of a broken request may be. No 5xx is among them.
const REFUSALS: &str = "400, 401, 403, 404, 405, 406, 409, 410, 412, 413, 415, 422, 428, 429";
/// What a request by the document may be answered: the state of things is not the document's to say.
const ANSWERS: &str = "\"2xx\", 401, 403, 404, 409, 410, 429";
/// Operations that may refuse a request by the document besides, for what no schema says: whether a cursor was given out
/// or a time exists (400), how the members of a body fit together, what a rule, a URL or a secret means, and that a whole
/// number is written without a fraction (422), which version `If-Match` must name (412).
const BESIDES: &[(&str, &str, &str)] = &[
    ("POST", "/notifications", "400, 422"),
    ("POST", "/api/v1/events", "400, 422"),
    ("GET", "/v1/audits/svix", "400"),
    ("GET", "/v1/deliveries", "400"),
    ("GET", "/v1/event-types", "400"),
    ("GET", "/v1/events", "400"),
    ("GET", "/v1/partners", "400"),
    ("GET", "/v1/partners/{partner}/endpoints", "400"),
    ("GET", "/v1/rejected", "400"),
    ("GET", "/v1/replays", "400"),
    ("GET", "/v1/stats", "400"),
    ("POST", "/v1/rejected/{id}/replay", "422"),
    ("POST", "/v1/keys", "422"),
    ("POST", "/v1/prune", "422"),
    ("POST", "/v1/replays", "422"),
    ("POST", "/v1/transforms/preview", "422"),
    ("POST", "/v1/partners/{partner}/endpoints", "422"),
    ("POST", "/v1/endpoints/{id}/secret/rotate", "422"),
    ("PATCH", "/v1/endpoints/{id}", "412, 422"),
    ("DELETE", "/v1/endpoints/{id}", "412"),
    ("PUT", "/v1/partners/{partner}", "412, 422"),
    ("DELETE", "/v1/partners/{partner}", "412"),
    ("PUT", "/v1/event-types/{name}", "412, 422"),
    ("PUT", "/v1/tenants/{tenant}", "422"),
    ("POST", "/v1/tenants/{tenant}/portal", "422"),
];

// holds: 9
#[tokio::test(flavor = "multi_thread")]
async fn the_api_keeps_to_its_own_document() {
    let program = std::env::var(PROGRAM).unwrap_or_else(|_| {
        panic!("{PROGRAM} must name schemathesis (a Python program): scripts/test installs it");
    });
    let (database, svix, partner) = (TestDatabase::sqlite(), mock_svix().await, MockPartner::start().await);
    let relay = start(&database, &svix);
    let url = partner.url("/hook");
    let known = populate(&relay, &url).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("schemathesis.toml");
    std::fs::write(&config, configuration(&known, &url)).unwrap();
    let document = format!("http://{}/openapi.json", relay.address());
    let place = folder.path().to_owned();
    let ran = tokio::task::spawn_blocking(move || run(&program, &config, &document, &place)).await.unwrap();
    assert!(ran.0, "{}", ran.1);
    let (operations, cases) = (figure(&ran.1, "Tested: "), figure(&ran.1, " generated"));
    assert!(operations >= 48 && cases >= 1_000, "{}", ran.1);
    // It has lived through all of it, and takes events.
    let headers = [("authorization", bearer()), ("content-type", "application/json".into())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let event = json!({ "type": "order.paid", "tenant": "acme" }).to_string();
    assert_eq!(relay.send(Method::POST, "/notifications", &headers, event).await.status, 202);
    tell("9", format!("{operations} operations, {cases} requests, no 5xx, no breach of the document"));
}

/// What the requests above have found, by name.
#[tokio::test(flavor = "multi_thread")]
async fn an_array_is_an_object_nowhere_and_no_limit_is_the_documents_alone() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = start(&database, &svix);
    let bearer = bearer();
    let status = async |method: Method, path: &str, body: &str| {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let answer = relay.send(method, path, &headers, body.to_owned()).await;
        if answer.status.is_client_error() {
            answer.problem();
        }
        answer.status.as_u16()
    };
    assert_eq!(status(Method::PUT, "/v1/partners/shop", r#"{"name":"Shop"}"#).await, 201);
    for (method, path, body) in [
        (Method::POST, "/v1/keys", r#"["n",["admin"],null]"#),
        (Method::POST, "/v1/prune", "[true]"),
        (Method::POST, "/v1/replays", "[{},true]"),
        (Method::POST, "/v1/replays", r#"{"filter":[null,null]}"#),
        (Method::POST, "/v1/replays", r#"{"filter":{"tenant":"acme","events":[["evt_1"]]}}"#),
        (Method::POST, "/v1/transforms/preview", r#"[{},1]"#),
        (Method::POST, "/v1/transforms/preview", r#"{"transform":{},"payload":1,"event":["a"]}"#),
        (Method::PUT, "/v1/tenants/acme", r#"["svix"]"#),
        (Method::PUT, "/v1/tenants/acme", r#"{"ingest_limit":[5,1]}"#),
        (Method::PUT, "/v1/tenants/acme", r#"{"retention":[1]}"#),
        (Method::PUT, "/v1/tenants/acme", r#"{"retention":{"events_days":36501}}"#),
        (Method::PUT, "/v1/tenants/acme", r#"{"retention":{"dedup_days":4294967295}}"#),
        (Method::POST, "/v1/tenants/acme/portal", "[3600]"),
        (Method::PUT, "/v1/partners/shop", r#"{"name":"Shop","rate_limit":[5,1]}"#),
        (Method::PUT, "/v1/event-types/order.paid", r#"["Paid"]"#),
        (
            Method::POST,
            "/v1/partners/shop/endpoints",
            r#"{"url":"http://127.0.0.1:9/","signature":["standard"]}"#,
        ),
        (Method::POST, "/v1/endpoints/ep_0/secret/rotate", "[1]"),
    ] {
        let status = status(method.clone(), path, body).await;
        assert!((400..=422).contains(&status) && status != 404, "{method} {path} {body}: {status}");
    }
    assert_eq!(
        status(Method::PUT, "/v1/tenants/acme", r#"{"retention":{"events_days":36500,"dedup_days":0}}"#)
            .await,
        201
    );
    // `null` says as much as no body.
    assert_eq!(status(Method::POST, "/v1/endpoints/ep_0/secret/rotate", "null").await, 404);
    assert_ne!(status(Method::POST, "/v1/tenants/acme/portal", "null").await, 400);
}

fn bearer() -> String {
    format!("Bearer {KEY}")
}

/// A relay that can be asked for everything: Svix and a partner are there, and nothing but loopback can be dialled.
fn start(database: &TestDatabase, svix: &MockSvix) -> RelayProcess {
    let variables = [
        ("POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY", KEY),
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_DIRECT__ALLOWED_PORTS", "1"),
    ];
    RelayProcess::start(database, svix, &variables)
}

/// What there is of each kind: the paths that name it, the parameter, the values.
type Known = Vec<(&'static [&'static str], &'static str, Vec<Value>)>;

/// Puts something of every kind into the relay.
async fn populate(relay: &RelayProcess, url: &str) -> Known {
    let bearer = bearer();
    let call = async |method: Method, path: &str, body: Value| {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = relay.send(method, path, &headers, body).await;
        assert!(answer.status.is_success(), "{path}: {}", String::from_utf8_lossy(&answer.body));
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    };
    call(Method::PUT, "/v1/partners/shop", json!({ "name": "Shop" })).await;
    let settings = json!({ "url": url, "retry_schedule_ms": [] });
    let endpoint = call(Method::POST, "/v1/partners/shop/endpoints", settings).await["id"].clone();
    call(Method::PUT, "/v1/event-types/order.paid", json!({ "description": "Paid" })).await;
    let events: Vec<_> =
        (0..4).map(|nth| json!({ "type": "order.paid", "id": format!("evt_{nth}") })).collect();
    call(Method::POST, "/notifications", json!(events)).await;
    for nth in 0..4 {
        let message = json!({ "data": "%%", "messageId": nth.to_string() });
        let push = json!({ "message": message, "subscription": "s" });
        call(Method::POST, "/notifications", push).await;
    }
    let replay =
        call(Method::POST, "/v1/replays", json!({ "filter": { "tenant": "acme" } })).await["id"].clone();
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(
            call(Method::POST, "/v1/keys", json!({ "name": "n", "scopes": ["read"] })).await["id"].clone(),
        );
    }
    let ids =
        |list: &Value| list.as_array().unwrap().iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>();
    let deliveries = eventually("eight deliveries", async || {
        let listed = call(Method::GET, "/v1/deliveries?limit=20", Value::Null).await;
        Some(ids(&listed["deliveries"])).filter(|ids| ids.len() == 8)
    })
    .await;
    let rejected = ids(&call(Method::GET, "/v1/rejected", Value::Null).await["rejected"]);
    let of_event = ["evt_0", "evt_1", "evt_2", "evt_3"].map(Value::from).to_vec();
    vec![
        (
            &["/v1/deliveries/{id}", "/v1/deliveries/{id}/cancel", "/v1/deliveries/{id}/retry"],
            "id",
            deliveries,
        ),
        (
            &[
                "/v1/endpoints/{id}",
                "/v1/endpoints/{id}/disable",
                "/v1/endpoints/{id}/enable",
                "/v1/endpoints/{id}/test",
                "/v1/endpoints/{id}/secret/rotate",
            ],
            "id",
            vec![endpoint],
        ),
        (&["/v1/events/{tenant}/{id}", "/v1/events/{tenant}/{id}/payload"], "id", of_event),
        (&["/v1/event-types/{name}"], "name", vec!["order.paid".into()]),
        (&["/v1/keys/{id}"], "id", keys),
        (&["/v1/rejected/{id}", "/v1/rejected/{id}/replay"], "id", rejected),
        (
            &[
                "/v1/replays/{id}",
                "/v1/replays/{id}/cancel",
                "/v1/replays/{id}/pause",
                "/v1/replays/{id}/resume",
            ],
            "id",
            vec![replay],
        ),
    ]
}

/// Every check, and for seven requests of ten what there is.
fn configuration(known: &Known, url: &str) -> String {
    let mut text = format!(
        r#"headers = {{ Authorization = "{}" }}
[checks]
negative_data_rejection.expected-statuses = [{REFUSALS}]
missing_required_header.expected-statuses = [{REFUSALS}]
positive_data_acceptance.expected-statuses = [{ANSWERS}]
[dictionaries]
tenant = {{ values = ["acme"] }}
partner = {{ values = ["shop"] }}
url = {{ values = ["{url}"] }}
"#,
        bearer()
    );
    for (nth, (_, _, values)) in known.iter().enumerate() {
        writeln!(text, "known{nth} = {{ values = {} }}", json!(values)).unwrap();
    }
    text.push_str("[parameters]\n");
    for (place, name) in [("path.tenant", "tenant"), ("path.partner", "partner"), ("body.url", "url")] {
        writeln!(text, r#""{place}" = {{ dictionary = "{name}", probability = 0.7 }}"#).unwrap();
    }
    for (nth, (paths, name, _)) in known.iter().enumerate() {
        for path in *paths {
            let bound = format!(r#""path.{name}" = {{ dictionary = "known{nth}", probability = 0.7 }}"#);
            writeln!(text, "[[operations]]\ninclude-path = \"{path}\"\nparameters = {{ {bound} }}").unwrap();
        }
    }
    for (method, path, statuses) in BESIDES {
        let allowed = format!("checks.positive_data_acceptance.expected-statuses = [{ANSWERS}, {statuses}]");
        writeln!(text, "[[operations]]\ninclude-name = \"{method} {path}\"\n{allowed}").unwrap();
    }
    text
}

/// Runs it; whether nothing was found, and what it said.
fn run(program: &str, config: &Path, document: &str, place: &Path) -> (bool, String) {
    let (examples, time) = sized((5, Duration::from_secs(45)), (200, Duration::from_secs(600)));
    let output = Command::new(program)
        .arg("--config-file")
        .arg(config)
        .args(["run", document, "--checks", "all", "--seed", "9", "--continue-on-failure", "--no-color"])
        .args(["--generation-database", "none", "--warnings", "off"])
        .args(["--max-examples", &format!("{examples}"), "--max-time", &time.as_secs().to_string()])
        .current_dir(place)
        .output()
        .expect("schemathesis runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The number that stands right behind `mark`, or right before it.
fn figure(said: &str, mark: &str) -> u64 {
    let (before, behind) = said.split_once(mark).unwrap_or_else(|| panic!("no {mark} in {said}"));
    let digits = |word: Option<&str>| word?.parse().ok();
    digits(behind.split_whitespace().next())
        .or_else(|| digits(before.split_whitespace().next_back()))
        .unwrap_or_else(|| panic!("no figure at {mark} in {said}"))
}
