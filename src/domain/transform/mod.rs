//! Transforms: how a receiver wants its payload, said as data.
//!
//! A transform is a JSON object of up to four members. Each may be missing or `null`; they are applied in this
//! order, whatever theirs is:
//!
//! | member | is | does |
//! |---|---|---|
//! | `omit` | `[pointer, …]` | takes values out |
//! | `rename` | `{pointer: pointer, …}` | moves values to other names and places |
//! | `set` | `{pointer: value, …}` | puts constant values in |
//! | `map` | a template | makes a new payload out of what there is by then |
//!
//! There is nothing in it that computes or repeats, so it always ends, in time linear in payload and rules. Numbers
//! keep their digits (`19.90` stays `19.90`, forty digits stay forty), members keep their order. **What no rule
//! changes goes out byte for byte**, whitespace, escapes and all; an object or array in which something has changed
//! is written without whitespace between its children, which are themselves as they were. `{}` changes nothing.
//!
//! # Examples
//!
//! All of them on this payload:
//!
//! ```json
//! {"id":"evt_7","type":"order.paid","tenant":"acme","data":{"order":"A-17","total":19.90,"buyer":{"name":"Ada","email":"ada@example.com"},"items":["ring","pin"]}}
//! ```
//!
//! Keep what is none of the receiver's business to yourself:
//!
//! ```json
//! {"omit": ["/tenant", "/data/buyer/email"]}
//! ```
//! ```json
//! {"id":"evt_7","type":"order.paid","data":{"order":"A-17","total":19.90,"buyer":{"name":"Ada"},"items":["ring","pin"]}}
//! ```
//!
//! Speak the receiver's names, and add what it expects (a member that gets another name stays where it was, a new
//! one comes last, `-` appends to an array):
//!
//! ```json
//! {
//!   "omit": ["/tenant"],
//!   "rename": {"/data/order": "/data/order_id", "/data/buyer/name": "/data/customer"},
//!   "set": {"/version": 2, "/data/amount/currency": "EUR", "/data/items/-": "gift wrap"}
//! }
//! ```
//! ```json
//! {"id":"evt_7","type":"order.paid","data":{"order_id":"A-17","total":19.90,"buyer":{"email":"ada@example.com"},"items":["ring","pin","gift wrap"],"customer":"Ada","amount":{"currency":"EUR"}},"version":2}
//! ```
//!
//! Make something of another shape; what the payload does not have is left out, or has a default:
//!
//! ```json
//! {
//!   "map": {
//!     "event": {"$event": "type"},
//!     "order": {"id": {"$ptr": "/data/order", "required": true}, "total": {"$ptr": "/data/total"}},
//!     "lines": [{"$ptr": "/data/items/0"}, {"$ptr": "/data/items/1"}, {"$ptr": "/data/items/2"}],
//!     "coupon": {"$ptr": "/data/coupon"},
//!     "country": {"$ptr": "/data/buyer/country", "default": "unknown"}
//!   }
//! }
//! ```
//! ```json
//! {"event":"order.paid","order":{"id":"A-17","total":19.90},"lines":["ring","pin"],"country":"unknown"}
//! ```
//!
//! Write a sentence, as a chat wants it:
//!
//! ```json
//! {"map": {"text": {"$text": "{$event.tenant}: {/data/buyer/name} paid {/data/total} for order {/data/order}"}}}
//! ```
//! ```json
//! {"text":"acme: Ada paid 19.90 for order A-17"}
//! ```
//!
//! # Grammar
//!
//! ```text
//! transform = { "omit"?: [pointer…], "rename"?: {pointer: pointer…}, "set"?: {pointer: any JSON…}, "map"?: template }
//! pointer   = a JSON Pointer (RFC 6901) as a string; in omit, rename and set not the empty one
//!
//! template  = directive
//!           | { name: template… }                  "$$name" stands for "$name"
//!           | [ template… ]
//!           | string | number | true | false | null
//! directive = { "$ptr": pointer,    if-absent? }   the value there; "" is the whole payload
//!           | { "$event": attribute, if-absent? }  a string
//!           | { "$text": text,      if-absent? }   a string
//!           | { "$literal": any JSON }             this, with nothing in it read as a directive
//! if-absent = "default": any JSON | "required": true
//! attribute = "id" | "type" | "tenant" | "source" | "received_at"
//! text      = characters, {pointer}, {$event.attribute}; "{{" is "{" and "}}" is "}"
//! ```
//!
//! # Fine print
//!
//! - A pointer that leads nowhere is no mistake in `omit` and `rename`: nothing happens. In a template the member or
//!   element is left out, unless it says `default` or `required`; a template that is left out as a whole fails. A
//!   `null` in the payload is a value, not absent.
//! - Rules of one kind don't see one another: every pointer in `omit` means the payload as it came, and `rename`
//!   takes all values out before it puts any in (so two can change places), inner ones before what holds them.
//!   A target's index counts the elements from before they were taken out.
//! - `rename` and `set` overwrite what is there, and make objects (never arrays) of missing parents. An array takes
//!   an existing index, or `-` at a pointer's end, which appends. A parent that is a string, a number, a boolean or
//!   `null` fails the transform, and so does an index that an array does not have.
//! - An object that has a name twice is left alone until a pointer goes by that name: nobody can say which of
//!   the two is meant, and the transform fails.
//! - In a text, strings stand without their quotes, numbers with their digits, and `true`, `false` and `null` as
//!   that; an object or an array fails the transform. A name that holds a brace can't be used there.
//! - `received_at` is when the event was recorded, by RFC 3339 in UTC. An event without a source has none.
//! - Refused when it is saved, with the place: whatever is not in the grammar, a name twice, a move into itself or of
//!   something omitted, two values put to one place or one into the other, more than [`DOCUMENT_LIMIT_BYTES`],
//!   [`DOCUMENT_DEPTH_LIMIT`], [`RULE_LIMIT`] or [`POINTER_TOKEN_LIMIT`].

