//! Bodies that are refused as a whole.

use rstest::rstest;

use super::*;

#[rstest]
#[case::empty("", "the body is empty", 1, 1)]
#[case::blank(" \n\t ", "the body is empty", 2, 3)]
#[case::null("null", "expected an object or an array of objects", 1, 1)]
#[case::number("\n  17", "expected an object or an array of objects", 2, 3)]
#[case::string("\"{}\"", "expected an object or an array of objects", 1, 1)]
#[case::nonsense("<xml/>", "expected an object or an array of objects", 1, 1)]
#[case::cut_object("{\"type\":", "EOF while parsing a value", 1, 8)]
#[case::cut_array("[{\"type\":\"t\"}", "EOF while parsing a list", 1, 13)]
#[case::trailing("{\"type\":\"t\"} {}", "trailing characters", 1, 14)]
#[case::trailing_after_array("[]x", "trailing characters", 1, 3)]
#[case::trailing_comma("[{\"type\":\"t\"},]", "trailing comma", 1, 15)]
#[case::second_line("[{},\n {\"a\" 1}]", "expected `:`", 2, 7)]
#[case::control_character(
    "{\"type\":\"\u{1}\"}",
    "control character (\\u0000-\\u001F) found while parsing a string",
    1,
    9
)]
#[case::bad_escape("{\"type\":\"t\",\"data\":\"\\x\"}", "invalid escape", 1, 22)]
#[case::bad_number("{\"type\":\"t\",\"data\":01}", "invalid number", 1, 21)]
fn malformed(#[case] text: &str, #[case] detail: &str, #[case] line: usize, #[case] column: usize) {
    // holds: 5
    let error = parse_as(JSON, text.to_owned(), &settings()).unwrap_err();
    assert_eq!(error, ParseError::Malformed { detail: detail.to_owned(), line, column });
}

#[test]
fn bytes_that_are_no_utf_8() {
    // holds: 5
    let error = parse_as(JSON, &b"{\"type\":\n\"\xC3\x28\"}"[..], &settings()).unwrap_err();
    assert_eq!(error, ParseError::Malformed { detail: "not UTF-8".to_owned(), line: 2, column: 2 });
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let draft = event("\u{feff}{\"type\":\"t\"}");
    assert_eq!(body(&draft), r#"{"type":"t"}"#);
}

#[rstest]
#[case::json("application/json", "{", true)]
#[case::json_array("application/json", "[", true)]
#[case::case_and_charset("Application/JSON; charset=\"UTF-8\"", "{", true)]
#[case::spaces("application/json ;charset=utf-8 ; x=y", "{", true)]
#[case::event("application/cloudevents+json; charset=utf-8", "{", true)]
#[case::event_array("application/cloudevents+json", "[", false)]
#[case::batch("application/cloudevents-batch+json", "[", true)]
#[case::batch_object("application/cloudevents-batch+json", "{", false)]
fn structured_types(#[case] content_type: &str, #[case] opening: &str, #[case] is_read: bool) {
    let text = if opening == "[" { r#"[{"type":"t"}]"# } else { r#"{"type":"t"}"# };
    match parse_as(content_type, text, &settings()) {
        Ok(batch) => assert!(is_read && batch.items[0].result.is_ok()),
        Err(error) => assert!(!is_read && matches!(error, ParseError::Malformed { .. }), "{error:?}"),
    }
}

#[rstest]
#[case::none(None, "no Content-Type: send application/json")]
#[case::form(Some("application/x-www-form-urlencoded"), "curl -d needs -H 'Content-Type: application/json'")]
#[case::text(Some("text/plain"), "`text/plain` is not read here")]
#[case::other_format(Some("application/cloudevents+avro"), "`application/cloudevents+avro` is not read here")]
#[case::other_json(Some("application/vnd.shop+json"), "is not read here")]
#[case::charset(Some("application/json; charset=utf-16"), "UTF-8 only")]
#[case::nonsense(Some(";;="), "is not read here")]
fn other_types(#[case] content_type: Option<&str>, #[case] hint: &str) {
    // holds: 5
    let incoming =
        Incoming { body: r#"{"type":"t"}"#.into(), content_type, headers: &HeaderMap::new(), tenant: None };
    let Err(ParseError::UnsupportedType { detail }) = parse(&incoming, &settings()) else { panic!("read") };
    assert!(detail.contains(hint), "{detail}");
}

#[test]
fn a_batch_has_a_limit() {
    // holds: 5
    let batch_of = |events: usize| format!("[{}]", vec![r#"{"type":"t"}"#; events].join(","));
    assert_eq!(parse_json(batch_of(5)).items.len(), 5);
    let error = parse_as(JSON, batch_of(6), &settings()).unwrap_err();
    assert_eq!(error, ParseError::TooManyEvents { limit: 5 });
    // What comes after isn't looked at.
    let error = parse_as(JSON, batch_of(6) + "!", &settings()).unwrap_err();
    assert_eq!(error, ParseError::TooManyEvents { limit: 5 });
}

#[test]
fn nesting_has_a_limit_wherever_it_is() {
    // holds: 5
    let plain = |levels| format!(r#"{{"type":"t","data":{}}}"#, nested(levels));
    let in_extension = |levels| format!(r#"{{"type":"t","x":{}}}"#, nested(levels));
    for event_of in [&plain as &dyn Fn(usize) -> String, &in_extension] {
        assert_eq!(parse_json(event_of(127)).items.len(), 1);
        assert_eq!(parse_as(JSON, event_of(128), &settings()).unwrap_err(), ParseError::TooDeep);
        assert_eq!(parse_json(format!("[{}]", event_of(126))).items.len(), 1);
        let error = parse_as(JSON, format!("[{}]", event_of(127)), &settings()).unwrap_err();
        assert_eq!(error, ParseError::TooDeep);
    }
}

#[test]
fn brackets_side_by_side_or_in_strings_are_not_depth() {
    let text = format!(r#"{{"type":"t","data":["{}\"[{{\\",{}0]}}"#, "[{".repeat(300), "[],{},".repeat(300));
    assert_eq!(body(&event(&text)), text);
}

#[rstest]
#[case::arrays(nested(200_000))]
#[case::left_open("[".repeat(200_000))]
#[case::objects(r#"{"a":"#.repeat(200_000))]
#[case::in_data(format!(r#"{{"type":"t","data":{}}}"#, nested(200_000)))]
#[case::in_an_element(format!(r#"[{{"type":"t"}},{{"type":"t","data":{}}}]"#, nested(200_000)))]
fn depth_takes_no_stack(#[case] text: String) {
    // holds: 5
    let settings = ParseSettings { max_event_bytes: usize::MAX, ..settings() };
    // Far less than a thread has.
    let thread = std::thread::Builder::new().stack_size(256 * 1024);
    let outcome = thread.spawn(move || parse_as(JSON, text, &settings)).unwrap().join().unwrap();
    assert_eq!(outcome.unwrap_err(), ParseError::TooDeep);
}
