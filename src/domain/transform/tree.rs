//! A payload as far as the rules reach into it: what they don't touch stays the text it came as.

use serde_json::value::RawValue;

use super::pointer::{Pointer, Token};
use super::{Output, TransformError};
use crate::domain::parse::json;

/// A JSON value.
#[derive(Debug)]
pub(super) enum Node<'a> {
    /// Its text; always valid JSON without whitespace around it.
    Raw(&'a str),
    /// An object or an array that a pointer went into.
    Opened(Box<Container<'a>>),
}

/// An object or an array, one level deep.
#[derive(Debug)]
pub(super) struct Container<'a> {
    /// Its text, for as long as nothing in it has changed.
    source: Option<&'a str>,
    is_array: bool,
    children: Vec<Child<'a>>,
}

#[derive(Debug)]
struct Child<'a> {
    /// The member's name as it stands in the text, quotes and escapes included; empty in an array.
    key: &'a str,
    /// Its name, where that is spelled with escapes and valid Unicode: read once, however many rules look for it.
    name: Option<Box<str>>,
    /// `None` once it is taken out: its place is kept until [`Node::sweep`], so that indexes stay what they are.
    value: Option<Node<'a>>,
}

/// A value that was taken out.
pub(super) struct Taken<'a> {
    pub(super) value: Node<'a>,
    /// Its place among the children of its parent.
    pub(super) place: usize,
}

/// Why a token leads nowhere.
enum Astray {
    /// Two members have that name.
    Twice,
    /// No element has that index.
    NoSuchIndex,
}

impl<'a> Node<'a> {
    fn empty_object() -> Self {
        Self::Opened(Box::new(Container { source: None, is_array: false, children: Vec::new() }))
    }

    /// The object or array that it is, opened.
    fn open(&mut self) -> Option<&mut Container<'a>> {
        if let Self::Raw(text) = *self
            && let Some(container) = Container::read(text)
        {
            *self = Self::Opened(Box::new(container));
        }
        match self {
            Self::Opened(container) => Some(container),
            Self::Raw(_) => None,
        }
    }

    /// What kind of JSON value it is, with its article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Raw(text) => json::kind(text),
            Self::Opened(container) if container.is_array => "an array",
            Self::Opened(_) => "an object",
        }
    }

    /// Its text, where nothing in it has changed.
    pub(super) fn source(&self) -> Option<&'a str> {
        match self {
            Self::Raw(text) => Some(text),
            Self::Opened(container) => container.source,
        }
    }

    /// What `pointer` leads to; `None` where there is nothing.
    ///
    /// # Errors
    ///
    /// [`TransformError::DuplicateKey`] where two members have a name on the way.
    pub(super) fn find(&mut self, pointer: &Pointer) -> Result<Option<&mut Self>, TransformError> {
        let mut node = self;
        for (depth, token) in pointer.tokens().iter().enumerate() {
            let Some(container) = node.open() else { return Ok(None) };
            let place = container.position(token).map_err(|astray| astray.at(pointer, depth))?;
            let Some(child) = place.and_then(|place| container.children[place].value.as_mut()) else {
                return Ok(None);
            };
            node = child;
        }
        Ok(Some(node))
    }

    /// Takes out what `pointer` leads to; `None` where there is nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::find`].
    pub(super) fn take(&mut self, pointer: &Pointer) -> Result<Option<Taken<'a>>, TransformError> {
        self.take_below(pointer, 0)
    }

    /// [`Self::take`], where the first `depth` tokens have led to here. Pointers are short, so it may recurse.
    fn take_below(&mut self, pointer: &Pointer, depth: usize) -> Result<Option<Taken<'a>>, TransformError> {
        let (Some(token), Some(container)) = (pointer.tokens().get(depth), self.open()) else {
            return Ok(None);
        };
        let Some(place) = container.position(token).map_err(|astray| astray.at(pointer, depth))? else {
            return Ok(None);
        };
        let child = &mut container.children[place].value;
        let taken = if depth + 1 == pointer.tokens().len() {
            child.take().map(|value| Taken { value, place })
        } else {
            match child {
                Some(child) => child.take_below(pointer, depth + 1)?,
                None => None,
            }
        };
        if taken.is_some() {
            container.source = None;
        }
        Ok(taken)
    }

    /// Puts `value` where `pointer` leads to, over what is there. Missing parents become objects.
    ///
    /// A new member comes last, or to the place `freed` by a member of the same object.
    ///
    /// # Errors
    ///
    /// [`TransformError::NotAContainer`] where a parent is neither object nor array,
    /// [`TransformError::NoSuchIndex`] where an array is shorter, [`TransformError::DuplicateKey`] as in
    /// [`Self::find`].
    pub(super) fn put(
        &mut self,
        pointer: &'a Pointer,
        value: Self,
        freed: Option<usize>,
    ) -> Result<(), TransformError> {
        let mut node = self;
        for (depth, token) in pointer.tokens().iter().enumerate() {
            let found = node.kind();
            let Some(container) = node.open() else {
                let pointer = pointer.prefix(depth).to_owned();
                return Err(TransformError::NotAContainer { pointer, found });
            };
            let is_last = depth + 1 == pointer.tokens().len();
            let place = container.make_room(token, is_last, freed.filter(|_| is_last));
            let place = place.map_err(|astray| astray.at(pointer, depth))?;
            container.source = None;
            node = container.children[place].value.get_or_insert_with(Self::empty_object);
        }
        *node = value;
        Ok(())
    }

    /// Closes the gaps that [`Self::take`] has left.
    pub(super) fn sweep(&mut self) {
        if let Self::Opened(container) = self
            && container.source.is_none()
        {
            container.children.retain_mut(|child| child.value.as_mut().map(Self::sweep).is_some());
        }
    }

    /// Appends it to `out`: what is unchanged as it came, what has changed without whitespace between its
    /// children.
    pub(super) fn write(&self, out: &mut Output) -> Result<(), TransformError> {
        let container = match self {
            Self::Raw(text) => return out.push(text),
            Self::Opened(container) => container,
        };
        if let Some(source) = container.source {
            return out.push(source);
        }
        let (open, close) = if container.is_array { ("[", "]") } else { ("{", "}") };
        out.push(open)?;
        let mut separator = "";
        for child in &container.children {
            let Some(value) = &child.value else { continue };
            out.push(separator)?;
            if !container.is_array {
                out.push(child.key)?;
                out.push(":")?;
            }
            value.write(out)?;
            separator = ",";
        }
        out.push(close)
    }
}

