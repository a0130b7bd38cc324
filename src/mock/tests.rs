//! The mock, met over HTTP: with Svix's own client and with requests of our own.
#![allow(clippy::disallowed_methods, reason = "a test measures real time, as the mock does")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ::svix::api::{MessageCreateOptions, MessageGetOptions, Svix, SvixOptions};
use ::svix::error::Error;
use ::svix::models::{ApplicationIn, MessageIn, MessageOut};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rstest::rstest;
use serde_json::{Value, json};

use super::MockSvix;

mod event_types;
mod troubles;

const SECOND: Duration = Duration::from_secs(1);

/// Svix's own client, without its retries.
fn svix(mock: &MockSvix) -> Svix {
    let options =
        SvixOptions { server_url: Some(mock.url()), num_retries: Some(0), ..SvixOptions::default() };
    Svix::new(mock.token().to_owned(), Some(options))
}

fn message(event_id: &str) -> MessageIn {
    MessageIn {
        event_id: Some(event_id.to_owned()),
        ..MessageIn::new("invoice.paid".to_owned(), json!({ "total": 12 }))
    }
}

async fn create(client: &Svix, app: &str, message: MessageIn) -> Result<MessageOut, Error> {
    let messages = client.message();
    messages.create(app.to_owned(), message, None).await
}

fn body(event_id: &str) -> String {
    format!(r#"{{"eventId":"{event_id}","eventType":"invoice.paid","payload":{{"total":12}}}}"#)
}

fn status_of<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result.unwrap_err() {
        Error::Http(e) => (e.status.as_u16(), e.payload.map_or(String::new(), |p| p.code)),
        Error::Validation(e) => {
            let first = e.payload.unwrap().detail.swap_remove(0);
            (422, first.loc.join("."))
        }
        other => panic!("{other}"),
    }
}

/// A plain HTTP client, for what Svix's can't say or doesn't show.
struct Raw {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    token: Option<String>,
}

struct RawAnswer {
    status: StatusCode,
    retry_after: Option<String>,
    body: String,
}

