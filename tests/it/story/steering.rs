//! Retry and cancel: what an operator may do, whoever holds the delivery.

use std::time::Duration;

use axum::http::Method;
use posthaste::ledger::{Ledger, Standing, Steered};
use posthaste::mock::PartnerAnswer;
use serde_json::{Value, json};

use super::{Place, event};
use crate::support::partners::call;
use crate::support::{
    RelayProcess, TestClock, TestDatabase, event as new_event, eventually, mock_svix, side_by_side, svix,
};

on_both_databases! {
    what_is_done_goes_out_again_under_the_same_key,
    what_waits_is_canceled_and_never_sent,
    what_is_in_flight_is_not_canceled,
    a_claim_keeps_operators_out_until_it_ends,
    of_many_wishes_at_once_each_counts_once,
    svix_sends_nothing_twice_for_a_retry,
}

fn id_of(story: &Value) -> String {
    story["deliveries"][0]["id"].as_str().expect("an id").to_owned()
}

fn codes(story: &Value) -> Vec<String> {
    let attempts = story["deliveries"][0]["attempts"].as_array().expect("attempts");
    attempts.iter().map(|attempt| attempt["code"].as_str().expect("a code").to_owned()).collect()
}

async fn what_is_done_goes_out_again_under_the_same_key(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": []})).await;
    place.partner.script([PartnerAnswer::status(500)]);
    place.post(event("acme", "1", "a")).await;
    let id = id_of(&place.until("acme", "1", "dead").await);
    for times in 2..=3 {
        let again = place.act(&id, "retry").await;
        assert_eq!(again.status, 200, "{}", again.json());
        assert!(place.partner.wait_for(times, Duration::from_secs(20)).await);
        place.until("acme", "1", "delivered").await;
    }
    let story = place.story("acme", "1").await;
    assert_eq!(codes(&story), ["http_500", "delivered", "delivered"], "what was before is not forgotten");
    let steering = story["deliveries"][0]["steering"].as_array().expect("steering");
    let was: Vec<_> = steering.iter().map(|step| step["was"].as_str()).collect();
    assert_eq!(was, [Some("dead"), Some("delivered")]);
    assert!(steering.iter().all(|step| step["by"] == "administrator"), "{steering:?}");
    let requests = place.partner.requests();
    assert!(requests.iter().all(|request| request.header("webhook-id") == requests[0].header("webhook-id")));
    assert_eq!(place.relay.app().ledger().waiting(), 0);

    // To an endpoint that is not there it would only die again.
    let path = format!("/v1/endpoints/{}/disable", place.endpoint);
    call(&place.relay, Method::POST, &path, Value::Null).await;
    let refused = place.act(&id, "retry").await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (409, "endpoint_unavailable"));
    assert_eq!(place.act("dlv_1_1", "retry").await.status, 404);
    place.relay.finish().await;
}

async fn what_waits_is_canceled_and_never_sent(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": [3_600_000]})).await;
    place.partner.script([PartnerAnswer::status(500)]);
    place.post(event("acme", "1", "a")).await;
    let failed = async || {
        let story = place.story("acme", "1").await;
        (codes(&story).len() == 1).then_some(story)
    };
    let id = id_of(&eventually("it failed", failed).await);
    let canceled = place.act(&id, "cancel").await;
    assert_eq!(canceled.status, 200, "{}", canceled.json());
    let told = canceled.json();
    assert_eq!((&told["state"], &told["reason"]), (&json!("canceled"), &json!("operator")));
    assert!(told["waits_for"].is_null() && told["steering"][0]["action"] == "cancel", "{told}");
    assert_eq!(place.act(&id, "cancel").await.problem(), "delivery_done");
    assert_eq!(place.relay.app().ledger().waiting(), 0);
    let story = place.story("acme", "1").await;
    assert_eq!(story["state"], "canceled");
    assert!(story["conclusion"].as_str().expect("words").contains("canceled (operator)"), "{story}");
    // Not for good, if somebody thinks better of it.
    assert_eq!(place.act(&id, "retry").await.status, 200);
    let story = place.until("acme", "1", "delivered").await;
    assert_eq!(codes(&story), ["http_500", "delivered"]);
    assert_eq!(place.partner.request_count(), 2);
    place.relay.finish().await;
}

