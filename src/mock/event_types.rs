//! Event types, as the server keeps them: by name, archived rather than deleted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::input;
use super::reply::{self, Answer};
use super::store::Moment;

/// Items of a page where none is asked for, and most that may be.
const PAGE: usize = 50;
const PAGE_MAX: usize = 250;

/// An event type as a client sets it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    description: String,
    #[serde(default)]
    archived: bool,
    #[serde(default)]
    deprecated: bool,
    /// By version.
    schemas: Option<Value>,
    group_name: Option<String>,
    feature_flags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    settings: Settings,
}

/// An event type as it is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    name: String,
    #[serde(flatten)]
    settings: Settings,
    created_at: String,
    updated_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    data: Vec<Value>,
    iterator: Option<String>,
    prev_iterator: Option<String>,
    done: bool,
}

/// What a list is asked for.
pub(super) struct ListQuery {
    pub(super) limit: Option<usize>,
    /// The last name of the page before.
    pub(super) after: Option<String>,
    pub(super) include_archived: bool,
    pub(super) with_content: bool,
}

/// Every event type by name.
#[derive(Debug, Default)]
pub(super) struct EventTypes {
    kept: BTreeMap<String, Kept>,
}

impl EventTypes {
    /// POST: makes one, or takes one out of the archive.
    pub(super) fn create(&mut self, body: &[u8], now: Moment) -> Result<Answer, Answer> {
        let Named { name, settings } = input::json(body)?;
        input::event_type_name(&["body", "name"], &name)?;
        if self.kept.get(&name).is_some_and(|kept| !kept.settings.archived) {
            let detail = "An event_type with this name already exists";
            return Err(Answer::error(409, "event_type_exists", detail));
        }
        Ok(self.set(name, settings, 201, now))
    }

    /// PUT: makes one or sets what it is.
    pub(super) fn put(&mut self, name: &str, body: &[u8], now: Moment) -> Result<Answer, Answer> {
        input::event_type_name(&["path", "event_type_name"], name)?;
        let settings = input::json(body)?;
        let status = if self.kept.contains_key(name) { 200 } else { 201 };
        Ok(self.set(name.to_owned(), settings, status, now))
    }

    /// GET of one.
    pub(super) fn get(&self, name: &str) -> Result<Answer, Answer> {
        let kept = self.kept.get(name).ok_or_else(not_found)?;
        Ok(Answer::json(200, kept))
    }

    /// DELETE: it goes to the archive, or is gone for good.
    pub(super) fn delete(&mut self, name: &str, expunge: bool) -> Result<Answer, Answer> {
        let kept = self.kept.get_mut(name).ok_or_else(not_found)?;
        kept.settings.archived = true;
        if expunge {
            self.kept.remove(name);
        }
        Ok(Answer::new(204, "application/json", ""))
    }

    /// GET of a page, by name.
    pub(super) fn list(&self, query: &ListQuery) -> Answer {
        let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
        let after = query.after.as_deref().unwrap_or_default();
        let wanted = |kept: &&Kept| query.include_archived || !kept.settings.archived;
        let mut found = self.kept.values().filter(wanted).filter(|kept| kept.name.as_str() > after);
        let page: Vec<_> = found.by_ref().take(limit).collect();
        let item = |kept: &&Kept| {
            let mut item = serde_json::to_value(kept).unwrap_or_default();
            if !query.with_content {
                item["schemas"] = Value::Null;
            }
            item
        };
        let name_of = |kept: Option<&&Kept>| kept.map(|kept| kept.name.clone());
        let list = List {
            data: page.iter().map(item).collect(),
            iterator: name_of(page.last()),
            prev_iterator: name_of(page.first()).map(|name| format!("-{name}")),
            done: found.next().is_none(),
        };
        Answer::json(200, &list)
    }

    /// The names of those that are not archived.
    pub(super) fn names(&self) -> Vec<String> {
        let active = self.kept.values().filter(|kept| !kept.settings.archived);
        active.map(|kept| kept.name.clone()).collect()
    }

    fn set(&mut self, name: String, settings: Settings, status: u16, now: Moment) -> Answer {
        let at = reply::timestamp(now.micros);
        let created_at = self.kept.get(&name).map_or_else(|| at.clone(), |kept| kept.created_at.clone());
        let kept = Kept { name: name.clone(), settings, created_at, updated_at: at };
        let answer = Answer::json(status, &kept);
        self.kept.insert(name, kept);
        answer
    }
}

fn not_found() -> Answer {
    Answer::not_found("Entity not found")
}
