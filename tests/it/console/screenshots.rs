//! The pictures in `docs/screenshots`: a relay with partners good and bad, an hour of figures before now, and a browser.
//!
//! `cargo test --features full --test it console::screenshots -- --ignored` makes them anew.

use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use posthaste::app::SystemClock;
use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::ledger::StatRow;
use posthaste::mock::{MockPartner, PartnerAnswer};
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::{TestDatabase, TestRelay, bounded, config, mock_svix};

const MINUTE_MS: i64 = 60_000;
/// Id, name, events a minute, latency in ms, share of failures in per cent by the minute of the hour.
type Partner = (&'static str, &'static str, u64, u64, fn(u64) -> u64);
const PARTNERS: [Partner; 5] = [
    ("warehouse", "Warehouse", 420, 38, |_| 0),
    ("loyalty", "Loyalty programme", 260, 74, |minute| if minute % 9 == 0 { 3 } else { 0 }),
    ("billing", "Billing", 180, 120, |_| 0),
    ("crm", "Our CRM", 90, 310, |minute| if minute > 38 { 100 } else { 1 }),
    ("fraud-check", "Fraud check", 60, 22, |minute| if (20..26).contains(&minute) { 12 } else { 0 }),
];

/// A wave with some unrest, from 80 to 120 per cent, that is the same every time.
fn swell(number: u64, minute: u64) -> u64 {
    let wave = [100, 106, 112, 116, 118, 116, 111, 104, 97, 90, 85, 82, 82, 85, 90, 95];
    let unrest = (minute * 7_919 + number * 104_729) % 11;
    number * (wave[(minute % 16) as usize] + unrest) / 105
}

/// What was counted in a minute: the result, the latencies around `latency_ms`, and the deaths.
fn sums(delivered: u64, failed: u64, latency_ms: u64, accepted: u64) -> String {
    let (most, rare) = (latency_ms * 1_000, latency_ms * 2_600);
    let all = delivered + failed;
    let slow = all / 40;
    let mut latencies = serde_json::Map::new();
    latencies.insert(most.to_string(), json!(all - slow));
    latencies.insert(rare.to_string(), json!(slow));
    let mut results = json!({ "2xx": delivered });
    if failed > 0 {
        results["5xx"] = json!(failed);
    }
    let sums = json!({ "accepted": accepted, "dead": failed / 8, "latency_us": all * most, "results": results, "latencies": latencies });
    sums.to_string()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes docs/screenshots"]
async fn are_taken() {
    bounded(async {
        let (database, svix, partner) = (TestDatabase::sqlite(), mock_svix().await, MockPartner::start().await);
        let mut config = config(&database, &svix);
        config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
        let relay = TestRelay::start_with(config).await;
        let url = format!("http://{}", relay.app().address());
        let json = [("content-type", "application/json")];
        let refused = PartnerAnswer {
            body: r#"{"error": "tls: certificate of database-2 has expired", "request": "8f14e45f"}"#.into(),
            ..PartnerAnswer::status(502)
        };
        partner.answer_at("/crm", Some(refused));
        let now = SystemClock::new().now();
        let first = now.as_millis().div_euclid(MINUTE_MS) * MINUTE_MS - 60 * MINUTE_MS;
        let mut rows = Vec::new();
        let mut row = |minute: u64, subject: &str, partner: &str, sums: String| {
            let minute = Timestamp::from_millis(first + i64::try_from(minute).expect("an hour") * MINUTE_MS);
            rows.push(StatRow { minute, subject: subject.into(), run: 1, partner: partner.into(), sums });
        };
        for (id, name, per_minute, latency, failures) in PARTNERS {
            relay.send(Method::PUT, &format!("/v1/partners/{id}"), &json, json!({ "name": name }).to_string()).await;
            let endpoint = json!({
                "url": partner.url(&format!("/{id}")),
                "event_types": [if id == "crm" { "customer.*" } else { "order.*" }],
                "retry_schedule_ms": [100, 200],
            });
            let theirs = format!("/v1/partners/{id}/endpoints");
            let made = relay.send(Method::POST, &theirs, &json, endpoint.to_string()).await;
            let made = made.json()["id"].as_str().expect("an id").to_owned();
            for minute in 0..60 {
                let all = swell(per_minute, minute);
                let failed = all * failures(minute) / 100;
                let latency = if id == "crm" && minute > 38 { 900 } else { swell(latency, minute * 3) };
                row(minute, &made, id, sums(all - failed, failed, latency, 0));
            }
        }
        for minute in 0..60 {
            let (svix, failed) = (swell(1_900, minute), if minute > 38 { swell(90, minute) } else { 2 });
            row(minute, "svix", "svix", sums(svix, 0, 52, 0));
            row(minute, "*", "", sums(svix + swell(1_000, minute) - failed, failed, swell(61, minute * 5), swell(1_950, minute)));
        }
        relay.app().ledger().database().add_stats(&rows).await.expect("written");
        for n in 0..24_u64 {
            let kind = ["order.created", "order.paid", "customer.updated", "shipment.sent"][(n % 4) as usize];
            let tenant = ["acme", "globex", "initech"][(n % 3) as usize];
            let event = format!(
                r#"{{"specversion":"1.0","id":"evt_{:05}","source":"/shop","type":"{kind}","tenant":"{tenant}","data":{{"number":"o-{}","customer":"Ada Lovelace","total":{}.50,"currency":"EUR"}}}}"#,
                48_210 + n, 9_200 + n * 7, 12 + n
            );
            assert_eq!(relay.post(event).await.status, 202);
        }
        relay.settled().await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/screenshots");
        std::fs::create_dir_all(&folder).expect("a folder");
        let browser = Browser::start(1280, 860).await;
        let save = async |name: &str| {
            // What moves has come to rest.
            tokio::time::sleep(Duration::from_millis(400)).await;
            std::fs::write(folder.join(name), browser.picture().await).expect("written");
        };
        browser.prefer("light").await;
        browser.goto(&format!("{url}/console")).await;
        browser.reads("failing").await;
        save("overview-light.png").await;
        browser.prefer("dark").await;
        save("overview-dark.png").await;
        browser.prefer("light").await;
        browser.goto(&format!("{url}/console/dead")).await;
        browser.reads("customer.updated").await;
        save("dead-letters.png").await;
        browser.click("table tbody tr:first-child a").await;
        browser.reads("given up").await;
        save("event.png").await;
        browser.resize(390, 844).await;
        browser.goto(&format!("{url}/console")).await;
        browser.reads("failing").await;
        save("phone.png").await;
        browser.quit().await;
        relay.finish().await;
    })
    .await;
}
