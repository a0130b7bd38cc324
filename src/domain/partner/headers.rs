//! Headers that a partner configures: which go out, and which are not theirs to set.

use std::fmt;

use http::{HeaderName, HeaderValue};
use secrecy::SecretString;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::fields::Members;
use super::scheme::SignatureScheme;

/// Most headers of one endpoint.
pub const HEADERS_MAX: usize = 32;
/// Most bytes in all names and values of one endpoint's headers.
pub const HEADERS_MAX_BYTES: usize = 8 << 10;
/// What is shown in place of a value. Given back where settings are changed, it stands for the value that is known.
pub const REDACTED: &str = "[redacted]";
/// Most characters of a name in a message.
const SHOWN_NAME_CHARS: usize = 64;

/// Why a header can't be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderFault {
    /// The header's name as it was given; `None` where all of them together are at fault.
    pub name: Option<String>,
    /// What is wrong, going on after the name. Never the value.
    pub reason: String,
}

impl HeaderFault {
    fn new(name: &str, reason: impl Into<String>) -> Self {
        Self { name: Some(name.to_owned()), reason: reason.into() }
    }

    fn of_all(reason: impl Into<String>) -> Self {
        Self { name: None, reason: reason.into() }
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(name) = &self.name else { return write!(out, "headers: {}", self.reason) };
        let name: String = name.chars().take(SHOWN_NAME_CHARS).collect();
        write!(out, "header `{}` {}", name.escape_debug(), self.reason)
    }
}

impl std::error::Error for HeaderFault {}

/// A name that a partner may set: a token (RFC 9110 §5.1, §5.6.2) that is nobody else's.
///
/// # Errors
/// The name and why it is refused.
pub fn check_header_name(name: &str) -> Result<HeaderName, HeaderFault> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        let reason = "is no header name: letters, digits and !#$%&'*+-.^_`|~ (RFC 9110 §5.6.2)";
        HeaderFault::new(name, reason)
    })?;
    match whose(parsed.as_str()) {
        None => Ok(parsed),
        Some(reason) => Err(HeaderFault::new(name, reason)),
    }
}

/// Why a header (in lower case) is not the partner's.
fn whose(name: &str) -> Option<&'static str> {
    match name {
        "host" => Some("is made from the URL"),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding"
        | "upgrade" | "http2-settings" => {
            Some("belongs to the connection, not to the message (RFC 9110 §7.6.1)")
        }
        "proxy-authorization" | "proxy-authenticate" | "proxy-authentication-info" => {
            Some("is for proxies, and none is used (RFC 9110 §11.7)")
        }
        "expect" => Some("asks for an exchange that is not had (RFC 9110 §10.1.1)"),
        "user-agent" => Some("says who sends, which is the relay"),
        "traceparent" | "tracestate" => Some("carries the event's own trace"),
        "digest" | "repr-digest" => Some("describes the body, which is the relay's"),
        _ if name.starts_with("content-") => Some("describes the body, which is the relay's"),
        // Verifiers look at `svix-*` first, so one that is not ours could hide ours.
        _ if name.starts_with("webhook-") || name.starts_with("svix-") => Some("belongs to the signature"),
        _ => None,
    }
}

/// A value of the header `name`: visible ASCII, with spaces and tabs inside. What else RFC 9110 §5.5 lets pass
/// (bytes above 127), receivers read in different ways.
///
/// # Errors
/// The name and why the value is refused, without it.
pub fn check_header_value(name: &str, value: &str) -> Result<HeaderValue, HeaderFault> {
    let fault = |reason: &str| Err(HeaderFault::new(name, reason));
    if value.contains(['\r', '\n', '\0']) {
        return fault(
            "has a line break or NUL in its value, which would let it be read as more than one header",
        );
    }
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
        return fault("has a value that is not plain visible ASCII");
    }
    if value.trim_ascii() != value {
        return fault("has a value with space around it, which receivers drop");
    }
    match HeaderValue::from_str(value) {
        Ok(mut parsed) => {
            // Kept out of Debug and of HPACK's tables.
            parsed.set_sensitive(true);
            Ok(parsed)
        }
        Err(_) => fault("has a value that no header may have"),
    }
}

/// The headers of one endpoint: checked, by name, ready to go out.
///
/// Their values may be credentials (`Authorization`, `X-Api-Key`), so all of them are treated as secrets: neither
/// `Debug` nor `Serialize` shows one. [`Self::exposed`] is what is sealed before it is stored.
#[derive(Clone, Default)]
pub struct CustomHeaders(Vec<(HeaderName, HeaderValue)>);

