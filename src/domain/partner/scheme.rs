//! How deliveries to an endpoint are signed.

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::headers::check_header_name;

const PREFIX_MAX_BYTES: usize = 32;
/// The prefix where none is given: GitHub's, which most receivers of this scheme were written for.
const DEFAULT_PREFIX: &str = "sha256=";

/// A signature scheme. As JSON `{"scheme":"standard"}` or
/// `{"scheme":"hex_hmac_sha256","header":"x-shop-signature-256","prefix":"sha256="}`, the prefix being optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub enum SignatureScheme {
    /// Standard Webhooks 1.0: `webhook-signature: v1,<base64>` over id, timestamp and body.
    #[default]
    StandardWebhooks,
    /// Lower-case hex HMAC-SHA256 of the body alone, behind a prefix, in a header of the partner's choosing.
    ///
    /// Weaker than the standard, because nothing but the body is signed: a recorded request stays good for ever. It
    /// is here for receivers that exist.
    HexHmac {
        /// The header. Shown in lower case: names of headers are case-insensitive (RFC 9110 §5.1).
        header: HeaderName,
        /// What stands before the digits, e.g. `sha256=`; may be empty.
        prefix: String,
    },
}

impl SignatureScheme {
    /// A hex scheme, checked.
    ///
    /// # Errors
    /// A header that is no name or not the partner's to set; a prefix that is too long or not visible ASCII.
    pub fn hex_hmac(header: &str, prefix: &str) -> Result<Self, String> {
        let header = check_header_name(header).map_err(|fault| fault.to_string())?;
        if prefix.len() > PREFIX_MAX_BYTES || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("the prefix must be up to {PREFIX_MAX_BYTES} visible ASCII characters"));
        }
        Ok(Self::HexHmac { header, prefix: prefix.to_owned() })
    }

    /// The header that carries the signature and that the partner has chosen; `None` where it is the standard's.
    pub const fn own_header(&self) -> Option<&HeaderName> {
        match self {
            Self::StandardWebhooks => None,
            Self::HexHmac { header, .. } => Some(header),
        }
    }
}

/// A scheme as it is written.
#[derive(Serialize, Deserialize)]
#[serde(tag = "scheme", deny_unknown_fields)]
enum Text {
    // A struct, because a unit variant would let unknown fields pass.
    #[serde(rename = "standard")]
    Standard {},
    #[serde(rename = "hex_hmac_sha256")]
    HexHmacSha256 {
        header: String,
        #[serde(default = "default_prefix")]
        prefix: String,
    },
}

fn default_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}

impl TryFrom<Text> for SignatureScheme {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        match text {
            Text::Standard {} => Ok(Self::StandardWebhooks),
            Text::HexHmacSha256 { header, prefix } => Self::hex_hmac(&header, &prefix),
        }
    }
}

impl From<SignatureScheme> for Text {
    fn from(scheme: SignatureScheme) -> Self {
        match scheme {
            SignatureScheme::StandardWebhooks => Self::Standard {},
            SignatureScheme::HexHmac { header, prefix } => {
                Self::HexHmacSha256 { header: header.as_str().to_owned(), prefix }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"{"scheme":"standard"}"#, r#"{"scheme":"standard"}"#)]
    #[case(
        r#"{"scheme":"hex_hmac_sha256","header":"X-Shop-Signature-256"}"#,
        r#"{"scheme":"hex_hmac_sha256","header":"x-shop-signature-256","prefix":"sha256="}"#
    )]
    #[case(
        r#"{"scheme":"hex_hmac_sha256","header":"x-s","prefix":""}"#,
        r#"{"scheme":"hex_hmac_sha256","header":"x-s","prefix":""}"#
    )]
    fn the_json_of_a_scheme(#[case] given: &str, #[case] shown: &str) {
        let scheme: SignatureScheme = serde_json::from_str(given).expect("good");
        assert_eq!(serde_json::to_string(&scheme).expect("shown"), shown);
    }

    #[rstest]
    #[case(r#"{"scheme":"md5"}"#, "unknown variant `md5`")]
    #[case(r#"{"scheme":"standard","header":"x"}"#, "unknown field `header`")]
    #[case(r#"{"scheme":"hex_hmac_sha256"}"#, "missing field `header`")]
    #[case(r#"{"scheme":"hex_hmac_sha256","header":"Host"}"#, "header `Host`")]
    #[case(r#"{"scheme":"hex_hmac_sha256","header":"webhook-signature"}"#, "header `webhook-signature`")]
    #[case(r#"{"scheme":"hex_hmac_sha256","header":"x y"}"#, "header `x y`")]
    #[case(r#"{"scheme":"hex_hmac_sha256","header":"x","prefix":"a\r\nb"}"#, "prefix")]
    #[case(r#"{"scheme":"hex_hmac_sha256","header":"x","prefix":"a b"}"#, "prefix")]
    fn what_is_no_scheme(#[case] given: &str, #[case] expected: &str) {
        let error = serde_json::from_str::<SignatureScheme>(given).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}
