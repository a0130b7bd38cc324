//! Reading what waits, as one value for all rows of a query.
//!
//! sqlx copies every column of every row on its way from the connection's thread, and hands rows over one by one: twelve
//! columns a delivery cost more than finding, sending and settling it. Joined into one text by the database they cost a
//! copy. Lengths stand before what they measure, so that nothing in it can be taken for an end.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::event::{Fingerprint, Identity};
use crate::ledger::payloads::{Payload, Place, Stored};
use crate::ledger::{LedgerError, Result, rows};

/// What waits in one of a lane's queues behind a place, in the order it falls due.
pub(super) const WAITING: &str = "SELECT CAST(group_concat(packed, '') AS BLOB) FROM (
         SELECT format('%d %d %d %d %d %d ', due_at, event, attempt, failures, uncertain, replay) AS packed
         FROM queue WHERE lane = $1 AND retry = $2 AND (due_at, event) > ($3, $4)
         ORDER BY due_at, event LIMIT $5
     )";

/// The events with the numbers in a JSON array. A body of more than `$2` bytes is left out, and its length is negative. A
/// cross join is one that SQLite does not turn round, whatever the statistics of an `ANALYZE` say.
pub(super) const EVENTS: &str = "SELECT CAST(group_concat(packed, '') AS BLOB) FROM (
         SELECT format('%d %d %d %d %d %d %d %d %d ', event.seq, event.received_at, COALESCE(event.data_start, -1),
                       COALESCE(event.data_end, -1), octet_length(event.source), octet_length(event.id),
                       octet_length(event.type),
                       IIF(octet_length(event.body) > $2, -octet_length(event.body), octet_length(event.body)),
                       COALESCE(octet_length(event.trace), 0))
                || event.source || event.id || event.type || IIF(octet_length(event.body) > $2, '', event.body)
                || COALESCE(event.trace, '') AS packed
         FROM json_each($1) AS wanted CROSS JOIN event ON event.seq = wanted.value
     )";

/// Takes apart what [`WAITING`] has joined, in the order it falls due. `attempt` is the last one that was settled.
pub(super) fn places(packed: &[u8]) -> Result<Vec<Place>> {
    let mut places = unpack(packed, |rest| {
        let [due_at, event, attempt, failures, uncertain, replay] = take_numbers(rest)?;
        Some(Place { due_at, event, attempt, failures, uncertain, replay })
    })?;
    // Nothing in SQL says in what order rows are joined.
    let key = |place: &Place| (place.due_at, place.event);
    if !places.is_sorted_by_key(key) {
        places.sort_unstable_by_key(key);
    }
    Ok(places)
}

/// Takes apart what [`EVENTS`] has joined: each event's number and what it carries.
pub(super) fn events(packed: &[u8]) -> Result<Vec<(i64, Stored)>> {
    unpack(packed, |rest| {
        let [number, received_at, start, end, source, id, event_type, body_length, trace] =
            take_numbers(rest)?;
        let texts = [take_bytes(rest, source)?, take_bytes(rest, id)?, take_bytes(rest, event_type)?];
        let is_large = body_length < 0;
        // A copy: one delivery that hangs must not hold all that were read with it.
        let body = Bytes::copy_from_slice(take_bytes(rest, body_length.max(0))?);
        let trace = rows::trace(std::str::from_utf8(take_bytes(rest, trace)?).ok());
        if is_large {
            return Some((number, Stored::Large(usize::try_from(body_length.unsigned_abs()).ok()?)));
        }
        let text = |bytes| std::str::from_utf8(bytes).ok().map(Arc::<str>::from);
        let [Some(source), Some(id), Some(event_type)] = texts.map(text) else {
            return Some((number, Stored::Unreadable));
        };
        let known = |at: i64| (at >= 0).then_some(at);
        let data = rows::range(known(start), known(end));
        Some((number, Stored::Payload(Payload { source, id, event_type, received_at, body, data, trace })))
    })
}

