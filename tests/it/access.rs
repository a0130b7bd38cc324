//! Keys, scopes, tenants' bounds and routes.

use axum::http::Method;
use serde_json::{Value, json};

use crate::ingest::batch;
use crate::support::{TestDatabase, TestRelay, config, mock_svix};

pub async fn create_key(relay: &TestRelay, with: Option<&str>, body: Value) -> String {
    let bearer = with.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    let answer = relay.send(Method::POST, "/v1/keys", &headers, body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()["key"].as_str().expect("a key").to_owned()
}

async fn keys_carry_scopes_and_a_tenant(database: TestDatabase) {
    // holds: 47
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    assert_eq!(relay.post(batch(0, 1)).await.status, 202, "no key yet: loopback may");
    let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let ingest =
        create_key(&relay, Some(&admin), json!({"name": "shop", "scopes": ["ingest"], "tenant": "acme"}))
            .await;
    let read = create_key(&relay, Some(&admin), json!({"name": "dash", "scopes": ["read"]})).await;
    let none = relay.post(batch(1, 1)).await;
    assert_eq!((none.status.as_u16(), none.problem().as_str()), (401, "unauthorized"));
    assert_eq!(none.header("www-authenticate"), Some("Bearer"));
    let post = async |key: &str, body: &str| relay.post_with(&[("x-api-key", key)], body.to_owned()).await;
    assert_eq!(post(&ingest, &batch(1, 1)).await.status, 202, "its tenant is the default for its events");
    let foreign = post(&ingest, r#"[{"id":"5","type":"a"},{"id":"6","type":"a","tenant":"globex"}]"#).await;
    assert_eq!((foreign.status.as_u16(), foreign.problem().as_str()), (403, "foreign_tenant"));
    let header =
        relay.post_with(&[("x-api-key", ingest.as_str()), ("x-tenant", "globex")], batch(1, 1)).await;
    assert_eq!(header.status, 403);
    assert_eq!(post(&read, &batch(1, 1)).await.problem(), "missing_scope");
    assert_eq!(post(&format!("{ingest}0"), &batch(1, 1)).await.status, 401);
    let listed = relay.send(Method::GET, "/v1/keys", &[("x-api-key", &admin)], "").await;
    let text = String::from_utf8_lossy(&listed.body).into_owned();
    let secret = ingest.rsplit('_').next().expect("a secret");
    assert!(text.contains("shop") && !text.contains(secret), "{text}");
    let as_read = relay.send(Method::GET, "/v1/keys", &[("x-api-key", &read)], "").await;
    assert_eq!(as_read.problem(), "missing_scope");
    let id = ingest.split('_').nth(1).expect("an id");
    let gone = relay.send(Method::DELETE, &format!("/v1/keys/{id}"), &[("x-api-key", &admin)], "").await;
    assert_eq!(gone.status, 204);
    assert_eq!(post(&ingest, &batch(2, 1)).await.status, 401);
    let again = relay.send(Method::DELETE, &format!("/v1/keys/{id}"), &[("x-api-key", &admin)], "").await;
    assert_eq!(again.status, 404);
    relay.finish().await;
    assert_eq!(svix.message_count(), 2);
}

async fn tenants_have_routes(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let json = [("content-type", "application/json")];
    let put = async |tenant: &str, body: Value| {
        relay.send(Method::PUT, &format!("/v1/tenants/{tenant}"), &json, body.to_string()).await
    };
    let default = relay.get("/v1/tenants/acme").await;
    assert_eq!(
        default.json(),
        json!({"tenant": "acme", "route": "svix", "svix_app": "acme", "default": true, "weight": 1,
            "ingest_limit": null, "retention": {}})
    );
    assert_eq!(put("acme", json!({"route": "svix", "svix_app": "app-one"})).await.status, 201);
    assert_eq!(put("acme", json!({"route": "svix", "svix_app": "app-one"})).await.status, 200);
    let taken = put("globex", json!({"route": "svix", "svix_app": "app-one"})).await;
    assert_eq!((taken.status.as_u16(), taken.problem().as_str()), (409, "taken"));
    assert_eq!(put("quiet", json!({"route": "direct"})).await.status, 201);
    for bad in [
        json!({"route": "pigeon"}),
        json!({"route": "svix", "svix_app": "a b"}),
        json!({"route": "direct", "svix_app": "x"}),
        json!({"route": "svix", "sivx_app": "x"}),
    ] {
        assert_eq!(put("bad", bad.clone()).await.status, 422, "{bad}");
    }
    // A tenant without a route of its own would lead to the application of another: refused, not misrouted.
    let misled = relay.post(r#"{"id":"1","type":"a","tenant":"app-one"}"#).await;
    assert_eq!(misled.problem(), "invalid_events");
    let events = r#"[{"id":"1","type":"a","tenant":"acme"},{"id":"1","type":"a","tenant":"quiet"},
                     {"id":"1","type":"a","tenant":"Müller & Söhne"}]"#;
    assert_eq!(relay.post(events).await.statuses(), ["accepted"; 3]);
    // The application that a tenant's events go to by default is taken once there are such events.
    relay.settled().await;
    assert_eq!(relay.post(r#"{"id":"1","type":"a","tenant":"initech"}"#).await.status, 202);
    assert_eq!(put("hooli", json!({"route": "svix", "svix_app": "initech"})).await.status, 409);
    let progress = relay.finish().await;
    assert_eq!((progress.events, progress.unrouted, progress.created), (4, 1, 3));
    assert_eq!(svix.message_count(), 3);
    assert!(svix.message("app-one", "1").is_some());
}

on_both_databases!(keys_carry_scopes_and_a_tenant, tenants_have_routes);

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_events_are_kept_unrouted() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.svix.token = None;
    let relay = TestRelay::start_with(config).await;
    assert_eq!(relay.post(batch(0, 10)).await.status, 202);
    let progress = relay.finish().await;
    assert_eq!((progress.events, progress.unrouted), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_host_or_origin_is_kept_out() {
    // holds: 47
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    for header in
        [("host", "evil.example"), ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]
    {
        let answer = relay.post_with(&[header], batch(0, 1)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().as_str()),
            (403, "foreign_origin"),
            "{header:?}"
        );
    }
    assert_eq!(relay.post_with(&[("x-forwarded-for", "1.2.3.4")], batch(0, 1)).await.status, 401);
    assert_eq!(relay.finish().await.events, 0);
}
