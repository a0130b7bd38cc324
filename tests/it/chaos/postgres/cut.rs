//! Connections break at each byte of a commit and of its answer.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use super::{Stage, Told};
use crate::chaos::{sized, tell};
use crate::support::bounded;
use crate::support::postgres::PostgresServer;
use crate::support::proxy::{ANSWER, COMMIT, Cut};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_cut_at_any_byte_is_a_duplicate_or_new_when_it_comes_again() {
    // holds: 17
    bounded(at_each_byte()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_cut_at_random_bytes_under_traffic_lose_and_double_nothing() {
    // holds: 17
    bounded(at_random()).await;
}

async fn at_each_byte() {
    let server = PostgresServer::start(&[]).await;
    // What was stored without our knowledge is claimed by nobody until its lease ends.
    let stage = Stage::with_timeout(&server, 150).await;
    let every = sized(2, 1);
    let (of_commit, of_answer) = ((0..COMMIT.len()).step_by(every), (0..ANSWER.len()).step_by(every));
    let cuts: Vec<_> = of_commit.map(Cut::Commit).chain(of_answer.map(Cut::Answer)).collect();
    let (mut all, mut elsewhere) = (Told::default(), 0);
    for (number, cut) in cuts.iter().enumerate() {
        // Nothing is left to commit but this batch.
        stage.ready().await;
        stage.relay.settled().await;
        let before = stage.proxy.cuts_made();
        stage.proxy.cut_next(*cut);
        let ids: Vec<_> = (0..5).map(|item| format!("{number}-{item}")).collect();
        let mut told = Told::default();
        told.send(&stage.relay, &ids).await;
        assert!(stage.proxy.cuts_made() > before, "{cut:?} was made");
        // What the ledger writes on the side commits, too, and may have met the cut instead.
        let met = told.refused > 0;
        elsewhere += usize::from(!met);
        match cut {
            Cut::Commit(_) if met => assert_eq!((told.were_not, told.were_stored), (1, 0), "{cut:?}"),
            Cut::Answer(_) if met => assert_eq!((told.were_not, told.were_stored), (0, 1), "{cut:?}"),
            _ => {}
        }
        all.extend(told);
    }
    assert!(elsewhere <= 3, "{elsewhere} cuts met something else");
    assert!(all.were_not > 0 && all.were_stored > 0);
    let again = stage.reconcile(&server, &all).await;
    tell(
        "connection cut at each byte of COMMIT and of its answer",
        format!(
            "{} bytes: {} batches had not been stored and were new when they came again, {} had been and were duplicates, {} \
             cuts met another commit; {} events there and delivered once ({again} sent again under the same key)",
            cuts.len(),
            all.were_not,
            all.were_stored,
            elsewhere,
            all.acknowledged.len(),
        ),
    );
}

async fn at_random() {
    let server = PostgresServer::start(&[]).await;
    let stage = Stage::on(&server).await;
    let seed = RandomState::new().hash_one("a seed");
    println!("seed: {seed}");
    let (mut state, mut cuts) = (seed | 1, 0);
    let producers = stage.producers();
    let until = Instant::now() + sized(Duration::from_secs(4), Duration::from_secs(60));
    while Instant::now() < until {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = usize::try_from(state % (COMMIT.len() + ANSWER.len()) as u64).expect("small");
        stage.proxy.cut_next(match at.checked_sub(COMMIT.len()) {
            None => Cut::Commit(at),
            Some(at) => Cut::Answer(at),
        });
        cuts += 1;
        tokio::time::sleep(Duration::from_millis(50 + state % 150)).await;
    }
    let told = producers.stop().await;
    let made = stage.proxy.cuts_made();
    assert!(made >= cuts / 2 && told.refused > 0, "{made} of {cuts} cuts");
    let again = stage.reconcile(&server, &told).await;
    tell(
        "connections cut at random under traffic",
        format!(
            "{made} commits cut: {} events acknowledged, all there and delivered once ({again} sent again under the same key); \
             {} answers 503; of the batches refused, {} had been stored and came back as duplicates, {} had not",
            told.acknowledged.len(),
            told.refused,
            told.were_stored,
            told.were_not,
        ),
    );
}
