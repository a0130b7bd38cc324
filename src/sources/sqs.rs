//! Amazon SQS: a queue, standard or FIFO, by long polling.
//!
//! A request brings ten messages at most, so a full answer is followed by others side by side, up to what there is room
//! for. Order on a FIFO queue is SQS's own doing: while messages of a group are in flight it hands out no later ones.

use std::collections::HashSet;
use std::error::Error;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Credentials;
use aws_sdk_sqs::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sqs::operation::get_queue_attributes::GetQueueAttributesError;
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    Message as SqsMessage, QueueAttributeName,
};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use secrecy::ExposeSecret as _;

use super::{Connector, FETCH_WAIT, Message, Source, SourceError};
use crate::config::SqsConfig;

/// Most messages in one request.
const PER_REQUEST: usize = 10;
/// Most requests at once.
const SIDE_BY_SIDE: usize = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for one request, the wait for messages included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// Reaches a queue.
pub(super) struct Sqs {
    config: SqsConfig,
}

impl Sqs {
    pub(super) fn new(config: &SqsConfig) -> Self {
        Self { config: config.clone() }
    }

    async fn client(&self) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(REQUEST_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
        // Otherwise it would ask the machine's metadata service, which may not be there.
        if let Some(region) = self.config.known_region() {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let (Some(id), Some(secret)) = (&self.config.access_key_id, &self.config.secret_access_key) {
            let key = Credentials::new(id, secret.expose_secret(), None, None, "configuration");
            loader = loader.credentials_provider(key);
        }
        if let Some(endpoint) = &self.config.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        Client::new(&loader.load().await)
    }
}

impl Connector for Sqs {
    type Source = SqsSource;

    async fn connect(&self) -> Result<SqsSource, SourceError> {
        let visibility = Duration::from_millis(self.config.visibility_timeout_ms);
        let source = SqsSource {
            client: self.client().await,
            queue: self.config.queue_url.clone(),
            visibility_s: i32::try_from(visibility.as_millis().div_ceil(1_000)).unwrap_or(i32::MAX),
            extend_every: visibility / 3,
        };
        source.waiting().await?;
        Ok(source)
    }
}

/// A queue that is read.
pub(super) struct SqsSource {
    client: Client,
    queue: String,
    visibility_s: i32,
    extend_every: Duration,
}

/// What is asked for messages in flight.
#[derive(Clone, Copy)]
enum Fate {
    Delete,
    /// Hide them for so many seconds from now on.
    Hide(i32),
}

impl SqsSource {
    async fn receive(&self, most: usize, wait: Duration) -> Result<Vec<SqsMessage>, SourceError> {
        let request = self
            .client
            .receive_message()
            .queue_url(&self.queue)
            .max_number_of_messages(i32::try_from(most.min(PER_REQUEST)).unwrap_or(1))
            .wait_time_seconds(i32::try_from(wait.as_secs()).unwrap_or(1))
            .visibility_timeout(self.visibility_s)
            .message_attribute_names("All")
            .customize()
            // Whoever waits between two tries is the runner.
            .config_override(aws_sdk_sqs::Config::builder().retry_config(RetryConfig::disabled()));
        let answer = request.send().await.map_err(|error| told(&error))?;
        Ok(answer.messages.unwrap_or_default())
    }

    /// How many messages wait; `None` where we may not know.
    async fn waiting(&self) -> Result<Option<u64>, SourceError> {
        let name = QueueAttributeName::ApproximateNumberOfMessages;
        let asked = self.client.get_queue_attributes().queue_url(&self.queue).attribute_names(name.clone());
        match asked.send().await {
            Ok(answer) => Ok(answer.attributes.and_then(|attributes| attributes.get(&name)?.parse().ok())),
            Err(error) if is_denied(&error) => Ok(None),
            Err(error) => Err(told(&error)),
        }
    }

