//! Partners that misbehave, through a real relay: what each costs, what it is called, and that nobody else feels it.
//!
//! Each test has a relay process of its own, with few places in flight, a partner that behaves, and one that doesn't. Both
//! get the same events. What fails must fail with its code, within its time, be retried under the same `webhook-id` with a
//! fresh timestamp, and arrive once the partner has mended its ways.

mod place;

use std::time::Duration;

use axum::http::Method;
use posthaste::mock::{MockPartner, PartnerAnswer};
use rstest::rstest;
use serde_json::json;

use self::place::{BODY_MS, EVENTS, Place, SENT_LIMIT_BYTES, TIMEOUT_MS, case_name, check_calls};
use crate::support::partners::{add_endpoint, call, direct};
use crate::support::rude::{Authority, End, Manner, Rude, Shows};
use crate::support::{TestDatabase, TestRelay, bounded, eventually, mock_svix};

/// `first` and then `again`, as often as fits in 16 KiB at once, for ever and at full speed.
fn flood(first: &str, again: &str) -> Manner {
    Manner::goes_on(first, again.repeat((16 << 10) / again.len()), Duration::ZERO)
}

fn drip(first: &str, again: &str) -> Manner {
    Manner::goes_on(first, again, Duration::from_millis(50))
}

/// 64 MiB of nothing in some 400 KiB of gzip (RFC 1952): one block with fixed codes (RFC 1951 §3.2.6), a zero and then the
/// longest match, over and over.
fn gzip_bomb(status: &str) -> Manner {
    let mut bits = vec![true, true, false];
    let mut code = |value: u32, width: u32| bits.extend((0..width).rev().map(|bit| value >> bit & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..(64 << 20) / 258 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    code(0, 7);
    let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    body.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit))));
    body.extend([0; 8]);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Manner::says([head.into_bytes(), body].concat(), End::Close)
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";
const CHUNK: &str = "10\r\n0123456789abcdef\r\n";

#[rstest]
#[case::hangs(Manner::says("", End::Hold), "timeout", TIMEOUT_MS)]
#[case::drips_its_head(drip("HTTP/1.1 200 OK\r\n", "X-Drip: 1\r\n"), "timeout", TIMEOUT_MS)]
#[case::floods_with_1xx(
    flood("", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"),
    "timeout",
    TIMEOUT_MS
)]
#[case::floods_with_headers(
    flood("HTTP/1.1 200 OK\r\n", "X-Flood: 0123456789012345678901234567890123456789\r\n"),
    "answer_too_large",
    TIMEOUT_MS
)]
#[case::sends_an_endless_header(flood("HTTP/1.1 200 OK\r\nX-Endless: ", "y"), "answer_too_large", TIMEOUT_MS)]
#[case::speaks_something_else(
    Manner::says("SSH-2.0-OpenSSH_9.9\r\n", End::Hold),
    "answer_invalid",
    TIMEOUT_MS
)]
#[case::resets_in_its_head(
    Manner::says("HTTP/1.1 200 OK\r\nContent-Len", End::Reset),
    "connection_lost",
    TIMEOUT_MS
)]
#[case::closes_in_its_head(
    Manner::says("HTTP/1.1 200 OK\r\nContent-Len", End::Close),
    "connection_lost",
    TIMEOUT_MS
)]
#[case::closes_without_a_word(Manner::says("", End::Close), "connection_lost", TIMEOUT_MS)]
#[case::fails_without_end(
    flood(&format!("HTTP/1.1 500 Internal Server Error\r\n{CHUNKED}"), CHUNK),
    "http_500",
    TIMEOUT_MS + BODY_MS
)]
#[case::fails_in_drips(
    drip(&format!("HTTP/1.1 500 Internal Server Error\r\n{CHUNKED}"), CHUNK),
    "http_500",
    TIMEOUT_MS + BODY_MS
)]
#[case::fails_with_a_gzip_bomb(gzip_bomb("500 Internal Server Error"), "http_500", TIMEOUT_MS + BODY_MS)]
#[tokio::test(flavor = "multi_thread")]
async fn fails_with_its_code_in_its_time_and_delays_nobody(
    #[case] manner: Manner,
    #[case] code: &str,
    #[case] longest_ms: u64,
) {
    // holds: 31, 32, 34, 35, 36
    bounded(async {
        let rude = Rude::start().await;
        let authority = Authority::new().file();
        let place = Place::start(&rude.url("http"), authority.path()).await;
        let bomb = manner.first.windows(4).any(|window| window == b"gzip");
        rude.behave(Some(manner), 2);
        let told = place.suffer(3, async || ()).await;
        told.check(&case_name(), code, 2, longest_ms);
        check_calls(&rude, longest_ms).await;
        if code == "http_500" {
            // Of what is no body to read, nothing is taken for long.
            assert!(
                rude.calls().iter().all(|call| call.sent_bytes <= SENT_LIMIT_BYTES),
                "{:?}",
                rude.calls()
            );
        }
        if bomb {
            // As it came: of what is in it, nothing.
            let words = &told.attempts[0][0].1;
            assert!(words.starts_with("\u{1f}\u{fffd}\u{8}"), "{words:?}");
        }
        let explained = place.explained("rude_0").await;
        assert!(explained.contains(&format!("attempt 1: {code}")), "{explained}");
    })
    .await;
}

