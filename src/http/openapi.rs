//! The OpenAPI document, made from the handlers, and the page that shows it.

use std::collections::BTreeMap;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::problem::{FieldError, PROBLEM_JSON, Problem};
use super::{health, metrics, notifications};

/// The refusals that every operation may answer.
pub(super) struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        let response =
            ResponseBuilder::new().description("A refusal (RFC 9457)").content(PROBLEM_JSON, content).build();
        BTreeMap::from([("default".to_owned(), RefOr::T(response))])
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Posthaste", description = "A webhook relay: batches of events in, each once in a ledger, one \
        message each out, to Svix or straight to partners."),
    paths(notifications::take, health::live, health::ready, metrics::metrics),
    components(schemas(Problem, FieldError)),
    modifiers(&Keys),
    security(("bearer" = []), ("api_key" = []), ()),
    tags(
        (name = "events", description = "Events in, and what became of them"),
        (name = "deliveries", description = "One event for one receiver: how it stands, out again, or not any more"),
        (name = "rejected", description = "What came from a source or a push and could never be accepted"),
        (name = "replays", description = "Deliveries that are done, out again"),
        (name = "retention", description = "What is kept, and for how long"),
        (name = "partners", description = "Receiver organisations without Svix"),
        (name = "endpoints", description = "The URLs of partners"),
        (name = "event types", description = "What events there are; Svix is told for the portal of its tenants"),
        (name = "transforms", description = "How a receiver wants its payload"),
        (name = "tenants", description = "Where a tenant's events go, and what it may take"),
        (name = "keys", description = "Who may do what"),
        (name = "stats", description = "Throughput, latency and errors"),
        (name = "health", description = "Alive, able to take events, and how things stand")))]
struct Base;

/// How callers show who they are.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
        components.add_security_scheme("api_key", key);
    }
}

/// What is described apart from `/v1`, with events taken at `ingest_paths`.
pub(super) fn base(ingest_paths: &[String]) -> Document {
    let mut document = Base::openapi();
    if let Some(ingest) = document.paths.paths.remove("/notifications") {
        for (index, path) in ingest_paths.iter().enumerate() {
            let mut item = ingest.clone();
            // Operation ids are unique in a document.
            if index > 0
                && let Some(operation) = &mut item.post
            {
                operation.operation_id = Some(format!("take_{}", index + 1));
            }
            document.paths.paths.insert(path.clone(), item);
        }
    }
    document
}
