//! What can go wrong: with a transform when it is saved, with a payload when it is transformed.

use std::fmt;

use crate::domain::parse::DEPTH_LIMIT;

/// Why a transform is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{detail}", Place(pointer))]
pub struct InvalidTransform {
    /// JSON Pointer into the transform; empty for the whole.
    pub pointer: String,
    /// What is wrong there, in a sentence for whoever wrote it.
    pub detail: String,
}

/// Why a payload can't be transformed. The same payload would fail again.
///
/// The pointers are into the payload as it is at that step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// The payload is no JSON.
    #[error("the payload is not valid JSON: {detail}")]
    MalformedPayload {
        /// What is wrong with it.
        detail: String,
    },
    /// A rule goes by a name that an object has twice.
    #[error("`{pointer}` is there twice in the payload")]
    DuplicateKey {
        /// The pointer to both.
        pointer: String,
    },
    /// A value was to be put into what is neither an object nor an array.
    #[error("nothing can be put into {}, which is {found}", WholeOr(pointer))]
    NotAContainer {
        /// The pointer to what is there.
        pointer: String,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A value was to be put where an array does not reach.
    #[error("the array has no place for `{pointer}`")]
    NoSuchIndex {
        /// The pointer to the place.
        pointer: String,
    },
    /// What the template can't do without is not there.
    #[error("`{pointer}` is required and not there")]
    Missing {
        /// The pointer, or `$event.` and the name of an attribute.
        pointer: String,
    },
    /// An object or an array was to stand in a text.
    #[error("{} can't stand in a text: it is {found}", WholeOr(pointer))]
    NotText {
        /// The pointer to it.
        pointer: String,
        /// What it is, with its article.
        found: &'static str,
    },
    /// What would go out is too long.
    #[error("the transformed payload is longer than {limit_bytes} bytes")]
    TooLarge {
        /// How long it may be.
        limit_bytes: usize,
    },
    /// The payload nests too deeply, as it came or as it would go out.
    #[error("the payload nests deeper than {DEPTH_LIMIT} levels")]
    TooDeep,
}

impl InvalidTransform {
    pub(super) fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

impl TransformError {
    /// A short, stable code for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedPayload { .. } => "malformed_payload",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::NotAContainer { .. } => "not_a_container",
            Self::NoSuchIndex { .. } => "no_such_index",
            Self::Missing { .. } => "missing",
            Self::NotText { .. } => "not_text",
            Self::TooLarge { .. } => "too_large",
            Self::TooDeep => "too_deep",
        }
    }

    /// The pointer into the payload; empty where the whole is meant, `$event.` and a name for an attribute.
    pub fn pointer(&self) -> &str {
        match self {
            Self::DuplicateKey { pointer }
            | Self::NotAContainer { pointer, .. }
            | Self::NoSuchIndex { pointer }
            | Self::Missing { pointer }
            | Self::NotText { pointer, .. } => pointer,
            Self::MalformedPayload { .. } | Self::TooLarge { .. } | Self::TooDeep => "",
        }
    }
}

/// A pointer before what is said of it.
struct Place<'a>(&'a str);

impl fmt::Display for Place<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, "{}: ", self.0) }
    }
}

/// A pointer in a sentence.
struct WholeOr<'a>(&'a str);

impl fmt::Display for WholeOr<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { out.write_str("the payload") } else { write!(out, "`{}`", self.0) }
    }
}
