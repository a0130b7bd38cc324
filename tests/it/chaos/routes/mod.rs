//! Every route of the router, for everybody who might ask: nobody gets in without the right key, no key gets further than
//! its scope, and a tenant's key neither sees nor touches what is another's.
//!
//! The routes are not listed here but found: in the document that the router makes of itself, and in the source of what
//! is beside it. What is found must have a line in a table ([`api`], [`console`]) that says who may; so a route that is
//! added without one fails these tests.

use std::collections::BTreeSet;
use std::path::Path;

use axum::http::Method;
use posthaste::ledger::NewRejected;
use posthaste::mock::{MockPartner, MockSvix, PartnerAnswer};
use serde_json::{Value, json};

use crate::access::create_key;
use crate::support::partners::{JSON, direct};
use crate::support::{Answer, TOKEN, TestDatabase, TestRelay, mock_svix};

mod api;
mod console;

/// What is another tenant's, and stands in no request of these tests: in an answer to a tenant's key it is a leak.
const SECRETS: [&str; 5] =
    ["globex-payload", "globex-type", "globex-partner", "globex-rejected", "globex-answer"];

/// Whom a route is for, besides its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It concerns no tenant in particular: a tenant's key is like any other.
    Common,
    /// It concerns all tenants: a tenant's key is refused.
    All,
    /// The tenant stands in the request: another's is refused.
    Named,
    /// It is one tenant's: another's is not there.
    Found,
    /// A list or a sum: of one's own.
    Own,
    /// A page on the way to others: a tenant's key is led to its tenant's.
    Led,
}

/// A relay with two tenants, `acme` and `globex`, who have one of everything, and keys of every kind.
struct Stage {
    relay: TestRelay,
    _database: TestDatabase,
    _svix: MockSvix,
    partner: MockPartner,
    /// A key for each scope, and the same for `acme` alone.
    keys: Keys,
    /// Globex's.
    delivery: String,
    endpoint: String,
    rejected: String,
    other_rejected: String,
    replay: String,
    /// One that nobody uses.
    key: String,
}

struct Keys {
    ingest: String,
    read: String,
    admin: String,
    bound_ingest: String,
    bound_read: String,
    bound_admin: String,
}

impl Stage {
    async fn set(database: TestDatabase) -> Self {
        let svix = mock_svix().await;
        let mut config = direct(&database, &svix);
        // Beside the way to partners, for the portal and the audit.
        config.svix.token = Some(TOKEN.into());
        let relay = TestRelay::start_with(config).await;
        let admin = create_key(&relay, None, json!({"name": "root", "scopes": ["admin"]})).await;
        let make = async |scope: &str, tenant: Option<&str>| {
            create_key(&relay, Some(&admin), json!({"name": scope, "scopes": [scope], "tenant": tenant}))
                .await
        };
        let keys = Keys {
            ingest: make("ingest", None).await,
            read: make("read", None).await,
            bound_ingest: make("ingest", Some("acme")).await,
            bound_read: make("read", Some("acme")).await,
            bound_admin: make("admin", Some("acme")).await,
            admin: admin.clone(),
        };
        let key = make("ingest", None).await.split('_').nth(1).expect("an id").to_owned();
        let partner = MockPartner::start().await;
        partner
            .set_answer(Some(PartnerAnswer { body: "globex-answer".into(), ..PartnerAnswer::status(500) }));
        let mut stage = Self {
            relay,
            _database: database,
            _svix: svix,
            keys,
            key,
            delivery: String::new(),
            endpoint: String::new(),
            rejected: String::new(),
            other_rejected: String::new(),
            replay: String::new(),
            partner,
        };
        stage.fill().await;
        stage
    }

    /// What each of the two tenants has.
    async fn fill(&mut self) {
        for partner in ["crm", "empty"] {
            self.ask("PUT", &format!("/v1/partners/{partner}"), json!({"name": "globex-partner"})).await;
        }
        let endpoint = json!({"url": self.partner.url("/"), "tenant": "globex", "retry_schedule_ms": [1]});
        let made = self.ask("POST", "/v1/partners/crm/endpoints", endpoint).await.json();
        made["id"].as_str().expect("an id").clone_into(&mut self.endpoint);
        self.ask("PUT", "/v1/event-types/order.created", json!({})).await;
        for tenant in ["acme", "globex"] {
            self.ask("PUT", &format!("/v1/tenants/{tenant}"), json!({"route": "svix"})).await;
            let event = |n: usize| {
                json!({"id": n.to_string(), "type": format!("{tenant}-type"), "tenant": tenant,
                    "data": {"of": format!("{tenant}-payload")}})
            };
            self.ask("POST", "/notifications", (1..=30).map(event).collect()).await;
            let message = NewRejected {
                origin: "nats:orders".into(),
                reason: format!("{tenant}-rejected"),
                attributes: "{}".into(),
                body: json!({"id": "again", "type": format!("{tenant}-type"), "tenant": tenant})
                    .to_string()
                    .into(),
                tenant: Some(tenant.into()),
                ..NewRejected::default()
            };
            let now = posthaste::domain::clock::Timestamp::from_millis(1_700_000_000_000);
            self.relay.app().ledger().database().reject(&[message], now).await.expect("kept");
        }
        self.relay.settled().await;
        for tenant in ["acme", "globex"] {
            // Slow, and at rest until somebody lets it go on.
            let replay = json!({"filter": {"tenant": tenant, "states": ["dead", "delivered"]}, "pace": 1});
            let started = self.ask("POST", "/v1/replays", replay).await.json();
            started["id"].as_str().expect("an id").clone_into(&mut self.replay);
            self.ask("POST", &format!("/v1/replays/{}/pause", self.replay), Value::Null).await;
        }
        self.relay.settled().await;
        let listed = self.ask("GET", "/v1/deliveries?tenant=globex&partner=crm", Value::Null).await.json();
        listed["deliveries"][0]["id"].as_str().expect("an id").clone_into(&mut self.delivery);
        let listed = self.ask("GET", "/v1/rejected", Value::Null).await.json();
        let id = |row: &Value| row["id"].to_string().trim_matches('"').to_owned();
        // The newest first: globex's, then acme's.
        (self.rejected, self.other_rejected) = (id(&listed["rejected"][0]), id(&listed["rejected"][1]));
    }

