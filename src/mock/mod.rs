//! A mock Svix that runs in your test's process.
//!
//! [`MockSvix`] listens on a port of its own and answers the calls by which messages get into
//! Svix as the self-hosted svix-server answers them, statuses and bodies alike: it refuses a
//! repeated `eventId`, replays the answer of a repeated `idempotency-key`, checks the token, the
//! application and the body. It remembers what it was sent, for the test to look at, and it makes
//! [trouble](Trouble) when told to: throttles, fails, hangs, closes the connection after storing
//! the message or before.
//!
//! ```
//! use std::time::Duration;
//!
//! use posthaste::mock::{MockSvix, Trouble};
//! use svix::api::{Svix, SvixOptions};
//! use svix::models::MessageIn;
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let mock = MockSvix::builder().application("acme").start().await;
//! mock.script([Trouble::Status(503)]);
//!
//! // The relay under test goes here. This is Svix's own client, which tries again after a 503.
//! let options = SvixOptions {
//!     server_url: Some(mock.url()),
//!     ..SvixOptions::default()
//! };
//! let client = Svix::new(mock.token().to_owned(), Some(options));
//! let invoice = serde_json::json!({ "total": 12 });
//! let message = MessageIn {
//!     event_id: Some("evt_1".to_owned()),
//!     ..MessageIn::new("invoice.paid".to_owned(), invoice)
//! };
//! client.message().create("acme".to_owned(), message, None).await.unwrap();
//!
//! mock.wait_for_messages(1, Duration::from_secs(5)).await.unwrap();
//! let messages = mock.messages();
//! assert_eq!(messages[0].event_id.as_deref(), Some("evt_1"));
//! assert_eq!(messages[0].payload, r#"{"total":12}"#);
//! assert_eq!(mock.requests_for("evt_1").len(), 2);
//! # });
//! ```
//!
//! Where the mock differs from the real ones:
//!
//! - It dispatches nothing and makes no attempts. An application's endpoints are no more than
//!   [names](MockSvix::add_endpoint), to which messages can be sent [again](MockSvix::resent).
//! - The calls it knows are to create, get and list messages, to list a message's endpoints and send it to one again, to
//!   create and get an application and to get a link into its portal, and to create, set, get, list and delete event
//!   types. Everything else is 404. A message's type need not be among them.
//! - Lists of messages know `limit`, `iterator`, `before`, `after` and `with_content`, go from the newest to the oldest,
//!   and reach back as far as it remembers. As at the self-hosted server, an `iterator` makes it ignore both times, and
//!   `before` makes it ignore `after`.
//! - It takes what the hosted Svix documents where the self-hosted server takes less: ten
//!   channels instead of five, tags, payloads up to 1 MiB (more is 413).
//! - It never waits for a request with the same idempotency key that is still being answered.
//! - It remembers a bounded number of messages, requests and keys
//!   ([`MockSvixBuilder::record_limit`]) and forgets the oldest.

mod api;
mod event_types;
mod front;
mod input;
mod listing;
mod partner;
mod record;
mod reply;
mod store;
mod svix;
#[cfg(test)]
mod tests;
mod trouble;

pub use self::partner::{MockPartner, PartnerAnswer, PartnerRequest};
pub use record::{MockEvent, ReceivedMessage, ReceivedRequest, Resent};
pub use svix::{MockSvix, MockSvixBuilder, TooFew};
pub use trouble::Trouble;
