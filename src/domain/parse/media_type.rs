//! What the content type says about a body.

use super::{ParseError, json};

const READ: &str = "application/json, application/cloudevents+json or application/cloudevents-batch+json";

/// A media type (RFC 9110 §8.3.1), as far as it matters here.
pub(super) struct MediaType<'a> {
    /// Type and subtype.
    essence: &'a str,
    charset: Option<&'a str>,
}

impl<'a> MediaType<'a> {
    /// Takes a `Content-Type` apart. Never fails: nonsense is a type that nobody reads.
    pub(super) fn parse(content_type: &'a str) -> Self {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        let charset = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
            .map(|(_, value)| value.trim().trim_matches('"'));
        Self { essence, charset }
    }

    /// Whether it is one of the CloudEvents event formats, known to us or not.
    pub(super) fn is_cloudevents(&self) -> bool {
        starts_with(self.essence, "application/cloudevents")
    }

    /// Whether data of this type is JSON in UTF-8: `application/json` or a `+json` suffix (RFC 6839 §3.1).
    pub(super) fn is_json(&self) -> bool {
        let suffix_at = self.essence.len().saturating_sub("+json".len());
        let suffix = self.essence.get(suffix_at..).unwrap_or_default();
        (self.is("application/json") || suffix.eq_ignore_ascii_case("+json")) && self.is_utf8()
    }

    fn is(&self, essence: &str) -> bool {
        self.essence.eq_ignore_ascii_case(essence)
    }

    fn is_utf8(&self) -> bool {
        // US-ASCII is UTF-8 already.
        self.charset.is_none_or(|charset| {
            ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
        })
    }
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// What a body is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// An event or an array of them.
    Any,
    /// One event.
    Event,
    /// An array.
    Batch,
}

/// How a body begins.
pub(super) enum Opening {
    /// With `[`.
    Array,
    /// With `{`.
    Object,
}

impl Expected {
    /// What a body of this type holds.
    pub(super) fn from_type(media_type: Option<&MediaType<'_>>) -> Result<Self, ParseError> {
        let Some(media_type) = media_type else {
            return Err(unsupported(format!("no Content-Type: send {READ}")));
        };
        let expected = if media_type.is("application/json") {
            Self::Any
        } else if media_type.is("application/cloudevents+json") {
            Self::Event
        } else if media_type.is("application/cloudevents-batch+json") {
            Self::Batch
        } else if media_type.is("application/x-www-form-urlencoded") {
            return Err(unsupported(format!(
                "a form is not read here: send {READ} (curl -d needs -H 'Content-Type: application/json')"
            )));
        } else {
            return Err(unsupported(format!("`{}` is not read here: send {READ}", media_type.essence)));
        };
        if !media_type.is_utf8() {
            return Err(unsupported("JSON is read in UTF-8 only".to_owned()));
        }
        Ok(expected)
    }

    /// How `text` begins, where that is as expected.
    pub(super) fn opening(self, text: &str) -> Result<Opening, ParseError> {
        let start = text.trim_start_matches(json::SPACE);
        let wanted = match (start.as_bytes().first(), self) {
            (Some(b'['), Self::Any | Self::Batch) => return Ok(Opening::Array),
            (Some(b'{'), Self::Any | Self::Event) => return Ok(Opening::Object),
            (None, _) => "the body is empty",
            (_, Self::Any) => "expected an object or an array of objects",
            (_, Self::Event) => {
                "expected one event, an object (arrays go as application/cloudevents-batch+json)"
            }
            (_, Self::Batch) => {
                "expected an array of events (a single one goes as application/cloudevents+json)"
            }
        };
        Err(json::malformed_at(wanted.to_owned(), &text.as_bytes()[..text.len() - start.len()]))
    }
}

fn unsupported(detail: String) -> ParseError {
    ParseError::UnsupportedType { detail }
}
