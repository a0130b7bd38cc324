//! HTTP/2 toward partners that can.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderMap, Response, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use svix::webhooks::Webhook;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::partners::{add_endpoint, direct};
use crate::support::{TestDatabase, TestRelay, eventually, mock_svix};

/// One request as it came.
struct Received {
    version: Version,
    headers: HeaderMap,
    body: Bytes,
}

/// A partner that speaks HTTP/2 over TLS, and nothing else.
#[derive(Clone, Default)]
struct Http2Partner {
    connections: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Http2Partner {
    /// Starts it; its URL, and the file of the authority that vouches for it.
    async fn start(&self) -> (String, NamedTempFile) {
        let (config, authority) = identity();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("https://{}/", listener.local_addr().expect("an address"));
        let partner = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
                partner.connections.fetch_add(1, Ordering::SeqCst);
                let partner = partner.clone();
                let serve = service_fn(move |request| partner.clone().answer(request));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), serve));
            }
        });
        (url, authority)
    }

    async fn answer(
        self,
        request: axum::http::Request<hyper::body::Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let received = Received { version: head.version, headers: head.headers, body };
        self.received.lock().expect("no panic").push(received);
        Ok(Response::new(Full::new(Bytes::from_static(b"thanks"))))
    }

    fn count(&self) -> usize {
        self.received.lock().expect("no panic").len()
    }
}

/// A server's side of TLS for 127.0.0.1, and the authority it can be believed by.
fn identity() -> (ServerConfig, NamedTempFile) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("certificate");
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let certificate = params.signed_by(&key, &authority).expect("certificate").der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut file = NamedTempFile::new().expect("temporary file");
    let text = BASE64.encode(authority.der());
    write!(file, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").expect("written");
    (config, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_deliveries_share_one_http2_connection() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let partner = Http2Partner::default();
    let (url, authority) = partner.start().await;
    let mut config = direct(&database, &svix);
    config.direct.ca_files = vec![authority.path().display().to_string()];
    let relay = TestRelay::start_with(config).await;
    let (_, secret) = add_endpoint(&relay, "crm", json!({"url": url})).await;
    let event = |n: usize| json!({"id": format!("evt_{n}"), "tenant": "acme", "type": "a", "data": {"n": n}});
    relay.post(event(0).to_string()).await;
    eventually("the first has come", async || (partner.count() == 1).then_some(())).await;
    // Side by side, over the connection that stands now.
    let events: Vec<_> = (1..=100).map(event).collect();
    relay.post(json!(events).to_string()).await;
    let progress = tokio::time::timeout(Duration::from_secs(60), relay.finish()).await.expect("in time");
    assert_eq!(progress.done["delivered"], 101);
    let received = partner.received.lock().expect("no panic");
    assert_eq!((received.len(), partner.connections.load(Ordering::SeqCst)), (101, 1));
    let webhook = Webhook::new(&secret).expect("a secret");
    for request in received.iter() {
        assert_eq!(request.version, Version::HTTP_2);
        webhook.verify(&request.body, &request.headers).expect("signed");
    }
}
