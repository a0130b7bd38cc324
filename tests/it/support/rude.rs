//! A receiver that misbehaves as no HTTP library would let it, on bare TCP or under TLS, on a thread of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest that it holds a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// How the first byte of a TLS record says that it is a handshake.
const HANDSHAKE: u8 = 0x16;
const WELL: &[u8] = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

/// What it does with a request instead of answering well.
#[derive(Debug, Clone)]
pub struct Manner {
    /// It says this first …
    pub first: Vec<u8>,
    /// … then this, over and over, until the caller goes away …
    pub again: Vec<u8>,
    /// … with so long a pause before each; without one, as fast as it is taken.
    pub every: Duration,
    /// … or, where there is nothing to say over and over, it ends so.
    pub end: End,
}

/// How it ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It leaves that to the caller.
    Hold,
    Close,
    Reset,
}

impl Manner {
    /// Says something, and then does as `end` says.
    pub fn says(first: impl Into<Vec<u8>>, end: End) -> Self {
        Self { first: first.into(), again: Vec::new(), every: Duration::ZERO, end }
    }

    /// Says something, and then something else for ever.
    pub fn goes_on(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>, every: Duration) -> Self {
        Self { first: first.into(), again: again.into(), every, end: End::Hold }
    }
}

/// One request, or a call from which none came.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its `webhook-id`; empty where there was no request.
    pub webhook_id: String,
    /// Its `webhook-timestamp`, in seconds.
    pub timestamp: i64,
    /// Whether it was answered well.
    pub well: bool,
    /// How long the connection stood after the request; `None` while it stands.
    pub held: Option<Duration>,
    /// How much was sent of an answer.
    pub sent_bytes: u64,
}

#[derive(Default)]
struct State {
    manner: Option<Manner>,
    /// So many requests of each `webhook-id` are answered with the manner.
    times: usize,
    tls: Option<Arc<ServerConfig>>,
    upstream: Option<SocketAddr>,
    calls: Vec<Call>,
}

/// The receiver. Answers 204 until told otherwise.
pub struct Rude {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Its runtime; dropped without waiting for whom it holds.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Rude {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        Self::on(listener.into_std().expect("a listener"))
    }

    /// On a port that was kept for it.
    pub fn on(listener: std::net::TcpListener) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("rude")
            .enable_all()
            .build()
            .expect("a runtime");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state, runtime: Some(runtime) }
    }

    /// A URL of it: `http` or `https`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/", self.address)
    }

    /// Answers the first so many requests of each `webhook-id` in this manner; later ones, and all for `None`, well.
    pub fn behave(&self, manner: Option<Manner>, times: usize) {
        let mut state = self.state();
        (state.manner, state.times) = (manner, times);
    }

    /// Speaks TLS from now on, with this certificate.
    pub fn show(&self, tls: ServerConfig) {
        self.state().tls = Some(Arc::new(tls));
    }

    /// Passes on what comes, inside TLS where it speaks that.
    pub fn pass_to(&self, upstream: SocketAddr) {
        self.state().upstream = Some(upstream);
    }

    /// Who has called, in the order in which the requests came.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A connection, under TLS or not.
trait Stream: AsyncRead + AsyncWrite + Unpin {
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let tls = state.lock().unwrap().tls.clone();
    let Some(tls) = tls else { return talk(stream, &state).await };
    let began = Instant::now();
    match tokio::time::timeout(PATIENCE, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, &state).await,
        // The caller did not like what it saw.
        _ => {
            let place = record(&state, &Asked::default(), false);
            ended(&state, place, began, 0);
        }
    }
}

async fn talk(mut stream: impl Stream, state: &Mutex<State>) {
    let upstream = state.lock().unwrap().upstream;
    if let Some(upstream) = upstream {
        if let Ok(mut upstream) = TcpStream::connect(upstream).await {
            // Either side may break it off.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        }
        return;
    }
    let Some(asked) = read(&mut stream).await else { return };
    let began = Instant::now();
    let manner = {
        let state = state.lock().unwrap();
        let earlier = state.calls.iter().filter(|call| call.webhook_id == asked.webhook_id).count();
        state.manner.clone().filter(|_| earlier < state.times)
    };
    let place = record(state, &asked, manner.is_none());
    let mut sent = 0;
    match manner {
        Some(manner) => {
            let _ = tokio::time::timeout(PATIENCE, misbehave(&mut stream, &manner, &mut sent)).await;
        }
        None => {
            let _ = stream.write_all(WELL).await;
            let _ = stream.shutdown().await;
        }
    }
    ended(state, place, began, sent);
}

fn record(state: &Mutex<State>, asked: &Asked, well: bool) -> usize {
    let mut state = state.lock().unwrap();
    let webhook_id = asked.webhook_id.clone();
    state.calls.push(Call { webhook_id, timestamp: asked.timestamp, well, held: None, sent_bytes: 0 });
    state.calls.len() - 1
}

fn ended(state: &Mutex<State>, place: usize, began: Instant, sent_bytes: u64) {
    let call = &mut state.lock().unwrap().calls[place];
    call.held = Some(began.elapsed());
    call.sent_bytes = sent_bytes;
}

/// Ends when the manner does, or when the caller goes away.
async fn misbehave(stream: &mut impl Stream, manner: &Manner, sent: &mut u64) {
    if stream.write_all(&manner.first).await.is_err() {
        return;
    }
    *sent += manner.first.len() as u64;
    match manner.end {
        End::Close => {
            let _ = stream.shutdown().await;
        }
        End::Reset => {
            // What was said should be read before the connection breaks.
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.socket().set_zero_linger().expect("set");
        }
        End::Hold => loop {
            let mut rest = [0; 1_024];
            if manner.again.is_empty() {
                match stream.read(&mut rest).await {
                    Ok(1..) => continue,
                    _ => return,
                }
            }
            if !manner.every.is_zero() {
                tokio::select! {
                    read = stream.read(&mut rest) => if !matches!(read, Ok(1..)) { return },
                    () = tokio::time::sleep(manner.every) => {}
                }
            }
            if stream.write_all(&manner.again).await.is_err() {
                return;
            }
            *sent += manner.again.len() as u64;
        },
    }
}

#[derive(Default)]
struct Asked {
    webhook_id: String,
    timestamp: i64,
}

/// Reads a request to its end; `None` where none came. What begins as TLS is not read further.
async fn read(stream: &mut impl Stream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if bytes[0] == HANDSHAKE {
            return Some(Asked::default());
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(named, _)| named.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() - head_end < length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let timestamp = header("webhook-timestamp").and_then(|text| text.parse().ok()).unwrap_or_default();
    Some(Asked { webhook_id: header("webhook-id").unwrap_or_default(), timestamp })
}

/// A certificate authority of the test's own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a server shows for 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    Good,
    Expired,
    WrongName,
    SelfSigned,
    OfAnotherAuthority,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("Ours")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// Its certificate, in a file.
    pub fn file(&self) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a file");
        let text = base64::engine::general_purpose::STANDARD.encode(self.0.der());
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(file.path(), pem).expect("written");
        file
    }

    /// A server that shows such a certificate.
    pub fn server(&self, shows: Shows) -> ServerConfig {
        let name = if shows == Shows::WrongName { "elsewhere.example" } else { "127.0.0.1" };
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        if shows == Shows::Expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = match shows {
            Shows::SelfSigned => params.self_signed(&key),
            Shows::OfAnotherAuthority => params.signed_by(&key, &Self::named("Another").0),
            _ => params.signed_by(&key, &self.0),
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.expect("a certificate").der().clone()], key)
            .expect("a certificate and its key")
    }
}
