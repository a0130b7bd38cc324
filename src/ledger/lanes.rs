//! Lanes, by name and by number.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::silence::in_time;
use super::{Ledger, Result};
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::tenant::{Destination, Lane, LaneId};

/// A lane that has deliveries waiting.
#[derive(Debug, Clone)]
pub struct BusyLane {
    /// The lane.
    pub lane: Arc<Lane>,
    /// When the first of each class falls due, in the order of [`Class::ALL`]; `None` where none waits.
    pub first_due: [Option<Timestamp>; 2],
}

/// Lanes by name and by number. Bounded: emptied when it grows past [`LANE_CACHE_LIMIT`], and filled again as needed. Also
/// emptied after [`LANE_CACHE_FOR`]: a lane that was noted as unused counts as used again when its name is looked up.
#[derive(Default)]
pub(super) struct LaneCache {
    began: Moment,
    by_name: HashMap<(Arc<Destination>, Arc<str>), Arc<Lane>>,
    by_id: HashMap<LaneId, Arc<Lane>>,
}

const LANE_CACHE_LIMIT: usize = 100_000;
/// Much shorter than the day after which an unused lane is deleted.
const LANE_CACHE_FOR: Duration = Duration::from_secs(3_600);

impl LaneCache {
    fn by_name(&mut self, name: &(Arc<Destination>, Arc<str>), now: Moment) -> Option<Arc<Lane>> {
        if self.began.until(now) > LANE_CACHE_FOR {
            *self = Self { began: now, ..Self::default() };
        }
        self.by_name.get(name).cloned()
    }

    fn insert(&mut self, lane: Arc<Lane>) -> Arc<Lane> {
        if self.by_id.len() >= LANE_CACHE_LIMIT {
            *self = Self { began: self.began, ..Self::default() };
        }
        self.by_name.insert((lane.destination.clone(), lane.tenant.clone()), lane.clone());
        self.by_id.insert(lane.id, lane.clone());
        lane
    }
}

impl Ledger {
    /// Lanes with work, by number, from the one after `after`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn busy_lanes(&self, after: Option<LaneId>, limit: u32) -> Result<Vec<BusyLane>> {
        let heads = in_time(self.shared.database.busy_lanes(after, limit)).await?;
        let mut lanes = Vec::with_capacity(heads.len());
        for (id, first_due) in heads {
            // A lane of a kind that this version does not know is left for one that does.
            lanes.extend(self.lane_by_id(id).await?.map(|lane| BusyLane { lane, first_due }));
        }
        Ok(lanes)
    }

    /// The lane with this number; `None` where its destination is of a kind that this version does not know.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn lane_by_id(&self, id: LaneId) -> Result<Option<Arc<Lane>>> {
        let cached = self.lanes().by_id.get(&id).cloned();
        if cached.is_some() {
            return Ok(cached);
        }
        let lane = self.shared.database.lane(id).await?;
        Ok(lane.map(|lane| self.lanes().insert(Arc::new(lane))))
    }

    /// The lane of `tenant` for `destination`, made when it is new.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn lane(&self, destination: &Arc<Destination>, tenant: &Arc<str>) -> Result<Arc<Lane>> {
        let name = (destination.clone(), tenant.clone());
        let cached = self.lanes().by_name(&name, self.shared.clock.moment());
        if let Some(lane) = cached {
            return Ok(lane);
        }
        let id = in_time(self.shared.database.make_lane(&destination.to_string(), tenant)).await?;
        let lane = Lane { id, destination: destination.clone(), tenant: tenant.clone() };
        Ok(self.lanes().insert(Arc::new(lane)))
    }

    fn lanes(&self) -> MutexGuard<'_, LaneCache> {
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_cache_is_bounded_and_knows_lanes_by_name_and_number() {
        let destination = Arc::new(Destination::Svix { app: "acme".into() });
        let lane = |n: i64| {
            let tenant = n.to_string().into();
            Arc::new(Lane { id: LaneId(n), destination: destination.clone(), tenant })
        };
        let mut cache = LaneCache::default();
        let limit = i64::try_from(LANE_CACHE_LIMIT).expect("small");
        for n in 0..=limit {
            cache.insert(lane(n));
        }
        let last = lane(limit);
        assert_eq!((cache.by_id.len(), cache.by_name.len()), (1, 1), "emptied when it was full");
        assert_eq!(cache.by_id.get(&last.id), Some(&last));
        let name = (destination.clone(), last.tenant.clone());
        let began = Moment::default();
        assert_eq!(cache.by_name(&name, began + LANE_CACHE_FOR), Some(last));
        assert_eq!(
            cache.by_name(&name, began + LANE_CACHE_FOR + Duration::from_secs(1)),
            None,
            "looked up again"
        );
    }
}
