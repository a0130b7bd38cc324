//! Connecting to what has been vetted, and to nothing else.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tower::Service;
use url::Host;

use super::{DialPolicy, Refusal, vet_address};
use crate::send::tls;

/// Of a long answer no more addresses are tried; all of them are vetted.
pub(super) const MAX_DIALLED: usize = 6;

/// Asks for a name's addresses. The seam for tests; [`SystemResolver`] is the real one.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// Every address of `host`, in the order of preference.
    ///
    /// # Errors
    /// Whatever kept the answer from coming. An empty answer is one too, to the caller.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// `getaddrinfo`, which reads `/etc/hosts`, knows search domains and sorts by RFC 6724. It runs on tokio's blocking
/// threads, and a look-up that is given up holds its thread until the system gives up too.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|addr| addr.ip()).collect())
    }
}

/// Why there is no connection. It survives hyper-util's client: see [`ConnectError::find`]. Nothing of a request was
/// sent where there was none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The guard said no, before anything was dialled.
    #[error("{}{}", .host.as_ref().map(|host| format!("{host}: ")).unwrap_or_default(), .refusal)]
    Refused {
        /// The name that led to what is refused, where it was a name.
        host: Option<String>,
        /// What is refused.
        refusal: Refusal,
    },
    /// The name has no address, or none was told in time.
    #[error("{host}: {detail}")]
    Dns {
        /// The name.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    ConnectionRefused {
        /// What was dialled.
        address: SocketAddr,
    },
    /// No answer to the call.
    #[error("{address} did not answer in time")]
    Timeout {
        /// What was dialled last.
        address: SocketAddr,
    },
    /// Another reason, e.g. no route.
    #[error("{address}: {detail}")]
    Failed {
        /// What was dialled.
        address: SocketAddr,
        /// The system's words.
        detail: String,
    },
    /// The connection broke before TLS stood.
    #[error("the connection broke in the TLS handshake: {detail}")]
    Reset {
        /// The system's words.
        detail: String,
    },
    /// TLS did not stand in time.
    #[error("the TLS handshake was not done in time")]
    TlsTimeout,
    /// TLS was refused, by us in most cases.
    #[error("{detail}")]
    Tls {
        /// See [`tls::code`].
        code: &'static str,
        /// rustls's words.
        detail: String,
    },
}

impl ConnectError {
    /// A short, stable code: a [`Refusal`]'s own, `dns_failed`, `connect_refused`, `connect_timeout`,
    /// `connect_failed`, `connection_reset`, `tls_timeout`, or one of [`tls::code`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { refusal, .. } => refusal.code,
            Self::Dns { .. } => "dns_failed",
            Self::ConnectionRefused { .. } => "connect_refused",
            Self::Timeout { .. } => "connect_timeout",
            Self::Failed { .. } => "connect_failed",
            Self::Reset { .. } => "connection_reset",
            Self::TlsTimeout => "tls_timeout",
            Self::Tls { code, .. } => code,
        }
    }

    /// The connector's error among the causes of `error`, e.g. of hyper-util's client.
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| error.downcast_ref())
    }

    fn refused(host: Option<&str>, refusal: Refusal) -> Self {
        Self::Refused { host: host.map(str::to_owned), refusal }
    }

    fn dialling(address: SocketAddr, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused { address },
            io::ErrorKind::TimedOut => Self::Timeout { address },
            _ => Self::Failed { address, detail: error.to_string() },
        }
    }

    /// What hyper-rustls says: our own error in a box, or that of the handshake.
    fn from_https(error: Box<dyn StdError + Send + Sync>) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => *own,
            Err(error) => match tls::find(&*error) {
                Some(error) => Self::Tls { code: tls::code(error), detail: error.to_string() },
                None => Self::Reset { detail: error.to_string() },
            },
        }
    }
}

/// What a URI asks for.
#[derive(Debug)]
struct Target {
    host: Host,
    port: u16,
    https: bool,
}

impl Target {
    /// Reads the host as [`super::vet_url`] does, so that no spelling of an address passes for a name.
    fn of(uri: &Uri) -> Result<Self, ConnectError> {
        let refused = |code, sentence: &str| ConnectError::refused(None, Refusal::new(code, sentence));
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(refused("scheme_refused", "only https and http can be dialled")),
        };
        let host = Host::parse(uri.host().unwrap_or_default())
            .map_err(|error| refused("host_refused", &format!("the URL's host can't be read: {error}")))?;
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { host, port, https })
    }

    /// Whom the certificate must name.
    fn server_name(&self) -> Result<ServerName<'static>, ConnectError> {
        match &self.host {
            Host::Ipv4(addr) => Ok(IpAddr::from(*addr).into()),
            Host::Ipv6(addr) => Ok(IpAddr::from(*addr).into()),
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(|_| {
                let sentence = format!("`{name}` is no host name (RFC 1123 §2.1)");
                ConnectError::refused(None, Refusal::new("host_refused", sentence))
            }),
        }
    }
}

/// A connector for hyper-util's client that dials only what [`vet_address`] lets pass: see
/// [the module](crate::send::address_guard). No proxy variable is read, neither here nor below.
///
/// A name is resolved anew for every connection, so an answer that changes between two (rebinding) is vetted again,
/// and the vetted addresses are the ones that are dialled: no second look-up lies between. They are tried one after
/// another, IPv6 and IPv4 in turn (RFC 8305 §4), each with its share of the time.
#[derive(Clone)]
pub struct GuardedConnector {
    policy: Arc<DialPolicy>,
    resolver: Arc<dyn Resolve>,
    timeout: Duration,
}

