//! Connecting: names, answers, failures.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::Uri;
use rstest::rstest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::ServiceExt as _;

use super::{NAME, Script, Sentinel, answer, client, no_roots, policy, post, refused};
use crate::send::address_guard::connector::{MAX_DIALLED, dial_order};
use crate::send::address_guard::{
    ConnectError, GuardedConnector, GuardedHttps, Resolve, SystemResolver, vet_url,
};

/// Where the partner of these tests lives, and where nobody should go. Both are this machine.
const PARTNER: &str = "127.0.0.2";
const INSIDE: &str = "127.0.0.1";

/// A partner at [`PARTNER`] that answers, and a sentinel at [`INSIDE`] on the same port.
struct Scene {
    port: u16,
    served: Arc<AtomicUsize>,
    inside: std::net::TcpListener,
}

impl Scene {
    async fn set() -> Self {
        // One port on both addresses: what is free on the one may be taken on the other.
        let (listener, port, inside) = loop {
            let listener = TcpListener::bind((PARTNER, 0)).await.expect("listens");
            let port = listener.local_addr().expect("address").port();
            if let Ok(inside) = std::net::TcpListener::bind((INSIDE, port)) {
                break (listener, port, inside);
            }
        };
        inside.set_nonblocking(true).expect("set");
        let served = Arc::new(AtomicUsize::new(0));
        let counter = served.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = answer(&mut stream).await;
            }
        });
        Self { port, served, inside }
    }

    fn uri(&self) -> Uri {
        format!("http://{NAME}:{}/hook", self.port).parse().expect("URI")
    }

    /// Calls that the partner took, and calls that went inside.
    fn calls(&self) -> (usize, usize) {
        let inside = std::iter::from_fn(|| self.inside.accept().ok()).count();
        (self.served.load(Ordering::SeqCst), inside)
    }
}

/// holds: 43
#[tokio::test]
async fn a_request_reaches_an_allowed_network_by_name_and_by_address() {
    let scene = Scene::set().await;
    let policy = policy(&["127.0.0.2/32"], 443);
    let script = Script::new(&[&[PARTNER]]);
    let client = client(policy.clone(), script.clone());
    let literal = format!("http://{PARTNER}:{}/hook", scene.port);
    for text in [scene.uri().to_string(), literal] {
        let url = vet_url(&text, &policy).expect("at save");
        assert_eq!(post(&client, url.uri()).await.expect("answered").status(), 204);
    }
    assert_eq!((script.asked().len(), scene.calls()), (1, (2, 0)));
}

/// The variables that other clients obey point at the sentinel; the test above must pass all the same.
/// holds: 43
#[test]
fn proxy_variables_are_not_read() {
    let sentinel = Sentinel::listen();
    let proxy = format!("http://127.0.0.1:{}", sentinel.port);
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args([
        "--exact",
        "send::address_guard::tests::connect::a_request_reaches_an_allowed_network_by_name_and_by_address",
    ]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        child.env(name, &proxy).env(name.to_lowercase(), &proxy);
    }
    let output = child.env_remove("NO_PROXY").env_remove("no_proxy").output().expect("ran");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    assert_eq!(sentinel.calls(), 0);
}

/// First the partner, then inside: the second connection is not made. holds: 43
#[tokio::test]
async fn rebinding_dials_nothing() {
    let scene = Scene::set().await;
    let script = Script::new(&[&[PARTNER], &[INSIDE]]);
    let client = client(policy(&["127.0.0.2/32"], scene.port), script.clone());
    assert_eq!(post(&client, &scene.uri()).await.expect("answered").status(), 204);
    for _ in 0..3 {
        let error = refused(&client, &scene.uri()).await;
        assert_eq!(error.code(), "address_refused");
    }
    assert_eq!(scene.calls(), (1, 0));
    assert_eq!(script.asked().len(), 4, "one look-up a connection: what was vetted is what is dialled");
}