mod edit;
mod error;
mod pointer;
mod read;
mod template;
#[cfg(test)]
mod tests;
mod tree;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::value::RawValue;

use self::edit::{Rename, Set};
pub use self::error::{InvalidTransform, TransformError};
use self::pointer::Pointer;
use self::template::Template;
use self::tree::Node;
use super::clock::Timestamp;
use super::event::Identity;
use super::parse::{DEPTH_LIMIT, json};

/// Longest transform, in bytes.
pub const DOCUMENT_LIMIT_BYTES: usize = 64 * 1_024;

/// How deep a transform may nest, the transform itself counted as one.
pub const DOCUMENT_DEPTH_LIMIT: usize = 32;

/// Most rules of one transform: each omit, rename and set is one, and each value that `map` takes.
pub const RULE_LIMIT: usize = 256;

/// Most tokens of one pointer.
pub const POINTER_TOKEN_LIMIT: usize = 64;

/// Longest payload that comes out, in bytes, where nobody says otherwise.
pub const DEFAULT_OUTPUT_LIMIT_BYTES: usize = 1_024 * 1_024;

/// A transform that was found good. The default one is `{}`.
///
/// ```
/// use posthaste::domain::clock::Timestamp;
/// use posthaste::domain::transform::{Context, DEFAULT_OUTPUT_LIMIT_BYTES, Transform};
///
/// let transform = Transform::parse(r#"{"omit": ["/card"], "rename": {"/sum": "/total"}}"#)?;
/// let received_at = Timestamp::from_millis(0);
/// let context = Context { id: "evt_7", event_type: "order.paid", tenant: "acme", source: "", received_at };
/// let payload = br#"{"sum": 19.90, "card": "4111"}"#;
/// assert_eq!(*transform.apply(payload, &context, DEFAULT_OUTPUT_LIMIT_BYTES)?, *br#"{"total":19.90}"#);
///
/// let refused = Transform::parse(r#"{"omit": ["/card", "sum"]}"#).unwrap_err();
/// assert_eq!(refused.pointer, "/omit/1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    /// The text that it was read from.
    source: Box<str>,
    omit: Vec<Pointer>,
    rename: Vec<Rename>,
    set: Vec<Set>,
    map: Option<Template>,
}

