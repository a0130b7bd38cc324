//! Telling Svix which event types there are: the portal of its tenants lets them choose among these.

use ::svix::api::Svix;
use ::svix::error::Error;
use ::svix::models::EventTypeUpsertIn;
use serde_json::{Value, json};

/// Why Svix did not take an event type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct NotTaken {
    /// It will be taken no other time either: the event type itself is refused.
    pub is_final: bool,
    /// Svix's own words, or the transport's.
    pub detail: String,
}

/// A client for event types. Cheap to clone.
#[derive(Clone)]
pub struct SvixEventTypes {
    api: Svix,
}

impl std::fmt::Debug for SvixEventTypes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SvixEventTypes").finish_non_exhaustive()
    }
}

impl SvixEventTypes {
    /// A client of the same server that messages go to.
    pub const fn new(api: Svix) -> Self {
        Self { api }
    }

    /// Makes the event type at Svix, or sets what it is there. One request, which may be repeated.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn put(
        &self,
        name: &str,
        description: &str,
        schema: Option<Value>,
        example: Option<Value>,
    ) -> Result<(), NotTaken> {
        let mut event_type = EventTypeUpsertIn::new(description.to_owned());
        event_type.schemas = schemas(schema, example);
        match self.api.event_type().upsert(name.to_owned(), event_type).await {
            Ok(_) => Ok(()),
            Err(error) => Err(not_taken(&error)),
        }
    }
}

/// Schemas as Svix has them: by version, the example among the schema's own `examples` (JSON Schema 2020-12, 9.5).
fn schemas(schema: Option<Value>, example: Option<Value>) -> Option<Value> {
    let mut schema = match (schema, &example) {
        (None, None) => return None,
        (Some(Value::Object(schema)), _) => schema,
        _ => serde_json::Map::new(),
    };
    if let Some(example) = example {
        schema.entry("examples").or_insert_with(|| json!([example]));
    }
    Some(json!({ "1": schema }))
}

fn not_taken(error: &Error) -> NotTaken {
    match error {
        Error::Validation(refused) => NotTaken {
            is_final: true,
            detail: format!("Svix refuses it ({}): {:?}", refused.status, refused.payload),
        },
        Error::Http(refused) => {
            let status = refused.status.as_u16();
            let detail = format!("Svix answered {}: {:?}", refused.status, refused.payload);
            NotTaken { is_final: matches!(status, 400 | 413 | 422), detail }
        }
        other => NotTaken { is_final: false, detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_by_version_and_carry_the_example() {
        assert_eq!(schemas(None, None), None);
        let schema = json!({"type": "object"});
        assert_eq!(schemas(Some(schema.clone()), None), Some(json!({"1": {"type": "object"}})));
        let both = schemas(Some(schema), Some(json!({"a": 1})));
        assert_eq!(both, Some(json!({"1": {"type": "object", "examples": [{"a": 1}]}})));
        assert_eq!(schemas(None, Some(json!(1))), Some(json!({"1": {"examples": [1]}})));
    }
}
