//! `posthaste master-key rotate`

use std::time::Duration;

use axum::http::Method;
use posthaste::ledger::StoredSettings;
use posthaste::mock::MockPartner;
use serde_json::json;
use svix::webhooks::Webhook;

use super::run;
use crate::support::partners::{MASTER_KEY, add_endpoint, direct, verify};
use crate::support::{RelayProcess, TestDatabase, TestRelay, mock_svix};

const OLD: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW: &str = "/v79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

async fn after_a_rotation_the_key_before_is_needed_no_more(database: TestDatabase) {
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    let loopback = ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8");
    let relay = RelayProcess::start(&database, &svix, &[("POSTHASTE_MASTER_KEY", OLD), loopback]);
    let call = async |relay: &RelayProcess, method, path: &str, body: serde_json::Value| {
        let answer = relay.send(method, path, &JSON, body.to_string()).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.json());
        answer.json()
    };
    call(&relay, Method::PUT, "/v1/partners/crm", json!({"name": "CRM"})).await;
    let settings = json!({"url": partner.url("/"), "headers": {"X-Token": "canary"}});
    let made = call(&relay, Method::POST, "/v1/partners/crm/endpoints", settings).await;
    let endpoint = format!("/v1/endpoints/{}", made["id"].as_str().expect("an id"));
    let rotated = call(&relay, Method::POST, &format!("{endpoint}/secret/rotate"), json!({})).await;

    let rotate = async |keys: &[(&str, &str)]| {
        let variables = [&[("POSTHASTE_DATABASE_URL", database.url())], keys].concat();
        run(&["master-key", "rotate"], &variables).await
    };
    let both = [("POSTHASTE_MASTER_KEY", NEW), ("POSTHASTE_MASTER_KEY_PREVIOUS", OLD)];
    if !database.is_postgres() {
        let refused = rotate(&both).await;
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "a server owns the file");
        assert!(!refused.err.is_empty());
    }
    relay.kill();
    let without = rotate(&[("POSTHASTE_MASTER_KEY", NEW)]).await;
    assert_eq!(without.code, Some(1), "{}", without.out);
    assert!(without.out.contains("0 sealed anew, 0 already under the current key"), "{}", without.out);
    assert!(
        without.err.contains("3 could not be opened") && !without.err.contains("canary"),
        "{}",
        without.err
    );
    for expected in ["3 sealed anew, 0 already under", "0 sealed anew, 3 already under"] {
        let ended = rotate(&both).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
        assert!(ended.out.contains(expected), "{}", ended.out);
    }

    let relay = RelayProcess::start(&database, &svix, &[("POSTHASTE_MASTER_KEY", NEW), loopback]);
    let tested = call(&relay, Method::POST, &format!("{endpoint}/test"), json!({})).await;
    assert_eq!(tested["status"], 204, "{tested}");
    let request = partner.requests().pop().expect("a request");
    assert_eq!(request.header("x-token"), "canary");
    for secret in [&made["secret"], &rotated["secret"]] {
        let webhook = Webhook::new(secret.as_str().expect("a secret")).expect("a secret");
        webhook.verify(&request.body, &request.headers).expect("signed with both");
    }
    relay.kill();
}

