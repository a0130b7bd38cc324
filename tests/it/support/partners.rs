//! Partners and endpoints, set up over the API, and what they get, verified by libraries that are not ours.

use axum::http::Method;
use posthaste::config::Config;
use posthaste::mock::{MockSvix, PartnerRequest};
use serde_json::{Value, json};
use svix::webhooks::Webhook;

use super::{Answer, HttpClient, TestDatabase, config};

/// A content type for [`HttpClient::send`].
pub const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
/// A master key for tests, and another.
pub const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub const OTHER_MASTER_KEY: &str = "HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// Settings of a relay without Svix that may dial loopback.
pub fn direct(database: &TestDatabase, svix: &MockSvix) -> Config {
    let mut config = config(database, svix);
    config.svix.token = None;
    config.master_key = Some(MASTER_KEY.to_owned().into());
    config.direct.allowed_networks = vec!["127.0.0.0/8".into()];
    config
}

/// Calls the API, which must not refuse.
pub async fn call(client: &HttpClient, method: Method, path: &str, body: Value) -> Answer {
    let answer = client.send(method, path, &JSON, body.to_string()).await;
    assert!(answer.status.is_success(), "{path}: {}", String::from_utf8_lossy(&answer.body));
    answer
}

/// Makes an endpoint, and its partner; its id and secret.
pub async fn add_endpoint(client: &HttpClient, partner: &str, settings: Value) -> (String, String) {
    call(client, Method::PUT, &format!("/v1/partners/{partner}"), json!({ "name": partner })).await;
    let made =
        call(client, Method::POST, &format!("/v1/partners/{partner}/endpoints"), settings).await.json();
    let text = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("no {name} in {made}")).to_owned();
    (text("id"), text("secret"))
}

/// Verifies with Svix's own library, and with the one of Standard Webhooks.
pub fn verify(request: &PartnerRequest, secret: &str) {
    let svix = Webhook::new(secret).expect("a secret");
    svix.verify(&request.body, &request.headers).expect("Svix's library takes the signature");
    let standard = standardwebhooks::Webhook::new(secret).expect("a secret");
    standard.verify(&request.body, &request.headers).expect("Standard Webhooks' library takes the signature");
}
