//! Partners, endpoints, event types and transforms from the command line.

use serde_json::Value;

use super::run;
use crate::support::{RelayProcess, TestDatabase, mock_svix};

#[tokio::test(flavor = "multi_thread")]
async fn partners_and_endpoints_from_the_command_line() {
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    let url = format!("http://{}", relay.address());
    let variables = [("POSTHASTE_URL", url.as_str())];
    let call = async |arguments: &[&str]| run(arguments, &variables).await;
    let good = async |arguments: &[&str]| {
        let ended = call(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
        ended.out
    };
    let json = async |arguments: &[&str]| {
        let text = good(&[arguments, &["--format", "json"]].concat()).await;
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    good(&["partner", "put", "globex", "--name", "Globex", "--per-second", "5"]).await;
    assert_eq!(json(&["partner", "get", "globex"]).await["rate_limit"]["burst"], 5);
    let table = good(&["partner", "list"]).await;
    assert!(table.starts_with("ID") && table.contains("Globex"), "{table}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let transform = file("transform.json", r#"{"omit":["/card"]}"#);
    let payload = file("payload.json", r#"{"total":19.90,"card":"4111"}"#);
    let preview = good(&["transform", "preview", "--file", &transform, "--payload", &payload]).await;
    assert_eq!(preview.trim(), r#"{"total":19.90}"#, "digits are kept");

    let hooks = "https://hooks.example.com/";
    let add =
        ["endpoint", "add", "globex", "--to", hooks, "--event-type", "order.*", "--transform", &transform];
    let added = json(&add).await;
    assert!(added["secret"].as_str().expect("a secret").starts_with("whsec_"));
    let id = added["id"].as_str().expect("an id");
    let updated = json(&["endpoint", "update", id, "--tenant", "acme", "--header", "X-A: b"]).await;
    assert_eq!((&updated["tenant"], &updated["headers"]["x-a"]), (&"acme".into(), &"[redacted]".into()));
    assert_eq!(json(&["endpoint", "disable", id]).await["state"], "disabled");
    assert_eq!(json(&["endpoint", "enable", id]).await["state"], "active");
    assert_ne!(json(&["endpoint", "rotate", id]).await["secret"], added["secret"]);
    assert_eq!(json(&["endpoint", "list", "globex"]).await[0]["id"], *id);
    let refused = call(&["endpoint", "update", id, "--to", "https://127.0.0.1/"]).await;
    assert!(refused.code == Some(1) && refused.err.contains("/url"), "{}", refused.err);
    good(&["endpoint", "delete", id]).await;
    good(&["partner", "delete", "globex"]).await;
    good(&["event-type", "put", "order.paid", "--description", "Paid", "--example", &payload]).await;
    assert!(good(&["event-type", "list"]).await.contains("order.paid"));
    let tenant = json(&["tenant", "put", "acme", "--weight", "5", "--per-second", "0.5"]).await;
    assert_eq!((&tenant["weight"], &tenant["ingest_limit"]["burst"]), (&5.into(), &1.into()));
    assert_eq!((&tenant["route"], &tenant["default"]), (&"svix".into(), &true.into()));
    let direct = json(&["tenant", "put", "acme", "--route", "direct"]).await;
    assert_eq!((&direct["route"], &direct["weight"]), (&"direct".into(), &1.into()), "whole");
    assert!(good(&["tenant", "get", "acme"]).await.contains("direct"));
    // `{"no":"type"}`, in a push.
    let push = r#"{"message":{"data":"eyJubyI6InR5cGUifQ==","messageId":"1"},"subscription":"s"}"#;
    assert_eq!(relay.post(push).await.status, 204);
    assert!(
        good(&["rejected", "list", "--origin", "pubsub_push", "--since", "0"]).await.contains("is missing")
    );
    let listed = json(&["rejected", "list"]).await;
    let number = listed[0]["id"].to_string();
    assert!(good(&["rejected", "show", &number]).await.contains(r#"{"no":"type"}"#));
    let still = call(&["rejected", "replay", &number]).await;
    assert!(still.code == Some(1) && still.err.contains("it stays rejected"), "{}", still.err);
    good(&["rejected", "delete", &number]).await;
    assert_eq!(json(&["rejected", "list", "--origin", "nats:orders"]).await, Value::Array(Vec::new()));
    relay.kill();
    let away = call(&["partner", "list"]).await;
    assert!(away.code == Some(1) && away.err.contains("is the relay running?"), "{}", away.err);
}
