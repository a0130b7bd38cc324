//! A SQLite file: who owns it, and what it must be.

use posthaste::ledger::{LedgerError, LedgerOptions, lock_holder};

use super::{close, fill, open_with_lane};
use crate::support::{TestClock, TestDatabase, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_owner_is_refused_and_told_of_the_first() {
    let (database, clock) = (TestDatabase::sqlite(), TestClock::new());
    let first = database.open(&clock).await;
    let link = database.file().with_file_name("link.db");
    std::os::unix::fs::symlink(database.file(), &link).expect("a link");
    let by_link = LedgerOptions { url: format!("sqlite:{}", link.display()), ..database.options() };
    assert_eq!(lock_holder(database.url()), None, "it has no address yet");
    for address in ["127.0.0.1:8080", "[::1]:9"] {
        first.announce(address).await.expect("left");
        assert_eq!(lock_holder(database.url()).as_deref(), Some(address));
        for options in [&database.options(), &by_link] {
            let refused = database.open_with(options, &clock).await.err().expect("refused");
            assert!(matches!(refused, LedgerError::Refused(_)), "{refused:?}");
            let words = refused.to_string();
            let file = options.url.strip_prefix("sqlite:").expect("a file");
            assert!(words.contains(file) && words.contains(address), "{words}");
        }
    }
    // Closed, it is free, whoever still holds on to it.
    let clone = first.clone();
    close(first).await;
    assert_eq!(lock_holder(database.url()), None);
    let second = database.open(&clock).await;
    assert!(clone.database().revision().await.is_err());
    assert_eq!(lock_holder(database.url()), None, "the address of the first is not the second's");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_file_will_do() {
    let database = TestDatabase::sqlite();
    let in_memory = format!("{}?mode=memory", database.url());
    for url in
        ["sqlite::memory:", "sqlite://:memory:", "sqlite:", "sqlite://", "sqlite:?mode=rwc", &in_memory]
    {
        let options = LedgerOptions { url: url.into(), ..database.options() };
        let refused = database.open_with(&options, &TestClock::new()).await.err();
        let Some(LedgerError::Refused(words)) = refused else { panic!("{url}: {refused:?}") };
        assert!(words.contains("name a file"), "{url}: {words}");
    }
    assert!(!database.file().exists());
    let missing = database.file().join("no such directory").join("ledger.db");
    let options = LedgerOptions { url: format!("sqlite:{}", missing.display()), ..database.options() };
    let error = database.open_with(&options, &TestClock::new()).await.err().expect("not opened");
    assert!(error.to_string().contains(&*missing.to_string_lossy()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_ledger_is_one_file() {
    let (database, clock) = (TestDatabase::sqlite(), TestClock::new());
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 500).await;
    assert_eq!(database.text("PRAGMA journal_mode").await, "wal");
    close(ledger).await;
    let mut wal = database.file().into_os_string();
    wal.push("-wal");
    // A connection that ends on a thread of its own may be the last.
    eventually("the WAL is folded into the file", async || {
        std::fs::metadata(&wal).map_or(0, |wal| wal.len()).eq(&0).then_some(())
    })
    .await;
    assert_eq!(database.text("PRAGMA integrity_check").await, "ok");
    assert_eq!(database.text("SELECT CAST(COUNT(*) AS TEXT) FROM queue").await, "500");
}
