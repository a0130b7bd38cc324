//! An issuer's public keys (RFC 7517): fetched when one is wanted, kept while they are fresh.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};

use crate::domain::clock::{Clock, Moment};

/// How long keys are used without a look at what the issuer has now.
const FRESH: Duration = Duration::from_secs(3_600);
/// How long they are used where the issuer can't be reached: Google announces a key a day before it uses it.
const USABLE: Duration = Duration::from_secs(24 * 3_600);
/// Shortest time between two fetches: whoever sends made-up keys' names costs no more than that.
const FETCH_EVERY: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);
/// More of an answer is not read.
const ANSWER_LIMIT_BYTES: usize = 256 << 10;

/// Why there is no key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyError {
    /// The issuer has none of that name.
    Unknown,
    /// The issuer can't be asked now.
    Unavailable,
}

/// The keys of one issuer.
pub(super) struct Keys {
    url: String,
    http: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    known: RwLock<Known>,
    /// Held while keys are fetched, so that a burst fetches them once.
    fetching: tokio::sync::Mutex<Option<Moment>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Known {
    keys: HashMap<String, Arc<DecodingKey>>,
    fetched_at: Option<Moment>,
}

impl Keys {
    pub(super) fn new(url: &str, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(TIMEOUT));
        let tls = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| format!("no CA certificates (install the package ca-certificates): {error}"))?;
        let connector = tls.https_or_http().enable_http1().wrap_connector(connector);
        let http = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { url: url.to_owned(), http, known: RwLock::default(), fetching: Default::default(), clock })
    }

    /// The key of that name.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub(super) async fn find(&self, name: &str) -> Result<Arc<DecodingKey>, KeyError> {
        if let Some(key) = self.known(name, FRESH) {
            return Ok(key);
        }
        let mut last_try = self.fetching.lock().await;
        // Whoever was before us may have fetched it.
        if let Some(key) = self.known(name, FRESH) {
            return Ok(key);
        }
        let now = self.clock.moment();
        if last_try.is_none_or(|at| at.until(now) >= FETCH_EVERY) {
            *last_try = Some(now);
            match self.fetch().await {
                Ok(keys) => {
                    let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                    *known = Known { keys, fetched_at: Some(now) };
                }
                Err(error) => {
                    tracing::warn!(url = %self.url, error, "the keys that pushes are checked with can't be had");
                }
            }
        }
        let is_up_to_date = || {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.fetched_at.is_some_and(|at| at.until(self.clock.moment()) < FRESH)
        };
        self.known(name, USABLE).ok_or_else(|| match is_up_to_date() {
            true => KeyError::Unknown,
            false => KeyError::Unavailable,
        })
    }

    /// The key of that name, from a fetch that is not older than `age`.
    fn known(&self, name: &str, age: Duration) -> Option<Arc<DecodingKey>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.fetched_at.filter(|at| at.until(self.clock.moment()) < age)?;
        known.keys.get(name).cloned()
    }

    async fn fetch(&self) -> Result<HashMap<String, Arc<DecodingKey>>, String> {
        let fetching = async {
            let uri = self.url.parse().map_err(|_| "jwks_url is no URL".to_owned())?;
            let response = self.http.get(uri).await.map_err(|error| error.to_string())?;
            if !response.status().is_success() {
                return Err(format!("answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
            Ok(body.map_err(|error| error.to_string())?.to_bytes())
        };
        let body =
            tokio::time::timeout(TIMEOUT, fetching).await.map_err(|_| "no answer in time".to_owned())??;
        read(&body)
    }
}

/// The signature keys in a key set. Those that we can't read are left out: an issuer may add new kinds.
fn read(body: &[u8]) -> Result<HashMap<String, Arc<DecodingKey>>, String> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(body).map_err(|error| format!("no key set: {error}"))?;
    let keys: HashMap<_, _> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
        .filter(|key| key.common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature))
        .filter_map(|key| Some((key.common.key_id.clone()?, Arc::new(DecodingKey::from_jwk(&key).ok()?))))
        .collect();
    if keys.is_empty() { Err("a key set without keys that can be used".to_owned()) } else { Ok(keys) }
}
