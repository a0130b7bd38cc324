//! `posthaste send`: events from a file.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use posthaste::mock::MockSvix;
use tempfile::TempDir;

use super::command::{Ended, Running};
use crate::support::{RelayProcess, TestDatabase, mock_svix};

/// Numbers no double holds, a key twice, escapes, spaces: everything that a round trip would change.
const ODDITIES: &str =
    r#""n":1.10,"big":12345678901234567890,"z":1,"a":2,"a":3,"t":"\u00e9é😀","s" : [ 1 ,2E5 ]"#;

struct Scene {
    svix: MockSvix,
    relay: RelayProcess,
    folder: TempDir,
    _database: TestDatabase,
}

impl Scene {
    async fn new() -> Self {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let relay = RelayProcess::start(&database, &svix, &[]);
        Self { svix, relay, folder: tempfile::tempdir().expect("a folder"), _database: database }
    }

    fn file(&self, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join("events.json");
        std::fs::write(&path, text).expect("written");
        path
    }

    fn url(&self) -> String {
        format!("http://{}", self.relay.address())
    }

    async fn send(&self, text: impl AsRef<[u8]>, arguments: &[&str]) -> Ended {
        let (path, url) = (self.file(text), self.url());
        let named = ["send", path.to_str().expect("UTF-8"), "--url", &url];
        Running::start(&[&named, arguments].concat(), &[]).end().await
    }
}