#[rstest]
#[case::has_no_end(flood(&format!("HTTP/1.1 200 OK\r\n{CHUNKED}"), CHUNK))]
#[case::drips(drip(&format!("HTTP/1.1 200 OK\r\n{CHUNKED}"), CHUNK))]
#[case::never_comes(Manner::says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", End::Hold))]
#[case::is_reset(Manner::says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", End::Reset))]
#[case::is_a_gzip_bomb(gzip_bomb("200 OK"))]
#[tokio::test(flavor = "multi_thread")]
async fn succeeds_on_its_head_whatever_its_body(#[case] manner: Manner) {
    // holds: 33, 34
    bounded(async {
        let rude = Rude::start().await;
        let authority = Authority::new().file();
        let place = Place::start(&rude.url("http"), authority.path()).await;
        rude.behave(Some(manner), usize::MAX);
        let told = place.suffer(1, async || ()).await;
        // The body of a success gets 100 ms.
        told.check(&format!("says 200 and has a body that {}", case_name()), "delivered", 0, 100);
        assert!(told.attempts.iter().all(|attempts| attempts.len() == 1), "{:?}", told.attempts);
        let over = async || rude.calls().iter().all(|call| call.held.is_some()).then_some(());
        eventually("every connection is closed", over).await;
        let calls = rude.calls();
        assert_eq!(calls.len(), EVENTS);
        assert!(calls.iter().all(|call| call.sent_bytes <= SENT_LIMIT_BYTES), "{calls:?}");
    })
    .await;
}

#[rstest]
#[case::shows_an_expired_certificate(Shows::Expired, "tls_certificate_expired")]
#[case::shows_anothers_certificate(Shows::WrongName, "tls_wrong_name")]
#[case::vouches_for_itself(Shows::SelfSigned, "tls_unknown_issuer")]
#[case::has_an_unknown_voucher(Shows::OfAnotherAuthority, "tls_unknown_issuer")]
#[tokio::test(flavor = "multi_thread")]
async fn gets_nothing_before_its_certificate_is_good(#[case] shows: Shows, #[case] code: &str) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new());
        let file = authority.file();
        rude.show(authority.server(shows));
        let place = Place::start(&rude.url("https"), file.path()).await;
        let told = place.suffer(2, async || rude.show(authority.server(Shows::Good))).await;
        told.check(&case_name(), code, 2, TIMEOUT_MS);
        check_calls(&rude, TIMEOUT_MS).await;
        let explained = place.explained("rude_0").await;
        assert!(explained.contains(&format!("attempt 1: {code}")), "{explained}");
    })
    .await;
}

/// A ServerHello of TLS 1.1.
const OLD_HELLO: &[u8] = b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02\
    0123456789abcdef0123456789abcdef\x00\xc0\x13\x00";
/// The alert of a server that goes no higher than that: `protocol_version`.
const OLD_ALERT: &[u8] = b"\x15\x03\x02\x00\x02\x02\x46";