/// The world's own case: public when it is saved, the metadata service when it is dialled. holds: 43
#[tokio::test]
async fn a_saved_name_that_turns_inwards_dials_nothing() {
    let sentinel = Sentinel::listen();
    let policy = policy(&[], sentinel.port);
    let url = vet_url(&format!("https://{NAME}:{}/", sentinel.port), &policy).expect("at save");
    let script = Script::new(&[
        &["169.254.169.254"],
        &["127.0.0.1"],
        &["::1"],
        &["93.184.215.14", "127.0.0.1"],
        &["127.0.0.1", "93.184.215.14"],
        &["2606:4700::1", "::1", "93.184.215.14"],
    ]);
    let client = client(policy, script);
    for _ in 0..6 {
        assert_eq!(refused(&client, url.uri()).await.code(), "address_refused");
    }
    assert_eq!(sentinel.calls(), 0);
}

/// holds: 43
#[rstest]
#[case(&[PARTNER, INSIDE])]
#[case(&[INSIDE, PARTNER])]
#[case(&["10.0.0.1", PARTNER])]
#[case(&[PARTNER, INSIDE, PARTNER])]
#[case(&[PARTNER, "93.184.215.14", INSIDE])]
#[case(&[PARTNER, "::1"])]
#[case(&[PARTNER, "::ffff:127.0.0.1"])]
#[case(&[PARTNER, PARTNER, PARTNER, PARTNER, PARTNER, PARTNER, PARTNER, PARTNER, "10.0.0.1"])]
#[tokio::test]
async fn mixed_answers_dial_nothing(#[case] answers: &[&str]) {
    let scene = Scene::set().await;
    let client = client(policy(&["127.0.0.2/32"], scene.port), Script::new(&[answers]));
    let error = refused(&client, &scene.uri()).await;
    // Over http a public address among them is refused for that.
    assert!(matches!(error.code(), "address_refused" | "https_required"), "{error}");
    assert_eq!(scene.calls(), (0, 0));
}

/// Ports and https are decided where the name leads. holds: 42
#[rstest]
#[case("https", 22, "93.184.215.14", "port_refused")]
#[case("https", 6379, "2606:4700::1", "port_refused")]
#[case("http", 443, "93.184.215.14", "https_required")]
#[case("http", 443, "10.1.2.3", "address_refused")]
#[tokio::test]
async fn ports_and_https_are_vetted_when_dialling(
    #[case] scheme: &str,
    #[case] port: u16,
    #[case] addr: &str,
    #[case] code: &str,
) {
    let policy = policy(&["127.0.0.2/32"], 443);
    let url = vet_url(&format!("{scheme}://{NAME}:{port}/"), &policy).expect("at save");
    let error = refused(&client(policy, Script::new(&[&[addr]])), url.uri()).await;
    assert_eq!(error.code(), code, "{error}");
}

#[rstest]
#[case("ftp://partner.example/")]
#[case("partner.example:443")]
#[tokio::test]
async fn other_schemes_are_refused(#[case] uri: Uri) {
    let connector = GuardedConnector::new(policy(&[], 443), Script::new(&[]), Duration::from_secs(5));
    let error = connector.clone().oneshot(uri.clone()).await.expect_err("refused");
    assert_eq!(error.code(), "scheme_refused");
    let error = GuardedHttps::new(connector, no_roots()).oneshot(uri).await.expect_err("refused");
    assert_eq!(error.code(), "scheme_refused");
}

/// A resolver that fails in one way or another.
struct Broken(Option<io::ErrorKind>);

#[async_trait]
impl Resolve for Broken {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        match self.0 {
            Some(kind) => Err(kind.into()),
            None => std::future::pending().await,
        }
    }
}

fn connector(networks: &[&str], resolver: Arc<dyn Resolve>, timeout_ms: u64) -> GuardedConnector {
    GuardedConnector::new(policy(networks, 443), resolver, Duration::from_millis(timeout_ms))
}

