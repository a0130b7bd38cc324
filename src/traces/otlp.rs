//! The messages of OTLP that traces take (opentelemetry-proto 1.x, `trace.proto` and `common.proto`): as many of their
//! fields as we fill.

use prost::Message;

use super::{Ended, Value};

/// `ExportTraceServiceRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    /// 0 unset, 1 good, 2 an error.
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "OneValue", tags = "1, 3")]
    value: Option<OneValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OneValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// A request for these spans.
pub(super) fn request(resource: &[(String, String)], ended: Vec<Ended>) -> ExportRequest {
    let attributes = resource.iter().map(|(name, value)| pair(name, Value::Text(value.clone()))).collect();
    let scope = Scope { name: "posthaste".into(), version: env!("CARGO_PKG_VERSION").into() };
    let spans = ended.into_iter().map(span).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    ExportRequest {
        resource_spans: vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }],
    }
}

fn span(ended: Ended) -> Span {
    let began_ns = ended.began_at.as_millis().max(0).unsigned_abs().saturating_mul(1_000_000);
    Span {
        trace_id: ended.context.trace_id.to_be_bytes().to_vec(),
        span_id: ended.context.span_id.to_be_bytes().to_vec(),
        trace_state: ended.context.state().unwrap_or_default().to_owned(),
        parent_span_id: ended.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: ended.name.into(),
        kind: ended.kind as i32,
        start_time_unix_nano: began_ns,
        end_time_unix_nano: began_ns.saturating_add(ended.took_ns),
        attributes: ended.attributes.into_iter().map(|(name, value)| pair(name, value)).collect(),
        status: ended.error.map(|message| Status { message, code: 2 }),
    }
}

fn pair(name: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => OneValue::Text(text),
        Value::Number(number) => OneValue::Number(number),
    };
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}
