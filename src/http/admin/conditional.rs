//! `If-Match` (RFC 9110 §13.1.1): a change that only happens to what its author has seen.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::header::IF_MATCH;
use axum::http::request::Parts;

use crate::http::problem::Problem;

/// What a change expects to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// Nothing in particular.
    Unset,
    /// Something (`*`).
    Any,
    /// One of these versions. Tags that are none of ours, and weak ones, match nothing.
    Versions(Vec<i64>),
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let lines: Vec<_> = parts.headers.get_all(IF_MATCH).iter().collect();
        if lines.is_empty() {
            return Ok(Self::Unset);
        }
        let texts = lines.iter().filter_map(|line| line.to_str().ok());
        let tags: Vec<_> = texts.flat_map(|text| text.split(',')).map(str::trim).collect();
        if tags.contains(&"*") {
            return Ok(Self::Any);
        }
        let version = |tag: &&str| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
        Ok(Self::Versions(tags.iter().filter_map(version).collect()))
    }
}

impl IfMatch {
    /// Whether anything is expected.
    pub(super) const fn is_set(&self) -> bool {
        !matches!(self, Self::Unset)
    }

    /// The version to insist on while changing what has `current`; `None` where any is fine.
    ///
    /// # Errors
    /// 412 where that is not what was expected.
    pub(super) fn check(&self, current: Option<i64>) -> Result<Option<i64>, Problem> {
        match (self, current) {
            (Self::Unset, _) => Ok(None),
            (Self::Any, Some(current)) => Ok(Some(current)),
            (Self::Versions(expected), Some(current)) if expected.contains(&current) => Ok(Some(current)),
            _ => Err(failed()),
        }
    }
}

/// It was changed by somebody else meanwhile.
pub(super) fn failed() -> Problem {
    let detail = "it is not the version that If-Match names: read it again";
    Problem::new(StatusCode::PRECONDITION_FAILED, "version_mismatch", detail)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, Some(7), Ok(None))]
    #[case(None, None, Ok(None))]
    #[case(Some("*"), Some(7), Ok(Some(7)))]
    #[case(Some("*"), None, Err(412))]
    #[case(Some("\"7\""), Some(7), Ok(Some(7)))]
    #[case(Some("\"6\", \"7\""), Some(7), Ok(Some(7)))]
    #[case(Some("\"6\""), Some(7), Err(412))]
    #[case(Some("W/\"7\""), Some(7), Err(412))]
    #[case(Some("7"), Some(7), Err(412))]
    #[case(Some("\"7\""), None, Err(412))]
    #[tokio::test]
    async fn what_is_expected(
        #[case] header: Option<&str>,
        #[case] current: Option<i64>,
        #[case] answer: Result<Option<i64>, u16>,
    ) {
        let mut request = Request::builder();
        if let Some(header) = header {
            request = request.header("if-match", header);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let expected = IfMatch::from_request_parts(&mut parts, &()).await.unwrap();
        assert_eq!(expected.check(current).map_err(|problem| problem.status.as_u16()), answer);
    }
}