impl CustomHeaders {
    /// Checks headers. A value of [`REDACTED`] stands for the one that `known` has of that name.
    ///
    /// # Errors
    /// Everything that is wrong: see [`check_header_name`], [`check_header_value`], and the bounds.
    pub fn new<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        known: &Self,
    ) -> Result<Self, Vec<HeaderFault>> {
        let (mut headers, mut faults) = (Vec::<(HeaderName, HeaderValue)>::new(), Vec::new());
        let mut bytes = 0;
        for (name, value) in pairs {
            bytes += name.len() + value.len();
            match check_header(name, value, known) {
                Ok(header) if headers.iter().any(|(other, _)| *other == header.0) => {
                    faults.push(HeaderFault::new(name, "is given more than once"));
                }
                Ok(header) => headers.push(header),
                Err(fault) => faults.push(fault),
            }
            if headers.len() + faults.len() > HEADERS_MAX {
                faults.push(HeaderFault::of_all(format!("at most {HEADERS_MAX} may be set")));
                break;
            }
        }
        if bytes > HEADERS_MAX_BYTES {
            let reason = format!("names and values are longer than {HEADERS_MAX_BYTES} bytes taken together");
            faults.push(HeaderFault::of_all(reason));
        }
        headers.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
        if faults.is_empty() { Ok(Self(headers)) } else { Err(faults) }
    }

    /// Each header, by name.
    pub fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The header that the scheme's signature would overwrite, as a fault.
    pub fn collision(&self, scheme: &SignatureScheme) -> Option<HeaderFault> {
        let signature = scheme.own_header()?;
        let found = self.0.iter().any(|(name, _)| name == signature);
        found.then(|| HeaderFault::new(signature.as_str(), "carries the signature of this endpoint"))
    }

    /// All of them with their values, as a JSON object: a secret, to be sealed.
    pub fn exposed(&self) -> SecretString {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let map: serde_json::Map<_, _> =
            self.0.iter().map(|(name, value)| (name.as_str().to_owned(), text(value).into())).collect();
        serde_json::Value::from(map).to_string().into()
    }

    /// Reads what [`Self::exposed`] wrote.
    ///
    /// # Errors
    /// What is wrong, where it is something else.
    pub fn from_exposed(json: &str) -> Result<Self, Vec<HeaderFault>> {
        let no_object = || vec![HeaderFault::of_all("expected an object of texts")];
        let members: Members<'_> = serde_json::from_str(json).map_err(|_| no_object())?;
        Self::from_members(&members, &Self::default())
    }

    /// The members of a JSON object as headers.
    pub(super) fn from_members(members: &Members<'_>, known: &Self) -> Result<Self, Vec<HeaderFault>> {
        let mut texts = Vec::with_capacity(members.0.len());
        let mut faults = Vec::new();
        for (name, raw) in &members.0 {
            match serde_json::from_str::<String>(raw.get()) {
                Ok(value) => texts.push((name.as_str(), value)),
                Err(_) => faults.push(HeaderFault::new(name, "must have a text as its value")),
            }
        }
        let checked = Self::new(texts.iter().map(|(name, value)| (*name, value.as_str())), known);
        match checked {
            Ok(headers) if faults.is_empty() => Ok(headers),
            Ok(_) => Err(faults),
            Err(more) => Err(faults.into_iter().chain(more).collect()),
        }
    }
}

fn check_header(
    name: &str,
    value: &str,
    known: &CustomHeaders,
) -> Result<(HeaderName, HeaderValue), HeaderFault> {
    let parsed = check_header_name(name)?;
    if value != REDACTED {
        let value = check_header_value(name, value)?;
        return Ok((parsed, value));
    }
    let same = known.0.iter().find(|(other, _)| *other == parsed).cloned();
    same.ok_or_else(|| HeaderFault::new(name, "is redacted, and there is no value to keep"))
}

impl fmt::Debug for CustomHeaders {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.0.iter().map(|(name, _)| (name.as_str(), REDACTED))).finish()
    }
}

/// Names, and [`REDACTED`] for every value.
impl Serialize for CustomHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, _) in &self.0 {
            map.serialize_entry(name.as_str(), REDACTED)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Result<CustomHeaders, Vec<HeaderFault>> {
        CustomHeaders::new(pairs.iter().copied(), &CustomHeaders::default())
    }

