//! TLS: whom we believe.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::Uri;
use hyper_util::client::legacy::connect::Connection as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rstest::rstest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ServerConfig};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::{NAME, Script, answer, client_with, no_roots, policy, post, refused};
use crate::send::address_guard::{ConnectError, GuardedConnector, GuardedHttps};
use crate::send::tls::client_config;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("certificate")
}

fn pem(certificate: &CertificateDer<'_>) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temporary file");
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    write!(file, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").expect("written");
    file
}

/// What the partner shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    Good,
    Address,
    Expired,
    NotYetValid,
    WrongName,
    SelfSigned,
    OfAnotherAuthority,
}

fn identity(shows: Shows, ca: &Authority) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let name = match shows {
        Shows::WrongName => "elsewhere.example",
        Shows::Address => "127.0.0.1",
        _ => NAME,
    };
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("name");
    params.distinguished_name.push(DnType::CommonName, name);
    match shows {
        Shows::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Shows::NotYetValid => params.not_before = date_time_ymd(3000, 1, 1),
        _ => {}
    }
    let key = KeyPair::generate().expect("key");
    let certificate = match shows {
        Shows::SelfSigned => params.self_signed(&key),
        Shows::OfAnotherAuthority => params.signed_by(&key, &authority("Another")),
        _ => params.signed_by(&key, ca),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (certificate.expect("certificate").der().clone(), key)
}

/// A partner on loopback. Tells the name that each caller asked for.
async fn partner(
    shows: Shows,
    ca: &Authority,
    alpn: &[&str],
) -> (u16, mpsc::UnboundedReceiver<Option<String>>) {
    let (certificate, key) = identity(shows, ca);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("certificate");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let port = listener.local_addr().expect("address").port();
    let (names, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = names.send(stream.get_ref().1.server_name().map(str::to_owned));
            let _ = answer(&mut stream).await;
        }
    });
    (port, heard)
}

fn believing(ca: &Authority) -> ClientConfig {
    client_config(&[pem(ca.der()).path()]).expect("configuration")
}

fn url(port: u16) -> Uri {
    format!("https://{NAME}:{port}/hook").parse().expect("URI")
}

/// The certificate and the SNI go by the URL's host, whatever address it led to. holds: 35, 43
#[tokio::test]
async fn an_extra_authority_is_believed_and_the_sni_is_the_urls_host() {
    let ca = authority("Ours");
    let (port, mut names) = partner(Shows::Good, &ca, &["http/1.1"]).await;
    let script = Script::new(&[&["127.0.0.1"]]);
    let client = client_with(policy(&["127.0.0.0/8"], 443), script, believing(&ca));
    let response = post(&client, &url(port)).await.expect("answered");
    assert_eq!((response.status().as_u16(), response.version()), (204, http::Version::HTTP_11));
    assert_eq!(names.recv().await, Some(Some(NAME.to_owned())));
}

#[tokio::test]
async fn an_address_is_certified_as_an_address_and_sends_no_sni() {
    let ca = authority("Ours");
    let (port, mut names) = partner(Shows::Address, &ca, &[]).await;
    let client = client_with(policy(&["127.0.0.0/8"], 443), Script::new(&[]), believing(&ca));
    let uri = format!("https://127.0.0.1:{port}/").parse().expect("URI");
    assert_eq!(post(&client, &uri).await.expect("answered").status(), 204);
    assert_eq!(names.recv().await, Some(None));
}

/// holds: 35
#[rstest]
#[case(Shows::Expired, "tls_certificate_expired")]
#[case(Shows::NotYetValid, "tls_certificate_not_yet_valid")]
#[case(Shows::WrongName, "tls_wrong_name")]
#[case(Shows::SelfSigned, "tls_unknown_issuer")]
#[case(Shows::OfAnotherAuthority, "tls_unknown_issuer")]
#[tokio::test]
async fn bad_certificates_are_refused(#[case] shows: Shows, #[case] expected: &str) {
    let ca = authority("Ours");
    let (port, mut names) = partner(shows, &ca, &[]).await;
    let script = Script::new(&[&["127.0.0.1"]]);
    let client = client_with(policy(&["127.0.0.0/8"], 443), script, believing(&ca));
    let error = refused(&client, &url(port)).await;
    assert_eq!(error.code(), expected, "{error}");
    assert!(names.try_recv().is_err(), "no request was sent");
}

/// Without the file the same partner is not believed: the platform does not know it.
#[tokio::test]
async fn only_who_is_named_is_believed() {
    let ca = authority("Ours");
    let (port, _names) = partner(Shows::Good, &ca, &[]).await;
    let script = Script::new(&[&["127.0.0.1"]]);
    let client = client_with(policy(&["127.0.0.0/8"], 443), script, believing(&authority("Another")));
    assert_eq!(refused(&client, &url(port)).await.code(), "tls_unknown_issuer");
}

