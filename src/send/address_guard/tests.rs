//! What the guard is held against: a sentinel on this machine that must never be called.

mod addresses;
mod connect;
mod https;
mod spellings;
mod urls;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{AllowedNetworks, ConnectError, DialPolicy, GuardedConnector, GuardedHttps, Resolve};

/// A name that the world knows.
const NAME: &str = "partner.example";

/// Listens on every address of this machine, v4 and v6, and counts who calls.
struct Sentinel {
    listener: TcpListener,
    port: u16,
}

impl Sentinel {
    fn listen() -> Self {
        let everywhere = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0));
        let listener =
            everywhere.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("listens");
        listener.set_nonblocking(true).expect("set");
        let port = listener.local_addr().expect("address").port();
        Self { listener, port }
    }

    /// Calls so far. The system completes a call before anybody accepts it, so none is missed.
    fn calls(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

/// A resolver that answers as it is told: each answer once, the last one for ever.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |answer: &&[&str]| answer.iter().map(|addr| addr.parse().expect("address")).collect();
        Arc::new(Self { answers: Mutex::new(answers.iter().map(parse).collect()), ..Self::default() })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }
}

#[async_trait]
impl Resolve for Script {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.lock().expect("lock").push(host.to_owned());
        let mut answers = self.answers.lock().expect("lock");
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        answer.ok_or_else(|| io::Error::other("no such name"))
    }
}

/// A policy with `networks` open and `port` among the allowed ones.
fn policy(networks: &[&str], port: u16) -> DialPolicy {
    let networks = AllowedNetworks::parse(networks).expect("networks");
    DialPolicy { networks, ports: vec![443, 8443, port] }
}

/// A TLS configuration that believes nobody.
fn no_roots() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

type TestClient = Client<GuardedHttps, Full<Bytes>>;

/// The client as the direct dispatcher builds it.
fn client_with(policy: DialPolicy, resolver: Arc<dyn Resolve>, tls: ClientConfig) -> TestClient {
    let connector = GuardedConnector::new(policy, resolver, Duration::from_secs(5));
    Client::builder(TokioExecutor::new()).build(GuardedHttps::new(connector, tls))
}

fn client(policy: DialPolicy, resolver: Arc<dyn Resolve>) -> TestClient {
    client_with(policy, resolver, no_roots())
}

async fn post(
    client: &TestClient,
    uri: &Uri,
) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
    let body = Full::new(Bytes::from_static(b"{}"));
    let request = client.request(Request::post(uri.clone()).body(body).expect("request"));
    tokio::time::timeout(Duration::from_secs(8), request).await.expect("in time")
}

/// The guard's word on a request that must not get through.
async fn refused(client: &TestClient, uri: &Uri) -> ConnectError {
    let error = post(client, uri).await.expect_err("must not get through");
    ConnectError::find(&error).unwrap_or_else(|| panic!("not the connector's: {error:?}")).clone()
}

/// Reads a request's head and answers 204, once.
async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await?;
    stream.shutdown().await
}