fn oddity(id: &str) -> String {
    format!(r#"{{"id":"{id}","type":"a",{ODDITIES}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_file_arrives_byte_by_byte() {
    let scene = Scene::new().await;
    let over_lines = format!("{{\n  \"id\": \"o\",\n  \"type\": \"a\",\n  {ODDITIES}\n}}");
    for (text, ids) in [
        (oddity("object"), vec!["object"]),
        (format!("\u{feff}[{},\n {}]\n", oddity("array-1"), oddity("array-2")), vec!["array-1", "array-2"]),
        (format!("{}\r\n\n{}", oddity("line-1"), oddity("line-2")), vec!["line-1", "line-2"]),
    ] {
        let ended = scene.send(&text, &[]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{text}");
        let count = ids.len();
        let told = format!("{count} sent: {count} accepted, 0 duplicates, 0 conflicts, 0 invalid\n");
        assert_eq!(ended.out, told);
        for id in ids {
            arrives(&scene, id, &oddity(id)).await;
        }
    }
    assert_eq!(scene.send(&over_lines, &["--tenant", "globex"]).await.code, Some(0));
    let message = crate::support::eventually("the message", async || scene.svix.message("globex", "o")).await;
    assert_eq!(message.payload, over_lines);
}

async fn arrives(scene: &Scene, id: &str, payload: &str) {
    let message = crate::support::eventually("the message", async || scene.svix.message("acme", id)).await;
    assert_eq!(message.payload, payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_ids_are_not_doubled_by_a_second_time() {
    let scene = Scene::new().await;
    let lines: String =
        (0..250).map(|n| format!("{{\"eventType\":\"a\",\"data\":{{\"n\":{n}}}}}\n")).collect();
    let first = scene.send(&lines, &[]).await;
    assert_eq!(first.out, "250 sent: 250 accepted, 0 duplicates, 0 conflicts, 0 invalid\n", "{}", first.err);
    let again = scene.send(&lines, &[]).await;
    assert_eq!(again.out, "250 sent: 0 accepted, 250 duplicates, 0 conflicts, 0 invalid\n", "{}", again.err);
    assert_eq!(again.code, Some(0));
    scene.svix.wait_for_messages(250, Duration::from_secs(20)).await.expect("all arrive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_named_and_stops_its_batch_unless_lenient() {
    let scene = Scene::new().await;
    let good = |id: &str| format!("{{\"id\":\"{id}\",\"type\":\"a\"}}\n");
    let taken = scene.relay.post(r#"{"id":"5","type":"a","data":1}"#).await;
    assert_eq!(taken.status, 202);
    let bad = "{\"id\":\"4\"}\n";
    let text = [&good("1"), &good("2"), &good("3"), bad, &good("5"), &good("6")].map(String::from).concat();
    let strict = scene.send(&text, &["--batch", "2"]).await;
    assert_eq!(strict.code, Some(1));
    assert_eq!(strict.out, "4 sent: 2 accepted, 0 duplicates, 0 conflicts, 1 invalid, 1 not stored\n");
    assert!(strict.err.contains("line 4: invalid: "), "{}", strict.err);
    assert!(strict.err.contains("begins with line 3"), "{}", strict.err);

    let lenient = scene.send(&text, &["--batch", "2", "--lenient"]).await;
    assert_eq!(lenient.code, Some(1));
    assert_eq!(lenient.out, "6 sent: 2 accepted, 2 duplicates, 1 conflicts, 1 invalid\n", "{}", lenient.err);
    assert!(lenient.err.contains("line 4: invalid: "), "{}", lenient.err);
    assert!(lenient.err.contains("line 5: conflict: "), "{}", lenient.err);
    assert_eq!(lenient.err.lines().count(), 2, "{}", lenient.err);
    scene.svix.wait_for_messages(5, Duration::from_secs(20)).await.expect("1, 2, 3, 5 and 6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_told_with_its_line_after_what_stands_before_was_sent() {
    let scene = Scene::new().await;
    let url = scene.url();
    let lines: String = (1..=5).map(|n| format!("{{\"id\":\"{n}\",\"type\":\"a\"}}\n")).collect();
    let arguments = ["send", "-", "--url", &url, "--batch", "2"];
    let ended = Running::start_with_input(&arguments, &format!("{lines}{{\"id\": oops}}\n")).end().await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.out, "5 sent: 5 accepted, 0 duplicates, 0 conflicts, 0 invalid\n");
    let expected =
        "standard input line 6 is not JSON: expected value at column 8; 5 events before it were sent";
    assert!(ended.err.contains(expected) && ended.err.lines().count() == 1, "{}", ended.err);
    scene.svix.wait_for_messages(5, Duration::from_secs(20)).await.expect("all arrive");

    let array = scene.send("[{\"id\":\"7\",\"type\":\"a\"},\n{]", &[]).await;
    assert_eq!((array.code, array.out.starts_with("0 sent: ")), (Some(1), true), "{}", array.out);
    assert!(array.err.contains("at line 2 column 2; nothing was sent"), "{}", array.err);
    let missing = Running::start(&["send", "/nowhere.json", "--url", &url], &[]).end().await;
    assert_eq!((missing.code, missing.err.lines().count()), (Some(1), 1), "{}", missing.err);
    assert!(missing.err.contains("can't open /nowhere.json"), "{}", missing.err);
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A server that answers one request after another with these; an empty one is no answer at all.
fn canned(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<(Instant, String)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let serving = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            let (mut text, mut buffer) = (String::new(), [0; 4_096]);
            while !text.ends_with("}]") {
                let count = stream.read(&mut buffer).expect("a request");
                assert!(count > 0, "cut off: {text}");
                text.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
            }
            requests.push((Instant::now(), text));
            stream.write_all(answer.as_bytes()).expect("answered");
        }
        requests
    });
    (url, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tries_again_under_the_same_key_and_not_before_it_may() {
    let body = r#"{"accepted":1,"duplicates":0,"results":[{"status":"accepted"}]}"#;
    let accepted = answer("202 Accepted\r\nContent-Type: application/json", body);
    let busy = answer("503 Service Unavailable\r\nRetry-After: 1", "");
    let (url, serving) = canned(vec![busy, String::new(), accepted]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("event.json");
    std::fs::write(&path, "{\"eventType\":\"a\",\"data\":1}").expect("written");
    let arguments =
        ["send", path.to_str().expect("UTF-8"), "--url", &url, "--api-key", "k", "--path", "/events"];
    let ended = Running::start(&arguments, &[]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(ended.out, "1 sent: 1 accepted, 0 duplicates, 0 conflicts, 0 invalid\n");
    assert!(ended.err.contains("try 1 of 10") && ended.err.contains("try 2 of 10"), "{}", ended.err);
    let requests = serving.join().expect("served");
    let header = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    let keys: Vec<_> = requests.iter().map(|(_, text)| header(text, "idempotency-key: ")).collect();
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
    assert!(requests[0].1.starts_with("POST /events HTTP/1.1\r\n"), "{}", requests[0].1);
    assert_eq!(header(&requests[0].1, "authorization: "), "authorization: Bearer k");
    assert!(requests[1].0 - requests[0].0 >= Duration::from_secs(1), "Retry-After is kept to");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_says_how_far_it_came() {
    // A relay that never has time.
    let busy = answer("429 Too Many Requests\r\nRetry-After: 60", "");
    let (url, serving) = canned(vec![busy]);
    let running = Running::start_with_input(&["send", "-", "--url", &url], "{\"type\":\"a\"}\n");
    running.complains("the next in 60.0 s").await;
    running.signal("INT");
    let ended = running.end_within(Duration::from_secs(5)).await;
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.out.starts_with("1 sent: 0 accepted, "), "{}", ended.out);
    assert_eq!(serving.join().expect("served").len(), 1);
}
