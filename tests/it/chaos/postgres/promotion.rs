//! The primary dies for good, and its synchronous standby takes its place.

use std::time::Duration;

use super::Stage;
use crate::chaos::tell;
use crate::support::postgres::PostgresServer;
use crate::support::{bounded, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_has_what_was_acknowledged_when_the_primary_is_killed() {
    // holds: 17
    bounded(run()).await;
}

async fn run() {
    let mut primary = PostgresServer::start(&[]).await;
    let standby = PostgresServer::standby_of(&primary, &[]).await;
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'").await;
    primary.execute("SELECT pg_reload_conf()").await;
    eventually("the standby is synchronous", async || {
        let state = primary.try_query("SELECT sync_state FROM pg_stat_replication").await;
        state.is_ok_and(|state| state == "sync").then_some(())
    })
    .await;
    let stage = Stage::on(&primary).await;
    let producers = stage.producers();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    primary.kill();
    producers.refused_once_more().await;
    stage.proxy.lead_to(standby.socket());
    stage.proxy.cut_all();
    standby.promote().await;
    stage.ready().await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let told = producers.stop().await;
    let again = stage.reconcile(&standby, &told).await;
    tell(
        "promotion of a synchronous standby under load",
        format!(
            "{} events acknowledged, before and after, all there and delivered once ({again} sent again under the same key); {} \
             answers 503, none later than {} ms; of the batches refused, {} had been stored and came back as duplicates, {} \
             had not",
            told.acknowledged.len(),
            told.refused,
            told.slowest.as_millis(),
            told.were_stored,
            told.were_not,
        ),
    );
}
