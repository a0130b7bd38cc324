//! The API, health and metrics: every key on every route.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Reach::{self, All, Common, Found, Led, Named, Own};
use super::{Stage, routes_in_source, same_routes, tells_nothing};
use crate::chaos::tell;
use crate::support::TestDatabase;

on_both_databases!(every_key_on_every_route_of_the_api);

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Ingest,
    Read,
    Admin,
}
use Needs::{Admin, Ingest, Nothing, Read};

/// A request, what it needs, whom it concerns, and how it is answered where all is right.
struct Line {
    route: &'static str,
    /// Behind the path.
    query: &'static str,
    needs: Needs,
    reach: Reach,
    body: Value,
    answer: u16,
}

/// A line without a query.
const fn line(route: &'static str, needs: Needs, reach: Reach, body: Value, answer: u16) -> Line {
    Line { route, query: "", needs, reach, body, answer }
}

const fn none() -> Value {
    Value::Null
}

/// In an order in which each may succeed: what takes things away comes last.
fn table() -> Vec<Line> {
    let mut table = what_is_asked();
    table.extend(what_is_changed());
    table
}

/// What takes events, and what only looks.
fn what_is_asked() -> Vec<Line> {
    let event = || json!({"id": "new", "type": "a", "tenant": "globex"});
    let dry = json!({"dry_run": true, "tenant": "globex"});
    vec![
        line("GET /health/live", Nothing, Common, none(), 200),
        line("GET /health/ready", Nothing, Common, none(), 200),
        line("GET /metrics", Read, All, none(), 200),
        line("POST /notifications", Ingest, Named, event(), 202),
        line("POST /api/v1/events", Ingest, Named, event(), 202),
        line("GET /v1/tenants/{tenant}", Read, Named, none(), 200),
        line("GET /v1/keys", Admin, All, none(), 200),
        line("GET /v1/partners", Read, All, none(), 200),
        line("GET /v1/partners/{partner}", Read, All, none(), 200),
        line("GET /v1/partners/{partner}/endpoints", Read, All, none(), 200),
        line("GET /v1/endpoints/{id}", Read, All, none(), 200),
        line("GET /v1/event-types", Read, Common, none(), 200),
        line("GET /v1/event-types/{name}", Read, Common, none(), 200),
        line(
            "POST /v1/transforms/preview",
            Read,
            Common,
            json!({"transform": {"omit": ["/a"]}, "payload": {"a": 1}}),
            200,
        ),
        line("GET /v1/events", Read, Own, none(), 200),
        Line { query: "?tenant=globex", ..line("GET /v1/events", Read, Named, none(), 200) },
        line("GET /v1/events/{tenant}/{id}", Read, Named, none(), 200),
        line("GET /v1/events/{tenant}/{id}/payload", Read, Named, none(), 200),
        line("GET /v1/deliveries", Read, Own, none(), 200),
        Line { query: "?tenant=globex", ..line("GET /v1/deliveries", Read, Named, none(), 200) },
        line("GET /v1/deliveries/{id}", Read, Found, none(), 200),
        line("GET /v1/rejected", Read, All, none(), 200),
        line("GET /v1/rejected/{id}", Read, All, none(), 200),
        line("GET /v1/stats", Read, Own, none(), 200),
        line("GET /v1/replays", Read, Own, none(), 200),
        line("GET /v1/replays/{id}", Read, Found, none(), 200),
        Line { query: "?since=1h", ..line("GET /v1/audits/svix", Read, Own, none(), 200) },
        Line { query: "?since=1h&tenant=globex", ..line("GET /v1/audits/svix", Read, Named, none(), 200) },
        line("POST /v1/replays", Read, Named, json!({"dry_run": true, "filter": {"tenant": "globex"}}), 200),
        line("POST /v1/replays", Read, Own, json!({"dry_run": true}), 200),
        line("POST /v1/prune", Read, Named, dry, 200),
        line("POST /v1/prune", Read, Own, json!({"dry_run": true}), 200),
    ]
}

