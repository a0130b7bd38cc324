//! The way from a relay to the Pub/Sub emulator.
//!
//! The emulator (0.8.20) stumbles over a stream that is cut off: it throws `NoSuchMethodError`, goes on taking the stream
//! for open, and hands it messages that come back after their deadline, again and again. So a stream whose relay is gone
//! is ended here as a stream should end, and what still comes on it is thrown away, as the service itself would.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::{Request, Response, Uri, Version};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

type Emulator = Client<HttpConnector, WholeBody>;

/// Listens for relays on their way to `emulator`; the URL to be given to them.
pub async fn open(emulator: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let client = |streams| Client::builder(TokioExecutor::new()).http2_only(streams).build_http();
    let (streams, questions): (Emulator, Emulator) = (client(true), client(false));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (streams, questions) = (streams.clone(), questions.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                // Streams are gRPC; the subscription is looked up by HTTP/1.
                let client = if request.version() == Version::HTTP_2 { &streams } else { &questions };
                pass(client.clone(), emulator, request)
            });
            tokio::spawn(async move {
                // A relay that is killed ends it with an error, and that is as it should be.
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

async fn pass(
    client: Emulator,
    emulator: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Answer>, oneshot::error::RecvError> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().expect("a path");
    head.uri = Uri::try_from(format!("http://{emulator}{path}")).expect("a URI");
    let (to_head, head_of_answer) = oneshot::channel();
    let (to_answer, frames) = mpsc::channel(16);
    // Of its own, so that it is seen to its end whoever is gone.
    tokio::spawn(async move {
        let Ok(answer) = client.request(Request::from_parts(head, WholeBody(body))).await else { return };
        let (head, mut body) = answer.into_parts();
        let _ = to_head.send(head);
        while let Some(Ok(frame)) = body.frame().await {
            let _ = to_answer.send(frame).await;
        }
    });
    Ok(Response::from_parts(head_of_answer.await?, Answer(frames)))
}

/// A request's body, which ends well even where it was cut off.
struct WholeBody(Incoming);

impl Body for WholeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(frame.and_then(Result::ok).map(Ok))
    }
}

/// What the emulator answers.
struct Answer(mpsc::Receiver<Frame<Bytes>>);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}
