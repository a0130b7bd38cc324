//! Several nodes on one ledger, each with its role: who does what, what they tell one another, and what becomes of the
//! work of one that dies.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use posthaste::mock::{MockSvix, ReceivedRequest, Trouble};
use serde_json::json;

use crate::ingest::batch;
use crate::support::{
    HttpClient, RelayProcess, TestClock, TestDatabase, TestRelay, bounded, config, eventually, mock_svix,
};

const INGEST: (&str, &str) = ("POSTHASTE_ROLE", "ingest");
const WORKER: (&str, &str) = ("POSTHASTE_ROLE", "worker");
/// Ends the connections on which nodes hear one another.
const CUT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'posthaste listener'";
const LISTENERS: &str = "SELECT count(*)::text FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name = 'posthaste listener'";

/// Posts events `0..count`, a hundred at a time.
async fn fill(ingest: &HttpClient, count: usize) {
    for first in (0..count).step_by(100) {
        assert_eq!(ingest.post(batch(first, 100.min(count - first))).await.status, 202);
    }
}

/// Ends them as soon as they begin, for four seconds: nobody hears anything meanwhile.
const DEAFEN: &str = "DO $$ DECLARE over timestamptz := clock_timestamp() + interval '4 s'; BEGIN
    WHILE clock_timestamp() < over LOOP
        PERFORM pg_stat_clear_snapshot();
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'posthaste listener';
        PERFORM pg_sleep(0.002);
    END LOOP; END $$";

/// How many deliveries wait.
async fn waiting(database: &TestDatabase) -> usize {
    database.text("SELECT count(*)::text FROM queue").await.parse().expect("a number")
}

/// Waits until nothing waits; every delivery must have been delivered, without a failure.
async fn all_delivered(database: &TestDatabase, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while waiting(database).await > 0 {
        assert!(Instant::now() < deadline, "still waiting: {}", waiting(database).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let delivered = "SELECT count(*)::text FROM outcome WHERE state = 'delivered' AND failures = 0";
    assert_eq!(database.text(delivered).await, count.to_string());
}

fn since(requests: &[std::sync::Arc<ReceivedRequest>], moment: Instant) -> usize {
    requests.iter().filter(|request| request.received_at >= moment).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_killed_worker_is_taken_over_and_nothing_is_doubled() {
    // holds: 16, 19
    const EVENTS: usize = 6_000;
    const LEASE: Duration = Duration::from_secs(2);
    let database = TestDatabase::postgres().await;
    let svix = mock_svix().await;
    svix.set_replay_by_key(false);
    svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(30))));
    let limits = [("POSTHASTE_DISPATCH__LEASE_MS", "2000"), ("POSTHASTE_SVIX__TIMEOUT_MS", "500")];
    let start = |role| RelayProcess::start(&database, &svix, &[role, limits[0], limits[1]]);
    let (ingest, doomed, survivor) = (start(INGEST), start(WORKER), start(WORKER));
    let killed = bounded(async {
        let sending = fill(&ingest, EVENTS);
        let killing = async {
            svix.wait_for_messages(EVENTS as u64 / 4, Duration::from_secs(60)).await.expect("under way");
            doomed.kill();
            Instant::now()
        };
        tokio::join!(sending, killing).1
    })
    .await;
    let (at_kill, waiting_then) = (svix.message_count(), waiting(&database).await);
    all_delivered(&database, EVENTS).await;
    let ended = killed.elapsed();
    // Time for a double to show.
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    let mut copies: HashMap<String, usize> = HashMap::new();
    for message in svix.messages() {
        *copies.entry(message.event_id.clone().expect("an id")).or_default() += 1;
    }
    let doubled = copies.values().filter(|count| **count > 1).count();
    assert_eq!((copies.len(), doubled), (EVENTS, 0), "lost and doubled");

    let ledger = database.open(&TestClock::new()).await;
    let progress = ledger.database().progress().await.expect("an account");
    let events = i64::try_from(EVENTS).expect("small");
    assert_eq!((progress.events, progress.created, progress.pending), (events, events, 0));
    assert_eq!(progress.done, HashMap::from([("delivered".to_owned(), events)]));
    // Whoever settled held the last claim: nobody's later claim was overruled, and no attempt is told of after the end.
    let late = "SELECT count(*)::text FROM attempt_log JOIN outcome USING (event, lane)
                WHERE attempt_log.attempt >= outcome.attempts";
    assert_eq!(database.text(late).await, "0");
    // Every request belongs to a claim of its own.
    let mut posts: HashMap<String, i64> = HashMap::new();
    for request in svix.requests() {
        *posts.entry(request.event_id.clone().expect("an id")).or_default() += 1;
    }
    let claims = "SELECT json_object_agg(event_key.id, outcome.attempts)::text
                  FROM outcome JOIN event_key ON event_key.event = outcome.event";
    let claims: HashMap<String, i64> = serde_json::from_str(&database.text(claims).await).expect("JSON");
    for (event, posts) in &posts {
        assert!(*posts <= claims[event], "{event}: {posts} requests in {} claims", claims[event]);
    }

    let taken_over: Vec<_> =
        claims.iter().filter(|(_, claims)| **claims > 1).map(|(event, _)| event).collect();
    let sent_twice = posts.values().filter(|posts| **posts > 1).count();
    let last = taken_over
        .iter()
        .filter_map(|event| svix.message("acme", event))
        .map(|message| message.received_at.saturating_duration_since(killed))
        .max()
        .expect("it held some");
    eprintln!(
        "killed with {at_kill} messages stored and {waiting_then} waiting; {} were claimed again ({sent_twice} sent \
         twice), the last of them stored {last:?} after the kill; all done {ended:?} after it",
        taken_over.len()
    );
    // The lease, the look at the ledger that finds it ended, and time to send on two cores that are busy.
    assert!(last < LEASE + Duration::from_secs(1) + Duration::from_secs(3), "{last:?}");
    drop((ingest, survivor));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_takes_its_share_of_the_load() {
    const EVENTS: usize = 1_500;
    let database = TestDatabase::postgres().await;
    // Each node has a Svix of its own, so that it can be told who sent what.
    let (one, two) = (mock_svix().await, mock_svix().await);
    for svix in [&one, &two] {
        svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(100))));
    }
    let ingest = RelayProcess::start(&database, &one, &[INGEST]);
    fill(&ingest, EVENTS).await;
    assert_eq!(
        (one.request_count(), waiting(&database).await),
        (0, EVENTS),
        "who only takes events sends none"
    );
    let start =
        |svix| RelayProcess::start(&database, svix, &[WORKER, ("POSTHASTE_SVIX__MAX_IN_FLIGHT", "16")]);
    let first = start(&one);
    one.wait_for_messages(100, Duration::from_secs(20)).await.expect("it sends");
    let second = start(&two);
    all_delivered(&database, EVENTS).await;
    let joined = two.requests().first().expect("it sends too").received_at;
    let shares = (since(&one.requests(), joined), since(&two.requests(), joined));
    eprintln!("from the first request of the node that joined on: {shares:?}");
    assert_eq!(one.message_count() + two.message_count(), EVENTS as u64);
    let together = shares.0 + shares.1;
    assert!(shares.0.min(shares.1) * 5 >= together, "each at least a fifth: {shares:?}");
    drop((ingest, first, second));
}

