//! Who is calling, and what they may do.
//!
//! A key is `ph_<id>_<secret>`; the ledger holds the SHA-256 of the secret, which is random and long enough for that.
//! While no key exists, callers from loopback hold all scopes: a laptop needs no account. A browser on that laptop is
//! kept out by its `Host` and `Origin`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, HeaderMap, ORIGIN};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::problem::Problem;
use super::state::HttpState;
use crate::directory::Snapshot;
use crate::domain::clock::Clock;
use crate::domain::key::prefixed_hex;
use crate::ledger::{ApiKey, KeyInfo};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Scope {
    /// Send events.
    Ingest,
    /// Read.
    Read,
    /// Everything.
    Admin,
}

impl Scope {
    /// The scope's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ingest, Self::Read, Self::Admin].into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A caller who has shown who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    scopes: Vec<Scope>,
    /// The one tenant they may speak for; all where `None`.
    pub tenant: Option<String>,
    /// What they are called in records of what they did: a key's name.
    pub name: String,
}

impl Caller {
    fn root() -> Self {
        Self { scopes: vec![Scope::Admin], tenant: None, name: "administrator".to_owned() }
    }

    /// Who sends a push that has shown where it comes from: as good as a key for events of any tenant.
    pub(super) fn of_push() -> Self {
        Self { scopes: vec![Scope::Ingest], tenant: None, name: "push".to_owned() }
    }

    /// Refuses a caller without `scope`; `admin` includes the others.
    ///
    /// # Errors
    /// 403.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin) {
            return Ok(());
        }
        let detail = format!("this key does not have the scope `{}`", scope.as_str());
        Err(Problem::new(StatusCode::FORBIDDEN, "missing_scope", detail))
    }

    /// Refuses a caller who is bound to another tenant.
    ///
    /// # Errors
    /// 403.
    pub fn require_tenant(&self, tenant: &str) -> Result<(), Problem> {
        match &self.tenant {
            Some(bound) if bound != tenant => {
                let detail = format!("this key is for tenant `{bound}` alone");
                Err(Problem::new(StatusCode::FORBIDDEN, "foreign_tenant", detail))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a caller who is bound to any tenant: what they ask for concerns all.
    ///
    /// # Errors
    /// 403.
    pub fn require_unbound(&self) -> Result<(), Problem> {
        self.tenant.as_deref().map_or(Ok(()), |_| self.require_tenant(""))
    }
}

/// Where a connection came from. The accept loop puts it into every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl FromRequestParts<HttpState> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        // The console asks for somebody whom it knows. No request from outside has extensions.
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        let snapshot = state.directory.snapshot();
        identify(&parts.headers, &parts.uri, peer, &snapshot, state.bootstrap_admin_key.as_ref())
    }
}

/// Who is calling, by the key that is shown or because none is needed.
pub(super) fn identify(
    headers: &HeaderMap,
    uri: &Uri,
    peer: Option<IpAddr>,
    snapshot: &Snapshot,
    bootstrap: Option<&SecretString>,
) -> Result<Caller, Problem> {
    let unauthorized = |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    if let Some(credential) = credential(headers) {
        let known = check(credential, snapshot, bootstrap);
        return known.ok_or_else(|| unauthorized("this key is unknown or revoked"));
    }
    if snapshot.has_keys() || bootstrap.is_some() {
        return Err(unauthorized("a key is needed: Authorization: Bearer …, or X-API-Key"));
    }
    if !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) || is_forwarded(headers) {
        return Err(unauthorized(
            "no key exists yet, and without one only direct callers from loopback are let in",
        ));
    }
    if !host(headers, uri).is_some_and(|host| is_loopback_host(&host)) || !is_same_site(headers) {
        let detail = "without a key, only requests to a loopback host that no other site has sent are let in";
        return Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail));
    }
    Ok(Caller::root())
}

/// Whether a request shows a key, good or bad.
pub(super) fn has_credential(headers: &HeaderMap) -> bool {
    credential(headers).is_some()
}

/// The key that a request shows.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).map(|value| {
        let text = value.to_str().unwrap_or_default();
        let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "));
        scheme.map_or(text, |_| text[7..].trim())
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.to_str().unwrap_or_default()))
}

fn check(credential: &str, snapshot: &Snapshot, bootstrap: Option<&SecretString>) -> Option<Caller> {
    known_key(credential, bootstrap)?.caller(snapshot, bootstrap)
}

/// Which key it was that somebody has shown: no secret, and enough to tell whether it is still good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShownKey {
    /// The public part; empty for the bootstrap key.
    pub id: String,
    /// SHA-256 of the secret part.
    pub hash: Vec<u8>,
}

/// Which key a text claims to be. Whether it is that key is for [`ShownKey::caller`] to say.
pub(super) fn known_key(credential: &str, bootstrap: Option<&SecretString>) -> Option<ShownKey> {
    // Hashes are compared, in constant time: neither length nor content of a secret shows in the time it takes.
    let digest = |text: &str| Sha256::digest(text.as_bytes()).to_vec();
    let hash = digest(credential);
    let is_bootstrap =
        |secret: &&SecretString| bool::from(digest(secret.expose_secret()).as_slice().ct_eq(&hash));
    if bootstrap.filter(is_bootstrap).is_some() {
        return Some(ShownKey { id: String::new(), hash });
    }
    let (id, secret) = credential.strip_prefix("ph_")?.split_once('_')?;
    (!id.is_empty()).then(|| ShownKey { id: id.to_owned(), hash: digest(secret) })
}

