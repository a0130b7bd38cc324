//! Administration of partners, endpoints and event types, every answer held against the OpenAPI document.

use axum::http::Method;
use posthaste::config::UnknownEventTypes;
use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{TestDatabase, TestRelay, config, eventually, mock_svix};

/// The OpenAPI document of a relay, and what it says of answers.
pub struct Document(Value);

impl Document {
    pub async fn of(relay: &TestRelay) -> Self {
        let answer = relay.get("/openapi.json").await;
        assert_eq!(answer.status, 200);
        Self(answer.json())
    }

    /// Fails where `answer` is none that the document promises for `method` on the path template `path`.
    pub fn check(&self, method: &Method, path: &str, answer: &Answer) {
        let operation = &self.0["paths"][path][method.as_str().to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not described");
        let responses = &operation["responses"];
        let status = answer.status.as_str();
        let response = responses.get(status).unwrap_or_else(|| {
            assert!(!answer.status.is_success(), "{method} {path}: {status} is not described");
            &responses["default"]
        });
        if answer.body.is_empty() {
            assert!(response.get("content").is_none(), "{method} {path}: {status} has no body");
            return;
        }
        let kind = answer.header("content-type").expect("a content type");
        let schema = &response["content"][kind]["schema"];
        assert!(schema.is_object(), "{method} {path}: {status} as {kind} is not described");
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .build(&schema)
            .expect("a good schema");
        let body = answer.json();
        let errors: Vec<_> =
            validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{method} {path} {status}: {errors:#?}\n{body:#}");
    }
}

/// A relay, and its document.
struct Admin {
    relay: TestRelay,
    document: Document,
}

impl Admin {
    async fn start(database: &TestDatabase) -> Self {
        let svix = mock_svix().await;
        let mut config = config(database, &svix);
        config.svix.token = None;
        config.master_key = Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into());
        Self::start_with(config).await
    }

    async fn start_with(config: posthaste::config::Config) -> Self {
        let relay = TestRelay::start_with(config).await;
        let document = Document::of(&relay).await;
        Self { relay, document }
    }

    /// Calls and checks the answer. `template` has `{…}` where `path` has values.
    async fn call(
        &self,
        method: Method,
        template: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.relay.send(method.clone(), path, &all, text).await;
        self.document.check(&method, template, &answer);
        answer
    }

    async fn put_partner(&self, id: &str, body: Value) -> Answer {
        self.call(Method::PUT, "/v1/partners/{partner}", &format!("/v1/partners/{id}"), &[], body).await
    }

    async fn add_endpoint(&self, partner: &str, body: Value) -> Answer {
        let path = format!("/v1/partners/{partner}/endpoints");
        self.call(Method::POST, "/v1/partners/{partner}/endpoints", &path, &[], body).await
    }

    async fn endpoint(&self, method: Method, id: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        self.call(method, "/v1/endpoints/{id}", &format!("/v1/endpoints/{id}"), headers, body).await
    }

    async fn act(&self, id: &str, action: &str, body: Value) -> Answer {
        let template = format!("/v1/endpoints/{{id}}/{action}");
        self.call(Method::POST, &template, &format!("/v1/endpoints/{id}/{action}"), &[], body).await
    }
}

fn pointers(answer: &Answer) -> Vec<String> {
    let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect()
}

async fn partners_are_made_changed_and_deleted(database: TestDatabase) {
    let admin = Admin::start(&database).await;
    let body = json!({"name": "Globex", "rate_limit": {"per_second": 2.5}, "max_in_flight": 8});
    let made = admin.put_partner("globex", body.clone()).await;
    assert_eq!((made.status.as_u16(), made.json()["rate_limit"]["burst"].as_u64()), (201, Some(3)));
    let etag = made.header("etag").expect("a version").to_owned();
    let path = "/v1/partners/globex";
    let template = "/v1/partners/{partner}";
    let got = admin.call(Method::GET, template, path, &[], Value::Null).await;
    assert_eq!((got.header("etag"), got.json()), (Some(etag.as_str()), made.json()));
    let put = async |if_match: &str| {
        admin.call(Method::PUT, template, path, &[("if-match", if_match)], json!({"name": "Globex 2"})).await
    };
    assert_eq!(put("\"1234567\"").await.problem(), "version_mismatch");
    let changed = put(&etag).await;
    assert_eq!((changed.status.as_u16(), changed.json()["max_in_flight"].is_null()), (200, true));
    assert_eq!(put(&etag).await.status, 412, "the version has moved on");
    assert_eq!(put("*").await.status, 200);
    let bad = admin
        .put_partner("globex", json!({"nmae": "x", "rate_limit": {"per_second": 0}, "max_in_flight": "8"}))
        .await;
    assert_eq!(bad.status, 422);
    assert_eq!(pointers(&bad), ["/name", "/rate_limit/per_second", "/max_in_flight", "/nmae"]);
    assert_eq!(admin.put_partner("a%20b", body.clone()).await.status, 422);
    for id in ["a", "b", "c"] {
        assert_eq!(admin.put_partner(id, json!({"name": id})).await.status, 201);
    }
    let page = async |query: &str| {
        let path = format!("/v1/partners{query}");
        admin.call(Method::GET, "/v1/partners", &path, &[], Value::Null).await
    };
    let (mut seen, mut query) = (Vec::new(), "?limit=3".to_owned());
    loop {
        let json = page(&query).await.json();
        let ids = json["partners"].as_array().expect("a list").clone();
        seen.extend(ids.iter().map(|partner| partner["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = json["next_cursor"].as_str() else { break };
        query = format!("?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ["a", "b", "c", "globex"]);
    for bad in ["?limit=0", "?limit=201", "?limit=x", "?cursor=%20", "?page=2"] {
        assert_eq!(page(bad).await.status, 400, "{bad}");
    }
    let endpoint = admin.add_endpoint("a", json!({"url": "https://hooks.example.com/"})).await;
    assert_eq!(endpoint.status, 201);
    let delete = async |id: &str, headers: &[(&str, &str)]| {
        let path = format!("/v1/partners/{id}");
        admin.call(Method::DELETE, template, &path, headers, Value::Null).await.status.as_u16()
    };
    assert_eq!(delete("a", &[]).await, 409, "it has an endpoint");
    assert_eq!(delete("b", &[("if-match", "\"0\"")]).await, 412);
    assert_eq!((delete("b", &[]).await, delete("b", &[]).await), (204, 404));
    let media = admin.relay.send(Method::PUT, path, &[("content-type", "text/plain")], "{}").await;
    assert_eq!(media.status, 415);
    admin.relay.finish().await;
}

async fn endpoints_are_made_patched_and_deleted(database: TestDatabase) {
    let admin = Admin::start(&database).await;
    admin.put_partner("globex", json!({"name": "Globex"})).await;
    let body = json!({
        "url": "https://HOOKS.example.com:443/in", "tenant": "acme", "event_types": ["order.*"],
        "headers": {"X-Token": "canary", "x-other": "canary"}, "transform": {"omit": ["/secret"]},
    });
    assert_eq!(admin.add_endpoint("nobody", body.clone()).await.status, 404);
    let made = admin.add_endpoint("globex", body).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let json = made.json();
    assert_eq!(json["url"], "https://hooks.example.com/[redacted]", "in its normal form, without its path");
    assert!(json["secret"].as_str().expect("a secret").starts_with("whsec_"));
    assert!(!json.to_string().contains("canary"));
    let id = json["id"].as_str().expect("an id").to_owned();
    let got = admin.endpoint(Method::GET, &id, &[], Value::Null).await;
    assert!(got.json().get("secret").is_none());
    assert_eq!(got.header("etag"), made.header("etag"));
    let etag = got.header("etag").expect("a version").to_owned();

    let patch = json!({"headers": {"x-other": null, "x-new": "1"}, "tenant": null, "timeout_ms": 1000});
    let kind = ("content-type", "application/merge-patch+json");
    let text = patch.to_string();
    let path = format!("/v1/endpoints/{id}");
    let patched = admin.relay.send(Method::PATCH, &path, &[kind, ("if-match", &etag)], text).await;
    admin.document.check(&Method::PATCH, "/v1/endpoints/{id}", &patched);
    assert_eq!(patched.status, 200, "{}", patched.json());
    let json = patched.json();
    assert_eq!(json["headers"], json!({"x-token": "[redacted]", "x-new": "[redacted]"}));
    assert_eq!((json["tenant"].is_null(), json["timeout_ms"].as_u64()), (true, Some(1_000)));
    assert_eq!(json["event_types"], json!(["order.*"]), "what is not named stays");
    let stale = admin.endpoint(Method::PATCH, &id, &[("if-match", &etag)], json!({"tenant": "x"})).await;
    assert_eq!(stale.problem(), "version_mismatch");
    for (patch, pointer) in [
        (json!({"url": "https://127.0.0.1/"}), "/url"),
        (json!({"url": "http://hooks.example.com/"}), "/url"),
        (json!({"url": null}), "/url"),
        (json!({"headers": {"webhook-id": "x"}}), "/headers/webhook-id"),
        (json!({"headers": {"x-a": "b\r\nc"}}), "/headers/x-a"),
        (json!({"transform": {"omit": ["secret"]}}), "/transform/omit/0"),
        (json!({"event_types": ["order.*", "*.paid"]}), "/event_types/1"),
        (json!({"timeout_ms": 1}), "/timeout_ms"),
        (json!({"id": "ep_1"}), "/id"),
    ] {
        let refused = admin.endpoint(Method::PATCH, &id, &[], patch.clone()).await;
        assert_eq!((refused.status.as_u16(), pointers(&refused)), (422, vec![pointer.to_owned()]), "{patch}");
    }
    let hex = json!({"signature": {"scheme": "hex_hmac_sha256", "header": "X-Sig", "prefix": "sha256="}});
    let signed = admin.endpoint(Method::PATCH, &id, &[], hex.clone()).await;
    assert_eq!(signed.json()["signature"]["header"], "x-sig", "{}", signed.json());
    let back = admin.endpoint(Method::PATCH, &id, &[], json!({"signature": null})).await;
    assert_eq!(back.json()["signature"], json!({"scheme": "standard"}));
    let deleted = admin.endpoint(Method::DELETE, &id, &[], Value::Null).await;
    assert_eq!(deleted.status, 204);
    assert_eq!(admin.endpoint(Method::GET, &id, &[], Value::Null).await.status, 404);
    admin.relay.finish().await;
}

async fn endpoints_are_rotated_disabled_and_listed(database: TestDatabase) {
    let admin = Admin::start(&database).await;
    admin.put_partner("globex", json!({"name": "Globex"})).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let url = format!("https://hooks.example.com/{number}");
        let made = admin.add_endpoint("globex", json!({"url": url})).await.json();
        ids.push(made["id"].as_str().expect("an id").to_owned());
    }
    let id = ids[0].clone();
    let rotated = admin.act(&id, "secret/rotate", Value::Null).await.json();
    assert!(rotated["secret"].as_str().expect("a secret").starts_with("whsec_"));
    let shown = admin.endpoint(Method::GET, &id, &[], Value::Null).await.json();
    assert_eq!(shown["previous_secret_until"], rotated["previous_secret_until"]);
    let own = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let given = admin.act(&id, "secret/rotate", json!({"secret": own, "grace_ms": 0})).await.json();
    assert_eq!(given["secret"], own);
    let bad = admin.act(&id, "secret/rotate", json!({"secret": "whsec_canary"})).await;
    assert_eq!((bad.status.as_u16(), pointers(&bad)), (422, vec!["/secret".to_owned()]));
    assert!(!bad.json().to_string().contains("canary"));
    assert_eq!(admin.act(&id, "secret/rotate", json!({"grace_ms": 2_592_000_001_u64})).await.status, 422);
    assert_eq!(admin.act("ep_none", "secret/rotate", Value::Null).await.status, 404);

    let disabled = admin.act(&id, "disable", Value::Null).await.json();
    assert_eq!((&disabled["state"], &disabled["disabled_reason"]), (&json!("disabled"), &json!("operator")));
    assert_eq!(admin.act(&id, "disable", Value::Null).await.json(), disabled, "again changes nothing");
    assert_eq!(admin.act(&id, "enable", Value::Null).await.json()["state"], "active");
    assert_eq!(admin.act("ep_none", "enable", Value::Null).await.status, 404);
    assert_eq!(admin.act("ep_none", "test", Value::Null).await.status, 404);

    let path = "/v1/partners/globex/endpoints?limit=2";
    let template = "/v1/partners/{partner}/endpoints";
    let first = admin.call(Method::GET, template, path, &[], Value::Null).await.json();
    let next = format!("{path}&cursor={}", first["next_cursor"].as_str().expect("a cursor"));
    let second = admin.call(Method::GET, template, &next, &[], Value::Null).await.json();
    assert_eq!(first["endpoints"].as_array().map(Vec::len), Some(2));
    assert_eq!(second["endpoints"].as_array().map(Vec::len), Some(1));
    let all = format!("{first}{second}");
    assert!(ids.iter().all(|id| all.contains(id)) && !all.contains("whsec_"), "{all}");
    admin.relay.finish().await;
}

async fn event_types_transforms_and_tenants(database: TestDatabase) {
    let admin = Admin::start(&database).await;
    let (template, path) = ("/v1/event-types/{name}", "/v1/event-types/order.paid");
    let body = json!({"description": "Paid", "schema": {"type": "object"}, "example": {"total": 1.5}});
    let put = async |body: Value| admin.call(Method::PUT, template, path, &[], body).await;
    assert_eq!(put(body.clone()).await.status, 201);
    assert_eq!(put(body).await.status, 200);
    assert_eq!(pointers(&put(json!({"schema": 1})).await), ["/schema"]);
    let got = admin.call(Method::GET, template, path, &[], Value::Null).await;
    assert_eq!((&got.json()["example"], &got.json()["synced"]), (&json!({"total": 1.5}), &json!(false)));
    let listed = admin.call(Method::GET, "/v1/event-types", "/v1/event-types", &[], Value::Null).await;
    assert_eq!(listed.json()["event_types"][0]["name"], "order.paid");

    let preview = async |transform: Value| {
        let body = json!({"transform": transform, "payload": {"a": 1, "b": 2}});
        let path = "/v1/transforms/preview";
        admin.call(Method::POST, path, path, &[], body).await
    };
    assert_eq!(preview(json!({"omit": ["/a"]})).await.json(), json!({"result": {"b": 2}}));
    assert_eq!(pointers(&preview(json!({"omit": ["a"]})).await), ["/transform/omit/0"]);
    assert_eq!(preview(json!({"set": {"/a/b": 1}})).await.problem(), "transform_failed");

    let tenant = async |body: Value| {
        admin.call(Method::PUT, "/v1/tenants/{tenant}", "/v1/tenants/acme", &[], body).await
    };
    let made = tenant(json!({"route": "svix", "transform": {"omit": ["/a"]}})).await;
    assert_eq!((made.status.as_u16(), &made.json()["transform"]), (201, &json!({"omit": ["/a"]})));
    let got = admin.call(Method::GET, "/v1/tenants/{tenant}", "/v1/tenants/acme", &[], Value::Null).await;
    assert_eq!(got.json()["transform"], json!({"omit": ["/a"]}));
    assert_eq!(pointers(&tenant(json!({"route": "svix", "transform": {"x": 1}})).await), ["/transform/x"]);
    assert_eq!(pointers(&tenant(json!({"route": "direct", "transform": {}})).await), ["/transform"]);
    let limited = tenant(json!({"weight": 3, "ingest_limit": {"per_second": 2.5}})).await.json();
    assert_eq!(
        (&limited["route"], &limited["default"]),
        (&json!("direct"), &json!(true)),
        "it needs no route"
    );
    assert_eq!(limited["weight"], 3);
    assert_eq!(limited["ingest_limit"], json!({"per_second": 2.5, "burst": 3}));
    let got = admin.call(Method::GET, "/v1/tenants/{tenant}", "/v1/tenants/acme", &[], Value::Null).await;
    assert_eq!(got.json(), limited);
    for (wrong, pointer) in [
        (json!({"weight": 0}), "/weight"),
        (json!({"weight": 101}), "/weight"),
        (json!({"ingest_limit": {"per_second": 0}}), "/ingest_limit/per_second"),
        (json!({"ingest_limit": {"per_second": 1, "burst": 0}}), "/ingest_limit/burst"),
        (json!({"svix_app": "a"}), "/svix_app"),
        (json!({"transform": {}}), "/transform"),
    ] {
        assert_eq!(pointers(&tenant(wrong.clone()).await), [pointer], "{wrong}");
    }
    for path in ["/health/live", "/health/ready"] {
        admin.call(Method::GET, path, path, &[], Value::Null).await;
    }
    let events = admin.call(
        Method::POST,
        "/notifications",
        "/notifications",
        &[],
        json!({"type": "a", "id": "1", "tenant": "quiet"}),
    );
    assert_eq!(events.await.status, 202);
    let key = json!({"name": "ci", "scopes": ["read"]});
    let key = admin.call(Method::POST, "/v1/keys", "/v1/keys", &[], key).await.json();
    let read = ("x-api-key", key["key"].as_str().expect("a key"));
    let as_reader = admin.call(Method::GET, "/v1/partners", "/v1/partners", &[read], Value::Null).await;
    assert_eq!(as_reader.status, 200);
    let partner = ("/v1/partners/{partner}", "/v1/partners/x");
    let refused = admin.call(Method::PUT, partner.0, partner.1, &[read], json!({"name": "x"})).await;
    assert_eq!(refused.problem(), "missing_scope");
    admin.relay.finish().await;
}

on_both_databases!(
    partners_are_made_changed_and_deleted,
    endpoints_are_made_patched_and_deleted,
    endpoints_are_rotated_disabled_and_listed,
    event_types_transforms_and_tenants,
);

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_the_page_needs_nobody_else() {
    let admin = Admin::start(&TestDatabase::sqlite()).await;
    let paths = admin.document.0["paths"].as_object().expect("paths");
    for path in ["/notifications", "/api/v1/events", "/metrics", "/v1/keys/{id}", "/v1/endpoints/{id}/test"] {
        assert!(paths.contains_key(path), "{path}");
    }
    let page = admin.relay.get("/docs/").await;
    assert_eq!(page.status, 200);
    let html = String::from_utf8_lossy(&page.body).into_owned();
    assert!(html.contains("swagger") && !html.contains("http://") && !html.contains("https://"), "{html}");
    let script = admin.relay.get("/docs/swagger-ui-bundle.js").await;
    assert!(script.status == 200 && script.body.len() > 100_000);
    admin.relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undeclared_event_types_are_refused_where_that_is_wanted() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.ingest.unknown_event_types = UnknownEventTypes::Refuse;
    let admin = Admin::start_with(config).await;
    let event = r#"{"id":"1","type":"order.paid","data":{}}"#;
    let refused = admin.relay.post(event).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (400, "invalid_events"));
    let path = "/v1/event-types/order.paid";
    admin.call(Method::PUT, "/v1/event-types/{name}", path, &[], json!({})).await;
    assert_eq!(admin.relay.post(event).await.status, 202);
    admin.relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seeds_are_made_once_and_set_anew_where_they_differ() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let seeds = r#"
        [[partners]]
        id = "globex"
        name = "Globex"
        rate_limit = { per_second = 5 }
        [[partners.endpoints]]
        name = "orders"
        url = "https://hooks.example.com/orders"
        event_types = ["order.*"]
        headers = { x-token = "canary" }
        secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        [[event_types]]
        name = "order.paid"
        description = "Paid"
    "#;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let load = |text: &str| {
        std::fs::write(file.path(), text).expect("written");
        posthaste::config::Config::load(Some(file.path()), []).expect("good").config
    };
    let seeded = |text: &str| {
        let loaded = load(text);
        assert!(
            !format!("{loaded:?}").contains("canary") && !loaded.show().expect("shown").contains("canary")
        );
        let mut config = config(&database, &svix);
        config.svix.token = None;
        (config.partners, config.event_types) = (loaded.partners, loaded.event_types);
        config
    };
    let look = async |admin: &Admin| {
        let path = "/v1/partners/globex/endpoints";
        let list = admin.call(Method::GET, "/v1/partners/{partner}/endpoints", path, &[], Value::Null).await;
        list.json()["endpoints"].as_array().expect("a list").clone()
    };
    let admin = Admin::start_with(seeded(seeds)).await;
    let first = look(&admin).await;
    assert_eq!((first.len(), &first[0]["event_types"]), (1, &json!(["order.*"])));
    let revision = admin.relay.app().ledger().database().revision().await.expect("a number");
    admin.relay.finish().await;
    let admin = Admin::start_with(seeded(seeds)).await;
    assert_eq!(look(&admin).await, first);
    let now = admin.relay.app().ledger().database().revision().await.expect("a number");
    assert_eq!(now, revision, "the same again writes nothing");
    admin.relay.finish().await;
    let admin = Admin::start_with(seeded(&seeds.replace("order.*", "*"))).await;
    let second = look(&admin).await;
    assert_eq!((&second[0]["id"], &second[0]["event_types"]), (&first[0]["id"], &json!(["*"])));
    admin.relay.finish().await;
    for (wrong, place) in [
        (seeds.replace("https://hooks.example.com", "https://10.0.0.1"), "partners[0].endpoints[0].url"),
        (seeds.replace("per_second = 5", "per_second = 0"), "partners[0].rate_limit.per_second"),
        (seeds.replace("whsec_MfKQ", "whsec_"), "partners[0].endpoints[0].secret"),
        (seeds.replace("description", "descripton"), "event_types[0]"),
    ] {
        std::fs::write(file.path(), wrong).expect("written");
        let error = posthaste::config::Config::load(Some(file.path()), []).expect_err("wrong").to_string();
        assert!(error.contains(place), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn svix_is_told_of_event_types() {
    use wiremock::matchers::{method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    let server = MockServer::start().await;
    let out = json!({"name": "order.paid", "description": "Paid", "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z", "deprecated": false});
    let event_type = || Mock::given(method("PUT")).and(path("/api/v1/event-type/order.paid"));
    event_type().respond_with(ResponseTemplate::new(503)).up_to_n_times(1).mount(&server).await;
    event_type().respond_with(ResponseTemplate::new(200).set_body_json(out)).expect(1..).mount(&server).await;
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.svix.server_url = Some(server.uri());
    let admin = Admin::start_with(config).await;
    let (template, path) = ("/v1/event-types/{name}", "/v1/event-types/order.paid");
    let body = json!({"description": "Paid", "schema": {"type": "object"}});
    assert_eq!(admin.call(Method::PUT, template, path, &[], body).await.status, 201);
    eventually("the event type is marked as synced", async || {
        let got = admin.call(Method::GET, template, path, &[], Value::Null).await.json();
        (got["synced"] == true).then_some(())
    })
    .await;
    let requests = server.received_requests().await.expect("recorded");
    let told: Value = serde_json::from_slice(&requests[requests.len() - 1].body).expect("JSON");
    assert_eq!(told["schemas"]["1"]["type"], "object");
    assert!(requests.len() >= 2, "503, and again");
    admin.relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_svix_learns_event_types() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let admin = Admin::start_with(config(&database, &svix)).await;
    let template = "/v1/event-types/{name}";
    for (name, status) in [("order.paid", 201), ("order.sent", 201), ("order.paid", 200)] {
        let path = format!("/v1/event-types/{name}");
        let body = json!({"description": name, "example": {"n": status}});
        assert_eq!(admin.call(Method::PUT, template, &path, &[], body).await.status, status);
        eventually("the event type is marked as synced", async || {
            let got = admin.call(Method::GET, template, &path, &[], Value::Null).await.json();
            (got["synced"] == true).then_some(())
        })
        .await;
    }
    assert_eq!(svix.event_types(), ["order.paid", "order.sent"]);
    admin.relay.finish().await;
}