    // holds: 45
    #[rstest]
    #[case::name_cr_lf("X-A\r\nX-B", "no header name")]
    #[case::name_nul("X-A\0", "no header name")]
    #[case::name_space("X A", "no header name")]
    #[case::name_colon(":authority", "no header name")]
    #[case::name_not_ascii("X-Ä", "no header name")]
    #[case::name_empty("", "no header name")]
    #[case::host("Host", "URL")]
    #[case::length("Content-Length", "body")]
    #[case::kind("content-type", "body")]
    #[case::coding("Content-Encoding", "body")]
    #[case::digest("Repr-Digest", "body")]
    #[case::transfer("Transfer-Encoding", "connection")]
    #[case::connection("CONNECTION", "connection")]
    #[case::keep_alive("Keep-Alive", "connection")]
    #[case::proxy_connection("Proxy-Connection", "connection")]
    #[case::te("TE", "connection")]
    #[case::trailer("Trailer", "connection")]
    #[case::upgrade("Upgrade", "connection")]
    #[case::settings("HTTP2-Settings", "connection")]
    #[case::proxy("Proxy-Authorization", "proxies")]
    #[case::expect("Expect", "exchange")]
    #[case::agent("User-Agent", "relay")]
    #[case::trace("Traceparent", "trace")]
    #[case::id("webhook-id", "signature")]
    #[case::signature("Webhook-Signature", "signature")]
    #[case::unknown_webhook("webhook-anything", "signature")]
    #[case::svix("Svix-Id", "signature")]
    fn names_that_are_refused(#[case] name: &str, #[case] reason: &str) {
        let fault = check_header_name(name).expect_err("refused");
        assert!(fault.reason.contains(reason), "{fault}");
        let shown = fault.to_string();
        assert!(shown.starts_with("header `") && !shown.contains(['\r', '\n', '\0']), "{shown:?}");
        assert!(headers(&[(name, "v")]).is_err());
    }

    #[rstest]
    #[case::cr_lf("a\r\nX-Evil: 1", "line break")]
    #[case::lf("a\nb", "line break")]
    #[case::cr("a\rb", "line break")]
    #[case::nul("a\0b", "line break or NUL")]
    #[case::bell("a\x07b", "ASCII")]
    #[case::delete("a\x7fb", "ASCII")]
    #[case::not_ascii("schlüssel", "ASCII")]
    #[case::leading(" a", "space around")]
    #[case::trailing("a\t", "space around")]
    fn values_that_are_refused(#[case] value: &str, #[case] reason: &str) {
        // holds: 45
        let fault = check_header_value("X-A", value).expect_err("refused");
        assert_eq!(fault.name.as_deref(), Some("X-A"));
        assert!(fault.reason.contains(reason), "{fault}");
        assert!(headers(&[("X-A", value)]).is_err());
    }

    #[test]
    fn what_a_partner_may_set_goes_out_by_name() {
        let headers =
            headers(&[("X-Region", "eu\tcentral 1"), ("Authorization", "Bearer abc"), ("X-Empty", "")])
                .expect("good");
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["authorization", "x-empty", "x-region"]);
    }

    #[test]
    fn bounds_and_repetitions_are_faults() {
        let names: Vec<_> = (0..=HEADERS_MAX).map(|number| format!("X-{number}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
        headers(&many[..HEADERS_MAX]).expect("as many as may be");
        assert!(headers(&many).expect_err("too many")[0].to_string().contains("at most 32"));
        let long = "v".repeat(HEADERS_MAX_BYTES - 3);
        headers(&[("X-A", &long)]).expect("as long as may be");
        assert!(headers(&[("X-AB", &long)]).expect_err("too long")[0].to_string().contains("8192 bytes"));
        assert!(
            headers(&[("X-A", "1"), ("x-a", "2")]).expect_err("twice")[0].reason.contains("more than once")
        );
        let all = headers(&[("Host", "h"), ("X-A", "a\nb"), ("TE", "t")]).expect_err("three faults");
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn the_signature_is_not_overwritten() {
        // holds: 45
        let scheme = SignatureScheme::hex_hmac("X-Shop-Signature-256", "sha256=").expect("good");
        let headers = headers(&[("x-shop-SIGNATURE-256", "sha256=forged")]).expect("good by itself");
        assert!(headers.collision(&scheme).expect("collides").reason.contains("signature"));
        assert!(headers.collision(&SignatureScheme::StandardWebhooks).is_none());
    }

    #[test]
    fn values_are_shown_nowhere_and_redacted_ones_are_kept() {
        // holds: 46
        let known = headers(&[("Authorization", "Bearer canary"), ("X-A", "canary")]).expect("good");
        let shown = serde_json::to_string(&known).expect("shown");
        assert_eq!(shown, r#"{"authorization":"[redacted]","x-a":"[redacted]"}"#);
        assert!(!format!("{known:?} {:?}", known.0).contains("canary"));
        assert!(!format!("{:?}", check_header_value("X-A", "canary\n")).contains("canary"));

        let kept = CustomHeaders::new([("AUTHORIZATION", REDACTED)], &known).expect("known");
        assert_eq!(kept.exposed().expose_secret(), r#"{"authorization":"Bearer canary"}"#);
        assert!(CustomHeaders::new([("X-B", REDACTED)], &known).is_err());
        let again = CustomHeaders::from_exposed(known.exposed().expose_secret()).expect("read again");
        assert_eq!(again.0, known.0);
    }
}