/// One of two nodes is throttled: how long the other goes on.
async fn throttled(database: &TestDatabase, cut_off: bool) -> Duration {
    const EVENTS: usize = 3_000;
    const WAIT: Duration = Duration::from_secs(3);
    let (one, two) = (mock_svix().await, mock_svix().await);
    for svix in [&one, &two] {
        svix.set_trouble(Some(Trouble::Slow(Duration::from_millis(50))));
    }
    let ingest = RelayProcess::start(database, &one, &[INGEST]);
    fill(&ingest, EVENTS).await;
    let start =
        |svix| RelayProcess::start(database, svix, &[WORKER, ("POSTHASTE_SVIX__MAX_IN_FLIGHT", "16")]);
    let (first, second) = (start(&one), start(&two));
    for svix in [&one, &two] {
        svix.wait_for_messages(50, Duration::from_secs(20)).await.expect("both send");
    }
    let deafening = async {
        if cut_off {
            database.execute(DEAFEN).await;
        }
    };
    let throttling = async {
        // Some time for the first cut.
        tokio::time::sleep(Duration::from_millis(300)).await;
        one.script([Trouble::throttle(WAIT.as_secs())]);
        let answered =
            async || one.requests().iter().find(|request| request.status == Some(429))?.answered_at;
        let closed = eventually("one is throttled", answered).await;
        tokio::time::sleep_until((closed + WAIT).into()).await;
        closed
    };
    let (closed, ()) = tokio::join!(throttling, deafening);
    // From a little before the end on, it may be open again.
    let end = closed + WAIT - Duration::from_millis(50);
    let late = two
        .requests()
        .into_iter()
        .filter(|request| request.received_at > closed && request.received_at < end);
    let last = late.map(|request| request.received_at - closed).max().unwrap_or_default();
    let early: Vec<_> = one
        .requests()
        .into_iter()
        .filter(|request| {
            request.received_at > closed + Duration::from_millis(100) && request.received_at < end
        })
        .collect();
    assert!(early.is_empty(), "{} requests from who was throttled", early.len());
    let health = second.get("/health/ready").await.json();
    assert_eq!(
        (health["gates"][0]["gate"].as_str(), health["role"].as_str()),
        (Some("svix"), Some("worker"))
    );
    // Both go on afterwards, and nothing counted as a failure.
    all_delivered(database, EVENTS).await;
    assert!(since(&one.requests(), end) > 0 && since(&two.requests(), end) > 0, "both send again");
    drop((ingest, first, second));
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_of_one_node_holds_the_others_back_under_load() {
    // holds: 25
    let database = TestDatabase::postgres().await;
    let last = throttled(&database, false).await;
    eprintln!("the other node's last request came in {last:?} after the 429");
    assert!(last < Duration::from_secs(1), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_known_in_time_under_load_although_nobody_hears_of_it() {
    // holds: 25
    let database = TestDatabase::postgres().await;
    let last = throttled(&database, true).await;
    eprintln!("cut off, the other node's last request came in {last:?} after the 429");
    assert!(last < Duration::from_secs(1), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_one_nodes_probe_opens_is_open_for_the_others() {
    let database = TestDatabase::postgres().await;
    let (broken, well) = (mock_svix().await, mock_svix().await);
    broken.set_trouble(Some(Trouble::Status(500)));
    let mut failing = config(&database, &broken);
    failing.svix.failures_to_close = 1;
    failing.svix.probe_first_ms = 60_000;
    failing.svix.probe_max_ms = 60_000;
    let mut healthy = config(&database, &well);
    healthy.role = posthaste::config::Role::Ingest;
    let (failing, ingest) =
        (TestRelay::start_with(failing).await, TestRelay::start_with(healthy.clone()).await);
    assert_eq!(ingest.post(batch(0, 1)).await.status, 202);
    broken.wait_for_requests(1, Duration::from_secs(10)).await.expect("tried");
    let closed =
        async || (failing.get("/health/ready").await.json()["gates"][0]["state"] == "closed").then_some(());
    eventually("the gate is closed", closed).await;
    let ledger = ingest.app().ledger();
    let recorded = async || (!ledger.closed_gates().await.expect("read").is_empty()).then_some(());
    eventually("the closing is recorded", recorded).await;
    // It must have read its own closing before it can miss it: three looks at the ledger.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // Some other node gets through, and says so.
    broken.set_trouble(None);
    ingest.app().ledger().gate_opened("svix").await.expect("recorded");
    let open =
        async || (failing.get("/health/ready").await.json()["gates"][0]["state"] == "open").then_some(());
    eventually("the gate is open", open).await;
    ingest.finish().await;
    failing.finish().await;
    assert_eq!(broken.message_count(), 1);
}

/// From the POST of one event until Svix has it.
async fn way_of(event: usize, ingest: &HttpClient, svix: &MockSvix) -> Duration {
    let began = Instant::now();
    assert_eq!(ingest.post(batch(event, 1)).await.status, 202);
    let id = format!("evt_{event}");
    let message = eventually("it arrives", async || svix.message("acme", &id)).await;
    message.received_at - began
}

/// The median of these events' ways, one after the other, at odd times.
async fn median_way(events: std::ops::Range<usize>, ingest: &HttpClient, svix: &MockSvix) -> Duration {
    let mut ways = Vec::new();
    for event in events {
        ways.push(way_of(event, ingest, svix).await);
        tokio::time::sleep(Duration::from_millis(137)).await;
    }
    ways.sort();
    eprintln!("median {:?}, longest {:?} of {}", ways[ways.len() / 2], ways[ways.len() - 1], ways.len());
    ways[ways.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_woken_and_hears_again_after_its_connection_was_cut() {
    // By polling alone the median would be half a second.
    const SOON: Duration = Duration::from_millis(250);
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let ingest = RelayProcess::start(&database, &svix, &[INGEST]);
    let worker = RelayProcess::start(&database, &svix, &[WORKER]);
    // Applications are made, lanes are known, both listen.
    way_of(0, &ingest, &svix).await;
    let listeners = async || (database.text(LISTENERS).await == "2").then_some(());
    eventually("both listen", listeners).await;
    assert!(median_way(1..21, &ingest, &svix).await < SOON);
    database.execute(CUT).await;
    let deaf = way_of(21, &ingest, &svix).await;
    eprintln!("{deaf:?} with the connection cut");
    // The poll, and time on two cores that are busy.
    assert!(deaf < Duration::from_secs(1) + Duration::from_secs(2), "{deaf:?}");
    eventually("both listen again", listeners).await;
    assert!(median_way(22..33, &ingest, &svix).await < SOON);
    // What no node has written is passed over.
    for payload in ["", "nonsense", "7 lanes=,,x look=1", "-1 lanes=9223372036854775807 look gates"] {
        database.execute(&format!("SELECT pg_notify('posthaste', '{payload}')")).await;
    }
    assert!(median_way(33..40, &ingest, &svix).await < SOON);
    assert_eq!(svix.request_count(), 40);
    drop((ingest, worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_does_what_its_role_says() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let ingest = RelayProcess::start(&database, &svix, &[INGEST]);
    assert_eq!(ingest.post(batch(0, 10)).await.status, 202);
    // Longer than any poll.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!((svix.request_count(), waiting(&database).await), (0, 10));
    let ready = ingest.get("/health/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["role"]), (200, &json!("ingest")));
    assert_eq!(ready.json()["gates"], json!([]), "nothing goes out here");
    assert_eq!(ingest.get("/health/live").await.json()["role"], "ingest");

    let worker = RelayProcess::start(&database, &svix, &[WORKER]);
    svix.wait_for_messages(10, Duration::from_secs(20)).await.expect("sent by the other");
    for path in ["/notifications", "/api/v1/events"] {
        let headers = [("content-type", "application/json")];
        let refused = worker.send(axum::http::Method::POST, path, &headers, batch(10, 1)).await;
        assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (503, "takes_no_events"));
        assert!(refused.header("retry-after").is_some());
    }
    let ready = worker.get("/health/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["role"]), (200, &json!("worker")));
    assert_eq!(ready.json()["gates"][0]["gate"], "svix");
    // The API is everywhere, and a change on one node is known to the other.
    let key = json!({"name": "ops", "scopes": ["admin"]}).to_string();
    let headers = [("content-type", "application/json")];
    let made = worker.send(axum::http::Method::POST, "/v1/keys", &headers, key).await;
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    let refused = async || (ingest.get("/v1/keys").await.status == 401).then_some(());
    eventually("the other node asks for keys too", refused).await;
    all_delivered(&database, 10).await;
    drop((ingest, worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_number_is_given_to_another_sends_each_event_once() {
    // holds: 55
    const LEAST: usize = 40;
    const MOST: usize = 160;
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    svix.set_replay_by_key(false);
    let mut settings = config(&database, &svix);
    settings.svix.timeout_ms = 400;
    settings.dispatch.lease_ms = 2_000;
    settings.role = posthaste::config::Role::Worker;
    let worker = TestRelay::start_with(settings.clone()).await;
    settings.role = posthaste::config::Role::Ingest;
    let ingest = TestRelay::start_with(settings).await;
    let before = worker.app().ledger().node();
    // Another node has it now, and has just been seen.
    database
        .execute(&format!(
            "UPDATE node SET epoch = 'another', seen_at = (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint
             WHERE number = {before}"
        ))
        .await;
    // Events go on to come: until it has another number, or longer than the ledger is without a heartbeat.
    let mut events = 0;
    while events < LEAST || (worker.app().ledger().node() == before && events < MOST) {
        assert_eq!(ingest.post(batch(events, 1)).await.status, 202);
        events += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = "SELECT count(*)::text FROM outcome WHERE state = 'delivered' AND failures = 0";
    let delivered = async || (database.text(all).await == events.to_string()).then_some(());
    let done = tokio::time::timeout(Duration::from_secs(15), eventually("all is delivered", delivered)).await;
    let requests = svix.request_count();
    assert!(done.is_ok(), "{requests} requests for {events} events, and {} wait", waiting(&database).await);
    assert_eq!(requests, events as u64, "one request for each event");
    assert_ne!(worker.app().ledger().node(), before, "it goes on under another number");
    ingest.finish().await;
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_can_have_no_other_number_ends_with_an_error() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let mut relay = RelayProcess::start(&database, &svix, &[]);
    assert_eq!(relay.post(batch(0, 1)).await.status, 202);
    all_delivered(&database, 1).await;
    database.execute(crate::ledger::fences::HOLD_ALL_NUMBERS).await;
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(1), "its supervisor has to see it");
}
