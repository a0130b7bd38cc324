//! From the text of a template to its parts.

use super::{Attribute, Directive, IfAbsent, Piece, Template, Value, inside_of_string};
use crate::domain::parse::json;
use crate::domain::transform::InvalidTransform;
use crate::domain::transform::read::{Member, Reader, elements, members, string, unexpected};

impl Template {
    /// Reads the template `raw`, which stands at `place`. As deep as the transform may nest, it may recurse.
    pub(in crate::domain::transform) fn read(
        reader: &mut Reader,
        raw: &str,
        place: &str,
    ) -> Result<Self, InvalidTransform> {
        if raw.starts_with('[') {
            let elements = elements(raw, place)?.into_iter();
            let elements = elements.map(|(element, place)| Self::read(reader, element, &place));
            return Ok(Self::Array(elements.collect::<Result<_, _>>()?));
        }
        if !raw.starts_with('{') {
            return Ok(Self::Literal(raw.into()));
        }
        let members = members(raw, place)?;
        if let Some(nth) = members.iter().position(|member| is_directive(&member.name)) {
            return Self::read_directive(reader, &members, nth);
        }
        let read_member = |member: Member<'_>| {
            let value = Self::read(reader, member.value, &member.place)?;
            Ok((output_key(&member), value))
        };
        Ok(Self::Object(members.into_iter().map(read_member).collect::<Result<_, _>>()?))
    }

    /// Reads the directive among `members` that is the `nth`, and what stands next to it.
    fn read_directive(
        reader: &mut Reader,
        members: &[Member<'_>],
        nth: usize,
    ) -> Result<Self, InvalidTransform> {
        let Member { name, value: raw, place, .. } = &members[nth];
        let value = match &**name {
            "$literal" => None,
            "$ptr" => Some(Value::Pointer(reader.pointer(&string(raw, place)?, place)?)),
            "$event" => {
                reader.count(place)?;
                Some(Value::Event(Attribute::read(&string(raw, place)?, place)?))
            }
            "$text" => Some(Value::Text(read_text(reader, &string(raw, place)?, place)?)),
            _ => {
                let detail = "no such directive; there are `$ptr`, `$text`, `$event` and `$literal`, and a name \
                              that begins with `$` is written with `$$`";
                return Err(InvalidTransform::new(place.as_str(), detail));
            }
        };
        let mut options = Options::default();
        for (_, option) in members.iter().enumerate().filter(|(other, _)| *other != nth) {
            match &value {
                Some(_) => options.note(option)?,
                None => return Err(stranger(option)),
            }
        }
        Ok(match value {
            Some(value) => Self::Directive(Directive { value, if_absent: options.into_if_absent()? }),
            None => Self::Literal((*raw).into()),
        })
    }
}

/// Whether `name` makes a directive of the object it stands in.
fn is_directive(name: &str) -> bool {
    name.starts_with('$') && !name.starts_with("$$")
}

/// The name under which `member` goes out.
fn output_key(member: &Member<'_>) -> Box<str> {
    if !member.name.starts_with("$$") {
        return member.key.into();
    }
    let mut key = String::with_capacity(member.key.len());
    json::quote(&mut key, &member.name[1..]);
    key.into()
}

fn stranger(member: &Member<'_>) -> InvalidTransform {
    InvalidTransform::new(member.place.as_str(), "can't stand next to a directive")
}

/// What stands next to a directive.
#[derive(Default)]
struct Options {
    default: Option<Box<str>>,
    is_required: bool,
    /// The place of the last one.
    place: String,
}

impl Options {
    fn note(&mut self, option: &Member<'_>) -> Result<(), InvalidTransform> {
        match (&*option.name, option.value) {
            ("default", value) => self.default = Some(value.into()),
            ("required", "true") => self.is_required = true,
            ("required", "false") => self.is_required = false,
            ("required", other) => return Err(unexpected("a boolean", other, &option.place)),
            _ => return Err(stranger(option)),
        }
        self.place.clone_from(&option.place);
        Ok(())
    }

    fn into_if_absent(self) -> Result<IfAbsent, InvalidTransform> {
        match self.default {
            Some(_) if self.is_required => {
                Err(InvalidTransform::new(self.place, "what is required has no use for a default"))
            }
            Some(default) => Ok(IfAbsent::Default(default)),
            None if self.is_required => Ok(IfAbsent::Fail),
            None => Ok(IfAbsent::LeaveOut),
        }
    }
}

/// Reads the text of a `$text`: `{…}` holds a pointer or `$event.` and an attribute, `{{` and `}}` are braces.
fn read_text(reader: &mut Reader, text: &str, place: &str) -> Result<Vec<Piece>, InvalidTransform> {
    let invalid = |detail: &str| InvalidTransform::new(place, detail);
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        literal.push_str(before);
        if brace.starts_with("{{") || brace.starts_with("}}") {
            literal.push_str(&brace[..1]);
            rest = &brace[2..];
            continue;
        }
        let Some(inside) = brace.strip_prefix('{') else {
            return Err(invalid("a `}` that closes nothing is written `}}`"));
        };
        let Some((name, behind)) = inside.split_once('}') else {
            return Err(invalid("a `{` that opens nothing is written `{{`"));
        };
        pieces.extend(literal_piece(&literal));
        literal.clear();
        pieces.push(Piece::read(reader, name, place)?);
        rest = behind;
    }
    literal.push_str(rest);
    pieces.extend(literal_piece(&literal));
    Ok(pieces)
}

fn literal_piece(text: &str) -> Option<Piece> {
    (!text.is_empty()).then(|| Piece::Literal(inside_of_string(text).into()))
}

impl Piece {
    fn read(reader: &mut Reader, name: &str, place: &str) -> Result<Self, InvalidTransform> {
        if let Some(attribute) = name.strip_prefix("$event.") {
            reader.count(place)?;
            return Attribute::read(attribute, place).map(Self::Event);
        }
        if !name.starts_with('/') || name.contains('{') {
            let detail = "between braces stands a pointer, as in `{/data/id}`, or an attribute, as in \
                          `{$event.type}`; a brace itself is written twice";
            return Err(InvalidTransform::new(place, detail));
        }
        reader.pointer(name, place).map(Self::Pointer)
    }
}

impl Attribute {
    const NAMES: [(&str, Self); 5] = [
        ("id", Self::Id),
        ("type", Self::Type),
        ("tenant", Self::Tenant),
        ("source", Self::Source),
        ("received_at", Self::ReceivedAt),
    ];

    fn read(name: &str, place: &str) -> Result<Self, InvalidTransform> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, attribute)| *attribute).ok_or_else(|| {
            let detail = "an event has `id`, `type`, `tenant`, `source` and `received_at`";
            InvalidTransform::new(place, detail)
        })
    }
}
