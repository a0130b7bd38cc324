//! Long lists, a page at a time: `?limit=&cursor=`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::problem::Problem;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Most entries, 1 to 200; 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(pattern = r"^[A-Za-z0-9_-]*$")]
    cursor: Option<String>,
}

/// Which part of a list, checked.
#[derive(Debug)]
pub(super) struct Page {
    /// Most entries.
    limit: u32,
    /// The last entry before this page.
    pub(super) after: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<PageQuery>::from_request_parts(parts, state).await;
        let Query(query) = query.map_err(|rejection: QueryRejection| bad_query(rejection.body_text()))?;
        Self::new(query.limit, query.cursor)
    }
}

/// A query that can't be read.
pub(super) fn bad_query(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_query", detail)
}

impl Page {
    /// The page that a query asks for.
    pub(super) fn new(limit: Option<u32>, cursor: Option<String>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(bad_query(format!("limit must be from 1 to {LIMIT_MAX}")));
        }
        let text = |cursor: String| String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok();
        // An empty one is none: the first page.
        let after = cursor.filter(|cursor| !cursor.is_empty()).map(|cursor| {
            text(cursor).ok_or_else(|| bad_query("cursor must be the next_cursor of another page".into()))
        });
        Ok(Self { limit, after: after.transpose()? })
    }

    /// How many entries to read: one more than are shown, to see whether there are further ones.
    pub(super) const fn read_limit(&self) -> u32 {
        self.limit + 1
    }

    /// Most entries.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    /// The cursor of the page that begins behind `place`.
    pub(super) fn cursor(place: &str) -> String {
        URL_SAFE_NO_PAD.encode(place)
    }

    /// Cuts what was read to a page; where there is more, the cursor of the next one.
    pub(super) fn cut<T>(&self, entries: &mut Vec<T>, id: impl Fn(&T) -> &str) -> Option<String> {
        let limit = self.limit as usize;
        if entries.len() <= limit {
            return None;
        }
        entries.truncate(limit);
        entries.last().map(|last| URL_SAFE_NO_PAD.encode(id(last)))
    }
}
