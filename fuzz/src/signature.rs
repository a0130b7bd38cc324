//! Signatures of what goes to partners, checked by a library that is not ours.
//!
//! An input has a line each for two secrets, the id, the time and the name and prefix of a hex scheme; then the body.

use std::time::SystemTime;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use posthaste::send::signature::{
    EndpointSecret, SignError, SignatureScheme, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign,
};
use secrecy::ExposeSecret as _;
use standardwebhooks::Webhook;

const STANDARD: SignatureScheme = SignatureScheme::StandardWebhooks;
/// Bytes of a key by Standard Webhooks 1.0.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

pub fn check(input: &[u8]) {
    let mut parts = input.splitn(6, |byte| *byte == b'\n');
    let mut line = || parts.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let (current, older, id, time, hex) = (line(), line(), line(), line(), line());
    let body = parts.next().unwrap_or_default();
    let secrets: Vec<_> = [current, older].into_iter().filter_map(standard_secret).collect();
    let at_s = time.parse().unwrap_or(0_i64);
    standard(&secrets, id, at_s, body);
    if let Some((header, prefix)) = hex.split_once(' ')
        && let Ok(scheme) = SignatureScheme::hex_hmac(header, prefix)
    {
        hex_hmac(&scheme, current, id, at_s, body);
    }
}

/// The secret that `text` is, where it is one.
fn standard_secret(text: &str) -> Option<EndpointSecret> {
    let secret = EndpointSecret::parse(&STANDARD, text);
    // The other one takes keys of any length.
    let theirs = Webhook::new(text);
    let Ok(secret) = secret else { return None };
    assert!(theirs.is_ok(), "a secret that others can't read");
    assert!(secret.fits(&STANDARD));
    let whole = secret.text().expose_secret();
    assert!(whole.starts_with("whsec_"));
    let digits = whole["whsec_".len()..].trim_end_matches('=').len();
    assert!(KEY_BYTES.contains(&(digits * 3 / 4)), "{digits}");
    let again = EndpointSecret::parse(&STANDARD, whole).expect("what was a secret once");
    assert_eq!(again.text().expose_secret(), whole);
    Some(secret)
}

fn standard(secrets: &[EndpointSecret], id: &str, at_s: i64, body: &[u8]) {
    let is_id =
        (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.');
    let headers = match sign(&STANDARD, secrets, id, at_s, body) {
        Ok(headers) => headers,
        Err(SignError::BadId) => return assert!(!is_id, "{id}"),
        Err(SignError::NoSecret) => return assert!(secrets.is_empty()),
        Err(error) => panic!("{error}"),
    };
    assert!(is_id, "{id}");
    let find = |name: &HeaderName| {
        let value = &headers.iter().find(|(known, _)| known == name).expect("a header of three").1;
        value.to_str().expect("visible")
    };
    assert_eq!((headers.len(), find(&WEBHOOK_ID), find(&WEBHOOK_TIMESTAMP)), (3, id, &*at_s.to_string()));
    let signatures: Vec<_> = find(&WEBHOOK_SIGNATURE).split(' ').collect();
    assert_eq!(signatures.len(), secrets.len());
    for (secret, signature) in secrets.iter().zip(&signatures) {
        let theirs = Webhook::new(secret.text().expose_secret()).expect("a secret");
        // It signs text alone.
        if std::str::from_utf8(body).is_ok() {
            assert_eq!(theirs.sign(id, at_s, body).expect("signed"), *signature);
        }
    }
    if std::str::from_utf8(body).is_ok() {
        verified(secrets, id, body);
    }
}

/// What was signed just now is verified with every secret; with a part of it changed, with none.
fn verified(secrets: &[EndpointSecret], id: &str, body: &[u8]) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let now_s = i64::try_from(now.as_secs()).expect("before the end of time");
    let headers: HeaderMap = sign(&STANDARD, secrets, id, now_s, body).expect("signed").into_iter().collect();
    let mut longer = body.to_vec();
    longer.push(b' ');
    let mut others = [headers.clone(), headers.clone()];
    others[0].insert(WEBHOOK_ID, HeaderValue::try_from(format!("{id}0")).expect("visible"));
    others[1].insert(WEBHOOK_TIMESTAMP, (now_s - 1).into());
    for secret in secrets {
        let theirs = Webhook::new(secret.text().expose_secret()).expect("a secret");
        assert!(theirs.verify(body, &headers).is_ok());
        assert!(theirs.verify(&longer, &headers).is_err());
        assert!(others.iter().all(|headers| theirs.verify(body, headers).is_err()));
    }
}

fn hex_hmac(scheme: &SignatureScheme, secret: &str, id: &str, at_s: i64, body: &[u8]) {
    let Ok(secret) = EndpointSecret::parse(scheme, secret) else { return };
    let secrets = [secret];
    let Ok(headers) = sign(scheme, &secrets, id, at_s, body) else { return };
    let own = scheme.own_header().expect("a header of its own");
    let SignatureScheme::HexHmac { prefix, .. } = scheme else { unreachable!("made as one") };
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["webhook-id", "webhook-timestamp", own.as_str()], "no header twice");
    assert!(![&WEBHOOK_ID, &WEBHOOK_TIMESTAMP, &WEBHOOK_SIGNATURE].contains(&own));
    let digits = headers[2].1.to_str().expect("visible").strip_prefix(prefix.as_str()).expect("its prefix");
    assert_eq!(digits.len(), 64);
    assert!(digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    // The body counts, and nothing else.
    let signed =
        |id: &str, body: &[u8]| sign(scheme, &secrets, id, at_s + 1, body).expect("signed")[2].1.clone();
    assert_eq!(signed("other", body), headers[2].1);
    let mut longer = body.to_vec();
    longer.push(b' ');
    assert_ne!(signed(id, &longer), headers[2].1);
}