#[tokio::test]
async fn http2_is_spoken_where_both_can() {
    let ca = authority("Ours");
    for (alpn, http2) in [(["h2", "http/1.1"], true), (["http/1.1", "http/1.1"], false)] {
        let (port, _names) = partner(Shows::Good, &ca, &alpn).await;
        let script = Script::new(&[&["127.0.0.1"]]);
        let connector = GuardedConnector::new(policy(&["127.0.0.0/8"], 443), script, Duration::from_secs(5));
        let stream =
            GuardedHttps::new(connector, believing(&ca)).oneshot(url(port)).await.expect("connected");
        assert_eq!(stream.connected().is_negotiated_h2(), http2);
    }
}

/// Answers each caller's first bytes with `bytes`, then does as `end` says.
async fn raw_partner(bytes: &'static [u8], end: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1_024]).await;
            let _ = stream.write_all(bytes).await;
            end(stream);
        }
    });
    port
}

fn hold(stream: TcpStream) {
    std::mem::forget(stream);
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("set");
    drop(stream);
}

async fn raw_error(bytes: &'static [u8], end: fn(TcpStream), timeout_ms: u64) -> ConnectError {
    let port = raw_partner(bytes, end).await;
    let connector = GuardedConnector::new(
        policy(&["127.0.0.0/8"], 443),
        Script::new(&[&["127.0.0.1"]]),
        Duration::from_millis(timeout_ms),
    );
    GuardedHttps::new(connector, no_roots()).oneshot(url(port)).await.expect_err("no TLS")
}

/// A ServerHello of TLS 1.1, and the alert of a server that goes no higher. holds: 35
#[tokio::test]
async fn tls_below_1_2_is_refused() {
    const SERVER_HELLO_1_1: &[u8] = b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02\
        0123456789abcdef0123456789abcdef\x00\xc0\x13\x00";
    const ALERT: &[u8] = b"\x15\x03\x02\x00\x02\x02\x46";
    for bytes in [SERVER_HELLO_1_1, ALERT] {
        let error = raw_error(bytes, hold, 5_000).await;
        assert_eq!(error.code(), "tls_protocol_version", "{error:?}");
    }
}

/// holds: 35
#[tokio::test]
async fn a_handshake_that_ends_badly_has_its_own_code() {
    assert_eq!(raw_error(b"", hold, 300).await, ConnectError::TlsTimeout);
    assert_eq!(raw_error(b"", reset, 5_000).await.code(), "connection_reset");
    assert_eq!(raw_error(b"", drop, 5_000).await.code(), "connection_reset");
    let plain = raw_error(b"HTTP/1.1 400 Bad Request\r\n\r\n", drop, 5_000).await;
    assert_eq!(plain.code(), "tls_failed", "{plain:?}");
}

/// A partner that shows one self-signed certificate, made like `openssl req -x509` makes them: `CA:TRUE`.
async fn self_signed_partner(name: &str, expired: bool) -> (u16, CertificateDer<'static>) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if expired {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().expect("key");
    let certificate = params.self_signed(&key).expect("certificate").der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = answer(&mut stream).await;
        }
    });
    (port, certificate)
}

#[tokio::test]
async fn a_self_signed_certificate_that_was_named_is_believed_for_its_names_and_dates() {
    let (good, named) = self_signed_partner(NAME, false).await;
    let (other, _) = self_signed_partner(NAME, false).await;
    let (elsewhere, of_elsewhere) = self_signed_partner("elsewhere.example", false).await;
    let (old, expired) = self_signed_partner(NAME, true).await;
    let files = [&named, &of_elsewhere, &expired].map(pem);
    let tls = client_config(&files.each_ref().map(|file| file.path().to_owned())).expect("configuration");
    let script = Script::new(&[&["127.0.0.1"]]);
    let client = client_with(policy(&["127.0.0.0/8"], 443), script, tls);
    assert_eq!(post(&client, &url(good)).await.expect("answered").status().as_u16(), 204);
    for (port, code) in
        [(elsewhere, "tls_wrong_name"), (old, "tls_certificate_expired"), (other, "tls_bad_certificate")]
    {
        assert_eq!(refused(&client, &url(port)).await.code(), code);
    }
}

#[test]
fn bad_ca_files_are_named() {
    let mut file = NamedTempFile::new().expect("temporary file");
    let error = client_config(&[file.path()]).expect_err("empty");
    assert!(error.ends_with("holds no certificate in PEM form"), "{error}");
    file.write_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
    for path in [file.path(), "/nowhere/ca.pem".as_ref()] {
        let error = client_config(&[path]).expect_err("bad");
        assert!(error.starts_with(&format!("CA file {}: ", path.display())), "{error}");
    }
}
