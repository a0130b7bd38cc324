//! `[direct]`: the built-in dispatcher.

use serde::{Deserialize, Serialize};

use crate::send::address_guard::{AllowedNetworks, DialPolicy};

/// `[direct]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectConfig {
    /// Networks (CIDRs) that endpoints may lie in although they are private; there any port and plain http will do.
    pub allowed_networks: Vec<String>,
    /// Ports that endpoints may have elsewhere.
    pub allowed_ports: Vec<u16>,
    /// PEM files of certificate authorities to believe besides the platform's.
    pub ca_files: Vec<String>,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self {
            allowed_networks: Vec::new(),
            allowed_ports: DialPolicy::default().ports,
            ca_files: Vec::new(),
        }
    }
}

impl DirectConfig {
    /// What the direct dispatcher may dial.
    ///
    /// # Errors
    /// A network that is none, no port at all, or port 0: one line, naming the key and the entry.
    pub fn dial_policy(&self) -> Result<DialPolicy, String> {
        let networks = AllowedNetworks::parse(&self.allowed_networks)
            .map_err(|error| format!("direct.allowed_networks: {error}"))?;
        if self.allowed_ports.is_empty() || self.allowed_ports.contains(&0) {
            return Err("direct.allowed_ports must name at least one port, and not port 0".to_owned());
        }
        Ok(DialPolicy { networks, ports: self.allowed_ports.clone() })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError};
    use crate::send::address_guard::DialPolicy;

    fn from_env(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(None, owned).map(|loaded| loaded.config)
    }

    #[test]
    fn networks_and_ports_come_from_variables() {
        let config = from_env(&[
            ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "10.1.0.0/16, fd12::/48,192.168.1.7"),
            ("POSTHASTE_DIRECT__ALLOWED_PORTS", "443,9443"),
        ])
        .expect("good");
        let policy = config.direct.dial_policy().expect("good");
        assert_eq!(policy.ports, [443, 9443]);
        assert!(policy.networks.contains([10, 1, 2, 3].into()));
        assert!(!policy.networks.contains([10, 2, 2, 3].into()));
        let default = from_env(&[]).expect("good").direct.dial_policy().expect("good");
        assert_eq!(default, DialPolicy::default());
    }

    #[test]
    fn bad_entries_are_named() {
        for (key, value, expected) in [
            (
                "ALLOWED_NETWORKS",
                "10.0.0.0/8,localhost",
                "direct.allowed_networks: `localhost` is not a network",
            ),
            (
                "ALLOWED_NETWORKS",
                "10.0.0.5/8",
                "`10.0.0.5/8` has bits set behind its prefix: did you mean 10.0.0.0/8?",
            ),
            ("ALLOWED_PORTS", "0", "direct.allowed_ports"),
            ("ALLOWED_PORTS", "", "direct.allowed_ports"),
            ("ALLOWED_PORTS", "https", "not a whole number"),
            ("ALLOWED_PORTS", "65536", "allowed_ports"),
        ] {
            let variable = format!("POSTHASTE_DIRECT__{key}");
            let error = from_env(&[(&variable, value)]).expect_err(value).to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
