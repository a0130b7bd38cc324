//! Past one Postgres: tenants spread over several ledgers. How even that is, and who moves when a ledger joins.

use super::random::Random;

const TENANTS: usize = 10_000;
const LEDGERS: [usize; 4] = [2, 4, 8, 16];
/// A tenant with more of the load than this has its place written down.
const BIG: f64 = 0.001;

/// Loads by Zipf's law with exponent 1, as shares of the whole; the largest first.
fn zipf() -> Vec<f64> {
    let loads = (1..=u32::try_from(TENANTS).expect("small")).map(|rank| 1.0 / f64::from(rank));
    let loads: Vec<_> = loads.collect();
    let all: f64 = loads.iter().sum();
    loads.into_iter().map(|load| load / all).collect()
}

fn hash(tenant: usize, salt: usize) -> f64 {
    let seed = (tenant as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (salt as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    let mut random = Random::new(seed);
    random.chance();
    random.chance()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
fn by_modulus(ledgers: usize) -> Vec<usize> {
    let number = |tenant| (hash(tenant, 0) * 1e9) as usize % ledgers;
    (0..TENANTS).map(number).collect()
}

/// Highest random weight (Thaler and Ravishankar, 1998).
fn rendezvous(tenant: usize, ledgers: usize) -> usize {
    let weight = |ledger: &usize| hash(tenant, ledger + 1);
    (0..ledgers).max_by(|one, other| weight(one).total_cmp(&weight(other))).expect("at least one")
}

fn by_rendezvous(ledgers: usize) -> Vec<usize> {
    (0..TENANTS).map(|tenant| rendezvous(tenant, ledgers)).collect()
}

/// Big ones first, the biggest at first, where the least load is; who has a place keeps it where there is room for him.
/// Small ones by rendezvous, each ledger weighted by what room the big ones leave (Schindelhauer and Schomaker, 2005).
#[expect(clippy::cast_precision_loss, reason = "small")]
fn big_ones_apart(loads: &[f64], ledgers: usize, before: Option<&[usize]>) -> Vec<usize> {
    let mean = 1.0 / ledgers as f64;
    // Big ones keep their places as far as these hold an even share of them, so that small ones can keep theirs.
    let share = loads.iter().filter(|load| **load > BIG).sum::<f64>() * mean;
    let mut sums = vec![0.0; ledgers];
    let mut place_one = |tenant: usize| {
        let load = loads[tenant];
        if load <= BIG {
            let score = |ledger: &usize| (mean - sums[*ledger]).max(0.0) / -hash(tenant, ledger + 1).ln();
            let best = |one: &usize, other: &usize| score(one).total_cmp(&score(other));
            return (0..ledgers).max_by(best).expect("at least one");
        }
        let least = (0..ledgers).min_by(|one, other| sums[*one].total_cmp(&sums[*other]));
        let kept = before
            .map(|before| before[tenant])
            .filter(|kept| sums[*kept] == 0.0 || sums[*kept] + load <= share);
        let place = kept.or(least).expect("at least one");
        sums[place] += load;
        place
    };
    (0..TENANTS).map(&mut place_one).collect()
}

/// The fullest ledger's load over the mean.
#[expect(clippy::cast_precision_loss, reason = "small")]
fn imbalance(loads: &[f64], places: &[usize], ledgers: usize) -> f64 {
    let mut sums = vec![0.0; ledgers];
    for (load, place) in loads.iter().zip(places) {
        sums[*place] += load;
    }
    sums.into_iter().fold(0.0, f64::max) * ledgers as f64
}

/// Shares of tenants, and of load, that move.
#[expect(clippy::cast_precision_loss, reason = "small")]
fn moved(loads: &[f64], before: &[usize], after: &[usize]) -> (f64, f64) {
    let moving = || (0..TENANTS).filter(|tenant| before[*tenant] != after[*tenant]);
    (moving().count() as f64 / TENANTS as f64, moving().map(|tenant| loads[tenant]).sum())
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "small")]
fn tenants_over_several_ledgers() {
    let loads = zipf();
    let big = loads.iter().filter(|load| **load > BIG).count();
    println!("{TENANTS} tenants by Zipf's law, the largest has {:.3} of the load, {big} are big", loads[0]);
    println!(
        "K: max/mean, tenants and load moved when K grows by one, max/mean then: modulus | rendezvous | big ones apart"
    );
    for ledgers in LEDGERS {
        let plain = [by_modulus(ledgers), by_modulus(ledgers + 1)];
        let ranked = [by_rendezvous(ledgers), by_rendezvous(ledgers + 1)];
        let apart = big_ones_apart(&loads, ledgers, None);
        let apart = [apart.clone(), big_ones_apart(&loads, ledgers + 1, Some(&apart))];
        let [plain, ranked, apart] = [plain, ranked, apart].map(|[before, after]| {
            let (tenants, load) = moved(&loads, &before, &after);
            (imbalance(&loads, &before, ledgers), tenants, load, imbalance(&loads, &after, ledgers + 1))
        });
        println!("{ledgers}: {plain:.3?} | {ranked:.3?} | {apart:.3?}");
        let fair = 1.0 / (ledgers as f64 + 1.0);
        assert!(plain.1 > 0.9 * (1.0 - fair), "a modulus moves nearly everybody: {plain:?}");
        assert!((ranked.1 - fair).abs() < 0.02, "rendezvous moves a fair share: {ranked:?}");
        assert!(apart.1 < 2.5 * fair, "few move with big ones apart: {apart:?}");
        // No ledger can hold less than its biggest tenant.
        let best = (loads[0] * ledgers as f64).max(1.0);
        assert!(apart.0 < best * 1.15, "even, as far as it can be: {apart:?}, {best} at best");
        assert!(apart.0 < ranked.0, "{apart:?}, {ranked:?}");
    }
}
