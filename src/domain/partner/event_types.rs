//! Which event types an endpoint wants.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::parse::why_not_a_name;

const WILDCARD: &str = "*";
const BELOW: &str = ".*";

/// A filter on event types, whose parts stand between dots. Written `*`, `order.*` or `order.created`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EventTypeFilter {
    /// Every type.
    Any,
    /// Every type that begins with this and a dot: `order` takes `order.created` and `order.line.added`, neither
    /// `order` nor `orders.created`.
    Prefix(String),
    /// This type.
    Exact(String),
}

impl EventTypeFilter {
    /// Reads a filter.
    ///
    /// # Errors
    /// Why it is none: empty, longer than a type may be, control characters, a `*` anywhere but alone or at the end
    /// behind a dot, an empty part in a prefix.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(why) = why_not_a_name(text) {
            return Err(format!("an event type {why}"));
        }
        if text == WILDCARD {
            return Ok(Self::Any);
        }
        let (path, is_prefix) = text.strip_suffix(BELOW).map_or((text, false), |path| (path, true));
        if path.contains('*') || path.is_empty() {
            return Err("`*` stands alone or at the end behind a dot, as in `order.*`".to_owned());
        }
        if is_prefix && path.split('.').any(str::is_empty) {
            return Err("a prefix has no empty parts between its dots".to_owned());
        }
        let path = path.to_owned();
        Ok(if is_prefix { Self::Prefix(path) } else { Self::Exact(path) })
    }

    /// Whether it takes events of this type.
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => {
                event_type.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('.'))
            }
            Self::Exact(exact) => event_type == exact,
        }
    }
}

impl fmt::Display for EventTypeFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => out.write_str(WILDCARD),
            Self::Prefix(prefix) => write!(out, "{prefix}{BELOW}"),
            Self::Exact(exact) => out.write_str(exact),
        }
    }
}

impl TryFrom<String> for EventTypeFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<EventTypeFilter> for String {
    fn from(filter: EventTypeFilter) -> Self {
        filter.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("*", "order.created", true)]
    #[case("*", "order", true)]
    #[case("order.*", "order.created", true)]
    #[case("order.*", "order.line.added", true)]
    #[case("order.*", "order.", true)]
    #[case("order.*", "order", false)]
    #[case("order.*", "orders.created", false)]
    #[case("order.*", "Order.created", false)]
    #[case("order.line.*", "order.line.added", true)]
    #[case("order.line.*", "order.created", false)]
    #[case("order.created", "order.created", true)]
    #[case("order.created", "order.created.late", false)]
    #[case("order..created", "order..created", true)]
    fn what_a_filter_takes(#[case] filter: &str, #[case] event_type: &str, #[case] expected: bool) {
        let parsed = EventTypeFilter::parse(filter).expect("good");
        assert_eq!(parsed.matches(event_type), expected);
        assert_eq!(parsed.to_string(), filter);
    }

    #[rstest]
    #[case::empty("", "empty")]
    #[case::middle("order.*.created", "`*`")]
    #[case::front("*.created", "`*`")]
    #[case::joined("order*", "`*`")]
    #[case::two("**", "`*`")]
    #[case::two_parts("order.*.*", "`*`")]
    #[case::nothing_before("..*", "empty parts")]
    #[case::dot_star(".*", "`*`")]
    #[case::leading_dot(".order.*", "empty parts")]
    #[case::double_dot("order..line.*", "empty parts")]
    #[case::line_break("order\n", "control")]
    fn what_is_no_filter(#[case] text: &str, #[case] expected: &str) {
        let error = EventTypeFilter::parse(text).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_filter_is_as_long_as_a_type_may_be() {
        assert!(EventTypeFilter::parse(&"a".repeat(256)).is_ok());
        assert!(EventTypeFilter::parse(&"a".repeat(257)).is_err());
    }
}
