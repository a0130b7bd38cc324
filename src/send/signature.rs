//! Signatures of what goes to partners.
//!
//! The first choice is [Standard Webhooks] 1.0: HMAC-SHA256 (RFC 2104) over `id.timestamp.body`, as `v1,<base64>`.
//! The second is for receivers that exist: hex HMAC-SHA256 of the body in a header of their own.
//!
//! [Standard Webhooks]: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderName, HeaderValue};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use sha2::Sha256;

use crate::domain::clock::Clock;
use crate::domain::key::prefixed_hex;
pub use crate::domain::partner::SignatureScheme;

/// The event's id at this partner, the same on every attempt.
pub const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
/// When the attempt was made, in seconds since the Unix epoch.
pub const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// The signatures of a request, space-separated.
pub const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const SECRET_PREFIX: &str = "whsec_";
/// Bytes of a standard secret (Standard Webhooks 1.0, "Signature scheme": 192 to 512 bits).
const KEY_MIN_BYTES: usize = 24;
const KEY_MAX_BYTES: usize = 64;
/// Bytes of the secrets we make: the length of the digest, than which more adds nothing (RFC 2104 §3).
const NEW_KEY_BYTES: usize = 32;
const TEXT_MIN_BYTES: usize = 8;
const TEXT_MAX_BYTES: usize = 256;
const WEBHOOK_ID_MAX_BYTES: usize = 256;

/// What one endpoint and we share.
///
/// Kept as the text that the partner has, because the two schemes take different keys from it: the standard one the
/// bytes that the base64 behind `whsec_` stands for, the hex one the text itself, prefix and all. That is what its
/// receivers do: `hmac.new(secret.encode(), body, "sha256")`.
#[derive(Clone)]
pub struct EndpointSecret {
    text: SecretString,
    /// The key of the standard scheme, where the text is one.
    key: Option<SecretSlice<u8>>,
}

/// Why a text is no secret. Never says the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not what the standard scheme takes.
    #[error("a secret must be `whsec_` and base64 with its padding, as Standard Webhooks has it")]
    NotBase64,
    /// Too short to be safe, or longer than the standard allows.
    #[error("a secret must stand for {KEY_MIN_BYTES} to {KEY_MAX_BYTES} bytes, this one has {bytes}")]
    BadLength {
        /// How many it has.
        bytes: usize,
    },
    /// Not what the hex scheme takes.
    #[error(
        "a secret must be {TEXT_MIN_BYTES} to {TEXT_MAX_BYTES} bytes of text, without control characters and without \
         space around it"
    )]
    BadText,
}

impl EndpointSecret {
    /// A new secret of 32 random bytes, good for both schemes.
    pub fn generate(clock: &dyn Clock) -> Self {
        let mut key = Zeroizing::new([0; NEW_KEY_BYTES]);
        key[..16].copy_from_slice(&clock.random().to_be_bytes());
        key[16..].copy_from_slice(&clock.random().to_be_bytes());
        Self::of_key(key.as_slice())
    }

    /// Reads a secret for `scheme`: for the standard one `whsec_` and the base64 of 24 to 64 bytes, where the prefix
    /// may be missing and is added; for the hex one any text of 8 to 256 bytes, which is kept as it is.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(scheme: &SignatureScheme, text: &str) -> Result<Self, SecretError> {
        match scheme {
            SignatureScheme::StandardWebhooks => Ok(Self::of_key(&standard_key(text)?)),
            SignatureScheme::HexHmac { .. } => {
                let fits = (TEXT_MIN_BYTES..=TEXT_MAX_BYTES).contains(&text.len());
                if !fits || text.trim() != text || text.chars().any(char::is_control) {
                    return Err(SecretError::BadText);
                }
                Ok(Self::stored(text.into()))
            }
        }
    }

    /// A secret as it was stored, whatever it is good for: the scheme may have changed since. See [`Self::fits`].
    pub fn stored(text: SecretString) -> Self {
        let key = standard_key(text.expose_secret()).ok();
        Self { text, key: key.map(|key| SecretSlice::from(Box::from(key.as_slice()))) }
    }

    /// The secret as the partner has it: shown once, then sealed.
    pub const fn text(&self) -> &SecretString {
        &self.text
    }

    /// Whether `scheme` can sign with it: a text of the partner's own is no key for the standard one.
    pub const fn fits(&self, scheme: &SignatureScheme) -> bool {
        matches!(scheme, SignatureScheme::HexHmac { .. }) || self.key.is_some()
    }

    fn of_key(key: &[u8]) -> Self {
        let text = Zeroizing::new(BASE64.encode(key));
        let mut whole = String::with_capacity(SECRET_PREFIX.len() + text.len());
        whole.push_str(SECRET_PREFIX);
        whole.push_str(&text);
        Self { text: whole.into(), key: Some(SecretSlice::from(Box::from(key))) }
    }
}

