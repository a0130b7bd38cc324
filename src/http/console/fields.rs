//! Fields of forms: what stands in them, read, and what is wrong with it.

use std::str::FromStr;

use super::api::BadField;
use super::words::span;

/// What is wrong with a form.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<BadField>);

impl Faults {
    pub fn new(faults: Vec<BadField>) -> Self {
        Self(faults)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, for the head of the form.
    pub fn all(&self) -> &[BadField] {
        &self.0
    }

    /// Whether the field at this pointer, or below it, is wrong.
    pub fn has(&self, pointer: &str) -> bool {
        self.0.iter().any(|fault| {
            fault.pointer.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// A number, where there is one.
pub(super) fn plain_number<T: FromStr>(text: &str, pointer: &str, faults: &mut Vec<BadField>) -> Option<T> {
    if text.is_empty() {
        return None;
    }
    let number = text.parse().ok();
    if number.is_none() {
        faults.push(BadField {
            pointer: pointer.into(),
            detail: format!("`{text}` is not a number that fits here"),
        });
    }
    number
}

/// Waits as people write them, `5 s, 5 min, 2 h`: in milliseconds.
pub(super) fn waits(text: &str, pointer: &str, faults: &mut Vec<BadField>) -> Vec<u64> {
    let parts = text.split([',', '\n', ';']).map(str::trim).filter(|part| !part.is_empty());
    let mut waits = Vec::new();
    for (index, part) in parts.enumerate() {
        match wait(part) {
            Some(millis) => waits.push(millis),
            None => faults.push(BadField {
                pointer: format!("{pointer}/{index}"),
                detail: format!("`{part}` is not a wait such as 500 ms, 5 s, 30 min, 2 h or 1 d"),
            }),
        }
    }
    waits
}

/// One wait: a whole number and a unit, milliseconds where there is none.
pub(super) fn wait(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let unit = match text[split..].trim() {
        "" | "ms" => 1,
        "s" | "sec" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Waits as [`waits`] reads them, exactly.
pub(super) fn waits_text(waits: &[u64]) -> String {
    waits.iter().map(|millis| exact(*millis)).collect::<Vec<_>>().join(", ")
}

/// A wait in the largest unit that loses nothing.
pub(super) fn exact(millis: u64) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if millis >= unit && millis.is_multiple_of(unit) {
            return format!("{} {name}", millis / unit);
        }
    }
    if millis < 1_000 { span(millis) } else { format!("{millis} ms") }
}

/// Lines or comma-separated words.
pub(super) fn listed(text: &str) -> Vec<String> {
    let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_as_they_are_written() {
        let schedule = [200, 1_500, 5_000, 300_000, 7_200_000, 172_800_000];
        let mut faults = Vec::new();
        assert_eq!(waits(&waits_text(&schedule), "/w", &mut faults), schedule);
        assert!(faults.is_empty());
        assert_eq!(waits("5 s, soon", "/w", &mut faults), [5_000]);
        assert_eq!(faults[0].pointer, "/w/1");
    }
}
