//! Named places where a test makes the process end itself the hard way, as a kill at that very moment would.
//!
//! Only with the feature `failpoints`, which is for tests: it is off by default, and no release has it. Without it a
//! [`failpoint!`] is nothing at all. With it, `POSTHASTE_FAILPOINT=name[:nth[:after_us]]` names the one place that ends
//! the process, at which pass (the first where none is said), and how many microseconds after it: what goes on there
//! meanwhile is then cut off in the middle.

/// Passes a place by its name; with a condition, only where that is true.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::pass($name)
    };
    ($name:literal, $condition:expr) => {
        if $condition {
            $crate::failpoint::pass($name)
        }
    };
}

/// Without the feature: nothing.
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($($anything:tt)*) => {};
}

pub(crate) use failpoint;

/// How many milliseconds the wall clock is off: always none without the feature.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn clock_offset_ms() -> i64 {
    0
}

#[cfg(feature = "failpoints")]
pub(crate) use wrong_clock::clock_offset_ms;

/// A wall clock that tests can set wrong: `POSTHASTE_TEST_CLOCK_OFFSET` is a number of milliseconds, or the path of a file
/// that holds one, which may change while the process runs.
#[cfg(feature = "failpoints")]
mod wrong_clock {
    use std::sync::LazyLock;

    const VARIABLE: &str = "POSTHASTE_TEST_CLOCK_OFFSET";

    enum Offset {
        Fixed(i64),
        InFile(String),
    }

    static OFFSET: LazyLock<Option<Offset>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        Some(text.parse().map_or(Offset::InFile(text), Offset::Fixed))
    });

    /// The offset of this moment. A file that is missing or holds no number is an offset of zero.
    pub(crate) fn clock_offset_ms() -> i64 {
        match &*OFFSET {
            None => 0,
            Some(Offset::Fixed(millis)) => *millis,
            Some(Offset::InFile(path)) => std::fs::read_to_string(path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_default(),
        }
    }
}

#[cfg(feature = "failpoints")]
pub(crate) use armed::pass;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    const VARIABLE: &str = "POSTHASTE_FAILPOINT";

    /// The one place that ends this process.
    struct Armed {
        name: String,
        nth: u64,
        after: Duration,
        passes: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        Some(parse(&text).unwrap_or_else(|| panic!("{VARIABLE}: `{text}` is not name[:nth[:after_us]]")))
    });

    fn parse(text: &str) -> Option<Armed> {
        let mut parts = text.split(':');
        let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let mut number = |default| parts.next().map_or(Some(default), |part| part.parse().ok());
        let (nth, after) = (number(1)?, Duration::from_micros(number(0)?));
        parts.next().is_none().then_some(Armed { name, nth, after, passes: AtomicU64::new(0) })
    }

    /// Ends the process where this is the place, and its turn.
    pub fn pass(name: &str) {
        let Some(armed) = ARMED.as_ref().filter(|armed| armed.name == name) else { return };
        if armed.passes.fetch_add(1, Ordering::SeqCst) + 1 != armed.nth {
            return;
        }
        if armed.after.is_zero() {
            end();
        }
        std::thread::spawn(|| {
            std::thread::sleep(armed.after);
            end();
        });
    }

    /// No destructor, no handler and no buffer has a say.
    fn end() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_has_a_name_a_turn_and_a_wait() {
            let of = |text: &str| parse(text).map(|armed| (armed.name, armed.nth, armed.after.as_micros()));
            assert_eq!(of("sent"), Some(("sent".to_owned(), 1, 0)));
            assert_eq!(of("sent:7:250"), Some(("sent".to_owned(), 7, 250)));
            for text in ["", ":1", "sent:x", "sent:1:2:3"] {
                assert_eq!(of(text), None, "{text}");
            }
        }
    }
}
