//! Everything that the dashboard and the alerts look at is there, and all that is there is documented.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::http::Method;
use posthaste::mock::{MockPartner, MockSvix};
use posthaste::telemetry::families::ALL;
use serde_json::{Value, json};

use super::nats::NatsQueue;
use super::{Queue as _, source_config};
use crate::ingest::batch;
use crate::support::partners::{MASTER_KEY, add_endpoint, call};
use crate::support::{TestDatabase, TestRelay, bounded, eventually, mock_svix};

/// A relay that has something to tell of everything: Svix, a source, partners of which one is paused, traces.
async fn telling() -> (TestRelay, (NatsQueue, MockSvix, MockPartner, TestDatabase)) {
    let (svix, queue, database) = (mock_svix().await, NatsQueue::start().await, TestDatabase::sqlite());
    let partner = MockPartner::start().await;
    let mut config = source_config(&queue, &database, &svix, "");
    config.master_key = Some(MASTER_KEY.to_owned().into());
    config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
    // Nobody is there.
    config.traces.otlp_endpoint = Some("http://127.0.0.1:1".into());
    let relay = TestRelay::start_with(config).await;
    for name in ["crm", "idle"] {
        add_endpoint(&relay, name, json!({"url": partner.url("/")})).await;
    }
    call(&relay, Method::PUT, "/v1/partners/idle", json!({"name": "idle", "paused": true})).await;
    relay.post(batch(0, 10)).await;
    // To be kept until the end: all of it has something to tell.
    (relay, (queue, svix, partner, database))
}

async fn page(relay: &TestRelay) -> String {
    String::from_utf8(relay.get("/metrics").await.body.to_vec()).expect("text")
}

/// The names of series, and the labels of each but for a histogram's own.
fn exposed(text: &str) -> BTreeMap<String, BTreeSet<Vec<String>>> {
    let mut exposed: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        // No value here has a comma or a quote.
        let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
        let labels = labels.map(|(name, _)| name.to_owned()).filter(|name| name != "le").collect();
        exposed.entry(name.to_owned()).or_default().insert(labels);
    }
    exposed
}

/// Every name of a metric in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_metric = |word: &&str| word.starts_with("posthaste_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

/// Every query in a dashboard.
fn queries(dashboard: &Value, found: &mut String) {
    match dashboard {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if ["expr", "query", "definition"].contains(&name.as_str()) => {
                        found.push_str(text);
                        found.push('\n');
                    }
                    other => queries(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_is_exposed_and_what_is_exposed_is_documented() {
    bounded(async {
        let (relay, _all_that_it_tells_of) = telling().await;
        let mut asked = String::new();
        queries(&serde_json::from_str(&file("deploy/grafana/posthaste.json")).expect("JSON"), &mut asked);
        let dashboard = named(&asked);
        assert!(dashboard.len() > 30, "the queries were found: {dashboard:?}");
        let rules = file("deploy/prometheus/posthaste.rules.yaml");
        let watched: BTreeSet<_> = dashboard.into_iter().chain(named(&rules)).collect();
        let exposed = eventually("all of it is there", async || {
            let exposed = exposed(&page(&relay).await);
            let missing: Vec<_> = watched.iter().filter(|name| !exposed.contains_key(*name)).collect();
            missing.is_empty().then_some(exposed)
        });
        let exposed = match tokio::time::timeout(std::time::Duration::from_secs(15), exposed).await {
            Ok(exposed) => exposed,
            Err(_) => {
                let exposed = exposed_names(&page(&relay).await);
                panic!("not exposed: {:?}", watched.difference(&exposed).collect::<Vec<_>>());
            }
        };
        let mut told = BTreeSet::new();
        for (name, label_sets) in &exposed {
            let of = |family: &&posthaste::telemetry::families::Family| {
                let histogram = name.strip_prefix(family.name);
                *name == family.full_name() || matches!(histogram, Some("_bucket" | "_sum" | "_count"))
            };
            let family = ALL.iter().find(of).unwrap_or_else(|| panic!("{name} is not in the table"));
            told.insert(family.name);
            let labels: Vec<_> = family.labels.iter().map(|label| (*label).to_owned()).collect();
            assert_eq!(label_sets, &BTreeSet::from([labels]), "{name}");
        }
        let silent: Vec<_> =
            ALL.iter().map(|family| family.name).filter(|name| !told.contains(name)).collect();
        assert_eq!(silent, Vec::<&str>::new(), "each has something to tell here");
        relay.stop().await;
    })
    .await;
}

fn exposed_names(text: &str) -> BTreeSet<String> {
    exposed(text).into_keys().collect()
}
