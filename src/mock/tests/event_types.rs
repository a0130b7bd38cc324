//! Event types, by Svix's own client.

use ::svix::api::{EventTypeDeleteOptions, EventTypeListOptions};
use ::svix::models::{EventTypeIn, EventTypeUpsertIn};
use serde_json::json;

use super::{MockSvix, status_of, svix};

fn upsert(description: &str) -> EventTypeUpsertIn {
    EventTypeUpsertIn {
        schemas: Some(json!({"1": {"type": "object"}})),
        ..EventTypeUpsertIn::new(description.to_owned())
    }
}

#[tokio::test]
async fn they_are_created_set_and_read() {
    let mock = MockSvix::start().await;
    let client = svix(&mock);
    let event_types = client.event_type();
    let new = || EventTypeIn::new("order.paid".to_owned(), "Paid".to_owned());
    let made = event_types.create(new(), None).await.expect("made");
    assert_eq!((made.name.as_str(), made.archived), ("order.paid", Some(false)));
    let (status, code) = status_of(event_types.create(new(), None).await);
    assert_eq!((status, code.as_str()), (409, "event_type_exists"));
    for description in ["Somebody paid", "It is paid"] {
        let set = event_types.upsert("order.paid".to_owned(), upsert(description)).await.expect("set");
        assert_eq!((set.description.as_str(), set.created_at), (description, made.created_at));
        assert_eq!(event_types.get("order.paid".to_owned()).await.expect("there"), set);
    }
    event_types.upsert("order.sent".to_owned(), upsert("Sent")).await.expect("made");
    assert_eq!(mock.event_types(), ["order.paid", "order.sent"]);
    assert_eq!(status_of(event_types.get("order.lost".to_owned()).await).0, 404);
    let unnamed = EventTypeIn::new("not a name".to_owned(), String::new());
    assert_eq!(status_of(event_types.create(unnamed, None).await).0, 422);
}

#[tokio::test]
async fn they_are_listed_by_page_and_archived() {
    let mock = MockSvix::start().await;
    let client = svix(&mock);
    let event_types = client.event_type();
    for name in ["c", "a", "b"] {
        event_types.upsert(name.to_owned(), upsert(name)).await.expect("made");
    }
    let page = async |iterator: Option<String>, with_content| {
        let options = EventTypeListOptions {
            limit: Some(2),
            iterator,
            with_content: Some(with_content),
            ..EventTypeListOptions::default()
        };
        event_types.list(Some(options)).await.expect("listed")
    };
    let names = |page: &::svix::models::ListResponseEventTypeOut| -> Vec<String> {
        page.data.iter().map(|one| one.name.clone()).collect()
    };
    let first = page(None, false).await;
    assert_eq!((names(&first), first.done), (vec!["a".to_owned(), "b".to_owned()], false));
    assert_eq!(first.data[0].schemas, None);
    let second = page(first.iterator, true).await;
    assert_eq!((names(&second), second.done), (vec!["c".to_owned()], true));
    assert_eq!(second.data[0].schemas, Some(json!({"1": {"type": "object"}})));
    event_types.delete("a".to_owned(), None).await.expect("archived");
    assert_eq!(names(&page(None, false).await), ["b", "c"]);
    assert_eq!(event_types.get("a".to_owned()).await.expect("still there").archived, Some(true));
    let expunge = EventTypeDeleteOptions { expunge: Some(true) };
    event_types.delete("a".to_owned(), Some(expunge)).await.expect("gone");
    assert_eq!(status_of(event_types.get("a".to_owned()).await).0, 404);
    event_types.delete("b".to_owned(), None).await.expect("archived");
    let again = event_types.create(EventTypeIn::new("b".to_owned(), "Again".to_owned()), None).await;
    assert_eq!(again.expect("out of the archive").archived, Some(false));
}
