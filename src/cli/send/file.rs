//! Splits what a file holds into events, without touching their bytes.
//!
//! Where the first line is a JSON value of its own (and no array), every line is: that is read line by line, however
//! long it goes on. Anything else is read whole: an array, an object over several lines, several of them.

use std::io::{self, BufRead, Read as _};

use serde_json::value::RawValue;

/// Longest line, in bytes. No relay takes an event as long as that.
const LINE_LIMIT_BYTES: u64 = 64 << 20;

/// Where an event stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On this line, from 1.
    Line(u64),
    /// At this index, from 0.
    Index(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Index(index) => write!(f, "event {index}"),
        }
    }
}

/// An event as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub place: Place,
    pub json: String,
}

/// Events that go out in one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// One for each event.
    pub places: Vec<Place>,
    /// The events as a JSON array.
    pub body: String,
}

/// Bounds of a [`Chunk`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most events.
    pub events: usize,
    /// Most bytes; a longer event goes alone.
    pub bytes: usize,
}

/// Why a file can't be read to its end: one line, with the place.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("is not UTF-8 at {0}")]
    NotUtf8(Place),
    #[error("line {line} is not JSON: {error}")]
    Line { line: u64, error: String },
    #[error("line {0} is longer than {LINE_LIMIT_BYTES} bytes")]
    TooLong(u64),
    #[error("is not JSON: {0}")]
    Document(serde_json::Error),
}

/// Hands all of `input` to `take`, in order and in chunks, until `take` has enough and says `false`.
///
/// # Errors
/// [`BadFile`], after what stands before the fault was handed over.
pub(super) fn split(
    mut input: impl BufRead,
    bounds: Bounds,
    mut take: impl FnMut(Chunk) -> bool,
) -> Result<(), BadFile> {
    let mut chunk = Chunk::default();
    let mut wanted = true;
    let read = pieces(&mut input, &mut |piece| {
        if !chunk.has_room(&piece, bounds) {
            wanted = take(std::mem::take(&mut chunk).closed());
        }
        chunk.add(&piece);
        wanted
    });
    if wanted && !chunk.places.is_empty() {
        take(chunk.closed());
    }
    read
}

impl Chunk {
    fn has_room(&self, piece: &Piece, bounds: Bounds) -> bool {
        let bytes = self.body.len() + piece.json.len() + 2;
        self.places.is_empty() || (self.places.len() < bounds.events && bytes <= bounds.bytes)
    }

    fn add(&mut self, piece: &Piece) {
        self.body.push(if self.places.is_empty() { '[' } else { ',' });
        self.body.push_str(&piece.json);
        self.places.push(piece.place);
    }

    fn closed(mut self) -> Self {
        self.body.push(']');
        self
    }
}

/// Hands over one event after another, until `take` says `false`.
fn pieces(input: &mut impl BufRead, take: &mut impl FnMut(Piece) -> bool) -> Result<(), BadFile> {
    let mut head = Vec::new();
    let mut line = 0;
    while head.trim_ascii().is_empty() {
        head.clear();
        line += 1;
        if read_line(input, &mut head, line)? == 0 {
            return Ok(());
        }
        if let Some(rest) = head.strip_prefix(b"\xef\xbb\xbf") {
            head = rest.to_vec();
        }
    }
    let is_array = head.trim_ascii_start().starts_with(b"[");
    if is_array || serde_json::from_slice::<&RawValue>(&head).is_err() {
        return document(input, head, line, take);
    }
    loop {
        if !head.trim_ascii().is_empty() && !take(line_piece(&head, line)?) {
            return Ok(());
        }
        head.clear();
        line += 1;
        if read_line(input, &mut head, line)? == 0 {
            return Ok(());
        }
    }
}

