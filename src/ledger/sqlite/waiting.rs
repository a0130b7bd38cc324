//! Reading what waits, as one value for all rows of a claim.
//!
//! sqlx copies every column of every row on its way from the connection's thread, and hands rows over one by one: twelve
//! columns a delivery cost more than finding, sending and settling it. Joined into one text by the database they cost a
//! copy. Lengths stand before what they measure, so that nothing in it can be taken for an end.

use bytes::Bytes;
use sqlx::error::DatabaseError;

use crate::ledger::{LedgerError, Result};

/// What waits in one of a lane's queues behind a place, in the order it falls due. A cross join is one that SQLite does
/// not turn round, whatever the statistics of an `ANALYZE` say.
pub(super) const WAITING: &str = "SELECT CAST(group_concat(packed, '') AS BLOB) FROM (
         SELECT format('%d %d %d %d %d %d %d %d %d %d %d %d ', queue.due_at, queue.event, queue.attempt, queue.failures,
                       queue.uncertain, event.received_at, COALESCE(event.data_start, -1),
                       COALESCE(event.data_end, -1), octet_length(event.source), octet_length(event.id),
                       octet_length(event.type), octet_length(event.body))
                || event.source || event.id || event.type || event.body AS packed
         FROM queue CROSS JOIN event ON event.seq = queue.event
         WHERE queue.lane = $1 AND queue.retry = $2 AND (queue.due_at, queue.event) > ($3, $4)
         ORDER BY queue.due_at, queue.event LIMIT $5
     )";

/// A delivery that waits, as the database has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WaitingRow {
    pub due_at: i64,
    pub event: i64,
    pub attempt: i64,
    pub failures: i64,
    pub uncertain: i64,
    pub received_at: i64,
    pub data_start: Option<i64>,
    pub data_end: Option<i64>,
    pub source: String,
    pub id: String,
    pub event_type: String,
    pub body: Bytes,
}

/// Takes apart what [`WAITING`] has joined, in the order it falls due.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<WaitingRow>> {
    let mut rest = packed;
    let mut rows = Vec::new();
    while !rest.is_empty() {
        rows.push(row(&mut rest).ok_or_else(|| {
            LedgerError::Unavailable("a row of the ledger's queue can't be read: the file is damaged".into())
        })?);
    }
    // Nothing in SQL says in what order rows are joined.
    if !rows.is_sorted_by_key(place) {
        rows.sort_unstable_by_key(place);
    }
    Ok(rows)
}

/// Whether SQLite has refused a value for its size (`SQLITE_TOOBIG`: a billion bytes).
pub(super) fn is_too_big(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).is_some_and(|code| code == "18")
}

const fn place(row: &WaitingRow) -> (i64, i64) {
    (row.due_at, row.event)
}

fn row(rest: &mut &[u8]) -> Option<WaitingRow> {
    let mut numbers = [0; 12];
    for number in &mut numbers {
        *number = take_number(rest)?;
    }
    let [due_at, event, attempt, failures, uncertain, received_at, start, end, lengths @ ..] = numbers;
    let [source, id, event_type, body] = lengths;
    let known = |at: i64| (at >= 0).then_some(at);
    Some(WaitingRow {
        due_at,
        event,
        attempt,
        failures,
        uncertain,
        received_at,
        data_start: known(start),
        data_end: known(end),
        source: take_text(rest, source)?,
        id: take_text(rest, id)?,
        event_type: take_text(rest, event_type)?,
        // A copy: one delivery that hangs must not hold all that were read with it.
        body: Bytes::copy_from_slice(take_bytes(rest, body)?),
    })
}

fn take_number(rest: &mut &[u8]) -> Option<i64> {
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    *rest = &rest[end + 1..];
    Some(number)
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: i64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = left;
    Some(taken)
}

fn take_text(rest: &mut &[u8], length: i64) -> Option<String> {
    String::from_utf8(take_bytes(rest, length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;

    use super::*;

    #[tokio::test]
    async fn sqlites_refusal_of_a_large_value_is_known() {
        let mut connection = sqlx::SqliteConnection::connect("sqlite::memory:").await.expect("a database");
        for (statement, expected) in [("SELECT zeroblob(2000000000)", true), ("SELECT nothing", false)] {
            let refused = sqlx::query(statement).fetch_one(&mut connection).await.expect_err("refused");
            assert_eq!(is_too_big(&refused), expected, "{refused}");
        }
    }

    #[test]
    fn what_was_joined_comes_apart_whatever_it_holds() {
        let packed = b"20 7 0 0 0 5 -1 -1 0 3 1 2 a 1t{}10 8 3 2 1 6 0 4 2 0 0 4 12\x0012\xff";
        let rows = unpack(packed).expect("rows");
        assert_eq!(rows.iter().map(place).collect::<Vec<_>>(), [(10, 8), (20, 7)], "in order");
        let (first, second) = (&rows[0], &rows[1]);
        assert_eq!((&*second.source, &*second.id, &*second.event_type), ("", "a 1", "t"));
        assert_eq!((second.data_start, second.data_end, &second.body[..]), (None, None, &b"{}"[..]));
        assert_eq!((first.attempt, first.failures, first.uncertain, first.received_at), (3, 2, 1, 6));
        assert_eq!((first.data_start, first.data_end), (Some(0), Some(4)));
        assert_eq!((&*first.source, &first.body[..]), ("12", &b"\x0012\xff"[..]));
        assert_eq!(unpack(b"").expect("rows"), []);
        for damaged in [&packed[..packed.len() - 1], b"1 2 3", b"x", b"1 2 3 4 5 6 7 8 9 -9 1 1 ", b"  "] {
            assert!(unpack(damaged).is_err(), "{damaged:?}");
        }
    }
}
