//! Reading settings from JSON, member by member, so that every fault is told at once and with its place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::parse::pointer;

/// What is wrong with settings, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SettingFault {
    /// JSON Pointer (RFC 6901) into what was given; empty for the whole.
    pub pointer: String,
    /// What is wrong. Never a value: it may be a secret.
    pub detail: String,
}

/// A value, or all that is wrong with it; pointers are relative to it, and a detail without one goes on after its name.
pub(super) type Checked<T> = Result<T, Vec<SettingFault>>;

/// One fault of the value itself; `why` goes on after its name.
pub(super) fn wrong<T>(why: impl Into<String>) -> Checked<T> {
    Err(vec![SettingFault { pointer: String::new(), detail: why.into() }])
}

/// The members of a JSON object as they came: repeated ones and their digits included.
pub(super) struct Members<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Gather;

        impl<'de> Visitor<'de> for Gather {
            type Value = Members<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Gather)
    }
}

/// Settings on their way in.
pub(super) struct Fields<'a> {
    /// What has not been asked for yet.
    given: Vec<(String, &'a RawValue)>,
    faults: Vec<SettingFault>,
}

impl<'a> Fields<'a> {
    /// The members of `json`, which must be an object.
    pub(super) fn read(json: &'a str) -> Checked<Self> {
        match serde_json::from_str::<Members<'a>>(json) {
            Ok(members) => Ok(Self { given: members.0, faults: Vec::new() }),
            Err(error) if error.is_data() => wrong("expected an object"),
            Err(error) => wrong(format!("not JSON: {error}")),
        }
    }

    /// Notes a fault where `name` is not given. Before [`Self::set`], which takes it out.
    pub(super) fn require(&mut self, name: &str) {
        if !self.given.iter().any(|(given, _)| given == name) {
            self.fault(name, "is required");
        }
    }

    /// Puts the member `name` into `place`: `check`ed where it is given, `default` where it is `null` (a fault where
    /// there is none). Where it is absent, or wrong, `place` stays as it is.
    ///
    /// `expected` says what the member must be, e.g. `a whole number`.
    pub(super) fn set<R: Deserialize<'a>, T>(
        &mut self,
        name: &str,
        place: &mut T,
        default: Option<T>,
        expected: &str,
        check: impl FnOnce(R) -> Checked<T>,
    ) {
        let Some(raw) = self.take(name) else { return };
        if raw.get() == "null" {
            match default {
                Some(default) => *place = default,
                None => self.fault(name, "must not be null"),
            }
            return;
        }
        match serde_json::from_str::<R>(raw.get()).map(check) {
            Ok(Ok(value)) => *place = value,
            Ok(Err(faults)) => faults.into_iter().for_each(|fault| self.inner_fault(name, fault)),
            Err(_) => self.fault(name, &format!("must be {expected}")),
        }
    }

    /// Notes a fault of the member `name`; `why` goes on after its name.
    pub(super) fn fault(&mut self, name: &str, why: &str) {
        self.inner_fault(name, SettingFault { pointer: String::new(), detail: why.to_owned() });
    }

    /// Ends: whatever was not asked for is no setting.
    pub(super) fn finish(mut self) -> Checked<()> {
        for (name, _) in std::mem::take(&mut self.given) {
            self.fault(&name, "is not a setting");
        }
        if self.faults.is_empty() { Ok(()) } else { Err(self.faults) }
    }

    /// The member `name`, taken out; two of them are a fault, since two readers would see two settings.
    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let found: Vec<_> = self.given.extract_if(.., |(given, _)| given == name).collect();
        if found.len() > 1 {
            self.fault(name, "is given more than once");
            return None;
        }
        found.first().map(|(_, raw)| *raw)
    }

    fn inner_fault(&mut self, name: &str, fault: SettingFault) {
        let here = pointer(name);
        self.faults.push(match fault.pointer.as_str() {
            "" => SettingFault { pointer: here, detail: format!("`{name}` {}", fault.detail) },
            inner => SettingFault { pointer: format!("{here}{inner}"), detail: fault.detail },
        });
    }
}