#[rstest]
#[case::speaks_tls_1_1(Manner::says(OLD_HELLO, End::Hold), "tls_protocol_version")]
#[case::goes_no_higher_than_tls_1_1(Manner::says(OLD_ALERT, End::Close), "tls_protocol_version")]
#[case::speaks_no_tls(Manner::says("HTTP/1.1 400 Bad Request\r\n\r\n", End::Close), "tls_failed")]
#[case::resets_in_the_handshake(Manner::says("", End::Reset), "connection_reset")]
#[case::hangs_in_the_handshake(Manner::says("", End::Hold), "timeout")]
#[tokio::test(flavor = "multi_thread")]
async fn gets_nothing_before_it_speaks_tls(#[case] manner: Manner, #[case] code: &str) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new());
        let file = authority.file();
        rude.behave(Some(manner), usize::MAX);
        let place = Place::start(&rude.url("https"), file.path()).await;
        let mend = async || {
            rude.behave(None, 0);
            rude.show(authority.server(Shows::Good));
        };
        let told = place.suffer(2, mend).await;
        told.check(&case_name(), code, 2, TIMEOUT_MS);
        check_calls(&rude, TIMEOUT_MS).await;
    })
    .await;
}

#[rstest]
#[case::has_no_address("http://nobody.invalid:9/", "dns_failed", 5_000)]
#[case::is_not_there("", "connect_refused", TIMEOUT_MS)]
#[tokio::test(flavor = "multi_thread")]
async fn that_can_not_be_reached_gets_all_at_its_new_url(
    #[case] url: &str,
    #[case] code: &str,
    #[case] longest_ms: u64,
) {
    // holds: 35
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new().file());
        // Bound, and nobody listens.
        let nobody = socket();
        let nobody_url = format!("http://{}/", nobody.local_addr().expect("an address"));
        let url = if url.is_empty() { &nobody_url } else { url };
        let place = Place::start_with(url, authority.path(), 10_000).await;
        let moved = async || {
            let path = format!("/v1/endpoints/{}", place.endpoint);
            call(&place.relay, Method::PATCH, &path, json!({"url": rude.url("http")})).await;
        };
        let told = place.suffer(2, moved).await;
        told.check(&case_name(), code, 2, longest_ms);
        check_calls(&rude, TIMEOUT_MS).await;
    })
    .await;
}

/// A port of this machine that is taken, and refuses every call.
fn socket() -> tokio::net::TcpSocket {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    socket
}

#[rstest]
#[case::points_at_another(None)]
#[case::points_at_the_metadata(Some("http://169.254.169.254/latest/meta-data/"))]
#[tokio::test(flavor = "multi_thread")]
async fn is_not_followed_where_it_points(#[case] location: Option<&str>) {
    // holds: 31, 42
    bounded(async {
        let (rude, authority) = (Rude::start().await, Authority::new().file());
        // Listens where it may be dialled, and must not be called. What calls is taken in before anybody accepts it.
        let sentinel = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        sentinel.set_nonblocking(true).expect("set");
        let inside = format!("http://{}/", sentinel.local_addr().expect("an address"));
        let location = location.unwrap_or(&inside);
        let head = |status: &str| {
            format!(
                "HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        };
        let place = Place::start(&rude.url("http"), authority.path()).await;
        rude.behave(Some(Manner::says(head("307 Temporary Redirect"), End::Close)), 2);
        let told = place.suffer(3, async || ()).await;
        told.check(&case_name(), "http_307", 2, TIMEOUT_MS);
        assert!(told.attempts[0][0].1.starts_with("redirects are not followed"), "{:?}", told.attempts[0]);
        assert!(sentinel.accept().is_err(), "it was followed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_is_slow_has_its_own_time_whatever_svix_is_given() {
    // holds: 32
    bounded(async {
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let mut config = direct(&database, &svix);
        // Three requests of that are less than the partner takes.
        config.svix.timeout_ms = 300;
        let relay = TestRelay::start_with(config).await;
        let partner = MockPartner::start().await;
        let slow = PartnerAnswer { delay: Duration::from_millis(1_500), ..PartnerAnswer::status(200) };
        partner.set_answer(Some(slow));
        add_endpoint(&relay, "slow", json!({"url": partner.url("/"), "timeout_ms": 5_000})).await;
        assert_eq!(relay.post(r#"{"id":"1","type":"a"}"#).await.status, 202);
        relay.finish().await;
        assert_eq!(partner.request_count(), 1);
    })
    .await;
}
