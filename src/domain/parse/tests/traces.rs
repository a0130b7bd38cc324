//! Which trace an event belongs to: its own word, else its message's, else its request's. Never a reason to refuse it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn parent(trace: u8) -> String {
    format!("00-{trace:032x}-00f067aa0ba902b7-01")
}

/// The traces of a body's events, as their last digits; 0 for none.
fn traces(header: Option<&str>, body: &str) -> Vec<u128> {
    let mut named = vec![("tracestate", "a=1")];
    named.extend(header.map(|header| ("traceparent", header)));
    let headers = headers(&named);
    let incoming =
        Incoming { body: body.to_owned().into(), content_type: Some(JSON), headers: &headers, tenant: None };
    let items = parse(&incoming, &settings()).unwrap().items.into_iter();
    items.map(|item| item.result.unwrap().trace.map_or(0, |trace| trace.trace_id)).collect()
}

#[test]
fn an_events_own_word_goes_before_its_requests() {
    let own = format!(r#"{{"id":"1","type":"t","traceparent":"{}","tracestate":"b=2"}}"#, parent(7));
    let body = format!(r#"[{own},{{"id":"2","type":"t"}},{{"id":"3","type":"t","traceparent":"none"}}]"#);
    assert_eq!(traces(Some(&parent(5)), &body), [7, 5, 5]);
    assert_eq!(traces(None, &body), [7, 0, 0]);
    assert_eq!(traces(Some("00-what"), &own), [7]);
    // Not a string, and there twice: a nuisance, and no fault of the event.
    let odd = format!(r#"{{"id":"1","type":"t","traceparent":5,"traceparent":"{}"}}"#, parent(9));
    assert_eq!(traces(None, &odd), [9]);
    let draft = event(&own);
    assert_eq!(draft.trace.unwrap().state(), Some("b=2"));
}

#[test]
fn events_of_a_request_share_what_it_came_with() {
    let headers = headers(&[("traceparent", &parent(5))]);
    let body = Bytes::from_static(br#"[{"id":"1","type":"t"},{"id":"2","type":"t"}]"#);
    let incoming = Incoming { body, content_type: Some(JSON), headers: &headers, tenant: None };
    let items = parse(&incoming, &settings()).unwrap().items;
    let traces: Vec<_> = items.into_iter().map(|item| item.result.unwrap().trace.unwrap()).collect();
    assert!(Arc::ptr_eq(&traces[0], &traces[1]));
}

#[test]
fn binary_mode_has_it_among_its_attributes() {
    let named =
        [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-id", "1"), ("ce-traceparent", &*parent(3))];
    let headers = headers(&named);
    let body = Bytes::from_static(b"{}");
    let incoming = Incoming { body, content_type: Some(JSON), headers: &headers, tenant: None };
    let draft = only(parse(&incoming, &settings()).unwrap()).unwrap();
    assert_eq!(draft.trace.unwrap().trace_id, 3);
}

#[test]
fn a_brokers_message_has_it_in_a_header() {
    for name in ["traceparent", "Traceparent", "googclient_traceparent"] {
        let attributes = [(name.to_owned(), parent(4)), ("tracestate".to_owned(), "a=1".to_owned())];
        let message = IncomingMessage {
            body: Bytes::from_static(br#"{"id":"1","type":"t"}"#),
            attributes: &attributes,
            content_type: None,
            identity: None,
            first_index: 0,
            tenant: None,
        };
        let items = parse_message(&message, &settings());
        let trace = items[0].result.as_ref().unwrap().trace.clone().unwrap();
        assert_eq!((trace.trace_id, trace.state()), (4, Some("a=1")), "{name}");
    }
}

#[test]
fn a_push_has_it_among_its_attributes_else_its_request() {
    let inner = STANDARD.encode(br#"{"id":"1","type":"t"}"#);
    let push = |attributes: &str| {
        format!(
            r#"{{"message":{{"attributes":{attributes},"data":"{inner}","messageId":"1"}},"subscription":"s"}}"#
        )
    };
    for name in ["traceparent", "googclient_traceparent"] {
        let attributes = format!(r#"{{"{name}":"{}"}}"#, parent(6));
        assert_eq!(traces(Some(&parent(5)), &push(&attributes)), [6], "{name}");
    }
    assert_eq!(traces(Some(&parent(5)), &push("{}")), [5]);
}
