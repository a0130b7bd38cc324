//! What Svix answered, or that it did not, in our words.

use ::svix::error::Error as SvixError;

use crate::domain::delivery::{Failure, Outcome};
use crate::domain::outcomes::{self, Receiver};
use crate::domain::tenant::svix_name_is_valid;
use crate::send::{tls, without_answer};

/// Svix's id of a message it has created.
pub(super) fn message_id(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Created {
        id: String,
    }
    serde_json::from_slice::<Created>(body).ok().map(|created| created.id).filter(|id| svix_name_is_valid(id))
}

/// What a server says of itself when it refuses: the text of its answer.
pub(super) fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}

/// What it means that no answer came.
pub(super) fn transport_failure(error: &hyper_util::client::legacy::Error) -> Outcome {
    let chain = || {
        let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
        std::iter::successors(first, |error: &&(dyn std::error::Error + 'static)| (*error).source())
    };
    let kind = chain().find_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    if let Some(tls) = tls::find(error) {
        return Outcome::Failed(Failure::transport(tls::code(tls), tls, !error.is_connect()));
    }
    let code = match kind {
        Some(std::io::ErrorKind::ConnectionRefused) => "connect_refused",
        Some(std::io::ErrorKind::TimedOut) if error.is_connect() => "connect_timeout",
        _ if error.is_connect() && chain().any(|error| error.to_string().contains("dns")) => "dns_failed",
        _ if error.is_connect() => "connect_failed",
        _ => without_answer(error),
    };
    let detail = chain().last().map(ToString::to_string).unwrap_or_default();
    Outcome::Failed(Failure::transport(code, detail, !error.is_connect()))
}

/// What an error of the SDK means. It does not tell `Retry-After`.
pub(super) fn api_failure(error: &SvixError) -> Outcome {
    let (status, detail) = match error {
        SvixError::Http(answer) => {
            let words = answer.payload.as_ref().map(|words| format!("{}: {}", words.code, words.detail));
            (answer.status, words.unwrap_or_default())
        }
        SvixError::Validation(answer) => (answer.status, error.to_string()),
        SvixError::Timeout { .. } => {
            return Outcome::Failed(Failure::transport("timeout", error, false));
        }
        SvixError::Generic(_) => return Outcome::Failed(Failure::transport("connection_lost", error, false)),
    };
    let failure = Failure { may_have_arrived: false, ..Failure::answered(status.as_u16(), &detail) };
    outcomes::judge(Receiver::Svix, failure, None)
}
