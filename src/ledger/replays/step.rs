//! What one step of a replay moves, as rows and texts. Numbers stand in the text itself: there are no more parameters than
//! texts, and how many rows there are differs from step to step.

use std::sync::Arc;

use super::select::{Candidate, Selection};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::ReplayNumber;
use crate::domain::replay::EndState;
use crate::domain::tenant::Lane;

/// event, lane, state, at, attempts, failures, latency_ms, status, remote_id, dispatch_unconfirmed, reason, and how often
/// it has been replayed before
pub(super) type OutcomeTuple =
    (i64, i64, String, i64, i64, i64, i64, Option<i64>, Option<String>, i64, Option<String>, i64);

/// Takes out how deliveries had ended; `None` where there are none.
pub(super) fn take_outcomes(selection: &Selection, deliveries: &[Candidate]) -> Option<String> {
    if deliveries.is_empty() {
        return None;
    }
    let pairs: Vec<_> =
        deliveries.iter().map(|delivery| format!("({},{})", delivery.event, delivery.lane)).collect();
    let states: Vec<_> = selection.states.iter().map(|state| format!("'{}'", state.as_str())).collect();
    // What has changed since it was picked is not what was asked for any more.
    Some(format!(
        "DELETE FROM outcome WHERE (event, lane) IN (VALUES {}) AND state IN ({})
         RETURNING event, lane, state, at, attempts, failures, latency_ms, status, remote_id, dispatch_unconfirmed, reason,
                   (SELECT COALESCE(MAX(earlier.number), 0) FROM earlier_outcome AS earlier
                    WHERE earlier.event = outcome.event AND earlier.lane = outcome.lane)",
        pairs.join(","),
        states.join(",")
    ))
}

/// How a delivery had ended.
pub(super) struct Earlier {
    event: i64,
    lane: i64,
    number: i64,
    state: EndState,
    at: i64,
    attempts: i64,
    failures: i64,
    latency_ms: i64,
    status: Option<i64>,
    pub remote_id: Option<String>,
    dispatch_unconfirmed: i64,
    pub reason: Option<String>,
}

/// A delivery that goes back into the queue.
pub(super) struct Waiting {
    pub event: i64,
    pub lane: i64,
    attempt: i64,
    /// How often it has been replayed, this time included; 0 where it never went out.
    nth: i64,
}

/// What a step moves.
#[derive(Default)]
pub(super) struct Moved {
    pub earlier: Vec<Earlier>,
    pub waiting: Vec<Waiting>,
    pub unroutable: i64,
}

impl Moved {
    /// Takes over what was taken out.
    pub fn outcomes(&mut self, gone: Vec<OutcomeTuple>) {
        for row in gone {
            let (
                event,
                lane,
                state,
                at,
                attempts,
                failures,
                latency_ms,
                status,
                remote_id,
                unconfirmed,
                reason,
                before,
            ) = row;
            let number = before + 1;
            self.waiting.push(Waiting { event, lane, attempt: attempts, nth: number });
            self.earlier.push(Earlier {
                event,
                lane,
                number,
                // It was picked by its state.
                state: EndState::parse(&state).unwrap_or(EndState::Dead),
                at,
                attempts,
                failures,
                latency_ms,
                status,
                remote_id,
                dispatch_unconfirmed: unconfirmed,
                reason,
            });
        }
    }

    /// An unrouted event has these lanes now, where nobody else has routed it meanwhile.
    pub fn route(&mut self, event: i64, lanes: &[Arc<Lane>], ours: bool) {
        if !ours {
            return;
        }
        self.unroutable += i64::from(lanes.is_empty());
        let waiting = lanes.iter().map(|lane| Waiting { event, lane: lane.id.0, attempt: 0, nth: 0 });
        self.waiting.extend(waiting);
    }

    /// Keeps how deliveries had ended. Parameters: the replay's id, and `remote_id` and `reason` of each.
    pub fn keep_earlier(&self, new_ids: bool, now: Timestamp) -> String {
        let (now, new_id) = (now.as_millis(), i64::from(new_ids));
        let row = |(index, row): (usize, &Earlier)| {
            let Earlier { event, lane, number, at, attempts, failures, latency_ms, .. } = row;
            let status = row.status.map_or_else(|| "NULL".to_owned(), |status| status.to_string());
            let (state, unconfirmed) = (row.state.as_str(), row.dispatch_unconfirmed);
            let (remote_id, reason) = (2 * index + 2, 2 * index + 3);
            format!(
                "({event},{lane},{number},$1,{now},'{state}',{at},{attempts},{failures},{latency_ms},{status},\
                 ${remote_id},{unconfirmed},${reason},{new_id})"
            )
        };
        let rows: Vec<_> = self.earlier.iter().enumerate().map(row).collect();
        format!(
            "INSERT INTO earlier_outcome (event, lane, number, replay, replayed_at, state, at, attempts, failures,
                                          latency_ms, status, remote_id, dispatch_unconfirmed, reason, new_id)
             VALUES {}",
            rows.join(",")
        )
    }

    /// Puts deliveries into the queue, behind what is fresh.
    pub fn put_back(&self, new_ids: bool, is_shared: bool, due_at: Timestamp) -> String {
        // Only Postgres has leases in the table.
        let (column, lease) = if is_shared { (", lease_until", ",0") } else { ("", "") };
        let due_at = due_at.as_millis();
        let row = |row: &Waiting| {
            let nth = u32::try_from(row.nth).unwrap_or(u32::MAX);
            let replay = ReplayNumber { nth, new_id: new_ids && nth > 0 }.as_column();
            format!("({},1,{due_at},{},{},0,0,{replay}{lease})", row.lane, row.event, row.attempt)
        };
        let rows: Vec<_> = self.waiting.iter().map(row).collect();
        format!(
            "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain, replay{column}) VALUES {}",
            rows.join(",")
        )
    }

    /// Notes what waits untried. Parameter: the replay's id.
    pub fn note_waiting(&self, due_at: Timestamp) -> String {
        let due_at = due_at.as_millis();
        let row = |row: &Waiting| format!("($1,{},{},{due_at})", row.event, row.lane);
        let rows: Vec<_> = self.waiting.iter().map(row).collect();
        format!(
            "INSERT INTO replay_waiting (replay, event, lane, due_at) VALUES {}
             ON CONFLICT (replay, event, lane) DO UPDATE SET due_at = excluded.due_at",
            rows.join(",")
        )
    }
}