/// What is known of an event whether or not its payload says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its type.
    pub event_type: &'a str,
    /// Whose it is.
    pub tenant: &'a str,
    /// Its source; empty where it has none.
    pub source: &'a str,
    /// When it was recorded.
    pub received_at: Timestamp,
}

impl Transform {
    /// Reads a transform.
    ///
    /// # Errors
    ///
    /// [`InvalidTransform`] with the place, where it is not JSON, not in the grammar, beyond a limit, or at odds
    /// with itself.
    pub fn parse(json: &str) -> Result<Self, InvalidTransform> {
        read::transform(json)
    }

    /// The text that it was read from, a JSON object.
    pub fn as_json(&self) -> &str {
        &self.source
    }

    /// Whether there is not one rule in it.
    pub fn is_identity(&self) -> bool {
        self.omit.is_empty() && self.rename.is_empty() && self.set.is_empty() && self.map.is_none()
    }

    /// What goes out for `payload`, an event's whole JSON text or its data: valid JSON of at most `limit_bytes`,
    /// and `payload` itself where no rule changes anything.
    ///
    /// # Errors
    ///
    /// [`TransformError`]; none of them is worth another try.
    pub fn apply<'p>(
        &self,
        payload: &'p [u8],
        context: &Context<'_>,
        limit_bytes: usize,
    ) -> Result<Cow<'p, [u8]>, TransformError> {
        let mut root = Node::Raw(checked(payload)?);
        edit::omit(&mut root, &self.omit)?;
        edit::rename(&mut root, &self.rename)?;
        edit::set(&mut root, &self.set)?;
        let mut out = Output { text: String::new(), limit_bytes };
        match &self.map {
            Some(template) => template.render(&mut root, context, &mut out)?,
            None if root.source().is_some() => {
                return if payload.len() > limit_bytes {
                    Err(TransformError::TooLarge { limit_bytes })
                } else {
                    Ok(Cow::Borrowed(payload))
                };
            }
            None => {
                out.text.reserve(payload.len().min(limit_bytes));
                root.write(&mut out)?;
            }
        }
        check_depth(&out.text)?;
        Ok(Cow::Owned(out.text.into_bytes()))
    }
}

/// The JSON value that `payload` is.
fn checked(payload: &[u8]) -> Result<&str, TransformError> {
    let malformed = |detail: String| TransformError::MalformedPayload { detail };
    let text = json::text(payload).map_err(|error| malformed(error.to_string()))?;
    let value: &RawValue =
        serde_json::from_str(text).map_err(|error| malformed(json::malformed(text, &error).to_string()))?;
    check_depth(value.get())?;
    Ok(value.get())
}

fn check_depth(text: &str) -> Result<(), TransformError> {
    if json::is_deeper_than(text, DEPTH_LIMIT) { Err(TransformError::TooDeep) } else { Ok(()) }
}

impl Default for Transform {
    fn default() -> Self {
        Self { source: "{}".into(), omit: Vec::new(), rename: Vec::new(), set: Vec::new(), map: None }
    }
}

/// Its text, as JSON and not as a string. Only `serde_json` can do that.
impl Serialize for Transform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: &RawValue = serde_json::from_str(&self.source).map_err(ser::Error::custom)?;
        text.serialize(serializer)
    }
}

/// Reads its JSON, which only `serde_json` can hand over. Whoever needs the place of an error uses
/// [`Transform::parse`].
impl<'de> Deserialize<'de> for Transform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(text.get()).map_err(de::Error::custom)
    }
}

impl<'a> Context<'a> {
    /// The context of an event.
    pub fn new(identity: &'a Identity, event_type: &'a str, received_at: Timestamp) -> Self {
        let Identity { tenant, source, id } = identity;
        Self { id, event_type, tenant, source, received_at }
    }
}

/// What goes out, as it grows.
struct Output {
    text: String,
    limit_bytes: usize,
}

impl Output {
    fn push(&mut self, text: &str) -> Result<(), TransformError> {
        if text.len() > self.limit_bytes - self.text.len() {
            return Err(TransformError::TooLarge { limit_bytes: self.limit_bytes });
        }
        self.text.push_str(text);
        Ok(())
    }
}
