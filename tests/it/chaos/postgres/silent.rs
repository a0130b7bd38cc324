//! The network goes silent: nothing comes through, and nobody is told.

use std::time::{Duration, Instant};

use super::{Stage, Told, assert_refused, body};
use crate::chaos::tell;
use crate::support::bounded;
use crate::support::postgres::PostgresServer;

/// Longest until a request is refused: ten seconds for the answer that does not come, five for another connection, and some
/// more.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// From then on, nobody waits.
const THEN_WITHIN: Duration = Duration::from_secs(1);
/// How long the relay is looked at after that.
const LOOK: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_no_hang_and_no_loss() {
    // holds: 17
    bounded(run()).await;
}

async fn run() {
    let server = PostgresServer::start(&[]).await;
    let stage = Stage::on(&server).await;
    let producers = stage.producers();
    tokio::time::sleep(Duration::from_millis(700)).await;
    stage.proxy.set_silent(true);
    let began = Instant::now();
    while stage.relay.get("/health/ready").await.status == 200 {
        assert!(began.elapsed() < TOLD_WITHIN, "the silence is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let noticed = began.elapsed();
    let (until, mut looks) = (Instant::now() + LOOK, 0);
    while Instant::now() < until {
        let asked = Instant::now();
        assert_refused(&stage.relay.post(body(&["never".into()], 10)).await);
        assert_eq!(stage.relay.get("/health/ready").await.status, 503);
        assert!(asked.elapsed() < THEN_WITHIN, "{:?}", asked.elapsed());
        looks += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.proxy.set_silent(false);
    let back = Instant::now();
    stage.ready().await;
    let back_after = back.elapsed();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut told: Told = producers.stop().await;
    assert!(told.refused > 0 && told.slowest < TOLD_WITHIN, "{:?}", told.slowest);
    told.send(&stage.relay, &["never".into()]).await;
    let again = stage.reconcile(&server, &told).await;
    tell(
        "Postgres silent",
        format!(
            "noticed after {} ms, the slowest request was answered after {} ms; then {looks} looks, each refused at once; ready \
             {} ms after it was heard again; {} events acknowledged, all there and delivered once ({again} sent again under \
             the same key), {} batches had been stored, {} had not",
            noticed.as_millis(),
            told.slowest.as_millis(),
            back_after.as_millis(),
            told.acknowledged.len(),
            told.were_stored,
            told.were_not,
        ),
    );
}
