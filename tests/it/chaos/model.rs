//! The ledger against a model of it: any steps in any order, through its public interface, on both databases.
//!
//! What must hold after each step is that deliveries created = waiting + claimed + delivered + dead + canceled, each as
//! many as the model has; of every claim, that it yields what the model says. A case that fails is made as short as it
//! can be while it still fails, and printed.

mod bench;
mod expected;
mod steps;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use self::bench::Bench;
use self::steps::step;
use super::{sized, tell};
use crate::support::TestDatabase;

/// Steps of one case, at most.
const STEPS: usize = 24;
/// Longest that the short form may take: what it has not tried by then it says.
const SHORT_LIMIT: Duration = Duration::from_secs(20);
/// Of which so many cases must be tried, whatever the machine.
const CASES_MIN: u32 = 20;

#[test]
fn sqlite_does_what_the_model_says() {
    // holds: 15
    run("SQLite", sized(150, 10_000), |runtime| runtime.block_on(async { TestDatabase::sqlite() }));
}

#[test]
fn postgres_does_what_the_model_says() {
    // holds: 15
    run("Postgres", sized(60, 10_000), |runtime| runtime.block_on(TestDatabase::postgres()));
}

fn run(name: &str, cases: u32, database: impl FnOnce(&tokio::runtime::Runtime) -> TestDatabase) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let bench = RefCell::new(runtime.block_on(Bench::open(database(&runtime))));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 600, ..Config::default() };
    let began = Instant::now();
    let limit = sized(Some(SHORT_LIMIT), None);
    let is_over =
        |bench: &Bench| bench.cases >= CASES_MIN && limit.is_some_and(|limit| began.elapsed() > limit);
    let tried = TestRunner::new(config).run(&vec(step(), 1..=STEPS), |steps| {
        let mut bench = bench.borrow_mut();
        if bench.failures == 0 && is_over(&bench) {
            return Ok(());
        }
        runtime.block_on(bench.case(&steps)).map_err(TestCaseError::fail)
    });
    let bench = bench.into_inner();
    let (cases, steps) = (bench.cases, bench.steps.clone());
    match tried {
        Ok(()) => {}
        Err(TestError::Fail(reason, steps)) => panic!("{reason}\nafter these steps: {steps:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    runtime.block_on(bench.close());
    assert!(cases >= CASES_MIN && steps.values().all(|count| *count > 0), "{cases} cases, steps {steps:?}");
    tell(
        &format!("state machine ({name})"),
        format!(
            "{cases} cases in {} s, steps by kind {steps:?}, as the model says",
            began.elapsed().as_secs()
        ),
    );
}
