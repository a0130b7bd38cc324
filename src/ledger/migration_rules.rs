//! What a migration may not do to a ledger that is in use.

/// Tables that grow with the events.
const LARGE: [&str; 6] = ["event", "event_key", "queue", "outcome", "attempt_log", "earlier_outcome"];
/// The last migration that was written before the rule.
const BEFORE_THE_RULE: i64 = 11;

/// The tables on which a migration builds an index that an operator can't have built before.
fn locked_tables(text: &str) -> Vec<&str> {
    let statements = text.split(';').map(str::trim);
    let indexes =
        statements.filter(|statement| statement.contains("CREATE") && statement.contains(" INDEX "));
    let locking = indexes.filter(|statement| !statement.contains(" INDEX IF NOT EXISTS "));
    let tables = locking.filter_map(|statement| statement.split_once(" ON ")?.1.split([' ', '(']).next());
    let new = |table: &&str| text.contains(&format!("CREATE TABLE {table} ("));
    tables.filter(|table| LARGE.contains(table) && !new(table)).collect()
}

#[test]
fn no_migration_builds_an_index_that_an_operator_cannot_build_before() {
    let migrations = super::postgres::MIGRATIONS.iter().filter(|(number, ..)| *number > BEFORE_THE_RULE);
    for (number, name, text) in migrations {
        assert_eq!(locked_tables(text), Vec::<&str>::new(), "{number} {name}: see `Migrations`");
    }
    let ninth = super::postgres::MIGRATIONS.iter().find(|(number, ..)| *number == 9).expect("it is there");
    assert_eq!(locked_tables(ninth.2), ["event"], "the test finds what it looks for");
}
