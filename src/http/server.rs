//! The accept loop: axum's own has no deadline for anything that a client does and no cap on connections.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::auth::Peer;
use super::patience::{TimedBody, TimedWrites};

/// Wait after an accept that failed, for want of file descriptors in most cases.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Most connections at once; further ones wait unaccepted.
    pub max_connections: usize,
    /// Time for a request's head.
    pub header_timeout: Duration,
    /// Time for a request's body, and for some of an answer to be taken.
    pub body_timeout: Duration,
}

/// Serves `router` on `listener` until `stop` is cancelled; then takes no further connection and returns once those
/// there are have ended. Whoever loses patience drops the future.
pub async fn serve(listener: TcpListener, router: Router, limits: ServerLimits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let router = router.clone().map_request(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            request.map(|body| Body::new(TimedBody::new(body, limits.body_timeout)))
        });
        let stream = TokioIo::new(TimedWrites::new(stream, limits.body_timeout));
        let connection = http.serve_connection(stream, TowerToHyperService::new(router));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is its client's business.
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

type Accepted = (TcpStream, std::net::SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<Accepted> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Answers are small and complete: nothing is gained by waiting for more.
            let _ = stream.set_nodelay(true);
            Some((stream, peer, place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
            None
        }
    }
}
