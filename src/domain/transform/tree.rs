//! A payload as far as the rules reach into it: what they don't touch stays the text it came as.

use std::borrow::Cow;
use std::collections::HashMap;

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
    /// Names that were looked for since the children last moved.
    lookups: usize,
    /// Where names stand, once that pays.
    index: Option<HashMap<Cow<'a, str>, Slot>>,
}

/// Where a name stands in an object.
#[derive(Debug, Clone, Copy)]
struct Slot {
    place: usize,
    /// More than one member had that name when the index was made.
    is_twice: bool,
}

/// Objects of so few members are looked through.
const INDEXED_MEMBERS_MIN: usize = 16;
/// An index costs about as much as so many looks through an object.
const INDEXED_LOOKUPS_MIN: usize = 4;

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
        Self::Opened(Box::new(Container::new(None, false, Vec::new())))
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
            (container.index, container.lookups) = (None, 0);
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
        Some(Self::new(Some(text), text.starts_with('['), children))
    }

    const fn new(source: Option<&'a str>, is_array: bool, children: Vec<Child<'a>>) -> Self {
        Self { source, is_array, children, lookups: 0, index: None }
    }

    /// Where the child that `token` names stands; `None` where there is none.
    fn position(&mut self, token: &Token) -> Result<Option<usize>, Astray> {
        if self.is_array {
            let is_there =
                |place: &usize| self.children.get(*place).is_some_and(|child| child.value.is_some());
            return Ok(token.index().filter(is_there));
        }
        self.lookups += 1;
        if self.index.is_none()
            && self.children.len() >= INDEXED_MEMBERS_MIN
            && self.lookups > INDEXED_LOOKUPS_MIN
        {
            self.index = Some(self.indexed());
        }
        let is_here = |child: &Child<'_>| child.is_named(token) && child.value.is_some();
        if let Some(index) = &self.index {
            // A place may have been freed, and given to another name, since the index was made.
            let slot = index.get(token.name()).filter(|slot| is_here(&self.children[slot.place]));
            return match slot {
                Some(Slot { is_twice: true, .. }) => Err(Astray::Twice),
                slot => Ok(slot.map(|slot| slot.place)),
            };
        }
        count(self.children.len());
        let named = self.children.iter().enumerate().filter(|(_, child)| is_here(child));
        let mut found = named.map(|(place, _)| place);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(Astray::Twice),
            (place, None) => Ok(place),
        }
    }

    /// Where every name stands. No member of a name that is there twice is ever taken out: who looks for it fails.
    fn indexed(&self) -> HashMap<Cow<'a, str>, Slot> {
        count(self.children.len());
        let mut index = HashMap::<_, Slot>::with_capacity(self.children.len());
        for (place, child) in self.children.iter().enumerate().filter(|(_, child)| child.value.is_some()) {
            let Some(name) = child.name() else { continue };
            index
                .entry(name)
                .and_modify(|slot| slot.is_twice = true)
                .or_insert(Slot { place, is_twice: false });
        }
        index
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
            self.add_to_index(token, place);
            return Ok(place);
        }
        let key = if self.is_array { "" } else { token.key() };
        self.children.push(Child::empty(key));
        let place = self.children.len() - 1;
        self.add_to_index(token, place);
        Ok(place)
    }

    fn add_to_index(&mut self, token: &'a Token, place: usize) {
        if let Some(index) = &mut self.index {
            index.insert(Cow::Borrowed(token.name()), Slot { place, is_twice: false });
        }
    }
}

impl<'a> Child<'a> {
    fn empty(key: &'a str) -> Self {
        Self { key, name: None, value: None }
    }

    /// Its name; `None` where that is not valid Unicode, so that no token can be it.
    fn name(&self) -> Option<Cow<'a, str>> {
        if let Some(name) = &self.name {
            return Some(Cow::Owned(name.to_string()));
        }
        if self.key.contains('\\') {
            // A name that a rule has put in is not read beforehand.
            return json::unquote(self.key);
        }
        let name = self.key.strip_prefix('"')?.strip_suffix('"')?;
        Some(Cow::Borrowed(name))
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

/// Counts members that are compared with a name, or put into an index; nothing outside tests.
#[cfg_attr(not(test), expect(clippy::missing_const_for_fn, reason = "it is none in tests"))]
fn count(members: usize) {
    #[cfg(test)]
    COMPARED.with(|count| count.set(count.get() + members));
    #[cfg(not(test))]
    let _ = members;
}

#[cfg(test)]
thread_local! {
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many members this thread has compared with a name so far.
#[cfg(test)]
pub(super) fn compared() -> usize {
    COMPARED.with(std::cell::Cell::get)
}
