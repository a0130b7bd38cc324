//! The brokers that the other tests stand on: they come, they go, and they come back with what they had.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::bounded;
use crate::support::brokers::Broker;

async fn comes_and_goes(mut broker: Broker) {
    let address = broker.address();
    assert!(broker.url().contains(&address.to_string()), "{}", broker.url());
    assert!(TcpStream::connect(address).await.is_ok());
    broker.kill();
    let refused = TcpStream::connect(address).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    broker.start().await;
    assert_eq!(broker.address(), address);
    assert!(TcpStream::connect(address).await.is_ok());
}

#[tokio::test]
async fn nats_comes_and_goes() {
    bounded(async { comes_and_goes(Broker::nats().await).await }).await;
}

#[tokio::test]
async fn rabbitmq_comes_and_goes() {
    bounded(async { comes_and_goes(Broker::rabbitmq().await).await }).await;
}

#[tokio::test]
async fn sqs_comes_and_goes() {
    bounded(async { comes_and_goes(Broker::sqs().await).await }).await;
}

#[tokio::test]
async fn pubsub_comes_and_goes() {
    bounded(async {
        if let Some(broker) = Broker::pubsub().await {
            comes_and_goes(broker).await;
        }
    })
    .await;
}

#[tokio::test]
async fn redis_comes_back_with_its_data() {
    bounded(async {
        let mut broker = Broker::redis().await;
        assert!(broker.persists());
        assert_eq!(ask(&broker, "SET name value\r\n").await, "+OK\r\n");
        broker.restart().await;
        assert_eq!(ask(&broker, "GET name\r\n").await, "$5\r\nvalue\r\n");
    })
    .await;
}

/// One command in Redis's inline form.
async fn ask(broker: &Broker, command: &str) -> String {
    let mut stream = TcpStream::connect(broker.address()).await.expect("a connection");
    stream.write_all(command.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer));
    let length = read.await.expect("in time").expect("an answer");
    String::from_utf8_lossy(&answer[..length]).into_owned()
}
