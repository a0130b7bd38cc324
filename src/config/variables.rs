//! Variables of the environment as settings.

use figment::value::{Dict, Num, Value};

use super::ConfigError;
use super::redact::shown;

const PREFIX: &str = "POSTHASTE_";
/// Variables with the prefix that are not settings of the server: those of the command line, and where its tests find
/// Postgres and pgbouncer.
const NOT_SETTINGS: &[&str] = &[
    "POSTHASTE_CONFIG",
    "POSTHASTE_URL",
    "POSTHASTE_API_KEY",
    "POSTHASTE_TEST_POSTGRES_URL",
    "POSTHASTE_TEST_PGBOUNCER",
];

/// What a variable is to the configuration.
pub(super) enum Variable {
    /// Nothing.
    Foreign,
    /// It has our prefix and names no setting.
    Unknown,
    /// A setting, as nested dictionaries.
    Setting(Dict),
}

/// Reads one variable; `defaults` are all the settings there are.
///
/// # Errors
/// Its text is not of the kind that its setting's default is.
pub(super) fn read(name: &str, text: &str, defaults: &Value) -> Result<Variable, ConfigError> {
    let Some(key) = name.strip_prefix(PREFIX).filter(|_| !NOT_SETTINGS.contains(&name)) else {
        return Ok(Variable::Foreign);
    };
    let path = key.to_lowercase().replace("__", ".");
    let Some(default) = known(defaults, &path) else { return Ok(Variable::Unknown) };
    let value = typed(default, text)
        .map_err(|wanted| ConfigError(format!("{name}: `{}` is not {wanted}", shown(&path, text))))?;
    let mut nested = Dict::new();
    nest(&mut nested, &path, value);
    Ok(Variable::Setting(nested))
}

/// The default at `path`, which also tells its type; `None` where there is no such setting.
fn known<'a>(defaults: &'a Value, path: &str) -> Option<&'a Value> {
    defaults.find_ref(path).filter(|value| !matches!(value, Value::Dict(..)))
}

/// A variable's text as the kind of value that its default is. Settings that default to nothing are text.
fn typed(default: &Value, text: &str) -> Result<Value, &'static str> {
    match default {
        Value::Bool(..) => text.parse::<bool>().map(Value::from).map_err(|_| "true or false"),
        Value::Num(_, Num::U64(_) | Num::USize(_) | Num::U32(_) | Num::U16(_)) => {
            text.parse::<u64>().map(Value::from).map_err(|_| "a whole number")
        }
        Value::Array(_, items) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let like = items.first().cloned().unwrap_or_else(|| Value::from(String::new()));
            parts.map(|part| typed(&like, part)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        _ => Ok(Value::from(text)),
    }
}

/// Puts `value` into nested dictionaries at `path`.
fn nest(dict: &mut Dict, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            dict.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let mut inner = Dict::new();
            nest(&mut inner, rest, value);
            dict.insert(head.to_owned(), Value::from(inner));
        }
    }
}
