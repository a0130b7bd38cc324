//! The receiver: Svix's message call and partners' URLs in one small server, which counts and else does nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use svix::webhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::tally::Tally;

/// Of so many requests one has its signature looked at.
const SAMPLE_EVERY: u64 = 100;
/// Where endpoints are; behind it stands the number.
const HOOKS: &str = "/hooks/";
const SVIX: &str = "/api/v1/app/";

/// Which signatures of direct deliveries are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Verify {
    /// None.
    None,
    /// Every hundredth.
    Sample,
    /// All: costs the cores on which the relay works, too.
    All,
}

/// A receiver that listens. It ends when this is dropped.
pub(super) struct Sink {
    address: SocketAddr,
    stage: Arc<RwLock<Stage>>,
    server: AbortHandle,
}

/// What the sink counts for now.
#[derive(Default, Clone)]
struct Stage {
    tally: Option<Arc<Tally>>,
    /// What each endpoint's requests are signed with.
    webhooks: Arc<[Webhook]>,
}

struct Desk {
    stage: Arc<RwLock<Stage>>,
    verify: Verify,
    requests: AtomicU64,
}

impl Sink {
    /// Listens on `address`; port 0 takes a free one.
    pub async fn start(address: SocketAddr, verify: Verify) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("the sink can't listen on {address}"))?;
        let address = listener.local_addr()?;
        let stage = Arc::new(RwLock::new(Stage::default()));
        let desk = Arc::new(Desk { stage: stage.clone(), verify, requests: AtomicU64::default() });
        let server = tokio::spawn(serve(listener, desk)).abort_handle();
        Ok(Self { address, stage, server })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of endpoint number `copy`.
    pub fn hook(&self, copy: usize) -> String {
        format!("http://{}{HOOKS}{copy}", self.address)
    }

    /// What comes from now on counts for `tally`, and is signed with these secrets, one for each endpoint.
    pub fn expect(&self, tally: Arc<Tally>, secrets: &[String]) -> anyhow::Result<()> {
        let webhooks: Result<Vec<_>, _> = secrets.iter().map(|secret| Webhook::new(secret)).collect();
        let webhooks = webhooks.context("an endpoint's secret is none")?.into();
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = Stage { tally: Some(tally), webhooks };
        Ok(())
    }

    /// What comes from now on is not counted.
    pub fn rest(&self) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = Stage::default();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    loop {
        // Out of file descriptors for a moment, at the worst.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve_connection(stream, desk.clone()));
    }
}

async fn serve_connection(stream: TcpStream, desk: Arc<Desk>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    // The relay ends it.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return empty(StatusCode::BAD_REQUEST) };
        let body = body.to_bytes();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let path = head.uri.path();
        if head.method != Method::POST {
            return empty(StatusCode::NOT_FOUND);
        }
        let stage = self.stage.read().unwrap_or_else(PoisonError::into_inner).clone();
        if path.starts_with(SVIX) && path.ends_with("/msg/") {
            if let Some(tally) = &stage.tally {
                tally.arrived(0, &body);
            }
            return created(number);
        }
        let Some(place) = path.strip_prefix(HOOKS) else { return empty(StatusCode::NOT_FOUND) };
        if let Some(tally) = &stage.tally {
            // A name instead of a number is the place of nobody.
            let copy = place.parse().unwrap_or(usize::MAX);
            tally.arrived(copy, &body);
            if let Some(webhook) = stage.webhooks.get(copy).filter(|_| self.looks_at(number)) {
                tally.looked_at(is_signed(webhook, &body, &head.headers));
            }
        }
        empty(StatusCode::NO_CONTENT)
    }

    const fn looks_at(&self, number: u64) -> bool {
        match self.verify {
            Verify::None => false,
            Verify::Sample => number.is_multiple_of(SAMPLE_EVERY),
            Verify::All => true,
        }
    }
}

fn is_signed(webhook: &Webhook, body: &[u8], headers: &HeaderMap) -> bool {
    webhook.verify(body, headers).is_ok()
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// What Svix answers to a message that it has created, without its content.
fn created(number: u64) -> Response<Full<Bytes>> {
    let body = format!(
        r#"{{"eventId":null,"eventType":"bench.event","payload":{{}},"channels":null,"id":"msg_{number:027}","timestamp":"2026-01-01T00:00:00.000000Z","tags":null}}"#
    );
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
