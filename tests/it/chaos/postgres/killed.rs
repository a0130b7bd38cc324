//! The server dies while it commits, and comes back.

use std::time::Duration;

use super::Stage;
use crate::chaos::{sized, tell};
use crate::support::bounded;
use crate::support::postgres::PostgresServer;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_outlives_a_server_that_dies() {
    // holds: 17
    bounded(run()).await;
}

async fn run() {
    let rounds = sized(3, 20);
    let mut server = PostgresServer::start(&[]).await;
    let stage = Stage::on(&server).await;
    let producers = stage.producers();
    for round in 0..rounds {
        // At another moment in each.
        tokio::time::sleep(Duration::from_millis(500 + 37 * round)).await;
        if round % 2 == 0 {
            server.kill();
        } else {
            server.stop_at_once();
        }
        producers.refused_once_more().await;
        server.start_again().await;
        stage.ready().await;
    }
    let told = producers.stop().await;
    let again = stage.reconcile(&server, &told).await;
    tell(
        "Postgres killed under load",
        format!(
            "{rounds} times (SIGKILL and immediate shutdown in turn): {} events acknowledged, all there and delivered once \
             ({again} sent again under the same key); {} answers 503, none later than {} ms; of the batches refused, {} had \
             been stored and came back as duplicates, {} had not",
            told.acknowledged.len(),
            told.refused,
            told.slowest.as_millis(),
            told.were_stored,
            told.were_not,
        ),
    );
}
