//! Signing in, and what keeps others out.

use axum::http::Method;
use secrecy::SecretString;
use serde_json::json;

use crate::access::create_key;
use crate::support::visitor::{OWN_PAGE, Visitor, csrf_in, text};
use crate::support::{Answer, TestDatabase, TestRelay, config, eventually, mock_svix};

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn location(answer: &Answer) -> &str {
    answer.header("location").unwrap_or_default()
}

fn cookie<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let mut lines = answer.headers.get_all("set-cookie").iter().map(|line| line.to_str().expect("ASCII"));
    lines.find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no cookie {name}"))
}

async fn one_signs_in_with_a_key_and_out_again(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let admin = create_key(&relay, None, json!({"name": "Ada", "scopes": ["admin"]})).await;
    let visitor = Visitor::new(&relay);
    let asked = visitor.get("/console/partners?cursor=x").await;
    assert_eq!(
        (asked.status.as_u16(), location(&asked)),
        (303, "/console/sign-in?next=%2Fconsole%2Fpartners%3Fcursor%3Dx")
    );
    let wrong = visitor.sign_in("ph_abc_def").await;
    assert_eq!(wrong.status, 401);
    assert!(text(&wrong).contains("This key is unknown or revoked."), "{}", text(&wrong));
    // What somebody has put into the browser before is worth nothing afterwards.
    visitor.cookies.borrow_mut().insert("posthaste_console".into(), "planted".into());
    let next = [("key", admin.as_str()), ("next", "/console/partners")];
    let signed_in = visitor.submit("/console/sign-in", "/console/sign-in", &next).await;
    assert_eq!((signed_in.status.as_u16(), location(&signed_in)), (303, "/console/partners"));
    let set = cookie(&signed_in, "posthaste_console=");
    assert!(set.contains("; HttpOnly; SameSite=Strict; Max-Age=43200") && !set.contains("planted"), "{set}");
    assert!(!set.contains("Secure"), "there is no TLS: {set}");
    assert!(!set.contains(&admin), "the key is not in the cookie");
    assert!(visitor.page("/console/partners").await.contains("Ada"), "it says who one is");
    // A copy of the cookie ends with the session, wherever it is.
    let copy = Visitor::new(&relay);
    copy.cookies.borrow_mut().clone_from(&visitor.cookies.borrow());
    copy.page("/console/partners").await;
    let out = visitor.submit("/console/partners", "/console/sign-out", &[]).await;
    assert_eq!((out.status.as_u16(), location(&out)), (303, "/console/sign-in"));
    assert_eq!(copy.get("/console/partners").await.status, 303);
    relay.finish().await;
}

async fn a_revoked_key_ends_its_sessions(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let read = create_key(&relay, Some(&admin), json!({"name": "dash", "scopes": ["read"]})).await;
    let (one, other) = (Visitor::new(&relay), Visitor::new(&relay));
    assert_eq!(one.sign_in(&read).await.status, 303);
    assert_eq!(other.sign_in(&admin).await.status, 303);
    one.page("/console/partners").await;
    let id = read.split('_').nth(1).expect("an id");
    let path = format!("/console/keys/{id}/revoke");
    assert_eq!(other.submit("/console/keys", &path, &[]).await.status, 303);
    assert_eq!(one.get("/console/partners").await.status, 303, "at once");
    assert!(other.page("/console/keys").await.contains("is revoked"), "it says what it did");
    relay.finish().await;
}

async fn forms_of_others_are_refused(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let visitor = Visitor::new(&relay);
    visitor.sign_in(&admin).await;
    let csrf = visitor.csrf("/console/partners").await;
    let partner = [("csrf", csrf.as_str()), ("id", "crm"), ("name", "CRM")];
    let make = "/console/partners/new";
    for headers in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[],
    ] {
        assert_eq!(visitor.post(make, headers, &partner).await.status, 403, "{headers:?}");
    }
    for token in ["", "0", csrf_in(&Visitor::new(&relay).page("/console/sign-in").await)] {
        let fields = [("csrf", token), ("id", "crm"), ("name", "CRM")];
        let refused = visitor.post(make, &OWN_PAGE, &fields).await;
        assert_eq!(refused.status, 403, "{token}");
        assert!(text(&refused).contains("This form is too old"), "{}", text(&refused));
    }
    // Signing in is a form too: nobody else signs one in.
    let stranger = Visitor::new(&relay);
    let fields = [("csrf", csrf.as_str()), ("key", admin.as_str())];
    assert_eq!(stranger.post("/console/sign-in", &OWN_PAGE, &fields).await.status, 403);
    let key = [("x-api-key", admin.as_str())];
    let unknown = relay.send(Method::GET, "/v1/partners/crm", &key, "").await;
    assert_eq!(unknown.status, 404, "nothing of it was done");
    assert_eq!(visitor.post(make, &OWN_PAGE, &partner).await.status, 303, "and our own page may");
    relay.finish().await;
}

