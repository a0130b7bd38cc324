//! Request bodies, read and checked as the server does. Where the hosted Svix documents a wider
//! limit than the self-hosted server has (channels, tags, retention), the wider one counts.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::reply::{Answer, Invalid};

/// The hosted Svix takes payloads up to 1 MiB.
const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;
const MAX_METADATA_BYTES: usize = 4096;

/// A message that may be stored.
#[derive(Debug)]
pub(super) struct NewMessage {
    pub(super) event_id: Option<String>,
    pub(super) event_type: String,
    pub(super) payload: String,
    pub(super) channels: Option<Vec<String>>,
    pub(super) tags: Option<Vec<String>>,
    pub(super) application: Option<NewApplication>,
}

impl NewMessage {
    /// A message with an `eventId` and an empty payload.
    pub(super) fn empty(event_id: String) -> Self {
        Self {
            event_id: Some(event_id),
            event_type: "test".to_owned(),
            payload: "{}".to_owned(),
            channels: None,
            tags: None,
            application: None,
        }
    }
}

/// An application that may be created.
#[derive(Clone, Debug)]
pub(super) struct NewApplication {
    pub(super) uid: Option<String>,
    pub(super) name: String,
    pub(super) throttle_rate: Option<u16>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl NewApplication {
    /// One with nothing but a uid, which is its name as well.
    pub(super) fn named(uid: &str) -> Self {
        Self {
            uid: Some(uid.to_owned()),
            name: uid.to_owned(),
            throttle_rate: None,
            metadata: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageIn<'a> {
    #[serde(borrow)]
    event_id: Option<&'a RawValue>,
    event_type: &'a RawValue,
    #[serde(alias = "data")]
    payload: &'a RawValue,
    channels: Option<&'a RawValue>,
    tags: Option<&'a RawValue>,
    payload_retention_period: Option<&'a RawValue>,
    application: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApplicationIn<'a> {
    #[serde(borrow)]
    name: &'a RawValue,
    rate_limit: Option<&'a RawValue>,
    throttle_rate: Option<&'a RawValue>,
    uid: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

/// The `eventId` of a body that may be anything.
pub(super) fn event_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Peek {
        #[serde(rename = "eventId")]
        event_id: Option<String>,
    }
    serde_json::from_slice::<Peek>(body).ok()?.event_id
}

/// Reads the body of a new message, or says how the server refuses it.
pub(super) fn message(body: &[u8]) -> Result<NewMessage, Answer> {
    let read = read_message(body).map_err(|problem| Answer::invalid(&[problem]))?;
    let (message, retention_days) = read;
    if message.payload.len() > MAX_PAYLOAD_BYTES {
        return Err(Answer::of_status(413));
    }
    let mut problems = Vec::new();
    if let Some(event_id) = &message.event_id {
        check_uid(&mut problems, &["body", "uid"], event_id, "msg_");
    }
    check_name(&mut problems, &["body", "event_type"], &message.event_type);
    if !message.payload.starts_with('{') {
        let loc = ["body", "payload"];
        problems.push(Invalid::value(&loc, "Payload must be an object."));
    }
    check_labels(&mut problems, &message);
    if !(1..=90).contains(&retention_days) {
        let loc = ["body", "payload_retention_period"];
        problems.push(Invalid::value(&loc, "Validation error"));
    }
    if let Some(application) = &message.application {
        check_application(&mut problems, &["body", "application"], application);
    }
    refuse(&problems)?;
    Ok(message)
}

/// Reads the body of a new application, or says how the server refuses it.
pub(super) fn application(body: &[u8]) -> Result<NewApplication, Answer> {
    let body = text(body).map_err(|problem| Answer::invalid(&[problem]))?;
    let application = read_application(body, &["body"]).map_err(|problem| Answer::invalid(&[problem]))?;
    let mut problems = Vec::new();
    check_application(&mut problems, &["body"], &application);
    refuse(&problems)?;
    Ok(application)
}

/// Reads a body whose fields need no checks of their own.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    let read = text(body).and_then(|body| serde_json::from_str(body).map_err(|error| at_root(&error)));
    read.map_err(|problem| Answer::invalid(&[problem]))
}

/// Checks the name of an event type.
pub(super) fn event_type_name(loc: &[&str], name: &str) -> Result<(), Answer> {
    let mut problems = Vec::new();
    check_name(&mut problems, loc, name);
    refuse(&problems)
}

/// Checks the id or uid of an application that a path names.
pub(super) fn application_in_path(id_or_uid: &str) -> Result<(), Answer> {
    let mut problems = Vec::new();
    check_name(&mut problems, &["path", "app_id_or_uid"], id_or_uid);
    refuse(&problems)
}

/// Checks the application that a message brings along against the one that its path names.
pub(super) fn same_application(in_path: &str, application: &NewApplication) -> Result<(), Answer> {
    let loc = ["body", "application", "uid"];
    let problem = match application.uid.as_deref() {
        Some(uid) if uid == in_path => return Ok(()),
        Some(_) => {
            Invalid::new(&loc, "Application UID in the path and body must match", "application_uid_mismatch")
        }
        None => Invalid::new(&loc, "Application UID not set in body", "application_uid_missing"),
    };
    Err(Answer::invalid(&[problem]))
}

fn refuse(problems: &[Invalid]) -> Result<(), Answer> {
    if problems.is_empty() { Ok(()) } else { Err(Answer::invalid(problems)) }
}

fn read_message(body: &[u8]) -> Result<(NewMessage, i64), Invalid> {
    let body = text(body)?;
    let raw: MessageIn<'_> = serde_json::from_str(body).map_err(|error| at_root(&error))?;
    let application = match raw.application {
        None => None,
        Some(inner) => Some(read_application(inner.get(), &["body", "application"])?),
    };
    let retention_days = optional(raw.payload_retention_period, "payloadRetentionPeriod")?;
    let message = NewMessage {
        event_id: optional(raw.event_id, "eventId")?,
        event_type: field(raw.event_type, &["body"], "eventType")?,
        payload: raw.payload.get().to_owned(),
        channels: optional(raw.channels, "channels")?,
        tags: optional(raw.tags, "tags")?,
        application,
    };
    Ok((message, retention_days.unwrap_or(90)))
}

fn read_application(body: &str, loc: &[&str]) -> Result<NewApplication, Invalid> {
    let raw: ApplicationIn<'_> = serde_json::from_str(body).map_err(|error| match loc {
        ["body"] => at_root(&error),
        _ => Invalid::json(loc, format!("{}: {error}", loc[1..].join("."))),
    })?;
    let read = |value: Option<&RawValue>, name| value.map(|v| field(v, loc, name)).transpose();
    let throttle_rate = read(raw.throttle_rate, "throttleRate")?;
    let rate_limit = read(raw.rate_limit, "rateLimit")?;
    let metadata: BTreeMap<String, String> = match raw.metadata {
        Some(value) => field(value, loc, "metadata")?,
        None => BTreeMap::new(),
    };
    if serde_json::to_string(&metadata).map_or(0, |text| text.len()) > MAX_METADATA_BYTES {
        let msg = format!("metadata must be less than or equal to {MAX_METADATA_BYTES} bytes");
        return Err(Invalid::json(&[loc, &["metadata"]].concat(), msg));
    }
    Ok(NewApplication {
        uid: raw.uid.map(|uid| field(uid, loc, "uid")).transpose()?,
        name: field(raw.name, loc, "name")?,
        throttle_rate: throttle_rate.or(rate_limit),
        metadata,
    })
}

