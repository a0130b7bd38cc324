//! The same from the command line.

use super::*;
use crate::audit::{json_of, posthaste};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_counts_follows_lists_and_prunes() {
    crate::support::bounded(from_the_command_line(TestDatabase::sqlite())).await;
}

async fn from_the_command_line(database: TestDatabase) {
    let (svix, partner) = (mock_svix().await, MockPartner::start().await);
    let settings = [
        ("POSTHASTE_DIRECT__ALLOWED_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_MASTER_KEY", MASTER_KEY),
        ("POSTHASTE_SVIX__TOKEN", ""),
    ];
    let relay = RelayProcess::start(&database, &svix, &settings);
    call(&relay, Method::PUT, "/v1/tenants/acme", json!({ "route": "direct" })).await;
    add_endpoint(&relay, "acme-eu", endpoint(&partner)).await;
    post(&relay, (0..25).map(|n| format!("e{n}"))).await;
    let delivered = "SELECT CAST(COUNT(*) AS TEXT) FROM outcome WHERE state = 'delivered'";
    eventually("all is recorded", async || (database.text(delivered).await == "25").then_some(())).await;
    let wanted = ["replay", "--since", "1h", "--partner", "acme-eu", "--state", "delivered"];
    let with = |more: &[&'static str]| [&wanted[..], more].concat();
    let (code, text) = posthaste(&relay, &with(&["--dry-run"])).await;
    assert!(code == 0 && text.contains("25 would go out again") && text.contains("acme-eu"), "{text}");
    let (code, text) = posthaste(&relay, &with(&["--dry-run", "--format", "json"])).await;
    let counted = json_of(&text);
    assert_eq!((code, &counted["total"]), (0, &json!(25)));
    let (code, text) = posthaste(&relay, &with(&["--follow", "--pace", "500", "--format", "json"])).await;
    let replay = json_of(&text);
    assert_eq!(
        (code, &replay["state"], &replay["delivered"]),
        (0, &json!("completed"), &json!(25)),
        "{text}"
    );
    let id = replay["id"].as_str().expect("an id");
    let (code, text) = posthaste(&relay, &["replay", "list"]).await;
    assert!(code == 0 && text.contains(id), "{text}");
    let (code, text) = posthaste(&relay, &["replay", "show", id]).await;
    assert!(code == 0 && text.contains("completed"), "{text}");
    let (code, text) = posthaste(&relay, &["explain", "acme", "e1"]).await;
    assert!(code == 0 && text.contains("replay by administrator (it was delivered)"), "{text}");
    let (code, text) = posthaste(&relay, &["replay", "cancel", id]).await;
    assert!(code == 1 && text.contains("the replay is completed"), "{text}");
    let (code, text) = posthaste(&relay, &["replay", "--event", "e1"]).await;
    assert!(code != 0 && text.contains("--tenant"), "{text}");
    let (code, text) = posthaste(&relay, &["prune", "--before", "1s", "--dry-run"]).await;
    assert!(code == 0 && text.contains("nothing is gone"), "{text}");
    let (code, text) = posthaste(&relay, &["prune", "--before", "0s"]).await;
    assert!(code == 0 && text.contains("25  events"), "{text}");
    assert_eq!(database.text("SELECT CAST(COUNT(*) AS TEXT) FROM earlier_outcome").await, "0");
    for shell in ["bash", "zsh", "fish"] {
        let (code, text) = posthaste(&relay, &["completion", shell]).await;
        assert!(code == 0 && text.contains("posthaste") && text.contains("replay"), "{shell}");
    }
    let (code, text) = posthaste(&relay, &["tenant", "portal", "acme"]).await;
    assert!(code == 1 && text.contains("not routed to Svix"), "{text}");
    relay.kill();
}
