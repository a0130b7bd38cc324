//! Bodies that come packed: gzip, a piece at a time, within the same bound as any other body.

use std::io::{self, Write as _};

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body_util::{BodyExt as _, Limited};

/// Most that is unpacked before others get a turn, in packed bytes.
const PIECE_BYTES: usize = 16 << 10;
/// Up to this, what is unpacked is kept as it comes.
const SMALL_BYTES: usize = 1 << 20;

/// A body that is longer than it may be, once it is unpacked.
#[derive(Debug, thiserror::Error)]
#[error("the body is too long once it is unpacked")]
pub(super) struct TooLong;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    /// What the headers say (RFC 9110 §8.4); `None` where we don't read that.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(CONTENT_ENCODING).iter().map(|line| line.as_bytes());
        let names = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let mut names = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        match (names.next(), names.next()) {
            (None, _) => Some(Self::Identity),
            (Some(name), None)
                if [b"gzip".as_slice(), b"x-gzip"].iter().any(|known| name.eq_ignore_ascii_case(known)) =>
            {
                Some(Self::Gzip)
            }
            _ => None,
        }
    }
}

/// The whole body as it was before it was packed, of at most `limit` bytes before and after.
///
/// # Errors
/// [`TooLong`] or [`http_body_util::LengthLimitError`] where it has more; what else keeps it from being read.
pub(super) async fn collect(body: Body, coding: Coding, limit: usize) -> Result<Bytes, BoxError> {
    let body = Limited::new(body, limit);
    match coding {
        Coding::Identity => Ok(body.collect().await?.to_bytes()),
        Coding::Gzip => {
            let packed = body.collect().await?.to_bytes();
            // What turns out to be much is only counted at first, so that a refusal costs no memory, and then unpacked
            // into just the room that it needs.
            let unpacked = unpack(&packed, Unpacked::keeping(SMALL_BYTES.min(limit), limit)).await?;
            if unpacked.length == unpacked.bytes.len() {
                return Ok(unpacked.bytes.into());
            }
            let whole = Unpacked::keeping(unpacked.length, limit);
            Ok(unpack(&packed, whole).await?.bytes.into())
        }
    }
}

/// All members of it (RFC 1952 §2.2): whoever stopped after the first would acknowledge what they did not read.
async fn unpack(packed: &[u8], unpacked: Unpacked) -> Result<Unpacked, BoxError> {
    let mut decoder = MultiGzDecoder::new(unpacked);
    for piece in packed.chunks(PIECE_BYTES) {
        decoder.write_all(piece).map_err(cause)?;
        tokio::task::yield_now().await;
    }
    decoder.finish().map_err(cause)
}

/// An error of our own rather than the one that it travelled in.
fn cause(error: io::Error) -> BoxError {
    error.downcast::<TooLong>().map_or_else(Into::into, Into::into)
}

/// What was unpacked so far: kept up to a number of bytes, and counted beyond.
struct Unpacked {
    bytes: Vec<u8>,
    length: usize,
    kept_max: usize,
    limit: usize,
}

impl Unpacked {
    fn keeping(kept_max: usize, limit: usize) -> Self {
        let room = if kept_max > SMALL_BYTES { kept_max } else { 0 };
        Self { bytes: Vec::with_capacity(room), length: 0, kept_max, limit }
    }
}

impl io::Write for Unpacked {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > self.limit - self.length {
            return Err(io::Error::other(TooLong));
        }
        self.length += piece.len();
        if self.length > self.kept_max {
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(piece);
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], Some(Coding::Identity))]
    #[case(&["identity"], Some(Coding::Identity))]
    #[case(&["gzip"], Some(Coding::Gzip))]
    #[case(&["X-GZip"], Some(Coding::Gzip))]
    #[case(&["identity, gzip"], Some(Coding::Gzip))]
    #[case(&["gzip, gzip"], None)]
    #[case(&["gzip", "br"], None)]
    #[case(&["br"], None)]
    #[case(&["gzipx"], None)]
    fn codings(#[case] lines: &[&'static str], #[case] coding: Option<Coding>) {
        let headers = lines.iter().map(|line| (CONTENT_ENCODING, line.parse().unwrap())).collect();
        assert_eq!(Coding::of(&headers), coding);
    }
}