    /// Asks for what should become of messages; those that could not be served are asked for once more.
    async fn tell(&self, handles: &[String], fate: Fate) -> Result<(), SourceError> {
        let requests: Vec<_> = handles.chunks(PER_REQUEST).map(|chunk| self.tell_ten(chunk, fate)).collect();
        let mut requests = stream::iter(requests).buffer_unordered(SIDE_BY_SIDE);
        let mut first_error = None;
        while let Some(told) = requests.next().await {
            if let Err(error) = told {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn tell_ten(&self, handles: &[String], fate: Fate) -> Result<(), SourceError> {
        let failed = self.request(handles.iter().enumerate().collect(), fate).await?;
        // Ours is what would fail again: a handle that is no longer good, say.
        let again: HashSet<_> =
            failed.iter().filter(|entry| !entry.sender_fault()).map(|entry| entry.id()).collect();
        let again =
            handles.iter().enumerate().filter(|(place, _)| again.contains(place.to_string().as_str()));
        let again: Vec<_> = again.collect();
        let ours = failed.iter().find(|entry| entry.sender_fault()).cloned();
        let failed = if again.is_empty() { Vec::new() } else { self.request(again, fate).await? };
        match ours.or_else(|| failed.into_iter().next()) {
            Some(entry) => {
                Err(SourceError::new(format!("{}: {}", entry.code(), entry.message().unwrap_or_default())))
            }
            None => Ok(()),
        }
    }

    /// One request for at most ten messages, each with its place; those that could not be served.
    async fn request(
        &self,
        handles: Vec<(usize, &String)>,
        fate: Fate,
    ) -> Result<Vec<BatchResultErrorEntry>, SourceError> {
        match fate {
            Fate::Delete => {
                let entry = |(place, handle): (usize, &String)| {
                    DeleteMessageBatchRequestEntry::builder()
                        .id(place.to_string())
                        .receipt_handle(handle)
                        .build()
                };
                let entries: Result<Vec<_>, _> = handles.into_iter().map(entry).collect();
                let entries = entries.map_err(SourceError::new)?;
                let request =
                    self.client.delete_message_batch().queue_url(&self.queue).set_entries(Some(entries));
                Ok(request.send().await.map_err(|error| told(&error))?.failed)
            }
            Fate::Hide(seconds) => {
                let entry = |(place, handle): (usize, &String)| {
                    ChangeMessageVisibilityBatchRequestEntry::builder()
                        .id(place.to_string())
                        .receipt_handle(handle)
                        .visibility_timeout(seconds)
                        .build()
                };
                let entries: Result<Vec<_>, _> = handles.into_iter().map(entry).collect();
                let entries = entries.map_err(SourceError::new)?;
                let request = self.client.change_message_visibility_batch();
                let request = request.queue_url(&self.queue).set_entries(Some(entries));
                Ok(request.send().await.map_err(|error| told(&error))?.failed)
            }
        }
    }

    fn message_of(&self, message: SqsMessage) -> Option<Message<String>> {
        let SqsMessage { message_id, receipt_handle, body, message_attributes, .. } = message;
        // Text and numbers; bytes mean nothing to us.
        let mut attributes: Vec<_> = message_attributes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.string_value?)))
            .collect();
        attributes.sort_unstable();
        Some(Message {
            body: body.unwrap_or_default().into(),
            attributes,
            content_type: None,
            identity: message_id.map(|id| vec![self.queue.clone(), id]),
            handle: receipt_handle?,
        })
    }
}

impl Source for SqsSource {
    type Handle = String;

    async fn fetch(&self, most: usize) -> Result<Vec<Message<String>>, SourceError> {
        let mut messages = self.receive(most, FETCH_WAIT).await?;
        if messages.len() == PER_REQUEST {
            let left = most - PER_REQUEST;
            let sizes = (0..left).step_by(PER_REQUEST).take(SIDE_BY_SIDE).map(|from| left - from);
            let more = join_all(sizes.map(|size| self.receive(size, Duration::ZERO))).await;
            // What one of them could not bring is no reason to lose what others have; the next fetch will tell.
            messages.extend(more.into_iter().flatten().flatten());
        }
        Ok(messages.into_iter().filter_map(|message| self.message_of(message)).collect())
    }

    async fn ack(&self, handles: Vec<String>) -> Result<(), SourceError> {
        self.tell(&handles, Fate::Delete).await
    }

    async fn nack(&self, handles: Vec<String>) -> Result<(), SourceError> {
        self.tell(&handles, Fate::Hide(0)).await
    }

    async fn extend(&self, handles: &[String]) -> Result<(), SourceError> {
        self.tell(handles, Fate::Hide(self.visibility_s)).await
    }

    fn extend_every(&self) -> Option<Duration> {
        Some(self.extend_every)
    }

    async fn lag(&self) -> Result<Option<u64>, SourceError> {
        self.waiting().await
    }
}

/// Whether it is only this question that we may not ask: reading a queue takes another permission.
fn is_denied(error: &SdkError<GetQueueAttributesError>) -> bool {
    let code = error.as_service_error().and_then(|error| error.code());
    code.is_some_and(|code| code.contains("AccessDenied"))
}

/// What the SDK says, with its causes: by itself it says no more than `service error`.
fn told(error: &(dyn Error + 'static)) -> SourceError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    SourceError::new(text)
}
