//! Svix misbehaves: it throttles in every form, loses answers, is away for hours, is somebody else.

mod away;
mod retry_after;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use posthaste::mock::{MockPartner, Trouble};
use rstest::rstest;
use serde_json::{Value, json};

use crate::ingest::batch;
use crate::support::partners::add_endpoint;
use crate::support::rude::{Authority, Rude, Shows};
use crate::support::{RelayProcess, TestDatabase, TestRelay, bounded, config, eventually, mock_svix};

/// Everything that may go wrong with a POST but the gate: what is stored and what isn't, what is told and what isn't.
fn troubles() -> [Trouble; 13] {
    [
        Trouble::Reset,
        Trouble::StoredNoAnswer,
        Trouble::Status(500),
        Trouble::StoredThenStatus(500),
        Trouble::Garbage,
        Trouble::StoredThenGarbage,
        Trouble::Status(408),
        Trouble::StoredThenStatus(504),
        Trouble::throttle(0),
        Trouble::Status(502),
        Trouble::Slow(Duration::from_millis(900)),
        Trouble::Answer { status: 202, retry_after: None, body: "{}".into() },
        Trouble::Answer { status: 503, retry_after: Some("0.2".into()), body: String::new() },
    ]
}

async fn whatever_becomes_of_answers_each_event_is_one_message(database: TestDatabase) {
    // holds: 21, 24, 26
    let svix = mock_svix().await;
    let mut config = config(&database, &svix);
    config.svix.timeout_ms = 500;
    config.svix.retry_schedule_ms = vec![50; 100];
    let relay = TestRelay::start_with(config).await;
    let count = super::sized(300, 3_000);
    // One request in three goes wrong.
    let mut wrong = troubles().into_iter().cycle();
    let one_of = |n: usize| match n % 3 {
        0 => wrong.next().expect("endless"),
        _ => Trouble::Pass,
    };
    svix.script((0..2 * count).map(one_of).collect::<Vec<_>>());
    let began = Instant::now();
    for first in (0..count).step_by(100) {
        assert_eq!(relay.post(batch(first, 100)).await.status, 202);
    }
    let progress = relay.settled().await;
    assert_eq!(progress.done.keys().collect::<Vec<_>>(), ["delivered"], "{progress:?}");
    let mut by_id = HashMap::<_, HashSet<_>>::new();
    for request in svix.requests() {
        by_id.entry(request.event_id.clone()).or_default().insert(request.idempotency_key.clone());
    }
    assert!(by_id.values().all(|keys| keys.len() == 1), "each event has one key, on every attempt");
    let ids: HashSet<_> = svix.messages().iter().filter_map(|message| message.event_id.clone()).collect();
    assert_eq!((ids.len(), svix.message_count()), (count, count as u64), "no event twice, and none lost");
    let requests = svix.requests();
    let stored = requests.iter().filter(|request| {
        let told = matches!(request.trouble, Trouble::StoredNoAnswer | Trouble::StoredThenStatus(_));
        told && request.stored.is_some()
    });
    let (mut unsure, mut flagged) = (0, 0);
    for request in stored {
        let id = request.event_id.as_deref().expect("an id");
        let outcomes = relay.app().ledger().database().outcomes("acme", id).await.expect("read");
        // Whose key Svix still knew got the first answer again, and that is a plain yes.
        let confirmed = svix.requests_for(id).iter().any(|request| request.replayed);
        assert!(outcomes[0].dispatch_unconfirmed || confirmed, "{id}: {outcomes:?}");
        unsure += 1;
        flagged += usize::from(outcomes[0].dispatch_unconfirmed);
    }
    assert!(flagged > 0, "some were stored, told as an error, and found by a look-up");
    super::tell(
        "a third of Svix's answers lost, late, false or an error",
        format!(
            "{count} events, {} requests, {} messages, 0 lost, 0 doubled; {unsure} stored without a yes, {flagged} of \
             them flagged dispatch_unconfirmed; {:.1} s",
            svix.request_count(),
            svix.message_count(),
            began.elapsed().as_secs_f64()
        ),
    );
    relay.finish().await;
}

async fn a_yes_that_is_not_svixs_is_not_believed(database: TestDatabase) {
    // holds: 24
    let svix = mock_svix().await;
    let relay = TestRelay::start_with(config(&database, &svix)).await;
    // A sign-in page on the way says 200 to everything, for a while.
    svix.set_trouble(Some(Trouble::Garbage));
    assert_eq!(relay.post(batch(0, 50)).await.status, 202);
    let closed = async || {
        let gates = relay.app().dispatcher()?.gates();
        gates.first()?.reason.map(|reason| reason.as_str())
    };
    assert_eq!(eventually("the gate closes", closed).await, "failing");
    let code = async || {
        let log = relay.app().ledger().database().attempt_log("acme", "evt_0").await.expect("read");
        log.first().map(|(_, code, _)| code.clone())
    };
    assert_eq!(eventually("the attempt is told", code).await, "not_stored");
    assert_eq!((relay.progress().await.pending, svix.message_count()), (50, 0));
    svix.set_trouble(None);
    let progress = relay.finish().await;
    assert_eq!((progress.done["delivered"], svix.message_count()), (50, 50));
    super::tell(
        "200 from a stranger in Svix's place",
        "50 events, 0 believed, 50 delivered after it was gone",
    );
}