impl<'a> Container<'a> {
    /// Reads `text` one level deep; `None` for anything but an object or an array.
    fn read(text: &'a str) -> Option<Self> {
        let child = |key: &'a str, value| {
            let name = if key.contains('\\') { json::unquote(key).map(Into::into) } else { None };
            Child { key, name, value: Some(Node::Raw(value)) }
        };
        let mut children = Vec::new();
        match text.as_bytes().first() {
            Some(b'{') => {
                json::for_each_member(text, |key, value| children.push(child(key, value))).ok()?;
            }
            Some(b'[') => {
                let elements: Vec<&'a RawValue> = serde_json::from_str(text).ok()?;
                children.extend(elements.into_iter().map(|element| child("", element.get())));
            }
            _ => return None,
        }
        Some(Self { source: Some(text), is_array: text.starts_with('['), children })
    }

    /// Where the child that `token` names stands; `None` where there is none.
    fn position(&self, token: &Token) -> Result<Option<usize>, Astray> {
        if self.is_array {
            let is_there =
                |place: &usize| self.children.get(*place).is_some_and(|child| child.value.is_some());
            return Ok(token.index().filter(is_there));
        }
        let named = |(_, child): &(usize, &Child<'_>)| child.is_named(token) && child.value.is_some();
        let mut found = self.children.iter().enumerate().filter(named).map(|(place, _)| place);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(Astray::Twice),
            (place, None) => Ok(place),
        }
    }

    /// The place for a child under `token`: its own, or a new one where that may be made.
    fn make_room(&mut self, token: &'a Token, is_last: bool, freed: Option<usize>) -> Result<usize, Astray> {
        if self.is_array {
            match token.index() {
                Some(index) if index < self.children.len() => return Ok(index),
                None if is_last && token.is_append() => {}
                _ => return Err(Astray::NoSuchIndex),
            }
        } else if let Some(place) = self.position(token)? {
            return Ok(place);
        } else if let Some(place) = freed
            && let Some(child @ Child { value: None, .. }) = self.children.get_mut(place)
        {
            *child = Child::empty(token.key());
            return Ok(place);
        }
        let key = if self.is_array { "" } else { token.key() };
        self.children.push(Child::empty(key));
        Ok(self.children.len() - 1)
    }
}

impl<'a> Child<'a> {
    fn empty(key: &'a str) -> Self {
        Self { key, name: None, value: None }
    }

    fn is_named(&self, token: &Token) -> bool {
        self.key == token.key() || self.name.as_deref() == Some(token.name())
    }
}

impl Astray {
    /// The error, where it was the token at `depth` of `pointer` that led nowhere.
    fn at(&self, pointer: &Pointer, depth: usize) -> TransformError {
        let pointer = pointer.prefix(depth + 1).to_owned();
        match self {
            Self::Twice => TransformError::DuplicateKey { pointer },
            Self::NoSuchIndex => TransformError::NoSuchIndex { pointer },
        }
    }
}
