//! Others hold every connection that the server gives.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};

use super::{Stage, Told, assert_refused, body};
use crate::chaos::tell;
use crate::support::bounded;
use crate::support::postgres::PostgresServer;

const CONNECTIONS: usize = 14;
/// Longest until a request is answered: five seconds for a connection, behind another that waits for one, and some more.
const TOLD_WITHIN: Duration = Duration::from_secs(13);
const REQUESTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_crowded_server_is_no_hang_and_no_loss() {
    // holds: 17
    bounded(run()).await;
}

async fn run() {
    let server =
        PostgresServer::start(&[("max_connections", &CONNECTIONS.to_string()), ("max_wal_senders", "0")])
            .await;
    let stage = Stage::on(&server).await;
    let mut told = Told::default();
    told.send(&stage.relay, &["before".into()]).await;
    let others = take_all(&server, &stage).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        assert_refused(&stage.relay.post(body(&["never".into()], 10)).await);
        slowest = slowest.max(asked.elapsed());
        assert!(slowest < TOLD_WITHIN, "{slowest:?}");
        assert_eq!(stage.relay.get("/health/ready").await.status, 503);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for other in others {
        other.close().await.expect("closed");
    }
    let free = Instant::now();
    stage.ready().await;
    let back_after = free.elapsed();
    told.send(&stage.relay, &["never".into()]).await;
    assert_eq!(told.were_stored, 0, "what was refused was not stored");
    stage.reconcile(&server, &told).await;
    tell(
        "Postgres without a free connection",
        format!(
            "{REQUESTS} requests refused, none later than {} ms; ready {} ms after the others had gone",
            slowest.as_millis(),
            back_after.as_millis(),
        ),
    );
}

/// Holds every connection, those of the relay, too, which lose them.
async fn take_all(server: &PostgresServer, stage: &Stage) -> Vec<PgConnection> {
    let (mut others, until) = (Vec::new(), Instant::now() + Duration::from_secs(20));
    while others.len() < CONNECTIONS {
        assert!(Instant::now() < until, "only {} connections were to be had", others.len());
        match PgConnection::connect(&server.url()).await {
            Ok(connection) => others.push(connection),
            Err(_) => stage.proxy.cut_all(),
        }
    }
    others
}