impl RawAnswer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Raw {
    fn new(mock: &MockSvix) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: mock.url(),
            token: Some(mock.token().to_owned()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: &str,
    ) -> Result<RawAnswer, hyper_util::client::legacy::Error> {
        let mut request = hyper::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let answer = self.client.request(request).await?;
        let retry_after = answer.headers().get("retry-after");
        Ok(RawAnswer {
            status: answer.status(),
            retry_after: retry_after.map(|value| value.to_str().unwrap().to_owned()),
            body: String::from_utf8(answer.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        })
    }

    async fn post(&self, path: &str, key: Option<&str>, body: &str) -> RawAnswer {
        self.send(Method::POST, path, key, body).await.unwrap()
    }

    async fn get(&self, path: &str) -> RawAnswer {
        self.send(Method::GET, path, None, "").await.unwrap()
    }
}

const MESSAGES: &str = "/api/v1/app/acme/msg/?with_content=false";

async fn acme() -> (MockSvix, Raw) {
    let mock = MockSvix::builder().application("acme").start().await;
    let raw = Raw::new(&mock);
    (mock, raw)
}

#[tokio::test]
async fn svix_client_creates_and_gets_a_message() {
    let (mock, _) = acme().await;
    let client = svix(&mock);
    let mut new = message("evt_1");
    new.channels = Some(BTreeSet::from(["eu".to_owned()]));
    new.tags = Some(BTreeSet::from(["billing".to_owned()]));
    let options = MessageCreateOptions { with_content: None, idempotency_key: Some("key-1".to_owned()) };
    let messages = client.message();
    let created = messages.create("acme".to_owned(), new, Some(options));
    let created = created.await.unwrap();
    assert!(created.id.starts_with("msg_") && created.id.len() == 31);
    assert_eq!(created.payload, json!({}));

    for id in [&created.id, "evt_1"] {
        let options = MessageGetOptions { with_content: Some(true) };
        let got = messages.get("acme".to_owned(), id.to_owned(), Some(options));
        let got = got.await.unwrap();
        assert_eq!(got.payload, json!({ "total": 12 }));
        assert_eq!((&got.id, got.timestamp), (&created.id, created.timestamp));
        assert_eq!(got.channels, created.channels);
        assert_eq!(got.tags, created.tags);
    }

    let stored = mock.message("acme", "evt_1").unwrap();
    assert_eq!(stored.id, created.id);
    assert_eq!(stored.app, "acme");
    assert_eq!(stored.event_type, "invoice.paid");
    assert_eq!(stored.payload_json(), json!({ "total": 12 }));
    assert_eq!(stored.idempotency_key.as_deref(), Some("key-1"));
    assert_eq!(stored.channels, Some(vec!["eu".to_owned()]));
}

#[tokio::test]
async fn svix_client_is_refused_as_svix_refuses() {
    let mock = MockSvix::builder().token("right").application("acme").start().await;
    let client = svix(&mock);
    create(&client, "acme", message("evt_1")).await.unwrap();
    let other_body = MessageIn { payload: json!({ "total": 13 }), ..message("evt_1") };
    let conflict = (409, "conflict".to_owned());
    assert_eq!(status_of(create(&client, "acme", message("evt_1")).await), conflict);
    assert_eq!(status_of(create(&client, "acme", other_body).await), conflict);

    let not_found = (404, "not_found".to_owned());
    assert_eq!(status_of(create(&client, "nobody", message("x")).await), not_found);
    let messages = client.message();
    let nothing = messages.get("acme".to_owned(), "x".to_owned(), None);
    assert_eq!(status_of(nothing.await), not_found);

    let wrong = client.with_token("wrong".to_owned());
    let unauthorized = (401, "authentication_failed".to_owned());
    assert_eq!(status_of(create(&wrong, "acme", message("x")).await), unauthorized);
    let unknown = client.message().poller();
    let unknown = unknown.poll("acme".to_owned(), "sink".to_owned(), None);
    assert_eq!(status_of(unknown.await).0, 404);

    assert_eq!(mock.message_count(), 1);
    let statuses: Vec<_> = mock.requests().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [202, 409, 409, 404, 401].map(Some));
    assert_eq!(mock.requests_for("evt_1").len(), 3);
}

#[tokio::test]
async fn svix_client_manages_applications() {
    let mock = MockSvix::start().await;
    let client = svix(&mock);
    let new = ApplicationIn {
        uid: Some("acme".to_owned()),
        throttle_rate: Some(5),
        ..ApplicationIn::new("Acme Inc.".to_owned())
    };
    let apps = client.application();
    let created = apps.get_or_create(new.clone(), None).await.unwrap();
    assert!(created.id.starts_with("app_") && created.id.len() == 31);
    assert_eq!(created.throttle_rate, Some(5));
    assert_eq!(apps.get_or_create(new.clone(), None).await.unwrap(), created);
    assert_eq!(apps.get("acme".to_owned()).await.unwrap(), created);
    assert_eq!(apps.get(created.id.clone()).await.unwrap(), created);
    assert_eq!(status_of(apps.create(new, None).await).0, 409);
    assert_eq!(status_of(apps.get("nobody".to_owned()).await).0, 404);

    let by_id = create(&client, &created.id, message("evt_1")).await;
    by_id.unwrap();
    assert_eq!(mock.message("acme", "evt_1").unwrap().app, "acme");
}

#[tokio::test]
async fn a_message_may_bring_its_application() {
    let mock = MockSvix::start().await;
    let client = svix(&mock);
    let with = |uid: Option<&str>| MessageIn {
        application: Some(ApplicationIn {
            uid: uid.map(str::to_owned),
            ..ApplicationIn::new("Acme".to_owned())
        }),
        ..message("evt_1")
    };
    let create = |message| create(&client, "acme", message);
    let mismatch = (422, "body.application.uid".to_owned());
    assert_eq!(status_of(create(with(Some("other"))).await), mismatch);
    assert_eq!(status_of(create(with(None)).await), mismatch);
    create(with(Some("acme"))).await.unwrap();
    assert_eq!(mock.message_count(), 1);

    let lenient = MockSvix::builder().create_applications(true).start().await;
    let raw = Raw::new(&lenient);
    assert_eq!(raw.post(MESSAGES, None, &body("evt_1")).await.status, 202);
}