async fn a_read_key_looks_and_presses_nothing(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let read = create_key(&relay, Some(&admin), json!({"name": "dash", "scopes": ["read"]})).await;
    let ingest = create_key(&relay, Some(&admin), json!({"name": "shop", "scopes": ["ingest"]})).await;
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let put = relay.send(Method::PUT, "/v1/partners/crm", &headers, r#"{"name":"CRM"}"#).await;
    assert_eq!(put.status, 201);
    assert_eq!(Visitor::new(&relay).sign_in(&ingest).await.status, 403, "it can only send events");
    let visitor = Visitor::new(&relay);
    visitor.sign_in(&read).await;
    for path in [
        "/console/partners",
        "/console/partners/crm",
        "/console/sources",
        "/console/settings",
        "/console/tenants/acme",
    ] {
        let page = visitor.page(path).await;
        let (_, main) = page.split_once("<main").expect("a page");
        assert!(!main.contains("method=\"post\" action"), "no button on {path}: {main}");
        assert!(page.contains("read only") && !page.contains("href=\"/console/keys\""), "{path}");
    }
    // Pressing what isn't there is refused all the same.
    for (path, fields) in [
        ("/console/partners/crm/pause", &[][..]),
        ("/console/partners/crm/delete", &[]),
        ("/console/partners/new", &[("id", "x"), ("name", "x")]),
        ("/console/tenants/acme", &[("route", "direct")]),
        ("/console/keys", &[("name", "x"), ("scope", "admin")]),
    ] {
        let refused = visitor.submit("/console/partners", path, fields).await;
        assert_eq!(refused.status, 403, "{path}");
        assert!(text(&refused).contains("Your key may not do this"), "{path}");
    }
    assert_eq!(visitor.get("/console/keys").await.status, 403);
    relay.finish().await;
}

async fn a_tenants_key_sees_that_tenant(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = TestRelay::start(&database, &svix).await;
    let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let body = json!({"name": "acme", "scopes": ["read"], "tenant": "acme"});
    let bound = create_key(&relay, Some(&admin), body).await;
    let visitor = Visitor::new(&relay);
    visitor.sign_in(&bound).await;
    let page = visitor.page("/console/tenants/acme").await;
    assert!(page.contains("tenant acme"), "{page}");
    for hidden in ["/console/partners", "/console/sources", "/console/settings"] {
        assert!(!page.contains(&format!("href=\"{hidden}\"")), "{hidden}");
        assert_eq!(visitor.get(hidden).await.status, 403, "{hidden}");
    }
    assert_eq!(visitor.get("/console/tenants/globex").await.status, 403);
    relay.finish().await;
}

on_both_databases!(
    one_signs_in_with_a_key_and_out_again,
    a_revoked_key_ends_its_sessions,
    forms_of_others_are_refused,
    a_read_key_looks_and_presses_nothing,
    a_tenants_key_sees_that_tenant,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_good_on_every_node() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let (one, other) = (TestRelay::start(&database, &svix).await, TestRelay::start(&database, &svix).await);
    let admin = create_key(&one, None, json!({"name": "root", "scopes": ["admin"]})).await;
    let visitor = Visitor::new(&one);
    assert_eq!(visitor.sign_in(&admin).await.status, 303);
    let elsewhere = Visitor::new(&other);
    // A node that knows of no key lets everybody in.
    eventually("the key is known there", async || {
        (Visitor::new(&other).get("/console/partners").await.status == 303).then_some(())
    })
    .await;
    elsewhere.cookies.borrow_mut().clone_from(&visitor.cookies.borrow());
    assert_eq!(elsewhere.get("/console/partners").await.status, 200);
    let fields = [("id", "crm"), ("name", "CRM")];
    assert_eq!(elsewhere.submit("/console/partners", "/console/partners/new", &fields).await.status, 303);
    assert_eq!(visitor.submit("/console/partners", "/console/sign-out", &[]).await.status, 303);
    assert_eq!(elsewhere.get("/console/partners").await.status, 303);
    one.finish().await;
    other.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_tls_the_cookie_is_for_this_host_alone() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.http.bootstrap_admin_key = Some(SecretString::from("first-key"));
    let relay = TestRelay::start_with(config).await;
    let visitor = Visitor::new(&relay);
    let csrf = visitor.csrf("/console/sign-in").await;
    let fields = [("csrf", csrf.as_str()), ("key", "first-key")];
    let headers = [("sec-fetch-site", "same-origin"), ("origin", "https://relay.example")];
    let signed_in = visitor.post("/console/sign-in", &headers, &fields).await;
    assert_eq!(signed_in.status, 303);
    let set = cookie(&signed_in, "__Host-posthaste=");
    assert!(set.contains("; Path=/; HttpOnly; SameSite=Strict") && set.ends_with("; Secure"), "{set}");
    visitor.page("/console/partners").await;
    // The same value under the other name is nobody's.
    let value = visitor.cookies.borrow()["__Host-posthaste"].clone();
    let plain = Visitor::new(&relay);
    plain.cookies.borrow_mut().insert("posthaste_console".into(), value);
    assert_eq!(plain.get("/console/partners").await.status, 303);
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_tried_ten_times_a_minute() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let mut config = config(&database, &svix);
    config.http.bootstrap_admin_key = Some(SecretString::from("first-key"));
    let relay = TestRelay::start_with(config).await;
    let visitor = Visitor::new(&relay);
    for _ in 0..10 {
        assert_eq!(visitor.sign_in("guess").await.status, 401);
    }
    let refused = visitor.sign_in("first-key").await;
    assert_eq!(refused.status, 429, "not even the right one");
    let wait: u32 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("told");
    assert!((1..=60).contains(&wait), "{wait}");
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_key_exists_this_machine_gets_in_and_nobody_else() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    let visitor = Visitor::new(&relay);
    let page = visitor.page("/console/partners").await;
    assert!(page.contains("this machine") && !page.contains("Sign out"), "{page}");
    for header in [("host", "evil.example"), ("sec-fetch-site", "cross-site"), ("x-forwarded-for", "1.2.3.4")]
    {
        let status = relay.send(Method::GET, "/console/partners", &[header], "").await.status;
        assert!(status == 401 || status == 403, "{header:?}: {status}");
    }
    // Forms need their token here too.
    let body = "id=crm&name=CRM";
    let bare = relay.send(Method::POST, "/console/partners/new", &[FORM, OWN_PAGE[0]], body).await;
    assert_eq!(bare.status, 403);
    let fields = [("id", "crm"), ("name", "CRM")];
    assert_eq!(visitor.submit("/console/partners", "/console/partners/new", &fields).await.status, 303);
    // The first key closes this door.
    let made = visitor.submit("/console/keys", "/console/keys", &[("name", "me"), ("scope", "admin")]).await;
    assert_eq!(made.status, 200);
    assert!(text(&made).contains("<code class=\"secret\">ph_"), "{}", text(&made));
    assert_eq!(
        location(&visitor.get("/console/partners").await),
        "/console/sign-in?next=%2Fconsole%2Fpartners"
    );
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_the_policy() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = TestRelay::start(&database, &svix).await;
    let page = relay.get("/console/partners").await;
    for path in ["/console/partners", "/console/nothing", "/console/partners/none", "/console/theme"] {
        let answer = relay.get(path).await;
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let text = text(&answer);
        assert!(!text.contains(" style=") && !text.contains("<style") && !text.contains("onclick"), "{path}");
        assert!(path.ends_with("partners") || text.contains("To the overview"), "a way back: {text}");
    }
    let text = text(&page);
    let assets: Vec<_> = text.split('"').filter(|part| part.starts_with("/console/assets/")).collect();
    assert!(assets.len() >= 4, "{text}");
    for asset in assets {
        let answer = relay.get(asset).await;
        assert_eq!(answer.status, 200, "{asset}");
        assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000, immutable"));
    }
    assert_eq!(relay.get("/console/assets/console-000000000000.css").await.status, 404);
    relay.finish().await;
}
