//! Pub/Sub pushes that must show where they come from, and what is kept of those that can never be accepted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaPublicKeyComponents};
use axum::http::{Method, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use posthaste::domain::clock::Clock as _;
use posthaste::mock::MockSvix;
use serde_json::{Value, json};

use crate::ingest::rejected_messages;
use crate::support::{Answer, TestClock, TestDatabase, TestRelay, bounded, config, mock_svix};

const AUDIENCE: &str = "https://relay.example/notifications";
const ACCOUNT: &str = "push@project.iam.gserviceaccount.com";
const SECRET: &str = "a secret/of 24 letters+&";
/// Longer than a made-up key keeps the issuer from being asked again.
const A_WHILE: Duration = Duration::from_secs(11);

/// Signs tokens, and shows its public keys on a server of its own.
struct Issuer {
    keys: Mutex<Vec<(String, KeyPair)>>,
    is_away: Mutex<bool>,
    asked: AtomicUsize,
}

impl Issuer {
    /// The issuer and the URL of its keys.
    async fn start() -> (Arc<Self>, String) {
        let issuer = Arc::new(Self {
            keys: Mutex::new(vec![("first".into(), new_key())]),
            is_away: Mutex::new(false),
            asked: AtomicUsize::new(0),
        });
        let shown = issuer.clone();
        let app = axum::Router::new().route("/certs", get(async move || shown.show()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/certs", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (issuer, url)
    }

    fn show(&self) -> (StatusCode, String) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if *self.is_away.lock().unwrap() {
            return (StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        let keys = self.keys.lock().unwrap();
        let shown = keys.iter().map(|(name, key)| {
            let parts = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
            let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": name, "n": text(&parts.n), "e": text(&parts.e)})
        });
        // A kind of key that we know nothing of is no reason to refuse the others.
        let odd = json!({"kty": "ODD", "kid": "odd", "x": 1});
        let keys: Vec<Value> = std::iter::once(odd).chain(shown).collect();
        (StatusCode::OK, json!({"keys": keys}).to_string())
    }

    /// Uses a new key from now on, and shows it alone.
    fn rotate(&self, name: &str) {
        *self.keys.lock().unwrap() = vec![(name.to_owned(), new_key())];
    }

    fn sign(&self, claims: &Value) -> String {
        let keys = self.keys.lock().unwrap();
        let (name, key) = &keys[0];
        signed(name, key, claims)
    }

    fn public_key(&self) -> Vec<u8> {
        let keys = self.keys.lock().unwrap();
        let der: PublicKeyX509Der<'_> = keys[0].1.public_key().as_der().expect("DER");
        der.as_ref().to_vec()
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate(KeySize::Rsa2048).expect("a key")
}

fn signed(name: &str, key: &KeyPair, claims: &Value) -> String {
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": name}).to_string();
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).expect("signed");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn push(data: &str, id: &str) -> String {
    let message = json!({"data": STANDARD.encode(data), "messageId": id});
    json!({"message": message, "subscription": "projects/p/subscriptions/s"}).to_string()
}

/// A relay that wants to see tokens of `issuer`'s.
struct Setting {
    relay: TestRelay,
    svix: MockSvix,
    issuer: Arc<Issuer>,
    clock: Arc<TestClock>,
    _database: TestDatabase,
}

impl Setting {
    async fn start() -> Self {
        let (issuer, url) = Issuer::start().await;
        let (database, svix, clock) = (TestDatabase::sqlite(), mock_svix().await, TestClock::new());
        let mut config = config(&database, &svix);
        let push = &mut config.ingest.pubsub_push;
        (push.audience, push.service_account) = (Some(AUDIENCE.into()), Some(ACCOUNT.into()));
        push.jwks_url = url;
        let relay = TestRelay::start_at(config, clock.clone()).await;
        Self { relay, svix, issuer, clock, _database: database }
    }

    /// What a good token says.
    fn claims(&self) -> Value {
        let now = self.clock.now().as_millis() / 1_000;
        json!({"iss": "https://accounts.google.com", "aud": AUDIENCE, "exp": now + 3_600, "iat": now,
            "email": ACCOUNT, "email_verified": true, "sub": "1"})
    }

    async fn push(&self, token: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        self.relay.post_with(&[("authorization", &bearer)], body.to_owned()).await
    }

    /// Status and code of the answer to a push with this token.
    async fn answer(&self, token: &str) -> (u16, String) {
        let answer = self.push(token, &push(r#"{"id":"never","type":"a"}"#, "1")).await;
        (answer.status.as_u16(), answer.problem())
    }

    async fn refused(&self, changes: Value) -> (u16, String) {
        let mut claims = self.claims();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        self.answer(&self.issuer.sign(&claims)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_shows_a_token_of_its_service_account_for_us() {
    bounded(async {
        // holds: 47
        let at = Setting::start().await;
        let good = at.issuer.sign(&at.claims());
        let body = push(r#"{"id":"1","type":"a"}"#, "1");
        assert_eq!(at.push(&good, &body).await.status, 202);
        let unauthorized = (401, "unauthorized".to_owned());
        let foreign = (403, "foreign_push".to_owned());
        let now = at.clock.now().as_millis() / 1_000;
        assert_eq!(at.refused(json!({"exp": now - 61})).await, unauthorized);
        assert_eq!(at.refused(json!({"nbf": now + 61})).await, unauthorized);
        assert_eq!(at.refused(json!({"iss": "https://evil.example"})).await, unauthorized);
        assert_eq!(at.refused(json!({"exp": "soon"})).await, unauthorized);
        assert_eq!(at.refused(json!({"aud": "https://other.example"})).await, foreign);
        assert_eq!(at.refused(json!({"email": "other@project.iam.gserviceaccount.com"})).await, foreign);
        assert_eq!(at.refused(json!({"email_verified": false})).await, foreign);
        assert_eq!(at.refused(json!({"email": null})).await, foreign);
        // The clock decides, not the first look.
        at.clock.pass(Duration::from_secs(3_600 + 61));
        assert_eq!(at.answer(&good).await, unauthorized);
        at.relay.finish().await;
        assert_eq!(at.svix.message_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_bears_the_issuers_own_signature() {
    bounded(async {
        // holds: 47
        let at = Setting::start().await;
        let unauthorized = (401, "unauthorized".to_owned());
        let claims = at.claims();
        assert_eq!(at.answer(&signed("first", &new_key(), &claims)).await, unauthorized);
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let unsigned = format!("{}.{}.", text(&json!({"alg": "none", "kid": "first"})), text(&claims));
        assert_eq!(at.answer(&unsigned).await, unauthorized);
        // The public key is no secret, and must not serve as one.
        let head = format!("{}.{}", text(&json!({"alg": "HS256", "kid": "first"})), text(&claims));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &at.issuer.public_key());
        let tag = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, head.as_bytes()));
        assert_eq!(at.answer(&format!("{head}.{tag}")).await, unauthorized);
        let good = at.issuer.sign(&claims);
        let (rest, signature) = good.rsplit_once('.').unwrap();
        let (head, _) = rest.rsplit_once('.').unwrap();
        let mut other = claims.clone();
        other["sub"] = "2".into();
        assert_eq!(at.answer(&format!("{head}.{}.{signature}", text(&other))).await, unauthorized);
        assert_eq!(at.answer("not.a.token").await, unauthorized);
        // It opens the one door, and no other.
        let bearer = format!("Bearer {good}");
        let keys = at.relay.send(Method::GET, "/v1/keys", &[("authorization", &bearer)], "").await;
        assert_eq!(keys.status, 401);
        assert_eq!(at.relay.finish().await.events, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_when_they_change_and_not_for_the_asking() {
    bounded(async {
        let at = Setting::start().await;
        let body = |id: &str| push(&json!({"id": id, "type": "a"}).to_string(), id);
        let old = at.issuer.sign(&at.claims());
        for id in ["1", "2", "3"] {
            assert_eq!(at.push(&old, &body(id)).await.status, 202);
        }
        assert_eq!(at.issuer.asked.load(Ordering::SeqCst), 1);
        at.clock.pass(A_WHILE);
        at.issuer.rotate("second");
        let new = at.issuer.sign(&at.claims());
        assert_eq!(at.push(&new, &body("4")).await.status, 202);
        assert_eq!(at.issuer.asked.load(Ordering::SeqCst), 2);
        for _ in 0..5 {
            assert_eq!(at.answer(&signed("made up", &new_key(), &at.claims())).await.0, 401);
        }
        assert_eq!(at.push(&old, &body("5")).await.status, 401, "its key is gone");
        assert_eq!(at.issuer.asked.load(Ordering::SeqCst), 2, "asked again so soon");
        at.relay.finish().await;
        assert_eq!(at.svix.message_count(), 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_issuer_is_away_known_keys_do_and_others_are_put_off() {
    bounded(async {
        let at = Setting::start().await;
        *at.issuer.is_away.lock().unwrap() = true;
        let body = push(r#"{"id":"1","type":"a"}"#, "1");
        let put_off = at.push(&at.issuer.sign(&at.claims()), &body).await;
        assert_eq!((put_off.status.as_u16(), put_off.problem().as_str()), (503, "push_keys_unavailable"));
        assert!(put_off.header("retry-after").is_some());
        *at.issuer.is_away.lock().unwrap() = false;
        at.clock.pass(A_WHILE);
        assert_eq!(at.push(&at.issuer.sign(&at.claims()), &body).await.status, 202);
        // A day later the keys are too old to go by.
        *at.issuer.is_away.lock().unwrap() = true;
        at.clock.pass(Duration::from_secs(2 * 3_600));
        assert_eq!(at.push(&at.issuer.sign(&at.claims()), &body).await.status, 202);
        at.clock.pass(Duration::from_secs(23 * 3_600));
        assert_eq!(at.push(&at.issuer.sign(&at.claims()), &body).await.status, 503);
        at.relay.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_a_token_is_refused_and_other_producers_are_not() {
    bounded(async {
        // holds: 47
        let at = Setting::start().await;
        let body = push(r#"{"id":"1","type":"a"}"#, "1");
        let bare = at.relay.post(body.clone()).await;
        assert_eq!((bare.status.as_u16(), bare.problem().as_str()), (401, "unauthorized"));
        assert_eq!(at.relay.post(r#"{"id":"2","type":"a"}"#).await.status, 202, "from this machine");
        let json = [("content-type", "application/json")];
        let key = json!({"name": "bridge", "scopes": ["ingest"], "tenant": "acme"}).to_string();
        let key = at.relay.send(Method::POST, "/v1/keys", &json, key).await.json();
        let key = key["key"].as_str().expect("a key").to_owned();
        assert_eq!(at.relay.post_with(&[("x-api-key", &key)], body.clone()).await.status, 202);
        assert_eq!(at.relay.post(body).await.status, 401);
        at.relay.finish().await;
        assert_eq!(at.svix.message_count(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_verified_push_brings_is_recorded_or_kept() {
    bounded(async {
        // holds: 49
        let at = Setting::start().await;
        let token = at.issuer.sign(&at.claims());
        for bad in ["not json", "{\"message\":", r#"{"type":"no id"}"#, "17"] {
            assert_eq!(at.push(&token, bad).await.status, 204, "{bad}");
        }
        let kept = rejected_messages(&at.relay).await;
        let bodies: Vec<_> = kept.iter().map(|row| String::from_utf8_lossy(&row.body).into_owned()).collect();
        assert_eq!(bodies, ["17", r#"{"type":"no id"}"#, "{\"message\":", "not json"]);
        assert!(kept.iter().all(|row| row.origin == "pubsub_push" && !row.attributes.contains("Bearer")));
        // Without its envelope, with the metadata in headers: a repetition is the same event.
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-goog-pubsub-message-id", "9"),
            ("x-goog-pubsub-subscription-name", "projects/p/subscriptions/s"),
            ("project", "globex"),
        ];
        for status in ["accepted", "duplicate"] {
            let answer = at.relay.post_with(&headers, r#"{"type":"unwrapped"}"#).await;
            assert_eq!((answer.status.as_u16(), answer.statuses()), (202, vec![status.to_owned()]));
            assert_eq!(answer.json()["results"][0]["tenant"], "globex");
        }
        // An attribute that can be no tenant: the message is kept, or it would come for ever.
        let headers =
            [("authorization", bearer.as_str()), ("x-goog-pubsub-message-id", "10"), ("x-tenant", "")];
        assert_eq!(at.relay.post_with(&headers, r#"{"type":"unwrapped"}"#).await.status, 204);
        assert_eq!(rejected_messages(&at.relay).await.len(), kept.len() + 1);
        at.relay.finish().await;
        assert_eq!(at.svix.message_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_for_a_foreign_tenant_is_kept_rather_than_sent_for_ever() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = TestRelay::start(&database, &svix).await;
        let json = [("content-type", "application/json")];
        let key = json!({"name": "bridge", "scopes": ["ingest"], "tenant": "acme"}).to_string();
        let key = relay.send(Method::POST, "/v1/keys", &json, key).await.json();
        let key = key["key"].as_str().expect("a key").to_owned();
        let events = r#"[{"id":"1","type":"a"},{"id":"2","type":"a","tenant":"globex"}]"#;
        let answer = relay.post_with(&[("x-api-key", &key)], push(events, "1")).await;
        assert_eq!(answer.status, 204);
        let kept = rejected_messages(&relay).await;
        assert_eq!(kept.len(), 1);
        assert!(kept[0].reason.contains("`globex`"), "{}", kept[0].reason);
        relay.finish().await;
        assert_eq!(svix.message_count(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_the_url_does_where_there_is_no_token() {
    bounded(async {
        // holds: 47
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let mut config = config(&database, &svix);
        config.ingest.pubsub_push.token = Some(SECRET.into());
        let relay = TestRelay::start_with(config).await;
        let body = push(r#"{"id":"1","type":"a"}"#, "1");
        let post = async |query: &str, headers: &[(&str, &str)]| {
            let all = [&[("content-type", "application/json")], headers].concat();
            relay.send(Method::POST, &format!("/notifications{query}"), &all, body.clone()).await
        };
        assert_eq!(post("?token=a%20secret%2Fof+24+letters%2B%26", &[]).await.status, 202);
        // A token that nobody asked for is not looked at.
        let bearer = [("authorization", "Bearer a.b.c")];
        assert_eq!(post("?x=1&token=a%20secret%2Fof+24+letters%2B%26", &bearer).await.status, 202);
        for query in
            ["?token=a%20secret%2Fof+24+letters%2B", "?token=", "?token=other&token=x", "?other=1", ""]
        {
            let refused = post(query, &[]).await;
            assert_eq!(
                (refused.status.as_u16(), refused.problem().as_str()),
                (401, "unauthorized"),
                "{query}"
            );
            assert!(!String::from_utf8_lossy(&refused.body).contains("secret/of"));
        }
        relay.finish().await;
        assert_eq!(svix.message_count(), 1);
    })
    .await;
}