/// Reads a line and how many bytes it has; 0 at the end.
fn read_line(input: &mut impl BufRead, into: &mut Vec<u8>, line: u64) -> Result<usize, BadFile> {
    let read = input.take(LINE_LIMIT_BYTES + 1).read_until(b'\n', into)?;
    match into.len() as u64 > LINE_LIMIT_BYTES && !into.trim_ascii_start().starts_with(b"[") {
        true => Err(BadFile::TooLong(line)),
        false => Ok(read),
    }
}

fn line_piece(bytes: &[u8], line: u64) -> Result<Piece, BadFile> {
    let text = std::str::from_utf8(bytes).map_err(|_| BadFile::NotUtf8(Place::Line(line)))?.trim_end();
    let json: &RawValue = serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        // Its own line is always the first.
        let text = text.replace(" at line 1 column ", " at column ");
        BadFile::Line { line, error: text }
    })?;
    Ok(Piece { place: Place::Line(line), json: json.get().to_owned() })
}

/// The rest of `input` behind `head`, which began on `line`: JSON values one behind the other, arrays for what is in
/// them.
fn document(
    input: &mut impl BufRead,
    head: Vec<u8>,
    line: u64,
    take: &mut impl FnMut(Piece) -> bool,
) -> Result<(), BadFile> {
    // The lines before are blank; with them the parser counts as the reader of the file does.
    let mut bytes = vec![b'\n'; usize::try_from(line - 1).unwrap_or_default()];
    bytes.extend_from_slice(&head);
    drop(head);
    input.read_to_end(&mut bytes)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        BadFile::NotUtf8(Place::Line(line as u64))
    })?;
    let mut index = 0;
    let mut next = |value: &RawValue| {
        index += 1;
        take(Piece { place: Place::Index(index - 1), json: value.get().to_owned() })
    };
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = value.map_err(BadFile::Document)?;
        let wanted = match value.get().starts_with('[') {
            true => {
                let elements: Vec<&RawValue> =
                    serde_json::from_str(value.get()).map_err(BadFile::Document)?;
                elements.into_iter().all(&mut next)
            }
            false => next(value),
        };
        if !wanted {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const BOUNDS: Bounds = Bounds { events: 2, bytes: 1_000 };

    fn chunks(text: impl AsRef<[u8]>, bounds: Bounds) -> (Vec<Chunk>, Result<(), BadFile>) {
        let mut chunks = Vec::new();
        // A small buffer, so that lines cross its end.
        let input = io::BufReader::with_capacity(7, text.as_ref());
        let read = split(input, bounds, |chunk| {
            chunks.push(chunk);
            true
        });
        (chunks, read)
    }

    fn bodies(text: &str) -> Vec<String> {
        let (chunks, read) = chunks(text, BOUNDS);
        read.expect("readable");
        chunks.into_iter().map(|chunk| chunk.body).collect()
    }

    #[rstest]
    #[case::nothing("", &[])]
    #[case::blank(" \n\n", &[])]
    #[case::object(r#"{"a":1}"#, &[r#"[{"a":1}]"#])]
    #[case::object_over_lines("{\n  \"a\": 1.10\n}\n", &["[{\n  \"a\": 1.10\n}]"])]
    #[case::objects_over_lines("{\n\"a\":1\n}\n{\"b\":2} {\"c\":3}", &["[{\n\"a\":1\n},{\"b\":2}]", "[{\"c\":3}]"])]
    #[case::array("[{\"a\":1}, {\"a\":2},\n{\"a\":3}]", &["[{\"a\":1},{\"a\":2}]", "[{\"a\":3}]"])]
    #[case::empty_array("[]", &[])]
    #[case::array_over_lines("\n[\n{\"a\":1}\n]\n", &["[{\"a\":1}]"])]
    #[case::lines("{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n", &["[{\"a\":1},{\"a\":2}]", "[{\"a\":3}]"])]
    #[case::lines_of_windows("\u{feff}{\"a\":1}\r\n\r\n{\"a\":2}\r\n", &["[{\"a\":1},{\"a\":2}]"])]
    #[case::last_line_without_end("{\"a\":1}\n  {\"a\":2}", &["[{\"a\":1},{\"a\":2}]"])]
    #[case::values_on_one_line("{\"a\":1}{\"a\":2}", &["[{\"a\":1},{\"a\":2}]"])]
    fn splits(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(bodies(text), expected);
    }

    #[rstest]
    #[case(r#"{"n":1.10,"big":12345678901234567890,"z":1,"a":2,"a":3,"t":"\u00e9é 😀","sp" : [ 1 ,2e5 ]}"#)]
    fn bytes_stay_as_they_are(#[case] event: &str) {
        for text in [event.to_owned(), format!("[{event}]"), format!("{event}\n{event}")] {
            let (chunks, read) = chunks(&text, Bounds { events: 1, bytes: 10 });
            read.expect("readable");
            assert!(!chunks.is_empty());
            assert!(chunks.iter().all(|chunk| chunk.body == format!("[{event}]")), "{chunks:?}");
        }
    }

    #[test]
    fn chunks_keep_their_bounds_and_a_long_event_goes_alone() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(50));
        let text = format!("{{}}\n{{}}\n{long}\n{{}}\n{{}}\n{{}}\n{{}}\n");
        let (chunks, read) = chunks(text, Bounds { events: 3, bytes: 40 });
        read.expect("readable");
        let sizes: Vec<_> = chunks.iter().map(|chunk| chunk.places.len()).collect();
        assert_eq!(sizes, [2, 1, 3, 1]);
    }

    #[test]
    fn places_are_lines_or_indexes() {
        let (lines, _) = chunks("\n{}\n\n{}", BOUNDS);
        assert_eq!(lines[0].places, [Place::Line(2), Place::Line(4)]);
        let (indexes, _) = chunks("[{},\n{}]", BOUNDS);
        assert_eq!(indexes[0].places, [Place::Index(0), Place::Index(1)]);
    }

    #[rstest]
    #[case::a_line(
        "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n{\"a\":\n{}",
        3,
        "line 4 is not JSON: EOF while parsing"
    )]
    #[case::two_on_a_line("{}\n{} {}\n", 1, "line 2 is not JSON: trailing characters at column 4")]
    #[case::an_array("[{},\n{},\n{oops}]", 0, "is not JSON: key must be a string at line 3 column 2")]
    #[case::an_object("\n{\n\"a\": tru\n}", 0, "is not JSON: expected ident at line 4 column 0")]
    #[case::after_an_object("{\n}\n{\n}\n}", 2, "is not JSON: expected value at line 5 column 1")]
    #[case::prose("hello", 0, "is not JSON: expected value at line 1 column 1")]
    fn a_fault_is_told_with_its_place(#[case] text: &str, #[case] events: usize, #[case] expected: &str) {
        let (chunks, read) = chunks(text, BOUNDS);
        assert_eq!(chunks.iter().map(|chunk| chunk.places.len()).sum::<usize>(), events);
        let error = read.expect_err("bad").to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn what_is_not_utf8_is_told_with_its_line() {
        let (chunks, read) = chunks(b"{}\n{\"a\":\"\xff\"}\n", BOUNDS);
        assert_eq!(chunks.len(), 1);
        assert_eq!(read.expect_err("bad").to_string(), "is not UTF-8 at line 2");
        let (_, read) = self::chunks(b"[\n{\"a\":\"\xff\"}]", BOUNDS);
        assert_eq!(read.expect_err("bad").to_string(), "is not UTF-8 at line 2");
    }

    #[test]
    fn nothing_more_is_read_once_nobody_wants_it() {
        let mut taken = 0;
        let read = split("{}\n{}\n{}\n{}\nbroken".as_bytes(), BOUNDS, |_| {
            taken += 1;
            false
        });
        read.expect("the fault is never seen");
        assert_eq!(taken, 1);
    }
}