impl fmt::Debug for EndpointSecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("EndpointSecret([redacted])")
    }
}

fn standard_key(text: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let text = text.strip_prefix(SECRET_PREFIX).unwrap_or(text);
    let key = Zeroizing::new(BASE64.decode(text).map_err(|_| SecretError::NotBase64)?);
    match key.len() {
        KEY_MIN_BYTES..=KEY_MAX_BYTES => Ok(key),
        bytes => Err(SecretError::BadLength { bytes }),
    }
}

/// Why nothing can be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The endpoint has no secret.
    #[error("the endpoint has no secret")]
    NoSecret,
    /// The current secret is a text of the partner's own, which is no key for the standard scheme.
    #[error("the endpoint's secret is not one of the standard scheme (`whsec_…`): rotate it")]
    UnfitSecret,
    /// The id could be read as more than an id.
    #[error("a webhook id must be 1 to {WEBHOOK_ID_MAX_BYTES} visible ASCII characters without `.`")]
    BadId,
    /// The signature's header would not be one.
    #[error("the signature is no header value")]
    BadHeader,
}

/// The headers that sign a request: `webhook-id`, `webhook-timestamp`, and the signature's own.
///
/// `secrets` has the current one first and behind it those whose grace has not run out. The standard scheme signs with
/// each that fits, so that receivers with either go on. A hex header has one value, and receivers compare it whole: it
/// is made with the current secret alone, and a receiver that wants to change without a gap tries both of its own.
///
/// `webhook_id` has no `.`, since what is signed is `id.timestamp.body`: `a.1` at 2 would read as `a` at 1 before a
/// body that begins with `2.`. Ours are `ph1_` and hex. The hex scheme signs the body alone; id and timestamp go along
/// for deduplication.
///
/// # Errors
/// No secret, one that doesn't fit the scheme, or an id with a `.` or anything that no header may have.
pub fn sign(
    scheme: &SignatureScheme,
    secrets: &[EndpointSecret],
    webhook_id: &str,
    timestamp_s: i64,
    body: &[u8],
) -> Result<Vec<(HeaderName, HeaderValue)>, SignError> {
    let is_fine = |byte: u8| byte.is_ascii_graphic() && byte != b'.';
    if !(1..=WEBHOOK_ID_MAX_BYTES).contains(&webhook_id.len()) || !webhook_id.bytes().all(is_fine) {
        return Err(SignError::BadId);
    }
    let current = secrets.first().ok_or(SignError::NoSecret)?;
    let (name, text) = match scheme {
        SignatureScheme::StandardWebhooks => {
            if !current.fits(scheme) {
                return Err(SignError::UnfitSecret);
            }
            (WEBHOOK_SIGNATURE, standard_signatures(secrets, webhook_id, timestamp_s, body))
        }
        SignatureScheme::HexHmac { header, prefix } => {
            let digest = hmac_sha256(current.text.expose_secret().as_bytes(), &[body]);
            (header.clone(), prefixed_hex(prefix, &digest))
        }
    };
    let mut signature = HeaderValue::try_from(text).map_err(|_| SignError::BadHeader)?;
    // Never the same twice: no use in HPACK's table, none in a log.
    signature.set_sensitive(true);
    let id = HeaderValue::from_str(webhook_id).map_err(|_| SignError::BadId)?;
    Ok(vec![(WEBHOOK_ID, id), (WEBHOOK_TIMESTAMP, timestamp_s.into()), (name, signature)])
}