async fn what_is_in_flight_is_not_canceled(database: TestDatabase) {
    let place = Place::start(&database, json!({})).await;
    call(&place.relay, Method::PUT, "/v1/partners/globex", json!({"name": "g", "max_in_flight": 1})).await;
    let slow = PartnerAnswer { delay: Duration::from_secs(5), ..PartnerAnswer::status(204) };
    place.partner.script([slow]);
    place.post(event("acme", "first", "a")).await;
    assert!(place.partner.wait_for(1, Duration::from_secs(20)).await);
    place.post(json!([event("acme", "second", "a"), event("acme", "third", "a")])).await;
    let first = place.story("acme", "first").await;
    let refused = place.act(&id_of(&first), "cancel").await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().as_str()),
        (409, "in_flight"),
        "{}",
        refused.json()
    );
    assert_eq!(place.act(&id_of(&first), "retry").await.status, 200, "it is under way: as was wished");
    // Claimed or not, it has not begun.
    let second = id_of(&place.story("acme", "second").await);
    let canceled = async || {
        let answer = place.act(&second, "cancel").await;
        (answer.status == 200).then_some(())
    };
    eventually("what has not begun is canceled", canceled).await;
    place.until("acme", "third", "delivered").await;
    place.until("acme", "first", "delivered").await;
    assert_eq!(place.partner.request_count(), 2, "the second was never sent");
    place.relay.finish().await;
}

/// The only delivery of event `id`, as it stands.
async fn row(ledger: &Ledger, id: &str) -> posthaste::ledger::DeliveryRow {
    let (found, _) = ledger.find_event("acme", None, id).await.expect("an answer");
    let detail = ledger.event_detail(found[0].1).await.expect("an answer").expect("an event");
    ledger.deliveries_of(&detail.event).await.expect("an answer").remove(0)
}

async fn a_claim_keeps_operators_out_until_it_ends(database: TestDatabase) {
    // holds: 16
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    // On Postgres the operator is at another node.
    let other = if database.is_postgres() { database.open(&clock).await } else { ledger.clone() };
    let lane = ledger.lane(&svix("acme"), &"acme".into()).await.expect("a lane");
    let events = ["a", "b"].map(|id| new_event(id).to(&lane).build());
    ledger.accept(events.into(), true, None).await.expect("stored");
    let claims = [posthaste::domain::scheduler::LaneClaim {
        lane: lane.clone(),
        class: posthaste::domain::delivery::Class::Fresh,
        limit: 2,
    }];
    let claimed = ledger.claim(&claims).await.expect("claimed").0.remove(0).deliveries;
    assert_eq!(claimed.len(), 2);
    let steered = other.cancel(&row(&other, "a").await, None, "ops").await.expect("an answer");
    assert!(
        matches!(steered, Steered::InFlight(Some(left)) if left <= Duration::from_secs(60)),
        "{steered:?}"
    );
    // Given back, it is anybody's.
    ledger.release(&claimed[..1]).await.expect("released");
    assert_eq!(other.cancel(&row(&other, "a").await, None, "ops").await.expect("an answer"), Steered::Done);
    let Standing::Done(done) = row(&ledger, "a").await.standing else { panic!("it is done") };
    assert_eq!((done.state.as_str(), done.reason.as_deref()), ("canceled", Some("operator")));
    // A claim that has run out is overruled, and its late word counts for nothing.
    database.let_leases_age(Duration::from_secs(61), &clock).await;
    assert_eq!(other.cancel(&row(&other, "b").await, None, "ops").await.expect("an answer"), Steered::Done);
    let delivered = posthaste::domain::delivery::Outcome::Delivered {
        status: 202,
        remote_id: None,
        dispatch_unconfirmed: false,
    };
    let late = super::settlement(&claimed[1], delivered, &clock);
    ledger.settle(late).await.expect("taken in");
    ledger.accept(Vec::new(), true, None).await.expect("committed");
    let Standing::Done(done) = row(&ledger, "b").await.standing else { panic!("it is done") };
    assert_eq!(done.state, "canceled");
    assert_eq!(
        other.cancel(&row(&other, "b").await, None, "ops").await.expect("an answer"),
        Steered::Changed
    );
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done["canceled"]), (0, 2));
}

