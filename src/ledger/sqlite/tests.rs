//! How SQLite means to run the hot statements.

use super::super::sql::BUSY_LANES;
use super::*;

async fn plan(statement: &str) -> String {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("a database");
    let (_, _, schema) = MIGRATIONS[0];
    sqlx::raw_sql(schema).execute(&mut connection).await.expect("the schema");
    let explain = format!("EXPLAIN QUERY PLAN {statement}");
    let steps: Vec<(i64, i64, i64, String)> =
        sqlx::query_as(AssertSqlSafe(explain)).fetch_all(&mut connection).await.expect("a plan");
    steps.into_iter().map(|(.., step)| step + "\n").collect()
}

#[tokio::test]
async fn a_claim_reads_on_from_its_place_in_the_lane() {
    let plan = plan(WAITING).await;
    assert!(plan.contains("SEARCH queue USING PRIMARY KEY (lane=? AND (due_at,event)>(?,?))"), "{plan}");
    assert!(plan.contains("SEARCH event USING INTEGER PRIMARY KEY"), "{plan}");
    assert!(!plan.contains("B-TREE") && !plan.contains("SCAN"), "{plan}");
}

#[tokio::test]
async fn what_is_settled_is_found_by_its_key() {
    for size in CHUNKS {
        let plan = plan(&statement(TAKE_OUT, size)).await;
        let search = "SEARCH queue USING PRIMARY KEY (lane=? AND due_at=? AND event=?)";
        assert!(plan.contains(search) && !plan.contains("SCAN queue"), "{size}: {plan}");
    }
}

#[tokio::test]
async fn busy_lanes_are_found_one_by_one() {
    let plan = plan(BUSY_LANES).await;
    for search in ["(lane>?)", "(lane=?)"] {
        assert!(plan.contains(&format!("SEARCH queue USING PRIMARY KEY {search}")), "{plan}");
    }
    assert!(!plan.contains("SCAN queue"), "{plan}");
}