#[rstest]
#[case::not_json("nonsense", ["body", "", ""].as_slice(), "value_error.jsondecode")]
#[case::no_type(r#"{"payload":{}}"#, &["body", "", ""], "value_error.jsondecode")]
#[case::number(r#"{"eventType":1,"payload":{}}"#, &["body", "eventType"], "value_error.jsondecode")]
#[case::bad_type(r#"{"eventType":"a b","payload":{}}"#, &["body", "event_type", "__all__"], "value_error")]
#[case::bad_id(r#"{"eventType":"a","eventId":"ü","payload":{}}"#, &["body", "uid", "__all__"], "value_error")]
#[case::id_like_svix(r#"{"eventType":"a","eventId":"msg_1","payload":{}}"#, &["body", "uid", "__all__"], "value_error")]
#[case::array(r#"{"eventType":"a","payload":[]}"#, &["body", "payload"], "value_error")]
#[case::null(r#"{"eventType":"a","payload":null}"#, &["body", "payload"], "value_error")]
#[case::no_channels(r#"{"eventType":"a","payload":{},"channels":[]}"#, &["body", "channels"], "value_error")]
#[case::app_name(r#"{"eventType":"a","payload":{},"application":{"name":""}}"#, &["body", "application", "name"], "value_error")]
#[tokio::test]
async fn invalid_bodies_are_refused(#[case] body: &str, #[case] loc: &[&str], #[case] kind: &str) {
    let (mock, raw) = acme().await;
    let answer = raw.post(MESSAGES, Some("key"), body).await;
    assert_eq!(answer.status, 422);
    let detail = &answer.json()["detail"][0];
    assert_eq!(detail["loc"], json!(loc), "{detail}");
    assert_eq!(detail["type"], kind);
    assert_ne!(detail["msg"], "");
    assert_eq!(mock.message_count(), 0);
}