impl ShownKey {
    /// Who has this key; nobody where it is unknown, revoked, or another secret by now.
    pub(super) fn caller(&self, snapshot: &Snapshot, bootstrap: Option<&SecretString>) -> Option<Caller> {
        if self.id.is_empty() {
            let hash = Sha256::digest(bootstrap?.expose_secret().as_bytes());
            return bool::from(hash.as_slice().ct_eq(&self.hash)).then(Caller::root);
        }
        let key = snapshot.key(&self.id)?;
        if !bool::from(key.hash.as_slice().ct_eq(&self.hash)) {
            return None;
        }
        let scopes = key.info.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect();
        Some(Caller { scopes, tenant: key.info.tenant.clone(), name: key.info.name.clone() })
    }
}

pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
        || headers.contains_key("x-forwarded-for")
        || headers.contains_key("x-real-ip")
}

pub(super) fn host(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let header = || headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    uri.authority().map(|authority| authority.as_str().to_owned()).or_else(header)
}

/// Whether `host[:port]` is this machine itself.
pub(super) fn is_loopback_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether no browser sent this on behalf of another site.
fn is_same_site(headers: &HeaderMap) -> bool {
    let origin = headers.get(ORIGIN).is_none_or(|origin| {
        let uri = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        uri.and_then(|uri| uri.authority().map(|authority| is_loopback_host(authority.as_str())))
            .unwrap_or(false)
    });
    origin && headers.get("sec-fetch-site").is_none_or(|site| site != "cross-site")
}

/// A new key: what the ledger keeps, and the text that is shown this once.
pub fn new_key(
    name: &str,
    scopes: &[Scope],
    tenant: Option<&str>,
    clock: &Arc<dyn Clock>,
) -> (ApiKey, SecretString) {
    let id = prefixed_hex("", &clock.random().to_be_bytes()[..8]);
    let mut secret = [0; 32];
    secret[..16].copy_from_slice(&clock.random().to_be_bytes());
    secret[16..].copy_from_slice(&clock.random().to_be_bytes());
    let secret = prefixed_hex("", &secret);
    let key = ApiKey {
        info: KeyInfo {
            id: id.clone(),
            name: name.to_owned(),
            scopes: scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            tenant: tenant.map(str::to_owned),
            created_at: clock.now().as_millis(),
            revoked_at: None,
        },
        hash: Sha256::digest(secret.as_bytes()).to_vec(),
    };
    (key, SecretString::from(format!("ph_{id}_{secret}")))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn anonymous(peer: &str, pairs: &[(&'static str, &'static str)]) -> Result<Caller, u16> {
        let peer = peer.parse().ok();
        identify(&headers(pairs), &Uri::from_static("/"), peer, &Snapshot::default(), None)
            .map_err(|problem| problem.status.as_u16())
    }

    #[rstest]
    #[case::curl("127.0.0.1", &[("host", "localhost:8080")], None)]
    #[case::v6("::1", &[("host", "[::1]:8080")], None)]
    #[case::mapped("::ffff:127.0.0.1", &[("host", "127.0.0.1")], None)]
    #[case::own_page("127.0.0.1", &[("host", "localhost"), ("origin", "http://localhost:8080")], None)]
    #[case::from_outside("10.0.0.9", &[("host", "localhost")], Some(401))]
    #[case::proxied("127.0.0.1", &[("host", "localhost"), ("x-forwarded-for", "1.2.3.4")], Some(401))]
    #[case::rebound("127.0.0.1", &[("host", "evil.example")], Some(403))]
    #[case::no_host("127.0.0.1", &[], Some(403))]
    #[case::lookalike("127.0.0.1", &[("host", "localhost.evil.example")], Some(403))]
    #[case::foreign_page("127.0.0.1", &[("host", "localhost"), ("origin", "https://evil.example")], Some(403))]
    #[case::sandboxed("127.0.0.1", &[("host", "localhost"), ("origin", "null")], Some(403))]
    #[case::cross_site("127.0.0.1", &[("host", "localhost"), ("sec-fetch-site", "cross-site")], Some(403))]
    #[case::wrong_key("127.0.0.1", &[("host", "localhost"), ("x-api-key", "ph_a_b")], Some(401))]
    fn without_keys_only_loopback_is_let_in(
        #[case] peer: &str,
        #[case] pairs: &[(&'static str, &'static str)],
        #[case] refused: Option<u16>,
    ) {
        // holds: 47
        assert_eq!(anonymous(peer, pairs).err(), refused);
    }

    #[test]
    fn the_bootstrap_key_closes_the_loopback_door() {
        let bootstrap = SecretString::from("first-key");
        let snapshot = Snapshot::default();
        let ask = |pairs: &[(&'static str, &'static str)]| {
            let peer = Some("127.0.0.1".parse().unwrap());
            identify(&headers(pairs), &Uri::from_static("/"), peer, &snapshot, Some(&bootstrap))
        };
        assert!(ask(&[("host", "localhost")]).is_err());
        assert!(ask(&[("authorization", "Bearer first-kez")]).is_err());
        assert_eq!(ask(&[("authorization", "bearer first-key")]).unwrap(), Caller::root());
        assert_eq!(ask(&[("x-api-key", "first-key")]).unwrap(), Caller::root());
    }
}