/// The deployment's way: every node gets the new key with the old one as a previous one, the secrets are sealed anew
/// while nodes run, and the old key is taken away.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_while_a_server_runs_disturbs_no_delivery() {
    let (database, svix) = (TestDatabase::postgres().await, mock_svix().await);
    let partner = MockPartner::start().await;
    let start = |keys: &[(&str, &str)]| {
        let loopback = [("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"), ("POSTHASTE_SVIX__TOKEN", "")];
        RelayProcess::start(&database, &svix, &[&loopback, keys].concat())
    };
    let relay = start(&[("POSTHASTE_MASTER_KEY", OLD)]);
    let mut secrets = Vec::new();
    for n in 0..20 {
        let path = format!("/{n}");
        let settings = json!({"url": partner.url(&path), "headers": {"X-Token": "canary"}});
        secrets.push((path, add_endpoint(&relay, "crm", settings).await.1));
    }
    relay.kill();
    let both = [("POSTHASTE_MASTER_KEY", NEW), ("POSTHASTE_MASTER_KEY_PREVIOUS", OLD)];
    let relay = start(&both);
    let verify_all = |count: usize| {
        for (path, secret) in &secrets {
            let requests = partner.requests_to(path);
            assert_eq!(requests.len(), count, "{path}");
            for request in requests {
                assert_eq!((request.header("x-token"), request.status), ("canary", 204));
                verify(&request, secret);
            }
        }
    };
    let post = async |relay: &RelayProcess, id: &str| {
        let event = json!({"id": id, "tenant": "acme", "type": "a", "data": {}});
        assert_eq!(relay.post(event.to_string()).await.status, 202);
    };
    let variables = [[("POSTHASTE_DATABASE_URL", database.url()); 1].as_slice(), &both].concat();
    let rotation = run(&["master-key", "rotate"], &variables);
    let mut rotation = std::pin::pin!(rotation);
    let mut posted = 0;
    // Events before, during and after.
    let ended = loop {
        posted += 1;
        post(&relay, &format!("evt_{posted}")).await;
        tokio::select! {
            ended = &mut rotation => break ended,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    };
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{}", ended.out);
    assert!(ended.out.contains("60 sealed anew, 0 already under"), "{}", ended.out);
    // Long enough for the server to have read again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    posted += 1;
    post(&relay, "evt_after").await;
    assert!(partner.wait_for(20 * posted as u64, Duration::from_secs(30)).await, "all arrive");
    verify_all(posted);
    println!("{posted} events to 20 endpoints, before, during and after a rotation");
    relay.kill();
    let relay = start(&[("POSTHASTE_MASTER_KEY", NEW)]);
    posted += 1;
    post(&relay, "evt_without_the_old_key").await;
    assert!(
        partner.wait_for(20 * posted as u64, Duration::from_secs(30)).await,
        "the old key is needed no more"
    );
    verify_all(posted);
    relay.kill();
}

/// Earlier versions stored URLs whole.
async fn a_rotation_seals_the_urls_of_earlier_versions(database: TestDatabase) {
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    let config = direct(&database, &svix);
    let relay = TestRelay::start_with(config.clone()).await;
    let url = partner.url("/services/canary");
    let (id, _) = add_endpoint(&relay, "crm", json!({ "url": url })).await;
    let ledger = relay.app().ledger();
    let whole = StoredSettings { json: json!({ "url": url }).to_string(), headers: None };
    ledger.database().update_endpoint(&id, &whole, None).await.expect("written");
    relay.stop().await;
    let variables = [("POSTHASTE_DATABASE_URL", database.url()), ("POSTHASTE_MASTER_KEY", MASTER_KEY)];
    for nth in 1..=2 {
        let relay = TestRelay::start_with(config.clone()).await;
        relay
            .post(json!({"id": format!("evt_{nth}"), "tenant": "acme", "type": "a", "data": {}}).to_string())
            .await;
        assert!(partner.wait_for(nth as u64, Duration::from_secs(10)).await, "it is delivered");
        relay.settled().await;
        let rows = relay.app().ledger().database().all_endpoints().await.expect("read");
        assert_eq!(rows[0].settings.json.contains("canary"), nth == 1, "{}", rows[0].settings.json);
        relay.stop().await;
        let rotated = run(&["master-key", "rotate"], &variables).await;
        assert_eq!((rotated.code, rotated.err.as_str()), (Some(0), ""), "{}", rotated.out);
    }
    assert!(partner.requests().iter().all(|request| request.path == "/services/canary"));
}

on_both_databases!(
    after_a_rotation_the_key_before_is_needed_no_more,
    a_rotation_seals_the_urls_of_earlier_versions,
);
