//! JSON Pointers (RFC 6901).

use std::fmt;

use super::POINTER_TOKEN_LIMIT;
use crate::domain::parse::json;

/// A JSON Pointer, taken apart. The empty one is the whole payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    text: Box<str>,
    tokens: Box<[Token]>,
}

/// One step of a pointer: a member's name or an element's index, whichever it meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// The name, unescaped.
    name: Box<str>,
    /// The name as a JSON string.
    key: Box<str>,
    /// The index, where it can be one: no sign, no leading zero (RFC 6901 §4).
    index: Option<usize>,
}

impl Pointer {
    /// Reads a pointer, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(names) = text.strip_prefix('/') else {
            return if text.is_empty() {
                Ok(Self { text: text.into(), tokens: Box::default() })
            } else {
                Err("a pointer begins with `/`, or is empty for the whole payload".to_owned())
            };
        };
        if names.split('/').count() > POINTER_TOKEN_LIMIT {
            return Err(format!("has more than {POINTER_TOKEN_LIMIT} tokens"));
        }
        let tokens = names.split('/').map(Token::parse).collect::<Option<_>>();
        match tokens {
            Some(tokens) => Ok(Self { text: text.into(), tokens }),
            None => Err("`~` in a pointer is written `~0`, and `/` in a name `~1`".to_owned()),
        }
    }

    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The pointer to what its first `count` tokens lead to.
    pub(super) fn prefix(&self, count: usize) -> &str {
        let end = self.text.match_indices('/').nth(count).map_or(self.text.len(), |(at, _)| at);
        &self.text[..end]
    }

    /// Whether `other` leads to the same value or to something in it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        other.tokens.starts_with(&self.tokens)
    }

    /// Whether both lead to members of one object, or to elements of one array.
    pub(super) fn is_sibling(&self, other: &Self) -> bool {
        match (self.tokens.split_last(), other.tokens.split_last()) {
            (Some((_, mine)), Some((_, theirs))) => mine == theirs,
            _ => false,
        }
    }

    /// Whether the last token may be an index: what stands there may move when an element before it goes.
    pub(super) fn may_be_element(&self) -> bool {
        self.tokens.last().is_some_and(|token| token.index.is_some())
    }

    /// Whether the last token appends, where it meets an array.
    pub(super) fn may_append(&self) -> bool {
        self.tokens.last().is_some_and(Token::is_append)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl Token {
    fn parse(escaped: &str) -> Option<Self> {
        let name = unescape(escaped)?;
        let mut key = String::with_capacity(name.len() + 2);
        json::quote(&mut key, &name);
        let is_index =
            name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
        let index = if is_index { name.parse().ok() } else { None };
        Some(Self { name: name.into(), key: key.into(), index })
    }

    /// The name, unescaped.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The name as a JSON string.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn index(&self) -> Option<usize> {
        self.index
    }

    /// Whether it is `-`, the element after the last.
    pub(super) fn is_append(&self) -> bool {
        &*self.name == "-"
    }
}

/// `token` with `~1` and `~0` read as `/` and `~`; `None` where a `~` is followed by anything else.
fn unescape(token: &str) -> Option<String> {
    let mut pieces = token.split('~');
    let mut name = pieces.next()?.to_owned();
    for piece in pieces {
        let (character, rest) = match piece.as_bytes().first()? {
            b'0' => ('~', &piece[1..]),
            b'1' => ('/', &piece[1..]),
            _ => return None,
        };
        name.push(character);
        name.push_str(rest);
    }
    Some(name)
}

/// The pointer to the member `name` of what `parent` leads to.
pub(super) fn member(parent: &str, name: &str) -> String {
    format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"))
}
