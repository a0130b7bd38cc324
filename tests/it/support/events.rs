//! Events and destinations in few words.

use std::sync::Arc;

use posthaste::domain::event::{Event, Fingerprint, Identity};
use posthaste::domain::tenant::{Destination, Lane};
use posthaste::ledger::NewEvent;

/// A Svix application.
pub fn svix(app: &str) -> Arc<Destination> {
    Arc::new(Destination::Svix { app: app.into() })
}

/// An event of tenant `acme`, of type `order.created`, with a little data.
pub fn event(id: impl Into<String>) -> EventBuilder {
    EventBuilder {
        tenant: "acme".into(),
        source: String::new(),
        id: id.into(),
        event_type: "order.created".into(),
        data: r#"{"total":1.10}"#.into(),
        lanes: Vec::new(),
    }
}

/// See [`event`].
#[derive(Debug, Clone)]
pub struct EventBuilder {
    tenant: String,
    source: String,
    id: String,
    event_type: String,
    data: String,
    lanes: Vec<Arc<Lane>>,
}

impl EventBuilder {
    pub fn tenant(mut self, tenant: &str) -> Self {
        self.tenant = tenant.into();
        self
    }

    pub fn source(mut self, source: &str) -> Self {
        self.source = source.into();
        self
    }

    pub fn of_type(mut self, event_type: &str) -> Self {
        self.event_type = event_type.into();
        self
    }

    /// Any JSON text.
    pub fn data(mut self, data: impl Into<String>) -> Self {
        self.data = data.into();
        self
    }

    /// One more lane that it goes to; the event then belongs to the lane's tenant.
    pub fn to(mut self, lane: &Arc<Lane>) -> Self {
        self.tenant = lane.tenant.to_string();
        self.lanes.push(lane.clone());
        self
    }

    /// The event as an ingest would hand it to the ledger.
    pub fn build(self) -> NewEvent {
        let quoted = |text: &str| serde_json::to_string(text).expect("a string");
        let head = format!(r#"{{"id":{},"type":{},"data":"#, quoted(&self.id), quoted(&self.event_type));
        let data = head.len()..head.len() + self.data.len();
        let event = Event {
            fingerprint: Fingerprint::of(&self.event_type, Some(&self.data)),
            identity: Identity { tenant: self.tenant.into(), source: self.source.into(), id: self.id.into() },
            event_type: self.event_type.into(),
            body: format!("{head}{}}}", self.data).into(),
            data: Some(data),
            trace: None,
        };
        NewEvent { event, lanes: self.lanes }
    }
}
