//! Derived identifiers: the idempotency key of a delivery and the ids made for events that came without one.
//!
//! Every hash runs over length-prefixed parts, so that no two lists of parts can flow into the same text.

use sha2::{Digest, Sha256};

use super::event::Identity;

/// Scheme of the idempotency key. A change of its recipe needs a new prefix, or a resend would be another message.
const KEY_PREFIX: &str = "ph1_";

/// `ph1_` and the hex SHA-256 of (environment, tenant, destination, source, event id).
///
/// Never payload, attempt, batch, clock or token: a resend, a crash and a restored backup all yield the same key.
pub fn idempotency_key(environment: &str, destination: &str, identity: &Identity) -> String {
    let digest = hash(&[environment, &identity.tenant, destination, &identity.source, &identity.id]);
    prefixed_hex(KEY_PREFIX, &digest)
}

/// The key of the `nth` replay of a delivery with this key: another one, because Svix answers a key that it has seen
/// within twelve hours from memory. All attempts of that replay carry it.
pub fn replayed_key(key: &str, nth: u32) -> String {
    format!("{key}_r{nth}")
}

/// An id for the event at `index` of a request or message that is itself identified: `evt_` and 32 hex digits.
///
/// `scope` says whose name it is (`idempotency-key`, `pubsub` …), `name` is that name: the same resend yields
/// the same ids, and different scopes never meet.
pub fn derived_event_id(scope: &str, name: &[&str], index: usize) -> String {
    let index = index.to_string();
    let mut parts = vec![scope];
    parts.extend_from_slice(name);
    parts.push(&index);
    prefixed_hex("evt_", &hash(&parts)[..16])
}

/// SHA-256 over parts, each behind its length as eight big-endian bytes.
fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Lower-case hex digits of `bytes` behind `prefix`.
pub fn prefixed_hex(prefix: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(prefix.len() + 2 * bytes.len());
    text.push_str(prefix);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(tenant: &str, source: &str, id: &str) -> Identity {
        Identity { tenant: tenant.into(), source: source.into(), id: id.into() }
    }

    #[test]
    fn the_recipe_is_frozen() {
        // holds: 18. Computed independently (Python's hashlib over the length-prefixed parts).
        let key = idempotency_key("production", "svix:acme", &identity("acme", "", "evt_1"));
        assert_eq!(key, "ph1_4737f6e76908588619639e4a3511928800d917f38420340806fe492af5b0fcb7");
    }

    #[test]
    fn hex_is_lower_case_and_two_digits_a_byte() {
        assert_eq!(prefixed_hex("evt_", &[0x00, 0x0f, 0xf0, 0xa9]), "evt_000ff0a9");
    }

    #[test]
    fn parts_never_flow_into_each_other() {
        let one = idempotency_key("e", "d", &identity("ab", "c", "x"));
        let other = idempotency_key("e", "d", &identity("a", "bc", "x"));
        assert_ne!(one, other);
        assert_ne!(derived_event_id("s", &["a", "b"], 1), derived_event_id("s", &["ab"], 1));
        assert_ne!(derived_event_id("s", &["a"], 1), derived_event_id("s", &["a"], 11));
    }
}
