//! Replays toward Svix. A message that Svix has is sent again by Svix itself, to each endpoint that it went to; one that
//! it has lost, or never got, is posted.

use ::svix::api::{MessageAttemptListAttemptedDestinationsOptions, MessageAttemptResendOptions};
use ::svix::error::Error as SvixError;
use ::svix::models::MessageOut;
use axum::http::StatusCode;

use super::{Message, SvixSender, api_failure, conflict, delivered, event_id_is_valid, failure};
use crate::domain::delivery::{DeadReason, Delivery, Outcome};
use crate::domain::key::replayed_key;
use crate::domain::trace::TraceContext;

/// Endpoints in one answer.
const PAGE: u64 = 250;

impl SvixSender {
    /// Makes sure that Svix has the delivery's message in `app`, and lets it send that out once more.
    ///
    /// `key` is the one of the first delivery. This one's is derived from it: Svix would answer the first from memory.
    pub(super) async fn send_again(
        &self,
        delivery: &Delivery,
        app: &str,
        key: &str,
        trace: Option<&TraceContext>,
    ) -> Outcome {
        let payload = match self.payload(delivery).await {
            Ok(payload) => payload,
            Err(failure) => return Outcome::Rejected(DeadReason::TransformFailed, failure),
        };
        let own_key = replayed_key(key, delivery.replay.nth);
        let message = Message { delivery, app, payload: &payload, key: &own_key, trace };
        // It may stand under its id, or under the first key where the id was another event's.
        let id = Some(&*delivery.identity.id).filter(|id| event_id_is_valid(id));
        for event_id in id.into_iter().chain([key]) {
            match self.look_up(app, event_id).await {
                Ok(Some(found)) if message.is_same(&found) => return self.resend(&message, found).await,
                Ok(Some(_)) => {}
                Ok(None) => return self.post_again(&message, event_id).await,
                Err(outcome) => return outcome,
            }
        }
        conflict("Svix has other messages under both this event's id and its idempotency key")
    }

    /// Posts what Svix does not have, and looks whether it has it then: an answer may come from its memory.
    async fn post_again(&self, message: &Message<'_>, event_id: &str) -> Outcome {
        let answer = match self.post_into(message, event_id).await {
            Ok(answer) => answer,
            Err(outcome) => return outcome,
        };
        if !answer.status.is_success() && answer.status != StatusCode::CONFLICT {
            return self.outcome(&answer);
        }
        match self.look_up(message.app, event_id).await {
            Ok(Some(found)) if message.is_same(&found) => delivered(answer.status, Some(found.id), false),
            Ok(Some(_)) => conflict("another message has taken this event's id at Svix"),
            Ok(None) => {
                let words = "Svix has answered, and does not have the message";
                Outcome::Failed(failure("not_stored", answer.status.as_u16(), words))
            }
            Err(outcome) => outcome,
        }
    }

    /// Lets Svix send a message out again, to each endpoint that it went to. A second try at that within twelve hours
    /// doubles nothing: each has a key.
    async fn resend(&self, message: &Message<'_>, found: MessageOut) -> Outcome {
        let attempts = self.api.message_attempt();
        let (app, mut iterator) = (message.app, None);
        loop {
            let options = MessageAttemptListAttemptedDestinationsOptions { limit: Some(PAGE), iterator };
            let listed =
                attempts.list_attempted_destinations(app.to_owned(), found.id.clone(), Some(options)).await;
            let page = match listed {
                Ok(page) => page,
                Err(error) => return api_failure(&error),
            };
            for endpoint in page.data {
                let key = format!("{}_{}", message.key, endpoint.id);
                let options = MessageAttemptResendOptions { idempotency_key: Some(key) };
                let (app, id) = (app.to_owned(), found.id.clone());
                match attempts.resend(app, id, endpoint.id.clone(), Some(options)).await {
                    Ok(_) => {}
                    // Deleted or disabled meanwhile: nobody is there to get it.
                    Err(SvixError::Http(answer)) if matches!(answer.status.as_u16(), 400 | 404) => {
                        tracing::debug!(endpoint = endpoint.id, message = found.id, "not sent again there");
                    }
                    Err(error) => return api_failure(&error),
                }
            }
            match page.iterator {
                Some(next) if !page.done => iterator = Some(next),
                _ => return delivered(StatusCode::ACCEPTED, Some(found.id), false),
            }
        }
    }
}
