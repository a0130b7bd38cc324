//! When endpoints that must prove themselves are challenged: each by a schedule of its own, a bounded number at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::clock::Moment;

/// Most challenges under way at one time.
pub const CHALLENGES_AT_ONCE: usize = 16;
/// Wait after the first challenge that was not answered; it doubles with each further one.
pub const FIRST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait between two challenges of one endpoint.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3_600);
/// An endpoint that has not answered for so long is challenged no more until it is saved again.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The schedule of all endpoints that have not answered their challenge yet.
#[derive(Debug, Default)]
pub struct Challenges {
    endpoints: HashMap<Arc<str>, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The endpoint's version that is challenged: another one begins anew.
    version: i64,
    failures: u32,
    first: Moment,
    /// When the next challenge is due; `None` while one is under way and after the last one.
    due: Option<Moment>,
    under_way: bool,
}

/// What follows from a challenge that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The next one is sent after this wait.
    Again(Duration),
    /// None is sent until the endpoint is saved again.
    GivenUp,
}

impl Challenges {
    /// Takes over which endpoints are unproven now, each with its version. New ones, and those of a new version, are due
    /// now; all others keep their schedule.
    pub fn update<'a>(&mut self, unproven: impl IntoIterator<Item = (&'a Arc<str>, i64)>, now: Moment) {
        let mut seen = HashSet::new();
        for (id, version) in unproven {
            seen.insert(id.clone());
            let fresh = Entry { version, failures: 0, first: now, due: Some(now), under_way: false };
            match self.endpoints.get_mut(id) {
                Some(entry) if entry.version == version => {}
                // The one under way is of the old version; the new version waits for its end.
                Some(entry) => *entry = Entry { under_way: entry.under_way, ..fresh },
                None => drop(self.endpoints.insert(id.clone(), fresh)),
            }
        }
        // What is under way is kept until it ends, so that no endpoint is challenged twice at a time.
        self.endpoints.retain(|id, entry| {
            let is_unproven = seen.contains(id);
            if !is_unproven {
                entry.due = None;
            }
            is_unproven || entry.under_way
        });
    }

    /// The endpoints to challenge now, with their versions, as far as the bound allows: those that failed least first.
    pub fn start(&mut self, now: Moment) -> Vec<(Arc<str>, i64)> {
        let room = self.room();
        let mut due: Vec<_> = self.endpoints.iter_mut().filter(|(_, entry)| entry.is_due(now)).collect();
        due.sort_by_key(|(_, entry)| (entry.failures, entry.due));
        let started = due.into_iter().take(room).map(|(id, entry)| {
            (entry.due, entry.under_way) = (None, true);
            (id.clone(), entry.version)
        });
        started.collect()
    }

    /// When [`Self::start`] has something to start again; `None` where that takes a change or the end of a challenge.
    pub fn next_due(&self) -> Option<Moment> {
        let waiting = self.endpoints.values().filter(|entry| !entry.under_way);
        (self.room() > 0).then(|| waiting.filter_map(|entry| entry.due).min())?
    }

    /// Notes that the challenge under way of this endpoint was not answered.
    pub fn unanswered(&mut self, id: &str, version: i64, now: Moment) -> Option<Unanswered> {
        let entry = self.endpoints.get_mut(id)?;
        entry.under_way = false;
        if entry.version != version {
            return None;
        }
        entry.failures = entry.failures.saturating_add(1);
        let wait = FIRST_WAIT.saturating_mul(1 << (entry.failures - 1).min(10)).min(LONGEST_WAIT);
        if entry.first.until(now) >= GIVE_UP_AFTER {
            return Some(Unanswered::GivenUp);
        }
        entry.due = Some(now + wait);
        Some(Unanswered::Again(wait))
    }

    /// Notes that the challenge under way of this endpoint was answered.
    pub fn answered(&mut self, id: &str, version: i64) {
        match self.endpoints.get_mut(id) {
            Some(entry) if entry.version != version => entry.under_way = false,
            _ => drop(self.endpoints.remove(id)),
        }
    }

    fn room(&self) -> usize {
        let under_way = self.endpoints.values().filter(|entry| entry.under_way).count();
        CHALLENGES_AT_ONCE.saturating_sub(under_way)
    }
}

