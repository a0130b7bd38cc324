//! One trace, from the producer's span over ours to the receiver's header.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as OtlpValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use posthaste::config::Config;
use posthaste::mock::{MockPartner, PartnerAnswer};
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::partners::{add_endpoint, direct};
use crate::support::{TestDatabase, TestRelay, config, eventually, mock_svix};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    services: Arc<Mutex<HashSet<String>>>,
}

impl Collector {
    /// Starts; its base URL.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// The spans of a trace with this name.
    fn named(&self, trace: &str, name: &str) -> Vec<Span> {
        let spans = self.spans.lock().expect("whole");
        spans.iter().filter(|span| hex(&span.trace_id) == trace && span.name == name).cloned().collect()
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    for of_resource in request.resource_spans {
        for attribute in of_resource.resource.expect("a resource").attributes {
            if let (true, Some(OtlpValue::StringValue(name))) =
                (attribute.key == "service.name", attribute.value.and_then(|value| value.value))
            {
                collector.services.lock().expect("whole").insert(name);
            }
        }
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        collector.spans.lock().expect("whole").extend(spans);
    }
    StatusCode::OK
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(span: &Span, name: &str) -> Option<i64> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        OtlpValue::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn parent(trace: &str) -> String {
    format!("00-{trace}-{PRODUCER}-01")
}

async fn traced(mut config: Config, collector: &Collector) -> TestRelay {
    config.traces.otlp_endpoint = Some(collector.start().await);
    config.traces.sample_ratio = Some(0.0);
    TestRelay::start_with(config).await
}

async fn a_trace_goes_from_the_producer_to_the_receiver(database: TestDatabase) {
    let (svix, collector) = (mock_svix().await, Collector::default());
    let relay = traced(direct(&database, &svix), &collector).await;
    let partner = MockPartner::start().await;
    partner.script([PartnerAnswer::status(500)]);
    // Long enough to be read back from the ledger.
    add_endpoint(&relay, "crm", json!({"url": partner.url("/"), "retry_schedule_ms": [1_100]})).await;
    let headers = [("traceparent", &*parent(TRACE)), ("tracestate", "congo=t61rcWkgMzE")];
    let event = json!({"id": "evt_1", "tenant": "acme", "type": "a", "data": {}});
    assert_eq!(relay.post_with(&headers, event.to_string()).await.status, 202);
    // The failure is for this one.
    eventually("it has failed once", async || (partner.request_count() > 0).then_some(())).await;
    // One without a trace: nobody asked for one.
    assert_eq!(
        relay.post(json!({"id": "evt_2", "tenant": "acme", "type": "a"}).to_string()).await.status,
        202
    );
    relay.settled().await;
    let attempts = eventually("both attempts are exported", async || {
        let attempts = collector.named(TRACE, "attempt");
        (attempts.len() == 2).then_some(attempts)
    })
    .await;
    let (accepts, commits) = (collector.named(TRACE, "accept"), collector.named(TRACE, "commit"));
    assert_eq!((accepts.len(), commits.len()), (1, 1));
    let accept = &accepts[0];
    assert_eq!(hex(&accept.parent_span_id), PRODUCER);
    assert_eq!(
        (number(accept, "posthaste.events.accepted"), &*accept.trace_state),
        (Some(1), "congo=t61rcWkgMzE")
    );
    assert_eq!(commits[0].parent_span_id, accept.span_id);
    assert!(attempts.iter().all(|attempt| attempt.parent_span_id == accept.span_id));
    assert!(attempts.iter().all(|attempt| attempt.end_time_unix_nano >= attempt.start_time_unix_nano));
    let statuses: Vec<_> =
        attempts.iter().map(|attempt| number(attempt, "http.response.status_code")).collect();
    assert_eq!(statuses, [Some(500), Some(204)]);
    let codes: Vec<_> =
        attempts.iter().map(|attempt| attempt.status.as_ref().map(|status| status.code)).collect();
    assert_eq!(codes, [Some(2), None], "the first has failed");
    let received: Vec<_> = partner
        .requests()
        .into_iter()
        .filter(|request| !request.header("traceparent").is_empty())
        .map(|request| (request.header("traceparent").to_owned(), request.header("tracestate").to_owned()))
        .collect();
    let sent =
        |span: &Span| (format!("00-{TRACE}-{}-01", hex(&span.span_id)), "congo=t61rcWkgMzE".to_owned());
    assert_eq!(
        received,
        attempts.iter().map(sent).collect::<Vec<_>>(),
        "each its own span, and only of evt_1"
    );
    assert_eq!(partner.request_count(), 3);
    assert_eq!(*collector.services.lock().expect("whole"), HashSet::from(["posthaste".to_owned()]));
    relay.finish().await;
    let spans = collector.spans.lock().expect("whole");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "none of its own");
}

async fn events_of_one_request_may_belong_to_different_traces(database: TestDatabase) {
    let (svix, collector) = (mock_svix().await, Collector::default());
    let relay = traced(config(&database, &svix), &collector).await;
    let (own, unsampled) = ("a".repeat(32), "b".repeat(32));
    let events = json!([
        {"id": "evt_1", "type": "a", "traceparent": parent(&own), "tracestate": "x=1"},
        {"id": "evt_2", "type": "a"},
        {"id": "evt_3", "type": "a", "traceparent": "not one"},
        {"id": "evt_4", "type": "a", "traceparent": format!("00-{unsampled}-{PRODUCER}-00")},
    ]);
    let answer = relay.post_with(&[("traceparent", &parent(TRACE))], events.to_string()).await;
    assert_eq!(answer.status, 202, "a trace is never a reason to refuse an event");
    relay.finish().await;
    let events = |trace: &str| {
        collector
            .named(trace, "accept")
            .iter()
            .map(|span| number(span, "posthaste.events"))
            .collect::<Vec<_>>()
    };
    // The end has exported what was left.
    assert_eq!((events(&own), events(&unsampled)), (vec![Some(1)], vec![]));
    assert_eq!(events(TRACE).into_iter().flatten().sum::<i64>(), 2);
    assert_eq!((collector.named(&own, "attempt").len(), collector.named(TRACE, "attempt").len()), (1, 2));
}

/// What a relay that exports nothing forwards; and none where that is off.
async fn without_a_collector_the_trace_goes_through(database: TestDatabase) {
    let svix = mock_svix().await;
    let partner = MockPartner::start().await;
    let relay = TestRelay::start_with(direct(&database, &svix)).await;
    add_endpoint(&relay, "crm", json!({"url": partner.url("/")})).await;
    let headers = [("traceparent", &*parent(TRACE)), ("tracestate", "a=1")];
    let event = |n: usize| json!({"id": format!("evt_{n}"), "tenant": "acme", "type": "a"}).to_string();
    assert_eq!(relay.post_with(&headers, event(1)).await.status, 202);
    relay.finish().await;
    let mut quiet = direct(&database, &svix);
    quiet.traces.forward = false;
    let relay = TestRelay::start_with(quiet).await;
    assert_eq!(relay.post_with(&headers, event(2)).await.status, 202);
    relay.finish().await;
    let received: Vec<_> =
        partner.requests().iter().map(|request| request.header("traceparent").to_owned()).collect();
    assert_eq!(received, [parent(TRACE), String::new()]);
}

on_both_databases!(
    a_trace_goes_from_the_producer_to_the_receiver,
    events_of_one_request_may_belong_to_different_traces,
    without_a_collector_the_trace_goes_through,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_gone_stops_nothing() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    // It takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut config = config(&database, &svix);
    config.traces.otlp_endpoint = Some(format!("http://{}", listener.local_addr().expect("an address")));
    let relay = TestRelay::start_with(config).await;
    for first in (0..10_000).step_by(500) {
        let events: Vec<_> = (first..first + 500)
            .map(|n| json!({"id": format!("evt_{n}"), "type": "a", "traceparent": parent(&format!("{:032x}", n + 1))}))
            .collect();
        assert_eq!(relay.post(json!(events).to_string()).await.status, 202);
    }
    relay.settled().await;
    let text = String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text");
    let dropped = crate::support::metrics::sum(&text, "posthaste_trace_spans_total", &["result=\"dropped\""]);
    assert!(dropped > Some(0.0), "{dropped:?}");
    tokio::time::timeout(Duration::from_secs(30), relay.finish()).await.expect("it ends in time");
    assert_eq!(svix.message_count(), 10_000);
}