/// holds: 35, 43
#[tokio::test]
async fn resolver_errors_have_their_own_code() {
    let uri = Uri::from_static("https://partner.example/");
    let resolvers: [Arc<dyn Resolve>; 5] = [
        Arc::new(Broken(Some(io::ErrorKind::Other))),
        Arc::new(Broken(Some(io::ErrorKind::TimedOut))),
        Arc::new(Broken(Some(io::ErrorKind::ConnectionRefused))),
        Arc::new(Broken(None)),
        Script::new(&[&[]]),
    ];
    for resolver in resolvers {
        let error = connector(&[], resolver, 100).oneshot(uri.clone()).await.expect_err("no answer");
        assert_eq!(error.code(), "dns_failed");
        assert!(error.to_string().starts_with("partner.example: "), "{error}");
    }
}

/// Also through the client. holds: 35
#[tokio::test]
async fn a_refused_connection_has_its_own_code() {
    let closed = TcpListener::bind((PARTNER, 0)).await.expect("listens").local_addr().expect("address");
    let client = client(policy(&["127.0.0.2/32"], 443), Script::new(&[&[PARTNER]]));
    let uri = format!("https://{NAME}:{}/", closed.port()).parse().expect("URI");
    assert_eq!(refused(&client, &uri).await, ConnectError::ConnectionRefused { address: closed });
}

/// The queue of a listener that accepts nothing is filled; the next call hangs. holds: 35
#[tokio::test]
async fn a_call_that_nobody_takes_times_out() {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(SocketAddr::new(PARTNER.parse().expect("address"), 0)).expect("bound");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("address");
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queue.push(stream);
        assert!(queue.len() < 100, "the queue must fill");
    }
    let uri = format!("http://{address}/").parse::<Uri>().expect("URI");
    let error = connector(&["127.0.0.2/32"], Script::new(&[]), 200).oneshot(uri).await.expect_err("hangs");
    assert_eq!(error, ConnectError::Timeout { address });
    assert_eq!(error.code(), "connect_timeout");
}

#[tokio::test]
async fn the_next_address_is_tried_where_one_refuses() {
    let scene = Scene::set().await;
    // 127.0.0.3 and ::1 have no listener on this port.
    let script = Script::new(&[&["127.0.0.3", "::1", PARTNER]]);
    let client = client(policy(&["127.0.0.2/31", "::1/128"], 443), script);
    assert_eq!(post(&client, &scene.uri()).await.expect("answered").status(), 204);
    assert_eq!(scene.calls(), (1, 0));
}

#[test]
fn families_take_turns() {
    let order = |answers: &[&str]| {
        let answers: Vec<IpAddr> = answers.iter().map(|addr| addr.parse().expect("address")).collect();
        dial_order(&answers, 443).iter().map(|address| address.ip().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(order(&["2a00::1", "2a00::2", "8.8.8.8"]), ["2a00::1", "8.8.8.8", "2a00::2"]);
    assert_eq!(order(&["8.8.8.8", "8.8.4.4", "2a00::1"]), ["8.8.8.8", "2a00::1", "8.8.4.4"]);
    assert_eq!(order(&["8.8.8.8", "::ffff:8.8.8.8", "8.8.8.8"]), ["8.8.8.8"]);
    assert_eq!(
        order(&["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4", "1.1.1.5", "1.1.1.6", "1.1.1.7"]).len(),
        MAX_DIALLED
    );
    assert!(order(&[]).is_empty());
}

/// The real resolver, and what it says of this machine's own name for itself. holds: 42
#[tokio::test]
async fn the_system_knows_localhost_and_the_guard_knows_what_that_means() {
    let sentinel = Sentinel::listen();
    let uri = format!("https://localhost:{}/", sentinel.port).parse().expect("URI");
    let error = refused(&client(policy(&[], sentinel.port), Arc::new(SystemResolver)), &uri).await;
    assert_eq!(error.code(), "address_refused", "{error}");
    assert_eq!(sentinel.calls(), 0);
}
