//! What goes over the wire that is no good HTTP, or too much of it.

use std::sync::Arc;
use std::time::Duration;

use super::{Memory, Raw, head, serves, status};
use crate::chaos::tell;
use crate::support::{RelayProcess, TestDatabase, bounded, mock_svix, side_by_side};

const PATIENCE: Duration = Duration::from_secs(5);
const EVENT: &str = r#"{"id":"smuggled","type":"a"}"#;

/// A request whose head ends with these lines.
fn post(lines: &str, body: &str) -> Vec<u8> {
    let head = "POST /notifications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    format!("{head}{lines}\r\n\r\n{body}").into_bytes()
}

/// A request that is nothing but this line, and these.
fn bare(lines: &str) -> Vec<u8> {
    format!("{lines}\r\n\r\n").into_bytes()
}

/// What can't be read as one request, or could be read by two readers as two different ones.
fn no_http() -> Vec<(&'static str, Vec<u8>)> {
    let chunked = "1c\r\n{\"id\":\"smuggled\",\"type\":\"a\"}\r\n0\r\n\r\n";
    vec![
        ("two lengths", post("Content-Length: 28\r\nContent-Length: 5", EVENT)),
        ("two lengths in one line", post("Content-Length: 28, 5", EVENT)),
        ("a signed length", post("Content-Length: +28", EVENT)),
        ("a negative length", post("Content-Length: -1", EVENT)),
        ("a length of another base", post("Content-Length: 0x1c", EVENT)),
        ("a length beyond 64 bits", post("Content-Length: 99999999999999999999999", EVENT)),
        ("a coding that is not chunked", post("Transfer-Encoding: gzip", EVENT)),
        ("chunked, and not at last", post("Transfer-Encoding: chunked, identity", chunked)),
        ("chunked misspelt", post("Transfer-Encoding: xchunked", chunked)),
        ("a space before the colon", post("Content-Length : 28", EVENT)),
        ("a coding with a space before the colon", post("Transfer-Encoding : chunked", chunked)),
        ("a folded line", post("X-Folded: one\r\n two\r\nContent-Length: 28", EVENT)),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked", chunked)),
        ("a lone CR", post("X-A: one\rContent-Length: 28", EVENT)),
        ("NUL in a header", post("X-A: one\0two\r\nContent-Length: 28", EVENT)),
        ("a header without a name", post(": nameless\r\nContent-Length: 28", EVENT)),
        ("chunked in HTTP/1.0", bare("POST /notifications HTTP/1.0\r\nTransfer-Encoding: chunked")),
        ("HTTP/0.9", bare("GET /health/live")),
        ("HTTP/2", bare("PRI * HTTP/2.0\r\n\r\nSM")),
        ("HTTP/7.7", bare("GET /health/live HTTP/7.7\r\nHost: localhost")),
        ("a method of control characters", bare("P\x01ST /notifications HTTP/1.1")),
        ("TLS", b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03garbage\r\n\r\n".to_vec()),
        ("garbage", b"\xff\xfe\x00\x01\x80\x81 \xf0\x9f\x92\xa9\r\n\r\n".to_vec()),
        ("a word", bare("\r\n\r\n\r\nhello")),
        ("a chunk of no size", post("Transfer-Encoding: chunked", "zz\r\n{}\r\n0\r\n\r\n")),
        ("a chunk of 2^64", post("Transfer-Encoding: chunked", "10000000000000000\r\n{}\r\n0\r\n\r\n")),
        ("a negative chunk", post("Transfer-Encoding: chunked", "-1\r\n{}\r\n0\r\n\r\n")),
        ("a chunk longer than it says", post("Transfer-Encoding: chunked", "2\r\n{}smuggled\r\n0\r\n\r\n")),
    ]
}

async fn stored(database: &TestDatabase) -> String {
    database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_and_nothing_after_it_is_heard() {
    // holds: 5
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[]);
        let (cases, mut wrong) = (no_http(), Vec::new());
        for (name, bytes) in &cases {
            let mut client = Raw::open(&relay).await;
            client.say(bytes).await;
            // Whoever would be listened to after that could say this in another's name.
            client.say(format!("{}{EVENT}", head(EVENT.len()))).await;
            let (told, _) = client.closed(PATIENCE).await.unwrap_or_else(|| panic!("{name}: it stays open"));
            let refused = told.is_empty() || (400..500).contains(&status(&told));
            // What follows is not answered.
            if !refused || told.matches("HTTP/1.1 ").count() > 1 {
                wrong.push(format!("{name}: {told}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(stored(&database).await, "0");
        serves(&relay, 0).await;
        tell("requests that are no HTTP", format!("{} shapes refused, nothing stored", cases.len()));
    })
    .await;
}

/// Both lengths, in either order: the body is chunked, and the connection ends with the answer (RFC 9112 §6.1), so that
/// what a proxy may have taken for the rest of the body is never heard as a request.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_a_coding_smuggles_nothing() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[]);
        let good = r#"{"id":"seen","type":"a"}"#;
        let inner = format!("{}{EVENT}", head(EVENT.len()));
        let chunked = format!("{:x}\r\n{good}\r\n0\r\n\r\n{inner}", good.len());
        for lines in [
            "Content-Length: 9999\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 4",
        ] {
            let mut client = Raw::open(&relay).await;
            client.say(post(lines, &chunked)).await;
            let (told, _) = client.closed(PATIENCE).await.expect("the connection is closed");
            assert_eq!((status(&told), told.matches("HTTP/1.1 ").count()), (202, 1), "{told}");
            assert!(told.contains("connection: close"), "{told}");
        }
        // The same length twice is one length.
        let mut client = Raw::open(&relay).await;
        client.say(post("Content-Length: 24\r\nContent-Length: 24\r\nConnection: close", good)).await;
        let (told, _) = client.closed(PATIENCE).await.expect("closed as asked");
        assert_eq!(status(&told), 202, "{told}");
        assert_eq!(database.text("SELECT id FROM event").await, "seen");
        assert_eq!(stored(&database).await, "1");
        serves(&relay, 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_lies_is_found_out() {
    // holds: 5
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[("POSTHASTE_HTTP__BODY_TIMEOUT_MS", "1000")]);
        let ask = async |bytes: Vec<u8>| {
            let mut client = Raw::open(&relay).await;
            client.say(bytes).await;
            client.closed(PATIENCE).await.expect("the connection is closed").0
        };
        // More is promised than comes; what comes would be an event.
        let told = ask(post("Content-Length: 1000", EVENT)).await;
        assert_eq!(status(&told), 408, "{told}");
        // So much is promised that nobody waits for it.
        let told = ask(post("Content-Length: 1099511627776", EVENT)).await;
        assert_eq!(status(&told), 413, "{told}");
        // Less is promised than comes: the rest is no request.
        let told = ask(post("Content-Length: 5", EVENT)).await;
        assert_eq!((status(&told), told.matches("HTTP/1.1 ").count()), (400, 2), "{told}");
        // Promised, and then hung up on.
        let mut client = Raw::open(&relay).await;
        client.say(post("Content-Length: 1000", EVENT)).await;
        drop(client);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(stored(&database).await, "0");
        serves(&relay, 0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_floods_are_refused_in_bounded_memory() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[]);
        serves(&relay, 0).await;
        let memory = Memory::watch(&relay);
        let open = "POST /notifications HTTP/1.1\r\nHost: localhost\r\n";
        let many: String = (0..5_000).map(|n| format!("X-Header-{n}: {n}\r\n")).collect();
        let large = format!("X-Large: {}\r\n", "x".repeat(8 << 20));
        let floods = [
            ("5,000 headers", format!("{open}{many}\r\n")),
            ("a header of 8 MiB", format!("{open}{large}\r\n")),
            ("8 MiB of headers", format!("{open}{}\r\n", "X-A: 0123456789\r\n".repeat(500_000))),
            ("a path of 8 MiB", format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "p".repeat(8 << 20))),
            ("a method of 8 MiB", format!("{} / HTTP/1.1\r\n\r\n", "M".repeat(8 << 20))),
            (
                "a query of 100 KiB",
                format!("GET /v1/events?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "q".repeat(100 << 10)),
            ),
        ];
        let kinds = floods.len();
        for (name, flood) in floods {
            let flood = Arc::new(flood);
            // Ten at once: what one costs is not what all of them cost.
            let attacks = (0..10).map(|_| attack(relay.address().to_owned(), Arc::clone(&flood)));
            for told in side_by_side(attacks).await {
                let told = told.unwrap_or_else(|| panic!("{name}: it stays open"));
                // Who is still sending may find the connection reset before the answer is read.
                let status = status(&told);
                assert!([0, 400, 414, 431].contains(&status), "{name}: {told}");
            }
        }
        let grown = memory.grown_mib();
        assert!(grown < 32.0, "{grown:.1} MiB");
        serves(&relay, 10).await;
        tell(
            "header floods",
            format!("{kinds} kinds, 10 at once, up to 8 MiB each: memory grew by {grown:.1} MiB"),
        );
    })
    .await;
}

/// Says all that over a connection of its own; what comes back until it is closed, `None` where it stays open.
async fn attack(address: String, flood: Arc<String>) -> Option<String> {
    let mut client = Raw::at(&address).await;
    client.say(&*flood).await;
    client.closed(PATIENCE).await.map(|(told, _)| told)
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[]);
        let mut requests = Vec::new();
        for n in 0..200 {
            let event = format!(r#"{{"id":"p{n}","type":"a"}}"#);
            let close = if n == 199 { "\r\nConnection: close" } else { "" };
            requests.extend(post(&format!("Content-Length: {}{close}", event.len()), &event));
        }
        let mut client = Raw::open(&relay).await;
        client.say(requests).await;
        let (told, time) = client.closed(Duration::from_secs(30)).await.expect("closed as asked");
        assert_eq!(told.matches("HTTP/1.1 202 Accepted").count(), 200, "{told}");
        let places = (0..200).map(|n| told.find(&format!("\"p{n}\"")).unwrap_or_else(|| panic!("p{n}")));
        assert!(places.is_sorted(), "in the order in which they were asked");
        assert_eq!(stored(&database).await, "200");
        serves(&relay, 0).await;
        tell("pipelined requests", format!("200 on one connection in order, {:.2} s", time.as_secs_f64()));
    })
    .await;
}
