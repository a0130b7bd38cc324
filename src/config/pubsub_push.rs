//! `[ingest.pubsub_push]`: how a Pub/Sub push shows that it comes from the subscription it should.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::redact::redacted;

/// Shortest `token`.
const TOKEN_MIN: usize = 16;

/// `[ingest.pubsub_push]`. What is set is checked; where both ways are set, both are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PubsubPushConfig {
    /// The audience that the subscription asks its OIDC tokens for.
    pub audience: Option<String>,
    /// The email address of the service account that the subscription pushes as. Goes with `audience`: anybody can
    /// have Google sign a token for any audience, but only in their own name.
    pub service_account: Option<String>,
    /// Who may have issued the token.
    pub issuers: Vec<String>,
    /// Where the issuer's public keys are.
    pub jwks_url: String,
    /// A secret that the subscription's URL ends in, as `?token=…`.
    #[serde(serialize_with = "redacted")]
    pub token: Option<SecretString>,
}

impl Default for PubsubPushConfig {
    fn default() -> Self {
        Self {
            audience: None,
            service_account: None,
            issuers: vec!["https://accounts.google.com".into(), "accounts.google.com".into()],
            jwks_url: "https://www.googleapis.com/oauth2/v3/certs".into(),
            token: None,
        }
    }
}

impl PubsubPushConfig {
    /// Whether a push has anything to show.
    pub const fn is_checked(&self) -> bool {
        self.audience.is_some() || self.token.is_some()
    }

    /// Looks whether pushes can be checked like this.
    ///
    /// # Errors
    /// What is wrong, in one line with its place.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_empty = |text: &Option<String>| text.as_deref().is_some_and(|text| text.trim().is_empty());
        let fault = if self.audience.is_some() != self.service_account.is_some() {
            "audience and service_account go together: with one alone, anybody's token would do"
        } else if is_empty(&self.audience) || is_empty(&self.service_account) {
            "audience and service_account must not be empty"
        } else if self.audience.is_some() && self.issuers.is_empty() {
            "issuers must name at least one"
        } else if !keys_are_safe(&self.jwks_url) {
            "jwks_url must be an https:// URL, or an http:// one of this machine"
        } else if self.token.as_ref().is_some_and(|token| token.expose_secret().len() < TOKEN_MIN) {
            return Err(format!("ingest.pubsub_push.token must have at least {TOKEN_MIN} characters"));
        } else {
            return Ok(());
        };
        Err(format!("ingest.pubsub_push.{fault}"))
    }
}

/// Whether nobody on the way can put in keys of their own.
fn keys_are_safe(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let is_here = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => return false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_here)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use crate::config::Config;

    fn load(variables: &[(&str, &str)]) -> Result<Config, String> {
        let named = |(name, value): &(&str, &str)| {
            (format!("POSTHASTE_INGEST__PUBSUB_PUSH__{name}"), (*value).to_owned())
        };
        let loaded = Config::load(None, variables.iter().map(named)).map_err(|error| error.to_string())?;
        Ok(loaded.config)
    }

    const WHO: (&str, &str) = ("SERVICE_ACCOUNT", "push@p.iam.gserviceaccount.com");
    const WHAT: (&str, &str) = ("AUDIENCE", "https://relay.example/notifications");

    #[test]
    fn what_is_set_is_checked_and_the_token_is_not_shown() {
        // holds: 46
        assert!(!load(&[]).expect("good").ingest.pubsub_push.is_checked());
        assert!(load(&[WHO, WHAT]).expect("good").ingest.pubsub_push.is_checked());
        let config = load(&[("TOKEN", "canary-canary-canary")]).expect("good");
        assert!(config.ingest.pubsub_push.is_checked());
        let shown = config.show().expect("shown");
        assert!(!shown.contains("canary") && !format!("{config:?}").contains("canary"), "{shown}");
    }

    #[rstest]
    #[case::anybody(&[WHAT], "go together")]
    #[case::for_anything(&[WHO], "go together")]
    #[case::empty(&[WHO, ("AUDIENCE", " ")], "must not be empty")]
    #[case::nobody(&[WHO, WHAT, ("ISSUERS", "")], "issuers must name")]
    #[case::open_way(&[WHO, WHAT, ("JWKS_URL", "http://keys.example/certs")], "jwks_url must be")]
    #[case::no_url(&[("JWKS_URL", "certs")], "jwks_url must be")]
    #[case::guessable(&[("TOKEN", "canary")], "at least 16 characters")]
    fn bad_settings_are_named(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
        let error = load(variables).expect_err("bad");
        assert!(error.contains(expected) && error.contains("ingest.pubsub_push."), "{error}");
        assert!(!error.contains("canary") && !error.contains('\n'), "{error}");
    }

    #[rstest]
    #[case("http://127.0.0.1:8085/certs")]
    #[case("http://[::1]:8085/certs")]
    #[case("http://localhost/certs")]
    #[case("https://keys.example/certs")]
    fn keys_may_come_from_here_or_over_tls(#[case] url: &str) {
        assert!(load(&[("JWKS_URL", url)]).is_ok());
    }
}
