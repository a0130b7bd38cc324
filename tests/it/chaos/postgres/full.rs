//! The disk of the server is full, and has room again.

use std::time::{Duration, Instant};

use super::Stage;
use crate::chaos::disk::room::Room;
use crate::chaos::tell;
use crate::support::bounded;
use crate::support::postgres::PostgresServer;

/// For a new server's files, about 40 MiB, and what it writes.
const DISK: &str = "96m";
/// What is left of it when the producers begin.
const ROOM_BYTES: u64 = 6 << 20;
/// What a file may have where the server has no disk of its own.
const FILE_BYTES: u64 = 2 << 20;
/// How long it is full.
const FULL_FOR: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_disk_is_full_keeps_what_was_acknowledged() {
    // holds: 12, 17
    bounded(run()).await;
}

async fn run() {
    let room = Room::of_a_disk(DISK);
    let wal = [("min_wal_size", "2MB"), ("max_wal_size", "4MB")];
    let mut server = PostgresServer::start_in(room.directory(), &wal).await;
    if !room.is_disk() {
        server.restart_with_limited_files(Some(FILE_BYTES)).await;
    }
    let stage = Stage::on(&server).await;
    room.fill_but(ROOM_BYTES);
    let producers = stage.producers();
    producers.refused_once_more().await;
    tokio::time::sleep(FULL_FOR).await;
    if room.is_disk() {
        room.make(server.pid());
    } else {
        server.restart_with_limited_files(None).await;
    }
    stage.proxy.cut_all();
    // A server that can't write its log ends by itself.
    server.start_again().await;
    let freed = Instant::now();
    stage.ready().await;
    let back_after = freed.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let told = producers.stop().await;
    let again = stage.reconcile(&server, &told).await;
    tell(
        "Postgres with a full disk under load",
        format!(
            "{} events acknowledged, before and after, all there and delivered once ({again} sent again under the same key); {} \
             answers 503, none later than {} ms; ready {} ms after there was room; of the batches refused, {} had been stored \
             and came back as duplicates, {} had not",
            told.acknowledged.len(),
            told.refused,
            told.slowest.as_millis(),
            back_after.as_millis(),
            told.were_stored,
            told.were_not,
        ),
    );
}
