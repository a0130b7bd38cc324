//! What is asked of messages that are stored: lists, endpoints, sending again; and links into the portal.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use wiremock::Request;

use super::api::{State, flag, header, parameter};
use super::input;
use super::record::Resent;
use super::reply::{self, Answer, Invalid};
use super::store::{self, Moment};

/// Items of a page where none is asked for, and most that may be.
const PAGE: usize = 50;
const PAGE_MAX: usize = 250;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<T> {
    data: Vec<T>,
    iterator: Option<String>,
    prev_iterator: Option<String>,
    done: bool,
}

/// The application that a portal link may bring along.
#[derive(serde::Deserialize)]
struct PortalWish {
    #[serde(default)]
    application: Option<serde_json::Value>,
    #[serde(default)]
    expiry: Option<u64>,
}

impl State {
    /// GET: the messages of an application, newest first. As at the self-hosted server, an iterator makes it ignore the two
    /// times, and `before` makes it ignore `after`.
    pub(super) fn list_messages(&self, app: &str, request: &Request) -> Result<Answer, Answer> {
        let with_content = flag(request, "with_content", true)?;
        let time = |name: &str| match parameter(request, name) {
            None => Ok(None),
            Some(text) => match chrono::DateTime::parse_from_rfc3339(&text) {
                Ok(time) => Ok(Some(u64::try_from(time.timestamp_micros()).unwrap_or_default())),
                Err(error) => {
                    let detail = format!("Failed to deserialize query string: {name}: {error}");
                    Err(Answer::error(400, "generic_error", &detail))
                }
            },
        };
        let (after, before) = (time("after")?, time("before")?);
        self.authorize(request)?;
        let application = self.store.application(app).ok_or_else(|| Answer::not_found("Entity not found"))?;
        let limit = page_limit(request);
        let iterator = parameter(request, "iterator");
        let before = before.filter(|_| iterator.is_none());
        let after = after.filter(|_| iterator.is_none() && before.is_none());
        let wanted = |message: &&Arc<super::ReceivedMessage>| {
            message.application == application
                && after.is_none_or(|after| message.created_at_micros > after)
                && before.is_none_or(|before| message.created_at_micros < before)
                && iterator.as_ref().is_none_or(|iterator| message.id < *iterator)
        };
        let mut found: Vec<_> = self.store.messages().filter(wanted).collect();
        found.sort_unstable_by(|one, other| other.id.cmp(&one.id));
        let done = found.len() <= limit;
        found.truncate(limit);
        let list = List {
            iterator: found.last().map(|message| message.id.clone()),
            prev_iterator: found.first().map(|message| format!("-{}", message.id)),
            data: found.iter().map(|message| store::message_out(message, with_content)).collect(),
            done,
        };
        Ok(Answer::json(200, &list))
    }

    /// GET: the endpoints that a message went to, which are all that its application has.
    pub(super) fn message_endpoints(&self, app: &str, id: &str, request: &Request) -> Result<Answer, Answer> {
        self.authorize(request)?;
        let not_found = || Answer::not_found("Entity not found");
        let application = self.store.application(app).ok_or_else(not_found)?;
        let message = self.store.message(application, id).ok_or_else(not_found)?;
        let limit = page_limit(request);
        let after = parameter(request, "iterator").unwrap_or_default();
        let mut endpoints = self.store.endpoints(application).to_vec();
        endpoints.sort_unstable();
        endpoints.retain(|endpoint| *endpoint > after);
        let done = endpoints.len() <= limit;
        endpoints.truncate(limit);
        let at = reply::timestamp(message.created_at_micros);
        let endpoint = |id: &String| {
            json!({
                "id": id, "status": 0, "statusText": "success", "nextAttempt": null, "url": "https://example.com/",
                "description": "", "version": 1, "disabled": false, "createdAt": at, "updatedAt": at,
            })
        };
        let list = List {
            iterator: endpoints.last().cloned(),
            prev_iterator: endpoints.first().map(|id| format!("-{id}")),
            data: endpoints.iter().map(endpoint).collect(),
            done,
        };
        Ok(Answer::json(200, &list))
    }

    /// POST: a message goes to one of its endpoints once more, once for each idempotency key.
    pub(super) fn resend(
        &mut self,
        [app, id, endpoint]: [&str; 3],
        request: &Request,
        now: Moment,
    ) -> Answer {
        let act = |state: &mut Self| {
            state.authorize(request)?;
            let not_found = || Answer::not_found("Entity not found");
            let application = state.store.application(app).ok_or_else(not_found)?;
            let message = state.store.message(application, id).cloned().ok_or_else(not_found)?;
            if !state.store.endpoints(application).iter().any(|known| known == endpoint) {
                return Err(not_found());
            }
            state.resent.push(Resent {
                app: state.store.label(application).to_owned(),
                message_id: message.id.clone(),
                event_id: message.event_id.clone(),
                endpoint: endpoint.to_owned(),
                idempotency_key: header(request, "idempotency-key").map(str::to_owned),
            });
            Ok(Answer::json(202, &json!({})))
        };
        self.once(request, now, true, act).0
    }

    /// POST: a link into the portal. The application is made where it is missing and came along.
    pub(super) fn portal_access(&mut self, app: &str, request: &Request, now: Moment) -> Answer {
        let act = |state: &mut Self| {
            state.authorize(request)?;
            let wish: PortalWish = input::json(&request.body)?;
            if wish.expiry.is_some_and(|expiry| !(3_600..=604_800).contains(&expiry)) {
                let loc = ["body", "expiry"];
                return Err(Answer::invalid(&[Invalid::value(&loc, "expiry must be 1 hour to 7 days")]));
            }
            if state.store.application(app).is_none() {
                let application =
                    wish.application.ok_or_else(|| Answer::not_found("Application not found"))?;
                let text = application.to_string();
                let application = input::application(text.as_bytes())?;
                state.add_application(application, now);
            }
            let application =
                state.store.application(app).ok_or_else(|| Answer::not_found("Application not found"))?;
            let token = format!("appsk_mock_{}", state.store.label(application));
            let key = json!({ "appId": app, "oneTimeToken": token, "region": "self_hosted" });
            let key = STANDARD.encode(key.to_string());
            Ok(Answer::json(
                200,
                &json!({ "url": format!("https://app.svix.com/login#key={key}"), "token": token }),
            ))
        };
        self.once(request, now, true, act).0
    }
}

fn page_limit(request: &Request) -> usize {
    parameter(request, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE).clamp(1, PAGE_MAX)
}
