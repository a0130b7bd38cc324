//! From a template and an event to what goes out.

use std::borrow::Cow;

use super::{Attribute, Directive, IfAbsent, Piece, Template, Value, inside_of_string};
use crate::domain::parse::json;
use crate::domain::transform::tree::Node;
use crate::domain::transform::{Context, Output, TransformError};

/// Why a value can't be written.
enum Lack {
    /// The event does not have it: the pointer, or the attribute's name.
    Absent(String),
    Failed(TransformError),
}

impl From<TransformError> for Lack {
    fn from(error: TransformError) -> Self {
        Self::Failed(error)
    }
}

impl Template {
    /// Appends what it makes of `root` and `context` to `out`.
    pub(in crate::domain::transform) fn render(
        &self,
        root: &mut Node<'_>,
        context: &Context<'_>,
        out: &mut Output,
    ) -> Result<(), TransformError> {
        match (Renderer { root, context, out }).template(self, &[]) {
            Ok(()) => Ok(()),
            // Left out, the whole would be no JSON at all.
            Err(Lack::Absent(pointer)) => Err(TransformError::Missing { pointer }),
            Err(Lack::Failed(error)) => Err(error),
        }
    }
}

struct Renderer<'r, 'a> {
    root: &'r mut Node<'a>,
    context: &'r Context<'r>,
    out: &'r mut Output,
}

impl<'a> Renderer<'_, 'a> {
    /// Writes `lead` and the value of `template`, or nothing where that is absent.
    fn template(&mut self, template: &Template, lead: &[&str]) -> Result<(), Lack> {
        match template {
            Template::Literal(text) => self.push(lead, text),
            Template::Object(members) => {
                self.push(lead, "{")?;
                self.children(members.iter().map(|(key, value)| (&**key, value)))?;
                self.push(&[], "}")
            }
            Template::Array(elements) => {
                self.push(lead, "[")?;
                self.children(elements.iter().map(|element| ("", element)))?;
                self.push(&[], "]")
            }
            Template::Directive(Directive { value, if_absent }) => match self.value(value, lead) {
                Err(Lack::Absent(pointer)) => match if_absent {
                    IfAbsent::LeaveOut => Err(Lack::Absent(pointer)),
                    IfAbsent::Default(text) => self.push(lead, text),
                    IfAbsent::Fail => Err(TransformError::Missing { pointer }.into()),
                },
                written => written,
            },
        }
    }

    fn children<'t>(&mut self, children: impl Iterator<Item = (&'t str, &'t Template)>) -> Result<(), Lack> {
        let mut separator = "";
        for (key, child) in children {
            let colon = if key.is_empty() { "" } else { ":" };
            match self.template(child, &[separator, key, colon]) {
                Ok(()) => separator = ",",
                Err(Lack::Absent(_)) => {}
                Err(failed) => return Err(failed),
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, lead: &[&str]) -> Result<(), Lack> {
        match value {
            Value::Pointer(pointer) => {
                let Some(node) = self.root.find(pointer)? else {
                    return Err(Lack::Absent(pointer.to_string()));
                };
                for text in lead {
                    self.out.push(text)?;
                }
                Ok(node.write(self.out)?)
            }
            Value::Event(attribute) => {
                let text = attribute.of(self.context)?;
                let mut quoted = String::with_capacity(text.len() + 2);
                json::quote(&mut quoted, &text);
                self.push(lead, &quoted)
            }
            Value::Text(pieces) => {
                // Nothing is written before everything is known to be there.
                let pieces: Vec<_> =
                    pieces.iter().map(|piece| self.piece(piece)).collect::<Result<_, _>>()?;
                self.push(lead, "\"")?;
                for piece in pieces {
                    self.out.push(&piece)?;
                }
                self.push(&[], "\"")
            }
        }
    }

    /// A piece of text as it stands between the quotes of a JSON string.
    fn piece<'t>(&mut self, piece: &'t Piece) -> Result<Cow<'t, str>, Lack>
    where
        'a: 't,
    {
        match piece {
            Piece::Literal(text) => Ok(Cow::Borrowed(text)),
            Piece::Event(attribute) => {
                let text = attribute.of(self.context)?;
                Ok(Cow::Owned(inside_of_string(&text)))
            }
            Piece::Pointer(pointer) => match self.root.find(pointer)? {
                None => Err(Lack::Absent(pointer.to_string())),
                Some(Node::Raw(text)) if !text.starts_with(['{', '[']) => {
                    // A string's own escapes are those of the string it goes into.
                    let inside = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                    Ok(Cow::Borrowed(inside.unwrap_or(text)))
                }
                Some(node) => {
                    let (pointer, found) = (pointer.to_string(), node.kind());
                    Err(TransformError::NotText { pointer, found }.into())
                }
            },
        }
    }

    fn push(&mut self, lead: &[&str], text: &str) -> Result<(), Lack> {
        for lead in lead {
            self.out.push(lead)?;
        }
        Ok(self.out.push(text)?)
    }
}

impl Attribute {
    /// Its text; an event without a source has an empty one.
    fn of<'c>(self, context: &Context<'c>) -> Result<Cow<'c, str>, Lack> {
        match self {
            Self::Id => Ok(Cow::Borrowed(context.id)),
            Self::Type => Ok(Cow::Borrowed(context.event_type)),
            Self::Tenant => Ok(Cow::Borrowed(context.tenant)),
            Self::Source if context.source.is_empty() => Err(Lack::Absent("$event.source".to_owned())),
            Self::Source => Ok(Cow::Borrowed(context.source)),
            Self::ReceivedAt => Ok(Cow::Owned(context.received_at.to_rfc3339())),
        }
    }
}
