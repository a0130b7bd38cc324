//! The promises that `fuzz/` looks for breaches of, on its seeds and on what becomes of them when they are cut and
//! joined: the checks compile and hold in every run. `scripts/fuzz` goes on from there, for as long as one likes.

use std::path::Path;

use super::{sized, tell};

#[path = "../../../fuzz/src/lib.rs"]
mod checks;

/// Most bytes that are joined from two seeds.
const JOINED_LIMIT_BYTES: usize = 4_096;

#[test]
fn whatever_comes_in_is_an_event_or_told_why_not() {
    try_all("ingest", checks::ingest::check);
}

#[test]
fn any_retry_after_is_a_bounded_wait_or_none() {
    // holds: 25
    try_all("retry_after", checks::retry_after::check);
}

#[test]
fn any_transform_keeps_digits_and_makes_json_or_says_why_not() {
    try_all("transform", checks::transform::check);
}

#[test]
fn no_spelling_leads_to_a_forbidden_address() {
    // holds: 42
    try_all("address", checks::address::check);
}

#[test]
fn what_is_signed_is_verified_by_others_and_nothing_else_is() {
    // holds: 44, 45
    try_all("signature", checks::signature::check);
}

/// Every seed, every beginning of one, and pieces of two.
fn try_all(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = std::fs::read_dir(&folder).expect("a folder of seeds").map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(seeds.len() >= 10, "{} has {} seeds", folder.display(), seeds.len());
    let mut tried = 0;
    let mut tried_one = |input: &[u8]| {
        // A breach is told with its input; the check's own words come before.
        let held = std::panic::catch_unwind(|| check(input)).is_ok();
        assert!(held, "{target}: {:?}", String::from_utf8_lossy(input));
        tried += 1;
    };
    for seed in &seeds {
        (0..=seed.len()).for_each(|end| tried_one(&seed[..end]));
    }
    let mut state: u64 = 1;
    let mut below = |limit: usize| {
        // Knuth's MMIX; its high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % limit
    };
    for _ in 0..sized(2_000, 200_000) {
        let (one, other) = (&seeds[below(seeds.len())], &seeds[below(seeds.len())]);
        let mut input = [&one[..below(one.len() + 1)], &other[below(other.len() + 1)..]].concat();
        input.truncate(JOINED_LIMIT_BYTES);
        if let Some(at) = input.len().checked_sub(1) {
            input[below(at + 1)] ^= 1 << below(8);
        }
        tried_one(&input);
    }
    tell(target, format!("{} seeds, {tried} inputs, no breach", seeds.len()));
}
