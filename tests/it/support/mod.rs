//! What the tests stand on: a clock that can be set, a database of their own, events and lanes.

pub mod brokers;
pub mod browser;
mod clock;
mod database;
mod events;
pub mod http;
pub mod metrics;
pub mod partners;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
mod relay;
pub mod rude;
pub mod sink;
pub mod visitor;

use std::time::Duration;

pub use self::clock::TestClock;
pub use self::database::TestDatabase;
pub use self::events::{event, svix};
pub use self::http::{Answer, HttpClient};
pub use self::relay::{RelayProcess, TOKEN, TestRelay, config, mock_svix};

/// Longest that one test may take, and one in its long form.
const TEST_LIMIT: Duration = Duration::from_secs(120);
const LONG_TEST_LIMIT: Duration = Duration::from_secs(3_600);
/// Longest that a test waits for one thing to become true, and how often it looks.
const WAIT_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs a test, and fails it where it takes too long.
pub async fn bounded<T>(test: impl Future<Output = T>) -> T {
    let limit = crate::chaos::sized(TEST_LIMIT, LONG_TEST_LIMIT);
    tokio::time::timeout(limit, test).await.expect("the test took too long")
}

/// Waits until `look` finds what it looks for; panics with `what` where that takes too long.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(WAIT_LIMIT, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Runs futures side by side, each a task of its own; their results in order.
pub async fn side_by_side<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await.expect("a task panicked"));
    }
    results
}

/// Lists tests once for each database: `sqlite::name` and `postgres::name`.
#[macro_export]
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = $crate::support::TestDatabase::sqlite();
                $crate::support::bounded(super::$name(database)).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = $crate::support::TestDatabase::postgres().await;
                $crate::support::bounded(super::$name(database)).await;
            })+
        }
    };
}