impl Entry {
    fn is_due(&self, now: Moment) -> bool {
        !self.under_way && self.due.is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Arc<str> {
        name.into()
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn started(challenges: &mut Challenges, seconds: u64) -> Vec<String> {
        challenges.start(at(seconds)).into_iter().map(|(id, _)| id.to_string()).collect()
    }

    #[test]
    fn each_endpoint_backs_off_for_itself_and_unrelated_changes_start_none() {
        let (mut challenges, slow, good) = (Challenges::default(), id("slow"), id("good"));
        challenges.update([(&slow, 1)], at(0));
        assert_eq!(started(&mut challenges, 0), ["slow"]);
        challenges.update([(&slow, 1), (&good, 2)], at(1));
        assert_eq!(started(&mut challenges, 1), ["good"], "the other is under way");
        challenges.answered("good", 2);
        assert_eq!(challenges.unanswered("slow", 1, at(30)), Some(Unanswered::Again(FIRST_WAIT)));
        for second in 31..71 {
            challenges.update([(&slow, 1)], at(second));
            assert!(started(&mut challenges, second).is_empty());
        }
        assert_eq!(challenges.next_due(), Some(at(90)));
        let mut now = 90;
        for wait in [120, 240, 480, 960, 1_920, 3_600, 3_600] {
            assert_eq!(started(&mut challenges, now), ["slow"]);
            let again = Unanswered::Again(Duration::from_secs(wait));
            assert_eq!(challenges.unanswered("slow", 1, at(now)), Some(again));
            now += wait;
        }
    }

    #[test]
    fn a_new_version_is_challenged_now_and_never_two_at_a_time() {
        let (mut challenges, moved) = (Challenges::default(), id("moved"));
        challenges.update([(&moved, 1)], at(0));
        assert_eq!(challenges.start(at(0)), [(moved.clone(), 1)]);
        challenges.update([(&moved, 2)], at(1));
        assert!(challenges.start(at(1)).is_empty(), "one is under way");
        assert_eq!(challenges.unanswered("moved", 1, at(2)), None);
        assert_eq!(challenges.start(at(2)), [(moved.clone(), 2)]);
        challenges.update([], at(3));
        challenges.update([(&moved, 2)], at(4));
        assert!(challenges.start(at(4)).is_empty(), "still under way");
        challenges.answered("moved", 2);
        assert_eq!(challenges.next_due(), None);
    }

    #[test]
    fn the_bound_holds_and_those_that_failed_least_go_first() {
        let mut challenges = Challenges::default();
        let ids: Vec<_> = (0..CHALLENGES_AT_ONCE + 4).map(|nth| id(&nth.to_string())).collect();
        challenges.update(ids.iter().map(|id| (id, 1)), at(0));
        let first = challenges.start(at(0));
        assert_eq!((first.len(), challenges.next_due()), (CHALLENGES_AT_ONCE, None));
        challenges.unanswered(&first[0].0, 1, at(0));
        let new = id("new");
        challenges.update(ids.iter().chain([&new]).map(|id| (id, 1)), at(60));
        let next = challenges.start(at(60));
        assert!(next.len() == 1 && next[0].0 != first[0].0);
    }

    #[test]
    fn one_that_never_answers_is_given_up_until_it_is_saved() {
        let (mut challenges, silent) = (Challenges::default(), id("silent"));
        challenges.update([(&silent, 1)], at(0));
        challenges.start(at(0));
        let later = GIVE_UP_AFTER.as_secs();
        assert_eq!(challenges.unanswered("silent", 1, at(later)), Some(Unanswered::GivenUp));
        challenges.update([(&silent, 1)], at(later + 1));
        assert!(challenges.start(at(2 * later)).is_empty() && challenges.next_due().is_none());
        challenges.update([(&silent, 2)], at(2 * later));
        assert_eq!(challenges.start(at(2 * later)), [(silent, 2)]);
    }
}
