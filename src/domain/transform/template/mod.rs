//! `map`: the template of a new payload.

mod read;
mod write;

use super::pointer::Pointer;
use crate::domain::parse::json;

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Template {
    /// JSON text that goes out as it stands.
    Literal(Box<str>),
    /// An object: names as JSON strings, and templates.
    Object(Vec<(Box<str>, Template)>),
    /// An array.
    Array(Vec<Template>),
    /// A value taken from the event.
    Directive(Directive),
}

/// What stands for a value of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    value: Value,
    if_absent: IfAbsent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// `$ptr`: what the pointer leads to in the payload.
    Pointer(Pointer),
    /// `$event`: an attribute of the event.
    Event(Attribute),
    /// `$text`: a string with values in it.
    Text(Vec<Piece>),
}

/// What comes of a directive whose value the event does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum IfAbsent {
    /// The member or the element is left out.
    LeaveOut,
    /// This JSON text stands in.
    Default(Box<str>),
    /// The transform fails.
    Fail,
}

/// A piece of a `$text`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// The inside of a JSON string.
    Literal(Box<str>),
    Pointer(Pointer),
    Event(Attribute),
}

/// What is known of an event whether or not its payload says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute {
    Id,
    Type,
    Tenant,
    Source,
    ReceivedAt,
}

/// `text` as it stands between the quotes of a JSON string.
fn inside_of_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    json::quote(&mut quoted, text);
    quoted.pop();
    quoted.split_off(1)
}