    /// Asks as the administrator, who must not be refused.
    async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let answer = self.send(method, path, Some(&self.keys.admin), &body).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        answer
    }

    async fn send(&self, method: &str, path: &str, key: Option<&str>, body: &Value) -> Answer {
        let mut headers = JSON.to_vec();
        headers.extend(key.map(|key| ("x-api-key", key)));
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.relay.send(method.parse::<Method>().expect("a method"), path, &headers, text).await
    }

    /// A route's path, where it is about globex.
    fn path(&self, route: &str) -> String {
        let (_, path) = route.split_once(' ').expect("a method and a path");
        // One is for asking, the other for throwing away: what was put in again is there no more.
        let rejected = if route.starts_with("DELETE ") || path.ends_with("/delete") {
            &self.other_rejected
        } else {
            &self.rejected
        };
        let id = [
            ("/deliveries/", self.delivery.as_str()),
            ("/endpoints/", &self.endpoint),
            ("/rejected/", rejected),
            ("/replays/", &self.replay),
            ("/keys/", &self.key),
            ("/events/", "1"),
        ];
        let id = id.iter().find(|(part, _)| path.contains(part)).map_or("", |(_, id)| *id);
        // Only a partner without endpoints can go.
        let gone = route == "DELETE /v1/partners/{partner}" || path.ends_with("{partner}/delete");
        let path = path.replace("{partner}", if gone { "empty" } else { "crm" });
        let path = path.replace("{tenant}", "globex");
        path.replace("{name}", "order.created").replace("{id}", id)
    }

    /// All that an administrator can see of what may be changed: the same before and after what was refused.
    async fn everything(&self) -> String {
        let mut told = String::new();
        for path in [
            "/v1/partners",
            "/v1/partners/crm/endpoints",
            "/v1/event-types",
            "/v1/tenants/acme",
            "/v1/tenants/globex",
            "/v1/keys",
            "/v1/rejected",
            "/v1/replays",
            "/v1/events",
            "/v1/deliveries",
        ] {
            told += &String::from_utf8_lossy(&self.ask("GET", path, Value::Null).await.body);
            told.push('\n');
        }
        told
    }
}

/// Fails where an answer tells a tenant's key of what is another's.
fn tells_nothing(who: &str, what: &str, answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    let leaked: Vec<_> = SECRETS.into_iter().filter(|secret| text.contains(secret)).collect();
    assert!(leaked.is_empty(), "{what} tells {who} of {leaked:?}: {text}");
}

/// The routes that the source of the HTTP side adds by hand, as `METHOD path`: all that the document of the API does not
/// tell of. Read from the source, since a router tells nobody what is in it.
fn routes_in_source() -> BTreeSet<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http")];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(path).expect("a source file");
            for other in [".nest(", ".nest_service(", ".route_service(", ".fallback(", ".fallback_service("] {
                assert!(!text.contains(other), "{other} is not understood here");
            }
            for (at, call) in text.match_indices(".route(") {
                // A tenant's route is another kind of route.
                let of_tenant = ["snapshot", "self"].iter().any(|name| text[..at].trim_end().ends_with(name));
                if !of_tenant {
                    found.extend(added_routes(&text[at + call.len()..]));
                }
            }
        }
    }
    found
}

/// What stands behind one `.route(`.
fn added_routes(added: &str) -> Vec<String> {
    // The configured paths, whose default is in the document.
    if added.starts_with("path, post(notifications::take))") {
        return Vec::new();
    }
    let path = added.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let (path, rest) = path.unwrap_or_else(|| panic!("not understood: .route({}", &added[..40]));
    // Up to whatever is called next on the router.
    let handlers = rest.split("\n        .").next().unwrap_or(rest);
    let methods = ["get", "post", "put", "patch", "delete", "any"]
        .into_iter()
        .filter(|method| [" ", "."].iter().any(|before| handlers.contains(&format!("{before}{method}("))));
    let routes: Vec<_> = methods.map(|method| format!("{} {path}", method.to_uppercase())).collect();
    assert!(!routes.is_empty(), "no method for {path}: {handlers}");
    routes
}

/// Fails where the routes that there are, and those that a table tells of, are not the same.
fn same_routes(there_are: &BTreeSet<String>, table: &BTreeSet<String>) {
    let missing: Vec<_> = there_are.difference(table).collect();
    assert!(missing.is_empty(), "who may use these? Say so in the table: {missing:#?}");
    let gone: Vec<_> = table.difference(there_are).collect();
    assert!(gone.is_empty(), "these are in the table, but there are no such routes: {gone:#?}");
}

#[test]
fn routes_are_found_in_the_source() {
    let found = routes_in_source();
    for route in ["GET /metrics", "GET /console", "POST /console/sign-in", "ANY /console/{*elsewhere}"] {
        assert!(found.contains(route), "{route} in {found:#?}");
    }
}