#[tokio::test]
async fn limits_are_svixs() {
    let (_mock, raw) = acme().await;
    let long = "x".repeat(256);
    assert_eq!(raw.post(MESSAGES, None, &body(&long)).await.status, 202);
    assert_eq!(raw.post(MESSAGES, None, &body(&(long + "x"))).await.status, 422);
    let big = "x".repeat(1024 * 1024);
    let big = format!(r#"{{"eventType":"a","payload":{{"a":"{big}"}}}}"#);
    let answer = raw.post(MESSAGES, None, &big).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["code"], "payload_too_large");
    let answer = raw.post("/api/v1/app/a%20b/msg", None, &body("x")).await;
    assert_eq!(answer.json()["detail"][0]["loc"][0], "path");
    let answer = raw.get("/api/v1/app/acme/msg/x?with_content=maybe").await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn payloads_are_kept_as_sent_and_printed_as_svix_prints() {
    let (mock, raw) = acme().await;
    let payload = r#"{ "b": 1.10, "a": "\u00e9" }"#;
    let body = format!(r#"{{"eventType":"a","eventId":"evt_1","data": {payload} }}"#);
    let with_content = "/api/v1/app/acme/msg";
    let answer = raw.post(with_content, None, &body).await;
    let printed = r#""payload":{"a":"é","b":1.10},"channels":null,"#;
    assert!(answer.body.contains(printed), "{}", answer.body);
    assert_eq!(mock.messages()[0].payload, payload);

    for path in ["/msg/evt_1", "/msg/evt_1/", "/msg/evt_1?with_content=true"] {
        let answer = raw.get(&format!("/api/v1/app/acme{path}")).await;
        assert!(answer.body.contains(printed), "{}", answer.body);
    }
    let answer = raw.get("/api/v1/app/acme/msg/evt_1/?with_content=false").await;
    assert_eq!(answer.json()["payload"], json!({}));
}

#[tokio::test]
async fn a_repeated_key_replays_the_answer() {
    let (mock, raw) = acme().await;
    let first = raw.post(MESSAGES, Some("k1"), &body("evt_1")).await;
    let again = raw.post(MESSAGES, Some("k1"), &body("evt_other")).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    let without_slash = MESSAGES.replace("/?", "?");
    let again = raw.post(&without_slash, Some("k1"), &body("evt_1")).await;
    assert_eq!(again.body, first.body);
    assert_eq!(mock.message_count(), 1);
    assert!(mock.requests()[1].replayed && mock.requests()[1].stored.is_none());

    let other_url = "/api/v1/app/acme/msg";
    let answer = raw.post(other_url, Some("k1"), &body("evt_1")).await;
    assert_eq!(answer.status, 409, "keys are scoped by URL");
    let refused = raw.post(MESSAGES, Some("k2"), &body("evt_1")).await;
    assert_eq!(refused.status, 409);
    assert!(mock.remove_message("acme", "evt_1"));
    assert!(!mock.remove_message("acme", "evt_1"));
    let replayed = raw.post(MESSAGES, Some("k1"), &body("evt_1")).await;
    assert_eq!(replayed.body, first.body, "the key outlives the message");
    let stored = raw.post(MESSAGES, Some("k2"), &body("evt_1")).await;
    assert_eq!(stored.status, 202, "the refusal was not kept");

    mock.forget_idempotency_keys();
    let answer = raw.post(MESSAGES, Some("k1"), &body("evt_1")).await;
    assert_eq!(answer.status, 409);
    mock.set_replay_by_key(false);
    let answer = raw.post(MESSAGES, Some("k2"), &body("evt_1")).await;
    assert_eq!(answer.status, 409);

    let anonymous = Raw { token: None, ..raw };
    mock.set_replay_by_key(true);
    let answer = anonymous.post(MESSAGES, Some("k3"), &body("evt_3")).await;
    assert_eq!(answer.status, 202);
    let answer = anonymous.post(MESSAGES, Some("k3"), &body("evt_3")).await;
    assert_eq!(answer.status, 409, "without a token nothing is kept");
}

#[tokio::test]
async fn it_listens_where_it_is_told_and_stops_with_its_last_handle() {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mock = MockSvix::builder().listen(any_port).unwrap().start().await;
    let address = mock.address();
    assert!(MockSvix::builder().listen(address).is_err());
    let raw = Raw::new(&mock);
    assert_eq!(raw.get("/api/v1/app/acme").await.status, 404);
    let other = mock.clone();
    drop(mock);
    assert_eq!(raw.get("/").await.status, 404);
    drop(other);
    let deadline = Instant::now() + 5 * SECOND;
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "still listening");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// More requests than the server serves between two remounts, and more than it remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_messages_from_many_connections() {
    const TASKS: u64 = 20;
    const EACH: u64 = 1000;
    let mock = MockSvix::builder().application("acme").record_limit(5000).start().await;
    let tasks = (0..TASKS).map(|task| {
        let raw = Raw::new(&mock);
        tokio::spawn(async move {
            for i in 0..EACH {
                let id = format!("{task}-{i}");
                let answer = raw.post(MESSAGES, Some(&id), &body(&id)).await;
                assert_eq!(answer.status, 202, "{}", answer.body);
            }
        })
    });
    let start = Instant::now();
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    println!("{} messages in {:?}", TASKS * EACH, start.elapsed());
    assert_eq!(mock.message_count(), TASKS * EACH);
    assert_eq!(mock.request_count(), TASKS * EACH);
    assert_eq!((mock.messages().len(), mock.requests().len()), (5000, 5000));
    let oldest = mock.messages()[0].event_id.clone().unwrap();
    assert!(mock.message("acme", &oldest).is_some());
    assert!(mock.message("acme", "0-0").is_none(), "forgotten");
}