/// `v1,<base64>` for each secret that is one of the standard scheme.
fn standard_signatures(
    secrets: &[EndpointSecret],
    webhook_id: &str,
    timestamp_s: i64,
    body: &[u8],
) -> String {
    let head = format!("{webhook_id}.{timestamp_s}.");
    let mut text = String::new();
    for key in secrets.iter().filter_map(|secret| secret.key.as_ref()) {
        text.push_str(if text.is_empty() { "v1," } else { " v1," });
        BASE64.encode_string(hmac_sha256(key.expose_secret(), &[head.as_bytes(), body]), &mut text);
    }
    text
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length (RFC 2104 §2)")
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use rstest::rstest;

    use super::*;
    use crate::app::SystemClock;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const OTHER: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "ph1_4737f6e76908588619639e4a3511928800d917f38420340806fe492af5b0fcb7";
    const BODY: &[u8] = br#"{"type":"order.created","total":1.10}"#;
    const STANDARD: SignatureScheme = SignatureScheme::StandardWebhooks;

    fn hex(prefix: &str) -> SignatureScheme {
        SignatureScheme::hex_hmac("X-Shop-Signature-256", prefix).expect("good")
    }

    fn secret(text: &str) -> EndpointSecret {
        EndpointSecret::parse(&STANDARD, text).expect("good")
    }

    fn signed(secrets: &[EndpointSecret], at_s: i64) -> HeaderMap {
        sign(&STANDARD, secrets, ID, at_s, BODY).expect("signed").into_iter().collect()
    }

    /// The verifiers read the real clock.
    fn now_s() -> i64 {
        SystemClock::new().now().as_millis() / 1_000
    }

    /// What the two libraries that we did not write think of a request.
    fn verified(secret: &str, body: &[u8], headers: &HeaderMap) -> (bool, bool) {
        let svix = svix::webhooks::Webhook::new(secret).expect("good secret");
        let standard = standardwebhooks::Webhook::new(secret).expect("good secret");
        (svix.verify(body, headers).is_ok(), standard.verify(body, headers).is_ok())
    }

    // holds: 44. The vectors of the reference implementations (`standardwebhooks` 1.0.1 for Rust and for JavaScript).
    #[rstest]
    #[case(
        SECRET,
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1_649_367_553,
        r#"{"email":"test@example.com","username":"test_user"}"#,
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
    )]
    #[case(
        OTHER,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )]
    fn vectors_of_standard_webhooks(
        #[case] text: &str,
        #[case] id: &str,
        #[case] at_s: i64,
        #[case] body: &str,
        #[case] expected: &str,
    ) {
        let headers = sign(&STANDARD, &[secret(text)], id, at_s, body.as_bytes()).expect("signed");
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["webhook-id", "webhook-timestamp", "webhook-signature"]);
        assert_eq!(headers[0].1, id);
        assert_eq!(headers[1].1, at_s.to_string());
        assert_eq!(headers[2].1, expected);
    }

    #[test]
    fn libraries_that_are_not_ours_verify_what_we_sign() {
        // holds: 44
        let secret = EndpointSecret::generate(&SystemClock::new());
        let headers = signed(std::slice::from_ref(&secret), now_s());
        let text = secret.text().expose_secret();
        assert_eq!(verified(text, BODY, &headers), (true, true));
        assert_eq!(verified(text, br#"{"type":"order.created","total":1.1}"#, &headers), (false, false));
        assert_eq!(verified(OTHER, BODY, &headers), (false, false));
        for tampered in ["webhook-id", "webhook-timestamp"] {
            let mut headers = headers.clone();
            headers.insert(tampered, (now_s() + 1).into());
            assert_eq!(verified(text, BODY, &headers), (false, false), "{tampered}");
        }
    }

    #[rstest]
    #[case(-360, false)]
    #[case(-240, true)]
    #[case(240, true)]
    #[case(360, false)]
    fn a_timestamp_is_good_for_five_minutes_either_way(#[case] off_s: i64, #[case] is_good: bool) {
        // holds: 44
        let headers = signed(&[secret(SECRET)], now_s() + off_s);
        assert_eq!(verified(SECRET, BODY, &headers), (is_good, is_good));
    }

    #[test]
    fn in_rotation_each_secret_verifies_by_itself() {
        // holds: 44
        let headers = signed(&[secret(OTHER), secret(SECRET)], now_s());
        let value = headers[WEBHOOK_SIGNATURE].to_str().expect("text").to_owned();
        assert_eq!(value.split(' ').filter(|signature| signature.starts_with("v1,")).count(), 2);
        assert_eq!(verified(OTHER, BODY, &headers), (true, true));
        assert_eq!(verified(SECRET, BODY, &headers), (true, true));
        let after = signed(&[secret(OTHER)], now_s());
        assert_eq!(verified(SECRET, BODY, &after), (false, false));
    }

    // holds: 44. The first is the one in GitHub's documentation; the others are computed independently:
    // python3 -c 'import hmac; print(hmac.new(secret.encode(), body.encode(), "sha256").hexdigest())'
    #[rstest]
    #[case(
        "It's a Secret to Everybody",
        "Hello, World!",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    )]
    #[case(
        SECRET,
        r#"{"type":"order.created","total":1.10}"#,
        "sha256=e9b570b997f84ad86fef078e1e5dfc194a3b3cbf60c224d87a47f7c315b71c81"
    )]
    fn the_hex_scheme_takes_the_text_of_the_secret(
        #[case] text: &str,
        #[case] body: &str,
        #[case] expected: &str,
    ) {
        let scheme = hex("sha256=");
        let current = EndpointSecret::parse(&scheme, text).expect("good");
        let old = EndpointSecret::parse(&scheme, "the one before").expect("good");
        let headers = sign(&scheme, &[current.clone(), old], ID, 7, body.as_bytes()).expect("signed");
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["webhook-id", "webhook-timestamp", "x-shop-signature-256"]);
        assert_eq!(headers[2].1, expected);
        let bare = sign(&hex(""), &[current], ID, 7, body.as_bytes()).expect("signed");
        assert_eq!(bare[2].1, expected["sha256=".len()..]);
    }

    #[rstest]
    #[case::dot("ph1.abc")]
    #[case::empty("")]
    #[case::line_break("ph1_a\r\nX: 1")]
    #[case::space("ph1 a")]
    #[case::not_ascii("phä")]
    fn an_id_is_one_word_without_dots(#[case] id: &str) {
        // holds: 44
        let refused = sign(&STANDARD, &[secret(SECRET)], id, 7, BODY);
        assert_eq!(refused.expect_err("refused"), SignError::BadId);
        assert_eq!(sign(&STANDARD, &[], ID, 7, BODY).expect_err("refused"), SignError::NoSecret);
    }

    #[test]
    fn a_secret_is_read_with_its_prefix_or_without() {
        let bare = SECRET.strip_prefix(SECRET_PREFIX).expect("has one");
        assert_eq!(secret(bare).text().expose_secret(), SECRET);
        assert_eq!(secret(SECRET).text().expose_secret(), SECRET);
        // The hex scheme's receivers have the very text.
        let kept = EndpointSecret::parse(&hex(""), bare).expect("good");
        assert_eq!(kept.text().expose_secret(), bare);
        assert!(kept.fits(&STANDARD));
    }

    #[rstest]
    #[case::short(23, false)]
    #[case::shortest(24, true)]
    #[case::longest(64, true)]
    #[case::long(65, false)]
    fn a_standard_secret_has_a_standard_length(#[case] bytes: usize, #[case] is_good: bool) {
        let text = format!("{SECRET_PREFIX}{}", BASE64.encode(vec![7; bytes]));
        let parsed = EndpointSecret::parse(&STANDARD, &text);
        assert_eq!(parsed.is_ok(), is_good);
        assert!(is_good || parsed.is_err_and(|error| error == SecretError::BadLength { bytes }));
    }

    #[test]
    fn what_is_no_secret_is_refused_without_saying_it() {
        // holds: 46
        let standard = ["whsec_", "", "canary secret", "whsec_canary_-canary_-canary_-canary_-"];
        for text in standard {
            let error = EndpointSecret::parse(&STANDARD, text).expect_err("refused");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
        for text in ["canary7", " canary canary", "canary\r\ncanary", &"canary".repeat(50)] {
            let error = EndpointSecret::parse(&hex(""), text).expect_err("refused");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
        let secret = EndpointSecret::parse(&hex(""), "canary canary").expect("good");
        assert_eq!(format!("{secret:?}"), "EndpointSecret([redacted])");
    }

    #[test]
    fn a_text_of_the_partners_own_signs_the_hex_scheme_only() {
        let own = EndpointSecret::parse(&hex(""), "correct horse").expect("good");
        assert!(!own.fits(&STANDARD));
        let refused = sign(&STANDARD, std::slice::from_ref(&own), ID, 7, BODY);
        assert_eq!(refused.expect_err("refused"), SignError::UnfitSecret);
        assert!(!EndpointSecret::stored(own.text().clone()).fits(&STANDARD));
        assert!(EndpointSecret::stored(secret(SECRET).text().clone()).fits(&STANDARD));
        // As the older of two it is passed over.
        let headers = signed(&[secret(SECRET), own], now_s());
        assert_eq!(verified(SECRET, BODY, &headers), (true, true));
    }

    #[test]
    fn new_secrets_differ() {
        let clock = SystemClock::new();
        let (one, other) = (EndpointSecret::generate(&clock), EndpointSecret::generate(&clock));
        assert_ne!(one.text().expose_secret(), other.text().expose_secret());
        assert_eq!(one.text().expose_secret().len(), SECRET_PREFIX.len() + 44);
        assert!(one.fits(&STANDARD) && one.fits(&hex("")));
    }
}