fn text(body: &[u8]) -> Result<&str, Invalid> {
    std::str::from_utf8(body).map_err(|error| Invalid::json(&["body", "", ""], error.to_string()))
}

/// The server splits the path "." at its dot, so an error of the whole body points at nothing, twice.
fn at_root(error: &serde_json::Error) -> Invalid {
    Invalid::json(&["body", "", ""], error.to_string())
}

fn optional<T: DeserializeOwned>(value: Option<&RawValue>, name: &str) -> Result<Option<T>, Invalid> {
    value.map(|value| field(value, &["body"], name)).transpose()
}

fn field<T: DeserializeOwned>(value: &RawValue, loc: &[&str], name: &str) -> Result<T, Invalid> {
    serde_json::from_str(value.get()).map_err(|error| {
        let loc = [loc, &[name]].concat();
        Invalid::json(&loc, format!("{}: {error}", loc[1..].join(".")))
    })
}

fn check_application(problems: &mut Vec<Invalid>, loc: &[&str], application: &NewApplication) {
    let at = |name| [loc, &[name]].concat();
    let name = &application.name;
    if name.is_empty() {
        let msg = "Application names must be at least one character";
        problems.push(Invalid::value(&at("name"), msg));
    }
    if name.chars().any(|c| c <= '\u{8}') {
        let msg = "Control characters 0x00-0x08 not allowed.";
        problems.push(Invalid::value(&at("name"), msg));
    }
    if application.throttle_rate == Some(0) {
        let msg = "Application throttle rate must be at least 1 if set";
        problems.push(Invalid::value(&at("throttle_rate"), msg));
    }
    if let Some(uid) = &application.uid {
        check_uid(problems, &at("uid"), uid, "app_");
    }
}

fn check_labels(problems: &mut Vec<Invalid>, message: &NewMessage) {
    if let Some(channels) = &message.channels {
        if !(1..=10).contains(&channels.len()) {
            let msg = "Channels must have at least 1 and at most 10 items, or be set to null.";
            problems.push(Invalid::value(&["body", "channels"], msg));
        }
        for channel in channels {
            check_string(problems, &["body", "channels"], channel, 128, "-_.:+");
        }
    }
    if let Some(tags) = &message.tags {
        if tags.len() > 5 {
            let msg = "Tags must have at most 5 items.";
            problems.push(Invalid::value(&["body", "tags"], msg));
        }
        for tag in tags {
            check_string(problems, &["body", "tags"], tag, 128, "-_./\\#");
        }
    }
}

/// An `eventId` or the uid of an application: it must not look like an id of Svix's own.
fn check_uid(problems: &mut Vec<Invalid>, loc: &[&str], uid: &str, id_prefix: &str) {
    check_name(problems, loc, uid);
    if uid.starts_with(id_prefix) {
        problems.push(Invalid::value(
            &[loc, &["__all__"]].concat(),
            "Uids are not allowed to have the same prefix as the ID. Prefix with _?",
        ));
    }
}

fn check_name(problems: &mut Vec<Invalid>, loc: &[&str], name: &str) {
    check_string(problems, loc, name, 256, "-_.");
}

fn check_string(problems: &mut Vec<Invalid>, loc: &[&str], text: &str, max: usize, marks: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    let msg = if text.is_empty() {
        "String must be at least one character".to_owned()
    } else if text.len() > max {
        "String too long".to_owned()
    } else if !text.chars().all(allowed) {
        format!("String must match the following pattern: [a-zA-Z0-9{}].", marks.replace('-', "\\-"))
    } else {
        return;
    };
    problems.push(Invalid::value(&[loc, &["__all__"]].concat(), msg));
}
