//! Whether a Pub/Sub push comes from the subscription that it should come from.
//!
//! A subscription can't send a key of ours. It can send a token that Google has signed for its service account (OIDC),
//! and its URL can end in a secret. What is configured of the two is checked, and stands for a key with the scope
//! `ingest`.

mod keys;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use jsonwebtoken::{Algorithm, Validation};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::keys::{KeyError, Keys};
use super::auth::{Caller, has_credential};
use super::problem::Problem;
use super::state::HttpState;
use crate::config::PubsubPushConfig;
use crate::domain::clock::Clock;
use crate::ingest::Pusher;

/// How far the issuer's clock may be from ours, in seconds.
const LEEWAY_S: i64 = 60;
/// Longest token that is looked at, in bytes.
const TOKEN_LIMIT_BYTES: usize = 8 << 10;

/// Checks pushes.
pub struct PushGate {
    oidc: Option<Oidc>,
    token: Option<SecretString>,
}

/// What a token must say, and whose signature it must bear.
struct Oidc {
    audience: String,
    service_account: String,
    issuers: Vec<String>,
    validation: Validation,
    keys: Keys,
    clock: Arc<dyn Clock>,
}

/// What a token says (`OpenID` Connect Core 1.0 §2).
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    /// Seconds since the Unix epoch, like `nbf`.
    exp: i64,
    nbf: Option<i64>,
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl fmt::Debug for PushGate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (oidc, token) = (self.oidc.is_some(), self.token.is_some());
        out.debug_struct("PushGate").field("oidc", &oidc).field("token", &token).finish_non_exhaustive()
    }
}

impl PushGate {
    /// What checks pushes; `None` where nothing is configured.
    ///
    /// # Errors
    /// A machine without CA certificates: one clear line.
    pub fn new(config: &PubsubPushConfig, clock: &Arc<dyn Clock>) -> Result<Option<Self>, String> {
        if !config.is_checked() {
            return Ok(None);
        }
        let oidc = match (&config.audience, &config.service_account) {
            (Some(audience), Some(service_account)) => Some(Oidc {
                audience: audience.clone(),
                service_account: service_account.clone(),
                issuers: config.issuers.clone(),
                validation: signature_only(),
                keys: Keys::new(&config.jwks_url, clock.clone())?,
                clock: clock.clone(),
            }),
            _ => None,
        };
        Ok(Some(Self { oidc, token: config.token.clone() }))
    }

    /// Whether this request is a push that has shown all it must; false where it does not pretend to be one.
    ///
    /// # Errors
    /// 401, 403, and 503 where the issuer's keys can't be had.
    async fn check(&self, uri: &Uri, headers: &HeaderMap, retry_after_s: u32) -> Result<bool, Problem> {
        let shown = self.token.as_ref().and_then(|_| token_in(uri));
        let signed = self.oidc.as_ref().and_then(|_| signed_token(headers));
        if shown.is_none() && signed.is_none() {
            return Ok(false);
        }
        if let Some(secret) = &self.token
            && !shown.is_some_and(|shown| is_same(&shown, secret))
        {
            return Err(unauthorized("the push's URL does not end in the right ?token="));
        }
        if let Some(oidc) = &self.oidc {
            let signed = signed.ok_or_else(|| unauthorized("the push has no OIDC token"))?;
            oidc.check(signed, retry_after_s).await?;
        }
        Ok(true)
    }
}

impl Oidc {
    async fn check(&self, token: &str, retry_after_s: u32) -> Result<(), Problem> {
        let header = jsonwebtoken::decode_header(token);
        let header = header.map_err(|_| unauthorized("the push's OIDC token can't be read"))?;
        let name = header.kid.ok_or_else(|| unauthorized("the push's OIDC token does not name its key"))?;
        let key = self.keys.find(&name).await.map_err(|error| match error {
            KeyError::Unknown => {
                unauthorized("the push's OIDC token is signed with a key that its issuer does not have")
            }
            KeyError::Unavailable => {
                let detail = "the public keys that OIDC tokens are checked with can't be had now";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "push_keys_unavailable", detail)
                    .retry_after(retry_after_s)
            }
        })?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &self.validation);
        let claims = claims
            .map_err(|_| unauthorized("the push's OIDC token has a wrong signature or lacks a claim"))?;
        self.judge(&claims.claims)
    }

    /// The signature holds: whether it is for us, and from whom it should be.
    fn judge(&self, claims: &Claims) -> Result<(), Problem> {
        let now = self.clock.now().as_millis() / 1_000;
        if claims.exp.saturating_add(LEEWAY_S) <= now {
            return Err(unauthorized("the push's OIDC token has expired"));
        }
        if claims.nbf.is_some_and(|from| from.saturating_sub(LEEWAY_S) > now) {
            return Err(unauthorized("the push's OIDC token is not valid yet"));
        }
        if !self.issuers.contains(&claims.iss) {
            return Err(unauthorized("the push's OIDC token is of another issuer"));
        }
        let forbidden = |detail| Err(Problem::new(StatusCode::FORBIDDEN, "foreign_push", detail));
        let is_for_us = match &claims.aud {
            Audience::One(audience) => *audience == self.audience,
            Audience::Several(audiences) => audiences.contains(&self.audience),
        };
        if !is_for_us {
            return forbidden("the push's OIDC token is for another audience");
        }
        if !claims.email_verified || claims.email.as_ref() != Some(&self.service_account) {
            return forbidden("the push's OIDC token is another service account's");
        }
        Ok(())
    }
}

/// Only the signature: the claims are judged by our own clock. RS256 alone, which is what Google signs with: whoever
/// could choose the algorithm could choose one that takes a public key for a secret.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.required_spec_claims = HashSet::new();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    validation
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

/// The `token` in a URL's query.
fn token_in(uri: &Uri) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == "token").map(|(_, value)| value.into_owned())
}

/// Hashes are compared, in constant time: neither length nor content of the secret shows in the time it takes.
fn is_same(shown: &str, secret: &SecretString) -> bool {
    let digest = |text: &str| Sha256::digest(text.as_bytes());
    digest(shown).as_slice().ct_eq(digest(secret.expose_secret()).as_slice()).into()
}

/// The bearer token where it has a signed token's form (RFC 7515 §3.1), which no key of ours has.
fn signed_token(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "))?;
    let token = text[scheme.len()..].trim();
    (token.len() <= TOKEN_LIMIT_BYTES && token.split('.').count() == 3).then_some(token)
}

/// Who sends events, and whether a push may come from them.
#[derive(Debug)]
pub struct Producer {
    /// Who they are.
    pub caller: Caller,
    /// What is known of them as the sender of a push.
    pub pusher: Pusher,
}

impl FromRequestParts<HttpState> for Producer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let Some(gate) = &state.push_gate else {
            let caller = Caller::from_request_parts(parts, state).await?;
            return Ok(Self { caller, pusher: Pusher::Unchecked });
        };
        if gate.check(&parts.uri, &parts.headers, state.retry_after_s()).await? {
            return Ok(Self { caller: Caller::of_push(), pusher: Pusher::Verified });
        }
        let caller = Caller::from_request_parts(parts, state).await?;
        // A key is as good as what a push has to show. Being on this machine is not: it may be a tunnel's end.
        let pusher = if has_credential(&parts.headers) { Pusher::Unchecked } else { Pusher::Unverified };
        Ok(Self { caller, pusher })
    }
}
