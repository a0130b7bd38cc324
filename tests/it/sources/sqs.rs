//! A queue of the mock SQS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::{Outgoing, Queue};
use crate::support::HttpClient;
use crate::support::brokers::Broker;
use crate::support::eventually;

/// Most messages in one request.
const PER_REQUEST: usize = 10;
/// Tells the mock which of its services is meant; it looks at nothing else.
const AUTHORIZATION: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0";

pub struct SqsQueue {
    broker: Broker,
    url: String,
}

impl SqsQueue {
    async fn ask(&self, action: &str, mut question: Value) -> Value {
        question["QueueUrl"] = json!(self.url);
        ask(&HttpClient::new(self.broker.url()), action, &question).await
    }

    /// How many messages wait, and how many are in flight.
    async fn counts(&self) -> (u64, u64) {
        let names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let answer = self.ask("GetQueueAttributes", json!({"AttributeNames": names})).await;
        let count =
            |name: &str| answer["Attributes"][name].as_str().expect("a count").parse().expect("a number");
        (count(names[0]), count(names[1]))
    }
}

async fn ask(client: &HttpClient, action: &str, question: &Value) -> Value {
    let target = format!("AmazonSQS.{action}");
    let headers = [
        ("x-amz-target", target.as_str()),
        ("authorization", AUTHORIZATION),
        ("content-type", "application/x-amz-json-1.0"),
    ];
    let answer = client.send(Method::POST, "/", &headers, question.to_string()).await;
    assert_eq!(answer.status, 200, "{action}: {}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

impl Queue for SqsQueue {
    /// SQS does not promise it, and its mock, which takes no lock, breaks it where two requests overlap.
    const HANDS_OUT_ONCE: bool = false;

    async fn start() -> Self {
        let broker = Broker::sqs().await;
        let made = ask(&HttpClient::new(broker.url()), "CreateQueue", &json!({"QueueName": "orders"})).await;
        Self { broker, url: made["QueueUrl"].as_str().expect("a URL").to_owned() }
    }

    fn broker(&mut self) -> &mut Broker {
        &mut self.broker
    }

    fn settings(&self) -> String {
        settings(&self.url, &self.broker.url())
    }

    async fn publish(&self, messages: &[Outgoing]) {
        for chunk in messages.chunks(PER_REQUEST) {
            let entries: Vec<_> = chunk
                .iter()
                .enumerate()
                .map(|(place, message)| {
                    let attribute = |(name, value): &(String, String)| {
                        (name.clone(), json!({"DataType": "String", "StringValue": value}))
                    };
                    let attributes: serde_json::Map<_, _> = message.headers.iter().map(attribute).collect();
                    let body = std::str::from_utf8(&message.body).expect("SQS carries text");
                    json!({"Id": place.to_string(), "MessageBody": body, "MessageAttributes": attributes})
                })
                .collect();
            let answer = self.ask("SendMessageBatch", json!({"Entries": entries})).await;
            assert_eq!(answer["Successful"].as_array().map(Vec::len), Some(chunk.len()), "{answer}");
        }
    }

    async fn waiting(&self) -> u64 {
        self.counts().await.0
    }

    async fn left(&self) -> u64 {
        let (waiting, in_flight) = self.counts().await;
        waiting + in_flight
    }

    async fn deliver_again(&self, _: &[Outgoing]) {
        unreachable!("what SQS has deleted is gone: see ForgetfulSqs");
    }

    fn poison() -> Vec<u8> {
        b"not JSON".to_vec()
    }
}

fn settings(queue_url: &str, endpoint_url: &str) -> String {
    format!(
        "kind = 'sqs'\nqueue_url = '{queue_url}'\nregion = 'us-east-1'\nendpoint_url = '{endpoint_url}'\n\
         access_key_id = 'test'\nsecret_access_key = 'test'\nvisibility_timeout_ms = {}",
        SqsQueue::REDELIVERY_MS
    )
}

/// A queue whose deletions get lost on their way for as long as nobody asks for messages again.
pub struct ForgetfulSqs {
    queue: SqsQueue,
    /// Where the relay believes SQS to be.
    url: String,
    way: Arc<Way>,
}

struct Way {
    sqs: HttpClient,
    /// How many deletions were lost; they were answered as if they had not been.
    lost: AtomicU64,
    loses: AtomicBool,
}

async fn pass(State(way): State<Arc<Way>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(Body::new(body), usize::MAX).await.expect("a body");
    let target = head.headers["x-amz-target"].to_str().expect("ASCII").to_owned();
    let (_, action) = target.split_once('.').expect("a service and an action");
    let question: Value = serde_json::from_slice(&body).expect("JSON");
    let answer = if action == "DeleteMessageBatch" && way.loses.load(Ordering::SeqCst) {
        let entries = question["Entries"].as_array().expect("entries");
        way.lost.fetch_add(entries.len() as u64, Ordering::SeqCst);
        let done: Vec<_> = entries.iter().map(|entry| json!({"Id": entry["Id"]})).collect();
        json!({"Successful": done, "Failed": []})
    } else {
        ask(&way.sqs, action, &question).await
    };
    ([("content-type", "application/x-amz-json-1.0")], answer.to_string()).into_response()
}

impl Queue for ForgetfulSqs {
    const HANDS_OUT_ONCE: bool = SqsQueue::HANDS_OUT_ONCE;

    async fn start() -> Self {
        let queue = SqsQueue::start().await;
        let sqs = HttpClient::new(queue.broker.url());
        let way = Arc::new(Way { sqs, lost: AtomicU64::new(0), loses: AtomicBool::new(true) });
        let app = axum::Router::new().fallback(pass).with_state(way.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { queue, url, way }
    }

    fn broker(&mut self) -> &mut Broker {
        self.queue.broker()
    }

    fn settings(&self) -> String {
        settings(&self.queue.url, &self.url)
    }

    async fn publish(&self, messages: &[Outgoing]) {
        self.queue.publish(messages).await;
    }

    async fn waiting(&self) -> u64 {
        self.queue.waiting().await
    }

    async fn left(&self) -> u64 {
        self.queue.left().await.saturating_sub(self.way.lost.load(Ordering::SeqCst))
    }

    async fn deliver_again(&self, messages: &[Outgoing]) {
        self.way.loses.store(false, Ordering::SeqCst);
        self.way.lost.store(0, Ordering::SeqCst);
        let all = messages.len() as u64;
        eventually("all can be had again", async || (self.queue.waiting().await == all).then_some(())).await;
    }
}

suite!(SqsQueue, again: ForgetfulSqs);
