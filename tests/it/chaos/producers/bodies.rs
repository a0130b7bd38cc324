//! Bodies that are too much, too deep, or no text.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use axum::http::Method;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::{Memory, Raw, serves, status};
use crate::chaos::{sized, tell};
use crate::ingest::batch;
use crate::support::{Answer, RelayProcess, TestDatabase, mock_svix, side_by_side};

const MIB: usize = 1 << 20;
const GZIP: (&str, &str) = ("content-encoding", "gzip");

on_both_databases!(
    gzip_bombs_are_refused_in_bounded_memory,
    what_is_no_text_is_refused_with_its_place,
    a_thousand_duplicates_at_once_are_one_row,
);

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("a Vec");
    encoder.finish().expect("a Vec")
}

/// So many MiB of one byte, in one piece.
fn bomb(byte: u8, mib: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let piece = vec![byte; MIB];
    (0..mib).for_each(|_| encoder.write_all(&piece).expect("a Vec"));
    encoder.finish().expect("a Vec")
}

async fn events(database: &TestDatabase) -> String {
    database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await
}

async fn gzip_bombs_are_refused_in_bounded_memory(database: TestDatabase) {
    // holds: 6
    let svix = mock_svix().await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    serves(&relay, 0).await;
    let one_piece = sized(256, 1_024);
    let member = zip(&vec![b' '; MIB]);
    let bombs = [
        ("one piece", bomb(b' ', one_piece), 413),
        ("an array that never ends", zip(format!("[{}", " ".repeat(32 * MIB)).as_bytes()), 413),
        ("1,024 members, 1 GiB", member.repeat(1_024), 413),
        // What is in it is gzip again: unpacked once and no further.
        ("1 GiB packed twice", zip(&member.repeat(1_024)), 400),
    ];
    let memory = Memory::watch(&relay);
    let mut slowest = 0.0_f64;
    for (name, bomb, expected) in &bombs {
        // Five after one another: what one leaves behind adds up.
        for _ in 0..5 {
            let asked = Instant::now();
            let answer = relay
                .try_send(
                    Method::POST,
                    "/notifications",
                    &[("content-type", "application/json"), GZIP],
                    bomb.clone(),
                )
                .await;
            slowest = slowest.max(asked.elapsed().as_secs_f64());
            // Refused before all of it has come, which a client may learn as a connection that is gone.
            if let Ok(answer) = answer {
                assert_eq!(answer.status, *expected, "{name}: {}", answer.json());
            }
        }
    }
    let grown = memory.grown_mib();
    assert!(grown < 32.0, "{grown:.1} MiB");
    assert_eq!(events(&database).await, "3");
    serves(&relay, 10).await;
    let smallest = bombs.iter().map(|(_, bomb, _)| bomb.len()).min().unwrap_or_default();
    tell(
        "gzip bombs",
        format!(
            "{} kinds, of {smallest} bytes and more, up to 1 GiB unpacked: 413 or 400 within {slowest:.2} s, memory grew by {grown:.1} MiB",
            bombs.len()
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_is_read_to_its_end() {
    // holds: 5
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    let good = zip(batch(0, 2).as_bytes());
    // A gzip file is a series of members (RFC 1952 §2.2): one text may stand in several.
    let (one, other) = (br#"[{"id":"a","type":"a"},"#, br#"{"id":"b","type":"a"}]"#);
    for body in
        [good.clone(), [zip(one), zip(other)].concat(), [zip(b""), zip(batch(5, 2).as_bytes())].concat()]
    {
        let answer = relay.post_with(&[GZIP], body).await;
        assert_eq!(answer.statuses(), ["accepted"; 2], "{}", answer.status);
    }
    let mut flipped = good.clone();
    let crc = flipped.len() - 8;
    flipped[crc] ^= 1;
    for (name, body) in [
        ("half of it", good[..good.len() / 2].to_vec()),
        ("without its check", good[..good.len() - 8].to_vec()),
        ("another check", flipped),
        ("garbage after it", [&good[..], b"garbage"].concat()),
        ("half a member after it", [&good[..], &good[..12]].concat()),
        // Whoever reads the first alone acknowledges the second without having it.
        ("a second batch after it", [zip(batch(10, 1).as_bytes()), zip(batch(11, 1).as_bytes())].concat()),
        ("not packed", batch(10, 1).into_bytes()),
        ("nothing", Vec::new()),
    ] {
        let answer = relay.post_with(&[GZIP], body).await;
        assert_eq!(answer.status, 400, "{name}: {}", answer.json());
    }
    for coding in ["br", "deflate", "zstd", "compress", "gzip, gzip", "gzip, identity, br", "gzipx"] {
        let answer = relay.post_with(&[("content-encoding", coding)], good.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().as_str()),
            (415, "unsupported_encoding"),
            "{coding}"
        );
    }
    let two_lines = relay.post_with(&[GZIP, ("content-encoding", "br")], good.clone()).await;
    assert_eq!(two_lines.status, 415, "as if they stood in one line");
    // Codings are named in any case, and gzip has an older name (RFC 9110 §8.4.1).
    for coding in ["GZip", "x-gzip", "identity, gzip"] {
        let answer = relay.post_with(&[("content-encoding", coding)], good.clone()).await;
        assert_eq!(answer.statuses(), ["duplicate"; 2], "{coding}");
    }
    assert_eq!(events(&database).await, "6");
    serves(&relay, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_is_refused_wherever_json_is_read() {
    // holds: 5
    const DEPTH: usize = 100_000;
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    let arrays = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}1{}", "{\"a\":".repeat(DEPTH), "}".repeat(DEPTH));
    for body in [
        arrays.clone(),
        objects.clone(),
        "[".repeat(DEPTH),
        format!(r#"{{"id":"1","type":"a","data":{arrays}}}"#),
        format!(r#"[{{"id":"1","type":"a","data":{objects}}}]"#),
        format!(r#"{{"id":"1","type":"a","extension":{objects}}}"#),
    ] {
        let answer = relay.post(body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "too_deep"));
    }
    let binary = [("ce-id", "1"), ("ce-type", "a"), ("ce-specversion", "1.0")];
    let answer = relay.post_with(&binary, arrays.clone()).await;
    assert_eq!(answer.status, 400, "{}", answer.json());
    let json = [("content-type", "application/json")];
    // As deep as a body of 256 KiB can be.
    let arrays = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}1{}", "{\"a\":".repeat(40_000), "}".repeat(40_000));
    let mut refused = 7;
    for (method, path) in [
        (Method::PUT, "/v1/partners/crm"),
        (Method::PUT, "/v1/tenants/acme"),
        (Method::PUT, "/v1/event-types/a"),
        (Method::POST, "/v1/keys"),
        (Method::POST, "/v1/transforms/preview"),
        (Method::POST, "/v1/replays"),
        (Method::POST, "/v1/prune"),
    ] {
        for body in [arrays.clone(), format!(r#"{{"name":"a","transform":{}}}"#, objects)] {
            let answer = relay.send(method.clone(), path, &json, body).await;
            let status = answer.status.as_u16();
            assert!([400, 413, 422].contains(&status), "{method} {path}: {}", answer.json());
            refused += 1;
        }
    }
    assert_eq!(events(&database).await, "0");
    serves(&relay, 0).await;
    tell("deep JSON", format!("{refused} bodies of {DEPTH} levels refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_refused_in_bounded_memory() {
    // holds: 5
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    serves(&relay, 0).await;
    let memory = Memory::watch(&relay);
    let json = [("content-type", "application/json")];
    let answer = relay.post(batch(100, 10_001)).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "too_many_events"));
    let wide = format!(r#"{{"id":"w","type":"a","data":"{}"}}"#, "x".repeat(MIB));
    let answer = relay.post(wide).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid_events"));
    let mut text = String::from("[");
    (0..40_000).for_each(|n| write!(text, r#"{{"id":"i{n}"}},"#).expect("a String"));
    let answer = relay.post(text.trim_end_matches(',').to_owned() + "]").await;
    assert_eq!(answer.status, 413, "{}", answer.json());
    // Larger than the limit, with its length told and without.
    let over = "x".repeat(17 * MIB);
    for body in [over, format!("[{}", " ".repeat(40 * MIB))] {
        if let Ok(answer) = relay.try_send(Method::POST, "/notifications", &json, body).await {
            assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "body_too_large"));
        }
    }
    let mut client = Raw::open(&relay).await;
    let head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    client.say(head).await;
    let chunk = format!("{MIB:x}\r\n{}\r\n", " ".repeat(MIB));
    for _ in 0..40 {
        client.say(&chunk).await;
    }
    let (told, _) =
        client.closed(std::time::Duration::from_secs(10)).await.expect("the connection is closed");
    assert!(told.is_empty() || status(&told) == 413, "{told}");
    let answer = relay.send(Method::PUT, "/v1/partners/crm", &json, "x".repeat(MIB)).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "body_too_large"));
    let grown = memory.grown_mib();
    assert!(grown < 48.0, "{grown:.1} MiB");
    assert_eq!(events(&database).await, "3");
    serves(&relay, 10).await;
    tell(
        "bodies that are too large",
        format!("up to 40 MiB, with a length and without: memory grew by {grown:.1} MiB"),
    );
}

fn pointers(answer: &Answer) -> Vec<String> {
    let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().filter_map(|error| error["pointer"].as_str().map(str::to_owned)).collect()
}

async fn what_is_no_text_is_refused_with_its_place(database: TestDatabase) {
    let svix = mock_svix().await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    // No UTF-8 at all (RFC 8259 §8.1): the body can't be read, and the answer says where it ends to be text.
    for wrong in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"] {
        for place in [
            r#"{"id":"@","type":"a"}"#,
            r#"{"id":"1","type":"@"}"#,
            r#"[{"id":"1","type":"a","data":{"s":"@"}}]"#,
            r#"{"id":"1","type":"a","tenant":"@"}"#,
            r#"{"id":"1","type":"a","data":{"@":1}}"#,
        ] {
            let (before, after) = place.split_once('@').expect("a place");
            let body = [before.as_bytes(), wrong, after.as_bytes()].concat();
            for headers in [&[][..], &[("prefer", "handling=lenient")]] {
                let answer = relay.post_with(headers, body.clone()).await;
                let told = answer.json();
                assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "malformed"), "{told}");
                let column = format!("at line 1 column {}", before.len() + 1);
                assert!(
                    told["detail"].as_str().is_some_and(|detail| detail.contains(&column)),
                    "{column}: {told}"
                );
            }
        }
    }
    // JSON that is text, but whose strings are none, or names that can't be stored: each with a pointer.
    for (body, expected) in [
        (r#"[{"id":"ok","type":"a"},{"id":"\ud800","type":"a"}]"#, "/1/id"),
        (r#"[{"id":"1","type":"\udfff"}]"#, "/0/type"),
        (r#"{"id":"1","type":"a","tenant":"\ud800x"}"#, "/tenant"),
        (r#"{"id":"a\u0000b","type":"a"}"#, "/id"),
        (r#"{"id":"1","type":"a\u0000"}"#, "/type"),
        (r#"{"id":"1","type":"a","source":"\u0000"}"#, "/source"),
        (r#"{"id":"1","type":"a","tenant":"\u0000"}"#, "/tenant"),
    ] {
        let answer = relay.post(body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "invalid_events"), "{body}");
        assert_eq!(pointers(&answer), [expected], "{body}: {}", answer.json());
    }
    for (name, pointer) in
        [("ce-id", "/id"), ("ce-type", "/type"), ("ce-tenant", "/tenant"), ("ce-other", "/other")]
    {
        for wrong in [&b"%ff"[..], b"\xff", b"%c0%af", b"a%ed%a0%80"] {
            let told = raw_headers(&relay, &[(name, wrong)], true).await;
            assert_eq!(status(&told), 400, "{name}: {told}");
            assert!(told.contains(&format!("\"pointer\":\"{pointer}\"")), "{name}: {told}");
        }
    }
    for name in ["x-tenant", "idempotency-key", "content-type"] {
        let told = raw_headers(&relay, &[(name, &b"\xff\xfe"[..])], false).await;
        assert!(status(&told) == 400 && told.contains(name), "{name}: {told}");
    }
    for name in ["authorization", "x-api-key"] {
        assert_eq!(status(&raw_headers(&relay, &[(name, &b"\xff\xfe"[..])], false).await), 401, "{name}");
    }
    for path in [
        "/v1/events/%ff/1",
        "/v1/events/acme/%00",
        "/v1/tenants/%ff",
        "/v1/events?tenant=%ff",
        "/v1/deliveries/%ff",
        "/console/event?tenant=%ff&id=%00",
    ] {
        let answer = relay.get(path).await;
        assert!(answer.status.as_u16() < 500, "{path}: {}", answer.status);
    }
    assert_eq!(events(&database).await, "0");
    serves(&relay, 0).await;
}

/// What comes back for a good event with headers that need not be text, beside or as its attributes.
async fn raw_headers(relay: &RelayProcess, headers: &[(&str, &[u8])], binary: bool) -> String {
    let mut request = b"POST /notifications HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".to_vec();
    let mut defaults = vec![("content-type", "application/json")];
    if binary {
        defaults.extend([("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "a")]);
    }
    defaults.retain(|(name, _)| headers.iter().all(|(other, _)| other != name));
    let body = if binary { "{}" } else { r#"{"id":"1","type":"a"}"# };
    let length = body.len().to_string();
    defaults.push(("content-length", &length));
    let defaults = defaults.iter().map(|(name, value)| (*name, value.as_bytes()));
    for (name, value) in defaults.chain(headers.iter().copied()) {
        request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend([&b"\r\n"[..], body.as_bytes()].concat());
    let mut client = Raw::open(relay).await;
    client.say(request).await;
    client.closed(std::time::Duration::from_secs(5)).await.expect("closed as asked").0
}

async fn a_thousand_duplicates_at_once_are_one_row(database: TestDatabase) {
    // holds: 4
    let svix = mock_svix().await;
    let relay = RelayProcess::start(&database, &svix, &[]);
    let body = json!({"id": "one", "type": "a", "data": {"n": 1}}).to_string();
    let began = Instant::now();
    let posts = (0..1_000).map(|_| {
        let (client, body) = ((*relay).clone(), body.clone());
        async move { client.post(body).await }
    });
    let answers = side_by_side(posts).await;
    let took = began.elapsed().as_secs_f64();
    let count = |verdict: &str| {
        answers.iter().filter(|answer| answer.status == 202 && answer.statuses() == [verdict]).count()
    };
    assert_eq!((count("accepted"), count("duplicate")), (1, 999));
    assert_eq!(events(&database).await, "1");
    serves(&relay, 0).await;
    svix.wait_for_messages(4, std::time::Duration::from_secs(10)).await.expect("they arrive");
    assert_eq!(svix.message_count(), 4);
    tell("1,000 duplicates at once", format!("1 accepted, 999 duplicates, 1 row, in {took:.2} s"));
}