async fn of_many_wishes_at_once_each_counts_once(database: TestDatabase) {
    let place = Place::start(&database, json!({"retry_schedule_ms": []})).await;
    place.partner.script([PartnerAnswer::status(500)]);
    place.post(event("acme", "1", "a")).await;
    let id = id_of(&place.until("acme", "1", "dead").await);
    let wishes = (0..20).map(|_| {
        let (client, path) = ((*place.relay).clone(), format!("/v1/deliveries/{id}/retry"));
        async move { client.send(Method::POST, &path, &[], "").await.status.as_u16() }
    });
    let answers = side_by_side(wishes).await;
    assert!(
        answers.iter().all(|status| matches!(status, 200 | 409)) && answers.contains(&200),
        "{answers:?}"
    );
    let story = place.until("acme", "1", "delivered").await;
    // Whoever asked after it had arrived has sent it once more; nobody has been counted twice.
    let steps = story["deliveries"][0]["steering"].as_array().expect("steering").len();
    place.relay.settled().await;
    assert!(
        place.partner.request_count() as usize <= 1 + steps,
        "{} requests, {steps} wishes",
        place.partner.request_count()
    );
    assert_eq!(place.relay.app().ledger().waiting(), 0);
    place.relay.finish().await;
}

async fn svix_sends_nothing_twice_for_a_retry(database: TestDatabase) {
    // holds: 18
    let svix = mock_svix().await;
    let relay = crate::support::TestRelay::start(&database, &svix).await;
    assert_eq!(relay.post(event("acme", "1", "a").to_string()).await.status, 202);
    relay.settled().await;
    let story = relay.get("/v1/events/acme/1").await.json();
    let first = story["deliveries"][0]["attempts"][0].clone();
    assert_eq!((&first["code"], &first["status"]), (&json!("delivered"), &json!(202)));
    let message = first["detail"].as_str().expect("the message's id").to_owned();
    assert!(message.starts_with("msg_"), "{first}");
    for replays_by_key in [true, false] {
        // Within twelve hours Svix gives its first answer again; later it knows the event's id.
        svix.set_replay_by_key(replays_by_key);
        let path = format!("/v1/deliveries/{}/retry", id_of(&story));
        assert_eq!(relay.send(Method::POST, &path, &[], "").await.status, 200);
        relay.settled().await;
    }
    let story = relay.get("/v1/events/acme/1").await.json();
    let attempts = story["deliveries"][0]["attempts"].as_array().expect("attempts");
    let told: Vec<_> =
        attempts.iter().map(|attempt| (attempt["status"].as_u64(), &attempt["detail"])).collect();
    let message = json!(message);
    assert_eq!(told, [(Some(202), &message), (Some(202), &message), (Some(409), &message)]);
    assert_eq!(svix.message_count(), 1);
    relay.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_sends_nothing_has_its_wish_carried_out_by_one_that_does() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let partner = posthaste::mock::MockPartner::start().await;
    let variables = [
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_MASTER_KEY", crate::support::partners::MASTER_KEY),
    ];
    let start = |role| {
        let all = [&variables[..], &[("POSTHASTE_ROLE", role)]].concat();
        RelayProcess::start(&database, &svix, &all)
    };
    let (ingest, worker) = (start("ingest"), start("worker"));
    partner.script([PartnerAnswer::status(500)]);
    let endpoint = json!({"url": partner.url("/"), "retry_schedule_ms": [3_600_000]});
    crate::support::partners::add_endpoint(&ingest, "globex", endpoint).await;
    call(&ingest, Method::PUT, "/v1/tenants/acme", json!({"route": "direct"})).await;
    let known = async || {
        let listed = worker.get("/v1/partners/globex/endpoints").await.json();
        (listed["endpoints"].as_array()?.len() == 1).then_some(())
    };
    eventually("the worker knows the endpoint", known).await;
    assert_eq!(ingest.post(event("acme", "1", "a").to_string()).await.status, 202);
    let story = async || ingest.get("/v1/events/acme/1").await.json();
    let failed = async || {
        let story = story().await;
        (codes(&story).len() == 1).then_some(story)
    };
    let failed = eventually("it failed", failed).await;
    assert_eq!(
        failed["deliveries"][0]["waits_for"]["reason"], "backoff",
        "known without a dispatcher: {failed}"
    );
    let path = format!("/v1/deliveries/{}/retry", id_of(&failed));
    assert_eq!(ingest.send(Method::POST, &path, &[], "").await.status, 200);
    let delivered = async || (story().await["state"] == "delivered").then_some(());
    eventually("the worker has sent it", delivered).await;
    drop((ingest, worker));
}