/// Takes apart identities and their fingerprints: three lengths, three texts, and the 32 bytes of the fingerprint each.
pub(super) fn identities(packed: &[u8]) -> Result<Vec<(Identity, Fingerprint)>> {
    unpack(packed, |rest| {
        let [tenant, source, id] = take_numbers(rest)?;
        let (tenant, source, id) = (take_text(rest, tenant)?, take_text(rest, source)?, take_text(rest, id)?);
        let fingerprint = take_bytes(rest, 32)?.try_into().ok()?;
        Some((Identity { tenant, source, id }, Fingerprint(fingerprint)))
    })
}

fn unpack<T>(packed: &[u8], mut next: impl FnMut(&mut &[u8]) -> Option<T>) -> Result<Vec<T>> {
    let mut rest = packed;
    let mut rows = Vec::new();
    while !rest.is_empty() {
        rows.push(next(&mut rest).ok_or_else(|| {
            LedgerError::Unavailable("a row of the ledger can't be read: the file is damaged".into())
        })?);
    }
    Ok(rows)
}

fn take_numbers<const N: usize>(rest: &mut &[u8]) -> Option<[i64; N]> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = take_number(rest)?;
    }
    Some(numbers)
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

fn take_text(rest: &mut &[u8], length: i64) -> Option<Arc<str>> {
    std::str::from_utf8(take_bytes(rest, length)?).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_apart_in_order() {
        let place = |due_at, event, attempt, failures, uncertain| Place {
            due_at,
            event,
            attempt,
            failures,
            uncertain,
            replay: due_at / 10,
        };
        let packed = b"20 7 0 0 0 2 10 8 3 2 1 1 ";
        assert_eq!(places(packed).expect("places"), [place(10, 8, 3, 2, 1), place(20, 7, 0, 0, 0)]);
        assert_eq!(places(b"").expect("places"), []);
        for damaged in [&packed[..packed.len() - 1], b"1 2 3", b"x", b"  "] {
            assert!(places(damaged).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn identities_come_apart_with_their_fingerprints() {
        let packed = [&b"4 0 3 acmea 1"[..], &[0; 32], b"4 1 0 acmes", &[255; 32]].concat();
        let identity =
            |source: &str, id: &str| Identity { tenant: "acme".into(), source: source.into(), id: id.into() };
        assert_eq!(
            identities(&packed).expect("identities"),
            [(identity("", "a 1"), Fingerprint([0; 32])), (identity("s", ""), Fingerprint([255; 32]))]
        );
        assert_eq!(identities(b"").expect("identities"), []);
        for damaged in [&packed[..packed.len() - 1], b"4 0 3 acmea 1", b"1 2"] {
            assert!(identities(damaged).is_err(), "{damaged:?}");
        }
    }

    #[test]
    fn events_come_apart_whatever_they_hold() {
        let packed = b"7 5 -1 -1 0 3 1 2 0 a 1t{}8 6 0 4 2 0 0 4 55 12\x0012\xff\
            00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let rows = events(packed).expect("events");
        assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [7, 8]);
        let [(_, Stored::Payload(first)), (_, Stored::Payload(second))] = &rows[..] else {
            panic!("{rows:?}")
        };
        assert_eq!((&*first.source, &*first.id, &*first.event_type, first.received_at), ("", "a 1", "t", 5));
        assert_eq!((&first.data, &first.body[..]), (&None, &b"{}"[..]));
        assert_eq!((&*second.source, second.received_at, &second.data), ("12", 6, &Some(0..4)));
        assert_eq!(&second.body[..], b"\x0012\xff");
        let span_of = |payload: &Payload| payload.trace.as_ref().map(|trace| trace.span_id);
        assert_eq!((span_of(first), span_of(second)), (None, Some(0x00f0_67aa_0ba9_02b7)));
        // A body that was left out, and a text that is none.
        let rows = events(b"7 5 -1 -1 0 1 1 -9 0 at8 5 -1 -1 0 1 1 2 0 \xfft{}").expect("events");
        assert_eq!(rows, [(7, Stored::Large(9)), (8, Stored::Unreadable)]);
        assert_eq!(events(b"").expect("events"), []);
        for damaged in [&packed[..packed.len() - 1], b"1 2 3", b"8 6 0 4 -9 0 0 4 0 ", b"  "] {
            assert!(events(damaged).is_err(), "{damaged:?}");
        }
    }
}