fn what_is_changed() -> Vec<Line> {
    vec![
        line("PUT /v1/tenants/{tenant}", Admin, Named, json!({"route": "svix", "weight": 2}), 200),
        line("POST /v1/tenants/{tenant}/portal", Admin, Named, none(), 200),
        line("POST /v1/keys", Admin, All, json!({"name": "more", "scopes": ["read"]}), 201),
        line(
            "PUT /v1/partners/{partner}",
            Admin,
            All,
            json!({"name": "globex-partner", "paused": true}),
            200,
        ),
        line("POST /v1/partners/{partner}/endpoints", Admin, All, json!({"url": "http://127.0.0.1:9/"}), 201),
        line("PATCH /v1/endpoints/{id}", Admin, All, json!({"timeout_ms": 2_000}), 200),
        line("POST /v1/endpoints/{id}/secret/rotate", Admin, All, json!({"grace_ms": 60_000}), 200),
        line("POST /v1/endpoints/{id}/disable", Admin, All, none(), 200),
        line("POST /v1/endpoints/{id}/enable", Admin, All, none(), 200),
        line("POST /v1/endpoints/{id}/test", Admin, All, none(), 200),
        line("PUT /v1/event-types/{name}", Admin, All, json!({"description": "new"}), 200),
        line("POST /v1/deliveries/{id}/retry", Admin, Found, none(), 200),
        line("POST /v1/deliveries/{id}/cancel", Admin, Found, none(), 200),
        line("POST /v1/replays", Admin, Named, json!({"filter": {"tenant": "globex"}}), 201),
        line("POST /v1/replays/{id}/resume", Admin, Found, none(), 200),
        line("POST /v1/replays/{id}/pause", Admin, Found, none(), 200),
        line("POST /v1/replays/{id}/cancel", Admin, Found, none(), 200),
        line("POST /v1/rejected/{id}/replay", Admin, All, none(), 200),
        line("DELETE /v1/rejected/{id}", Admin, All, none(), 204),
        line(
            "POST /v1/prune",
            Admin,
            Named,
            json!({"dry_run": false, "tenant": "globex", "before": "1h"}),
            200,
        ),
        line("DELETE /v1/endpoints/{id}", Admin, All, none(), 204),
        line("DELETE /v1/partners/{partner}", Admin, All, none(), 204),
        line("DELETE /v1/keys/{id}", Admin, All, none(), 204),
    ]
}

/// Somebody who asks.
struct Caller<'a> {
    name: &'static str,
    key: Option<&'a str>,
    /// `None` where the key is none.
    scope: Option<Needs>,
    bound: bool,
}

impl Caller<'_> {
    /// The status with which they are refused; `None` where they are not.
    fn refused(&self, line: &Line) -> Option<u16> {
        if line.needs == Nothing {
            return None;
        }
        let Some(scope) = self.scope else { return Some(401) };
        if scope != line.needs && scope != Admin {
            return Some(403);
        }
        match line.reach {
            All | Named | Led if self.bound => Some(403),
            Found if self.bound => Some(404),
            _ => None,
        }
    }
}

fn callers(stage: &Stage) -> Vec<Caller<'_>> {
    let keys = &stage.keys;
    let caller = |name, key, scope, bound| Caller { name, key, scope, bound };
    vec![
        caller("nobody", None, None, false),
        caller("an unknown key", Some("ph_0123456789abcdef_0123"), None, false),
        caller("no key at all", Some("\u{20ac}"), None, false),
        caller("an ingest key", Some(&keys.ingest), Some(Ingest), false),
        caller("a read key", Some(&keys.read), Some(Read), false),
        caller("an admin key", Some(&keys.admin), Some(Admin), false),
        caller("a tenant's ingest key", Some(&keys.bound_ingest), Some(Ingest), true),
        caller("a tenant's read key", Some(&keys.bound_read), Some(Read), true),
        caller("a tenant's admin key", Some(&keys.bound_admin), Some(Admin), true),
    ]
}

async fn every_key_on_every_route_of_the_api(database: TestDatabase) {
    // holds: 47
    let stage = Stage::set(database).await;
    let table = table();
    let routes = routes(&stage).await;
    same_routes(&routes, &table.iter().map(|line| line.route.to_owned()).collect());
    let (callers, checked) = ask_all(&stage, &table).await;
    tell(
        "who may do what, API",
        format!("{} routes, {callers} callers: {checked} answers as the table says", routes.len()),
    );
    stage.relay.stop().await;
}

/// Asks everything for everybody; how many they are, and how much was asked.
async fn ask_all(stage: &Stage, table: &[Line]) -> (usize, usize) {
    let (callers, mut checked, mut wrong) = (callers(stage), 0, Vec::new());
    let mut check = async |caller: &Caller<'_>, line: &Line, expected: u16| {
        let (method, _) = line.route.split_once(' ').expect("a method");
        let path = stage.path(line.route) + line.query;
        let answer = stage.send(method, &path, caller.key, &line.body).await;
        if answer.status.as_u16() != expected {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            wrong.push(format!("{} asks {method} {path}: {} {text}", caller.name, answer.status));
        }
        if caller.bound {
            tells_nothing(caller.name, &path, &answer);
        }
        checked += 1;
    };
    // First all who are refused: none of them may have changed a thing.
    let before = stage.everything().await;
    for caller in &callers {
        for line in table {
            if let Some(status) = caller.refused(line) {
                check(caller, line, status).await;
            }
        }
    }
    assert_eq!(stage.everything().await, before, "who is refused changes nothing");
    for line in table {
        for caller in &callers {
            // What can be done once only is done by one.
            let once = line.needs == Admin && caller.bound;
            if caller.refused(line).is_none() && !once {
                check(caller, line, line.answer).await;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    (callers.len(), checked)
}

/// All routes but the console's: what the document tells, and what is added by hand.
async fn routes(stage: &Stage) -> BTreeSet<String> {
    let document = stage.relay.get("/openapi.json").await.json();
    let mut found = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            found.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    found.extend(routes_in_source().into_iter().filter(|route| !route.contains(" /console")));
    found
}
