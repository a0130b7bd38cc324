//! Secrets at rest: what partners share with us is sealed before it is stored.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03; RFC 8439 with a nonce long enough to be random) under one master
//! key. A sealed secret is text,
//!
//! ```text
//! v1:1a2b3c4d:BASE64(nonce ‖ ciphertext ‖ tag)
//! ```
//!
//! with the fingerprint of the key that sealed it, so that a change of the master key can tell what is still to be
//! sealed anew. The place it belongs to is authenticated along with it: what is moved to another row doesn't open.
//!
//! Nothing here shows a secret or a key: `Debug` and errors name fingerprints at most.

mod master_key;
#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{Key, KeyInit as _, XChaCha20Poly1305, XNonce};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};

pub use self::master_key::{Fingerprint, KeySources, MasterKey, MasterKeyError, key_file};
use crate::domain::clock::Clock;

/// The only form there is yet.
const VERSION: &str = "v1";
const NONCE_BYTES: usize = 24;
/// Longest secret.
const SECRET_MAX_BYTES: usize = 64 << 10;

/// What kind of secret it is. The names are sealed in and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// What an endpoint's deliveries are signed with.
    EndpointSecret,
    /// The headers that an endpoint is configured with.
    EndpointHeaders,
    /// Where an endpoint is.
    EndpointUrl,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointSecret => "endpoint_secret",
            Self::EndpointHeaders => "endpoint_headers",
            Self::EndpointUrl => "endpoint_url",
        }
    }
}

/// Where a sealed secret belongs. It opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// What kind it is.
    pub purpose: Purpose,
    /// The id of its row.
    pub row: &'a str,
}

impl Place<'_> {
    /// The associated data: each part behind its length, so that no two places flow into the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in ["posthaste", VERSION, self.purpose.as_str(), self.row] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// Why a secret can't be sealed or opened. Never says what it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// There is no key to seal with.
    #[error(
        "no master key is set: give POSTHASTE_MASTER_KEY 32 random bytes in base64 (`openssl rand -base64 32`), the \
         same on every node"
    )]
    NoKey,
    /// Longer than a secret may be.
    #[error("a secret may have at most {SECRET_MAX_BYTES} bytes")]
    TooLong,
    /// Not a sealed secret.
    #[error("this is not a sealed secret of a form that this version knows")]
    Malformed,
    /// Sealed with a key that nobody gave.
    #[error(
        "sealed with the master key {fingerprint}, which is not among the configured ones: give it to \
         POSTHASTE_MASTER_KEY_PREVIOUS"
    )]
    UnknownKey {
        /// Which key.
        fingerprint: Fingerprint,
    },
    /// It does not open with the key that sealed it.
    #[error(
        "sealed with the master key {fingerprint}, but does not open: it was changed, or it belongs elsewhere"
    )]
    Broken {
        /// Which key.
        fingerprint: Fingerprint,
    },
}

/// Seals and opens secrets.
pub struct Vault {
    current: Option<MasterKey>,
    previous: Vec<MasterKey>,
}

impl Vault {
    /// A vault that seals with `current` and also opens what `previous` keys have sealed. Without a current key it
    /// opens what it can and seals nothing.
    pub const fn new(current: Option<MasterKey>, previous: Vec<MasterKey>) -> Self {
        Self { current, previous }
    }

    /// Seals `secret` for `place`, under a nonce drawn from `clock`: no two results are equal.
    ///
    /// # Errors
    /// There is no master key, or the secret is too long.
    pub fn seal(
        &self,
        place: &Place<'_>,
        secret: &SecretString,
        clock: &dyn Clock,
    ) -> Result<String, VaultError> {
        let key = self.current.as_ref().ok_or(VaultError::NoKey)?;
        let plain = secret.expose_secret().as_bytes();
        if plain.len() > SECRET_MAX_BYTES {
            return Err(VaultError::TooLong);
        }
        let mut nonce = [0; NONCE_BYTES];
        nonce[..16].copy_from_slice(&clock.random().to_be_bytes());
        nonce[16..].copy_from_slice(&clock.random().to_be_bytes()[..8]);
        let aad = place.bytes();
        // The one failure it knows is a length of hundreds of gigabytes.
        let sealed = cipher(key)
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &aad })
            .map_err(|_| VaultError::TooLong)?;
        let bytes = [nonce.as_slice(), &sealed].concat();
        Ok(format!("{VERSION}:{}:{}", key.fingerprint(), BASE64.encode(bytes)))
    }

    /// Opens what was sealed for `place`.
    ///
    /// # Errors
    /// It is not sealed, with a key that is not here, for another place, or it was changed.
    pub fn open(&self, place: &Place<'_>, sealed: &str) -> Result<SecretString, VaultError> {
        let (fingerprint, bytes) = parts(sealed).ok_or(VaultError::Malformed)?;
        let (nonce, ciphertext) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(VaultError::Malformed)?;
        let aad = place.bytes();
        let mut failed = VaultError::UnknownKey { fingerprint };
        for key in self.keys().filter(|key| key.fingerprint() == fingerprint) {
            let payload = Payload { msg: ciphertext, aad: &aad };
            if let Ok(plain) = cipher(key).decrypt(&XNonce::from(*nonce), payload) {
                let plain = Zeroizing::new(plain);
                let text = std::str::from_utf8(&plain).map_err(|_| VaultError::Malformed)?;
                return Ok(SecretString::from(text));
            }
            failed = VaultError::Broken { fingerprint };
        }
        Err(failed)
    }

    /// Whether `sealed` should be opened and sealed anew: it is not of the current form and key.
    pub fn needs_reseal(&self, sealed: &str) -> bool {
        let Some(current) = &self.current else { return false };
        parts(sealed).is_none_or(|(fingerprint, _)| fingerprint != current.fingerprint())
    }

    /// The fingerprint of the key that seals; `None` where there is none.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.current.as_ref().map(MasterKey::fingerprint)
    }

    fn keys(&self) -> impl Iterator<Item = &MasterKey> {
        self.current.iter().chain(&self.previous)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Vault").field("current", &self.current).field("previous", &self.previous).finish()
    }
}

fn cipher(key: &MasterKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(<&Key>::from(key.expose()))
}

/// The fingerprint and the bytes of a sealed secret.
fn parts(sealed: &str) -> Option<(Fingerprint, Vec<u8>)> {
    let (fingerprint, text) = sealed.strip_prefix(VERSION)?.strip_prefix(':')?.split_once(':')?;
    Some((Fingerprint::parse(fingerprint)?, BASE64.decode(text).ok()?))
}
