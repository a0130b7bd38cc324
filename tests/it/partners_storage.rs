//! Partners, endpoints and event types in the ledger: the same on both databases.

use std::time::Duration;

use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::domain::partner::{DisableReason, EndpointState, PartnerSettings};
use posthaste::domain::tenant::Route;
use posthaste::ledger::{
    EndpointMark, Ledger, LedgerError, NewEndpoint, Put, Sealed, SealedColumn, StoredSettings, TenantRow,
};

use crate::support::{TestClock, TestDatabase, side_by_side};

fn named(name: &str) -> PartnerSettings {
    let json = format!(r#"{{"name":"{name}","rate_limit":{{"per_second":0.5}},"paused":true}}"#);
    PartnerSettings::parse(&json).expect("good settings")
}

fn settings(url: &str, headers: Option<&str>) -> StoredSettings {
    StoredSettings { json: format!(r#"{{"url":"{url}"}}"#), headers: headers.map(str::to_owned) }
}

fn endpoint(id: &str, partner: &str) -> NewEndpoint {
    let settings = settings("https://example.com/", Some("sealed headers"));
    NewEndpoint { id: id.into(), partner: partner.into(), settings, secret: "sealed one".into() }
}

fn version(put: Put) -> i64 {
    match put {
        Put::Created(version) | Put::Updated(version) => version,
        Put::VersionConflict => panic!("a version conflict"),
    }
}

/// What `change` answers, and by how much the revision grew.
async fn grown<T>(ledger: &Ledger, change: impl Future<Output = T>) -> (T, i64) {
    let before = ledger.database().revision().await.expect("a number");
    let answer = change.await;
    (answer, ledger.database().revision().await.expect("a number") - before)
}

async fn a_partner_is_put_read_listed_and_deleted(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    let (put, grew) = grown(&ledger, db.put_partner("globex", &named("Globex"), None, clock.now())).await;
    let Ok(Put::Created(first)) = put else { panic!("{put:?}") };
    assert_eq!(grew, 1);
    let row = db.partner("globex").await.unwrap().expect("there");
    assert_eq!((row.version, row.created_at, &row.settings), (first, clock.now(), &named("Globex")));
    clock.pass(Duration::from_secs(1));
    let put = db.put_partner("globex", &named("Globex 2"), Some(first), clock.now()).await.unwrap();
    let Put::Updated(second) = put else { panic!("{put:?}") };
    assert!(second > first);
    for stale in [Some(first), Some(second + 1)] {
        let (put, grew) = grown(&ledger, db.put_partner("globex", &named("No"), stale, clock.now())).await;
        assert_eq!((put.unwrap(), grew), (Put::VersionConflict, 0));
    }
    let nobody = db.put_partner("nobody", &named("No"), Some(first), clock.now()).await.unwrap();
    assert_eq!(nobody, Put::VersionConflict);
    let row = db.partner("globex").await.unwrap().expect("there");
    assert_eq!(row.settings.name, "Globex 2");
    assert!(row.created_at < clock.now(), "it is as old as it was");
    for id in ["b", "a", "Z"] {
        version(db.put_partner(id, &named(id), None, clock.now()).await.unwrap());
    }
    let ids =
        |rows: Vec<posthaste::ledger::PartnerRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(db.partners(None, 3).await.unwrap()), ["Z", "a", "b"]);
    assert_eq!(ids(db.partners(Some("b"), 3).await.unwrap()), ["globex"]);
    assert!(!db.delete_partner("globex", Some(first)).await.unwrap());
    assert!(db.delete_partner("globex", Some(second)).await.unwrap());
    assert!(!db.delete_partner("globex", None).await.unwrap());
    let again = version(db.put_partner("globex", &named("Globex"), None, clock.now()).await.unwrap());
    assert!(again > second, "a version is never used twice");
    ledger.close().await;
}

async fn an_endpoint_is_added_changed_and_deleted(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    assert_eq!(db.add_endpoint(&endpoint("ep_1", "globex"), clock.now()).await.unwrap(), None);
    version(db.put_partner("globex", &named("Globex"), None, clock.now()).await.unwrap());
    version(db.put_partner("hooli", &named("Hooli"), None, clock.now()).await.unwrap());
    let (added, grew) = grown(&ledger, db.add_endpoint(&endpoint("ep_1", "globex"), clock.now())).await;
    let first = added.unwrap().expect("added");
    assert_eq!(grew, 1);
    let twice = db.add_endpoint(&endpoint("ep_1", "hooli"), clock.now()).await;
    assert!(matches!(twice, Err(LedgerError::Taken(_))), "{twice:?}");
    let row = db.endpoint("ep_1").await.unwrap().expect("there");
    assert_eq!((row.partner.as_str(), row.secret.as_str(), row.version), ("globex", "sealed one", first));
    assert_eq!(row.settings, endpoint("ep_1", "globex").settings);
    assert_eq!((row.state, row.failing_since, row.proven_at), (EndpointState::Active, None, None));
    assert_eq!((row.previous_secret, row.created_at), (None, clock.now()));

    let other = settings("https://example.com/2", None);
    let put = db.update_endpoint("ep_1", &other, Some(first)).await.unwrap();
    let Put::Updated(second) = put else { panic!("{put:?}") };
    let (stale, grew) = grown(&ledger, db.update_endpoint("ep_1", &other, Some(first))).await;
    assert_eq!((stale.unwrap(), grew), (Put::VersionConflict, 0));
    assert_eq!(db.update_endpoint("ep_9", &other, None).await.unwrap(), Put::VersionConflict);
    assert_eq!(db.endpoint("ep_1").await.unwrap().expect("there").settings, other);

    for id in ["ep_3", "ep_2"] {
        db.add_endpoint(&endpoint(id, "globex"), clock.now()).await.unwrap().expect("added");
    }
    db.add_endpoint(&endpoint("ep_0", "hooli"), clock.now()).await.unwrap().expect("added");
    let ids =
        |rows: Vec<posthaste::ledger::EndpointRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(db.endpoints_of("globex", None, 2).await.unwrap()), ["ep_1", "ep_2"]);
    assert_eq!(ids(db.endpoints_of("globex", Some("ep_2"), 2).await.unwrap()), ["ep_3"]);
    assert_eq!(ids(db.all_endpoints().await.unwrap()), ["ep_0", "ep_1", "ep_2", "ep_3"]);
    assert_eq!(ids(db.endpoints_since(0).await.unwrap()), ["ep_0", "ep_1", "ep_2", "ep_3"]);
    assert_eq!(ids(db.endpoints_since(second).await.unwrap()), ["ep_0", "ep_2", "ep_3"]);
    assert_eq!(ids(db.endpoints_since(db.revision().await.unwrap()).await.unwrap()), [""; 0]);

    let refused = db.delete_partner("globex", None).await;
    assert!(matches!(&refused, Err(LedgerError::Taken(why)) if why.contains('3')), "{refused:?}");
    assert!(!db.delete_endpoint("ep_1", Some(first)).await.unwrap());
    assert!(db.delete_endpoint("ep_1", Some(second)).await.unwrap());
    assert!(!db.delete_endpoint("ep_1", None).await.unwrap());
    ledger.close().await;
}

async fn secrets_are_rotated_and_sealed_anew(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    version(db.put_partner("globex", &named("Globex"), None, clock.now()).await.unwrap());
    let first = db.add_endpoint(&endpoint("ep_1", "globex"), clock.now()).await.unwrap().expect("added");
    let until = clock.now() + Duration::from_secs(3_600);
    let second = db.rotate_secret("ep_1", "sealed two", until).await.unwrap().expect("rotated");
    assert!(second > first);
    assert_eq!(db.rotate_secret("ep_9", "sealed", until).await.unwrap(), None);
    let row = db.endpoint("ep_1").await.unwrap().expect("there");
    assert_eq!(
        (row.secret.as_str(), row.previous_secret),
        ("sealed two", Some(("sealed one".into(), until)))
    );

    let sealed = db.sealed_texts().await.unwrap();
    let at = |column, text: &str| Sealed { endpoint: "ep_1".into(), column, text: text.into() };
    let secret = at(SealedColumn::Secret, "sealed two");
    let previous = at(SealedColumn::PreviousSecret, "sealed one");
    let headers = at(SealedColumn::Headers, "sealed headers");
    assert_eq!(sealed, [secret.clone(), previous.clone(), headers.clone()]);
    for (old, new) in [(&secret, "new two"), (&previous, "new one"), (&headers, "new headers")] {
        let (done, grew) = grown(&ledger, db.reseal(old, new)).await;
        assert_eq!((done.unwrap(), grew), (true, 1), "{old:?}");
        assert!(!db.reseal(old, "late").await.unwrap(), "what stands there has changed: {old:?}");
    }
    let row = db.endpoint("ep_1").await.unwrap().expect("there");
    assert_eq!((row.secret.as_str(), row.version), ("new two", second));
    assert_eq!(row.previous_secret, Some(("new one".into(), until)));
    assert_eq!(row.settings.headers.as_deref(), Some("new headers"));
    ledger.close().await;
}

async fn an_endpoints_state_keeps_its_first_reason(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    version(db.put_partner("globex", &named("Globex"), None, clock.now()).await.unwrap());
    db.add_endpoint(&endpoint("ep_1", "globex"), clock.now()).await.unwrap().expect("added");
    let (one, two) = (clock.now(), clock.now() + Duration::from_secs(1));
    let state = async || db.endpoint("ep_1").await.unwrap().expect("there");
    // set, and whether that changes anything
    assert!(db.set_failing_since("ep_1", Some(one)).await.unwrap());
    let (again, grew) = grown(&ledger, db.set_failing_since("ep_1", Some(two))).await;
    assert_eq!((again.unwrap(), grew, state().await.failing_since), (false, 0, Some(one)));
    assert!(db.set_proven("ep_1", one).await.unwrap() && !db.set_proven("ep_1", two).await.unwrap());
    assert_eq!(state().await.proven_at, Some(one));
    let mark = db.endpoint_marks().await.unwrap().pop().expect("one");
    let version = state().await.version;
    assert_eq!(
        mark,
        EndpointMark { id: "ep_1".into(), version, failing_since: Some(one), proven_at: Some(one) }
    );
    let before = state().await.version;
    let (disabled, grew) =
        grown(&ledger, db.set_endpoint_state("ep_1", Some((DisableReason::Gone, one)))).await;
    assert_eq!((disabled.unwrap(), grew), (true, 1));
    assert!(!db.set_endpoint_state("ep_1", Some((DisableReason::Operator, two))).await.unwrap());
    let row = state().await;
    assert_eq!(row.state, EndpointState::Disabled { reason: DisableReason::Gone, at: one });
    assert!(row.version > before && row.failing_since == Some(one));
    assert!(db.set_endpoint_state("ep_1", None).await.unwrap());
    assert!(!db.set_endpoint_state("ep_1", None).await.unwrap());
    let row = state().await;
    assert_eq!((row.state, row.failing_since), (EndpointState::Active, None), "it starts afresh");
    assert!(!db.set_failing_since("ep_1", None).await.unwrap());
    assert!(!db.set_endpoint_state("ep_9", Some((DisableReason::Gone, one))).await.unwrap());
    ledger.close().await;
}

async fn event_types_are_put_listed_and_synced(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    let json = r#"{"description":"d","schema":null,"example":{"total":19.90}}"#;
    let (put, grew) = grown(&ledger, db.put_event_type("order.paid", json, None, clock.now())).await;
    let Ok(Put::Created(first)) = put else { panic!("{put:?}") };
    assert_eq!(grew, 1);
    version(db.put_event_type("order.created", "{}", None, clock.now()).await.unwrap());
    let row = db.event_type("order.paid").await.unwrap().expect("there");
    assert_eq!((row.settings.as_str(), row.version, row.synced), (json, first, 0), "digits are kept");
    let names =
        |rows: Vec<posthaste::ledger::EventTypeRow>| rows.into_iter().map(|row| row.name).collect::<Vec<_>>();
    assert_eq!(names(db.event_types(None, 1).await.unwrap()), ["order.created"]);
    assert_eq!(names(db.event_types(Some("order.created"), 9).await.unwrap()), ["order.paid"]);
    assert_eq!(names(db.unsynced_event_types(9).await.unwrap()), ["order.paid", "order.created"]);
    db.mark_synced("order.paid", first).await.unwrap();
    assert_eq!(names(db.unsynced_event_types(9).await.unwrap()), ["order.created"]);
    let second = version(db.put_event_type("order.paid", "{}", Some(first), clock.now()).await.unwrap());
    let stale = db.put_event_type("order.paid", "{}", Some(first), clock.now()).await.unwrap();
    assert_eq!(stale, Put::VersionConflict);
    db.mark_synced("order.paid", first).await.unwrap();
    assert_eq!(names(db.unsynced_event_types(9).await.unwrap()), ["order.created", "order.paid"]);
    db.mark_synced("order.paid", second).await.unwrap();
    db.mark_synced("order.paid", first).await.unwrap();
    assert_eq!(
        db.event_type("order.paid").await.unwrap().expect("there").synced,
        second,
        "it never goes back"
    );
    let mut known = db.event_type_names().await.unwrap();
    known.sort();
    assert_eq!(known, ["order.created", "order.paid"]);
    ledger.close().await;
}

async fn a_tenants_transform_is_kept(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    let transform = Some(r#"{"set":{"/total":19.90}}"#.to_owned());
    let route = Some(Route::Svix { app: "acme".into() });
    let mut row = TenantRow { transform, ..TenantRow::new("acme", route) };
    assert!(db.put_tenant(&row).await.unwrap());
    assert_eq!(db.tenant("acme").await.unwrap().as_ref(), Some(&row));
    assert_eq!(db.tenants().await.unwrap(), [row.clone()]);
    row.transform = None;
    assert!(!db.put_tenant(&row).await.unwrap());
    assert_eq!(db.tenant("acme").await.unwrap(), Some(row));
    assert_eq!(db.tenant("globex").await.unwrap(), None);
    ledger.close().await;
}

/// Of those who name the same version, one wins, whatever else happens to the table.
async fn changes_side_by_side_stay_apart(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let db = ledger.database();
    let first = version(db.put_partner("globex", &named("0"), None, clock.now()).await.unwrap());
    let put = |number: usize| {
        let (ledger, at) = (ledger.clone(), Timestamp::from_millis(1));
        async move {
            let settings = named(&number.to_string());
            ledger.database().put_partner("globex", &settings, Some(first), at).await.unwrap()
        }
    };
    let answers = side_by_side((0..16).map(put)).await;
    let won = answers.iter().filter(|answer| matches!(answer, Put::Updated(_))).count();
    assert_eq!(won, 1, "{answers:?}");
    ledger.close().await;
}

on_both_databases!(
    a_partner_is_put_read_listed_and_deleted,
    an_endpoint_is_added_changed_and_deleted,
    secrets_are_rotated_and_sealed_anew,
    an_endpoints_state_keeps_its_first_reason,
    event_types_are_put_listed_and_synced,
    a_tenants_transform_is_kept,
    changes_side_by_side_stay_apart,
);