impl std::fmt::Debug for GuardedConnector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("GuardedConnector")
            .field("policy", &self.policy)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl GuardedConnector {
    /// A connector that takes at most `timeout` from the look-up to the connection.
    pub fn new(policy: DialPolicy, resolver: Arc<dyn Resolve>, timeout: Duration) -> Self {
        Self { policy: Arc::new(policy), resolver, timeout }
    }

    async fn connect(self, uri: Uri, deadline: Sleep) -> Result<TcpStream, ConnectError> {
        let Target { host, port, https } = Target::of(&uri)?;
        let mut deadline = pin!(deadline);
        let (name, answers) = match host {
            Host::Ipv4(addr) => (None, vec![addr.into()]),
            Host::Ipv6(addr) => (None, vec![addr.into()]),
            Host::Domain(name) => {
                let answers = self.resolve(&name, deadline.as_mut()).await?;
                (Some(name), answers)
            }
        };
        for addr in &answers {
            vet_address(*addr, port, https, &self.policy)
                .map_err(|refusal| ConnectError::refused(name.as_deref(), refusal))?;
        }
        let no_address = || {
            let detail = "the name has no address".to_owned();
            ConnectError::Dns { host: name.clone().unwrap_or_default(), detail }
        };
        let order = dial_order(&answers, port);
        let last = order.last().copied().ok_or_else(no_address)?;
        tokio::select! {
            biased;
            dialled = dial(&order, self.timeout) => dialled.map_err(|told| told.unwrap_or_else(no_address)),
            () = deadline => Err(ConnectError::Timeout { address: last }),
        }
    }

    async fn resolve(&self, name: &str, deadline: Pin<&mut Sleep>) -> Result<Vec<IpAddr>, ConnectError> {
        let failed = |detail| ConnectError::Dns { host: name.to_owned(), detail };
        tokio::select! {
            biased;
            answers = self.resolver.resolve(name) => answers.map_err(|error| failed(error.to_string())),
            () = deadline => Err(failed("the name was not resolved in time".to_owned())),
        }
    }
}

/// The first of each family in turn, beginning with the family the resolver prefers; no address twice.
pub(super) fn dial_order(answers: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let Some(first) = answers.first() else { return Vec::new() };
    let (preferred, other): (Vec<&IpAddr>, Vec<&IpAddr>) =
        answers.iter().partition(|addr| addr.is_ipv4() == first.is_ipv4());
    let mut order = Vec::new();
    for place in 0..preferred.len().max(other.len()) {
        for addr in [preferred.get(place), other.get(place)].into_iter().flatten() {
            let address = SocketAddr::new(addr.to_canonical(), port);
            if !order.contains(&address) && order.len() < MAX_DIALLED {
                order.push(address);
            }
        }
    }
    order
}

/// The first of `order` that answers, or the failure that tells most: a refusal says that somebody is there.
async fn dial(order: &[SocketAddr], timeout: Duration) -> Result<TcpStream, Option<ConnectError>> {
    let rank = |error: &ConnectError| match error {
        ConnectError::ConnectionRefused { .. } => 2,
        ConnectError::Timeout { .. } => 1,
        _ => 0,
    };
    let share = timeout / u32::try_from(order.len()).unwrap_or(u32::MAX).max(1);
    let mut failures = Vec::new();
    for &address in order {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are written whole: nothing is gained by waiting for more.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failures.push(ConnectError::dialling(address, &error)),
            Err(_) => failures.push(ConnectError::Timeout { address }),
        }
    }
    Err(failures.into_iter().max_by_key(rank))
}

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

impl Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // The time begins now, not with the first poll: `GuardedHttps` counts on being the later of the two.
        let deadline = tokio::time::sleep(self.timeout);
        let connecting = self.clone().connect(uri, deadline);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}

/// [`GuardedConnector`] with TLS by hyper-rustls on top: the URL's host is what the certificate must name, and the
/// SNI, whatever address was dialled. HTTP/2 where both sides can (ALPN, RFC 7301), HTTP/1.1 otherwise.
#[derive(Debug, Clone)]
pub struct GuardedHttps {
    https: HttpsConnector<GuardedConnector>,
    timeout: Duration,
}

impl GuardedHttps {
    /// A connector whose connections, TLS included, stand within the timeout of `connector`. `tls` comes from
    /// [`tls::client_config`].
    pub fn new(connector: GuardedConnector, mut tls: ClientConfig) -> Self {
        let timeout = connector.timeout;
        // hyper-rustls panics where it is not the one that sets them.
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .with_server_name_resolver(|uri: &Uri| Target::of(uri)?.server_name())
            .enable_all_versions()
            .wrap_connector(connector);
        Self { https, timeout }
    }
}

impl Service<Uri> for GuardedHttps {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.https.poll_ready(context).map_err(ConnectError::from_https)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // hyper-rustls would refuse these too, in words that have to be guessed from.
        if let Err(error) = Target::of(&uri) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let connecting = self.https.call(uri);
        // Later than the deadline inside, so when this one has passed alone it is TLS that takes so long.
        let deadline = tokio::time::sleep(self.timeout);
        Box::pin(async move {
            tokio::select! {
                biased;
                connected = connecting => connected.map_err(ConnectError::from_https),
                () = deadline => Err(ConnectError::TlsTimeout),
            }
        })
    }
}
