//! The metrics as a scraper reads them: OpenMetrics 1.0 text, written by Prometheus' own client library.
//!
//! Counting is ours, because its histograms take a lock for every value and its families one for every label; what is
//! told is put together when somebody asks.

use std::fmt;
use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{ALL, Family};

/// The media type of what is written.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A histogram's sum, count, and upper bounds with what fell in each alone; the last bound is infinite.
pub type Histogram = (f64, u64, Vec<(f64, u64)>);

/// Series of this moment.
#[derive(Debug, Default)]
pub struct Page {
    series: Vec<(&'static str, Vec<String>, Value)>,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    CountSeconds(f64),
    Gauge(f64),
    Histogram(Histogram),
}

impl Page {
    /// Adds a counter of whole things.
    pub fn count(&mut self, family: &Family, labels: &[&str], value: u64) {
        self.add(family, labels, Value::Count(value));
    }

    /// Adds a counter of time.
    pub fn seconds(&mut self, family: &Family, labels: &[&str], value: f64) {
        self.add(family, labels, Value::CountSeconds(value));
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, family: &Family, labels: &[&str], value: f64) {
        self.add(family, labels, Value::Gauge(value));
    }

    /// Adds a gauge of whole things.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    pub fn number(&mut self, family: &Family, labels: &[&str], value: u64) {
        self.gauge(family, labels, value as f64);
    }

    /// Adds a gauge for each of `states`: 1 for the one that `is` it.
    pub fn state(&mut self, family: &Family, labels: &[&str], states: &[&'static str], is: &str) {
        for state in states {
            let labels: Vec<&str> = labels.iter().copied().chain([*state]).collect();
            self.number(family, &labels, u64::from(*state == is));
        }
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, family: &Family, labels: &[&str], value: Histogram) {
        self.add(family, labels, Value::Histogram(value));
    }

    fn add(&mut self, family: &Family, labels: &[&str], value: Value) {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        self.series.push((family.name, labels.iter().map(|label| (*label).to_owned()).collect(), value));
    }

    /// All of it as text.
    pub fn write(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Whole(Mutex::new(self))));
        let mut text = String::new();
        // Writing into a text does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// A page as the library wants it: it asks once.
#[derive(Debug)]
struct Whole(Mutex<Page>);

impl Collector for Whole {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let page = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for family in ALL {
            let mut series = page.series.iter().filter(|(name, ..)| *name == family.name).peekable();
            if series.peek().is_none() {
                continue;
            }
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (_, values, value) in series {
                if family.labels.is_empty() {
                    value.encode(metric)?;
                    // A family without labels has one series.
                    break;
                }
                let labels: Vec<(&str, &str)> =
                    family.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                value.encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        type NoLabels = Vec<(&'static str, &'static str)>;
        match self {
            Self::Count(value) => encoder.encode_counter::<NoLabels, _, u64>(value, None),
            Self::CountSeconds(value) => encoder.encode_counter::<NoLabels, _, f64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Histogram((sum, count, buckets)) => {
                encoder.encode_histogram::<NoLabels>(*sum, *count, buckets, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Count(_) | Self::CountSeconds(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }
}