async fn a_token_revoked_in_mid_retry_makes_no_second_message(database: TestDatabase) {
    // holds: 28, 30
    let svix = posthaste::mock::MockSvix::builder().create_applications(true).start().await;
    let with_token = |token: &str| {
        let mut config = config(&database, &svix);
        config.svix.token = Some(token.to_owned().into());
        config
    };
    let relay = TestRelay::start_with(with_token("old")).await;
    // Stored, and the answer lost; by the time of the retry, the token is no good any more.
    svix.script(vec![Trouble::StoredNoAnswer; 4]);
    svix.set_trouble(Some(Trouble::Status(401)));
    assert_eq!(relay.post(batch(0, 4)).await.status, 202);
    svix.wait_for_requests(6, Duration::from_secs(10)).await.expect("they are tried again");
    assert_eq!(relay.get("/health/ready").await.json()["gates"][0]["reason"], "unauthorized");
    assert_eq!(relay.progress().await.pending, 4);
    relay.stop().await;
    svix.set_trouble(None);
    let relay = TestRelay::start_with(with_token("new")).await;
    relay.settled().await;
    for id in 0..4 {
        let id = format!("evt_{id}");
        let outcomes = relay.app().ledger().database().outcomes("acme", &id).await.expect("read");
        assert_eq!((outcomes[0].state.as_str(), outcomes[0].dispatch_unconfirmed), ("delivered", true));
    }
    relay.finish().await;
    // Svix keeps keys by token: the new one's POSTs were refused for their eventId alone.
    let requests = svix.requests();
    let conflicts = requests.iter().filter(|request| request.status == Some(409)).count();
    assert_eq!((svix.message_count(), conflicts), (4, 4));
    super::tell(
        "Svix's token revoked in mid-retry",
        "4 events stored under the old one, 4 messages in the end",
    );
}

on_both_databases!(
    whatever_becomes_of_answers_each_event_is_one_message,
    a_yes_that_is_not_svixs_is_not_believed,
    a_token_revoked_in_mid_retry_makes_no_second_message,
);

#[rstest]
#[case::expired(Shows::Expired, "tls_certificate_expired")]
#[case::of_another(Shows::WrongName, "tls_wrong_name")]
#[case::its_own(Shows::SelfSigned, "tls_unknown_issuer")]
#[tokio::test(flavor = "multi_thread")]
async fn while_its_certificate_is_no_good_events_wait(#[case] shows: Shows, #[case] code: &str) {
    // holds: 35
    bounded(async {
        let (database, svix, authority) = (TestDatabase::sqlite(), mock_svix().await, Authority::new());
        let (front, file) = (Rude::start().await, authority.file());
        front.show(authority.server(shows));
        front.pass_to(svix.address());
        let relay = RelayProcess::start(
            &database,
            &svix,
            &[
                ("POSTHASTE_SVIX__SERVER_URL", front.url("https").trim_end_matches('/')),
                ("POSTHASTE_SVIX__PROBE_FIRST_MS", "200"),
                ("POSTHASTE_SVIX__PROBE_MAX_MS", "500"),
                ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
                // The platform's authorities are one: the test's.
                ("SSL_CERT_FILE", &file.path().display().to_string()),
            ],
        );
        let operator = MockPartner::start().await;
        let own = json!({"url": operator.url("/"), "event_types": ["posthaste.gate.closed"]});
        add_endpoint(&relay, "operations", own).await;
        assert_eq!(relay.post(batch(0, 30)).await.status, 202);
        let failing = async || {
            let gates = relay.get("/health/ready").await.json()["gates"].clone();
            (gates[0]["reason"] == "failing").then_some(())
        };
        eventually("the gate closes", failing).await;
        assert!(operator.wait_for(1, Duration::from_secs(10)).await, "the operator is told");
        let told: Value = serde_json::from_slice(&operator.requests()[0].body).expect("JSON");
        assert_eq!(
            (&told["data"]["destination"], &told["data"]["reason"]),
            (&json!("svix"), &json!("failing"))
        );
        // Some probes long, which cost no event anything.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let story = relay.get("/v1/events/acme/evt_0").await.json();
        let attempts = story["deliveries"][0]["attempts"].as_array().expect("attempts").clone();
        assert!(!attempts.is_empty() && attempts.iter().all(|attempt| attempt["code"] == code), "{story:#}");
        let dead = relay.get("/v1/deliveries?state=dead").await.json();
        assert_eq!(dead["deliveries"], json!([]), "nothing is given up");
        let calls = front.calls().len();
        assert_eq!(svix.request_count(), 0);
        front.show(authority.server(Shows::Good));
        svix.wait_for_messages(30, Duration::from_secs(20)).await.expect("all arrive");
        assert_eq!((svix.message_count(), svix.request_count()), (30, 30));
        super::tell(
            &format!("Svix shows a certificate that is no good ({code})"),
            format!(
                "30 events waited over {calls} handshakes, none dead, each sent once when it was good again"
            ),
        );
    })
    .await;
}
