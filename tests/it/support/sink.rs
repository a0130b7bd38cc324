//! A partner that takes whatever comes, as fast as it comes, on a thread of its own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// One request, by its path and the event's id.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub path: String,
    pub id: String,
    pub at: Instant,
}

/// Answers 200: at once, after a second on paths that begin with `/slow`, never on those that begin with `/hang`.
pub struct Sink {
    address: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    /// Its runtime; dropped without waiting for those that hang.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Sink {
    pub async fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sink")
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let listener = listener.into_std().expect("a listener");
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&arrivals);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let record = Arc::clone(&record);
                let service = service_fn(move |request| take(Arc::clone(&record), request));
                // A connection that the relay's end cuts off is nothing to tell of.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, arrivals, runtime: Some(runtime) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All that has come so far, oldest first.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    /// How many have come whose path begins with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.arrivals.lock().unwrap().iter().filter(|arrival| arrival.path.starts_with(prefix)).count()
    }

    /// Waits until so many have come whose path begins with `prefix`.
    pub async fn wait_for(&self, prefix: &str, count: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.count(prefix) < count {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn take(
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    arrivals.lock().unwrap().push(Arrival { path: path.clone(), id: id_in(&body), at: Instant::now() });
    if path.starts_with("/hang") {
        std::future::pending::<()>().await;
    }
    if path.starts_with("/slow") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(Response::new(Empty::new()))
}

/// The event's id, without reading the rest: the sink must be quicker than what it measures.
fn id_in(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let id = text.split_once("\"id\":\"").and_then(|(_, rest)| rest.split_once('"'));
    id.map_or_else(String::new, |(id, _)| id.to_owned())
}
