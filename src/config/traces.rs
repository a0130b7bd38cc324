//! `[traces]`, and the variables that all of OpenTelemetry's exporters know.

use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::ingest::number;
use super::is_http_url;

/// Where a collector takes traces, below its base URL (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
const TIMEOUT: Duration = Duration::from_secs(10);

/// `[traces]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// Base URL of a collector that takes OTLP over HTTP, e.g. `http://127.0.0.1:4318`. Without one (and without
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`) no span is recorded.
    pub otlp_endpoint: Option<String>,
    /// Share of the events that bring no trace for which one begins here, 0 to 1; 1 by default. Those that bring one are
    /// recorded where their producer has recorded them.
    #[serde(deserialize_with = "number")]
    pub sample_ratio: Option<f64>,
    /// The trace goes on to receivers: `traceparent` and `tracestate` on what is posted to them.
    pub forward: bool,
    /// What the environment says in OpenTelemetry's own words.
    #[serde(skip)]
    pub standard: OtelVariables,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: None, forward: true, standard: OtelVariables::default() }
    }
}

/// What the environment says in OpenTelemetry's own words. Our own settings win.
#[derive(Debug, Clone, Default)]
pub struct OtelVariables {
    is_off: bool,
    /// Base URL.
    endpoint: Option<String>,
    /// Whole URL.
    traces_endpoint: Option<String>,
    headers: Vec<(String, SecretString)>,
    timeout: Option<Duration>,
    service_name: Option<String>,
    resource: Vec<(String, String)>,
    sample_ratio: Option<f64>,
}

/// How traces are exported.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// Whole URL.
    pub url: String,
    /// What the collector wants to see.
    pub headers: Vec<(String, SecretString)>,
    /// Time for one request.
    pub timeout: Duration,
    /// What these traces are of: `service.name` first.
    pub resource: Vec<(String, String)>,
    /// Share of the events that bring no trace for which one begins here.
    pub sample_ratio: f64,
}

impl TracesConfig {
    /// How traces are exported; `None` where they are not.
    ///
    /// # Errors
    /// A URL that is none, or a share that is none: one line, naming the key.
    pub fn export(&self) -> Result<Option<ExportSettings>, String> {
        let ratio = self.sample_ratio.or(self.standard.sample_ratio).unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            return Err("traces.sample_ratio must be from 0 to 1".into());
        }
        let below = |base: &String| format!("{}{PATH}", base.trim_end_matches('/'));
        let standard = &self.standard;
        let url = match (&self.otlp_endpoint, &standard.traces_endpoint, &standard.endpoint) {
            (Some(base), ..) => ("traces.otlp_endpoint", below(base)),
            (None, Some(whole), _) => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole.clone()),
            (None, None, Some(base)) => ("OTEL_EXPORTER_OTLP_ENDPOINT", below(base)),
            (None, None, None) => return Ok(None),
        };
        if standard.is_off {
            return Ok(None);
        }
        let (setting, url) = url;
        if !is_http_url(&url) {
            return Err(format!("{setting} must be an http:// or https:// URL"));
        }
        let named = |(name, _): &&(String, String)| name == "service.name";
        let service = standard.service_name.clone();
        let service =
            service.or_else(|| standard.resource.iter().find(named).map(|(_, value)| value.clone()));
        let mut resource = vec![("service.name".to_owned(), service.unwrap_or_else(|| "posthaste".into()))];
        resource.extend(standard.resource.iter().filter(|pair| !named(pair)).cloned());
        Ok(Some(ExportSettings {
            url,
            headers: standard.headers.clone(),
            timeout: standard.timeout.unwrap_or(TIMEOUT),
            resource,
            sample_ratio: ratio,
        }))
    }
}

impl OtelVariables {
    /// Takes a variable over; a warning where it asks for something that is not to be had. What is of no concern to
    /// traces is passed over.
    pub(super) fn take(&mut self, name: &str, text: &str) -> Option<String> {
        // Empty is unset (OpenTelemetry specification, "Parsing empty value").
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        let unknown = |what: &str| Some(format!("{name}: {what}"));
        match name {
            "OTEL_SDK_DISABLED" => self.is_off |= text.eq_ignore_ascii_case("true"),
            "OTEL_TRACES_EXPORTER" => match text {
                "otlp" => {}
                "none" => self.is_off = true,
                _ => return unknown("there is only `otlp` and `none`"),
            },
            "OTEL_EXPORTER_OTLP_ENDPOINT" => self.endpoint = Some(text.to_owned()),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => self.traces_endpoint = Some(text.to_owned()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" | "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
                if text != "http/protobuf" =>
            {
                return unknown("there is only `http/protobuf`");
            }
            "OTEL_EXPORTER_OTLP_HEADERS" | "OTEL_EXPORTER_OTLP_TRACES_HEADERS" => {
                let headers = pairs(text).into_iter().map(|(name, value)| (name, SecretString::from(value)));
                self.headers.extend(headers);
            }
            "OTEL_EXPORTER_OTLP_TIMEOUT" | "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT" => match text.parse() {
                Ok(millis) => self.timeout = Some(Duration::from_millis(millis)),
                Err(_) => return unknown("it is a number of milliseconds"),
            },
            "OTEL_SERVICE_NAME" => self.service_name = Some(text.to_owned()),
            "OTEL_RESOURCE_ATTRIBUTES" => self.resource = pairs(text),
            "OTEL_TRACES_SAMPLER" => match text {
                "always_off" | "parentbased_always_off" => self.sample_ratio = Some(0.0),
                "always_on" | "parentbased_always_on" => self.sample_ratio = Some(1.0),
                "traceidratio" | "parentbased_traceidratio" => {}
                _ => return unknown("there is no such sampler"),
            },
            "OTEL_TRACES_SAMPLER_ARG" => match text.parse::<f64>() {
                // It is of a sampler that says all or nothing; whichever of the two comes first.
                Ok(_) if self.sample_ratio.is_some() => {}
                Ok(ratio) => self.sample_ratio = Some(ratio),
                Err(_) => return unknown("it is a number from 0 to 1"),
            },
            _ => {}
        }
        None
    }
}

/// `name=value,name=value`, percent-encoded (W3C Baggage, which both lists follow).
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), decoded(value.trim()))).collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped =
            digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use secrecy::ExposeSecret as _;

    use crate::config::{Config, Loaded};

    fn load(variables: &[(&str, &str)]) -> Result<Loaded, String> {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(None, owned).map_err(|error| error.to_string())
    }

    #[test]
    fn the_standard_variables_are_honoured_and_ours_win() {
        let loaded = load(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b,x=y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=prod,service.name=other"),
            ("OTEL_SERVICE_NAME", "relay"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_METRICS_EXPORTER", "prometheus"),
        ])
        .unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let mut traces = loaded.config.traces;
        let settings = traces.export().unwrap().expect("on");
        assert_eq!((&*settings.url, settings.sample_ratio), ("http://collector:4318/v1/traces", 0.25));
        assert_eq!(settings.timeout.as_millis(), 500);
        assert_eq!((&*settings.headers[0].0, settings.headers[0].1.expose_secret()), ("api-key", "a b"));
        let resource: Vec<_> = settings.resource.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(resource, [("service.name", "relay"), ("deployment.environment", "prod")]);
        (traces.otlp_endpoint, traces.sample_ratio) = (Some("https://mine".into()), Some(0.5));
        let settings = traces.export().unwrap().expect("on");
        assert_eq!((&*settings.url, settings.sample_ratio), ("https://mine/v1/traces", 0.5));
    }

    #[rstest]
    #[case::nothing(&[], false, 0)]
    #[case::ours(&[("POSTHASTE_TRACES__OTLP_ENDPOINT", "http://c:4318"), ("POSTHASTE_TRACES__SAMPLE_RATIO", "0.1")], true, 0)]
    #[case::whole(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318/traces")], true, 0)]
    #[case::disabled(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_SDK_DISABLED", "TRUE")], false, 0)]
    #[case::no_exporter(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_TRACES_EXPORTER", "none")], false, 0)]
    #[case::other_protocol(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], false, 1)]
    #[case::other_sampler(&[("OTEL_TRACES_SAMPLER", "jaeger_remote")], false, 1)]
    #[case::empty(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], false, 0)]
    fn they_are_off_unless_somebody_asks(
        #[case] variables: &[(&str, &str)],
        #[case] on: bool,
        #[case] warnings: usize,
    ) {
        let loaded = load(variables).unwrap();
        assert_eq!((loaded.config.traces.export().unwrap().is_some(), loaded.warnings.len()), (on, warnings));
    }

    #[rstest]
    #[case(&[("POSTHASTE_TRACES__OTLP_ENDPOINT", "collector:4318")], "traces.otlp_endpoint")]
    #[case(&[("POSTHASTE_TRACES__SAMPLE_RATIO", "2")], "traces.sample_ratio")]
    #[case(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")], "OTEL_EXPORTER_OTLP_ENDPOINT")]
    fn what_can_not_be_is_refused(#[case] variables: &[(&str, &str)], #[case] named: &str) {
        assert!(load(variables).unwrap_err().contains(named));
    }
}
