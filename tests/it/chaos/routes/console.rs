//! The console: every session on every page and button, and forms that are not our own.

use std::collections::BTreeSet;

use super::Reach::{self, All, Common, Found, Led, Named, Own};
use super::{Stage, routes_in_source, same_routes, tells_nothing};
use crate::chaos::tell;
use crate::support::visitor::{OWN_PAGE, Visitor, text};
use crate::support::{Answer, TestDatabase};

on_both_databases!(
    every_session_on_every_route_of_the_console,
    no_form_but_our_own_does_anything,
    a_session_is_a_new_one
);

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Anybody may have it.
    Nothing,
    /// A session with any key that may read.
    Session,
    /// A session with an admin key.
    Admin,
}
use Needs::{Admin, Nothing, Session};

type Fields = &'static [(&'static str, &'static str)];

/// A page or a button, whom it is for, what its form says, and how an administrator is answered.
struct Line(&'static str, Needs, Reach, Fields, u16);

/// In an order in which each may succeed: what takes things away comes last.
const TABLE: &[Line] = &[
    Line("GET /console", Session, Led, &[], 200),
    Line("GET /console/", Nothing, Common, &[], 303),
    Line("ANY /console/{*elsewhere}", Nothing, Common, &[], 404),
    Line("GET /console/assets/{name}", Nothing, Common, &[], 404),
    Line("GET /console/sign-in", Nothing, Common, &[], 200),
    Line("GET /console/events", Session, Own, &[], 200),
    Line("GET /console/event", Session, Named, &[], 200),
    Line("GET /console/dead", Session, Own, &[], 200),
    Line("GET /console/replays", Session, Own, &[], 200),
    Line("GET /console/replays/new", Session, Own, &[], 200),
    Line("GET /console/replays/{id}", Session, Found, &[], 200),
    Line("GET /console/partners", Session, All, &[], 200),
    Line("GET /console/partners/new", Session, Common, &[], 200),
    Line("GET /console/partners/{partner}", Session, All, &[], 200),
    Line("GET /console/partners/{partner}/edit", Session, All, &[], 200),
    Line("GET /console/partners/{partner}/endpoints/new", Session, All, &[], 200),
    Line("GET /console/endpoints/{id}", Session, All, &[], 200),
    Line("GET /console/endpoints/{id}/edit", Session, All, &[], 200),
    Line("GET /console/sources", Session, All, &[], 200),
    Line("GET /console/rejected/{id}", Session, All, &[], 200),
    Line("GET /console/tenants", Session, Led, &[], 200),
    Line("GET /console/tenants/{tenant}", Session, Named, &[], 200),
    Line("GET /console/keys", Admin, All, &[], 200),
    Line("GET /console/settings", Session, All, &[], 200),
    Line("POST /console/theme", Session, Common, &[("theme", "dark")], 303),
    // Nothing is sent meanwhile.
    Line("POST /console/partners/{partner}/pause", Admin, All, &[], 303),
    Line("POST /console/deliveries/{id}/retry", Admin, Found, &[], 303),
    Line("POST /console/deliveries/{id}/cancel", Admin, Found, &[], 303),
    Line("POST /console/replays", Admin, Named, &[("tenant", "globex"), ("state", "dead")], 303),
    Line("POST /console/replays/{id}/resume", Admin, Found, &[], 303),
    Line("POST /console/replays/{id}/pause", Admin, Found, &[], 303),
    Line("POST /console/replays/{id}/cancel", Admin, Found, &[], 303),
    Line("POST /console/partners/new", Admin, All, &[("id", "new"), ("name", "New")], 303),
    Line("POST /console/partners/{partner}/edit", Admin, All, &[("name", "globex-partner")], 303),
    Line("POST /console/partners/{partner}/resume", Admin, All, &[], 303),
    Line("POST /console/partners/{partner}/endpoints/new", Admin, All, ENDPOINT, 200),
    Line("POST /console/endpoints/{id}/edit", Admin, All, ENDPOINT, 303),
    Line("POST /console/endpoints/{id}/test", Admin, All, &[], 200),
    Line("POST /console/endpoints/{id}/rotate", Admin, All, &[("grace", "1 h")], 200),
    Line("POST /console/endpoints/{id}/disable", Admin, All, &[], 303),
    Line("POST /console/endpoints/{id}/enable", Admin, All, &[], 303),
    Line("POST /console/tenants/{tenant}", Admin, Named, &[("route", "svix"), ("weight", "3")], 303),
    Line("POST /console/keys", Admin, All, &[("name", "more"), ("scope", "read")], 200),
    Line("POST /console/rejected/{id}/replay", Admin, All, &[], 303),
    Line("POST /console/rejected/{id}/delete", Admin, All, &[], 303),
    Line("POST /console/endpoints/{id}/delete", Admin, All, &[], 303),
    Line("POST /console/partners/{partner}/delete", Admin, All, &[], 303),
    Line("POST /console/keys/{id}/revoke", Admin, All, &[], 303),
    // A wrong key; the right one is in the other tests.
    Line("POST /console/sign-in", Nothing, Common, &[("key", "ph_a_b")], 401),
    Line("POST /console/sign-out", Session, Common, &[], 303),
];
const ENDPOINT: Fields = &[("url", "http://127.0.0.1:9/"), ("event_types", "*"), ("scheme", "standard")];

impl Line {
    fn method(&self) -> &str {
        if self.is_form() { "POST" } else { "GET" }
    }

    fn is_form(&self) -> bool {
        self.0.starts_with("POST ")
    }

    /// Where it is, with globex's names in it.
    fn path(&self, stage: &Stage) -> String {
        let path = stage.path(self.0).replace("{*elsewhere}", "no/such/page");
        if path == "/console/event" { format!("{path}?tenant=globex&id=1") } else { path }
    }

    async fn ask(&self, stage: &Stage, visitor: &Visitor, csrf: &str) -> Answer {
        let path = self.path(stage);
        if self.is_form() {
            visitor.post(&path, &OWN_PAGE, &[&[("csrf", csrf)], self.3].concat()).await
        } else {
            visitor.get(&path).await
        }
    }
}

/// Somebody at the console.
struct Someone {
    name: &'static str,
    visitor: Visitor,
    /// What their forms carry.
    csrf: String,
    signed_in: bool,
    admin: bool,
    bound: bool,
}

impl Someone {
    async fn new(stage: &Stage, name: &'static str, key: Option<&str>) -> Self {
        let visitor = Visitor::new(&stage.relay);
        if let Some(key) = key {
            assert_eq!(visitor.sign_in(key).await.status, 303, "{name}");
        }
        let page = if key.is_some() { "/console/events" } else { "/console/sign-in" };
        let csrf = visitor.csrf(page).await;
        let bound = name.contains("tenant");
        Self { name, visitor, csrf, signed_in: key.is_some(), admin: name.contains("admin"), bound }
    }

    /// The status with which they are refused; `None` where they are not.
    fn refused(&self, line: &Line) -> Option<u16> {
        if line.1 == Nothing {
            // Its form is bound to a cookie that goes when one is signed in.
            return (self.signed_in && line.0 == "POST /console/sign-in").then_some(403);
        }
        if !self.signed_in {
            // To where one signs in.
            return Some(303);
        }
        if line.1 == Admin && !self.admin {
            return Some(403);
        }
        match line.2 {
            All | Named if self.bound => Some(403),
            Found if self.bound => Some(404),
            Led if self.bound => Some(303),
            _ => None,
        }
    }
}

/// Everybody who might come.
async fn everybody(stage: &Stage) -> Vec<Someone> {
    let keys = &stage.keys;
    vec![
        Someone::new(stage, "nobody", None).await,
        Someone::new(stage, "a read key", Some(&keys.read)).await,
        Someone::new(stage, "a tenant's read key", Some(&keys.bound_read)).await,
        Someone::new(stage, "a tenant's admin key", Some(&keys.bound_admin)).await,
        Someone::new(stage, "an admin key", Some(&keys.admin)).await,
    ]
}

fn routes() -> BTreeSet<String> {
    routes_in_source().into_iter().filter(|route| route.contains(" /console")).collect()
}

async fn every_session_on_every_route_of_the_console(database: TestDatabase) {
    // holds: 47
    let stage = Stage::set(database).await;
    same_routes(&routes(), &TABLE.iter().map(|line| line.0.to_owned()).collect());
    for key in [&stage.keys.ingest, &stage.keys.bound_ingest] {
        assert_eq!(Visitor::new(&stage.relay).sign_in(key).await.status, 403, "it can only send events");
    }
    let (visitors, checked) = ask_all(&stage).await;
    tell(
        "who may do what, console",
        format!("{} routes, {visitors} visitors: {checked} answers as the table says", TABLE.len()),
    );
    stage.relay.stop().await;
}

/// Asks everything for everybody; how many they are, and how much was asked.
async fn ask_all(stage: &Stage) -> (usize, usize) {
    let (everybody, mut checked, mut wrong) = (everybody(stage).await, 0, Vec::new());
    let mut check = async |someone: &Someone, line: &Line, expected: u16| {
        let answer = line.ask(stage, &someone.visitor, &someone.csrf).await;
        let what = format!("{} asks {} {}", someone.name, line.method(), line.path(stage));
        let to = answer.header("location").unwrap_or_default();
        let astray = !someone.signed_in && line.1 != Nothing && !to.starts_with("/console/sign-in");
        if answer.status.as_u16() != expected || astray {
            wrong.push(format!("{what}: {} {to} {}", answer.status, text(&answer)));
        }
        if someone.bound {
            tells_nothing(someone.name, &what, &answer);
        }
        checked += 1;
    };
    // First all who are refused: none of them may have changed a thing.
    let before = stage.everything().await;
    for someone in &everybody {
        for line in TABLE {
            if let Some(status) = someone.refused(line) {
                check(someone, line, status).await;
            }
        }
    }
    assert_eq!(stage.everything().await, before, "who is refused changes nothing");
    for line in TABLE {
        for someone in &everybody {
            // What can be done once only is done by one.
            let once = line.1 == Admin && someone.bound;
            if someone.refused(line).is_none() && !once {
                check(someone, line, line.4).await;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    (everybody.len(), checked)
}

async fn no_form_but_our_own_does_anything(database: TestDatabase) {
    // holds: 47
    let stage = Stage::set(database).await;
    let admin = Someone::new(&stage, "an admin key", Some(&stage.keys.admin)).await;
    let other = Someone::new(&stage, "a read key", Some(&stage.keys.read)).await;
    let stranger = Visitor::new(&stage.relay).csrf("/console/sign-in").await;
    let right = admin.csrf.as_str();
    let forms = || TABLE.iter().filter(|line| line.is_form());
    let before = stage.everything().await;
    let mut refused = 0;
    for line in forms() {
        let path = line.path(&stage);
        // Signing in is bound to a cookie of its own; the session's token is none there.
        for token in [None, Some(""), Some("0"), Some(&right[1..]), Some(&other.csrf), Some(&stranger)] {
            let mut fields = line.3.to_vec();
            fields.extend(token.map(|token| ("csrf", token)));
            let answer = admin.visitor.post(&path, &OWN_PAGE, &fields).await;
            assert_eq!(answer.status, 403, "{path} with the token {token:?}: {}", text(&answer));
            refused += 1;
        }
        let fields = [line.3, &[("csrf", right)]].concat();
        for origin in [
            &[][..],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
        ] {
            let answer = admin.visitor.post(&path, origin, &fields).await;
            assert_eq!(answer.status, 403, "{path} from {origin:?}: {}", text(&answer));
            refused += 1;
        }
    }
    assert_eq!(stage.everything().await, before, "what is refused changes nothing");
    assert_eq!(admin.visitor.get("/console/partners").await.status, 200, "still signed in");
    tell("forms of others", format!("{refused} refused, at {} buttons", forms().count()));
    stage.relay.stop().await;
}

/// Whatever an attacker has put into a browser before its owner signs in is not what they are signed in with.
async fn a_session_is_a_new_one(database: TestDatabase) {
    // holds: 47
    const COOKIE: &str = "posthaste_console";
    let stage = Stage::set(database).await;
    let attacker = Someone::new(&stage, "a read key", Some(&stage.keys.read)).await.visitor;
    let planted = attacker.cookies.borrow()[COOKIE].clone();
    let victim = Visitor::new(&stage.relay);
    // A session of the attacker's own, good until now.
    victim.cookies.borrow_mut().insert(COOKIE.into(), planted.clone());
    assert_eq!(victim.get("/console/events").await.status, 200, "the victim sees what the attacker may");
    assert_eq!(victim.sign_in(&stage.keys.admin).await.status, 303);
    let own = victim.cookies.borrow()[COOKIE].clone();
    assert!(own != planted && own.len() >= 64, "{own}");
    assert_eq!(victim.get("/console/keys").await.status, 200);
    assert_eq!(
        attacker.get("/console/events").await.status,
        303,
        "the planted session is over, and not the victim's"
    );
    // What forms are bound to before is no session, neither as it is nor under the session's name.
    let early = Visitor::new(&stage.relay);
    early.csrf("/console/sign-in").await;
    let form = early.cookies.borrow()["posthaste_form"].clone();
    assert_eq!(early.sign_in(&stage.keys.admin).await.status, 303);
    assert_ne!(early.cookies.borrow()[COOKIE], form);
    let copy = Visitor::new(&stage.relay);
    copy.cookies.borrow_mut().insert(COOKIE.into(), form);
    assert_eq!(copy.get("/console/events").await.status, 303);
    // Twice signed in: two sessions, and the first is over.
    let first = victim.cookies.borrow()[COOKIE].clone();
    assert_eq!(victim.sign_in(&stage.keys.admin).await.status, 303);
    assert_ne!(victim.cookies.borrow()[COOKIE], first);
    copy.cookies.borrow_mut().insert(COOKIE.into(), first);
    assert_eq!(copy.get("/console/events").await.status, 303);
    stage.relay.stop().await;
}
